"""An image read between its pixels: six by six taps at positions that run smoothly over the output."""

import numpy as np

from libc.stdint cimport uint8_t

cdef extern from *:
    """
    typedef float eight __attribute__((vector_size(32), aligned(4)));
    typedef float four __attribute__((vector_size(16)));

    #define NEAR 1 /* a hole lies within the taps of a position in this pixel */
    #define HOLE 2

    /* Cubic through four equidistant values, as a polynomial of t = 0 at b and 1 at c (Lagrange). */
    static inline void cubic(double a, double b, double c, double d, double *p)
    {
        p[0] = b;
        p[1] = c - a / 3 - b / 2 - d / 6;
        p[2] = (a + c) / 2 - b;
        p[3] = (d - a) / 6 + (b - c) / 2;
    }
    /* Node values of one output row: cubic across the rows of nodes; t from 0 to 1 between the second and third. */
    static inline void node_row(const double *nodes, long width, double t, double *restrict line)
    {
        const double *a = nodes, *b = a + width, *c = b + width, *d = c + width;
        double p[4];
        for (long k = 0; k < width; k++) {
            cubic(a[k], b[k], c[k], d[k], p);
            line[k] = p[0] + t * (p[1] + t * (p[2] + t * p[3]));
        }
    }
    /* Values along an output row, from those at its nodes; the first node lies one step before the row. */
    static inline void along_row(const double *line, long step, long n, double *restrict out)
    {
        double p[4];
        for (long start = 0, k = 0; start < n; start += step, k++) {
            cubic(line[k], line[k + 1], line[k + 2], line[k + 3], p);
            const double p0 = p[0], p1 = p[1] / step, p2 = p[2] / ((double)step * step),
                         p3 = p[3] / ((double)step * step * step);
            const long stop = start + step < n ? step : n - start;
            double *restrict to = out + start;
            for (int i = 0; i < (int)stop; i++) { /* int: converted to double by vector instructions */
                const double t = (double)i;
                to[i] = p0 + t * (p1 + t * (p2 + t * p3));
            }
        }
    }
    /* First tap and number of the phase along one axis. NaN and what is far outside become a tap far outside: the
       conversion gives the least or the greatest integer, or 0, depending on the machine. */
    static inline void taps_of(const double *restrict at, long n, double n_phases, int *restrict first, int *restrict phase)
    {
        const int last = (int)n_phases;
        for (int i = 0; i < (int)n; i++) {
            const int whole = (int)(at[i] + 8.0) - 8;
            int k = (int)((at[i] - (double)whole) * n_phases + 0.5);
            k = k > 0 ? k : 0;
            phase[i] = k < last ? k : last;
            first[i] = whole - 2;
        }
    }
    static inline float sum_of(eight v)
    {
        four low, high;
        __builtin_memcpy(&low, &v, sizeof low);
        __builtin_memcpy(&high, (const char *)&v + sizeof low, sizeof high);
        low += high;
        return (low[0] + low[2]) + (low[1] + low[3]);
    }
    /* With missing pixels (NaN or outside): without them, weights made up to one; NaN where too much is missing. */
    static float careful(const float *image, long n_y, long n_x, long x, long y, const float *wx, const float *wy,
                         float most_missing)
    {
        float sum = 0, weight = 0, missing = 0, total = 0;
        for (long j = 0; j < 6; j++)
            for (long i = 0; i < 6; i++) {
                const long row = y + j, column = x + i;
                const float w = wx[i] * wy[j];
                const float v = row >= 0 && row < n_y && column >= 0 && column < n_x ? image[row * n_x + column]
                                                                                    : __builtin_nanf("");
                total += __builtin_fabsf(w);
                if (v == v) { sum += w * v; weight += w; }
                else missing += __builtin_fabsf(w);
            }
        return missing <= most_missing * total && weight > 0.1f ? sum / weight : __builtin_nanf("");
    }
    /* The value, or NaN where holes have too large a share of the weights. */
    static float checked(const unsigned char *holes, long n_x, const float *wx, const float *wy, float most_missing,
                         float value)
    {
        float missing = 0, total = 0;
        for (long j = 0; j < 6; j++)
            for (long i = 0; i < 6; i++) {
                const float w = __builtin_fabsf(wx[i] * wy[j]);
                total += w;
                if (holes[j * n_x + i] == HOLE) missing += w;
            }
        return missing <= most_missing * total ? value : __builtin_nanf("");
    }
    static void read_row(const float *image, const unsigned char *holes, long n_y, long n_x, const int *x, const int *phase_x, const int *y,
                         const int *phase_y, const float *table, float most_missing, long n, float *restrict out)
    {
        for (long i = 0; i < n; i++) {
            const float *wx = table + 8 * (long)phase_x[i], *wy = table + 8 * (long)phase_y[i];
            float value = __builtin_nanf("");
            if (x[i] >= 0 && x[i] <= n_x - 8 && y[i] >= 0 && y[i] <= n_y - 6) {
                const float *p = image + (long)y[i] * n_x + x[i];
                eight sum = wy[0] * *(const eight *)p;
                for (long j = 1; j < 6; j++) sum += wy[j] * *(const eight *)(p + j * n_x);
                value = sum_of(sum * *(const eight *)wx);
            }
            if (holes) {
                const long at = (long)y[i] * n_x + x[i];
                if (value == value && holes[at + 2 * n_x + 2]) value = checked(holes + at, n_x, wx, wy, most_missing, value);
            } else if (!(value - value == 0.0f))
                value = careful(image, n_y, n_x, x[i], y[i], wx, wy, most_missing);
            out[i] = value;
        }
    }
    static inline void scale_row(const double *restrict factor, long n, float *restrict out)
    {
        for (long i = 0; i < n; i++) out[i] *= (float)factor[i];
    }
    """
    void node_row(const double* nodes, long width, double t, double* line) noexcept nogil
    void along_row(const double* line, long step, long n, double* out) noexcept nogil
    void taps_of(const double* at, long n, double n_phases, int* first, int* phase) noexcept nogil
    const uint8_t NEAR
    const uint8_t HOLE
    void read_row(
        const float* image, const uint8_t* holes, long n_y, long n_x, const int* x, const int* phase_x, const int* y, const int* phase_y,
        const float* table, float most_missing, long n, float* out,
    ) noexcept nogil
    void scale_row(const double* factor, long n, float* out) noexcept nogil


def read_between(
    const float[:, ::1] image, const double[:, :, ::1] nodes, long step, const float[:, ::1] table, float most_missing,
    long first_row, float[:, ::1] out, const uint8_t[:, ::1] holes=None,
):
    """Fill an output band with an image read at smoothly varying positions.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        NaN where a pixel is missing; so is all that lies outside.
    nodes : ndarray, shape (3, n_nodes_y, n_nodes_x), float64
        x and y in the image (0-based px) and factor of the value, at output pixels (i - 1) step, i = 0, 1, ...;
        between them a cubic through four.
    step : int
        Output pixels between nodes.
    table : ndarray, shape (n_phases + 1, 8), float32
        Weights of the taps at -2, -1, 0, 1, 2, 3 from the pixel before a position, and two zeros; the position's phase
        runs from 0 to 1.
    most_missing : float
        Share of the absolute weights on missing pixels up to which the others take their place.
    first_row : int
        Output row of ``out[0]``.
    out : ndarray, shape (n_rows, n_columns), float32
        Filled.
    holes : ndarray, shape (ny, nx), uint8, optional
        From `mark_holes`: pixels that are missing though the image, coefficients of a spline, is finite. Nothing is
        replaced then; where they have a larger share, and where a tap lies outside, the result is NaN.
    """
    cdef long n = out.shape[1], width = nodes.shape[2], row, node, k
    cdef double n_phases = table.shape[0] - 1
    cdef double[:, ::1] line = np.empty((3, width)), at = np.empty((3, n))
    cdef const uint8_t* missing = NULL
    cdef int[:, ::1] taps = np.empty((4, n), np.int32)
    if n == 0 or image.shape[0] == 0 or image.shape[1] == 0:
        return
    if holes is not None:
        missing = &holes[0, 0]
    with nogil:
        for row in range(out.shape[0]):
            node = (first_row + row) // step
            for k in range(3):
                node_row(&nodes[k, node, 0], width, (first_row + row - node * step) / <double>step, &line[k, 0])
                along_row(&line[k, 0], step, n, &at[k, 0])
            taps_of(&at[0, 0], n, n_phases, &taps[0, 0], &taps[1, 0])
            taps_of(&at[1, 0], n, n_phases, &taps[2, 0], &taps[3, 0])
            read_row(
                &image[0, 0], missing, image.shape[0], image.shape[1], &taps[0, 0], &taps[1, 0], &taps[2, 0], &taps[3, 0],
                &table[0, 0], most_missing, n, &out[row, 0],
            )
            scale_row(&at[2, 0], n, &out[row, 0])


def mark_holes(const float[:, ::1] image):
    """Which pixels are missing, and which are so near to one that a position in them has it among its taps.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        NaN where missing.

    Returns
    -------
    ndarray, shape (ny, nx), uint8
        0, 1 (near) or 2 (missing).
    """
    cdef long n_y = image.shape[0], n_x = image.shape[1], y, x, j, i
    out_array = np.zeros((n_y, n_x), np.uint8)
    cdef uint8_t[:, ::1] out = out_array
    with nogil:
        for y in range(n_y):
            for x in range(n_x):
                if image[y, x] != image[y, x]:
                    for j in range(max(y - 3, 0), min(y + 3, n_y)):
                        for i in range(max(x - 3, 0), min(x + 3, n_x)):
                            if out[j, i] == 0:
                                out[j, i] = NEAR
                    out[y, x] = HOLE
    return out_array
