"""Point-spread functions and star fields of the PSF-fit tests: scipy's B-splines and NumPy, slow and obvious."""

from types import SimpleNamespace

import numpy as np
from scipy.interpolate import BSpline

from tests.helpers.oracle_fit import canvas
from zsds_hpc.photometry.psffit import Fitter, PsfFitParams, make_scene
from zsds_hpc.psf.model import PsfModel, node_offsets, spline_coefficients

GAIN, SKY_SIGMA = 6.2, 8.0
_NODES, _WEIGHTS = (a / 2 for a in np.polynomial.legendre.leggauss(5))
_B = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
_SLOPE = _B.derivative()


def make_psf(shape, fwhm=2.0, vary=0.04, half=12, oversampling=3, wing=(0.0, 3.0)):
    """A Moffat in square pixels whose width varies along x and shape along y; polynomial of degree 1."""
    offsets = node_offsets(half, oversampling)
    wide, narrow = (_moffat(offsets, fwhm * (1 + sign * vary)) for sign in (1, -1))
    tall = _moffat(offsets, fwhm, 1 + vary)
    middle = _moffat(offsets, fwhm)
    samples = np.stack([middle, (wide - narrow) / 2, tall - middle])
    return PsfModel(spline_coefficients(samples).astype(np.float32), oversampling, 1, shape, wing)


def _moffat(offsets, fwhm, stretch=1.0, beta=3.0):
    a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    out = 0.0
    for node_y, weight_y in zip(_NODES, _WEIGHTS):
        for node_x, weight_x in zip(_NODES, _WEIGHTS):
            r2 = ((offsets[:, None] + node_y) / stretch) ** 2 + ((offsets + node_x) * stretch) ** 2
            out = out + weight_x * weight_y * (beta - 1) / (np.pi * a2) * (1 + r2 / a2) ** -beta
    return out


def star(psf, x, y, half):
    """Value and slopes by x and y of a star of unit flux, (3, side, side), float64, about the nearest pixel."""
    n_y, n_x = psf.shape
    u, v = 2 * x / (n_x - 1) - 1, 2 * y / (n_y - 1) - 1
    powers = [(i, j) for j in range(psf.degree + 1) for i in range(psf.degree + 1 - j)]
    surface = sum(c.astype(float) * u**i * v**j for c, (i, j) in zip(psf.coefficients, powers))
    m, grid = psf.oversampling, np.arange(-half, half + 1)
    nodes = np.arange(len(surface)) - (len(surface) - 1) / 2
    dx, dy = np.rint(x) + grid - x, np.rint(y) + grid - y
    along_x, along_y = (np.nan_to_num(_B(m * d[:, None] - nodes)) for d in (dx, dy))
    slope_x, slope_y = (-m * np.nan_to_num(_SLOPE(m * d[:, None] - nodes)) for d in (dx, dy))
    out = np.stack([a @ surface @ b.T for a, b in ((along_y, along_x), (along_y, slope_x), (slope_y, along_x))])
    outside = np.maximum(np.abs(grid), np.abs(grid)[:, None]) > psf.half_pix
    r2 = np.maximum(dx**2 + dy[:, None] ** 2, 1)
    factor, exponent = psf.wing
    far = factor * r2 ** (-exponent / 2)
    return np.where(outside, np.stack([far, exponent * far * dx / r2, exponent * far * dy[:, None] / r2]), out)


def paint(psf, stars, half):
    """Sum of stars, rows (x, y, flux), on windows about their nearest pixels, float64."""
    stars = np.reshape(stars, (-1, 3))
    halves = np.broadcast_to(half, len(stars))
    middle = np.rint(stars[:, :2]).astype(int)
    return canvas(psf.shape, lambda x, y, h: star(psf, x, y, h)[0], stars, middle, halves)


def exposure(psf, stars, seed, half=12, sigma=SKY_SIGMA, gain=GAIN):
    """Image (float32) with noise of sky and photons, noise of the sky, empty mask; and its light."""
    light, rng = paint(psf, stars, half), np.random.default_rng(seed)
    noise = rng.normal(0, 1, psf.shape) * np.sqrt(sigma**2 + np.maximum(light, 0) / gain)
    images = (light + noise).astype(np.float32), np.full(psf.shape, sigma, np.float32), np.zeros(psf.shape, np.int16)
    return SimpleNamespace(images=images, light=light, stars=np.reshape(stars, (-1, 3)), psf=psf)


def grid_stars(shape, spacing, flux, seed, jitter=1.0):
    """Stars on a jittered grid, rows (x, y, flux); `flux` is one or the limits of a uniform logarithm."""
    rng = np.random.default_rng(seed)
    y, x = (
        a.ravel().astype(float) for a in np.mgrid[spacing : shape[0] - 8 : spacing, spacing : shape[1] - 8 : spacing]
    )
    low, high = np.broadcast_to(flux, 2)
    fluxes = np.exp(rng.uniform(np.log(low), np.log(high), x.size))
    return np.column_stack([x + rng.uniform(-jitter, jitter, x.size), y + rng.uniform(-jitter, jitter, x.size), fluxes])


def fitter_of(images, psf, stars=(), params=None, n_iterations=0, gain=GAIN):
    """A fitter with these stars as first guesses."""
    fitter = Fitter(make_scene(images, gain, psf, params or PsfFitParams()))
    if len(stars):
        fitter.add(np.reshape(stars, (-1, 3)), 1)
    fitter.fit(n_iterations)
    return fitter


def nearest_rows(table, stars):
    """For each star the row of the table next to it, and the distance (px)."""
    distance = np.hypot(table["x"][None] - stars[:, :1], table["y"][None] - stars[:, 1:2])
    row = distance.argmin(axis=1)
    return row, distance[np.arange(len(stars)), row]
