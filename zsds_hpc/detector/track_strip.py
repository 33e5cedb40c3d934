"""The pixels beside a straight line, laid out as a strip: refining the line, its ends, its width."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from zsds_hpc.core.maskbits import UNUSABLE

#: Rows of a block.
BLOCK_PIX = 16
_CLIP_SIGMA = 3.0
_TILTS_PIX = np.arange(-10.0, 10.5, 0.5)
_MAX_SHIFT_PIX = 10
_MAD_TO_SIGMA = 1.4826


class Line(NamedTuple):
    """x = x_mid + slope (y - y_mid) for y0 <= y < y1, |slope| <= 1; in the transposed image when `swapped`."""

    x_mid: float
    y_mid: float
    slope: float
    y0: float
    y1: float
    swapped: bool

    def x(self, y):
        """Column at a row."""
        return self.x_mid + self.slope * (np.asarray(y) - self.y_mid)

    @property
    def stretch(self) -> float:
        """Pixels along the line for one row; also columns for one pixel across it."""
        return float(np.hypot(1.0, self.slope))


class Strip(NamedTuple):
    """Means over blocks of 16 rows at fixed offsets from a line, above the sky, in units of the pixel noise."""

    light: np.ndarray  # (n_blocks, 2 half + 1), in which stars count little: clipped, or the median over rows
    raw: np.ndarray  # likewise without clipping
    n_pix: np.ndarray  # likewise: number of usable pixels
    y: np.ndarray  # (n_blocks,) first row of each block

    @property
    def centre(self) -> int:
        """Column of the line itself."""
        return self.light.shape[1] // 2


class Trail(NamedTuple):
    """A line with its ends, the half width of what it spoils, and how it was measured."""

    line: Line
    half_width_pix: float
    fwhm_pix: float
    snr: float


def straighten(
    pix: np.ndarray, mask: np.ndarray, taken: np.ndarray, line: Line, half: int, by_median: bool = False
) -> Strip | None:
    """Lay out the pixels within `half` columns of a line.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), int16
    taken : ndarray, shape (ny, nx), bool
        Pixels of other trails, left out as unusable ones are.
    line : Line
    half : int
    by_median : bool
        Take the median over the rows of a block, which a star in it does not move, instead of the mean of
        clipped pixels, which is less noisy.

    Returns
    -------
    Strip or None
        None when hardly a pixel is usable.
    """
    pix, mask, taken = (a.T if line.swapped else a for a in (pix, mask, taken))
    y = np.arange(max(int(line.y0), 0), min(int(line.y1), pix.shape[0]))
    columns = np.rint(line.x(y)).astype(int)[:, None] + np.arange(-half, half + 1)
    outside = (columns < 0) | (columns >= pix.shape[1])
    at = y[:, None], np.clip(columns, 0, pix.shape[1] - 1)
    values = np.where(outside | ((mask[at] & UNUSABLE) != 0) | taken[at], np.nan, pix[at])
    n_blocks = -(-y.size // BLOCK_PIX)
    padded = np.full((n_blocks * BLOCK_PIX, values.shape[1]), np.nan, np.float32)
    padded[: y.size] = values
    return _in_blocks(padded.reshape(n_blocks, BLOCK_PIX, -1), y[::BLOCK_PIX], by_median)


def _in_blocks(cube, y, by_median):
    """Strip from pixels (n_blocks, rows, columns) with NaN for unusable ones."""
    usable = np.isfinite(cube)
    if usable.sum() < 1000:
        return None
    cube = cube - _row_medians(cube.reshape(cube.shape[0], -1)[:, ::3])[:, None, None]
    sample = cube[usable][::5]
    sigma = max(_MAD_TO_SIGMA * float(np.median(np.abs(sample))), 1e-6)
    cube = np.where(usable, cube / sigma, 0)
    n_pix = usable.sum(axis=1)
    raw = cube.sum(axis=1) / np.maximum(n_pix, 1)
    if by_median:
        return Strip(np.median(cube, axis=1), raw, n_pix, y)
    clipped = np.clip(cube, -_CLIP_SIGMA, _CLIP_SIGMA)
    return Strip(clipped.sum(axis=1) / np.maximum(n_pix, 1), raw, n_pix, y)


def _row_medians(values):
    """Median of the finite values of each row; 0 where there is none."""
    ordered = np.sort(values, axis=1)
    n = np.isfinite(values).sum(axis=1)
    medians = ordered[np.arange(len(values)), np.maximum(n - 1, 0) // 2]
    return np.where(n > 0, medians, 0)


def refine(strip: Strip, line: Line) -> Line:
    """Shift and tilt a line to where the strip is brightest along it.

    Parameters
    ----------
    strip : Strip
        Of this line.
    line : Line

    Returns
    -------
    Line
        With its middle as reference row.
    """
    n_blocks, n_columns = strip.light.shape
    part = (np.arange(n_blocks) + 0.5) / n_blocks - 0.5
    rows, columns = np.arange(n_blocks)[:, None], np.arange(n_columns)[None, :]
    middle = slice(strip.centre - _MAX_SHIFT_PIX, strip.centre + _MAX_SHIFT_PIX + 1)
    best, tilt, shift = -np.inf, 0.0, 0
    for trial in _TILTS_PIX:
        at = rows, np.clip(columns + np.rint(trial * part).astype(int)[:, None], 0, n_columns - 1)
        n_pix = strip.n_pix[at]
        light = ndimage.uniform_filter1d((strip.light[at] * n_pix).sum(axis=0), 3)
        snr = (light / np.sqrt(np.maximum(n_pix.sum(axis=0), 1)))[middle]
        if snr.max() > best:
            best, tilt, shift = float(snr.max()), trial, int(np.argmax(snr)) - _MAX_SHIFT_PIX
    y_mid = 0.5 * (line.y0 + line.y1)
    return line._replace(x_mid=float(line.x(y_mid)) + shift, y_mid=y_mid, slope=line.slope + tilt / (line.y1 - line.y0))


def on_blocks(strip: Strip, n_sigma: float) -> np.ndarray:
    """Blocks in which the line shines, by the median of five blocks against the same at the strip's sides.

    A star brightens one block or two, not three of five.

    Parameters
    ----------
    strip : Strip
    n_sigma : float

    Returns
    -------
    ndarray, shape (n_blocks,), bool
    """
    light = ndimage.uniform_filter1d(strip.light * strip.n_pix, 5, axis=1)
    n_pix = ndimage.uniform_filter1d(strip.n_pix.astype(float), 5, axis=1)
    snr = ndimage.median_filter(light / np.sqrt(np.maximum(n_pix, 0.2)) * np.sqrt(5), (5, 1), mode="nearest")
    sides = snr[:, np.abs(np.arange(snr.shape[1]) - strip.centre) > 8]
    level = float(np.median(sides))
    return snr[:, strip.centre] - level > n_sigma * max(_scatter(sides, level), 0.5)


def _scatter(values, level):
    """Robust standard deviation about a level; parallel trails among the values do not matter."""
    return _MAD_TO_SIGMA * float(np.median(np.abs(values - level)))


def runs(on: np.ndarray, max_gap: int) -> list[np.ndarray]:
    """Numbers of the blocks that are on, split where more than `max_gap` are off, in order."""
    where = np.flatnonzero(on)
    return np.split(where, np.flatnonzero(np.diff(where) > max_gap + 1) + 1) if where.size else []


def evenness(strip: Strip, used: np.ndarray) -> float:
    """Lower over upper quartile of the light on the line, over the blocks used."""
    light = ndimage.uniform_filter1d(strip.light, 5, axis=1)[used, strip.centre]
    low, high = np.percentile(light, [25, 75])
    return float(low / high) if high > 0 else 0.0


def profile(strip: Strip, used: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean light across a line over the blocks used, and its contrast against the scatter of the sides."""
    n_pix = strip.n_pix[used].sum(axis=0)
    light = (strip.light[used] * strip.n_pix[used]).sum(axis=0) / np.maximum(n_pix, 1)
    smooth = ndimage.uniform_filter1d(light, 3)
    offset = np.abs(np.arange(light.size) - strip.centre)
    sides = smooth[(offset > 8) & (n_pix > 0)]
    if sides.size < 20:
        return light, 0.0
    level = float(np.median(sides))
    scatter = _scatter(sides, level)
    floor = 1.0 / np.sqrt(3.0 * float(np.median(n_pix)) + 1.0)
    return light - level, (float(smooth[offset <= 2].max()) - level) / max(scatter, floor)


def widths(strip: Strip, used: np.ndarray, edge_sigma: float) -> tuple[float, float]:
    """Full width at half maximum and reach of the light to either side, in columns.

    Taken from the median over blocks, so that stars beside the line do not widen it.
    """
    across = np.median(np.where(strip.n_pix[used] > 0, strip.raw[used], 0), axis=0)
    across -= np.median(across)
    error = 1.25 / np.sqrt(max(BLOCK_PIX * int(used.sum()), 1))
    top = strip.centre - 2 + int(np.argmax(across[strip.centre - 2 : strip.centre + 3]))
    smooth = ndimage.uniform_filter1d(across, 3)
    edge = max(edge_sigma, 3.0 * error)
    left, right = (_fall(side, 0.5 * across[top]) for side in (across[top::-1], across[top:]))
    reach = max(_fall(side, edge) for side in (smooth[top::-1], smooth[top:]))
    return left + right, reach + abs(top - strip.centre)


def _fall(side, level):
    """Where a profile first falls to a level, interpolated."""
    below = np.flatnonzero(side <= level)
    if below.size == 0:
        return float(side.size)
    k = int(below[0])
    return 0.0 if k == 0 else k - float((level - side[k]) / (side[k - 1] - side[k]))
