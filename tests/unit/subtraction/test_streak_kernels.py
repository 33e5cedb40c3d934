"""Kernels of the search for streaks against slow, obvious code."""

import numpy as np
import pytest
from scipy import integrate, ndimage

from tests.unit.photometry.psfscene import make_psf, star
from zsds_hpc.kernels import streaks as kernel
from zsds_hpc.subtraction.streak_trail import along_and_across, local_tables, planes, trail_images

TAPS = np.convolve(np.exp(-0.5 * (np.arange(-3, 4) / 0.9) ** 2), [0.5, 0.5]).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 64), (41, 63), (6, 9)])
def test_filter_and_bin_is_a_filter_of_the_clipped_signal(shape):
    rng = np.random.default_rng(1)
    pix, sigma = rng.normal(0, 8, shape).astype(np.float32), rng.uniform(5, 9, shape).astype(np.float32)
    pix[2, 3], sigma[4, 5], pix[1, 7] = np.nan, np.inf, 900.0
    signal = np.clip(np.nan_to_num(pix / sigma), -6, 6)
    n_y, n_x = (n // 2 for n in shape)
    signal = signal[:, : 2 * n_x].astype(float)
    m = TAPS.size // 2
    slow = np.zeros((n_y, n_x))
    padded = np.pad(signal, m + 1)
    for y in range(n_y):
        for x in range(n_x):
            window = padded[2 * y + 2 : 2 * y + 2 + 2 * m, 2 * x + 2 : 2 * x + 2 + 2 * m]
            slow[y, x] = TAPS @ window @ TAPS
    fast = kernel.filter_and_bin(pix, sigma, TAPS, 6.0)
    assert fast.shape == (n_y, n_x)
    assert np.abs(fast - slow).max() < 1e-4


def test_level_is_interpolated_between_cells_and_empty_bins_stay_empty():
    bins = np.ones((40, 60), np.float32)
    bins[7, 8] = 0
    level = np.random.default_rng(2).normal(0, 1, (4, 5)).astype(np.float32)
    y, x = (np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in zip(bins.shape, level.shape))
    expected = 1 - ndimage.map_coordinates(level, np.meshgrid(y, x, indexing="ij"), order=1)
    kernel.subtract_level_inplace(bins, level)
    assert bins[7, 8] == 0
    bins[7, 8] = expected[7, 8]
    assert np.abs(bins - expected).max() < 1e-5


def path_of(height, moved):
    """Columns of a line of the fast Radon transform, by its own recursion."""
    if height == 1:
        return np.zeros(1, int)
    half = path_of(height // 2, moved // 2)
    return np.concatenate([half, half + moved - moved // 2])


def slow_lines(image, per_sigma, least, first_height):
    """Best line of every 64 columns of every strip, one by one."""
    n_levels = len(per_sigma)
    top = 1 << n_levels
    padded = np.pad(image, ((0, 2 * top), (top, 2 * top)))
    found = {}
    for level in range(n_levels):
        height = 2 << level
        if height < first_height:
            continue
        paths = [path_of(height, d) for d in range(height)]
        for y0 in range(0, image.shape[0] - height // 2, height // 2):
            for x0 in range(-(top // 2), image.shape[1]):
                sums = [
                    padded[y0 + np.arange(height), x0 + top + p].sum() * per_sigma[level, d]
                    for d, p in enumerate(paths)
                ]
                d = int(np.argmax(sums))
                key = height, y0, (x0 + top // 2) // 64
                if sums[d] > max(least, found.get(key, (0,))[0]):
                    found[key] = sums[d], d, x0
    return found


@pytest.mark.parametrize("view", ["plain", "mirrored", "transposed"])
def test_best_lines_are_those_of_all_lines(view):
    rng = np.random.default_rng(3)
    image = np.rint(rng.normal(0, 1, (64, 160)) * 16).astype(np.float32) / 16  # whole units of the integer sums
    image[np.arange(20, 45), 30 + np.arange(25) // 2] += 2
    image[np.arange(30, 62), 90 + np.arange(32)] += 2
    image = {"plain": image, "mirrored": image[:, ::-1], "transposed": np.ascontiguousarray(image.T).T}[view]
    per_sigma = np.zeros((5, 32), np.float32)
    for level in range(5):
        per_sigma[level, : 2 << level] = (2 << level) ** -0.5
    clip = 4.0
    slow = slow_lines(np.clip(image, -clip, clip), per_sigma, 3.5, 8)
    fast = kernel.best_lines(image, per_sigma, 3.5, clip, 8)
    by_key = {(int(h), int(y0), int((x0 + 16) // 64)): (snr, d, x0) for h, y0, d, x0, snr in fast}
    inside = {k: v for k, v in slow.items() if k[1] + k[0] <= image.shape[0]}
    assert len(inside) > 5
    assert set(inside) <= set(by_key)
    for key, (snr, _, _) in inside.items():
        assert by_key[key][0] == pytest.approx(snr, abs=0.02)


def test_best_lines_of_nothing_and_of_small_maps():
    per_sigma = np.full((7, 128), 0.1, np.float32)
    assert kernel.best_lines(np.zeros((300, 200), np.float32), per_sigma, 3.0, 4.0, 8).shape == (0, 5)
    assert kernel.best_lines(np.ones((3, 5), np.float32), per_sigma, 3.0, 4.0, 8).shape == (0, 5)


@pytest.fixture(scope="module")
def psf():
    return make_psf((200, 220), fwhm=2.1)


def test_trail_is_the_integral_of_the_star_along_it(psf):
    ends = np.array([90.3, 80.2, 110.9, 95.4])
    length = np.hypot(20.6, 15.2)
    y, x = np.mgrid[70:106, 80:122]
    pixels = np.stack([x.ravel(), y.ravel()]).astype(float)
    tables = local_tables(psf, (100.6, 87.8), np.arctan2(15.2, 20.6))
    image = trail_images(tables, pixels, ends[None])[0].reshape(x.shape)
    for px, py in ((100, 88), (95, 83), (90, 81), (103, 86), (112, 96), (99, 90)):

        def light(part, px=px, py=py):
            sx, sy = ends[0] + part * 20.6, ends[1] + part * 15.2
            half = 9
            i, j = px - int(np.rint(sx)), py - int(np.rint(sy))
            return star(psf, sx, sy, half)[0][half + j, half + i] if max(abs(i), abs(j)) <= half else 0.0

        near = [((px - ends[0]) * 20.6 + (py - ends[1]) * 15.2) / length**2 + d for d in (-0.1, 0, 0.1)]
        points = sorted({min(max(p, 0), 1) for p in near})
        expected, _ = integrate.quad(light, 0, 1, points=points, limit=200, epsabs=1e-7)
        # The table holds the PSF of the trail's middle; it changes a little along the trail.
        assert image[py - 70, px - 80] == pytest.approx(expected, abs=0.015 * image.max())


def test_trail_of_no_length_is_a_star(psf):
    y, x = np.mgrid[80:101, 90:111]
    tables = local_tables(psf, (100.3, 90.2), 0.0)
    pixels = np.stack([x.ravel(), y.ravel()]).astype(float)
    image = trail_images(tables, pixels, np.array([[100.3, 90.2, 100.3, 90.2]]))[0].reshape(21, 21)
    expected = star(psf, 100.3, 90.2, 10)[0]
    inside = np.hypot(x - 100.3, y - 90.2) < 6
    assert np.abs(image - expected)[inside].max() < 0.003 * expected.max()


def test_derivatives_are_those_of_the_trail(psf):
    tables = local_tables(psf, (100.0, 90.0), 0.4)
    rng = np.random.default_rng(4)
    places = np.stack([rng.uniform(-12, 12, 300), rng.uniform(-4, 4, 300)])
    step = 0.02
    value = planes(tables, places, -7.3, 6.1)
    shifted = np.stack([places[0], places[1] - step]), np.stack([places[0], places[1] + step])
    numeric = [
        planes(tables, places, -7.3 + step, 6.1)[0] - planes(tables, places, -7.3 - step, 6.1)[0],
        planes(tables, places, -7.3, 6.1 + step)[0] - planes(tables, places, -7.3, 6.1 - step)[0],
        planes(tables, shifted[0], -7.3, 6.1)[0] - planes(tables, shifted[1], -7.3, 6.1)[0],
    ]
    for own, other in zip(value[1:], numeric):
        assert np.abs(own - other / (2 * step)).max() < 0.01 * np.abs(own).max()


def test_along_and_across_turn_to_the_left():
    u, v = along_and_across(np.array([[3.0, 1.0], [4.0, 7.0]]), np.array([1.0, 2.0, 5.0, 6.0]))
    assert u == pytest.approx([0, 2**0.5 / 2])
    assert v == pytest.approx([0, 2.5 * 2**0.5])
