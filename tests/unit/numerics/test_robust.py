"""Robust statistics against NumPy, SciPy and the normal distribution."""

import numpy as np
import pytest
from scipy import stats

from zsds_hpc.numerics import robust


@pytest.fixture
def normal():
    return np.random.default_rng(1).normal(100.0, 5.0, (500, 400)).astype(np.float32)


def test_median_mad_agrees_with_scipy(normal):
    level = robust.median_mad(normal)
    assert level.median == pytest.approx(float(np.median(normal)))
    assert level.sigma == pytest.approx(stats.median_abs_deviation(normal, axis=None, scale="normal"), rel=1e-5)


def test_median_mad_ignores_nan_infinity_and_outliers(normal):
    dirty = normal.copy()
    dirty[::10] = np.nan
    dirty[1, :200] = np.inf
    dirty[2] = 1e6
    level = robust.median_mad(dirty)
    assert abs(level.median - 100.0) < 0.1
    assert abs(level.sigma - 5.0) < 0.1


@pytest.mark.parametrize("empty", [[], np.full((3, 4), np.nan)])
def test_empty_samples_give_nan(empty):
    assert np.isnan(robust.median_mad(empty)).all()
    mean, sigma, n_used = robust.clipped_mean(empty)
    assert np.isnan([mean, sigma]).all() and n_used == 0
    assert np.isnan(robust.moments(empty)).all()
    assert np.isnan(robust.percentiles(empty, [5, 95])).all()


def test_integers_are_accepted():
    assert robust.median_mad(np.array([1, 2, 3, 4, 100], np.uint16)).median == 3.0


def test_subsample_visits_all_columns(normal):
    striped = normal + 50.0 * (np.arange(400) % 2)
    level = robust.median_mad(striped, max_n=10_000)
    assert abs(level.median - 125.0) < 3.0
    assert len(robust.finite_values(striped, max_n=10_000)) <= 20_000


def test_truncation_factor_is_that_of_scipys_truncated_normal():
    for n_sigma in (1.0, 2.5, 3.0, 5.0):
        assert robust.truncation_factor(n_sigma) == pytest.approx(stats.truncnorm.std(-n_sigma, n_sigma), rel=1e-9)


@pytest.mark.parametrize("n_sigma", [2.0, 3.0])
def test_clipped_mean_is_unbiased_and_does_not_creep(n_sigma):
    x = np.random.default_rng(2).normal(0.0, 1.0, 200_000)
    mean, sigma, n_used = robust.clipped_mean(x, n_sigma=n_sigma, n_iter=50)
    assert abs(mean) < 0.01
    assert sigma == pytest.approx(1.0, abs=0.01)
    assert n_used / x.size == pytest.approx(1 - 2 * stats.norm.sf(n_sigma), abs=0.003)


def test_clipped_mean_rejects_outliers(normal):
    dirty = normal.copy()
    dirty[:5] += 1000.0
    mean, sigma, n_used = robust.clipped_mean(dirty)
    assert abs(mean - 100.0) < 0.1
    assert abs(sigma - 5.0) < 0.1
    assert n_used < dirty.size - 5 * 400 + 1


def test_clipped_mean_of_a_constant():
    assert robust.clipped_mean(np.full(10, 7.0)) == (7.0, 0.0, 10)


def test_moments_of_a_skewed_sample():
    x = np.random.default_rng(3).gamma(4.0, 1.0, 100_000)
    median, second, third = robust.moments(x, n_sigma=50.0)
    assert median == pytest.approx(np.median(x))
    assert second == pytest.approx(np.mean((x - median) ** 2))
    assert third == pytest.approx(np.mean((x - median) ** 3))
    assert robust.moments(np.append(x, 1e9)).second < 2 * second


def test_percentiles_and_inputs_stay_untouched(normal):
    dirty = normal.copy()
    dirty[0, 0] = np.nan
    before = dirty.copy()
    got = robust.percentiles(dirty, [5, 50, 95])
    np.testing.assert_allclose(got, np.nanpercentile(before, [5, 50, 95]))
    robust.clipped_mean(dirty)
    robust.moments(dirty)
    np.testing.assert_array_equal(dirty, before)
