"""The trail of a point source fitted to the pixels: ends, flux and their errors."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from zsds_hpc.subtraction.streak_trail import Tables, TablesOf, along_and_across, planes

_HALF_ACROSS_PIX = 12
_MARGIN_PIX = 24.0
_TILTS = np.arange(-5.0, 5.5, 1.0)
_SHIFTS = np.arange(-4, 5)
_CLIP_SIGMA = 5.0
_END_STEPS = 64
_LEAST_GAP_PIX, _GAP_SIGMA, _GAP_SHARE = 16, 5.0, 0.2
_MAX_EXTENSIONS = 8
_NEAR_LIMIT_PIX = 4
_OUTLIER_SIGMA = 5.0
_NEIGHBOUR_SHARE, _NEIGHBOUR_FWHM = 0.1, 1.5
_LONG_FWHM = 6.0
_MOST_POINTS, _POINT_ACROSS_PIX = 33, (-0.4, 0.0, 0.4)
_APART = 0.05  # sources this much alike are one
_SETTLED = 3e-3  # of chi squared
_PATIENCE = 4  # iterations, before a fit is given up
_MOST_DAMPING = 100.0
_LEAST_LENGTH_PIX = 1.5
_TURN_RAD = 0.1  # turns the PSF, not the trail: a twentieth of its ellipticity
_STEP_LIMITS_PIX = np.array([3.0, 3.0, 2.0, 2.0])


class Pixels(NamedTuple):
    """An image and its errors (infinite where unusable), shape (ny, nx)."""

    pix: np.ndarray
    sigma: np.ndarray


class Strip(NamedTuple):
    """The pixels about a segment, those beyond the image left out."""

    xy: np.ndarray  # (2, n) float64
    data: np.ndarray  # (n,) float64, 0 where unusable
    weight: np.ndarray  # (n,) float64: 1 / sigma^2, 0 where unusable or clipped
    n_clipped: int  # pixels that other light shines in


class Trail(NamedTuple):
    """A fitted trail."""

    ends: np.ndarray  # (4,): x1, y1, x2, y2, 0-based px
    flux: float  # DN
    snr: float  # of the flux, the ends being given
    covariance: np.ndarray  # (5, 5): flux per px, the ends along, the ends across
    strip: Strip
    places: np.ndarray  # (2, n): along and across, from the middle
    planes: np.ndarray  # (4, n): as `kernels.streaks.trail_planes`
    tables: Tables

    @property
    def length(self) -> float:
        """Distance of the ends, px."""
        x1, y1, x2, y2 = self.ends
        return float(np.hypot(x2 - x1, y2 - y1))

    @property
    def angle(self) -> float:
        """Direction of the trail, rad."""
        x1, y1, x2, y2 = self.ends
        return float(np.arctan2(y2 - y1, x2 - x1))

    @property
    def model(self) -> np.ndarray:
        """DN in the pixels of the strip."""
        return self.flux / self.length * self.planes[0]

    @property
    def chi2(self) -> float:
        """Chi squared in the strip."""
        return float(np.dot((self.strip.data - self.model) ** 2, self.strip.weight))


def refined(pixels: Pixels, ends: np.ndarray, fwhm_pix: float) -> tuple[np.ndarray, float]:
    """Turn, shift and prolong a segment to where the image is brightest along it.

    Parameters
    ----------
    pixels : Pixels
    ends : ndarray, shape (4,)
        x1, y1, x2, y2, good to a few px across.
    fwhm_pix : float

    Returns
    -------
    ends : ndarray, shape (4,)
    snr : float
        Of the light along it, about.
    """
    snr = 0.0
    margin = _MARGIN_PIX
    for k in range(_MAX_EXTENSIONS):
        length = float(np.hypot(ends[2] - ends[0], ends[3] - ends[1]))
        margin = max(_MARGIN_PIX, 0.5 * length)
        u, light, usable = _unrolled(pixels, ends, length / 2 + margin, fwhm_pix)
        inside = np.abs(u) <= length / 2
        tilt, shift = _best_path(light[:, inside], u[inside] / max(length / 2, 1.0))
        path = shift + tilt * u / max(length / 2, 1.0)
        row = np.clip(np.rint(path).astype(int) + _HALF_ACROSS_PIX, 0, len(light) - 1)
        column = np.arange(u.size)
        light, usable = light[row, column], usable[row, column]
        i, j, snr = _best_ends(light, usable)
        i, j = _without_gaps(light, usable, i, j)
        pair = np.array([u[i], u[j]]), np.array([path[i], path[j]])
        ends = _moved(ends, *pair)
        reaches = min(i, u.size - 1 - j) > _NEAR_LIMIT_PIX or not _goes_on(pixels, ends, i, u.size - 1 - j)
        if reaches and k > 0:
            break
    return _within(ends, pixels.pix.shape), snr


def _within(ends, shape):
    """The part of a segment on the image; all of it where that is none."""
    x1, y1, x2, y2 = ends
    low, high = 0.0, 1.0
    for a, step, n in ((x1, x2 - x1, shape[1]), (y1, y2 - y1, shape[0])):
        if abs(step) > 1e-9:
            limits = sorted(((-0.5 - a) / step, (n - 0.5 - a) / step))
            low, high = max(low, limits[0]), min(high, limits[1])
    if low >= high:
        return ends
    return np.array([x1 + low * (x2 - x1), y1 + low * (y2 - y1), x1 + high * (x2 - x1), y1 + high * (y2 - y1)])


def _unrolled(pixels, ends, reach, fwhm_pix):
    """Matched signal to noise across, (n_v, n_u), and whether the middle pixel is usable, on a grid of 1 px."""
    u = np.arange(-np.ceil(reach), np.ceil(reach) + 1)
    v = np.arange(-_HALF_ACROSS_PIX, _HALF_ACROSS_PIX + 1.0)
    x, y = _from_segment(ends, u, v[:, None])
    xi, yi = np.rint(x).astype(int), np.rint(y).astype(int)
    n_y, n_x = pixels.pix.shape
    inside = (xi >= 0) & (xi < n_x) & (yi >= 0) & (yi < n_y)
    at = np.clip(yi, 0, n_y - 1), np.clip(xi, 0, n_x - 1)
    signal = np.clip(np.nan_to_num(pixels.pix[at] / pixels.sigma[at]), -_CLIP_SIGMA, _CLIP_SIGMA)
    usable = inside & np.isfinite(pixels.sigma[at])
    sigma = fwhm_pix / 2.3548
    taps = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    taps /= np.sqrt((taps**2).sum())
    return u, ndimage.correlate1d(np.where(usable, signal, 0), taps, axis=0, mode="constant"), usable


def _from_segment(ends, u, v):
    """Pixel coordinates of places along and across a segment from its middle."""
    x1, y1, x2, y2 = ends
    length = float(np.hypot(x2 - x1, y2 - y1))
    cos, sin = ((x2 - x1) / length, (y2 - y1) / length) if length else (1.0, 0.0)
    return (x1 + x2) / 2 + u * cos - v * sin, (y1 + y2) / 2 + u * sin + v * cos


def _best_path(light, part):
    """Tilt (px at the ends) and shift of the brightest straight path; part: place along, -1 to 1."""
    shifts = _HALF_ACROSS_PIX + _SHIFTS
    rows = np.rint(_TILTS[:, None] * part).astype(int)[:, None, :] + shifts[:, None]
    sums = light[np.clip(rows, 0, len(light) - 1), np.arange(part.size)].sum(axis=2)
    k, j = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(_TILTS[k]), float(_SHIFTS[j])


def _best_ends(light, usable):
    """First and last element of the most significant stretch, and its significance."""
    total = np.concatenate([[0.0], np.cumsum(light)])
    number = np.concatenate([[0.0], np.cumsum(usable)])
    step = max(1, light.size // _END_STEPS)
    at = np.arange(0, light.size + 1, step)
    for _ in range(2):
        first, last = at, at
        snr = (total[last][None, :] - total[first][:, None]) / np.sqrt(
            np.maximum(number[last][None, :] - number[first][:, None], 0) + 2.0
        )
        first_at, last_at = np.unravel_index(int(np.argmax(np.triu(snr, 1))), snr.shape)
        i, j = int(first[first_at]), int(last[last_at])
        if step == 1:
            break
        near = np.arange(-step, step + 1)
        at, step = np.unique(np.clip(np.concatenate([i + near, j + near]), 0, light.size)), 1
    return i, max(j - 1, i), float(snr.max())


def _without_gaps(light, usable, i, j):
    """The brighter side of a gap, as long as there is one where the light that belongs there is missing."""
    while j - i > 2 * _LEAST_GAP_PIX:
        density = float(light[i : j + 1].sum()) / max(int(usable[i : j + 1].sum()), 1)
        window = max(_LEAST_GAP_PIX, int(np.ceil((_GAP_SIGMA / max(density, 0.05)) ** 2)))
        if 2 * window > j - i:
            break
        total, number = (np.concatenate([[0.0], np.cumsum(a[i : j + 1])]) for a in (light, usable))
        lit, seen = total[window:] - total[:-window], number[window:] - number[:-window]
        missing = np.where(seen > 0.5 * window, lit - _GAP_SHARE * density * seen, np.inf)
        k = int(np.argmin(missing))
        if missing[k] >= 0:
            break
        left, right = total[k], total[-1] - total[k + window]
        i, j = (i, i + max(k - 1, 1)) if left > right else (min(i + k + window, j - 1), j)
    return i, j


def _moved(ends, u, v):
    x, y = _from_segment(ends, u, v)
    return np.array([x[0], y[0], x[1], y[1]])


def _goes_on(pixels, ends, before, after):
    """Whether an end that touches the limit of the strip is within the image."""
    n_y, n_x = pixels.pix.shape
    near = [ends[2 * k : 2 * k + 2] for k, left in ((0, before), (1, after)) if left <= _NEAR_LIMIT_PIX]
    return any(2 < x < n_x - 3 and 2 < y < n_y - 3 for x, y in near)


def strip_of(pixels: Pixels, ends: np.ndarray, margin_pix: float) -> Strip:
    """Pixels no further than a margin from a segment."""
    x1, y1, x2, y2 = ends
    steep = abs(y2 - y1) > abs(x2 - x1)
    (a1, b1), (a2, b2) = ((y1, x1), (y2, x2)) if steep else ((x1, y1), (x2, y2))
    slope = (b2 - b1) / (a2 - a1) if abs(a2 - a1) > 1e-9 else 0.0
    a = np.arange(np.floor(min(a1, a2) - margin_pix), np.ceil(max(a1, a2) + margin_pix) + 1)[:, None]
    reach = np.ceil(margin_pix * np.hypot(1, slope))
    b = np.rint((b1 + b2) / 2 + slope * (a - (a1 + a2) / 2)) + np.arange(-reach, reach + 1)
    a = np.broadcast_to(a, b.shape)
    x, y = (b.ravel(), a.ravel()) if steep else (a.ravel(), b.ravel())
    n_y, n_x = pixels.pix.shape
    inside = (x >= 0) & (y >= 0) & (x < n_x) & (y < n_y)
    x, y = x[inside], y[inside]
    at = y.astype(np.intp), x.astype(np.intp)
    data, sigma = pixels.pix[at].astype(float), pixels.sigma[at].astype(float)
    usable = np.isfinite(data) & np.isfinite(sigma) & (sigma > 0)
    weight = np.where(usable, 1 / np.where(usable, sigma, 1.0) ** 2, 0)
    return Strip(np.stack([x, y]), np.where(usable, data, 0), weight, 0)


def _without_neighbours(strip, ends, fwhm_pix):
    """The strip without bright pixels beside the segment: another source's, far above what the trail has there."""
    signal = strip.data * np.sqrt(strip.weight)
    v = np.abs(along_and_across(strip.xy, ends)[1])
    core = signal[v < 1]
    limit = max(_OUTLIER_SIGMA, _NEIGHBOUR_SHARE * float(core.max(initial=0.0)))
    return _clipped(strip, (signal > limit) & (v > _NEIGHBOUR_FWHM * fwhm_pix))


def _without_outliers(strip, tables, ends, fwhm_pix):
    """The strip without pixels far from the trail's median brightness: other light on a long line, or too little."""
    length = float(np.hypot(ends[2] - ends[0], ends[3] - ends[1]))
    if length < _LONG_FWHM * fwhm_pix:
        return strip
    places = along_and_across(strip.xy, ends)
    value = planes(tables, places, -length / 2, length / 2)[0]
    n = int(np.clip(length / (2 * fwhm_pix), 4, 40))
    piece = np.clip(np.floor((places[0] / length + 0.5) * n), 0, n - 1).astype(int)
    light, norm = (
        np.bincount(piece, weights=value * other * strip.weight, minlength=n) for other in (strip.data, value)
    )
    seen = norm > 0.1 * norm.max()
    if not seen.any():
        return strip
    model = value * max(float(np.median(light[seen] / norm[seen])), 0.0)
    return _clipped(
        strip, np.abs(strip.data - model) * np.sqrt(strip.weight) > _OUTLIER_SIGMA + model * np.sqrt(strip.weight)
    )


def _clipped(strip, outliers):
    """The strip without some pixels."""
    outliers = outliers & (strip.weight > 0)
    n_clipped = strip.n_clipped + int(outliers.sum())
    return strip._replace(weight=np.where(outliers, 0, strip.weight), n_clipped=n_clipped)


def fit_trail(
    pixels: Pixels, ends: np.ndarray, tables_of: TablesOf, most: int = 12, hopeless: float = np.inf
) -> Trail | None:
    """Least squares for ends and flux of a trail of even brightness (Veres et al. 2012, PASP 124, 1197).

    The model is exact: the pixel-integrated PSF, integrated along the segment. Gauss-Newton steps, damped after
    Levenberg.

    Parameters
    ----------
    pixels : Pixels
    ends : ndarray, shape (4,)
        First guess, good to a few px.
    tables_of : callable
        Place (px), direction (rad) -> `Tables`.
    most : int
        Iterations.
    hopeless : float
        A fit is given up when its misfit is still larger after a few iterations.

    Returns
    -------
    Trail or None
        None when there is no trail: it shrinks to a point, its flux is negative, its pixels are unusable or far from
        the model.
    """
    tables, angle, strip = _prepared(pixels, ends, tables_of)
    state = _evaluated(tables, strip, ends, None)
    damping = 1e-3
    for k in range(most):
        if state is None or (k == _PATIENCE and misfit(state.chi2, strip, state.snr) > hopeless):
            return None
        step = _step(state, damping)
        trial_ends, density = _stepped(ends, state.density, step)
        if abs(_direction(trial_ends) - angle) > _TURN_RAD or _drift(trial_ends, strip) > tables.half_pix / 2:
            tables, angle, strip = _prepared(pixels, trial_ends, tables_of)
            state = _evaluated(tables, strip, ends, state.density)
            if state is None:
                return None
        trial = _evaluated(tables, strip, trial_ends, density)
        if trial is not None and trial.chi2 <= state.chi2 + 1e-9:
            settled = state.chi2 - trial.chi2 < _SETTLED
            ends, state, damping = trial_ends, trial, damping * 0.2
            if settled:
                break
        else:
            damping = max(damping, 1e-3) * 10
            if damping > _MOST_DAMPING:
                break
    return _finished(tables, strip, ends, state) if state is not None else None


class _State(NamedTuple):
    density: float  # flux per px
    chi2: float
    gradient: np.ndarray
    normal: np.ndarray
    places: np.ndarray
    planes: np.ndarray

    @property
    def snr(self) -> float:
        return self.density * float(np.sqrt(self.normal[0, 0]))


def misfit(chi2: float, strip: Strip, snr: float) -> float:
    """Root of the chi squared that noise does not explain, over the signal to noise: about 0 for a trail, or 1."""
    n = int(np.count_nonzero(strip.weight))
    return float(np.sqrt(max(chi2 - n - 4 * np.sqrt(2.0 * n), 0.0))) / max(snr, 1.0)


def _direction(ends):
    return float(np.arctan2(ends[3] - ends[1], ends[2] - ends[0]))


def _drift(ends, strip):
    """How far the ends lie beyond the pixels of the strip less its margin."""
    low, high = strip.xy.min(axis=1), strip.xy.max(axis=1)
    pairs = np.reshape(ends, (2, 2))
    return float(max((low - pairs).max(), (pairs - high).max())) + 1e-9


def _prepared(pixels, ends, tables_of):
    angle = _direction(ends)
    tables = tables_of(((ends[0] + ends[2]) / 2, (ends[1] + ends[3]) / 2), angle)
    strip = strip_of(pixels, ends, tables.half_pix + 3)
    strip = _without_neighbours(strip, ends, tables.fwhm_pix)
    return tables, angle, _without_outliers(strip, tables, ends, tables.fwhm_pix)


def _evaluated(tables, strip, ends, density):
    """Model, chi squared, gradient and normal matrix; the density is fitted when none is given."""
    length = float(np.hypot(ends[2] - ends[0], ends[3] - ends[1]))
    if length < _LEAST_LENGTH_PIX or strip.weight.size == 0:
        return None
    places = along_and_across(strip.xy, ends)
    value = planes(tables, places, -length / 2, length / 2)
    if density is None:
        norm = float(np.dot(value[0] ** 2, strip.weight))
        if norm <= 0:
            return None
        density = float(np.dot(value[0] * strip.data, strip.weight)) / norm
    part = np.clip(places[0] / length + 0.5, 0, 1)
    design = np.stack(
        [value[0], density * value[1], density * value[2], density * value[3] * (1 - part), density * value[3] * part]
    )
    residual = strip.data - density * value[0]
    weighted = design * strip.weight
    chi2 = float(np.dot(residual**2, strip.weight))
    return _State(density, chi2, weighted @ residual, weighted @ design.T, places, value)


def _step(state, damping):
    """Damped solution; what the pixels say nothing of stays."""
    diagonal = np.diag(state.normal).copy()
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    matrix = state.normal * scale[:, None] * scale + (damping + 1e-9) * np.eye(5)
    step = scale * np.linalg.solve(matrix, state.gradient * scale)
    shrink = float(np.max(np.abs(step[1:]) / _STEP_LIMITS_PIX))
    return step / max(shrink, 1.0)


def _stepped(ends, density, step):
    """Ends after steps along (start, end) and across (start, end)."""
    length = float(np.hypot(ends[2] - ends[0], ends[3] - ends[1]))
    u = np.array([-length / 2 + step[1], length / 2 + step[2]])
    return _moved(ends, u, step[3:5]), density + step[0]


def _finished(tables, strip, ends, state):
    """The trail with its errors, its first end that of smaller x."""
    length = float(np.hypot(ends[2] - ends[0], ends[3] - ends[1]))
    if state.density <= 0 or state.normal[0, 0] <= 0:
        return None
    scale = 1 / np.sqrt(np.maximum(np.diag(state.normal), 1e-30))
    inverse = np.linalg.inv(state.normal * scale[:, None] * scale + 1e-9 * np.eye(5)) * scale[:, None] * scale
    return Trail(ends, state.density * length, state.snr, inverse, strip, state.places, state.planes, tables)


class Alternatives(NamedTuple):
    """Signal to noise of the best point source, and of the best two, on the line of a trail."""

    point: float
    pair: float


def alternatives(trail: Trail) -> Alternatives:
    """What point sources explain of a trail, in its pixels.

    Parameters
    ----------
    trail : Trail
    """
    reach, weight = trail.length / 2 + 1, trail.strip.weight
    along = np.linspace(-reach, reach, int(np.clip(4 * reach, 5, _MOST_POINTS)))
    pictures = np.stack([_points(trail, along, v) for v in _POINT_ACROSS_PIX])
    weighted = pictures * weight
    light, norm = weighted @ trail.strip.data, np.einsum("vun,vun->vu", weighted, pictures)
    point = float((light / np.sqrt(np.maximum(norm, 1e-30))).max())
    middle = len(_POINT_ACROSS_PIX) // 2
    return Alternatives(max(point, 0.0), _pair_snr(weighted[middle] @ pictures[middle].T, light[middle]))


def _points(trail, along, v):
    """Pictures of point sources at places on a line."""
    u = (trail.places[0] - along[:, None]).ravel()
    places = np.stack([u, np.tile(trail.places[1] - v, along.size)])
    return planes(trail.tables, places, 0.0, 0.0)[2].reshape(along.size, -1)


def _pair_snr(matrix, light):
    """Root of the most that two sources of positive flux take off chi squared; matrix of products, light of each."""
    own = np.diag(matrix)
    det = np.outer(own, own) - matrix**2
    first = light[:, None] * own - light * matrix  # flux of the row's source times det
    good = (det > _APART * np.outer(own, own)) & (first > 0) & (first.T > 0)
    gain = (light[:, None] * first + light * first.T) / np.where(good, det, 1)
    return float(np.sqrt(np.where(good, gain, 0).max(initial=0.0)))
