"""Positions and world coordinate systems against the true map."""

import warnings
from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray

from tools.scorecard.card import Metric, at_most, reported
from tools.scorecard.products import Science
from tools.scorecard.sources import Matched, inside

SNR_LIMIT = 10.0
CLEAN = 0.02
SATURATED_FLAG = 4
GRID = 17
MAS = 3.6e6
#: Pixel scale of the simulated camera.
SCALE_MAS = 1012.0
#: The target for the map holds for at least this many stars in the solution.
MANY_STARS = 1500


@dataclass(frozen=True)
class AstrometryCheck:
    """One channel.

    Attributes
    ----------
    residuals : ndarray, shape (n, 2)
        Catalogue minus true sky position, East and North, mas, of all stars with an ideal S/N >= 10.
    snr, limit_mas : ndarray, shape (n,)
        Ideal signal-to-noise ratio, and the error per axis that goes with it.
    is_measured : ndarray, shape (n,), bool
        The catalogue itself gives FLUX_AUTO / FLUXERR_AUTO >= 10.
    is_clean : ndarray, shape (n,), bool
        No neighbour and not saturated.
    map_error : ndarray, shape (GRID, GRID, 2)
        Map of the product minus true map, East and North, mas.
    n_stars : int
        Stars in the solution.
    """

    residuals: NDArray
    snr: NDArray
    limit_mas: NDArray
    is_measured: NDArray
    is_clean: NDArray
    map_error: NDArray
    n_stars: int

    @property
    def map_rms_mas(self) -> float:
        """Rms over the grid per axis."""
        return float(np.sqrt(np.mean(self.map_error**2)))


def offsets_mas(ra: NDArray, dec: NDArray, true_ra: NDArray, true_dec: NDArray) -> NDArray:
    """Differences East and North, mas, (..., 2)."""
    d_ra = (ra - true_ra + 180.0) % 360.0 - 180.0
    return np.stack([d_ra * np.cos(np.radians(true_dec)), dec - true_dec], axis=-1) * MAS


def check(science: Science, matched: Matched) -> AstrometryCheck:
    """Compare one channel's catalogue and WCS."""
    objects = matched.objects
    pick = objects["is_star"] & (matched.row >= 0) & (objects["snr"] >= SNR_LIMIT)
    pick &= inside(science, objects["x"], objects["y"])
    star, row = objects[pick], science.catalogue[matched.row[pick]]
    residuals = offsets_mas(row["ALPHAWIN_J2000"], row["DELTAWIN_J2000"], star["ra"], star["dec"])
    is_clean = (star["contamination"] < CLEAN) & (row["FLAGS"] & SATURATED_FLAG == 0)
    is_measured = row["FLUX_AUTO"] >= SNR_LIMIT * row["FLUXERR_AUTO"]
    return AstrometryCheck(
        residuals, star["snr"], star["sigma_pix"] * SCALE_MAS, is_measured, is_clean, map_error(science),
        int(science.header.get("ASTROMN", 0)),
    )  # fmt: skip


def map_error(science: Science, header: fits.Header | None = None) -> NDArray:
    """The product's WCS, or that of another header, read by astropy, minus the true map on a grid.

    Returns
    -------
    ndarray, shape (GRID, GRID, 2)
        East and North, mas.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(science.header if header is None else header)
    n_x, n_y = science.header["NAXIS1"], science.header["NAXIS2"]
    y, x = np.meshgrid(np.linspace(0, n_y - 1, GRID), np.linspace(0, n_x - 1, GRID), indexing="ij")
    true_ra, true_dec = science.truth.pixel_to_sky(science.exposure, science.rcid, x.ravel(), y.ravel())
    ra, dec = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    return offsets_mas(ra, dec, true_ra, true_dec).reshape(GRID, GRID, 2)


def rms_per_axis(residuals: NDArray) -> float | None:
    """Larger of the two rms."""
    return float(np.sqrt(np.mean(residuals**2, axis=0)).max()) if len(residuals) else None


def _limit(limits_mas: NDArray) -> float | None:
    return float(np.sqrt(np.mean(limits_mas**2))) if limits_mas.size else None


def metrics(checks: list[AstrometryCheck]) -> list[Metric]:
    """Lines of the scorecard."""
    if not checks:
        return [at_most("star_position_rms_mas", None, 45.0, "no catalogue"),
                at_most("map_error_mas", None, 1.5, "no WCS")]  # fmt: skip
    every, clean, measured, snr, limit = (
        np.concatenate([getattr(c, name) for c in checks])
        for name in ("residuals", "is_clean", "is_measured", "snr", "limit_mas")
    )
    rich = [c.map_rms_mas for c in checks if c.n_stars >= MANY_STARS]
    poor = [c.map_rms_mas for c in checks if c.n_stars < MANY_STARS]
    main, bright = clean & measured, clean & (snr > 300.0)
    return [
        at_most("star_position_rms_mas", rms_per_axis(every[main]), 45.0,
                f"rms per axis of {main.sum()} stars with FLUX_AUTO above 10 sigma, neighbours below {CLEAN:.0%}"),
        reported("star_position_noise_limit_mas", _limit(limit[main]), "the least that the noise allows for them"),
        reported("star_position_rms_psf10_mas", rms_per_axis(every[clean]),
                 f"rms of {clean.sum()} stars with S/N >= 10 in an ideal PSF fit; the noise allows "
                 f"{_limit(limit[clean]) or 0:.1f} mas"),
        reported("star_position_rms_blends_mas", rms_per_axis(every[measured]), "the first with blends and saturated"),
        reported("star_position_rms_bright_mas", rms_per_axis(every[bright]), f"{bright.sum()} clean, S/N > 300"),
        at_most("map_error_mas", float(np.median(rich)) if rich else None, 1.5,
                f"rms per axis of product WCS - true map, median of {len(rich)} channels with >= {MANY_STARS} stars"),
        reported("map_error_worst_mas", max(rich, default=None), "worst of them"),
        reported("map_error_few_stars_mas", float(np.median(poor)) if poor else None,
                 f"median of the {len(poor)} channels with fewer stars"),
    ]  # fmt: skip
