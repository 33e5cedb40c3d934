"""Zero point, curve of growth, limiting magnitude and the robust fit under them."""

import numpy as np
import pytest
from reduction import reduce_field
from starfield import ZEROPOINT_MAG, make_field, random_stars

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.growth import ApertureCorrectionParams, aperture_corrections, isolated_stars
from zsds_hpc.photometry.linefit import fit_linear
from zsds_hpc.photometry.zeropoint import (
    CalibratorParams,
    Calibrators,
    ZeroPointParams,
    calibrate_zeropoint,
    calibrator_stars,
    limiting_magnitude,
    residual_map,
)

FITS = np.dtype(
    [("flux", "f8"), ("sigflux", "f8"), ("chi", "f4"), ("sharp", "f4"), ("crowding", "f4"), ("dominance", "f4"),
     ("flags", "i2")]
)  # fmt: skip
DIAMETERS = (2.0, 3.0, 4.0, 6.0, 10.0, 14.0)
ZP, COLOR = 26.3, 0.08


def calibrators(rng, n=400, scatter=0.0, contaminated=0.0):
    """Instrumental and catalogue magnitudes, errors and colours; outliers of 0.05 to 1 mag, mostly to one side."""
    mag, color = rng.uniform(14, 18.5, n), rng.normal(0.6, 0.25, n)
    inst_err = 0.004 + 0.02 * 10 ** (0.35 * (mag - 18.5))
    cat_err = rng.uniform(0.005, 0.015, n)
    inst = mag - ZP - COLOR * color + rng.normal(0, np.hypot(inst_err, scatter))
    bad = rng.random(n) < contaminated
    inst[bad] -= rng.uniform(0.05, 1.0, bad.sum()) * np.where(rng.random(bad.sum()) < 0.8, 1, -1)
    return inst, inst_err, mag + rng.normal(0, cat_err), cat_err, color


def zero_of(columns, params):
    """Zero point of (inst_mag, inst_err, cat_mag, cat_err, color), colours taken as exact."""
    return calibrate_zeropoint(Calibrators(*columns), params).zero


def pulls(n_trials, params, **changes):
    """Standardised errors of zero point and coefficient, and of the point that the two share."""
    out = []
    for seed in range(10_000, 10_000 + n_trials):
        zero = zero_of(calibrators(np.random.default_rng(seed), **changes), params)
        middle = zero.magzp + 0.6 * zero.clrcoeff - ZP - 0.6 * COLOR
        unc = np.sqrt(zero.magzp_unc**2 + 0.36 * zero.clrcoeff_unc**2 + 1.2 * zero.zpclrcov)
        out.append([(zero.magzp - ZP) / zero.magzp_unc, (zero.clrcoeff - COLOR) / zero.clrcoeff_unc, middle / unc])
    return np.array(out)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("scatter", [0.0, 0.02])
def test_stated_errors_are_honest(scatter, offset):
    """400 trials: the pulls' standard deviation has an error of 0.035, their mean of 0.05."""
    pull = pulls(400, ZeroPointParams(fit_flux_offset=offset), scatter=scatter)
    assert (np.abs(pull.std(axis=0) - 1) < 0.1).all()
    assert (np.abs(pull.mean(axis=0)) < 0.15).all()


def test_fifteen_percent_of_outliers_do_no_harm():
    pull = pulls(200, ZeroPointParams(), scatter=0.01, contaminated=0.15)
    assert (pull.std(axis=0) < 1.15).all()
    zero = zero_of(calibrators(np.random.default_rng(5), n=1500, contaminated=0.2), ZeroPointParams())
    assert abs(zero.magzp + 0.6 * zero.clrcoeff - ZP - 0.6 * COLOR) < 0.002
    assert zero.n_matches < 1400


def test_stated_error_agrees_with_the_bootstrap():
    data, rng = calibrators(np.random.default_rng(6), scatter=0.015), np.random.default_rng(7)
    zero = zero_of(data, ZeroPointParams())
    drawn = []
    for _ in range(300):
        rows = rng.integers(0, 400, 400)
        again = zero_of((column[rows] for column in data), ZeroPointParams())
        drawn.append((again.magzp, again.clrcoeff))
    spread = np.std(drawn, axis=0)
    assert zero.magzp_unc == pytest.approx(spread[0], rel=0.2)
    assert zero.clrcoeff_unc == pytest.approx(spread[1], rel=0.2)
    assert zero.zpclrcov == pytest.approx(np.cov(np.transpose(drawn))[0, 1], rel=0.4)


def test_light_added_to_every_star_does_not_move_the_zero_point():
    inst, *rest = calibrators(np.random.default_rng(8), n=1500)
    flux = 10 ** (-0.4 * inst) + 15.0
    biased = (-2.5 * np.log10(flux), *rest)
    zero = zero_of(biased, ZeroPointParams(fit_flux_offset=True))
    assert abs(zero.magzp - ZP) < 3 * zero.magzp_unc < 0.01
    assert zero.flux_offset_dn == pytest.approx(15, abs=3)
    plain = zero_of(biased, ZeroPointParams())
    assert plain.magzp - ZP > 3 * plain.magzp_unc


def test_statistics_of_the_differences():
    data = calibrators(np.random.default_rng(9))
    zero = zero_of(data, ZeroPointParams())
    chosen = (data[4] >= 0) & (data[4] <= 1.3)
    difference = (data[2] - data[0])[chosen]
    assert zero.zpmed == np.median(difference)
    assert zero.zpavg == pytest.approx(difference.mean())
    assert zero.zprmsall == pytest.approx(difference.std())
    assert zero.clrmed == np.median(data[4][chosen])
    assert 0.005 < zero.rms < 0.03


def test_colour_coefficient_can_be_held():
    zero = zero_of(calibrators(np.random.default_rng(10)), ZeroPointParams(fixed_color_coefficient=COLOR))
    assert zero.clrcoeff == COLOR
    assert zero.clrcoeff_unc == zero.zpclrcov == 0
    assert abs(zero.magzp - ZP) < 4 * zero.magzp_unc < 0.006


def test_cuts_and_refusals():
    data = inst, inst_err, cat, cat_err, color = calibrators(np.random.default_rng(11))
    inst[:20], cat[20:40], color[40:60] = 99.0, np.nan, 5.0
    assert zero_of(data, ZeroPointParams()).n_matches <= 340
    with pytest.raises(AlgorithmFailure, match="too few calibrators") as failure:
        zero_of([column[:24] for column in data], ZeroPointParams())
    assert failure.value.figures["n_matches"] <= 4
    with pytest.raises(BadInput):
        zero_of((inst[:5], inst_err, cat, cat_err, color), ZeroPointParams())


def test_linear_fit_measures_the_intrinsic_scatter():
    rng = np.random.default_rng(12)
    design = np.stack([np.ones(4000), rng.uniform(-1, 1, 4000)], axis=1)
    y = design @ [2.0, -0.5] + rng.normal(0, np.hypot(0.03, 0.05), 4000)
    fit = fit_linear(design, y, np.full(4000, 0.03))
    assert fit.scatter == pytest.approx(0.05, rel=0.06)
    np.testing.assert_allclose(fit.coefficients, [2.0, -0.5], atol=0.005)
    exact = fit_linear(design[:5], design[:5] @ [1.0, 1.0], np.full(5, 0.1))
    assert exact.scatter == 0


def test_linear_fit_needs_more_points_than_parameters():
    with pytest.raises(AlgorithmFailure, match="too few points"):
        fit_linear(np.ones((2, 2)), np.zeros(2), np.ones(2))


# On rendered stars.


def corrections(reduced):
    return aperture_corrections(
        reduced.sub, reduced.mask, reduced.found, reduced.catalogue, DIAMETERS, ApertureCorrectionParams()
    )


def field_zeropoint(reduced, seed):
    """Zero point from the 6-px aperture against true magnitudes with catalogue noise, and its total error."""
    rng, growth, field = np.random.default_rng(seed), corrections(reduced), reduced.field
    good = isolated_stars(reduced.catalogue) & (reduced.star >= 0)
    color = rng.normal(0.6, 0.25, good.sum())
    truth = ZEROPOINT_MAG - 2.5 * np.log10(field.flux[reduced.star[good]])
    inst = reduced.catalogue["MAG_APER"][good, 3] + growth.correction_mag[3]
    error = np.full(good.sum(), 0.008)
    catalogue_mag = truth + COLOR * color + rng.normal(0, error)
    params = ZeroPointParams(faint_mag=19.0, fit_flux_offset=True)
    zero = zero_of((inst, reduced.catalogue["MAGERR_APER"][good, 3], catalogue_mag, error, color), params)
    middle = np.sqrt(zero.magzp_unc**2 + 0.36 * zero.clrcoeff_unc**2 + 1.2 * zero.zpclrcov)
    return zero.magzp + 0.6 * (zero.clrcoeff - COLOR) - ZEROPOINT_MAG, np.hypot(middle, growth.unc_mag[3])


def test_zero_point_of_a_rendered_field(reduced):
    error, unc = field_zeropoint(reduced, 13)
    assert abs(error) < 3 * unc
    assert unc < 0.005


def test_zero_point_of_a_crowded_field():
    """3,800 stars on 800 x 750 px: the density of 60,000 a channel."""
    shape = (800, 750)
    crowded = reduce_field(make_field(14, shape, random_stars(np.random.default_rng(15), shape, 3800)))
    error, unc = field_zeropoint(crowded, 16)
    assert abs(error) < 0.008
    assert abs(error) < 3 * unc


def test_limiting_magnitude_in_the_sky_limit():
    assert limiting_magnitude(10.0, 1e9, 16.0, 25.0) == pytest.approx(25 - 2.5 * np.log10(5 * 4 * 10))
    with pytest.raises(BadInput):
        limiting_magnitude(0.0, 6.0, 16.0, 25.0)


# What is new with PSF fits: noisy colours, the map of residuals, the choice of stars.


def noisy_catalogue(rng, n=1500, sign=1, response=None):
    """Calibrators whose two catalogue magnitudes have independent errors; the colour is their difference."""
    mag, color = rng.uniform(14, 20, n), rng.normal(0.6, 0.25, n)
    position = rng.uniform(-1, 1, (n, 2))
    inst_err = 0.003 + 0.03 * 10 ** (0.35 * (mag - 20))
    cat_err, other_err = rng.uniform(0.01, 0.03, (2, n))
    cat_noise, other_noise = rng.normal(0, cat_err), rng.normal(0, other_err)
    inst = mag - ZP - COLOR * color + rng.normal(0, inst_err)
    if response is not None:
        inst -= response(*position.T)
    seen = color + sign * (cat_noise - other_noise)
    return Calibrators(inst, inst_err, mag + cat_noise, cat_err, seen, np.hypot(cat_err, other_err), sign, position)


WIDE = ZeroPointParams(blue_color=-2.0, red_color=4.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_errors_of_the_colours_do_not_tilt_the_colour_term(sign):
    """The slope would be off by +-0.007 mag/mag, the zero point by 4 mmag; 100 trials know it to 0.3 mmag."""
    error, plain, pull = [], [], []
    for seed in range(100):
        stars = noisy_catalogue(np.random.default_rng(seed), sign=sign)
        zero = calibrate_zeropoint(stars, WIDE).zero
        error.append([zero.magzp - ZP, zero.clrcoeff - COLOR])
        pull.append([(zero.magzp - ZP) / zero.magzp_unc, (zero.clrcoeff - COLOR) / zero.clrcoeff_unc])
        plain.append(calibrate_zeropoint(stars._replace(color_err=None), WIDE).zero.magzp - ZP)
    mean, spread = np.mean(error, axis=0), np.std(error, axis=0) / 10
    assert (np.abs(mean) < 3.5 * spread).all()
    assert (np.abs(np.std(pull, axis=0) - 1) < 0.25).all()
    assert abs(np.mean(plain)) > 0.002 > 4 * spread[0]


def test_unknown_colour_errors_count_as_exact():
    stars = noisy_catalogue(np.random.default_rng(1))
    none = stars._replace(color_err=np.full(1500, np.nan), color_sign=0)
    assert calibrate_zeropoint(none, WIDE).zero == calibrate_zeropoint(stars._replace(color_err=None), WIDE).zero


def test_residual_map_shows_the_response():
    def response(u, v):
        return 0.01 * u - 0.02 * v * v

    stars = noisy_catalogue(np.random.default_rng(2), n=6000, response=response)
    fit = calibrate_zeropoint(stars, WIDE)
    cells = residual_map(fit, stars.position, 8)
    at = (np.arange(8) + 0.5) / 4 - 1
    expected = response(at[None, :], at[:, None])
    mean = 0.02 / 3  # of -response over the image: it is in the zero point
    assert fit.zero.magzp - ZP == pytest.approx(-mean, abs=4 * fit.zero.magzp_unc)
    pull = (cells.mean_mag - expected - mean) / cells.unc_mag
    assert cells.n_stars.sum() == fit.zero.n_matches
    assert 0.75 < pull.std() < 1.2
    assert np.abs(pull).max() < 4
    assert fit.zero.surface_rms == pytest.approx((expected + mean).std(), rel=0.1)


def test_residual_map_of_empty_cells_and_outliers():
    stars = noisy_catalogue(np.random.default_rng(3), n=200)
    stars.position[:] = -1 + (stars.position + 1) / 4
    stars.inst_mag[:10] += 1.0
    fit = calibrate_zeropoint(stars, WIDE)
    assert fit.zero.surface_rms == 0
    assert abs(fit.zero.magzp - ZP) < 4 * fit.zero.magzp_unc < 0.04
    cells = residual_map(fit, stars.position, 4)
    assert cells.n_stars[0, 0] > 150
    assert cells.n_stars[1:].sum() + cells.n_stars[0, 1:].sum() == 0
    assert np.isnan(cells.mean_mag[1:]).all() and np.isnan(cells.unc_mag[1:]).all()
    assert abs(cells.mean_mag[0, 0]) < 0.01


def test_calibrators_are_clean_stars_apart_from_their_neighbours():
    rng, n = np.random.default_rng(4), 300
    fits = np.zeros(n, FITS)
    fits["flux"] = 10 ** rng.uniform(3.2, 5, n)
    fits["sigflux"] = np.sqrt(fits["flux"] / 6.2 + 900)
    fits["chi"] = rng.normal(1, 0.08, n)
    fits["sharp"] = rng.normal(0, 0.02 + 1.5 * fits["sigflux"] / fits["flux"])
    fits["dominance"] = 1
    box = np.zeros(n, np.int16)
    bad = np.arange(9)
    fits["flags"][0], fits["crowding"][1], fits["dominance"][2], box[3], box[4] = 2, 0.6, 0.3, -1, 128
    fits["sharp"][5], fits["chi"][6], fits["sigflux"][7], fits["flux"][8] = 2.0, np.nan, fits["flux"][7] / 4, np.nan
    box[9] = 2  # a source: nothing bad
    chosen = calibrator_stars(fits, box, CalibratorParams())
    assert not chosen[bad].any()
    assert chosen[9:].mean() > 0.97
    assert calibrator_stars(fits[:0], box[:0], CalibratorParams()).size == 0


def test_faint_stars_that_noise_made_bright_are_not_preferred():
    """100 images of stars of S/N 10 to 30 with errors that follow the measured flux; the mean is known to 0.4 mmag."""
    params, error = ZeroPointParams(max_error_mag=0.3, blue_color=-2.0, red_color=4.0, faint_mag=25.0), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        mag, color = rng.uniform(18, 19.3, 800), rng.normal(0.6, 0.25, 800)
        flux, noise = 10 ** (-0.4 * (mag - ZP - COLOR * color)), 60.0
        seen = flux + rng.normal(0, noise, 800)
        inst, inst_err = -2.5 * np.log10(seen), 1.0857 * noise / seen
        zero = zero_of((inst, inst_err, mag, np.full(800, 0.001), color), params)
        error.append(zero.magzp + 0.6 * zero.clrcoeff - ZP - 0.6 * COLOR)
    assert abs(np.mean(error)) < 0.0015
