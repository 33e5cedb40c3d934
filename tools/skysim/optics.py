"""Where light falls and how it is spread: projection, distortion, point-spread function.

Pixels are 0-based; (xi, eta) are gnomonic tangent-plane coordinates in degrees about the true pointing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.skysim.camera import Camera, Channel

Array = NDArray[np.float64]

#: Field radius (deg) that normalises the per-exposure distortion of the whole focal plane.
FIELD_RADIUS_DEG = 5.0

# The PSF: a core and a wing Moffat with one ellipse. Weights, exponents, width of each over the core's FWHM.
MOFFAT_WEIGHTS = (0.85, 0.15)
MOFFAT_BETAS = (3.5, 2.5)
MOFFAT_WIDTHS = (1.0, 2.2)


@dataclass(frozen=True)
class Pointing:
    """True state of telescope and optics in one exposure.

    ra_deg, dec_deg : true pointing. matrix (2, 2): rotation and scale that act on the nominal (xi, eta).
    bend_arcsec (2, 4): change of distortion, terms X^2, XY, Y^2, (X^2+Y^2)*[X or Y], X = xi/FIELD_RADIUS_DEG.
    """

    ra_deg: float
    dec_deg: float
    matrix: Array
    bend_arcsec: Array


def make_pointing(ra_deg: float, dec_deg: float, rng: np.random.Generator) -> Pointing:
    """Commanded pointing plus 20 arcsec rms error, 1e-4 scale and rotation errors, 0.3 arcsec of distortion."""
    d_ra, d_dec = rng.normal(0.0, 20.0 / np.sqrt(2.0) / 3600.0, 2)
    scale, turn = rng.normal(0.0, 1e-4, 2)
    matrix = np.array([[1.0 + scale, -turn], [turn, 1.0 + scale]])
    bend = rng.normal(0.0, 0.3, (2, 4))
    return Pointing(ra_deg + d_ra / np.cos(np.radians(dec_deg)), dec_deg + d_dec, matrix, bend)


def gnomonic(ra_deg: Array, dec_deg: Array, ra0_deg: float, dec0_deg: float) -> tuple[Array, Array]:
    """Sky to tangent plane, degrees; points on the far hemisphere become NaN."""
    ra, dec = np.radians(ra_deg - ra0_deg), np.radians(dec_deg)
    s0, c0 = np.sin(np.radians(dec0_deg)), np.cos(np.radians(dec0_deg))
    depth = s0 * np.sin(dec) + c0 * np.cos(dec) * np.cos(ra)
    depth = np.where(depth > 0.1, depth, np.nan)
    xi = np.cos(dec) * np.sin(ra) / depth
    eta = (c0 * np.sin(dec) - s0 * np.cos(dec) * np.cos(ra)) / depth
    return np.degrees(xi), np.degrees(eta)


def gnomonic_inverse(xi_deg: Array, eta_deg: Array, ra0_deg: float, dec0_deg: float) -> tuple[Array, Array]:
    """Tangent plane to sky, degrees."""
    xi, eta = np.radians(xi_deg), np.radians(eta_deg)
    s0, c0 = np.sin(np.radians(dec0_deg)), np.cos(np.radians(dec0_deg))
    ra = np.arctan2(xi, c0 - eta * s0)
    dec = np.arctan2((eta * c0 + s0) * np.cos(ra), c0 - eta * s0)
    return (np.degrees(ra) + ra0_deg) % 360.0, np.degrees(dec)


def nominal_tangent(channel: Channel, camera: Camera, x: Array, y: Array) -> tuple[Array, Array]:
    """Pixels to (xi, eta) by the camera file alone."""
    dx, dy = x - 0.5 * (camera.n_x - 1), y - 0.5 * (camera.n_y - 1)
    u, v = dx / (0.5 * camera.n_x), dy / (0.5 * camera.n_y)
    terms = (u * u, u * v, v * v, u * u * u, u * u * v, u * v * v, v * v * v)
    c11, c12, c21, c22 = channel.cd_deg
    xi = channel.xi_deg + c11 * dx + c12 * dy
    eta = channel.eta_deg + c21 * dx + c22 * dy
    for a, b, t in zip(channel.distortion_xi_arcsec, channel.distortion_eta_arcsec, terms, strict=True):
        xi, eta = xi + a / 3600.0 * t, eta + b / 3600.0 * t
    return xi, eta


def true_tangent(pointing: Pointing, xi: Array, eta: Array) -> tuple[Array, Array]:
    """Nominal (xi, eta) to the true ones of this exposure."""
    big_x, big_y = xi / FIELD_RADIUS_DEG, eta / FIELD_RADIUS_DEG
    r2 = big_x**2 + big_y**2
    terms = (big_x**2, big_x * big_y, big_y**2)
    shift = []
    for axis, radial in enumerate((big_x * r2, big_y * r2)):
        c = pointing.bend_arcsec[axis] / 3600.0
        shift.append(c[0] * terms[0] + c[1] * terms[1] + c[2] * terms[2] + c[3] * radial)
    m = pointing.matrix
    return m[0, 0] * xi + m[0, 1] * eta + shift[0], m[1, 0] * xi + m[1, 1] * eta + shift[1]


def pixel_to_sky(channel: Channel, camera: Camera, pointing: Pointing, x: Array, y: Array) -> tuple[Array, Array]:
    """0-based pixels to RA, Dec (deg)."""
    xi, eta = true_tangent(pointing, *nominal_tangent(channel, camera, x, y))
    return gnomonic_inverse(xi, eta, pointing.ra_deg, pointing.dec_deg)


def tangent_to_pixel(
    channel: Channel, camera: Camera, pointing: Pointing, xi: Array, eta: Array
) -> tuple[Array, Array]:
    """True (xi, eta) to 0-based pixels, to 1e-8 px near the channel (fixed point on the linear part)."""
    c11, c12, c21, c22 = channel.cd_deg
    inverse = np.linalg.inv(np.array([[c11, c12], [c21, c22]]))
    x = np.full(np.shape(xi), 0.5 * (camera.n_x - 1))
    y = np.full(np.shape(xi), 0.5 * (camera.n_y - 1))
    for _ in range(7):
        xi_now, eta_now = true_tangent(pointing, *nominal_tangent(channel, camera, x, y))
        d_xi, d_eta = xi - xi_now, eta - eta_now
        # Far from the channel the cubic diverges; those points stay where the linear map puts them.
        x = np.clip(x + inverse[0, 0] * d_xi + inverse[0, 1] * d_eta, -9000.0, 12000.0)
        y = np.clip(y + inverse[1, 0] * d_xi + inverse[1, 1] * d_eta, -9000.0, 12000.0)
    return x, y


def sky_to_pixel(channel: Channel, camera: Camera, pointing: Pointing, ra: Array, dec: Array) -> tuple[Array, Array]:
    """RA, Dec (deg) to 0-based pixels."""
    return tangent_to_pixel(channel, camera, pointing, *gnomonic(ra, dec, pointing.ra_deg, pointing.dec_deg))


@dataclass(frozen=True)
class Psf:
    """PSF of one channel in one exposure, as smooth functions of (u, v) = centred pixel / half size.

    fwhm_pix: FWHM of the core Moffat at the centre. fwhm_terms: relative change, terms u, v, u^2+v^2-2/3.
    e1, e2: ellipticity components, terms 1, u, v, uv; (1-q)/(1+q) = hypot(e1, e2), q the axis ratio.
    """

    fwhm_pix: float
    fwhm_terms: tuple[float, ...]
    e1_terms: tuple[float, ...]
    e2_terms: tuple[float, ...]
    half_x: float
    half_y: float

    def shape(self, x: Array, y: Array) -> tuple[Array, Array, Array]:
        """Core FWHM (px) and ellipticity components at pixels (x, y)."""
        u, v = (x - self.half_x) / self.half_x, (y - self.half_y) / self.half_y
        f, a, b = self.fwhm_terms, self.e1_terms, self.e2_terms
        fwhm = self.fwhm_pix * (1.0 + f[0] * u + f[1] * v + f[2] * (u * u + v * v - 2.0 / 3.0))
        e1 = a[0] + a[1] * u + a[2] * v + a[3] * u * v
        e2 = b[0] + b[1] * u + b[2] * v + b[3] * u * v
        return fwhm, e1, e2


def make_psf(camera: Camera, rcid: int, fwhm_pix: float, rng_exposure: np.random.Generator) -> Psf:
    """Seeing of the exposure, the channel's own focus tilt and astigmatism, and a little tracking elongation.

    ``rng_exposure`` must be in the same state for every channel of an exposure.
    """
    own = np.random.default_rng([987_654, rcid])
    tilt = own.uniform(-0.018, 0.018, 2) + rng_exposure.normal(0.0, 0.004, 2)
    bowl = 0.012 + rng_exposure.normal(0.0, 0.003)
    common = rng_exposure.normal(0.0, 0.012, 2)
    e1 = np.concatenate([[common[0]], own.normal(0.0, 0.012, 3)])
    e2 = np.concatenate([[common[1]], own.normal(0.0, 0.012, 3)])
    return Psf(
        fwhm_pix,
        (float(tilt[0]), float(tilt[1]), float(bowl)),
        tuple(map(float, e1)),
        tuple(map(float, e2)),
        0.5 * (camera.n_x - 1),
        0.5 * (camera.n_y - 1),
    )


def moffat_alphas(fwhm_pix: Array) -> tuple[Array, Array]:
    """Scale radii of the two Moffats."""
    core, wing = (
        width * fwhm_pix / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
        for beta, width in zip(MOFFAT_BETAS, MOFFAT_WIDTHS, strict=True)
    )
    return core, wing


def ellipse(e1: Array, e2: Array) -> tuple[Array, Array, Array]:
    """A, B, C with r^2 = A dx^2 + 2 B dx dy + C dy^2 of an area-preserving ellipse."""
    e_sq = e1 * e1 + e2 * e2
    norm = 1.0 / (1.0 - e_sq)
    return norm * (1.0 - 2.0 * e1 + e_sq), -2.0 * norm * e2, norm * (1.0 + 2.0 * e1 + e_sq)


def encircled_energy(fwhm_pix: float, radius_pix: Array) -> Array:
    """Fraction of a star's light within a radius (round PSF, before pixel integration)."""
    total = np.zeros(np.shape(radius_pix))
    for weight, beta, alpha in zip(MOFFAT_WEIGHTS, MOFFAT_BETAS, moffat_alphas(np.asarray(fwhm_pix)), strict=True):
        total = total + weight * (1.0 - (1.0 + np.square(radius_pix) / alpha**2) ** (1.0 - beta))
    return total


def effective_fwhm(fwhm_pix: float) -> float:
    """FWHM of the sum of both Moffats, px."""
    r = np.linspace(0.3 * fwhm_pix, 0.8 * fwhm_pix, 2001)
    profile = np.zeros_like(r)
    peak = 0.0
    for weight, beta, alpha in zip(MOFFAT_WEIGHTS, MOFFAT_BETAS, moffat_alphas(np.asarray(fwhm_pix)), strict=True):
        height = weight * (beta - 1.0) / (np.pi * alpha**2)
        profile, peak = profile + height * (1.0 + (r / alpha) ** 2) ** -beta, peak + float(height)
    return float(2.0 * np.interp(-0.5 * peak, -profile, r))
