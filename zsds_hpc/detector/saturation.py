"""Saturated pixels, the trails that bleed from them along the columns, and their surroundings.

A full pixel spills its excess charge to both sides along its column. The trail is full or nearly so, and
its last pixel is filled in part: it may have any value. Only pixels near the level are looked at, as a
list.
"""

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param


class SaturationParams(Params):
    """What counts as saturated, and how far the damage reaches."""

    near_fraction: float = param(0.85, "Trails are followed while above this fraction of the level.", ge=0.1, le=1.0)
    trail_length_min: int = param(4, "Saturated pixels in a column from which on charge has bled.", unit="px", ge=1)
    n_trail_end: int = param(2, "Pixels added at either end of a trail: the last one is filled in part.", ge=0)
    n_grow: int = param(1, "Pixels by which all is grown.", unit="px", ge=0, le=5)


DEFAULTS = SaturationParams()


def saturation_mask(raw_minus_bias: np.ndarray, saturate_dn: float, params: SaturationParams = DEFAULTS) -> np.ndarray:
    """Saturated pixels with their bleeding trails, grown.

    Parameters
    ----------
    raw_minus_bias : ndarray, shape (ny, nx), uint16 or floating
        Counts as measured, before any division; raw counts do when the level is in `saturate_dn`.
    saturate_dn : float
        Pixels at or above this have lost charge; same zero as the image.
    params : SaturationParams

    Returns
    -------
    ndarray, shape (ny, nx), bool

    Raises
    ------
    BadInput
        The level is not a positive number, or the image not 2-D.
    """
    if not (np.isfinite(saturate_dn) and saturate_dn > 0.0) or raw_minus_bias.ndim != 2:
        raise BadInput(f"saturation level {saturate_dn} DN, image of {raw_minus_bias.ndim} dimensions")
    near_dn = raw_minus_bias.dtype.type(params.near_fraction * saturate_dn)
    ny, nx = raw_minus_bias.shape
    where = np.flatnonzero(raw_minus_bias.reshape(-1) >= near_dn)
    y, x = np.divmod(where, nx)
    full = raw_minus_bias.reshape(-1)[where] >= saturate_dn
    column, first, last = _trails(y, x, full, params)
    mask = np.zeros((ny, nx), bool)
    _fill(mask, column, first - params.n_grow, last + params.n_grow, params.n_grow)
    return mask


def _trails(
    y: np.ndarray, x: np.ndarray, full: np.ndarray, params: SaturationParams
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, first and last row of each run of bright pixels with a full one; ends of trails included."""
    order = np.lexsort((y, x))
    y, x, full = y[order], x[order], full[order].astype(np.int64)
    if y.size == 0:
        return y, y, y
    start = np.flatnonzero(np.r_[True, (np.diff(x) != 0) | (np.diff(y) != 1)])
    stop = np.r_[start[1:], y.size]
    n_full = np.add.reduceat(full, start)
    start, stop, n_full = start[n_full > 0], stop[n_full > 0], n_full[n_full > 0]
    extra = np.where(n_full >= params.trail_length_min, params.n_trail_end, 0)
    return x[start], y[start] - extra, y[stop - 1] + extra


def _fill(mask: np.ndarray, column: np.ndarray, first: np.ndarray, last: np.ndarray, n_grow: int) -> None:
    """Set rows first..last of the columns about each run, cut at the edges of the image."""
    ny, nx = mask.shape
    first, last = np.maximum(first, 0), np.minimum(last, ny - 1)
    length = last - first + 1
    row = np.repeat(first - np.r_[0, np.cumsum(length)[:-1]], length) + np.arange(length.sum())
    for shift in range(-n_grow, n_grow + 1):
        shifted = np.repeat(column + shift, length)
        inside = (shifted >= 0) & (shifted < nx)
        mask[row[inside], shifted[inside]] = True
