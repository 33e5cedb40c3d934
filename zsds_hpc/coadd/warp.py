"""One epoch made ready for the co-add: sky-subtracted, on the reference's flux scale, and where its pixels lie."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.coadd.fill import FillParams, fill_holes_inplace
from zsds_hpc.coadd.footprint import Grid
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.resample import (
    Holes,
    Mapping,
    find_holes,
    lanczos,
    nearest_bits,
    spline_filter_inplace,
    spline_sample,
)
from zsds_hpc.photometry.background import BackgroundParams, estimate_background

#: Mask bits of pixels that hold no data. Ghosts and halos lie where they lay in the other epochs: they are marked.
NO_DATA = maskbits.UNUSABLE & ~(maskbits.GHOST | maskbits.HALO)
#: Mask bits that the reference inherits where a share of its epochs has them.
INHERITED = (maskbits.SATURATED, maskbits.GHOST, maskbits.HALO)


class WarpParams(Params):
    """How an epoch is brought to the footprint."""

    bad_bits: int = param(NO_DATA, "Pixels with any of these mask bits are left out.", "", 0, 32767)
    interpolation: Literal["spline", "lanczos"] = param("spline", "Quintic B-spline through the pixels, or Lanczos-3.")
    most_missing: float = param(0.1, "Share of the weights on missing pixels up to which there is a value.", "", 0, 1)
    fill: FillParams = param(FillParams(), "Missing pixels before a spline goes through them.")
    node_step_pix: int = param(32, "Distance of the positions that are computed exactly.", "px", 4, 512)
    background: BackgroundParams = param(BackgroundParams(), "Sky of an epoch.")


@dataclass(frozen=True)
class Exposure:
    """A calibrated image.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        With its sky, DN.
    mask : ndarray, shape (ny, nx), int16
    wcs : TPV
    gain_e : float
        e/DN.
    saturate_dn : float
        Above the sky of the detector, DN.
    magzp, clrcoeff : float
        Zero point and colour coefficient, mag.
    seeing_pix : float
    """

    pix: np.ndarray
    mask: np.ndarray
    wcs: TPV
    gain_e: float
    saturate_dn: float
    magzp: float
    clrcoeff: float
    seeing_pix: float


class EpochFacts(NamedTuple):
    """Figures of an epoch on the flux scale of the reference.

    Attributes
    ----------
    sky_var : float
        Variance of a pixel from the sky and the detector, DN^2.
    var_per_dn : float
        Further variance per DN of light, DN.
    saturate_dn : float
        Saturation above the sky.
    seeing_pix, clrcoeff : float
    """

    sky_var: float
    var_per_dn: float
    saturate_dn: float
    seeing_pix: float
    clrcoeff: float


@dataclass(frozen=True)
class Layer:
    """An epoch on the flux scale of the reference, to be read at any rows of its grid.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Sky-subtracted, DN at the reference's zero point; NaN without data. Coefficients of a spline where there are
        `holes`.
    to_fine : Mapping
        Of the fine grid.
    facts : EpochFacts
    holes : Holes or None
        None where Lanczos-3 is to read the pixels.
    """

    pix: np.ndarray
    to_fine: Mapping
    facts: EpochFacts
    holes: Holes | None


def sky_mapping(wcs: TPV, to: TPV, shape: tuple[int, int], step: int, flux_scale: float) -> Mapping:
    """Where the pixels of a grid with one WCS lie in an image with another; see `Mapping.of`.

    Parameters
    ----------
    wcs, to : TPV
        Of the output grid and of the input image.
    shape : tuple of int
        (ny, nx) of the output grid.
    """
    return Mapping.of(lambda x, y: to.sky_to_pixel(*wcs.pixel_to_sky(x, y)), shape, step, flux_scale)


def prepare_epoch(exposure: Exposure, grid: Grid, magzp: float, params: WarpParams) -> Layer:
    """Sky-subtract, mask and scale an epoch.

    Raises
    ------
    BadInput
        The zero point is not finite, or the image does not overlap the footprint.
    AlgorithmFailure
        Nowhere are there enough good pixels for a background.
    """
    if not np.isfinite(exposure.magzp):
        raise BadInput(f"epoch without a zero point ({exposure.magzp})")
    factor = 10.0 ** (0.4 * (magzp - exposure.magzp))
    sky = estimate_background(exposure.pix, exposure.mask, params.background)
    pix = exposure.pix - sky.level
    pix *= np.float32(factor)
    pix[(exposure.mask & params.bad_bits) != 0] = np.nan
    to_fine = sky_mapping(grid.fine_wcs(), exposure.wcs, grid.fine_shape, params.node_step_pix, grid.factor**2)
    x, y = to_fine.nodes[:2]
    n_y, n_x = pix.shape
    if not ((x > 0) & (y > 0) & (x < n_x - 1) & (y < n_y - 1)).any():
        raise BadInput("epoch does not overlap the footprint")
    holes = None
    if params.interpolation == "spline":
        holes = find_holes(pix, params.most_missing)
        fill_holes_inplace(pix, params.fill)
        spline_filter_inplace(pix)
    saturate_dn = factor * (exposure.saturate_dn - sky.global_level)
    sky_var, var_per_dn = (factor * sky.global_rms) ** 2, factor / exposure.gain_e
    facts = EpochFacts(sky_var, var_per_dn, saturate_dn, exposure.seeing_pix, exposure.clrcoeff)
    return Layer(pix, to_fine, facts, holes)


def count_inherited_inplace(counts: np.ndarray, exposure: Exposure, grid: Grid, params: WarpParams) -> None:
    """Add one where an epoch has one of the `INHERITED` bits.

    Parameters
    ----------
    counts : ndarray, shape (n_bits, ny, nx), uint8
        On the native pixels of the footprint; changed.
    exposure : Exposure
    grid : Grid
    params : WarpParams
    """
    to_native = sky_mapping(grid.wcs, exposure.wcs, grid.shape, params.node_step_pix, 0.0)
    mask = nearest_bits(exposure.mask, to_native, 0)
    at = np.flatnonzero((mask & np.int16(sum(INHERITED))) != 0)
    found = mask.reshape(-1)[at]
    for count, bit in zip(counts, INHERITED):
        count.reshape(-1)[at] += (found & bit) != 0


def warp_rows(layer: Layer, grid: Grid, start: int, n_rows: int, params: WarpParams) -> np.ndarray:
    """Rows of an epoch on the fine grid; NaN where there is no data, and in rows beyond the grid.

    Parameters
    ----------
    start, n_rows : int
        May reach beyond the grid.
    """
    n_y, n_x = grid.fine_shape
    out = np.full((n_rows, n_x), np.nan, np.float32)
    first, stop = max(start, 0), min(start + n_rows, n_y)
    if stop > first:
        inner = out[first - start : stop - start]
        rows = slice(first, stop)
        if layer.holes is None:
            lanczos(layer.pix, layer.to_fine, grid.fine_shape, rows, params.most_missing, inner)
        else:
            spline_sample(layer.pix, layer.to_fine, grid.fine_shape, rows, inner, layer.holes)
    return out
