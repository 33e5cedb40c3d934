"""Aperture sums, Kron fluxes, flags and the catalogue's conventions."""

import numpy as np
import pytest
import sep
from starfield import Profile, add_stars, enclosed_light
from zsds_hpc.kernels.aperture import circular_sums, core_widths, kron_sums

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.aperture import (
    COLUMNS,
    MeasureParams,
    attach_background,
    attach_sky,
    box_flags,
    half_flux_radius,
    magnitudes,
    measure,
    sexcat_dtype,
)
from zsds_hpc.photometry.detect import (
    FLAG_APERTURE,
    FLAG_NEIGHBOUR,
    FLAG_TRUNCATED,
    Detections,
    DetectParams,
    detect_sources,
)

RADII = np.array([1.0, 1.5, 2.0, 3.0, 5.0, 7.0])


def circles(pix, position, mask=None, labels=None, own=1, bad=maskbits.DEAD):
    """Sums and replaced areas of one or more sources of one label."""
    position = np.atleast_2d(np.asarray(position, float))
    mask = np.zeros(pix.shape, np.int16) if mask is None else mask
    labels = np.zeros(pix.shape, np.int32) if labels is None else labels
    sums, replaced = np.zeros((len(position), 6)), np.zeros((len(position), 6))
    circular_sums(pix, mask, labels, bad, np.full(len(position), own, np.int32), position, RADII, sums, replaced)
    return sums, replaced


def test_area_of_circles_is_exact_at_every_phase():
    position = np.random.default_rng(1).uniform(10, 20, (500, 2))
    sums, _ = circles(np.ones((31, 31), np.float32), position)
    np.testing.assert_allclose(sums, np.broadcast_to(np.pi * RADII**2, sums.shape), rtol=1e-12)


def test_sums_are_those_of_sep():
    rng = np.random.default_rng(2)
    pix = rng.normal(100, 30, (60, 70)).astype(np.float32)
    position = rng.uniform(10, 50, (100, 2))
    sums, _ = circles(pix, position)
    for k, radius in enumerate(RADII):
        expected = sep.sum_circle(pix, position[:, 0], position[:, 1], radius, subpix=0)[0]
        np.testing.assert_allclose(sums[:, k], expected, rtol=1e-5)


def test_bad_and_foreign_pixels_take_the_value_opposite():
    y, x = np.mgrid[0:31, 0:31]
    pix = (1000 * np.exp(-((x - 15) ** 2 + (y - 15) ** 2) / 4)).astype(np.float32)
    clean, _ = circles(pix, (15, 15))
    mask, labels, spoiled = np.zeros(pix.shape, np.int16), np.zeros(pix.shape, np.int32), pix.copy()
    mask[16, 15], spoiled[16, 15] = maskbits.DEAD, -5000
    labels[15, 18:22], spoiled[15, 18:22] = 2, 700
    spoiled[13, 13] = np.nan
    sums, replaced = circles(spoiled, (15, 15), mask, labels)
    np.testing.assert_allclose(sums, clean, rtol=1e-6)
    assert replaced[0, 5] == pytest.approx(6, abs=1e-9)


def test_pixels_bad_on_both_sides_and_outside_count_as_sky():
    pix = np.ones((31, 31), np.float32)
    mask = np.zeros(pix.shape, np.int16)
    mask[15, 13] = mask[15, 17] = maskbits.DEAD
    assert circles(pix, (15, 15), mask)[0][0, 5] == pytest.approx(49 * np.pi - 2)
    assert circles(pix, (-30.0, -30.0))[0][0].sum() == 0


def slow_ellipse(pix, x0, y0, a, b, theta, radius):
    """Sum and first moment over an ellipse on 21 x 21 sub-pixels."""
    steps = (np.arange(21) - 10) / 21
    y, x = (g[:, :, None, None] for g in np.mgrid[0 : pix.shape[0], 0 : pix.shape[1]].astype(float))
    dx, dy = np.broadcast_arrays(x + steps - x0, y + steps[:, None] - y0)
    c, s = np.cos(theta), np.sin(theta)
    r = np.hypot(c * dx + s * dy, (c * dy - s * dx) * a / b) / a
    inside = (r <= radius).mean(axis=(2, 3))
    centre = np.hypot(c * (x - x0) + s * (y - y0), (c * (y - y0) - s * (x - x0)) * a / b)[:, :, 0, 0] / a
    return (pix * inside).sum(), (pix * inside * centre).sum()


def test_kron_flux_and_radius_are_those_of_a_slow_reference():
    y, x = np.mgrid[0:81, 0:81]
    x0, y0, a, b, theta = 40.3, 39.6, 3.0, 1.8, 0.6
    c, s = np.cos(theta), np.sin(theta)
    u, v = c * (x - x0) + s * (y - y0), c * (y - y0) - s * (x - x0)
    pix = (500 * np.exp(-np.hypot(u / a, v / b) * 1.2)).astype(np.float32)
    shape = [
        c**2 / a**2 + s**2 / b**2,
        s**2 / a**2 + c**2 / b**2,
        2 * c * s * (1 / a**2 - 1 / b**2),
    ]
    result = np.zeros((1, 3))
    kron_sums(
        pix,
        np.zeros(pix.shape, np.int16),
        np.zeros(pix.shape, np.int32),
        0,
        np.ones(1, np.int32),
        np.array([[x0, y0, *shape]]),
        np.array([6.0, 2.5, 3.5, 60.0]),
        result,
    )
    flux, moment = slow_ellipse(pix.astype(float), x0, y0, a, b, theta, 6.0)
    radius = 2.5 * moment / flux
    assert result[0, 0] == pytest.approx(radius, rel=2e-3)
    assert result[0, 1] == pytest.approx(slow_ellipse(pix.astype(float), x0, y0, a, b, theta, radius)[0], rel=2e-3)
    assert result[0, 2] == pytest.approx(np.pi * a * b * radius**2, rel=0.01)


def test_core_width_of_gaussians():
    sigma = np.zeros(3)
    for k, width in enumerate((0.9, 1.3, 2.5)):
        y, x = np.mgrid[0:41, 0:41]
        pix = np.exp(-((x - 20.2) ** 2 + (y - 19.7) ** 2) / (2 * width**2)).astype(np.float32)
        part = np.zeros(1)
        core_widths(
            pix,
            np.zeros(pix.shape, np.int16),
            np.zeros(pix.shape, np.int32),
            0,
            np.ones(1, np.int32),
            np.array([[20.2, 19.7]]),
            1.0,
            part,
        )
        sigma[k] = part[0]
    np.testing.assert_allclose(sigma, [0.9, 1.3, 2.5], rtol=0.02)


def test_catalogue_has_the_declared_columns(reduced):
    catalogue = reduced.catalogue
    assert catalogue.dtype == sexcat_dtype(6)
    assert list(catalogue.dtype.names) == list(COLUMNS)
    assert catalogue["FLUX_APER"].shape == (len(catalogue), 6)
    assert (catalogue["NUMBER"] == np.arange(1, len(catalogue) + 1)).all()
    assert np.isnan(catalogue["ALPHAWIN_J2000"]).all()


def test_image_columns_are_one_based(reduced):
    good = reduced.star >= 0
    offset = reduced.catalogue["XWIN_IMAGE"][good] - reduced.field.x[reduced.star[good]]
    assert np.median(offset) == pytest.approx(1, abs=0.01)
    table = reduced.found.table
    np.testing.assert_allclose(reduced.catalogue["X_IMAGE"], table["x"] + 1)


def test_fluxes_of_isolated_stars_are_their_enclosed_light(reduced):
    """Against sums over the renderer's own noiseless profile."""
    enclosed = enclosed_light(Profile(), RADII)
    catalogue = reduced.catalogue
    good = (reduced.star >= 0) & (catalogue["FLAGS"] == 0) & (catalogue["SNR_WIN"] > 60)
    ratio = catalogue["FLUX_APER"][good] / reduced.field.flux[reduced.star[good]][:, None]
    np.testing.assert_allclose(np.mean(np.sort(ratio, axis=0)[2:-2], axis=0), enclosed, rtol=0.01)
    assert np.median(catalogue["FLUX_AUTO"][good] / reduced.field.flux[reduced.star[good]]) > 0.94


def test_errors_are_those_of_the_scatter(reduced):
    catalogue = reduced.catalogue
    good = (reduced.star >= 0) & (catalogue["FLAGS"] == 0) & (catalogue["SNR_WIN"] > 8)
    truth = reduced.field.flux[reduced.star[good]]
    enclosed = enclosed_light(Profile(), RADII)
    for k in (2, 3):
        pull = (catalogue["FLUX_APER"][good, k] - enclosed[k] * truth) / catalogue["FLUXERR_APER"][good, k]
        assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1, abs=0.2)


def test_seeing_columns(reduced):
    catalogue = reduced.catalogue
    good = (catalogue["FLAGS"] == 0) & (catalogue["SNR_WIN"] > 60)
    # The adaptive Gaussian width of a pixel-integrated two-Moffat of 2.0 px FWHM is 2.4 px.
    assert np.median(catalogue["FWHM_IMAGE"][good]) == pytest.approx(2.4, abs=0.05)
    assert catalogue["FWHM_IMAGE"][good].std() < 0.15
    assert np.median(catalogue["ELONGATION"][good]) < 1.25
    assert np.abs(np.median(catalogue["SPREAD_MODEL"][good])) < 0.001


def one_star(x=30.0, y=30.0, flux=2e4, shape=(60, 60)):
    pix = np.zeros(shape, np.float32)
    add_stars(pix, np.array([x]), np.array([y]), np.array([flux]))
    pix += np.random.default_rng(3).normal(0, 8, shape).astype(np.float32)
    return pix, np.full(shape, 8, np.float32), np.zeros(shape, np.int16)


def catalogue_of(pix, rms, mask, **changes):
    found = detect_sources(pix, rms, mask, DetectParams())
    return measure(pix, rms, mask, 6.2, found, MeasureParams(**changes))


def test_flags_of_masked_and_edge_sources():
    pix, rms, mask = one_star()
    assert catalogue_of(pix, rms, mask)["FLAGS"][0] == 0
    mask[26:30, 25:36] = maskbits.SATURATED
    assert catalogue_of(pix, rms, mask)["FLAGS"][0] & FLAG_NEIGHBOUR
    edge = catalogue_of(*one_star(x=1.0))
    assert edge["FLAGS"][0] & FLAG_TRUNCATED
    assert edge["FLAGS"][0] & FLAG_APERTURE
    assert edge["IMAFLAGS_ISO"][0] == -1


def test_box_flags_are_the_or_of_five_by_five():
    rng = np.random.default_rng(4)
    mask = (rng.random((40, 50)) < 0.02).astype(np.int16) * maskbits.SPIKE + maskbits.GHOST * (
        rng.random((40, 50)) < 0.02
    )
    mask = mask.astype(np.int16)
    position = rng.uniform(-0.4, [49.4, 39.4], (300, 2))
    for (x, y), value in zip(position, box_flags(mask, position)):
        i, j = round(x), round(y)
        inside = 2 <= i < 48 and 2 <= j < 38
        expected = np.bitwise_or.reduce(mask[j - 2 : j + 3, i - 2 : i + 3].ravel()) if inside else -1
        assert value == expected


def test_magnitudes_of_nothing_are_99():
    mag, error = magnitudes(np.array([100.0, 0.0, -5.0]), np.array([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(mag, [-5.0, 99, 99])
    np.testing.assert_allclose(error, [0.010857, 99, 99], rtol=1e-4)


def test_half_flux_radius_of_a_uniform_disc():
    area = np.minimum(RADII, 4.0)[None, :] ** 2
    assert half_flux_radius(area, RADII, np.array([16.0]))[0] == pytest.approx(np.sqrt(8.0))
    assert half_flux_radius(area, RADII, np.array([1000.0]))[0] == 0
    assert half_flux_radius(area, RADII, np.array([-1.0]))[0] == 0


def test_no_sources_make_an_empty_catalogue():
    blank = np.zeros((40, 40), np.float32)
    empty = detect_sources(blank, blank + 1, blank.astype(np.int16), DetectParams())
    catalogue = measure(blank, blank + 1, blank.astype(np.int16), 6.2, empty, MeasureParams())
    assert len(catalogue) == 0
    assert catalogue.dtype == sexcat_dtype(6)


def test_nan_island_in_a_source_leaves_finite_fluxes():
    pix, rms, mask = one_star()
    pix[31:33, 29:31] = np.nan
    catalogue = catalogue_of(pix, rms, mask)
    assert np.isfinite(catalogue["FLUX_APER"]).all()
    assert np.isfinite(catalogue["FLUX_AUTO"]).all()


def test_other_apertures_and_refusals():
    pix, rms, mask = one_star()
    assert catalogue_of(pix, rms, mask, aperture_diameters_pix=(3.0, 9.0))["MAG_APER"].shape[1] == 2
    assert MeasureParams.model_validate({"aperture_diameters_pix": [2.0, 5.0]}).aperture_diameters_pix == (2.0, 5.0)
    found = Detections(np.zeros(0), np.zeros(pix.shape, np.int32))
    with pytest.raises(BadInput, match="rising"):
        measure(pix, rms, mask, 6.2, found, MeasureParams(aperture_diameters_pix=(4.0, 2.0)))
    with pytest.raises(BadInput, match="gain"):
        measure(pix, rms, mask, 0.0, found, MeasureParams())


def test_sky_and_background_are_attached_to_a_copy(reduced):
    class Plate:
        def pixel_to_sky(self, x, y):
            return 100 + x / 3600, 20 + y / 3600

    named = attach_sky(reduced.catalogue, Plate())
    np.testing.assert_allclose(named["ALPHAWIN_J2000"], 100 + (reduced.catalogue["XWIN_IMAGE"] - 1) / 3600)
    assert np.isnan(reduced.catalogue["ALPHAWIN_J2000"]).all()
    level = attach_background(reduced.catalogue, reduced.sky.level)["BACKGROUND"]
    assert np.abs(level - 400).max() < 1.5


def test_measuring_repeats_bit_for_bit_and_leaves_the_input_alone(reduced):
    copies = [a.copy() for a in (reduced.sub, reduced.sky.rms, reduced.mask, reduced.found.segments)]
    again = measure(reduced.sub, reduced.sky.rms, reduced.mask, reduced.field.gain, reduced.found, MeasureParams())
    assert again.tobytes() == reduced.catalogue.tobytes()
    for copy, original in zip(copies, (reduced.sub, reduced.sky.rms, reduced.mask, reduced.found.segments)):
        np.testing.assert_array_equal(copy, original)
