"""Difference images with trails: stars of scipy's B-splines in a row, which share nothing with the fit."""

from dataclasses import replace

import numpy as np

from tests.unit.photometry.psfscene import make_psf, star
from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.subtraction.images import SOURCE_DTYPE, Difference

SIGMA = 8.0
GAIN, MAGZP = 6.2, 26.0
HALF = 10


def wcs_of(scale_arcsec=1.01):
    """A plain tangent projection."""
    linear = np.zeros(N_TERMS)
    linear[1] = 1.0
    return TPV(
        np.array([150.0, 20.0]), np.array([300.0, 300.0]), np.diag([-1, 1]) * scale_arcsec / 3600, linear, linear
    )


def ends_of(x, y, length, angle_deg):
    """x1, y1, x2, y2 about a middle."""
    dx, dy = 0.5 * length * np.cos(np.radians(angle_deg)), 0.5 * length * np.sin(np.radians(angle_deg))
    return np.array([x - dx, y - dy, x + dx, y + dy])


def trail_light(psf, ends, step=0.4):
    """A trail of unit flux on the whole image, float64."""
    light = np.zeros(psf.shape)
    x1, y1, x2, y2 = ends
    n = max(int(np.ceil(np.hypot(x2 - x1, y2 - y1) / step)), 1)
    for part in (np.arange(n) + 0.5) / n:
        x, y = x1 + part * (x2 - x1), y1 + part * (y2 - y1)
        left, top = int(np.rint(x)) - HALF, int(np.rint(y)) - HALF
        stamp = star(psf, x, y, HALF)[0] / n
        rows = slice(max(top, 0), min(top + 2 * HALF + 1, psf.shape[0]))
        columns = slice(max(left, 0), min(left + 2 * HALF + 1, psf.shape[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            light[rows, columns] += stamp[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
    return light


def flux_at(light, snr, sigma=SIGMA):
    """Flux of the integrated signal to noise asked for."""
    return snr * sigma / np.sqrt((light**2).sum())


def difference_of(psf, light, seed, sigma=SIGMA):
    """Difference with white noise and the photons of the light."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, psf.shape) * np.sqrt(sigma**2 + np.maximum(light, 0) / GAIN)
    pix = (light + noise).astype(np.float32)
    zero = np.zeros_like(pix)
    sources = np.zeros(0, SOURCE_DTYPE)
    errors, mask = np.full(psf.shape, sigma, np.float32), np.zeros(psf.shape, np.int16)
    return Difference(pix, errors, mask, psf, pix.copy(), zero, sources, GAIN, MAGZP, 1.0)


def masked(difference, where, bit):
    """The difference with some pixels unusable."""
    pix, sigma, mask = difference.pix.copy(), difference.sigma.copy(), difference.mask.copy()
    pix[where], sigma[where] = 0, np.inf
    mask[where] |= bit
    return replace(difference, pix=pix, sigma=sigma, mask=mask)


__all__ = [
    "GAIN",
    "MAGZP",
    "SIGMA",
    "difference_of",
    "ends_of",
    "flux_at",
    "make_psf",
    "masked",
    "trail_light",
    "wcs_of",
]
