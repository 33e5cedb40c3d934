"""Floating bias: the pedestal of each row, from the over-scan strip of a readout channel.

The mean of a row's 26 or so columns knows the level only to read noise / sqrt(26), about 0.3 DN; subtracted as
it is, it would stripe the image. The pedestal drifts slowly along the rows, so neighbours help. The row means are
modelled as a straight line, plus a drift, plus white scatter. The drift is a random walk or an integrated one: in
the cosine transform its terms are independent, with variances proportional to 1 / lambda_k or 1 / lambda_k^2,
lambda_k = 2 - 2 cos(pi k / n). Kind and size of the drift and the size of the scatter follow by maximum
likelihood, and the estimate of least squared error is the Wiener filter (signal variance) / (total variance) on
each term. It becomes a straight line when nothing drifts.

Row means may scatter by more than the noise of their pixels. In Lick Nickel frames they do, 1.4 to 2.8 times, and
nothing of it is in the image rows (correlation -0.03): the slow noise of an amplifier within the time of the
strip. So the excess counts as noise, unless the camera is known for a pedestal that jumps from row to row.
"""

from typing import NamedTuple

import numpy as np
from scipy.fft import dct, idct
from scipy.ndimage import median_filter

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.robust import MAD_TO_SIGMA

#: Kinds of drift (power of 1 / lambda_k) and their variances over the white one: none, and powers of ten.
_DRIFTS = (
    (1, np.concatenate([[0.0], np.logspace(-7.0, 2.0, 46)])[:, None]),
    (2, np.logspace(-14.0, 0.0, 57)[:, None]),
)


class OverscanParams(Params):
    """How the over-scan strip is reduced to one level for each row."""

    n_skip: int = param(4, "First columns left out: they carry the trail of the image.", ge=0)
    n_columns_min: int = param(5, "Least number of columns left.", ge=2)
    n_sigma: float = param(4.0, "Pixels farther from the median of their row are rejected.", ge=2.0)
    follow_jitter: bool = param(
        False, "Whether scatter of the rows beyond the noise of their pixels is in the image too."
    )
    bad_rows_max: float = param(0.2, "Greatest fraction of rows without a usable pixel.", ge=0.0, le=0.9)


DEFAULTS = OverscanParams()


class FloatingBias(NamedTuple):
    """Result of `floating_bias`.

    Attributes
    ----------
    level_dn : ndarray, shape (ny,), float32
        Level of each row.
    rms_dn : float
        Rms of the row means about the level: read noise / sqrt(columns) when the model holds.
    n_rejected : int
        Pixels rejected as outliers, and those of rejected rows.
    read_noise_dn : float
        Standard deviation of a pixel within its row.
    """

    level_dn: np.ndarray
    rms_dn: float
    n_rejected: int
    read_noise_dn: float


def floating_bias(overscan: np.ndarray, params: OverscanParams = DEFAULTS) -> FloatingBias:
    """Level of each row from its over-scan pixels, smoothed along the rows as far as the data warrant.

    Parameters
    ----------
    overscan : ndarray, shape (ny, n_columns), uint16 or floating
    params : OverscanParams

    Returns
    -------
    FloatingBias

    Raises
    ------
    BadInput
        Too few columns are left, too many rows have no usable pixel, or the strip is constant.
    """
    strip = _usable_columns(overscan, params)
    row_mean, n_used, read_noise = _clipped_rows(strip, params.n_sigma)
    bad = n_used == 0
    if bad.mean() > params.bad_rows_max:
        raise BadInput(f"over-scan: {bad.sum()} of {bad.size} rows have no usable pixel")
    if read_noise == 0.0:
        raise BadInput(f"over-scan is constant within its rows (median {np.nanmedian(row_mean):g} DN)")
    noise_var = read_noise**2 / n_used[~bad].mean()
    good = ~(bad | _odd_rows(_interpolated(row_mean, ~bad), noise_var))
    level = _smooth(_interpolated(row_mean, good), noise_var if params.follow_jitter else np.inf)
    residual = (row_mean - level)[good]
    n_rejected = int(np.isfinite(strip).sum() - n_used[good].sum())
    return FloatingBias(level.astype(np.float32), float(np.sqrt(np.mean(residual**2))), n_rejected, read_noise)


def _interpolated(row_mean: np.ndarray, good: np.ndarray) -> np.ndarray:
    rows = np.arange(row_mean.size)
    return np.interp(rows, rows[good], row_mean[good])


def _odd_rows(row_mean: np.ndarray, noise_var: float) -> np.ndarray:
    """Rows far from the running median of their neighbours, which follows jumps and drifts."""
    offset = np.abs(row_mean - median_filter(row_mean, 11, mode="nearest"))
    return offset > 6.0 * np.sqrt(noise_var) + 6.0 * MAD_TO_SIGMA * np.median(offset)


def _usable_columns(overscan: np.ndarray, params: OverscanParams) -> np.ndarray:
    n_left = overscan.shape[1] - params.n_skip if overscan.ndim == 2 else 0
    if n_left < params.n_columns_min or overscan.shape[0] < 2:
        raise BadInput(
            f"over-scan of shape {overscan.shape}: {params.n_skip} columns skipped, "
            f"{params.n_columns_min} more and 2 rows are needed"
        )
    strip = overscan[:, params.n_skip :].astype(np.float64)
    strip[~np.isfinite(strip)] = np.nan
    return strip


def _clipped_rows(strip: np.ndarray, n_sigma: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean of each row without its outliers, number of pixels used, standard deviation of a pixel."""
    ordered = np.sort(strip, axis=1)
    n_valid = np.sum(~np.isnan(ordered), axis=1)
    middle = np.stack([np.maximum(n_valid - 1, 0) // 2, np.minimum(n_valid // 2, strip.shape[1] - 1)], axis=1)
    offset = strip - np.take_along_axis(ordered, middle, axis=1).mean(axis=1)[:, None]
    finite = offset[~np.isnan(offset)]
    # Whole counts: the MAD of a quiet channel may be 0 although its pixels scatter.
    sigma = max(MAD_TO_SIGMA * float(np.median(np.abs(finite))), 0.5) if finite.size else 0.0
    mean, _, sigma = _rows_within(strip, np.abs(offset) <= n_sigma * sigma)
    # Once more with the standard deviation, which whole counts do not coarsen as they do the MAD.
    return _rows_within(strip, np.abs(strip - mean[:, None]) <= n_sigma * max(sigma, 0.5))


def _rows_within(strip: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    n_used = kept.sum(axis=1)
    mean = np.where(kept, strip, 0.0).sum(axis=1) / np.where(n_used > 0, n_used, np.nan)
    squares = np.where(kept, (strip - mean[:, None]) ** 2, 0.0).sum()
    freedom = int(np.maximum(n_used - 1, 0).sum())
    return mean, n_used, float(np.sqrt(squares / freedom)) if freedom else 0.0


def _smooth(row_mean: np.ndarray, noise_var: float) -> np.ndarray:
    """Wiener estimate of the drift, and of what scatters from row to row by more than noise_var."""
    n = row_mean.size
    position = np.linspace(-1.0, 1.0, n)
    line = np.polynomial.Polynomial.fit(position, row_mean, 1)(position)
    terms = dct(row_mean - line, type=2, norm="ortho")
    drift, white = _most_likely(terms[1:])
    # Jitter counts only when it stands out from the uncertainty of the white variance.
    jitter = white - noise_var if white - noise_var > 4.0 * noise_var * np.sqrt(2.0 / n) else 0.0
    terms[1:] *= (drift + jitter) / (drift + white)
    return line + idct(terms, type=2, norm="ortho")


def _most_likely(terms: np.ndarray) -> tuple[np.ndarray, float]:
    """Variance of the drift in each cosine term, and white variance, under the likeliest drift."""
    n = terms.size + 1
    inverse_lambda = 1.0 / (2.0 - 2.0 * np.cos(np.pi * np.arange(1, n) / n))
    # Per unit of white variance; one row for each model.
    drift = np.concatenate([ratio * inverse_lambda**order for order, ratio in _DRIFTS])
    white = np.mean(terms**2 / (1.0 + drift), axis=1)
    best = np.argmin(terms.size * np.log(white) + np.log1p(drift).sum(axis=1))
    return white[best] * drift[best], float(white[best])
