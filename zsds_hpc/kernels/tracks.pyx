"""Binning of an image and sums along all straight lines of the binned map."""

import numpy as np

from libc.math cimport isnan


def bin_image(const float[:, ::1] pix, const short[:, ::1] mask, int unusable, int factor):
    """Mean of the usable pixels of each factor x factor box, and their number; 0 and 0 where there is none.

    Rows and columns beyond the last whole box are left out.
    """
    cdef Py_ssize_t ny = pix.shape[0] // factor, nx = pix.shape[1] // factor, y, x, i, j
    cdef float[:, ::1] mean = np.zeros((ny, nx), np.float32)
    cdef int[:, ::1] number = np.zeros((ny, nx), np.int32)
    cdef float value
    cdef bint ok
    with nogil:
        for y in range(ny * factor):
            for x in range(nx):
                for i in range(x * factor, (x + 1) * factor):
                    value = pix[y, i]
                    ok = ((mask[y, i] & unusable) == 0) & (value == value)
                    mean[y // factor, x] += value if ok else 0
                    number[y // factor, x] += ok
        for y in range(ny):
            for x in range(nx):
                mean[y, x] = mean[y, x] / max(number[y, x], 1)
    return np.asarray(mean), np.asarray(number)


def line_sums(const float[:, ::1] image, int top_height, int first_height):
    """Sums along all lines that rise to the right, at 45 degrees or steeper, within strips of rows.

    The fast Radon transform of Brady (1998) and Nir, Zackay & Ofek (2018), stopped at strips of `top_height` rows, a
    power of two that divides the number of rows.

    Returns
    -------
    list of (height, sums)
        For each height from `first_height` on: sums of shape (n_strips, height, nx), where [s, d, x] is the sum along
        the line that starts in column x in the first row of strip s and ends d columns further in the last.
    """
    cdef Py_ssize_t ny = image.shape[0], nx = image.shape[1], s, d, x, shift, height = 1
    cdef float[:, :, ::1] old = np.array(image).reshape(ny, 1, nx)
    cdef float[:, :, ::1] new
    found = []
    while height < top_height:
        new = np.empty((ny // (2 * height), 2 * height, nx), np.float32)
        with nogil:
            for s in range(new.shape[0]):
                for d in range(2 * height):
                    shift = d - d // 2
                    for x in range(nx - shift):
                        new[s, d, x] = old[2 * s, d // 2, x] + old[2 * s + 1, d // 2, x + shift]
                    for x in range(max(nx - shift, 0), nx):
                        new[s, d, x] = old[2 * s, d // 2, x]
        old = new
        height *= 2
        if height >= first_height:
            found.append((height, np.asarray(old)))
    return found
