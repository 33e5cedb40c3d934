"""Reference: the co-add of the good epochs of a readout channel of a field in a filter, with PSF and catalogues."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import database, paths, refimages
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.fitsfiles import FitsFile, card_value
from zsds_hpc.archive.provenance import Record, outputs_hold, read_record
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.coadd.combine import weigh
from zsds_hpc.coadd.footprint import Grid, footprint_of
from zsds_hpc.coadd.select import Candidate, Selection, SelectParams, select_epochs
from zsds_hpc.coadd.stack import stack_epochs
from zsds_hpc.coadd.template import TemplateParams, finish_reference
from zsds_hpc.coadd.warp import INHERITED, EpochFacts, Exposure, Layer, count_inherited_inplace, prepare_epoch
from zsds_hpc.core import ids, maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput, NoWork
from zsds_hpc.core.params import param
from zsds_hpc.core.states import State
from zsds_hpc.parallel import slabs
from zsds_hpc.parallel.comm import rank_of, size_of
from zsds_hpc.parallel.guard import agree
from zsds_hpc.parallel.reduce import add_up
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work
from zsds_hpc.pipelines.ingest import geometry_of
from zsds_hpc.settings.camera import Camera

IMAGE, MASK = "sciimg.fits", "mskimg.fits"
Key = tuple[int, int, str]


class ReferenceSettings(TemplateParams):
    """Settings of the reference pipeline."""

    ranks_per_unit: int = param(1, "Ranks that share one reference; each holds its epochs in memory.", "", 1, 64)
    renew: bool = param(False, "Make a further version where the chosen epochs differ from those of the last.")
    psf_stars_min: int = param(5, "With fewer stars that show its PSF a reference is not usable.", "", 0, 1000)
    empty_fraction_max: float = param(0.5, "Nor with a larger part of its pixels without data.", "", 0.0, 1.0)
    select: SelectParams = param(SelectParams(), "Which epochs.")


class SharedRanks:
    """The ranks of a group share a stack; see `coadd.stack.Share`."""

    def __init__(self, comm: Any):
        self._comm = comm
        self.size = size_of(comm)

    def guard(self, what: str) -> AbstractContextManager[None]:
        """What fails on one rank fails on all."""
        return agree(self._comm, what)

    def to_slabs(self, frames: Sequence[np.ndarray], shape: tuple[int, int]) -> Sequence[np.ndarray]:
        """Exchange all rows of this rank's epochs for this rank's rows of all epochs."""
        return slabs.to_slabs(self._comm, frames, shape)

    def gather(self, slab: np.ndarray, n_y: int) -> np.ndarray:
        """All rows on the first rank."""
        return slabs.gather_rows(self._comm, slab, n_y)


@dataclass(frozen=True)
class Target:
    """What a reference is to be, and of what.

    Attributes
    ----------
    field, rcid : int
    filtercode : str
    version : int
    ra_deg, dec_deg : float
        Fixed centre of the field.
    images : tuple of Path
        Calibrated images (sciimg.fits, the mask beside it), by date.
    """

    field: int
    rcid: int
    filtercode: str
    version: int
    ra_deg: float
    dec_deg: float
    images: tuple[Path, ...]


def plan(archive: Archive, engine: Engine, params: ReferenceSettings, request: Request) -> list[Unit]:
    """One unit for each field, channel and filter that has images up to the night and no reference yet."""
    groups: dict[Key, list[dict[str, Any]]] = {}
    for row in database.get(engine, database.science_images, ("field", "rcid", "filtercode", "obsjd", "path")):
        if row["night"] <= request.night and row["filtercode"] in archive.camera.filters:
            groups.setdefault((row["field"], row["rcid"], row["filtercode"]), []).append(row)
    _recall(archive, engine)
    made: dict[Key, list[dict[str, Any]]] = {}
    for row in database.get(engine, database.reference_images, ("version",)):
        if _record_path(archive, row).is_file():  # without a record it does not count
            made.setdefault((row["field"], row["rcid"], row["filtercode"]), []).append(row)
    units = []
    for key, rows in groups.items():
        versions = made.get(key, [])
        unit = _damaged(request.night, versions, archive)
        if unit is None and (not versions or params.renew):
            unit = _new_unit(key, rows, versions, archive, params, request.night)
            if unit is not None:
                centre = _centre(engine, key[0], made)
                unit = dataclasses.replace(unit, attrs={**unit.attrs, "ra_deg": centre[0], "dec_deg": centre[1]})
        if unit is not None:
            units.append(unit)
    return units


def _recall(archive: Archive, engine: Engine) -> None:
    """Enter sealed references that the database does not know (it was lost), so that none is ever made over."""
    known = {row["unit_id"] for row in database.get(engine, database.reference_images)}
    paths_of = [p for p in sorted(archive.path("records/reference").glob("*/ref_*.json")) if p.stem not in known]
    records = [record for record in map(read_record, paths_of) if record and record.state == State.DONE]
    catalogue(engine, archive.camera, records)


def _record_path(archive: Archive, row: dict[str, Any]) -> Path:
    return archive.path(paths.record("reference", row["night"], row["unit_id"]))


def _damaged(night: str, versions: list[dict[str, Any]], archive: Archive) -> Unit | None:
    """A sealed unit of this night whose products do not hold: made again as it was."""
    for row in versions:
        record = read_record(_record_path(archive, row)) if row["night"] == night else None
        if record is not None and outputs_hold(archive.root, record):
            return Unit(record.unit_id, night, float(len(record.inputs)), record.inputs, record.metrics["unit"])
    return None


def _stem(key: Key) -> str:
    """Unit id of a reference without its version."""
    ccdid, qid = ids.ccdid_qid_of(key[1])
    return f"ref_{key[0]:06d}_{key[2]}_c{ccdid:02d}_q{qid}"


def _new_unit(
    key: Key,
    rows: list[dict[str, Any]],
    versions: list[dict[str, Any]],
    archive: Archive,
    params: ReferenceSettings,
    night: str,
) -> Unit | None:
    """Unit of the next version; None where it would have the same epochs or still too few."""
    field, rcid, code = key
    records, selection = {}, Selection([])
    if len(rows) >= params.select.n_min:  # a record for each of thousands of images is worth a thought
        records = {row["unit_id"]: _calibrate_record(archive, row) for row in rows}
        selection = select_epochs([_candidate(row, records[row["unit_id"]]) for row in rows], params.select)
    has_news = any(row["night"] == night for row in rows)
    if len(selection.chosen) < params.select.n_min and (versions or not has_news):
        return None
    if versions and selection.chosen == versions[-1]["epochs"]:
        return None
    version = max((row["version"] for row in versions), default=0) + 1
    path_of = {row["unit_id"]: row["path"] for row in rows}
    images = [path_of[unit_id] for unit_id in selection.chosen]
    inputs = {}
    for unit_id, image in zip(selection.chosen, images):
        sealed = records[unit_id]
        for path in (image, mask_of(image)):
            inputs[path] = sealed.outputs[path].sha256 if sealed and path in sealed.outputs else ""
    attrs = {
        "field": field, "rcid": rcid, "filtercode": code, "version": version, "images": images,
        "epochs": selection.chosen, "rejected": selection.rejected, "n_images": len(rows),
    }  # fmt: skip
    return Unit(f"{_stem(key)}_v{version:03d}", night, float(len(images)), inputs, attrs)


def _centre(engine: Engine, field: int, made: dict[Key, list[dict[str, Any]]]) -> tuple[float, float]:
    """Fixed centre of a field: that of its references, or the commanded pointing of its earliest exposure."""
    known = [row for key, rows in sorted(made.items()) if key[0] == field for row in rows]
    if not known:
        known = database.get(engine, database.channel_images, ("obsjd", "path"), field=field, kind="o")
    return known[0]["ra_deg"], known[0]["dec_deg"]


def mask_of(image: Any) -> Any:
    """Mask beside a calibrated image: path or text."""
    if isinstance(image, Path):
        return image.with_name(mask_of(image.name))
    return image.removesuffix(IMAGE) + MASK


def _calibrate_record(archive: Archive, row: dict[str, Any]) -> Record | None:
    record = read_record(archive.path(paths.record("calibrate", row["night"], row["unit_id"])))
    return record if record is not None and record.state == State.DONE else None


def _candidate(row: dict[str, Any], record: Record | None) -> Candidate:
    """What is known of a science image; one without a sealed record has status 0."""
    m = record.metrics if record else {}
    figures = {name: row[name] for name in ("seeing_pix", "magzp", "maglim", "infobits")}
    return Candidate(
        row["unit_id"], row["obsjd"], **figures, status=row["status"] if record else 0,
        astrometric_error_arcsec=m.get("astrometric_map_error_arcsec"), magzp_rms=m.get("rms"),
    )  # fmt: skip


def run_unit(unit: Unit, work: Work, params: ReferenceSettings) -> dict[str, Any]:
    """Make one reference of the archive."""
    a = unit.attrs
    if len(a["images"]) < params.select.n_min:
        reasons = sorted(a["rejected"].items())
        good = f", {len(a['images'])} good epochs; first rejected: {reasons[0][0]}: {reasons[0][1]}" if reasons else ""
        raise NoWork(f"{a['n_images']} images{good}: at least {params.select.n_min} are needed")
    images = tuple(work.archive.path(path) for path in a["images"])
    target = Target(a["field"], a["rcid"], a["filtercode"], a["version"], a["ra_deg"], a["dec_deg"], images)
    ccdid, qid = ids.ccdid_qid_of(target.rcid)

    def place(suffix: str) -> Path:
        return work.stage.path(paths.reference(target.field, target.filtercode, ccdid, qid, suffix, target.version))

    notes = [f"rejected: {unit_id}: {reason}" for unit_id, reason in sorted(a["rejected"].items())]
    metrics = combine_images(target, notes, place, work, params)
    if not metrics:
        return {}
    usable = metrics.get("n_psf_stars", 0) >= params.psf_stars_min
    usable &= metrics["empty_fraction"] <= params.empty_fraction_max
    return {**metrics, "unit": dict(a), "usable": bool(usable)}


def combine_images(
    target: Target, notes: list[str], place: Callable[[str], Path], work: Work, params: ReferenceSettings
) -> dict[str, Any]:
    """Reference of calibrated images, in the archive or not.

    Parameters
    ----------
    target : Target
    notes : list of str
        First lines of the log.
    place : callable
        Suffix -> path to write to.

    Returns
    -------
    dict
        Metrics, on rank 0 of the group; empty elsewhere.
    """
    camera, comm = work.archive.camera, work.comm
    channel = next(channel for channel in camera.channels if channel.rcid == target.rcid)
    grid = footprint_of(geometry_of(channel, camera), target.ra_deg, target.dec_deg, camera.pixel_scale_arcsec)
    magzp = camera.filters[target.filtercode].reference_magzp
    with work.timers("read"):
        epochs = read_epochs(target, grid, magzp, comm, params)
    with work.timers("stack"):
        stack = weigh(epochs.facts, params.coadd)
        coadd = stack_epochs(epochs.layers, stack, grid, (params.warp, params.coadd), SharedRanks(comm))
        counts = add_up(comm, epochs.bit_counts)
    del epochs.layers[:]
    facts = {
        "rfid": ids.rfid_of(target.field, camera.filters[target.filtercode].fid, target.rcid, target.version),
        "version": target.version, "field": target.field, "rcid": target.rcid, "filtercode": target.filtercode,
        "jdstart": min(epochs.jd), "jdend": max(epochs.jd),
    }  # fmt: skip
    with agree(comm, "measuring and writing"):
        if rank_of(comm) != 0:
            return {}
        with work.timers("measure"):
            reference = finish_reference(coadd, stack, counts, (grid, magzp, facts), params)
        with work.timers("write"):
            log = [*notes, *(f"left out: {text}" for text in epochs.unreadable), *_lines(epochs, stack, reference)]
            cards = refimages.reference_cards(reference, epochs.names, camera.filters[target.filtercode].name)
            refimages.write_reference(reference, cards, log, place)
    return {**facts, **reference.metrics, "unreadable": epochs.unreadable, "frames": epochs.names}


def target_of_files(images: Sequence[Path], camera: Camera) -> Target:
    """Reference of plain files: what the header of the first says.

    Raises
    ------
    BadInput
        It is no calibrated image of the camera.
    """
    header = FitsFile(images[0]).header()
    keywords = ("FIELDID", "RCID", "DBFID", camera.header["ra_deg"], camera.header["dec_deg"])
    field, rcid, fid, ra, dec = (card_value(header, keyword) for keyword in keywords)
    code = next((code for code, item in camera.filters.items() if item.fid == fid), None)
    if code is None or rcid not in {channel.rcid for channel in camera.channels}:
        raise BadInput(f"{images[0].name}: RCID = {rcid}, DBFID = {fid}: not of this camera")
    if not all(isinstance(value, (int, float)) for value in (field, ra, dec)):
        raise BadInput(f"{images[0].name}: field {field} or pointing {ra}, {dec} missing")
    return Target(int(field), rcid, code, 1, float(ra), float(dec), tuple(images))


@dataclass(frozen=True)
class Epochs:
    """The epochs of a stack: this rank's layers, and what all of them are.

    Attributes
    ----------
    layers : list of Layer
        Of this rank.
    bit_counts : ndarray
        Of this rank: see `coadd.template.finish_reference`.
    names : list of str
        Files of all ranks, in order; so `facts` and `jd`.
    facts : list of EpochFacts
    jd : list of float
    unreadable : list of str
        One line for each image that could not be used.
    """

    layers: list[Layer]
    bit_counts: np.ndarray
    names: list[str]
    facts: list[EpochFacts]
    jd: list[float]
    unreadable: list[str]


def read_epochs(target: Target, grid: Grid, magzp: float, comm: Any, params: ReferenceSettings) -> Epochs:
    """Read and prepare this rank's images. One that cannot be used is left out and named.

    Raises
    ------
    AlgorithmFailure
        Fewer than `select.n_min` are left.
    """
    layers: list[Layer] = []
    told: list[tuple[str, str, EpochFacts | None, float]] = []
    counts = np.zeros((len(INHERITED), *grid.shape), np.uint8)
    with agree(comm, "reading epochs"):
        for index in slabs.my_frames(comm, len(target.images)):
            path = target.images[index]
            try:
                exposure, jd = read_exposure(path, target)
                layer = prepare_epoch(exposure, grid, magzp, params.warp)
            except (BadInput, AlgorithmFailure) as error:
                told.append((path.name, str(error), None, 0.0))
                continue
            count_inherited_inplace(counts, exposure, grid, params.warp)
            layers.append(layer)
            told.append((path.name, "", layer.facts, jd))
    everyone = told if comm is None else [item for part in comm.allgather(told) for item in part]
    good = [(name, facts, jd) for name, _, facts, jd in everyone if facts is not None]
    unreadable = [f"{name}: {reason}" for name, reason, facts, _ in everyone if facts is None]
    if len(good) < params.select.n_min:
        lost = f"; first lost: {unreadable[0]}" if unreadable else ""
        raise AlgorithmFailure(
            f"{len(good)} epochs, at least {params.select.n_min} are needed{lost}", n_frames=len(good)
        )
    names, facts, starts = zip(*good)
    return Epochs(layers, counts, list(names), list(facts), list(starts), unreadable)


def read_exposure(path: Path, target: Target) -> tuple[Exposure, float]:
    """A calibrated image and the start of its exposure (JD, UTC).

    Raises
    ------
    BadInput
        Damaged, of another channel or filter, or without calibration.
    """
    file = FitsFile(path)
    header, pix = file.header(), file.image()
    mask = FitsFile(mask_of(path)).image(0, pix.shape)
    if mask.dtype != maskbits.MASK_DTYPE or pix.dtype != np.float32:
        raise BadInput(f"{path.name}: {pix.dtype} image with {mask.dtype} mask")
    wanted = {"RCID": target.rcid, "DBFID": ids.FILTER_IDS[target.filtercode]}
    for keyword, value in wanted.items():
        if (found := card_value(header, keyword)) != value:
            raise BadInput(f"{path.name}: {keyword} = {found}, the reference has {value}")
    keywords = ("GAIN", "SATURATE", "MAGZP", "CLRCOEFF", "SEEING", "OBSJD")
    values = [card_value(header, keyword) for keyword in keywords]
    for keyword, value in zip(keywords, values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise BadInput(f"{path.name}: {keyword} = {value}")
    return Exposure(pix, mask, TPV.from_cards(header), *map(float, values[:-1])), float(values[-1])


def _lines(epochs: Epochs, stack: Any, reference: Any) -> list[str]:
    """Log of what was combined and what came out."""
    lines = [
        f"epoch: {name} weight={weight / stack.weight.sum():.5f} sky_sigma={facts.sky_var**0.5:.4f}"
        f" seeing_pix={facts.seeing_pix:.3f}"
        for name, weight, facts in zip(epochs.names, stack.weight, epochs.facts)
    ]
    figures = sorted((key, value) for key, value in reference.metrics.items() if isinstance(value, (int, float)))
    return lines + [f"{key}={value:.6g}" for key, value in figures]


def catalogue(engine: Engine, camera: Camera, records: Sequence[Record]) -> None:
    """Enter sealed references."""
    rows = []
    for record in records:
        if not record.outputs:
            continue
        m, unit = record.metrics, record.metrics["unit"]
        path = next(name for name in record.outputs if name.endswith(refimages.IMAGE))
        rows.append(
            {
                "path": path,
                "sha256": record.outputs[path].sha256,
                "unit_id": record.unit_id,
                "night": record.night,
                **{key: unit[key] for key in ("epochs", "ra_deg", "dec_deg")},
                **{key: m[key] for key in ("field", "rcid", "filtercode", "version", "rfid", "n_frames")},
                **{key: m[key] for key in ("jdstart", "jdend", "magzp", "maglim", "seeing_pix", "usable")},
            }
        )
    database.put(engine, database.reference_images, rows)


PIPELINE = Pipeline(
    name="reference",
    unit="the good epochs of one readout channel of a field in one filter",
    inputs=("sciimg.fits", "mskimg.fits"),
    outputs=(refimages.IMAGE, *refimages.SUFFIXES, *refimages.OTHERS),
    params=ReferenceSettings,
    plan=plan,
    run_unit=run_unit,
    catalogue=catalogue,
    ensemble=True,
)
