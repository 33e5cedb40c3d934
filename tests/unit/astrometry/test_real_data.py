"""Real data: a ZTF header and frame, Tycho-2 stars, and a matched catalogue of a 1 m telescope."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zsds_hpc.astrometry.channel import calibrate_astrometry
from zsds_hpc.astrometry.match import Detections, Reference
from zsds_hpc.astrometry.solve import SolveParams, Stars, fit_tpv
from zsds_hpc.astrometry.sphere import deproject, project, separation_deg
from zsds_hpc.astrometry.tpv import N_TERMS, TPV

DATA = Path(__file__).parents[4] / "shared/data"
FRAME = DATA / "ztf_full/ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.gz"
TYCHO = DATA / "catalogs_reference/tycho2/tycho2_ztf655c13q3.fits"
LCOGT = DATA / "catalogs_reference/cpt1m012-fa06-20200113-0102-matched-cat.fits"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"real data absent: {DATA}"),
]


@pytest.fixture(scope="module")
def frame():
    with fits.open(FRAME) as file:
        return file[0].data.astype(np.float32), file[0].header


def test_header_agrees_with_wcslib(frame):
    header = frame[1]
    wcs = TPV.from_cards(header)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 3071, 5000), rng.uniform(0, 3079, 5000)
    sky = wcs.pixel_to_sky(x, y)
    assert separation_deg(*sky, *WCS(header).all_pix2world(x, y, 0)).max() < 1e-9
    assert np.abs(wcs.sky_to_pixel(*sky) - np.stack([x, y])).max() < 1e-6
    assert wcs.degree == 4
    written = {key: value for key, value, _ in wcs.to_cards()}
    for key in ("CRPIX1", "CRVAL2", "CD1_2", "PV1_5", "PV2_16"):
        assert written[key] == pytest.approx(header[key], rel=1e-15)
    assert wcs.pixel_scale_arcsec(1535.5, 1539.5) == pytest.approx(1.012, abs=0.002)


@pytest.mark.parametrize("offset_arcsec", [(0.0, 0.0), (50.0, -40.0)])
def test_frame_is_solved_from_42_saturated_tycho_stars(frame, offset_arcsec):
    """The stars are saturated and a Tycho position is 20 years old: a third of an arcsecond is what they carry."""
    sep = pytest.importorskip("sep")
    sep.set_extract_pixstack(3_000_000)
    background = sep.Background(frame[0])
    found = sep.extract(frame[0] - background.back(), 20.0, err=background.globalrms)
    n = len(found)
    detections = Detections(found["x"], found["y"], -2.5 * np.log10(found["flux"]), np.full(n, 0.3))
    stars = fits.getdata(TYCHO)
    columns = (stars["RA"], stars["DEC"], stars["MAG_VT"], np.full(len(stars), 0.1))
    reference = Reference(*(np.asarray(column, float) for column in columns))
    truth = TPV.from_cards(frame[1])
    d_ra = offset_arcsec[0] / np.cos(np.radians(truth.crval[1]))
    prior = replace(truth, crval=truth.crval + np.array([d_ra, offset_arcsec[1]]) / 3600)
    result = calibrate_astrometry(detections, reference, prior, frame[0].shape)
    assert result.match.n_matches >= 35
    assert result.match.peak_significance > 30
    x, y = np.meshgrid(np.linspace(0, 3071, 9), np.linspace(0, 3079, 9))
    away = 3600 * separation_deg(*result.wcs.pixel_to_sky(x, y), *truth.pixel_to_sky(x, y))
    assert np.sqrt(np.mean(away**2)) < 0.35
    assert result.metrics["scale_changed"] is False


def lcogt_stars():
    table = fits.getdata(LCOGT)
    table = table[(table["flux"] > 0) & (table["flag"] == 0) & np.isfinite(table["fwhm"])]
    years = 2020.03 - 2015.5
    dec = table["dec"] + table["pmdec"] * years / 3.6e6
    ra = table["ra"] + table["pmra"] * years / 3.6e6 / np.cos(np.radians(dec))
    sigma = np.hypot(0.005, np.clip(0.3 * table["fwhm"] * table["fluxerr"] / table["flux"], 0.001, 1.0))
    return Stars(table["xwin"] - 1.0, table["ywin"] - 1.0, ra, dec, sigma)


def linear_prior(stars):
    """Plain tangent-plane WCS by least squares: no knowledge of the distortion."""
    centre = float(np.median(stars.ra)), float(np.median(stars.dec))
    design = np.stack([np.ones_like(stars.x), stars.x - 2047.5, stars.y - 2047.5], axis=1)
    target = np.stack(project(stars.ra, stars.dec, *centre), axis=1)
    good = np.ones(len(target), bool)
    for _ in range(5):
        fit = np.linalg.lstsq(design[good], target[good], rcond=None)[0]
        miss = np.hypot(*(design @ fit - target).T)
        good = miss < 3 * np.median(miss)
    pv = np.eye(N_TERMS)[1]
    return TPV(np.array(deproject(*fit[0], *centre)), np.full(2, 2047.5), fit[1:].T, pv, pv)


def robust_rms(residuals):
    return 1.4826 * np.median(np.abs(residuals), axis=0)


def test_cubic_fit_of_a_real_catalogue():
    """The cubic reaches 0.023 arcsec; a linear map 0.07."""
    stars = lcogt_stars()
    prior = linear_prior(stars)
    cubic, linear = (fit_tpv(stars, prior, SolveParams(degree=d, half_size_pix=2048.0)) for d in (3, 1))
    assert robust_rms(cubic.residuals_arcsec)[0] == pytest.approx(0.023, abs=0.001)
    assert robust_rms(cubic.residuals_arcsec)[1] == pytest.approx(0.024, abs=0.001)
    assert (robust_rms(linear.residuals_arcsec) > 0.06).all()
    assert cubic.n_used > 2200
