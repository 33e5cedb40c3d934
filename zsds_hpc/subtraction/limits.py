"""How faint a new star could be and still be seen, anywhere on a difference image."""

import numpy as np

from zsds_hpc.subtraction.cutouts import windows
from zsds_hpc.subtraction.images import Difference

_GRID = 24  # places along each axis that stand for the image
_LEAST_SHARE = 0.5  # of the star's weight that must lie on usable pixels


def flux_errors(difference: Difference, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1-sigma error (DN) of the PSF-fit flux of a faint star at places on the image.

    1 / sqrt(sum p^2 / sigma^2) with the local profile p.

    Parameters
    ----------
    difference : Difference
    x, y : ndarray, shape (n,)
        0-based px; NaN for places that the image does not have.

    Returns
    -------
    ndarray, shape (n,), float64
        NaN outside the image and where more than half of the star would fall on unusable pixels.
    """
    x, y = np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
    n_y, n_x = difference.pix.shape
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero((x >= -0.5) & (x <= n_x - 0.5) & (y >= -0.5) & (y <= n_y - 0.5))
    out = np.full(x.shape, np.nan)
    half = min(int(np.ceil(2 * difference.psf.fwhm_pix)), difference.psf.half_pix)
    square = difference.psf.images(x[rows], y[rows], half).astype(float) ** 2
    sigma = windows(difference.sigma, x[rows], y[rows], half, np.inf)
    usable = np.isfinite(sigma) & (sigma > 0)
    weight = np.where(usable, 1.0 / np.where(usable, sigma, 1.0) ** 2, 0.0)
    share = (square * usable).sum(axis=(1, 2)) / square.sum(axis=(1, 2))
    information = (square * weight).sum(axis=(1, 2))
    with np.errstate(divide="ignore"):
        out[rows] = np.where(share >= _LEAST_SHARE, information**-0.5, np.nan)
    return out


def limit_mag_at(difference: Difference, x: np.ndarray, y: np.ndarray, n_sigma: float = 5.0) -> np.ndarray:
    """Magnitude of a star of `n_sigma` at places on the image (as `diffmaglim`, but local); NaN where unusable."""
    return difference.magzp - 2.5 * np.log10(n_sigma * flux_errors(difference, x, y))


def image_limit_mag(difference: Difference, n_sigma: float = 5.0) -> float:
    """Magnitude of a star of `n_sigma`, median over the usable part of the image; NaN when there is none."""
    n_y, n_x = difference.pix.shape
    y, x = np.meshgrid(*((np.arange(_GRID) + 0.5) * n / _GRID - 0.5 for n in (n_y, n_x)), indexing="ij")
    limits = limit_mag_at(difference, np.rint(x).ravel(), np.rint(y).ravel(), n_sigma)
    known = limits[np.isfinite(limits)]
    return float(np.median(known)) if known.size else float("nan")
