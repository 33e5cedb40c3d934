"""Super-bias: the fixed pattern of a readout channel, from the bias frames of a night."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive.database import Engine
from zsds_hpc.core import ids, maskbits
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.overscan import OverscanParams
from zsds_hpc.detector.superbias import (
    Superbias,
    SuperbiasParams,
    combine_superbias,
    hot_pixels,
    noisy_pixels,
    superbias_metrics,
)
from zsds_hpc.parallel import slabs
from zsds_hpc.parallel.comm import rank_of
from zsds_hpc.parallel.guard import agree
from zsds_hpc.pipelines import ensemble
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work
from zsds_hpc.settings.camera import Camera

KINDS = ("bias", "biasunc", "biasmask")


class SuperbiasSettings(Params):
    """Settings of the super-bias pipeline."""

    ranks_per_unit: int = param(2, "Ranks that share one channel's stack.", ge=1, le=64)
    overscan: OverscanParams = param(OverscanParams(), "Floating bias from the over-scan.")
    superbias: SuperbiasParams = param(SuperbiasParams(), "Combination and noisy pixels.")


def plan(archive: Archive, engine: Engine, params: SuperbiasSettings, request: Request) -> list[Unit]:
    """One unit for each channel with bias frames on the night."""
    return ensemble.frame_units(engine, archive.camera, request.night, "b", "superbias", lambda row: ({}, ""))


def run_unit(unit: Unit, work: Work, params: SuperbiasSettings) -> dict[str, Any]:
    """Combine one channel's bias frames and write the products."""
    files = [work.archive.path(path) for path in unit.attrs["frames"]]
    place = ensemble.product_place(unit, work)
    metrics = combine_files(files, unit.attrs["rcid"], place, work, params)
    return {**metrics, "rcid": unit.attrs["rcid"], "filtercode": ids.BIAS_CODE, "usable": True}


def combine_files(
    files: Sequence[Path], rcid: int | None, place: Callable[[str], Path], work: Work, params: SuperbiasSettings
) -> dict[str, Any]:
    """Super-bias of some frames, in the archive or not.

    Parameters
    ----------
    files : sequence of Path
        Bias frames: raw files or channel images.
    rcid : int or None
        Readout channel; None where the camera has only one.
    place : callable
        Kind of product -> path to write it to.

    Returns
    -------
    dict
        Metrics, on rank 0 of the group; empty elsewhere.
    """
    camera, comm = work.archive.camera, work.comm
    with work.timers("read"):
        stack = ensemble.read_stack(files, camera, rcid, _preparer(params, camera), comm, params.superbias.n_frames_min)
    with work.timers("combine"):
        with agree(comm, "combining"):
            part = combine_superbias(stack.slab, params.superbias)
        whole = [slabs.gather_rows(comm, image, camera.n_y) for image in part]
    with agree(comm, "writing"), work.timers("write"):
        return _write(stack, Superbias(*whole), place, params) if rank_of(comm) == 0 else {}


def _preparer(params: SuperbiasSettings, camera: Camera) -> ensemble.Prepare:
    overscan = params.overscan.model_copy(update={"n_skip": camera.overscan_n_skip})
    return lambda raw: ensemble.floating_bias_subtracted(raw, overscan)


def _write(
    stack: ensemble.Stack, result: Superbias, place: Callable[[str], Path], params: SuperbiasSettings
) -> dict[str, Any]:
    noisy = noisy_pixels(result.std, params.superbias)
    noisy |= hot_pixels(result.pix, params.superbias)
    metrics = {
        "n_frames": len(stack.names),
        "n_rejected": len(stack.rejected),
        "n_noisy": int(noisy.sum()),
        "overscan_rms_dn": float(np.median([facts["overscan_rms_dn"] for facts in stack.facts])),
        **superbias_metrics(result, len(stack.names), params.superbias),
    }
    cards = ensemble.product_cards(stack.names, len(stack.rejected), stack.channel, ids.BIAS_CODE)
    mask = np.where(noisy, maskbits.NOISY, 0).astype(maskbits.MASK_DTYPE)
    for kind, image in zip(KINDS, (result.pix, result.std, mask)):
        ensemble.write_image(place(kind), image, cards, metrics)
    return {**metrics, "rejected": list(stack.rejected)}


PIPELINE = Pipeline(
    name="superbias",
    unit="the bias frames of one readout channel of one night",
    inputs=("readout-channel bias images",),
    outputs=("bias.fits", "biasunc.fits", "biasmask.fits"),
    params=SuperbiasSettings,
    plan=plan,
    run_unit=run_unit,
    catalogue=ensemble.enter_calibrations(KINDS),
    ensemble=True,
)
