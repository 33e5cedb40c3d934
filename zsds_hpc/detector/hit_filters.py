"""Linear filters that respond to a radiation hit and to no sum of stars.

A frame without hits is a sum of point-spread functions with positive weights, whatever the crowding: it lies
in the cone of the PSF at all sub-pixel phases. For a hit of shape h the filter

    c = h - projection of h on that cone            (non-negative least squares)

has c . PSF <= 0 for every phase, so that c . image is never positive without a hit but for noise, and no other
filter with this property has a larger response to h in white noise (Moreau's decomposition; it is the
likelihood-ratio test for a cone, Robertson, Wright & Dykstra 1988).
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from scipy.special import erf

#: Half sizes of the windows, px: small ones see hits beside bright stars, large ones see faint tracks.
HALVES = (1, 2, 3)
#: Diffusion of the charge of a typical hit, in pixels.
HIT_SIGMA_PIX = 0.4
#: Moffat exponent of the model PSF; the filters' levels are later set from the stars of the image itself.
MOFFAT_BETA = 3.0
#: Seeing is taken in steps of this fraction, so that the filters of a night are made once.
SEEING_STEP = 0.06
#: A shape is left out when stars can imitate all but this fraction of it.
MIN_STRENGTH = 0.15
_GAUSS_X, _GAUSS_W = np.polynomial.legendre.leggauss(4)


class HitFilters(NamedTuple):
    """Positive and negative part of each filter of one window size."""

    half: int  # the window is 2 half + 1 px square
    positive: np.ndarray  # ((2 half + 1)^2, n_filters) float32
    negative: np.ndarray  # likewise, positive numbers


def star_image(fwhm_pix: float, y: float, x: float, half: int) -> np.ndarray:
    """Moffat star of unit flux at an offset from the centre of a window, integrated over pixels.

    Parameters
    ----------
    fwhm_pix : float
    y, x : float
        Offset of the star from the central pixel, px.
    half : int

    Returns
    -------
    ndarray, shape (2 half + 1, 2 half + 1), float64
    """
    edge = np.arange(-half, half + 1)[:, None] + _GAUSS_X[None, :] / 2
    dy2, dx2 = (edge.ravel() - y) ** 2, (edge.ravel() - x) ** 2
    alpha2 = fwhm_pix**2 / (4 * (2 ** (1 / MOFFAT_BETA) - 1))
    light = (1 + (dy2[:, None] + dx2[None, :]) / alpha2) ** -MOFFAT_BETA
    n, weight = 2 * half + 1, _GAUSS_W / 2
    cells = light.reshape(n, 4, n, 4)
    return (MOFFAT_BETA - 1) / (math.pi * alpha2) * np.einsum("iajb,a,b->ij", cells, weight, weight)


def hit_image(points: np.ndarray, half: int) -> np.ndarray:
    """Image of charge spread evenly over points (n, 2: y, x) and diffused, of unit sum."""
    k, scale = np.arange(-half, half + 1), HIT_SIGMA_PIX * math.sqrt(2)
    y, x = (
        0.5 * (erf((k + 0.5 - points[:, i, None]) / scale) - erf((k - 0.5 - points[:, i, None]) / scale))
        for i in (0, 1)
    )
    return y.T @ x


def _hit_shapes(half: int) -> list[np.ndarray]:
    """Spots at several sub-pixel phases, and straight pieces of track through the centre, for a window."""
    phases = [(y, x) for y in (-0.25, 0.25) for x in (-0.25, 0.25)]
    phases += [(y, x) for y in (-0.5, 0.0, 0.5) for x in (-0.5, 0.0, 0.5)]
    shapes = [np.array([phase]) for phase in phases] if half < 3 else []
    for length in {1: (2.0,), 2: (2.0, 4.0), 3: (6.0,)}[half]:
        along = np.linspace(-length / 2, length / 2, 40)[:, None]
        for angle in np.arange(8) * np.pi / 8:
            direction = np.array([[math.sin(angle), math.cos(angle)]])
            across = np.array([[math.cos(angle), -math.sin(angle)]])
            shapes += [along * direction + offset * across for offset in (-0.4, 0.0, 0.4)]
    return shapes


@functools.lru_cache(maxsize=256)
def _filters_for_step(step: int, half: int, side: tuple[int, int]) -> HitFilters:
    phases = np.arange(-half - 1, half + 1.01, 0.25)
    fwhm_pix = math.exp(step * SEEING_STEP)
    support = _support(half, side)
    cone = np.array([(star_image(fwhm_pix, y, x, half) * support).ravel() for y in phases for x in phases]).T
    columns = []
    for points in _hit_shapes(half):
        shape = (hit_image(points, half) * support).ravel()
        shape /= np.linalg.norm(shape)
        residual = shape - cone @ nnls(cone, shape)[0]
        strength = np.linalg.norm(residual)
        if strength > MIN_STRENGTH:
            columns.append(residual / strength)
    filters = np.array(columns, np.float32).T
    parts = np.maximum(filters, 0), np.maximum(-filters, 0)
    return HitFilters(half, *map(np.ascontiguousarray, parts))


def _support(half: int, side: tuple[int, int]) -> np.ndarray:
    """1 on the pixels that a filter may use: those whose offset along `side` is not negative."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return (y * side[0] + x * side[1] >= 0).astype(float)


def hit_filters(fwhm_pix: float) -> list[HitFilters]:
    """Filters for a seeing, rounded to the nearest of a fixed ladder of values; made once per process.

    Parameters
    ----------
    fwhm_pix : float
        Full width at half maximum of the stars, px.

    Returns
    -------
    list of HitFilters, one for each of `HALVES`
    """
    return [_filters_for_step(_step(fwhm_pix), half, (0, 0)) for half in HALVES]


def edge_filters(fwhm_pix: float) -> list[HitFilters]:
    """Filters of the smallest window that do without one side of it: for pixels at an edge or a bad column."""
    sides = ((1, 0), (-1, 0), (0, 1), (0, -1))
    return [_filters_for_step(_step(fwhm_pix), HALVES[0], side) for side in sides]


def _step(fwhm_pix: float) -> int:
    return round(math.log(fwhm_pix) / SEEING_STEP)
