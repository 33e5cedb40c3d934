"""PSF-fit photometry of the survey's own channel image: apertures, asteroids, the loci of chi and sharp.

The seeing is 1.3 px there: the point-spread function is undersampled, which no simulated image of 2 px shows.
"""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.wcs import WCS

from benchmarks import loci
from tests.helpers import psf_chain, ztf_image
from tests.helpers.psf_chain import nearest
from tests.helpers.ztf_image import ASTEROIDS, DATA, MARKS
from zsds_hpc.photometry.channel import normalize
from zsds_hpc.photometry.growth import ApertureCorrectionParams, aperture_corrections, isolated_stars

REFERENCE = DATA / "ztf_catalogs_lightcurves" / "ztf_000202_zg_c10_q1_refpsfcat.fits"
DIAMETERS = (2.0, 3.0, 4.0, 6.0, 10.0, 14.0)
pytestmark = MARKS


@pytest.fixture(scope="module")
def ztf():
    """Image re-measured from its pixels and its mask without the source bits; fits scaled to total flux."""
    pix, _, clean, header = ztf_image.read()
    result = psf_chain.measured(pix, clean, header["GAIN"], header["SATURATE"])
    growth = aperture_corrections(
        result.sub, clean, result.sources, result.catalogue, DIAMETERS, ApertureCorrectionParams()
    )
    scaled = normalize(result.fits.table, result.fits.psf, result.catalogue, growth, ApertureCorrectionParams())
    return SimpleNamespace(header=header, result=result, growth=growth, scaled=scaled)


@pytest.fixture(scope="module")
def isolated(ztf):
    """PSF magnitudes of isolated stars, and their rows of both catalogues."""
    stars = ztf.result.catalogue[isolated_stars(ztf.result.catalogue)]
    table = ztf.scaled.fits
    row, _ = nearest(stars["XWIN_IMAGE"] - 1, stars["YWIN_IMAGE"] - 1, table["x"], table["y"], 0.5)
    stars, rows = stars[row >= 0], table[row[row >= 0]]
    return SimpleNamespace(stars=stars, fits=rows, mag=-2.5 * np.log10(rows["flux"]) + ztf.header["MAGZP"])


def apart(ztf, isolated):
    """Median and robust scatter (mmag) of PSF less aperture magnitudes at 15-17 mag, for each aperture."""
    part, zero = (isolated.mag > 15) & (isolated.mag < 17), ztf.header["MAGZP"]
    found = []
    for k in range(len(DIAMETERS)):
        theirs = isolated.stars["MAG_APER"][part, k] + ztf.header[f"APCOR{k + 1}"] + zero
        difference = 1000 * (isolated.mag[part] - theirs)
        middle = np.median(difference)
        found.append((middle, 1.4826 * np.median(np.abs(difference - middle))))
    print(
        f"{part.sum()} stars of 15-17 mag, PSF - aperture, mmag: "
        + ", ".join(f"{d:g} px {m:.1f} (scatter {s:.1f})" for d, (m, s) in zip(DIAMETERS, found))
    )
    return np.array(found)


@pytest.mark.xfail(reason="-10 and -13 mmag at 4 and 6 px, as the curve of growth is from the header's corrections")
def test_magnitudes_are_those_of_apertures(ztf, isolated):
    """Median within 10 mmag under the header's zero point and aperture corrections, 4 and 6 px wide.

    The header's corrections refer to the survey's own PSF fits, 8 to 16 mmag from the curve of growth.
    """
    assert np.abs(apart(ztf, isolated)[2:4, 0]).max() <= 10


def test_single_magnitudes_are_those_of_apertures(ztf, isolated):
    """Scatter within 10 mmag."""
    assert apart(ztf, isolated)[3, 1] <= 10


def test_sum_of_the_psf_does_not_depend_on_the_phase(ztf):
    """Pixels tile the plane: whatever the place in the pixel, a star's pixels sum to its flux, to 2 mmag."""
    phase = (np.arange(5) + 0.5) / 5 - 0.5
    x, y = (1500 + a.ravel() for a in np.meshgrid(phase, phase))
    psf = ztf.result.fits.psf
    sums = psf.images(x, y, psf.half_pix).astype(float).sum(axis=(1, 2))
    print(f"sum over the pixels by phase: {1086 * sums.std() / sums.mean():.1f} mmag rms")
    assert 1086 * sums.std() / sums.mean() < 2


def test_aperture_corrections_are_those_of_the_curve_of_growth(ztf):
    """Once the fits are scaled to the curve of growth, both ways to an aperture correction lead to the same."""
    ours = np.array([ztf.scaled.metrics[f"apcor{k + 1}"] for k in range(len(DIAMETERS))])
    print(f"normalisation {1000 * ztf.scaled.metrics['psf_normalization_mag']:.1f} mmag; corrections {ours.round(3)}")
    np.testing.assert_allclose(ours[2:], ztf.growth.correction_mag[2:], atol=0.01)


def test_known_asteroids_are_in_the_catalogue(ztf):
    """Within 0.4 arcsec of where the survey's alerts have them; 160587 measures 19.5."""
    with open(ASTEROIDS) as file:
        rows = [row for row in csv.DictReader(file) if row["same_exposure"] == "True"]
    found, wcs = {}, WCS(ztf.header)
    for row in rows:
        x, y = wcs.all_world2pix(float(row["ra"]), float(row["dec"]), 0)
        k, distance = nearest(np.array([x]), np.array([y]), ztf.scaled.fits["x"], ztf.scaled.fits["y"], 2.0)
        assert k[0] >= 0 and distance[0] * 1.012 < 0.4, row["ssnamenr"]
        found[row["ssnamenr"]] = -2.5 * np.log10(ztf.scaled.fits["flux"][k[0]]) + ztf.header["MAGZP"]
    print(f"asteroids: {found}")
    assert set(found) == {"160587", "196108"}
    assert found["160587"] == pytest.approx(19.5, abs=0.15)


def test_loci_look_like_those_of_the_survey(ztf):
    """sharp of bright stars is near 0 and narrow, chi of faint ones near 1, as in the survey's reference catalogue.

    Above S/N 25 errors of the PSF show in our chi; the survey's errors hold them, and its S/N ends at 120.
    """
    ours = loci.quantiles(loci.of_fits(ztf.scaled.fits))
    theirs = loci.quantiles(loci.of_refpsfcat(REFERENCE))
    print("\n".join(loci.lines(ours, theirs)))
    for row, other in zip(ours, theirs):
        assert row.sharp[1] == pytest.approx(other.sharp[1], abs=0.15)
        assert row.chi[1] == pytest.approx(other.chi[1], rel=0.4) or row.snr[0] >= 25
    assert np.ptp(ours[-1].sharp) < 0.1
