"""Photometry on real images, against what others measured on them."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers import ztf_image
from tests.helpers.ztf_image import DATA
from zsds_hpc.core import maskbits
from zsds_hpc.photometry.aperture import MeasureParams, measure, with_profile
from zsds_hpc.photometry.background import BackgroundParams, estimate_background
from zsds_hpc.photometry.detect import DetectParams, detect_sources
from zsds_hpc.photometry.growth import ApertureCorrectionParams, aperture_corrections, point_source_area
from zsds_hpc.photometry.zeropoint import Calibrators, ZeroPointParams, calibrate_zeropoint, limiting_magnitude

SEXTRACTOR = DATA / "catalogs_reference" / "sep"
LCOGT = DATA / "catalogs_reference" / "cpt1m012-fa06-20200113-0102-matched-cat.fits"
DIAMETERS = (2.0, 3.0, 4.0, 6.0, 10.0, 14.0)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"real data absent: {DATA}"),
    pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning"),
]


@pytest.fixture(scope="module")
def ztf():
    """One channel image of the survey, re-measured from its pixels and its mask without the source bits."""
    pix, mask, clean, header = ztf_image.read()
    sky = estimate_background(pix, clean, BackgroundParams())
    sub = pix - sky.level
    found = detect_sources(sub, sky.rms, clean, DetectParams(fwhm_pix=1.3))
    found = with_profile(sub, sky.rms, clean, found, MeasureParams())
    catalogue = measure(sub, sky.rms, clean, header["GAIN"], found, MeasureParams())
    growth = aperture_corrections(sub, clean, found, catalogue, DIAMETERS, ApertureCorrectionParams())
    return SimpleNamespace(**{k: v for k, v in locals().items() if k != "pix"})


def test_ztf_sky_and_noise(ztf):
    expected = np.sqrt(ztf.sky.global_level * ztf.header["GAIN"] + ztf.header["READNOI"] ** 2) / ztf.header["GAIN"]
    assert 150 < ztf.sky.global_level < 165
    # 8% above photon and read noise of the header's gain: undetected stars, and the gain itself.
    assert ztf.sky.global_rms == pytest.approx(expected, rel=0.1)


def test_ztf_sources_are_those_of_the_survey(ztf):
    """Bit 11 marks the survey's PSF-fit positions: they lie on our sources and ours on them."""
    survey = np.argwhere(ztf.mask & maskbits.PSFSOURCE)[:, ::-1]
    inside = (survey > 20).all(axis=1) & (survey < 3050).all(axis=1)
    hit = ztf.found.segments[tuple(survey[inside].T[::-1])] > 0
    assert hit.mean() > 0.7
    strong = (ztf.found["snr"] > 10) & (ztf.found["flags"] == 0)
    y, x = np.rint(ztf.found["y"][strong]).astype(int), np.rint(ztf.found["x"][strong]).astype(int)
    near = np.zeros(y.size, bool)
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            near |= ztf.mask[np.clip(y + dy, 0, 3079), np.clip(x + dx, 0, 3071)] & maskbits.PSFSOURCE > 0
    assert near.mean() > 0.97


def test_ztf_aperture_corrections_are_those_of_the_header(ztf):
    """Differences between apertures: the header's are against PSF-fit magnitudes, with a zero of their own."""
    theirs = np.array([ztf.header[f"APCOR{k}"] for k in range(1, 7)])
    ours = ztf.growth.correction_mag
    np.testing.assert_allclose(ours[3:] - ours[4], theirs[3:] - theirs[4], atol=0.005)
    np.testing.assert_allclose(ours - ours[4], theirs - theirs[4], atol=0.012)


def test_ztf_depth(ztf):
    """0.1 to 0.25 mag shallower than the header, whose errors are those of its PSF fit."""
    area = point_source_area(ztf.found.profile, ztf.growth)
    ours = limiting_magnitude(ztf.sky.global_rms, ztf.header["GAIN"], area, ztf.header["MAGZP"])
    assert ours == pytest.approx(ztf.header["MAGLIM"], abs=0.25)


def test_ztf_asteroid_160587(ztf):
    """Found at (501.9, 2860.2), where it measures 19.5."""
    catalogue = ztf.catalogue
    i = np.hypot(catalogue["XWIN_IMAGE"] - 501.9, catalogue["YWIN_IMAGE"] - 2860.2).argmin()
    assert catalogue["XWIN_IMAGE"][i] == pytest.approx(501.9, abs=0.2)
    mag = catalogue["MAG_APER"][i, 2] + ztf.growth.correction_mag[2] + ztf.header["MAGZP"]
    assert mag == pytest.approx(19.5, abs=0.15)


def test_fluxes_and_positions_against_sextractor():
    """SExtractor's own catalogue of an ESO image: 10-px apertures and windowed positions."""
    pix = np.ascontiguousarray(fits.getdata(SEXTRACTOR / "image.fits"), dtype=np.float32)
    mask = np.zeros(pix.shape, np.int16)
    sky = estimate_background(pix, mask, BackgroundParams())
    assert np.mean(sky.level - fits.getdata(SEXTRACTOR / "back.fits")) == pytest.approx(0, abs=3)
    assert np.mean(sky.rms / fits.getdata(SEXTRACTOR / "rms.fits")) == pytest.approx(1, abs=0.05)
    sub = pix - sky.level
    found = detect_sources(sub, sky.rms, mask, DetectParams(fwhm_pix=2.5))
    ours, theirs = measure(sub, sky.rms, mask, 1e9, found, MeasureParams()), np.loadtxt(SEXTRACTOR / "image.cat")
    distance = np.hypot(ours["X_IMAGE"][:, None] - theirs[:, 1], ours["Y_IMAGE"][:, None] - theirs[:, 2])
    assert (distance.min(axis=0) < 1.5).mean() > 0.9
    match = distance.argmin(axis=1)
    good = (distance.min(axis=1) < 1) & (theirs[match, 12] > 8000) & (theirs[match, 20] == 0) & (ours["FLAGS"] == 0)
    assert good.sum() >= 12
    row = theirs[match[good]]
    ratio = ours["FLUX_APER"][good, 4] / row[:, 12]
    assert np.median(ratio) == pytest.approx(1, abs=0.01)
    assert np.abs(ratio - 1).max() < 0.08
    assert np.median(np.abs(ours["XWIN_IMAGE"][good] - row[:, 3])) < 0.02
    assert np.median(ours["FLUX_AUTO"][good] / row[:, 15]) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(("bands", "coefficient"), [("gr", 0.033), ("ri", 0.05)])
def test_zero_point_of_a_one_metre_telescope(bands, coefficient):
    """LCOGT i band against ATLAS-Refcat2: 0.018 mag of scatter."""
    with fits.open(LCOGT) as file:
        table = {name: np.asarray(file[1].data[name], float) for name in file[1].data.names}
    flux, good = table["fluxaper5"], (table["fluxaper5"] > 0) & (table["flag"] == 0)
    safe = np.where(good, flux, 1.0)
    stars = Calibrators(
        np.where(good, -2.5 * np.log10(safe), 99.0),
        1.0857 * table["fluxerr5"] / safe,
        table["imag"],
        table["imagerr"],
        table[f"{bands[0]}mag"] - table[f"{bands[1]}mag"],
    )
    params = ZeroPointParams(bright_mag=11.0, faint_mag=16.0, blue_color=-0.5, red_color=2.5)
    zero = calibrate_zeropoint(stars, params).zero
    assert zero.rms < 0.0185
    assert zero.n_matches > 500
    assert zero.magzp_unc < 0.002
    assert zero.clrcoeff == pytest.approx(coefficient, abs=0.01)
