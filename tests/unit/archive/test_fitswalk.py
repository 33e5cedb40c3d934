"""The block walk and the checksums, against astropy's own in both directions, and every structure error."""

import io
import warnings
from itertools import pairwise

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from zsds_hpc.archive import fitswalk
from zsds_hpc.core.errors import BadInput


def made_by_astropy(*hdus, checksum=True) -> bytes:
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(out, checksum=checksum)
    return out.getvalue()


def checked(data: bytes) -> list[fitswalk.Unit]:
    units = fitswalk.walk(data, "f")
    fitswalk.verify_checksums(data, units, "f")
    return units


def with_card(data: bytes, keyword: str, text: str) -> bytes:
    """Replace the first card of a keyword by `keyword= text`."""
    at = data.index(f"{keyword:8}=".encode())
    return data[:at] + f"{keyword:8}= {text}".ljust(80).encode()[:80] + data[at + 80 :]


IMAGE = fits.ImageHDU(np.arange(35, dtype=np.int16).reshape(5, 7))
TABLE = fits.BinTableHDU(np.array([(1.5, b"ab", [1, 2, 3])], dtype=[("x", "f8"), ("s", "S2"), ("v", "i4", 3)]))
RICE = fits.CompImageHDU(np.arange(600, dtype=np.int16).reshape(20, 30), compression_type="RICE_1", tile_shape=(1, 30))


def test_astropys_checksums_hold():
    units = checked(made_by_astropy(IMAGE, TABLE, RICE))
    assert [unit.image_shape for unit in units] == [None, (5, 7), None, (20, 30)]


def test_bytes_of_units_cover_the_file():
    data = made_by_astropy(IMAGE, TABLE, RICE)
    units = fitswalk.walk(data, "f")
    assert units[0].start == 0 and units[-1].end == len(data)
    assert all(a.end == b.start for a, b in pairwise(units))


@given(st.binary(max_size=300))
def test_sum_is_the_standards(data):
    words = data + b"\0" * (-len(data) % 4)
    expected = sum(int.from_bytes(words[i : i + 4], "big") for i in range(0, len(words), 4))
    while expected >> 32:
        expected = (expected & 0xFFFFFFFF) + (expected >> 32)
    assert fitswalk.ones_complement_sum(data) == expected


@given(st.integers(0, 0xFFFFFFFF))
def test_checksum_text_is_astropys(total):
    hdu = fits.PrimaryHDU()
    assert fitswalk.checksum_text(total) == hdu._char_encode(0xFFFFFFFF - total)


def test_missing_card_is_named():
    data = made_by_astropy(IMAGE, checksum=False)
    with pytest.raises(BadInput, match=r"f\[0\]: CHECKSUM card is missing"):
        checked(data)


@pytest.mark.parametrize(
    ("keyword", "text", "message"),
    [
        ("BITPIX", "17", "BITPIX = 17"),
        ("BITPIX", "'8'", "BITPIX"),
        ("NAXIS", "-1", "NAXIS = -1"),
        ("NAXIS", "1000", "NAXIS = 1000"),
        ("NAXIS", "two", "NAXIS = two"),
        ("NAXIS1", "2000000000", "truncated, needs 20000"),
        ("NAXIS1", "-7", "NAXIS1 = -7"),
        ("NAXIS1", "1e3", "NAXIS1 = 1e3"),
        ("NAXIS1", "9" * 60, "truncated, needs"),
        ("PCOUNT", "-4", "negative PCOUNT"),
        ("GCOUNT", "-1", "negative PCOUNT or GCOUNT"),
    ],
)
def test_absurd_structure_is_named(keyword, text, message):
    data = made_by_astropy(IMAGE)
    primary, extension = data[:2880], data[2880:]
    with pytest.raises(BadInput, match=message) as error:
        checked(primary + with_card(extension, keyword, text))
    assert str(error.value).startswith("f[1]:")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8b" * 3000, b"SIMPLE  =                    F" + b" " * 2850])
def test_not_fits(data):
    with pytest.raises(BadInput, match="not a FITS file"):
        fitswalk.walk(data, "f")


def test_header_without_end():
    data = made_by_astropy(IMAGE)
    with pytest.raises(BadInput, match="truncated in the header"):
        checked(data[:2880].replace(b"END  ", b"EMD  "))
    with pytest.raises(BadInput, match="no END card"):
        checked(data[:2880].replace(b"END  ", b"EMD  ") + b" " * 2880 * 500)


def test_header_not_ascii():
    data = made_by_astropy(IMAGE)
    with pytest.raises(BadInput, match="not ASCII"):
        checked(data[:200] + b"\xff" + data[201:])


@pytest.mark.parametrize("cut", [1, 100, 2879, 2880, 2881, 4000, 5760])
def test_truncation(cut):
    data = made_by_astropy(IMAGE, RICE)
    with pytest.raises(BadInput, match="truncated"):
        checked(data[:-cut] if cut % 2880 else data[: -cut + 2880 - 1])


def test_bytes_after_the_end():
    with pytest.raises(BadInput):
        checked(made_by_astropy(IMAGE) + b"\0")


def test_every_single_bit_flip_is_caught():
    data = made_by_astropy(IMAGE)
    passed = []
    for position in range(0, len(data) * 8, 7):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with warnings.catch_warnings(action="error"):
            try:
                checked(bytes(flipped))
                passed.append(position)
            except BadInput:
                pass
    assert passed == []
