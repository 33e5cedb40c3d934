"""Realtime: what is new or has changed on a science image, found on its difference from the reference.

A continuation of `calibrate`: the calibrated image is taken from memory where this process has just made it, and from
its files otherwise; the products are the same to the bit.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import database, models, paths, refimages, scifiles, transients
from zsds_hpc.archive.compressed import image_cards, write_compressed
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.diffcat import write_candidates
from zsds_hpc.archive.fitsfiles import Card, Hdu, write_fits
from zsds_hpc.archive.provenance import Record
from zsds_hpc.archive.psffile import write_psf
from zsds_hpc.archive.streakfile import write_streaks
from zsds_hpc.core import ids
from zsds_hpc.core.errors import BadInput, NoWork
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.core.states import State
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work
from zsds_hpc.pipelines.realtime_image import Discovery, RealtimeParams, Vetters, discover, storage_step
from zsds_hpc.settings.camera import Camera
from zsds_hpc.subtraction.images import Science, Template
from zsds_hpc.subtraction.realbogus import build_models
from zsds_hpc.subtraction.streak_model import StreakModel

#: Names of the trained models.
MODELS = ("realbogus_features", "realbogus_cutouts", "streaks")
#: Half side of the PSF image.
_PSF_HALF_PIX = 12
#: Steps of the error image, in its median.
_SIGMA_STEP = 1 / 50

Place = Callable[[str], str]


def plan(archive: Archive, engine: Engine, params: RealtimeParams, request: Request) -> list[Unit]:
    """One unit for each science image of the night, with the newest reference that it has no part in."""
    rows = database.get(engine, database.channel_images, ("path",), night=request.night, kind="o")
    references: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for row in database.get(engine, database.reference_images, ("version",), usable=True):
        references.setdefault((row["field"], row["rcid"], row["filtercode"]), []).append(row)
    used = {} if params.renew else _used_before(engine, request.night)
    trained = {f"models/{name}": models.load_model(name).card["sha256"] for name in MODELS}
    return [_unit(row, references, used, trained, request.night) for row in rows]


def _used_before(engine: Engine, night: str) -> dict[str, str]:
    """Unit -> reference that it was searched with: candidates that are out keep their numbers."""
    done = database.get(engine, database.units, pipeline="realtime", night=night, state=State.DONE)
    return {row["unit_id"]: row["metrics"]["refimg"] for row in done}


def _unit(
    row: Mapping[str, Any],
    references: Mapping[tuple, list[dict[str, Any]]],
    used: Mapping[str, str],
    trained: Mapping[str, str],
    night: str,
) -> Unit:
    name, (_, qid) = parse_raw_name(row["rawname"]), ids.ccdid_qid_of(row["rcid"])
    stem = name.channel_stem(qid)
    there = references.get((name.field, row["rcid"], name.filtercode), [])
    choice = [r for r in there if stem not in r["epochs"]]
    choice = [r for r in choice if r["path"] == used.get(stem)] or choice
    attrs = {"rawname": row["rawname"], "rcid": row["rcid"], "n_references": len(there), "refimg": None}
    if not choice:
        return Unit(stem, night, 1.0, {}, attrs)
    attrs["refimg"] = choice[-1]["path"]
    return Unit(stem, night, 1.0, {choice[-1]["path"]: choice[-1]["sha256"], **trained}, attrs)


def run_unit(unit: Unit, work: Work, params: RealtimeParams) -> dict[str, Any]:
    """Search one image."""
    name, (ccdid, qid) = parse_raw_name(unit.attrs["rawname"]), ids.ccdid_qid_of(unit.attrs["rcid"])
    if unit.attrs["refimg"] is None:
        part = " that it has no part in" if unit.attrs["n_references"] else ""
        raise NoWork(f"no reference of field {name.field}, {name.filtercode}, CCD {ccdid}, quadrant {qid}{part}")
    with work.timers("read"):
        sciimg = work.archive.path(paths.science(name, qid, scifiles.IMAGE))
        science, cards = science_of(work, sciimg)
        if cards.get("STATUS") == 0:
            raise BadInput(f"{sciimg.name}: not usable, INFOBITS = {cards.get('INFOBITS')} (its log.txt says why)")
        template = refimages.read_template(work.archive.path(unit.attrs["refimg"]))
    metrics = search(science, cards, template, work, params, lambda suffix: paths.science(name, qid, suffix))
    identity = {"obsjd": cards["OBSJD"], "rcid": unit.attrs["rcid"], "field": name.field}
    return {**metrics, **identity, "refimg": unit.attrs["refimg"]}


def run_files(sciimg: Path, refimg: Path, work: Work, params: RealtimeParams) -> dict[str, Any]:
    """Search a calibrated image given as a plain file, with a reference given so; products are named after it."""
    with work.timers("read"):
        science, cards = scifiles.read_science(sciimg)
        template = refimages.read_template(refimg)
    code = template.facts.get("filtercode", "")
    if None not in (cards.get("DBFID"), ids.FILTER_IDS.get(code)) and cards["DBFID"] != ids.FILTER_IDS[code]:
        raise BadInput(f"{sciimg.name}: filter {cards.get('FILTER')}, the reference is of {code}")
    stem = sciimg.name.removesuffix(scifiles.IMAGE)
    return search(science, cards, template, work, params, lambda suffix: f"{stem}{suffix}")


def science_of(work: Work, sciimg: Path) -> tuple[Science, Mapping[str, Any]]:
    """The calibrated image from memory, or from its files."""
    if "calibrated" not in work.carry:
        return scifiles.read_science(sciimg)
    result, cards = work.carry.pop("calibrated")
    return scifiles.science_in_memory((result.pix, result.mask, result.psfcat), result.psf, cards, sciimg.name)


def search(
    science: Science, cards: Mapping[str, Any], template: Template, work: Work, params: RealtimeParams, place: Place
) -> dict[str, Any]:
    """Difference, candidates, vetting and streaks of an image, written to the stage.

    Parameters
    ----------
    science : Science
    cards : mapping
        Header of the calibrated image.
    template : Template
    work : Work
    params : RealtimeParams
    place : callable
        Suffix of a product -> name relative to the stage.

    Returns
    -------
    dict
        Metrics.
    """
    vetters = load_vetters()
    found = discover(science, template, vetters, params, work.timers)
    with work.timers("write"):
        _write(found, difference_cards(cards, template, found, vetters), work, place, params)
    return found.metrics


@functools.lru_cache(maxsize=1)
def load_vetters() -> Vetters:
    """The trained models that come with the suite, each checked by its hash."""
    trees, net, streaks = (models.load_model(name) for name in MODELS)
    return Vetters(
        build_models(trees.text, trees.card, net.arrays(), net.card),
        StreakModel(streaks.text, tuple(streaks.card["features"])),
    )


def difference_cards(cards: Mapping[str, Any], template: Template, found: Discovery, vetters: Vetters) -> list[Card]:
    """Header of the products: that of the calibrated image, and what belongs to reference and difference."""
    facts, m = template.facts, found.metrics
    real_bogus = vetters.candidates
    own: list[Card] = [
        ("RFID", facts["rfid"], "Reference-image id"),
        ("REFVER", facts["version"], "Version of the reference"),
        ("REFJDBEG", facts["jdstart"], "[d] Start of its earliest epoch, JD (UTC)"),
        ("REFJDEND", facts["jdend"], "[d] Start of its latest epoch, JD (UTC)"),
        ("REFNFRM", facts["n_frames"], "Epochs in it"),
        ("REFSEEIN", facts["seeing_pix"], "[pix] Its seeing FWHM"),
        ("REFMLIM", facts["maglim"], "[mag] Its 5-sigma limit"),
        ("REFGAIN", m["gain"], "Science flux over reference flux, middle"),
        ("NREGIST", m["n_registered"], "Stars of the registration"),
        ("REGRMS", m["register_rms_pix"], "[pix] Scatter of the registration"),
        ("DIFFSCAL", m["noise_scale"], "Width of difference / error, unscaled"),
        ("MISGAIN", m["misfit_gain"], "Relative error of constant stars"),
        ("MISSHIFT", m["misfit_shift_pix"], "[pix] Error of registration"),
        ("DIFFRMS", m["noise_dn"], "[DN] Noise of the sky of the difference"),
        ("RBVERS", real_bogus.rb_version if real_bogus else "", "Version of the classifier rb"),
        ("DRBVERS", real_bogus.drb_version if real_bogus else "", "Version of the classifier drb"),
    ]
    carried = image_cards([(key, value) for key, value in cards.items() if value is not None])
    replaced = {card[0] for card in own}
    return [card for card in carried if card[0] not in replaced] + [c for c in own if c[1] == c[1]]


def _write(found: Discovery, cards: list[Card], work: Work, place: Place, params: RealtimeParams) -> None:
    difference, stage = found.difference, work.stage
    step = storage_step(difference.sigma, params.noise_steps)
    write_compressed(stage.path(place("scimrefdiffimg.fits.fz")), difference.pix, cards, step)
    typical = step * params.noise_steps
    write_compressed(stage.path(place("scimrefdiffunc.fits.fz")), difference.sigma, cards, typical * _SIGMA_STEP)
    write_compressed(stage.path(place("diffmsk.fits.fz")), difference.mask, cards)
    image = difference.psf.center(_PSF_HALF_PIX)
    write_fits(stage.path(place("diffimgpsf.fits")), [Hdu(np.ascontiguousarray(image), cards)])
    write_psf(stage.path(place("diffimg.psf")), difference.psf)
    write_candidates(stage.path(place("diffcand.fits")), found.candidates, cards)
    write_streaks(stage.path(place("diffstreaks.fits")), found.streaks, cards)
    stage.path(place("difflog.txt")).write_text("".join(f"{line}\n" for line in found.log))


def catalogue(engine: Engine, camera: Camera, records: Sequence[Record]) -> None:
    """Enter sealed products, for the alerts pipeline to find."""
    transients.enter_products(engine, records)


PIPELINE = Pipeline(
    name="realtime",
    unit="one calibrated readout-channel image of one exposure",
    inputs=("sciimg.fits", "mskimg.fits", "psfcat.fits", "sciimg.psf", "refimg.fits", "refgrid.fits"),
    outputs=(
        "scimrefdiffimg.fits.fz", "scimrefdiffunc.fits.fz", "diffmsk.fits.fz", "diffimgpsf.fits", "diffimg.psf",
        "diffcand.fits", "diffstreaks.fits", "difflog.txt",
    ),
    params=RealtimeParams,
    plan=plan,
    run_unit=run_unit,
    catalogue=catalogue,
    continues="calibrate",
)  # fmt: skip
