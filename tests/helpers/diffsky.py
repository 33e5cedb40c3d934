"""A field of Moffat stars drawn by the tests themselves, as a science image and as a reference for it.

Nothing is drawn with the suite's own point-spread function: profiles are analytic, integrated over the pixels by
Gauss-Legendre nodes. `science` and `template` come with models of the true profile and with catalogues of the true
stars, measured as well as photons allow, so that what is left of a difference is the work of the differencing alone;
`measured_science` and `coadded_template` go through the suite's photometry and co-adds.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, signal

from tests.helpers.psf_chain import measured
from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.coadd.footprint import Grid
from zsds_hpc.coadd.template import TemplateParams, make_reference
from zsds_hpc.coadd.warp import Exposure
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE, psfcat_of
from zsds_hpc.psf.model import PsfModel, monomials, node_offsets, spline_coefficients
from zsds_hpc.subtraction.images import Science, Template

GAIN_E, READ_NOISE_E, SKY_DN, SATURATE_DN = 6.2, 10.0, 300.0, 50_000.0
MAGZP = 26.275
SHAPE = (420, 400)
SKY_SIGMA = float(np.sqrt(SKY_DN / GAIN_E + (READ_NOISE_E / GAIN_E) ** 2))
_NODES, _WEIGHTS = (a / 2 for a in np.polynomial.legendre.leggauss(4))
FACTS = {"rfid": 1, "version": 1, "field": 655, "rcid": 20, "filtercode": "zr", "jdstart": 0.0, "jdend": 1.0}


class Profile(NamedTuple):
    """A star: Moffat, its width changing along x by `trend` at the borders, round or drawn out along y."""

    fwhm_pix: float
    beta: float = 3.0
    axis_ratio: float = 1.0
    trend: float = 0.0

    def at(self, dx, dy, x, shape=SHAPE):
        """Flux in pixels whose centres are at (dx, dy) px from a star at x."""
        width = self.fwhm_pix * (1 + self.trend * (2 * x / (shape[1] - 1) - 1))
        alpha2 = (width / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        total = 0.0
        for node_y, weight_y in zip(_NODES, _WEIGHTS):
            for node_x, weight_x in zip(_NODES, _WEIGHTS):
                r2 = (dx + node_x) ** 2 * self.axis_ratio + (dy + node_y) ** 2 / self.axis_ratio
                total = total + weight_x * weight_y * (1 + r2 / alpha2) ** -self.beta
        return (self.beta - 1) / (np.pi * alpha2) * total

    def model(self, shape=SHAPE, oversampling=3) -> PsfModel:
        """The same as a model of the suite: nodes through the true values, polynomial through nine places."""
        nodes, n_x = node_offsets(14, oversampling), shape[1]
        u = np.array([-1.0, 0.0, 1.0])
        samples = [self.at(nodes[None], nodes[:, None], (a + 1) * (n_x - 1) / 2, shape) for a in u]
        local = spline_coefficients(np.array(samples))
        u, v = (a.ravel() for a in np.meshgrid(u, u))
        terms = monomials(u, v, 2)
        fitted = np.linalg.lstsq(terms, np.tile(local, (3, 1, 1)).reshape(9, -1), rcond=None)[0]
        alpha2 = (self.fwhm_pix / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        wing = (self.beta - 1) / np.pi * alpha2 ** (self.beta - 1), 2 * self.beta
        return PsfModel(fitted.reshape(6, *local.shape[1:]).astype(np.float32), oversampling, 2, shape, wing)


class Stars(NamedTuple):
    """Where stars are on the sky, and their fluxes in DN of the reference."""

    ra: np.ndarray
    dec: np.ndarray
    flux: np.ndarray


def wcs(shift_pix=(0.0, 0.0), turn_deg=0.0) -> TPV:
    """About one arcsec per pixel, the pole far away."""
    linear, turn = np.zeros(N_TERMS), np.radians(turn_deg)
    linear[1] = 1.0
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    cd = np.diag([-1.012, 1.012]) / 3600 @ matrix
    return TPV((150.0, 20.0), (200.0 + shift_pix[0], 210.0 + shift_pix[1]), cd, linear, linear)


GRID = Grid(wcs(), SHAPE)


def random_stars(n=260, seed=1, faintest=400.0, brightest=60_000.0, apart_pix=9.0) -> Stars:
    """Stars on the reference and a little beyond, not closer than some pixels; counts rise as flux to -0.6."""
    rng = np.random.default_rng(seed)
    places = np.empty((0, 2))
    while len(places) < n:
        place = rng.uniform((-14, -14), (SHAPE[1] + 14, SHAPE[0] + 14))
        if not len(places) or np.hypot(*(places - place).T).min() > apart_pix:
            places = np.vstack([places, place])
    ends = brightest**-0.6, faintest**-0.6
    return Stars(*GRID.wcs.pixel_to_sky(*places.T), rng.uniform(*ends, n) ** (-1 / 0.6))


def draw(x, y, flux, profile: Profile, columns, rows):
    """Light of stars on a lattice of native coordinates, per native pixel."""
    image = np.zeros((len(rows), len(columns)))
    for x0, y0, total in zip(x, y, flux):
        half = 9 if total < 2000 else 25
        i = slice(*np.searchsorted(columns, [x0 - half, x0 + half]))
        j = slice(*np.searchsorted(rows, [y0 - half, y0 + half]))
        if i.stop > i.start and j.stop > j.start:
            image[j, i] += total * profile.at(columns[i] - x0, rows[j, None] - y0, x0)
    return image


def exposed(x, y, flux, profile: Profile, seed: int) -> np.ndarray:
    """Science pixels: sky, photon and read noise."""
    light = SKY_DN + draw(x, y, flux, profile, np.arange(SHAPE[1]), np.arange(SHAPE[0]))
    rng = np.random.default_rng([seed, 1])
    pix = rng.poisson(light * GAIN_E) / GAIN_E + rng.normal(0, READ_NOISE_E / GAIN_E, SHAPE)
    return pix.astype(np.float32)


def catalogue(x, y, flux, profile: Profile, sigma_dn: float, gain_e: float, seed: int, system: TPV) -> np.ndarray:
    """The stars on the image as if measured at the limit that photons set."""
    rng = np.random.default_rng([seed, 2])
    step = np.arange(-12, 13.0)
    stamp = profile.at(step[None], step[:, None], (SHAPE[1] - 1) / 2)
    noise = np.array([1 / np.sqrt((stamp**2 / (sigma_dn**2 + f * stamp / gain_e)).sum()) for f in flux])
    keep = (flux > 5 * noise) & (x > -0.5) & (y > -0.5) & (x < SHAPE[1] - 0.5) & (y < SHAPE[0] - 0.5)
    x, y, flux, noise = x[keep], y[keep], flux[keep], noise[keep]
    table = np.zeros(len(x), PSFCAT_DTYPE)
    spread = profile.fwhm_pix / 2.355 * noise / flux
    table["xpos"], table["ypos"] = x + 1 + spread * rng.normal(size=len(x)), y + 1 + spread * rng.normal(size=len(x))
    table["ra"], table["dec"] = system.pixel_to_sky(table["xpos"] - 1, table["ypos"] - 1)
    table["flux"], table["sigflux"] = flux + noise * rng.normal(size=len(x)), noise
    table["snr"], table["sigmag"] = table["flux"] / noise, 1.0857 * noise / flux
    table["mag"] = MAGZP - 2.5 * np.log10(table["flux"])
    table["chi"], table["sharp"] = rng.normal(1.0, 0.03, len(x)), rng.normal(0, 0.02, len(x))
    return table


class Seen(NamedTuple):
    """A science image, where its stars truly are (0-based px) and how bright (DN)."""

    science: Science
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def seen_by(stars: Stars, system: TPV, shift=None, gain=None):
    """Pixels and fluxes of stars; `shift(u, v)` px and `gain(u, v)` mag come on top of WCS and zero point."""
    x, y = system.sky_to_pixel(stars.ra, stars.dec)
    u, v = 2 * x / (SHAPE[1] - 1) - 1, 2 * y / (SHAPE[0] - 1) - 1
    flux = stars.flux * 10 ** (0.4 * gain(u, v)) if gain else stars.flux
    dx, dy = shift(u, v) if shift else (0.0, 0.0)
    return x + dx, y + dy, flux


def science(stars: Stars, profile: Profile, seed=1, system: TPV | None = None, new=(), **changes: Any) -> Seen:
    """A science image with the true profile for its model; `new` are more stars (x, y, flux), not in the catalogue."""
    system = system or wcs((1.7, -3.3), 0.03)
    x, y, flux = seen_by(stars, system, **changes)
    table = catalogue(x, y, flux, profile, SKY_SIGMA, GAIN_E, seed, system)
    added = np.reshape(np.asarray(new, float), (-1, 3))
    pix = exposed(np.r_[x, added[:, 0]], np.r_[y, added[:, 1]], np.r_[flux, added[:, 2]], profile, seed)
    mask = np.zeros(SHAPE, np.int16)
    model = profile.model()
    return Seen(
        Science(pix, mask, model, table, system, GAIN_E, SATURATE_DN, MAGZP, 0.0, profile.fwhm_pix, 20.6), x, y, flux
    )


def template(stars: Stars, profile: Profile, seed=1, n_frames=20) -> Template:
    """A reference as good as that many epochs of the science image's noise, on the fine grid without interpolation.

    Its noise is white to the Nyquist frequency of the native pixels and nothing beyond.
    """
    x, y = GRID.wcs.sky_to_pixel(stars.ra, stars.dec)
    n_y, n_x = GRID.fine_shape
    light = draw(x, y, stars.flux, profile, GRID.to_native(np.arange(n_x)), GRID.to_native(np.arange(n_y)))
    sigma = SKY_SIGMA / np.sqrt(n_frames)
    native = [n + 2 * GRID.margin_pix for n in SHAPE]
    noise = np.random.default_rng([seed, 3]).normal(0, sigma, native)
    fine = light + signal.resample(signal.resample(noise, n_y, axis=0), n_x, axis=1)
    coefficients = ndimage.spline_filter(fine, 5, mode="mirror", output=np.float64).astype(np.float32)
    table = catalogue(x, y, stars.flux, profile, sigma, GAIN_E * n_frames, seed, GRID.wcs)
    return Template(
        coefficients, np.full(SHAPE, sigma, np.float32), np.zeros(SHAPE, np.int16), profile.model(), table, GRID,
        MAGZP, 0.0, {**FACTS, "n_frames": n_frames, "maglim": 22.0, "seeing_pix": profile.fwhm_pix},
    )  # fmt: skip


def measured_science(stars: Stars, profile: Profile, seed=1, system: TPV | None = None, new=(), **changes: Any) -> Seen:
    """`science` with PSF model and catalogue from the suite's own photometry of the pixels."""
    seen = science(stars, profile, seed, system, new, **changes)
    s = seen.science
    found = measured(s.pix, s.mask, GAIN_E, SATURATE_DN).fits
    table = psfcat_of(found.table, s.mask, MAGZP, s.wcs)
    return seen._replace(science=Science(
        s.pix, s.mask, found.psf, table, s.wcs, GAIN_E, SATURATE_DN, MAGZP, 0.0, found.psf.fwhm_pix, 20.6
    ))  # fmt: skip


def coadded_template(stars: Stars, seeing_pix, beta=3.0, seed=50) -> Template:
    """A reference co-added by the suite from one dithered epoch for each seeing."""
    rng = np.random.default_rng(seed)
    epochs = []
    for number, fwhm in enumerate(seeing_pix):
        system = wcs(rng.uniform(-6, 6, 2), rng.uniform(-0.03, 0.03))
        x, y, flux = seen_by(stars, system)
        pix = exposed(x, y, flux, Profile(fwhm, beta), seed + number)
        epochs.append(Exposure(pix, np.zeros(SHAPE, np.int16), system, GAIN_E, SATURATE_DN, MAGZP, 0.0, fwhm))
    return make_reference(epochs, GRID, MAGZP, TemplateParams(), dict(FACTS)).template
