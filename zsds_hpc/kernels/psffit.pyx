"""Loops of the simultaneous PSF fit: rendering, normal equations of all stars and pairs, their solution, errors.

Stars are rows of `stars` (x, y, flux; float64), sorted by the row of their window's middle pixel; `middle` (x, y;
int32) and `half` (class of the window; int32) do not change during a fit. The model of a star lies within its window.
"""

import numpy as np

from libc.math cimport exp, fabs, sqrt
from libc.stdint cimport int32_t
from libc.string cimport memset

from zsds_hpc.kernels.spline cimport MAX_NODES, MAX_SIDE, MAX_TERMS, polynomial, star_planes
from zsds_hpc.kernels.symmetric3 cimport invert3

cdef enum:
    MAX_CLASSES = 8
    LANES = 8
    MAX_NEIGHBOURS = 12

cdef extern from *:
    """
    /* Residuals and weights of n pixels; variance is infinite where a pixel is unusable. */
    static inline void residuals_and_weights(
        const float *restrict data, const float *restrict model, const float *restrict variance, long n,
        float per_gain, float misfit2, float *restrict residual, float *restrict weight)
    {
        for (long i = 0; i < n; i++) {
            const float m = model[i] > 0.0f ? model[i] : 0.0f;
            residual[i] = data[i] - model[i];
            weight[i] = 1.0f / (variance[i] + m * per_gain + misfit2 * m * m);
        }
    }
    /* Sums w v v, w v x, w v y, w x x, w x y, w y y, w v r, w x r, w y r over n pixels, n a multiple of 8. */
    static inline void sums_of_star(
        const float *restrict v, const float *restrict x, const float *restrict y, const float *restrict r,
        const float *restrict w, long n, double *restrict out)
    {
        float s[9][8] = {{0}};
        for (long i = 0; i < n; i += 8)
            for (long l = 0; l < 8; l++) {
                const float wv = w[i + l] * v[i + l], wx = w[i + l] * x[i + l], wy = w[i + l] * y[i + l];
                s[0][l] += wv * v[i + l];
                s[1][l] += wv * x[i + l];
                s[2][l] += wv * y[i + l];
                s[3][l] += wx * x[i + l];
                s[4][l] += wx * y[i + l];
                s[5][l] += wy * y[i + l];
                s[6][l] += wv * r[i + l];
                s[7][l] += wx * r[i + l];
                s[8][l] += wy * r[i + l];
            }
        for (long k = 0; k < 9; k++) {
            out[k] = 0;
            for (long l = 0; l < 8; l++) out[k] += s[k][l];
        }
    }
    static inline void add_scaled(const float *restrict row, float factor, long n, float *restrict out)
    {
        for (long i = 0; i < n; i++) out[i] += factor * row[i];
    }
    """
    void residuals_and_weights(
        const float* data, const float* model, const float* variance, int n, float per_gain, float misfit2,
        float* residual, float* weight,
    ) noexcept nogil
    void sums_of_star(
        const float* v, const float* x, const float* y, const float* r, const float* w, int n, double* out
    ) noexcept nogil
    void add_scaled(const float* row, float factor, int n, float* out) noexcept nogil


cdef class Psf:
    """The point-spread function at the size of each class of windows.

    Parameters
    ----------
    coefficients : sequence of ndarray, shape (n_terms, n_nodes, m, ceil(n_nodes / m)), float32
        One for each class; see `kernels.spline`.
    halves : sequence of int
        Half side of the windows of each class, px, rising.
    wing : (factor, exponent)
    degree : int
    shape : (ny, nx)
    """

    cdef const float* coefficients[MAX_CLASSES]
    cdef int layout[MAX_CLASSES][4]
    cdef int half[MAX_CLASSES]
    cdef double wing[2]
    cdef double scale_x, scale_y
    cdef int degree, n_classes
    cdef list keep
    cdef float[::1] work

    def __init__(self, coefficients, halves, wing, int degree, shape):
        cdef const float[:, :, :, ::1] view
        cdef int i, k
        if not 0 < len(halves) <= MAX_CLASSES or max(halves) * 2 + 1 > MAX_SIDE:
            raise ValueError(f"window classes {halves} are too many or too wide")
        self.keep, self.degree, self.n_classes = [], degree, len(halves)
        self.wing[0], self.wing[1] = wing
        self.scale_y, self.scale_x = (2.0 / (n - 1) for n in shape)
        for k, array in enumerate(coefficients):
            view = array
            self.keep.append(view)
            self.coefficients[k] = &view[0, 0, 0, 0]
            self.half[k] = halves[k]
            for i in range(4):
                self.layout[k][i] = <int>view.shape[i]
            if view.shape[0] > MAX_TERMS or view.shape[0] != (degree + 1) * (degree + 2) // 2:
                raise ValueError(f"{view.shape[0]} terms are not those of a polynomial of degree {degree}")
            if view.shape[2] * view.shape[3] > MAX_NODES:
                raise ValueError(f"spline of {view.shape[1]} nodes is too wide")
        self.work = np.empty(MAX_NODES * (MAX_NODES + 2), np.float32)

    cdef void planes(
        self, double x, double y, int ix, int iy, int k, float* value, float* slope_x, float* slope_y
    ) noexcept nogil:
        cdef float[MAX_TERMS] terms
        polynomial(x * self.scale_x - 1, y * self.scale_y - 1, self.degree, terms)
        star_planes(
            self.coefficients[k], self.layout[k], self.wing, terms, x - ix, y - iy, self.half[k], &self.work[0],
            value, slope_x, slope_y,
        )


def render(Psf psf, const double[:, ::1] stars, const int32_t[:, ::1] middle, const int32_t[::1] kind,
           float[:, ::1] image):
    """Add the stars (n, 3) to an image (ny, nx), float32, in place."""
    cdef Py_ssize_t n = stars.shape[0], ny = image.shape[0], nx = image.shape[1], i, y, x0, x1
    cdef int h, side
    cdef float[::1] planes = np.empty(3 * MAX_SIDE * MAX_SIDE, np.float32)
    cdef float* value = &planes[0]
    with nogil:
        for i in range(n):
            h = psf.half[kind[i]]
            side = 2 * h + 1
            psf.planes(
                stars[i, 0], stars[i, 1], middle[i, 0], middle[i, 1], kind[i], value,
                value + MAX_SIDE * MAX_SIDE, value + 2 * MAX_SIDE * MAX_SIDE,
            )
            x0, x1 = max(middle[i, 0] - h, 0), min(middle[i, 0] + h + 1, nx)
            if x1 <= x0:
                continue
            for y in range(max(middle[i, 1] - h, 0), min(middle[i, 1] + h + 1, ny)):
                add_scaled(
                    value + (y - middle[i, 1] + h) * side + x0 - middle[i, 0] + h, <float>stars[i, 2],
                    <int>(x1 - x0), &image[y, x0],
                )


def find_pairs(const int32_t[:, ::1] middle, int reach):
    """Pairs of stars whose middles are within `reach` px along both axes.

    Parameters
    ----------
    middle : ndarray, shape (n, 2), int32
        Sorted by the second column (y).
    reach : int

    Returns
    -------
    start : ndarray, shape (n + 1,), int32
        Pairs start[i] to start[i + 1] have star i as the later one.
    earlier : ndarray, shape (n_pairs,), int32
        The other star.
    """
    cdef Py_ssize_t n = middle.shape[0], i, j, m = 0, size = 4 * n + 64
    start_array, earlier_array = np.zeros(n + 1, np.int32), np.empty(size, np.int32)
    cdef int32_t[::1] start = start_array, earlier = earlier_array
    for i in range(n):
        j = i - 1
        while j >= 0 and middle[i, 1] - middle[j, 1] <= reach:
            if middle[j, 0] - middle[i, 0] <= reach and middle[i, 0] - middle[j, 0] <= reach:
                if m == size:
                    size *= 2
                    earlier_array = np.concatenate([earlier_array, np.empty(size - m, np.int32)])
                    earlier = earlier_array
                earlier[m] = <int32_t>j
                m += 1
            j -= 1
        start[i + 1] = <int32_t>m
    return start_array, earlier_array[:m]


cdef int window(
    const float[:, ::1] data, const float[:, ::1] model, const float[:, ::1] variance, int ix, int iy, int half,
    const double* noise, float* residual, float* weight,
) noexcept nogil:
    """Residuals and weights of a window, zero outside the image; returns the number of usable pixels."""
    cdef int side = 2 * half + 1, ny = <int>data.shape[0], nx = <int>data.shape[1], y, k, used = 0
    cdef int x0 = max(ix - half, 0), x1 = min(ix + half + 1, nx), first
    if x0 > ix - half or x1 < ix + half + 1 or iy < half or iy + half >= ny:
        memset(residual, 0, side * side * sizeof(float))
        memset(weight, 0, side * side * sizeof(float))
    if x1 <= x0:
        return 0
    for y in range(max(iy - half, 0), min(iy + half + 1, ny)):
        first = (y - iy + half) * side + x0 - ix + half
        residuals_and_weights(
            &data[y, x0], &model[y, x0], &variance[y, x0], x1 - x0, <float>noise[0], <float>noise[1],
            residual + first, weight + first,
        )
    for k in range(side * side):
        used += weight[k] > 0
    return used


def normal_equations(
    Psf psf,
    images,
    const double[::1] noise,
    const double[:, ::1] stars,
    const int32_t[:, ::1] middle,
    const int32_t[::1] kind,
    pairs,
    double[:, ::1] own,
    double[:, ::1] shared,
):
    """Normal equations of flux, x and y of all stars about their present values.

    Parameters
    ----------
    psf : Psf
    images : tuple of ndarray, shape (ny, nx), float32
        Data, present model of all stars, variance of the sky (infinite where unusable); DN.
    noise : ndarray, shape (2,), float64
        1 / gain, and the square of the error of the PSF relative to the model in a pixel.
    stars, middle, kind : ndarray
    pairs : (start, earlier)
        From `find_pairs`, with a reach of at most twice the smallest half.
    own : ndarray, shape (n, 10), float64
        Receives the block of each star: (ff, fx, fy, xx, xy, yy), the right-hand side (f, x, y), usable pixels.
    shared : ndarray, shape (n_pairs, 9), float64
        Receives the block of each pair: rows are parameters of the later star.
    """
    cdef const float[:, ::1] data = images[0], model = images[1], variance = images[2]
    cdef const int32_t[::1] start = pairs[0], earlier = pairs[1]
    cdef Py_ssize_t n = stars.shape[0], i, j, p, longest = 1
    cdef int crop = psf.half[0], size = (2 * crop + 1) * (2 * crop + 1), h, k, area
    for i in range(n):
        if start[i + 1] > start[i]:
            longest = max(longest, i - earlier[start[i + 1] - 1] + 1)
    cdef float[:, ::1] ring = np.empty((longest, 4 * size), np.float32)
    cdef int padded = (MAX_SIDE * MAX_SIDE + LANES) // LANES * LANES
    cdef float[::1] buffers = np.empty(5 * padded, np.float32)
    cdef float* v = &buffers[0]
    cdef float* gx = v + padded
    cdef float* gy = gx + padded
    cdef float* r = gy + padded
    cdef float* w = r + padded
    cdef double[9] s
    cdef double flux
    with nogil:
        for i in range(n):
            h = psf.half[kind[i]]
            area = (2 * h + 1) * (2 * h + 1)
            psf.planes(stars[i, 0], stars[i, 1], middle[i, 0], middle[i, 1], kind[i], v, gx, gy)
            own[i, 9] = window(data, model, variance, middle[i, 0], middle[i, 1], h, &noise[0], r, w)
            for k in range(area, (area + LANES - 1) // LANES * LANES):
                v[k] = gx[k] = gy[k] = r[k] = w[k] = 0
            sums_of_star(v, gx, gy, r, w, (area + LANES - 1) // LANES * LANES, s)
            flux = stars[i, 2]
            own[i, 0], own[i, 1], own[i, 2] = s[0], flux * s[1], flux * s[2]
            own[i, 3], own[i, 4], own[i, 5] = flux * flux * s[3], flux * flux * s[4], flux * flux * s[5]
            own[i, 6], own[i, 7], own[i, 8] = s[6], flux * s[7], flux * s[8]
            keep_middle(v, gx, gy, w, h, crop, flux, &ring[i % longest, 0])
            for p in range(start[i], start[i + 1]):
                j = earlier[p]
                pair_block(
                    &ring[i % longest, 0], &ring[j % longest, 0], crop, middle[i, 0] - middle[j, 0],
                    middle[i, 1] - middle[j, 1], &shared[p, 0],
                )


cdef inline void keep_middle(
    const float* v, const float* gx, const float* gy, const float* w, int half, int crop, double flux, float* out
) noexcept nogil:
    """The middle of a star's planes: value, slopes times flux, weights."""
    cdef int outer = 2 * half + 1, side = 2 * crop + 1, y, x, a, b, size = side * side
    for y in range(side):
        for x in range(side):
            a, b = (y + half - crop) * outer + x + half - crop, y * side + x
            out[b], out[size + b] = v[a], <float>flux * gx[a]
            out[2 * size + b], out[3 * size + b] = <float>flux * gy[a], w[a]


cdef inline void pair_block(const float* one, const float* two, int crop, int dx, int dy, double* out) noexcept nogil:
    """Sums w a_i b_j over the pixels that both middles hold; (dx, dy) is from the second star to the first."""
    cdef int side = 2 * crop + 1, size = side * side, x, y, k, a, b
    cdef float w, g, gx, gy, f, fx, fy
    cdef float[9] s
    for k in range(9):
        s[k] = 0
    for y in range(max(0, -dy), min(side, side - dy)):
        for x in range(max(0, -dx), min(side, side - dx)):
            a, b = y * side + x, (y + dy) * side + x + dx
            w = one[3 * size + a]
            g, gx, gy = w * one[a], w * one[size + a], w * one[2 * size + a]
            f, fx, fy = two[b], two[size + b], two[2 * size + b]
            s[0] += g * f
            s[1] += g * fx
            s[2] += g * fy
            s[3] += gx * f
            s[4] += gx * fx
            s[5] += gx * fy
            s[6] += gy * f
            s[7] += gy * fx
            s[8] += gy * fy
    for k in range(9):
        out[k] = s[k]


cdef inline void times3(const double* a, const double* x, double* out) noexcept nogil:
    """Product of a symmetric 3 x 3 matrix and a vector."""
    out[0] = a[0] * x[0] + a[1] * x[1] + a[2] * x[2]
    out[1] = a[1] * x[0] + a[3] * x[1] + a[4] * x[2]
    out[2] = a[2] * x[0] + a[4] * x[1] + a[5] * x[2]


cdef void times_matrix(
    const double[:, ::1] own, const double[:, ::1] shared, const int32_t[::1] start, const int32_t[::1] earlier,
    const double[:, ::1] x, double[:, ::1] out,
) noexcept nogil:
    cdef Py_ssize_t i, j, p
    cdef const double* b
    for i in range(own.shape[0]):
        times3(&own[i, 0], &x[i, 0], &out[i, 0])
    for i in range(own.shape[0]):
        for p in range(start[i], start[i + 1]):
            j, b = earlier[p], &shared[p, 0]
            out[i, 0] += b[0] * x[j, 0] + b[1] * x[j, 1] + b[2] * x[j, 2]
            out[i, 1] += b[3] * x[j, 0] + b[4] * x[j, 1] + b[5] * x[j, 2]
            out[i, 2] += b[6] * x[j, 0] + b[7] * x[j, 1] + b[8] * x[j, 2]
            out[j, 0] += b[0] * x[i, 0] + b[3] * x[i, 1] + b[6] * x[i, 2]
            out[j, 1] += b[1] * x[i, 0] + b[4] * x[i, 1] + b[7] * x[i, 2]
            out[j, 2] += b[2] * x[i, 0] + b[5] * x[i, 1] + b[8] * x[i, 2]


def solve(const double[:, ::1] own, const double[:, ::1] shared, pairs, int max_iterations, double tolerance):
    """Solve the normal equations by conjugate gradients, preconditioned with the blocks of the stars.

    Parameters
    ----------
    own, shared, pairs
        As from `normal_equations`, damping added to `own`; a star whose block is singular does not move.
    max_iterations : int
    tolerance : float
        Of the preconditioned residual's norm, relative to its start.

    Returns
    -------
    step : ndarray, shape (n, 3), float64
    n_iterations : int
    """
    cdef const int32_t[::1] start = pairs[0], earlier = pairs[1]
    cdef Py_ssize_t n = own.shape[0], i, k
    cdef int iteration = 0
    cdef double rho, first, last, alpha, curvature
    arrays = [np.zeros((n, 3)) for _ in range(5)]
    cdef double[:, ::1] step = arrays[0], r = arrays[1], z = arrays[2], d = arrays[3], q = arrays[4]
    cdef double[:, ::1] inverse = np.zeros((n, 6))
    with nogil:
        rho = 0
        for i in range(n):
            invert3(&own[i, 0], &inverse[i, 0])
            for k in range(3):
                r[i, k] = own[i, 6 + k]
            times3(&inverse[i, 0], &r[i, 0], &d[i, 0])
            for k in range(3):
                rho += r[i, k] * d[i, k]
        first = rho
        while iteration < max_iterations and rho > tolerance * tolerance * first and rho > 0:
            times_matrix(own, shared, start, earlier, d, q)
            curvature = 0
            for i in range(n):
                for k in range(3):
                    curvature += d[i, k] * q[i, k]
            if not curvature > 0:
                break
            alpha, last, rho = rho / curvature, rho, 0
            for i in range(n):
                for k in range(3):
                    step[i, k] += alpha * d[i, k]
                    r[i, k] -= alpha * q[i, k]
                times3(&inverse[i, 0], &r[i, 0], &z[i, 0])
                for k in range(3):
                    rho += r[i, k] * z[i, k]
            for i in range(n):
                for k in range(3):
                    d[i, k] = z[i, k] + rho / last * d[i, k]
            iteration += 1
    return arrays[0], iteration


def covariances(const double[:, ::1] own, const double[:, ::1] shared, pairs, double least_coupling):
    """Covariance of each star's parameters, its neighbours free too.

    The matrix of a star and its (at most 12) most coupled neighbours, with the couplings among them, is inverted.

    Parameters
    ----------
    own, shared, pairs
        As from `normal_equations`.
    least_coupling : float
        Normalised flux-flux coupling from which on a neighbour counts.

    Returns
    -------
    ndarray, shape (n, 6), float64
        (ff, fx, fy, xx, xy, yy); NaN where the matrix is singular.
    """
    cdef const int32_t[::1] start = pairs[0], earlier = pairs[1]
    cdef Py_ssize_t n = own.shape[0], n_pairs = earlier.shape[0], i, p
    later_array = np.repeat(np.arange(n, dtype=np.int32), np.diff(np.asarray(start)))
    cdef const int32_t[::1] later = later_array
    # Pairs by either star: those of star i are at[where[i]] to at[where[i + 1]].
    either = np.concatenate([later_array, np.asarray(earlier)])
    cdef const int32_t[::1] at = (np.argsort(either, kind="stable") % max(n_pairs, 1)).astype(np.int32)
    cdef const int32_t[::1] where = np.searchsorted(np.sort(either), np.arange(n + 1)).astype(np.int32)
    cdef double[:, ::1] out = np.full((n, 6), np.nan)
    with nogil:
        for i in range(n):
            covariance_of(i, own, shared, later, earlier, at, where, least_coupling, &out[i, 0])
    return np.asarray(out)


cdef void covariance_of(
    Py_ssize_t i, const double[:, ::1] own, const double[:, ::1] shared, const int32_t[::1] later,
    const int32_t[::1] earlier, const int32_t[::1] at, const int32_t[::1] where, double least, double* out,
) noexcept nogil:
    cdef int[MAX_NEIGHBOURS + 1] members
    cdef double[MAX_NEIGHBOURS + 1] coupling
    cdef double[(3 * MAX_NEIGHBOURS + 3) * (3 * MAX_NEIGHBOURS + 3)] matrix
    cdef double[3 * MAX_NEIGHBOURS + 3] scale
    cdef int n_members = 1, k, m, a, b, size
    cdef Py_ssize_t p, q, j
    cdef double c
    members[0] = <int>i
    for q in range(where[i], where[i + 1]):
        p = at[q]
        j = earlier[p] if later[p] == i else later[p]
        c = fabs(shared[p, 0]) / sqrt(own[i, 0] * own[j, 0]) if own[i, 0] > 0 and own[j, 0] > 0 else 0
        if c < least:
            continue
        k = n_members if n_members <= MAX_NEIGHBOURS else MAX_NEIGHBOURS + 1
        if k > MAX_NEIGHBOURS:
            k = 1
            for m in range(2, n_members):
                if coupling[m] < coupling[k]:
                    k = m
            if coupling[k] >= c:
                continue
        else:
            n_members += 1
        members[k], coupling[k] = <int>j, c
    size = 3 * n_members
    memset(matrix, 0, size * size * sizeof(double))
    for m in range(n_members):
        put_own(&own[members[m], 0], matrix, size, 3 * m)
        for q in range(where[members[m]], where[members[m] + 1]):
            p = at[q]
            if later[p] != members[m]:
                continue
            for k in range(n_members):
                if members[k] == earlier[p]:
                    put_shared(&shared[p, 0], matrix, size, 3 * m, 3 * k)
    for a in range(size):
        scale[a] = 1 / sqrt(matrix[a * size + a]) if matrix[a * size + a] > 0 else 0
        if a < 3 and scale[a] == 0:
            return
    for a in range(size):
        for b in range(size):
            matrix[a * size + b] *= scale[a] * scale[b]
        matrix[a * size + a] = 1 + 1e-9
    schur_of_first(matrix, size)
    if not invert_first(matrix, size, out):
        return
    out[0], out[1], out[2] = out[0] * scale[0] * scale[0], out[1] * scale[0] * scale[1], out[2] * scale[0] * scale[2]
    out[3], out[4], out[5] = out[3] * scale[1] * scale[1], out[4] * scale[1] * scale[2], out[5] * scale[2] * scale[2]


cdef inline void put_own(const double* a, double* matrix, int size, int at) noexcept nogil:
    cdef double* m = matrix + at * size + at
    m[0], m[1], m[2] = a[0], a[1], a[2]
    m[size], m[size + 1], m[size + 2] = a[1], a[3], a[4]
    m[2 * size], m[2 * size + 1], m[2 * size + 2] = a[2], a[4], a[5]


cdef inline void put_shared(const double* b, double* matrix, int size, int row, int column) noexcept nogil:
    cdef int k, l
    for k in range(3):
        for l in range(3):
            matrix[(row + k) * size + column + l] = b[3 * k + l]
            matrix[(column + l) * size + row + k] = b[3 * k + l]


cdef inline void schur_of_first(double* m, int size) noexcept nogil:
    """Eliminate all parameters but the first three, from the last one up."""
    cdef int k, a, b
    cdef double factor
    for k in range(size - 1, 2, -1):
        if not m[k * size + k] > 1e-9:
            continue
        for a in range(k):
            factor = m[a * size + k] / m[k * size + k]
            for b in range(k):
                m[a * size + b] -= factor * m[k * size + b]


cdef inline bint invert_first(const double* m, int size, double* out) noexcept nogil:
    cdef double[6] a
    a[0], a[1], a[2] = m[0], m[1], m[2]
    a[3], a[4], a[5] = m[size + 1], m[size + 2], m[2 * size + 2]
    return invert3(a, out)


def quality(
    Psf psf,
    images,
    const double[::1] noise,
    const double[:, ::1] stars,
    const int32_t[:, ::1] middle,
    double radius,
    double hwhm,
):
    """chi and sharp of DAOPHOT (Stetson 1987, 2003) from the residuals within `radius` (px) of each star.

    chi is 1.2533 times the mean of the weighted absolute residuals, corrected for three fitted parameters; sharp is
    1.4427 HWHM^2 times the amplitude of the change of a Gaussian with its width in the residuals, relative to the
    star's peak: about twice the excess of the source's variance over that of the PSF, px^2.

    Returns
    -------
    ndarray, shape (n, 3), float64
        chi, sharp, and the star's model in its middle pixel over the model of all stars there.
    """
    cdef const float[:, ::1] data = images[0], model = images[1], variance = images[2]
    cdef Py_ssize_t n = stars.shape[0], i
    cdef int h = psf.half[0], side = 2 * h + 1, k, used
    cdef double[:, ::1] out = np.full((n, 3), np.nan)
    cdef float[::1] buffers = np.empty(5 * MAX_SIDE * MAX_SIDE, np.float32)
    cdef float* v = &buffers[0]
    cdef float* r = v + MAX_SIDE * MAX_SIDE
    cdef float* w = r + MAX_SIDE * MAX_SIDE
    cdef double dx, dy, r2, rho, change, top, bottom, absolute, weights, root
    with nogil:
        for i in range(n):
            psf.planes(
                stars[i, 0], stars[i, 1], middle[i, 0], middle[i, 1], 0, v, w, w + MAX_SIDE * MAX_SIDE
            )
            window(data, model, variance, middle[i, 0], middle[i, 1], h, &noise[0], r, w)
            top = bottom = absolute = weights = 0
            used = 0
            for k in range(side * side):
                dx, dy = k % side - h - (stars[i, 0] - middle[i, 0]), k // side - h - (stars[i, 1] - middle[i, 1])
                r2 = dx * dx + dy * dy
                if r2 > radius * radius or not w[k] > 0:
                    continue
                root = sqrt(w[k])
                used += 1
                absolute += fabs(r[k]) * root
                weights += 1
                rho = r2 / (hwhm * hwhm)
                if rho <= 6:
                    rho = 0.6931472 * rho
                    change = exp(-rho) * (rho - 1)
                    top += change * r[k] * w[k]
                    bottom += change * change * w[k]
            k = (side * side) // 2
            if used > 3 and bottom > 0:
                out[i, 0] = 1.2533 * absolute / weights * sqrt(used / (used - 3.0))
                out[i, 1] = 1.4427 * hwhm * hwhm * top / (bottom * stars[i, 2] * v[k])
            if 0 <= middle[i, 0] < data.shape[1] and 0 <= middle[i, 1] < data.shape[0]:
                out[i, 2] = stars[i, 2] * v[k] / max(model[middle[i, 1], middle[i, 0]], 1e-30)
    return np.asarray(out)
