"""Loops of the source detection: matched filter, pixels above threshold, segmentation, sums over segments."""

import numpy as np

from libc.math cimport isfinite
from libc.stdint cimport int16_t, int32_t, uint32_t, uint64_t
from libc.string cimport memset


def matched_filter(
    const float[:, ::1] pix,
    const int16_t[:, ::1] mask,
    int bad_bits,
    const float[::1] taps,
    float[:, ::1] out,
):
    """Correlate with a separable, symmetric kernel; bad and non-finite pixels and the outside count as 0.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), int16
    bad_bits : int
    taps : ndarray, shape (2 half + 1,), float32
        One-dimensional kernel, used along both axes.
    out : ndarray, shape (ny, nx), float32
        Receives the filtered image.
    """
    cdef Py_ssize_t ny = pix.shape[0], nx = pix.shape[1], half = taps.shape[0] // 2
    cdef Py_ssize_t n_taps = taps.shape[0], y, x, k
    cdef float[::1] padded = np.zeros(nx + 2 * half, np.float32)
    cdef float[:, ::1] ring = np.zeros((n_taps, nx), np.float32)
    with nogil:
        for y in range(ny + half):
            if y < ny:
                clean_row(&pix[y, 0], &mask[y, 0], bad_bits, nx, &padded[half])
                filter_row(&padded[0], &taps[0], n_taps, nx, &ring[y % n_taps, 0])
            else:
                memset(&ring[y % n_taps, 0], 0, nx * sizeof(float))
            if y >= half:
                memset(&out[y - half, 0], 0, nx * sizeof(float))
                for k in range(n_taps):
                    if y - k >= 0:
                        add_scaled(&ring[(y - k) % n_taps, 0], taps[k], nx, &out[y - half, 0])


cdef inline void clean_row(
    const float* row, const int16_t* mask, int bits, Py_ssize_t n, float* out
) noexcept nogil:
    cdef Py_ssize_t x
    for x in range(n):
        out[x] = 0 if (mask[x] & bits) or not isfinite(row[x]) else row[x]


cdef inline void filter_row(
    const float* row, const float* taps, Py_ssize_t n_taps, Py_ssize_t n, float* out
) noexcept nogil:
    cdef Py_ssize_t k
    memset(out, 0, n * sizeof(float))
    for k in range(n_taps):
        add_scaled(row + k, taps[k], n, out)


cdef inline void add_scaled(const float* row, float factor, Py_ssize_t n, float* out) noexcept nogil:
    cdef Py_ssize_t x
    for x in range(n):
        out[x] = out[x] + factor * row[x]


def pixels_above(
    float[:, ::1] filtered,
    const float[:, ::1] rms,
    const int16_t[:, ::1] mask,
    int saturated_bit,
    float n_sigma,
):
    """Pixels above `n_sigma` times the local noise, brightest first, ties by position.

    Saturated pixels are set in `filtered` to one and the same highest value, so that a saturated core is
    one peak.

    Returns
    -------
    ndarray, shape (n,), int32
        Flat pixel indices.
    """
    cdef Py_ssize_t ny = filtered.shape[0], nx = filtered.shape[1], y, x, n = 0, i = 0
    cdef float highest = np.max(filtered) if filtered.size else 0
    with nogil:
        for y in range(ny):
            for x in range(nx):
                if mask[y, x] & saturated_bit:
                    filtered[y, x] = highest
                n += filtered[y, x] > n_sigma * rms[y, x] and filtered[y, x] > 0
    cdef uint64_t[::1] keys = np.empty(n, np.uint64)
    cdef float value
    cdef uint64_t last = 0xFFFFFFFF
    with nogil:
        for y in range(ny):
            for x in range(nx):
                if filtered[y, x] > n_sigma * rms[y, x] and filtered[y, x] > 0:
                    value = filtered[y, x]
                    keys[i] = (<uint64_t>((<uint32_t*>&value)[0]) << 32) | (last - <uint64_t>(y * nx + x))
                    i += 1
    ordered = np.sort(np.asarray(keys))[::-1]
    return (0xFFFFFFFF - (ordered & 0xFFFFFFFF)).astype(np.int32)


def segment(
    const int32_t[::1] order,
    const float[:, ::1] filtered,
    const float[:, ::1] rms,
    const float[::1] limits,
    int32_t[:, ::1] labels,
):
    """Cut the pixels above threshold into segments, one per significant peak.

    Pixels are taken from the brightest down. A pixel without labelled neighbour starts a peak; others join
    the brightest neighbour's segment. Where two segments meet, the lower peak is swallowed by the higher
    unless it rises above the meeting point by `limits[1]` times the noise plus `limits[2]` times the value
    there, and itself reaches `limits[0]` times the noise.

    Parameters
    ----------
    order : ndarray, shape (n,), int32
        Flat indices from `pixels_above`.
    filtered, rms : ndarray, shape (ny, nx), float32
    limits : ndarray, shape (3,), float32
        Significance of a peak, significance of its rise, relative rise.
    labels : ndarray, shape (ny, nx), int32
        Zero on entry; receives 1 + the number of the surviving segment, 0 for no source.

    Returns
    -------
    peaks : ndarray, shape (m,), int32
        Flat index of the peak of each surviving segment, brightest first.
    blended : ndarray, shape (m,), uint8
        1 where the segment touches another one.
    """
    cdef Py_ssize_t n = order.shape[0], i, m = 0
    cdef int32_t[::1] parent = np.empty(n + 1, np.int32)
    cdef int32_t[::1] peak = np.empty(n + 1, np.int32)
    cdef unsigned char[::1] touched = np.zeros(n + 1, np.uint8)
    with nogil:
        for i in range(n):
            m = place_pixel(order[i], filtered, rms, limits, labels, parent, peak, touched, m)
    return relabel(order, filtered, rms, limits[0], labels, parent, peak, touched, m)


cdef Py_ssize_t place_pixel(
    int32_t index, const float[:, ::1] filtered, const float[:, ::1] rms, const float[::1] limits,
    int32_t[:, ::1] labels, int32_t[::1] parent, int32_t[::1] peak, unsigned char[::1] touched, Py_ssize_t m,
) noexcept nogil:
    cdef Py_ssize_t ny = labels.shape[0], nx = labels.shape[1], y = index // nx, x = index % nx, v, u
    cdef int32_t own = 0, best = 0, root
    cdef float highest = -1
    for v in range(max(y - 1, 0), min(y + 2, ny)):
        for u in range(max(x - 1, 0), min(x + 2, nx)):
            if labels[v, u] > 0:
                root = find(parent, labels[v, u])
                if filtered[v, u] > highest:
                    highest, own = filtered[v, u], root
                if best == 0 or root < best:
                    best = root
    if own == 0:
        m += 1
        labels[y, x], parent[m], peak[m] = m, m, index
        return m
    for v in range(max(y - 1, 0), min(y + 2, ny)):
        for u in range(max(x - 1, 0), min(x + 2, nx)):
            if labels[v, u] > 0:
                root = find(parent, labels[v, u])
                if root != best:
                    meet(root, best, filtered[y, x], filtered, rms, limits, parent, peak, touched)
    labels[y, x] = find(parent, own)
    return m


cdef inline void meet(
    int32_t lower, int32_t higher, float saddle, const float[:, ::1] filtered, const float[:, ::1] rms,
    const float[::1] limits, int32_t[::1] parent, int32_t[::1] peak, unsigned char[::1] touched,
) noexcept nogil:
    cdef Py_ssize_t nx = filtered.shape[1]
    cdef Py_ssize_t y = peak[lower] // nx, x = peak[lower] % nx
    cdef float top = filtered[y, x], noise = rms[y, x]
    if top >= limits[0] * noise and top - saddle >= limits[1] * noise + limits[2] * saddle:
        touched[lower] = 1
        touched[higher] = 1
    else:
        parent[lower] = higher


cdef inline int32_t find(int32_t[::1] parent, int32_t label) noexcept nogil:
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


cdef relabel(
    const int32_t[::1] order, const float[:, ::1] filtered, const float[:, ::1] rms, float n_sigma,
    int32_t[:, ::1] labels, int32_t[::1] parent, int32_t[::1] peak, unsigned char[::1] touched, Py_ssize_t m,
):
    """Number the surviving segments without gaps and write the numbers into `labels`."""
    cdef Py_ssize_t nx = labels.shape[1], i, x, y, kept = 0
    cdef int32_t[::1] number = np.zeros(m + 1, np.int32)
    for i in range(1, m + 1):
        y, x = peak[i] // nx, peak[i] % nx
        if parent[i] == i and filtered[y, x] >= n_sigma * rms[y, x]:
            kept += 1
            number[i] = kept
            peak[kept], touched[kept] = peak[i], touched[i]
    with nogil:
        for i in range(order.shape[0]):
            y, x = order[i] // nx, order[i] % nx
            labels[y, x] = number[find(parent, labels[y, x])]
    return np.array(peak[1:kept + 1]), np.array(touched[1:kept + 1])


def segment_sums(
    const int32_t[::1] order,
    const float[:, ::1] pix,
    const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels,
    const int32_t[::1] peaks,
    double[:, ::1] sums,
    int32_t[::1] n_pix,
    int32_t[::1] bits,
    float[::1] highest,
):
    """Sums over each segment, with offsets taken from its peak.

    Parameters
    ----------
    order, labels, peaks : ndarray
        As from `pixels_above` and `segment`.
    pix, mask : ndarray, shape (ny, nx)
    sums : ndarray, shape (m, 6), float64
        Zero on entry; receives the sums of f, f dx, f dy, f dx^2, f dy^2, f dx dy over pixels with f > 0.
    n_pix, bits : ndarray, shape (m,), int32
        Zero on entry; receive the number of pixels and the OR of the mask.
    highest : ndarray, shape (m,), float32
        Receives the highest pixel value; -inf on entry.
    """
    cdef Py_ssize_t nx = pix.shape[1], i, s, y, x
    cdef double f, dx, dy
    with nogil:
        for i in range(order.shape[0]):
            y, x = order[i] // nx, order[i] % nx
            s = labels[y, x] - 1
            if s < 0:
                continue
            n_pix[s] += 1
            bits[s] |= mask[y, x]
            f = pix[y, x]
            if not f > 0:
                continue
            highest[s] = max(highest[s], <float>f)
            dx, dy = x - peaks[s] % nx, y - peaks[s] // nx
            sums[s, 0] += f
            sums[s, 1] += f * dx
            sums[s, 2] += f * dy
            sums[s, 3] += f * dx * dx
            sums[s, 4] += f * dy * dy
            sums[s, 5] += f * dx * dy
