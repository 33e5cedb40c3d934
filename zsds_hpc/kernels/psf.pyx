"""Images of stars from a spline point-spread function."""

import numpy as np

from zsds_hpc.kernels.spline cimport MAX_NODES, MAX_SIDE, MAX_TERMS, polynomial, star_planes


def star_images(
    const float[:, :, :, ::1] coefficients,
    const double[::1] wing,
    int degree,
    const double[:, ::1] field,
    const double[:, ::1] phase,
    int half,
):
    """Flux per pixel of stars of unit flux, and derivatives by their positions.

    Parameters
    ----------
    coefficients : ndarray, shape (n_terms, n_nodes, m, ceil(n_nodes / m)), float32
        See `kernels.spline`.
    wing : ndarray, shape (2,), float64
        Factor and exponent of the profile outside the spline.
    degree : int
        Of the polynomial over the image.
    field : ndarray, shape (n, 2), float64
        Place (u, v) of each star on the image, -1 to 1.
    phase : ndarray, shape (n, 2), float64
        Offset (x, y) of each star from the centre of the window's middle pixel, within a pixel.
    half : int
        Half side of the window, px.

    Returns
    -------
    ndarray, shape (n, 3, 2 half + 1, 2 half + 1), float32
        Value, derivative by x, derivative by y.
    """
    cdef Py_ssize_t n = field.shape[0], i
    cdef int side = 2 * half + 1
    if side > MAX_SIDE or coefficients.shape[2] * coefficients.shape[3] > MAX_NODES:
        raise ValueError(f"window of {side} px or spline of {coefficients.shape[1]} nodes is too wide")
    if (degree + 1) * (degree + 2) // 2 != coefficients.shape[0] or coefficients.shape[0] > MAX_TERMS:
        raise ValueError(f"{coefficients.shape[0]} terms are not those of a polynomial of degree {degree}")
    cdef float[:, :, :, ::1] out = np.empty((n, 3, side, side), np.float32)
    cdef float[::1] work = np.empty(MAX_NODES * (MAX_NODES + 2), np.float32)
    cdef float[MAX_TERMS] terms
    cdef int[4] layout
    for i in range(4):
        layout[i] = <int>coefficients.shape[i]
    with nogil:
        for i in range(n):
            polynomial(field[i, 0], field[i, 1], degree, terms)
            star_planes(
                &coefficients[0, 0, 0, 0], layout, &wing[0], terms, phase[i, 0], phase[i, 1], half, &work[0],
                &out[i, 0, 0, 0], &out[i, 1, 0, 0], &out[i, 2, 0, 0],
            )
    return np.asarray(out)
