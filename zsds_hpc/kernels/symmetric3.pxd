"""Symmetric 3 x 3 matrices: flux and position of a star."""


cdef inline bint invert3(const double* a, double* inverse) noexcept nogil:
    """Inverse of a symmetric positive 3 x 3 matrix (00, 01, 02, 11, 12, 22); False when it is singular."""
    cdef double c0 = a[3] * a[5] - a[4] * a[4], c1 = a[2] * a[4] - a[1] * a[5], c2 = a[1] * a[4] - a[2] * a[3]
    cdef double det = a[0] * c0 + a[1] * c1 + a[2] * c2
    if not det > 1e-12 * a[0] * a[3] * a[5]:
        return False
    inverse[0], inverse[1], inverse[2] = c0 / det, c1 / det, c2 / det
    inverse[3] = (a[0] * a[5] - a[2] * a[2]) / det
    inverse[4] = (a[1] * a[2] - a[0] * a[4]) / det
    inverse[5] = (a[0] * a[3] - a[1] * a[1]) / det
    return True
