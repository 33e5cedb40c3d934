"""Where streaks may be: peaks of a filtered map that are longer than the PSF, and lines of that map."""

from typing import NamedTuple

import numpy as np

from zsds_hpc.kernels import streaks as kernel  # type: ignore[attr-defined]
from zsds_hpc.numerics.robust import MAD_TO_SIGMA
from zsds_hpc.subtraction.streak_table import StreakParams
from zsds_hpc.subtraction.streak_trail import TablesOf, trail_images

#: A possible streak: ends (0-based px) and its rough signal to noise.
SEED_DTYPE = np.dtype([(name, "f8") for name in ("x1", "y1", "x2", "y2", "snr")])

_BIN = 2
#: Bins along the cells of `streak_avoid`.
BINS_PER_CELL = 2
_LEVEL_BINS = 32
_LAG = 3
_LAG_ROW_STRIDE = 16
_FIRST_HEIGHT_BINS = 8
_N_LEVELS = 7  # the tallest strip has 2^7 bins, 256 px
_PEAK_RADIUS_BINS = 2.5
_MAX_PEAKS = 4000
#: (transposed, mirrored) views of the map: each shows the lines of one octant that rise to the right.
_VIEWS = ((False, False), (False, True), (True, False), (True, True))
_BANK_HALF_PIX = 14
_BANK_LENGTHS_PIX = 5.0, 9.0, 16.0
_BANK_ALONG = -1 / 3, 0.0, 1 / 3  # of the length
_BANK_ACROSS_PIX = -0.3, 0.3
_BANK_N_ANGLES = 12
_SURE_POINT_SNR = 7.0
_POINT_STEPS_PIX = np.linspace(-1, 1, 5)


class Map(NamedTuple):
    """Filtered signal to noise in boxes of 2 x 2 px, of unit scatter; 0 where unusable."""

    bins: np.ndarray  # (ny // 2, nx // 2) float32
    lags: np.ndarray  # (7, 7): mean product of clipped bins that are (j - 3, i - 3) apart


def filtered_map(pix: np.ndarray, sigma: np.ndarray, fwhm_pix: float, params: StreakParams) -> Map:
    """Filter an image with a Gaussian as wide as the PSF, bin it, and remove what is smooth.

    The sum of the filtered image along a line is the matched filter of a trail there, but for its ends.

    Parameters
    ----------
    pix, sigma : ndarray, shape (ny, nx), float32
        Sigma is infinite where a pixel is unusable.
    fwhm_pix : float
    params : StreakParams
    """
    bins = kernel.filter_and_bin(pix, sigma, _taps(fwhm_pix), params.pixel_clip_sigma)
    sample = np.abs(bins[:: _LAG_ROW_STRIDE // 2])
    sample = sample[sample > 0]
    bins *= 1 / max(MAD_TO_SIGMA * float(np.median(sample)), 1e-6) if sample.size else 1
    kernel.subtract_level_inplace(bins, _level(bins, params.clip_sigma))
    return Map(bins, _lags(bins, params.clip_sigma))


def _taps(fwhm_pix):
    """Gaussian summed over two pixels."""
    sigma = fwhm_pix / 2.3548
    reach = int(np.ceil(2.2 * sigma)) + 1
    gauss = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(gauss / np.sqrt((gauss**2).sum()), [0.5, 0.5]).astype(np.float32)


def _level(bins, clip):
    """Mean of the clipped bins in cells."""
    n_y, n_x = (max(1, n // _LEVEL_BINS) for n in bins.shape)
    cell = bins.shape[0] // n_y, bins.shape[1] // n_x
    inner = np.clip(bins[: n_y * cell[0], : n_x * cell[1]], -clip, clip).reshape(n_y, cell[0], n_x, cell[1])
    return np.ascontiguousarray(inner.mean(axis=(1, 3)), np.float32)


def _lags(bins, clip):
    """Autocorrelation of the clipped map, from some of its rows."""
    n_y, n_x = bins.shape
    rows = np.arange(_LAG, n_y - _LAG, _LAG_ROW_STRIDE)
    inner = slice(_LAG, n_x - _LAG)
    here = np.clip(bins[rows, inner], -clip, clip)
    n_used = max(int(np.count_nonzero(here)), 1)
    lags = np.zeros((2 * _LAG + 1, 2 * _LAG + 1))
    for j in range(_LAG + 1):
        there = np.clip(bins[rows + j], -clip, clip)
        for i in range(-_LAG, _LAG + 1):
            moved = there[:, _LAG + i : n_x - _LAG + i]
            lags[_LAG + j, _LAG + i] = lags[_LAG - j, _LAG - i] = float(np.vdot(here, moved)) / n_used
    return lags


def line_noise(lags: np.ndarray) -> np.ndarray:
    """One over the noise of the sums of `kernels.streaks.best_lines`, shape (7, 128), float32."""
    out = np.zeros((_N_LEVELS, 1 << _N_LEVELS), np.float32)
    path = np.zeros((1, 1), int)
    for level in range(_N_LEVELS):
        d = np.arange(2 * len(path))
        upper = path[d // 2]
        path = np.concatenate([upper, upper + (d - d // 2)[:, None]], axis=1)
        var = np.full(len(path), len(path) * lags[_LAG, _LAG])
        for j in range(1, _LAG + 1):
            moved = path[:, j:] - path[:, :-j]
            near = moved <= _LAG
            var += 2 * np.where(near, lags[_LAG + j, _LAG + np.minimum(moved, _LAG)], 0).sum(axis=1)
        out[level, : len(path)] = 1 / np.sqrt(np.maximum(var, 0.3 * len(path)))
    return out


def line_seeds(image: Map, params: StreakParams) -> np.ndarray:
    """Lines of the map, brightest first; a bright streak gives many.

    Returns
    -------
    ndarray, shape (n,), `SEED_DTYPE`
    """
    found = []
    for swapped, mirrored in _VIEWS:
        view, lags = (image.bins.T, image.lags.T) if swapped else (image.bins, image.lags)
        if mirrored:
            view, lags = view[:, ::-1], lags[:, ::-1]
        lines = kernel.best_lines(view, line_noise(lags), params.line_sigma, params.clip_sigma, _FIRST_HEIGHT_BINS)
        rows, y0, moved, x0, snr = lines.T
        ends_x, ends_y = np.stack([x0, x0 + moved]), np.stack([y0, y0 + rows - 1])
        if mirrored:
            ends_x = view.shape[1] - 1 - ends_x
        if swapped:
            ends_x, ends_y = ends_y, ends_x
        seeds = np.zeros(len(lines), SEED_DTYPE)
        (seeds["x1"], seeds["x2"]), (seeds["y1"], seeds["y2"]) = (_BIN * a + (_BIN - 1) / 2 for a in (ends_x, ends_y))
        seeds["snr"] = snr
        found.append(seeds)
    seeds = np.concatenate(found)
    return seeds[np.lexsort((seeds["x1"], seeds["y1"], -seeds["snr"]))]


def line_sum(image: Map, seeds: np.ndarray, clip: float) -> np.ndarray:
    """Mean over root of the number of the clipped bins along seeds, as the map is now: tells what was erased.

    Parameters
    ----------
    image : Map
    seeds : ndarray, shape (n,), `SEED_DTYPE`
    clip : float

    Returns
    -------
    ndarray, shape (n,)
    """
    n = 48
    share = np.linspace(0, 1, n)[:, None]
    y, x = (
        np.clip(np.rint(((1 - share) * seeds[a + "1"] + share * seeds[a + "2"] - 0.5) / _BIN).astype(int), 0, size - 1)
        for a, size in zip("yx", image.bins.shape)
    )
    return np.clip(image.bins[y, x], -clip, clip).mean(axis=0)


def erase_inplace(image: Map, ends: np.ndarray, half_width_pix: float) -> None:
    """Empty the map along a segment, ends (x1, y1, x2, y2) px, and as far about it."""
    (x1, y1, x2, y2), (n_y, n_x) = (np.asarray(ends) - 0.5) / _BIN, image.bins.shape
    reach = half_width_pix / _BIN
    rows = np.arange(max(int(min(y1, y2) - reach), 0), min(int(max(y1, y2) + reach) + 2, n_y))[:, None]
    columns = np.arange(max(int(min(x1, x2) - reach), 0), min(int(max(x1, x2) + reach) + 2, n_x))
    length2 = max((x2 - x1) ** 2 + (y2 - y1) ** 2, 1e-6)
    share = np.clip(((columns - x1) * (x2 - x1) + (rows - y1) * (y2 - y1)) / length2, 0, 1)
    far = np.hypot(columns - x1 - share * (x2 - x1), rows - y1 - share * (y2 - y1)) > reach
    if far.size:
        image.bins[rows[0, 0] : rows[-1, 0] + 1, columns[0] : columns[-1] + 1] *= far


def peaks(image: Map, least: float) -> np.ndarray:
    """Peaks of the map, brightest first, none within 5 px of a brighter one; shape (n, 2), 0-based px x and y."""
    y, x = np.nonzero(image.bins > least)
    value = image.bins[y, x]
    order = np.lexsort((x, y, -value))[:_MAX_PEAKS]
    x, y = x[order].astype(float), y[order].astype(float)
    kept, left = [], np.ones(x.size, bool)
    for k in range(x.size):
        if left[k]:
            kept.append(k)
            left &= (x - x[k]) ** 2 + (y - y[k]) ** 2 > _PEAK_RADIUS_BINS**2
    return _BIN * np.stack([x[kept], y[kept]], axis=1) + (_BIN - 1) / 2


class Bank(NamedTuple):
    """Pictures of short trails and of point sources of unit norm, for the middle of a stamp."""

    pictures: np.ndarray  # (n, side^2) float32
    ends: np.ndarray  # (n, 4): x1, y1, x2, y2 from the middle of the stamp; both the same for points

    @property
    def is_point(self) -> np.ndarray:
        """Which are point sources."""
        return (self.ends[:, 0] == self.ends[:, 2]) & (self.ends[:, 1] == self.ends[:, 3])


def trail_bank(tables_of: TablesOf) -> Bank:
    """Short trails of all directions, centred on the stamp or up to a third of their length beside, and points.

    Parameters
    ----------
    tables_of : callable
        Place, direction (rad) -> `Tables`; the place is of no matter.
    """
    grid = np.arange(-_BANK_HALF_PIX, _BANK_HALF_PIX + 1.0)
    pixels = np.stack([a.ravel() for a in np.meshgrid(grid, grid)])
    parts = []
    for angle in np.pi * np.arange(_BANK_N_ANGLES) / _BANK_N_ANGLES:
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        tables = tables_of((0, 0), angle)
        for length in _BANK_LENGTHS_PIX:
            places = [u * length * along + v * across for u in _BANK_ALONG for v in _BANK_ACROSS_PIX]
            ends = np.array([[*(p - length / 2 * along), *(p + length / 2 * along)] for p in places])
            parts.append((trail_images(tables, pixels, ends), ends))
    ends = np.array([[x, y, x, y] for y in _POINT_STEPS_PIX for x in _POINT_STEPS_PIX])
    parts.append((trail_images(tables_of((0, 0), 0.0), pixels, ends), ends))
    stack = np.concatenate([images for images, _ in parts])
    stack /= np.sqrt((stack**2).sum(axis=1, keepdims=True))
    return Bank(stack.astype(np.float32), np.concatenate([ends for _, ends in parts]))


def short_seeds(
    pix: np.ndarray, sigma: np.ndarray, places: np.ndarray, bank: Bank, params: StreakParams
) -> tuple[np.ndarray, np.ndarray]:
    """Peaks that a short trail explains better than a point source.

    Parameters
    ----------
    pix, sigma : ndarray, shape (ny, nx), float32
    places : ndarray, shape (n, 2)
        From `peaks`.
    bank : Bank
    params : StreakParams

    Returns
    -------
    seeds : ndarray, `SEED_DTYPE`
        In the order of the peaks.
    points : ndarray, shape (m, 3)
        Peaks that are point sources without doubt: x, y, signal to noise.
    """
    if not len(places):
        return np.zeros(0, SEED_DTYPE), np.zeros((0, 3))
    point = bank.is_point
    middle = np.rint(places).astype(int)
    rough = _stamps(pix, sigma, middle) @ bank.pictures[point].T
    middle += np.rint(bank.ends[point][rough.argmax(axis=1), :2]).astype(int)
    snr = _stamps(pix, sigma, middle) @ bank.pictures.T
    best_point = np.maximum(snr[:, point].max(axis=1), 0)
    trails = np.where(point, -np.inf, snr)
    best = trails.argmax(axis=1)
    top = trails[np.arange(len(best)), best]
    gain = top**2 - best_point**2
    kept = (top >= params.seed_snr) & (gain >= params.seed_gain)
    seeds = np.zeros(int(kept.sum()), SEED_DTYPE)
    ends = bank.ends[best[kept]] + np.tile(middle[kept], 2)
    seeds["x1"], seeds["y1"], seeds["x2"], seeds["y2"] = ends.T
    seeds["snr"] = top[kept]
    sure = (gain < 0) & (best_point >= _SURE_POINT_SNR)
    return seeds, np.column_stack([places, best_point])[sure]


def _stamps(pix, sigma, middle):
    """Signal to noise of the pixels about places, shape (n, side^2); 0 beyond the image."""
    offset = np.arange(-_BANK_HALF_PIX, _BANK_HALF_PIX + 1)
    y, x = middle[:, 1, None] + offset, middle[:, 0, None] + offset
    inside = ((y >= 0) & (y < pix.shape[0]))[:, :, None] & ((x >= 0) & (x < pix.shape[1]))[:, None, :]
    at = np.clip(y, 0, pix.shape[0] - 1)[:, :, None], np.clip(x, 0, pix.shape[1] - 1)[:, None, :]
    stamps = np.nan_to_num(pix[at] / sigma[at]) * inside
    return stamps.reshape(len(middle), -1).astype(np.float32)
