"""Aperture sums of many sources: concentric circles with exact pixel overlap, Kron ellipses, core widths."""

from libc.math cimport asin, exp, fabs, floor, fmax, fmin, isfinite, sqrt
from libc.stdint cimport int16_t, int32_t

DEF MAX_RADII = 16


cdef inline double corner_overlap(double x0, double x1, double y0, double y1, double r) noexcept nogil:
    """Area of a rectangle in the first quadrant that lies in the circle of radius r about the origin."""
    cdef double xa, xb, ha, hb, r2 = r * r
    if x0 * x0 + y0 * y0 >= r2:
        return 0
    if x1 * x1 + y1 * y1 <= r2:
        return (x1 - x0) * (y1 - y0)
    xa = fmax(x0, sqrt(r2 - y1 * y1) if y1 < r else 0)
    xb = fmin(x1, sqrt(r2 - y0 * y0))
    ha, hb = sqrt(fmax(r2 - xa * xa, 0)), sqrt(fmax(r2 - xb * xb, 0))
    cdef double sector = 0.5 * (xb * hb - xa * ha + r2 * asin(fmin(1, fmax(-1, (xb * ha - xa * hb) / r2))))
    return (xa - x0) * (y1 - y0) + sector - (xb - xa) * y0


cdef inline double strip_overlap(double x0, double x1, double y0, double y1, double r) noexcept nogil:
    """The same with y0 >= 0 and any x."""
    if x0 >= 0:
        return corner_overlap(x0, x1, y0, y1, r)
    if x1 <= 0:
        return corner_overlap(-x1, -x0, y0, y1, r)
    return corner_overlap(0, -x0, y0, y1, r) + corner_overlap(0, x1, y0, y1, r)


cdef double pixel_overlap(double dx, double dy, double r) noexcept nogil:
    """Area of the unit pixel centred at (dx, dy) inside the circle of radius r about the origin."""
    cdef double x0 = dx - 0.5, x1 = dx + 0.5, y0 = dy - 0.5, y1 = dy + 0.5
    if y0 >= 0:
        return strip_overlap(x0, x1, y0, y1, r)
    if y1 <= 0:
        return strip_overlap(x0, x1, -y1, -y0, r)
    return strip_overlap(x0, x1, 0, -y0, r) + strip_overlap(x0, x1, 0, y1, r)


cdef inline bint usable(
    const float[:, ::1] pix, const int16_t[:, ::1] mask, const int32_t[:, ::1] labels, int bad_bits,
    int32_t own, Py_ssize_t x, Py_ssize_t y,
) noexcept nogil:
    if x < 0 or y < 0 or x >= pix.shape[1] or y >= pix.shape[0]:
        return False
    return (
        not mask[y, x] & bad_bits and (labels[y, x] == 0 or labels[y, x] == own) and isfinite(pix[y, x])
    )


cdef inline double value_at(
    const float[:, ::1] pix, const int16_t[:, ::1] mask, const int32_t[:, ::1] labels, int bad_bits,
    int32_t own, Py_ssize_t x, Py_ssize_t y, Py_ssize_t mirror_x, Py_ssize_t mirror_y, bint* replaced,
) noexcept nogil:
    """Pixel value; that of the pixel opposite the source where it is bad or another source's; else 0."""
    replaced[0] = not usable(pix, mask, labels, bad_bits, own, x, y)
    if not replaced[0]:
        return pix[y, x]
    x, y = mirror_x - x, mirror_y - y
    return pix[y, x] if usable(pix, mask, labels, bad_bits, own, x, y) else 0


def circular_sums(
    const float[:, ::1] pix,
    const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels,
    int bad_bits,
    const int32_t[::1] own,
    const double[:, ::1] position,
    const double[::1] radii,
    double[:, ::1] sums,
    double[:, ::1] replaced_area,
):
    """Sum concentric circular apertures with the exact overlap of circle and pixel.

    Parameters
    ----------
    pix, mask, labels : ndarray, shape (ny, nx)
        Image (float32), survey mask (int16), segment of each pixel (int32).
    bad_bits : int
    own : ndarray, shape (n,), int32
        Label of each source.
    position : ndarray, shape (n, 2), float64
        x and y, 0-based.
    radii : ndarray, shape (k,), float64
        Increasing, px; at most 16.
    sums, replaced_area : ndarray, shape (n, k), float64
        Zero on entry; receive the sums, and the area of bad, outside or foreign pixels that were replaced.
    """
    if radii.shape[0] > MAX_RADII:
        raise ValueError(f"{radii.shape[0]} apertures: at most {MAX_RADII}")
    cdef Py_ssize_t i
    with nogil:
        for i in range(own.shape[0]):
            sum_circles(
                pix, mask, labels, bad_bits, own[i], position[i, 0], position[i, 1], radii, &sums[i, 0],
                &replaced_area[i, 0],
            )


cdef void sum_circles(
    const float[:, ::1] pix, const int16_t[:, ::1] mask, const int32_t[:, ::1] labels, int bad_bits,
    int32_t own, double x0, double y0, const double[::1] radii, double* sums, double* replaced_area,
) noexcept nogil:
    cdef int n = radii.shape[0], k
    cdef double reach = radii[n - 1] + 0.5, d2, dx, dy, value, weight
    cdef double[MAX_RADII] inner2
    cdef double[MAX_RADII] outer2
    cdef double[MAX_RADII] full
    cdef double[MAX_RADII] full_replaced
    cdef Py_ssize_t x, y, mirror_x = <Py_ssize_t>floor(2 * x0 + 0.5)
    cdef Py_ssize_t mirror_y = <Py_ssize_t>floor(2 * y0 + 0.5)
    cdef bint replaced
    for k in range(n):
        inner2[k], outer2[k] = fmax(radii[k] - 0.70711, 0) ** 2, (radii[k] + 0.70711) ** 2
        full[k], full_replaced[k] = 0, 0
    for y in range(<Py_ssize_t>floor(y0 - reach + 0.5), <Py_ssize_t>floor(y0 + reach + 0.5) + 1):
        dy = y - y0
        for x in range(<Py_ssize_t>floor(x0 - reach + 0.5), <Py_ssize_t>floor(x0 + reach + 0.5) + 1):
            dx = x - x0
            d2 = dx * dx + dy * dy
            if d2 >= outer2[n - 1]:
                continue
            value = value_at(pix, mask, labels, bad_bits, own, x, y, mirror_x, mirror_y, &replaced)
            k = 0
            while k < n and d2 >= outer2[k]:
                k += 1
            while k < n and d2 > inner2[k]:
                weight = pixel_overlap(dx, dy, radii[k])
                sums[k] += weight * value
                replaced_area[k] += weight * replaced
                k += 1
            if k < n:
                full[k] += value
                full_replaced[k] += replaced
    value, weight = 0, 0
    for k in range(n):
        value += full[k]
        weight += full_replaced[k]
        sums[k] += value
        replaced_area[k] += weight


def kron_sums(
    const float[:, ::1] pix,
    const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels,
    int bad_bits,
    const int32_t[::1] own,
    const double[:, ::1] ellipses,
    const double[::1] settings,
    double[:, ::1] result,
):
    """Kron radius and the sum over the Kron ellipse (Kron 1980; Bertin & Arnouts 1996).

    Parameters
    ----------
    pix, mask, labels, bad_bits, own
        As for `circular_sums`.
    ellipses : ndarray, shape (n, 5), float64
        x, y (0-based), and cxx, cyy, cxy: an offset lies at r^2 = cxx dx^2 + cyy dy^2 + cxy dx dy, in units
        of a.
    settings : ndarray, float64
        Search radius in units of a, Kron factor, least Kron radius in units of a, largest half box in px.
    result : ndarray, shape (n, 3), float64
        Receives the Kron radius (units of a), flux and area (px^2).
    """
    cdef Py_ssize_t i
    cdef double radius
    cdef double[3] s
    with nogil:
        for i in range(own.shape[0]):
            ellipse_sums(pix, mask, labels, bad_bits, own[i], &ellipses[i, 0], settings[0], settings[3], s)
            radius = s[2] / s[0] if s[0] > 0 else 0
            radius = fmin(fmax(settings[1] * radius, settings[2]), settings[0])
            ellipse_sums(pix, mask, labels, bad_bits, own[i], &ellipses[i, 0], radius, settings[3], s)
            result[i, 0], result[i, 1], result[i, 2] = radius, s[0], s[1]


cdef void ellipse_sums(
    const float[:, ::1] pix, const int16_t[:, ::1] mask, const int32_t[:, ::1] labels, int bad_bits,
    int32_t own, const double* e, double radius, double largest, double* s,
) noexcept nogil:
    """Sums of f, of the area and of r f over the ellipse of the given radius; edge pixels count in part."""
    cdef double norm = 4 * e[2] * e[3] - e[4] * e[4], dx, dy, r, gx, gy, weight, value
    cdef double reach_x = fmin(radius * sqrt(4 * e[3] / norm) + 1, largest)
    cdef double reach_y = fmin(radius * sqrt(4 * e[2] / norm) + 1, largest)
    cdef Py_ssize_t x, y, mirror_x = <Py_ssize_t>floor(2 * e[0] + 0.5)
    cdef Py_ssize_t mirror_y = <Py_ssize_t>floor(2 * e[1] + 0.5)
    cdef bint replaced
    s[0], s[1], s[2] = 0, 0, 0
    for y in range(<Py_ssize_t>floor(e[1] - reach_y), <Py_ssize_t>floor(e[1] + reach_y) + 2):
        dy = y - e[1]
        for x in range(<Py_ssize_t>floor(e[0] - reach_x), <Py_ssize_t>floor(e[0] + reach_x) + 2):
            dx = x - e[0]
            r = sqrt(fmax(e[2] * dx * dx + e[3] * dy * dy + e[4] * dx * dy, 1e-12))
            gx, gy = (e[2] * dx + 0.5 * e[4] * dy) / r, (e[3] * dy + 0.5 * e[4] * dx) / r
            weight = fmin(1, fmax(0, (radius - r) / fmax(sqrt(gx * gx + gy * gy), 1e-6) + 0.5))
            if weight <= 0:
                continue
            value = weight * value_at(pix, mask, labels, bad_bits, own, x, y, mirror_x, mirror_y, &replaced)
            s[0] += value
            s[1] += weight
            s[2] += r * value


def core_widths(
    const float[:, ::1] pix,
    const int16_t[:, ::1] mask,
    const int32_t[:, ::1] labels,
    int bad_bits,
    const int32_t[::1] own,
    const double[:, ::1] position,
    double start,
    double[::1] sigma,
):
    """Rms width of each core under a Gaussian weight as wide as the core (Bernstein & Jarvis 2002).

    Parameters
    ----------
    pix, mask, labels, bad_bits, own, position
        As for `circular_sums`.
    start : float
        Width to begin with, px.
    sigma : ndarray, shape (n,), float64
        Receives the width in px, 0 where it does not converge.
    """
    cdef Py_ssize_t i
    with nogil:
        for i in range(own.shape[0]):
            sigma[i] = core_width(pix, mask, labels, bad_bits, own[i], position[i, 0], position[i, 1], start)


cdef double core_width(
    const float[:, ::1] pix, const int16_t[:, ::1] mask, const int32_t[:, ::1] labels, int bad_bits,
    int32_t own, double x0, double y0, double start,
) noexcept nogil:
    cdef double size2 = start * start, last = 0, flux, second, flux_term, r2, w
    cdef Py_ssize_t x, y, reach, mirror_x = <Py_ssize_t>floor(2 * x0 + 0.5)
    cdef Py_ssize_t mirror_y = <Py_ssize_t>floor(2 * y0 + 0.5)
    cdef Py_ssize_t ix = <Py_ssize_t>floor(x0 + 0.5), iy = <Py_ssize_t>floor(y0 + 0.5)
    cdef double[64] wx
    cdef bint replaced
    cdef int step
    for step in range(20):
        reach = min(<Py_ssize_t>(3 * sqrt(size2)) + 1, 31)
        for x in range(-reach, reach + 1):
            wx[x + reach] = exp(-((ix + x - x0) ** 2) / (2 * size2))
        flux, second = 0, 0
        for y in range(iy - reach, iy + reach + 1):
            w = exp(-((y - y0) ** 2) / (2 * size2))
            for x in range(ix - reach, ix + reach + 1):
                r2 = (x - x0) ** 2 + (y - y0) ** 2
                flux_term = w * wx[x - ix + reach] * value_at(
                    pix, mask, labels, bad_bits, own, x, y, mirror_x, mirror_y, &replaced
                )
                flux += flux_term
                second += flux_term * r2
        last = size2
        if flux <= 0 or second <= 0:
            return 0
        size2 = fmin(fmax(second / flux, 0.05), 100.0)
        if fabs(size2 - last) < 0.01 * last:
            return sqrt(size2)
    return 0
