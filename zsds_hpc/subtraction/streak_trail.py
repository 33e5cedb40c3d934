"""Pictures of a trail: the PSF, turned to its direction, and its integral along it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from zsds_hpc.kernels.streaks import trail_planes  # type: ignore[attr-defined]
from zsds_hpc.psf.model import PsfModel, monomials

_STEP_PIX = 0.25
_HALF_PIX = 5, 8
_HALF_FWHM = 3.0


class Tables(NamedTuple):
    """The PSF on a grid turned to the direction of a trail, axes v (across), u (along)."""

    point: np.ndarray  # (n, n) float64
    integral: np.ndarray  # likewise: over u from minus infinity
    half_pix: float  # the grid reaches as far
    fwhm_pix: float


#: Place (0-based px), direction (rad) -> tables.
TablesOf = Callable[[tuple[float, float], float], Tables]


def local_tables(psf: PsfModel, place: tuple[float, float], angle: float) -> Tables:
    """Tables of a point-spread function at a place of the image (0-based px) for a direction (rad)."""
    half = min(int(np.clip(np.ceil(_HALF_FWHM * psf.fwhm_pix), *_HALF_PIX)), psf.half_pix)
    n = int(half / _STEP_PIX) + 3  # beyond what is asked of it, for the interpolation
    steps = _STEP_PIX * np.arange(-n, n + 1)
    u, v = steps[None, :], steps[:, None]
    dx, dy = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    point = _point_source(psf, place, dx, dy)
    inside = (np.abs(u) <= half) & (np.abs(v) <= half)
    point *= inside
    # Trapezoids, and the first term of Euler and Maclaurin.
    integral = _STEP_PIX * (np.cumsum(point, axis=1) - 0.5 * point)
    integral -= _STEP_PIX / 12 * np.gradient(point, axis=1)
    return Tables(point, integral, float(half), psf.fwhm_pix)


class RoughTables:
    """Tables of the PSF in the middle of the image, for directions a step apart: good enough to look at a place.

    Parameters
    ----------
    psf : PsfModel
    n_angles : int
        Of half a turn.
    """

    def __init__(self, psf: PsfModel, n_angles: int = 12):
        self.psf, self.n_angles = psf, n_angles
        self._known: dict[int, Tables] = {}

    def __call__(self, place: tuple[float, float], angle: float) -> Tables:
        """Tables of the direction next to the one given (rad); the place does not matter."""
        k = round(angle / np.pi * self.n_angles) % (2 * self.n_angles)
        if k not in self._known:
            n_y, n_x = self.psf.shape
            self._known[k] = local_tables(self.psf, ((n_x - 1) / 2, (n_y - 1) / 2), np.pi * k / self.n_angles)
        return self._known[k]


def _point_source(psf, place, dx, dy):
    """Values of the spline at any offsets."""
    (field,) = psf.field(np.array([place[0]]), np.array([place[1]]))
    terms = monomials(field[:1], field[1:], psf.degree)[0]
    surface = np.einsum("t,tij->ij", terms, psf.coefficients)
    middle = (surface.shape[0] - 1) / 2
    at = np.stack([psf.oversampling * dy + middle, psf.oversampling * dx + middle])
    return ndimage.map_coordinates(surface, at, order=3, prefilter=False, mode="constant", output=np.float64)


def trail_images(tables: Tables, pixels: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Flux per pixel of trails of unit flux, all of one length.

    Parameters
    ----------
    tables : Tables
        For their direction, or near it.
    pixels : ndarray, shape (2, m)
        x and y of pixels.
    ends : ndarray, shape (n, 4)
        x1, y1, x2, y2; point sources where both ends are the same.

    Returns
    -------
    ndarray, shape (n, m), float64
    """
    length = float(np.hypot(ends[0, 2] - ends[0, 0], ends[0, 3] - ends[0, 1]))
    places = np.concatenate([along_and_across(pixels, pair) for pair in ends], axis=1)
    if length < _STEP_PIX:
        out = planes(tables, places, 0.0, 0.0)[2]
    else:
        out = planes(tables, places, -length / 2, length / 2)[0] / length
    return out.reshape(len(ends), -1)


def planes(tables: Tables, places: np.ndarray, start: float, end: float) -> np.ndarray:
    """A trail of unit flux per px and its derivatives, as `kernels.streaks.trail_planes` has them."""
    return trail_planes(tables.point, tables.integral, _STEP_PIX, np.ascontiguousarray(places), start, end)


def along_and_across(pixels: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Coordinates along and across a segment from its middle; shape (2, n)."""
    x1, y1, x2, y2 = ends
    length = float(np.hypot(x2 - x1, y2 - y1))
    cos, sin = ((x2 - x1) / length, (y2 - y1) / length) if length else (1.0, 0.0)
    dx, dy = pixels[0] - (x1 + x2) / 2, pixels[1] - (y1 + y2) / 2
    return np.stack([cos * dx + sin * dy, cos * dy - sin * dx])
