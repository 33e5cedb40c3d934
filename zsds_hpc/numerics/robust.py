"""Robust statistics of arrays that hold outliers and NaN: deterministic, float64 sums, inputs untouched."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import erf

#: Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_SIGMA = 1.482602218505602
#: FWHM of a Gaussian over its standard deviation.
SIGMA_TO_FWHM = 2.3548200450309493


class Level(NamedTuple):
    """Median and robust standard deviation (1.4826 MAD) of a sample; NaN when the sample is empty."""

    median: float
    sigma: float


class ClippedMean(NamedTuple):
    """Mean and standard deviation after clipping, and the number of values that were kept."""

    mean: float
    sigma: float
    n_used: int


class Moments(NamedTuple):
    """Central moments of the values near the median, in the sample's unit, its square and its cube."""

    median: float
    second: float
    third: float


def finite_values(x, max_n: int | None = None) -> np.ndarray:
    """Finite values of an array, in its order, as a new or shared 1-D array of float.

    Parameters
    ----------
    x : array_like, any shape
    max_n : int, optional
        Look at no more than about this many values, taken with a fixed stride: for images, where
        100,000 values give the median to 0.004 sigma. The stride avoids factors of the row length, so
        that columns are visited evenly.

    Returns
    -------
    ndarray, shape (n,), floating dtype of ``x`` (integers become float64)
    """
    values = np.asarray(x)
    flat = values.reshape(-1)
    if max_n is not None and flat.size > max_n:
        flat = flat[:: _even_stride(flat.size // max_n, values.shape[-1])]
    if not np.issubdtype(flat.dtype, np.floating):
        return flat.astype(np.float64)
    good = np.isfinite(flat)
    return flat if good.all() else flat[good]


def _even_stride(stride: int, row_length: int) -> int:
    """Smallest stride from `stride` upward that has no common factor with the length of a row."""
    stride = max(stride, 1)
    while math.gcd(stride, row_length) > 1:
        stride += 1
    return stride


def median_mad(x, max_n: int | None = None) -> Level:
    """Median and robust standard deviation of the finite values.

    Parameters
    ----------
    x : array_like, any shape
    max_n : int, optional
        Use a strided subsample of about this many values (see `finite_values`).

    Returns
    -------
    Level
        ``(median, sigma)``, sigma = 1.4826 MAD; both NaN when no value is finite.
    """
    values = finite_values(x, max_n)
    if values.size == 0:
        return Level(math.nan, math.nan)
    median = np.median(values)
    mad = np.median(np.abs(values - median))
    return Level(float(median), MAD_TO_SIGMA * float(mad))


def truncation_factor(n_sigma: float) -> float:
    """Standard deviation of a unit normal distribution cut at +-n_sigma (e.g. 0.9866 at 3)."""
    inside = erf(n_sigma / math.sqrt(2.0))
    density = math.exp(-0.5 * n_sigma**2) / math.sqrt(2.0 * math.pi)
    return math.sqrt(1.0 - 2.0 * n_sigma * density / inside)


def clipped_mean(x, n_sigma: float = 3.0, n_iter: int = 5) -> ClippedMean:
    """Mean of the finite values that lie within n_sigma of it, iterated from the median and MAD.

    The standard deviation of what is kept is divided by `truncation_factor`, so that for normal noise it
    estimates sigma and repeated clipping does not creep inward.

    Parameters
    ----------
    x : array_like, any shape
    n_sigma : float
        Clipping limit.
    n_iter : int
        Greatest number of rounds; stops when a round rejects and restores nothing.

    Returns
    -------
    ClippedMean
        ``(mean, sigma, n_used)``; NaN, NaN, 0 when no value is finite. A constant sample gives sigma 0.
    """
    values = finite_values(x).astype(np.float64, copy=False)
    center, sigma = median_mad(values)
    n_used, correction = 0, truncation_factor(n_sigma)
    for _ in range(n_iter):
        kept = values[np.abs(values - center) <= n_sigma * sigma]
        if kept.size == 0 or kept.size == n_used:
            break
        n_used = kept.size
        center = float(kept.mean())
        sigma = float(kept.std()) / correction if n_used < values.size else float(kept.std())
    return ClippedMean(float(center), float(sigma), n_used)


def moments(x, n_sigma: float = 5.0, max_n: int | None = None) -> Moments:
    """Second and third central moments about the median of the values within n_sigma of it.

    Parameters
    ----------
    x : array_like, any shape
    n_sigma : float
        Values farther from the median than this many robust standard deviations do not count.
    max_n : int, optional
        Use a strided subsample of about this many values.

    Returns
    -------
    Moments
        ``(median, second, third)``; NaN when no value is finite.
    """
    values = finite_values(x, max_n)
    median, sigma = median_mad(values)
    if values.size == 0:
        return Moments(median, math.nan, math.nan)
    offset = values.astype(np.float64) - median
    offset = offset[np.abs(offset) <= n_sigma * sigma]
    return Moments(median, float(np.mean(offset**2)), float(np.mean(offset**3)))


def percentiles(x, percents, max_n: int | None = None) -> np.ndarray:
    """Percentiles of the finite values, interpolated linearly.

    Parameters
    ----------
    x : array_like, any shape
    percents : array_like, shape (n,)
        In [0, 100].
    max_n : int, optional
        Use a strided subsample of about this many values.

    Returns
    -------
    ndarray, shape (n,), float64
        NaN when no value is finite.
    """
    values = finite_values(x, max_n)
    percents = np.atleast_1d(np.asarray(percents, dtype=np.float64))
    if values.size == 0:
        return np.full(percents.shape, np.nan)
    return np.percentile(values, percents).astype(np.float64)
