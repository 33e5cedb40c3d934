"""Pixels of an image nearest to smoothly varying positions: for masks and error images."""

cimport cython

from libc.math cimport floor
from libc.stdint cimport int16_t

ctypedef fused pixel:
    int16_t
    float


def read_nearest(const pixel[:, ::1] image, const double[:, :, ::1] nodes, int step, pixel outside, pixel[:, ::1] out):
    """Read an image at the nearest pixels.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), int16 or float32
    nodes : ndarray, shape (3, n_nodes_y, n_nodes_x), float64
        Of a `numerics.resample.Mapping`; between nodes the position is taken as bilinear.
    step : int
        Output pixels between nodes.
    outside : number
        Value beyond the image.
    out : ndarray, shape (my, mx)
        Filled.
    """
    cdef Py_ssize_t my = out.shape[0], mx = out.shape[1], ny = image.shape[0], nx = image.shape[1], y, x, i, j, k, m
    cdef double t, left_x, left_y, right_x, right_y, s, at_x, at_y
    with nogil:
        for y in range(my):
            j = y // step + 1
            t = (y - (j - 1) * step) / <double>step
            for i in range(1, (mx - 1) // step + 2):
                left_x = (1 - t) * nodes[0, j, i] + t * nodes[0, j + 1, i]
                left_y = (1 - t) * nodes[1, j, i] + t * nodes[1, j + 1, i]
                right_x = (1 - t) * nodes[0, j, i + 1] + t * nodes[0, j + 1, i + 1]
                right_y = (1 - t) * nodes[1, j, i + 1] + t * nodes[1, j + 1, i + 1]
                for x in range((i - 1) * step, min(i * step, mx)):
                    s = (x - (i - 1) * step) / <double>step
                    at_x, at_y = left_x + s * (right_x - left_x), left_y + s * (right_y - left_y)
                    k, m = <Py_ssize_t>floor(at_y + 0.5), <Py_ssize_t>floor(at_x + 0.5)
                    out[y, x] = image[k, m] if 0 <= k < ny and 0 <= m < nx else outside
