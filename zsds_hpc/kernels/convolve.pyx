"""Convolution of an image with a kernel that changes from block to block."""

import numpy as np

from libc.string cimport memset

cdef extern from *:
    """
    /* Adds to n values the products of k kernel elements with the row below them. */
    #define TAPS(K) static __attribute__((noinline)) void taps_##K( \
        const float *restrict row, const float *restrict kernel, long n, float *restrict out) \
    { \
        for (long i = 0; i < n; i++) { \
            float a = 0; \
            _Pragma("GCC unroll 32") \
            for (long k = 0; k < K; k++) a += kernel[k] * row[i + k]; \
            out[i] += a; \
        } \
    }
    TAPS(3) TAPS(5) TAPS(7) TAPS(9) TAPS(11) TAPS(13) TAPS(15) TAPS(17) TAPS(19) TAPS(21) TAPS(23) TAPS(25)
    static inline void add_taps(const float *row, const float *kernel, int side, long n, float *out)
    {
        switch (side) {
            case 3: taps_3(row, kernel, n, out); break;
            case 5: taps_5(row, kernel, n, out); break;
            case 7: taps_7(row, kernel, n, out); break;
            case 9: taps_9(row, kernel, n, out); break;
            case 11: taps_11(row, kernel, n, out); break;
            case 13: taps_13(row, kernel, n, out); break;
            case 15: taps_15(row, kernel, n, out); break;
            case 17: taps_17(row, kernel, n, out); break;
            case 19: taps_19(row, kernel, n, out); break;
            case 21: taps_21(row, kernel, n, out); break;
            case 23: taps_23(row, kernel, n, out); break;
            case 25: taps_25(row, kernel, n, out); break;
            default:
                for (long i = 0; i < n; i++)
                    for (long k = 0; k < side; k++) out[i] += kernel[k] * row[i + k];
        }
    }
    """
    void add_taps(const float* row, const float* kernel, int side, long n, float* out) noexcept nogil


def convolve_blocks(const float[:, ::1] image, const float[:, :, :, ::1] kernels, float[:, ::1] out):
    """Correlate an image with the kernel of each block: out[y, x] = sum_jk kernel[j, k] image[y + j - h, x + k - h].

    A convolution wants the kernels turned by 180 degrees. Within h = side // 2 of the border, where the kernel reaches
    out of the image, the image is copied.

    Parameters
    ----------
    image, out : ndarray, shape (ny, nx), float32
        Not the same memory.
    kernels : ndarray, shape (n_blocks_y, n_blocks_x, side, side), float32
        The image is cut into as many blocks of (nearly) equal size.
    """
    cdef int ny = <int>image.shape[0], nx = <int>image.shape[1], side = <int>kernels.shape[2], half = side // 2
    cdef int blocks_y = <int>kernels.shape[0], blocks_x = <int>kernels.shape[1], b, block_y
    cdef Py_ssize_t y, x0, x1, row
    with nogil:
        for y in range(ny):
            if y < half or y >= ny - half:
                out[y, :] = image[y, :]
                continue
            block_y = <int>(y * blocks_y // ny)
            out[y, :half] = image[y, :half]
            out[y, nx - half:] = image[y, nx - half:]
            for b in range(blocks_x):
                x0, x1 = max(b * nx // blocks_x, half), min((b + 1) * nx // blocks_x, nx - half)
                if x1 <= x0:
                    continue
                memset(&out[y, x0], 0, (x1 - x0) * sizeof(float))
                for row in range(side):
                    add_taps(&image[y + row - half, x0 - half], &kernels[block_y, b, row, 0], side, x1 - x0, &out[y, x0])
