"""Stars of known profiles, rendered by brute quadrature: nothing here comes from the package but the containers."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from zsds_hpc.psf.stars import PsfStars

SHAPE = (1500, 1600)
_NODES, _WEIGHTS = (a / 2 for a in np.polynomial.legendre.leggauss(5))


def moffat(r2, fwhm, beta):
    a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return (beta - 1) / (np.pi * a2) * (1 + r2 / a2) ** -beta


def shape_at(x, y, fwhm):
    """FWHM that varies by 6% over the image, and two ellipticities."""
    u, v = 2 * x / (SHAPE[1] - 1) - 1, 2 * y / (SHAPE[0] - 1) - 1
    width = fwhm * (1 + 0.015 * u - 0.01 * v + 0.012 * (u * u + v * v - 2 / 3))
    return width, 0.04 + 0.02 * u - 0.01 * v, -0.02 + 0.015 * v + 0.01 * u * v


def _radius2(dx, dy, e1, e2):
    e = np.maximum(np.hypot(e1, e2), 1e-12)
    return np.cosh(e) * (dx**2 + dy**2) - np.sinh(e) / e * (e1 * (dx**2 - dy**2) + 2 * e2 * dx * dy)


def one_moffat(dx, dy, fwhm, e1, e2):
    return moffat(_radius2(dx, dy, e1, e2), fwhm, 3.0)


def two_moffats(dx, dy, fwhm, e1, e2):
    r2 = _radius2(dx, dy, e1, e2)
    return 0.85 * moffat(r2, fwhm, 3.5) + 0.15 * moffat(r2, 2.2 * fwhm, 2.5)


def coma(dx, dy, fwhm, e1, e2):
    s = 0.3 * fwhm
    tail = 0.2 * two_moffats(dx - s * (1 + 5 * e1), dy - 0.3 * s, 1.1 * fwhm, e1, e2)
    return 0.7 * two_moffats(dx, dy, fwhm, e1, e2) + tail + 0.1 * two_moffats(dx - 2 * s, dy - 0.6 * s, fwhm, e1, e2)


def donut(dx, dy, fwhm, e1, e2):
    angles = np.arange(12) * np.pi / 6
    parts = [moffat((dx - fwhm * np.cos(a)) ** 2 + (dy - fwhm * np.sin(a)) ** 2, 0.7 * fwhm, 4.0) for a in angles]
    return sum(parts) / len(parts)


def trailed(dx, dy, fwhm, e1, e2):
    return sum(moffat((dx - t) ** 2 + (dy - 0.4 * t) ** 2, fwhm, 3.5) for t in np.linspace(-2, 2, 9)) / 9


def render(x, y, half, fwhm, density: Callable = two_moffats):
    """Unit stars on windows about the nearest pixels, (n, side, side)."""
    width, e1, e2 = (np.broadcast_to(a, np.shape(x))[:, None, None] for a in shape_at(x, y, fwhm))
    grid = np.arange(-half, half + 1)
    offset_x, offset_y = ((np.rint(p) - p)[:, None, None] for p in (x, y))
    out = np.zeros((len(x), grid.size, grid.size))
    for node_y, weight_y in zip(_NODES, _WEIGHTS):
        for node_x, weight_x in zip(_NODES, _WEIGHTS):
            dx, dy = grid[None, None, :] + offset_x + node_x, grid[None, :, None] + offset_y + node_y
            out += weight_x * weight_y * density(dx, dy, width, e1, e2)
    return out


class Made(NamedTuple):
    stars: PsfStars
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def make_stars(n, fwhm, half, density=two_moffats, seed=1, gain=6.0, noise=14.0):
    """Stars of 3e3 to 3e5 DN with sky and photon noise, and first guesses that are off by 0.03 px."""
    rng = np.random.default_rng(seed)
    x, y = (np.rint(rng.uniform(30, size - 31, n)) + rng.uniform(-0.45, 0.45, n) for size in (SHAPE[1], SHAPE[0]))
    low, high = 3e3**-0.45, 3e5**-0.45
    flux = (low + rng.uniform(0, 1, n) * (high - low)) ** (-1 / 0.45)
    clean = render(x, y, half, fwhm, density) * flux[:, None, None]
    var = noise**2 + clean / gain
    pix = clean + rng.normal(0, 1, clean.shape) * np.sqrt(var)
    guess_x, guess_y = (np.clip(p + rng.normal(0, 0.03, n), np.rint(p) - 0.49, np.rint(p) + 0.49) for p in (x, y))
    return Made(PsfStars(guess_x, guess_y, pix.astype(np.float32), var.astype(np.float32)), x, y, flux)


class PsfError(NamedTuple):
    """Model against truth, over places from corner to corner, phases and pixels; relative to the peak."""

    worst: float
    rms: float
    worst_shape: float  # after the best shift and scale at each place
    enclosed_range: float  # of the error of the flux in 11 x 11 px


def psf_error(model, fwhm, density=two_moffats, half=6):
    phase = (np.arange(4) + 0.5) / 4 - 0.5
    worst, rms, shape, enclosed = [], [], [], []
    for fx in (0.0, 0.5, 1.0):
        for fy in (0.0, 0.5, 1.0):
            x, y = (a.ravel() for a in np.meshgrid(fx * (SHAPE[1] - 1) + phase, fy * (SHAPE[0] - 1) + phase))
            x, y = np.rint(fx * (SHAPE[1] - 1)) + (x - x.mean()), np.rint(fy * (SHAPE[0] - 1)) + (y - y.mean())
            truth, ours = render(x, y, half, fwhm, density), model.images(x, y, half).astype(float)
            peak = truth.max()
            worst.append(np.abs(ours - truth).max() / peak)
            rms.append(np.sqrt(((ours - truth) ** 2).mean()) / peak)
            shape.append(_shape_error(model, x, y, truth) / peak)
            core = slice(half - 5, half + 6)
            enclosed.append((ours - truth)[:, core, core].sum(axis=(1, 2)).mean())
    return PsfError(max(worst), max(rms), max(shape), float(np.ptp(enclosed)))


def _shape_error(model, x, y, truth):
    half, shift = truth.shape[1] // 2, np.zeros(2)
    for _ in range(4):
        moved = x + shift[0], y + shift[1]
        inside = (np.rint(moved[0]) == np.rint(x)) & (np.rint(moved[1]) == np.rint(y))
        planes = model.images(moved[0][inside], moved[1][inside], half, 3).astype(float)
        design = planes.transpose(1, 0, 2, 3).reshape(3, -1).T
        solution = np.linalg.lstsq(design, truth[inside].ravel(), rcond=None)[0]
        error = np.abs(design @ solution - truth[inside].ravel()).max()
        shift += solution[1:] / solution[0]
    return error
