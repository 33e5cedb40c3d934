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
    with timers("vetting"):
        candidates, n_real = _vetted(candidates, vetters.candidates, params.vetting)
    with timers("streaks"):
        streaks = find_streaks(difference, science.wcs, params.streaks, vetters.streaks)
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
