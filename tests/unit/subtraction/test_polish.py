"""Correction of the matched reference on the stars: a known error of the kernel is found, variable stars are not."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage
from zsds_hpc.kernels.convolve import convolve_blocks

from tests.helpers import diffsky
from tests.helpers.diffsky import GAIN_E, SHAPE, SKY_SIGMA, Profile
from zsds_hpc.core import maskbits
from zsds_hpc.subtraction import polish
from zsds_hpc.subtraction.images import SOURCE_DTYPE
from zsds_hpc.subtraction.polish import PolishParams

PROFILE = Profile(2.2)
ERROR = np.array([[0.0, 0.02, 0.0], [-0.01, -0.04, 0.03], [0.0, 0.0, 0.01]])  # (y, x): what the kernel lacks


def grid_of_stars(n=14, seed=4, brightest=60_000.0):
    """Stars far from one another: pixels and fluxes."""
    rng = np.random.default_rng(seed)
    step = (SHAPE[1] - 60) / (n - 1)
    x, y = (30 + step * a.ravel() + rng.uniform(-2, 2, n * n) for a in np.meshgrid(np.arange(n), np.arange(n)))
    return x, y, rng.uniform(brightest**-0.6, 3000.0**-0.6, n * n) ** (-1 / 0.6)


@cache
def scene(noise=True, error_x=0.0):
    """Science, reference without noise and sources; the science image is the reference and `ERROR` of it."""
    x, y, flux = grid_of_stars()
    reference = diffsky.draw(x, y, flux, PROFILE, np.arange(SHAPE[1]), np.arange(SHAPE[0]))
    u = 2 * np.arange(SHAPE[1]) / (SHAPE[1] - 1) - 1
    science = reference + (1 + error_x * u) * ndimage.convolve(reference, ERROR)
    if noise:
        rng = np.random.default_rng(6)
        science = science + rng.normal(0, 1, SHAPE) * np.sqrt(SKY_SIGMA**2 + reference / GAIN_E)
    sources = np.zeros(len(x), SOURCE_DTYPE)
    sources["x"], sources["y"], sources["flux"], sources["snr"] = x, y, flux, flux / 30
    return science.astype(np.float32), reference.astype(np.float32), sources


def windows_of(science, reference, sources, mask=None, **params):
    mask = np.zeros(SHAPE, np.int16) if mask is None else mask
    return polish.star_windows((science, reference, mask), SKY_SIGMA**2, sources, GAIN_E, PolishParams(**params))


def test_a_known_error_is_found():
    windows = windows_of(*scene())
    coefficients, used = polish.fit_correction(windows, SHAPE, PolishParams())
    image = coefficients[0]
    assert coefficients.shape == (6, 9, 9) and used.mean() > 0.97
    # single elements are drawn to zero where their neighbours can do for them: what counts is what they do to a star
    assert np.abs(image[3:6, 3:6] - ERROR).max() < 0.02
    steps = np.arange(-10, 11)
    star = PROFILE.at(steps[None] - 0.3, steps[:, None] + 0.2, 200.0)
    wrong = ndimage.convolve(star, image) - ndimage.convolve(star, ERROR)
    print("error of a star", np.abs(wrong).max() / star.max())
    assert np.abs(wrong).max() < 0.002 * star.max() and np.abs(coefficients[1:]).max() < 0.02


def test_the_correction_applied_takes_it_away():
    """Also where the error changes over the image; left on the stars is noise alone."""
    science, reference, sources = scene(error_x=0.5)
    windows = windows_of(science, reference, sources)
    coefficients, _ = polish.fit_correction(windows, SHAPE, PolishParams())
    y, x = ((np.arange(6) + 0.5) * n / 6 - 0.5 for n in SHAPE)
    at = tuple(np.meshgrid(x, y))
    corrected = np.empty_like(reference)
    convolve_blocks(reference, polish.correction_of_blocks(coefficients, SHAPE, at), corrected)
    rms = {}
    for name, image in (("before", reference), ("after", corrected)):
        ratio = (science - image) / np.sqrt(SKY_SIGMA**2 + reference / GAIN_E)
        rms[name] = np.sqrt(np.mean([np.mean(cut(ratio, s) ** 2) for s in sources]))
    left = polish.residuals(windows, coefficients, SHAPE, PolishParams())
    chi = np.sqrt(np.mean(left[:, 5:12, 5:12] ** 2 / windows.var[:, 5:12, 5:12]))
    print(rms, chi)
    assert rms["before"] > 1.4 and rms["after"] < 1.1 and 0.85 < chi < 1.05


def cut(image, source, half=3):
    x, y = round(source["x"]), round(source["y"])
    return image[y - half : y + half + 1, x - half : x + half + 1]


def test_variable_stars_are_left_out():
    science, reference, sources = scene()
    science, variable = science.copy(), np.arange(0, len(sources), 12)
    for k in variable:
        cut(science, sources[k], 10)[:] += 0.15 * cut(reference, sources[k], 10)
    windows = windows_of(science, reference, sources)
    coefficients, used = polish.fit_correction(windows, SHAPE, PolishParams())
    truth = sources[variable]
    is_variable = (np.hypot(windows.x[:, None] - truth["x"], windows.y[:, None] - truth["y"]) < 3).any(axis=1)
    assert is_variable.sum() == len(variable)
    assert used[is_variable].mean() < 0.15 and used[~is_variable].mean() > 0.95
    assert np.abs(coefficients[0][3:6, 3:6] - ERROR).max() < 0.02


def test_the_brightest_are_not_taken_for_variable_where_no_kernel_fits():
    """What every star lacks in proportion to its flux shows in the bright ones: they are no exception."""
    science, reference, sources = scene()
    fine = np.random.default_rng(9).normal(0, 0.012, (9, 9))  # no kernel makes this of a star that is wider
    science = science.copy()
    for source in sources:
        cut(science, source, 4)[:] += fine * 0.15 * source["flux"]
    windows = windows_of(science, reference, sources)
    _, used = polish.fit_correction(windows, SHAPE, PolishParams())
    brightest = np.argsort(-windows.flux)[:20]
    assert used[brightest].mean() > 0.85 and used.mean() > 0.95


def test_too_few_stars_correct_nothing():
    science, reference, sources = scene()
    for n in (0, 1, 9):
        windows = windows_of(science, reference, sources[:n])
        coefficients, used = polish.fit_correction(windows, SHAPE, PolishParams())
        assert not coefficients.any() and len(used) == n
        assert polish.measure_misfit(windows.rest, windows, used, 4).n_stars == n


def test_windows_keep_away_from_borders_faint_stars_and_bad_pixels():
    science, reference, sources = scene()
    sources, mask = sources.copy(), np.zeros(SHAPE, np.int16)
    sources["x"][0], sources["snr"][1] = 5.0, 20.0
    mask[round(sources["y"][2]) + 8, round(sources["x"][2])] = maskbits.DEAD
    mask[round(sources["y"][3]), round(sources["x"][3])] = maskbits.SOURCE
    windows = windows_of(science, reference, sources, mask)
    place = set(zip(windows.x.tolist(), windows.y.tolist()))
    found = [(round(s["x"]), round(s["y"])) in place for s in sources[:5]]
    assert found == [False, False, False, True, True] and len(windows.x) == len(sources) - 3
    few = windows_of(science, reference, sources, mask, max_stars=16, cells=4)
    assert len(few.x) == 16 and len({(x * 4 // SHAPE[1], y * 4 // SHAPE[0]) for x, y in zip(few.x, few.y)}) == 16


@pytest.mark.parametrize(("gain", "shift"), [(0.0, 0.0), (0.02, 0.0), (0.0, 0.05), (0.015, 0.04)])
def test_errors_in_proportion_to_the_flux_and_its_slope_are_measured(gain, shift):
    """Each pixel's factor and each star's offset drawn at random."""
    x, y, flux = grid_of_stars()
    rng = np.random.default_rng(7)
    axes = np.arange(SHAPE[1]), np.arange(SHAPE[0])
    reference = diffsky.draw(x, y, flux, PROFILE, *axes)
    dx, dy = rng.normal(0, shift / np.sqrt(2), (2, len(x)))
    science = diffsky.draw(x + dx, y + dy, flux, PROFILE, *axes) + gain * rng.normal(size=SHAPE) * reference
    science += rng.normal(0, 1, SHAPE) * np.sqrt(SKY_SIGMA**2 + reference / GAIN_E)
    _, _, sources = scene()
    windows = windows_of(science.astype(np.float32), reference.astype(np.float32), sources)
    found = polish.measure_misfit(windows.rest, windows, np.ones(len(windows.x), bool), 4)
    middle = (slice(None), slice(5, 12), slice(5, 12))
    star = windows.reference[:, 4:-4, 4:-4][middle]
    slope2 = sum(g[:, 4:-4, 4:-4][middle] ** 2 for g in np.gradient(windows.reference, axis=(1, 2))) / 2
    expected = windows.var[middle] + found.gain**2 * star**2 + found.shift_pix**2 * slope2
    pull = float(np.sqrt(np.mean(windows.rest[middle] ** 2 / expected)))
    print(found, pull)
    assert 0.93 < pull < 1.07, "errors that are added explain what is left"
    assert (found.chi < 1.05) == (gain == shift == 0)
    if not shift:
        assert abs(found.gain - gain) < 0.004 and found.shift_pix < 0.01
    elif not gain:
        assert abs(found.shift_pix - shift) < 0.01


def test_nothing_to_correct_is_a_point():
    """The correction of no coefficients leaves an image as it is."""
    kernel = polish.correction_of_blocks(np.zeros((1, 5, 5)), SHAPE, (np.full((2, 2), 10.0), np.full((2, 2), 9.0)))
    point = np.zeros((5, 5))
    point[2, 2] = 1
    assert kernel.shape == (2, 2, 5, 5) and (kernel == point).all()
