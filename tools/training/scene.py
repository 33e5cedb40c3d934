"""Small simulated difference images with all that goes wrong, and the truth: what the vetting learns from.

A scene is what an image-differencing engine hands on: science image, matched reference, difference, sigma, mask,
effective PSF. The difference is made from stars and galaxies whose PSF, place and gain differ a little from what the
engine believed, plus noise, plus defects (`tools.training.defects`), plus real sources.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tools.training import defects
from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.core.maskbits import SATURATED, UNUSABLE
from zsds_hpc.psf.model import PsfModel, node_offsets, spline_coefficients
from zsds_hpc.subtraction.images import SOURCE_DTYPE, Difference

Array = NDArray[np.float64]
Image = NDArray[np.float32]

SIDE_PIX = 768
GAIN_E, READ_NOISE_E, MAGZP, FULL_WELL_DN = 6.2, 10.0, 26.2, 52_000.0
CHANNEL_PIX = 3072 * 3080
STAMP_PIX, BRIGHT_STAMP_PIX = 11, 30
#: Kinds of real sources.
TRANSIENT, HOSTED, VARIABLE, MOVER = range(4)
REAL_DTYPE = np.dtype([("x", "f8"), ("y", "f8"), ("flux", "f8"), ("kind", "i2")])


@dataclass(frozen=True)
class Conditions:
    """What one scene is like; drawn by `draw_conditions`."""

    fwhm_pix: float
    beta: float
    ellipticity: tuple[float, float]
    sky_dn: float
    n_stars_channel: float
    reference_noise: float
    psf_error: float
    shift_error_pix: float
    gain_error: float
    trust: float


class Scene(NamedTuple):
    """A difference, its world coordinates, the real sources and where the defects are."""

    difference: Difference
    wcs: TPV
    real: NDArray
    defects: NDArray
    conditions: Conditions


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Seeing 1.5-3.5 px, 3,000-80,000 stars a channel, a subtraction between excellent and poor.

    The noise model covers `trust` times the true errors of place and gain: below one, stars shine through.
    """
    e, angle = 0.12 * rng.random() ** 2, rng.uniform(0.0, np.pi)
    poor = rng.random() < 0.45
    return Conditions(
        fwhm_pix=float(np.exp(rng.uniform(np.log(1.5), np.log(3.5)))),
        beta=float(rng.uniform(2.6, 4.5)),
        ellipticity=(float(e * np.cos(2 * angle)), float(e * np.sin(2 * angle))),
        sky_dn=float(np.exp(rng.uniform(np.log(80.0), np.log(2500.0)))),
        n_stars_channel=float(np.exp(rng.uniform(np.log(3000.0), np.log(80_000.0)))),
        reference_noise=float(rng.uniform(0.12, 0.4)),
        psf_error=float(rng.exponential(0.02 if poor else 0.006)),
        shift_error_pix=float(rng.exponential(0.08 if poor else 0.02)),
        gain_error=float(rng.exponential(0.01 if poor else 0.003)),
        trust=float(rng.uniform(0.2, 1.2)),
    )


def moffat_psf(fwhm_pix: float, beta: float, ellipticity: tuple[float, float], shape: tuple[int, int]) -> PsfModel:
    """Pixel-integrated elliptical Moffat profile as a spline of 4 nodes a pixel."""
    oversampling, fine = 4, 5
    nodes = node_offsets(STAMP_PIX + 1, oversampling)
    step = 1.0 / (oversampling * fine)
    offsets = np.arange(-(nodes.size // 2) * fine - 10, (nodes.size // 2) * fine + 11) * step
    alpha = fwhm_pix / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    e1, e2 = ellipticity
    x, y = offsets[None, :], offsets[:, None]
    r2 = ((1 - e1) * x**2 + (1 + e1) * y**2 - 2 * e2 * x * y) / np.sqrt(1 - e1**2 - e2**2)
    profile = (beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta
    box = np.r_[0.5, np.ones(oversampling * fine - 1), 0.5] * step
    for axis in (0, 1):
        profile = ndimage.convolve1d(profile, box, axis=axis, mode="nearest")
    samples = profile[10:-10:fine, 10:-10:fine]
    wing = ((beta - 1) / np.pi * alpha ** (2 * beta - 2), 2 * beta)
    return PsfModel(spline_coefficients(samples)[None].astype(np.float32), oversampling, 0, shape, wing)


def add_sources(image: Image, psf: PsfModel, x: Array, y: Array, flux: Array, half: int = STAMP_PIX) -> None:
    """Add point sources to an image, cut at its borders."""
    n_y, n_x = image.shape
    for start in range(0, x.size, 256):
        part = slice(start, start + 256)
        stamps = psf.images(x[part], y[part], half) * flux[part, None, None].astype(np.float32)
        corners = np.rint(np.stack([y[part], x[part]], axis=1)).astype(int) - half
        for stamp, (top, left) in zip(stamps, corners.tolist()):
            y0, x0 = max(top, 0), max(left, 0)
            y1, x1 = min(top + 2 * half + 1, n_y), min(left + 2 * half + 1, n_x)
            if y0 < y1 and x0 < x1:
                image[y0:y1, x0:x1] += stamp[y0 - top : y1 - top, x0 - left : x1 - left]


def _add_both(image: Image, psf: PsfModel, x: Array, y: Array, flux: Array) -> None:
    """Bright sources with wide stamps, faint ones with small ones."""
    bright = flux > 2e4
    add_sources(image, psf, x[~bright], y[~bright], flux[~bright])
    add_sources(image, psf, x[bright], y[bright], flux[bright], BRIGHT_STAMP_PIX)


def _draw_stars(rng: np.random.Generator, c: Conditions) -> tuple[Array, Array, Array]:
    """Places in a margin about the scene, and fluxes: counts rise by 10^(0.28 mag)."""
    side = SIDE_PIX + 40
    n = rng.poisson(c.n_stars_channel * side**2 / CHANNEL_PIX)
    x, y = rng.uniform(-20, SIDE_PIX + 20, (2, n))
    mag = 21.3 + np.log10(rng.uniform(10 ** (0.28 * -8.5), 1.0, n)) / 0.28
    return x, y, 10 ** (-0.4 * (mag - MAGZP))


def _draw_galaxies(rng: np.random.Generator) -> NDArray:
    """x, y, flux, half-light radius (px), axis ratio, angle of each galaxy."""
    n = rng.poisson(90)
    mag = 21.5 + np.log10(rng.uniform(10 ** (0.4 * -5.5), 1.0, n)) / 0.4
    radius = np.clip(np.exp(rng.normal(0.9, 0.4, n)) * 10 ** (-0.12 * (mag - 19.5)), 0.8, 15.0)
    x, y = rng.uniform(0, SIDE_PIX, (2, n))
    return np.stack([x, y, 10 ** (-0.4 * (mag - MAGZP)), radius, rng.uniform(0.3, 1, n), rng.uniform(0, np.pi, n)], 1)


def _galaxy_light(galaxies: NDArray) -> Image:
    """Exponential and de Vaucouleurs-like galaxies before the atmosphere."""
    image = np.zeros((SIDE_PIX, SIDE_PIX), np.float32)
    for k, (x, y, flux, radius, ratio, angle) in enumerate(galaxies):
        half = int(min(6 * radius + 4, 60))
        x0, x1 = max(int(x) - half, 0), min(int(x) + half, SIDE_PIX)
        y0, y1 = max(int(y) - half, 0), min(int(y) + half, SIDE_PIX)
        dx, dy = np.arange(x0, x1)[None, :] - x, np.arange(y0, y1)[:, None] - y
        u, v = dx * np.cos(angle) + dy * np.sin(angle), (dy * np.cos(angle) - dx * np.sin(angle)) / ratio
        r = np.sqrt(u**2 + v**2 + 0.2) / radius
        shape = np.exp(-1.68 * r) if k % 3 else np.exp(-7.67 * r**0.25)
        image[y0:y1, x0:x1] += (flux * shape / max(shape.sum(), 1e-9)).astype(np.float32)
    return image


def _blurred(image: Image, psf: PsfModel) -> Image:
    """Convolved with the PSF in the middle of a pixel."""
    kernel = psf.images(np.array([100.0]), np.array([100.0]), STAMP_PIX)[0]
    shape = [fft.next_fast_len(n + 2 * STAMP_PIX, real=True) for n in image.shape]
    product = fft.rfft2(image, shape) * fft.rfft2(kernel, shape)
    inner = slice(STAMP_PIX, STAMP_PIX + SIDE_PIX)
    return fft.irfft2(product, shape)[inner, inner].astype(np.float32)


def _draw_real(rng: np.random.Generator, stars, galaxies: NDArray, noise_dn: float, least_change: float) -> NDArray:
    """Real sources 12 px or more from each other.

    noise_dn is the error of a faint star's flux; variable stars change by five sigma and the share `least_change`.
    """
    n = 110
    real = np.zeros(n, REAL_DTYPE)
    real["kind"] = rng.choice([TRANSIENT, HOSTED, VARIABLE, MOVER], n, p=[0.45, 0.28, 0.17, 0.10])
    real["x"], real["y"] = rng.uniform(6, SIDE_PIX - 7, (2, n))
    snr = np.exp(rng.uniform(np.log(4.0), np.log(500.0), n))  # as many in each magnitude
    real["flux"] = snr * noise_dn * np.where(rng.random(n) < 0.2, -1.0, 1.0)
    hosts = galaxies[rng.integers(0, len(galaxies), n)]
    place, turn = np.abs(rng.normal(0, 0.8, n)) * hosts[:, 3], rng.uniform(0, 2 * np.pi, n)
    hosted = real["kind"] == HOSTED
    real["x"][hosted] = (hosts[:, 0] + place * np.cos(turn))[hosted]
    real["y"][hosted] = (hosts[:, 1] + place * np.sin(turn))[hosted]
    x, y, flux = stars
    chosen = rng.choice(np.flatnonzero(flux > np.minimum(8 * noise_dn, flux.max())), n)
    variable = real["kind"] == VARIABLE
    noise_star = np.hypot(noise_dn, np.sqrt(flux[chosen] / GAIN_E))
    least = np.clip(np.maximum(5 * noise_star / flux[chosen], least_change), 0, 0.9)
    change = np.exp(rng.uniform(np.log(least), 0.0)) * rng.choice([-0.7, 1.0], n) * flux[chosen]
    real["x"][variable], real["y"][variable] = x[chosen][variable], y[chosen][variable]
    real["flux"][variable] = change[variable]
    real["flux"][real["kind"] == MOVER] = np.abs(real["flux"][real["kind"] == MOVER])
    return _apart(real)


def _apart(real: NDArray) -> NDArray:
    """Those inside and 12 px or more from all before them."""
    inside = (np.minimum(real["x"], real["y"]) > 0) & (np.maximum(real["x"], real["y"]) < SIDE_PIX - 1)
    real = real[inside]
    distance = np.hypot(real["x"][:, None] - real["x"], real["y"][:, None] - real["y"])
    return real[~np.tril(distance < 12.0, -1).any(axis=1)]


def _add_real(rng: np.random.Generator, science: Image, reference: Image, real: NDArray, psf: PsfModel) -> None:
    """New light in the science image; light that went, in the reference; movers as short trails."""
    still = real["kind"] != MOVER
    for image, own in ((science, still & (real["flux"] > 0)), (reference, still & (real["flux"] < 0))):
        _add_both(image, psf, real["x"][own], real["y"][own], np.abs(real["flux"][own]))
    for row in real[~still]:
        length, angle = rng.uniform(0.1, 1.1) * psf.fwhm_pix, rng.uniform(0, np.pi)
        steps = np.linspace(-0.5, 0.5, 9) * length
        x, y = row["x"] + steps * np.cos(angle), row["y"] + steps * np.sin(angle)
        add_sources(science, psf, x, y, np.full(9, row["flux"] / 9))


def _smooth_field(rng: np.random.Generator, amplitude: float) -> Image:
    """A random field of the given rms that varies over some 150 px."""
    coarse = rng.normal(0.0, 1.0, (8, 8))
    return (ndimage.zoom(coarse, SIDE_PIX / 8, order=3, mode="nearest") * amplitude * 1.4).astype(np.float32)


def _mismatched_reference(rng, c: Conditions, stars, light: Image) -> Image:
    """What the engine believes of the constant sky: other width, roundness, places and gain."""
    shape = (SIDE_PIX, SIDE_PIX)
    wrong = (1 + c.psf_error * rng.normal(), *(c.psf_error * rng.normal(0, 0.7, 2)))
    e1, e2 = c.ellipticity
    psf = moffat_psf(
        c.fwhm_pix * wrong[0], c.beta * (1 + c.psf_error * rng.normal()), (e1 + wrong[1], e2 + wrong[2]), shape
    )
    x, y, flux = stars
    at = np.clip(np.rint([y, x]).astype(int), 0, SIDE_PIX - 1)
    shifts = [_smooth_field(rng, c.shift_error_pix)[*at] + rng.normal(0, 0.3 * c.shift_error_pix, x.size) for _ in "xy"]
    gain = 1 + _smooth_field(rng, 0.3 * c.gain_error)[*at] + rng.normal(0, c.gain_error, x.size)
    reference = _blurred(light * np.float32(1 + 0.5 * c.gain_error * rng.normal()), psf)
    _add_both(reference, psf, x + shifts[0], y + shifts[1], flux * gain)
    return reference


def _sigma_of(c: Conditions, science: Image, reference: Image, noise_dn: float) -> Image:
    """The engine's noise model: photons of the constant sources, reference noise, errors of place and gain."""
    model = np.maximum(reference, 0.0)
    gradient = np.hypot(ndimage.sobel(model, 0), ndimage.sobel(model, 1)) / 8.0
    variance = noise_dn**2 * (1 + c.reference_noise**2) + model / GAIN_E
    variance += (c.trust * c.shift_error_pix * gradient) ** 2
    variance += (c.trust * np.hypot(c.gain_error, 2 * c.psf_error) * model) ** 2
    return np.sqrt(variance, dtype=np.float32)


def _sources(rng: np.random.Generator, stars, galaxies: NDArray, noise_dn: float) -> NDArray:
    """Reference catalogue of what stands out."""
    x, y = (np.r_[stars[k], galaxies[:, k]] for k in (0, 1))
    flux = np.r_[stars[2], galaxies[:, 2]]
    error = np.hypot(0.3 * noise_dn, np.sqrt(flux / GAIN_E / 20))
    table = np.zeros(x.size, SOURCE_DTYPE)
    table["x"], table["y"] = x + rng.normal(0, 0.05, x.size), y + rng.normal(0, 0.05, x.size)
    table["flux"], table["snr"] = flux, flux / error
    table["mag"], table["sigmag"] = MAGZP - 2.5 * np.log10(flux), 1.0857 * error / flux
    spread = np.r_[np.zeros(stars[0].size), galaxies[:, 3] / 10]
    table["sharp"] = spread + rng.normal(0, 0.02, x.size)
    table["chi"] = 1 + 3 * spread + 0.1 * np.abs(rng.normal(size=x.size))
    return table[table["snr"] > 5]


def _filtered_width(pix: Image, sigma: Image, psf: PsfModel) -> float:
    """Robust width of the significance that a matched filter finds: one for a noise model that holds."""
    ratio = np.divide(pix, sigma, out=np.zeros_like(pix), where=np.isfinite(sigma))
    width = np.median(np.abs(_blurred(ratio, psf))) / np.sqrt((psf.center(STAMP_PIX) ** 2).sum())
    return 1.4826 * float(width)


def _wcs() -> TPV:
    linear = np.zeros(N_TERMS)
    linear[1] = 1.0
    middle = np.full(2, SIDE_PIX / 2)
    return TPV(np.array([150.0, 30.0]), middle, np.diag([-1.0, 1.0]) * 1.01 / 3600, linear, linear)


def make_scene(seed: int) -> Scene:
    """One scene; the seed decides all of it."""
    rng = np.random.default_rng([seed, 7])
    c = draw_conditions(rng)
    psf = moffat_psf(c.fwhm_pix, c.beta, c.ellipticity, (SIDE_PIX, SIDE_PIX))
    sky_noise = float(np.sqrt(c.sky_dn / GAIN_E + (READ_NOISE_E / GAIN_E) ** 2))
    flux_noise = sky_noise * np.hypot(1, c.reference_noise) / float(np.sqrt((psf.center(STAMP_PIX) ** 2).sum()))
    stars, galaxies = _draw_stars(rng, c), _draw_galaxies(rng)
    light = _galaxy_light(galaxies)
    science = _blurred(light, psf)
    _add_both(science, psf, *stars)
    reference = _mismatched_reference(rng, c, stars, light)
    real = _draw_real(rng, stars, galaxies, flux_noise, max(0.03, 4 * c.gain_error))
    sigma = _sigma_of(c, science, reference, sky_noise)
    _add_real(rng, science, reference, real, psf)
    mask = np.where(np.maximum(science, reference) + c.sky_dn > FULL_WELL_DN, SATURATED, 0).astype(np.int16)
    mask = ndimage.grey_dilation(mask, footprint=np.ones((3, 3))).astype(np.int16)
    noise = np.sqrt(sky_noise**2 + np.maximum(science, 0) / GAIN_E) * rng.standard_normal(science.shape, np.float32)
    science += noise.astype(np.float32)
    smooth = ndimage.gaussian_filter(rng.standard_normal(science.shape, np.float32), rng.uniform(0.3, 0.9))
    reference += smooth * np.float32(c.reference_noise * sky_noise / smooth.std())
    found = defects.add_defects(rng, (science, reference, mask), psf, sky_noise)
    pix = science - reference
    unusable = (mask & UNUSABLE) != 0
    pix[unusable], sigma[unusable] = 0.0, np.inf
    width = _filtered_width(pix, sigma, psf) * rng.normal(1.0, 0.015)
    sources, metrics = _sources(rng, stars, galaxies, sky_noise), {"sky_dn": c.sky_dn, "seeing_pix": c.fwhm_pix}
    sigma *= np.float32(width)
    difference = Difference(pix, sigma, mask, psf, science, reference, sources, GAIN_E, MAGZP, width, metrics)
    return Scene(difference, _wcs(), real, found, c)
