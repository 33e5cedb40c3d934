"""Sums for the point-spread function: least squares of elliptical profiles, and of a free cubic B-spline.

An elliptical profile has a density f(s) / F^2 with s = (elliptical radius / F)^2, F its width. f is a sum of
components, tabulated with its derivative at equal steps of s / (1 + s).
"""

import numpy as np

from libc.math cimport cosh, floor, hypot, sinh
from libc.string cimport memset

from zsds_hpc.kernels.spline cimport taps

cdef enum:
    MAX_COMPONENTS = 8
    N_OWN = 4           # flux, x, y, sky of a star
    N_SHAPE = 3         # ln width and two ellipticities
    MAX_PARAMETERS = 16 # with the residual, the width of a row of sums

#: Nodes and weights of the Gauss-Legendre rule of three points over one pixel.
cdef double[3] NODE = [-0.3872983346207417, 0.0, 0.3872983346207417]
cdef double[3] SHARE = [0.2777777777777778, 0.4444444444444444, 0.2777777777777778]

ctypedef struct Ellipse:
    double scale        # 1 / F^2
    double ch, sh, k    # cosh e, sinh(e) / e, d(sinh(e) / e) / de / e
    double e1, e2


cdef extern from *:
    """
    /* Rank-one update of the lower triangle of n rows of 16 values; rows are filled up to whole groups of four. */
    static inline void add_products(const double *restrict plane, double weight, int n, double *restrict out)
    {
        for (int j = 0; j < n; j++) {
            const double scaled = weight * plane[j];
            for (int k = 0; k <= j; k += 4)
                for (int l = k; l < k + 4; l++) out[16 * j + l] += scaled * plane[l];
        }
    }
    """
    void add_products(const double* plane, double weight, int n, double* out) noexcept nogil


cdef inline Ellipse ellipse_of(const double* shape) noexcept nogil:
    """From ln F, e1, e2."""
    cdef Ellipse out
    cdef double e = hypot(shape[1], shape[2])
    out.e1, out.e2 = shape[1], shape[2]
    out.scale = (cosh(-2 * shape[0]) + sinh(-2 * shape[0]))
    out.ch = cosh(e)
    if e > 1e-4:
        out.sh = sinh(e) / e
        out.k = (out.ch - out.sh) / (e * e)
    else:
        out.sh, out.k = 1, 1.0 / 3.0
    return out


cdef inline double radius2(const Ellipse* at, double x, double y) noexcept nogil:
    """s of a point."""
    return at.scale * (at.ch * (x * x + y * y) - at.sh * (at.e1 * (x * x - y * y) + 2 * at.e2 * x * y))


ctypedef struct Table:
    const float* rows
    int n_rows
    int width


cdef inline const float* look_up(const Table* table, double s, double* share) noexcept nogil:
    """Row of the table below s, and how far s is towards the next one."""
    cdef double z = s / (1 + s) * table.n_rows
    cdef int row = min(<int>z, table.n_rows - 2)
    share[0] = z - row
    return table.rows + row * table.width


cdef inline void add_point(
    const Table* table, int n_components, const Ellipse* at, double x, double y, double weight, double* plane
) noexcept nogil:
    """Add to the planes (g, dg/dx0, dg/dy0, 1, dg/dln F, dg/de1, dg/de2, components) their values at a point."""
    cdef double s = radius2(at, x, y), share, slope, value
    cdef int k
    cdef const float* row = look_up(table, s, &share)
    cdef int width = table.width
    cdef double v = x * x - y * y, r2 = x * x + y * y, cross = at.e1 * v + 2 * at.e2 * x * y
    weight = weight * at.scale
    value = weight * (row[0] + share * (row[width] - row[0]))
    slope = weight * (row[1] + share * (row[width + 1] - row[1]))
    plane[0] += value
    plane[1] -= slope * at.scale * 2 * (at.ch * x - at.sh * (at.e1 * x + at.e2 * y))
    plane[2] -= slope * at.scale * 2 * (at.ch * y - at.sh * (at.e2 * x - at.e1 * y))
    plane[4] -= 2 * (value + slope * s)
    plane[5] += slope * at.scale * (at.e1 * (at.sh * r2 - at.k * cross) - at.sh * v)
    plane[6] += slope * at.scale * (at.e2 * (at.sh * r2 - at.k * cross) - at.sh * 2 * x * y)
    for k in range(n_components):
        plane[7 + k] += weight * (row[2 + k] + share * (row[width + 2 + k] - row[2 + k]))


def profile_sums(
    const float[:, :, ::1] pix,
    const float[:, :, ::1] var,
    const double[:, ::1] stars,
    const double[:, ::1] shape,
    const float[:, ::1] table,
    const double[::1] settings,
    double[:, :, ::1] normal,
    double[:, ::1] sums,
):
    """Normal equations of each star for its flux, place, sky, and for the shape and the components of the profile.

    Parameters
    ----------
    pix, var : ndarray, shape (n, side, side), float32
        Windows and their variances, not positive where unusable.
    stars : ndarray, shape (n, 4), float64
        Flux, offset (x, y) from the middle of the window, sky.
    shape : ndarray, shape (n, 3), float64
        ln F, e1, e2.
    table : ndarray, shape (n_rows, 2 + n_components), float32
        Columns: f, df/ds, components.
    settings : ndarray, float64
        Half side of the part of the window that is used; half side where pixels are integrated over; error of the
        profile relative to its value; number of components that are fitted; residual in sigmas at which a pixel
        is left out, if it is as many times ten times that error too.
    normal : ndarray, shape (n, p, p), float64
        Receives the normal matrix: flux, x, y, sky, ln F, e1, e2, components; p of them.
    sums : ndarray, shape (n, p + 2), float64
        Receives the right-hand side, chi2 and the number of pixels.
    """
    cdef Py_ssize_t i
    if normal.shape[1] >= MAX_PARAMETERS or normal.shape[1] < N_OWN + N_SHAPE + settings[3]:
        raise ValueError(f"{normal.shape[1]} parameters are too many or too few")
    if pix.shape[1] < 2 * settings[0] + 1 or table.shape[1] < 2 + settings[3]:
        raise ValueError("window or table too small")
    cdef Table rows = Table(&table[0, 0], <int>table.shape[0], <int>table.shape[1])
    with nogil:
        for i in range(pix.shape[0]):
            sums_of_star(pix[i], var[i], &stars[i, 0], &shape[i, 0], &rows, &settings[0], normal[i], &sums[i, 0])


cdef void sums_of_star(
    const float[:, ::1] pix, const float[:, ::1] var, const double* star, const double* shape,
    const Table* table, const double* settings, double[:, ::1] normal, double* sums,
) noexcept nogil:
    cdef int half = <int>settings[0], core = <int>settings[1], n_components = <int>settings[3]
    cdef int middle = pix.shape[0] // 2, n = normal.shape[0], n_pixels = 0, x, y, j, k
    cdef Ellipse at = ellipse_of(shape)
    cdef double[MAX_PARAMETERS] plane
    cdef double[MAX_PARAMETERS * MAX_PARAMETERS] total
    cdef double weight, residual, misfit
    memset(total, 0, MAX_PARAMETERS * MAX_PARAMETERS * sizeof(double))
    for y in range(-half, half + 1):
        for x in range(-half, half + 1):
            if not var[middle + y, middle + x] > 0:
                continue
            planes_of_pixel(table, n_components, &at, x - star[1], y - star[2], max(abs(x), abs(y)) <= core, plane)
            residual = pix[middle + y, middle + x] - star[0] * plane[0] - star[3]
            misfit = (settings[2] * star[0] * plane[0]) ** 2
            weight = 1 / (var[middle + y, middle + x] + misfit)
            if residual * residual > settings[4] ** 2 * (var[middle + y, middle + x] + 100 * misfit):
                continue
            for j in range(1, n):
                if j != 3:
                    plane[j] *= star[0]
            plane[n] = residual
            add_products(plane, weight, n + 1, total)
            n_pixels += 1
    for j in range(n):
        sums[j] = total[MAX_PARAMETERS * n + j]
        for k in range(j + 1):
            normal[j, k] = normal[k, j] = total[MAX_PARAMETERS * j + k]
    sums[n], sums[n + 1] = total[MAX_PARAMETERS * n + n], n_pixels


cdef inline void planes_of_pixel(
    const Table* table, int n_components, const Ellipse* at, double x, double y, bint fine, double* plane
) noexcept nogil:
    cdef int i, j
    memset(plane, 0, MAX_PARAMETERS * sizeof(double))
    if fine:
        for j in range(3):
            for i in range(3):
                add_point(table, n_components, at, x + NODE[i], y + NODE[j], SHARE[i] * SHARE[j], plane)
    else:
        add_point(table, n_components, at, x, y, 1.0, plane)
    plane[3] = 1


def profile_images(
    const double[:, ::1] shape, const float[:, ::1] table, double step, int reach, double[:, :, ::1] out
):
    """Pixel-integrated profiles of unit flux at the nodes of a grid.

    Parameters
    ----------
    shape : ndarray, shape (n, 3), float64
        ln F, e1, e2.
    table : ndarray, shape (n_rows, 2 or more), float32
    step : float
        Between nodes, px.
    reach : int
        Nodes on either side of the middle one.
    out : ndarray, shape (n, 2 reach + 1, 2 reach + 1), float64
        Receives the profiles.
    """
    cdef Py_ssize_t i
    cdef int x, y, a, b
    cdef Ellipse at
    cdef double share, total
    cdef const float* row
    cdef Table rows = Table(&table[0, 0], <int>table.shape[0], <int>table.shape[1])
    with nogil:
        for i in range(shape.shape[0]):
            at = ellipse_of(&shape[i, 0])
            for y in range(-reach, reach + 1):
                for x in range(-reach, reach + 1):
                    total = 0
                    for b in range(3):
                        for a in range(3):
                            row = look_up(&rows, radius2(&at, x * step + NODE[a], y * step + NODE[b]), &share)
                            total += SHARE[a] * SHARE[b] * (row[0] + share * (row[rows.width] - row[0]))
                    out[i, reach + y, reach + x] = at.scale * total


cdef extern from *:
    """
    /* Products of the taps along y (10 pairs) and along x (4 by 4), times a weight. */
    static inline void add_taps(const float *restrict along_y, const float *restrict along_x, float w, float *restrict out)
    {
        for (int j = 0; j < 10; j++) {
            const float factor = w * along_y[j];
            for (int k = 0; k < 16; k++) out[16 * j + k] += factor * along_x[k];
        }
    }
    """
    void add_taps(const float* along_y, const float* along_x, float w, float* out) noexcept nogil


cdef inline int tap_weights(double place, int m, int middle, float* b, float* d) noexcept nogil:
    """B-spline weights for the pixel at the middle of the window; returns the first node's index."""
    cdef double at = middle - m * place
    taps(at - floor(at), 1.0, b, d)
    return <int>floor(at) - 1


def spline_normal(
    const float[:, :, ::1] weight,
    const double[:, ::1] phase,
    const float[:, ::1] factor2,
    int m,
    float[:, :, :, :, ::1] sums,
):
    """Products of taps, summed over stars and pixels: what the normal matrices of a free spline are made of.

    Parameters
    ----------
    weight : ndarray, shape (n, side, side), float32
        flux^2 / variance of each pixel.
    phase : ndarray, shape (n, 2), float64
        Offset (x, y) of the star from the middle of the window.
    factor2 : ndarray, shape (n, n_terms), float32
        Square of each term at the star.
    m : int
        Nodes per pixel.
    sums : ndarray, shape (n_nodes, n_nodes, n_terms, 10, 16), float32
        Is added to. Element (y, x, t): of the pixels whose first node is (y, x), the products of the taps j <= i along
        y (00, 01, 02, 03, 11, ..., 33) and of taps k and l along x (4 k + l).
    """
    cdef int side = weight.shape[1], half = side // 2, n_nodes = sums.shape[0], n_terms = sums.shape[2], x, y, t
    cdef Py_ssize_t n = weight.shape[0], i
    cdef int[:, ::1] first = np.empty((n, 2), np.int32)
    cdef float[:, ::1] along_y = np.empty((n, 10), np.float32), along_x = np.empty((n, 16), np.float32)
    cdef float w
    cdef float* out
    check_reach(half, m, n_nodes, phase)
    with nogil:
        for i in range(n):
            first[i, 0] = tap_products(phase[i, 0], m, n_nodes // 2, &along_x[i, 0], False)
            first[i, 1] = tap_products(phase[i, 1], m, n_nodes // 2, &along_y[i, 0], True)
        for y in range(side):
            for x in range(side):  # all stars' pixels at one place touch the same few nodes, which stay in the cache
                for i in range(n):
                    w = weight[i, y, x]
                    if not w > 0:
                        continue
                    out = &sums[first[i, 1] + m * (y - half), first[i, 0] + m * (x - half), 0, 0, 0]
                    for t in range(n_terms):
                        add_taps(&along_y[i, 0], &along_x[i, 0], w * factor2[i, t], out + 160 * t)


cdef inline int tap_products(double place, int m, int middle, float* out, bint ordered) noexcept nogil:
    """Products of pairs of taps, all 16 or the 10 ordered ones; returns the first node's index."""
    cdef float[4] b
    cdef float[4] unused
    cdef int first = tap_weights(place, m, middle, b, unused), j, k, n = 0
    for j in range(4):
        for k in range(j if ordered else 0, 4):
            out[n] = b[j] * b[k]
            n += 1
    return first


def spline_gradient(
    const float[:, :, ::1] pull, const double[:, ::1] phase, const float[::1] factor, int m, double[:, ::1] out
):
    """Right-hand side for one term: weighted residuals of the stars, spread on the nodes.

    Parameters
    ----------
    pull : ndarray, shape (n, side, side), float32
        Residual times flux over variance.
    phase : ndarray, shape (n, 2), float64
    factor : ndarray, shape (n,), float32
        The term at each star.
    m : int
    out : ndarray, shape (n_nodes, n_nodes), float64
        Is added to.
    """
    cdef int side = pull.shape[1], half = side // 2, n_nodes = out.shape[0], x, y, j, k, fx, fy
    cdef Py_ssize_t i
    cdef float[4] bx
    cdef float[4] by
    cdef float[4] unused
    cdef double* row
    cdef double value
    check_reach(half, m, n_nodes, phase)
    with nogil:
        for i in range(pull.shape[0]):
            fx = tap_weights(phase[i, 0], m, n_nodes // 2, bx, unused)
            fy = tap_weights(phase[i, 1], m, n_nodes // 2, by, unused)
            for y in range(side):
                for x in range(side):
                    value = factor[i] * pull[i, y, x]
                    for j in range(4):
                        row = &out[fy + m * (y - half) + j, fx + m * (x - half)]
                        for k in range(4):
                            row[k] += value * by[j] * bx[k]


def subtract_spline_inplace(
    const double[:, ::1] spline, const double[:, ::1] phase, const float[::1] factor, int m, float[:, :, ::1] pix
):
    """Subtract factor times a spline from the window of each star.

    Parameters
    ----------
    spline : ndarray, shape (n_nodes, n_nodes), float64
        Coefficients.
    phase : ndarray, shape (n, 2), float64
    factor : ndarray, shape (n,), float32
    m : int
    pix : ndarray, shape (n, side, side), float32
        Is changed.
    """
    cdef int side = pix.shape[1], half = side // 2, n_nodes = spline.shape[0], x, y, j, k, fx, fy
    cdef Py_ssize_t i
    cdef float[4] bx
    cdef float[4] by
    cdef float[4] unused
    cdef const double* row
    cdef double value
    check_reach(half, m, n_nodes, phase)
    with nogil:
        for i in range(pix.shape[0]):
            fx = tap_weights(phase[i, 0], m, n_nodes // 2, bx, unused)
            fy = tap_weights(phase[i, 1], m, n_nodes // 2, by, unused)
            for y in range(side):
                for x in range(side):
                    value = 0
                    for j in range(4):
                        row = &spline[fy + m * (y - half) + j, fx + m * (x - half)]
                        value += by[j] * (row[0] * bx[0] + row[1] * bx[1] + row[2] * bx[2] + row[3] * bx[3])
                    pix[i, y, x] -= factor[i] * <float>value


cdef check_reach(int half, int m, int n_nodes, const double[:, ::1] phase):
    """Refuse windows that reach beyond the nodes."""
    largest = np.abs(phase).max() if phase.shape[0] else 0.0
    if not (m >= 1 and largest <= 1 and n_nodes // 2 >= m * (half + 1) + 2):
        raise ValueError(f"{n_nodes} nodes, {m} per pixel, do not cover a half side of {half} px")
