"""Super-bias and noisy pixels from simulated bias frames of known structure."""

import numpy as np
import pytest

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.overscan import floating_bias
from zsds_hpc.detector.superbias import (
    SuperbiasParams,
    combine_superbias,
    hot_pixels,
    local_level,
    noisy_pixels,
    superbias_metrics,
)

SHAPE, READ_NOISE_DN = (400, 300), 1.6


def structure(seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-2, 2, SHAPE[0])[:, None]
    return (ramp + rng.normal(0, 2, SHAPE[1])).astype(np.float32)


def raw_biases(n, truth, extra_noise=0.0, seed=1):
    """Digitised frames with their over-scan, drifting levels and one cosmic ray per frame and 1000 pixels."""
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        level = 1000 + rng.normal(0, 8) + np.cumsum(rng.normal(0, 0.02, SHAPE[0]))
        image = level[:, None] + truth + rng.normal(0, READ_NOISE_DN, SHAPE)
        image = image + extra_noise * rng.normal(0, 1, SHAPE)
        image[rng.random(SHAPE) < 1e-3] += 2000
        strip = level[:, None] + rng.normal(0, READ_NOISE_DN, (SHAPE[0], 30))
        yield np.rint(image).astype(np.uint16), np.rint(strip).astype(np.uint16)


def subtracted(n, truth, **options):
    return np.stack(
        [(i - floating_bias(s).level_dn[:, None]).astype(np.float32) for i, s in raw_biases(n, truth, **options)]
    )


@pytest.mark.parametrize("n", [10, 20, 40])
def test_residual_is_within_a_tenth_of_the_noise_that_n_frames_allow(n):
    truth = structure()
    superbias = combine_superbias(subtracted(n, truth))
    # Read noise, and the step of the converter.
    allowed = np.hypot(READ_NOISE_DN, 12**-0.5) / np.sqrt(n)
    residual = np.sqrt(np.mean((superbias.pix - truth) ** 2))
    assert residual <= 1.1 * allowed


def test_noisy_pixels_are_found_and_quiet_ones_left():
    truth = structure()
    rng = np.random.default_rng(5)
    extra = np.zeros(SHAPE)
    where = rng.choice(extra.size, 300, replace=False)
    extra.ravel()[where] = READ_NOISE_DN * 10 ** rng.uniform(0.6, 1.3, 300)
    found = noisy_pixels(combine_superbias(subtracted(20, truth, extra_noise=extra)).std)
    assert found.ravel()[where].mean() > 0.99
    assert (found & (extra == 0)).sum() <= 2


@pytest.mark.parametrize("n", [6, 20, 40])
def test_false_alarms_are_rare_whatever_the_number_of_frames(n):
    frames = np.random.default_rng(6).normal(0, 2, (n, *SHAPE)).astype(np.float32)
    frames[:, :, 200:] *= 3.0  # a noisier half of the channel is not made of noisy pixels
    found = noisy_pixels(combine_superbias(frames).std, SuperbiasParams(noisy_block_pix=20))
    assert found.sum() <= (60 if n == 6 else 2)


def test_hot_pixels_stand_out_from_their_column():
    truth = structure()
    truth[:, 60] += 30.0  # a column of its own level is not hot
    rng = np.random.default_rng(8)
    where = rng.choice(truth.size, 200, replace=False)
    hot = truth.copy()
    hot.ravel()[where] += 10 ** rng.uniform(1, 3, 200)
    superbias = combine_superbias(subtracted(20, hot))
    superbias.pix[3, 5:9] = np.nan
    expected = np.zeros(SHAPE, bool)
    expected.ravel()[where] = True
    expected[3, 5:9] = False
    before = superbias.pix.copy()
    np.testing.assert_array_equal(hot_pixels(superbias.pix), expected)
    np.testing.assert_array_equal(superbias.pix, before)
    assert not hot_pixels(np.full((5, 4), np.nan, np.float32)).any()


def test_nan_in_the_scatter():
    std = np.random.default_rng(7).normal(2, 0.3, SHAPE).astype(np.float32)
    std[:100, :100] = np.nan
    std[200, 200] = 50.0
    assert np.argwhere(noisy_pixels(std)).tolist() == [[200, 200]]
    with pytest.raises(BadInput, match="no pixel"):
        noisy_pixels(np.full(SHAPE, np.nan, np.float32))


def test_identical_frames_have_no_noisy_pixels():
    assert not noisy_pixels(combine_superbias(np.ones((5, *SHAPE), np.float32)).std).any()


def test_local_level_takes_the_nearest_block():
    image = np.kron(np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones((32, 32))).astype(np.float32)
    np.testing.assert_array_equal(local_level(image, 32), image)
    wide = np.pad(image, ((1, 2), (2, 2)), mode="edge")
    np.testing.assert_array_equal(local_level(wide, 32), np.pad(image, ((1, 2), (2, 2)), mode="edge"))


def test_metrics():
    truth = structure()
    superbias = combine_superbias(subtracted(20, truth))
    superbias.n_used[0, :3] = 0
    got = superbias_metrics(superbias, 20)
    assert got["n_inputs"] == 20 and got["n_missing"] == 3
    assert got["level_dn"] == pytest.approx(np.median(truth), abs=0.05)
    assert got["spatial_noise_dn"] == pytest.approx(np.std(truth), rel=0.15)
    assert got["second_moment_dn2"] == pytest.approx(np.var(superbias.pix), rel=0.1)
    assert got["frame_noise_dn"] == pytest.approx(1.626, rel=0.03)
    assert got["mean_error_dn"] == pytest.approx(1.626 / np.sqrt(20), rel=0.05)
    assert abs(got["third_moment_dn3"]) < 10
    assert all(isinstance(value, int | float) for value in got.values())


def test_too_few_frames():
    with pytest.raises(BadInput, match="4 bias frames: at least 5"):
        combine_superbias(np.zeros((4, 3, 3), np.float32))
