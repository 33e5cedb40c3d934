"""Spherical geometry: gnomonic projection, unit vectors and separations; degrees, ICRS."""

import numpy as np


def project(ra_deg, dec_deg, ra0_deg: float, dec0_deg: float):
    """Gnomonic (tangent-plane) coordinates about a point (Calabretta & Greisen 2002, eq. 54).

    Parameters
    ----------
    ra_deg, dec_deg : array_like, float64
        Positions.
    ra0_deg, dec0_deg : float
        Tangent point.

    Returns
    -------
    xi, eta : ndarray, float64
        Degrees, xi to the East and eta to the North; NaN for points 90 deg or more from the tangent point.
    """
    d_ra = np.radians(np.subtract(ra_deg, ra0_deg))
    dec, dec0 = np.radians(dec_deg), np.radians(dec0_deg)
    sin_d, cos_d, cos_ra = np.sin(dec), np.cos(dec), np.cos(d_ra)
    depth = np.sin(dec0) * sin_d + np.cos(dec0) * cos_d * cos_ra
    scale = np.degrees(1.0) / np.where(depth > 0, depth, np.nan)
    xi = cos_d * np.sin(d_ra) * scale
    eta = (np.cos(dec0) * sin_d - np.sin(dec0) * cos_d * cos_ra) * scale
    return xi, eta


def deproject(xi_deg, eta_deg, ra0_deg: float, dec0_deg: float):
    """Sky positions of gnomonic coordinates about a point; the inverse of `project`.

    Returns
    -------
    ra, dec : ndarray, float64
        Degrees, ra in [0, 360).
    """
    xi, eta = np.radians(xi_deg), np.radians(eta_deg)
    sin_d0, cos_d0 = np.sin(np.radians(dec0_deg)), np.cos(np.radians(dec0_deg))
    toward_pole = cos_d0 - eta * sin_d0
    ra = np.degrees(np.arctan2(xi, toward_pole)) + ra0_deg
    dec = np.degrees(np.arctan2(sin_d0 + eta * cos_d0, np.sqrt(xi * xi + toward_pole * toward_pole)))
    return wrap_360(ra), dec


def wrap_360(angle_deg):
    """Angles from (-360, 720) brought into [0, 360); quicker than a modulo."""
    angle = angle_deg + 360.0 * (angle_deg < 0)
    return angle - 360.0 * (angle >= 360.0)


def unit_vectors(ra_deg, dec_deg) -> np.ndarray:
    """Unit vectors, shape (..., 3), float64, of sky positions."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    cos_d = np.cos(dec)
    vectors = np.empty((*np.broadcast(ra, dec).shape, 3))
    vectors[..., 0], vectors[..., 1], vectors[..., 2] = cos_d * np.cos(ra), cos_d * np.sin(ra), np.sin(dec)
    return vectors


def separation_deg(ra1_deg, dec1_deg, ra2_deg, dec2_deg):
    """Angular distance in degrees, from the chord: accurate for small angles and at the poles."""
    chord = np.linalg.norm(unit_vectors(ra1_deg, dec1_deg) - unit_vectors(ra2_deg, dec2_deg), axis=-1)
    return np.degrees(2.0 * np.arcsin(np.minimum(chord / 2.0, 1.0)))
