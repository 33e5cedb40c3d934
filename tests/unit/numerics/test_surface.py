"""Block medians and robust surfaces against np.median and known polynomials."""

import numpy as np
import pytest
from numpy.polynomial import legendre

from zsds_hpc.core.errors import BadInput
from zsds_hpc.numerics.surface import block_medians, column_medians, fit_surface, surface_image


def test_block_medians_are_medians():
    image = np.random.default_rng(0).normal(5.0, 1.0, (70, 99)).astype(np.float32)
    image[0:20, 10:30] = np.nan
    image[33, 40] = np.inf
    blocks = block_medians(image, block_pix=16, n_sample=256)
    assert blocks.medians.shape == (4, 6)
    for i, y in enumerate(blocks.y_pix):
        for j, x in enumerate(blocks.x_pix):
            cut = image[int(y - 7.5) : int(y + 8.5), int(x - 7.5) : int(x + 8.5)]
            assert cut.shape == (16, 16)
            assert blocks.medians[i, j] == pytest.approx(np.median(cut[np.isfinite(cut)]), rel=1e-6)


@pytest.mark.parametrize("n_rows", [6, 7])
def test_column_medians_ignore_what_is_not_finite(n_rows):
    image = np.random.default_rng(2).normal(0, 1, (n_rows, 5)).astype(np.float32)
    image[2, 1] = np.nan
    image[:3, 2] = np.inf
    image[:, 3] = np.nan
    got = column_medians(image)
    finite = [image[np.isfinite(image[:, x]), x] for x in (0, 1, 2, 4)]
    np.testing.assert_allclose(got[[0, 1, 2, 4]], [np.median(column) for column in finite], rtol=1e-6)
    assert np.isnan(got[3]) and got.dtype == np.float32


def test_an_empty_block_is_nan():
    image = np.ones((32, 32), np.float32)
    image[:16, :16] = np.nan
    medians = block_medians(image, 16).medians
    assert np.isnan(medians[0, 0]) and (medians.ravel()[1:] == 1.0).all()


def test_blocks_of_a_small_image_and_of_a_subsample():
    assert block_medians(np.full((3, 5), 2.0, np.float32), 64).medians.tolist() == [[2.0]]
    ramp = np.arange(640.0, dtype=np.float32)[None, :] + np.zeros((640, 1), np.float32)
    sampled = block_medians(ramp, 64, n_sample=64)
    np.testing.assert_allclose(sampled.medians, sampled.x_pix[None, :] + np.zeros((10, 1)), atol=1.0)


def test_a_polynomial_is_recovered_in_spite_of_outliers_and_holes():
    ny, nx = 300, 400
    rng = np.random.default_rng(1)
    truth = np.where(np.add.outer(np.arange(5), np.arange(5)) <= 4, rng.normal(0, 20, (5, 5)), 0.0)
    truth[0, 0] = 1000.0
    image = legendre.leggrid2d(np.linspace(-1, 1, ny), np.linspace(-1, 1, nx), truth).astype(np.float32)
    clean = image.copy()
    image += rng.normal(0, 5, image.shape).astype(np.float32)
    image[100:130, 50:90] += 3000.0
    image[:, 200:215] = np.nan
    surface = fit_surface(block_medians(image, 20), image.shape, 4)
    assert np.abs(surface_image(surface) - clean).max() < 2.0
    np.testing.assert_allclose(surface.coefficients, truth, atol=0.6)
    assert surface.rms < 1.0
    assert surface_image(surface).dtype == np.float32


def test_too_few_blocks_are_refused():
    image = np.full((64, 64), np.nan, np.float32)
    image[:16] = 1.0
    with pytest.raises(BadInput, match="4 usable blocks, 9 are needed"):
        fit_surface(block_medians(image, 16), image.shape, 2)


def test_a_constant_image():
    image = np.full((64, 64), 7.0, np.float32)
    surface = fit_surface(block_medians(image, 8), image.shape, 3)
    np.testing.assert_allclose(surface_image(surface), 7.0, rtol=1e-6)
