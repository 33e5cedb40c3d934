"""The fixed footprint of a reference image: native pixels for users, and a finer grid to interpolate from."""

from dataclasses import dataclass

import numpy as np

from zsds_hpc.astrometry.geometry import ChannelGeometry, initial_wcs
from zsds_hpc.astrometry.tpv import N_TERMS, TPV


@dataclass(frozen=True)
class Grid:
    """Native grid of a footprint and the finer one about it.

    A fine pixel f and a native pixel p (0-based, along either axis) are the same place where
    ``f = factor (p + margin_pix + 1/2) - 1/2``. Both hold flux per *native* pixel.

    Attributes
    ----------
    wcs : TPV
        Of the native grid: a gnomonic projection without distortion.
    shape : tuple of int
        (ny, nx), native.
    factor : float
        Fine pixels per native pixel along an axis.
    margin_pix : int
        Native pixels that the fine grid reaches beyond the native one on each side.
    """

    wcs: TPV
    shape: tuple[int, int]
    factor: float = 1.5
    margin_pix: int = 16

    @property
    def fine_shape(self) -> tuple[int, int]:
        """(ny, nx) of the fine grid."""
        n_y, n_x = (int(np.ceil(self.factor * (n + 2 * self.margin_pix))) for n in self.shape)
        return n_y, n_x

    def to_fine(self, p):
        """Fine coordinate of a native one, along either axis."""
        return self.factor * (np.asarray(p) + self.margin_pix + 0.5) - 0.5

    def to_native(self, f):
        """Native coordinate of a fine one."""
        return (np.asarray(f) + 0.5) / self.factor - self.margin_pix - 0.5

    def fine_wcs(self) -> TPV:
        """WCS of the fine grid."""
        crpix = self.to_fine(self.wcs.crpix)
        return TPV(self.wcs.crval, crpix, self.wcs.cd / self.factor, self.wcs.pv1, self.wcs.pv2)


def footprint_of(geometry: ChannelGeometry, ra_deg: float, dec_deg: float, pixel_scale_arcsec: float) -> Grid:
    """Footprint of a readout channel of a field.

    The tangent point is where the middle of the channel falls at the field's fixed centre; the axes run along the
    channel's own, made perpendicular and of one scale, so that an image and its reference differ by a small shift,
    a small turn and the distortion.

    Parameters
    ----------
    geometry : ChannelGeometry
    ra_deg, dec_deg : float
        Centre of the field, ICRS.
    pixel_scale_arcsec : float
        Side of a native pixel.
    """
    prior = initial_wcs(geometry, ra_deg, dec_deg)
    left, _, right = np.linalg.svd(prior.cd)  # the nearest orthogonal matrix: Schoenemann 1966
    linear = np.zeros(N_TERMS)
    linear[1] = 1.0
    cd = left @ right * (pixel_scale_arcsec / 3600.0)
    return Grid(TPV(prior.crval, prior.crpix, cd, linear, linear), (geometry.n_y, geometry.n_x))
