"""What the pipelines over stacks of frames share: reading by rank, the exchange into row slabs, the products."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import database, paths
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.fitsfiles import Card, Hdu, write_fits
from zsds_hpc.archive.provenance import Record
from zsds_hpc.archive.rawfiles import RawChannel, read_channel
from zsds_hpc.core import ids
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.detector.overscan import OverscanParams, floating_bias
from zsds_hpc.parallel import slabs
from zsds_hpc.parallel.guard import agree
from zsds_hpc.pipelines.base import Unit
from zsds_hpc.settings.camera import Camera, Channel


@dataclass(frozen=True)
class Stack:
    """Row slab of all good frames, and what became of the frames.

    Attributes
    ----------
    slab : sequence of n_frames ndarray, shape (n_rows, nx), float32
    names : tuple of str
        Frames used, in order.
    rejected : tuple of str
        One line for each frame that could not be used.
    facts : tuple of dict
        What `prepare` said of each frame used.
    channel : Channel
        Channel of the frames, with the gain and read noise of their headers.
    """

    slab: Sequence[np.ndarray]
    names: tuple[str, ...]
    rejected: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    channel: Channel


Prepare = Callable[[RawChannel], tuple[np.ndarray, dict[str, Any]]]


def floating_bias_subtracted(raw: RawChannel, params: OverscanParams) -> tuple[np.ndarray, dict[str, Any]]:
    """Image less its floating bias, float32 DN, and the fit's QA."""
    bias = floating_bias(raw.overscan, params)
    pix = raw.pix.astype(np.float32)
    pix -= bias.level_dn[:, None]
    return pix, {"overscan_rms_dn": float(bias.rms_dn), "floating_bias_dn": float(np.median(bias.level_dn))}


def read_stack(
    files: Sequence[Path], camera: Camera, rcid: int | None, prepare: Prepare, comm: Any, n_min: int
) -> Stack:
    """Read and prepare this rank's frames and exchange them into row slabs.

    A frame that cannot be read is left out and named; the stack goes on with the others.

    Raises
    ------
    AlgorithmFailure
        Fewer than `n_min` frames are left.
    """
    images: list[np.ndarray] = []
    told: list[tuple[str, str, dict[str, Any]]] = []
    channel = None
    with agree(comm, "reading frames"):
        for index in slabs.my_frames(comm, len(files)):
            try:
                raw = read_channel(files[index], camera, rcid)
                pix, facts = prepare(raw)
            except BadInput as error:
                told.append((files[index].name, str(error), {}))
                continue
            images.append(pix)
            channel = raw.channel
            told.append((files[index].name, "", facts))
    everyone = told if comm is None else [item for part in comm.allgather(told) for item in part]
    channels = [channel] if comm is None else comm.allgather(channel)
    good = [item for item in everyone if not item[1]]
    rejected = tuple(reason for _, reason, _ in everyone if reason)
    if len(good) < n_min:
        lost = f"; first lost: {rejected[0]}" if rejected else ""
        raise AlgorithmFailure(f"{len(good)} frames, at least {n_min} are needed{lost}", n_frames=len(good))
    return Stack(
        slabs.to_slabs(comm, images, camera.shape),
        tuple(name for name, _, _ in good),
        rejected,
        tuple(facts for _, _, facts in good),
        next(c for c in channels if c is not None),
    )


def product_cards(stack_names: Sequence[str], n_rejected: int, channel: Channel, filtercode: str) -> list[Card]:
    """Header of a calibration product: what it belongs to and what it was made from."""
    cards: list[Card] = [
        ("CCDID", channel.ccdid, "CCD id"),
        ("QID", channel.qid, "Quadrant id"),
        ("RCID", channel.rcid, "Readout-channel id"),
        ("FILTERCO", filtercode, "Filter code"),
        ("NFRAMES", len(stack_names), "Frames combined"),
        ("NREJECT", n_rejected, "Frames that could not be used"),
    ]
    return cards + [(f"FRAME{i + 1:03d}", name) for i, name in enumerate(stack_names)]


def write_image(path: Path, pix: np.ndarray, cards: list[Card], metrics: dict[str, Any]) -> None:
    """Write a one-image calibration product, the numbers of `metrics` as HIERARCH cards of their names."""
    numbers: list[Card] = [
        (f"HIERARCH {key.upper()}"[:60], float(value)) for key, value in metrics.items()
        if isinstance(value, (int, float)) and np.isfinite(value)
    ]  # fmt: skip
    write_fits(path, [Hdu(pix, [*cards, *numbers])])


def frame_units(
    engine: Engine, camera: Camera, night: str, kind: str, label: str, more: Callable[[dict], tuple[dict, str]]
) -> list[Unit]:
    """One unit for each channel and filter that has frames of a kind on a night.

    Parameters
    ----------
    kind : str
        ``b`` or ``f``.
    label : str
        First word of the unit's id.
    more : callable
        Given the first frame's row: further inputs (path -> SHA-256), and why the unit is blocked or "".
    """
    groups: dict[tuple[int, str], list[dict]] = {}
    order = ("rcid", "filtercode", "rawname")
    for row in database.get(engine, database.channel_images, order, night=night, kind=kind):
        groups.setdefault((row["rcid"], row["filtercode"]), []).append(row)
    units = []
    for (rcid, filtercode), rows in groups.items():
        ccdid, qid = ids.ccdid_qid_of(rcid)
        extra, blocked = more(rows[0])
        frames = [row["path"] for row in rows]
        units.append(
            Unit(
                f"{label}_{night}_{filtercode}_c{ccdid:02d}_q{qid}",
                night,
                float(len(rows)),
                {**{row["path"]: row["sha256"] for row in rows}, **extra},
                {"frames": frames, "rcid": rcid, "filtercode": filtercode, "extra": list(extra)},
                blocked,
            )
        )
    return units


def enter_calibrations(kinds: Sequence[str]) -> Callable[..., None]:
    """Rule that enters a pipeline's sealed products in the calibrations table."""

    def catalogue(engine: Engine, camera: Camera, records: Sequence[Record]) -> None:
        rows = []
        for record in records:
            m = record.metrics
            for kind in kinds if record.outputs else ():
                ccdid, qid = ids.ccdid_qid_of(m["rcid"])
                path = paths.calibration(kind, record.night, m["filtercode"], ccdid, qid)
                rows.append(
                    {
                        "path": path,
                        "sha256": record.outputs[path].sha256,
                        "unit_id": record.unit_id,
                        "kind": kind,
                        "night": record.night,
                        "filtercode": m["filtercode"],
                        "rcid": m["rcid"],
                        "n_frames": m["n_frames"],
                        "usable": bool(m["usable"]),
                    }
                )
        database.put(engine, database.calibrations, rows)

    return catalogue


def product_place(unit: Unit, work: Any) -> Callable[[str], Path]:
    """Where a unit's product of a kind is staged in the archive."""
    ccdid, qid = ids.ccdid_qid_of(unit.attrs["rcid"])

    def place(kind: str) -> Path:
        return work.stage.path(paths.calibration(kind, unit.night, unit.attrs["filtercode"], ccdid, qid))

    return place
