"""Sky level and noise against the truth of rendered fields."""

import numpy as np
import pytest
from starfield import make_field, random_stars
from zsds_hpc.kernels.background import clipped_sums, mesh_histograms

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.background import BackgroundParams, estimate_background, residual_background

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


# What is left once stars are subtracted.

FINE = BackgroundParams(mesh_pix=48)


def residuals(seed, level=0.0, shape=(480, 528), sigma=SIGMA):
    """Data, model and variance of an image without stars, the level given to a noise of `SIGMA`."""
    data = (noise(seed, shape, 0.0) * (sigma / SIGMA) + level).astype(np.float32)
    return data, np.zeros(shape, np.float32), np.full(shape, SIGMA**2, np.float32)


def test_clipped_sums_count_as_numpy():
    data, model, variance = residuals(20, shape=(90, 100))
    rng = np.random.default_rng(21)
    model[:] = np.where(rng.random(model.shape) < 0.2, rng.uniform(0, 30, model.shape), 0)
    variance[:] = rng.uniform(40, 90, model.shape)
    variance[rng.random(model.shape) < 0.1] = np.inf
    edges_y, edges_x = np.array([0, 40, 90], np.int32), np.array([0, 45, 100], np.int32)
    center = rng.normal(0, 2, (2, 2)).astype(np.float32)
    for every in (1, 4):
        sums = np.zeros((2, 2, 3))
        clipped_sums((data, model, variance), edges_y, edges_x, center, np.array([10.0, 1.1, -3.0, 1.0]), every, sums)
        for j in range(2):
            for i in range(2):
                window = (slice(edges_y[j], edges_y[j + 1], every), slice(*edges_x[i : i + 2]))
                d, m, v = (a[window].astype(float) for a in (data, model, variance))
                t = (d - m - center[j, i]) / (1.1 * np.sqrt(v))
                t = t[(m < 10) & np.isfinite(v) & (t > -3) & (t < 1)]
                np.testing.assert_allclose(sums[j, i], [t.size, t.sum(), (t**2).sum()], rtol=1e-4, atol=2e-3)


def test_nothing_is_left_of_clean_noise():
    """In 250,000 px: the level is known to 0.03 DN, the noise to 0.3%."""
    found = [residual_background(residuals(seed), FINE) for seed in range(5)]
    assert abs(np.mean([level.mean() for level, _ in found])) < 0.05
    assert max(np.abs(level).max() for level, _ in found) < 1.2
    assert np.mean([factor for _, factor in found]) == pytest.approx(1, abs=0.004)


@pytest.mark.parametrize(
    ("level", "sigma"), [(1.0, 1.0), (-1.0, 1.0), (4.0, 1.0), (-4.0, 1.0), (0.0, 0.85), (0.0, 1.2), (-2.0, 1.1)]
)
def test_level_and_noise_in_one_call(level, sigma):
    found, factor = residual_background(residuals(22, level, sigma=sigma * SIGMA), FINE)
    assert found.mean() == pytest.approx(level, abs=0.15)
    assert factor == pytest.approx(sigma, rel=0.01)


def test_plane_and_faint_sources():
    """3,000 unmodelled sources in 250,000 px, below the noise: no more than their mean light counts as background."""
    y, x = np.mgrid[0:480, 0:528]
    plane = (0.006 * x - 0.004 * y - 1).astype(np.float32)
    data, model, variance = residuals(23)
    field = make_field(24, data.shape, random_stars(np.random.default_rng(25), data.shape, 3000, (21.5, 23.0)))
    data += plane + field.clean
    error = residual_background((data, model, variance), FINE)[0] - plane
    assert 0 < error.mean() < field.clean.mean() + 0.1  # three times the noise of the level
    assert (error - error.mean()).std() < 0.35


def test_stars_that_are_modelled_say_nothing():
    """Their model is 20% off; pixels above the noise do not count, the rest hold little of it."""
    data, model, variance = residuals(26)
    stars = random_stars(np.random.default_rng(27), data.shape, 300, (15.0, 19.0))
    light = make_field(28, data.shape, stars).clean
    clean = residual_background((data, model, variance), FINE)
    found = residual_background((data + light, np.float32(0.8) * light, variance), FINE)
    assert np.abs(found[0] - clean[0]).max() < 1.0
    assert abs((found[0] - clean[0]).mean()) < 0.25
    assert found[1] == pytest.approx(clean[1], rel=0.02)


def test_noise_that_varies_keeps_its_shape():
    data, model, variance = residuals(29)
    ramp = np.linspace(0.7, 1.4, data.shape[1], dtype=np.float32)
    level, factor = residual_background((data * ramp, model, variance * ramp**2), FINE)
    assert factor == pytest.approx(1, abs=0.01)
    assert np.abs(level.mean(axis=0)).max() < 0.8


def test_holes_are_bridged_and_an_empty_image_has_no_level():
    images = residuals(30, 1.0)
    images[0][100:300, 100:300], images[2][100:300, 100:300] = 0, np.inf
    level, _ = residual_background(images, FINE)
    assert level[200, 200] == pytest.approx(1, abs=0.5)
    images[2][:] = np.inf
    level, factor = residual_background(images, FINE)
    assert not level.any() and factor == 1 and level.dtype == np.float32
