"""Zero point, curve of growth, limiting magnitude and the robust fit under them."""

import numpy as np
import pytest
from reduction import reduce_field
from starfield import ZEROPOINT_MAG, Profile, enclosed_light, make_field, random_stars

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.linefit import fit_linear
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.zeropoint import (
    ApertureCorrectionParams,
    ZeroPointParams,
    _profile_corrections,
    aperture_corrections,
    fit_zeropoint,
    isolated_stars,
    limiting_magnitude,
    point_source_area,
)

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


def pulls(n_trials, params, **changes):
    """Standardised errors of zero point and coefficient, and of the point that the two share."""
    out = []
    for seed in range(10_000, 10_000 + n_trials):
        zero = fit_zeropoint(*calibrators(np.random.default_rng(seed), **changes), params)
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
    zero = fit_zeropoint(*calibrators(np.random.default_rng(5), n=1500, contaminated=0.2), ZeroPointParams())
    assert abs(zero.magzp + 0.6 * zero.clrcoeff - ZP - 0.6 * COLOR) < 0.002
    assert zero.n_matches < 1400


def test_stated_error_agrees_with_the_bootstrap():
    data, rng = calibrators(np.random.default_rng(6), scatter=0.015), np.random.default_rng(7)
    zero = fit_zeropoint(*data, ZeroPointParams())
    drawn = []
    for _ in range(300):
        rows = rng.integers(0, 400, 400)
        again = fit_zeropoint(*(column[rows] for column in data), ZeroPointParams())
        drawn.append((again.magzp, again.clrcoeff))
    spread = np.std(drawn, axis=0)
    assert zero.magzp_unc == pytest.approx(spread[0], rel=0.2)
    assert zero.clrcoeff_unc == pytest.approx(spread[1], rel=0.2)
    assert zero.zpclrcov == pytest.approx(np.cov(np.transpose(drawn))[0, 1], rel=0.4)


def test_light_added_to_every_star_does_not_move_the_zero_point():
    inst, *rest = calibrators(np.random.default_rng(8), n=1500)
    flux = 10 ** (-0.4 * inst) + 15.0
    biased = (-2.5 * np.log10(flux), *rest)
    zero = fit_zeropoint(*biased, ZeroPointParams(fit_flux_offset=True))
    assert abs(zero.magzp - ZP) < 3 * zero.magzp_unc < 0.01
    assert zero.flux_offset_dn == pytest.approx(15, abs=3)
    plain = fit_zeropoint(*biased, ZeroPointParams())
    assert plain.magzp - ZP > 3 * plain.magzp_unc


def test_statistics_of_the_differences():
    data = calibrators(np.random.default_rng(9))
    zero = fit_zeropoint(*data, ZeroPointParams())
    chosen = (data[4] >= 0) & (data[4] <= 1.3)
    difference = (data[2] - data[0])[chosen]
    assert zero.zpmed == np.median(difference)
    assert zero.zpavg == pytest.approx(difference.mean())
    assert zero.zprmsall == pytest.approx(difference.std())
    assert zero.clrmed == np.median(data[4][chosen])
    assert 0.005 < zero.rms < 0.03


def test_colour_coefficient_can_be_held():
    zero = fit_zeropoint(*calibrators(np.random.default_rng(10)), ZeroPointParams(fixed_color_coefficient=COLOR))
    assert zero.clrcoeff == COLOR
    assert zero.clrcoeff_unc == zero.zpclrcov == 0
    assert abs(zero.magzp - ZP) < 4 * zero.magzp_unc < 0.006


def test_cuts_and_refusals():
    inst, inst_err, cat, cat_err, color = calibrators(np.random.default_rng(11))
    inst[:20], cat[20:40], color[40:60] = 99.0, np.nan, 5.0
    assert fit_zeropoint(inst, inst_err, cat, cat_err, color, ZeroPointParams()).n_matches <= 340
    with pytest.raises(AlgorithmFailure, match="too few calibrators") as failure:
        fit_zeropoint(inst[:24], inst_err[:24], cat[:24], cat_err[:24], color[:24], ZeroPointParams())
    assert failure.value.figures["n_matches"] <= 4
    with pytest.raises(BadInput):
        fit_zeropoint(inst[:5], inst_err, cat, cat_err, color, ZeroPointParams())


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


# The curve of growth, on rendered stars.


def true_corrections(profile):
    """From the renderer's own noiseless profile, mean over pixel phases."""
    return 2.5 * np.log10(enclosed_light(profile, np.array(DIAMETERS) / 2))


def corrections(reduced, **changes):
    return aperture_corrections(
        reduced.sub, reduced.mask, reduced.found, reduced.catalogue, DIAMETERS, ApertureCorrectionParams(**changes)
    )


def test_curve_of_growth_reaches_total_flux(reduced):
    found = corrections(reduced)
    error = found.correction_mag - true_corrections(Profile())
    assert found.n_stars > 50
    assert (np.abs(error) < 3 * found.unc_mag).all()
    assert (found.unc_mag < 0.006).all()
    assert 0 < found.outer_fraction < 0.006


def field_zeropoint(reduced, seed):
    """Zero point from the 6-px aperture against true magnitudes with catalogue noise, and its total error."""
    rng, growth, field = np.random.default_rng(seed), corrections(reduced), reduced.field
    good = isolated_stars(reduced.catalogue) & (reduced.star >= 0)
    color = rng.normal(0.6, 0.25, good.sum())
    truth = ZEROPOINT_MAG - 2.5 * np.log10(field.flux[reduced.star[good]])
    inst = reduced.catalogue["MAG_APER"][good, 3] + growth.correction_mag[3]
    error = np.full(good.sum(), 0.008)
    catalogue_mag = truth + COLOR * color + rng.normal(0, error)
    zero = fit_zeropoint(
        inst, reduced.catalogue["MAGERR_APER"][good, 3], catalogue_mag, error, color, ZeroPointParams()
    )
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


def test_without_stars_the_profile_gives_the_corrections(reduced):
    found = corrections(reduced, min_snr=1e5)
    assert found.n_stars == 0
    np.testing.assert_allclose(found.correction_mag, true_corrections(Profile()), atol=0.05)
    bare = reduced.found.__class__(reduced.found.table, reduced.found.segments)
    with pytest.raises(AlgorithmFailure, match="too few stars"):
        aperture_corrections(
            reduced.sub, reduced.mask, bare, reduced.catalogue[:0], DIAMETERS, ApertureCorrectionParams()
        )


def test_isolated_stars_have_no_bright_neighbour(reduced):
    good = isolated_stars(reduced.catalogue, 8.0, 0.05)
    catalogue = reduced.catalogue
    for i in np.flatnonzero(good)[:50]:
        distance = np.hypot(
            catalogue["XWIN_IMAGE"] - catalogue["XWIN_IMAGE"][i], catalogue["YWIN_IMAGE"] - catalogue["YWIN_IMAGE"][i]
        )
        near = (distance < 8) & (distance > 0)
        assert not (catalogue["FLUX_AUTO"][near] > 0.05 * catalogue["FLUX_AUTO"][i]).any()
    assert good.sum() > 0.5 * len(good)
    assert isolated_stars(catalogue[:0]).size == 0


def test_limiting_magnitude_is_where_stars_have_five_sigma(reduced):
    area = point_source_area(reduced.found.profile, corrections(reduced))
    true_area = 1 / (Profile().stamp(0.25, 0.25, 12) ** 2).sum()
    assert area == pytest.approx(true_area, rel=0.08)
    limit = limiting_magnitude(reduced.sky.global_rms, reduced.field.gain, area, ZEROPOINT_MAG)
    catalogue = reduced.catalogue
    near = (reduced.star >= 0) & (np.abs(catalogue["SNR_WIN"] - 8) < 1) & (catalogue["FLAGS"] == 0)
    mag = ZEROPOINT_MAG - 2.5 * np.log10(reduced.field.flux[reduced.star[near]])
    assert np.median(mag) + 2.5 * np.log10(8 / 5) == pytest.approx(limit, abs=0.12)


def test_limiting_magnitude_in_the_sky_limit():
    assert limiting_magnitude(10.0, 1e9, 16.0, 25.0) == pytest.approx(25 - 2.5 * np.log10(5 * 4 * 10))
    with pytest.raises(BadInput):
        limiting_magnitude(0.0, 6.0, 16.0, 25.0)


def test_profile_fallback_is_exact_for_a_moffat():
    """The reference cuts circles out of 1/60 px squares, which costs it 0.4 mmag at 1 px radius."""
    truth = Profile(axis_ratio=1.0, wing=0.0, beta=3.0)
    found = _profile_corrections(StarProfile(2.0, 3.0), DIAMETERS, 0)
    np.testing.assert_allclose(found.correction_mag, true_corrections(truth), atol=5e-4)
