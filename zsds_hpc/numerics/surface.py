"""Smooth surfaces over an image: robust fit of a 2-D Legendre polynomial to medians of blocks."""

from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import legvander

from zsds_hpc.core.errors import BadInput
from zsds_hpc.numerics.robust import median_mad


class Blocks(NamedTuple):
    """Medians of square blocks of an image.

    Attributes
    ----------
    medians : ndarray, shape (n_y, n_x), float64
        NaN where a block has no finite pixel.
    y_pix, x_pix : ndarray, shape (n_y,) and (n_x,), float64
        Centres of the blocks.
    """

    medians: np.ndarray
    y_pix: np.ndarray
    x_pix: np.ndarray


class Surface(NamedTuple):
    """A polynomial over an image.

    Attributes
    ----------
    coefficients : ndarray, shape (degree + 1, degree + 1), float64
        Of P_i(v) P_j(u), i along rows; zero where i + j > degree. u and v run from -1 to 1 between the
        centres of the first and the last pixel.
    shape : tuple of int
        ``(ny, nx)`` of the image.
    rms : float
        Robust rms of the residuals of the fit.
    """

    coefficients: np.ndarray
    shape: tuple[int, int]
    rms: float


def block_medians(image: np.ndarray, block_pix: int = 64, n_sample: int = 256) -> Blocks:
    """Medians of the finite pixels of square blocks.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), floating
    block_pix : int
        Side of a block; fewer where the image is smaller. Rows and columns that fill no block are left out,
        half of them at either edge.
    n_sample : int
        About this many pixels of each block are looked at, on a regular grid.

    Returns
    -------
    Blocks
    """
    ny, nx = image.shape
    side = max(1, min(block_pix, ny, nx))
    n_y, n_x = ny // side, nx // side
    y0, x0 = (ny - n_y * side) // 2, (nx - n_x * side) // 2
    step = max(1, int(side / n_sample**0.5))
    cut = image[y0 : y0 + n_y * side, x0 : x0 + n_x * side].reshape(n_y, side, n_x, side)
    sample = cut[:, step // 2 :: step, :, step // 2 :: step].transpose(0, 2, 1, 3).reshape(n_y, n_x, -1)
    centre = 0.5 * (side - 1)
    return Blocks(_nan_median(sample), y0 + side * np.arange(n_y) + centre, x0 + side * np.arange(n_x) + centre)


def column_medians(image: np.ndarray) -> np.ndarray:
    """Median of the finite pixels of each column.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), floating

    Returns
    -------
    ndarray, shape (nx,), dtype of ``image``
        NaN where a column has no finite pixel.
    """
    return _nan_median(image.T).astype(image.dtype)


def _nan_median(sample: np.ndarray) -> np.ndarray:
    """Median of the finite values along the last axis: NaN sorts to the end (np.nanmedian is far slower)."""
    ordered = np.sort(np.where(np.isfinite(sample), sample, np.nan), axis=-1)
    n_valid = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(n_valid - 1, 0) // 2, axis=-1)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(n_valid // 2, ordered.shape[-1] - 1), axis=-1)[..., 0]
    return 0.5 * (low.astype(np.float64) + high)


def fit_surface(blocks: Blocks, shape: tuple[int, int], degree: int, n_sigma: float = 4.0, n_iter: int = 5) -> Surface:
    """Least-squares polynomial through block medians, outliers rejected.

    Parameters
    ----------
    blocks : Blocks
    shape : tuple of int
        ``(ny, nx)`` of the image.
    degree : int
        Greatest total degree.
    n_sigma : float
        Blocks farther from the surface than this many robust standard deviations are rejected.
    n_iter : int
        Greatest number of rounds.

    Returns
    -------
    Surface

    Raises
    ------
    BadInput
        Fewer usable blocks than 1.5 times the number of coefficients.
    """
    design = _design(blocks, shape, degree)
    values = blocks.medians.ravel()
    kept = usable = np.isfinite(values)
    n_needed = int(np.ceil(1.5 * design.shape[1]))
    for _ in range(n_iter):
        if kept.sum() < n_needed:
            raise BadInput(f"surface of degree {degree}: {kept.sum()} usable blocks, {n_needed} are needed")
        solution = np.linalg.lstsq(design[kept], values[kept], rcond=None)[0]
        residual = values - design @ solution
        center, rms = median_mad(residual[kept])
        previous, kept = kept, usable & (np.abs(residual - center) <= n_sigma * rms)
        if rms == 0.0 or np.array_equal(kept, previous):
            break
    coefficients = np.zeros((degree + 1, degree + 1))
    coefficients[_terms(degree)] = solution
    return Surface(coefficients, (int(shape[0]), int(shape[1])), rms)


def surface_image(surface: Surface) -> np.ndarray:
    """Value of a surface at every pixel.

    Returns
    -------
    ndarray, shape (ny, nx), float32
    """
    degree = surface.coefficients.shape[0] - 1
    rows, columns = (legvander(_unit(np.arange(n), n), degree) for n in surface.shape)
    return (rows @ surface.coefficients).astype(np.float32) @ columns.T.astype(np.float32)


def _terms(degree: int) -> tuple[np.ndarray, ...]:
    """Indices (i, j) of the terms up to a total degree."""
    i, j = np.indices((degree + 1, degree + 1))
    return np.nonzero(i + j <= degree)


def _unit(position_pix: np.ndarray, n_pix: int) -> np.ndarray:
    return 2.0 * position_pix / max(n_pix - 1, 1) - 1.0


def _design(blocks: Blocks, shape: tuple[int, int], degree: int) -> np.ndarray:
    """Terms of the polynomial at every block, shape (n_blocks, n_terms)."""
    rows = legvander(_unit(blocks.y_pix, shape[0]), degree)
    columns = legvander(_unit(blocks.x_pix, shape[1]), degree)
    i, j = _terms(degree)
    return (rows[:, None, i] * columns[None, :, j]).reshape(-1, i.size)
