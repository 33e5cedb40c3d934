"""Holes of the co-add filled smoothly, so that the spline through it does not ring."""

import numpy as np

from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.coadd import grow_inplace


class FillParams(Params):
    """How holes are filled."""

    reach_pix: int = param(24, "From their borders this far, beyond it with the sky.", "px", 0, 500)
    fade: float = param(0.9, "Values fade by this factor each pixel.", "", 0.0, 1.0)


def fill_holes_inplace(image: np.ndarray, params: FillParams) -> int:
    """Fill NaN pixels from their neighbours inward; farther in, with zero, the level of the sky.

    Round by round the missing pixels that touch known ones take the mean of those among their eight neighbours, times
    `params.fade`. A step of one at the border of a hole would make a quintic spline ring by 0.43 to the power of the
    distance.

    Parameters
    ----------
    image : ndarray, shape (ny, nx), float32
        Sky-subtracted; is changed.
    params : FillParams

    Returns
    -------
    int
        Number of pixels that were missing.
    """
    missing = np.flatnonzero(np.isnan(image))
    grow_inplace(image, missing, params.reach_pix, params.fade)
    return missing.size
