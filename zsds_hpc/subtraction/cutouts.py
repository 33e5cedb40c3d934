"""Windows of an image about many places, and the three cutouts of a candidate."""

from typing import NamedTuple

import numpy as np

from zsds_hpc.subtraction.images import Difference

#: Half side of the cutouts of an alert: 63 x 63 px.
HALF_PIX = 31


class Cutouts(NamedTuple):
    """Cutouts about candidates, each (n, 63, 63), float32, DN; NaN outside the image and where unusable.

    `difference` is turned so that the candidate is positive: science less reference, and reference less science
    where `isdiffpos` is false, as in the survey's own packets (their `nneg` counts it so).
    """

    science: np.ndarray
    template: np.ndarray
    difference: np.ndarray


def windows(image: np.ndarray, x: np.ndarray, y: np.ndarray, half: int, outside: float = np.nan) -> np.ndarray:
    """Windows about the pixels nearest to places.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
    x, y : ndarray, shape (n,)
        0-based px, finite.
    half : int
        Half side.
    outside : float
        Value of pixels that are not on the image.

    Returns
    -------
    ndarray, shape (n, 2 half + 1, 2 half + 1), dtype of the image
    """
    offset = np.arange(-half, half + 1)
    rows = np.rint(np.atleast_1d(y)).astype(np.intp)[:, None] + offset
    columns = np.rint(np.atleast_1d(x)).astype(np.intp)[:, None] + offset
    n_y, n_x = image.shape
    out = image[rows.clip(0, n_y - 1)[:, :, None], columns.clip(0, n_x - 1)[:, None, :]]
    out[((rows < 0) | (rows >= n_y))[:, :, None] | ((columns < 0) | (columns >= n_x))[:, None, :]] = outside
    return out


def offsets(x: np.ndarray, y: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance along x and along y of the pixels of such windows from the places, each (n, side, side) or broadcast."""
    steps = np.arange(-half, half + 1)
    dx = steps[None, None, :] - (x - np.rint(x))[:, None, None]
    dy = steps[None, :, None] - (y - np.rint(y))[:, None, None]
    return dx, dy


def cut_out(difference: Difference, x: np.ndarray, y: np.ndarray, sign: np.ndarray) -> Cutouts:
    """Cutouts of candidates.

    Parameters
    ----------
    difference : Difference
    x, y : ndarray, shape (n,)
        0-based px.
    sign : ndarray, shape (n,)
        1 or -1: that of each candidate's flux.
    """
    science, template, diff = (
        windows(image, x, y, HALF_PIX).astype(np.float32, copy=False)
        for image in (difference.science, difference.reference, difference.pix)
    )
    diff *= np.asarray(sign, np.float32)[:, None, None]
    diff[~np.isfinite(windows(difference.sigma, x, y, HALF_PIX))] = np.nan
    return Cutouts(science, template, diff)
