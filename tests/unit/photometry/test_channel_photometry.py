"""From PSF fits to a calibrated channel: normalisation, apertures, zero point, depth."""

import numpy as np
import pytest

from tests.unit.photometry.psfscene import make_psf
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.photometry.aperture import sexcat_dtype
from zsds_hpc.photometry.channel import STANDARD_DTYPE, calibrate_photometry, depth, listed, normalize
from zsds_hpc.photometry.growth import ApertureCorrectionParams, ApertureCorrections
from zsds_hpc.photometry.psffit import FIT_HELD, PSF_FIT_DTYPE
from zsds_hpc.photometry.zeropoint import CalibratorParams, ZeroPointParams

SHAPE = (900, 1000)
ZP, COLOR = 26.2, -0.05
DIAMETERS = np.array([2.0, 3.0, 4.0, 6.0, 10.0, 14.0])
#: Share of the light within each aperture.
SHARE = np.array([0.4, 0.62, 0.75, 0.88, 0.95, 0.97])
GROWTH = ApertureCorrections(DIAMETERS, 2.5 * np.log10(SHARE), np.full(6, 0.002), 50, 0.02)
#: The PSF that the fits were made with holds 3% less light than it should: their fluxes are 3% low.
PSF_SHARE = 0.97


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE)


def stars_of(rng, n=900):
    """PSF fits of stars with true magnitudes and colours, and their aperture catalogue."""
    fits, color = np.zeros(n, PSF_FIT_DTYPE), rng.normal(0.6, 0.25, n)
    mag = rng.uniform(14, 19, n)
    total = 10 ** (-0.4 * (mag - ZP - COLOR * color))
    fits["x"], fits["y"] = rng.uniform(20, SHAPE[1] - 20, n), rng.uniform(20, SHAPE[0] - 20, n)
    fits["sigflux"] = np.sqrt(total / 6.2 + 60**2)
    fits["flux"] = PSF_SHARE * total + rng.normal(0, fits["sigflux"])
    fits["chi"], fits["sharp"] = rng.normal(1, 0.05, n), rng.normal(0, 2 * fits["sigflux"] / total)
    fits["dominance"], fits["n_pix"] = 1, 169
    catalogue = np.zeros(n, sexcat_dtype(6))
    catalogue["XWIN_IMAGE"], catalogue["YWIN_IMAGE"] = fits["x"] + 1, fits["y"] + 1
    catalogue["FLUX_APER"] = total[:, None] * SHARE
    catalogue["FLUX_APER"] += rng.normal(0, 1, (n, 6)) * fits["sigflux"][:, None]
    catalogue["FLUXERR_APER"] = fits["sigflux"][:, None]
    catalogue["FLUX_AUTO"], catalogue["FLUXERR_AUTO"] = total, fits["sigflux"]
    catalogue["SNR_WIN"] = total / fits["sigflux"]
    return fits, catalogue, mag, color, total


def standards_of(fits, mag, color, rng):
    out = np.zeros(len(fits), STANDARD_DTYPE)
    out["x"], out["y"] = fits["x"] + rng.normal(0, 0.1, len(fits)), fits["y"] + rng.normal(0, 0.1, len(fits))
    out["err"], out["color_err"], out["sign"] = 0.01, 0.014, 1
    noise, other = rng.normal(0, 0.01, (2, len(fits)))
    out["mag"], out["color"] = mag + noise, color + noise - other
    return out


def normalized(rng, psf, growth=GROWTH):
    fits, catalogue, *truth = stars_of(rng)
    return fits, normalize(fits, psf, catalogue, growth, ApertureCorrectionParams(isolation_pix=2.0)), truth


def calibrated(result, standards, mask=None, **changes):
    mask = np.zeros(SHAPE, np.int16) if mask is None else mask
    return calibrate_photometry(result, mask, standards, 1.5, CalibratorParams(), ZeroPointParams(**changes))


def test_fits_get_the_total_flux_of_the_curve_of_growth(psf):
    fits, result, (_, _, total) = normalized(np.random.default_rng(1), psf)
    before = fits.copy()
    metrics = result.metrics
    offset = 2.5 * np.log10(PSF_SHARE)
    assert metrics["psf_normalization_mag"] == pytest.approx(offset, abs=4 * metrics["psf_normalization_unc"])
    assert metrics["psf_normalization_unc"] < 0.005
    bright = total > 30_000
    assert np.median(result.fits["flux"][bright] / total[bright]) == pytest.approx(1, abs=0.005)
    np.testing.assert_allclose(result.fits["sigflux"] / result.fits["flux"], fits["sigflux"] / fits["flux"], rtol=1e-12)
    np.testing.assert_array_equal(fits, before)
    # The image of a star is what it was.
    ratio = result.fits["flux"][0] / fits["flux"][0]
    np.testing.assert_allclose(result.psf.coefficients * ratio, psf.coefficients, rtol=1e-5)


def test_aperture_corrections_are_to_total_flux(psf):
    """All of them, though only some apertures are near the one where PSF and growth are compared."""
    _, result, _ = normalized(np.random.default_rng(2), psf)
    for k, share in enumerate(SHARE, 1):
        assert result.metrics[f"apcor{k}"] == pytest.approx(2.5 * np.log10(share), abs=0.006)
        assert 0 < result.metrics[f"apcorun{k}"] < 0.005


def test_without_stars_the_curve_of_growth_stands(psf):
    fits, catalogue, *_ = stars_of(np.random.default_rng(3), 3)
    result = normalize(fits, psf, catalogue, GROWTH, ApertureCorrectionParams())
    np.testing.assert_array_equal(result.fits, fits)
    assert result.psf is psf and result.metrics["psf_normalization_mag"] == 0
    assert [result.metrics[f"apcor{k}"] for k in range(1, 7)] == GROWTH.correction_mag.tolist()


def test_zero_point_and_its_map(psf):
    rng = np.random.default_rng(4)
    fits, result, (mag, color, _) = normalized(rng, psf)
    standards = standards_of(fits, mag, color, rng)
    metrics = calibrated(result, standards[rng.permutation(len(standards))])
    assert abs(metrics["magzp"] - ZP) < 3.5 * metrics["magzp_unc"] < 0.02
    assert abs(metrics["clrcoeff"] - COLOR) < 3.5 * metrics["clrcoeff_unc"] < 0.02
    assert metrics["magzp_unc"] >= result.metrics["psf_normalization_unc"]
    assert 700 < metrics["n_matches"] <= 900
    cells = np.array(metrics["zeropoint_map_mag"], float)
    assert cells.shape == (8, 8) and np.nanmax(np.abs(cells)) < 0.02


def test_stars_on_bad_pixels_and_bad_fits_do_not_calibrate(psf):
    rng = np.random.default_rng(5)
    fits, result, (mag, color, _) = normalized(rng, psf)
    standards = standards_of(fits, mag, color, rng)
    wrong = np.arange(len(fits)) % 4 == 0
    standards["mag"][wrong] += 0.3
    mask = np.zeros(SHAPE, np.int16)
    places = np.rint(np.stack([fits["y"], fits["x"]], 1)).astype(int)
    mask[tuple(places[wrong][::2].T)] = maskbits.DEAD
    result.fits["flags"][np.flatnonzero(wrong)[1::2]] = FIT_HELD
    metrics = calibrated(result, standards, mask)
    assert metrics["n_matches"] <= (~wrong).sum() + 3
    assert abs(metrics["magzp"] - ZP) < 3.5 * metrics["magzp_unc"]


def test_too_few_standards(psf):
    rng = np.random.default_rng(6)
    fits, result, (mag, color, _) = normalized(rng, psf)
    standards = standards_of(fits, mag, color, rng)
    for some in (standards[:0], standards[:4]):
        with pytest.raises(AlgorithmFailure, match="too few calibrators"):
            calibrated(result, some)
    standards["x"] += 5
    with pytest.raises(AlgorithmFailure):
        calibrated(result, standards[:100])


def test_maps_are_lists_with_none():
    assert listed(np.array([[1.5, np.nan], [np.inf, -2.0]])) == [[1.5, None], [None, -2.0]]


def test_depth_is_five_sigma_of_the_weighted_sky(psf):
    """Sky-limited: flux 5 sigma / sqrt(sum P^2); normalised to a PSF with all its light."""
    area = 1 / (psf.center(12).astype(float) ** 2).sum()
    expected = ZP - 2.5 * np.log10(5 * 8.0 * np.sqrt(area))
    assert depth(psf, 8.0, 1e9, ZP) == pytest.approx(expected, abs=0.06)  # mean over phases and the image
    assert depth(psf, 8.0, 6.2, ZP) < depth(psf, 8.0, 1e9, ZP)
