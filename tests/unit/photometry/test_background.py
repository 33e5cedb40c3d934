"""Sky level and noise against the truth of rendered fields."""

import numpy as np
import pytest
from starfield import make_field, random_stars
from zsds_hpc.kernels.background import mesh_histograms

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.background import BackgroundParams, estimate_background

SIGMA = 8.2


def noise(seed, shape=(512, 640), level=400.0):
    return np.random.default_rng(seed).normal(level, SIGMA, shape).astype(np.float32)


def no_mask(pix):
    return np.zeros(pix.shape, np.int16)


def test_kernel_counts_as_numpy_histograms():
    pix = noise(1, (100, 90))
    pix[3, 4] = np.nan
    mask = no_mask(pix)
    mask[:, 10] = maskbits.DEAD
    edges_y, edges_x = np.array([0, 40, 100], np.int32), np.array([0, 45, 90], np.int32)
    low, per_dn = np.full((2, 2), 380, np.float32), np.full((2, 2), 2.0, np.float32)
    counts = np.zeros((2, 2, 64), np.int32)
    mesh_histograms(pix, mask, maskbits.DEAD, edges_y, edges_x, low, per_dn, counts)
    for j in range(2):
        for i in range(2):
            window = (slice(*edges_y[j : j + 2]), slice(*edges_x[i : i + 2]))
            values = pix[window][(mask[window] == 0) & np.isfinite(pix[window])]
            bins = np.floor((values - np.float32(380)) * np.float32(2)).astype(int)
            expected = np.bincount(bins[(bins >= 0) & (bins < 64)], minlength=64)
            np.testing.assert_array_equal(counts[j, i], expected)


def test_blank_sky_is_recovered_to_its_noise():
    found = estimate_background(noise(2), no_mask(noise(2)), BackgroundParams())
    # 327,680 px; the cut at +1 sigma costs a factor of 1.6 over sigma / sqrt(n).
    assert found.global_level == pytest.approx(400, abs=4 * 1.6 * SIGMA / np.sqrt(327680))
    assert found.global_rms == pytest.approx(SIGMA, rel=0.01)
    assert np.abs(found.level - 400).max() < 0.6
    assert found.level.dtype == found.rms.dtype == np.float32
    assert found.level.shape == (512, 640)


def test_plane_is_followed_to_the_corners():
    y, x = np.mgrid[0:512, 0:640]
    plane = (0.05 * x - 0.03 * y).astype(np.float32)
    found = estimate_background(noise(3) + plane, no_mask(plane), BackgroundParams())
    error = found.level - 400 - plane
    assert np.abs(error).max() < 1.2
    assert error.std() < 0.25


@pytest.mark.parametrize(("n_stars", "limit"), [(200, 0.12), (2000, 1.0)])
def test_bias_by_stars_is_small(n_stars, limit):
    """2,000 stars on 550 x 600 px is the density of 57,000 a channel; the plain median is off by twice as much."""
    shape = (550, 600)
    field = make_field(4, shape, random_stars(np.random.default_rng(5), shape, n_stars))
    found = estimate_background(field.pix, no_mask(field.pix), BackgroundParams())
    bias = found.global_level - field.sky
    assert -0.1 < bias < limit
    assert bias < np.median(field.pix) - field.sky
    masked = np.where(field.clean > 3, maskbits.SOURCE, 0).astype(np.int16)
    assert abs(estimate_background(field.pix, masked, BackgroundParams()).global_level - 400) < max(abs(bias), 0.15)


def test_masked_and_nan_areas_are_filled_from_neighbours():
    pix = noise(6)
    mask = no_mask(pix)
    pix[100:260, 200:380] = np.nan
    mask[300:430, 0:200] = maskbits.SATURATED
    pix[300:430, 0:200] = 60000
    found = estimate_background(pix, mask, BackgroundParams())
    assert np.isfinite(found.level).all()
    assert np.abs(found.level - 400).max() < 1.5
    assert found.filled_fraction > 0.02


def test_meshes_with_a_tenth_of_their_pixels_still_count():
    pix, rng = noise(7), np.random.default_rng(8)
    mask = np.where(rng.random(pix.shape) < 0.88, maskbits.DEAD, 0).astype(np.int16)
    pix[mask > 0] = -1e4
    found = estimate_background(pix, mask, BackgroundParams())
    assert found.filled_fraction < 0.3
    assert found.global_level == pytest.approx(400, abs=0.3)


def test_sky_below_zero_and_constant_images():
    assert estimate_background(
        noise(9, level=-3.0), no_mask(noise(9)), BackgroundParams()
    ).global_level == pytest.approx(-3, abs=0.15)
    constant = np.full((200, 200), 5.0, np.float32)
    found = estimate_background(constant, no_mask(constant), BackgroundParams())
    assert found.global_level == pytest.approx(5, abs=1e-3)
    assert found.global_rms < 1e-3


def test_small_images_have_one_mesh():
    pix = noise(10, (20, 30))
    assert np.ptp(estimate_background(pix, no_mask(pix), BackgroundParams()).level) < 1e-3


@pytest.mark.parametrize("value", [np.nan, 400.0])
def test_nothing_usable_is_a_failure(value):
    pix = np.full((100, 100), value, np.float32)
    mask = np.full((100, 100), maskbits.DEAD, np.int16)
    with pytest.raises(AlgorithmFailure, match="no mesh"):
        estimate_background(pix, mask, BackgroundParams())


def test_shapes_must_agree():
    with pytest.raises(BadInput, match="one 2-D shape"):
        estimate_background(noise(11), np.zeros((5, 5), np.int16), BackgroundParams())


def test_input_is_untouched_and_result_repeats_bit_for_bit():
    pix = noise(12)
    copy = pix.copy()
    first, second = (estimate_background(pix, no_mask(pix), BackgroundParams()) for _ in range(2))
    np.testing.assert_array_equal(pix, copy)
    np.testing.assert_array_equal(first.level, second.level)
    np.testing.assert_array_equal(first.rms, second.rms)
