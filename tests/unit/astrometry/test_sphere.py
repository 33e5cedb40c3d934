"""Gnomonic projection and separations against vector formulas."""

import numpy as np
import pytest

from tests.unit.astrometry.skyfield import tangent_to_sky
from zsds_hpc.astrometry.sphere import deproject, project, separation_deg, unit_vectors, wrap_360


@pytest.mark.parametrize("centre", [(0.0, 0.0), (359.99, 33.3), (123.4, -89.9), (10.0, 90.0), (200.0, -90.0)])
def test_projection_agrees_with_vectors_and_inverts(centre):
    rng = np.random.default_rng(0)
    xi, eta = rng.uniform(-3, 3, (2, 1000))
    ra, dec = deproject(xi, eta, *centre)
    true_ra, true_dec = tangent_to_sky(xi, eta, *centre)
    assert separation_deg(ra, dec, true_ra, true_dec).max() < 1e-12
    assert ((ra >= 0) & (ra < 360)).all()
    back = project(ra, dec, *centre)
    assert np.abs(back - np.stack([xi, eta])).max() < 1e-11


def test_far_hemisphere_has_no_projection():
    assert np.isnan(project(180.0, 0.0, 0.0, 0.0)[0])
    assert np.isnan(project([90.0001], [0.0], 0.0, 0.0)[1]).all()


def test_wrap():
    assert wrap_360(np.array([-1e-17, 360.0, -10.0, 719.0])).tolist() == [0.0, 0.0, 350.0, 359.0]


def test_separation_of_small_and_large_angles():
    assert separation_deg(0.0, 90.0, 180.0, 90.0) < 1e-14
    assert separation_deg(359.9999, 0.0, 0.0001, 0.0) == pytest.approx(2e-4, rel=1e-9)
    assert separation_deg(0.0, 0.0, 180.0, 0.0) == pytest.approx(180.0)
    assert unit_vectors(np.zeros((2, 3)), 45.0).shape == (2, 3, 3)
