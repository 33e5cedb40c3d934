"""The matched filter and its peaks against correlations by scipy."""

import numpy as np
import pytest
from scipy import ndimage
from zsds_hpc.kernels.psfpeaks import find_peaks

from tests.unit.photometry.psfscene import (
    GAIN,
    SKY_SIGMA,
    exposure,
    fitter_of,
    grid_stars,
    make_psf,
    nearest_rows,
    star,
)
from zsds_hpc.photometry.psfdetect import PsfDetectParams, local_filters, local_peaks

SHAPE = (150, 170)
HALF = 4


def scene_of(images, psf, stars=()):
    return fitter_of(images, psf, stars).scene


def reference_peaks(images, noise, filters, least_snr, least_share, block_x):
    """Peaks by correlation with the filter of each tile; rows as of `find_peaks`."""
    data, model, variance = (a.astype(float) for a in images)
    light = np.maximum(model, 0)
    weight = 1 / (variance + noise[0] * light + noise[1] * light**2)
    n_y, n_x = data.shape
    tiles_y, tiles_x = filters.shape[:2]
    tile_y = np.arange(n_y) * tiles_y // n_y
    edges = np.arange(block_x + 1) * n_x // block_x
    tile_x = np.repeat((edges[:-1] + edges[1:]) // 2 * tiles_x // n_x, np.diff(edges))
    planes = np.zeros((3, n_y, n_x))
    for j in range(tiles_y):
        for i in range(tiles_x):
            p = filters[j, i].astype(float)
            part = (tile_y == j)[:, None] & (tile_x == i)
            sums = [(weight * (data - model), p), (weight, p**2), (weight > 0, p**2 / (p**2).sum())]
            for plane, (image, kernel) in zip(planes, sums):
                plane[part] = ndimage.correlate(image.astype(float), kernel, mode="constant")[part]
    top, bottom, share = planes
    snr = top / np.sqrt(bottom + 1e-30)
    padded, found = np.pad(snr, 1), []
    for y in range(n_y):
        for x in range(n_x):
            near = padded[y : y + 3, x : x + 3].copy()
            near[1, 1] = -np.inf
            if snr[y, x] > least_snr and snr[y, x] > near.max() and share[y, x] >= least_share:
                at = [v + _summit(*line) for v, line in ((x, padded[y + 1, x : x + 3]), (y, padded[y : y + 3, x + 1]))]
                found.append([*at, top[y, x] / bottom[y, x], snr[y, x], model[y, x]])
    return np.array(found).reshape(-1, 5)


def _summit(left, middle, right):
    return 0.5 * (right - left) / (2 * middle - left - right)


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3)])
def test_peaks_are_those_of_correlations(tiles):
    rng = np.random.default_rng(3)
    model = np.abs(rng.normal(0, 30, SHAPE))
    data = model + rng.normal(0, 8, SHAPE)
    variance = rng.uniform(40, 90, SHAPE)
    variance[rng.random(SHAPE) < 0.02], variance[60:75, 100:120] = np.inf, np.inf
    images = tuple(a.astype(np.float32) for a in (data, model, variance))
    filters = (star(make_psf(SHAPE), 80.0, 70.0, HALF)[0] * rng.uniform(0.8, 1.2, (*tiles, 9, 9))).astype(np.float32)
    noise = (1 / GAIN, 1e-3)
    found = find_peaks(images, noise, filters, np.ones((5, 6), np.uint8), 1.5, 0.4)
    expected = reference_peaks(images, noise, filters, 1.5, 0.4, 6)
    assert len(found) == len(expected) > 30
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_wide_filters_take_the_general_path():
    rng = np.random.default_rng(4)
    images = tuple(a.astype(np.float32) for a in (rng.normal(0, 8, SHAPE), np.zeros(SHAPE), np.full(SHAPE, 64.0)))
    filters = np.exp(-0.5 * (np.hypot(*np.mgrid[-9:10, -9:10]) / 3) ** 2)[None, None].astype(np.float32)
    found = find_peaks(images, (0.0, 0.0), filters, np.ones((1, 1), np.uint8), 1.0, 0.4)
    np.testing.assert_allclose(found, reference_peaks(images, (0, 0), filters, 1.0, 0.4, 1), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "place", [(80.3, 70.4), (0.2, 60.0), (169.3, 60.0), (60.0, -0.3), (60.0, 149.4), (0, 0), (169, 149), (0, 149)]
)
def test_a_star_is_found_where_it_is(place):
    psf = make_psf(SHAPE)
    sky = exposure(psf, [*place, 2000.0], 5)
    found = local_peaks(scene_of(sky.images, psf), PsfDetectParams(detect_sigma=10))
    assert len(found) == 1
    inside = 5 < place[0] < 160 and 5 < place[1] < 140
    assert np.hypot(found["x"] - place[0], found["y"] - place[1]) < (0.2 if inside else 0.8)
    weighted = np.sum(star(psf, 80.0, 70.0, HALF)[0] ** 2)
    assert found["flux"][0] == pytest.approx(2000, rel=0.25)
    if inside:
        assert found["snr"][0] == pytest.approx(found["flux"][0] * np.sqrt(weighted) / SKY_SIGMA, rel=0.02)


def test_filters_are_the_psf_at_the_middle_of_each_tile():
    psf = make_psf(SHAPE)
    filters = local_filters(psf, 60, HALF)
    assert filters.shape == (2, 3, 9, 9)
    for j, y in enumerate((37, 112)):
        for i, x in enumerate((28, 84, 141)):
            np.testing.assert_allclose(filters[j, i], star(psf, float(x), float(y), HALF)[0], atol=1e-4)


def test_what_is_modelled_is_not_found_again_but_a_neighbour_is():
    psf = make_psf(SHAPE)
    stars = grid_stars(SHAPE, 30, 20000.0, 6)
    faint = stars + [3.0, 0.5, -18500]
    sky = exposure(psf, np.concatenate([stars, faint]), 7)
    first = local_peaks(scene_of(sky.images, psf), PsfDetectParams())
    assert len(first) == len(stars)
    second = local_peaks(scene_of(sky.images, psf, stars), PsfDetectParams())
    row, distance = nearest_rows(second, faint)
    assert len(second) == len(faint) and distance.max() < 0.6
    np.testing.assert_allclose(second["flux"][row], faint[:, 2], rtol=0.35)
    assert (second["model"] > 10).all()


def test_false_peaks_of_noise():
    """Of white noise over 25,500 px: 2.3 sigma maxima, as by correlation; hardly one above 4.8."""
    psf = make_psf(SHAPE)
    n = [len(local_peaks(scene_of(exposure(psf, [], seed).images, psf), PsfDetectParams())) for seed in range(20)]
    assert sum(n) <= 4


def test_search_near_places_gives_the_same_peaks_there():
    psf, shape = make_psf((300, 320)), (300, 320)
    sky = exposure(psf, grid_stars(shape, 22, (400, 4000), 8), 9)
    scene = scene_of(sky.images, psf)
    params, places = PsfDetectParams(detect_sigma=3), np.array([[40.0, 200.0], [250.0, 80.0], [-3.0, 5.0]])
    every, some = local_peaks(scene, params), local_peaks(scene, params, places)
    assert 0 < len(some) < len(every) / 2
    near = np.hypot(every["x"][:, None] - places[:, 0], every["y"][:, None] - places[:, 1]).min(axis=1) < 2 * HALF
    inner = {tuple(row) for row in some.tolist()}
    assert near.sum() >= 1
    assert {tuple(row) for row in every[near].tolist()} <= inner


def test_masked_image_and_empty_image():
    psf = make_psf(SHAPE)
    sky = exposure(psf, [80.0, 70.0, 5000.0], 10)
    sky.images[2][:] = 1 << 4
    assert len(local_peaks(scene_of(sky.images, psf), PsfDetectParams())) == 0
    sky.images[2][:] = 0
    sky.images[0][:] = 0
    assert len(local_peaks(scene_of(sky.images, psf), PsfDetectParams())) == 0


def test_a_star_half_on_dead_pixels():
    """Its share decides; the flux is that of the pixels that are left."""
    psf = make_psf(SHAPE)
    sky = exposure(psf, [80.0, 70.0, 9000.0], 11)
    sky.images[0][:, 81:90] = np.nan
    scene = scene_of(sky.images, psf)
    found = local_peaks(scene, PsfDetectParams(detect_sigma=15))
    assert len(found) == 1 and found["flux"][0] == pytest.approx(9000, rel=0.1)
    strict = local_peaks(scene, PsfDetectParams(detect_sigma=15, least_share=0.95))
    assert not (np.hypot(strict["x"] - 80, strict["y"] - 70) < 1.5).any()


def test_same_bits_twice():
    psf = make_psf(SHAPE)
    scene = scene_of(exposure(psf, grid_stars(SHAPE, 20, (300, 9000), 12), 13).images, psf)
    assert local_peaks(scene, PsfDetectParams()).tobytes() == local_peaks(scene, PsfDetectParams()).tobytes()
