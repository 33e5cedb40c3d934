"""Where a search for streaks looks away: wings of saturated stars, masked tracks and the lights beside them."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from zsds_hpc.core.maskbits import SATURATED, SOURCES, TRACK

#: Every how many pixels the mask is looked at: tracks and saturated stars are wider.
_STRIDE = 4
_LEAST_CELLS = 15
_MOST_HALF_WIDTH_PIX = 60.0
_WING_FWHM = 2.5
_BESIDE_PIX, _ON_PIX, _PIECE_PIX = 45.0, 6.0, 30.0
_PARALLEL_DEG, _SAME_DEG = 10.0, 3.0
_EIGHT = np.ones((3, 3), int)


class Tracks(NamedTuple):
    """Masked tracks as lines across the image, and pieces of mask that are too short for satellites."""

    lines: np.ndarray  # (n, 4): x and y of a place, angle (rad), half width (px)
    short: list[tuple[slice, slice]]  # boxes (y, x) of the pixels


def masked_tracks(mask: np.ndarray, least_length_pix: float) -> Tracks:
    """Tracks of a mask.

    Parameters
    ----------
    mask : ndarray, shape (ny, nx), int16
    least_length_pix : float
        Shorter ones may be asteroids.
    """
    cells = (mask[::_STRIDE, ::_STRIDE] & TRACK) != 0
    lines: list[tuple] = []
    short: list[tuple[slice, slice]] = []
    if cells.any():
        labels, _ = ndimage.label(cells, _EIGHT)
        for k, box in enumerate(ndimage.find_objects(labels), 1):
            y, x = (_STRIDE * a.astype(float) for a in np.nonzero(labels[box] == k))
            if y.size < _LEAST_CELLS:
                continue
            y, x = y + _STRIDE * box[0].start, x + _STRIDE * box[1].start
            length, half_width, angle = _extent(x, y)
            if length > least_length_pix:
                lines.append((x.mean(), y.mean(), angle, half_width))
            elif half_width < length / 4:
                rows, columns = (slice(_STRIDE * max(s.start - 1, 0), _STRIDE * (s.stop + 1)) for s in box)
                short.append((rows, columns))
    kept = [line for line in lines if line[3] < _MOST_HALF_WIDTH_PIX]
    kept += [between for k, a in enumerate(kept) for b in kept[:k] if (between := _between(a, b))]
    return Tracks(np.array(kept).reshape(-1, 4), short)


def _between(a, b):
    """The band between two parallel tracks, the lights of an aircraft; None for others."""
    turn = (np.degrees(a[2] - b[2]) + 90) % 180 - 90
    apart = abs((a[1] - b[1]) * np.cos(a[2]) - (a[0] - b[0]) * np.sin(a[2]))
    if abs(turn) > _SAME_DEG or apart > 2 * _BESIDE_PIX:
        return None
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, a[2], apart / 2


def _extent(x, y):
    """Length, half width and angle of a set of cells."""
    dx, dy = x - x.mean(), y - y.mean()
    angle = 0.5 * np.arctan2(2 * (dx * dy).mean(), (dx**2).mean() - (dy**2).mean())
    along = dx * np.cos(angle) + dy * np.sin(angle)
    length = float(np.ptp(along)) + _STRIDE
    return length, x.size * _STRIDE**2 / length / 2, float(angle)


def beside_tracks(seeds: np.ndarray, tracks: Tracks) -> np.ndarray:
    """Seeds that run beside or along a masked track: other lights of an aircraft, and edges of the mask.

    Parameters
    ----------
    seeds : ndarray, shape (n,), with x1, y1, x2, y2
    tracks : Tracks

    Returns
    -------
    ndarray, shape (n,), bool
    """
    out = np.zeros(len(seeds), bool)
    x, y = (seeds["x1"] + seeds["x2"]) / 2, (seeds["y1"] + seeds["y2"]) / 2
    angle = np.arctan2(seeds["y2"] - seeds["y1"], seeds["x2"] - seeds["x1"])
    length = np.hypot(seeds["x2"] - seeds["x1"], seeds["y2"] - seeds["y1"])
    for x0, y0, direction, half_width in tracks.lines:
        across = np.abs((y - y0) * np.cos(direction) - (x - x0) * np.sin(direction))
        turn = np.abs((np.degrees(angle - direction) + 90) % 180 - 90)
        out |= (across < half_width + _BESIDE_PIX) & (turn < _PARALLEL_DEG)
        out |= (across < half_width + _ON_PIX) & (length < _PIECE_PIX)
    return out


def with_track(tracks: Tracks, ends: np.ndarray, half_width_pix: float) -> Tracks:
    """The tracks and one more, along a segment (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = ends
    line = ((x1 + x2) / 2, (y1 + y2) / 2, np.arctan2(y2 - y1, x2 - x1), half_width_pix)
    return tracks._replace(lines=np.vstack([tracks.lines, line]))


def wings(mask: np.ndarray, fwhm_pix: float) -> np.ndarray:
    """Saturated stars and their wings, the further the larger they are; shape (ceil(ny / 4), ceil(nx / 4)), bool."""
    cells = (mask[::_STRIDE, ::_STRIDE] & SATURATED) != 0
    out = np.zeros_like(cells)
    labels, _ = ndimage.label(cells, _EIGHT)
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        own = labels[box] == k
        y, x = (a.mean() + s.start for a, s in zip(np.nonzero(own), box))
        reach = _WING_FWHM * fwhm_pix / _STRIDE
        _paint_disc_inplace(out, (y, x), 2 * np.sqrt(own.sum() / np.pi) + reach)
        rows, columns = (slice(max(s.start - int(reach), 0), s.stop + int(reach)) for s in box)
        out[rows, columns] |= max(s.stop - s.start for s in box) > 2 * reach  # a bleeding column, and what is beside it
    return out


def _paint_disc_inplace(cells, middle, radius):
    """Set the cells of a disc."""
    rows, columns = (
        np.arange(max(int(c - radius), 0), min(int(c + radius) + 2, n)) for c, n in zip(middle, cells.shape)
    )
    disc = (rows[:, None] - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= radius**2
    cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] |= disc


def erase_wings_inplace(bins: np.ndarray, cells: np.ndarray, n_per_cell: int) -> None:
    """Empty the bins of a map, `n_per_cell` along a cell, in the wings of saturated stars."""
    y, x = np.nonzero(cells)
    for j in range(n_per_cell):
        for i in range(n_per_cell):
            rows, columns = n_per_cell * y + j, n_per_cell * x + i
            inside = (rows < bins.shape[0]) & (columns < bins.shape[1])
            bins[rows[inside], columns[inside]] = 0


def restored(images: tuple[np.ndarray, ...], boxes: list[tuple[slice, slice]]) -> tuple[np.ndarray, ...]:
    """Image, errors and mask with the pixels of short tracks usable again.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx)
        Difference, its errors, mask, science image, matched reference.
    boxes : list of (slice, slice)
        From `masked_tracks`.

    Returns
    -------
    tuple of ndarray
        Difference, errors, mask: copies where there are boxes. The error there is the median of the box.
    """
    pix, sigma, mask, science, reference = images
    if not boxes:
        return pix, sigma, mask
    pix, sigma, mask = pix.copy(), sigma.copy(), mask.copy()
    for box in boxes:
        own = (mask[box] & ~SOURCES) == TRACK
        around = sigma[box][np.isfinite(sigma[box])]
        if own.any() and around.size:
            pix[box][own] = (science[box] - reference[box])[own]
            sigma[box][own] = np.float32(np.median(around))
            mask[box][own] &= ~TRACK
    return pix, sigma, mask
