"""Combination of epochs, row band by row band: weighted mean without outliers, or trimmed average."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from zsds_hpc.coadd.warp import EpochFacts
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.combine import CombineParams, combine_trimmed, mean_error_factor
from zsds_hpc.kernels.coadd import HALO, clipped_mean

MAX_EPOCHS = 256


class CoaddParams(Params):
    """How epochs are combined."""

    method: Literal["weighted", "trimmed"] = param("weighted", "Weighted mean without outliers, or trimmed average.")
    n_sigma: float = param(5.0, "Values farther from the median than this are outliers.", "sigma", 2.0, 100.0)
    steep: float = param(
        1.0, "Tolerance for differences of seeing: this times the range of the image within 2 fine px.", "", 0.0, 10.0
    )
    seeing_power: float = param(1.0, "Weights go as the seeing to minus this, besides 1 / variance.", "", 0.0, 10.0)
    trimmed: CombineParams = param(CombineParams(trim_fraction=0.1), "The trimmed average.")


class Rows(NamedTuple):
    """Rows of the co-add.

    Attributes
    ----------
    pix : ndarray, shape (n_rows, nx), float32
        NaN without data.
    sky_var : ndarray, shape (n_rows, nx), float32
        Variance of `pix` from the noise of the sky as it shows in sums over many pixels; infinite without data.
    n_used : ndarray, shape (n_rows, nx), int16
        Epochs in the mean.
    """

    pix: np.ndarray
    sky_var: np.ndarray
    n_used: np.ndarray


class StackFacts(NamedTuple):
    """What the combination needs to know of the epochs, in their order.

    Attributes
    ----------
    weight, sky_var, var_per_dn : ndarray, shape (n,), float64
    saturate_dn : float
        Lowest of an epoch.
    clrcoeff : float
        Weighted mean.
    """

    weight: np.ndarray
    sky_var: np.ndarray
    var_per_dn: np.ndarray
    saturate_dn: float
    clrcoeff: float

    @property
    def mean_sky_var(self) -> float:
        """Variance of the mean of all epochs from the sky."""
        return float(np.sum(self.weight**2 * self.sky_var) / self.weight.sum() ** 2)

    @property
    def mean_var_per_dn(self) -> float:
        """Variance of the mean of all epochs per DN of light."""
        return float(np.sum(self.weight**2 * self.var_per_dn) / self.weight.sum() ** 2)


def weigh(epochs: Sequence[EpochFacts], params: CoaddParams) -> StackFacts:
    """Weights of the epochs: 1 / variance of the sky, times seeing to a negative power; equal for the trimmed average.

    They are one number for each epoch, so that the co-add is linear in flux and its PSF is the weighted mean of theirs.

    Raises
    ------
    BadInput
        No epochs, or one without noise or seeing.
    """
    if not len(epochs):
        raise BadInput("no epochs to combine")
    sky_var, per_dn, saturate_dn, seeing, clrcoeff = np.array(epochs, np.float64).T
    if not (np.isfinite(sky_var + per_dn + seeing) & (sky_var > 0) & (seeing > 0)).all():
        raise BadInput("epochs to combine: noise and seeing must be positive")
    weight = np.ones(len(epochs))
    if params.method == "weighted":
        weight = (np.median(sky_var) / sky_var) * (np.median(seeing) / seeing) ** params.seeing_power
    return StackFacts(weight, sky_var, per_dn, float(saturate_dn.min()), float(np.average(clrcoeff, weights=weight)))


def combine_rows(frames: Sequence[np.ndarray], facts: StackFacts, params: CoaddParams) -> Rows:
    """Combine aligned rows of all epochs.

    Parameters
    ----------
    frames : sequence of n ndarray, shape (n_rows + 2 HALO, nx), float32
        NaN is no data. The first and last `HALO` rows are only looked at.
    facts : StackFacts
    params : CoaddParams

    Raises
    ------
    BadInput
        No epochs, or too many.
    """
    if not 1 <= len(frames) <= MAX_EPOCHS:
        raise BadInput(f"{len(frames)} epochs to combine: 1 to {MAX_EPOCHS} are needed")
    if params.method == "weighted":
        table = np.stack([facts.weight, facts.sky_var, facts.var_per_dn], axis=1).astype(np.float32)
        return Rows(*clipped_mean([np.ascontiguousarray(f) for f in frames], table, params.n_sigma, params.steep))
    inner = [frame[HALO : frame.shape[0] - HALO] for frame in frames]
    found = combine_trimmed(inner, params.trimmed)
    error = mean_error_factor(len(frames), params.trimmed)[found.n_used]
    variance = np.where(found.n_used > 0, error**2 * np.float32(facts.sky_var.mean()), np.inf).astype(np.float32)
    return Rows(found.mean, variance, found.n_used)
