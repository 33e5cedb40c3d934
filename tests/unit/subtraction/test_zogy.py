"""Whitening: noise of neighbouring pixels, and the point-spread function that goes with it."""

import numpy as np
import pytest
from scipy import ndimage, signal

from tests.helpers.diffsky import SHAPE, Profile
from zsds_hpc.subtraction import psfmatch, zogy
from zsds_hpc.subtraction.psfmatch import Kernels, PsfMatchParams

SIZE = 256


def autocorrelation(noise):
    """Correlation of pixels one and two apart, along both axes, mean."""
    noise = noise - noise.mean()
    var = (noise**2).mean()
    return [
        float(((noise[:, k:] * noise[:, :-k]).mean() + (noise[k:] * noise[:-k]).mean()) / 2 / var) for k in (1, 2, 3)
    ]


def matching(science, reference):
    at = psfmatch.places(SHAPE, 2)
    return psfmatch.matching_kernels(science.model(), reference.model(), at, at, PsfMatchParams())


@pytest.mark.parametrize("noise_ratio", [0.4, 1.0, 3.0])
def test_noise_of_the_difference_becomes_white(noise_ratio):
    """Science noise white, reference noise white to the Nyquist frequency and then through the matching kernel."""
    kernels = matching(Profile(2.9), Profile(1.9))
    rng = np.random.default_rng(1)
    native = rng.normal(0, noise_ratio, (SIZE, SIZE))
    fine = signal.resample(signal.resample(native, 3 * SIZE // 2, axis=0), 3 * SIZE // 2, axis=1)
    matched = ndimage.convolve(fine, kernels.images[0], mode="wrap")
    sampled = signal.resample(signal.resample(matched, SIZE, axis=0), SIZE, axis=1)
    difference = rng.normal(0, 1, (SIZE, SIZE)) - sampled
    white = zogy.whitening_kernels(kernels, noise_ratio, 1.5, 6)
    before, after = (
        autocorrelation(a) for a in (difference, ndimage.convolve(difference, white.images[0], mode="wrap"))
    )
    print(np.round(before, 3), np.round(after, 3))
    assert np.abs(after).max() < 0.02
    assert before[0] > (0.04 if noise_ratio == 1 else 0.25) or noise_ratio < 1


def test_without_noise_of_the_reference_nothing_is_done():
    white = zogy.whitening_kernels(matching(Profile(2.9), Profile(1.9)), 0.0, 1.5, 6)
    point = np.zeros((13, 13))
    point[6, 6] = 1
    assert white.images.shape == (4, 13, 13) and np.abs(white.images - point).max() < 1e-9


def test_kernels_have_unit_sum_and_are_round_for_round_stars():
    white = zogy.whitening_kernels(matching(Profile(2.6), Profile(1.9)), 1.0, 1.5, 6).images
    assert np.allclose(white.sum(axis=(1, 2)), 1)
    assert np.abs(white - white[:, ::-1, ::-1]).max() < 0.01 and np.abs(white - white.swapaxes(1, 2)).max() < 0.01


def test_a_model_convolved_is_the_image_convolved():
    """At several phases and places; kernels that change over the image."""
    profile, rng = Profile(2.2, trend=0.05), np.random.default_rng(2)
    x, y = psfmatch.places(SHAPE, 4)
    base = np.zeros((9, 9))
    base[2:7, 2:7] = rng.normal(0, 0.05, (5, 5))
    base[4, 4] += 1
    tilt = np.zeros((9, 9))
    tilt[4, 5], tilt[4, 4] = 0.1, -0.1
    images = base / base.sum() + (x / 400 - 0.5)[:, None, None] * tilt
    model = zogy.convolved(profile.model(), Kernels(images, x, y))
    for at in ((200.0, 200.0), (60.3, 333.8), (351.5, 40.2)):
        kernel = base / base.sum() + (at[0] / 400 - 0.5) * tilt
        steps = np.arange(-12, 13)
        dx, dy = (steps - (a - np.rint(a)) for a in at)
        expected = signal.fftconvolve(profile.at(dx[None], dy[:, None], at[0]), kernel, mode="same")[4:-4, 4:-4]
        image = model.images(np.array([at[0]]), np.array([at[1]]), 8)[0]
        assert np.abs(image - expected).max() < 0.004 * expected.max()
