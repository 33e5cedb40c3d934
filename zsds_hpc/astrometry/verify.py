"""Is the solution right? Held-back stars, change of the pixel scale, and a map of the residuals."""

from typing import NamedTuple

import numpy as np

from zsds_hpc.astrometry.geometry import grid
from zsds_hpc.astrometry.solve import AstrometricSolution, Stars, residuals_arcsec
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core.params import Params, param

_MEDIAN_CHI2_2 = 1.386
_SCALE_GRID = 9


class VerifyParams(Params):
    """How a solution is checked."""

    held_back_fraction: float = param(0.1, "Share of the matched stars kept out of the first fit.", ge=0, le=0.5)
    min_held_back: int = param(10, "With fewer held-back stars there is no such check.", ge=1)
    n_cells: int = param(4, "Cells of the residual map along each axis.", ge=1, le=64)
    min_in_cell: int = param(5, "Stars without which a cell has no median.", ge=1)
    outlier_sigma: float = param(5.0, "Held-back stars beyond this many standard deviations are wrong matches.", ge=2)
    max_scale_change_percent: float = param(1.0, "Largest change of the pixel scale.", "percent", ge=0.01, le=50)


class HeldBack(NamedTuple):
    """Residuals of stars that took no part in the fit.

    Attributes
    ----------
    n_stars, n_outliers : int
    rms_arcsec : ndarray, shape (2,)
        Along xi and eta, outliers left out; NaN with no star.
    chi2_ratio : float
        Median squared residual over what the errors say; 1 for honest errors and a right map.
    """

    n_stars: int
    n_outliers: int
    rms_arcsec: np.ndarray
    chi2_ratio: float


class ScaleChange(NamedTuple):
    """Change of the local pixel scale against the prior, percent; `map_percent` has shape (9, 9), rows along y."""

    map_percent: np.ndarray
    min_percent: float
    max_percent: float

    def exceeds(self, limit_percent: float) -> bool:
        """Whether the scale changed by more than the limit anywhere."""
        return max(-self.min_percent, self.max_percent) > limit_percent


class ResidualMap(NamedTuple):
    """Medians of the residuals in cells of the image.

    Attributes
    ----------
    median_arcsec : ndarray, shape (2, n, n)
        Of xi and eta; cells by (row, column), NaN where there are too few stars.
    n_stars : ndarray, shape (n, n), int64
    """

    median_arcsec: np.ndarray
    n_stars: np.ndarray

    @property
    def max_arcsec(self) -> float:
        """Largest length of a cell's median residual; NaN when every cell is empty."""
        length = np.hypot(*self.median_arcsec)
        return float(np.nanmax(length)) if np.isfinite(length).any() else float("nan")


def held_back(ra: np.ndarray, dec: np.ndarray, fraction: float) -> np.ndarray:
    """Which stars to keep out of the fit: a fixed choice by the position, whatever the order or number of stars.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,), float64
        Degrees.
    fraction : float

    Returns
    -------
    ndarray, shape (n,), bool
    """
    mas = np.round(np.stack([ra, dec]) * 3.6e6).astype(np.int64).astype(np.uint64)
    value = mas[0] * np.uint64(0x9E3779B97F4A7C15) ^ mas[1] * np.uint64(0xC2B2AE3D27D4EB4F)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        value = (value ^ value >> np.uint64(shift)) * np.uint64(factor)
    return (value ^ value >> np.uint64(31)) < np.uint64(fraction * 2.0**64)


def check_held_back(solution: AstrometricSolution, stars: Stars, params: VerifyParams | None = None) -> HeldBack:
    """Residuals of stars that took no part in the fit, against their errors and that of the map.

    Parameters
    ----------
    solution : AstrometricSolution
        Fitted without these stars.
    stars : Stars
    params : VerifyParams, optional
    """
    params = params or VerifyParams()
    if not len(stars.x):
        return HeldBack(0, 0, np.full(2, np.nan), float("nan"))
    residuals = residuals_arcsec(solution.wcs, stars)
    map_error = solution.map_error_arcsec(stars.x, stars.y)
    variance = stars.sigma_arcsec**2 + solution.floor_arcsec**2 + map_error**2
    ratio = (residuals**2).sum(axis=1) / variance
    good = ratio <= params.outlier_sigma**2
    rms = np.sqrt(np.mean(residuals[good] ** 2, axis=0)) if good.any() else np.full(2, np.nan)
    return HeldBack(len(ratio), int((~good).sum()), rms, float(np.median(ratio)) / _MEDIAN_CHI2_2)


def scale_change(wcs: TPV, prior: TPV, n_x: int, n_y: int) -> ScaleChange:
    """Map of the change of the pixel scale against the prior, on a 9 x 9 grid from edge to edge."""
    x, y = grid(n_x, n_y, _SCALE_GRID)
    change = 100.0 * (wcs.pixel_scale_arcsec(x, y) / prior.pixel_scale_arcsec(x, y) - 1.0)
    return ScaleChange(change, float(change.min()), float(change.max()))


def residual_map(
    stars: Stars, residuals: np.ndarray, n_x: int, n_y: int, params: VerifyParams | None = None
) -> ResidualMap:
    """Medians of the residuals in the cells of a grid over the image.

    Parameters
    ----------
    stars : Stars
    residuals : ndarray, shape (n, 2)
        Arcsec.
    n_x, n_y : int
        Image size in pixels.
    params : VerifyParams, optional
    """
    params = params or VerifyParams()
    n = params.n_cells
    column = np.clip(((stars.x + 0.5) * n / n_x).astype(np.int64), 0, n - 1)
    row = np.clip(((stars.y + 0.5) * n / n_y).astype(np.int64), 0, n - 1)
    cell = row * n + column
    medians = np.full((2, n * n), np.nan)
    counts = np.bincount(cell, minlength=n * n)
    for k in np.flatnonzero(counts >= params.min_in_cell):
        medians[:, k] = np.median(residuals[cell == k], axis=0)
    return ResidualMap(medians.reshape(2, n, n), counts.reshape(n, n))
