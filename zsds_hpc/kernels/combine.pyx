"""Per-pixel outlier rejection, trimmed mean and standard deviation of a stack, by a sorting network over blocks of pixels.

The floats are sorted as integers of the same order, so a comparator is one integer minimum and maximum over a
whole block, without a branch; excluded values become the greatest key and gather at the end.
"""

import numpy as np

from libc.stdint cimport int16_t, int32_t, uint32_t, uintptr_t
from libc.math cimport NAN, sqrt
from libc.string cimport memcpy

cdef enum:
    BLOCK = 128
    MAX_FRAMES = 256

cdef int32_t EXCLUDED = 0x7FFFFFFF


cdef void load_keys(const float* values, int32_t* keys, Py_ssize_t n) noexcept nogil:
    """Integer keys in the order of the floats; not-finite values become EXCLUDED."""
    cdef Py_ssize_t k
    cdef int32_t bits
    memcpy(keys, values, n * sizeof(float))
    for k in range(n):
        bits = keys[k]
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        keys[k] = EXCLUDED if (keys[k] & 0x7FFFFFFF) >= 0x7F800000 else bits


cdef void count_valid(const int32_t* keys, int32_t* n_valid) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(BLOCK):
        n_valid[k] += keys[k] != EXCLUDED


cdef void compare_exchange(int32_t* low, int32_t* high) noexcept nogil:
    cdef Py_ssize_t k
    cdef int32_t a, b
    for k in range(BLOCK):
        a = low[k]
        b = high[k]
        low[k] = a if a < b else b
        high[k] = b if a < b else a


cdef void keys_to_floats(int32_t* keys) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(BLOCK):
        keys[k] = keys[k] ^ ((keys[k] >> 31) & 0x7FFFFFFF)


cdef void add_row(const float* x, const float* origin, double* total, double* square) noexcept nogil:
    cdef Py_ssize_t k
    cdef double d
    for k in range(BLOCK):
        d = <double>x[k] - <double>origin[k]
        total[k] += d
        square[k] += d * d


cdef void add_kept(const float* x, const float* origin, int32_t i, const int32_t* first, const int32_t* end,
                   double* total, double* square) noexcept nogil:
    cdef Py_ssize_t k
    cdef double d
    for k in range(BLOCK):
        d = <double>x[k] - <double>origin[k] if (i >= first[k]) & (i < end[k]) else 0.0
        total[k] += d
        square[k] += d * d


cdef class Block:
    """Scratch of one block of pixels: keys of all frames, and the statistics."""

    cdef int32_t keys[MAX_FRAMES][BLOCK]
    cdef int32_t n_valid[BLOCK]
    cdef int32_t first[BLOCK]
    cdef int32_t end[BLOCK]
    cdef float origin[BLOCK]
    cdef double total[BLOCK]
    cdef double square[BLOCK]

    cdef void sort(self, const int32_t[:, ::1] pairs, Py_ssize_t n_frames) noexcept nogil:
        cdef Py_ssize_t p
        for p in range(pairs.shape[0]):
            compare_exchange(self.keys[pairs[p, 0]], self.keys[pairs[p, 1]])
        for p in range(n_frames):
            keys_to_floats(self.keys[p])

    cdef void load(self, const uintptr_t[::1] addresses, Py_ssize_t offset, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i, k
        for k in range(BLOCK):
            self.n_valid[k] = 0
        for i in range(addresses.shape[0]):
            load_keys(<const float*>addresses[i] + offset, self.keys[i], n)
            count_valid(self.keys[i], self.n_valid)

    cdef void choose(self, const float[::1] reject_width, const int32_t[::1] n_trim, int32_t n_frames) noexcept nogil:
        """First and end rank of what is averaged: gross outliers rejected, then both ends trimmed."""
        cdef Py_ssize_t k
        cdef bint ordinary = self.is_ordinary(reject_width[n_frames], n_frames)
        for k in range(BLOCK):
            self.first[k] = 0
            self.end[k] = self.n_valid[k]
        if not ordinary:
            for k in range(BLOCK):
                self.reject(reject_width, k)
        for k in range(BLOCK):
            self.n_valid[k] = self.end[k] - self.first[k]
            self.first[k] += n_trim[self.n_valid[k]]
            self.end[k] -= n_trim[self.n_valid[k]]

    cdef bint is_ordinary(self, float reject_width, int32_t n) noexcept nogil:
        """Whether all values of the block are valid and none is to be rejected: true of most blocks, and quick."""
        cdef Py_ssize_t k
        cdef int32_t n_odd = 0
        cdef float middle, width
        cdef const float* lowest = <float*>self.keys[0]
        cdef const float* highest = <float*>self.keys[n - 1]
        cdef const float* below = <float*>self.keys[(n - 1) // 2]
        cdef const float* above = <float*>self.keys[n // 2]
        cdef const float* low_quarter = <float*>self.keys[n // 4]
        cdef const float* high_quarter = <float*>self.keys[n - 1 - n // 4]
        for k in range(BLOCK):
            middle = <float>0.5 * (below[k] + above[k])
            width = reject_width * (high_quarter[k] - low_quarter[k])
            n_odd += (self.n_valid[k] != n) | (highest[k] - middle > width) | (middle - lowest[k] > width)
        return n_odd == 0

    cdef void reject(self, const float[::1] reject_width, Py_ssize_t k) noexcept nogil:
        cdef int32_t low = 0, high = self.n_valid[k], quarter = self.n_valid[k] // 4
        cdef float middle, width
        if high == 0:
            return
        middle = <float>0.5 * (self.value((high - 1) // 2, k) + self.value(high // 2, k))
        width = reject_width[high] * (self.value(high - 1 - quarter, k) - self.value(quarter, k))
        if width > 0:
            while self.value(high - 1, k) - middle > width:
                high -= 1
            while middle - self.value(low, k) > width:
                low += 1
        self.first[k] = low
        self.end[k] = high

    cdef inline float value(self, int32_t rank, Py_ssize_t k) noexcept nogil:
        return (<float*>self.keys[rank])[k]

    cdef void average(self, int32_t n_frames) noexcept nogil:
        """Sums about the lowest value that is averaged, in rank order, in float64."""
        cdef Py_ssize_t k
        cdef int32_t i, all_first = 0, all_end = n_frames
        for k in range(BLOCK):
            all_first = max(all_first, self.first[k])
            all_end = min(all_end, self.end[k])
            self.origin[k] = self.value(self.first[k], k) if self.n_valid[k] > 0 else 0.0
            self.total[k] = 0.0
            self.square[k] = 0.0
        for i in range(n_frames):
            if all_first <= i < all_end:
                add_row(<float*>self.keys[i], self.origin, self.total, self.square)
            else:
                add_kept(<float*>self.keys[i], self.origin, i, self.first, self.end, self.total, self.square)

    cdef void store(self, const float[::1] std_factor, float* mean, float* std, int16_t* n_used,
                    Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t k
        cdef int32_t n_kept
        cdef double var
        for k in range(n):
            n_kept = self.end[k] - self.first[k]
            mean[k] = <float>(self.origin[k] + self.total[k] / n_kept) if n_kept > 0 else <float>NAN
            var = max(self.square[k] - self.total[k] * self.total[k] / n_kept, 0.0) / (n_kept - 1)
            std[k] = <float>(sqrt(var) * std_factor[self.n_valid[k]]) if n_kept > 1 else <float>NAN
            n_used[k] = <int16_t>self.n_valid[k]


def combine_stack(list frames, const int32_t[:, ::1] pairs, const float[::1] reject_width,
                  const int32_t[::1] n_trim, const float[::1] std_factor):
    """Trimmed mean and standard deviation of each pixel of a stack.

    Parameters
    ----------
    frames : list of n ndarrays, shape (ny, nx), float32, C-contiguous
        n at most 256.
    pairs : ndarray, shape (n_pairs, 2), int32
        Comparators of a network that sorts n values.
    reject_width : ndarray, shape (n + 1,), float32
        Values farther from the median than this many times the range between the quarters of the sorted values
        (ranks m // 4 from either end) are rejected, for each number m of valid values.
    n_trim : ndarray, shape (n + 1,), int32
        Values dropped at each end, for each number of values left.
    std_factor : ndarray, shape (n + 1,), float32
        Factor on the standard deviation of what is kept, for each number of values left.

    Returns
    -------
    tuple of ndarray, shape (ny, nx)
        Mean (float32), standard deviation (float32), number of values left by the rejection (int16).
    """
    cdef Py_ssize_t n_frames = len(frames), n_pix = frames[0].size, b, start, n
    cdef uintptr_t[::1] addresses = np.array([f.ctypes.data for f in frames], dtype=np.uintp)
    mean = np.empty(frames[0].shape, np.float32)
    std = np.empty(frames[0].shape, np.float32)
    n_used = np.empty(frames[0].shape, np.int16)
    cdef float[::1] mean_out = mean.reshape(-1), std_out = std.reshape(-1)
    cdef int16_t[::1] n_out = n_used.reshape(-1)
    cdef Block block = Block()
    if n_frames > MAX_FRAMES:
        raise ValueError(f"{n_frames} frames: at most {MAX_FRAMES}")
    with nogil:
        for b in range((n_pix + BLOCK - 1) // BLOCK):
            start = b * BLOCK
            n = min(<Py_ssize_t>BLOCK, n_pix - start)
            block.load(addresses, start, n)
            block.sort(pairs, n_frames)
            block.choose(reject_width, n_trim, <int32_t>n_frames)
            block.average(<int32_t>n_frames)
            block.store(std_factor, &mean_out[start], &std_out[start], &n_out[start], n)
    return mean, std, n_used
