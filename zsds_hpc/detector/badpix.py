"""Calibration mask: pixels and columns that never give a good measurement, in the bits of the mask image."""

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import DEAD, HIGHRESP, LOWRESP, MASK_DTYPE, NOISY
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.robust import MAD_TO_SIGMA
from zsds_hpc.numerics.surface import column_medians


class BadpixParams(Params):
    """Limits of the response, and what makes a bad column."""

    dead_max: float = param(0.1, "A response below this is none.", ge=0.0, le=1.0)
    low_max: float = param(0.8, "A response below this is low.", ge=0.0, le=1.0)
    high_min: float = param(1.2, "A response above this is high.", ge=1.0)
    segment_pix: int = param(256, "Rows over which a column is judged.", unit="px", ge=16)
    column_n_sigma: float = param(
        8.0,
        "A segment of a column that differs by this many standard deviations from its neighbours is bad.",
        ge=3.0,
    )
    column_depth_min: float = param(0.02, "... and by at least this much of the response.", ge=0.0)
    column_bad_fraction: float = param(
        0.3,
        "A segment with more than this fraction of bad pixels is bad from the first to the last of them.",
        ge=0.0,
        le=1.0,
    )


DEFAULTS = BadpixParams()
#: Columns about a column that say what its response should be.
NEIGHBOURS = 15


def build_cmask(noisy: np.ndarray, flat: np.ndarray, params: BadpixParams = DEFAULTS) -> np.ndarray:
    """Calibration mask of a readout channel.

    Parameters
    ----------
    noisy : ndarray, shape (ny, nx), bool
        Noisy and hot pixels (`superbias.noisy_pixels`, `superbias.hot_pixels`).
    flat : ndarray, shape (ny, nx), float32
        High-frequency flat about 1. A pixel that is NaN without being noisy has no response: dead.
    params : BadpixParams

    Returns
    -------
    ndarray, shape (ny, nx), int16
        Bits NOISY, DEAD, LOWRESP, HIGHRESP; the last three exclude one another in a pixel.

    Raises
    ------
    BadInput
        Shapes differ, or the limits are not in order.
    """
    if noisy.shape != flat.shape or flat.ndim != 2:
        raise BadInput(f"noisy-pixel map {noisy.shape} and flat {flat.shape} do not fit")
    if not params.dead_max <= params.low_max <= params.high_min:
        raise BadInput(f"response limits {params.dead_max}, {params.low_max}, {params.high_min} are not in order")
    mask = _response_bits(noisy, flat, params)
    for first in range(0, flat.shape[0], params.segment_pix):
        rows = slice(first, first + params.segment_pix)
        if flat[rows].shape[0] * 2 > params.segment_pix:
            _mark_columns_inplace(mask[rows], flat[rows], params)
    return mask


def _response_bits(noisy: np.ndarray, flat: np.ndarray, params: BadpixParams) -> np.ndarray:
    # Nearly all pixels are good: bits are worked out for the others only.
    odd = np.flatnonzero(~((flat >= params.low_max) & (flat <= params.high_min)))
    response = flat.reshape(-1)[odd]
    dead = (response < params.dead_max) | (np.isnan(response) & ~noisy.reshape(-1)[odd])
    low = ~dead & (response < params.low_max)
    high = response > params.high_min
    mask = np.where(noisy, MASK_DTYPE(NOISY), MASK_DTYPE(0))
    mask.reshape(-1)[odd] |= (dead * DEAD + low * LOWRESP + high * HIGHRESP).astype(MASK_DTYPE)
    return mask


def _mark_columns_inplace(mask: np.ndarray, flat: np.ndarray, params: BadpixParams) -> None:
    """Mark the columns of a segment of rows that are bad along its length; mask is (n_rows, nx)."""
    n_bad = np.stack([((mask & bit) != 0).sum(axis=0) for bit in (DEAD, LOWRESP, HIGHRESP, NOISY)])
    mostly = n_bad.sum(axis=0) > params.column_bad_fraction * mask.shape[0]
    depth = _column_depth(flat)
    sigma = MAD_TO_SIGMA * np.nanmedian(np.abs(depth)) if np.isfinite(depth).any() else np.inf
    limit = max(params.column_n_sigma * sigma, params.column_depth_min)
    commonest = np.array([DEAD, LOWRESP, HIGHRESP, NOISY], MASK_DTYPE)[np.argmax(n_bad, axis=0)]
    by_depth = np.where(depth < 0, LOWRESP, HIGHRESP).astype(MASK_DTYPE)
    for x in np.flatnonzero(mostly | (np.abs(depth) > limit)):
        bit = commonest[x] if mostly[x] else by_depth[x]
        # A column that turns bad within the segment is bad from its first bad pixel on.
        rows = np.flatnonzero(mask[:, x]) if mostly[x] else np.array([0, mask.shape[0] - 1])
        part = mask[rows[0] : rows[-1] + 1, x]
        part[(part & (DEAD | LOWRESP | HIGHRESP)) == 0] |= bit


def _column_depth(flat: np.ndarray) -> np.ndarray:
    """Median of each column less that of the columns about it; NaN where a column has no finite value."""
    median = column_medians(flat[::2])
    padded = np.pad(median, NEIGHBOURS // 2, mode="reflect" if median.size > NEIGHBOURS else "edge")
    around = np.sort(np.lib.stride_tricks.sliding_window_view(padded, NEIGHBOURS), axis=1)
    return median - around[:, NEIGHBOURS // 2]
