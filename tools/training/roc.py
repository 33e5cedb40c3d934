"""How well a score tells real from bogus."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: False-positive rates at which a card quotes the share of real ones lost.
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


class Roc(NamedTuple):
    """At each threshold, the share of bogus kept and of real lost; thresholds fall."""

    threshold: NDArray
    false_kept: NDArray
    real_lost: NDArray


def roc(score: NDArray, real: NDArray[np.bool_]) -> Roc:
    """ROC of a score; equal scores stay together."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.diff(score[order]) != 0, True]
    kept_real, kept_bogus = np.cumsum(real[order])[last], np.cumsum(~real[order])[last]
    return Roc(score[order][last], kept_bogus / max((~real).sum(), 1), 1 - kept_real / max(real.sum(), 1))


def lost_at(curve: Roc, rate: float) -> tuple[float, float]:
    """Least share of real ones lost where at most `rate` of the bogus are kept, and the threshold there."""
    allowed = np.flatnonzero(curve.false_kept <= rate)
    if not allowed.size:
        return 1.0, float("inf")
    return float(curve.real_lost[allowed[-1]]), float(curve.threshold[allowed[-1]])


def summary(score: NDArray, real: NDArray[np.bool_]) -> dict:
    """Numbers for a model card: counts, area under the curve, and real ones lost at several rates."""
    curve = roc(score, real)
    rows = [(rate, *lost_at(curve, rate)) for rate in RATES]
    return {
        "n_real": int(real.sum()), "n_bogus": int((~real).sum()),
        "auc": round(float(np.trapezoid(1 - np.r_[1.0, curve.real_lost], np.r_[0.0, curve.false_kept])), 6),
        "roc": [
            {"false_kept": rate, "real_lost": round(lost, 5), "threshold": round(min(threshold, 1.0), 5)}
            for rate, lost, threshold in rows
        ],
    }  # fmt: skip
