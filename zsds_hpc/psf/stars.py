"""Windows of stars that the point-spread function is built from."""

from typing import NamedTuple

import numpy as np


class PsfStars(NamedTuple):
    """Stars to build a point-spread function from.

    Attributes
    ----------
    x, y : ndarray, shape (n,), float64
        First guess of the place, 0-based px.
    pix : ndarray, shape (n, side, side), float32
        Background- and neighbour-subtracted windows about the pixel nearest to (x, y), DN.
    var : ndarray, shape (n, side, side), float32
        Variance of each pixel, not positive where it is unusable.
    """

    x: np.ndarray
    y: np.ndarray
    pix: np.ndarray
    var: np.ndarray
