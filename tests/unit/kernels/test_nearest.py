"""Nearest pixels along smooth positions against a loop."""

import numpy as np
import pytest
from zsds_hpc.kernels.nearest import read_nearest

from zsds_hpc.numerics.resample import Mapping, nearest_bits


def image_of(dtype, shape=(47, 61), seed=3):
    return np.random.default_rng(seed).integers(-3000, 3000, shape).astype(dtype)


def slow(image, transform, shape, outside):
    """What the loop gives, and where a position is so near a pixel's border that rounding decides."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    at_x, at_y = transform(x, y)
    i, j = np.floor(at_x + 0.5).astype(int), np.floor(at_y + 0.5).astype(int)
    inside = (i >= 0) & (j >= 0) & (i < image.shape[1]) & (j < image.shape[0])
    out = np.full(shape, outside, image.dtype)
    out[inside] = image[j[inside], i[inside]]
    near = np.minimum(np.abs(at_x + 0.5 - np.rint(at_x + 0.5)), np.abs(at_y + 0.5 - np.rint(at_y + 0.5)))
    return out, near < 0.002


TRANSFORMS = {
    "shift": lambda x, y: (x + 3.3, y - 2.2),
    "turn": lambda x, y: (0.9813 * x - 0.1937 * y + 5.1, 0.1937 * x + 0.9813 * y - 4.7),
    "bend": lambda x, y: (x + 2e-5 * x * y + 0.2, y + 1e-6 * x**2 - 0.3),
    "away": lambda x, y: (x + 1000.0, y),
}


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(47, 61), (64, 33), (5, 100)])
def test_is_the_loop(dtype, name, shape):
    image, transform = image_of(dtype), TRANSFORMS[name]
    expected, at_border = slow(image, transform, shape, 7)
    mapping, out = Mapping.of(transform, shape), np.empty(shape, dtype)
    read_nearest(image, mapping.nodes, mapping.step, 7, out)
    assert np.array_equal(out[~at_border], expected[~at_border]) and at_border.mean() < 0.05
    assert (name == "away") == (out == 7).all()


def test_infinite_outside():
    image, mapping = np.zeros((20, 20), np.float32), Mapping.of(lambda x, y: (x - 4.0, y), (20, 20))
    out = np.empty((20, 20), np.float32)
    read_nearest(image, mapping.nodes, mapping.step, np.inf, out)
    assert np.isinf(out[:, :4]).all() and not out[:, 4:].any()


def test_positions_that_are_no_numbers_are_outside():
    image, mapping = np.zeros((20, 20), np.int16), Mapping.of(lambda x, y: (x, np.where(x > 40, np.nan, y)), (20, 80))
    out = np.zeros((20, 80), np.int16)
    read_nearest(image, mapping.nodes, mapping.step, 9, out)
    assert (out[:, 33:] == 9).all()


def test_masks_read_by_the_mapping():
    mask = image_of(np.int16)
    mapping = Mapping.of(TRANSFORMS["shift"], mask.shape)
    expected, _ = slow(mask, TRANSFORMS["shift"], mask.shape, 1024)
    assert np.array_equal(nearest_bits(mask, mapping, 1024), expected)
    with pytest.raises(ValueError, match="not up to"):
        nearest_bits(np.zeros((200, 200), np.int16), mapping, 0)
