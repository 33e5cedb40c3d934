"""Images read between their pixels: Lanczos-3 for data, an interpolating quintic B-spline for what is smooth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.kernels.bspline import filter_inplace
from zsds_hpc.kernels.nearest import read_nearest
from zsds_hpc.kernels.resample import mark_holes, read_between

#: Poles of the inverse of the quintic B-spline (Unser, Aldroubi & Eden 1993, IEEE Trans. Signal Proc. 41, 821).
_POLES = (
    np.sqrt(67.5 - np.sqrt(4436.25)) + np.sqrt(26.25) - 6.5,
    np.sqrt(67.5 + np.sqrt(4436.25)) - np.sqrt(26.25) - 6.5,
)
#: Phases of the tables of weights: positions are rounded to 1/4096 px at most.
_N_PHASES = 2048


@dataclass(frozen=True)
class Mapping:
    """Where each output pixel lies in an input image, kept at coarse nodes.

    Attributes
    ----------
    nodes : ndarray, shape (3, n_nodes_y, n_nodes_x), float64
        Input x, input y (0-based px) and factor of the value at output pixels ((i - 1) step, (j - 1) step); a cubic
        through four nodes along each axis lies between.
    step : int
        Output pixels between nodes.
    """

    nodes: np.ndarray
    step: int

    @classmethod
    def of(
        cls,
        transform: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
        shape: tuple[int, int],
        step: int = 32,
        flux_scale: float = 0.0,
    ) -> "Mapping":
        """Mapping of an output image.

        Parameters
        ----------
        transform : callable
            Output (x, y) -> input (x, y), 0-based px, on arrays; smooth.
        shape : tuple of int
            (ny, nx) of the output image.
        step : int, optional
            With 32 px and a distortion of a few arcsec over the image the cubics err by less than 1e-6 px.
        flux_scale : float, optional
            0 keeps values as they are (surface brightness). Otherwise each is multiplied by this and by the area of
            the output pixel in input pixels, so that stars keep their flux: 1 where both images hold flux per pixel of
            their own; `factor`^2 onto a grid that is finer by `factor` and whose values stay per coarse pixel;
            `factor`^-2 from it.
        """
        n_y, n_x = (-(-n // step) + 3 for n in shape)
        x, y = np.meshgrid((np.arange(n_x) - 1.0) * step, (np.arange(n_y) - 1.0) * step)
        at_x, at_y = transform(x, y)
        factor = np.ones(x.shape)
        if flux_scale:
            (y_y, y_x), (x_y, x_x) = np.gradient(at_y, step), np.gradient(at_x, step)
            factor = flux_scale * np.abs(x_x * y_y - x_y * y_x)
        return cls(np.ascontiguousarray([at_x, at_y, factor], np.float64), step)

    def covers(self, shape: tuple[int, int]) -> bool:
        """Whether the nodes reach over an output image of this shape."""
        return all(n_nodes >= -(-n // self.step) + 3 for n_nodes, n in zip(self.nodes.shape[1:], shape))


class Holes(NamedTuple):
    """Pixels that are missing in an image whose spline coefficients are finite everywhere.

    Attributes
    ----------
    where : ndarray, shape (ny, nx), uint8
        From `find_holes`.
    most_missing : float
        Share of the weights on them beyond which a value is missing.
    """

    where: np.ndarray
    most_missing: float


def find_holes(image: np.ndarray, most_missing: float) -> Holes:
    """The NaN pixels of an image, before they are filled and the spline's coefficients are taken."""
    return Holes(mark_holes(np.ascontiguousarray(image, np.float32)), most_missing)


@cache
def _lanczos_table() -> np.ndarray:
    """Weights of Lanczos-3 at -2 ... 3 from the pixel before, normalised, shape (n_phases + 1, 8), float32."""
    t = np.arange(_N_PHASES + 1)[:, None] / _N_PHASES - np.arange(-2, 4)
    return _eight(np.sinc(t) * np.sinc(t / 3) * (np.abs(t) < 3))


@cache
def _bspline_table() -> np.ndarray:
    """Quintic B-spline at -2 ... 3 from the pixel before, shape (n_phases + 1, 8), float32."""
    t = np.abs(np.arange(_N_PHASES + 1)[:, None] / _N_PHASES - np.arange(-2, 4))
    power3, power2, power1 = (np.maximum(knot - t, 0.0) ** 5 for knot in (3, 2, 1))
    return _eight((power3 - 6 * power2 + 15 * power1) / 120)


def _eight(weights: np.ndarray) -> np.ndarray:
    table = np.zeros((len(weights), 8), np.float32)
    table[:, :6] = weights / weights.sum(axis=1, keepdims=True)
    return table


def lanczos(
    image: np.ndarray,
    mapping: Mapping,
    shape: tuple[int, int],
    rows: slice = slice(None),
    most_missing: float = 0.1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Read an image at the positions of an output grid by Lanczos-3 (Duchon 1979; Turkowski 1990).

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        NaN where there is no data.
    mapping : Mapping
    shape : tuple of int
        (ny, nx) of the whole output grid.
    rows : slice, optional
        Rows of the output to make.
    most_missing : float, optional
        Share of the absolute weights on missing pixels up to which the others take their place; beyond, NaN.
    out : ndarray, shape (n_rows, nx), float32, optional
        Filled instead of a new array.

    Returns
    -------
    ndarray, shape (n_rows, nx), float32
        NaN where there is no data.
    """
    start, stop, _ = rows.indices(shape[0])
    return _read(image, mapping, (stop, shape[1]), start, _lanczos_table(), most_missing, out)


def spline_filter(image: np.ndarray) -> np.ndarray:
    """Coefficients of the quintic B-spline through the pixels of an image, mirrored about its border pixels.

    Unser 1999, IEEE Signal Processing Magazine 16, 22.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        Finite, at least 2 x 2.

    Returns
    -------
    ndarray, shape (ny, nx), float32

    Raises
    ------
    BadInput
        A pixel is not finite, or there are too few.
    """
    return spline_filter_inplace(np.array(image, np.float32, order="C"))


def spline_filter_inplace(image: np.ndarray) -> np.ndarray:
    """`spline_filter` in the memory of the image, which is returned."""
    if image.ndim != 2 or min(image.shape) < 2:
        raise BadInput(f"image of shape {image.shape}: at least 2 x 2 pixels are wanted")
    filter_inplace(image, *_POLES)
    if not np.isfinite(image[0, 0]):  # the recursion carries a bad pixel to the whole image
        raise BadInput("image to be interpolated by a spline: a pixel is not finite")
    return image


def spline_sample(
    coefficients: np.ndarray,
    mapping: Mapping,
    shape: tuple[int, int],
    rows: slice = slice(None),
    out: np.ndarray | None = None,
    holes: Holes | None = None,
) -> np.ndarray:
    """Value of a quintic B-spline at the positions of an output grid.

    Parameters
    ----------
    coefficients : ndarray, shape (ny, nx), float32
        From `spline_filter`.
    mapping : Mapping
    shape : tuple of int
        (ny, nx) of the whole output grid.
    rows : slice, optional
        Rows of the output to make.
    out : ndarray, shape (n_rows, nx), float32, optional
        Filled instead of a new array.
    holes : Holes, optional

    Returns
    -------
    ndarray, shape (n_rows, nx), float32
        NaN outside, within 3 px of the border of the coefficients, and where holes have too large a share.
    """
    start, stop, _ = rows.indices(shape[0])
    if holes is not None and holes.where.shape != coefficients.shape:
        raise ValueError(f"holes {holes.where.shape} in coefficients {coefficients.shape}")
    return _read(coefficients, mapping, (stop, shape[1]), start, _bspline_table(), 0.0, out, holes)


def nearest_bits(mask: np.ndarray, mapping: Mapping, outside: int) -> np.ndarray:
    """Mask at the nearest pixels of an output grid of the same shape.

    Parameters
    ----------
    mask : ndarray, shape (ny, nx), int16
    mapping : Mapping
    outside : int
        Value where there is no pixel.

    Returns
    -------
    ndarray, shape (ny, nx), int16
    """
    if not mapping.covers(mask.shape):
        raise ValueError(
            f"mapping with {mapping.nodes.shape[1:]} nodes every {mapping.step} px: not up to {mask.shape}"
        )
    out = np.empty(mask.shape, np.int16)
    read_nearest(np.ascontiguousarray(mask, np.int16), mapping.nodes, mapping.step, outside, out)
    return out


def _read(image, mapping, end, first_row, table, most_missing, out, holes=None):
    if not mapping.covers(end):
        raise ValueError(f"mapping with {mapping.nodes.shape[1:]} nodes every {mapping.step} px: not up to {end}")
    if out is None:
        out = np.empty((max(end[0] - first_row, 0), end[1]), np.float32)
    where, most_missing = (None, most_missing) if holes is None else holes
    image = np.ascontiguousarray(image, np.float32)
    read_between(image, mapping.nodes, mapping.step, table, most_missing, first_row, out, where)
    return out
