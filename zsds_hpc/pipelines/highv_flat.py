"""High-frequency flat: the pixel-to-pixel response of a readout channel, from the dome flats of a night."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive.calibs import CalibrationChoice
from zsds_hpc.archive.database import Engine
from zsds_hpc.archive.fitsfiles import FitsFile
from zsds_hpc.archive.rawfiles import RawChannel
from zsds_hpc.core import maskbits
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.badpix import BadpixParams, build_cmask
from zsds_hpc.detector.detrend import DetrendInputs, detrend
from zsds_hpc.detector.highv_flat import (
    HighvFlat,
    HighvFlatParams,
    combine_highv_flat,
    highv_flat_metrics,
    normalize_flat,
)
from zsds_hpc.detector.overscan import OverscanParams, floating_bias
from zsds_hpc.parallel import slabs
from zsds_hpc.parallel.comm import rank_of
from zsds_hpc.parallel.guard import agree
from zsds_hpc.pipelines import ensemble
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work

KINDS = ("hifreqflat", "hifreqflatunc", "cmask")


class HighvFlatSettings(Params):
    """Settings of the high-frequency flat pipeline."""

    ranks_per_unit: int = param(2, "Ranks that share one channel's stack.", ge=1, le=64)
    validity_days: int = param(7, "How far from the night a super-bias may be.", "d", 0, 10_000)
    overscan: OverscanParams = param(OverscanParams(), "Floating bias from the over-scan.")
    flat: HighvFlatParams = param(HighvFlatParams(), "Normalisation and combination.")
    badpix: BadpixParams = param(BadpixParams(), "Pixels of bad response.")


def plan(archive: Archive, engine: Engine, params: HighvFlatSettings, request: Request) -> list[Unit]:
    """One unit for each channel and filter with dome flats on the night."""
    choices = [CalibrationChoice(engine, kind, params.validity_days) for kind in ("bias", "biasmask")]

    def bias_of(row: dict[str, Any]) -> tuple[dict[str, str], str]:
        found = [choice(row["rcid"], "bi", row["night"]) for choice in choices]
        if None in found:
            return {}, f"no super-bias within {params.validity_days} days"
        return {item["path"]: item["sha256"] for item in found if item}, ""

    return ensemble.frame_units(engine, archive.camera, request.night, "f", "highv_flat", bias_of)


def run_unit(unit: Unit, work: Work, params: HighvFlatSettings) -> dict[str, Any]:
    """Combine one channel's dome flats and write the products."""
    bias, mask = (work.archive.path(path) for path in unit.attrs["extra"])
    files = [work.archive.path(path) for path in unit.attrs["frames"]]
    source = FlatSource(files, unit.attrs["rcid"], unit.attrs["filtercode"], unit.night, bias, mask)
    metrics = combine_files(source, ensemble.product_place(unit, work), work, params)
    return {**metrics, "rcid": unit.attrs["rcid"], "filtercode": unit.attrs["filtercode"], "usable": True}


class FlatSource:
    """Dome flats of a channel and the super-bias that belongs to them.

    Parameters
    ----------
    files : sequence of Path
    rcid : int or None
    filtercode, night : str
    bias, biasmask : Path or None
        Super-bias products; without them the over-scan alone is subtracted.
    """

    def __init__(
        self, files: Sequence[Path], rcid: int | None, filtercode: str, night: str, bias: Path | None,
        biasmask: Path | None,
    ):  # fmt: skip
        self.files, self.rcid, self.filtercode, self.night = files, rcid, filtercode, night
        self.bias, self.biasmask = bias, biasmask

    def read_bias(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Super-bias float32 and its mask int16, both of `shape`."""
        bias = FitsFile(self.bias).image(0, shape) if self.bias else np.zeros(shape, np.float32)
        mask = FitsFile(self.biasmask).image(0, shape) if self.biasmask else np.zeros(shape, np.int16)
        return bias, mask


def combine_files(
    source: FlatSource, place: Callable[[str], Path], work: Work, params: HighvFlatSettings
) -> dict[str, Any]:
    """High-frequency flat of some frames, in the archive or not; metrics on rank 0 of the group."""
    camera, comm = work.archive.camera, work.comm
    with work.timers("read"):
        with agree(comm, "reading the super-bias"):
            bias, mask = source.read_bias(camera.shape)
        prepare = _preparer(source, bias, mask, params, camera.overscan_n_skip)
        stack = ensemble.read_stack(source.files, camera, source.rcid, prepare, comm, params.flat.n_frames_min)
    with work.timers("combine"):
        with agree(comm, "combining"):
            part = combine_highv_flat(stack.slab, params.flat)
        whole = [slabs.gather_rows(comm, image, camera.n_y) for image in part]
    with agree(comm, "writing"), work.timers("write"):
        return _write(stack, HighvFlat(*whole), mask, source, place, params) if rank_of(comm) == 0 else {}


def _preparer(
    source: FlatSource, bias: np.ndarray, mask: np.ndarray, params: HighvFlatSettings, n_skip: int
) -> ensemble.Prepare:
    overscan = params.overscan.model_copy(update={"n_skip": n_skip})

    def prepare(raw: RawChannel) -> tuple[np.ndarray, dict[str, Any]]:
        drift = floating_bias(raw.overscan, overscan)
        a, b = raw.channel.linearity_on(source.night)
        pix = detrend(raw.pix, drift.level_dn, DetrendInputs(superbias=bias, linearity_a=a, linearity_b=b))
        flat = normalize_flat(pix, None, mask, params.flat)
        return flat.pix, {"level_dn": float(flat.level_dn), "overscan_rms_dn": drift.rms_dn}

    return prepare


def _write(
    stack: ensemble.Stack,
    flat: HighvFlat,
    biasmask: np.ndarray,
    source: FlatSource,
    place: Callable[[str], Path],
    params: HighvFlatSettings,
) -> dict[str, Any]:
    cmask = build_cmask(biasmask & maskbits.NOISY != 0, flat.pix, params.badpix)
    metrics = {
        "n_frames": len(stack.names),
        "n_rejected": len(stack.rejected),
        "bad_pixel_fraction": float(np.mean(cmask != 0)),
        **highv_flat_metrics(flat, [facts["level_dn"] for facts in stack.facts]),
    }
    cards = ensemble.product_cards(stack.names, len(stack.rejected), stack.channel, source.filtercode)
    for kind, image in zip(KINDS, (flat.pix, flat.unc, cmask)):
        ensemble.write_image(place(kind), image, cards, metrics)
    return {**metrics, "rejected": list(stack.rejected)}


PIPELINE = Pipeline(
    name="highv_flat",
    unit="the dome flats of one readout channel and filter of one night",
    inputs=("readout-channel dome flats", "bias.fits", "biasmask.fits"),
    outputs=("hifreqflat.fits", "hifreqflatunc.fits", "cmask.fits"),
    params=HighvFlatSettings,
    plan=plan,
    run_unit=run_unit,
    catalogue=ensemble.enter_calibrations(KINDS),
    ensemble=True,
)
