"""The mean star profile, the seeing and the fitted positions against rendered truth."""

import numpy as np
import pytest
from starfield import Profile, make_field, random_stars
from zsds_hpc.kernels.centroid import profile_images

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.photometry.aperture import MeasureParams
from zsds_hpc.photometry.centroid import CentroidParams, fit_positions
from zsds_hpc.photometry.detect import SOURCE_DTYPE, Detections
from zsds_hpc.photometry.profile import StarProfile, fit_star_profile, noise_equivalent_area, profile_table
from zsds_hpc.photometry.seeing import (
    SeeingParams,
    adaptive_sigma,
    half_sample_mode,
    measure_profile,
    quick_seeing,
)

SHAPE = (500, 500)


def star_field(profile, seed=1, n=500, **changes):
    stars = random_stars(np.random.default_rng(seed), SHAPE, n, mag_range=(14.0, 20.0))
    return make_field(seed, SHAPE, stars, profile, **changes)


def quick(field, pix=None):
    pix = field.pix if pix is None else pix
    return quick_seeing(pix, np.float32(field.sky), np.float32(field.sky_sigma), np.zeros(SHAPE, np.int16), 58000.0)


@pytest.mark.parametrize("fwhm", [1.2, 2.0, 3.5])
def test_table_is_the_pixel_integral(fwhm):
    """The renderer integrates with 5 Gauss-Legendre nodes a pixel: an independent quadrature."""
    e1, e2 = 0.06, 0.03
    truth = Profile(
        fwhm_pix=fwhm, axis_ratio=np.exp(-np.hypot(e1, e2)), angle_rad=np.arctan2(e2, e1) / 2, beta=3.0, wing=0.0
    )
    table = profile_table(StarProfile(fwhm, 3.0, e1, e2), 4)
    for px, py in ((0, 0), (0.25, -0.4375), (0.5, 0.5), (-0.5, 0.125)):
        stamp = truth.stamp(px, py, 4)
        mine = table[round((py + 0.5) * 16), round((px + 0.5) * 16)]
        np.testing.assert_allclose(mine[0].reshape(9, 9), stamp, atol=1e-4 * stamp.max())
        slope = (truth.stamp(px + 1e-3, py, 4) - truth.stamp(px - 1e-3, py, 4)) / 2e-3
        np.testing.assert_allclose(mine[1].reshape(9, 9), slope, atol=1e-2 * np.abs(slope).max())


def test_phases_between_the_table_are_interpolated():
    table = profile_table(StarProfile(2.0, 3.0), 4)
    flat = np.ascontiguousarray(table[:, :, :1])
    image = profile_images(flat, np.array([0.21]), np.array([-0.33]))[0].reshape(9, 9)
    stamp = Profile(axis_ratio=1.0, beta=3.0, wing=0.0).stamp(0.21, -0.33, 4)
    np.testing.assert_allclose(image, stamp, atol=1e-3 * stamp.max())


def test_noise_equivalent_area_of_a_wide_gaussian_is_4_pi_sigma2():
    # A Moffat of beta 50 is a Gaussian but for 1% of its width; the pixel adds 1/12 px^2.
    sigma2 = (4.0 / 2.3548) ** 2 + 1 / 12
    assert noise_equivalent_area(StarProfile(4.0, 50.0)) == pytest.approx(4 * np.pi * sigma2, rel=0.03)


@pytest.mark.parametrize("fwhm", [1.2, 1.5, 2.0, 2.6])
def test_quick_seeing_finds_the_width(fwhm):
    found = quick(star_field(Profile(fwhm_pix=fwhm)))
    assert found.fwhm_pix == pytest.approx(fwhm, rel=0.03)
    assert found.n_stars > 30


def test_quick_seeing_is_not_led_astray_by_hits():
    """As many hits of one to three pixels as there are stars."""
    field = star_field(Profile(fwhm_pix=2.0), n=250)
    pix, rng = field.pix.copy(), np.random.default_rng(3)
    for _ in range(250):
        y, x = rng.integers(5, 490, 2)
        pix[y, x : x + rng.integers(1, 4)] += rng.uniform(500, 5000)
    assert quick(field, pix).fwhm_pix == pytest.approx(2.0, rel=0.05)


def test_quick_seeing_without_stars_fails_with_the_number():
    field = make_field(5, SHAPE, (np.array([100.0]), np.array([120.0]), np.array([1e4])))
    with pytest.raises(AlgorithmFailure, match="too few stars") as failure:
        quick(field)
    assert failure.value.figures["n_stars"] <= 1


def test_shared_profile_is_recovered_when_it_is_a_moffat():
    truth = Profile(fwhm_pix=2.0, beta=2.8, wing=0.0)
    field = star_field(truth, seed=6)
    bright = field.flux > 3000
    x, y = (np.rint(a[bright]).astype(int) for a in (field.x, field.y))
    inside = (x > 8) & (x < 490) & (y > 8) & (y < 490)
    x, y = x[inside], y[inside]
    stamps = np.array([field.pix[v - 5 : v + 6, u - 5 : u + 6] - field.sky for u, v in zip(x, y)], float)
    found = fit_star_profile(stamps, field.sky_sigma**2 + np.maximum(stamps, 0) / field.gain, StarProfile(2.5))
    assert found.fwhm_pix == pytest.approx(2.0, rel=0.01)
    assert found.beta == pytest.approx(2.8, rel=0.06)
    assert found.elongation == pytest.approx(1 / 0.94, abs=0.01)
    assert found.angle_deg == pytest.approx(np.degrees(0.5), abs=5)


def test_profile_of_the_field(reduced):
    profile = reduced.found.profile
    assert profile.n_stars > 50
    assert profile.fwhm_pix == pytest.approx(2.0, rel=0.02)
    assert profile.elongation == pytest.approx(1 / 0.94, abs=0.015)


def test_too_few_stars_for_a_profile():
    empty = Detections(np.zeros(0, SOURCE_DTYPE), np.zeros((20, 20), np.int32))
    blank = np.zeros((20, 20), np.float32)
    with pytest.raises(AlgorithmFailure):
        measure_profile(blank, blank + 1, blank.astype(np.int16), empty, SeeingParams())


def test_adaptive_sigma_of_gaussians():
    steps = np.arange(-8, 9)
    sigmas = np.array([1.0, 1.5, 2.0])
    stamps = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigmas[:, None, None] ** 2))
    np.testing.assert_allclose(adaptive_sigma(stamps), sigmas, rtol=0.02)


def test_half_sample_mode_ignores_a_broad_majority():
    rng = np.random.default_rng(7)
    assert half_sample_mode(np.concatenate([rng.normal(1, 0.01, 80), rng.uniform(-3, 3, 150)])) == pytest.approx(
        1, abs=0.05
    )


# Positions.


def single_stars(profile, flux, n=900, seed=8):
    """A grid of stars of one flux at random phases, 20 px apart: truth and noise without crowding."""
    rng = np.random.default_rng(seed)
    side = int(np.sqrt(n))
    x, y = (20 * g.ravel() + 15 + rng.integers(-8, 8, n) / 16 for g in np.mgrid[0:side, 0:side])
    return make_field(seed, (20 * side + 20, 20 * side + 20), (x, y, np.full(n, flux)), profile)


def fitted(field, profile):
    """Positions fitted with a given mean profile, one segment of a few pixels per star."""
    x, y = np.rint(field.x).astype(int), np.rint(field.y).astype(int)
    table = np.zeros(x.size, [("x", "f8"), ("y", "f8"), ("x_peak", "i4"), ("y_peak", "i4")])
    table["x"], table["y"], table["x_peak"], table["y_peak"] = x, y, x, y
    segments = np.zeros(field.pix.shape, np.int32)
    segments[y, x] = np.arange(1, x.size + 1)
    rms = np.full(field.pix.shape, field.sky_sigma, np.float32)
    images = (field.pix - np.float32(field.sky), rms, np.zeros(field.pix.shape, np.int16))
    return fit_positions(images, field.gain, Detections(table, segments), profile, CentroidParams())


def cramer_rao(profile, flux, field):
    """Least error of x (px) that any unbiased estimator has, mean over phases; renderer's own profile."""
    information = []
    for phase in np.arange(-0.5, 0.5, 0.125):
        p = profile.stamp(phase, phase, 8)
        dx = (profile.stamp(phase + 1e-3, phase, 8) - profile.stamp(phase - 1e-3, phase, 8)) / 2e-3
        information.append((flux**2 * dx**2 / (field.sky_sigma**2 + flux * p / field.gain)).sum())
    return np.sqrt(np.mean(1 / np.array(information)))


@pytest.mark.parametrize("fwhm", [1.5, 2.0, 2.6])
@pytest.mark.parametrize("flux", [500.0, 2000.0, 3e4])
def test_positions_reach_the_cramer_rao_bound(fwhm, flux):
    truth = Profile(fwhm_pix=fwhm)
    field = single_stars(truth, flux)
    found = fitted(field, StarProfile(fwhm, 2.95, 0.0335, 0.0521))
    assert found["fitted"].mean() > 0.995
    bound = cramer_rao(truth, flux, field)
    for axis in "xy":
        error = found[axis] - getattr(field, axis)
        assert 1.4826 * np.median(np.abs(error)) < 1.12 * bound
        assert error.std() < 1.15 * bound
        assert (error / np.sqrt(found[f"var_{axis}"])).std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("fwhm", [1.5, 2.0])
def test_positions_have_no_pixel_phase_bias(fwhm):
    """Two-Moffat stars fitted with one Moffat: noise-free error below 2 mas at every phase."""
    field = single_stars(Profile(fwhm_pix=fwhm), 2.9e4, n=400)
    field = type(field)(**{**field.__dict__, "pix": field.clean + np.float32(field.sky)})
    found = fitted(field, StarProfile(fwhm, 2.95, 0.0335, 0.0521))
    for axis in "xy":
        assert np.abs(found[axis] - getattr(field, axis)).max() < 0.002


def test_spread_tells_galaxies_and_hits_from_stars():
    flux = 5000.0
    values = {}
    for name, width in (("hit", 0.8), ("star", 2.0), ("galaxy", 2.8)):
        found = fitted(single_stars(Profile(fwhm_pix=width), flux, n=100), StarProfile(2.0, 2.95, 0.0335, 0.0521))
        values[name] = found["spread"][found["fitted"]]
    assert np.median(values["hit"]) < -0.005 < np.percentile(values["star"], 5)
    assert np.percentile(values["star"], 95) < 0.005 < np.median(values["galaxy"])


def test_pull_in_a_real_field(reduced):
    catalogue, field = reduced.catalogue, reduced.field
    good = (reduced.star >= 0) & (catalogue["FLAGS"] == 0) & (catalogue["SNR_WIN"] > 10)
    error = catalogue["XWIN_IMAGE"][good] - 1 - field.x[reduced.star[good]]
    pull = error / np.sqrt(catalogue["ERRX2WIN_IMAGE"][good])
    assert good.sum() > 150
    assert 1.4826 * np.median(np.abs(pull)) == pytest.approx(1, abs=0.15)


def test_masked_neighbours_and_hopeless_fits():
    field = single_stars(Profile(), 5000.0, n=100)
    x, y = np.rint(field.x).astype(int), np.rint(field.y).astype(int)
    pix, mask = field.pix - np.float32(field.sky), np.zeros(field.pix.shape, np.int16)
    mask[y[0], x[0] + 1] = maskbits.SPIKE
    pix[y[0], x[0] + 1] = 30000
    mask[y[1] - 5 : y[1] + 6, x[1] - 5 : x[1] + 6] = maskbits.DEAD
    table = np.zeros(2, [("x", "f8"), ("y", "f8"), ("x_peak", "i4"), ("y_peak", "i4")])
    table["x"], table["y"], table["x_peak"], table["y_peak"] = x[:2], y[:2], x[:2], y[:2]
    found = fit_positions(
        (pix, np.full_like(pix, field.sky_sigma), mask),
        field.gain,
        Detections(table, np.zeros(pix.shape, np.int32)),
        StarProfile(2.0, 2.95),
        CentroidParams(),
    )
    assert found["fitted"].tolist() == [True, False]
    assert abs(found["x"][0] - field.x[0]) < 0.1
    assert (found["x"][1], found["y"][1]) == (x[1], y[1])
    assert np.isnan(found["var_x"][1])


def test_defaults_agree():
    assert MeasureParams().centroid == CentroidParams()
