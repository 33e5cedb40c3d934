"""Catalogue sources against the objects that were rendered: who is who, and how clean a case it is."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tools.scorecard.products import Science
from tools.skysim import optics

#: A detection belongs to the brightest object within this distance.
MATCH_PIX = 1.5
#: Neighbours within this distance count as contamination.
BLEND_PIX = 6.0
EDGE_PIX = 8.0
#: Mask bits that say that a pixel is not to be measured.
UNUSABLE = 6141

OBJECT = np.dtype(
    [("x", "f8"), ("y", "f8"), ("ra", "f8"), ("dec", "f8"), ("flux", "f8"), ("mag", "f8"), ("color", "f8"),
     ("response", "f8"), ("is_star", "?"), ("snr", "f8"),
     ("sigma_pix", "f8"), ("contamination", "f8")]
)  # fmt: skip


@dataclass(frozen=True)
class Matched:
    """Objects of a channel and the catalogue rows that belong to them.

    Attributes
    ----------
    objects : ndarray of OBJECT
        Everything rendered within the channel: stars, galaxies, transients, movers. `flux` is what the calibrated
        image should hold (DN), `snr` and `sigma_pix` (error of a coordinate) are what the noise allows at best,
        `contamination` is the flux of neighbours over the own.
    row : ndarray, shape (n,), int
        Catalogue row of each object, -1 where it was not detected.
    is_known : ndarray, shape (n_catalogue,), bool
        Detections with an object that can explain them.
    """

    objects: NDArray
    row: NDArray[np.intp]
    is_known: NDArray[np.bool_]


def objects_of(science: Science) -> NDArray:
    """All rendered objects about a channel, with signal-to-noise ratio and contamination."""
    parts = []
    for name in ("stars", "galaxies", "transients", "movers"):
        table = science.table(name)
        part = np.zeros(table.size, OBJECT)
        for column in ("x", "y", "ra", "dec", "mag", "color"):
            part[column] = table[column]
        part["response"], part["is_star"] = table["smooth_response"], name == "stars"
        part["flux"] = table["flux_dn"] * table["smooth_response"]
        parts.append(part)
    objects = np.concatenate(parts)
    objects["snr"], objects["sigma_pix"] = ideal(science, objects["flux"])
    objects["contamination"] = contamination(objects)
    return objects


def pixel_psf(core_fwhm_pix: float, shift_pix: tuple[float, float]) -> NDArray[np.float64]:
    """The simulated PSF (round), integrated over pixels, 41 x 41, its centre `shift_pix` from the middle pixel's."""
    n_sub, half = 5, 20
    axis = (np.arange((2 * half + 1) * n_sub) + 0.5) / n_sub - half - 0.5
    r2 = (axis[:, None] - shift_pix[1]) ** 2 + (axis[None, :] - shift_pix[0]) ** 2
    psf = np.zeros_like(r2)
    alphas = optics.moffat_alphas(np.asarray(core_fwhm_pix))
    for weight, beta, alpha in zip(optics.MOFFAT_WEIGHTS, optics.MOFFAT_BETAS, alphas):
        psf += weight * (beta - 1.0) / (np.pi * alpha**2) * (1.0 + r2 / alpha**2) ** -beta
    return psf.reshape(2 * half + 1, n_sub, 2 * half + 1, n_sub).sum(axis=(1, 3)) / n_sub**2


@lru_cache(maxsize=64)
def noise_limits(core_fwhm_pix: float, background_e: float) -> tuple[NDArray, NDArray, NDArray]:
    """Cramer-Rao limits of a fit with the true PSF, averaged over where in its pixel a star falls.

    Returns
    -------
    electrons, snr, sigma_pix : ndarray
        Grid of fluxes, and at each the signal-to-noise ratio and the error of a coordinate.
    """
    electrons = np.logspace(0.0, 8.0, 81)
    information = np.zeros((2, electrons.size))
    phases = [(i / 4.0, j / 4.0) for i in range(-1, 2) for j in range(-1, 2)]
    for dx, dy in phases:
        psf = pixel_psf(core_fwhm_pix, (dx, dy))
        slope = (pixel_psf(core_fwhm_pix, (dx + 0.02, dy)) - pixel_psf(core_fwhm_pix, (dx - 0.02, dy))) / 0.04
        for k, flux in enumerate(electrons):
            variance = flux * psf + background_e
            information[:, k] += np.sum(psf**2 / variance), np.sum((flux * slope) ** 2 / variance)
    information /= len(phases)
    return electrons, electrons * np.sqrt(information[0]), 1.0 / np.sqrt(information[1])


def ideal(science: Science, flux_dn: NDArray) -> tuple[NDArray, NDArray]:
    """Signal-to-noise ratio and error of a coordinate (px) that the noise allows at each flux."""
    gain, read_noise = science.gain_and_noise_e
    background = round(science.facts["sky_dn"] * gain + read_noise**2, 1)
    electrons, snr, sigma = noise_limits(round(float(science.facts["core_fwhm_pix"]), 3), background)
    flux = np.log(np.maximum(flux_dn * gain, electrons[0]))
    return tuple(np.exp(np.interp(flux, np.log(electrons), np.log(values))) for values in (snr, sigma))


def contamination(objects: NDArray) -> NDArray:
    """Flux of all neighbours within BLEND_PIX over the own flux."""
    n = min(16, len(objects))
    if n < 2:
        return np.zeros(len(objects))
    where = np.stack([objects["x"], objects["y"]], axis=1)
    _, index = cKDTree(where).query(where, k=n, distance_upper_bound=BLEND_PIX)
    flux = np.append(objects["flux"], 0.0)
    return flux[index].sum(axis=1) / np.maximum(objects["flux"], 1e-9) - 1.0


def match(science: Science) -> Matched:
    """Match the catalogue by position in the image, so that an error of the WCS does not matter."""
    return match_positions(science, science.positions, science.catalogue["FLUX_AUTO"])


def match_positions(science: Science, positions: NDArray, flux: NDArray) -> Matched:
    """Match detections at positions (n, 2), 0-based pixels, of the given fluxes (n,)."""
    objects = objects_of(science)
    n = min(8, len(objects))
    tree = cKDTree(np.stack([objects["x"], objects["y"]], axis=1))
    _, near = tree.query(positions, k=n, distance_upper_bound=MATCH_PIX)
    near = np.asarray(near).reshape(len(positions), n)
    brightness = np.append(objects["flux"], -np.inf)
    best = near[np.arange(len(near)), np.argmax(brightness[near], axis=1)]
    row = np.full(len(objects), -1, np.intp)
    taken = np.flatnonzero(best < len(objects))
    # The brighter detection keeps an object that two claim: it is written last.
    order = taken[np.argsort(flux[taken], kind="stable")]
    row[best[order]] = order
    return Matched(objects, row, _explained(science, objects, positions))


def _explained(science: Science, objects: NDArray, positions: NDArray) -> NDArray[np.bool_]:
    """Detections within reach of an object bright enough to be seen, or of a track or a fast mover."""
    seen = objects[objects["snr"] > 2.5]
    tree = cKDTree(np.stack([seen["x"], seen["y"]], axis=1))
    # Light of a bright star is wider than a seeing disc.
    known = np.isfinite(tree.query(positions, distance_upper_bound=2.5)[0])
    for star in seen[seen["flux"] > 2e5]:
        reach = 6.0 + 1.5 * np.log10(star["flux"] / 2e5) * 20.0
        known |= np.hypot(positions[:, 0] - star["x"], positions[:, 1] - star["y"]) < reach
    for x0, y0, x1, y1, width in segments(science):
        known |= distance_to_segment(positions, x0, y0, x1, y1) < width
    return known


def segments(science: Science) -> list[tuple[float, float, float, float, float]]:
    """Tracks and fast movers: end points and half width within which their light is found."""
    tracks = [(t["x0"], t["y0"], t["x1"], t["y1"], 3.0 * t["width_pix"] + 40.0 * (t["kind"] == 1))
              for t in science.table("tracks")]  # fmt: skip
    movers = science.table("movers")
    fast = movers[np.hypot(movers["x_end"] - movers["x_start"], movers["y_end"] - movers["y_start"]) > 3.0]
    return tracks + [(m["x_start"], m["y_start"], m["x_end"], m["y_end"], 6.0) for m in fast]


def distance_to_segment(points: NDArray, x0: float, y0: float, x1: float, y1: float) -> NDArray:
    """Distance of points (n, 2) to a line segment."""
    d = np.array([x1 - x0, y1 - y0])
    t = np.clip((points - (x0, y0)) @ d / max(float(d @ d), 1e-9), 0.0, 1.0)
    return np.hypot(points[:, 0] - x0 - t * d[0], points[:, 1] - y0 - t * d[1])


def inside(science: Science, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
    """Positions well within the image."""
    n_x, n_y = science.header["NAXIS1"], science.header["NAXIS2"]
    return (x > EDGE_PIX) & (y > EDGE_PIX) & (x < n_x - 1 - EDGE_PIX) & (y < n_y - 1 - EDGE_PIX)
