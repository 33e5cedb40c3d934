"""Where bright stars put a halo and a displaced ghost image: discs, from the camera's simple optical model.

The halo is light scattered about the star; the ghost is light reflected twice, an out-of-focus image of the pupil
that is displaced by an amount linear in the position. Both are masked as far out as their surface brightness
matters, so the radius grows with the star's flux.
"""

from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import GHOST, HALO, MASK_DTYPE
from zsds_hpc.core.params import Params, param


class GhostParams(Params):
    """Halo and ghost of a star of unit flux; fluxes are total, in DN.

    Halo: surface brightness flux * halo_fraction * 3/(pi R^2) (1 - r/R) out to R = halo_radius. Ghost: uniform
    between two radii, of total flux flux * ghost_fraction.
    """

    halo_radius: float = param(110.0, "Outermost radius of a halo.", "px", ge=1, le=2000)
    halo_fraction: float = param(0.01, "Part of the star's light in its halo.", ge=0, le=1)
    halo_min_flux: float = param(1.0e6, "Fainter stars have no halo to speak of.", "DN", ge=0)
    ghost_radius: float = param(75.0, "Outer radius of a ghost.", "px", ge=1, le=2000)
    ghost_inner_radius: float = param(25.0, "Inner radius of a ghost, 0 for a disc.", "px", ge=0, le=2000)
    ghost_fraction: float = param(0.004, "Part of the star's light in its ghost.", ge=0, le=1)
    ghost_min_flux: float = param(1.0e6, "Fainter stars have no ghost to speak of.", "DN", ge=0)
    threshold: float = param(1.0, "Surface brightness down to which pixels are masked.", "DN/px", ge=1e-3, le=1e4)
    n_grow: float = param(2.0, "Allowance for errors of position and radius.", "px", ge=0, le=50)


class GhostOffset(NamedTuple):
    """Ghost position = matrix @ (x, y) + shift, 0-based pixels."""

    matrix: np.ndarray  # (2, 2)
    shift_pix: np.ndarray  # (2,)


def offset_about_axis(axis_x: float, axis_y: float, scale: float) -> GhostOffset:
    """Displacement towards the optical axis: ghost = axis + scale (star - axis).

    Parameters
    ----------
    axis_x, axis_y : float
        Pixel position of the optical axis, which usually lies outside the channel.
    scale : float
        As `center_scale` of the camera file.

    Returns
    -------
    GhostOffset
    """
    return GhostOffset(scale * np.eye(2), (1.0 - scale) * np.array([axis_x, axis_y]))


def halo_and_ghost_mask(
    shape: tuple[int, int], stars: np.ndarray, offset: GhostOffset, params: GhostParams | None = None
) -> np.ndarray:
    """Mask the halos and ghosts of bright stars.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx) of the image.
    stars : ndarray, structured, shape (n,)
        Columns x, y (0-based px, may lie outside the image) and flux_dn (total, DN). From a catalogue: with a
        magnitude, flux_dn = 10^(0.4 (zero point - mag)). Stars with a value that is not finite are left out.
    offset : GhostOffset
    params : GhostParams, optional

    Returns
    -------
    ndarray, shape (ny, nx), int16
        Bits HALO and GHOST.

    Raises
    ------
    BadInput
        A column is missing.
    """
    params = params or GhostParams()
    missing = {"x", "y", "flux_dn"} - set(stars.dtype.names or ())
    if missing:
        raise BadInput(f"ghosts: star list without {', '.join(sorted(missing))}")
    x, y, flux = (stars[name].astype(float) for name in ("x", "y", "flux_dn"))
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(flux)
    x, y, flux = x[finite], y[finite], flux[finite]
    mask = np.zeros(shape, MASK_DTYPE)
    radius = halo_radius_pix(flux, params)
    _add_rings(mask, x, y, np.zeros_like(radius), radius, HALO)
    ghost_x, ghost_y = offset.matrix @ np.stack([x, y]) + offset.shift_pix[:, None]
    outer = np.where(ghost_shines(flux, params), params.ghost_radius + params.n_grow, 0.0)
    inner = np.full(outer.size, params.ghost_inner_radius - params.n_grow)
    _add_rings(mask, ghost_x, ghost_y, inner, outer, GHOST)
    return mask


def halo_radius_pix(flux_dn: np.ndarray, params: GhostParams) -> np.ndarray:
    """Radius at which the halo falls to the threshold, with the allowance; 0 for stars without a halo.

    Parameters
    ----------
    flux_dn : ndarray, shape (n,)
    params : GhostParams

    Returns
    -------
    ndarray, shape (n,), float64
    """
    radius = params.halo_radius
    peak_dn = np.asarray(flux_dn) * params.halo_fraction * 3.0 / (np.pi * radius**2)
    reach = radius * (1.0 - params.threshold / np.maximum(peak_dn, 1e-30))
    shines = (reach > 0) & (np.asarray(flux_dn) > params.halo_min_flux)
    return np.where(shines, reach + params.n_grow, 0.0)


def ghost_shines(flux_dn: np.ndarray, params: GhostParams) -> np.ndarray:
    """Whether the surface brightness of a star's ghost is above the threshold.

    Parameters
    ----------
    flux_dn : ndarray, shape (n,)
    params : GhostParams

    Returns
    -------
    ndarray, shape (n,), bool
    """
    area = np.pi * (params.ghost_radius**2 - min(params.ghost_inner_radius, 0.99 * params.ghost_radius) ** 2)
    level_dn = np.asarray(flux_dn) * params.ghost_fraction / area
    return (level_dn > params.threshold) & (np.asarray(flux_dn) > params.ghost_min_flux)


def _add_rings(mask, x, y, inner, outer, bit):
    """Set a bit within rings, in place; a ring of outer radius 0 sets nothing."""
    ny, nx = mask.shape
    near = (outer > 0) & (x > -outer) & (x < nx + outer) & (y > -outer) & (y < ny + outer)
    for cx, cy, r0, r1 in zip(x[near], y[near], inner[near], outer[near]):
        rows = slice(max(int(cy - r1), 0), min(int(cy + r1) + 2, ny))
        columns = slice(max(int(cx - r1), 0), min(int(cx + r1) + 2, nx))
        y2, x2 = (np.arange(rows.start, rows.stop) - cy) ** 2, (np.arange(columns.start, columns.stop) - cx) ** 2
        r2 = y2[:, None] + x2[None, :]
        mask[rows, columns] |= np.where((r2 <= r1**2) & (r2 >= max(r0, 0.0) ** 2), MASK_DTYPE(bit), MASK_DTYPE(0))
