"""Kernels between two point-spread functions: K * P_r = P_s for analytic profiles, at places of the star in its pixel
that the fit did not see."""

from functools import cache

import numpy as np
import pytest
from scipy import signal

from tests.helpers.diffsky import SHAPE, Profile
from zsds_hpc.subtraction import psfmatch
from zsds_hpc.subtraction.psfmatch import Kernels, PsfMatchParams

FINE = 2 / 3
HALF = 14


@cache
def kernels_for(science, reference):
    """Kernels at 2 x 2 places, the reference unturned under the science image."""
    at = psfmatch.places(SHAPE, 2)
    return psfmatch.matching_kernels(science.model(), reference.model(), at, at, PsfMatchParams())


def left_over(kernel, science, reference, x, phase):
    """science - kernel * reference on the fine grid, for a star off its pixel by `phase` fine px, over the peak."""
    steps = FINE * np.arange(-30, 31)
    dx, dy = steps[None] - FINE * phase[0], steps[:, None] - FINE * phase[1]
    matched = signal.fftconvolve(reference.at(dx, dy, x), kernel, mode="same")
    expected = science.at(dx, dy, x)
    inner = slice(30 - HALF, 30 + HALF + 1)
    return (matched - expected)[inner, inner] / expected.max()


@pytest.mark.parametrize("ratio", [1.2, 1.35, 1.5])
@pytest.mark.parametrize("phase", [(0.0, 0.0), (0.21, -0.37), (0.5, 0.5)])
def test_wider_science_images_are_matched_to_a_fifth_of_a_percent(ratio, phase):
    reference, science = Profile(1.9), Profile(1.9 * ratio)
    kernels = kernels_for(science, reference)
    left = left_over(kernels.images[0], science, reference, kernels.x[0], phase)
    print(f"{np.abs(left).max():.5f} of the peak")
    assert np.abs(left).max() < 0.002
    assert abs(kernels.images[0].sum() - 1) < 0.01  # the wings, which it does not reach, are corrected apart


def test_other_shapes_are_matched():
    """Drawn out, with other wings, and both changing over the image: each place has its own kernel."""
    reference, science = Profile(1.9, 3.5, trend=-0.04), Profile(2.5, 2.8, axis_ratio=1.15, trend=0.05)
    kernels = kernels_for(science, reference)
    for k in range(len(kernels.x)):
        left = left_over(kernels.images[k], science, reference, kernels.x[k], (0.3, -0.2))
        assert np.abs(left).max() < 0.003
    assert np.abs(kernels.images[0] - kernels.images[1]).max() > 0.005


def test_equal_images_need_only_a_point():
    profile = Profile(2.2)
    image = kernels_for(profile, profile).images[0]
    middle = image.shape[0] // 2
    assert abs(image[middle, middle] - 1) < 0.02 and abs(image.sum() - 1) < 1e-3
    assert np.abs(left_over(image, profile, profile, 200.0, (0.3, 0.1))).max() < 1e-3


def test_a_sharper_science_image_is_approached_without_ringing():
    """What the reference has lost does not come back; what is asked for is bounded."""
    reference, science = Profile(2.2), Profile(1.8)
    image = kernels_for(science, reference).images[0]
    left = left_over(image, science, reference, 200.0, (0.3, 0.1))
    unmatched = (reference.at(0.0, 0.0, 200.0) - science.at(0.0, 0.0, 200.0)) / science.at(0.0, 0.0, 200.0)
    print(f"{np.abs(left).max():.4f} of the peak, {abs(unmatched):.2f} without a kernel")
    assert np.abs(left).max() < 0.02 < 0.2 < abs(unmatched)
    assert np.square(image).sum() < 8 and abs(image.sum() - 1) < 0.01


def test_noise_does_not_grow_where_the_science_image_is_the_wider():
    images = kernels_for(Profile(2.6), Profile(1.9)).images
    assert (np.square(images).sum(axis=(1, 2)) < 0.4).all()


def test_the_ratio_of_two_fluxes_is_the_sum():
    """A model of more than unit flux: the kernel carries it."""
    science, reference = Profile(2.5).model(), Profile(1.9).model()
    brighter = type(science)(1.07 * science.coefficients, science.oversampling, science.degree, science.shape)
    at = psfmatch.places(SHAPE, 2)
    pair = [psfmatch.matching_kernels(s, reference, at, at, PsfMatchParams()) for s in (science, brighter)]
    sums = [k.images.sum(axis=(1, 2)) for k in pair]
    assert np.allclose(sums[1] / sums[0], 1.07, atol=1e-3)


def test_samples_are_the_profile():
    """All phases together are the profile on points a third of a px apart."""
    profile = Profile(2.0)
    samples = psfmatch.fine_samples(profile.model(), (np.array([200.0]), np.array([210.0])), 6, 2)
    assert samples.shape[:2] == (1, 4)
    n = samples.shape[-1]
    for number in range(4):
        b, a = divmod(number, 2)
        x = (a + 2 * np.arange(n) - 19) / 3
        y = (b + 2 * np.arange(n) - 19) / 3
        assert np.abs(samples[0, number] - profile.at(x[None], y[:, None], 200.0)).max() < 2e-4 * samples.max()


def test_wings_beyond_the_kernel_are_what_is_left():
    """science - k * reference on points a third of a px apart; nothing in the core; zero for equal images."""
    reference, science = Profile(1.9, 3.5), Profile(2.4, 2.5)
    params = PsfMatchParams()
    kernels = kernels_for(science, reference)
    wings = psfmatch.wing_residuals(science.model(), reference.model(), kernels, (kernels.x, kernels.y), params)
    side = 3 * (2 * params.wing_half_pix + 3)
    assert wings.images.shape == (4, side, side)
    points = (np.arange(side) - side // 2) / 3
    radius = np.hypot(points, points[:, None])
    assert not wings.images[:, radius < params.wing_from_pix].any()
    far = (radius > 2 * params.wing_from_pix) & (radius < 13)
    steps = np.arange(-150, 151) / 3
    spread = np.zeros((2 * kernels.images.shape[1] - 1,) * 2)
    spread[::2, ::2] = kernels.images[0]
    matched = signal.fftconvolve(reference.at(steps[None], steps[:, None], kernels.x[0]), spread, mode="same")
    true = science.at(steps[None], steps[:, None], kernels.x[0]) - matched
    cut = slice(150 - side // 2, 150 + side // 2 + 1)
    peak = float(science.at(0.0, 0.0, 200.0))
    assert np.abs(wings.images[0] - true[cut, cut])[far].max() < 2e-4 * peak
    same = kernels_for(reference, reference)
    none = psfmatch.wing_residuals(reference.model(), reference.model(), same, (same.x, same.y), params)
    assert np.abs(none.images).max() < 1e-3 * peak


def test_values_at_the_phase_of_a_star():
    """A ramp on the points, read on the pixels of a star off its pixel."""
    m = 9
    points = (np.arange(3 * m) - 3 * m // 2) / 3
    ramp = np.tile(points, (1, 3 * m, 1)) + 10 * points[:, None]
    read = psfmatch.at_phase(ramp, np.array([[1 / 3, -1 / 3]]))
    pixels = np.arange(m - 2) - (m - 2) // 2
    assert np.allclose(read[0], (pixels - 1 / 3)[None] + 10 * (pixels + 1 / 3)[:, None])
    assert np.allclose(psfmatch.at_phase(ramp, np.array([[0.0, 0.1]]))[0], pixels[None] + 10 * pixels[:, None])


def test_kernels_between_their_places():
    """Polynomials through the places give back a kernel that changes linearly, and stay at the edge beyond it."""
    x, y = psfmatch.places(SHAPE, 4)
    base = np.random.default_rng(1).normal(size=(2, 7, 7))
    images = base[0] + (x / 400)[:, None, None] * base[1]
    field = psfmatch.kernel_field(Kernels(images, x, y), SHAPE, 3)
    at = np.array([[10.0, 250.0]]), np.array([[300.0, 20.0]])
    expected = base[0] + (at[0] / 400)[..., None, None] * base[1]
    assert np.abs(field.at(*at) - expected).max() < 1e-5
    edge, beyond = field.at(np.array([399.0]), np.array([0.0])), field.at(np.array([900.0]), np.array([-50.0]))
    assert np.array_equal(edge, beyond)
    one = psfmatch.kernel_field(Kernels(images[:1], x[:1], y[:1]), SHAPE, 3)
    assert one.degree == 0 and np.abs(one.at(*at) - images[0]).max() < 1e-6


@pytest.mark.parametrize(
    ("science", "reference", "half"), [(2.0, 2.0, 5), (2.4, 1.9, 9), (5.0, 1.9, 11), (1.6, 2.0, 8)]
)
def test_the_kernel_grows_with_the_difference_of_the_widths(science, reference, half):
    assert psfmatch.kernel_half(science, reference, PsfMatchParams()) == half
