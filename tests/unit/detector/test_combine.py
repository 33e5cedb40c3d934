"""Trimmed combination of a stack against np.sort, SciPy and the statistics of simulated frames."""

import numpy as np
import pytest
from scipy import stats

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.combine import (
    CombineParams,
    combine_trimmed,
    mean_error_factor,
    n_trimmed,
    sorting_network,
    trim_theory,
)


def stack_of(n, shape=(17, 29), seed=0):
    return np.random.default_rng(seed).normal(1000.0, 2.0, (n, *shape)).astype(np.float32)


def without_gross_outliers(values, n_sigma):
    n = values.size
    if n < 5 or n_sigma == 0:
        return values
    quarter = n // 4
    usual = 2 * stats.norm.ppf((n - quarter - 0.375) / (n + 0.25))
    limit = n_sigma * (values[n - 1 - quarter] - values[quarter]) / usual
    return values[np.abs(values - np.median(values)) <= limit] if limit > 0 else values


def reference(frames, params):
    """Slow and obvious: pixel by pixel, sorted, cut, averaged."""
    ny, nx = frames.shape[1:]
    mean, std, n_used = np.full((ny, nx), np.nan), np.full((ny, nx), np.nan), np.zeros((ny, nx), int)
    for y in range(ny):
        for x in range(nx):
            values = frames[:, y, x].astype(np.float64)
            values = without_gross_outliers(np.sort(values[np.isfinite(values)]), params.reject_n_sigma)
            n_valid = n_used[y, x] = values.size
            t = max(int(params.trim_fraction * n_valid + 1e-9), params.n_trim_min if n_valid >= 5 else 0)
            kept = values[t : n_valid - t]
            if kept.size:
                mean[y, x] = kept.mean()
            if kept.size > 1:
                std[y, x] = kept.std(ddof=1) / trim_theory(int(n_valid), t).kept_std
    return mean, std, n_used


def assert_is_reference(frames, params):
    got = combine_trimmed(frames, params)
    mean, std, n_used = reference(frames, params)
    np.testing.assert_array_equal(got.n_used, n_used)
    np.testing.assert_array_equal(got.mean, mean.astype(np.float32))
    np.testing.assert_allclose(got.std, std, rtol=1e-6, atol=1e-6)
    assert (got.mean.dtype, got.std.dtype, got.n_used.dtype) == (np.float32, np.float32, np.int16)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 20, 33, 40, 128])
@pytest.mark.parametrize("trim_fraction", [0.0, 0.05, 0.2])
def test_equals_the_reference(n, trim_fraction):
    assert_is_reference(stack_of(n), CombineParams(trim_fraction=trim_fraction))


def test_equals_the_reference_with_excluded_values_of_every_kind():
    frames = stack_of(9, seed=3)
    rng = np.random.default_rng(4)
    frames[rng.random(frames.shape) < 0.3] = np.nan
    frames[rng.random(frames.shape) < 0.05] = np.inf
    frames[rng.random(frames.shape) < 0.05] = -np.inf
    frames[rng.random(frames.shape) < 0.05] *= -1.0
    frames[:, 5] = np.nan
    frames[1:, 6] = -np.nan
    frames[:, 7] = 0.0
    frames[:4, 7] = -0.0
    before = frames.copy()
    assert_is_reference(frames, CombineParams())
    np.testing.assert_array_equal(frames, before)
    empty = combine_trimmed(frames)
    assert np.isnan(empty.mean[5]).all() and (empty.n_used[5] == 0).all()
    assert np.isnan(empty.std[6]).all() and np.isfinite(empty.mean[6]).sum() > 0


def test_wide_range_of_values_is_exact():
    rng = np.random.default_rng(5)
    frames = (10.0 ** rng.uniform(-30, 30, (20, 40, 50)) * rng.choice([-1, 1], (20, 40, 50))).astype(np.float32)
    got = combine_trimmed(frames, CombineParams(reject_n_sigma=0.0, trim_fraction=0.0, n_trim_min=0))
    scale = np.abs(frames).max(axis=0)
    assert np.max(np.abs(got.mean - frames.astype(np.float64).mean(axis=0)) / scale) < 1e-7


@pytest.mark.parametrize("n", [*range(1, 35), 64, 100, 128, 200, 256])
def test_network_sorts(n):
    rng = np.random.default_rng(n)
    values = rng.integers(0, 2, (n, 400))  # 0-1 principle, and random numbers of ones
    values = (values * rng.random(400) + rng.random((n, 400)) > rng.random(400)).astype(int)
    expected = np.sort(values, axis=0)
    for i, j in sorting_network(n):
        values[[i, j]] = np.minimum(values[i], values[j]), np.maximum(values[i], values[j])
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("n", range(1, 13))
def test_network_sorts_every_zero_one_input(n):
    values = (np.arange(1 << n) >> np.arange(n)[:, None]) & 1
    expected = np.sort(values, axis=0)
    for i, j in sorting_network(n):
        values[[i, j]] = np.minimum(values[i], values[j]), np.maximum(values[i], values[j])
    np.testing.assert_array_equal(values, expected)


def test_row_slabs_give_the_same_bits():
    frames = stack_of(20, (61, 173), seed=6)
    frames[3, 10:20] = np.nan
    whole = combine_trimmed(frames)
    for cuts in ([1, 2, 3], [20, 40], [7, 8, 60]):
        parts = [combine_trimmed(slab) for slab in np.split(frames, cuts, axis=1)]
        for k in range(3):
            assert np.concatenate([p[k] for p in parts]).tobytes() == whole[k].tobytes()


def test_a_list_of_frames_and_strided_frames_are_accepted():
    frames = stack_of(6)
    whole = combine_trimmed(frames)
    listed = combine_trimmed(list(frames))
    strided = combine_trimmed([np.asfortranarray(f) for f in frames])
    assert whole.mean.tobytes() == listed.mean.tobytes() == strided.mean.tobytes()
    empty_share = combine_trimmed(frames[:, :0])
    assert empty_share.mean.shape == (0, 29)


def test_agrees_with_scipys_trimmed_mean():
    frames = stack_of(20)
    got = combine_trimmed(frames, CombineParams(trim_fraction=0.1))
    expected = stats.trim_mean(frames.astype(np.float64), 0.1, axis=0)
    np.testing.assert_allclose(got.mean, expected, rtol=1e-7)


@pytest.mark.parametrize("n", [5, 10, 20, 40])
def test_spread_and_error_are_those_of_normal_noise(n):
    frames = stack_of(n, (300, 400), seed=n)
    got = combine_trimmed(frames)
    assert np.sqrt(np.mean(got.std.astype(np.float64) ** 2)) == pytest.approx(2.0, rel=0.01)
    predicted = 2.0 * mean_error_factor(n, CombineParams())[n]
    assert np.std(got.mean, dtype=np.float64) == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize(("n", "most"), [(20, 1.025), (40, 1.025), (10, 1.065), (6, 1.11)])
def test_loss_of_efficiency_of_the_default_trim(n, most):
    """Variance over that of the plain mean: 2% at 20 frames; below 15 frames the dropped pair costs more."""
    assert 1.0 < n * mean_error_factor(n, CombineParams())[n] ** 2 < most


def test_theory_agrees_with_a_large_simulation():
    x = np.sort(np.random.default_rng(8).normal(size=(200_000, 12)), axis=1)[:, 2:-2]
    theory = trim_theory(12, 2)
    assert theory.kept_std == pytest.approx(np.sqrt(x.var(axis=1, ddof=1).mean()), rel=0.005)
    assert theory.mean_error == pytest.approx(x.mean(axis=1).std(), rel=0.005)


def mean_shift_sigma(frames, params=None):
    """Shift of the mean in units of the noise of a frame, for frames made about 1000 with noise 2."""
    got = combine_trimmed(frames, params or CombineParams())
    return (np.mean(got.mean, dtype=np.float64) - 1000.0) / 2.0


@pytest.mark.parametrize("n_hits", [1, 2, 3, 4])
def test_cosmic_rays_do_not_bias(n_hits):
    frames = stack_of(20, (300, 400), seed=9)
    frames[7 : 7 + n_hits] += np.array([5000.0, 300.0, 70.0, 2000.0], np.float32)[:n_hits, None, None]
    assert abs(mean_shift_sigma(frames)) < 0.003
    assert np.mean(frames.mean(axis=0)) - 1000.0 > 200.0  # what a plain mean would have kept
    got = combine_trimmed(frames)
    assert np.mean(got.n_used) == pytest.approx(20 - n_hits, abs=0.01)
    assert np.sqrt(np.mean(got.std.astype(np.float64) ** 2)) == pytest.approx(2.0, rel=0.01)


def test_without_rejection_one_cosmic_ray_in_twenty_shifts_the_mean_by_a_tenth_of_sigma():
    """The bias of a symmetric trim under one-sided contamination, and its theory."""
    frames = stack_of(20, (300, 400), seed=9)
    frames[7] += 5000.0
    lowest_of_19 = stats.norm.expect(lambda x: x * 19 * stats.norm.sf(x) ** 18)
    shift = mean_shift_sigma(frames, CombineParams(reject_n_sigma=0.0))
    assert shift == pytest.approx(-lowest_of_19 / 18, abs=0.005)


@pytest.mark.parametrize("height_sigma", [3.0, 5.0, 7.0, 9.0])
def test_hits_near_the_limit_shift_the_mean_by_no_more_than_the_trim_allows(height_sigma):
    frames = stack_of(20, (300, 400), seed=9)
    frames[7] += np.float32(2.0 * height_sigma)
    assert 0.0 < mean_shift_sigma(frames) < 0.11


@pytest.mark.parametrize(("n", "most"), [(5, 0.04), (6, 0.03), (10, 3e-3), (20, 1e-4), (40, 1e-5)])
def test_rejection_spares_normal_noise(n, most):
    got = combine_trimmed(stack_of(n, (300, 400), seed=n))
    assert np.mean(n - got.n_used) / n < most


def test_values_that_mostly_agree_are_not_rejected():
    frames = np.full((10, 2, 3), 7.0, np.float32)
    frames[0] = 8.0
    assert (combine_trimmed(frames).n_used == 10).all()


def test_number_trimmed():
    params = CombineParams(trim_fraction=0.1)
    assert [n_trimmed(n, params) for n in (0, 1, 4, 5, 19, 20, 30, 99)] == [0, 0, 0, 1, 1, 2, 3, 9]
    assert n_trimmed(9, CombineParams(trim_fraction=0.1, n_trim_min=0)) == 0


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "0 frames"),
        (np.zeros((257, 1, 1), np.float32), "257 frames"),
        (np.zeros((3, 4, 5)), "frame 0 to combine is float64"),
        ([np.zeros((4, 5), np.float32), np.zeros((4, 6), np.float32)], r"frame 1 .* \(4, 6\)"),
    ],
)
def test_bad_input(frames, says):
    with pytest.raises(BadInput, match=says):
        combine_trimmed(frames)
