"""Rice-compressed images: what astropy and the suite read back, errors, sameness of bytes."""

import warnings

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.archive.compressed import image_cards, write_compressed
from zsds_hpc.archive.fitsfiles import FitsFile

CARDS = [("OBSJD", 2459116.9, "[d] start"), ("FILTER", "ZTF_r"), ("NEG", -3)]


def noise(shape=(120, 150), sigma=8.0, seed=1):
    return np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)


def by_astropy(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdus:
            return hdus[1].data.copy(), hdus[1].header.copy()


@pytest.mark.parametrize("step", [1.0, 0.125, 0.37])
def test_error_is_at_most_half_a_step(tmp_path, step):
    pix = noise()
    write_compressed(tmp_path / "x.fits.fz", pix, CARDS, step)
    theirs, header = by_astropy(tmp_path / "x.fits.fz")
    file = FitsFile(tmp_path / "x.fits.fz")
    ours = file.image(1, pix.shape)
    for read in (theirs, ours):
        assert np.abs(read - pix).max() <= step / 2 * (1 + 1e-5)
        assert abs(np.mean(read - pix)) < 4 * step / np.sqrt(12 * pix.size)
    assert np.array_equal(theirs.astype(np.float32), np.asarray(ours, np.float32))
    assert (header["OBSJD"], header["FILTER"], header["NEG"]) == (2459116.9, "ZTF_r", -3)
    assert header.comments["OBSJD"] == "[d] start"


def test_integers_are_exact(tmp_path):
    mask = np.random.default_rng(2).integers(-32768, 32767, (60, 70)).astype(np.int16)
    write_compressed(tmp_path / "m.fits.fz", mask)
    theirs, _ = by_astropy(tmp_path / "m.fits.fz")
    ours = FitsFile(tmp_path / "m.fits.fz").image(1, mask.shape)
    assert np.array_equal(theirs, mask) and np.array_equal(ours, mask)


def test_noise_in_eight_steps_takes_a_fifth_of_its_size(tmp_path):
    pix = noise((400, 400))
    write_compressed(tmp_path / "x.fits.fz", pix, step=1.0)
    assert (tmp_path / "x.fits.fz").stat().st_size < 0.22 * pix.nbytes


def test_equal_content_gives_equal_bytes(tmp_path):
    pix = noise()
    for name in ("a", "b"):
        write_compressed(tmp_path / name, pix.copy(), CARDS, 0.5)
    write_compressed(tmp_path / "c", pix + 0.5, CARDS, 0.5)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != other


def test_what_is_no_number_is_zero_and_what_is_too_large_is_cut_off(tmp_path):
    pix = noise()
    pix[3, 4], pix[5, 6], pix[7, 8], pix[9, 9], pix[10, 10] = np.nan, np.inf, -np.inf, 1e9, -1e9
    before = pix.copy()
    write_compressed(tmp_path / "x.fits.fz", pix, step=0.5)
    read, _ = by_astropy(tmp_path / "x.fits.fz")
    assert read[3, 4] == read[5, 6] == read[7, 8] == 0.0
    assert read[9, 9] == 32767 * 0.5 and read[10, 10] == -32767 * 0.5
    assert np.array_equal(pix, before, equal_nan=True)


def test_cards_of_another_image_do_not_describe_this_one(tmp_path):
    pix = noise((40, 50))
    cards = [("NAXIS1", 99), ("BITPIX", -64), ("BSCALE", 3.0), ("BZERO", 32768.0), ("ZNAXIS1", 7), *CARDS]
    kept = image_cards(cards)
    assert not {"NAXIS1", "BITPIX", "BSCALE", "BZERO"} & {card[0] for card in kept}
    write_compressed(tmp_path / "x.fits.fz", pix, kept, 0.25)
    read, header = by_astropy(tmp_path / "x.fits.fz")
    assert read.shape == pix.shape and np.abs(read - pix).max() <= 0.13 and header["FILTER"] == "ZTF_r"
