"""Pictures of the PSF: drawn with and without stars, clear words for an image that is not of an archive."""

import numpy as np
import pytest
from PIL import Image

from tools import psfpicture
from zsds_hpc.core import maskbits
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.production.forced import ForcedImage
from zsds_hpc.psf.build import PsfParams, profile_psf

SHAPE = (200, 220)


@pytest.fixture(scope="module")
def psf():
    return profile_psf(StarProfile(2.0, 3.0, 0.1, 0.05), SHAPE, PsfParams())


def is_picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return path.stat().st_size < 200_000 and min(pixels.shape) > 500 and pixels.std() > 10


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"psf_chi2_map": [[1.0, None], [1.1, 0.9]], "zeropoint_map_mag": [[None, 0.01]],
         "zeropoint_map_unc": [[None, 0.002]]},
        {"psf_chi2_map": [[None, None]], "zeropoint_map_mag": [[None]], "zeropoint_map_unc": [[None]]},
    ],
    ids=["no maps", "maps with holes", "empty maps"],
)  # fmt: skip
def test_maps_over_the_image(tmp_path, psf, metrics):
    psfpicture.draw_psf(psf, metrics, tmp_path / "psf.png")
    assert is_picture(tmp_path / "psf.png")


@pytest.mark.parametrize("center", [(100, 100), (0, 500)])
def test_cutout(tmp_path, psf, center):
    pix = np.random.default_rng(1).normal(100, 5, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.int16)
    mask[90:95] = maskbits.DEAD
    pix[60 - 7 : 60 + 8, 100 - 7 : 100 + 8] += 5000 * psf.images(np.array([100.0]), np.array([60.0]), 7)[0]
    image = ForcedImage(pix, mask, 6.2, psf, np.array([[100.0, 60.0, 5000.0]]))
    psfpicture.draw_field(image, center, 80, tmp_path / "field.png")
    assert is_picture(tmp_path / "field.png")


@pytest.mark.parametrize("name", ["some.fits", "ztf_20200924431751_000655_zr_c06_o_q1_sciimg.fits", "x_q1_sciimg.fits"])
def test_not_of_an_archive(tmp_path, capsys, name):
    place = tmp_path / "sci" / "2020" / "0924" / "431751" / name
    assert psfpicture.main([str(place)]) == 2
    assert capsys.readouterr().err.startswith("psfpicture: ")
