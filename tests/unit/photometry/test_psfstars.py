"""Which fitted stars show the point-spread function, and their windows."""

import numpy as np
import pytest

from tests.unit.photometry.psfscene import exposure, fitter_of, grid_stars, make_psf, paint
from zsds_hpc.core import maskbits
from zsds_hpc.photometry.psffit import FIT_SATURATED
from zsds_hpc.photometry.psfstars import PsfStarParams, cut_stars, select_stars

SHAPE = (240, 250)
SATURATE_DN = 50_000.0


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE)


def chosen(fitter, **changes):
    """Places of the stars chosen, in their order."""
    rows = select_stars(fitter, SATURATE_DN, PsfStarParams(**changes))
    return rows, fitter.stars.value[rows]


def fitter_with(psf, stars, seed=1, edit=None):
    sky = exposure(psf, stars, seed)
    if edit is not None:
        edit(*sky.images)
    return fitter_of(sky.images, psf, stars, n_iterations=4)


def among(places, star):
    return bool((np.hypot(places[:, 0] - star[0], places[:, 1] - star[1]) < 1).any())


def test_bright_single_unsaturated_stars_are_chosen(psf):
    stars = np.array([
        [60, 60, 30_000], [120, 60, 800], [180, 60, 400_000], [60, 120, 30_000], [63.2, 120, 20_000],
        [120, 120, 30_000], [123, 120.5, 6_000], [180, 120, 30_000], [5, 180, 30_000], [120, 180, 30_000],
    ])  # fmt: skip

    def edit(pix, rms, mask):
        mask[121, 181] = maskbits.DEAD  # within the core
        mask[185:188, 110:130] = maskbits.DEAD  # three rows of the window of the last one: 20%

    fitter = fitter_with(psf, stars, edit=edit)
    rows, places = chosen(fitter)
    assert [among(places, s) for s in stars] == [True, False, False, False, False, True, False, False, False, False]
    assert len(rows) == 2
    fitter.stars.flags[rows[0]] = FIT_SATURATED
    assert len(chosen(fitter)[0]) == 1


def test_thresholds_are_those_of_the_parameters(psf):
    stars = grid_stars(SHAPE, 24, (500, 300_000), 2)
    fitter = fitter_with(psf, stars)
    rows, _ = chosen(fitter, min_snr=60.0, saturation_fraction=0.3)
    snr = fitter.stars.value[:, 2] * np.sqrt(fitter.stars.information[:, 0])
    peak = fitter.stars.value[:, 2] * psf.center(1)[1, 1]
    expected = (snr >= 60) & (peak < 0.3 * SATURATE_DN)
    inner = ((fitter.stars.middle > 15) & (fitter.stars.middle < 225)).all(axis=1)
    assert 20 < len(rows) < len(stars)
    assert set(np.flatnonzero(expected & inner)) <= set(rows) <= set(np.flatnonzero(expected))


def test_stars_are_spread_over_the_image(psf):
    """A corner with many bright stars does not take all the places."""
    stars = grid_stars(SHAPE, 16, 6000.0, 3)
    corner = (stars[:, 0] < 125) & (stars[:, 1] < 120)
    stars[corner, 2] = np.linspace(50_000, 90_000, corner.sum())
    fitter = fitter_with(psf, stars)
    _, places = chosen(fitter, max_stars=40, n_parts=2)
    part = (places[:, 0] >= 125) * 2 + (places[:, 1] >= 120)
    assert np.bincount(part.astype(int)).tolist() == [10, 10, 10, 10]
    first = places[part == 0, 2]
    others = fitter.stars.value[(fitter.stars.value[:, :2] < [125, 120]).all(axis=1), 2]
    assert first.min() >= np.sort(others)[-20]
    assert (np.diff(places[:, 2]) <= 0).all(), "brightest first"


def test_no_star_and_no_suitable_star(psf):
    assert len(chosen(fitter_of(exposure(psf, [], 1).images, psf))[0]) == 0
    fitter = fitter_with(psf, grid_stars(SHAPE, 30, 500.0, 4))
    rows, _ = chosen(fitter)
    assert len(rows) == 0
    windows = cut_stars(fitter.scene, fitter.stars[rows], 9)
    assert windows.pix.shape == (0, 19, 19)


def test_windows_hold_the_star_alone(psf):
    stars = np.array([[100.3, 99.8, 40_000], [106.1, 103.0, 30_000], [150.2, 200.4, 20_000], [4.0, 120.3, 20_000]])
    fitter = fitter_with(psf, stars)
    data = [a.copy() for a in fitter.scene.images]
    half = 9
    windows = cut_stars(fitter.scene, fitter.stars, half)
    for before, after in zip(data, fitter.scene.images):
        np.testing.assert_array_equal(before, after)
    assert windows.pix.dtype == windows.var.dtype == np.float32
    for k, (x, y, flux) in enumerate(fitter.stars.value):
        alone, (mx, my) = paint(psf, [x, y, flux], half), fitter.stars.middle[k]
        rows, columns = np.arange(my - half, my + half + 1), np.arange(mx - half, mx + half + 1)
        inside = (columns >= 0)[None, :] & np.ones((rows.size, 1), bool)
        assert ((windows.var[k] > 0) == inside).all()
        light = alone[np.ix_(rows, columns.clip(0))]
        pull = ((windows.pix[k] - light) / np.sqrt(np.maximum(windows.var[k], 1e-9)))[inside]
        assert 0.85 < pull.std() < 1.15 and np.abs(pull).max() < 5


def test_dead_pixels_and_the_border_have_no_variance(psf):
    stars = np.array([[100.0, 100, 40_000], [249.0, 239.0, 40_000]])

    def edit(pix, rms, mask):
        pix[104, 97] = np.nan

    fitter = fitter_with(psf, stars, edit=edit)
    windows = cut_stars(fitter.scene, fitter.stars, 6)
    assert windows.var[0, 10, 3] == -1 and (windows.var[0] > 0).sum() == 168
    assert (windows.var[1] > 0).sum() == 49 and (windows.var[1, :7, :7] > 0).all()
    assert np.isfinite(windows.pix).all()
