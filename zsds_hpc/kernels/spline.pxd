"""Evaluation of a point-spread function given as a cubic B-spline whose coefficients vary over the image.

Coefficients are stored by phase along x: element (term, row, column % m, column // m) of an array of shape
(n_terms, n_nodes, m, ceil(n_nodes / m)), with m nodes per pixel and the centre of the star at node (n_nodes - 1) / 2,
so that the inner loops run over consecutive pixels.
"""

from libc.math cimport floor, pow

cdef enum:
    MAX_TERMS = 15      # polynomials of degree 4
    MAX_SIDE = 129      # of a window, px
    MAX_NODES = 160     # of a spline along an axis, rounded up to whole pixels

cdef extern from *:
    """
    /* out = sum of n_terms rows, each times its factor */
    static __attribute__((noinline, unused)) void combine_terms(
        const float *restrict c, const float *restrict factor, int n_terms, long n, float *restrict out)
    {
        for (long i = 0; i < n; i++) out[i] = factor[0] * c[i];
        for (long k = 1; k < n_terms; k++) {
            const float f = factor[k], *restrict row = c + k * n;
            for (long i = 0; i < n; i++) out[i] += f * row[i];
        }
    }
    /* Four rows of nodes into a row of pixels: weights b give the value, weights d the slope. */
    static __attribute__((noinline, unused)) void join_rows(
        const float *restrict c, long stride, const float *restrict b, const float *restrict d, long n,
        float *restrict value, float *restrict slope)
    {
        const float *restrict c1 = c + stride, *restrict c2 = c1 + stride, *restrict c3 = c2 + stride;
        for (long i = 0; i < n; i++) {
            value[i] = (b[0] * c[i] + b[3] * c3[i]) + (b[1] * c1[i] + b[2] * c2[i]);
            slope[i] = (d[0] * c[i] + d[3] * c3[i]) + (d[1] * c1[i] + d[2] * c2[i]);
        }
    }
    /* Four phases along x into pixels: value, slope by x and, from the rows' slopes, slope by y. */
    static __attribute__((noinline, unused)) void join_columns(
        const float *restrict row, const float *restrict row_slope, const int *restrict at,
        const float *restrict b, const float *restrict d, long n,
        float *restrict value, float *restrict slope_x, float *restrict slope_y)
    {
        const float *restrict r0 = row + at[0], *restrict r1 = row + at[1];
        const float *restrict r2 = row + at[2], *restrict r3 = row + at[3];
        const float *restrict s0 = row_slope + at[0], *restrict s1 = row_slope + at[1];
        const float *restrict s2 = row_slope + at[2], *restrict s3 = row_slope + at[3];
        for (long i = 0; i < n; i++) {
            value[i] = (b[0] * r0[i] + b[3] * r3[i]) + (b[1] * r1[i] + b[2] * r2[i]);
            slope_x[i] = (d[0] * r0[i] + d[3] * r3[i]) + (d[1] * r1[i] + d[2] * r2[i]);
            slope_y[i] = (b[0] * s0[i] + b[3] * s3[i]) + (b[1] * s1[i] + b[2] * s2[i]);
        }
    }
    """
    void combine_terms(const float* c, const float* factor, int n_terms, int n, float* out) noexcept nogil
    void join_rows(
        const float* c, int stride, const float* b, const float* d, int n, float* value, float* slope
    ) noexcept nogil
    void join_columns(
        const float* row, const float* row_slope, const int* at, const float* b, const float* d, int n,
        float* value, float* slope_x, float* slope_y,
    ) noexcept nogil


cdef inline int polynomial(double u, double v, int degree, float* out) noexcept nogil:
    """Monomials u^i v^j with i + j <= degree, i running fastest (the order of PSFEx)."""
    cdef int i, j, n = 0
    cdef double pu, pv = 1
    for j in range(degree + 1):
        pu = pv
        for i in range(degree + 1 - j):
            out[n] = <float>pu
            n += 1
            pu = pu * u
        pv = pv * v
    return n


cdef inline void taps(double t, double scale, float* b, float* d) noexcept nogil:
    """Cubic B-spline weights of the four nodes about a point `t` in [0, 1) after the second; `scale` times slopes."""
    cdef double s = 1 - t
    b[0], b[3] = <float>(s * s * s / 6), <float>(t * t * t / 6)
    b[1], b[2] = <float>(2.0 / 3.0 - t * t * (2 - t) / 2), <float>(2.0 / 3.0 - s * s * (2 - s) / 2)
    d[0], d[3] = <float>(-scale * s * s / 2), <float>(scale * t * t / 2)
    d[1], d[2] = <float>(-scale * t * (2 - 1.5 * t)), <float>(scale * s * (2 - 1.5 * s))


cdef inline int covered_half(int n_nodes, int m) noexcept nogil:
    """Half side of the largest window that a spline covers for a star within a pixel of the middle."""
    return ((n_nodes - 1) // 2 - 2) // m - 1


cdef inline void star_planes(
    const float* coefficients, const int* layout, const double* wing, const float* terms, double px, double py,
    int half, float* work, float* value, float* slope_x, float* slope_y,
) noexcept nogil:
    """Flux per pixel of a star of unit flux, and its derivatives by the star's position, on a square window.

    `layout` holds the shape of the coefficients. The star is at (px, py) from the centre of the window's middle
    pixel, each within a pixel of it. `work` holds MAX_NODES * (MAX_NODES + 2) values. Beyond the part that the
    spline covers the profile is wing[0] * r^-wing[1].
    """
    cdef int n_nodes = layout[1], m = layout[2], n_q = layout[3], stride = m * n_q
    cdef int inner = min(half, covered_half(n_nodes, m)), outer = 2 * half + 1, side = 2 * inner + 1
    cdef int k, t, first, corner
    cdef double at_x = (n_nodes - 1) // 2 - m * px, at_y = (n_nodes - 1) // 2 - m * py
    cdef float[4] bx
    cdef float[4] dx
    cdef float[4] by
    cdef float[4] dy
    cdef int[4] at
    cdef float* row = work + MAX_NODES * MAX_NODES
    cdef float* row_slope = row + MAX_NODES
    taps(at_x - floor(at_x), -m, bx, dx)
    taps(at_y - floor(at_y), -m, by, dy)
    first = <int>floor(at_x) - 1 - m * inner
    for t in range(4):
        at[t] = ((first + t) % m) * n_q + (first + t) // m
    first = <int>floor(at_y) - 1 - m * inner
    if half > inner:
        wings(wing, px, py, half, value, slope_x, slope_y)
    combine_terms(coefficients, terms, layout[0], n_nodes * stride, work)
    for k in range(side):
        join_rows(work + (first + m * k) * stride, stride, by, dy, stride, row, row_slope)
        corner = (k + half - inner) * outer + half - inner
        join_columns(row, row_slope, at, bx, dx, side, value + corner, slope_x + corner, slope_y + corner)


cdef inline void wings(
    const double* wing, double px, double py, int half, float* value, float* slope_x, float* slope_y
) noexcept nogil:
    cdef int side = 2 * half + 1, i, k
    cdef double x, y, r2, f
    for k in range(side):
        y = k - half - py
        for i in range(side):
            x = i - half - px
            r2 = max(x * x + y * y, 1.0)
            f = wing[0] * pow(r2, -0.5 * wing[1])
            value[k * side + i] = <float>f
            slope_x[k * side + i] = <float>(wing[1] * f * x / r2)
            slope_y[k * side + i] = <float>(wing[1] * f * y / r2)
