"""Checks of a solution: the split, held-back stars, the scale map and the residual map."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.astrometry.skyfield import N_X, N_Y, Truth
from tests.unit.astrometry.test_solve import STABLE, prior_of, stars_of
from zsds_hpc.astrometry.solve import Stars, fit_tpv
from zsds_hpc.astrometry.verify import VerifyParams, check_held_back, held_back, residual_map, scale_change

POINTING = (55.0, 33.0)


def test_split_depends_on_the_position_only():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 20_000), rng.uniform(-90, 90, 20_000)
    chosen = held_back(ra, dec, 0.1)
    assert chosen.mean() == pytest.approx(0.1, abs=0.01)
    order = rng.permutation(20_000)
    np.testing.assert_array_equal(held_back(ra[order], dec[order], 0.1), chosen[order])
    assert not held_back(ra, dec, 0.0).any()
    near = held_back(55.0 + 1e-6 * np.arange(5000), np.full(5000, 33.0), 0.5)
    assert near.mean() == pytest.approx(0.5, abs=0.03)  # neighbours are independent


def split(stars, fraction=0.2):
    out = held_back(stars.ra, stars.dec, fraction)
    return Stars(*(c[~out] for c in stars)), Stars(*(c[out] for c in stars))


def test_held_back_stars_agree_with_a_right_map():
    truth = Truth(POINTING, **STABLE)
    fitted, out = split(stars_of(truth, 1500, n_wrong=60))
    check = check_held_back(fit_tpv(fitted, prior_of(truth)), out)
    assert check.n_stars == len(out.x)
    assert 0 < check.n_outliers < 25
    assert check.chi2_ratio == pytest.approx(1.0, abs=0.25)
    assert (check.rms_arcsec < 0.12).all()


def test_held_back_stars_betray_a_wrong_map():
    truth = Truth(POINTING, **STABLE)
    fitted, out = split(stars_of(truth, 1500))
    solution = fit_tpv(fitted, prior_of(truth))
    bent = replace(solution.wcs, pv1=solution.wcs.pv1 + 0.3 / 3600 / 0.43**2 * (np.arange(40) == 4))
    assert check_held_back(replace(solution, wcs=bent), out).chi2_ratio > 3.0


def test_no_star_held_back():
    truth = Truth(POINTING, **STABLE)
    stars = stars_of(truth, 50)
    check = check_held_back(fit_tpv(stars, prior_of(truth)), Stars(*(c[:0] for c in stars)))
    assert check.n_stars == 0
    assert np.isnan(check.rms_arcsec).all()


@pytest.mark.parametrize("percent, flagged", [(0.4, False), (-0.4, False), (1.3, True), (-1.3, True)])
def test_scale_change(percent, flagged):
    prior = prior_of(Truth(POINTING))
    change = scale_change(replace(prior, cd=prior.cd * (1 + percent / 100)), prior, N_X, N_Y)
    assert change.min_percent == pytest.approx(percent, abs=0.01)
    assert change.max_percent == pytest.approx(percent, abs=0.01)
    assert change.exceeds(1.0) is flagged
    assert change.map_percent.shape == (9, 9)


def test_scale_change_at_one_edge_is_seen():
    prior = prior_of(Truth(POINTING))
    pv1 = prior.pv1 + 0.02 / 0.43 * (np.arange(40) == 4)  # 4 percent of slope at the edge
    change = scale_change(replace(prior, pv1=pv1), prior, N_X, N_Y)
    assert change.max_percent > 1.5 and change.min_percent < -1.5


def test_residual_map_shows_where():
    rng = np.random.default_rng(0)
    n = 4000
    x, y = rng.uniform(0, N_X - 1, n), rng.uniform(0, N_Y - 1, n)
    residuals = rng.normal(0, 0.02, (n, 2))
    corner = (x > 0.75 * N_X) & (y < 0.25 * N_Y)
    residuals[corner] += (0.3, -0.4)
    cells = residual_map(Stars(x, y, x, y, x), residuals, N_X, N_Y)
    assert cells.max_arcsec == pytest.approx(0.5, abs=0.02)
    assert np.unravel_index(np.hypot(*cells.median_arcsec).argmax(), (4, 4)) == (0, 3)
    assert cells.n_stars.sum() == n


def test_residual_map_of_few_stars():
    stars = Stars(*np.full((5, 4), 10.0))
    cells = residual_map(stars, np.zeros((4, 2)), N_X, N_Y)
    assert np.isnan(cells.max_arcsec)
    assert residual_map(stars, np.zeros((4, 2)), N_X, N_Y, VerifyParams(min_in_cell=4)).max_arcsec == 0.0
