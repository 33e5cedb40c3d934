"""Trails of satellites and aircraft: found as lines of a binned map, confirmed and measured on the pixels.

The image is binned, its smooth structure removed and bright pixels clipped, so that stars count for no more
than a faint trail does. Sums along all lines of the map (`kernels.tracks.line_sums`, the fast Radon transform
of Nir, Zackay & Ofek 2018, AJ 156, 229) give candidates. Each is straightened on the pixels, its line
refined, and accepted by the contrast of the line against its own sides, where a chance row of stars does not
stand out.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import UNUSABLE
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.track_strip import (
    BLOCK_PIX,
    Line,
    Trail,
    evenness,
    on_blocks,
    profile,
    refine,
    runs,
    straighten,
    widths,
)
from zsds_hpc.kernels import tracks as kernel  # type: ignore[attr-defined]

#: A straight piece of trail: end points (0-based pixels), full width at half maximum (px), signal to noise.
SEGMENT_DTYPE = np.dtype([(name, "f8") for name in ("x0", "y0", "x1", "y1", "width", "snr")])

_BIN = 4
_HEIGHTS_BINS = 64, 256  # strips of the line search: shortest and longest
_SMOOTH_BINS = 17
_SKY_BINS = 32
_SAMPLE_STRIDE = 37
_NEAR_EDGE_BLOCKS = 3
_SMALL_GAP_BLOCKS = 2
_MIN_PIECE_BLOCKS = 4  # shorter ones are stars
_AXIS_DRIFT_PIX = 2.0
_MAD_TO_SIGMA = 1.4826


class TrackParams(Params):
    """What is called a trail."""

    n_sigma_line: float = param(7.0, "Significance of a line in the binned map.", ge=4, le=50)
    n_sigma_sides: float = param(6.0, "Contrast of the line against the scatter of its sides.", ge=3, le=50)
    n_sigma_block: float = param(2.5, "Brightness at which a piece of the line counts as part of it.", ge=1, le=20)
    clip_sigma: float = param(3.0, "Pixels and bins are clipped at this many sigma.", ge=1, le=10)
    half_width: int = param(60, "The sides reach this far from the line.", "px", ge=30, le=200)
    min_length: float = param(240.0, "Shorter trails are not taken.", "px", ge=50, le=3000)
    max_gap: float = param(450.0, "Gaps of a dashed trail that are bridged.", "px", ge=0, le=3000)
    min_evenness: float = param(0.4, "Lower over upper quartile of the light along a steady trail.", ge=0, le=1)
    min_length_uneven: float = param(800.0, "A blinking trail shines for this long in all.", "px", ge=50, le=5000)
    edge_sigma: float = param(0.2, "The mask ends where the profile falls below this, in pixel noise.", ge=0.05, le=5)
    n_grow: int = param(2, "And goes on for this much.", "px", ge=0, le=20)
    max_n_tracks: int = param(30, "No more than this many are looked for.", ge=1, le=1000)
    max_n_rejected: int = param(6, "Stop after this many candidates that were not confirmed.", ge=1, le=100)


class Tracks(NamedTuple):
    """Trails of one image."""

    mask: np.ndarray  # (ny, nx) bool
    segments: np.ndarray  # (n,) of SEGMENT_DTYPE


def find_tracks(pix: np.ndarray, mask: np.ndarray, params: TrackParams | None = None) -> Tracks:
    """Find satellite and aircraft trails.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        Detrended image in DN, with or without its sky; NaN allowed.
    mask : ndarray, shape (ny, nx), int16
        Known bad and saturated pixels with their bleeding columns (`core.maskbits`); unusable ones are left out.
    params : TrackParams, optional

    Returns
    -------
    Tracks
        A dashed trail is one segment; parallel lights are one each, or one together when they blend.

    Raises
    ------
    BadInput
        The image is not 2-D or the mask has another shape.
    """
    params = params or TrackParams()
    if pix.ndim != 2 or pix.shape != mask.shape:
        raise BadInput(f"tracks: image {pix.shape} and mask {mask.shape} differ in shape")
    bins = line_map(pix, mask, params.clip_sigma)
    found = np.zeros(pix.shape, bool)
    segments: list[tuple] = []
    n_rejected = 0
    while len(segments) < params.max_n_tracks and n_rejected < params.max_n_rejected:
        line = best_line(bins, params.n_sigma_line)
        if line is None:
            break
        trail = _confirm(pix, mask, found, line, params)
        if trail is None:
            n_rejected += 1
            _blank(bins, line, 2 * _BIN)
            continue
        _paint(found, trail.line, trail.half_width_pix)
        _blank(bins, trail.line, trail.half_width_pix + 2 * _BIN)
        segments.append(_segment(trail))
    return Tracks(found, np.array(segments, SEGMENT_DTYPE))


def line_map(pix: np.ndarray, mask: np.ndarray, clip_sigma: float) -> np.ndarray:
    """Binned image in units of its noise, without smooth structure, clipped, padded with 0 to whole strips.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), int16
    clip_sigma : float

    Returns
    -------
    ndarray, float32
        Both sizes are multiples of the largest strip.
    """
    mean, number = kernel.bin_image(pix, mask, UNUSABLE, _BIN)
    good = number >= _BIN * _BIN // 2
    bins = np.zeros([_whole_strips(n) for n in mean.shape], np.float32)
    if good.sum() < 100:
        return bins
    mean[~good] = np.median(mean[good])
    light = mean - _smooth_sky(mean)
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(light[good])))
    light = np.clip(light / max(sigma, 1e-6), -clip_sigma, clip_sigma)
    light[~good] = 0
    light -= ndimage.uniform_filter(light, _SMOOTH_BINS, mode="nearest")
    light[~good] = 0
    ny, nx = np.minimum(light.shape, bins.shape)
    bins[:ny, :nx] = light[:ny, :nx]
    return bins


def _whole_strips(n):
    """Size of the map for n bins: up to whole strips, or down when a strip would be nearly empty."""
    strip = _HEIGHTS_BINS[1]
    return max(1, (n + strip - 1 - strip // 16) // strip) * strip


def _smooth_sky(mean):
    """Medians of boxes, interpolated bilinearly to the size of the map."""
    n_y, n_x = (max(1, n // _SKY_BINS) for n in mean.shape)
    inner = mean[: mean.shape[0] // n_y * n_y, : mean.shape[1] // n_x * n_x]
    mesh = np.median(inner.reshape(n_y, inner.shape[0] // n_y, n_x, -1), axis=(1, 3))
    x, centres_x = _at_centres(mean.shape[1], n_x)
    y, centres_y = _at_centres(mean.shape[0], n_y)
    rows = np.array([np.interp(x, centres_x, row) for row in mesh])
    height = np.interp(y, centres_y, np.arange(n_y))
    low = np.minimum(height.astype(int), max(n_y - 2, 0))
    part = (height - low)[:, None]
    return (rows[low] * (1 - part) + rows[np.minimum(low + 1, n_y - 1)] * part).astype(np.float32)


def _at_centres(n, n_boxes):
    """Positions 0..n-1, and the centres of the boxes among them."""
    return np.arange(n), (np.arange(n_boxes) + 0.5) * n / n_boxes - 0.5


def best_line(bins: np.ndarray, n_sigma: float):
    """The most significant line of a map, or None when none exceeds `n_sigma`.

    Parameters
    ----------
    bins : ndarray, float32
        As from `line_map`.
    n_sigma : float
        In units of the robust scatter of all lines of the same length.

    Returns
    -------
    Line or None
        In pixels of the image.
    """
    best, where = n_sigma, None
    for swapped, mirrored in np.ndindex(2, 2):
        view = bins.T if swapped else bins
        view = np.ascontiguousarray(view[:, ::-1] if mirrored else view)
        for height, sums in kernel.line_sums(view, _HEIGHTS_BINS[1], _HEIGHTS_BINS[0]):
            for strip in range(len(sums)):
                lines = sums[strip].ravel()
                top = int(np.argmax(lines))
                snr = float(lines[top]) / _scatter(lines, height)
                if snr > best:
                    where = (strip, *divmod(top, view.shape[1])), height, view.shape[1], swapped, mirrored
                    best = snr
    return None if where is None else _line_of(*where)


def _scatter(lines, height):
    """Robust scatter of the sums along lines of a strip; those of the empty margin are 0 and do not count."""
    sample = lines[::_SAMPLE_STRIDE]
    sample = np.abs(sample[sample != 0])
    floor = 0.3 * float(np.sqrt(height))
    return max(_MAD_TO_SIGMA * float(np.median(sample)), floor) if sample.size else floor


def _line_of(at, height, nx, swapped, mirrored):
    """A line of the map in pixels of the image: strip, columns moved and first column as `line_sums` has them."""
    strip, moved, first = (int(v) for v in at)
    slope = moved / (height - 1)
    if mirrored:
        slope, first = -slope, nx - 1 - first
    y0 = strip * height
    return Line(
        x_mid=_BIN * (first + slope * 0.5 * (height - 1) + 0.5) - 0.5,
        y_mid=_BIN * (y0 + 0.5 * height) - 0.5,
        slope=slope,
        y0=_BIN * y0,
        y1=_BIN * (y0 + height),
        swapped=bool(swapped),
    )


def _blank(bins, line, half_width):
    """Empty the map along a line, in place."""
    view = bins.T if line.swapped else bins
    y = np.arange(int(line.y0 // _BIN), min(int(-(-line.y1 // _BIN)), view.shape[0]))
    x = (line.x(_BIN * (y + 0.5) - 0.5) + 0.5) / _BIN - 0.5
    reach = int(np.ceil(half_width * np.hypot(1, line.slope) / _BIN))
    columns = np.rint(x).astype(int)[:, None] + np.arange(-reach, reach + 1)
    inside = (columns >= 0) & (columns < view.shape[1])
    view[np.broadcast_to(y[:, None], columns.shape)[inside], columns[inside]] = 0


def _paint(found, line, half_width):
    """Set the pixels within half_width of a line between its ends, in place."""
    view = found.T if line.swapped else found
    y = np.arange(max(int(np.floor(line.y0)), 0), min(int(np.ceil(line.y1)), view.shape[0]))
    reach = int(np.ceil(half_width * np.hypot(1, line.slope)))
    columns = np.rint(line.x(y)).astype(int)[:, None] + np.arange(-reach, reach + 1)
    inside = (columns >= 0) & (columns < view.shape[1])
    view[np.broadcast_to(y[:, None], columns.shape)[inside], columns[inside]] = True


def _confirm(pix, mask, taken, line, params):
    """The trail along a candidate line, or None."""
    n_rows = pix.shape[1] if line.swapped else pix.shape[0]
    line = line._replace(y1=min(line.y1, n_rows))
    half = int(params.half_width * line.stretch)
    while True:
        strip = straighten(pix, mask, taken, line, half)
        if strip is None:
            return None
        line = refine(strip, line)
        if line.y0 <= 0 and line.y1 >= n_rows:
            break
        length = line.y1 - line.y0
        line = line._replace(y0=max(0, line.y0 - length), y1=min(n_rows, line.y1 + length))
    strip = straighten(pix, mask, taken, line, half, by_median=True)
    return None if strip is None else _measure(strip, line, n_rows, params)


def _measure(strip, line, n_rows, params):
    """Ends, widths and significance of a line that runs over all rows; None when it is no trail."""
    block_pix = BLOCK_PIX * line.stretch
    on = on_blocks(strip, params.n_sigma_block)
    for piece in runs(on, _SMALL_GAP_BLOCKS):
        on[piece] = len(piece) >= _MIN_PIECE_BLOCKS
    pieces = runs(on, int(params.max_gap / block_pix))
    if not pieces:
        return None
    longest = max(pieces, key=len)
    first, end = int(longest[0]), int(longest[-1]) + 1
    on[:first], on[end:] = False, False
    length = on.sum() * block_pix
    if length < params.min_length or _along_axis(line, first, end):
        return None
    # A row of bright stars and galaxies is uneven, and short.
    if evenness(strip, on) < params.min_evenness and length < params.min_length_uneven:
        return None
    _, contrast = profile(strip, on)
    if contrast < params.n_sigma_sides:
        return None
    fwhm, reach = widths(strip, on, params.edge_sigma)
    y0 = 0 if first <= _NEAR_EDGE_BLOCKS else strip.y[first]
    y1 = n_rows if end >= strip.y.size - _NEAR_EDGE_BLOCKS else strip.y[end]
    line = line._replace(y0=float(y0), y1=float(y1))
    return Trail(line, reach / line.stretch + params.n_grow, fwhm / line.stretch, contrast)


def _along_axis(line, first, end):
    """Whether a line keeps to a row or column, as defects and bleeding do."""
    return abs(line.slope) * (end - first) * BLOCK_PIX < _AXIS_DRIFT_PIX


def _segment(trail):
    """The trail as a record."""
    line = trail.line
    y = np.array([line.y0, line.y1 - 1])
    x = line.x(y)
    ends = (y[0], x[0], y[1], x[1]) if line.swapped else (x[0], y[0], x[1], y[1])
    return (*ends, trail.fwhm_pix, trail.snr)
