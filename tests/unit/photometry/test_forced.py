"""Forced photometry: unbiased fluxes at given places, also negative ones and beside bright stars."""

import numpy as np
import pytest

from tests.unit.photometry.psfscene import GAIN, SKY_SIGMA, exposure, grid_stars, make_psf, paint
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.forced import force_in_scene, forced_photometry
from zsds_hpc.photometry.psffit import FIT_HELD, PsfFitParams, make_scene

SHAPE = (130, 140)


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE)


def forced(sky, positions):
    return forced_photometry(sky.images, GAIN, sky.psf, positions, PsfFitParams())


def test_fluxes_are_unbiased_where_there_is_nothing_little_or_less_than_nothing(psf):
    """Fluxes of -600 to 600 DN, S/N 18 at most, 1100 of them: each flux alone, and the whole."""
    pulls, levels = [], np.array([-600.0, -100, 0, 60, 600])
    for seed in range(24):
        stars = grid_stars(SHAPE, 17, 1.0, seed)
        stars[:, 2] = levels[np.arange(len(stars)) % 5]
        table = forced(exposure(psf, stars, 50 + seed), stars[:, :2])
        pulls.append(np.column_stack([stars[:, 2], (table["flux"] - stars[:, 2]) / table["sigflux"]]))
    pulls = np.concatenate(pulls)
    assert len(pulls) > 1000
    for level in levels:
        pull = pulls[pulls[:, 0] == level, 1]
        assert abs(pull.mean()) < 3.5 / np.sqrt(pull.size)
        assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * pull.size))


def test_rows_are_in_the_order_of_the_positions(psf):
    stars = grid_stars(SHAPE, 15, (300, 9000), 1)
    sky, order = exposure(psf, stars, 1), np.random.default_rng(2).permutation(len(stars))
    one, other = forced(sky, stars[:, :2]), forced(sky, stars[order, :2])
    np.testing.assert_array_equal(other["x"], stars[order, 0])
    np.testing.assert_array_equal(other["y"], stars[order, 1])
    assert other.tobytes() == one[order].tobytes()
    assert (one["flags"] & FIT_HELD).all() and (one["var_x"] == 0).all() and (one["cov_xy"] == 0).all()


def test_close_positions_share_the_light(psf):
    """Two positions 1 px apart: the fit is linear and tells what it does not know."""
    pulls = []
    for seed in range(60):
        stars = np.array([[60.2, 60.4, 3000.0], [61.2, 60.4, 1000.0]])
        table = forced(exposure(psf, stars, seed), stars[:, :2])
        pulls.append((table["flux"] - stars[:, 2]) / table["sigflux"])
    assert np.abs(np.mean(pulls, axis=0)).max() < 4 / np.sqrt(60)
    assert 0.75 < np.std(pulls) < 1.25
    assert (table["crowding"] > 0.5).all()


def test_among_known_stars_their_light_is_not_taken(psf):
    """4 px from a star 500 times as bright whose own flux is given 5% wrong."""
    pulls = []
    for seed in range(40):
        others = np.array([[60.3, 60.2, 250_000.0], [90.4, 31.0, 40_000.0]])
        target = np.array([[64.2, 60.9, 500.0], [92.9, 33.1, 300.0]])
        sky = exposure(psf, np.concatenate([others, target]), seed, half=30)
        table = force_in_scene(make_scene(sky.images, GAIN, psf, PsfFitParams()), others * [1, 1, 0.95], target[:, :2])
        pulls.append((table["flux"] - target[:, 2]) / table["sigflux"])
        alone = forced(sky, target[:, :2])
        assert alone["flux"][0] > 5 * target[0, 2]
    assert np.abs(np.mean(pulls, axis=0)).max() < 4 / np.sqrt(40)
    assert 0.7 < np.std(pulls) < 1.3


def test_a_known_star_at_the_position_is_not_fitted_twice(psf):
    stars = np.array([[60.3, 60.2, 20_000.0], [80.0, 80.0, 5000.0]])
    sky = exposure(psf, stars, 3)
    scene = make_scene(sky.images, GAIN, psf, PsfFitParams())
    table = force_in_scene(scene, stars, stars[:1, :2] + 0.01)
    assert table["flux"][0] == pytest.approx(20_000, abs=5 * table["sigflux"][0] + 100)
    assert table["crowding"][0] < 0.01


def test_places_without_pixels_are_nan_and_touch_nothing_else(psf):
    sky = exposure(psf, [[30.0, 30, 4000]], 4)
    sky.images[2][60:120, 60:120] = maskbits.DEAD
    places = np.array([[30, 30], [90, 90], [-30, 20], [139.6, 50], [50.0, 1e6]])
    table = forced(sky, places)
    assert np.isfinite(table["flux"][0]) and np.isnan(table["flux"][1:]).all() and np.isnan(table["sigflux"][1:]).all()
    assert (table["n_pix"][1:] == 0).all()
    np.testing.assert_array_equal(np.column_stack([table["x"], table["y"]]), places)
    assert table["flux"][0] == forced(sky, places[:1])["flux"][0]


def test_no_position_and_no_image(psf):
    sky = exposure(psf, [], 5)
    assert len(forced(sky, np.zeros((0, 2)))) == 0
    sky.images[2][:] = maskbits.DEAD
    assert np.isnan(forced(sky, np.array([[5.0, 5.0]]))["flux"]).all()
    with pytest.raises(BadInput, match="1 positions"):
        forced(sky, np.array([[5.0, np.nan], [3, 3]]))


def test_error_of_the_flux_is_that_of_the_optimal_weights(psf):
    sky = exposure(psf, [], 6)
    table = forced(sky, np.array([[60.25, 61.4]]))
    stamp = paint(psf, [60.25, 61.4, 1.0], 6)
    assert table["sigflux"][0] == pytest.approx(SKY_SIGMA / np.sqrt((stamp**2).sum()), rel=0.01)
