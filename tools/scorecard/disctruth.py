"""What changed between the reference epochs and an exposure, and what signal-to-noise ratio its noise allows.

Everything comes from the simulator's truth: its PSF, its sky, its stars and galaxies. The bound of a flux in a
difference image follows from the proper weighting of both images' white noise (Zackay, Ofek & Gal-Yam 2016, eq. 12 to
14), with the photons of the constant light under the source and its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.scorecard import limits
from tools.scorecard.products import Science
from tools.skysim import optics, render, variables

Array = NDArray[np.float64]

PROBE_SKY, PROBE_GALAXY, PROBE_STAR, TRANSIENT, VARIABLE, ASTEROID, STREAKER = range(7)
KINDS = ("probe on sky", "probe on galaxy", "probe on star", "transient", "variable", "asteroid", "streaker")
_OF_TRANSIENT = {variables.ON_SKY: PROBE_SKY, variables.ON_GALAXY: PROBE_GALAXY, variables.ON_STAR: PROBE_STAR}

#: flux: change against the mean of the reference epochs, DN of the calibrated image; sigma: its bound; light: constant
#: light in the source's pixel, DN; kind: index of KINDS; length_pix: of a mover's path.
CHANGE = np.dtype(
    [("id", "i8"), ("kind", "i2"), ("x", "f8"), ("y", "f8"), ("ra", "f8"), ("dec", "f8"), ("mag", "f8"),
     ("flux", "f8"), ("sigma", "f8"), ("snr", "f8"), ("light", "f8"), ("length_pix", "f8")]
)  # fmt: skip
HALF_PIX = 10
#: Changes fainter than this share of the noise of a pixel's PSF are no changes.
NEGLIGIBLE_SNR = 0.5


def changes(science: Science, epochs: Sequence[Science]) -> NDArray:
    """Everything that differs from the mean of the reference epochs, within 20 px of the image.

    Parameters
    ----------
    science : Science
    epochs : sequence of Science
        Exposures that the reference was made from: same channel and filter.

    Returns
    -------
    ndarray of CHANGE
    """
    parts = [_changed_stars(science, epochs), _transients(science, epochs), _movers(science), _gone(science, epochs)]
    found = np.concatenate(parts)
    n_y, n_x = limits.image_shape(science)
    inside = (found["x"] > -20) & (found["y"] > -20) & (found["x"] < n_x + 19) & (found["y"] < n_y + 19)
    found = found[inside]
    light, var_ratio = light_under(science, found["x"], found["y"]), _reference_noise(science, epochs)
    found["light"] = light[:, HALF_PIX, HALF_PIX]
    found["sigma"] = flux_bounds(science, found["x"], found["y"], np.abs(found["flux"]), light, var_ratio)
    found["snr"] = found["flux"] / found["sigma"]
    return found[(np.abs(found["snr"]) > NEGLIGIBLE_SNR) | (found["kind"] != VARIABLE)]


def is_probe(changed: NDArray) -> NDArray[np.bool_]:
    """Injected sources of constant flux."""
    return changed["kind"] <= PROBE_STAR


def _response_flux(table: NDArray) -> Array:
    return table["flux_dn"] * table["smooth_response"]


def _fill(table: NDArray, kind: int | NDArray, flux: Array) -> NDArray:
    out = np.zeros(table.size, CHANGE)
    for name in ("id", "x", "y", "ra", "dec", "mag"):
        out[name] = table[name]
    out["kind"], out["flux"] = kind, flux
    return out


def _mean_light(name: str, objects: NDArray, epochs: Sequence[Science]) -> Array:
    """Mean of 10^(-0.4 mag) of objects over the epochs whose image they are in; those that are not lit count as 0."""
    ids, total, n_in = objects["id"], np.zeros(objects.size), np.zeros(objects.size)
    order = np.argsort(ids)
    for epoch in epochs:
        table, (n_y, n_x) = epoch.table(name), limits.image_shape(epoch)
        at = np.minimum(np.searchsorted(ids[order], table["id"]), ids.size - 1)
        own = ids[order][at] == table["id"]
        light = np.zeros(objects.size)
        light[order[at[own]]] = 10.0 ** (-0.4 * table["mag"][own])
        x, y = sky_to_pixel(epoch, objects["ra"], objects["dec"])
        total += light
        n_in += (light > 0.0) | ((x > -0.5) & (y > -0.5) & (x < n_x - 0.5) & (y < n_y - 0.5))
    return total / np.maximum(n_in, 1.0)


def _less_reference(name: str, table: NDArray, epochs: Sequence[Science]) -> Array:
    """Flux of each object (DN) minus what the reference epochs have of it on the same scale."""
    if not table.size:
        return np.zeros(0)
    before = _mean_light(name, table, epochs)
    return _response_flux(table) * (1.0 - before / 10.0 ** (-0.4 * table["mag"]))


def _changed_stars(science: Science, epochs: Sequence[Science]) -> NDArray:
    stars = science.table("stars")
    stars = stars[stars["kind"] != variables.CONSTANT]
    return _fill(stars, VARIABLE, _less_reference("stars", stars, epochs))


def _transients(science: Science, epochs: Sequence[Science]) -> NDArray:
    table = science.table("transients")
    kind = np.array([_OF_TRANSIENT.get(int(k), TRANSIENT) for k in table["kind"]], dtype=np.int16)
    return _fill(table, kind, _less_reference("transients", table, epochs))


def _gone(science: Science, epochs: Sequence[Science]) -> NDArray:
    """Transients that the epochs have and this exposure has not, at the place where they would be."""
    here = science.table("transients")["id"]
    tables = [t[~np.isin(t["id"], here)] for e in epochs if (t := e.table("transients")).size]
    every = np.concatenate(tables) if tables else science.table("transients")[:0]
    _, first = np.unique(every["id"], return_index=True)
    if not first.size:
        return np.zeros(0, CHANGE)
    gone = every[first]
    gone["x"], gone["y"] = sky_to_pixel(science, gone["ra"], gone["dec"])
    light = _mean_light("transients", gone, epochs)
    out = _fill(gone, TRANSIENT, -light * 10.0 ** (0.4 * float(science.facts["zero_point_channel"])))
    out["mag"] = -2.5 * np.log10(light)
    return out


def sky_to_pixel(science: Science, ra: Array, dec: Array) -> tuple[Array, Array]:
    """0-based pixels of places on the sky, by a cubic through the truth's own grid (0.01 px)."""
    grid = science.table("wcs")
    ra0, dec0 = grid["ra"][grid.size // 2], grid["dec"][grid.size // 2]

    def terms(ra: Array, dec: Array) -> Array:
        u, v = (ra - ra0 + 180.0) % 360.0 - 180.0, dec - dec0
        return np.stack([u**i * v**j for j in range(4) for i in range(4 - j)], axis=-1)

    fit, *_ = np.linalg.lstsq(terms(grid["ra"], grid["dec"]), np.stack([grid["x"], grid["y"]], axis=1), rcond=None)
    x, y = (terms(ra, dec) @ fit).T
    return x, y


def _movers(science: Science) -> NDArray:
    table = science.table("movers")
    out = _fill(table, np.where(table["fast"], STREAKER, ASTEROID), _response_flux(table))
    out["length_pix"] = np.hypot(table["x_end"] - table["x_start"], table["y_end"] - table["y_start"])
    return out


def light_under(science: Science, x: Array, y: Array) -> Array:
    """Constant light (stars and galaxies, no sky) in windows about places, DN, shape (n, 2 HALF_PIX + 1, ...).

    Variable stars count as they are in this exposure: their photons are there. Only objects that reach a window are
    drawn.
    """
    n_y, n_x = limits.image_shape(science)
    canvas = np.zeros((n_y, n_x), np.float32)
    psf, stars, galaxies = limits.true_psf(science), science.table("stars"), science.table("galaxies")
    near = _near_windows(stars, x, y, (n_y, n_x))
    flux = _response_flux(stars)
    render.add_stars(canvas, stars["x"][near], stars["y"][near], flux[near], psf)
    near = _near_windows(galaxies, x, y, (n_y, n_x))
    drawn = galaxies[near]
    drawn["flux_dn"] = _response_flux(drawn)
    render.add_galaxies(canvas, drawn, psf, 1.012)
    padded = np.pad(canvas, HALF_PIX + 21)
    column, row = (np.rint(p).astype(int) + HALF_PIX + 21 for p in (x, y))
    k = np.arange(-HALF_PIX, HALF_PIX + 1)
    return padded[row[:, None, None] + k[:, None], column[:, None, None] + k].astype(float)


def _near_windows(table: NDArray, x: Array, y: Array, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Objects within 24 px of a place, and all bright ones (their wings reach far)."""
    cell = 24
    grid = np.zeros((shape[0] // cell + 5, shape[1] // cell + 5), bool)
    column, row = (np.clip((np.asarray(p) / cell + 2).astype(int), 1, n - 2)
                   for p, n in ((x, grid.shape[1]), (y, grid.shape[0])))  # fmt: skip
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            grid[row + dy, column + dx] = True
    column, row = (np.clip((table[p] / cell + 2).astype(int), 0, n - 1)
                   for p, n in (("x", grid.shape[1]), ("y", grid.shape[0])))  # fmt: skip
    return grid[row, column] | (table["flux_dn"] > 1e5)


class ReferenceNoise(NamedTuple):
    """The mean of the epochs, on the flux scale of the science image.

    Attributes
    ----------
    dark_var : float
        Variance of a pixel without objects, DN^2.
    per_light : float
        Variance per DN of light, DN.
    ratio, factor : ndarray
        Variance of the reference over that of the science image, and by how much it raises the variance of a flux.
    """

    dark_var: float
    per_light: float
    ratio: Array
    factor: Array


def _reference_noise(science: Science, epochs: Sequence[Science]) -> ReferenceNoise:
    gain, zero = science.gain_and_noise_e[0], float(science.facts["zero_point_channel"])
    scales = np.array([10.0 ** (0.4 * (zero - float(e.facts["zero_point_channel"]))) for e in epochs])
    dark = np.array([limits.background_var_e(e) for e in epochs]) / gain**2
    n = len(epochs)
    sharp, mixed = _stamp(science), np.mean([_stamp(e) for e in epochs], axis=0)
    ratio = np.geomspace(1e-4, 10.0, 60)
    factor = np.array([variance_factor(sharp, mixed, r) for r in ratio])
    return ReferenceNoise(float((scales**2 * dark).sum() / n**2), float(scales.sum() / n**2 / gain), ratio, factor)


def _stamp(science: Science) -> Array:
    """A star in the middle of the image and of its pixel."""
    psf = limits.true_psf(science)
    middle = np.array([np.rint(psf.half_x)]), np.array([np.rint(psf.half_y)])
    return limits.star_planes(psf, *middle, 20)[0, 0]


def variance_factor(new: Array, reference: Array, ratio: float) -> float:
    """By how much a noisy reference raises the variance of a flux in the difference.

    The information on a flux is the integral of |N|^2 |R|^2 / (s_n |R|^2 + s_r |N|^2), N and R the transforms of the
    PSFs, s their variances; without noise in the reference it is that of |N|^2 / s_n.

    Parameters
    ----------
    new, reference : ndarray, shape (n, n)
        PSFs of unit flux.
    ratio : float
        s_r / s_n.
    """
    power_n, power_r = (np.abs(np.fft.fft2(p)) ** 2 for p in (new, reference))
    return float(power_n.sum() / (power_n * power_r / (power_r + ratio * power_n)).sum())


def flux_bounds(science: Science, x: Array, y: Array, flux_dn: Array, light_dn: Array, noise: ReferenceNoise) -> Array:
    """Cramer-Rao bound of the flux change at places, DN, its own photons included; PSF and place known.

    Parameters
    ----------
    light_dn : ndarray, shape (n, 2 HALF_PIX + 1, 2 HALF_PIX + 1)
        Constant light.
    """
    psf, gain, dark_e = limits.true_psf(science), science.gain_and_noise_e[0], limits.background_var_e(science)
    sigma = np.empty(x.size)
    for start in range(0, x.size, limits.CHUNK):
        part = slice(start, start + limits.CHUNK)
        star = limits.star_planes(psf, x[part], y[part], HALF_PIX)[:, 0]
        own, light = flux_dn[part][:, None, None] * star, np.maximum(light_dn[part], 0.0)
        variance = dark_e / gain**2 + (own + light) / gain
        information = (star**2 / variance).sum(axis=(1, 2))
        weights = star**2 / (star**2).sum(axis=(1, 2), keepdims=True)
        of_new = (weights * variance).sum(axis=(1, 2))
        of_reference = noise.dark_var + noise.per_light * (weights * light).sum(axis=(1, 2))
        sigma[part] = np.sqrt(np.interp(of_reference / of_new, noise.ratio, noise.factor) / information)
    return sigma


def saturation_mag(science: Science) -> float:
    """Magnitude of a star (colour 0) whose brightest pixel just reaches the full well, centred on a pixel."""
    room = float(science.facts["full_well_dn"]) - float(science.facts["sky_dn"])
    return float(science.facts["zero_point_channel"] - 2.5 * np.log10(room / _stamp(science).max()))


def effective_seeing(science: Science) -> float:
    """FWHM of the PSF, px."""
    return optics.effective_fwhm(float(science.facts["core_fwhm_pix"]))
