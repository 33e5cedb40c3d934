"""A PSF-fit catalogue of one channel against the truth: scatter over its bound, bias, completeness, purity, zero point.

Any program's catalogue can be measured: positions, fluxes and their stated errors are all it takes. Fluxes are compared
with what the calibrated image should hold, the smooth response included, so no zero-point surface is needed.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtr, ndtri

from tools.scorecard import limits, sources
from tools.scorecard.photometry import usable_at
from tools.scorecard.products import Science
from tools.scorecard.psfmodel import PsfError, model_error
from tools.skysim import optics

Array = NDArray[np.float64]

#: A detection and a star can be one when they are this near and their fluxes differ by at most this much.
MATCH_PIX, MATCH_MAG = 1.0, 1.0
#: Neighbours' light that a fit would take for the star's: negligible below this share of the bound of its flux.
NEGLIGIBLE_SIGMA = 0.1
REACH_PIX = 40.0
#: No unusable pixel this near (along each axis) to stars that are compared with a bound.
CLEAN_PIX = 4
#: A detection is explained when light of true sources that nobody else claims makes up this share of its flux.
EXPLAINED_SHARE = 0.5
#: Light of a galaxy is found within this many px or half-light radii; a bad fit of a saturated star is counted apart
#: this near, px.
GALAXY_PIX, GALAXY_RADII, SATURATED_PIX = 4.0, 3.0, 30.0


class Catalogue(NamedTuple):
    """What is measured of a catalogue.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
        0-based px.
    flux, sigflux : ndarray, shape (n,)
        DN.
    sigma_pix : ndarray, shape (n, 2), or None
        Stated errors of x and y.
    zero_point : float
        NaN where there is none.
    """

    x: Array
    y: Array
    flux: Array
    sigflux: Array
    sigma_pix: Array | None = None
    zero_point: float = np.nan

    def select(self, kept: NDArray) -> "Catalogue":
        """Some of the rows."""
        sigma_pix = None if self.sigma_pix is None else self.sigma_pix[kept]
        return Catalogue(self.x[kept], self.y[kept], self.flux[kept], self.sigflux[kept], sigma_pix, self.zero_point)


class Truths(NamedTuple):
    """What was rendered, with the bounds that hold for each object.

    Attributes
    ----------
    objects : ndarray of sources.OBJECT
    bounds : limits.Bounds
        As if each were alone.
    depth : ndarray
        Magnitude of the flux in the image, minus that of a flux of five times its bound.
    neighbours : ndarray
        DN of other objects that a fit of this one alone would take for its own.
    limit_mag : float
        Magnitude with S/N 5 in the middle of the image.
    """

    objects: NDArray
    bounds: limits.Bounds
    depth: Array
    neighbours: Array
    limit_mag: float


@dataclass(frozen=True)
class PsfCheck:
    """One channel.

    Attributes
    ----------
    clean : ndarray of CLEAN
        Matched stars whose neighbours are negligible.
    stars : ndarray of FOUND
        All stars in usable pixels, found or not.
    n_detections, n_spurious, n_by_saturated : int
        Rows in usable pixels, those that nothing explains, and those of these near a saturated star.
    snr_cut : float
        Where the catalogue ends, in its own S/N.
    zero_point_error : float
        mag, product minus truth.
    limit_mag : float
    psf : PsfError or None
    """

    clean: NDArray
    stars: NDArray
    n_detections: int
    n_spurious: int
    n_by_saturated: int
    snr_cut: float
    zero_point_error: float
    limit_mag: float
    psf: PsfError | None = field(default=None)


#: mag, S/N at the bound, depth, relative bound of the flux; flux over true flux; errors in units of their bounds
#: (flux, x, y), and in units of the stated errors (NaN where none are stated); place on the image, -1 to 1.
CLEAN = np.dtype([(name, "f8") for name in (
    "mag", "snr", "depth", "ratio", "flux_sigma", "x_sigma", "y_sigma", "flux_pull", "x_pull", "y_pull", "u", "v",
)])  # fmt: skip
#: True magnitude, depth, measured minus true magnitude (NaN where not found), whether neighbours are negligible.
FOUND = np.dtype([("mag", "f8"), ("depth", "f8"), ("error_mag", "f8"), ("is_alone", "?")])


def read_catalogue(science: Science) -> Catalogue:
    """The suite's own catalogue ``psfcat.fits`` of a channel."""
    with fits.open(science.path("psfcat.fits"), memmap=False) as hdus:
        rows = next(hdu.data for hdu in hdus if getattr(hdu, "columns", None) is not None)
        zero = next((hdu.header["MAGZP"] for hdu in hdus if "MAGZP" in hdu.header), science.header.get("MAGZP", np.nan))
        x, y, flux, sigma = (np.array(rows[name], float) for name in ("xpos", "ypos", "flux", "sigflux"))
    return Catalogue(x - 1.0, y - 1.0, flux, sigma, None, float(zero))


def truths(science: Science) -> Truths:
    """Objects of a channel, the bounds of each, and the light that their neighbours add."""
    objects = sources.objects_of(science)
    bound = limits.bounds(science, objects["x"], objects["y"], objects["flux"])
    # The S/N 5 flux hardly depends on the place; what it depends on is the width of the PSF there.
    limit = limits.limit_mag(science)
    flux_mag = science.facts["zero_point_channel"] - 2.5 * np.log10(np.maximum(objects["flux"], 1e-6))
    light = neighbour_light(limits.true_psf(science), objects)
    return Truths(objects, bound, flux_mag - limit, light, limit)


def neighbour_light(psf: optics.Psf, objects: NDArray) -> Array:
    """DN that a fit of each object alone would take from all others within REACH_PIX."""
    distance, share = limits.overlap(psf, REACH_PIX)
    where = np.stack([objects["x"], objects["y"]], axis=1)
    first, second = cKDTree(where).query_pairs(REACH_PIX, output_type="ndarray").T
    apart = np.hypot(*(where[first] - where[second]).T)
    weight = np.interp(apart, distance, share)
    flux, n = objects["flux"], len(objects)
    light = np.bincount(first, weight * flux[second], n) + np.bincount(second, weight * flux[first], n)
    return light.astype(float)


def match(objects: NDArray, found: Catalogue) -> NDArray[np.intp]:
    """One-to-one match within MATCH_PIX and MATCH_MAG: catalogue row of each object, -1 where there is none.

    Pairs that are each other's best, by distance and difference of magnitude on an equal footing, are joined and
    taken out, until none is left.
    """
    row = np.full(len(objects), -1, np.intp)
    if not len(objects) or not found.x.size:
        return row
    stars = cKDTree(np.stack([objects["x"], objects["y"]], axis=1))
    near = stars.sparse_distance_matrix(cKDTree(np.stack([found.x, found.y], axis=1)), MATCH_PIX, output_type="ndarray")
    star, det, distance = near["i"], near["j"], near["v"]
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitudes = np.abs(2.5 * np.log10(found.flux[det] / objects["flux"][star]))
    close = magnitudes <= MATCH_MAG
    star, det = star[close], det[close]
    cost = np.hypot(distance[close] / MATCH_PIX, magnitudes[close] / MATCH_MAG)
    while star.size:
        best_of_star, best_of_det = np.full(len(objects), np.inf), np.full(found.x.size, np.inf)
        np.minimum.at(best_of_star, star, cost)
        np.minimum.at(best_of_det, det, cost)
        joined = (cost == best_of_star[star]) & (cost == best_of_det[det])
        row[star[joined]] = det[joined]
        used = np.zeros(found.x.size, bool)
        used[row[row >= 0]] = True
        left = (row[star] < 0) & ~used[det]
        star, det, cost = star[left], det[left], cost[left]
    return row


def spurious(science: Science, truth: Truths, found: Catalogue, row: NDArray) -> NDArray[np.bool_]:
    """Detections in usable pixels that are no true source, and no sum of true sources that nobody else claims."""
    objects = truth.objects
    where = np.stack([found.x, found.y], axis=1)
    lonely = np.ones(found.x.size, bool)
    lonely[row[row >= 0]] = False
    free = objects[row < 0]
    pairs = cKDTree(where).sparse_distance_matrix(
        cKDTree(np.stack([free["x"], free["y"]], axis=1)), 10.0, output_type="ndarray"
    )
    distance, share = limits.overlap(limits.true_psf(science), REACH_PIX)
    light = np.interp(pairs["v"], distance, share) * free["flux"][pairs["j"]]
    light_at = np.bincount(pairs["i"], light, found.x.size)
    lonely &= light_at < EXPLAINED_SHARE * found.flux
    lonely &= ~in_galaxies(science, where)
    for x0, y0, x1, y1, width in sources.segments(science):
        lonely &= sources.distance_to_segment(where, x0, y0, x1, y1) >= width
    return lonely & usable_at(science, found.x, found.y)


def in_galaxies(science: Science, where: Array) -> NDArray[np.bool_]:
    """Positions (n, 2) in the light of a galaxy or its host: knots of it are no source of their own, but no fault."""
    galaxies, scale_arcsec = science.table("galaxies"), 3600.0 * abs(science.header["CD2_2"])
    inside = np.zeros(len(where), bool)
    if not len(galaxies) or not len(where):
        return inside
    reach = np.maximum(GALAXY_PIX, GALAXY_RADII * galaxies["r_half_arcsec"] / scale_arcsec)
    tree = cKDTree(where)
    for galaxy, radius in zip(galaxies, reach):
        inside[tree.query_ball_point([galaxy["x"], galaxy["y"]], radius)] = True
    return inside


def clear_of_bad_pixels(science: Science, x: Array, y: Array) -> NDArray[np.bool_]:
    """Positions without an unusable pixel within CLEAN_PIX along each axis."""
    n_y, n_x = science.mask.shape
    good = np.ones(x.size, bool)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    for dy in range(-CLEAN_PIX, CLEAN_PIX + 1):
        for dx in range(-CLEAN_PIX, CLEAN_PIX + 1):
            bits = science.mask[np.clip(row + dy, 0, n_y - 1), np.clip(column + dx, 0, n_x - 1)]
            good &= bits & sources.UNUSABLE == 0
    return good


def check(science: Science, found: Catalogue, truth: Truths | None = None) -> PsfCheck:
    """Compare a catalogue with the truth of its channel."""
    truth = truths(science) if truth is None else truth
    objects, bound = truth.objects, truth.bounds
    real = np.isfinite(found.flux) & (found.flux > 0.0) & np.isfinite(found.x + found.y)
    found = found.select(real)
    row = match(objects, found)
    usable = objects["is_star"] & usable_at(science, objects["x"], objects["y"])
    alone = usable & (truth.neighbours < NEGLIGIBLE_SIGMA * bound.sigma_flux)
    bad = spurious(science, truth, found, row)
    where = np.stack([found.x, found.y], axis=1)[bad]
    return PsfCheck(
        clean_stars(science, truth, found, row, alone), found_stars(truth, found, row, usable, alone),
        int(usable_at(science, found.x, found.y).sum()), int(bad.sum()), int(_near_saturated(science, where).sum()),
        catalogue_end(found),
        found.zero_point - science.facts["zero_point_channel"], truth.limit_mag, model_error(science),
    )  # fmt: skip


def catalogue_end(found: Catalogue) -> float:
    """S/N that nearly all rows exceed; NaN of nothing."""
    stated = found.sigflux > 0.0
    return float(np.percentile(found.flux[stated] / found.sigflux[stated], 0.5)) if stated.any() else float("nan")


def _near_saturated(science: Science, where: Array) -> NDArray[np.bool_]:
    stars = science.table("stars")
    stars = stars[stars["saturated"]]
    if not len(stars) or not len(where):
        return np.zeros(len(where), bool)
    tree = cKDTree(np.stack([stars["x"], stars["y"]], axis=1))
    return np.isfinite(tree.query(where, distance_upper_bound=SATURATED_PIX)[0])


def clean_stars(science: Science, truth: Truths, found: Catalogue, row: NDArray, alone: NDArray) -> NDArray:
    """CLEAN rows of the matched stars that are alone, unsaturated and clear of bad pixels."""
    pick = np.flatnonzero(alone & (row >= 0))
    pick = pick[clear_of_bad_pixels(science, truth.objects["x"][pick], truth.objects["y"][pick])]
    star, det = truth.objects[pick], row[pick]
    sigma = [part[pick] for part in truth.bounds]
    errors = [found.flux[det] - star["flux"], found.x[det] - star["x"], found.y[det] - star["y"]]
    none = np.full((found.x.size, 2), np.nan) if found.sigma_pix is None else found.sigma_pix
    stated = [found.sigflux[det], *none[det].T]
    out = np.zeros(pick.size, CLEAN)
    out["mag"], out["snr"], out["depth"] = star["mag"], star["flux"] / sigma[0], truth.depth[pick]
    out["ratio"] = found.flux[det] / star["flux"]
    for name, error, limit, own in zip(("flux", "x", "y"), errors, sigma, stated):
        out[f"{name}_sigma"], out[f"{name}_pull"] = error / limit, error / own
    n_y, n_x = science.mask.shape
    out["u"], out["v"] = 2.0 * star["x"] / (n_x - 1) - 1.0, 2.0 * star["y"] / (n_y - 1) - 1.0
    return out


def found_stars(truth: Truths, found: Catalogue, row: NDArray, usable: NDArray, alone: NDArray) -> NDArray:
    """FOUND rows of the stars in usable pixels."""
    out = np.zeros(int(usable.sum()), FOUND)
    out["mag"], out["depth"], out["is_alone"] = truth.objects["mag"][usable], truth.depth[usable], alone[usable]
    flux = np.where(row >= 0, found.flux[row] if found.flux.size else np.nan, np.nan)
    out["error_mag"] = (-2.5 * np.log10(flux / np.maximum(truth.objects["flux"], 1e-6)))[usable]
    return out


def expected_selected(snr: Array, cut: float) -> Array:
    """Median of (flux - true flux) / sigma of what passes flux > cut * sigma: a truncated normal law."""
    below = ndtr(cut - snr)
    return ndtri(below + 0.5 * (1.0 - below))


def expected_free_position(snr: Array) -> Array:
    """Bias of a maximum-likelihood flux in sigma because the position is free too.

    The fit climbs to a peak of signal plus noise. To second order each of the two coordinates adds half of
    sigma^2 / flux.
    """
    return 1.0 / snr
