"""Real frames of another camera (Lick Nickel), each step alone on plain files."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time

from zsds_hpc.archive import rawfiles
from zsds_hpc.archive.fitsfiles import FitsFile
from zsds_hpc.core import maskbits
from zsds_hpc.production import cli
from zsds_hpc.settings.camera import load_camera

DATA = Path(__file__).parents[4] / "shared" / "data" / "raw_nickel"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")]


def frame(number):
    return DATA / f"d{number}.fits.gz"


def plain(number):
    """Image less the median of its over-scan rows, by astropy and NumPy alone."""
    pix = fits.getdata(frame(number)).astype(np.float32)
    return pix[:, :1024] - np.median(pix[:, 1028:], axis=1)[:, None]


def zsds(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def cal(tmp_path_factory):
    """Super-bias and flat made by the commands of the manual."""
    out = tmp_path_factory.mktemp("nickel")
    assert zsds("superbias", *map(frame, range(1001, 1011)), "--camera", "nickel", "--out", out) == 0
    assert zsds(
        "highv_flat", *map(frame, range(1035, 1038)), "--camera", "nickel", "--out", out, "--bias", out / "bias.fits",
        "--biasmask", out / "biasmask.fits", "--set", "flat.n_frames_min=3",
    ) == 0  # fmt: skip
    return out


@pytest.mark.parametrize("number", [1001, 1035, 1047])
def test_pixels_are_those_of_the_file(number):
    raw = rawfiles.read_channel(frame(number), load_camera("nickel"))
    truth = fits.getdata(frame(number))
    assert np.array_equal(raw.pix, truth[:, :1024]) and np.array_equal(raw.overscan, truth[:, 1024:])
    assert raw.pix.dtype == np.uint16


def test_metadata_of_the_landolt_field():
    exposure = rawfiles.read_channel(frame(1047), load_camera("nickel")).exposure
    assert (exposure.kind, exposure.filtercode, exposure.exptime_s) == ("object", "V", 60.0)
    assert exposure.ra_deg == pytest.approx(201.4151, abs=2e-4)
    assert exposure.dec_deg == pytest.approx(-8.82458, abs=2e-5)
    assert exposure.jd == pytest.approx(Time("2024-05-13T04:32:47.12").jd, abs=1e-8)
    assert exposure.mid_jd - exposure.jd == pytest.approx(30 / 86400, abs=1e-8)
    assert exposure.airmass == pytest.approx(1.594, abs=1e-3)
    assert rawfiles.read_channel(frame(1001), load_camera("nickel")).exposure.kind == "bias"


def test_gain_and_noise_of_the_camera_file():
    """From a pair of flats and a pair of bias frames: var(a - r b) = (a + r^2 b) / gain + (1 + r^2) noise^2."""
    channel = load_camera("nickel").channels[0]
    a, b, dark = plain(1036), plain(1037), plain(1001) - plain(1002)
    inner = dark[100:900, 100:900]
    noise_dn = np.std(inner[np.abs(inner - np.median(inner)) < 25]) / np.sqrt(2)
    assert noise_dn * channel.gain_e == pytest.approx(channel.read_noise_e, rel=0.15)
    gains = []
    for y in range(64, 960, 64):
        for x in range(64, 960, 64):
            p, q = a[y : y + 64, x : x + 64], b[y : y + 64, x : x + 64]
            r = np.mean(p) / np.mean(q)
            low, high = np.percentile(p - r * q, [15.87, 84.13])
            gains.append((np.mean(p) + r**2 * np.mean(q)) / (((high - low) / 2) ** 2 - (1 + r**2) * noise_dn**2))
    assert np.median(gains) == pytest.approx(channel.gain_e, rel=0.02)


def test_superbias(cal):
    bias, unc = FitsFile(cal / "bias.fits").image(), FitsFile(cal / "biasunc.fits").image()
    expected = np.median([plain(n) for n in range(1001, 1011)], axis=0)
    assert np.std((bias - expected)[:, :1020][unc[:, :1020] < 8]) < 2.0, (
        "error of a median of ten: 5 DN x 1.25 / sqrt(10)"
    )
    assert abs(np.median(bias - expected)) < 0.3
    header = fits.getheader(cal / "bias.fits")
    assert header["NFRAMES"] == 10 and header["FRAME001"] == "d1001.fits.gz"


def test_flat(cal):
    flat = FitsFile(cal / "hifreqflat_V.fits").image()
    cmask = FitsFile(cal / "cmask_V.fits").image()
    good = (cmask & maskbits.UNUSABLE) == 0
    assert np.isfinite(flat[good]).all()
    assert np.median(flat[good]) == pytest.approx(1.0, abs=0.005)
    assert 0.9 < good[100:900, 100:900].mean() <= 1
    assert not good[:, 1023].any(), "the last column is saturated in every flat"
    # The same pixel-to-pixel pattern is in a frame that is divided by it: noise must come near the photon noise.
    sample = plain(1036) - FitsFile(cal / "bias.fits").image()
    box = np.s_[400:600, 400:600]
    level = np.median(sample[box])
    before, after = (spread((image / np.nanmedian(image))[box]) for image in (sample, sample / flat))
    assert after < before
    assert after < 1.2 / np.sqrt(level * 1.79)


def spread(pix):
    """Pixel-to-pixel robust spread, smooth shapes removed by neighbours' differences."""
    low, high = np.nanpercentile(pix[:, 1:] - pix[:, :-1], [15.87, 84.13])
    return (high - low) / 2 / np.sqrt(2)


def test_ingest_splits_and_gives_a_first_wcs(tmp_path):
    assert zsds("ingest", frame(1047), "--camera", "nickel", "--out", tmp_path) == 0
    back = rawfiles.read_channel(tmp_path / "d1047_q1_raw.fits", load_camera("nickel"))
    assert np.array_equal(back.pix, fits.getdata(frame(1047))[:, :1024])
    header = fits.getheader(tmp_path / "d1047_q1_raw.fits")
    assert header["WCSSTAGE"] == "POINTING" and header["CRVAL1"] == pytest.approx(201.4151, abs=1e-3)


@pytest.mark.parametrize("arguments", [["--camera", "ztf"], ["--camera", "nickle"]])
def test_wrong_camera_is_one_line(tmp_path, capsys, arguments):
    assert zsds("superbias", frame(1001), *arguments, "--out", tmp_path) in (2, 20)
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
