"""The TPV fit against known maps: exactness, optimal errors, honesty, outliers, few stars, a changed distortion."""

import numpy as np
import pytest

from tests.unit.astrometry.skyfield import N_X, N_Y, Truth, centroid_error_arcsec, map_error_mas
from zsds_hpc.astrometry.geometry import initial_wcs
from zsds_hpc.astrometry.solve import (
    SolveParams,
    Stars,
    add_polynomial,
    design_matrix,
    fit_tpv,
    residuals_arcsec,
    terms,
)
from zsds_hpc.core.errors import AlgorithmFailure, BadInput

POINTING = (55.0, 33.0)
#: An exposure as a stable camera takes it: rotated, scaled, distortion the same to 3 mas.
STABLE = {"error_arcsec": (0.7, -0.4), "rotation_deg": 0.003, "scale": 1.00005, "bend_arcsec": 0.003}


def stars_of(truth, n, seed=0, noise=1.0, n_wrong=0, stated=1.0):
    """Matched stars with the errors of a 30 s exposure; the first `n_wrong` are matched to something else."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, N_X - 1, n), rng.uniform(0, N_Y - 1, n)
    mag = 19.8 + np.log10(rng.uniform(10 ** (-0.22 * 6.8), 1.0, n)) / 0.22
    sigma = centroid_error_arcsec(mag)
    ra, dec = truth.to_sky(x, y)
    error = noise * rng.normal(0, 1, (2, n)) * sigma / 1.012
    error[:, :n_wrong] += rng.uniform(-1.0, 1.0, (2, n_wrong))
    return Stars(x + error[0], y + error[1], ra, dec, stated * sigma)


def prior_of(truth):
    return initial_wcs(truth.geometry(), *truth.pointing)


def optimum_mas(stars, degree):
    """Error of the best unbiased estimate of a free polynomial, rms over the image (Gauss-Markov)."""
    u, v = (stars.x - 1535.5) / 1540, (stars.y - 1539.5) / 1540
    design = design_matrix(u, v, degree)
    covariance = np.linalg.inv(design.T @ (design / stars.sigma_arcsec[:, None] ** 2))
    gu, gv = (g.ravel() / 1540 for g in np.meshgrid(np.linspace(-1536, 1536, 40), np.linspace(-1540, 1540, 40)))
    at = design_matrix(gu, gv, degree)
    return 1e3 * np.sqrt(np.einsum("ij,jk,ik->i", at, covariance, at).mean())


@pytest.mark.parametrize("pointing", [POINTING, (0.001, -5.0), (100.0, 86.0)])
def test_without_noise_the_map_is_exact(pointing):
    truth = Truth(pointing, error_arcsec=(0.5, 0.5), rotation_deg=0.005, bend_arcsec=0.1)
    solution = fit_tpv(stars_of(truth, 500, noise=0.0, stated=0.01), prior_of(truth))
    assert map_error_mas(solution.wcs, truth)[1] < 0.3
    assert solution.n_rejected == 0


def test_fifteen_hundred_stars_reach_the_target():
    """1.5 mas rms is asked for; a free cubic cannot do better than its Gauss-Markov bound."""
    errors, bounds = [], []
    for seed in range(10):
        truth = Truth(POINTING, seed=seed, **STABLE)
        stars = stars_of(truth, 1500, seed)
        errors.append(map_error_mas(fit_tpv(stars, prior_of(truth)).wcs, truth)[0])
        bounds.append(optimum_mas(stars, 3))
    rms = np.sqrt(np.mean(np.square(errors)))
    assert rms < 1.5
    assert rms < 1.02 * np.mean(bounds)


def test_a_changed_distortion_is_followed():
    """0.3 arcsec of change, a hundred times what is expected: as good as a free quartic."""
    errors, bounds = [], []
    for seed in range(6):
        truth = Truth(POINTING, seed=seed, **(STABLE | {"bend_arcsec": 0.3}))
        stars = stars_of(truth, 1500, seed)
        errors.append(map_error_mas(fit_tpv(stars, prior_of(truth)).wcs, truth)[0])
        bounds.append(optimum_mas(stars, 4))
    assert np.sqrt(np.mean(np.square(errors))) < 1.15 * np.mean(bounds)


def test_few_stars_keep_the_cameras_distortion():
    """Twenty stars move the map as a linear fit would; a free cubic would be several times worse."""
    errors, linear, cubic = [], [], []
    for seed in range(20):
        truth = Truth(POINTING, seed=seed, **STABLE)
        stars = stars_of(truth, 20, seed)
        errors.append(map_error_mas(fit_tpv(stars, prior_of(truth)).wcs, truth)[0])
        linear.append(optimum_mas(stars, 1))
        cubic.append(optimum_mas(stars, 3))
    assert np.median(errors) < 1.3 * np.median(linear)
    assert np.median(errors) < 0.4 * np.median(cubic)


@pytest.mark.parametrize("n, bend", [(100, 0.003), (1500, 0.003), (1500, 0.2)])
def test_stated_errors_are_honest(n, bend):
    """Pull of the map error over seeds, and reduced chi-square."""
    x, y = np.meshgrid(np.linspace(100, 3000, 7), np.linspace(100, 3000, 7))
    pulls, ratios = [], []
    for seed in range(15):
        truth = Truth(POINTING, seed=seed, **(STABLE | {"bend_arcsec": bend}))
        solution = fit_tpv(stars_of(truth, n, seed), prior_of(truth))
        ra, dec = truth.to_sky(x, y)
        miss = residuals_arcsec(solution.wcs, Stars(x.ravel(), y.ravel(), ra.ravel(), dec.ravel(), x.ravel()))
        pulls.append(miss / solution.map_error_arcsec(x, y).ravel()[:, None])
        ratios.append(solution.chi2 / solution.dof)
    assert 0.8 < np.sqrt(np.mean(np.square(pulls))) < 1.2
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_wrong_matches_are_rejected(share):
    truth = Truth(POINTING, **STABLE)
    n_wrong = int(1500 * share)
    clean = stars_of(truth, 1500, seed=3)
    dirty = stars_of(truth, 1500, seed=3, n_wrong=n_wrong)
    bound = optimum_mas(Stars(*(c[n_wrong:] for c in clean)), 3)
    solution = fit_tpv(dirty, prior_of(truth))
    assert map_error_mas(solution.wcs, truth)[0] < 1.5 * bound
    assert (~solution.used[:n_wrong]).mean() > 0.8  # a wrong match inside a star's own error does no harm
    assert solution.used[n_wrong:].mean() > 0.99


def test_common_scatter_is_found():
    """30 mas of turbulence beyond the stated errors: found, and the weights follow."""
    truth = Truth(POINTING, **STABLE)
    stars = stars_of(truth, 1500, seed=1)
    shake = np.random.default_rng(9).normal(0, 0.030 / 1.012, (2, 1500))
    shaken = stars._replace(x=stars.x + shake[0], y=stars.y + shake[1])
    solution = fit_tpv(shaken, prior_of(truth))
    assert solution.floor_arcsec == pytest.approx(0.030, rel=0.25)
    assert solution.chi2 / solution.dof == pytest.approx(1.0, abs=0.1)
    blind = fit_tpv(shaken, prior_of(truth), SolveParams(max_floor_arcsec=0.001))
    assert map_error_mas(solution.wcs, truth)[0] < map_error_mas(blind.wcs, truth)[0]


def test_polynomial_is_added_exactly():
    truth = Truth(POINTING)
    prior, params = prior_of(truth), SolveParams(degree=5)
    rng = np.random.default_rng(0)
    coefficients = rng.normal(0, 1.0, (len(terms(5)), 2))
    wcs = add_polynomial(prior, coefficients, params)
    x, y = rng.uniform(0, 3071, 100), rng.uniform(0, 3079, 100)
    change = 3600 * (np.stack(wcs.pixel_to_plane(x, y)) - np.stack(prior.pixel_to_plane(x, y)))
    design = design_matrix((x - prior.crpix[0]) / 1540, (y - prior.crpix[1]) / 1540, 5)
    assert np.abs(change.T - design @ coefficients).max() < 1e-9


def test_terms_are_legendre_products():
    u, v = np.array([0.3]), np.array([-0.7])
    values = dict(zip(terms(4), design_matrix(u, v, 4)[0], strict=True))
    assert values[(2, 1)] == pytest.approx((3 * 0.09 - 1) / 2 * -0.7)
    assert values[(0, 3)] == pytest.approx((5 * -0.343 + 3 * 0.7) / 2)
    assert len(values) == 15


def test_same_input_same_bits():
    truth = Truth(POINTING, **STABLE)
    first, second = (fit_tpv(stars_of(truth, 300), prior_of(truth)) for _ in range(2))
    assert first.wcs.pv1.tobytes() == second.wcs.pv1.tobytes()
    assert first.residuals_arcsec.tobytes() == second.residuals_arcsec.tobytes()


def test_input_is_not_modified():
    truth = Truth(POINTING, **STABLE)
    stars = stars_of(truth, 100)
    before = [column.copy() for column in stars]
    fit_tpv(stars, prior_of(truth))
    assert all(np.array_equal(a, b) for a, b in zip(stars, before, strict=True))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_stars(n):
    truth = Truth(POINTING)
    with pytest.raises(AlgorithmFailure, match="too few") as failure:
        fit_tpv(stars_of(truth, n), prior_of(truth))
    assert failure.value.figures == {"n_used": n, "n_matches": n}


@pytest.mark.parametrize(
    "column, value", [("x", np.nan), ("dec", np.inf), ("sigma_arcsec", 0.0), ("sigma_arcsec", -1.0)]
)
def test_unusable_values(column, value):
    stars = stars_of(Truth(POINTING), 50)
    changed = getattr(stars, column).copy()
    changed[7] = value
    with pytest.raises(BadInput, match="not finite or an error"):
        fit_tpv(stars._replace(**{column: changed}), prior_of(Truth(POINTING)))


def test_columns_of_different_lengths():
    stars = stars_of(Truth(POINTING), 50)
    with pytest.raises(BadInput, match="lengths"):
        fit_tpv(stars._replace(ra=stars.ra[:-1]), prior_of(Truth(POINTING)))
