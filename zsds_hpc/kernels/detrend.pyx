"""The per-pixel arithmetic of the instrumental calibration in one pass over memory."""

import numpy as np

from libc.stdint cimport uint16_t

ctypedef fused raw_t:
    uint16_t
    float


cdef inline float linear(float x, float a, float b) noexcept nogil:
    return x / (x * (a * x + b) + 1.0)


def linearize_pixels(const float[::1] pix, float a, float b):
    """``x / (a x^2 + b x + 1)`` of each value.

    Parameters
    ----------
    pix : ndarray, shape (n,), float32
    a, b : float

    Returns
    -------
    ndarray, shape (n,), float32
    """
    cdef Py_ssize_t k
    out = np.empty(pix.shape[0], np.float32)
    cdef float[::1] result = out
    with nogil:
        for k in range(pix.shape[0]):
            result[k] = linear(pix[k], a, b)
    return out


def detrend_pixels(const raw_t[:, ::1] raw, const float[::1] level, list planes, float a, float b):
    """Level and bias off, linearised, divided by the responses that are given.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx), uint16 or float32
    level : ndarray, shape (ny,), float32
    planes : list of three ndarrays, shape (ny, nx), float32
        Bias and two responses; one of shape (1, nx) holds for every row.
    a, b : float
        Linearity.

    Returns
    -------
    ndarray, shape (ny, nx), float32
    """
    cdef Py_ssize_t y, x, ny = raw.shape[0], nx = raw.shape[1]
    cdef const float[:, ::1] bias = planes[0], flat = planes[1], lowflat = planes[2]
    cdef Py_ssize_t bias_step = bias.shape[0] > 1, flat_step = flat.shape[0] > 1, low_step = lowflat.shape[0] > 1
    cdef float s, f, g
    out = np.empty((ny, nx), np.float32)
    cdef float[:, ::1] result = out
    with nogil:
        for y in range(ny):
            for x in range(nx):
                s = (<float>raw[y, x] - level[y]) - bias[y * bias_step, x]
                f = flat[y * flat_step, x]
                g = lowflat[y * low_step, x]
                # A pixel without a response is flagged in the mask; it keeps its signal.
                f = f if f > 0 else <float>1.0
                g = g if g > 0 else <float>1.0
                result[y, x] = s / ((s * (a * s + b) + <float>1.0) * (f * g))
    return out
