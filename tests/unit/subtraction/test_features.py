"""Features of stamps, cutouts and limits on cases with a known answer."""

import numpy as np
import pytest
import sep

from tests.unit.subtraction.diffscene import MAGZP, SKY_SIGMA_DN, flux_sigma, make_difference, pixels, psf_of
from zsds_hpc.subtraction.candcat import COLUMNS
from zsds_hpc.subtraction.cutouts import cut_out, offsets, windows
from zsds_hpc.subtraction.features import (
    aperture_photometry,
    aperture_weights,
    filtered,
    moments,
    ring_level,
    ring_of,
    sign_counts,
)
from zsds_hpc.subtraction.limits import flux_errors, image_limit_mag, limit_mag_at


def test_windows_are_centred_and_know_the_outside():
    image = np.arange(100.0).reshape(10, 10)
    out = windows(image, np.array([4.4, 0.0]), np.array([5.6, 9.0]), 1)
    np.testing.assert_array_equal(out[0], image[5:8, 3:6])
    assert np.isnan(out[1]).tolist() == [[True, False, False], [True, False, False], [True, True, True]]
    assert np.isnan(windows(image, np.array([-5.0]), np.array([40.0]), 1)).all()
    dx, dy = offsets(np.array([4.4]), np.array([5.6]), 1)
    np.testing.assert_allclose(dx[0, 0], [-1.4, -0.4, 0.6])
    np.testing.assert_allclose(dy[0, :, 0], [-0.6, 0.4, 1.4])


def test_aperture_agrees_with_sep():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(63, 63))
    for x, y, radius in ((31.0, 31.0, 7.0), (31.3, 30.6, 7.0), (30.8, 31.4, 9.0)):
        weights = aperture_weights(np.array([x]), np.array([y]), radius, 12)[0]
        theirs = sep.sum_circle(image, [x], [y], radius, subpix=5)[0][0]
        assert abs((weights * image[19:44, 19:44]).sum() - theirs) < 0.02 * radius
        assert abs(weights.sum() / (np.pi * radius**2) - 1) < 0.01


def test_aperture_error_and_missing_pixels():
    stamp = np.ones((1, 21, 21))
    sigma, model = np.full_like(stamp, 2.0), np.full_like(stamp, 5.0)
    flux, error = aperture_photometry((stamp, sigma, model), np.zeros(1), np.zeros(1), 7.0, 10.0)
    area = aperture_weights(np.zeros(1), np.zeros(1), 7.0, 10)
    assert flux == pytest.approx(area.sum())
    assert error == pytest.approx(np.sqrt(4 * (area**2).sum() + area.sum() / 10))
    stamp[0, 10, 10] = np.nan
    flux, error = aperture_photometry((stamp, sigma, model), np.zeros(1), np.zeros(1), 7.0, 10.0)
    assert flux == pytest.approx(area.sum() + 4)


def test_ring_level_passes_over_nan():
    rng = np.random.default_rng(0)
    stamps = rng.normal(3, 2, (3, 63, 63))
    ring = ring_of(10, 31)
    stamps[1, :20] = np.nan
    stamps[2] = np.nan
    median, rms, n = ring_level(stamps, ring)
    np.testing.assert_allclose(median[:2], 3, atol=0.2)
    np.testing.assert_allclose(rms[:2], 2, atol=0.2)
    assert np.isnan([median[2], rms[2]]).all() and n[2] == 0 and n[0] == ring.sum() > n[1]


def test_signs():
    stamp = np.ones((5, 5))
    stamp[2, 2] = -100  # the median does not see it
    nneg, sumrat = sign_counts(np.array([stamp, -np.ones((5, 5)), np.full((5, 5), np.nan)]))
    assert nneg.tolist() == [1, 25, 0] and sumrat.tolist() == [1, -1, 0]
    half = np.ones((5, 5))
    half[:, 3:] = -1
    assert sign_counts(half[None])[1][0] == pytest.approx((15 - 10) / 25)


@pytest.mark.parametrize("fwhm, phase_effect", [(1.6, 0.09), (2.0, 0.05), (3.2, 0.02)])
def test_moments_follow_the_profile(fwhm, phase_effect):
    steps = np.arange(-10, 11)
    x, y = np.array([0.3, -0.2, 0.0]), np.array([-0.4, 0.1, 0.0])
    round_ = [pixels(steps[None, :] - a, steps[:, None] - b, fwhm) for a, b in zip(x, y)]
    major, minor = moments(np.array(round_), x, y, fwhm)
    assert (major / minor < 1.05).all()
    assert np.ptp(major) < phase_effect * major.mean()
    long_ = pixels(steps[None, :], steps[:, None], 2 * fwhm, elong=2.0)
    major, minor = moments(long_[None], np.zeros(1), np.zeros(1), fwhm)
    assert 1.6 < major / minor < 2.3


def test_moments_of_nothing_are_finite():
    stamps = np.stack([np.zeros((21, 21)), -np.ones((21, 21)), np.full((21, 21), np.nan), np.ones((21, 21))])
    assert np.isfinite(moments(stamps, np.zeros(4), np.zeros(4), 2.0)).all()


def test_filtered_is_a_correlation():
    rng = np.random.default_rng(1)
    stamps, profile = rng.normal(size=(2, 9, 9)), rng.normal(size=(3, 3))
    out = filtered(stamps, profile)
    assert out.shape == (2, 7, 7)
    assert out[1, 2, 3] == pytest.approx((stamps[1, 2:5, 3:6] * profile).sum())
    np.testing.assert_allclose(filtered(stamps, profile, 3), out[:, ::3, ::3])


def test_cutouts_are_turned_and_know_what_is_missing():
    difference = make_difference([(100.0, 100.0, -9e3)], shape=(300, 300))
    difference.sigma[90, 95] = np.inf
    cutouts = cut_out(difference, np.array([100.0, 5.0]), np.array([100.0, 290.0]), np.array([-1, 1]))
    assert all(c.shape == (2, 63, 63) and c.dtype == np.float32 for c in cutouts)
    assert cutouts.difference[0, 31, 31] == -difference.pix[100, 100] > 1000
    assert cutouts.science[0, 31, 31] == difference.science[100, 100]
    assert np.isnan(cutouts.difference[0, 21, 26]) and np.isnan(cutouts.difference[0]).sum() == 1
    assert np.isnan(cutouts.science[1][:, :26]).all() and np.isnan(cutouts.template[1][41:]).all()


def test_limits_follow_the_local_noise():
    def edit(pix, sigma, mask, reference):
        sigma[:, 250:] *= 2
        sigma[:100] = np.inf

    difference = make_difference(edit=edit)
    x, y = np.array([100.0, 400.0, 100.0, np.nan, -9.0, 100.0]), np.array([300.0, 300.0, 50.0, 300.0, 300.0, 99.0])
    errors = flux_errors(difference, x, y)
    expected = flux_sigma(2.0)
    np.testing.assert_allclose(errors[:2], [expected, 2 * expected], rtol=0.01)
    assert np.isnan(errors[2:5]).all() and not errors[5] < expected
    assert limit_mag_at(difference, x[:1], y[:1], 3.0)[0] == pytest.approx(MAGZP - 2.5 * np.log10(3 * errors[0]))
    middle = MAGZP - 2.5 * np.log10(5 * expected)
    assert middle - 0.8 < image_limit_mag(difference) < middle + 0.02
    assert flux_errors(difference, np.zeros(0), np.zeros(0)).shape == (0,)


def test_every_column_is_described():
    assert all(form in ("f4", "f8", "i2", "?") and text for form, _, text in COLUMNS.values())
    assert psf_of(2.0, (9, 9)).fwhm_pix == pytest.approx(2.1, abs=0.15) and SKY_SIGMA_DN > 0
