"""Difference images of the tests' own: white noise, stars of a Moffat profile integrated over the pixels."""

import numpy as np

from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.psf.model import PsfModel, node_offsets, spline_coefficients
from zsds_hpc.subtraction.images import SOURCE_DTYPE, Difference

GAIN_E, MAGZP = 6.2, 26.275
SKY_SIGMA_DN = 8.0
_NODES, _WEIGHTS = (a / 2 for a in np.polynomial.legendre.leggauss(4))


def moffat(dx, dy, fwhm_pix, beta=3.5, elong=1.0):
    """Surface brightness of unit flux."""
    alpha = fwhm_pix / (2 * np.sqrt(2 ** (1 / beta) - 1))
    r2 = dx**2 * elong + dy**2 / elong
    return (beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta


def pixels(dx, dy, fwhm_pix, **shape):
    """Flux in pixels whose centres lie at (dx, dy) from the star."""
    nodes = [(x, y, wx * wy) for x, wx in zip(_NODES, _WEIGHTS) for y, wy in zip(_NODES, _WEIGHTS)]
    return sum(w * moffat(dx + x, dy + y, fwhm_pix, **shape) for x, y, w in nodes)


def psf_of(fwhm_pix, shape, **profile):
    """The same profile as a model of the suite."""
    nodes = node_offsets(14, 3)
    samples = pixels(nodes[None, :], nodes[:, None], fwhm_pix, **profile)
    return PsfModel(spline_coefficients(samples)[None].astype(np.float32), 3, 0, shape)


def add_star(image, x, y, flux, fwhm_pix, half=14, **profile):
    """Add a star, in place."""
    column, row = int(np.rint(x)), int(np.rint(y))
    rows = np.arange(max(0, row - half), min(image.shape[0], row + half + 1))
    columns = np.arange(max(0, column - half), min(image.shape[1], column + half + 1))
    image[np.ix_(rows, columns)] += flux * pixels(columns[None, :] - x, rows[:, None] - y, fwhm_pix, **profile)


def wcs():
    """About one arcsec per pixel."""
    linear = np.zeros(N_TERMS)
    linear[1] = 1.0
    return TPV((150.0, 20.0), (250.0, 250.0), np.diag([-1.012, 1.012]) / 3600, linear, linear)


def flux_sigma(fwhm_pix, sigma=SKY_SIGMA_DN):
    """Error of the flux of a faint star in the middle of a pixel (Cramer-Rao)."""
    steps = np.arange(-14, 15)
    return sigma / np.sqrt((pixels(steps[None, :], steps[:, None], fwhm_pix) ** 2).sum())


def make_difference(stars=(), shape=(500, 500), fwhm_pix=2.0, seed=0, sigma=SKY_SIGMA_DN, edit=None, sources=None):
    """A difference with stars (x, y, flux) in white noise, their photon noise included."""
    rng = np.random.default_rng(seed)
    light = np.zeros(shape)
    for x, y, flux in stars:
        add_star(light, x, y, flux, fwhm_pix, half=14 if abs(flux) > 30 * sigma * fwhm_pix else 9)
    noise = rng.standard_normal(shape) * np.sqrt(sigma**2 + np.maximum(light, 0) / GAIN_E)
    pix, sigmas = (light + noise).astype(np.float32), np.full(shape, sigma, np.float32)
    mask, reference = np.zeros(shape, np.int16), np.zeros(shape, np.float32)
    if edit is not None:
        edit(pix, sigmas, mask, reference)
    sources = np.zeros(0, SOURCE_DTYPE) if sources is None else sources
    psf = psf_of(fwhm_pix, shape)
    return Difference(pix, sigmas, mask, psf, pix + reference, reference, sources, GAIN_E, MAGZP, 1.0)
