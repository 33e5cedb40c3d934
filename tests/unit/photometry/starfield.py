"""A simple, independent star-field renderer: the truth of the photometry tests.

Stars have a two-Moffat, elliptical profile integrated over each pixel (Gauss-Legendre), normalised
analytically to infinity, so that `flux` is the total flux. Positions are multiples of 1/16 px: the tables
are then exact.
"""

from dataclasses import dataclass

import numpy as np

PHASES = 16
ZEROPOINT_MAG = 26.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)


@dataclass(frozen=True)
class Profile:
    """Two Moffats of equal ellipticity; `wing` is the share of the flux in the wider one."""

    fwhm_pix: float = 2.0
    axis_ratio: float = 0.94
    angle_rad: float = 0.5
    beta: float = 3.5
    wing: float = 0.10
    wing_scale: float = 2.2
    wing_beta: float = 2.6

    def density(self, dx, dy):
        """Flux per px^2 of a star of unit total flux."""
        c, s = np.cos(self.angle_rad), np.sin(self.angle_rad)
        q = np.sqrt(self.axis_ratio)
        r2 = ((c * dx + s * dy) * q) ** 2 + ((c * dy - s * dx) / q) ** 2
        core = _moffat(r2, self.fwhm_pix, self.beta)
        return (1 - self.wing) * core + self.wing * _moffat(r2, self.fwhm_pix * self.wing_scale, self.wing_beta)

    def stamp(self, phase_x, phase_y, half):
        """Pixel-integrated image, (2 half + 1) square, of a star at (half + phase_x, half + phase_y)."""
        nodes = (np.arange(-half, half + 1)[:, None] + _NODES / 2).ravel()
        values = self.density(nodes[None, :] - phase_x, nodes[:, None] - phase_y)
        n = 2 * half + 1
        return np.einsum("iajb,a,b->ij", values.reshape(n, 5, n, 5), _WEIGHTS / 2, _WEIGHTS / 2)


def enclosed_light(profile, radii, half=9, fine=60):
    """Fraction of a star's light in circles about it, mean over pixel phases: pixels cut into fine x fine parts."""
    sums = []
    for phase_x, phase_y in ((0, 0), (0.25, 0), (0.5, 0), (0.25, 0.25), (0.5, 0.25), (0.5, 0.5)):
        stamp = profile.stamp(phase_x, phase_y, half)
        pixel = np.repeat(np.repeat(stamp, fine, axis=0), fine, axis=1) / fine**2
        centre = (np.arange(pixel.shape[0]) + 0.5) / fine - 0.5 - half
        r = np.hypot(centre - phase_x, centre[:, None] - phase_y)
        weight = {0: 1, 0.25: 2, 0.5: 1}[phase_x] * {0: 1, 0.25: 2, 0.5: 1}[phase_y] * (1 + (phase_x != phase_y))
        sums.append([weight] + [weight * pixel[r < radius].sum() for radius in radii])
    total = np.sum(sums, axis=0)
    return total[1:] / total[0]


def _moffat(r2, fwhm, beta):
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return (beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -beta


@dataclass(frozen=True)
class Field:
    """A rendered field and its truth."""

    pix: np.ndarray
    clean: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    sky: float
    gain: float
    read_noise: float

    @property
    def sky_sigma(self):
        return np.sqrt(self.sky * self.gain + self.read_noise**2) / self.gain


def random_stars(rng, shape, n_stars, mag_range=(14.0, 21.5), slope=0.28, border=0):
    """Positions (multiples of 1/16 px) and fluxes with counts proportional to 10^(slope mag)."""
    ny, nx = shape
    x = rng.integers(border * PHASES, (nx - 1 - border) * PHASES, n_stars) / PHASES
    y = rng.integers(border * PHASES, (ny - 1 - border) * PHASES, n_stars) / PHASES
    low, high = (10 ** (slope * m) for m in mag_range)
    mag = np.log10(rng.uniform(low, high, n_stars)) / slope
    return x, y, 10 ** (-0.4 * (mag - ZEROPOINT_MAG))


def add_stars(image, x, y, flux, profile=None, half=30, bright=3e4):
    """Add stars in place; those brighter than `bright` get stamps four times as wide."""
    profile = profile or Profile()
    order = np.lexsort((np.round(y * PHASES) % PHASES, np.round(x * PHASES) % PHASES))
    table: dict = {}
    for i in order:
        ix, iy = int(np.floor(x[i])), int(np.floor(y[i]))
        key = (x[i] - ix, y[i] - iy, 4 * half if flux[i] > bright else half)
        if key not in table:
            table = {k: v for k, v in table.items() if k[:2] == key[:2]}
            table[key] = profile.stamp(*key)
        _paste(image, ix, iy, flux[i], table[key])


def _paste(image, ix, iy, flux, stamp):
    half = stamp.shape[0] // 2
    ny, nx = image.shape
    x0, x1, y0, y1 = max(ix - half, 0), min(ix + half + 1, nx), max(iy - half, 0), min(iy + half + 1, ny)
    if x1 > x0 and y1 > y0:
        part = stamp[y0 - iy + half : y1 - iy + half, x0 - ix + half : x1 - ix + half]
        image[y0:y1, x0:x1] += np.float32(flux) * part


def make_field(seed, shape, stars, profile=None, sky=400.0, gain=6.2, read_noise=10.0):
    """Render stars (x, y, flux) on a flat sky with photon and read noise; DN, float32."""
    rng = np.random.default_rng(seed)
    clean = np.zeros(shape, np.float32)
    x, y, flux = stars
    add_stars(clean, x, y, flux, profile)
    electrons = rng.poisson((clean.astype(float) + sky) * gain) + rng.normal(0, read_noise, shape)
    return Field((electrons / gain).astype(np.float32), clean, x, y, flux, sky, gain, read_noise)
