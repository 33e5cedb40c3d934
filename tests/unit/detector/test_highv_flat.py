"""High-frequency flat from simulated dome flats: lamp and vignetting removed, pixel response kept."""

import numpy as np
import pytest

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.maskbits import NOISY, SOURCE
from zsds_hpc.detector.highv_flat import (
    HighvFlatParams,
    combine_highv_flat,
    highv_flat_metrics,
    normalize_flat,
)

SHAPE, GAIN_E, READ_NOISE_E = (512, 480), 6.2, 10.0
RESPONSE = np.random.default_rng(0).normal(1, 0.007, SHAPE).astype(np.float32)


def illumination():
    y, x = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    r2 = (x - 1.2) ** 2 + (y + 0.8) ** 2
    return (1 - 0.001 * r2**2) * (1 + 0.05 * x - 0.03 * x * y + 0.02 * y**2)


def dome_flat(level_dn, k=0):
    """Bias-subtracted flat with photon and read noise, and a few cosmic rays."""
    rng = np.random.default_rng([1, k])
    electrons = rng.poisson(level_dn * GAIN_E * illumination() * RESPONSE) + rng.normal(0, READ_NOISE_E, SHAPE)
    electrons[rng.random(SHAPE) < 5e-4] += 20000
    return (electrons / GAIN_E).astype(np.float32)


def test_one_flat():
    frame = dome_flat(20000)
    mask = np.zeros(SHAPE, np.int16)
    mask[10:12, 20:30] = NOISY
    mask[100, 100] = SOURCE
    flat = normalize_flat(frame + 5, np.full(SHAPE, 5, np.float32), mask)
    assert np.isnan(flat.pix).sum() == 20 and np.isnan(flat.pix[10:12, 20:30]).all()
    assert flat.pix.dtype == np.float32
    assert flat.level_dn == pytest.approx(np.median(frame), rel=0.01)
    error = flat.pix / RESPONSE - 1
    noise = np.nanmedian(np.abs(error) * np.sqrt(illumination())) * 1.4826
    assert noise == pytest.approx((20000 * GAIN_E) ** -0.5, rel=0.02)
    blocks = error.reshape(8, 64, 8, 60)
    assert np.std(np.nanmedian(blocks, axis=(1, 3))) < 2e-4


def test_without_superbias_or_mask_the_input_stays_as_it_is():
    frame = dome_flat(20000)
    before = frame.copy()
    bare = normalize_flat(frame, None, None)
    with_zero = normalize_flat(frame, np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int16))
    assert bare.pix.tobytes() == with_zero.pix.tobytes()
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("n", [10, 20])
def test_residual_is_within_a_tenth_of_the_noise_that_n_frames_allow(n):
    levels = np.linspace(15000, 25000, n)
    flats = [normalize_flat(dome_flat(level, k), None, None) for k, level in enumerate(levels)]
    flat = combine_highv_flat([f.pix for f in flats])
    # The best that the photons allow: frames weighted by their inverse variance at each pixel.
    per_frame = 1 / (levels[:, None, None] * GAIN_E * illumination() * RESPONSE / RESPONSE**2)
    allowed = np.sqrt(np.mean(1 / (1 / per_frame).sum(axis=0)))
    residual = np.sqrt(np.mean((flat.pix - RESPONSE) ** 2))
    assert residual <= 1.1 * allowed
    pull = (flat.pix - RESPONSE) / flat.unc
    inside = np.mean(np.abs(pull) < 1)
    # Student's t with n - 3 degrees of freedom (the trim takes two) has 0.65 to 0.67 within one standard error.
    assert 0.63 < inside < 0.70
    assert np.mean(flat.n_used) == pytest.approx(n, rel=0.01)


def test_metrics():
    flats = [normalize_flat(dome_flat(20000, k), None, None) for k in range(10)]
    got = highv_flat_metrics(combine_highv_flat([f.pix for f in flats]), [f.level_dn for f in flats])
    assert got["n_inputs"] == 10 and got["n_missing"] == 0
    assert got["level"] == pytest.approx(1, abs=1e-3)
    assert got["response_sigma"] == pytest.approx(0.007, rel=0.02)
    assert got["unc_median"] == pytest.approx((20000 * GAIN_E * 10) ** -0.5, rel=0.1)
    assert got["input_level_dn"] == pytest.approx(20000, rel=0.06)
    assert got["second_moment"] == pytest.approx(got["spatial_noise"] ** 2, rel=0.05)
    assert abs(got["third_moment"]) < 0.1 * got["second_moment"] ** 1.5
    assert all(isinstance(value, int | float) for value in got.values())


def test_everywhere_masked_pixels_are_nan():
    frames = np.ones((6, 10, 12), np.float32) + np.arange(6, dtype=np.float32)[:, None, None]
    frames[:, 0] = np.nan
    frames[1:, 1] = np.nan
    flat = combine_highv_flat(frames)
    assert np.isnan(flat.pix[0]).all() and np.isnan(flat.unc[:2]).all()
    assert np.isfinite(flat.pix[1:]).all() and np.isfinite(flat.unc[2:]).all()


def test_small_images_get_smaller_blocks():
    frame = np.random.default_rng(3).normal(20000, 60, (60, 70)).astype(np.float32)
    assert np.nanmean(normalize_flat(frame, None, None).pix) == pytest.approx(1, abs=1e-3)


def test_unusable_flats():
    with pytest.raises(BadInput, match="median of 500"):
        normalize_flat(np.full(SHAPE, 500, np.float32), None, None)
    with pytest.raises(BadInput, match="median of 60000"):
        normalize_flat(np.full(SHAPE, 60000, np.float32), None, None)
    with pytest.raises(BadInput, match="nan"):
        normalize_flat(dome_flat(20000), None, np.full(SHAPE, NOISY, np.int16))
    with pytest.raises(BadInput, match="usable blocks"):
        mask = np.full(SHAPE, NOISY, np.int16)
        mask[:100, :100] = 0
        normalize_flat(dome_flat(20000), None, mask)
    with pytest.raises(BadInput, match="4 flats: at least 5"):
        combine_highv_flat(np.ones((4, 3, 3), np.float32))
    ramp = np.linspace(-20000, 40000, SHAPE[1], dtype=np.float32) + np.zeros((SHAPE[0], 1), np.float32)
    with pytest.raises(AlgorithmFailure, match="falls to zero") as failure:
        normalize_flat(ramp, None, None, HighvFlatParams(surface_degree=2))
    assert failure.value.figures["lowest_dn"] < 0
