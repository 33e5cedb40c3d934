"""Saturation and bleeding on rendered stars, against a brute-force growth."""

import numpy as np
import pytest
from scipy import ndimage

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.saturation import SaturationParams, saturation_mask

FULL_WELL_DN, SATURATE_DN = 59700.0, 58000.0


def sky(shape=(200, 150), seed=0):
    return np.random.default_rng(seed).normal(400.0, 8.0, shape).astype(np.float32)


def bleeding_star(image, y, x, flux_dn):
    """A Gaussian star whose excess charge is pushed along each column, half of it either way."""
    yy, xx = np.indices(image.shape)
    image += flux_dn * np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / 0.9**2) / (2 * np.pi * 0.81)
    touched = image > FULL_WELL_DN
    for column in np.flatnonzero(touched.any(axis=0)):
        over = np.flatnonzero(image[:, column] > FULL_WELL_DN)
        excess = (image[over, column] - FULL_WELL_DN).sum()
        image[over, column] = FULL_WELL_DN
        for step, row in ((-1, over[0]), (1, over[-1])):
            left = 0.5 * excess
            while left > 0 and 0 <= row + step < image.shape[0]:
                row += step
                touched[row, column] = True
                moved = min(left, FULL_WELL_DN - image[row, column])
                image[row, column] += moved
                left -= moved
    return touched


def test_all_pixels_that_charge_reached_are_masked():
    rng = np.random.default_rng(1)
    for seed in range(20):
        image = sky(seed=seed)
        y, x, flux = rng.uniform(20, 180), rng.uniform(3, 147), 10 ** rng.uniform(5.7, 7)
        touched = bleeding_star(image, y, x, flux)
        image += rng.normal(0, np.sqrt(image / 6.2 + 2.6)).astype(np.float32)
        mask = saturation_mask(image, SATURATE_DN)
        assert mask[touched].all()
        assert mask.sum() < 4 * touched.sum() + 80


def test_growth_is_that_of_a_dilation():
    rng = np.random.default_rng(2)
    image = sky()
    image[rng.integers(0, 200, 60), rng.integers(0, 150, 60)] = 60000.0
    image[[0, 199, 0, 199], [0, 0, 149, 149]] = 60000.0
    for n_grow in (0, 1, 2):
        params = SaturationParams(n_grow=n_grow, trail_length_min=100)
        square = np.ones((2 * n_grow + 1, 2 * n_grow + 1), bool)
        expected = ndimage.binary_dilation(image >= SATURATE_DN, square)
        np.testing.assert_array_equal(saturation_mask(image, SATURATE_DN, params), expected)


def test_near_pixels_count_only_next_to_full_ones():
    image = sky()
    image[50:60, 20] = 0.9 * SATURATE_DN
    image[50:60, 80] = 0.9 * SATURATE_DN
    image[55, 80] = 60000.0
    mask = saturation_mask(image, SATURATE_DN)
    assert not mask[:, :40].any()
    assert mask[49:61, 79:82].all() and mask.sum() == 12 * 3


def test_trail_ends_are_added():
    image = sky()
    image[50:90, 20] = 60000.0
    image[90, 20] = 20000.0
    column = np.flatnonzero(saturation_mask(image, SATURATE_DN)[:, 20])
    assert (column[0], column[-1]) == (47, 92)


def test_raw_counts_with_the_level_in_the_limit():
    image = sky()
    image[50:90, 20] = 60000.0
    raw = np.rint(image + 1000).astype(np.uint16)
    np.testing.assert_array_equal(saturation_mask(raw, SATURATE_DN + 1000), saturation_mask(image, SATURATE_DN))


def test_nothing_everything_and_nan():
    assert not saturation_mask(sky(), SATURATE_DN).any()
    assert saturation_mask(np.full((20, 30), 6e4, np.float32), SATURATE_DN).all()
    assert not saturation_mask(np.full((20, 30), np.nan, np.float32), SATURATE_DN).any()
    assert saturation_mask(np.full((20, 30), np.inf, np.float32), SATURATE_DN).all()
    assert saturation_mask(np.zeros((0, 30), np.float32), SATURATE_DN).shape == (0, 30)
    assert not saturation_mask(np.full((20, 30), 65535, np.uint16), 70000.0).any()


@pytest.mark.parametrize("level", [np.nan, 0.0, -1.0, np.inf])
def test_bad_level(level):
    with pytest.raises(BadInput, match="saturation level"):
        saturation_mask(sky(), level)
