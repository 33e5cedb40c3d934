"""Aperture corrections from the curve of growth and from PSF fits, noise-equivalent area."""

import numpy as np
import pytest
from starfield import ZEROPOINT_MAG, Profile, enclosed_light

from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.photometry.growth import (
    ApertureCorrectionParams,
    _profile_corrections,
    aperture_corrections,
    aperture_corrections_to_psf,
    growth_difference,
    isolated_stars,
    point_source_area,
    psf_noise_area,
    rescaled_to_growth,
)
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.zeropoint import limiting_magnitude
from zsds_hpc.psf.model import PsfModel, node_offsets, spline_coefficients

DIAMETERS = (2.0, 3.0, 4.0, 6.0, 10.0, 14.0)
FITS = np.dtype([("x", "f8"), ("y", "f8"), ("flux", "f8"), ("sigflux", "f8")])


def true_corrections(profile):
    """From the renderer's own noiseless profile, mean over pixel phases."""
    return 2.5 * np.log10(enclosed_light(profile, np.array(DIAMETERS) / 2))


def corrections(reduced, **changes):
    return aperture_corrections(
        reduced.sub, reduced.mask, reduced.found, reduced.catalogue, DIAMETERS, ApertureCorrectionParams(**changes)
    )


def test_curve_of_growth_reaches_total_flux(reduced):
    found = corrections(reduced)
    error = found.correction_mag - true_corrections(Profile())
    assert found.n_stars > 50
    assert (np.abs(error) < 3 * found.unc_mag).all()
    assert (found.unc_mag < 0.006).all()
    assert 0 < found.outer_fraction < 0.006


def test_without_stars_the_profile_gives_the_corrections(reduced):
    found = corrections(reduced, min_snr=1e5)
    assert found.n_stars == 0
    np.testing.assert_allclose(found.correction_mag, true_corrections(Profile()), atol=0.05)
    bare = reduced.found.__class__(reduced.found.table, reduced.found.segments)
    with pytest.raises(AlgorithmFailure, match="too few stars"):
        aperture_corrections(
            reduced.sub, reduced.mask, bare, reduced.catalogue[:0], DIAMETERS, ApertureCorrectionParams()
        )


def test_isolated_stars_have_no_bright_neighbour(reduced):
    good = isolated_stars(reduced.catalogue, 8.0, 0.05)
    catalogue = reduced.catalogue
    for i in np.flatnonzero(good)[:50]:
        distance = np.hypot(
            catalogue["XWIN_IMAGE"] - catalogue["XWIN_IMAGE"][i], catalogue["YWIN_IMAGE"] - catalogue["YWIN_IMAGE"][i]
        )
        near = (distance < 8) & (distance > 0)
        assert not (catalogue["FLUX_AUTO"][near] > 0.05 * catalogue["FLUX_AUTO"][i]).any()
    assert good.sum() > 0.5 * len(good)
    assert isolated_stars(catalogue[:0]).size == 0


def test_limiting_magnitude_is_where_stars_have_five_sigma(reduced):
    area = point_source_area(reduced.found.profile, corrections(reduced))
    true_area = 1 / (Profile().stamp(0.25, 0.25, 12) ** 2).sum()
    assert area == pytest.approx(true_area, rel=0.08)
    limit = limiting_magnitude(reduced.sky.global_rms, reduced.field.gain, area, ZEROPOINT_MAG)
    catalogue = reduced.catalogue
    near = (reduced.star >= 0) & (np.abs(catalogue["SNR_WIN"] - 8) < 1) & (catalogue["FLAGS"] == 0)
    mag = ZEROPOINT_MAG - 2.5 * np.log10(reduced.field.flux[reduced.star[near]])
    assert np.median(mag) + 2.5 * np.log10(8 / 5) == pytest.approx(limit, abs=0.12)


def test_profile_fallback_is_exact_for_a_moffat():
    """The reference cuts circles out of 1/60 px squares, which costs it 0.4 mmag at 1 px radius."""
    truth = Profile(axis_ratio=1.0, wing=0.0, beta=3.0)
    found = _profile_corrections(StarProfile(2.0, 3.0), DIAMETERS, 0)
    np.testing.assert_allclose(found.correction_mag, true_corrections(truth), atol=5e-4)


# Aperture corrections to PSF magnitudes.


def true_fits(reduced, rng, scale=1.0):
    """What a PSF fit of every star would give: true places and fluxes with the noise of photons and sky."""
    field = reduced.field
    fits = np.zeros(len(field.x), FITS)
    fits["sigflux"] = np.sqrt(field.flux / field.gain + 14 * field.sky_sigma**2)
    fits["x"], fits["y"] = field.x + rng.normal(0, 0.01, len(fits)), field.y + rng.normal(0, 0.01, len(fits))
    fits["flux"] = scale * (field.flux + rng.normal(0, fits["sigflux"]))
    return fits[rng.permutation(len(fits))]


def to_psf(reduced, fits, **changes):
    return aperture_corrections_to_psf(reduced.catalogue, fits, DIAMETERS, ApertureCorrectionParams(**changes))


def test_apertures_are_referred_to_psf_magnitudes(reduced):
    found = to_psf(reduced, true_fits(reduced, np.random.default_rng(30)))
    error = found.correction_mag - true_corrections(Profile())
    assert found.n_stars > 50
    assert (np.abs(error) < 3.5 * found.unc_mag).all()
    assert (found.unc_mag[1:] < 0.003).all()


def test_a_wrong_normalisation_of_the_psf_goes_into_the_corrections_and_is_seen(reduced):
    right, wrong = (to_psf(reduced, true_fits(reduced, np.random.default_rng(31), scale)) for scale in (1.0, 0.98))
    np.testing.assert_allclose(wrong.correction_mag - right.correction_mag, -2.5 * np.log10(0.98), atol=5e-4)
    growth = corrections(reduced)
    offset, unc = growth_difference(right, growth)
    assert abs(offset) < 3 * unc < 0.02
    assert growth_difference(wrong, growth)[0] == pytest.approx(offset + 2.5 * np.log10(0.98), abs=5e-4)


def test_corrections_to_psf_bear_outliers_and_sources_without_fit(reduced):
    rng = np.random.default_rng(32)
    fits = true_fits(reduced, rng)
    clean = to_psf(reduced, fits)
    fits["flux"][rng.random(len(fits)) < 0.1] *= 0.7
    fits["flux"][:3] = [np.nan, -1.0, 0.0]
    spoilt = to_psf(reduced, fits[rng.random(len(fits)) < 0.8])
    assert spoilt.n_stars < clean.n_stars
    assert (np.abs(spoilt.correction_mag - clean.correction_mag) < 0.003).all()


def test_corrections_to_psf_need_stars(reduced):
    fits = true_fits(reduced, np.random.default_rng(33))
    for few in (fits[:0], fits[:2]):
        with pytest.raises(AlgorithmFailure, match="too few stars with PSF fits") as failure:
            to_psf(reduced, few)
        assert failure.value.figures["n_stars"] <= 2
    far = fits.copy()
    far["x"] += 5
    with pytest.raises(AlgorithmFailure, match="too few stars"):
        to_psf(reduced, far, match_pix=0.5)


def spline_psf(sigma_pix, shape, oversampling=4, half=12, growth=0.0):
    """Gaussian PSF, pixel-integrated, whose width grows by `growth` per unit of u, as a spline model."""
    from scipy.special import erf

    def image(sigma):
        offset = node_offsets(half, oversampling)
        line = 0.5 * (erf((offset + 0.5) / sigma / 2**0.5) - erf((offset - 0.5) / sigma / 2**0.5))
        return np.outer(line, line)

    base = spline_coefficients(image(sigma_pix))
    step = (spline_coefficients(image(sigma_pix + growth / 2)) - spline_coefficients(image(sigma_pix - growth / 2))) / 1
    return PsfModel(np.stack([base, step, 0 * base]).astype(np.float32), oversampling, 1, shape)


def test_rescaled_fits_have_the_total_flux_of_the_curve_of_growth(reduced):
    fits, psf = true_fits(reduced, np.random.default_rng(34), 0.98), spline_psf(1.5, (300, 200))
    offset, unc = growth_difference(to_psf(reduced, fits), corrections(reduced))
    scaled, normed = rescaled_to_growth(fits, psf, offset)
    assert growth_difference(to_psf(reduced, scaled), corrections(reduced))[0] == pytest.approx(0, abs=1e-6)
    ratio = scaled["flux"] / fits["flux"]
    assert np.median(ratio) == pytest.approx(1 / 0.98, abs=3 * unc)
    np.testing.assert_allclose(scaled["sigflux"] / scaled["flux"], fits["sigflux"] / fits["flux"])
    np.testing.assert_allclose(normed.center(5) * ratio[0], psf.center(5), rtol=1e-5, atol=1e-9)


def test_noise_area_of_a_gaussian():
    """4 pi (sigma^2 + 1/12): a pixel adds 1/12 to the variance; exact for wide stars (King 1983)."""
    for sigma in (1.5, 2.0):
        area = psf_noise_area(spline_psf(sigma, (300, 200)))
        assert area == pytest.approx(4 * np.pi * (sigma**2 + 1 / 12), rel=0.01)


def test_noise_area_is_the_median_over_the_image():
    varying = psf_noise_area(spline_psf(1.6, (300, 200), growth=0.2))
    assert varying == pytest.approx(psf_noise_area(spline_psf(1.6, (300, 200))), rel=0.01)
