"""Sky images drawn with GalSim: a truth that shares nothing with the suite or with `tools/skysim`.

The point-spread function is Kolmogorov's atmosphere (it follows from turbulence, with r^-11/3 wings) convolved with
the diffraction pattern of a 1.2 m telescope whose defocus, astigmatism and coma vary over the image, with charge
diffusion and with the pixel. GalSim draws it, oversampled, at 5 x 5 Chebyshev nodes of the image; between the nodes it
is the polynomial of degree 4 along each axis through them, between the samples that of degree 5. `GalsimPsf.direct`
is GalSim's own drawing at any place and checks that. GalSim's Fourier transforms fold 1e-4 of a star's light back
into the image: totals are not better known.

Positions are 0-based pixels, the centre of the first pixel at (0, 0); fluxes are total fluxes in DN.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pytest

galsim = pytest.importorskip("galsim")

GAIN_E, READ_NOISE_E, SKY_DN = 6.2, 10.0, 400.0
SCALE_ARCSEC = 1.012
CHANNEL_PIX = 3072 * 3080
SATURATE_DN = 50_000.0
#: The limit of the images of the issue's table: the zero point is chosen so that it is this one's, too.
LIMIT_MAG = 20.56
SATURATED, NAN = 1 << 8, 1 << 10

_OVERSAMPLING = 5
_N_NODES = 5
_TAPS = np.arange(-2, 4)
#: Half sides of the stamps, and the light (DN per pixel) at the edge above which the next one is taken.
_HALVES, _EDGE_DN = (8, 12, 20, 40), 0.02

STAR_DTYPE = np.dtype([("x", "f8"), ("y", "f8"), ("flux", "f8"), ("mag", "f8"), ("galaxy", "?")])


class Sky(NamedTuple):
    """An image and its truth."""

    pix: np.ndarray  # (ny, nx) float32, DN, with its sky
    mask: np.ndarray  # (ny, nx) int16
    light: np.ndarray  # (ny, nx) float64, expectation of pix before saturation
    truth: np.ndarray  # STAR_DTYPE
    psf: "GalsimPsf"


@dataclass(frozen=True)
class GalsimPsf:
    """The point-spread function of an image; `wander` scales how the optics vary over it."""

    shape: tuple[int, int]
    fwhm_pix: float = 1.60
    wander: float = 0.7
    defocus_waves: float = 0.0
    trail_pix: float = 0.0
    scale_arcsec: float = SCALE_ARCSEC

    def at(self, x, y):
        """GalSim's profile, pixel and charge diffusion included, at a place of the image."""
        u, v = 2 * x / (self.shape[1] - 1) - 1, 2 * y / (self.shape[0] - 1) - 1
        w = self.wander
        optics = galsim.OpticalPSF(
            lam=650.0, diam=1.2, obscuration=0.4, scale_unit=galsim.arcsec, oversampling=1.0, pad_factor=1.0,
            defocus=self.defocus_waves + w * (0.20 + 0.08 * u - 0.06 * v + 0.08 * (u * u + v * v)),
            astig1=w * 0.10 * u, astig2=w * (0.04 + 0.10 * v), coma1=w * 0.10 * v, coma2=w * 0.10 * u,
        )  # fmt: skip
        fwhm = self.fwhm_pix * SCALE_ARCSEC * (1 + w * 0.01 * u)
        parts = [
            galsim.Kolmogorov(fwhm=fwhm), optics, galsim.Gaussian(sigma=0.25 * SCALE_ARCSEC),
            galsim.Pixel(SCALE_ARCSEC),
        ]  # fmt: skip
        if self.trail_pix:
            parts.append(galsim.Box(self.trail_pix * SCALE_ARCSEC, 0.05 * SCALE_ARCSEC))
        return galsim.Convolve(parts)

    def direct(self, x, y, half):
        """GalSim's drawing of a star of unit flux, shape (2 half + 1, 2 half + 1), window about the nearest pixel."""
        side = 2 * half + 1
        offset = (x - np.rint(x), y - np.rint(y))
        drawn = self.at(x, y).drawImage(nx=side, ny=side, scale=SCALE_ARCSEC, method="no_pixel", offset=offset)
        return drawn.array.astype(float)

    @cached_property
    def _nodes(self):
        return np.cos(np.pi * (2 * np.arange(_N_NODES) + 1) / (2 * _N_NODES))

    @cached_property
    def _bank(self):
        """Flux per pixel at the nodes, y outermost, on the finest grid of the largest stamps."""
        side = _OVERSAMPLING * (2 * _HALVES[-1] + 1) + 2 * _TAPS[-1]
        side += 1 - side % 2
        images = []
        for v in self._nodes:
            for u in self._nodes:
                place = (u + 1) * (self.shape[1] - 1) / 2, (v + 1) * (self.shape[0] - 1) / 2
                scale = SCALE_ARCSEC / _OVERSAMPLING
                images.append(self.at(*place).drawImage(nx=side, ny=side, scale=scale, method="no_pixel").array)
        return _OVERSAMPLING**2 * np.array(images, np.float64)

    @cached_property
    def _cropped(self):
        """The bank for each half side, shape (n_nodes^2, side^2)."""
        cut = {}
        for half in _HALVES:
            side = _OVERSAMPLING * (2 * half + 1) + 2 * int(_TAPS[-1])
            side += 1 - side % 2
            first = (self._bank.shape[1] - side) // 2
            inner = self._bank[:, first : first + side, first : first + side]
            cut[half] = np.ascontiguousarray(inner.reshape(len(inner), -1)), side
        return cut

    def stamps(self, x, y, half, shift=(0.0, 0.0)):
        """Stars of unit flux, shape (n, 2 half + 1, 2 half + 1), half one of 8, 12, 20, 40.

        The window is about the pixel nearest to (x, y), also of stars that are shifted within it.
        """
        x, y = np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
        bank, side = self._cropped[half]
        along_x = _lagrange(self._nodes, 2 * x / (self.shape[1] - 1) - 1)
        along_y = _lagrange(self._nodes, 2 * y / (self.shape[0] - 1) - 1)
        weights = along_y[:, :, None] * along_x[:, None, :]
        weights = weights.reshape(x.size, _N_NODES**2)
        rows = _sampling(side, half, y - np.rint(y) + shift[1])
        columns = _sampling(side, half, x - np.rint(x) + shift[0])
        out = np.empty((x.size, 2 * half + 1, 2 * half + 1))
        for begin in range(0, x.size, 32):
            fine = (weights[begin : begin + 32] @ bank).reshape(-1, side, side)
            for k, image in enumerate(fine, begin):
                lines = _sampled(image, rows[0][k], rows[1][k], half)
                out[k] = _sampled(lines.T, columns[0][k], columns[1][k], half).T
        return out

    def edge_light(self, half):
        """Mean light of a star of unit flux at the edge of its stamp, in the middle of the image."""
        return float(self.stamps((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2, half)[0, half, [0, -1]].mean())


def _lagrange(nodes, u):
    """Lagrange polynomials of the nodes at u, shape (n, n_nodes)."""
    out = np.ones((u.size, nodes.size))
    for i, here in enumerate(nodes):
        for j, other in enumerate(nodes):
            if i != j:
                out[:, i] *= (u - other) / (here - other)
    return out


def _sampling(side, half, phase):
    """First sample of each stamp along an axis of the fine grid, and the weights of the samples about it."""
    place = (side - 1) // 2 - _OVERSAMPLING * (half + phase)
    first = np.floor(place).astype(int)
    return first, _lagrange(_TAPS.astype(float), place - first)


def _sampled(fine, first, weights, half):
    """Every n-th line of a fine image, between the samples."""
    stop = _OVERSAMPLING * 2 * half + 1
    return sum(w * fine[first + t : first + t + stop : _OVERSAMPLING] for w, t in zip(weights, _TAPS))


def sky_sigma_dn():
    """Noise of a pixel of empty sky, DN."""
    return float(np.sqrt(SKY_DN / GAIN_E + (READ_NOISE_E / GAIN_E) ** 2))


def zero_point(psf):
    """Zero point for which a star of `LIMIT_MAG` in the middle of the image has S/N 5 on empty sky."""
    stamp = psf.stamps((psf.shape[1] - 1) / 2, (psf.shape[0] - 1) / 2, 40)[0]
    return LIMIT_MAG + 2.5 * np.log10(5 * sky_sigma_dn() / np.sqrt((stamp**2).sum()))


def luminosity_function(rng, n, bright_mag=13.0, faint_mag=21.5, slope=0.27):
    """Magnitudes with counts that rise as 10^(slope mag)."""
    ends = 10 ** (slope * np.array([bright_mag, faint_mag]))
    return np.log10(rng.uniform(*ends, n)) / slope


def star_field(psf, per_channel, seed, **counts):
    """Stars at random places with the density of so many per readout channel."""
    rng = np.random.default_rng([seed, 1])
    n_y, n_x = psf.shape
    n = rng.poisson(per_channel * n_x * n_y / CHANNEL_PIX)
    stars = np.zeros(n, STAR_DTYPE)
    stars["x"], stars["y"] = rng.uniform(-0.5, n_x - 0.5, n), rng.uniform(-0.5, n_y - 0.5, n)
    stars["mag"] = luminosity_function(rng, n, **counts)
    return with_flux(stars, psf)


def isolated_field(psf, spacing_pix, mags, seed):
    """Stars on a jittered grid, far from one another, with magnitudes uniform between two limits."""
    rng = np.random.default_rng([seed, 2])
    places = [np.arange(spacing_pix / 2, n - spacing_pix / 2 + 1, spacing_pix) for n in psf.shape]
    y, x = (a.ravel() for a in np.meshgrid(*places, indexing="ij"))
    stars = np.zeros(x.size, STAR_DTYPE)
    stars["x"], stars["y"] = x + rng.uniform(-1.5, 1.5, x.size), y + rng.uniform(-1.5, 1.5, x.size)
    stars["mag"] = rng.uniform(*mags, x.size)
    return with_flux(stars, psf)


def galaxies_on_grid(psf, spacing_pix, mags, seed):
    """Galaxies on a jittered grid: half-light radii of 0.6 to 2.5 arcsec."""
    galaxies = isolated_field(psf, spacing_pix, mags, [seed, 3])
    galaxies["galaxy"] = True
    return galaxies


def with_flux(stars, psf):
    """The stars with the fluxes of their magnitudes."""
    stars["flux"] = 10 ** (-0.4 * (stars["mag"] - zero_point(psf)))
    return stars


def render(psf, truth, seed, saturate_dn=np.inf):
    """Image of the sources with photon and read noise; pixels above `saturate_dn` are cut and masked."""
    light = np.full(psf.shape, SKY_DN)
    _add_stars(light, psf, truth[~truth["galaxy"]])
    for number, galaxy in enumerate(truth[truth["galaxy"]]):
        _add_galaxy(light, psf, galaxy, np.random.default_rng([seed, 4, number]))
    rng = np.random.default_rng([seed, 5])
    pix = (rng.poisson(light * GAIN_E) + READ_NOISE_E * rng.standard_normal(psf.shape)) / GAIN_E
    mask = np.where(pix > saturate_dn, SATURATED, 0).astype(np.int16)
    return Sky(np.minimum(pix, saturate_dn).astype(np.float32), mask, light, truth, psf)


def _add_stars(light, psf, stars):
    edges = np.array([psf.edge_light(half) for half in _HALVES])
    size = np.minimum((stars["flux"][:, None] * edges > _EDGE_DN).sum(axis=1), len(_HALVES) - 1)
    for k, half in enumerate(_HALVES):
        for chunk in np.array_split(stars[size == k], 1 + (size == k).sum() * half**2 // 1_000_000):
            for star, stamp in zip(chunk, psf.stamps(chunk["x"], chunk["y"], half)):
                _add(light, star["flux"] * stamp, star["x"], star["y"])


def _add_galaxy(light, psf, galaxy, rng):
    """A disc, or a disc and a bulge, of random inclination."""
    radius, bulge = 10 ** rng.uniform(np.log10(0.6), np.log10(2.5)), rng.choice([0.0, 0.3, 0.7])
    profile = (1 - bulge) * galsim.Exponential(half_light_radius=radius)
    if bulge:
        profile += bulge * galsim.Sersic(4.0, half_light_radius=0.6 * radius, trunc=8 * radius)
    profile = profile.shear(q=rng.uniform(0.3, 1.0), beta=rng.uniform(0, 180) * galsim.degrees)
    x, y, half = galaxy["x"], galaxy["y"], 20
    image = galsim.Convolve(profile, psf.at(x, y)).drawImage(
        nx=2 * half + 1, ny=2 * half + 1, scale=SCALE_ARCSEC, method="no_pixel",
        offset=(x - np.rint(x), y - np.rint(y)),
    )  # fmt: skip
    _add(light, galaxy["flux"] * image.array, x, y)


def _add(light, stamp, x, y):
    half = stamp.shape[0] // 2
    x0, y0 = int(np.rint(x)) - half, int(np.rint(y)) - half
    rows = slice(max(y0, 0), min(y0 + stamp.shape[0], light.shape[0]))
    columns = slice(max(x0, 0), min(x0 + stamp.shape[1], light.shape[1]))
    light[rows, columns] += stamp[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]


def cramer_rao(psf, stars, half=12, background=None):
    """Least errors of flux (DN), x and y (px) of stars whose three numbers are all unknown, shape (n, 3).

    The Fisher information of Poisson light and Gaussian read noise, taken as normal: derivatives of GalSim's image
    over the variance of each pixel. `background` is the light in the star's pixels that is known (default: the sky).
    """
    x, y, flux = (stars[name].astype(float) for name in ("x", "y", "flux"))
    out, step = np.empty((x.size, 3)), 0.01
    for begin in range(0, x.size, 256):
        part = slice(begin, begin + 256)
        image = psf.stamps(x[part], y[part], half)
        slopes = [image]
        for axis in (np.array([step, 0.0]), np.array([0.0, step])):
            ahead, behind = (psf.stamps(x[part], y[part], half, sign * axis) for sign in (1, -1))
            slopes.append(flux[part, None, None] * (ahead - behind) / (2 * step))
        known = SKY_DN if background is None else background[part]
        variance = (known + flux[part, None, None] * image) / GAIN_E + (READ_NOISE_E / GAIN_E) ** 2
        slopes = np.stack(slopes, axis=1).reshape(len(image), 3, -1)
        information = np.einsum("nip,njp->nij", slopes / variance.reshape(len(image), 1, -1), slopes)
        out[part] = np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
    return out
