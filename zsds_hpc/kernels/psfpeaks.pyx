"""Matched filter with the local point-spread function, and its peaks, in one pass over the image."""

import numpy as np

from libc.math cimport sqrt
from libc.stdint cimport int32_t
from libc.string cimport memset

cdef extern from *:
    """
    /* Weighted residuals and weights of a row; variance is infinite where a pixel is unusable. */
    static inline void weighted_row(
        const float *restrict data, const float *restrict model, const float *restrict variance, long n,
        float per_gain, float misfit2, float *restrict weighted, float *restrict weight)
    {
        for (long i = 0; i < n; i++) {
            const float m = model[i] > 0.0f ? model[i] : 0.0f;
            const float w = 1.0f / (variance[i] + m * per_gain + misfit2 * m * m);
            weight[i] = w;
            weighted[i] = w * (data[i] - model[i]);
        }
    }
    /* Adds one row of the filter; the constant, unrolled side lets the compiler work along the row. */
    #define FILTER(K) static __attribute__((noinline)) void filter_##K( \
        const float *restrict q, const float *restrict w, const float *restrict p, const float *restrict p2, long n, \
        float *restrict top, float *restrict bottom) \
    { \
        for (long i = 0; i < n; i++) { \
            float a = 0, b = 0; \
            _Pragma("GCC unroll 16") \
            for (long k = 0; k < K; k++) { a += p[k] * q[i + k]; b += p2[k] * w[i + k]; } \
            top[i] += a; \
            bottom[i] += b; \
        } \
    }
    FILTER(3) FILTER(5) FILTER(7) FILTER(9) FILTER(11) FILTER(13) FILTER(15)
    static inline void filter_rows(
        const float *q, const float *w, const float *p, const float *p2, int side, long n, float *top, float *bottom)
    {
        switch (side) {
            case 3: filter_3(q, w, p, p2, n, top, bottom); break;
            case 5: filter_5(q, w, p, p2, n, top, bottom); break;
            case 7: filter_7(q, w, p, p2, n, top, bottom); break;
            case 9: filter_9(q, w, p, p2, n, top, bottom); break;
            case 11: filter_11(q, w, p, p2, n, top, bottom); break;
            case 13: filter_13(q, w, p, p2, n, top, bottom); break;
            case 15: filter_15(q, w, p, p2, n, top, bottom); break;
            default:
                for (long i = 0; i < n; i++)
                    for (long k = 0; k < side; k++) { top[i] += p[k] * q[i + k]; bottom[i] += p2[k] * w[i + k]; }
        }
    }
    static inline void significance(const float *restrict top, const float *restrict bottom, long n, float *restrict out)
    {
        for (long i = 0; i < n; i++) out[i] = top[i] / __builtin_sqrtf(bottom[i] + 1e-30f);
    }
    """
    void weighted_row(
        const float* data, const float* model, const float* variance, int n, float per_gain, float misfit2,
        float* weighted, float* weight,
    ) noexcept nogil
    void filter_rows(
        const float* q, const float* w, const float* p, const float* p2, int side, int n, float* top, float* bottom
    ) noexcept nogil
    void significance(const float* top, const float* bottom, int n, float* out) noexcept nogil


def find_peaks(
    images, noise, const float[:, :, :, ::1] filters, const unsigned char[:, ::1] wanted, double least_snr,
    double least_share, bint both_signs=False,
):
    """Local maxima of the significance of a star at each pixel.

    With data d, model m, weights w and the profile p of a star there, the flux is sum p w (d - m) / sum p^2 w and its
    significance that times sqrt(sum p^2 w).

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx), float32
        Data, model, variance of the sky (infinite where unusable).
    noise : (1 / gain, square of the relative error of the PSF)
    filters : ndarray, shape (n_tiles_y, n_tiles_x, side, side), float32
        Star of unit flux in the middle of its pixel, for each tile of the image.
    wanted : ndarray, shape (n_blocks_y, n_blocks_x), uint8
        0 for blocks of the image that need no search.
    least_snr : float
    least_share : float
        Share of the profile's weight that must lie in usable pixels.
    both_signs : bool
        Minima as deep as that as well; their flux and significance are negative.

    Returns
    -------
    ndarray, shape (n, 5), float64
        x, y (parabola through the significance), flux, significance, model in the pixel; by row, the maxima of a row
        before its minima.
    """
    cdef const float[:, ::1] data = images[0], model = images[1], variance = images[2]
    cdef int ny = <int>data.shape[0], nx = <int>data.shape[1], side = <int>filters.shape[2], half = side // 2
    cdef int tiles_y = <int>filters.shape[0], tiles_x = <int>filters.shape[1], y, b, x0, x1, k, row, width
    cdef int blocks_y = <int>wanted.shape[0], blocks_x = <int>wanted.shape[1], tile_y, tile_x, line
    cdef const float[:, :, :, ::1] squares = np.square(filters)
    cdef float per_gain = noise[0], misfit2 = noise[1]
    cdef float[:, ::1] q = np.zeros((side, nx + 2 * half), np.float32)
    cdef float[:, ::1] w = np.zeros((side, nx + 2 * half), np.float32)
    cdef float[:, ::1] top = np.zeros((3, nx), np.float32), bottom = np.zeros((3, nx), np.float32)
    cdef float[:, ::1] snr = np.zeros((3, nx + 2), np.float32)  # with a column of zeros on either side
    cdef Py_ssize_t n = 0, size = 4096
    found_array = np.empty((size, 5))
    cdef double[:, ::1] found = found_array
    width = nx + 2 * half
    for y in range(-half, ny + 1):
        # Row y + half enters; row y is filtered; row y - 1, between two known ones, is searched.
        row = y + half
        if row < ny:
            weighted_row(
                &data[row, 0], &model[row, 0], &variance[row, 0], nx, per_gain, misfit2, &q[row % side, half],
                &w[row % side, half],
            )
        else:
            memset(&q[row % side, 0], 0, width * sizeof(float))
            memset(&w[row % side, 0], 0, width * sizeof(float))
        if y < 0:
            continue
        k = y % 3
        memset(&top[k, 0], 0, nx * sizeof(float))
        memset(&bottom[k, 0], 0, nx * sizeof(float))
        if y < ny:
            tile_y = y * tiles_y // ny
            for b in range(blocks_x):
                if not wanted[y * blocks_y // ny, b]:
                    continue
                x0, x1 = b * nx // blocks_x, (b + 1) * nx // blocks_x
                tile_x = (x0 + x1) // 2 * tiles_x // nx
                for row in range(max(0, half - y), side):
                    line = (y + row - half) % side
                    filter_rows(
                        &q[line, x0], &w[line, x0], &filters[tile_y, tile_x, row, 0], &squares[tile_y, tile_x, row, 0],
                        side, x1 - x0, &top[k, x0], &bottom[k, x0],
                    )
        significance(&top[k, 0], &bottom[k, 0], nx, &snr[k, 1])
        if y < 1:
            continue
        if n + 2 * nx > size:
            size = 2 * size + 2 * nx
            found_array = np.concatenate([found_array[:n], np.empty((size - n, 5))])
            found = found_array
        n = search_row(y - 1, nx, 1, snr, top, bottom, model, variance, filters, least_snr, least_share, found, n)
        if both_signs:
            n = search_row(y - 1, nx, -1, snr, top, bottom, model, variance, filters, least_snr, least_share, found, n)
    return found_array[:n]


cdef Py_ssize_t search_row(
    int y, int nx, float sign, const float[:, ::1] snr, const float[:, ::1] top, const float[:, ::1] bottom,
    const float[:, ::1] model, const float[:, ::1] variance, const float[:, :, :, ::1] filters, double least_snr,
    double least_share, double[:, ::1] found, Py_ssize_t n,
) noexcept nogil:
    cdef const float* above = &snr[(y + 2) % 3, 1]
    cdef const float* here = &snr[y % 3, 1]
    cdef const float* below = &snr[(y + 1) % 3, 1]
    cdef int x
    cdef float s
    for x in range(nx):
        s = sign * here[x]
        if s < least_snr:
            continue
        if not (
            s > sign * here[x - 1] and s >= sign * here[x + 1] and s > sign * above[x - 1] and s > sign * above[x]
            and s > sign * above[x + 1] and s >= sign * below[x - 1] and s >= sign * below[x]
            and s >= sign * below[x + 1]
        ):
            continue
        if usable_share(y, x, variance, filters) < least_share:
            continue
        found[n, 0] = x + summit(sign * here[x - 1], s, sign * here[x + 1])
        found[n, 1] = y + summit(sign * above[x], s, sign * below[x])
        found[n, 2] = top[y % 3, x] / bottom[y % 3, x]
        found[n, 3], found[n, 4] = sign * s, model[y, x]
        n += 1
    return n


cdef inline double summit(double left, double middle, double right) noexcept nogil:
    cdef double curvature = 2 * middle - left - right
    return 0.5 * (right - left) / curvature if curvature > 0 else 0


cdef inline double usable_share(
    int y, int x, const float[:, ::1] variance, const float[:, :, :, ::1] filters
) noexcept nogil:
    """Share of sum p^2 in usable pixels of the image."""
    cdef int ny = <int>variance.shape[0], nx = <int>variance.shape[1], side = <int>filters.shape[2], half = side // 2
    cdef int i, j, ty = y * <int>filters.shape[0] // ny, tx = x * <int>filters.shape[1] // nx
    cdef double p2, inside = 0, total = 0
    for j in range(side):
        for i in range(side):
            p2 = filters[ty, tx, j, i] * filters[ty, tx, j, i]
            total += p2
            if 0 <= y + j - half < ny and 0 <= x + i - half < nx and variance[y + j - half, x + i - half] < 1e30:
                inside += p2
    return inside / total
