"""Full passes of the background estimates: histograms of meshes, clipped sums of residuals in meshes."""

from libc.stdint cimport int16_t, int32_t

cdef extern from *:
    """
    /* Number, sum and sum of squares of the residuals about `center`, in units of their noise, between two cuts. */
    static __attribute__((noinline)) void clipped_row(
        const float *restrict data, const float *restrict model, const float *restrict variance, long n, float top,
        float center, float scale, float low, float high, float *restrict out)
    {
        float s[3][8] = {{0}}, z[256], keep[256];
        for (long start = 0; start < n; start += 256) {
            const long m = n - start < 256 ? n - start : 256;
            const float *restrict d = data + start, *restrict f = model + start, *restrict v = variance + start;
            for (long i = 0; i < m; i++) {
                z[i] = (d[i] - f[i] - center) * scale / __builtin_sqrtf(v[i]);
                keep[i] = (float)((z[i] > low) & (z[i] < high) & (f[i] < top) & (v[i] < 1e30f));
            }
            for (long i = m; i % 8; i++) z[i] = keep[i] = 0;
            for (long i = 0; i < m; i += 8)
                for (long l = 0; l < 8; l++) {
                    const float kz = keep[i + l] * z[i + l];
                    s[0][l] += keep[i + l];
                    s[1][l] += kz;
                    s[2][l] += kz * z[i + l];
                }
        }
        for (long k = 0; k < 3; k++)
            for (long l = 0; l < 8; l++) out[k] += s[k][l];
    }
    """
    void clipped_row(
        const float* data, const float* model, const float* variance, long n, float top, float center, float scale,
        float low, float high, float* out,
    ) noexcept nogil


def mesh_histograms(
    const float[:, ::1] pix,
    const int16_t[:, ::1] mask,
    int bad_bits,
    const int32_t[::1] y_edges,
    const int32_t[::1] x_edges,
    const float[:, ::1] low,
    const float[:, ::1] bins_per_dn,
    int32_t[:, :, ::1] counts,
):
    """Count good pixels of each mesh in equal bins from `low` up; values outside the range are left out.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        DN; NaN is left out.
    mask : ndarray, shape (ny, nx), int16
    bad_bits : int
        A pixel with any of these mask bits is left out.
    y_edges, x_edges : ndarray, int32
        Mesh boundaries, my + 1 and mx + 1 values.
    low, bins_per_dn : ndarray, shape (my, mx), float32
        Start of the first bin in DN, and the inverse of the bin width.
    counts : ndarray, shape (my, mx, n_bins), int32
        Must be zero on entry; receives the counts.
    """
    cdef Py_ssize_t j, i, y, x
    cdef int n_bins = counts.shape[2]
    cdef float zero, scale, value
    cdef int32_t* row
    with nogil:
        for j in range(counts.shape[0]):
            for y in range(y_edges[j], y_edges[j + 1]):
                for i in range(counts.shape[1]):
                    zero, scale, row = low[j, i], bins_per_dn[j, i], &counts[j, i, 0]
                    for x in range(x_edges[i], x_edges[i + 1]):
                        value = (pix[y, x] - zero) * scale
                        if value >= 0 and value < n_bins and not mask[y, x] & bad_bits:
                            row[<int>value] += 1


def clipped_sums(
    images,
    const int32_t[::1] y_edges,
    const int32_t[::1] x_edges,
    const float[:, ::1] center,
    const double[::1] limits,
    int every,
    double[:, :, ::1] sums,
):
    """Number, sum and sum of squares, in each mesh, of residuals in units of their noise between two cuts.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx), float32
        Data, model, variance (infinite where unusable).
    y_edges, x_edges : ndarray, int32
        Mesh boundaries.
    center : ndarray, shape (my, mx), float32
        The residual is data - model - center, DN.
    limits : ndarray, shape (4,), float64
        Model from which on a pixel is left out, factor of the noise, lower and upper cut.
    every : int
        Of so many rows one is looked at.
    sums : ndarray, shape (my, mx, 3), float64
        Zero on entry.
    """
    cdef const float[:, ::1] data = images[0], model = images[1], variance = images[2]
    cdef Py_ssize_t j, i, y, x, k
    cdef float[3] row
    with nogil:
        for j in range(center.shape[0]):
            y = y_edges[j]
            while y < y_edges[j + 1]:
                for i in range(center.shape[1]):
                    x = x_edges[i]
                    row[0] = row[1] = row[2] = 0
                    clipped_row(
                        &data[y, x], &model[y, x], &variance[y, x], x_edges[i + 1] - x, <float>limits[0], center[j, i],
                        <float>(1 / limits[1]), <float>limits[2], <float>limits[3], row,
                    )
                    for k in range(3):
                        sums[j, i, k] += row[k]
                y += every
