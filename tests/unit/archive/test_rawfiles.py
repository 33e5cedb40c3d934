"""Raw files of a described camera: metadata by role, channels, per-channel files, every error named."""

import math
import warnings

import numpy as np
import pytest
from astropy.time import Time

from tests.helpers import mininight
from tests.helpers.mininight import Raw
from zsds_hpc.archive import previews, rawfiles
from zsds_hpc.core.errors import BadInput
from zsds_hpc.settings.camera import load_camera


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    return load_camera(mininight.write_camera(tmp_path_factory.mktemp("camera") / "mini.yml"))


@pytest.fixture
def read(tmp_path, camera):
    def reader(raw=Raw(), **edits):  # noqa: B008
        path = tmp_path / raw.filename
        path.write_bytes(mininight.raw_bytes(raw, **edits))
        file = rawfiles.open_raw(path, camera)
        return rawfiles.read_raw_channels(file, camera, rawfiles.channels_of(file, camera))

    return reader


@pytest.mark.parametrize("kind", "obf")
def test_channels_are_the_pixels(read, kind):
    raw = Raw(kind=kind)
    images, truth = read(raw), mininight.pixels(raw)
    assert [image.channel.rcid for image in images] == [20, 21, 22, 23]
    for qid, image in enumerate(images, 1):
        assert np.array_equal(image.pix, truth[qid]) and np.array_equal(image.overscan, truth[qid + 4])
        assert image.pix.flags.c_contiguous and image.channel.qid == qid
        assert (image.channel.gain_e, image.channel.read_noise_e) == (6.1, 9.5)
    assert images[0].exposure.kind == mininight.KINDS[kind]
    assert images[0].exposure.exptime_s == (0.0 if kind == "b" else 30.0)


def test_exposure_of_the_header(read):
    exposure = read()[0].exposure
    assert (exposure.filtercode, exposure.field, exposure.programid) == ("zr", 655, 1)
    assert (exposure.ra_deg, exposure.dec_deg, exposure.airmass) == (55.0608, 33.35, 1.05)
    assert exposure.mid_jd == pytest.approx(exposure.jd + 15 / 86400, abs=1e-9)
    assert exposure.epoch_yr == pytest.approx(Time(exposure.mid_jd, format="jd").jyear, abs=1e-9)


def test_middle_from_the_shutter(read):
    def edit(header):
        header["SHUTOPEN"], header["SHUTCLSD"] = "2020-09-24T09:36:00.5", "2020-09-24T09:36:31.5"

    assert read(edit=edit)[0].exposure.mid_jd == pytest.approx(Time("2020-09-24T09:36:16").jd, abs=1e-9)


@pytest.mark.parametrize(
    "keyword", ["IMGTYPE", "EXPTIME", "FIELDID", "TELRAD", "TELDECD", "FILTER", "OBSJD", "PROGRMID"]
)
@pytest.mark.parametrize("kind", "ob")
def test_missing_keyword_is_named(read, keyword, kind):
    with pytest.raises(BadInput, match=f"{keyword}") as error:
        read(Raw(kind=kind), edit=lambda header: header.remove(keyword))
    assert "missing" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("EXPTIME", -1.0), ("EXPTIME", "long"), ("EXPTIME", 1e9), ("TELRAD", 400.0), ("TELDECD", -91.0),
        ("TELRAD", "12:xx"), ("OBSJD", 0.0), ("OBSJD", "yesterday"), ("OBSJD", 2.0e9), ("FIELDID", -3),
        ("PROGRMID", 1000), ("IMGTYPE", "holiday"), ("FILTER", "ZTF_z"), ("AIRMASS", 0.2), ("IMGTYPE", ""),
        ("EXPTIME", "inf"), ("SHUTCLSD", "not a date"), ("CCD_ID", 99), ("CCD_ID", "six"),
    ],
)  # fmt: skip
def test_unusable_value_is_named(read, keyword, value):
    with pytest.raises(BadInput) as error:
        read(edit=lambda header: header.set(keyword, value))
    assert str(value) in str(error.value) and "\n" not in str(error.value)


def with_text(raw, keyword, text):
    return mininight.with_card_text(mininight.raw_bytes(raw), keyword, text)


@pytest.mark.parametrize("text", ["NaN", "Inf", "-nan", "1.0.0", "--"])
@pytest.mark.parametrize("keyword", ["EXPTIME", "OBSJD", "TELRAD", "AIRMASS"])
def test_card_that_is_no_number(tmp_path, camera, keyword, text):
    path = tmp_path / Raw().filename
    path.write_bytes(with_text(Raw(), keyword, text))
    with pytest.raises(BadInput, match=keyword) as error, warnings.catch_warnings(action="error"):
        file = rawfiles.open_raw(path, camera)
        rawfiles.read_raw_channels(file, camera, camera.ccd(6))
    assert "\n" not in str(error.value)


def test_nan_in_telemetry_does_not_cost_the_exposure(tmp_path, camera):
    path = tmp_path / Raw().filename
    path.write_bytes(with_text(Raw(), "HUMIDITY", "NaN"))
    file = rawfiles.open_raw(path, camera)
    image = rawfiles.read_raw_channels(file, camera, camera.ccd(6))[0]
    assert "HUMIDITY" not in [card[0] for card in image.cards]


def test_wrong_shape_before_any_pixel(read):
    def edit(hdus):
        hdus[2].header["ZNAXIS1"] = 2_000_000_000

    with pytest.raises(BadInput, match=r"\[2\]: image of shape \(80, 2000000000\), the camera has \(80, 96\)"):
        read(edit_hdu=edit)


def test_missing_extension(read):
    with pytest.raises(BadInput, match="has 8 units, extension 8 is missing"):
        read(edit_hdu=lambda hdus: hdus.pop(8))


def test_channel_file_round_trip(tmp_path, camera, read):
    image = read()[1]
    rawfiles.write_channel(tmp_path / "c_q2_raw.fits", image, [("EXTRA", 5, "more")])
    back = rawfiles.read_channel(tmp_path / "c_q2_raw.fits", camera)
    assert np.array_equal(back.pix, image.pix) and back.pix.dtype == np.uint16
    assert np.array_equal(back.overscan, image.overscan)
    assert back.exposure == image.exposure and back.channel == image.channel and back.name == "c_q2"
    assert ("EXTRA", 5) in [card[:2] for card in back.cards]


def test_channel_of_a_raw_file(tmp_path, camera):
    path = tmp_path / Raw().filename
    path.write_bytes(mininight.raw_bytes(Raw()))
    assert rawfiles.read_channel(path, camera, 22).channel.qid == 3
    with pytest.raises(BadInput, match=r"holds channels \[20, 21, 22, 23\]; say which"):
        rawfiles.read_channel(path, camera)
    with pytest.raises(BadInput, match="say which"):
        rawfiles.read_channel(path, camera, 40)


def test_channel_file_of_another_camera(tmp_path, camera, read):
    image = read()[0]
    other = image.channel.model_copy(update={"rcid": 63})
    foreign = rawfiles.RawChannel(other, image.pix, image.overscan, image.exposure, image.cards, image.name)
    rawfiles.write_channel(tmp_path / "c.fits", foreign, [])
    with pytest.raises(BadInput, match="no readout channel 63"):
        rawfiles.read_channel(tmp_path / "c.fits", camera)


@pytest.mark.parametrize(
    ("text", "hours", "degrees"),
    [("12:30:00", True, 187.5), ("-0:30:00", False, -0.5), ("+10:15", False, 10.25), (" -12:30:36 ", False, -12.51),
     (33.25, True, 33.25), (7, False, 7.0)],
)  # fmt: skip
def test_angles(text, hours, degrees):
    assert rawfiles._angle(text, hours) == pytest.approx(degrees)


@pytest.mark.parametrize("text", ["2020-09-24T09:36:00", "2020-01-01T00:00:00.123", "2019-12-31 23:59:59"])
def test_julian_date(text):
    assert rawfiles.jd_of_iso(text) == pytest.approx(Time(text).jd, abs=1e-8)


@pytest.mark.parametrize("pix", [np.full((40, 44), 7, np.uint16), np.full((40, 44), np.nan, np.float32)])
def test_preview_of_flat_and_of_nan(tmp_path, pix):
    small = previews.stretched(pix)
    assert small.shape == (10, 11) and small.dtype == np.uint8
    previews.write_preview(tmp_path / "p.jpg", pix)
    assert (tmp_path / "p.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_preview_shows_a_source_the_right_way_up(tmp_path):
    pix = np.random.default_rng(1).normal(100, 5, (80, 96)).astype(np.float32)
    pix[8:12, 80:84] += 5000
    small = previews.stretched(pix)
    assert np.unravel_index(small.argmax(), small.shape) == (2, 20)
    for name in "ab":
        previews.write_preview(tmp_path / name, pix)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_pointing_is_nan():
    assert math.isnan(rawfiles._angle("nan", False))
