"""Astrometric calibration of one channel image: match, fit, check, in their order."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zsds_hpc.astrometry.match import Detections, Match, MatchParams, Reference, match_catalogue, rematch
from zsds_hpc.astrometry.solve import AstrometricSolution, SolveParams, Stars, fit_tpv
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.astrometry.verify import (
    HeldBack,
    ResidualMap,
    ScaleChange,
    VerifyParams,
    check_held_back,
    held_back,
    residual_map,
    scale_change,
)
from zsds_hpc.core.params import Params, param


class AstrometryParams(Params):
    """Settings of the astrometric calibration."""

    match: MatchParams = param(MatchParams(), "Match to the reference catalogue.")
    solve: SolveParams = param(SolveParams(), "TPV fit.")
    verify: VerifyParams = param(VerifyParams(), "Checks of the solution.")


@dataclass(frozen=True, eq=False)
class Astrometry:
    """Result of `calibrate_astrometry`.

    Attributes
    ----------
    wcs : TPV
        Fitted to all matched stars.
    i_det, i_ref : ndarray, shape (n,), int64
        Matched pairs.
    match : Match
        First match, with the linear correction of the pointing.
    solution : AstrometricSolution
    held_back : HeldBack or None
        Check of a fit without some of the stars; None where there are too few.
    scale : ScaleChange
    residuals : ResidualMap
    metrics : dict
        QA numbers, see `calibrate_astrometry`.
    """

    wcs: TPV
    i_det: np.ndarray
    i_ref: np.ndarray
    match: Match
    solution: AstrometricSolution
    held_back: HeldBack | None
    scale: ScaleChange
    residuals: ResidualMap
    metrics: dict[str, Any]

    def cards(self) -> list[tuple[str, object, str]]:
        """FITS cards of the WCS and its quality, with the survey's keywords."""
        rms_deg = self.solution.rms_arcsec / 3600.0
        return [
            *self.wcs.to_cards(),
            ("ASTRRMS1", float(rms_deg[0]), "[deg] RMS of residuals to the reference, along xi"),
            ("ASTRRMS2", float(rms_deg[1]), "[deg] RMS of residuals to the reference, along eta"),
            ("ASTROMN", self.solution.n_used, "Number of stars in the astrometric solution"),
            ("ASTCHI2", self.metrics["astrometric_chi2"], "Reduced chi-square of the astrometric solution"),
        ]


def calibrate_astrometry(
    detections: Detections,
    reference: Reference,
    prior: TPV,
    shape: tuple[int, int],
    params: AstrometryParams | None = None,
) -> Astrometry:
    """Find and check the WCS of a channel image.

    Parameters
    ----------
    detections : Detections
        Clean sources.
    reference : Reference
        Gaia at the epoch of the image, over the image and the pointing error.
    prior : TPV
        From the commanded pointing (`geometry.initial_wcs`).
    shape : tuple of int
        (ny, nx).
    params : AstrometryParams, optional
        The normalisation of the polynomial is set from `shape`.

    Returns
    -------
    Astrometry
        Its `metrics`: n_astrometric, n_astrometric_rejected, astrometric_rms_arcsec (larger axis),
        astrometric_rms_xi_arcsec, astrometric_rms_eta_arcsec, astrometric_chi2 (reduced), astrometric_floor_arcsec,
        astrometric_map_error_arcsec (formal, one axis, mean over the image), held_back_n, held_back_rms_arcsec,
        held_back_chi2_ratio, matched_percent (of the detections or of the reference stars in the image, whichever are
        fewer), pointing_offset_arcsec, match_significance, scale_change_min_percent, scale_change_max_percent,
        astrometric_max_grid_residual_arcsec, astrometric_min_grid_n, scale_changed (more than allowed). What cannot be
        told is None.

    Raises
    ------
    BadInput
        An input is empty or malformed.
    AlgorithmFailure
        No match, or too few stars.
    """
    params = params or AstrometryParams()
    n_y, n_x = shape
    solving = params.solve.model_copy(update={"half_size_pix": max(n_x, n_y) / 2.0})
    match = match_catalogue(detections, reference, prior, params.match)
    first = fit_tpv(_stars(detections, reference, match.i_det, match.i_ref, prior), match.wcs, solving)
    systematic = np.hypot(first.floor_arcsec, _mean_map_error(first, shape))
    i_det, i_ref = rematch(detections, reference, first.wcs, systematic, params.match)
    stars = _stars(detections, reference, i_det, i_ref, prior)
    check = _held_back_check(stars, match.wcs, solving, params.verify)
    solution = fit_tpv(stars, match.wcs, solving)
    used = Stars(*(column[solution.used] for column in stars))
    cells = residual_map(used, solution.residuals_arcsec[solution.used], n_x, n_y, params.verify)
    change = scale_change(solution.wcs, prior, n_x, n_y)
    metrics = _metrics(solution, match, check) | {
        "astrometric_map_error_arcsec": _mean_map_error(solution, shape),
        "matched_percent": _matched_percent(detections, reference, solution, shape, params.match),
        "scale_change_min_percent": change.min_percent,
        "scale_change_max_percent": change.max_percent,
        "scale_changed": change.exceeds(params.verify.max_scale_change_percent),
        "astrometric_max_grid_residual_arcsec": cells.max_arcsec,
        "astrometric_min_grid_n": int(cells.n_stars.min()),
    }
    metrics = {key: None if value != value else value for key, value in metrics.items()}
    return Astrometry(solution.wcs, i_det, i_ref, match, solution, check, change, cells, metrics)


def _stars(detections, reference, i_det, i_ref, prior) -> Stars:
    scale = float(prior.pixel_scale_arcsec(*prior.crpix))
    sigma = np.hypot(detections.sigma_pix[i_det] * scale, reference.sigma_arcsec[i_ref])
    return Stars(detections.x[i_det], detections.y[i_det], reference.ra[i_ref], reference.dec[i_ref], sigma)


def _held_back_check(stars: Stars, start: TPV, solving: SolveParams, params: VerifyParams) -> HeldBack | None:
    """Fit without some of the stars, and look at those."""
    out = held_back(stars.ra, stars.dec, params.held_back_fraction)
    if out.sum() < params.min_held_back:
        return None
    without, kept_out = (Stars(*(column[chosen] for column in stars)) for chosen in (~out, out))
    return check_held_back(fit_tpv(without, start, solving), kept_out, params)


def _mean_map_error(solution: AstrometricSolution, shape: tuple[int, int]) -> float:
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 9), np.linspace(0, shape[0] - 1, 9))
    return float(np.sqrt(np.mean(solution.map_error_arcsec(x, y) ** 2)))


def _matched_percent(detections, reference, solution, shape, params: MatchParams) -> float:
    """Stars used, over the detections or the reference stars in the image, whichever are fewer."""
    x, y = solution.wcs.sky_to_pixel(reference.ra, reference.dec)
    n_reference = int(((x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)).sum())
    return 100.0 * solution.n_used / max(1, min(len(detections.x), n_reference, params.n_most))


def _metrics(solution: AstrometricSolution, match: Match, check: HeldBack | None) -> dict[str, Any]:
    return {
        "n_astrometric": solution.n_used,
        "n_astrometric_rejected": solution.n_rejected,
        "astrometric_rms_arcsec": float(solution.rms_arcsec.max()),
        "astrometric_rms_xi_arcsec": float(solution.rms_arcsec[0]),
        "astrometric_rms_eta_arcsec": float(solution.rms_arcsec[1]),
        "astrometric_chi2": solution.chi2 / solution.dof if solution.dof > 0 else float("nan"),
        "astrometric_floor_arcsec": solution.floor_arcsec,
        "held_back_n": check.n_stars if check else 0,
        "held_back_rms_arcsec": float(check.rms_arcsec.max()) if check else None,
        "held_back_chi2_ratio": check.chi2_ratio if check else None,
        "pointing_offset_arcsec": float(np.hypot(*match.offset_arcsec)),
        "match_significance": match.peak_significance,
    }
