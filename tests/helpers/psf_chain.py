"""The suite's public functions in a row: an image with its sky to its point-spread function and its PSF-fit sources."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.photometry.aperture import MeasureParams, attach_background, measure, with_profile
from zsds_hpc.photometry.background import Background, BackgroundParams, estimate_background
from zsds_hpc.photometry.detect import Detections, DetectParams, detect_sources
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.psfphot import PsfPhotometry, PsfPhotParams, psf_photometry
from zsds_hpc.photometry.seeing import quick_seeing

PARAMS = PsfPhotParams()


class Measured(NamedTuple):
    """What the suite makes of an image."""

    sky: Background
    sub: np.ndarray
    sources: Detections
    catalogue: np.ndarray  # aperture catalogue
    fits: PsfPhotometry


def measured(pix, mask, gain, saturate_dn, params=PARAMS):
    """Background, detection, mean profile, aperture catalogue, PSF and PSF fits."""
    sky = estimate_background(pix, mask, BackgroundParams())
    sub = pix - sky.level
    try:
        fwhm = StarProfile(quick_seeing(pix, sky.level, sky.rms, mask, saturate_dn).fwhm_pix).observed_fwhm_pix
    except AlgorithmFailure:
        fwhm = DetectParams().fwhm_pix
    sources = detect_sources(sub, sky.rms, mask, DetectParams(fwhm_pix=float(fwhm)))
    sources = with_profile(sub, sky.rms, mask, sources, MeasureParams())
    catalogue = attach_background(measure(sub, sky.rms, mask, gain, sources, MeasureParams()), sky.level)
    fits = psf_photometry((sub, sky.rms, mask), gain, sources.profile, saturate_dn - sky.global_level, params)
    return Measured(sky, sub, sources, catalogue, fits)


def nearest(x, y, other_x, other_y, radius_pix):
    """For each place the row of the nearest other one within a radius, or -1; and its distance (px)."""
    tree = cKDTree(np.stack([other_x, other_y], axis=1))
    distance, row = tree.query(np.stack([x, y], axis=1), distance_upper_bound=radius_pix)
    return np.where(np.isfinite(distance), row, -1), distance
