"""CPU seconds and memory of one channel from the raw file to alert packets, step by step; see `benchmarks.discovery`.

Run in a process of its own, on one core, through the runner's own `run_unit`: files are written, hashed, flushed,
renamed, records sealed, the database entered.
"""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import os  # isort: skip
import shutil  # isort: skip
import sys  # isort: skip
import time  # isort: skip
from pathlib import Path  # isort: skip
from typing import Any  # isort: skip

from benchmarks import disc_data  # isort: skip
from benchmarks.channel import peak_mib  # isort: skip

#: `realtime` takes `calibrate` with it. Ingest is charged a quarter because it takes a CCD of four channels.
PIPELINES = ("ingest", "realtime", "alerts")


def fresh_archive(place: Path, run: Path) -> Path:
    """Archive that knows calibrations and reference and nothing of the night; large files are hard links."""
    shutil.rmtree(run, ignore_errors=True)
    archive = run / "archive"
    archive.mkdir(parents=True)
    for folder in ("cal", "ref"):
        shutil.copytree(place / "archive" / folder, archive / folder, copy_function=os.link)
    shutil.copy(place / disc_data.SNAPSHOT, archive / "zsds.sqlite")
    return archive


def run_pipeline(name: str, place: Path, archive_root: Path, only: str) -> tuple[dict[str, float], float]:
    """Plan and run one unit as the runner does; CPU seconds of its steps, and of the unit, sealing included.

    `realtime` takes `calibrate` with it, in memory; both have their steps, as ``pipeline.step``.
    """
    from zsds_hpc.pipelines.base import Archive, Request
    from zsds_hpc.pipelines.registry import get_pipeline
    from zsds_hpc.production import bookkeeping, driver, runner
    from zsds_hpc.settings.camera import load_camera
    from zsds_hpc.settings.load import CONFIG_DIR, load_params

    pipeline, archive = get_pipeline(name), Archive(archive_root, load_camera("ztf"))
    params = load_params(pipeline.params, CONFIG_DIR / "pipelines" / f"{name}.yml", {})
    incoming = place / "sky" / "incoming" / disc_data.TIMED_NIGHT
    request = Request(disc_data.TIMED_NIGHT, incoming, place / "refcats")
    engine = archive.engine()
    job = driver.make_job(pipeline, archive, params, f"{name}_benchmark")
    unit = next(u for u in runner.planned(job, engine, request) if only in u.unit_id)
    start = time.process_time()
    result = runner.run_unit(job, unit, None)
    seconds, steps = time.process_time() - start, {}
    for one in [result["first"], result] if "first" in result else [result]:
        record = one["record"]
        if record.state != "DONE":
            sys.exit(f"{record.pipeline}: {record.state}: {record.reason}")
        bookkeeping.enter_records(engine, archive.camera, get_pipeline(record.pipeline), [record])
        steps |= {f"{record.pipeline}.{step}": value for step, value in record.steps.items()}
    engine.dispose()
    return steps, seconds


def one_repeat(place: Path, run: Path, exposure: str) -> dict[str, float]:
    """CPU seconds of each step, as `pipeline.step`."""
    archive, steps = fresh_archive(place, run), {}
    for name in PIPELINES:
        only = f"{exposure}_c{disc_data.CCDID:02d}_o" + ("" if name == "ingest" else f"_q{disc_data.QID}")
        own, seconds = run_pipeline(name, place, archive, only)
        share = 0.25 if name == "ingest" else 1.0
        steps |= {step: share * value for step, value in own.items()}
        steps[f"{name}.seal"] = share * max(seconds - sum(own.values()), 0.0)
    shutil.rmtree(run)
    return steps


def measure(place: Path, exposure: str, repeats: int) -> dict[str, Any]:
    """The measured part; call it in a process of its own."""
    # A place of its own for each: the alerts pipeline keeps its database open.
    found = [one_repeat(place, place / f"timed{k}", exposure) for k in range(repeats)]
    best = min(found, key=lambda steps: sum(steps.values()))
    return {
        "steps": {name: round(seconds, 4) for name, seconds in best.items()},
        "total_cpu_s_of_repeats": [round(sum(steps.values()), 3) for steps in found],
        "peak_mib": round(peak_mib(), 1),
    }


def pipeline_seconds(result: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of each pipeline of the best repeat; sealing of calibrate counts as realtime's."""
    out: dict[str, float] = {}
    for step, seconds in result["steps"].items():
        name = step.split(".")[0]
        out[name] = out.get(name, 0.0) + seconds
    return out
