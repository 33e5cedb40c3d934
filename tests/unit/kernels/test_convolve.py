"""Convolution with kernels of blocks against SciPy's correlation."""

import numpy as np
import pytest
from scipy import ndimage
from zsds_hpc.kernels.convolve import convolve_blocks


def made(image, kernels):
    out = np.full_like(image, np.nan)
    convolve_blocks(image, kernels, out)
    return out


def slow(image, kernels):
    """Each pixel with the kernel of its block; copied where the kernel reaches out."""
    (n_y, n_x), (b_y, b_x, side, _) = image.shape, kernels.shape
    half = side // 2
    out = image.astype(float)
    for y in range(half, n_y - half):
        for x in range(half, n_x - half):
            column = next(b for b in range(b_x) if b * n_x // b_x <= x < (b + 1) * n_x // b_x)
            part = image[y - half : y + half + 1, x - half : x + half + 1].astype(float)
            out[y, x] = (part * kernels[y * b_y // n_y, column]).sum()
    return out


@pytest.mark.parametrize("side", [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27])
def test_one_kernel_is_a_correlation(side):
    rng = np.random.default_rng(side)
    image = rng.normal(size=(61, 53)).astype(np.float32)
    kernel = rng.normal(size=(1, 1, side, side)).astype(np.float32)
    out, half = made(image, kernel), side // 2
    expected = ndimage.correlate(image.astype(float), kernel[0, 0].astype(float))
    inner = (slice(half, 61 - half), slice(half, 53 - half))
    assert np.abs(out[inner] - expected[inner]).max() < 2e-6 * side**2
    border = np.ones(image.shape, bool)
    border[inner] = False
    assert np.array_equal(out[border], image[border])


@pytest.mark.parametrize(("shape", "blocks"), [((40, 50), (3, 4)), ((37, 41), (5, 2)), ((29, 23), (1, 23))])
def test_each_block_has_its_kernel(shape, blocks):
    """Also where sizes do not divide, and with blocks of one column."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=shape).astype(np.float32)
    kernels = rng.normal(size=(*blocks, 5, 5)).astype(np.float32)
    assert np.abs(made(image, kernels) - slow(image, kernels)).max() < 1e-4


def test_images_smaller_than_the_kernel_are_copied():
    image = np.arange(30, dtype=np.float32).reshape(5, 6)
    assert np.array_equal(made(image, np.ones((2, 2, 7, 7), np.float32)), image)


def test_no_pixel_beyond_the_kernel_is_touched_by_a_bad_one():
    image, kernel = np.ones((30, 30), np.float32), np.full((2, 2, 5, 5), 0.04, np.float32)
    image[15, 12] = np.nan
    bad = ~np.isfinite(made(image, kernel))
    expected = np.zeros(image.shape, bool)
    expected[13:18, 10:15] = True
    assert np.array_equal(bad, expected)


def test_the_same_input_gives_the_same_bits_and_is_kept():
    rng = np.random.default_rng(2)
    image, kernels = rng.normal(size=(64, 70)).astype(np.float32), rng.normal(size=(2, 2, 9, 9)).astype(np.float32)
    before = image.copy()
    assert np.array_equal(made(image, kernels), made(image, kernels)) and np.array_equal(image, before)
