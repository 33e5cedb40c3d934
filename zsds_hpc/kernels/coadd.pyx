"""Weighted mean of aligned frames without outliers, where frames may differ in seeing."""

import numpy as np

from libc.stdint cimport int16_t, uint8_t, uintptr_t

cdef extern from *:
    """
    #include <math.h>
    #define MOST_FRAMES 256
    #define GAP 1     /* some frame has no data */
    #define SUSPECT 2 /* some value is beyond tolerance */
    #define NEAR 4    /* suspect, or within REACH px of one that is */
    #define REACH 2   /* px on each side over which the change of the image is looked at */

    typedef struct {
        long n;
        const float *frame[MOST_FRAMES];
        float weight[MOST_FRAMES], variance[MOST_FRAMES], per_dn[MOST_FRAMES];
        float sum_weight, mean_variance; /* where all frames have data */
        float n_sigma, steep;
    } Stack;

    static void summarize(Stack *s)
    {
        double weight = 0, noise = 0;
        for (long i = 0; i < s->n; i++) {
            weight += s->weight[i];
            noise += (double)s->weight[i] * s->weight[i] * s->variance[i];
        }
        s->sum_weight = (float)weight;
        s->mean_variance = (float)(noise / (weight * weight));
    }
    /* Weighted mean along a row; NaN where any frame has none. */
    static void plain_mean(const Stack *s, long offset, long n, float *restrict mean)
    {
        for (long x = 0; x < n; x++) mean[x] = 0;
        for (long i = 0; i < s->n; i++) {
            const float w = s->weight[i] / s->sum_weight;
            const float *restrict v = s->frame[i] + offset;
            for (long x = 0; x < n; x++) mean[x] += w * v[x];
        }
    }
    /* Mean, variance of the mean and number of the values within tolerance of a middle (any, where it is NaN). */
    static int within(const Stack *s, long at, float middle, float range, float *mean, float *variance)
    {
        float sum = 0, weight = 0, noise = 0;
        int n = 0;
        for (long i = 0; i < s->n; i++) {
            const float v = s->frame[i][at], w = s->weight[i];
            const float off = fabsf(v - middle) - s->steep * range, light = middle > 0 ? middle : 0;
            if (!(v == v)) continue;
            if (off > 0 && off * off > s->n_sigma * s->n_sigma * (s->variance[i] + s->per_dn[i] * light)) continue;
            sum += w * v;
            weight += w;
            noise += w * w * s->variance[i];
            n++;
        }
        *mean = n ? sum / weight : NAN;
        *variance = n ? noise / (weight * weight) : INFINITY;
        return n;
    }
    static void fill_gaps(const Stack *s, long offset, long n, float *restrict mean, unsigned char *restrict odd)
    {
        float variance;
        for (long x = 0; x < n; x++) {
            odd[x] = !(mean[x] == mean[x]) ? GAP : 0;
            if (odd[x]) within(s, offset + x, NAN, 0, mean + x, &variance);
        }
    }
    static float median(const Stack *s, long at)
    {
        float sorted[MOST_FRAMES];
        long n = 0;
        for (long i = 0; i < s->n; i++) {
            const float v = s->frame[i][at];
            if (!(v == v)) continue;
            long k = n++;
            for (; k > 0 && sorted[k - 1] > v; k--) sorted[k] = sorted[k - 1];
            sorted[k] = v;
        }
        return n ? 0.5f * (sorted[(n - 1) / 2] + sorted[n / 2]) : NAN;
    }
    /* Highest less lowest value within REACH px of each pixel of a row, its neighbours above and below included. */
    static void range_of(const float *plane, long n, float *restrict low, float *restrict high, float *restrict range)
    {
        for (long x = 0; x < n; x++) { low[x] = INFINITY; high[x] = -INFINITY; }
        for (long j = -REACH; j <= REACH; j++) {
            const float *restrict v = plane + j * n;
            for (long x = 0; x < n; x++) {
                low[x] = v[x] < low[x] ? v[x] : low[x];
                high[x] = v[x] > high[x] ? v[x] : high[x];
            }
        }
        for (long x = 0; x < n; x++) {
            const long from = x < REACH ? 0 : x - REACH, to = x + REACH < n ? x + REACH : n - 1;
            float lowest = low[from], highest = high[from];
            for (long k = from + 1; k <= to; k++) {
                lowest = low[k] < lowest ? low[k] : lowest;
                highest = high[k] > highest ? high[k] : highest;
            }
            range[x] = highest > lowest ? highest - lowest : 0;
        }
    }
    /* Marks the pixels of a row in which some value is beyond tolerance. */
    static void suspect(const Stack *s, long offset, long n, const float *restrict middle, const float *restrict range,
                        unsigned char *restrict odd)
    {
        const float k2 = s->n_sigma * s->n_sigma, steep = s->steep;
        for (long i = 0; i < s->n; i++) {
            const float *restrict v = s->frame[i] + offset;
            const float variance = s->variance[i], per_dn = s->per_dn[i];
            for (long x = 0; x < n; x++) {
                const float off = fabsf(v[x] - middle[x]) - steep * range[x], light = middle[x] > 0 ? middle[x] : 0;
                odd[x] |= (off > 0) & (off * off > k2 * (variance + per_dn * light)) ? SUSPECT : 0;
            }
        }
    }
    /* Marks the pixels of a row that have a suspect one within REACH px. */
    static void spread(unsigned char *odd, long n)
    {
        for (long x = 0; x < n; x++) {
            const long from = x < REACH ? 0 : x - REACH, to = x + REACH < n ? x + REACH : n - 1;
            int found = 0;
            for (long j = -REACH; j <= REACH; j++)
                for (long k = from; k <= to; k++) found |= odd[j * n + k] & SUSPECT;
            odd[x] |= found ? NEAR : 0;
        }
    }
    static int any_suspect(const unsigned char *odd, long n)
    {
        int found = 0;
        for (long x = -REACH * n; x < (REACH + 1) * n; x++) found |= odd[x] & SUSPECT;
        return found;
    }
    /* Mean of a row whose means are known where nothing is suspect. */
    static void finish(const Stack *s, long offset, long n, const float *middle, const float *range,
                       const unsigned char *odd, float *mean, float *variance, int16_t *n_used)
    {
        for (long x = 0; x < n; x++) {
            n_used[x] = (int16_t)s->n;
            variance[x] = s->mean_variance;
            mean[x] = middle[x];
            if (!odd[x]) continue;
            const float about = odd[x] & NEAR ? middle[x] : NAN;
            n_used[x] = (int16_t)within(s, offset + x, about, range[x], mean + x, variance + x);
            if (!n_used[x]) n_used[x] = (int16_t)within(s, offset + x, NAN, 0, mean + x, variance + x);
        }
    }
    """
    ctypedef struct Stack:
        long n
        const float* frame[256]
        float weight[256]
        float variance[256]
        float per_dn[256]
        float n_sigma
        float steep
    const long REACH
    const uint8_t NEAR
    void spread(uint8_t* odd, long n) noexcept nogil
    int any_suspect(const uint8_t* odd, long n) noexcept nogil
    void summarize(Stack* s) noexcept nogil
    void plain_mean(const Stack* s, long offset, long n, float* mean) noexcept nogil
    void fill_gaps(const Stack* s, long offset, long n, float* mean, uint8_t* odd) noexcept nogil
    float median(const Stack* s, long at) noexcept nogil
    void range_of(const float* plane, long n, float* low, float* high, float* range) noexcept nogil
    void suspect(
        const Stack* s, long offset, long n, const float* middle, const float* range, uint8_t* odd
    ) noexcept nogil
    void finish(
        const Stack* s, long offset, long n, const float* middle, const float* range, const uint8_t* odd,
        float* mean, float* variance, int16_t* n_used,
    ) noexcept nogil

MOST_FRAMES = 256
#: Rows that frames must reach beyond the output on each side.
HALO = 3 * REACH


def clipped_mean(list frames, const float[:, ::1] facts, float n_sigma, float steep):
    """Weighted mean of each pixel without the values that are too far from the median.

    Too far is more than n_sigma times the noise, and besides more than `steep` times the range of the image within
    2 px: where seeing differs, frames of a star differ by no more than that. The median is only looked at within 2 px of
    where a value is too far from the mean.

    Parameters
    ----------
    frames : list of n ndarrays, shape (n_rows + 2 HALO, nx), float32, C-contiguous
        At most 256; NaN is no data.
    facts : ndarray, shape (n, 3), float32
        Weight, variance of the sky, variance per DN of light.
    n_sigma, steep : float

    Returns
    -------
    tuple of ndarray, shape (n_rows, nx)
        Mean (float32, NaN without data), variance of the mean from the sky (float32, infinite without data), number of
        values (int16).
    """
    cdef long n_y = frames[0].shape[0], n = frames[0].shape[1], y, x, row
    cdef const float[:, ::1] frame
    cdef Stack stack
    if len(frames) > MOST_FRAMES:
        raise ValueError(f"{len(frames)} frames: at most {MOST_FRAMES}")
    stack.n, stack.n_sigma, stack.steep = len(frames), n_sigma, steep
    for y in range(stack.n):
        frame = frames[y]
        stack.frame[y] = &frame[0, 0]
        stack.weight[y], stack.variance[y], stack.per_dn[y] = facts[y, 0], facts[y, 1], facts[y, 2]
    mean = np.empty((n_y - 2 * HALO, n), np.float32)
    variance = np.empty((n_y - 2 * HALO, n), np.float32)
    n_used = np.empty((n_y - 2 * HALO, n), np.int16)
    cdef float[:, ::1] mean_out = mean, variance_out = variance
    cdef int16_t[:, ::1] n_out = n_used
    cdef float[:, ::1] means = np.empty((n_y, n), np.float32), middle = np.empty((n_y, n), np.float32)
    cdef float[:, ::1] scratch = np.empty((3, n), np.float32)
    cdef uint8_t[:, ::1] odd = np.zeros((n_y, n), np.uint8)
    with nogil:
        summarize(&stack)
        for y in range(n_y):
            plain_mean(&stack, y * n, n, &means[y, 0])
            fill_gaps(&stack, y * n, n, &means[y, 0], &odd[y, 0])
        middle[:, :] = means
        for y in range(REACH, n_y - REACH):
            range_of(&means[y, 0], n, &scratch[0, 0], &scratch[1, 0], &scratch[2, 0])
            suspect(&stack, y * n, n, &means[y, 0], &scratch[2, 0], &odd[y, 0])
        for y in range(2 * REACH, n_y - 2 * REACH):
            if any_suspect(&odd[y, 0], n):
                spread(&odd[y, 0], n)
                for x in range(n):
                    if odd[y, x] & NEAR:
                        middle[y, x] = median(&stack, y * n + x)
        for row in range(n_y - 6 * REACH):
            y = row + 3 * REACH
            range_of(&middle[y, 0], n, &scratch[0, 0], &scratch[1, 0], &scratch[2, 0])
            finish(
                &stack, y * n, n, &middle[y, 0], &scratch[2, 0], &odd[y, 0], &mean_out[row, 0], &variance_out[row, 0],
                &n_out[row, 0],
            )
    return mean, variance, n_used


def grow_inplace(float[:, ::1] image, const long[::1] missing, int n_rounds, float fade):
    """Missing pixels become the mean of their known neighbours, round by round; those left in the end become zero.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
    missing : ndarray, shape (n,), int64
        Flat indices of the NaN pixels, rising.
    n_rounds : int
    fade : float
        Factor of each round.
    """
    cdef long n_y = image.shape[0], n_x = image.shape[1], n_left = missing.shape[0], n_next, k, at, y, x, i, j
    cdef long[::1] left = np.array(missing), taken = np.empty(n_left, np.int64)
    cdef float[::1] value = np.empty(n_left, np.float32)
    cdef float* pix
    cdef float total, v
    cdef int n, turn
    cdef long n_taken
    if not n_left:
        return
    pix = &image[0, 0]
    with nogil:
        for turn in range(n_rounds):
            n_taken = n_next = 0
            for k in range(n_left):
                at = left[k]
                y, x = at // n_x, at % n_x
                total, n = 0, 0
                for j in range(max(y - 1, 0), min(y + 2, n_y)):
                    for i in range(max(x - 1, 0), min(x + 2, n_x)):
                        v = pix[j * n_x + i]
                        if v == v:
                            total += v
                            n += 1
                if n:
                    taken[n_taken], value[n_taken] = at, fade * total / n
                    n_taken += 1
                else:
                    left[n_next] = at
                    n_next += 1
            n_left = n_next
            for k in range(n_taken):
                pix[taken[k]] = value[k]
            if n_taken == 0:
                break
        for k in range(n_left):
            pix[left[k]] = 0
