"""Histograms of the pixel values in each mesh of an image: the one full pass of the background estimate."""

from libc.stdint cimport int16_t, int32_t


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
