"""Pattern match of detections to a reference catalogue, from a WCS that is off by a minute or two of arc at most.

The differences (detection - reference) of the brightest stars pile up at the pointing error; the pile is found in
a two-dimensional histogram of all pairs (as in SCAMP, Bertin 2006), its neighbourhood gives a linear map by robust
least squares, and stars are paired one to one within a radius that shrinks with the residuals.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import pdtrc

from zsds_hpc.astrometry.sphere import deproject, separation_deg
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param

#: Allowance for distortion in the match of all stars, beyond their own errors.
_LEAST_SYSTEMATIC_PIX = 0.05


class MatchParams(Params):
    """How detections are matched to the reference catalogue."""

    pointing_error_arcsec: float = param(90.0, "Largest pointing error looked for.", "arcsec", ge=1, le=3600)
    rotation_error_deg: float = param(0.1, "Largest rotation of the camera looked for.", "deg", ge=0, le=5)
    scale_error: float = param(1e-3, "Largest relative error of the pixel scale.", ge=0, le=0.1)
    n_bright: int = param(
        250, "Brightest detections tried first; four and sixteen times as many later.", ge=10, le=5000
    )
    min_significance: float = param(8.0, "Least -log10 of the peak's chance probability.", ge=1, le=300)
    min_matches: int = param(8, "Fewest matched stars.", ge=3)
    n_most: int = param(10_000, "Brightest detections matched; of the reference four times as many.", ge=100)
    tolerance_pix: float = param(
        1.0, "Largest distance of a match beyond the stars' own errors.", "pix", ge=0.05, le=20
    )
    n_sigma: float = param(5.0, "Match radius in standard deviations of the residuals.", ge=2, le=20)


class Detections(NamedTuple):
    """Detected sources: 0-based pixels, magnitudes of any zero point, one-axis centroid errors in pixels; all (n,)."""

    x: np.ndarray
    y: np.ndarray
    mag: np.ndarray
    sigma_pix: np.ndarray


class Reference(NamedTuple):
    """Reference stars at the epoch of the image: degrees ICRS, magnitudes, one-axis errors in arcsec; all (n,)."""

    ra: np.ndarray
    dec: np.ndarray
    mag: np.ndarray
    sigma_arcsec: np.ndarray


class Match(NamedTuple):
    """Result of the match.

    Attributes
    ----------
    i_det, i_ref : ndarray, shape (n,), int64
        Indices of the matched pairs, in order of `i_det`; one to one.
    wcs : TPV
        The given WCS with the linear correction found; distortion unchanged.
    offset_arcsec : ndarray, shape (2,)
        Correction of the position of the reference pixel, along x and y.
    rotation_deg, scale : float
        Rotation of the camera against North, and the old pixel scale times this is the new.
    peak_significance : float
        -log10 of the chance probability of the peak.
    radius_pix : float
        Last match radius.
    """

    i_det: np.ndarray
    i_ref: np.ndarray
    wcs: TPV
    offset_arcsec: np.ndarray
    rotation_deg: float
    scale: float
    peak_significance: float
    radius_pix: float

    @property
    def n_matches(self) -> int:
        """Number of matched pairs."""
        return len(self.i_det)


def match_catalogue(
    detections: Detections, reference: Reference, prior: TPV, params: MatchParams | None = None
) -> Match:
    """Match detections to reference stars and correct the WCS linearly.

    Parameters
    ----------
    detections : Detections
        Sources of any quality; half of them may be false.
    reference : Reference
        Stars covering the image and the pointing error.
    prior : TPV
        WCS from the commanded pointing.
    params : MatchParams, optional

    Raises
    ------
    BadInput
        Nothing to match: an empty list, or lengths that differ.
    AlgorithmFailure
        No significant peak, or too few matches; figures `n_matches`, `peak_significance`, `n_detections`,
        `n_reference`.
    """
    params = params or MatchParams()
    (i_det, det), (i_all, sky) = _prepared(detections, reference, prior, params)
    scale = float(prior.pixel_scale_arcsec(*prior.crpix))
    seen, predicted = np.stack([det.x, det.y], axis=1), np.stack(prior.sky_to_pixel(sky.ra, sky.dec), axis=1)
    margin = params.pointing_error_arcsec / scale
    near = _over_image(predicted, seen, margin)
    if not len(near):
        raise _failure("no reference star falls on the image", 0, 0.0, det, near)
    i_all, sky = i_all[near], Reference(*(column[near] for column in sky))
    smear = _smear_pix(seen, prior, params)
    peak, significance = _find_peak((seen, det.mag), (predicted[near], sky.mag), margin, smear, params)
    if significance < params.min_significance:
        raise _failure("no significant match of the star pattern", 0, significance, det, near)
    # A pointing error moves the tangent point, and the distortion stays with the pixels: shift first, then refine.
    shifted = apply_affine(prior, np.eye(2), -peak)
    predicted = np.stack(shifted.sky_to_pixel(sky.ra, sky.dec), axis=1)
    linear = _refine((seen, det.mag), (predicted, sky.mag), smear, params)
    d, r, radius = _pair_all((seen, det.sigma_pix), (predicted, sky.sigma_arcsec / scale), linear, params)
    if len(d) < max(params.min_matches, _n_by_chance(len(seen), predicted, radius)):
        raise _failure("too few stars match", len(d), significance, det, near)
    matrix, wcs = linear[0], apply_affine(shifted, *linear)
    offset = np.stack(prior.sky_to_pixel(*wcs.pixel_to_sky(*prior.crpix))) - prior.crpix
    turn = np.degrees(np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
    size = np.sqrt(np.abs(np.linalg.det(matrix)))
    return Match(i_det[d], i_all[r], wcs, offset * scale, float(turn), float(size), significance, radius)


def rematch(
    detections: Detections, reference: Reference, wcs: TPV, systematic_arcsec: float, params: MatchParams | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pair detections and reference stars again, with a fitted WCS: each within its own errors.

    Parameters
    ----------
    detections : Detections
    reference : Reference
    wcs : TPV
        Fitted.
    systematic_arcsec : float
        Error of the map and scatter beyond the stars' own, one axis.
    params : MatchParams, optional

    Returns
    -------
    i_det, i_ref : ndarray, shape (n,), int64
    """
    params = params or MatchParams()
    (i_det, det), (i_ref, sky) = _prepared(detections, reference, wcs, params)
    scale = float(wcs.pixel_scale_arcsec(*wcs.crpix))
    seen, targets = np.stack([det.x, det.y], axis=1), np.stack(wcs.sky_to_pixel(sky.ra, sky.dec), axis=1)
    near = _over_image(targets, seen, params.tolerance_pix)
    i, j, distance = mutual_nearest(seen, targets[near], params.tolerance_pix)
    j = near[j]
    variance = det.sigma_pix[i] ** 2 + (sky.sigma_arcsec[j] ** 2 + systematic_arcsec**2) / scale**2
    kept = distance <= params.n_sigma * np.sqrt(variance)
    return i_det[i[kept]], i_ref[j[kept]]


def apply_affine(prior: TPV, matrix: np.ndarray, shift: np.ndarray) -> TPV:
    """WCS corrected by a linear map of pixels, with the same reference pixel and the same distortion.

    Parameters
    ----------
    prior : TPV
    matrix : ndarray, shape (2, 2)
    shift : ndarray, shape (2,)
        The sky position of pixel p is what `prior` gives at ``matrix @ p + shift``.
    """
    ra, dec = prior.pixel_to_sky(*(matrix @ prior.crpix + shift))
    crval = deproject(-prior.pv1[0], -prior.pv2[0], float(ra), float(dec))
    return TPV(np.array(crval), prior.crpix, prior.cd @ matrix, prior.pv1, prior.pv2)


def mutual_nearest(first: np.ndarray, second: np.ndarray, radius: float):
    """One-to-one pairs of points that are each other's nearest, within a radius.

    Parameters
    ----------
    first, second : ndarray, shapes (n, 2) and (m, 2), float64
    radius : float

    Returns
    -------
    i, j : ndarray, int64
        Indices of the pairs, i ascending.
    distance : ndarray, float64
    """
    if not len(first) or not len(second):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    distance, j = _tree(second).query(first, distance_upper_bound=radius)
    i = np.flatnonzero(np.isfinite(distance))
    j = j[i]
    _, back = _tree(first).query(second[j], distance_upper_bound=radius * (1 + 1e-9))
    mutual = back == i
    return i[mutual], j[mutual], distance[i[mutual]]


def _tree(points):
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _within_reach(reference, det, wcs, params):
    """Reference stars no farther from the image's centre than its corners and the pointing error."""
    x, y = (np.array([column.min(), column.max()]) for column in (det.x, det.y))
    centre = wcs.pixel_to_sky(x.mean(), y.mean())
    corners = separation_deg(*wcs.pixel_to_sky(x[[0, 1, 1, 0]], y[[0, 0, 1, 1]]), *centre)
    reach = 1.01 * corners.max() + 1.5 * params.pointing_error_arcsec / 3600.0
    with np.errstate(invalid="ignore"):
        return separation_deg(reference.ra, reference.dec, *centre) <= reach


def _columns(stars, what: str):
    """The same with float64 columns of one length; a missing magnitude is faintest."""
    columns = [np.asarray(column, np.float64) for column in stars]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise BadInput(f"{what}: columns of different lengths {[column.shape for column in columns]}")
    columns[2] = np.where(np.isnan(columns[2]), np.inf, columns[2])
    return type(stars)(*columns)


def _brightest_usable(stars, what: str, n_most: int, wanted=True):
    """Indices and rows of the brightest that are wanted and have finite columns, in the order given."""
    good = np.flatnonzero(np.isfinite(stars[0]) & np.isfinite(stars[1]) & np.isfinite(stars[3]) & wanted)
    if not len(good):
        raise BadInput(f"no usable {what}: {len(stars[0])} given")
    if len(good) > n_most:
        good = np.sort(good[np.argsort(stars[2][good], kind="stable")[:n_most]])
    return good, type(stars)(*(column[good] for column in stars))


def _prepared(detections, reference, wcs, params):
    """(indices, rows) of the detections and of the reference stars that can take part."""
    i_det, det = _brightest_usable(_columns(detections, "detections"), "detections", params.n_most)
    sky = _columns(reference, "reference stars")
    wanted = _within_reach(sky, det, wcs, params)
    return (i_det, det), _brightest_usable(sky, "reference stars near the image", 4 * params.n_most, wanted)


def _over_image(predicted, seen, margin):
    """Indices of the predicted positions among the detections or within a margin of them; NaN is nowhere."""
    low, high = seen.min(axis=0) - margin, seen.max(axis=0) + margin
    return np.flatnonzero(((predicted > low) & (predicted < high)).all(axis=1))


def _failure(message, n_matches, significance, det, near):
    figures = {"n_matches": int(n_matches), "peak_significance": round(float(significance), 2)}
    figures |= {"n_detections": len(det.x), "n_reference": len(near)}
    return AlgorithmFailure(f"astrometry: {message} ({', '.join(f'{k} {v}' for k, v in figures.items())})", **figures)


def _smear_pix(seen, prior, params):
    """How far rotation and scale errors spread the differences, in pixels, at the edge of the image."""
    half = np.abs(seen - prior.crpix).max()
    return max(1.0, half * (np.radians(params.rotation_error_deg) + params.scale_error))


def _brightest(points, mag, n: int):
    return points[np.argsort(mag, kind="stable")[:n]]


def _find_peak(seen, predicted, margin, smear, params):
    """Shift (pixels) at which most bright pairs agree, and its significance."""
    best = (np.zeros(2), 0.0)
    for factor in (1, 4, 16):
        n = params.n_bright * factor
        # Catalogues differ in depth and pass band: half as many again of the reference.
        bright = _brightest(seen[0], seen[1], n), _brightest(predicted[0], predicted[1], n + n // 2)
        found = _vote(*bright, margin, smear)
        best = max(best, found, key=lambda peak: peak[1])
        if best[1] >= params.min_significance or (n >= len(seen[0]) and n >= len(predicted[0])):
            break
    return best


def _vote(seen, predicted, margin, smear):
    """Peak of the histogram of the differences seen - predicted within +-margin on each axis."""
    limit = margin + 2.0 * smear
    n_bins = int(np.ceil(2 * limit / smear))
    counts = np.zeros(n_bins * n_bins)
    for block in np.array_split(seen, 1 + len(seen) // 512):
        dx = block[:, None, 0] - predicted[None, :, 0]
        dy = block[:, None, 1] - predicted[None, :, 1]
        near = (np.abs(dx) < limit) & (np.abs(dy) < limit)
        cell = ((dx[near] + limit) / smear).astype(np.int64) * n_bins + ((dy[near] + limit) / smear).astype(np.int64)
        counts += np.bincount(cell, minlength=n_bins * n_bins)[: n_bins * n_bins]
    box = _box_sum(counts.reshape(n_bins, n_bins))
    top = np.unravel_index(np.argmax(box), box.shape)
    # The typical level round about, at least what the pairs spread evenly would give.
    expected = max(np.median(box), 9.0 * counts.sum() / counts.size, 1e-3)
    chance = pdtrc(box[top] - 1.0, expected) * counts.size if box[top] > 0 else 1.0
    return (np.array(top) + 0.5) * smear - limit, -float(np.log10(np.clip(chance, 1e-300, 1.0)))


def _box_sum(counts):
    """Sums over 3 x 3 bins; the edge bins are left at zero beyond."""
    wide = np.pad(counts, 1)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _refine(seen, predicted, smear, params):
    """Linear map seen -> predicted from the bright stars, in rounds of pairing within a shrinking radius."""
    n = 8 * params.n_bright
    det, ref = _brightest(seen[0], seen[1], n), _brightest(predicted[0], predicted[1], n + n // 2)
    matrix, shift = np.eye(2), np.zeros(2)
    radius = 2.0 * smear
    for _ in range(8):
        i, j, _ = mutual_nearest(det @ matrix.T + shift, ref, radius)
        if len(i) < 3:
            break
        matrix, shift = _fit_linear(det[i], ref[j], affine=radius < 2.0 * smear and len(i) >= 12)
        residual = np.hypot(*(det[i] @ matrix.T + shift - ref[j]).T)
        # 3.5 standard deviations of one axis, from the median of the distances.
        radius = min(radius, max(0.4 * radius, 3.5 * np.median(residual) / 1.18, params.tolerance_pix))
    return matrix, shift


def _fit_linear(points, targets, affine: bool):
    """Least-squares shift (under 4 points), similarity or affine map; again without the worst residuals."""
    kept = np.ones(len(points), bool)
    for _ in range(3):
        matrix, shift = _least_squares_map(points[kept], targets[kept], affine)
        residual = np.hypot(*(points @ matrix.T + shift - targets).T)
        kept = residual <= 2.5 * np.median(residual[kept])
        if kept.sum() < 6:
            break
    return matrix, shift


def _least_squares_map(points, targets, affine: bool):
    centre, goal = points.mean(axis=0), targets.mean(axis=0)
    p, t = points - centre, targets - goal
    if len(points) < 4:
        matrix = np.eye(2)
    elif affine:
        matrix = np.linalg.lstsq(p, t, rcond=None)[0].T
    else:
        norm = (p * p).sum()
        c, s = (p * t).sum() / norm, (p[:, 0] * t[:, 1] - p[:, 1] * t[:, 0]).sum() / norm
        matrix = np.array([[c, -s], [s, c]])
    return matrix, goal - matrix @ centre


def _pair_all(seen, predicted, linear, params):
    """Pair all stars; each pair must agree within its own errors plus the scatter of the bright stars."""
    (points, sigma), (targets, target_sigma), (matrix, shift) = seen, predicted, linear
    moved = points @ matrix.T + shift
    i, j, distance = mutual_nearest(moved, targets, params.tolerance_pix)
    if not len(i):
        return i, j, params.tolerance_pix
    variance = sigma[i] ** 2 + target_sigma[j] ** 2
    best = np.argsort(variance, kind="stable")[: max(10, len(i) // 4)]
    # The median distance of a two-dimensional Gaussian is 1.18 sigma. What the best stars' errors do not explain
    # is distortion, which the linear map does not follow.
    excess = max(_LEAST_SYSTEMATIC_PIX, np.median(distance[best]) / 1.18)
    radius = np.minimum(params.n_sigma * np.sqrt(variance + excess**2), params.tolerance_pix)
    kept = distance <= radius
    return i[kept], j[kept], float(np.max(radius))


def _n_by_chance(n_detections, predicted, radius):
    """Matches to be exceeded: three times what unrelated positions would give."""
    area = np.prod(np.maximum(np.ptp(predicted, axis=0), 1.0))
    return 3.0 * n_detections * (1.0 - np.exp(-len(predicted) * np.pi * radius**2 / area))
