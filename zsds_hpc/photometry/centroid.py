"""Positions of point sources by least squares with the mean star profile."""

import numpy as np

from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.centroid import fit_profile
from zsds_hpc.photometry.detect import Detections
from zsds_hpc.photometry.profile import StarProfile, profile_table, window_half_pix
from zsds_hpc.photometry.seeing import BAD_IN_STAR

POSITION_DTYPE = np.dtype(
    [
        ("x", "f8"),  # 0-based px
        ("y", "f8"),
        ("flux", "f8"),  # DN
        ("var_flux", "f8"),
        ("var_x", "f8"),  # px^2
        ("var_y", "f8"),
        ("cov_xy", "f8"),
        ("chi2_dof", "f8"),
        ("spread", "f8"),
        ("var_spread", "f8"),
        ("fitted", "?"),  # False: the position is the isophotal barycentre, its variance NaN
    ]
)
_RESULT_COLUMNS = ("flux", "var_flux", "var_x", "var_y", "cov_xy", "chi2_dof", "spread", "var_spread")


class CentroidParams(Params):
    """How positions are fitted."""

    profile_error: float = param(0.0, "Error of the profile relative to its peak.", ge=0.0, le=0.5)
    max_move_pix: float = param(1.5, "A fit that goes farther from the peak has failed.", unit="pix", ge=0.1, le=10.0)
    max_iterations: int = param(8, "Gauss-Newton steps at most.", ge=2, le=50)
    bad_bits: int = param(BAD_IN_STAR, "Pixels with any of these mask bits have no weight.", ge=0, le=32767)


def fit_positions(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    gain: float,
    found: Detections,
    profile: StarProfile,
    params: CentroidParams,
) -> np.ndarray:
    """Fit flux and position of every source with one profile, pixels of other sources left out.

    Weights follow from sky noise, photon noise and an error of the profile. `spread` is the point-
    source statistic SPREAD_MODEL of Desai et al. 2012, eq. 1: 0 for stars, positive for extended sources,
    negative for sources sharper than a star.

    Parameters
    ----------
    images : tuple of ndarray
        Background-subtracted image, noise of the sky (float32, DN), survey mask (int16), each of shape (ny,
        nx).
    gain : float
        e/DN.
    found : Detections
    profile : StarProfile
    params : CentroidParams

    Returns
    -------
    ndarray, shape (n,), `POSITION_DTYPE`
    """
    pix_sub, rms, mask = images
    table = found.table
    position = np.stack([table["x_peak"], table["y_peak"]], axis=1).astype(np.float64)
    result = np.zeros((len(table), 8))
    settings = np.array(
        [gain, params.profile_error, params.bad_bits, params.max_iterations, params.max_move_pix], np.float64
    )
    own = np.arange(1, len(table) + 1, dtype=np.int32)
    planes = profile_table(profile, window_half_pix(profile.fwhm_pix))
    fit_profile(pix_sub, rms, mask, found.segments, own, position, planes, settings, result)
    out = np.zeros(len(table), POSITION_DTYPE)
    fitted = np.isfinite(result[:, 0])
    out["fitted"] = fitted
    out["x"], out["y"] = np.where(fitted, position.T, [table["x"], table["y"]])
    for column, values in zip(_RESULT_COLUMNS, result.T):
        out[column] = np.where(fitted, values, np.nan)
    return out
