"""Passes of detection and fit on rendered fields: completeness, purity, fluxes, seeds, borders, nothing at all."""

import numpy as np
import pytest

from tests.unit.photometry.psfscene import GAIN, SKY_SIGMA, exposure, fitter_of, grid_stars, make_psf, nearest_rows
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.psfdetect import PsfDetectParams
from zsds_hpc.photometry.psffit import FIT_EDGE, FIT_SATURATED, PSF_FIT_DTYPE
from zsds_hpc.photometry.psfphot import (
    PsfPhotParams,
    new_stars,
    photometry_with_psf,
    psf_photometry,
    subtract_background,
    worthy_stars,
)

SHAPE = (256, 256)
PARAMS = PsfPhotParams()
SATURATE_DN = 60_000.0


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE)


@pytest.fixture(scope="module")
def crowd(psf):
    """600 stars on 256 x 256 px: the density of 87,000 a channel; S/N 3 to 1000."""
    rng = np.random.default_rng(1)
    places, n = rng.uniform(-0.5, 255.5, (600, 2)), 600
    flux = 130 * (1 - rng.uniform(0, 0.998, n)) ** -1.1
    sky = exposure(psf, np.column_stack([places, flux]), 2)
    return sky, photometry_with_psf(sky.images, GAIN, psf, PARAMS)


def test_crowded_field(psf, crowd):
    sky, result = crowd
    table, stars = result.table, sky.stars
    assert table.dtype == PSF_FIT_DTYPE
    assert np.isin(table["pass_"], (1, 2, 3)).all() and (table["pass_"] > 1).any()
    row, distance = nearest_rows(table, stars)
    others = np.hypot(stars[:, None, 0] - stars[:, 0], stars[:, None, 1] - stars[:, 1]) + 99 * np.eye(len(stars))
    apart = others.min(axis=1) > 1.2 * psf.fwhm_pix
    sigma = SKY_SIGMA / np.sqrt((psf.center(6) ** 2).sum())
    bright = apart & (stars[:, 2] > 10 * sigma)
    assert bright.sum() > 100
    assert (distance[bright] < 0.5).mean() > 0.97
    pull = ((table["flux"][row] - stars[:, 2]) / table["sigflux"][row])[bright & (distance < 0.5)]
    assert abs(np.median(pull)) < 0.35 and np.percentile(np.abs(pull), 68) < 1.5
    # Every entry but a few is a star or a pair that the seeing hides.
    back = np.hypot(table["x"][:, None] - stars[:, 0], table["y"][:, None] - stars[:, 1]).min(axis=1)
    assert (back < 0.6 * psf.fwhm_pix).mean() > 0.97


def test_residuals_are_noise(crowd):
    _, result = crowd
    scene = result.scene
    pull = (scene.data - scene.model) / np.sqrt(scene.variance + np.maximum(scene.model, 0) / GAIN)
    assert pull.std() == pytest.approx(1, abs=0.06)
    assert np.abs(pull).max() < 8
    assert result.n_found[-1] == len(result.table) >= result.n_found[0] > 200


def test_same_bits_and_untouched_input(psf, crowd):
    sky, result = crowd
    before = [a.copy() for a in sky.images]
    again = photometry_with_psf(sky.images, GAIN, psf, PARAMS)
    assert again.table.tobytes() == result.table.tobytes()
    np.testing.assert_array_equal(again.scene.model, result.scene.model)
    for one, other in zip(before, sky.images):
        np.testing.assert_array_equal(one, other)


def test_table_is_sorted_and_has_no_doubles(psf, crowd):
    table = crowd[1].table
    assert (np.diff(table["y"]) > -1.9).all(), "by the rows of the windows, within which stars may move by 0.9 px"
    gaps = np.hypot(table["x"][:, None] - table["x"], table["y"][:, None] - table["y"]) + 99 * np.eye(len(table))
    assert gaps.min() >= PARAMS.min_distance_fwhm * psf.fwhm_pix * 0.98
    assert (table["flux"] > 0).all() and (table["n_pix"] >= PARAMS.min_n_pix).all()


def test_pair_is_split_on_the_residuals(psf):
    """1.1 FWHM apart with a flux ratio of 4: one peak, found as two stars in the second pass."""
    found = 0
    for seed in range(8):
        gap = 1.1 * psf.fwhm_pix
        stars = np.array([[100.3, 100.2, 40_000], [100.3 + gap * 0.8, 100.2 + gap * 0.6, 10_000]])
        table = photometry_with_psf(exposure(psf, stars, seed).images, GAIN, psf, PARAMS).table
        row, distance = nearest_rows(table, stars)
        found += len(table) == 2 and distance.max() < 0.3
        if len(table) == 2:
            assert np.abs((table["flux"][row] - stars[:, 2]) / table["sigflux"][row]).max() < 4.5
    assert found >= 7


def test_nothing_is_found_in_noise(psf):
    n = [len(photometry_with_psf(exposure(psf, [], seed).images, GAIN, psf, PARAMS).table) for seed in range(6)]
    assert sum(n) <= 3


def test_no_image_and_nothing_usable(psf):
    sky = exposure(psf, [[100, 100, 9000.0]], 3)
    sky.images[2][:] = maskbits.DEAD
    empty = photometry_with_psf(sky.images, GAIN, psf, PARAMS)
    assert len(empty.table) == 0 and empty.n_found == [0, 0, 0]
    built = psf_photometry(sky.images, GAIN, StarProfile(2.0), SATURATE_DN, PARAMS)
    assert built.build is None and built.psf.n_stars == 0
    with pytest.raises(BadInput):
        photometry_with_psf((sky.images[0][1:], *sky.images[1:]), GAIN, psf, PARAMS)


def test_saturated_seeds_are_fitted_on_their_wings():
    """The core is masked; the seed's flux is 40% off."""
    psf = make_psf(SHAPE, wing=(0.5, 3.0))
    stars = np.array([[100.3, 120.2, 2e6], [104.9, 126.0, 9000], [200.0, 60.0, 20_000]])
    sky = exposure(psf, stars, 4, half=60)
    saturated = sky.light > 60_000
    assert saturated.sum() == 9
    sky.images[2][saturated] = maskbits.SATURATED
    sky.images[0][saturated] = 60_000
    seeds = np.array([[100.0, 120.0, 1.2e6]])
    table = photometry_with_psf(sky.images, GAIN, psf, PARAMS, seeds).table
    row, distance = nearest_rows(table, stars)
    assert distance[0] < 0.2 and table["flags"][row[0]] & FIT_SATURATED and table["pass_"][row[0]] == 0
    assert table["flux"][row] == pytest.approx(stars[:, 2], rel=0.05)
    assert (table["flags"] & FIT_SATURATED != 0).sum() == 1
    assert len(table) == 3
    without = photometry_with_psf(sky.images, GAIN, psf, PARAMS).table
    assert not (without["flags"] & FIT_SATURATED).any()


def test_stars_on_the_border_are_found_and_flagged(psf):
    stars = np.array([[0.1, 50, 9000], [255.2, 80, 9000], [120, -0.3, 9000], [160, 255.3, 9000], [0, 0, 9000.0],
                      [255, 255, 9000], [128, 128, 9000], [7.0, 128, 9000]])  # fmt: skip
    table = photometry_with_psf(exposure(psf, stars, 5).images, GAIN, psf, PARAMS).table
    row, distance = nearest_rows(table, stars)
    assert len(table) == len(stars) and distance.max() < 0.3
    assert (table["flags"][row] & FIT_EDGE > 0).tolist() == [True] * 6 + [False] * 2
    assert np.abs((table["flux"][row] - stars[:, 2]) / table["sigflux"][row]).max() < 4


def test_islands_of_nan(psf):
    stars = grid_stars(SHAPE, 24, 9000.0, 6)
    sky = exposure(psf, stars, 6)
    sky.images[0][40:75, 60:110] = np.nan
    sky.images[0][::17, ::13] = np.nan
    table = photometry_with_psf(sky.images, GAIN, psf, PARAMS).table
    lost = (stars[:, 0] > 58) & (stars[:, 0] < 111) & (stars[:, 1] > 38) & (stars[:, 1] < 76)
    _, distance = nearest_rows(table, stars)
    assert (distance[~lost] < 0.5).all()
    assert np.isfinite(table["flux"]).all() and np.isfinite(table["sigflux"]).all()
    inside = (table["x"] > 62) & (table["x"] < 107) & (table["y"] > 42) & (table["y"] < 72)
    assert not inside.any()


def test_doubles_faint_and_outlying_stars_are_dropped(psf):
    stars = np.array([[60, 60, 9000], [60.7, 60.2, 500], [120, 60, 9000], [120, 120, 60.0], [-0.9, 90, 9000],
                      [180, 180, -900]])  # fmt: skip
    fitter = fitter_of(exposure(psf, stars[[0, 2, 4]], 7).images, psf, stars)
    fitter.stars.information = np.tile([sigma_information(psf), 150.0], (len(stars), 1))
    kept = fitter.stars.value[worthy_stars(fitter, PARAMS)]
    np.testing.assert_array_equal(np.sort(kept[:, 0]), [60, 120])
    fitter.stars.information[:, 1] = PARAMS.min_n_pix - 1
    assert not worthy_stars(fitter, PARAMS).any()


def sigma_information(psf):
    return (psf.center(6) ** 2).sum() / SKY_SIGMA**2


def test_peaks_beside_known_stars_must_rise_above_them(psf):
    """What an error of the PSF leaves beside a bright star is no star."""
    star, wrong = np.array([[100.3, 100.2, 300_000]]), make_psf(SHAPE, 1.8)
    fitter = fitter_of(exposure(psf, star, 8).images, wrong, star, n_iterations=6)
    every = {"min_contrast": 0.0, "min_distance_fwhm": 0.0, "extended_chance": 0.0}
    exact = PsfDetectParams(psf_error=0.0)
    n = len(new_stars(fitter, 2, PsfPhotParams(detect=exact, **every)))
    assert n >= 2
    for rule in ("min_contrast", "extended_chance"):  # either is enough
        others = {name: value for name, value in every.items() if name != rule}
        assert len(new_stars(fitter, 2, PsfPhotParams(detect=exact, **others))) < n
    assert len(new_stars(fitter, 2, PARAMS)) == 0


def test_background_left_over_is_taken_out(psf):
    sky = exposure(psf, grid_stars(SHAPE, 24, 9000.0, 9), 9)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    plane = (3 + 0.01 * x - 0.02 * y).astype(np.float32)
    sky.images[0][:] += plane
    fitter = fitter_of(sky.images, psf, sky.stars, n_iterations=4)
    before, variance = fitter.scene.data.copy(), fitter.scene.variance.copy()
    subtract_background(fitter, PARAMS)
    assert fitter.stars.active.all()
    left = plane - (before - fitter.scene.data)
    assert abs(left.mean()) < 0.2 and left.std() < 0.4
    assert np.median(fitter.scene.variance / variance) == pytest.approx(1, abs=0.04)


def test_psf_is_built_on_the_way():
    """From a profile that is 10% too narrow to a model that fits: fluxes as with the true one."""
    shape = (400, 400)
    truth = make_psf(shape)
    stars = grid_stars(shape, 22, (3000, 300_000), 10)
    sky = exposure(truth, stars, 10)
    narrow = StarProfile(1.8, 3.0)
    result = psf_photometry(sky.images, GAIN, narrow, SATURATE_DN, PARAMS)
    assert result.build is not None and result.psf.n_stars > 100
    assert result.psf.fwhm_pix == pytest.approx(truth.fwhm_pix, rel=0.01)
    row, distance = nearest_rows(result.table, stars)
    ratio = result.table["flux"][row] / stars[:, 2]
    assert distance.max() < 0.2
    assert np.median(ratio) == pytest.approx(1, abs=0.004)
    assert np.median(result.table["chi"][row]) == pytest.approx(1, abs=0.05)
    without = psf_photometry(sky.images, GAIN, narrow, SATURATE_DN, PsfPhotParams(n_builds=0))
    assert without.build is None
    assert np.median(without.table["chi"]) > 1.5 * np.median(result.table["chi"])
