"""Least-squares fit of one pixel-integrated star profile to many sources: flux, position, covariance."""

from libc.math cimport NAN, fabs, floor, isfinite, sqrt
from libc.stdint cimport int16_t, int32_t

import numpy as np

from zsds_hpc.kernels.symmetric3 cimport invert3

DEF MAX_PIXELS = 625
#: Planes of a table: profile, derivatives by x and y, and the change when the source is slightly extended.
DEF N_PLANES = 4


cdef inline void interpolate(
    const float[:, :, :, ::1] table, double px, double py, int n, float* out
) noexcept nogil:
    """Planes of the profile at phase (px, py), each in [-0.5, 0.5]; bilinear between the tabulated phases."""
    cdef int steps = table.shape[0] - 1, a, b, k
    cdef double u = (px + 0.5) * steps, v = (py + 0.5) * steps
    a, b = min(<int>u, steps - 1), min(<int>v, steps - 1)
    cdef float fu = <float>(u - a), fv = <float>(v - b)
    cdef float w00 = (1 - fu) * (1 - fv), w01 = fu * (1 - fv), w10 = (1 - fu) * fv, w11 = fu * fv
    cdef const float* t00 = &table[b, a, 0, 0]
    cdef const float* t01 = &table[b, a + 1, 0, 0]
    cdef const float* t10 = &table[b + 1, a, 0, 0]
    cdef const float* t11 = &table[b + 1, a + 1, 0, 0]
    for k in range(n):
        out[k] = w00 * t00[k] + w01 * t01[k] + w10 * t10[k] + w11 * t11[k]


def profile_images(const float[:, :, :, ::1] table, const double[::1] phase_x, const double[::1] phase_y):
    """Profile of unit flux at each phase: array (n, n_pixels), float32."""
    cdef Py_ssize_t n = phase_x.shape[0], i
    cdef int n_pixels = table.shape[3]
    cdef float[:, ::1] out = np.empty((n, n_pixels), np.float32)
    with nogil:
        for i in range(n):
            interpolate(table, phase_x[i], phase_y[i], n_pixels, &out[i, 0])
    return np.asarray(out)


def fit_profile(
    const float[:, ::1] pix,
    const float[:, ::1] rms,
    const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels,
    const int32_t[::1] own,
    double[:, ::1] position,
    const float[:, :, :, ::1] table,
    const double[::1] settings,
    double[:, ::1] result,
):
    """Fit flux and position of each source by Gauss-Newton steps.

    Pixels outside the image, with bad mask bits, not finite, or in another source's segment have no weight.

    Parameters
    ----------
    pix, rms : ndarray, shape (ny, nx), float32
        Background-subtracted image and sky noise, DN.
    mask : ndarray, shape (ny, nx), int16
    labels : ndarray, shape (ny, nx), int32
        Segment of each pixel, 0 for none.
    own : ndarray, shape (n,), int32
        Label of each source.
    position : ndarray, shape (n, 2), float64
        Start (x, y), 0-based; receives the fitted position.
    table : ndarray, shape (phases, phases, 4, n_pixels), float32
        Profile planes on a square window at tabulated phases from -0.5 to 0.5.
    settings : ndarray, float64
        Gain in e/DN, error of the profile relative to its peak, bad mask bits, iterations, largest move in px.
    result : ndarray, shape (n, 8), float64
        Receives flux, var(flux), var(x), var(y), cov(x, y), chi2 per degree of freedom, spread,
        var(spread); flux NaN where the fit failed: the position is then left at its start.
    """
    cdef Py_ssize_t i
    with nogil:
        for i in range(own.shape[0]):
            fit_one(pix, rms, mask, labels, own[i], &position[i, 0], table, settings, &result[i, 0])


cdef void fit_one(
    const float[:, ::1] pix, const float[:, ::1] rms, const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels, int32_t own, double* position, const float[:, :, :, ::1] table,
    const double[::1] settings, double* result,
) noexcept nogil:
    cdef int n = table.shape[3], side = <int>(sqrt(n) + 0.5), half = side // 2, i, n_used = 0
    cdef float[MAX_PIXELS * N_PLANES] model
    cdef float[MAX_PIXELS] data
    cdef float[MAX_PIXELS] variance
    cdef double x = position[0], y = position[1], flux = 0, step_x = 1, step_y = 1
    cdef double[10] s
    cdef double[6] inverse
    cdef Py_ssize_t ix = -10000, iy = -10000, last_x, last_y
    result[0] = NAN
    for i in range(<int>settings[3]):
        last_x, last_y = ix, iy
        ix, iy = <Py_ssize_t>floor(x + 0.5), <Py_ssize_t>floor(y + 0.5)
        if ix != last_x or iy != last_y:
            n_used = cut_out(pix, rms, mask, labels, own, ix, iy, half, <int>settings[2], data, variance)
            if n_used < 6:
                return
        interpolate(table, x - ix, y - iy, n * N_PLANES, model)
        if i == 0:
            flux = linear_flux(n, model, data, variance)
        normal_equations(n, model, data, variance, flux, settings[0], settings[1], s)
        if not invert3(s, inverse):
            return
        flux = flux + inverse[0] * s[6] + inverse[1] * s[7] + inverse[2] * s[8]
        step_x = inverse[1] * s[6] + inverse[3] * s[7] + inverse[4] * s[8]
        step_y = inverse[2] * s[6] + inverse[4] * s[7] + inverse[5] * s[8]
        x += max(-0.5, min(0.5, step_x))
        y += max(-0.5, min(0.5, step_y))
        if not (fabs(x - position[0]) <= settings[4] and fabs(y - position[1]) <= settings[4] and flux > 0):
            return
        if fabs(step_x) < 1e-3 and fabs(step_y) < 1e-3 and i > 1:
            break
    position[0], position[1] = x, y
    result[0], result[1] = flux, inverse[0]
    result[2], result[3], result[4] = inverse[3], inverse[5], inverse[4]
    result[5] = s[9] / max(n_used - 3, 1)
    spread(n, model, data, variance, flux, settings[0], settings[1], result + 6)


cdef inline int cut_out(
    const float[:, ::1] pix, const float[:, ::1] rms, const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels, int32_t own, Py_ssize_t ix, Py_ssize_t iy, int half, int bad_bits,
    float* data, float* variance,
) noexcept nogil:
    """Copy the window; unusable pixels get variance -1. Returns the number of usable pixels."""
    cdef Py_ssize_t ny = pix.shape[0], nx = pix.shape[1], x, y
    cdef int k = 0, n_used = 0
    for y in range(iy - half, iy + half + 1):
        for x in range(ix - half, ix + half + 1):
            data[k], variance[k] = 0, -1
            if (
                0 <= y < ny and 0 <= x < nx and not mask[y, x] & bad_bits and isfinite(pix[y, x])
                and (labels[y, x] == 0 or labels[y, x] == own)
            ):
                data[k], variance[k] = pix[y, x], rms[y, x] * rms[y, x]
                n_used += 1
            k += 1
    return n_used


cdef inline double linear_flux(
    int n, const float* model, const float* data, const float* variance
) noexcept nogil:
    cdef double top = 0, bottom = 0
    cdef int k
    for k in range(n):
        if variance[k] >= 0:
            top += model[k] * data[k]
            bottom += model[k] * model[k]
    return top / bottom if bottom > 0 else 0


cdef inline double misfit_of(int n, const float* model, double flux, double profile_error) noexcept nogil:
    """Variance for the error of the profile: the same in all pixels, so that the core and not the wings decides."""
    cdef int k
    cdef double highest = 0
    for k in range(n):
        highest = max(highest, <double>model[k])
    return (profile_error * flux * highest) ** 2


cdef inline double weight_of(float variance, double model, double gain, double misfit) noexcept nogil:
    if variance < 0:
        return 0
    return 1 / (variance + max(model, 0.0) / gain + misfit)


cdef inline void normal_equations(
    int n, const float* model, const float* data, const float* variance, double flux, double gain,
    double profile_error, double* s,
) noexcept nogil:
    """Sums of the normal matrix (6), the right-hand side (3) and chi2 in `s`."""
    cdef int k
    cdef double w, p, gx, gy, r, misfit = misfit_of(n, model, flux, profile_error)
    for k in range(10):
        s[k] = 0
    for k in range(n):
        p, gx, gy = model[k], flux * model[n + k], flux * model[2 * n + k]
        w = weight_of(variance[k], flux * p, gain, misfit)
        r = data[k] - flux * p
        s[0] += w * p * p
        s[1] += w * p * gx
        s[2] += w * p * gy
        s[3] += w * gx * gx
        s[4] += w * gx * gy
        s[5] += w * gy * gy
        s[6] += w * p * r
        s[7] += w * gx * r
        s[8] += w * gy * r
        s[9] += w * r * r


cdef inline void spread(
    int n, const float* model, const float* data, const float* variance, double flux, double gain,
    double profile_error, double* out,
) noexcept nogil:
    """How much better a slightly extended profile fits (Desai et al. 2012, eq. 1), and its variance."""
    cdef int k
    cdef double w, p, g, pd = 0, gd = 0, pp = 0, gp = 0, gg = 0, misfit = misfit_of(n, model, flux, profile_error)
    for k in range(n):
        p, g = model[k], model[k] + model[3 * n + k]
        w = weight_of(variance[k], flux * p, gain, misfit)
        pd += w * p * data[k]
        gd += w * g * data[k]
        pp += w * p * p
        gp += w * g * p
        gg += w * g * g
    out[0] = gd / pd - gp / pp if pd > 0 else NAN
    out[1] = (gg * pd * pd - 2 * gp * pd * gd + pp * gd * gd) / (pd * pd * pd * pd) if pd > 0 else NAN
