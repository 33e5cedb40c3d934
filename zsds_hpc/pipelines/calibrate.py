"""Calibrate: a raw readout-channel image to a calibrated image, its mask, PSF, aperture and PSF-fit catalogues."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import database, paths, previews, rawfiles
from zsds_hpc.archive.calibs import CalibrationChoice
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.fitsfiles import FitsFile, Hdu, write_fits
from zsds_hpc.archive.provenance import Record
from zsds_hpc.archive.psffile import write_psf
from zsds_hpc.archive.refcats import RefCat
from zsds_hpc.astrometry.geometry import footprint, initial_wcs
from zsds_hpc.core import ids
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work, store_inputs
from zsds_hpc.pipelines.calibrate_header import science_cards
from zsds_hpc.pipelines.calibrate_image import (
    Calibrated,
    CalibrateParams,
    Calibration,
    References,
    Setting,
    calibrate_image,
)
from zsds_hpc.pipelines.ingest import geometry_of
from zsds_hpc.settings.camera import Camera

#: role -> kind of calibration product
ROLES = {"bias": "bias", "flat": "hifreqflat", "lowv_flat": "lofreqflat", "cmask": "cmask"}
_ON_BIAS = ("bias",)


@dataclass(frozen=True)
class Inputs:
    """Files of one unit; what is None is absent.

    Attributes
    ----------
    image : Path
        Readout-channel image, or a raw file and its `channel`.
    gaia, ps1 : Path or None
        Stores, or plain catalogue files.
    siblings : tuple of Path
        The other channels of the CCD in the order of their quadrants, for cross-talk.
    """

    image: Path
    channel: int | None = None
    bias: Path | None = None
    flat: Path | None = None
    lowv_flat: Path | None = None
    cmask: Path | None = None
    gaia: Path | None = None
    ps1: Path | None = None
    siblings: tuple[Path, ...] = ()


def plan(archive: Archive, engine: Engine, params: CalibrateParams, request: Request) -> list[Unit]:
    """One unit for each science image of the night."""
    refcats = store_inputs(request, "calibrate")
    choices = {role: CalibrationChoice(engine, kind, params.validity_days) for role, kind in ROLES.items()}
    rows = database.get(engine, database.channel_images, ("path",), night=request.night, kind="o")
    by_exposure: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_exposure.setdefault(row["rawname"], []).append(row)
    return [_unit(row, by_exposure[row["rawname"]], choices, refcats, request, params) for row in rows]


def _unit(
    row: dict[str, Any],
    siblings: list[dict[str, Any]],
    choices: dict[str, CalibrationChoice],
    refcats: dict[str, str],
    request: Request,
    params: CalibrateParams,
) -> Unit:
    rcid, code, night = row["rcid"], row["filtercode"], row["night"]
    chosen = {role: choice(rcid, "bi" if role in _ON_BIAS else code, night) for role, choice in choices.items()}
    needed = ("bias", "flat") if params.require_flat else ("bias",)
    lacking = [role for role in needed if chosen[role] is None]
    others = [s for s in sorted(siblings, key=lambda s: s["rcid"]) if s["rcid"] != rcid]
    files = [row, *others, *(item for item in chosen.values() if item)]
    name, qid = parse_raw_name(row["rawname"]), ids.ccdid_qid_of(rcid)[1]
    return Unit(
        name.channel_stem(qid),
        night,
        1.0,
        {**{item["path"]: item["sha256"] for item in files}, **refcats},
        {
            "image": row["path"],
            "rcid": rcid,
            "rawname": row["rawname"],
            "siblings": [item["path"] for item in others],
            "refcats": str(request.refcats),
            **{role: item["path"] if item else None for role, item in chosen.items()},
        },
        f"no {' and no '.join(lacking)} for filter {code} within {params.validity_days} days" if lacking else "",
    )


def run_unit(unit: Unit, work: Work, params: CalibrateParams) -> dict[str, Any]:
    """Calibrate one readout-channel image of the archive."""

    def at(role: str) -> Path | None:
        return work.archive.path(unit.attrs[role]) if unit.attrs[role] else None

    refcats = Path(unit.attrs["refcats"])
    inputs = Inputs(
        image=work.archive.path(unit.attrs["image"]),
        bias=at("bias"),
        flat=at("flat"),
        lowv_flat=at("lowv_flat"),
        cmask=at("cmask"),
        gaia=refcats / "gaia",
        ps1=refcats / "ps1",
        siblings=tuple(work.archive.path(path) for path in unit.attrs["siblings"]),
    )
    name, qid = parse_raw_name(unit.attrs["rawname"]), ids.ccdid_qid_of(unit.attrs["rcid"])[1]
    return _calibrate(inputs, work, params, lambda suffix: paths.science(name, qid, suffix))


def run_files(inputs: Inputs, work: Work, params: CalibrateParams) -> dict[str, Any]:
    """Calibrate one image given as plain files; products are named after it."""
    stem = inputs.image.name.split(".fits")[0].removesuffix("_raw")
    return _calibrate(inputs, work, params, lambda suffix: f"{stem}_{suffix}")


def _calibrate(inputs: Inputs, work: Work, params: CalibrateParams, place: Any) -> dict[str, Any]:
    camera = work.archive.camera
    with work.timers("read"):
        raw = rawfiles.read_channel(inputs.image, camera, inputs.channel)
        calibration = read_calibration(inputs, camera)
        siblings = [rawfiles.read_channel(path, camera).pix for path in inputs.siblings] if camera.crosstalk else []
        references = read_references(inputs, raw, camera, params)
    result = calibrate_image(raw, siblings, calibration, references, Setting(camera, params), work.timers)
    with work.timers("write"):
        used = {role: getattr(inputs, role) for role in ROLES}
        cards = science_cards(raw, used, result, Setting(camera, params))
        work.carry["calibrated"] = (result, cards)
        write_products(result, cards, work, place, params)
    return result.metrics


def read_calibration(inputs: Inputs, camera: Camera) -> Calibration:
    """Calibration images of a unit, of the camera's shape."""
    read = {role: FitsFile(path).image(0, camera.shape) if (path := getattr(inputs, role)) else None for role in ROLES}
    return Calibration(read["bias"], read["flat"], read["lowv_flat"], read["cmask"])


def read_references(inputs: Inputs, raw: rawfiles.RawChannel, camera: Camera, params: CalibrateParams) -> References:
    """Reference stars around the commanded pointing, Gaia moved to the epoch of the exposure."""
    exposure = raw.exposure
    if np.isnan(exposure.ra_deg + exposure.dec_deg):
        raise BadInput(f"{raw.name}: no pointing in the header ({camera.header.get('ra_deg')})")
    wcs = initial_wcs(geometry_of(raw.channel, camera), exposure.ra_deg, exposure.dec_deg)
    about = footprint(wcs, camera.n_x, camera.n_y, params.astrometry.match.pointing_error_arcsec)
    cone = (about.ra_deg, about.dec_deg, about.radius_deg)
    gaia = RefCat.open(inputs.gaia, "gaia").cone(*cone, exposure.epoch_yr) if inputs.gaia else None
    item = camera.filters.get(exposure.filtercode)
    bands = (item.band, *item.color) if item else ()
    ps1 = RefCat.open_photometric(inputs.ps1, bands).cone(*cone) if inputs.ps1 else None
    return References(wcs, gaia, ps1)


def write_products(result: Calibrated, cards: list, work: Work, place: Any, params: CalibrateParams) -> None:
    """Stage sciimg, mskimg, sexcat, psfcat, PSF, log and preview."""
    stage = work.stage
    write_fits(stage.path(place("sciimg.fits")), [Hdu(result.pix, cards)])
    write_fits(stage.path(place("mskimg.fits")), [Hdu(result.mask, cards)])
    write_fits(stage.path(place("sexcat.fits")), [Hdu(None, cards), Hdu(result.catalogue, name="SEXTRACTOR_CATALOG")])
    write_fits(stage.path(place("psfcat.fits")), [Hdu(None, cards), Hdu(result.psfcat, name="PSF_CATALOG")])
    write_psf(stage.path(place("sciimg.psf")), result.psf)
    stage.path(place("log.txt")).write_text("".join(f"{line}\n" for line in result.log))
    if params.preview_bin:
        previews.write_preview(stage.path(place(paths.PREVIEW_SUFFIX)), result.pix, params.preview_bin)


def catalogue(engine: Engine, camera: Camera, records: Sequence[Record]) -> None:
    """Enter sealed science images."""
    rows = []
    for record in records:
        if not record.outputs:
            continue
        m = record.metrics
        path = next(name for name in record.outputs if name.endswith("sciimg.fits"))
        rows.append(
            {
                "path": path,
                "unit_id": record.unit_id,
                "night": record.night,
                **{key: m[key] for key in ("field", "rcid", "filtercode", "programid", "obsjd")},
                **{key: m.get(key) for key in ("seeing_pix", "magzp", "maglim", "infobits", "status")},
            }
        )
    database.put(engine, database.science_images, rows)


PIPELINE = Pipeline(
    name="calibrate",
    unit="one readout-channel image of one exposure",
    inputs=("readout-channel image", "bias.fits", "hifreqflat.fits", "lofreqflat.fits", "cmask.fits", "Gaia", "PS1"),
    outputs=("sciimg.fits", "mskimg.fits", "sexcat.fits", "psfcat.fits", "sciimg.psf", "log.txt", "preview.jpg"),
    params=CalibrateParams,
    plan=plan,
    run_unit=run_unit,
    catalogue=catalogue,
)
