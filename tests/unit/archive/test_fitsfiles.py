"""FITS out and in: astropy verifies what is written here, and reads the same pixels."""

import gzip
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from zsds_hpc.archive.fitsfiles import FitsFile, Hdu, card_value, clean_cards, write_fits
from zsds_hpc.core.errors import BadInput

RNG = np.random.default_rng(5)
DTYPES = ["float32", "float64", "int16", "uint16", "int32", "int64", "uint8"]


def image_of(dtype, shape=(13, 17)):
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    pix = RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    pix.flat[:2] = info.min, info.max
    return pix


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.fits"


def read_by_astropy(path):
    """Checksums verified: astropy warns where they do not hold, and the warning is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", AstropyUserWarning)
        with fits.open(path, checksum=True, memmap=False) as hdus:
            hdus.verify("exception")
            return [(hdu.header.copy(), None if hdu.data is None else hdu.data.copy()) for hdu in hdus]


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_round_trip(path, dtype):
    pix, extension = image_of(dtype), image_of(dtype, (3, 2000))
    write_fits(path, [Hdu(pix, [("FOO", 3, "three")]), Hdu(extension, name="MORE")])
    (header, by_astropy), (more, _) = read_by_astropy(path)
    assert np.array_equal(by_astropy, pix) and header["FOO"] == 3 and more["EXTNAME"] == "MORE"
    file = FitsFile(path)
    back = file.image(0, pix.shape)
    assert back.dtype == np.dtype(dtype) and back.dtype.isnative and np.array_equal(back, pix)
    assert np.array_equal(file.image(1), extension)


def test_nan_and_signed_zero_survive(path):
    pix = np.array([[np.nan, -0.0, np.inf]], np.float32)
    write_fits(path, [Hdu(pix)])
    assert FitsFile(path).image().tobytes() == pix.tobytes()


def test_table_round_trip(path):
    rows = np.zeros(
        7, [("id", "i8"), ("ra", "f8"), ("mag", "f4", 5), ("name", "S6"), ("ok", "?"), ("n", "i2"), ("u", "u2")]
    )
    rows["id"], rows["ra"], rows["mag"] = np.arange(7), RNG.uniform(0, 360, 7), RNG.normal(20, 1, (7, 5))
    rows["name"], rows["ok"] = [b"a", b"bcdef", b"", b"x y", b"123456", b"q", b"r"], [1, 0] * 3 + [1]
    rows["u"] = [0, 1, 32767, 32768, 65535, 5, 6]
    write_fits(path, [Hdu(rows, [("TELESCOP", "P48")], name="CAT")])
    (_, none), (header, by_astropy) = read_by_astropy(path)
    assert none is None and header["EXTNAME"] == "CAT" and header["TELESCOP"] == "P48"
    back = FitsFile(path).table()
    for name in rows.dtype.names:
        assert np.array_equal(np.asarray(by_astropy[name]).astype(rows[name].dtype), rows[name])
        assert np.array_equal(back[name], rows[name])
        assert back[name].dtype.isnative


def test_empty_table(path):
    rows = np.zeros(0, [("x", "f4"), ("v", "f8", 3)])
    write_fits(path, [Hdu(rows)])
    assert FitsFile(path).table().shape == (0,)
    assert len(read_by_astropy(path)[1][1]) == 0


def test_same_content_same_bytes(tmp_path):
    pix = image_of("float32")
    for name in "ab":
        write_fits(tmp_path / name, [Hdu(pix, [("A", 1.5)]), Hdu(image_like(), name="M")])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def image_like():
    return np.arange(12, dtype=np.int16).reshape(3, 4)


def test_input_is_not_modified_and_may_be_strided(path):
    pix = image_of("uint16", (20, 30))
    before = pix.copy()
    write_fits(path, [Hdu(pix[::2, ::3])])
    assert np.array_equal(pix, before)
    assert np.array_equal(FitsFile(path).image(), before[::2, ::3])


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32"])
def test_reads_rice(path, dtype):
    pix = image_of(dtype, (24, 50)) // 64
    hdu = fits.CompImageHDU(pix, compression_type="RICE_1", tile_shape=(1, 50))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        hdus.writeto(path.with_suffix(".sum"), checksum=True)
    back = FitsFile(path.with_suffix(".sum")).image(1, (24, 50))
    assert np.array_equal(back, pix) and back.dtype.isnative


@pytest.mark.parametrize(
    ("keyword", "value"), [("ZNAXIS1", 2_000_000_000), ("ZNAXIS2", 2_000_000_000), ("ZTILE1", 0), ("ZTILE2", 7)]
)
def test_absurd_compressed_shape_with_right_checksums(path, keyword, value):
    hdu = fits.CompImageHDU(np.ones((24, 50), np.int16), compression_type="RICE_1", tile_shape=(1, 50))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        hdus[1].header[keyword] = value
        hdus.writeto(path.with_suffix(".sum"), checksum=True)
    file = FitsFile(path.with_suffix(".sum"))
    with pytest.raises(BadInput, match=r"x.sum\[1\]"):
        file.image(1)
    if "AXIS" in keyword:
        with pytest.raises(BadInput, match="shape"):
            file.image(1, (24, 50))


def test_huge_single_tile_is_refused(path):
    hdu = fits.CompImageHDU(np.ones((24, 50), np.int16), compression_type="RICE_1", tile_shape=(24, 50))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        for keyword in ("ZNAXIS1", "ZTILE1"):
            hdus[1].header[keyword] = 2_000_000_000
        hdus.writeto(path.with_suffix(".sum"), checksum=True)
    with pytest.raises(BadInput, match=r"tiles of"):
        FitsFile(path.with_suffix(".sum")).image(1)


def test_foreign_file_without_checksums(path):
    fits.PrimaryHDU(image_of("float32")).writeto(path)
    with pytest.raises(BadInput, match="CHECKSUM card is missing"):
        FitsFile(path)
    assert FitsFile(path, require_checksums=False).image().shape == (13, 17)
    fits.PrimaryHDU(image_of("float32")).writeto(path, checksum=True, overwrite=True)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"DATASUM|CHECKSUM"):
        FitsFile(path, require_checksums=False)


def test_scaled_integers_of_a_foreign_file(path):
    path.write_bytes(_raw_scaled())
    assert FitsFile(path, require_checksums=False).image().tolist() == [[101.0, 98.0]]


def _raw_scaled() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2",
             "NAXIS1  =                    2", "NAXIS2  =                    1", "BSCALE  =                  0.5",
             "BZERO   =              1.0D+02", "END"]  # fmt: skip
    return "".join(c.ljust(80) for c in cards).ljust(2880).encode() + b"\x00\x02\xff\xfc".ljust(2880, b"\0")


def test_unreadable_scale(path):
    path.write_bytes(_raw_scaled().replace(b"1.0D+02", b"    abc"))
    with pytest.raises(BadInput, match=r"BZERO = abc"):
        FitsFile(path, require_checksums=False).image()


def test_missing_extension_wrong_shape_and_kind(path):
    write_fits(path, [Hdu(image_like()), Hdu(np.zeros(2, [("x", "f4")]))])
    file = FitsFile(path)
    with pytest.raises(BadInput, match="has 2 units, extension 4 is missing"):
        file.image(4)
    with pytest.raises(BadInput, match=r"image of shape \(3, 4\) where \(4, 3\) is expected"):
        file.image(0, (4, 3))
    with pytest.raises(BadInput, match="image of shape None"):
        file.image(1)
    with pytest.raises(BadInput, match="not a binary table"):
        file.table(0)


def test_unreadable_paths(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        FitsFile(tmp_path / "none.fits")
    with pytest.raises(BadInput, match="directory"):
        FitsFile(tmp_path)


def test_damaged_gzip(path):
    write_fits(path, [Hdu(image_like())])
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[:-9])
    with pytest.raises(BadInput, match="cannot be unpacked"):
        FitsFile(path, unpack=gzip.decompress)
    path.write_bytes(packed)
    assert np.array_equal(FitsFile(path, unpack=gzip.decompress).image(), image_like())


def test_cards_that_are_not_legal(path):
    text = [
        "SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    0",
        "EXPTIME =                  NaN / seconds", "GAIN    =                  6.2", "UNDEF   =", "END",
    ]  # fmt: skip
    path.write_bytes("".join(c.ljust(80) for c in text).ljust(2880).encode())
    header = FitsFile(path, require_checksums=False).header()
    with warnings.catch_warnings(action="error"):
        assert [c[:2] for c in clean_cards(header, drop=["UNDEF"])] == [("GAIN", 6.2)]
        assert card_value(header, "EXPTIME").startswith("NaN")
        assert card_value(header, "UNDEF") is None and card_value(header, "NOPE") is None


def test_clean_cards_leave_structure_behind():
    hdu = fits.CompImageHDU(np.ones((8, 8), np.int16))
    hdu.header["KEPT"], hdu.header["BAYER"] = 1, 2
    hdu.header["HISTORY"] = "line"
    hdu.add_checksum()
    assert {card[0] for card in clean_cards(hdu.header)} == {"KEPT", "BAYER", "HISTORY"}
