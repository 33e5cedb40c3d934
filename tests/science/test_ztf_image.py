"""The survey's own calibrated channel image, re-measured by our detection, astrometry and hit finder.

There is no Gaia list of the field in the data, so the reference stars are our detections put on the sky by the
header's map, with 20 mas of error, half of them missing and as many wrong ones; what is tested is the way back from
the commanded pointing and the camera file's prior for rcid 50, which knows nothing of this exposure. Tycho-2 stars
and asteroids are independent of both. Background, depth and apertures of the image are in
`tests/unit/photometry/test_real.py`.
"""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from tests.helpers import ztf_image
from tests.helpers.ztf_image import ASTEROIDS, DATA, MARKS
from zsds_hpc.astrometry.channel import calibrate_astrometry
from zsds_hpc.astrometry.geometry import initial_wcs
from zsds_hpc.astrometry.match import Detections, Reference
from zsds_hpc.astrometry.sphere import separation_deg
from zsds_hpc.core import maskbits
from zsds_hpc.detector.cosmicrays import CosmicRayParams, Detector, find_cosmic_rays
from zsds_hpc.photometry.aperture import MeasureParams, measure, with_profile
from zsds_hpc.photometry.background import BackgroundParams, estimate_background
from zsds_hpc.photometry.detect import FLAG_SATURATED, FLAG_TRUNCATED, DetectParams, detect_sources
from zsds_hpc.photometry.zeropoint import limiting_magnitude
from zsds_hpc.pipelines.ingest import geometry_of
from zsds_hpc.settings.camera import load_camera

TYCHO = DATA / "catalogs_reference" / "tycho2" / "tycho2_ztf655c13q3.fits"
RCID = 50
pytestmark = MARKS


@pytest.fixture(scope="module")
def ztf():
    """Image, mask without the source bits, header, background and our sources (0-based)."""
    pix, mask, clean, header = ztf_image.read()
    sky = estimate_background(pix, clean, BackgroundParams())
    sub = pix - sky.level
    found = detect_sources(sub, sky.rms, clean, DetectParams(fwhm_pix=1.3))
    found = with_profile(sub, sky.rms, clean, found, MeasureParams())
    catalogue = measure(sub, sky.rms, clean, header["GAIN"], found, MeasureParams())
    x, y = catalogue["XWIN_IMAGE"] - 1, catalogue["YWIN_IMAGE"] - 1
    sigma = np.sqrt((catalogue["ERRX2WIN_IMAGE"] + catalogue["ERRY2WIN_IMAGE"]) / 2).astype(float)
    snr = sub / sky.rms
    return SimpleNamespace(**locals())


@pytest.fixture(scope="module")
def solution(ztf):
    """Our WCS of the image, from the pointing, the prior and the poor reference list."""
    good = (ztf.catalogue["FLAGS"] & (FLAG_SATURATED | FLAG_TRUNCATED) == 0) & np.isfinite(ztf.x + ztf.sigma)
    seen = Detections(ztf.x[good], ztf.y[good], ztf.catalogue["MAG_AUTO"][good].astype(float), ztf.sigma[good])
    rng = np.random.default_rng(50)
    chosen = np.sort(rng.permutation(np.argsort(seen.mag)[:6000])[:3000])
    ra, dec = WCS(ztf.header).all_pix2world(seen.x[chosen], seen.y[chosen], 0)
    ra = np.append(ra, rng.uniform(ra.min(), ra.max(), 3000))
    dec = np.append(dec, rng.uniform(dec.min(), dec.max(), 3000))
    ra += rng.normal(0, 0.02, 6000) / 3600 / np.cos(np.radians(dec))
    dec += rng.normal(0, 0.02, 6000) / 3600
    mag = np.append(seen.mag[chosen], rng.choice(seen.mag[chosen], 3000)) + rng.normal(0, 0.3, 6000)
    camera = load_camera("ztf")
    prior = initial_wcs(geometry_of(camera.channel(RCID), camera), ztf.header["TELRAD"], ztf.header["TELDECD"])
    return calibrate_astrometry(seen, Reference(ra, dec, mag, np.full(6000, 0.02)), prior, ztf.pix.shape)


def test_map_of_the_header_is_found_from_the_pointing(ztf, solution):
    """To 0.1 arcsec over the image is wanted, 2 mas rms is reached."""
    x, y = np.meshgrid(np.linspace(0, 3071, 33), np.linspace(0, 3079, 33))
    theirs = WCS(ztf.header).all_pix2world(x, y, 0)
    error = 3600 * separation_deg(*solution.wcs.pixel_to_sky(x, y), *theirs)
    print(f"map against the header's: rms {1000 * np.sqrt((error**2).mean()):.2f} mas, max {1000 * error.max():.2f}")
    assert error.max() < 0.02
    assert 2500 < solution.metrics["n_astrometric"] <= 3100


def test_prior_of_the_camera_file_is_within_the_pointing_error(ztf, solution):
    assert solution.metrics["pointing_offset_arcsec"] < 20
    assert abs(solution.match.rotation_deg) < 0.1 and not solution.metrics["scale_changed"]


def test_tycho_stars_are_where_we_see_them(ztf, solution):
    """Bright stars are saturated here and bleed, so the median counts: proper motions since 2000 average out."""
    stars = fits.getdata(TYCHO, 1)
    x, y = solution.wcs.sky_to_pixel(stars["RA"], stars["DEC"])
    inside = (x > 20) & (x < 3050) & (y > 20) & (y < 3060)
    offsets = []
    for at_x, at_y in zip(x[inside], y[inside]):
        k = np.hypot(ztf.x - at_x, ztf.y - at_y).argmin()
        offsets.append((ztf.x[k] - at_x, ztf.y[k] - at_y))
    offsets = np.array([offset for offset in offsets if np.hypot(*offset) < 3]) * 1.012
    print(
        f"{len(offsets)} of {inside.sum()} Tycho stars within 3 px, median offset {np.median(offsets, axis=0)} arcsec"
    )
    assert len(offsets) >= 15
    assert np.abs(np.median(offsets, axis=0)).max() < 0.2


def test_known_asteroids_are_detected(ztf, solution):
    with open(ASTEROIDS) as file:
        rows = [row for row in csv.DictReader(file) if row["same_exposure"] == "True"]
    assert {row["ssnamenr"] for row in rows} == {"160587", "196108"}
    for row in rows:
        x, y = solution.wcs.sky_to_pixel(float(row["ra"]), float(row["dec"]))
        assert np.hypot(ztf.x - x, ztf.y - y).min() * 1.012 < 0.3  # 1.5 arcsec is wanted


def test_seeing_and_depth_of_the_header(ztf):
    """The header's SEEING, 1.24 px, is neither the width of the mean profile at half its peak nor the width of a
    Gaussian with the isophotes' moments, and lies between; its MAGLIM is that of a Gaussian star of this width and our
    noise. Real stars have wings: their noise-equivalent area is 7 px, not 4.5, which makes our limit 0.2 mag brighter
    (`tests/unit/photometry/test_real.py`)."""
    clean = (ztf.catalogue["FLAGS"] == 0) & (ztf.catalogue["SNR_WIN"] > 50) & (ztf.catalogue["SPREAD_MODEL"] < 0.003)
    of_moments, of_peak = np.median(ztf.catalogue["FWHM_IMAGE"][clean]), ztf.found.profile.observed_fwhm_pix
    print(f"FWHM of the mean profile {of_peak:.2f} px, of moments {of_moments:.2f}, header {ztf.header['SEEING']}")
    assert 0.8 < of_peak < ztf.header["SEEING"] < of_moments < 1.7
    variance = (ztf.header["SEEING"] / 2.3548) ** 2 + 1 / 12
    limit = limiting_magnitude(ztf.sky.global_rms, ztf.header["GAIN"], 4 * np.pi * variance, ztf.header["MAGZP"])
    assert limit == pytest.approx(ztf.header["MAGLIM"], abs=0.1)


@pytest.fixture(scope="module")
def hits(ztf):
    """Our radiation hits, without the help of the survey's."""
    mask = (ztf.clean & ~maskbits.SPIKE).astype(np.int16)
    detector = Detector(ztf.header["GAIN"], ztf.header["READNOI"])
    return find_cosmic_rays(ztf.pix, mask, detector, CosmicRayParams()).mask


def test_hits_are_hits_and_not_stars(ztf, hits):
    """The survey's own bit 7 is of no help: it marks lone pixels on faint sources, S/N 7-30."""
    saturated = ndimage.binary_dilation(ztf.mask & maskbits.SATURATED > 0, iterations=8)
    n_clumps = ndimage.label(hits & ~saturated, np.ones((3, 3)))[1]
    stars = (ztf.mask & maskbits.PSFSOURCE > 0) & ~saturated & (ztf.snr > 10)
    touched = ndimage.binary_dilation(hits, np.ones((3, 3)))[stars].mean()
    theirs = ztf.mask & maskbits.SPIKE > 0
    print(
        f"{n_clumps} hits away from saturated stars; {100 * touched:.3f}% of {stars.sum()} sources touched; "
        f"of the survey's {theirs.sum()} spike pixels {hits[theirs].sum()} are among ours"
    )
    assert 5 <= n_clumps <= 200
    assert touched < 0.002


def test_hits_that_the_survey_took_for_sources(hits):
    """Seen by eye: a track up a column, a lone pixel of S/N 25, and one of four pixels along a row, S/N 109."""
    for y, x in ((500, 1342), (592, 1570), (1027, 2486)):
        assert hits[y, x]
