"""Discovery on one calibrated image, on arrays: difference, candidates, vetting, streaks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zsds_hpc.core.params import Params, param
from zsds_hpc.parallel.timers import Timers
from zsds_hpc.subtraction.candidates import CandidateParams, Candidates, find_candidates
from zsds_hpc.subtraction.difference import DifferenceParams, subtract
from zsds_hpc.subtraction.images import Difference, Science, Template
from zsds_hpc.subtraction.realbogus import RealBogus, VettingParams, accepted, score
from zsds_hpc.subtraction.streak_model import StreakModel
from zsds_hpc.subtraction.streak_table import StreakParams
from zsds_hpc.subtraction.streaks import Streaks, find_streaks


class RealtimeParams(Params):
    """Settings of the realtime pipeline."""

    difference: DifferenceParams = param(DifferenceParams(), "Image differencing.")
    candidates: CandidateParams = param(CandidateParams(), "Candidates.")
    vetting: VettingParams = param(VettingParams(), "Real or bogus.")
    streaks: StreakParams = param(StreakParams(), "Trails of fast objects.")
    trail_margin_fwhm: float = param(2.0, "Candidates this near to a satellite are pieces of it.", "FWHM", 0)
    renew: bool = param(False, "Images searched before are searched again where there is a newer reference.")
    noise_steps: float = param(8.0, "Steps per sigma in which the difference image is stored.", "", 1.0, 64.0)


@dataclass(frozen=True)
class Vetters:
    """Trained models; what is None does not score.

    Attributes
    ----------
    candidates : RealBogus or None
    streaks : StreakModel or None
    """

    candidates: RealBogus | None = None
    streaks: StreakModel | None = None


@dataclass(frozen=True)
class Discovery:
    """What was found on an image.

    Attributes
    ----------
    difference : Difference
    candidates : Candidates
        With their scores.
    streaks : Streaks
    metrics : dict
    log : list of str
    """

    difference: Difference
    candidates: Candidates
    streaks: Streaks
    metrics: dict[str, Any]
    log: list[str]


def discover(
    science: Science, template: Template, vetters: Vetters, params: RealtimeParams, timers: Timers
) -> Discovery:
    """Search an image for what is new or has changed.

    Parameters
    ----------
    science : Science
    template : Template
    vetters : Vetters
    params : RealtimeParams
    timers : Timers

    Raises
    ------
    AlgorithmFailure
        There is no usable difference; the figure that decided it is named.
    """
    with timers("difference"):
        difference = subtract(science, template, params.difference)
    with timers("candidates"):
        candidates = find_candidates(difference, science.wcs, params.candidates)
    with timers("streaks"):
        streaks = find_streaks(difference, science.wcs, params.streaks, vetters.streaks)
        candidates = off_trails(candidates, streaks.table, params.trail_margin_fwhm * difference.psf.fwhm_pix)
    with timers("vetting"):
        candidates, n_real = _vetted(candidates, vetters.candidates, params.vetting)
    metrics = {
        **difference.metrics,
        "n_candidates": len(candidates.table),
        "n_positive": int((candidates.table["isdiffpos"] == 1).sum()),
        "n_real": n_real,
        "n_peaks": candidates.n_raw,
        "n_rejected": dict(candidates.rejected),
        "n_streaks": len(streaks.vetted),
        "n_streaks_listed": len(streaks.table),
        "n_streaks_rejected": dict(streaks.n_rejected),
        "diffmaglim": candidates.limit_mag,
    }
    return Discovery(difference, candidates, streaks, metrics, _log(metrics))


def off_trails(candidates: Candidates, streaks: np.ndarray, margin_pix: float) -> Candidates:
    """Candidates without those on the trails of satellites and aircraft, which are counted.

    Parameters
    ----------
    candidates : Candidates
    streaks : ndarray, `subtraction.streak_table.STREAK_DTYPE`
    margin_pix : float
    """
    x, y = candidates.table["xpos"] - 1, candidates.table["ypos"] - 1
    on = np.zeros(len(x), bool)
    for trail in streaks[streaks["kind"] == b"satellite"]:
        start, step = (trail["x1"], trail["y1"]), (trail["x2"] - trail["x1"], trail["y2"] - trail["y1"])
        along = ((x - start[0]) * step[0] + (y - start[1]) * step[1]) / max(step[0] ** 2 + step[1] ** 2, 1e-9)
        along = np.clip(along, 0.0, 1.0)
        on |= np.hypot(x - start[0] - along * step[0], y - start[1] - along * step[1]) < margin_pix
    rejected = {**candidates.rejected, "trail": int(on.sum())}
    cutouts = type(candidates.cutouts)(*(stamps[~on] for stamps in candidates.cutouts))
    return candidates._replace(table=candidates.table[~on], cutouts=cutouts, rejected=rejected)


def _vetted(candidates: Candidates, model: RealBogus | None, params: VettingParams) -> tuple[Candidates, int | None]:
    """Candidates with their scores, and how many are taken for real."""
    if model is None:
        return candidates, None
    scores = score(candidates.table, candidates.cutouts, model)
    table = candidates.table.copy()
    table["rb"], table["drb"] = scores.rb, scores.drb
    return candidates._replace(table=table), int(accepted(scores, params).sum())


def _log(metrics: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in metrics.items()]


def storage_step(sigma: np.ndarray, steps: float) -> float:
    """Size of the steps in which a difference image is stored."""
    sample = sigma[::9, ::7]
    return float(np.median(sample[np.isfinite(sample)])) / steps
