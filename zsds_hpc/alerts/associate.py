"""Matching of candidates to one another, to earlier ones, to images, to stars and to asteroids; pure functions."""

from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.astrometry.sphere import unit_vectors
from zsds_hpc.core.params import Params, param

#: What the survey's packets say where there is nothing.
NONE = -999.0
ASTEROID_NONE = "null"
N_PS1 = 3


class MatchParams(Params):
    """Radii of the matches."""

    same_object_arcsec: float = param(1.5, "Candidates this close to an object belong to it.", "arcsec", ge=0.1, le=2.5)
    ps1_arcsec: float = param(30.0, "Radius for PS1 sources.", "arcsec", ge=1.0, le=120.0)
    gaia_arcsec: float = param(90.0, "Radius for Gaia sources.", "arcsec", ge=1.0, le=300.0)
    gaia_bright_mag: float = param(14.0, "Brighter Gaia sources are bright ones.", "mag", ge=0.0, le=20.0)
    asteroid_arcsec: float = param(30.0, "Radius for known asteroids.", "arcsec", ge=1.0, le=300.0)
    star_pm_sigma: float = param(5.0, "A PS1 source is a star where Gaia sees it move this significantly.", ge=3.0)


class Pairs(NamedTuple):
    """Pairs of positions within a radius, ordered by first, then distance, then second.

    Attributes
    ----------
    first, second : ndarray of int
    arcsec : ndarray, float64
        Distance.
    """

    first: np.ndarray
    second: np.ndarray
    arcsec: np.ndarray


def pairs_within(ra1, dec1, ra2, dec2, radius_arcsec: float) -> Pairs:
    """All pairs of two lists of positions (degrees) within a radius."""
    if not len(ra1) or not len(ra2):
        return Pairs(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))
    one, other = unit_vectors(ra1, dec1), unit_vectors(ra2, dec2)
    tree = cKDTree(other, balanced_tree=False, compact_nodes=False)
    found = tree.query_ball_point(one, 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0))
    first = np.repeat(np.arange(len(one)), [len(near) for near in found])
    second = np.concatenate([np.asarray(near, dtype=np.intp) for near in found])
    chord = np.sqrt(((one[first] - other[second]) ** 2).sum(axis=1))
    arcsec = np.degrees(2.0 * np.arcsin(chord / 2.0)) * 3600.0
    order = np.lexsort((second, arcsec, first))
    return Pairs(first[order], second[order], arcsec[order])


class Membership(NamedTuple):
    """Which object each candidate belongs to.

    Attributes
    ----------
    known : ndarray of int, shape (n,)
        Index of the known object, -1 for none.
    earlier : ndarray of int, shape (n,)
        Where there is none: index of the earlier detection whose object it is, -1 for none.
    founder : ndarray of int, shape (n,)
        Where there is neither: index of the candidate of this image that founds the object, often itself; -1
        otherwise.
    """

    known: np.ndarray
    earlier: np.ndarray
    founder: np.ndarray


Places = tuple[np.ndarray, np.ndarray]


def find_objects(candidates: Places, known: Places, earlier: Places, radius_arcsec: float) -> Membership:
    """Object of each candidate of an image: the nearest known one, that of the nearest detection, or a new one.

    An object lies where it was first detected. A detection at its edge may be the one that a candidate is close to.
    New objects are founded in the order of the candidates; a later candidate within the radius of founders joins
    the nearest. So pieces of one residual (a dipole's two signs) are one object.

    Parameters
    ----------
    candidates, known, earlier : (ra, dec)
        Candidates of the image, objects known before, earlier detections: arrays, degrees.
    radius_arcsec : float
    """
    object_at, detection_at = _nearest(candidates, known, radius_arcsec), _nearest(candidates, earlier, radius_arcsec)
    detection_at[object_at >= 0] = -1
    founder = np.full(len(object_at), -1)
    near = pairs_within(*candidates, *candidates, radius_arcsec)
    starts = np.searchsorted(near.first, np.arange(len(founder) + 1))
    for i in np.flatnonzero((object_at < 0) & (detection_at < 0)):
        around = near.second[starts[i] : starts[i + 1]]
        founders = around[(around < i) & (founder[around] == around)]
        founder[i] = founders[0] if len(founders) else i
    return Membership(object_at, detection_at, founder)


def _nearest(places: Places, others: Places, radius_arcsec: float) -> np.ndarray:
    """Index of the nearest other place, -1 where none is within the radius."""
    pairs = pairs_within(*places, *others, radius_arcsec)
    nearest = np.full(len(places[0]), -1)
    has, at = np.unique(pairs.first, return_index=True)
    nearest[has] = pairs.second[at]
    return nearest


class History(NamedTuple):
    """Detections at the place of each candidate; arrays of shape (n,).

    Attributes
    ----------
    n : ndarray of int
        Their number (`ndethist`).
    jd_first, jd_last : ndarray, float64
    """

    n: np.ndarray
    jd_first: np.ndarray
    jd_last: np.ndarray


def summarise(n_candidates: int, first: np.ndarray, counts, jd_first, jd_last) -> History:
    """Number of detections at each candidate, and the earliest and latest.

    Parameters
    ----------
    n_candidates : int
    first : ndarray of int, shape (k,)
        Candidate that a group of detections lies at.
    counts : array_like of int, shape (k,)
        Detections in the group.
    jd_first, jd_last : array_like, float64, shape (k,)
        Of the group.
    """
    number = np.zeros(n_candidates, np.int64)
    start, end = np.full(n_candidates, np.inf), np.full(n_candidates, -np.inf)
    np.add.at(number, first, np.asarray(counts, dtype=np.int64))
    np.minimum.at(start, first, jd_first)
    np.maximum.at(end, first, jd_last)
    return History(number, start, end)


def covered(ra, dec, corners_ra, corners_dec) -> np.ndarray:
    """Which positions lie within which images.

    The edges of an image are taken as great circles between its corners; the distortion bends them by less than a
    pixel or two.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Degrees.
    corners_ra, corners_dec : ndarray, shape (m, 4)
        Corners in order around the image, degrees.

    Returns
    -------
    ndarray of bool, shape (n, m)
    """
    points, corners = unit_vectors(ra, dec), unit_vectors(corners_ra, corners_dec).reshape(-1, 4, 3)
    turns = np.sign(np.einsum("mi,mi->m", np.cross(corners[:, 0], corners[:, 1]), corners[:, 2]))
    inside = points @ corners.mean(axis=1).T > 0.0  # not on the other side of the sky
    for k in range(4):
        normal = np.cross(corners[:, k], corners[:, (k + 1) % 4]) * turns[:, None]
        inside &= points @ normal.T >= 0.0
    return inside


def nearest_ps1(ra, dec, ps1: np.ndarray, gaia: np.ndarray, params: MatchParams) -> dict[str, np.ndarray]:
    """The three nearest PS1 sources of each candidate and their number, by the names of the packet's fields.

    The store has no z magnitude (-999) and no measured star/galaxy score. `sgscoreN` is 1 where a Gaia source within
    1 arcsec moves significantly, which only stars do, and 0.5 otherwise: undecided.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Degrees.
    ps1, gaia : ndarray
        Rows of the stores (`archive.refcats`) around the image.
    params : MatchParams
    """
    pairs = pairs_within(ra, dec, ps1["ra"], ps1["dec"], params.ps1_arcsec)
    starts = np.searchsorted(pairs.first, np.arange(len(ra) + 1))
    number = np.diff(starts)
    score = _star_scores(ps1[np.unique(pairs.second)], gaia, params)
    score_of = np.full(len(ps1), 0.5)
    score_of[np.unique(pairs.second)] = score
    columns: dict[str, np.ndarray] = {"nmtchps": number}
    for k in range(N_PS1):
        there, has = np.full(len(ra), -1), number > k
        there[has] = pairs.second[starts[:-1][has] + k]
        distance = np.full(len(ra), NONE)
        distance[has] = pairs.arcsec[starts[:-1][has] + k]
        columns[f"objectidps{k + 1}"] = np.where(has, _taken(ps1["objid"], there), int(NONE))
        for band in "gri":
            columns[f"s{band}mag{k + 1}"] = np.where(has, _no_nan(_taken(ps1[f"{band}mag"], there)), NONE)
        columns[f"szmag{k + 1}"] = np.full(len(ra), NONE)
        columns[f"sgscore{k + 1}"] = np.where(has, _taken(score_of, there), NONE)
        columns[f"distpsnr{k + 1}"] = distance
    return columns


def _taken(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values at some indices; whatever, but without an error, at -1 of an empty list."""
    return values[index] if len(values) else np.zeros(len(index), values.dtype)


def _no_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), NONE, values)


def _star_scores(sources: np.ndarray, gaia: np.ndarray, params: MatchParams) -> np.ndarray:
    speed = np.hypot(gaia["pmra"], gaia["pmdec"])
    moving = speed > params.star_pm_sigma * np.hypot(gaia["pmra_err"], gaia["pmdec_err"])
    pairs = pairs_within(sources["ra"], sources["dec"], gaia["ra"][moving], gaia["dec"][moving], 1.0)
    score = np.full(len(sources), 0.5)
    score[pairs.first] = 1.0
    return score


def nearest_gaia(ra, dec, gaia: np.ndarray, params: MatchParams) -> dict[str, np.ndarray]:
    """Nearest Gaia source and nearest bright one of each candidate, by the names of the packet's fields.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Degrees.
    gaia : ndarray
        Rows of the store around the image, at the epoch of the exposure.
    params : MatchParams
    """
    columns = {}
    for suffix, wanted in (("", slice(None)), ("bright", gaia["mag"] < params.gaia_bright_mag)):
        stars = gaia[wanted]
        pairs = pairs_within(ra, dec, stars["ra"], stars["dec"], params.gaia_arcsec)
        distance, mag = np.full(len(ra), NONE), np.full(len(ra), NONE)
        has, at = np.unique(pairs.first, return_index=True)
        distance[has], mag[has] = pairs.arcsec[at], _no_nan(stars["mag"][pairs.second[at]])
        columns[f"neargaia{suffix}"], columns[f"maggaia{suffix}"] = distance, mag
    return columns


def nearest_asteroid(ra, dec, jd: float, asteroids: dict[str, Any], params: MatchParams) -> dict[str, list]:
    """Nearest known asteroid of each candidate, by the names of the packet's fields.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Degrees.
    jd : float
        Middle of the exposure, UTC.
    asteroids : dict
        Arrays ``name jd ra dec rate_ra rate_dec mag``: predicted positions (degrees), their times (UTC), rates on the
        sky (arcsec/h, right ascension times cos dec) and magnitudes. They are moved along straight lines.
    params : MatchParams
    """
    hours = (jd - np.asarray(asteroids["jd"], dtype=float)) * 24.0
    dec_then = np.asarray(asteroids["dec"], dtype=float)
    ra_now = asteroids["ra"] + asteroids["rate_ra"] * hours / 3600.0 / np.cos(np.radians(dec_then))
    dec_now = dec_then + asteroids["rate_dec"] * hours / 3600.0
    pairs = pairs_within(ra, dec, ra_now, dec_now, params.asteroid_arcsec)
    found: dict[str, list] = {
        "ssdistnr": [NONE] * len(ra), "ssmagnr": [NONE] * len(ra), "ssnamenr": [ASTEROID_NONE] * len(ra)
    }  # fmt: skip
    for i, at in zip(*np.unique(pairs.first, return_index=True)):
        there = pairs.second[at]
        found["ssdistnr"][i] = float(pairs.arcsec[at])
        found["ssmagnr"][i] = float(asteroids["mag"][there])
        found["ssnamenr"][i] = str(asteroids["name"][there])
    return found


def visible_programs(programid: int) -> tuple[int, ...]:
    """Programs whose detections a packet of a program may show: public, and those below its own.

    Readers of program 1 (public) see public data only; the partnership (2) sees those too, Caltech (3) all three.
    Engineering data (0) appear in their own packets only.
    """
    return (0, 1) if programid == 0 else tuple(range(1, programid + 1))
