"""Figures of a point-spread function against what was put in."""

import numpy as np
import pytest

from tests.unit.psf.psf_truth import SHAPE, make_stars, shape_at
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf.build import PsfParams, build_psf, profile_psf, window_half_pix
from zsds_hpc.psf.qa import chi2_map, psf_metrics, psf_shapes

PARAMS = PsfParams()


@pytest.mark.parametrize("angle", [0.0, 30.0, 80.0, -45.0])
def test_ellipticity_and_angle_of_a_gaussian_like_star(angle):
    size = 0.15  # ln(a / b)
    twice = np.radians(2 * angle)
    profile = StarProfile(4.0, 11.0, size * np.cos(twice), size * np.sin(twice))
    shapes = psf_shapes(profile_psf(profile, (200, 220), PARAMS), 3)
    observed = profile.observed_fwhm_pix
    assert shapes.fwhm_pix == pytest.approx(np.full((3, 3), observed), rel=0.02)
    difference = (shapes.angle_deg - angle + 90) % 180 - 90
    assert np.abs(difference).max() < 0.5
    # The pixel adds 1/12 px^2 to both axes.
    a2, b2 = (4.0**2 / (8 * np.log(2)) * np.exp([size, -size])) + 1 / 12
    assert shapes.ellipticity == pytest.approx(np.full((3, 3), 1 - np.sqrt(b2 / a2)), rel=0.05)


def test_maps_and_metrics_follow_the_image():
    profile = StarProfile(2.06, 3.0)
    made = make_stars(400, 2.0, window_half_pix(profile, PARAMS))
    build = build_psf(made.stars, SHAPE, profile, PARAMS)
    shapes = psf_shapes(build.model)
    width, _, _ = shape_at(shapes.x, shapes.y, 2.0)
    assert np.corrcoef(shapes.fwhm_pix.ravel(), width.ravel())[0, 1] > 0.9
    chi2 = chi2_map(build, 3)
    assert chi2.shape == (3, 3)
    assert np.abs(chi2 - 1).max() < 0.15
    figures = psf_metrics(build)
    assert figures["n_psf_stars"] == build.used.sum()
    assert figures["psf_fwhm_min_pix"] < figures["psf_fwhm_pix"] < figures["psf_fwhm_max_pix"]
    assert 0 < figures["psf_ellipticity"] < 0.1
    assert all(np.isfinite(value) for value in figures.values())


def test_cells_without_stars_are_nan():
    profile = StarProfile(2.06, 3.0)
    made = make_stars(3, 2.0, window_half_pix(profile, PARAMS))
    build = build_psf(made.stars, SHAPE, profile, PARAMS)
    assert np.isnan(chi2_map(build, 4)).sum() >= 13
