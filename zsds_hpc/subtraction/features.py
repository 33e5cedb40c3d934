"""Features of small stamps about candidates: apertures, shape, signs, local noise. Arrays in, numbers out.

Settled against real packets where these hold the pixels (`tests/science/test_ztf_alert_cutouts.py`).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zsds_hpc.numerics.robust import MAD_TO_SIGMA, SIGMA_TO_FWHM
from zsds_hpc.subtraction.cutouts import HALF_PIX, offsets

_WINDOW_WIDTH = 1.25  # of the weight of moments, in rms of the PSF
_WIDEST = 0.95  # of the weight's variance: a weighted moment beyond that tells nothing


def aperture_weights(x: np.ndarray, y: np.ndarray, radius_pix: float, half: int) -> np.ndarray:
    """Share of each pixel inside a circle, by 5 x 5 points per pixel (as SExtractor does).

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Middle of the circles, px.
    radius_pix : float
    half : int
        Half side of the windows about the nearest pixels.

    Returns
    -------
    ndarray, shape (n, 2 half + 1, 2 half + 1), float64
    """
    dx, dy = offsets(np.asarray(x, float), np.asarray(y, float), half)
    fine = (np.arange(5) - 2) / 5
    out = np.zeros((len(dx), 2 * half + 1, 2 * half + 1))
    for step_y in fine:
        for step_x in fine:
            out += (dx + step_x) ** 2 + (dy + step_y) ** 2 < radius_pix**2
    return out / fine.size**2


def ring_of(inner_pix: float, outer_pix: float, half: int = HALF_PIX) -> np.ndarray:
    """Pixels of a window with inner < r <= outer from its middle, bool."""
    steps = np.arange(-half, half + 1)
    r2 = steps[:, None] ** 2 + steps[None, :] ** 2
    return (r2 > inner_pix**2) & (r2 <= outer_pix**2)


def ring_level(stamps: np.ndarray, ring: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, robust rms and number of the finite values of stamps (n, side, side) in a ring; NaN where none is."""
    values = stamps[:, ring]
    n = np.isfinite(values).sum(axis=1)
    median = _medians(values, n)
    return median, MAD_TO_SIGMA * _medians(np.abs(values - median[:, None].astype(values.dtype)), n), n


def _medians(values, n):
    """Median of the finite values of each row, of which there are n."""
    out = np.full(len(values), np.nan)
    whole = n == values.shape[1]
    out[whole] = np.median(values[whole], axis=1)
    for row in np.flatnonzero(~whole & (n > 0)):
        out[row] = np.median(values[row][np.isfinite(values[row])])
    return out


def aperture_photometry(
    stamps: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray, radius_pix: float, gain_e: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flux in a circle and its error.

    Parameters
    ----------
    stamps : tuple of ndarray, shape (n, side, side)
        Sky-subtracted data, 1-sigma error, and model of the source that stands in where the data are not finite.
    x, y : ndarray, shape (n,)
    radius_pix : float
    gain_e : float
        e/DN, for the photons of the source.

    Returns
    -------
    flux, error : ndarray, shape (n,), float64
        DN.
    """
    data, sigma, model = stamps
    weights = aperture_weights(x, y, radius_pix, data.shape[1] // 2)
    known = np.isfinite(data) & np.isfinite(sigma)
    flux = (weights * np.where(known, data, model)).sum(axis=(1, 2))
    variance = (weights**2 * np.where(known, sigma, 0.0) ** 2).sum(axis=(1, 2))
    return flux, np.sqrt(variance + np.maximum(flux, 0) / gain_e)


def sign_counts(stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nneg` and `sumrat` of 5 x 5 stamps of the turned difference, as the survey's packets have them.

    `sumrat` is taken after a 3 x 3 median that looks at the stamp alone; of two middle values it takes the lower.

    Parameters
    ----------
    stamps : ndarray, shape (n, 5, 5)
        NaN where unusable: counts as 0 in the sums, and is passed over by the median.

    Returns
    -------
    nneg : ndarray, shape (n,), int
    sumrat : ndarray, shape (n,), float64
        -1 to 1; 0 for a stamp without a value.
    """
    padded = np.pad(stamps.astype(float), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    boxes = np.sort(sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(*stamps.shape, 9), axis=3)
    middle = np.maximum(np.isfinite(boxes).sum(axis=3) - 1, 0) // 2
    smooth = np.nan_to_num(np.take_along_axis(boxes, middle[..., None], axis=3)[..., 0])
    total, absolute = smooth.sum(axis=(1, 2)), np.abs(smooth).sum(axis=(1, 2))
    return (stamps < 0).sum(axis=(1, 2)), total / np.where(absolute > 0, absolute, 1.0)


def moments(stamps: np.ndarray, x: np.ndarray, y: np.ndarray, fwhm_pix: float) -> tuple[np.ndarray, np.ndarray]:
    """Rms along the major and the minor axis of what is in the middle of stamps.

    Second moments under a round Gaussian weight somewhat wider than the PSF, freed of the weight as for a Gaussian
    source: C = (M^-1 - W^-1)^-1.

    Parameters
    ----------
    stamps : ndarray, shape (n, side, side)
        Turned difference above sky; NaN counts as 0.
    x, y : ndarray, shape (n,)
    fwhm_pix : float
        Of the PSF.

    Returns
    -------
    major, minor : ndarray, shape (n,), float64
        px; bounded from below by a fifth of a pixel and from above by 4.4 times the weight's rms.
    """
    dx, dy = offsets(np.asarray(x, float), np.asarray(y, float), stamps.shape[1] // 2)
    var = (_WINDOW_WIDTH * fwhm_pix / SIGMA_TO_FWHM) ** 2
    weighted = np.nan_to_num(stamps.astype(float)) * np.exp(-(dx**2 + dy**2) / (2 * var))
    total = weighted.sum(axis=(1, 2))
    total = np.where(total > 0, total, np.inf)
    xx, yy, xy = ((weighted * power).sum(axis=(1, 2)) / total for power in (dx * dx, dy * dy, dx * dy))
    mean, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    inner = np.stack([mean + half, mean - half]).clip(1 / (25.0 + 1 / var), _WIDEST * var)
    major, minor = np.sqrt(1 / (1 / inner - 1 / var))
    return major, minor


def filtered(stamps: np.ndarray, profile: np.ndarray, stride: int = 1) -> np.ndarray:
    """Stamps correlated with a profile, where it fits in whole; every `stride`-th place. NaN counts as 0.

    Parameters
    ----------
    stamps : ndarray, shape (n, side, side)
    profile : ndarray, shape (k, k)

    Returns
    -------
    ndarray, shape (n, m, m), m = ceil((side - k + 1) / stride)
    """
    views = sliding_window_view(np.nan_to_num(stamps), profile.shape, axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nyxij,ij->nyx", views, profile.astype(views.dtype))
