"""Candidates of a difference image: matched filter, PSF fits, features, and a loose filter of what is obviously false.

The order of the steps is all that this module adds.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.psfpeaks import find_peaks
from zsds_hpc.photometry.psfdetect import PEAK_DTYPE, local_filters
from zsds_hpc.subtraction.candcat import FeatureParams, measure
from zsds_hpc.subtraction.cutouts import Cutouts
from zsds_hpc.subtraction.diffphot import DiffPhotParams, fit_sources
from zsds_hpc.subtraction.images import Difference
from zsds_hpc.subtraction.limits import image_limit_mag, limit_mag_at

#: Why a source is not a candidate, in the order in which the reasons are tried; "trail" once streaks are known.
REASONS = (
    "lobe", "not_finite", "snr", "magpsf", "edge", "nbad", "dipole", "fwhm", "elong", "magdiff", "chi", "level",
    "trail",
)  # fmt: skip


class CandidateParams(Params):
    """How candidates are found, and which are let through."""

    detect_share: float = param(
        0.95, "Peaks are looked for down to this share of what a star of least_snr shows between pixels.", "", 0.3, 1.0
    )
    filter_fwhm: float = param(1.5, "Half side of the filter, in FWHM.", "FWHM", 0.5, 3.0)
    tile_pix: int = param(256, "The PSF is taken as constant over tiles of about this side.", "px", 32, 8192)
    least_share: float = param(0.5, "Share of the filter that must lie on usable pixels.", "", 0.05, 1.0)
    max_peaks: int = param(30_000, "More peaks than this mean a failed difference.", "", 1)
    max_candidates: int = param(5_000, "More sources at the least S/N than this, too.", "", 1)
    least_snr: float = param(5.0, "S/N of the PSF fit that a candidate needs.", "", 3.0, 100.0)
    faintest_mag: float = param(23.5, "Faintest magpsf.", "mag", 10.0, 35.0)
    edge_pix: float = param(4.0, "Least mindtoedge.", "px", 0.0, 100.0)
    max_nbad: int = param(4, "Unusable pixels in 5x5 at most.", "", 0, 25)
    dipole_fwhm: float = param(1.25, "Halves of a dipole are closer than this.", "FWHM", 0.0, 5.0)
    dipole_balance: float = param(0.5, "And their fluxes cancel but for this share of the larger.", "", 0.0, 1.0)
    max_chi: float = param(1.5, "Largest chi of a faint source.", "", 1.0, 100.0)
    max_chipsf: float = param(2.0, "Largest chipsf of a faint source.", "", 1.0, 1000.0)
    chi_snr: float = param(25.0, "max_chi is larger by the square of S/N over this: PSF, blends.", "", 1.0)
    chipsf_snr: float = param(10.0, "max_chipsf is larger by the square of S/N over this.", "", 1.0)
    max_fwhm_pix: float = param(7.0, "Largest fwhm.", "px", 1.0, 50.0)
    max_elong: float = param(1.6, "Largest elong; longer ones are looked for as streaks.", "", 1.0, 20.0)
    elong_slack: float = param(40.0, "max_elong - 1 is larger by this over S/N: noise makes round ones long.", "", 0.0)
    min_magdiff: float = param(-0.4, "Least magdiff.", "mag", -5.0, 0.0)
    max_magdiff: float = param(0.75, "Largest magdiff.", "mag", 0.0, 5.0)
    magdiff_sigma: float = param(3.0, "magdiff is outside only by more than this many errors of fluxap.", "", 0.0, 20.0)
    fit: DiffPhotParams = param(DiffPhotParams(), "PSF fits.")
    features: FeatureParams = param(FeatureParams(), "Measurements.")


class Candidates(NamedTuple):
    """Candidates of an image.

    Attributes
    ----------
    table : ndarray, shape (n,), `candcat.CANDIDATE_DTYPE`
        By ypos, then xpos.
    cutouts : Cutouts
        Science, template, difference, each (n, 63, 63).
    n_raw : int
        Peaks of the filtered image above the threshold of detection.
    rejected : dict
        Reason -> count (`REASONS`), for sources that were fitted.
    limit_mag : float
        5-sigma limit for a star, median over the image; `limits.limit_mag_at` tells it at a place.
    """

    table: np.ndarray
    cutouts: Cutouts
    n_raw: int
    rejected: dict[str, int]
    limit_mag: float


def find_candidates(difference: Difference, wcs: TPV, params: CandidateParams) -> Candidates:
    """Find, fit, measure and filter the candidates of a difference image.

    Parameters
    ----------
    difference : Difference
    wcs : TPV
        Of the science image.
    params : CandidateParams

    Raises
    ------
    BadInput
        The images are of different shapes, or PSF, gain or zero point cannot be.
    AlgorithmFailure
        So many peaks that the difference cannot be right; the figure tells how many.
    """
    _check(difference)
    peaks = detect(difference, params)
    fits = fit_sources(difference, peaks, 0.95 * params.least_snr, params.fit)
    counts = dict.fromkeys(REASONS, 0)
    counts["lobe"] = int(fits["lobe"].sum())
    fits = fits[~fits["lobe"]]
    known = np.isfinite(fits["flux"] + fits["sigflux"] + fits["x"] + fits["y"]) & (fits["sigflux"] > 0)
    known &= (fits["flux"] != 0) & np.isfinite(fits["var_x"] + fits["var_y"])
    counts["not_finite"] = int((~known).sum())
    enough = np.abs(fits["flux"]) >= params.least_snr * fits["sigflux"]
    counts["snr"] = int((known & ~enough).sum())
    fits = fits[known & enough]
    if len(fits) > params.max_candidates:
        raise AlgorithmFailure(
            "candidates: too many sources", n_sources=len(fits), max_candidates=params.max_candidates
        )
    limit_mag = image_limit_mag(difference)
    limits = (limit_mag, limit_mag_at(difference, fits["x"], fits["y"]))
    table, cutouts = measure(difference, wcs, fits, limits, params.features)
    passed = _filter(table, _dipoles(fits, params.dipole_fwhm * difference.psf.fwhm_pix, params), params, counts)
    return Candidates(table[passed], Cutouts(*(c[passed] for c in cutouts)), len(peaks), counts, limit_mag)


def _check(difference):
    shape = difference.pix.shape
    for name in ("sigma", "mask", "science", "reference"):
        if getattr(difference, name).shape != shape or len(shape) != 2:
            raise BadInput(f"candidates: {name} {getattr(difference, name).shape} and difference {shape} do not fit")
    psf = difference.psf
    if psf.shape != shape:
        raise BadInput(f"candidates: PSF of an image {psf.shape}, difference {shape}")
    light = float(psf.center(psf.half_pix).sum())
    if not 0.5 < light < 1.5:
        raise BadInput(f"candidates: the PSF holds {light:.3g} of a star's light")
    if not difference.gain_e > 0 or not np.isfinite(difference.magzp):
        raise BadInput(f"candidates: gain {difference.gain_e}, zero point {difference.magzp}")


def detect(difference: Difference, params: CandidateParams) -> np.ndarray:
    """Peaks of either sign of the difference filtered with the local PSF (Zackay, Ofek & Gal-Yam 2016, section 3).

    In bands of rows, so that what the filter needs stays in the cache and no image is made.

    Parameters
    ----------
    difference : Difference
    params : CandidateParams

    Returns
    -------
    ndarray, shape (n,), `photometry.psfdetect.PEAK_DTYPE`
        By y, then x; negative peaks have negative flux and snr.

    Raises
    ------
    AlgorithmFailure
        More than `max_peaks`.
    """
    psf, (n_y, n_x) = difference.psf, difference.pix.shape
    half = min(max(1, int(np.ceil(params.filter_fwhm * psf.fwhm_pix))), psf.half_pix)
    filters = local_filters(psf, params.tile_pix, half)
    edges = [round(k * n_y / len(filters)) for k in range(len(filters) + 1)]
    tallest = max(np.diff(edges)) + 2 * (half + 1)
    data, variance = np.empty((tallest, n_x), np.float32), np.empty((tallest, n_x), np.float32)
    least = params.detect_share * params.least_snr * _worst_place(psf, half)
    zero, wanted = np.zeros((tallest, n_x), np.float32), np.ones((1, max(1, n_x // 64)), np.uint8)
    found = []
    for k, (first, last) in enumerate(pairwise(edges)):
        low, high = max(0, first - half - 1), min(n_y, last + half + 1)
        band = data[: high - low], zero[: high - low], variance[: high - low]
        _fill_band_inplace(band, difference.pix[low:high], difference.sigma[low:high])
        rows = find_peaks(band, np.zeros(2), filters[k : k + 1], wanted, least, params.least_share, both_signs=True)
        rows[:, 1] += low
        found.append(rows[(rows[:, 1] >= first - 0.5) & (rows[:, 1] < last - 0.5)])
        if sum(map(len, found)) > params.max_peaks:
            raise AlgorithmFailure("candidates: too many peaks", max_peaks=params.max_peaks, n_rows=int(last))
    peaks = np.concatenate(found)
    peaks = peaks[np.lexsort((peaks[:, 0], peaks[:, 1]))]
    return np.rec.fromarrays(peaks.T, dtype=PEAK_DTYPE).view(np.ndarray)


def _worst_place(psf, half):
    """Significance in the peak pixel of a star on the corner of a pixel over that of a centred one."""
    center = psf.center(half)
    corner = psf.images(*(np.array([n // 2 + 0.499]) for n in psf.shape[::-1]), half)[0]
    return float((center * corner).sum() / (center**2).sum())


def _fill_band_inplace(band, pix, sigma):
    """Data with 0 and variance with infinity where there is no finite value."""
    data, _, variance = band
    np.copyto(data, pix)
    np.multiply(sigma, sigma, out=variance)
    bad = ~np.isfinite(data)
    bad |= ~(variance > 0)
    np.copyto(data, 0, where=bad)
    np.copyto(variance, np.inf, where=bad)


def _dipoles(fits, reach_pix, params):
    """Which sources have a counterpart of the other sign so close that the two are one displaced star."""
    out = np.zeros(len(fits), bool)
    if len(fits) > 1:
        one, two = cKDTree(np.stack([fits["x"], fits["y"]], axis=1)).query_pairs(reach_pix, output_type="ndarray").T
        rest = np.abs(fits["flux"][one] + fits["flux"][two])
        larger = np.maximum(np.abs(fits["flux"][one]), np.abs(fits["flux"][two]))
        found = (fits["flux"][one] * fits["flux"][two] < 0) & (rest < params.dipole_balance * larger)
        out[one[found]] = out[two[found]] = True
    return out


def _filter(table, dipole, params, counts):
    """Which rows pass; adds the reasons of the others to the counts, the first that holds."""
    slack = 1 + params.elong_slack / np.maximum(table["snr"], 1e-3)
    reach = params.magdiff_sigma * table["sigfluxap"]
    star, aperture = np.abs(table["flux"]), table["fluxap"] * np.where(table["isdiffpos"], 1, -1)
    fails = {
        "magpsf": ~(table["magpsf"] <= params.faintest_mag),
        "edge": ~(table["mindtoedge"] >= params.edge_pix),
        "nbad": table["nbad"] > params.max_nbad,
        "dipole": dipole,
        "fwhm": ~(table["fwhm"] <= params.max_fwhm_pix),
        "elong": ~(table["elong"] <= 1 + (params.max_elong - 1) * slack),
        "magdiff": ~(aperture <= star * 10 ** (-0.4 * params.min_magdiff) + reach)
        | ~(aperture >= star * 10 ** (-0.4 * params.max_magdiff) - reach),
        "chi": ~(table["chi"] <= params.max_chi + (table["snr"] / params.chi_snr) ** 2)
        | ~(table["chipsf"] <= params.max_chipsf + (table["snr"] / params.chipsf_snr) ** 2),
        "level": ~(table["snrlevel"] >= params.least_snr),
    }
    passed = np.ones(len(table), bool)
    for reason, failed in fails.items():
        counts[reason] += int((passed & failed).sum())
        passed &= ~failed
    return passed
