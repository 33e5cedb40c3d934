"""Photometric calibration of one image from its PSF fits: zero point, aperture corrections, depth."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zsds_hpc.astrometry.match import mutual_nearest
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.photometry.aperture import box_flags, magnitudes
from zsds_hpc.photometry.growth import (
    ApertureCorrectionParams,
    ApertureCorrections,
    aperture_corrections_to_psf,
    growth_difference,
    psf_noise_area,
    rescaled_to_growth,
)
from zsds_hpc.photometry.zeropoint import (
    CalibratorParams,
    Calibrators,
    ZeroPointParams,
    calibrate_zeropoint,
    calibrator_stars,
    limiting_magnitude,
    residual_map,
)
from zsds_hpc.psf.model import PsfModel

#: A photometric standard: place on the image (0-based px), magnitude and colour with their errors, and whether the
#: band of the magnitude is the colour's first (1), its second (-1) or neither (0).
STANDARD_DTYPE = np.dtype(
    [("x", "f8"), ("y", "f8"), ("mag", "f8"), ("err", "f8"), ("color", "f8"), ("color_err", "f8"), ("sign", "i2")]
)


@dataclass(frozen=True)
class ChannelPhotometry:
    """Result of `normalize` and `calibrate_photometry`.

    Attributes
    ----------
    fits : ndarray, `psffit.PSF_FIT_DTYPE`
        PSF fits, scaled to total flux.
    psf : PsfModel
        Scaled likewise.
    metrics : dict
        Numbers for header and quality assurance.
    """

    fits: np.ndarray
    psf: PsfModel
    metrics: dict[str, Any]


def normalize(
    fits: np.ndarray,
    psf: PsfModel,
    catalogue: np.ndarray,
    growth: ApertureCorrections,
    params: ApertureCorrectionParams,
) -> ChannelPhotometry:
    """Scale PSF and fits to the total flux of the curve of growth, and refer the apertures to them.

    Parameters
    ----------
    fits : ndarray, `psffit.PSF_FIT_DTYPE`
    psf : PsfModel
    catalogue : ndarray
        Aperture catalogue of the same image.
    growth : ApertureCorrections
        Curve of growth; its corrections stand where too few stars have both.
    params : ApertureCorrectionParams
    """
    offset, unc, correction, correction_unc = 0.0, 0.0, growth.correction_mag, growth.unc_mag
    try:
        to_psf = aperture_corrections_to_psf(catalogue, fits, tuple(growth.diameters_pix), params)
    except AlgorithmFailure:
        to_psf = None
    if to_psf is not None and growth.n_stars:
        offset, unc = growth_difference(to_psf, growth)
        correction, correction_unc = to_psf.correction_mag + offset, to_psf.unc_mag
        fits, psf = rescaled_to_growth(fits, psf, offset)
    metrics: dict[str, Any] = {
        "n_growth_stars": growth.n_stars,
        "extrapolated_fraction": growth.outer_fraction,
        "psf_normalization_mag": offset,
        "psf_normalization_unc": unc,
    }
    for k, (value, error) in enumerate(zip(correction, correction_unc), 1):
        metrics.update({f"apcor{k}": float(value), f"apcorun{k}": float(error)})
    return ChannelPhotometry(fits, psf, metrics)


def calibrate_photometry(
    normalized: ChannelPhotometry,
    mask: np.ndarray,
    standards: np.ndarray,
    radius_pix: float,
    choice: CalibratorParams,
    params: ZeroPointParams,
) -> dict[str, Any]:
    """Zero point, colour term and map of residuals.

    Parameters
    ----------
    normalized : ChannelPhotometry
        From `normalize`.
    mask : ndarray, shape (ny, nx), int16
    standards : ndarray, `STANDARD_DTYPE`
    radius_pix : float
        Largest distance of a standard.
    choice : CalibratorParams
        Which PSF fits may calibrate.
    params : ZeroPointParams

    Returns
    -------
    dict
        Fields of `zeropoint.ZeroPoint`, and `zeropoint_map_mag`, `zeropoint_map_unc` (8 x 8, None without calibrators).

    Raises
    ------
    AlgorithmFailure
        Too few standards are among the stars.
    """
    place = np.stack([normalized.fits["x"], normalized.fits["y"]], axis=1)
    good = calibrator_stars(normalized.fits, box_flags(mask, place), _at_width(choice, normalized.psf.fwhm_pix))
    stars, place = normalized.fits[good], place[good]
    i, j = mutual_nearest(place, np.stack([standards["x"], standards["y"]], axis=1), radius_pix)[:2]
    stars, place, standards = stars[i], place[i], standards[j]
    n_y, n_x = mask.shape
    position = place * 2.0 / np.array([n_x - 1, n_y - 1]) - 1.0
    sign = int(standards["sign"][0]) if len(standards) else 0
    fit = calibrate_zeropoint(
        Calibrators(
            *magnitudes(stars["flux"], stars["sigflux"]), standards["mag"], standards["err"], standards["color"],
            standards["color_err"], sign, position,
        ),
        params,
    )  # fmt: skip
    cells = residual_map(fit, position)
    metrics = asdict(fit.zero)
    # The normalisation is common to all calibrators: its error is not in their scatter.
    metrics["magzp_unc"] = float(np.hypot(fit.zero.magzp_unc, normalized.metrics["psf_normalization_unc"]))
    metrics["zeropoint_map_mag"], metrics["zeropoint_map_unc"] = listed(cells.mean_mag), listed(cells.unc_mag)
    return metrics


def _at_width(choice, fwhm_pix):
    """The choice with the default locus of sharp, which is stated for a FWHM of 2 px, as wide as this PSF's."""
    wider = (fwhm_pix / 2.0) ** 2
    point = choice.point
    changed = {"default_floor": point.default_floor * wider, "default_slope": point.default_slope * wider}
    return choice.model_copy(update={"point": point.model_copy(update=changed)})


def listed(cells: np.ndarray) -> list[list[float | None]]:
    """A map as nested lists, None where it is not finite."""
    return [[float(value) if np.isfinite(value) else None for value in row] for row in cells]


def depth(psf: PsfModel, rms_dn: float, gain: float, magzp: float) -> float:
    """Limiting magnitude (5 sigma) of point sources at colour 0."""
    return limiting_magnitude(rms_dn, gain, psf_noise_area(psf), magzp)
