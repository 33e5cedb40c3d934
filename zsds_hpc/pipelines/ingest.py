"""Ingest: from the camera's files and manifest to the raw archive and readout-channel images."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import database, manifest, paths, previews, rawfiles
from zsds_hpc.archive.atomic import write_bytes
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.fitsfiles import Card, FitsFile, card_value, read_bytes
from zsds_hpc.archive.provenance import Record, read_record
from zsds_hpc.astrometry.geometry import ChannelGeometry, initial_wcs
from zsds_hpc.core import ids
from zsds_hpc.core.errors import BadInput, UsageError
from zsds_hpc.core.names import KINDS, RawName, parse_raw_name
from zsds_hpc.core.params import Params, param
from zsds_hpc.core.states import State
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work
from zsds_hpc.settings.camera import Camera, Channel

PENDING, NOT_ARRIVED = "PENDING", "MISSING"
_NAME_TIME_S = 15.0  # exposures are 38 s apart; the time in a name is about 1 s off


class IngestParams(Params):
    """Settings of ingest."""

    preview_bin: int = param(4, "Pixels averaged along each side for the JPEG preview; 0 makes none.", "px", 0, 64)
    settle_s: float = param(0.0, "A file must not have changed for this long before it is read.", "s", 0, 3600)


def manifest_name(night: str) -> str:
    """Name of the manifest in the incoming directory."""
    return f"ztf_{night}_manifest.txt"


def plan(archive: Archive, engine: Engine, params: IngestParams, request: Request) -> list[Unit]:
    """One unit for each file of the manifest, and an account of every line of it."""
    if request.incoming is None:
        raise UsageError("ingest needs --incoming: the directory in which the camera's files arrive")
    source = request.incoming / manifest_name(request.night)
    entries = manifest.read_manifest(source, request.night)
    write_bytes(archive.path(paths.manifest(request.night)), read_bytes(source))
    rows = _enter(archive, engine, entries, request.night)
    return [_unit(e, request, row["state"] == NOT_ARRIVED, params) for e, row in zip(entries, rows) if row["followed"]]


def _enter(archive: Archive, engine: Engine, entries: list[manifest.Entry], night: str) -> list[dict[str, Any]]:
    """Rows of the manifest's entries, entered in the database; `followed` tells those that can be taken in."""
    before = {row["filename"]: row for row in database.get(engine, database.manifest_files, night=night)}
    rows = []
    for entry in entries:
        problem = entry.problem or _contradiction(archive, entry, night)
        known = before.get(entry.filename, {"state": PENDING, "reason": ""})
        state, reason = (State.UNPROCESSABLE, problem) if problem else (known["state"], known["reason"])
        rows.append({**_row(night, entry, state, reason), "followed": not problem})
    gone = [name for name, row in before.items() if row["state"] != State.DONE]
    database.remove(engine, database.manifest_files, night=night, filename=gone)  # lines since mended or withdrawn
    columns = database.manifest_files.columns.keys()
    database.put(engine, database.manifest_files, [{key: row[key] for key in columns} for row in rows])
    return rows


def recall_manifest(archive: Archive, engine: Engine, night: str) -> None:
    """Enter the archived copy of a night's manifest where the database knows nothing of it (it was lost)."""
    kept = archive.path(paths.manifest(night))
    if kept.is_file() and not database.get(engine, database.manifest_files, night=night):
        _enter(archive, engine, manifest.read_manifest(kept, night), night)


def _row(night: str, entry: manifest.Entry, state: str, reason: str) -> dict[str, Any]:
    return {
        "night": night,
        "filename": entry.filename[:200],
        "sha256": entry.sha256,
        "size": entry.size,
        "state": str(state),
        "reason": reason,
    }


def _contradiction(archive: Archive, entry: manifest.Entry, night: str) -> str:
    """The same name with other content was taken in before: refuse the new one, keep the old."""
    record = read_record(archive.path(paths.record("ingest", night, parse_raw_name(entry.filename).stem)))
    if record is None or record.state != State.DONE:
        return ""
    before = record.outputs[paths.raw(parse_raw_name(entry.filename))].sha256
    if before == entry.sha256:
        return ""
    return f"contradictory: archived with SHA-256 {before[:12]}..., the manifest now says {entry.sha256[:12]}..."


def _unit(entry: manifest.Entry, request: Request, late: bool, params: IngestParams) -> Unit:
    assert request.incoming is not None
    path = request.incoming / entry.filename
    attrs = {"incoming": str(request.incoming), "size": entry.size, "late": late}
    arrived = path.is_symlink() or (path.is_file() and time.time() - path.stat().st_mtime >= params.settle_s)
    return Unit(
        parse_raw_name(entry.filename).stem,
        request.night,
        float(entry.size),
        {entry.filename: entry.sha256},
        attrs,
        "" if arrived else "listed in the manifest, has not arrived",
    )


def run_unit(unit: Unit, work: Work, params: IngestParams) -> dict[str, Any]:
    """Check, archive and split one raw CCD file."""
    ((filename, sha256),) = unit.inputs.items()
    camera, name = work.archive.camera, parse_raw_name(filename)
    source = Path(unit.attrs["incoming"]) / filename
    if source.is_symlink():
        raise BadInput(f"{filename}: is a symbolic link, only plain files are taken in")
    with work.timers("check"):
        file = FitsFile(
            source,
            camera.has_checksums,
            lambda data: delivered(data, filename, unit.attrs["size"], sha256),
        )
    with work.timers("split"):
        images = rawfiles.read_raw_channels(file, camera, camera.ccd(name.ccdid))
        ccdid = card_value(file.header(0), camera.header.get("ccdid", "CCD_ID"))
        check_consistency(images[0].exposure, ccdid, name)
    with work.timers("write"):
        work.stage.path(paths.raw(name)).write_bytes(file.data)
        channels = [_one_channel(image, name, work, params) for image in images]
    exposure = dataclasses.asdict(images[0].exposure)
    telemetry = rawfiles.telemetry_of(file, camera)
    return {"exposure": exposure, "telemetry": telemetry, "channels": channels, "late": unit.attrs["late"]}


def delivered(data: bytes, filename: str, size: int, sha256: str) -> bytes:
    """The bytes of a file, if they are what the manifest says.

    Raises
    ------
    BadInput
        Says whether the file is short or different.
    """
    if len(data) != size:
        kind = "truncated" if len(data) < size else "too long"
        raise BadInput(f"{filename}: {kind}, {len(data)} bytes where the manifest says {size}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadInput(f"{filename}: SHA-256 differs from the manifest: damaged, or another file under this name")
    return data


def check_consistency(exposure: rawfiles.Exposure, ccdid: Any, name: RawName) -> None:
    """The header must tell of the exposure that the name tells of.

    Raises
    ------
    BadInput
        Names the first thing on which they differ.
    """
    night_jd = ids.nid_of_night(name.night) + ids.NID_EPOCH_JD
    is_sky_or_flat = name.kind in "of"
    for what, found, expected in (
        ("image type", exposure.kind, KINDS[name.kind]),
        ("field", exposure.field, name.field),
        ("CCD", ccdid, name.ccdid),
        ("filter", exposure.filtercode if is_sky_or_flat else name.filtercode, name.filtercode),
        ("night", int(exposure.jd - night_jd), 0),
    ):
        if found != expected:
            raise BadInput(f"{name.filename}: {what} is {found!r} in the header, {expected!r} in the name")
    named_jd = night_jd + int(name.fracday) / 1e6
    if abs(exposure.jd - named_jd) * 86400 > _NAME_TIME_S:
        raise BadInput(f"{name.filename}: exposure began at JD {exposure.jd:.5f}, by the name at {named_jd:.5f}")


def _one_channel(image: rawfiles.RawChannel, name: RawName, work: Work, params: IngestParams) -> dict[str, Any]:
    qid = image.channel.qid
    path = paths.channel(name, qid)
    rawfiles.write_channel(work.stage.path(path), image, wcs_cards(image, work.archive.camera))
    if params.preview_bin and name.kind == "o":
        preview = work.stage.path(paths.channel(name, qid, paths.PREVIEW_SUFFIX))
        previews.write_preview(preview, image.pix, params.preview_bin)
    return {"rcid": image.channel.rcid, "path": path, **raw_metrics(image, work.archive.camera)}


def geometry_of(channel: Channel, camera: Camera) -> ChannelGeometry:
    """Prior map of a channel from the camera file."""
    return ChannelGeometry(
        xi_deg=channel.xi_deg,
        eta_deg=channel.eta_deg,
        cd_deg=channel.cd_deg,
        distortion_xi_arcsec=channel.distortion_xi_arcsec,
        distortion_eta_arcsec=channel.distortion_eta_arcsec,
        n_x=camera.n_x,
        n_y=camera.n_y,
    )


def wcs_cards(image: rawfiles.RawChannel, camera: Camera) -> list[Card]:
    """Initial WCS from the commanded pointing; none for frames that do not look at the sky."""
    exposure = image.exposure
    if exposure.kind != "object" or math.isnan(exposure.ra_deg + exposure.dec_deg):
        return []
    wcs = initial_wcs(geometry_of(image.channel, camera), exposure.ra_deg, exposure.dec_deg)
    return [*wcs.to_cards(), ("WCSSTAGE", "POINTING", "WCS from the commanded pointing")]


def raw_metrics(image: rawfiles.RawChannel, camera: Camera) -> dict[str, float]:
    """Quick look at the counts, on every fourth row and column."""
    sample = image.pix[::4, ::4]
    low, median, high = np.percentile(sample, [15.87, 50, 84.13])
    strip = image.overscan[:, camera.overscan_n_skip :]
    return {
        "raw_median_dn": float(median),
        "raw_sigma_dn": float(high - low) / 2,
        "overscan_median_dn": float(np.median(strip)),
        "overscan_sigma_dn": float(np.std(strip)),
        "full_scale_fraction": float(np.mean(sample >= camera.adc_max_dn)),
    }


def catalogue(engine: Engine, camera: Camera, records: Sequence[Record]) -> None:
    """Enter states of manifest files, and raw files and channel images of sealed units."""
    rows: list[dict[str, Any]] = []
    files, raw = [], []
    nights = sorted({record.night for record in records})
    listed = {row["filename"]: row for row in database.get(engine, database.manifest_files, night=nights)}
    for record in records:
        ((filename, sha256),) = record.inputs.items()
        state = NOT_ARRIVED if record.state == State.BLOCKED else str(record.state)
        late = "late: arrived after the night was first taken in" if record.metrics.get("late") else ""
        if listed.get(filename, {}).get("sha256") == sha256:  # not where the manifest has since changed its mind
            files.append({**listed[filename], "state": state, "reason": record.reason or late})
        if record.outputs:
            raw.append(_raw_row(record, filename))
            rows += [_image_row(record, filename, item) for item in record.metrics["channels"]]
    database.put(engine, database.manifest_files, files)
    database.put(engine, database.raw_files, raw)
    database.put(engine, database.channel_images, rows)


def _common(record: Record, filename: str, path: str) -> dict[str, Any]:
    """Columns that a raw file and its channel images share."""
    name, exposure = parse_raw_name(filename), record.metrics["exposure"]
    kept = ("programid", "exptime_s", "airmass", "ra_deg", "dec_deg")
    return {
        "path": path,
        "sha256": record.outputs[path].sha256,
        "unit_id": record.unit_id,
        "night": record.night,
        "kind": name.kind,
        "filtercode": name.filtercode,
        "field": name.field,
        "obsjd": exposure["jd"],
        **{key: exposure[key] for key in kept},
    }


def _raw_row(record: Record, filename: str) -> dict[str, Any]:
    name = parse_raw_name(filename)
    return {
        **_common(record, filename, paths.raw(name)),
        "filename": filename,
        "ccdid": name.ccdid,
        "program_pi": record.metrics["exposure"]["program_pi"],
        "telemetry": record.metrics["telemetry"],
    }


def _image_row(record: Record, filename: str, item: dict[str, Any]) -> dict[str, Any]:
    figures = {key: value for key, value in item.items() if key not in ("path", "rcid")}
    common = _common(record, filename, item["path"])
    return {**common, "rawname": filename, "rcid": item["rcid"], "metrics": figures}


PIPELINE = Pipeline(
    name="ingest",
    unit="one raw CCD file of one exposure",
    inputs=("raw CCD file", "nightly manifest"),
    outputs=("raw archive copy", "readout-channel images with over-scan", "JPEG previews"),
    params=IngestParams,
    plan=plan,
    run_unit=run_unit,
    catalogue=catalogue,
    retries_bad_input=True,
)
