"""The camera prior against the same geometry written out by hand."""

import numpy as np
import pytest

from tests.unit.astrometry.skyfield import N_X, N_Y, Truth, map_error_mas
from zsds_hpc.astrometry.geometry import ChannelGeometry, footprint, initial_wcs
from zsds_hpc.astrometry.sphere import separation_deg
from zsds_hpc.core.errors import BadInput
from zsds_hpc.settings.camera import load_camera


@pytest.mark.parametrize("pointing", [(55.06, 33.35), (359.0, -29.0), (1.0, 0.0), (120.0, 87.0), (10.0, -90.0)])
@pytest.mark.parametrize("rotation", [0.0, 0.5])
def test_initial_wcs_is_the_cameras_map(pointing, rotation):
    truth = Truth(pointing, error_arcsec=(0.0, 0.0), rotation_deg=rotation, scale=1.0)
    wcs = initial_wcs(truth.geometry(), *pointing, rotation)
    assert map_error_mas(wcs, truth)[1] < 0.1  # mas; 5 would do
    assert wcs.crpix.tolist() == [1535.5, 1539.5]
    centre = truth.to_sky(*wcs.crpix)
    assert separation_deg(*wcs.crval, *centre) < 1e-12


def test_camera_file_describes_the_real_camera():
    """Channel 50 of a real frame of field 655: centre and matrix of its header, pointing errors apart."""
    channel = load_camera("ztf").channel(50)
    names = ("xi_deg", "eta_deg", "cd_deg", "distortion_xi_arcsec", "distortion_eta_arcsec")
    geometry = ChannelGeometry(*(getattr(channel, name) for name in names), N_X, N_Y)
    wcs = initial_wcs(geometry, 55.0608, 33.35)
    assert separation_deg(*wcs.crval, 57.99740327, 35.74628707) < 0.02
    real = np.array([[-2.811703e-04, -7.697098e-06], [7.721275e-06, -2.811698e-04]])
    assert np.abs(wcs.cd - real).max() < 2e-6


def test_footprint_holds_the_image():
    truth = Truth((0.2, 10.0))
    wcs = initial_wcs(truth.geometry(), 0.2, 10.0)
    print_ = footprint(wcs, N_X, N_Y, margin_arcsec=60.0)
    x, y = np.meshgrid(np.linspace(-0.5, N_X - 0.5, 9), np.linspace(-0.5, N_Y - 0.5, 9))
    away = separation_deg(*wcs.pixel_to_sky(x, y), print_.ra_deg, print_.dec_deg)
    assert 0.0 < print_.radius_deg - away.max() < 2.0 * 60.0 / 3600.0
    corner = separation_deg(*wcs.pixel_to_sky(-0.5, -0.5), *print_.corners[0])
    assert corner == pytest.approx(np.hypot(60, 60) / 3600, rel=0.01)


@pytest.mark.parametrize("pointing", [(np.nan, 0.0), (10.0, 91.0), (10.0, np.nan)])
def test_pointing_off_the_sphere(pointing):
    with pytest.raises(BadInput, match="pointing"):
        initial_wcs(Truth((0.0, 0.0)).geometry(), *pointing)
