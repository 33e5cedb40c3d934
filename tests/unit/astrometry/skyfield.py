"""Truth for the astrometry tests: a camera with distortion and a sky of stars, with formulas of their own."""

from dataclasses import dataclass

import numpy as np

from zsds_hpc.astrometry.geometry import ChannelGeometry
from zsds_hpc.astrometry.match import Detections, Reference

N_X, N_Y = 3072, 3080
CD = np.array([[-2.8117e-4, -7.70e-6], [7.72e-6, -2.8117e-4]])


def tangent_to_sky(xi_deg, eta_deg, ra0_deg, dec0_deg):
    """Gnomonic projection by vectors: the tangent point plus offsets along East and North, normalised."""
    ra0, dec0 = np.radians(ra0_deg), np.radians(dec0_deg)
    centre = np.array([np.cos(dec0) * np.cos(ra0), np.cos(dec0) * np.sin(ra0), np.sin(dec0)])
    east = np.array([-np.sin(ra0), np.cos(ra0), 0.0])
    north = np.cross(centre, east)
    x, y, z = (centre[k] + np.radians(xi_deg) * east[k] + np.radians(eta_deg) * north[k] for k in range(3))
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


@dataclass(frozen=True)
class Truth:
    """True map of an exposure: the camera's geometry changed, about a pointing that is off."""

    pointing: tuple[float, float]
    error_arcsec: tuple[float, float] = (17.0, -12.0)
    rotation_deg: float = 0.01
    scale: float = 1.0001
    bend_arcsec: float = 0.0
    seed: int = 1

    def geometry(self, bend_arcsec=0.0):
        """Geometry of the camera, its distortion changed at random by an rms of `bend_arcsec`."""
        rng = np.random.default_rng(self.seed)
        nominal, change = rng.normal(0.0, 2.0, (2, 7)), rng.normal(0.0, 1.0, (2, 7))
        xi, eta = nominal + bend_arcsec * change
        return ChannelGeometry(2.93, 2.40, tuple(CD.ravel()), tuple(xi), tuple(eta), N_X, N_Y)

    def to_sky(self, x, y):
        """True sky position of 0-based pixels."""
        g = self.geometry(self.bend_arcsec)
        dx, dy = x - (N_X - 1) / 2, y - (N_Y - 1) / 2
        u, v = dx / (N_X / 2), dy / (N_Y / 2)
        terms = np.stack([u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3])
        plane = np.stack([g.xi_deg + CD[0, 0] * dx + CD[0, 1] * dy, g.eta_deg + CD[1, 0] * dx + CD[1, 1] * dy])
        plane = plane + np.tensordot([g.distortion_xi_arcsec, g.distortion_eta_arcsec], terms, 1) / 3600.0
        c, s = np.cos(np.radians(self.rotation_deg)), np.sin(np.radians(self.rotation_deg))
        xi, eta = self.scale * (c * plane[0] + s * plane[1]), self.scale * (c * plane[1] - s * plane[0])
        ra0, dec0 = tangent_to_sky(self.error_arcsec[0] / 3600, self.error_arcsec[1] / 3600, *self.pointing)
        return tangent_to_sky(xi, eta, float(ra0), float(dec0))


def centroid_error_arcsec(mag):
    """Centroid errors of a 30 s exposure: 4.6 mas for the bright, 110 mas near S/N 10."""
    return np.interp(mag, [15, 16.5, 17.5, 18.5, 19.5], [0.0046, 0.0104, 0.022, 0.05, 0.11])


@dataclass(frozen=True)
class Field:
    """Detections and reference of one exposure; `det_id` and `ref_id` tell which star a row is, -1 for none."""

    detections: Detections
    reference: Reference
    det_id: np.ndarray
    ref_id: np.ndarray


def make_field(truth, n_stars, contamination=0.0, seed=0, depth=1.3):
    """Stars over the image: `n_stars` detected ones, false ones among them, a reference `depth` times as rich."""
    rng = np.random.default_rng(seed)
    n = int(1.3 * n_stars * depth)
    x, y = rng.uniform(-150, N_X + 150, n), rng.uniform(-150, N_Y + 150, n)
    mag = 19.8 + np.log10(rng.uniform(10 ** (-0.22 * 6.8), 1.0, n)) / 0.22
    sigma_pix = centroid_error_arcsec(mag) / 1.012
    ra, dec = truth.to_sky(x, y)
    inside = np.flatnonzero((x > 0) & (x < N_X - 1) & (y > 0) & (y < N_Y - 1))[:n_stars]
    n_false = round(len(inside) * contamination / (1 - contamination))
    noise = rng.normal(0.0, 1.0, (2, len(inside))) * sigma_pix[inside]
    detections = Detections(
        np.append(x[inside] + noise[0], rng.uniform(0, N_X - 1, n_false)),
        np.append(y[inside] + noise[1], rng.uniform(0, N_Y - 1, n_false)),
        np.append(mag[inside] + rng.normal(0, 0.3, len(inside)), rng.choice(mag, n_false)),
        np.append(sigma_pix[inside], rng.choice(sigma_pix, n_false)),
    )
    known = np.flatnonzero(rng.random(n) < 0.97)
    reference = Reference(ra[known], dec[known], mag[known], np.full(len(known), 0.0003))
    return Field(detections, reference, np.append(inside, np.full(n_false, -1)), known)


def map_error_mas(wcs, truth, n=40):
    """One-axis rms and largest error of a map against the truth, over the image, mas."""
    x, y = np.meshgrid(np.linspace(0, N_X - 1, n), np.linspace(0, N_Y - 1, n))
    (ra, dec), (true_ra, true_dec) = wcs.pixel_to_sky(x, y), truth.to_sky(x, y)
    d_ra = (ra - true_ra + 180.0) % 360.0 - 180.0
    error = 3.6e6 * np.stack([d_ra * np.cos(np.radians(true_dec)), dec - true_dec])
    return float(np.sqrt(np.mean(error**2))), float(np.abs(error).max())
