"""Loops over the few pixels where a radiation hit may be: small linear filters, evaluated in batches."""

import numpy as np

from libc.math cimport INFINITY, NAN, isnan

DEF MAX_FILTERS = 128
DEF MAX_WINDOW = 121


def flatten(const float[:, ::1] pix, const short[:, ::1] mask, int unusable, const float[:, ::1] sky_rows,
            double gain_e, double floor_var, double n_sigma, float[:, ::1] light,
            unsigned char[:, ::1] candidate):
    """Subtract the sky, put NaN on unusable pixels and on those 5 sigma below, mark pixels n_sigma above the sky.

    `sky_rows` holds the sky in every column at equidistant heights (n_rows, nx), or at every pixel; `floor_var` is
    the squared read noise in DN. `light` and `candidate` are filled.
    """
    cdef Py_ssize_t ny = pix.shape[0], nx = pix.shape[1], n_rows = sky_rows.shape[0], y, x, j, k
    cdef float value, sky, height, var, n2 = n_sigma * n_sigma, inverse_gain = 1.0 / gain_e, floor = floor_var
    with nogil:
        for y in range(ny):
            height = min(max((y + <float>0.5) / ny * n_rows - <float>0.5, 0), n_rows - 1)
            j = <Py_ssize_t>height
            k = min(j + 1, n_rows - 1)
            height -= j
            for x in range(nx):
                sky = sky_rows[j, x] + height * (sky_rows[k, x] - sky_rows[j, x])
                value = pix[y, x] - sky
                var = pix[y, x] * inverse_gain + floor
                value = NAN if (mask[y, x] & unusable) != 0 else value
                value = NAN if (value < 0) & (value * value > 25 * (sky * inverse_gain + floor)) else value
                light[y, x] = value
                candidate[y, x] = (value > 0) & (value * value > n2 * var)


cdef inline void _window(const float[:, ::1] light, Py_ssize_t y, Py_ssize_t x, int half,
                         float* values) noexcept nogil:
    """The square window about a pixel; NaN where a pixel is unusable or outside the image."""
    cdef Py_ssize_t yy, xx, ny = light.shape[0], nx = light.shape[1]
    cdef int k = 0
    for yy in range(y - half, y + half + 1):
        for xx in range(x - half, x + half + 1):
            values[k] = light[yy, xx] if 0 <= yy < ny and 0 <= xx < nx else NAN
            k += 1


def stands_out(const float[:, ::1] light, const long long[::1] where):
    """Whether a pixel is above the mean of its eight neighbours; true where one of them is unusable."""
    cdef Py_ssize_t nx = light.shape[1], i
    cdef unsigned char[::1] verdict = np.empty(where.shape[0], np.uint8)
    cdef float[9] values
    cdef float total
    cdef int k
    with nogil:
        for i in range(where.shape[0]):
            _window(light, where[i] // nx, where[i] % nx, 1, values)
            total = -9 * values[4]
            for k in range(9):
                total += values[k]
            verdict[i] = not total > 0
    return np.asarray(verdict).view(bool)


def is_whole(const float[:, ::1] light, const long long[::1] where, int half):
    """Whether the window about a pixel lies in the image and holds no unusable pixel."""
    cdef Py_ssize_t nx = light.shape[1], i
    cdef unsigned char[::1] verdict = np.empty(where.shape[0], np.uint8)
    cdef float[MAX_WINDOW] values
    cdef int k, n_window = (2 * half + 1) * (2 * half + 1)
    with nogil:
        for i in range(where.shape[0]):
            _window(light, where[i] // nx, where[i] % nx, half, values)
            verdict[i] = 1
            for k in range(n_window):
                if isnan(values[k]):
                    verdict[i] = 0
    return np.asarray(verdict).view(bool)


def part_ratio(const float[:, ::1] light, const long long[::1] where, int half, const float[:, ::1] positive,
               const float[:, ::1] negative, double floor_dn):
    """Ratio of each filter's positive part to its negative part at the given flat pixel numbers.

    The filters are (n_window, n_filters). The ratio is 0 where the positive part is below `floor_dn` or the
    window holds an unusable pixel.
    """
    cdef Py_ssize_t n = where.shape[0], n_filters = positive.shape[1], nx = light.shape[1], i
    cdef int t, k, n_window = positive.shape[0]
    cdef float[:, ::1] ratio = np.zeros((n, n_filters), np.float32)
    cdef float[MAX_WINDOW] values
    cdef float[MAX_FILTERS] plus
    cdef float[MAX_FILTERS] minus
    cdef bint usable
    with nogil:
        for i in range(n):
            _window(light, where[i] // nx, where[i] % nx, half, values)
            usable = True
            for t in range(n_filters):
                plus[t] = 0
                minus[t] = 0
            for k in range(n_window):
                usable = usable and not isnan(values[k])
                for t in range(n_filters):
                    plus[t] += values[k] * positive[k, t]
                    minus[t] += values[k] * negative[k, t]
            for t in range(n_filters):
                if usable and plus[t] > floor_dn:
                    ratio[i, t] = plus[t] / minus[t] if minus[t] > 0 else INFINITY
    return np.asarray(ratio)


def significance(const float[:, ::1] light, const float[:, ::1] pix, const long long[::1] where, int half,
                 const float[:, ::1] filters, double gain_e, double floor_var):
    """Largest response of the filters over its own noise at the given flat pixel numbers, 0 if none is positive.

    An unusable pixel of the window counts twice as bright as the centre where the filter is negative, and as empty
    where it is positive: it can hide a hit, and hardly make one.
    """
    cdef Py_ssize_t n = where.shape[0], n_filters = filters.shape[1], nx = light.shape[1], i, y, x
    cdef int t, k, n_window = filters.shape[0]
    cdef float[:, ::1] square = np.square(filters)
    cdef float[:, ::1] negative = np.minimum(filters, 0)
    cdef float[::1] found = np.zeros(n, np.float32)
    cdef float[MAX_WINDOW] values
    cdef float[MAX_FILTERS] response
    cdef float[MAX_FILTERS] var
    cdef float value, best, centre, inverse_gain = 1.0 / gain_e, floor
    with nogil:
        for i in range(n):
            y = where[i] // nx
            x = where[i] % nx
            centre = light[y, x]
            _window(light, y, x, half, values)
            for t in range(n_filters):
                response[t] = 0
            for k in range(n_window):
                value = values[k]
                if isnan(value):
                    for t in range(n_filters):
                        response[t] += 2 * centre * negative[k, t]
                else:
                    for t in range(n_filters):
                        response[t] += value * filters[k, t]
            best = 0
            for t in range(n_filters):
                best = max(best, response[t])
            if not best > 0:
                continue
            floor = (pix[y, x] - centre) * inverse_gain + floor_var
            for t in range(n_filters):
                var[t] = 0
            for k in range(n_window):
                value = centre if isnan(values[k]) else values[k]
                value = max(value, 0) * inverse_gain + floor
                for t in range(n_filters):
                    var[t] += value * square[k, t]
            best = 0
            for t in range(n_filters):
                if response[t] > 0:
                    best = max(best, response[t] * response[t] / var[t])
            found[i] = best
    return np.sqrt(np.asarray(found))


def clean_inplace(float[:, ::1] light, const unsigned char[:, ::1] hit, const long long[::1] where):
    """Replace hit pixels by the median of the usable pixels within 2 px that are not hit (0 when none)."""
    cdef Py_ssize_t ny = light.shape[0], nx = light.shape[1], i, y, x, yy, xx
    cdef float[::1] fill = np.zeros(where.shape[0], np.float32)
    cdef float[25] values
    cdef float value
    cdef int n, k
    with nogil:
        for i in range(where.shape[0]):
            y = where[i] // nx
            x = where[i] % nx
            n = 0
            for yy in range(max(y - 2, 0), min(y + 3, ny)):
                for xx in range(max(x - 2, 0), min(x + 3, nx)):
                    value = light[yy, xx]
                    if hit[yy, xx] or isnan(value):
                        continue
                    k = n
                    while k > 0 and values[k - 1] > value:
                        values[k] = values[k - 1]
                        k -= 1
                    values[k] = value
                    n += 1
            fill[i] = values[n // 2] if n > 0 else 0
        for i in range(where.shape[0]):
            light[where[i] // nx, where[i] % nx] = fill[i]
