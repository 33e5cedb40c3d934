"""Alerts: candidates of difference images into the transients database, and packets of them.

One process takes the images in the order of their time, because the history of a packet is what came before. Reading
history, entering candidates and writing packets of an image is one transaction; a rerun first removes what the image
had entered, so that it gives the same names and the same packets.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import database, diffcat, paths, transientfiles, transients
from zsds_hpc.archive.alertfiles import write_alerts
from zsds_hpc.archive.atomic import sha256_of
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.provenance import Record
from zsds_hpc.archive.refcats import RefCat
from zsds_hpc.archive.streakfile import read_streaks
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.names import RawName, parse_raw_name
from zsds_hpc.core.states import State
from zsds_hpc.pipelines.alerts_image import (
    AlertsParams,
    Found,
    Past,
    add_asteroids,
    add_objects,
    candidate_rows,
    image_row,
    packets_of,
    streak_rows,
)
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work, store_inputs
from zsds_hpc.settings.camera import Camera

_CANDIDATES, _STREAKS = "diffcand.fits", "diffstreaks.fits"
_DIFFERENCE = "scimrefdiffimg.fits.fz"
_JD_2000, _DAYS_PER_YEAR = 2451545.0, 365.25


def plan(archive: Archive, engine: Engine, params: AlertsParams, request: Request) -> list[Unit]:
    """One unit for each difference image of the night, in the order of time and channel."""
    stores = store_inputs(request, "alerts")
    return [_unit(row, stores, request) for row in transients.products_of(engine, request.night)]


def _unit(row: dict[str, Any], stores: dict[str, str], request: Request) -> Unit:
    found = {kind: next((path for path in row["files"] if path.endswith(kind)), None)
             for kind in (_CANDIDATES, _STREAKS, _DIFFERENCE)}  # fmt: skip
    inputs = {path: row["files"][path] for kind in (_CANDIDATES, _STREAKS) if (path := found[kind])}
    attrs = {
        "candidates": found[_CANDIDATES],
        "streaks": found[_STREAKS],
        "difference": Path(found[_DIFFERENCE] or "").name,
        "refcats": str(request.refcats),
        "stores": stores,
    }
    return Unit(row["unit_id"], request.night, 1.0, inputs | stores, attrs)


def run_unit(unit: Unit, work: Work, params: AlertsParams) -> dict[str, Any]:
    """Enter one image and write its packets."""
    with work.timers("read"):
        found = read_image(unit, work)
    with work.timers("stars"):
        rows = candidate_rows(found, _stars(unit, found, params), params.match) if len(found.table) else []
    with transients.transaction(_engine(work.archive.root, work.archive.database_url)) as connection:
        with work.timers("associate"):
            if transients.units_entered(connection, [unit.unit_id]).get(unit.unit_id):
                raise BadInput(f"{unit.unit_id}: its candidates were moved to long-term storage before")
            transients.forget_units(connection, [unit.unit_id])
            new, packets = _associate(connection, found, rows, params)
        with work.timers("enter"):
            entered = {"candidates": rows, "objects": new, "streaks": streak_rows(found)}
            entered["difference_images"] = [found.row]
            transients.enter(connection, entered)
            entered["objects"] = transients.objects_of(connection, unit.unit_id)
        with work.timers("write"):
            _write(unit, work, found, entered, packets)
    return _metrics(found, entered, packets)


def _associate(
    connection: transients.Connection, found: Found, rows: list[dict[str, Any]], params: AlertsParams
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """New objects, and packets; the rows are filled in."""
    if not rows:
        return [], []
    add_asteroids(connection, found, rows, params)
    past = Past(connection, found, rows, params)
    new = add_objects(connection, rows, past, params.match.same_object_arcsec)
    past.add_counts()
    return new, packets_of(found, rows, past, params)


def read_image(unit: Unit, work: Work) -> Found:
    """What the difference pipeline found on an image."""
    path, camera = work.archive.path(unit.attrs["candidates"]), work.archive.camera
    table, cutouts, cards = diffcat.read_candidates(path)
    streaks = read_streaks(work.archive.path(unit.attrs["streaks"])) if unit.attrs["streaks"] else np.zeros(0)
    row = image_row(unit.unit_id, cards, unit.attrs["difference"], camera.n_x, camera.n_y)
    found = Found(row, table, cutouts, streaks)
    ra, dec, _ = found.middle
    row |= {"cell": int(transients.cells_of(ra, dec)), "n_candidates": len(table), "n_streaks": len(streaks)}
    return found


def _stars(unit: Unit, found: Found, params: AlertsParams) -> dict[str, np.ndarray]:
    """Stars of the reference catalogues on the image and around it, Gaia's at the epoch of the exposure."""
    stores, refcats = unit.attrs["stores"], unit.attrs["refcats"]
    epoch = 2000.0 + (found.row["jd"] - _JD_2000) / _DAYS_PER_YEAR
    ra, dec, radius = found.middle
    margins = {"gaia": params.match.gaia_arcsec, "ps1": params.match.ps1_arcsec}
    return {
        kind: _store(f"{refcats}/{kind}", stores[f"refcats/{kind}"]).cone(ra, dec, radius + margin / 3600.0, epoch)
        for kind, margin in margins.items()
    }


@functools.lru_cache(maxsize=2)
def _store(path: str, sha256: str) -> RefCat:
    """A store, opened once: each of its files is checked when first touched. `sha256` tells stores of a name apart."""
    return RefCat(path)


@functools.lru_cache(maxsize=1)
def _engine(root: Path, url: str | None) -> Engine:
    return database.open_database(root, url)


def _name(unit_id: str) -> tuple[RawName, int]:
    stem, _, qid = unit_id.rpartition("_q")
    return parse_raw_name(f"{stem}.fits.fz"), int(qid)


def _write(unit: Unit, work: Work, found: Found, entered: dict[str, Any], packets: list[dict[str, Any]]) -> None:
    name, qid = _name(unit.unit_id)
    transientfiles.write_rows(work.stage.path(paths.alert_rows(name, qid)), entered)
    if packets:
        write_alerts(work.stage.path(paths.alerts(name, qid, found.row["programid"])), packets)


def _metrics(found: Found, entered: dict[str, Any], packets: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("jd", "field", "rcid", "fid", "programid")
    counts = [packet["candidate"]["ndethist"] for packet in packets]
    return {
        **{key: found.row[key] for key in keys},
        "n_candidates": len(entered["candidates"]),
        "n_objects_new": len(entered["objects"]),
        "n_streaks": len(entered["streaks"]),
        "n_packets": len(packets),
        "n_packets_first": sum(count == 1 for count in counts),
        "n_asteroids": sum(row["ssdistnr"] >= 0.0 for row in entered["candidates"]),
    }


def catalogue(engine: Engine, camera: Camera, records: Sequence[Record]) -> None:
    """Remove what units without a sealed result have entered: `run_unit` itself enters the rest."""
    gone = [record.unit_id for record in records if record.state != State.DONE]
    with transients.transaction(engine) as connection:
        transients.forget_units(connection, gone)


def restore(archive: Archive, engine: Engine, records: Sequence[Record]) -> None:
    """Enter again what sealed units had entered, where it is missing."""
    done = [record for record in records if record.state == State.DONE]
    with transients.transaction(engine) as connection:
        there = transients.units_entered(connection, [record.unit_id for record in done])
        for record in done:
            products = [path for path in record.outputs if path.endswith(paths.ALERT_ROWS_SUFFIX)]
            if record.unit_id in there or not products or not archive.path(products[0]).is_file():
                continue
            if sha256_of(archive.path(products[0])) == record.outputs[products[0]].sha256:
                transients.enter(connection, transientfiles.read_rows(archive.path(products[0])))


PIPELINE = Pipeline(
    name="alerts",
    unit="one difference image, after those before it in time",
    inputs=(_CANDIDATES, _STREAKS, "Gaia", "PS1", "transients database"),
    outputs=("alerts_programidN.avro", "transients.json.gz"),
    params=AlertsParams,
    plan=plan,
    run_unit=run_unit,
    catalogue=catalogue,
    serial=True,
    restore=restore,
)
