"""Calibrated images as image differencing reads them: from files, from memory, and what is refused."""

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers import diffsky
from tests.helpers.diffsky import Profile
from zsds_hpc.archive import scifiles
from zsds_hpc.archive.fitsfiles import Hdu, write_fits
from zsds_hpc.archive.psffile import write_psf
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE

NUMBERS = [("GAIN", 6.2, "e/DN"), ("SATURATE", 50000.0), ("MAGZP", 26.275123456789), ("SEEING", 2.1), ("MAGLIM", 20.6)]


@pytest.fixture(scope="module")
def image():
    return diffsky.science(diffsky.random_stars(60), Profile(2.1)).science


def cards_of(image, *more):
    return [*image.wcs.to_cards(), *NUMBERS, ("CLRCOEFF", 0.0812), ("OBSJD", 2459116.9031175), *more]


def write(place, image, cards, psfcat=None):
    rows = image.psfcat if psfcat is None else psfcat
    write_fits(place / "a_sciimg.fits", [Hdu(image.pix, cards)])
    write_fits(place / "a_mskimg.fits", [Hdu(image.mask, cards)])
    write_fits(place / "a_psfcat.fits", [Hdu(None, cards), Hdu(rows, name="PSF_CATALOG")])
    write_psf(place / "a_sciimg.psf", image.psf)
    return place / "a_sciimg.fits"


def test_files_and_memory_give_the_same(tmp_path, image):
    cards = cards_of(image, ("LONGNUM", 1 / 3), ("TEXT", "x"))
    science, header = scifiles.read_science(write(tmp_path, image, cards))
    memory, values = scifiles.science_in_memory((image.pix, image.mask, image.psfcat), image.psf, cards, "a")
    for one in (science, memory):
        assert one.pix.tobytes() == image.pix.tobytes() and one.mask.tobytes() == image.mask.tobytes()
        assert one.psfcat.tobytes() == image.psfcat.tobytes()
        assert one.magzp == 26.275123456789 and one.clrcoeff == 0.0812 and one.gain_e == 6.2
    assert science.psf.coefficients.tobytes() == memory.psf.coefficients.tobytes()
    assert (science.psf.wing, science.psf.degree) == (memory.psf.wing, memory.psf.degree)
    for name in ("crval", "crpix", "cd", "pv1", "pv2"):
        assert np.array_equal(getattr(science.wcs, name), getattr(memory.wcs, name))
    for key in ("OBSJD", "LONGNUM", "TEXT"):
        assert header.get(key) == values.get(key)
    x, y = science.wcs.sky_to_pixel(*image.wcs.pixel_to_sky(30.0, 370.0))
    assert abs(x - 30) < 1e-5 and abs(y - 370) < 1e-5


@pytest.mark.parametrize("key", [card[0] for card in NUMBERS])
def test_a_number_that_is_missing_is_named(tmp_path, image, key):
    cards = [card for card in cards_of(image) if card[0] != key]
    with pytest.raises(BadInput, match=f"no {key} in its header: not photometrically calibrated"):
        scifiles.read_science(write(tmp_path, image, cards))
    with pytest.raises(BadInput, match=f"a.fits: no {key}"):
        scifiles.science_in_memory((image.pix, image.mask, image.psfcat), image.psf, cards, "a.fits")


def test_without_a_colour_coefficient_it_is_zero(tmp_path, image):
    cards = [card for card in cards_of(image) if card[0] != "CLRCOEFF"]
    assert scifiles.read_science(write(tmp_path, image, cards))[0].clrcoeff == 0.0


@pytest.mark.parametrize("suffix", scifiles.COMPANIONS)
@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
def test_a_companion_that_is_missing_or_damaged_is_named(tmp_path, image, suffix, how):
    sciimg = write(tmp_path, image, cards_of(image))
    path = tmp_path / f"a_{suffix}"
    content = bytearray(path.read_bytes())
    if how == "lost":
        path.unlink()
    else:
        content[-3000] ^= 0x55
        path.write_bytes(content[:-3000] if how == "cut" else content)
    with pytest.raises(BadInput, match=path.name):
        scifiles.read_science(sciimg)


def test_a_mask_of_another_shape_is_refused(tmp_path, image):
    sciimg = write(tmp_path, image, cards_of(image))
    write_fits(tmp_path / "a_mskimg.fits", [Hdu(image.mask[:-1].copy(), [])])
    with pytest.raises(BadInput, match=r"a_mskimg\.fits"):
        scifiles.read_science(sciimg)


def test_columns_of_another_version_are_refused(tmp_path, image):
    other = np.zeros(3, PSFCAT_DTYPE.descr[:-1])
    with pytest.raises(BadInput, match="columns of another version"):
        scifiles.read_science(write(tmp_path, image, cards_of(image), other))


def test_only_a_calibrated_image_is_read(tmp_path, image):
    path = write(tmp_path, image, cards_of(image))
    with pytest.raises(BadInput, match="is named"):
        scifiles.read_science(path.rename(tmp_path / "a.fits"))


def test_an_image_with_an_empty_catalogue_is_read(tmp_path, image):
    science, _ = scifiles.read_science(write(tmp_path, image, cards_of(image), np.zeros(0, PSFCAT_DTYPE)))
    assert len(science.psfcat) == 0 and science.psfcat.dtype == PSFCAT_DTYPE


def test_numbers_that_are_no_numbers_are_refused(tmp_path, image):
    path = write(tmp_path, image, cards_of(image))
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["MAGZP"] = "none"
        hdus[0].add_checksum()
    with pytest.raises(BadInput, match="no MAGZP"):
        scifiles.read_science(path)
