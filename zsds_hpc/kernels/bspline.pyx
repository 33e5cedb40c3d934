"""Coefficients of the quintic B-spline that passes through the pixels of an image."""

import numpy as np

cdef extern from *:
    """
    #define LANES 32
    #define PAD 40 /* the slower pole to the 40th is 2e-15 */

    /* Both poles forward and both backward along the first axis of lines[n][LANES]. */
    static void recursive(float *restrict lines, long n, float z1, float z2)
    {
        float a[LANES] = {0}, b[LANES] = {0};
        for (long k = 0; k < n; k++)
            for (long i = 0; i < LANES; i++) {
                a[i] = lines[k * LANES + i] + z1 * a[i];
                b[i] = a[i] + z2 * b[i];
                lines[k * LANES + i] = b[i];
            }
        for (long i = 0; i < LANES; i++) a[i] = b[i] = 0;
        for (long k = n - 1; k >= 0; k--)
            for (long i = 0; i < LANES; i++) {
                a[i] = lines[k * LANES + i] + z1 * a[i];
                b[i] = a[i] + z2 * b[i];
                lines[k * LANES + i] = b[i];
            }
    }
    /* Mirrors what stands at lines[PAD .. PAD + n) about its first and its last row. */
    static void mirror(float *lines, long n)
    {
        const long period = n > 1 ? 2 * n - 2 : 1;
        for (long k = 1; k <= PAD; k++) {
            long low = k % period, high = (n - 1 + k) % period;
            low = low < n ? low : period - low;
            high = high < n ? high : period - high;
            __builtin_memcpy(lines + (PAD - k) * LANES, lines + (PAD + low) * LANES, LANES * sizeof(float));
            __builtin_memcpy(lines + (PAD + n - 1 + k) * LANES, lines + (PAD + high) * LANES, LANES * sizeof(float));
        }
    }
    /* Columns x .. x + width of the image, filtered in place. */
    static void columns(float *image, long n_y, long n_x, long x, long width, float gain, float z1, float z2,
                        float *restrict lines)
    {
        for (long y = 0; y < n_y; y++)
            for (long i = 0; i < width; i++) lines[(PAD + y) * LANES + i] = gain * image[y * n_x + x + i];
        mirror(lines, n_y);
        recursive(lines, n_y + 2 * PAD, z1, z2);
        for (long y = 0; y < n_y; y++)
            for (long i = 0; i < width; i++) image[y * n_x + x + i] = lines[(PAD + y) * LANES + i];
    }
    /* Rows y .. y + width of the image, filtered in place: transposed by tiles on the way in and out. */
    static void rows(float *image, long n_x, long y, long width, float gain, float z1, float z2, float *restrict lines)
    {
        for (long tile = 0; tile < n_x; tile += 32) {
            const long stop = tile + 32 < n_x ? tile + 32 : n_x;
            for (long i = 0; i < width; i++) {
                const float *restrict row = image + (y + i) * n_x;
                for (long x = tile; x < stop; x++) lines[(PAD + x) * LANES + i] = gain * row[x];
            }
        }
        mirror(lines, n_x);
        recursive(lines, n_x + 2 * PAD, z1, z2);
        for (long tile = 0; tile < n_x; tile += 32) {
            const long stop = tile + 32 < n_x ? tile + 32 : n_x;
            for (long i = 0; i < width; i++) {
                float *restrict row = image + (y + i) * n_x;
                for (long x = tile; x < stop; x++) row[x] = lines[(PAD + x) * LANES + i];
            }
        }
    }
    """
    const long LANES
    const long PAD
    void columns(
        float* image, long n_y, long n_x, long x, long width, float gain, float z1, float z2, float* lines
    ) noexcept nogil
    void rows(
        float* image, long n_x, long y, long width, float gain, float z1, float z2, float* lines
    ) noexcept nogil


def filter_inplace(float[:, ::1] image, double z1, double z2):
    """Recursive filter with two poles, forward and backward along both axes, mirrored about the border pixels.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        At least 2 x 2; becomes the coefficients.
    z1, z2 : float
        Poles, between -1 and 0.
    """
    cdef long n_y = image.shape[0], n_x = image.shape[1], k
    cdef float gain = ((1 - z1) * (1 - z2)) ** 2
    cdef float[::1] lines = np.zeros((max(n_y, n_x) + 2 * PAD) * LANES, np.float32)
    with nogil:
        for k in range((n_y + LANES - 1) // LANES):
            rows(&image[0, 0], n_x, k * LANES, min(LANES, n_y - k * LANES), gain, z1, z2, &lines[0])
        for k in range((n_x + LANES - 1) // LANES):
            columns(&image[0, 0], n_y, n_x, k * LANES, min(LANES, n_x - k * LANES), gain, z1, z2, &lines[0])
