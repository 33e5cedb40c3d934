"""A difference image and its candidates against the truth of what changed: arrays in, named tables out.

Positions are 0-based pixels, fluxes DN of the calibrated image. Any program's difference can be measured.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from tools.scorecard import disctruth, limits
from tools.scorecard.products import Science
from tools.scorecard.sources import distance_to_segment, segments

Array = NDArray[np.float64]

#: A candidate this near to anything that changed is no false positive, px.
EXPLAINED_PIX = 2.0
#: A probe is found by a candidate this near.
MATCH_PIX = 1.5
#: Light of a bright change reaches further: candidates within this radius of one with this S/N are counted apart.
ECHO_PIX, ECHO_SNR = 20.0, 50.0
#: Probes are compared where no unusable pixel is this near along each axis, and no other change with S/N > 2.
CLEAN_PIX, ALONE_PIX = 4, 10.0
EDGE_PIX = 30
BRIGHT_PIX, FAINT_PIX, STAR_PIX = 10, 4, 3.0
#: A constant star is bright where it is at most this much fainter than saturation, and it shows above this S/N.
BRIGHT_MAG, SHOWN_SNR = 3.0, 3.0
#: Galaxies count to this magnitude, out to this many half-light radii.
GALAXY_MAG, GALAXY_RADII = 20.0, 2.0
ZONES = ("sky", "faint stars", "bright stars", "galaxies", "edges")
#: Bins of magnitude below saturation for the residuals of constant stars.
STAR_BINS = ((0.3, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 6.0))
REASONS = ("cosmic ray", "saturated star", "star", "galaxy", "edge", "echo of a bright change", "nothing there")

#: Measured and true flux with bound and stated error of the probes; found; position error; light under it, DN.
PROBE = np.dtype(
    [("kind", "i2"), ("mag", "f8"), ("snr", "f8"), ("flux", "f8"), ("sigma", "f8"), ("light", "f8"), ("clean", "?"),
     ("found", "?"), ("measured", "f8"), ("stated", "f8"), ("offset_pix", "f8"), ("candidate", "i8")]
)  # fmt: skip
#: Candidates that nothing real explains.
FALSE = np.dtype([("x", "f8"), ("y", "f8"), ("snr", "f8"), ("score", "f8"), ("reason", "i2")])


class Candidates(NamedTuple):
    """What is measured of a list of candidates.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
        0-based px.
    flux, sigflux : ndarray
        DN, negative where the source faded.
    score : ndarray
        Of the vetting, NaN where there is none.
    """

    x: Array
    y: Array
    flux: Array
    sigflux: Array
    score: Array

    @property
    def snr(self) -> Array:
        """Flux over its stated error, with the sign of the flux."""
        return self.flux / self.sigflux

    def select(self, kept: NDArray) -> "Candidates":
        """Some of them."""
        return Candidates(*(column[kept] for column in self))


@dataclass(frozen=True)
class DiscCheck:
    """One exposure of one channel.

    Attributes
    ----------
    name : str
        Of the exposure.
    seeing_ratio : float
        PSF's FWHM over the reference epochs' mean.
    n_stars : int
    probes : ndarray of PROBE
    false : ndarray of FALSE
        Candidates at |S/N| >= the cut that nothing explains, echoes included.
    widths : dict
        Zone -> robust width of difference / sigma, and "all".
    star_rms : dict
        Bin of `STAR_BINS` -> (number of pixels, rms of difference / sigma within STAR_PIX).
    n_candidates : int
    """

    name: str
    seeing_ratio: float
    n_stars: int
    probes: NDArray
    false: NDArray
    widths: dict[str, float]
    star_rms: dict[tuple[float, float], tuple[int, float]]
    n_candidates: int


class DiffProducts(NamedTuple):
    """What is measured of a difference.

    Attributes
    ----------
    pix, sigma : ndarray, shape (ny, nx)
        Difference and its 1-sigma error, DN; the error is infinite (or not positive) where unusable.
    candidates : Candidates
    """

    pix: NDArray
    sigma: NDArray
    candidates: Candidates


def check(
    science: Science,
    epochs: list[Science],
    products: DiffProducts,
    least_snr: float = 5.0,
    changed: NDArray | None = None,
) -> DiscCheck:
    """Measure one difference against the truth.

    Parameters
    ----------
    science : Science
    epochs : list of Science
        Exposures of the reference.
    products : DiffProducts
    least_snr : float
        False positives are counted from here on.
    changed : ndarray of disctruth.CHANGE, optional
        Where it has been made already.
    """
    pix, sigma, candidates = products
    changed = disctruth.changes(science, epochs) if changed is None else changed
    usable = np.isfinite(sigma) & (sigma > 0) & np.isfinite(pix)
    chi = np.zeros(pix.shape, np.float32)
    np.divide(pix, sigma, out=chi, where=usable)
    quiet = usable & ~near_changes(science, changed, pix.shape)
    seeing = np.mean([disctruth.effective_seeing(e) for e in epochs])
    loud = candidates.select(np.abs(candidates.snr) >= least_snr)
    return DiscCheck(
        science.exposure, disctruth.effective_seeing(science) / float(seeing), science.table("stars").size,
        probes(changed, candidates, usable), false_positives(science, changed, loud, pix.shape),
        zone_widths(chi, quiet, zones(science, pix.shape)), star_residuals(science, changed, chi, quiet),
        candidates.x.size,
    )  # fmt: skip


def robust_width(values: NDArray) -> float:
    """Half the range from the 16th to the 84th percentile; NaN for fewer than 100 values."""
    if values.size < 100:
        return float("nan")
    low, high = np.percentile(values, [15.865, 84.135])
    return float(high - low) / 2.0


def disc_mask(shape: tuple[int, int], x: Array, y: Array, radius: Array | float) -> NDArray[np.bool_]:
    """Pixels within a radius (one for all, or each its own) of places."""
    out = np.zeros(shape, bool)
    radii = np.broadcast_to(np.ceil(radius), x.shape).astype(int)
    for px, py, r in zip(x, y, radii, strict=True):
        y0, y1 = max(round(py) - r, 0), min(round(py) + r + 1, shape[0])
        x0, x1 = max(round(px) - r, 0), min(round(px) + r + 1, shape[1])
        if y0 < y1 and x0 < x1:
            rows, columns = np.ogrid[y0:y1, x0:x1]
            out[y0:y1, x0:x1] |= (rows - py) ** 2 + (columns - px) ** 2 <= r * r
    return out


def near_changes(science: Science, changed: NDArray, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels that light of anything that changed reaches: 6 px, further for bright ones; tracks and fast movers."""
    snr = np.abs(changed["snr"])
    radius = 6.0 + 12.0 * np.clip(np.log10(np.maximum(snr, 1.0) / 30.0), 0.0, None)
    out = disc_mask(shape, changed["x"], changed["y"], np.where(snr > 1.0, radius, 1.0))
    for x0, y0, x1, y1, width in segments(science):
        n = int(np.hypot(x1 - x0, y1 - y0)) + 2
        at = np.linspace(0.0, 1.0, max(n // 2, 2))
        out |= disc_mask(shape, x0 + at * (x1 - x0), y0 + at * (y1 - y0), width + 6.0)
    return out


def is_explained(science: Science, changed: NDArray, candidates: Candidates) -> NDArray[np.bool_]:
    """Candidates near anything that changed, on a track or on the path of a mover."""
    where = np.stack([candidates.x, candidates.y], axis=1)
    if not len(where):
        return np.zeros(0, bool)
    known = np.zeros(len(where), bool)
    if changed.size:
        tree = cKDTree(np.stack([changed["x"], changed["y"]], axis=1))
        known = np.isfinite(tree.query(where, distance_upper_bound=EXPLAINED_PIX)[0])
    for x0, y0, x1, y1, width in segments(science):
        known |= distance_to_segment(where, x0, y0, x1, y1) < width + 3.0
    return known


def false_positives(science: Science, changed: NDArray, candidates: Candidates, shape: tuple[int, int]) -> NDArray:
    """Candidates that nothing explains, with what is near them (the first of REASONS that fits)."""
    left = candidates.select(~is_explained(science, changed, candidates))
    out = np.zeros(left.x.size, FALSE)
    out["x"], out["y"], out["snr"], out["score"] = left.x, left.y, left.snr, left.score
    if not out.size:
        return out
    where = np.stack([left.x, left.y], axis=1)
    stars, galaxies = science.table("stars"), science.table("galaxies")
    depth = stars["mag"] - disctruth.saturation_mag(science)
    big = galaxies[galaxies["mag"] < GALAXY_MAG + 1.0]
    hits = np.stack(np.divmod(science.table("cosmic_rays")["index"].astype(int), shape[1])[::-1], axis=1).astype(float)
    loud = changed[np.abs(changed["snr"]) > ECHO_SNR]
    edge = np.minimum.reduce([left.x, left.y, shape[1] - 1 - left.x, shape[0] - 1 - left.y]) < EDGE_PIX
    checks = (
        _within(hits, where, 2.0), _within(_xy(stars[depth < 0.0]), where, 30.0),
        _within(_xy(stars[depth < 7.0]), where, 3.0), _within(_xy(big), where, 5.0), edge,
        _within(_xy(loud), where, ECHO_PIX),
    )  # fmt: skip
    out["reason"] = np.select(checks, range(len(checks)), len(REASONS) - 1)
    return out


def _xy(table: NDArray) -> Array:
    return np.stack([table["x"], table["y"]], axis=1)


def _within(targets: Array, points: Array, radius_pix: float) -> NDArray[np.bool_]:
    if not len(targets) or not len(points):
        return np.zeros(len(points), bool)
    return np.isfinite(cKDTree(targets).query(points, distance_upper_bound=radius_pix)[0])


def probes(changed: NDArray, candidates: Candidates, usable: NDArray) -> NDArray:
    """Probes within the image: found or not, with their measured flux; `clean` away from masks and other changes."""
    n_y, n_x = usable.shape
    inner = (changed["x"] > EDGE_PIX) & (changed["y"] > EDGE_PIX)
    inner &= (changed["x"] < n_x - 1 - EDGE_PIX) & (changed["y"] < n_y - 1 - EDGE_PIX)
    own = changed[disctruth.is_probe(changed) & inner]
    out = np.zeros(own.size, PROBE)
    for name in ("kind", "mag", "snr", "flux", "sigma", "light"):
        out[name] = own[name]
    if not own.size:
        return out
    bad_near = ndimage.maximum_filter(~usable, 2 * CLEAN_PIX + 1)
    others = changed[np.abs(changed["snr"]) > 2.0]
    crowd = cKDTree(_xy(others)).query_ball_point(_xy(own), ALONE_PIX, return_length=True)
    itself = np.abs(own["snr"]) > 2.0
    clean = ~bad_near[np.rint(own["y"]).astype(int), np.rint(own["x"]).astype(int)]
    out["clean"] = clean & (crowd <= itself)
    out["candidate"], out["measured"], out["stated"], out["offset_pix"] = -1, np.nan, np.nan, np.nan
    if candidates.x.size:
        where = np.stack([candidates.x, candidates.y], axis=1)
        distance, row = cKDTree(where).query(_xy(own), distance_upper_bound=MATCH_PIX)
        found = np.isfinite(distance)
        out["found"] = found
        for name, values in (("measured", candidates.flux), ("stated", candidates.sigflux)):
            out[name][found] = values[row[found]]
        out["candidate"][found], out["offset_pix"][found] = row[found], distance[found]
    return out


def zones(science: Science, shape: tuple[int, int]) -> NDArray[np.int8]:
    """Zone of each pixel, index of ZONES."""
    stars, galaxies = science.table("stars"), science.table("galaxies")
    depth = stars["mag"] - disctruth.saturation_mag(science)
    shown = stars["flux_dn"] * stars["smooth_response"] > SHOWN_SNR * _sky_sigma(science)
    bright, faint = stars[depth < BRIGHT_MAG], stars[(depth >= BRIGHT_MAG) & shown]
    big = galaxies[galaxies["mag"] < GALAXY_MAG]
    out = np.zeros(shape, np.int8)
    out[disc_mask(shape, faint["x"], faint["y"], FAINT_PIX)] = ZONES.index("faint stars")
    radius = GALAXY_RADII * big["r_half_arcsec"] / 1.012 + 2.0
    out[disc_mask(shape, big["x"], big["y"], radius)] = ZONES.index("galaxies")
    out[disc_mask(shape, bright["x"], bright["y"], BRIGHT_PIX)] = ZONES.index("bright stars")
    for border in (np.s_[:EDGE_PIX], np.s_[-EDGE_PIX:], np.s_[:, :EDGE_PIX], np.s_[:, -EDGE_PIX:]):
        out[border] = ZONES.index("edges")
    return out


def _sky_sigma(science: Science) -> float:
    """Bound of the flux of a faint star alone on the sky, DN."""
    n_y, n_x = limits.image_shape(science)
    middle = np.array([n_x / 2.0]), np.array([n_y / 2.0])
    return float(limits.bounds(science, *middle, np.array([1.0])).sigma_flux[0])


def zone_widths(chi: NDArray, quiet: NDArray, zone: NDArray) -> dict[str, float]:
    """Robust width of difference / sigma in each zone and over all."""
    found = {name: robust_width(chi[quiet & (zone == k)]) for k, name in enumerate(ZONES)}
    return {"all": robust_width(chi[quiet]), **found}


def star_residuals(
    science: Science, changed: NDArray, chi: NDArray, quiet: NDArray
) -> dict[tuple[float, float], tuple[int, float]]:
    """rms of difference / sigma within STAR_PIX of constant stars, by magnitude below saturation.

    The mean square over all usable pixels of a bin's stars: not robust, as the anchors have it. Pixels near anything
    that changed are left out.
    """
    stars = science.table("stars")
    stars = stars[stars["kind"] == 0]
    depth = stars["mag"] - disctruth.saturation_mag(science)
    n_y, n_x = chi.shape
    reach = int(np.ceil(STAR_PIX))
    inner = (stars["x"] > reach + 1) & (stars["y"] > reach + 1)
    inner &= (stars["x"] < n_x - 2 - reach) & (stars["y"] < n_y - 2 - reach)
    k = np.arange(-reach, reach + 1)
    out = {}
    for low, high in STAR_BINS:
        own = stars[inner & (depth >= low) & (depth < high)]
        column, row = (np.rint(own[p]).astype(int)[:, None, None] for p in ("x", "y"))
        rows, columns = row + k[:, None], column + k
        near = (rows - own["y"][:, None, None]) ** 2 + (columns - own["x"][:, None, None]) ** 2 <= STAR_PIX**2
        near &= quiet[rows, columns]
        values = chi[rows, columns][near].astype(float)
        out[low, high] = (values.size, float(np.sqrt(np.mean(values**2))) if values.size else float("nan"))
    return out
