"""Masks of two images joined, the worst defects widened."""

from libc.stdint cimport int16_t


def join_masks(
    const int16_t[:, ::1] first, const int16_t[:, ::1] second, int16_t saturated, int16_t unusable, int16_t missing,
    int reach, int16_t[:, ::1] out,
):
    """Bits of both masks; saturated pixels of either and unusable ones of the second are widened.

    Parameters
    ----------
    first, second : ndarray, shape (ny, nx), int16
    saturated : int
        Bit that is set on all pixels within a square of half side `reach` about a pixel of either mask that has it.
    unusable, missing : int
        About pixels of the second mask with any bit of `unusable`, the bit `missing` is set.
    reach : int
    out : ndarray, shape (ny, nx), int16
        Filled.
    """
    cdef Py_ssize_t ny = first.shape[0], nx = first.shape[1], y, x, j, i
    cdef int16_t bits
    with nogil:
        for y in range(ny):
            for x in range(nx):
                out[y, x] = first[y, x] | second[y, x]
        for y in range(ny):
            for x in range(nx):
                bits = (first[y, x] | second[y, x]) & saturated
                if second[y, x] & unusable:
                    bits |= missing
                if not bits:
                    continue
                for j in range(max(y - reach, 0), min(y + reach + 1, ny)):
                    for i in range(max(x - reach, 0), min(x + reach + 1, nx)):
                        out[j, i] |= bits
