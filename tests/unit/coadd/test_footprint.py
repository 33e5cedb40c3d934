"""The two grids of a footprint are of the same sky."""

import numpy as np
import pytest

from tests.helpers import minirefs
from zsds_hpc.settings.camera import load_camera


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return minirefs.grid_of(load_camera(minirefs.camera_file(tmp_path_factory.mktemp("camera"))))


def test_fine_and_native_pixels_are_the_same_places(grid):
    x, y = np.array([-3.0, 0.0, 100.2]), np.array([5.0, 0.0, 60.9])
    np.testing.assert_allclose(grid.to_native(grid.to_fine(x)), x, atol=1e-12)
    native, fine = grid.wcs.pixel_to_sky(x, y), grid.fine_wcs().pixel_to_sky(grid.to_fine(x), grid.to_fine(y))
    np.testing.assert_allclose(native, fine, atol=1e-10)


def test_fine_grid_reaches_beyond_the_native_one(grid):
    n_y, n_x = grid.fine_shape
    assert (grid.to_fine(-grid.margin_pix) >= 0) and grid.to_fine(grid.shape[1] - 1 + grid.margin_pix) <= n_x - 1
    assert grid.to_fine(grid.shape[0] - 1 + grid.margin_pix) <= n_y - 1


def test_pixels_are_square_and_of_the_given_scale(grid):
    cd = grid.wcs.cd * 3600
    np.testing.assert_allclose(cd @ cd.T, 1.012**2 * np.eye(2), atol=1e-9)
