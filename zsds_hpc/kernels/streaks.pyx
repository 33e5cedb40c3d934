"""Search for streaks: a filtered, binned map, sums along the lines of its strips, and pictures of trails."""

import numpy as np

from libc.math cimport floor, rintf
from libc.stdint cimport int16_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stdint.h>
    /* Pixels in units of their noise, clipped; 0 where NaN or unusable (infinite sigma). */
    static inline void signal_row(
        const float *restrict pix, const float *restrict sigma, long n, float clip, float *restrict out)
    {
        for (long i = 0; i < n; i++) {
            const float s = pix[i] / sigma[i];
            const float low = s > clip ? clip : s;
            const float both = low < -clip ? -clip : low;
            out[i] = both == both ? both : 0.0f;
        }
    }
    static inline void add_scaled(const float *restrict a, float factor, long n, float *restrict out)
    {
        for (long i = 0; i < n; i++) out[i] += factor * a[i];
    }
    static inline void split_row(const float *restrict a, long n, float *restrict even, float *restrict odd)
    {
        for (long i = 0; i < n; i++) { even[i] = a[2 * i]; odd[i] = a[2 * i + 1]; }
    }
    static inline void add_rows(const int16_t *restrict a, const int16_t *restrict b, long n, int16_t *restrict out)
    {
        for (long i = 0; i < n; i++) out[i] = a[i] + b[i];
    }
    /* Sums of 64 elements, and the largest. */
    static inline int add_top(const int16_t *restrict a, const int16_t *restrict b, int16_t *restrict out)
    {
        int16_t top = -32768;
        for (long i = 0; i < 64; i++) {
            const int16_t v = a[i] + b[i];
            out[i] = v;
            top = v > top ? v : top;
        }
        return top;
    }
    """
    void signal_row(const float* pix, const float* sigma, long n, float clip, float* out) noexcept nogil
    void add_scaled(const float* a, float factor, long n, float* out) noexcept nogil
    void split_row(const float* a, long n, float* even, float* odd) noexcept nogil
    void add_rows(const int16_t* a, const int16_t* b, long n, int16_t* out) noexcept nogil
    int add_top(const int16_t* a, const int16_t* b, int16_t* out) noexcept nogil

cdef enum:
    BLOCK = 64  # columns of which a strip gives no more than its best line
    N_BLOCKS = 13
    TILE = 832  # columns at a time, N_BLOCKS of BLOCK, so that the sums of a strip stay in the cache
    LARGEST = 32000  # of a sum: 16 bits are enough, and exact


def filter_and_bin(
    const float[:, ::1] pix, const float[:, ::1] sigma, const float[::1] taps, double clip
):
    """Signal to noise, filtered separably, summed in boxes of 2 x 2 px.

    Parameters
    ----------
    pix, sigma : ndarray, shape (ny, nx), float32
        Sigma is infinite where a pixel is unusable.
    taps : ndarray, shape (2 m,), float32
        Of the filter along either axis, the sum over two pixels included: tap k of bin j is for pixel 2 j + 1 + k - m.
    clip : float
        Largest signal to noise of a pixel.

    Returns
    -------
    ndarray, shape (ny // 2, nx // 2), float32
    """
    cdef long nx = pix.shape[1] // 2 * 2, n_y = pix.shape[0] // 2, n_x = nx // 2, ny = pix.shape[0]
    cdef long n_taps = taps.shape[0], m = n_taps // 2, y, j, k, row, last = -1, width = n_x + n_taps
    cdef float[:, ::1] out = np.empty((n_y, n_x), np.float32)
    cdef float[:, ::1] ring = np.zeros((n_taps, nx), np.float32)
    cdef float[::1] column = np.empty(nx, np.float32)
    cdef float[:, ::1] halves = np.zeros((2, width), np.float32)  # even and odd columns, m zeros on either side
    with nogil:
        for j in range(n_y):
            for y in range(last + 1, min(2 * j + m, ny - 1) + 1):
                signal_row(&pix[y, 0], &sigma[y, 0], nx, clip, &ring[y % n_taps, 0])
                last = y
            memset(&column[0], 0, nx * sizeof(float))
            for k in range(n_taps):
                row = 2 * j + 1 + k - m
                if 0 <= row < ny:
                    add_scaled(&ring[row % n_taps, 0], taps[k], nx, &column[0])
            split_row(&column[0], n_x, &halves[0, m], &halves[1, m])
            memset(&out[j, 0], 0, n_x * sizeof(float))
            for k in range(n_taps):
                row = 1 + k - m  # column 2 i + row: even or odd, and how many bins away
                add_scaled(&halves[row & 1, m + (row >> 1)], taps[k], n_x, &out[j, 0])
    return np.asarray(out)


def subtract_level_inplace(float[:, ::1] bins, const float[:, ::1] level):
    """Subtract a coarse map, interpolated bilinearly between the middles of its cells; 0 stays 0."""
    cdef long ny = bins.shape[0], nx = bins.shape[1], my = level.shape[0], mx = level.shape[1], y, x, i, j
    cdef float[::1] row = np.empty(mx, np.float32)
    cdef float[::1] part = np.empty(nx, np.float32)
    cdef int[::1] cell = np.empty(nx, np.int32)
    cdef double at
    cdef float share
    for x in range(nx):
        at = min(max((x + 0.5) * mx / nx - 0.5, 0), mx - 1)
        cell[x] = <int>min(at, mx - 2) if mx > 1 else 0
        part[x] = at - cell[x]
    for y in range(ny):
        at = min(max((y + 0.5) * my / ny - 0.5, 0), my - 1)
        j = <long>min(at, my - 2) if my > 1 else 0
        share = at - j
        for i in range(mx):
            row[i] = level[j, i] * (1 - share) + level[min(j + 1, my - 1), i] * share
        for x in range(nx):
            i = cell[x]
            if bins[y, x] != 0:
                bins[y, x] -= row[i] * (1 - part[x]) + row[min(i + 1, mx - 1)] * part[x]


def best_lines(const float[:, :] image, const float[:, ::1] per_sigma, double least, double clip, int first_height):
    """Brightest lines that rise to the right, at 45 degrees or steeper, of strips that overlap by half.

    The fast Radon transform (Brady 1998; Nir, Zackay & Ofek 2018) within strips of 2, 4, ... rows; those of at least
    `first_height` rows begin at every half of their height.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        Any strides.
    per_sigma : ndarray, shape (n_levels, top), float32
        Element (k, d): one over the noise of the sum along a line that moves d columns in a strip of 2^(k+1) rows;
        top = 2^n_levels rows are the tallest strip.
    least : float
        In units of the noise.
    clip : float
        Elements of the image are clipped at plus and minus this, and rounded so that the tallest strip's sums fit into
        16 bits.
    first_height : int

    Returns
    -------
    ndarray, shape (n, 5), float64
        Rows of the strip, first row, columns moved, first column, sum over noise; at most one line for 64 columns of a
        strip, in which it begins. A line may begin beyond the image's left border.
    """
    cdef long n_levels = per_sigma.shape[0], top = 1 << n_levels, ny = image.shape[0], nx = image.shape[1]
    cdef long width = TILE + 2 * top, y0, x0, height, k, rows, x, y
    cdef int16_t[:, ::1] old = np.zeros((top, width), np.int16)
    cdef int16_t[:, ::1] new = np.zeros((top, width), np.int16)
    cdef int16_t[:, ::1] swap
    cdef int16_t[:, ::1] carry = np.empty((top, width), np.int16)
    cdef float scale = LARGEST / (top * clip)
    cdef Found found = Found(per_sigma, least, 1 / scale)
    cdef bint by_columns = image.strides[1] != sizeof(float) and image.strides[1] != -<long>sizeof(float)
    for x0 in range(-top // 2, nx, TILE):
        carry[:] = 0
        for y0 in range(0, ny, top):
            rows = min(top, ny - y0)
            copy_scaled(image, y0, x0, rows, (clip, scale), by_columns, old)
            rows = top if rows > top // 2 else power_above(rows)
            for k in range(n_levels):
                height = 2 << k
                if height > rows:
                    break
                if height >= first_height:
                    found.place(k, x0, nx)
                    overlapping(found, old, carry, new, rows, height, y0)
                combine(found, old, new, rows, height, top, y0, height >= first_height)
                memcpy(&carry[height // 2 - 1, 0], &old[rows - height // 2, 0], height // 2 * width * sizeof(int16_t))
                swap = old
                old = new
                new = swap
    return found.rows()


cdef class Found:
    """The lines found so far, and the best ones of the strip at hand."""

    cdef const float[:, ::1] per_sigma
    cdef float least, unit
    cdef list kept
    cdef long level, x0, n_blocks
    cdef float[N_BLOCKS] best
    cdef long[N_BLOCKS] best_d, best_x

    def __init__(self, per_sigma, least, unit):
        self.per_sigma, self.least, self.unit, self.kept = per_sigma, least, unit, []

    cdef void place(self, long level, long x0, long nx):
        self.level, self.x0 = level, x0
        self.n_blocks = min(N_BLOCKS, (nx - x0 + BLOCK - 1) // BLOCK)

    cdef void start(self) noexcept:
        cdef long b
        for b in range(N_BLOCKS):
            self.best[b] = self.least

    cdef void scan(self, const int16_t* a, const int16_t* b, int16_t* out, long d) noexcept:
        """Sums of two rows over the blocks, and whether one is the best so far."""
        cdef long block, i
        cdef float unit = self.per_sigma[self.level, d] * self.unit
        cdef int value
        for block in range(self.n_blocks):
            i = block * BLOCK
            value = add_top(a + i, b + i, out + i)
            if value * unit > self.best[block]:
                self.best[block], self.best_d[block] = value * unit, d
                while out[i] != value:
                    i += 1
                self.best_x[block] = i

    cdef void keep(self, long y0):
        cdef long b
        for b in range(self.n_blocks):
            if self.best[b] > self.least:
                self.kept.append((2 << self.level, y0, self.best_d[b], self.x0 + self.best_x[b], self.best[b]))

    def rows(self):
        return np.array(self.kept, float).reshape(-1, 5)


cdef void overlapping(
    Found found, const int16_t[:, ::1] old, const int16_t[:, ::1] carry, int16_t[:, ::1] spare, long rows, long height, long y0
):
    """Strips that begin in the middle of those of `combine`; the first reaches back into the rows before."""
    cdef long half = height // 2, s, d, shift
    cdef const int16_t* upper
    for s in range(rows // height):
        if s == 0 and y0 == 0:
            continue
        found.start()
        for d in range(height):
            shift = d - d // 2
            upper = &old[(2 * s - 1) * half + d // 2, 0] if s else &carry[half - 1 + d // 2, 0]
            found.scan(upper, &old[2 * s * half + d // 2, shift], &spare[0, 0], d)
        found.keep(y0 + (2 * s - 1) * half)


cdef void combine(
    Found found, const int16_t[:, ::1] old, int16_t[:, ::1] new, long rows, long height, long top, long y0, bint search
):
    """Lines of strips from those of their halves; a strip has `height` lines from each column, one in each row."""
    cdef long half = height // 2, s, d, shift, done, width = TILE + top - height
    for s in range(rows // height):
        if search:
            found.start()
        for d in range(height):
            shift, done = d - d // 2, 0
            if search:
                found.scan(
                    &old[2 * s * half + d // 2, 0], &old[(2 * s + 1) * half + d // 2, shift],
                    &new[s * height + d, 0], d,
                )
                done = found.n_blocks * BLOCK
            add_rows(
                &old[2 * s * half + d // 2, done], &old[(2 * s + 1) * half + d // 2, shift + done], width - done,
                &new[s * height + d, done],
            )
        if search:
            found.keep(y0 + s * height)


cdef void copy_scaled(
    const float[:, :] image, long y0, long x0, long rows, (float, float) limits, bint by_columns, int16_t[:, ::1] out
) noexcept:
    """Rows of the image from column x0 on, clipped and scaled to integers; 0 outside of it."""
    cdef float clip = limits[0], scale = limits[1]
    cdef long width = out.shape[1], first = max(0, -x0), end = min(width, image.shape[1] - x0), x, y
    memset(&out[0, 0], 0, out.shape[0] * width * sizeof(int16_t))
    if by_columns:
        for x in range(first, end):
            for y in range(rows):
                out[y, x] = <int16_t>rintf(scale * min(max(image[y0 + y, x0 + x], -clip), clip))
    else:
        for y in range(rows):
            for x in range(first, end):
                out[y, x] = <int16_t>rintf(scale * min(max(image[y0 + y, x0 + x], -clip), clip))


cdef long power_above(long n) noexcept:
    cdef long power = 1
    while power < n:
        power *= 2
    return power


cdef inline void keys_weights(double part, double* w) noexcept nogil:
    """Cubic convolution (Keys 1981) at a fraction of the step after the second of four samples."""
    w[0] = part * (-0.5 + part * (1 - 0.5 * part))
    w[1] = 1 + part * part * (-2.5 + 1.5 * part)
    w[2] = part * (0.5 + part * (2 - 1.5 * part))
    w[3] = part * part * (-0.5 + 0.5 * part)


cdef inline void keys_slopes(double part, double* w) noexcept nogil:
    w[0] = -0.5 + part * (2 - 1.5 * part)
    w[1] = part * (-5 + 4.5 * part)
    w[2] = 0.5 + part * (4 - 4.5 * part)
    w[3] = part * (-1 + 1.5 * part)


def trail_planes(
    const double[:, ::1] point, const double[:, ::1] integral, double step, const double[:, ::1] places,
    double start, double end,
):
    """A trail of unit flux per px, and its derivatives by its ends and across.

    Parameters
    ----------
    point : ndarray, shape (n, n), float64
        Point source at offsets (v, u) = (i, j) step from its middle element, u along the trail and v across it.
    integral : ndarray, shape (n, n), float64
        Its integral over u from minus infinity.
    step : float
        Px.
    places : ndarray, shape (2, m), float64
        u and v of the pixels from the middle of the trail.
    start, end : float
        u of the ends of the trail.

    Returns
    -------
    ndarray, shape (4, m), float64
        Value; derivative by start, by end, and by a shift of the trail towards larger v.
    """
    cdef long m = places.shape[1], n = point.shape[0], k, i, e, iv, iu
    cdef double middle = n // 2, at_u, at_v, value, slope, light, lines, across
    cdef double[:, ::1] out = np.zeros((4, m))
    cdef double[4] wu, wv, sv
    cdef double[2] ends
    ends[0], ends[1] = start, end
    with nogil:
        for k in range(m):
            at_v = places[1, k] / step + middle
            if at_v < 1 or at_v > n - 3:
                continue
            iv = <long>floor(at_v)
            keys_weights(at_v - iv, wv)
            keys_slopes(at_v - iv, sv)
            for e in range(2):
                at_u = (places[0, k] - ends[e]) / step + middle
                if at_u < 1:
                    continue
                at_u = min(at_u, n - 3.0)
                iu = <long>floor(at_u)
                keys_weights(at_u - iu, wu)
                value = slope = light = 0
                for i in range(4):
                    lines = (
                        wu[0] * integral[iv - 1 + i, iu - 1] + wu[1] * integral[iv - 1 + i, iu]
                        + wu[2] * integral[iv - 1 + i, iu + 1] + wu[3] * integral[iv - 1 + i, iu + 2]
                    )
                    across = (
                        wu[0] * point[iv - 1 + i, iu - 1] + wu[1] * point[iv - 1 + i, iu]
                        + wu[2] * point[iv - 1 + i, iu + 1] + wu[3] * point[iv - 1 + i, iu + 2]
                    )
                    value += wv[i] * lines
                    slope += sv[i] * lines
                    light += wv[i] * across
                if e == 0:
                    out[0, k] += value
                    out[1, k] = -light
                    out[3, k] -= slope / step
                else:
                    out[0, k] -= value
                    out[2, k] = light
                    out[3, k] += slope / step
    return np.asarray(out)
