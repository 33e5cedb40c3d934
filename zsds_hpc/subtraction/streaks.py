"""Streaks of fast objects in a difference image: found, fitted, described, classified."""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.aperture import magnitudes
from zsds_hpc.subtraction import streak_avoid as avoid
from zsds_hpc.subtraction import streak_find as find
from zsds_hpc.subtraction.images import Difference
from zsds_hpc.subtraction.streak_features import Surroundings, describe, n_in_line
from zsds_hpc.subtraction.streak_fit import Pixels, fit_trail, misfit, refined
from zsds_hpc.subtraction.streak_model import StreakModel, kinds
from zsds_hpc.subtraction.streak_table import REASONS, STREAK_DTYPE, StreakParams
from zsds_hpc.subtraction.streak_trail import RoughTables, local_tables

_ERASE_FWHM = 2.0
_POINT_MARGIN_PIX = 2.0
_ERASED_SHARE = 0.7
_BRIGHT = 2.0  # times the least signal to noise: what is not a trail is erased too
_SAME_PIX = 8.0
_WING_SHARE = 0.85
_SATELLITE_SHARE = 1.2  # of the longest asteroid's trail: no question any more
_SATELLITE_REACH_PIX = 14.0
_FILLED = 0.7
_ITERATIONS, _SATELLITE_ITERATIONS, _LAST_ITERATIONS = 12, 3, 4
_EDGE_PIX, _CUT_FWHM = 2.0, 5.0
_HOPELESS_SHARE = 1.4
_SAMPLE_STRIDE = 1009
_REFINED_SHARE = 0.7


@dataclass(frozen=True)
class Streaks:
    """Streaks of one image.

    Attributes
    ----------
    table : ndarray, shape (n,), `streak_table.STREAK_DTYPE`
        By signal to noise, the highest first; false ones are listed with their low score.
    n_rejected : dict
        Reason, of `streak_table.REASONS` -> places that were looked at and are not listed.
    min_score : float
        Of the real ones.
    """

    table: np.ndarray
    n_rejected: dict[str, int]
    min_score: float

    @property
    def vetted(self) -> np.ndarray:
        """Rows that the classifier takes for real trails; all of them when it was not asked."""
        return self.table[~(self.table["score"] < self.min_score)]


def find_streaks(
    difference: Difference, wcs: TPV, params: StreakParams | None = None, model: StreakModel | None = None
) -> Streaks:
    """Find the trails of fast objects in the positive difference.

    Lines and elongated peaks of a filtered, binned map are followed up on the pixels, the most significant first;
    what is accepted is erased from the map.

    Parameters
    ----------
    difference : Difference
    wcs : TPV
        Of the science image.
    params : StreakParams, optional
    model : StreakModel, optional
        Without one there are no scores.

    Returns
    -------
    Streaks

    Raises
    ------
    BadInput
        Image and errors differ in shape.
    """
    params = params or StreakParams()
    if difference.pix.ndim != 2 or difference.pix.shape != difference.sigma.shape:
        raise BadInput(f"streaks: image {difference.pix.shape} and errors {difference.sigma.shape} differ in shape")
    search = _Search(difference, params)
    search.run()
    rows = np.array(search.rows, STREAK_DTYPE)
    rows = rows[np.argsort(-rows["snr"], kind="stable")]
    _attach_inplace(rows, wcs, difference.magzp, params)
    if model is not None:
        rows["score"] = model.score(rows)
    return Streaks(rows, dict(search.rejected), params.min_score)


def _attach_inplace(rows, wcs, magzp, params):
    """Sky positions, magnitudes, kinds."""
    for end in "12":
        rows["ra" + end], rows["dec" + end] = wcs.pixel_to_sky(rows["x" + end], rows["y" + end])
    mag, rows["sigmag"] = magnitudes(rows["flux"], rows["sigflux"])
    rows["mag"] = mag + magzp
    rows["n_inline"] = n_in_line(rows)
    rows["kind"] = kinds(rows, params)


class _Search:
    """The search of one image: its map, from which what is found is erased, and what was found."""

    def __init__(self, difference: Difference, params: StreakParams):
        self.params = params
        self.fwhm = difference.psf.fwhm_pix
        self.rough, self.exact = RoughTables(difference.psf), functools.partial(local_tables, difference.psf)
        self.rows: list[np.ndarray] = []
        self.rejected: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        d = difference
        self.tracks = avoid.masked_tracks(d.mask, _SATELLITE_SHARE * params.max_length)
        pix, sigma, mask = avoid.restored((d.pix, d.sigma, d.mask, d.science, d.reference), self.tracks.short)
        self.pixels = Pixels(pix, sigma)
        self.wings = avoid.wings(mask, self.fwhm)
        sample = sigma.ravel()[::_SAMPLE_STRIDE]
        sample = sample[np.isfinite(sample)]
        median = float(np.median(sample)) if sample.size else 1.0
        self.around = Surroundings(mask, d.sources, max(median, 1e-30))

    def run(self) -> None:
        """Search lines, then peaks."""
        p = self.params
        self.map = find.filtered_map(self.pixels.pix, self.pixels.sigma, self.fwhm, p)
        avoid.erase_wings_inplace(self.map.bins, self.wings, find.BINS_PER_CELL)
        places = find.peaks(self.map, p.peak_sigma)
        short, points = find.short_seeds(self.pixels.pix, self.pixels.sigma, places, find.trail_bank(self.rough), p)
        for x, y, snr in points:
            find.erase_inplace(self.map, np.array([x, y, x, y]), _point_radius(snr, self.fwhm))
        self.rejected["pointlike"] += len(places) - len(short)
        self._follow_lines(self._off_tracks(find.line_seeds(self.map, p)))
        self._follow_peaks(self._off_tracks(short))

    def _off_tracks(self, seeds):
        """Those that do not run along masked tracks."""
        beside = avoid.beside_tracks(seeds, self.tracks)
        self.rejected["track"] += int(beside.sum())
        return seeds[~beside]

    def _follow_lines(self, seeds):
        """The brightest line, then what is left of the others, and so on."""
        clip = self.params.clip_sigma
        before = find.line_sum(self.map, seeds, clip)
        for _ in range(self.params.max_seeds):
            if not len(seeds):
                return
            middle = [(seeds[a + "1"] + seeds[a + "2"]) / 2 for a in "xy"]
            left = np.hypot(middle[0] - middle[0][0], middle[1] - middle[1][0]) > _SAME_PIX
            ends, snr = refined(self.pixels, _ends_of(seeds[0]), self.fwhm)
            if self._measure(ends, snr):
                find.erase_inplace(self.map, _ends_of(self.rows[-1]), self._reach(self.rows[-1]))
                left = find.line_sum(self.map, seeds, clip) > _ERASED_SHARE * before
            elif snr > _BRIGHT * self.params.min_snr:
                find.erase_inplace(self.map, ends, _point_radius(snr, self.fwhm))
                left = find.line_sum(self.map, seeds, clip) > _ERASED_SHARE * before
            left[0] = False
            seeds, before = seeds[left], before[left]
        self.rejected["unseen"] += len(seeds)

    def _follow_peaks(self, seeds):
        """Short trails, the brightest first, but those that were found as lines, and the wings of what is no trail."""
        seeds = seeds[np.argsort(-seeds["snr"], kind="stable")]
        x, y = ((seeds[a + "1"] + seeds[a + "2"]) / 2 for a in "xy")
        left = np.ones(len(seeds), bool)
        n_measured = 0
        for k, seed in enumerate(seeds):
            if not left[k] or self._is_known(seed):
                self.rejected["known"] += 1
            elif n_measured == self.params.max_seeds:
                self.rejected["unseen"] += 1
            else:
                n_measured += 1
                if not self._measure(_ends_of(seed), float(seed["snr"])):
                    near = np.hypot(x - x[k], y - y[k]) < _point_radius(seed["snr"], self.fwhm)
                    left &= ~(near & (seeds["snr"] < _WING_SHARE * seed["snr"]))

    def _is_known(self, seed):
        x, y = (seed["x1"] + seed["x2"]) / 2, (seed["y1"] + seed["y2"]) / 2
        return any(_distance(x, y, row) < 0.5 * self._reach(row) + 1 for row in self.rows)

    def _reach(self, row):
        """How far from its line a trail shines; a satellite's may be out of focus."""
        return max(_ERASE_FWHM * self.fwhm, _SATELLITE_REACH_PIX if row["length"] > self.params.max_length else 0.0)

    def _measure(self, ends, rough_snr):
        """Fit and list a trail; whether it is one."""
        reason, row = self._judged(ends, rough_snr)
        if row is not None and row["length"] > _SATELLITE_SHARE * self.params.max_length and row["filled"] > _FILLED:
            self.tracks = avoid.with_track(self.tracks, _ends_of(row), _SATELLITE_REACH_PIX)
        if reason:
            self.rejected[reason] += 1
            return False
        self.rows.append(row)
        return True

    def _is_cut(self, trail):
        """Whether so little of it is on the image that it could be the half of a star."""
        ends, (n_y, n_x) = np.reshape(trail.ends, (2, 2)), self.pixels.pix.shape
        inside = np.minimum(ends, np.array([n_x - 1, n_y - 1]) - ends)
        return inside.min() < _EDGE_PIX and trail.length < _CUT_FWHM * self.fwhm

    def _refused(self, trail, is_long):
        """Why a fit is none of a trail; a satellite may be as uneven and wide as it likes."""
        if trail is None:
            return "unfit"
        if trail.length < self.params.min_length or self._is_cut(trail):
            return "short"
        if trail.snr < self.params.min_snr:
            return "faint"
        if not is_long and misfit(trail.chi2, trail.strip, trail.snr) > self.params.max_misfit:
            return "misfit"
        return ""

    def _judged(self, ends, rough_snr):
        """Why it is not to be listed; and its row if it is a trail."""
        p = self.params
        if rough_snr < _REFINED_SHARE * p.min_snr:
            return "faint", None
        is_long = np.hypot(ends[2] - ends[0], ends[3] - ends[1]) > _SATELLITE_SHARE * p.max_length
        effort = (_SATELLITE_ITERATIONS, np.inf) if is_long else (_ITERATIONS, _HOPELESS_SHARE * p.max_misfit)
        trail = fit_trail(self.pixels, ends, self.rough, *effort)
        reason = self._refused(trail, is_long)
        if not reason and trail:
            trail = fit_trail(self.pixels, trail.ends, self.exact, min(effort[0], _LAST_ITERATIONS))
            reason = self._refused(trail, is_long)
        if reason or trail is None:
            return reason, None
        row = describe(trail, self.around)
        if row["gain"] < p.min_gain:
            return "pointlike", None
        if row["masked"] > p.max_masked and not is_long:
            return "masked", None
        if self._is_known(row):
            return "known", None
        if avoid.beside_tracks(np.array([row]), self.tracks)[0]:
            return "track", row
        return "", row


def _point_radius(snr, fwhm_pix):
    """Where a point source of the given signal to noise falls to the noise: a Moffat profile of beta 3."""
    return fwhm_pix * np.sqrt(max(np.cbrt(snr) - 1, 0)) + _POINT_MARGIN_PIX


def _ends_of(row):
    return np.array([row[name] for name in ("x1", "y1", "x2", "y2")], float)


def _distance(x, y, row):
    """Of a place from the segment of a row, px."""
    dx, dy = row["x2"] - row["x1"], row["y2"] - row["y1"]
    share = np.clip(((x - row["x1"]) * dx + (y - row["y1"]) * dy) / max(dx**2 + dy**2, 1e-12), 0, 1)
    return float(np.hypot(x - row["x1"] - share * dx, y - row["y1"] - share * dy))
