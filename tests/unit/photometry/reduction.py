"""Measure a rendered field with the defaults, and say which star each source is."""

from types import SimpleNamespace

import numpy as np

from zsds_hpc.photometry.aperture import MeasureParams, measure, with_profile
from zsds_hpc.photometry.background import BackgroundParams, estimate_background
from zsds_hpc.photometry.detect import DetectParams, detect_sources


def reduce_field(field):
    """Background, detections and catalogue of a rendered field, and for each source the star it is (-1: none)."""
    mask = np.zeros(field.pix.shape, np.int16)
    sky = estimate_background(field.pix, mask, BackgroundParams())
    sub = field.pix - sky.level
    found = detect_sources(sub, sky.rms, mask, DetectParams())
    found = with_profile(sub, sky.rms, mask, found, MeasureParams())
    catalogue = measure(sub, sky.rms, mask, field.gain, found, MeasureParams())
    distance = np.hypot(catalogue["XWIN_IMAGE"][:, None] - 1 - field.x, catalogue["YWIN_IMAGE"][:, None] - 1 - field.y)
    star = np.where(distance.min(axis=1) < 1.0, distance.argmin(axis=1), -1)
    return SimpleNamespace(field=field, mask=mask, sky=sky, sub=sub, found=found, catalogue=catalogue, star=star)
