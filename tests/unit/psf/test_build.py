"""The point-spread function against stars whose profile is known."""

import numpy as np
import pytest

from tests.unit.psf.psf_truth import SHAPE, coma, donut, make_stars, one_moffat, psf_error, trailed, two_moffats
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf.build import PsfParams, build_psf, profile_psf, window_half_pix
from zsds_hpc.psf.stars import PsfStars

PARAMS = PsfParams()


def built(n, fwhm, density=two_moffats, **options):
    profile = StarProfile(fwhm * 1.03, 3.0)
    made = make_stars(n, fwhm, window_half_pix(profile, PARAMS), density, **options)
    return made, build_psf(made.stars, SHAPE, profile, PARAMS)


def some(stars, rows):
    return PsfStars(*(column[rows] for column in stars))


@pytest.fixture(scope="module")
def sparse():
    return make_stars(40, 2.0, window_half_pix(StarProfile(2.1, 3.0), PARAMS))


@pytest.mark.parametrize(
    ("fwhm", "density"), [(2.0, two_moffats), (1.5, two_moffats), (3.0, two_moffats), (2.0, one_moffat)]
)
def test_model_is_near_the_truth_from_corner_to_corner(fwhm, density):
    _, build = built(900, fwhm, density)
    error = psf_error(build.model, fwhm, density)
    assert error.worst < 0.005  # in the very corners; by the photons of the stars it is 0.0015 to 0.0045
    assert error.worst_shape < 0.0035
    assert error.rms < 0.001
    assert error.enclosed_range < 0.0005
    assert build.used.mean() > 0.98
    assert 0.93 < build.model.chi2_dof < 1.05


def test_comatic_profile_is_found_by_the_free_spline():
    _, build = built(600, 2.0, coma)
    assert psf_error(build.model, 2.0, coma).worst_shape < 0.006
    profile = StarProfile(2.06, 3.0)
    plain = PsfParams(n_sweeps=0)
    made = make_stars(600, 2.0, window_half_pix(profile, plain), coma)
    without = build_psf(made.stars, SHAPE, profile, plain)
    assert psf_error(without.model, 2.0, coma).worst_shape > 0.015


def test_broad_stars():
    _, build = built(250, 5.0)
    assert psf_error(build.model, 5.0, half=9).worst < 0.008


def test_fluxes_and_places_are_as_good_as_photons_allow():
    made, build = built(400, 2.0)
    bright = made.flux > 3e4
    ratio = (build.flux / made.flux)[bright]
    assert abs(np.median(ratio) - 1) < 0.003  # the common factor is the zero point's
    noise = np.sqrt(1 / (6.0 * made.flux[bright]) + (14.0 * 5 / made.flux[bright]) ** 2)
    assert np.std((ratio / np.median(ratio) - 1) / noise) < 1.3
    assert np.std((build.x - made.x)[bright]) < 0.005
    assert abs(np.mean((build.x - made.x)[bright])) < 0.001


def test_what_is_no_single_star_is_left_out_and_does_no_harm():
    made = make_stars(600, 2.0, window_half_pix(StarProfile(2.06, 3.0), PARAMS))
    pix = made.stars.pix.copy()
    half = pix.shape[1] // 2
    rows = np.flatnonzero(made.flux > 1.5e4)
    blends, extended, hit = rows[:40], rows[40:60], rows[60:110]
    pix[blends] += 0.5 * np.roll(pix[blends], 2, axis=2)
    pix[extended] = (pix[extended] + np.roll(pix[extended], 1, axis=1) + np.roll(pix[extended], 1, axis=2)) / 3
    pix[hit, half + 3, half - 4] += 2e4
    build = build_psf(made.stars._replace(pix=pix), SHAPE, StarProfile(2.06, 3.0), PARAMS)
    assert build.used[rows[:60]].mean() < 0.05
    assert np.delete(build.used, rows[:60]).mean() > 0.95
    assert psf_error(build.model, 2.0).worst < 0.006


def test_degrees_fall_with_the_number_of_stars(sparse):
    profile = StarProfile(2.1, 3.0)
    few = {n: build_psf(some(sparse.stars, slice(0, n)), SHAPE, profile, PARAMS) for n in (1, 2, 20, 40)}
    assert [few[n].model.degree for n in (1, 2, 20, 40)] == [0, 0, 1, 2]
    assert psf_error(few[20].model, 2.0).worst < 0.08
    assert psf_error(few[1].model, 2.0).worst < 0.2
    assert few[1].model.n_stars == 1


@pytest.mark.parametrize("what", ["none", "masked", "nan", "noise", "almost all masked"])
def test_no_usable_star_is_a_failure(sparse, what):
    stars = sparse.stars
    rng = np.random.default_rng(2)
    bad = {
        "none": some(stars, slice(0, 0)),
        "masked": stars._replace(var=np.zeros_like(stars.var)),
        "nan": stars._replace(pix=np.full_like(stars.pix, np.nan)),
        "noise": stars._replace(pix=rng.normal(0, 14, stars.pix.shape).astype(np.float32)),
        "almost all masked": stars._replace(var=np.where(rng.random(stars.var.shape) < 0.9, 0, stars.var)),
    }[what]
    with pytest.raises(AlgorithmFailure, match="no usable star"):
        build_psf(bad, SHAPE, StarProfile(2.1, 3.0), PARAMS)


def test_islands_of_nan_are_left_out(sparse):
    pix = sparse.stars.pix.copy()
    pix[:, 10:13, 3:8] = np.nan
    build = build_psf(sparse.stars._replace(pix=pix), SHAPE, StarProfile(2.1, 3.0), PARAMS)
    assert build.used.all()
    assert psf_error(build.model, 2.0).worst < 0.05


@pytest.mark.parametrize(("density", "fwhm", "limit"), [(trailed, 2.0, 0.04), (donut, 3.0, 0.25)])
def test_trailed_and_defocused_stars_give_a_model_that_fits(density, fwhm, limit):
    profile = StarProfile(1.7 * fwhm, 3.0)
    made = make_stars(300, fwhm, window_half_pix(profile, PARAMS), density)
    build = build_psf(made.stars, SHAPE, profile, PARAMS)
    assert build.used.mean() > 0.9
    assert build.model.chi2_dof < 1.15
    assert psf_error(build.model, fwhm, density).worst_shape < limit


def test_wrong_windows_are_refused(sparse):
    stars = sparse.stars
    with pytest.raises(BadInput, match="odd-sided"):
        build_psf(stars._replace(var=stars.var[:, 1:]), SHAPE, StarProfile(2.1, 3.0), PARAMS)
    tiny = stars._replace(pix=stars.pix[:, :5, :5], var=stars.var[:, :5, :5])
    with pytest.raises(BadInput, match="half side 2 px"):
        build_psf(tiny, SHAPE, StarProfile(2.1, 3.0), PARAMS)


def test_same_stars_same_bits_and_nothing_is_modified(sparse):
    before = [column.copy() for column in sparse.stars]
    first, again = (build_psf(sparse.stars, SHAPE, StarProfile(2.1, 3.0), PARAMS) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(before, sparse.stars))
    assert np.array_equal(first.model.coefficients, again.model.coefficients)


def test_pixels_of_a_star_sum_to_its_flux_at_any_phase(sparse):
    model = build_psf(sparse.stars, SHAPE, StarProfile(2.1, 3.0), PARAMS).model
    y, x = (a.ravel() + 500.0 for a in np.mgrid[-0.45:0.5:0.15, -0.45:0.5:0.15])
    sums = model.images(x, y, model.half_pix).sum(axis=(1, 2), dtype=float)
    assert np.ptp(sums) < 3e-4 * sums.mean()


@pytest.mark.parametrize("fwhm", [1.0, 2.0, 5.0, 12.0])
def test_mean_profile_as_a_model(fwhm):
    profile = StarProfile(fwhm, 3.0, 0.1, -0.05)
    model = profile_psf(profile, (100, 120), PARAMS)
    half = model.half_pix
    steps = np.arange(-half, half + 1)
    nodes, weights = (a / 2 for a in np.polynomial.legendre.leggauss(6))
    x, y = 50.3, 40.1
    truth = sum(
        wx * wy * profile.density(steps[None, :] + nx - 0.3, steps[:, None] + ny - 0.1)
        for nx, wx in zip(nodes, weights)
        for ny, wy in zip(nodes, weights)
    )
    image = model.images(np.array([x]), np.array([y]), half)[0]
    assert np.abs(image - truth).max() < (0.004 if fwhm < 1.5 else 0.001) * truth.max()
    assert model.n_stars == 0
    round_one = profile_psf(StarProfile(fwhm, 3.0), (100, 120), PARAMS)
    wide = round_one.images(np.array([50.0]), np.array([40.0]), half + 4)[0]  # the wing continues the spline
    assert wide[half + 4, 2] == pytest.approx(StarProfile(fwhm, 3.0).density(half + 2.0, 0.0), rel=0.05)
