"""What sealed records say, entered in the database; and the database made anew from records."""

from collections.abc import Sequence

from zsds_hpc.archive import database
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.provenance import Record, read_record
from zsds_hpc.pipelines.base import Archive, Pipeline
from zsds_hpc.settings.camera import Camera


def enter_records(engine: Engine, camera: Camera, pipeline: Pipeline, records: Sequence[Record]) -> None:
    """Enter a batch of records: the units' states, and the products by the pipeline's own rule."""
    database.put(engine, database.units, [_unit_row(record) for record in records])
    gone = [record.unit_id for record in records if not record.outputs]
    for table in (database.raw_files, database.channel_images, database.calibrations, database.science_images):
        database.remove(engine, table, unit_id=gone)  # products of an earlier run, no longer vouched for
    pipeline.catalogue(engine, camera, records)


def _unit_row(record: Record) -> dict:
    return {
        "pipeline": record.pipeline,
        "unit_id": record.unit_id,
        "night": record.night,
        "state": str(record.state),
        "reason": record.reason,
        "fingerprint": record.fingerprint,
        "job": record.run.get("job"),
        "cpu_s": round(sum(record.steps.values()), 3),
        "peak_mib": record.run.get("peak_mib"),
        "metrics": record.metrics,
    }


def rebuild(archive: Archive, pipelines: Sequence[Pipeline], night: str) -> int:
    """Enter all sealed records of a night again (after a crash before the last batch); returns how many."""
    engine, n_records = archive.engine(), 0
    for pipeline in pipelines:
        folder = archive.path(f"records/{pipeline.name}/{night}")
        records = [record for path in sorted(folder.glob("*.json")) if (record := read_record(path))]
        enter_records(engine, archive.camera, pipeline, records)
        if pipeline.restore is not None:
            pipeline.restore(archive, engine, records)
        n_records += len(records)
    return n_records
