"""A reference from rendered epochs: flux, noise, holes, outliers, shapes; and epochs that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers import minirefs
from zsds_hpc.coadd.template import TemplateParams, make_reference, native_mapping
from zsds_hpc.coadd.warp import prepare_epoch, warp_rows
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.numerics.resample import Mapping, spline_sample
from zsds_hpc.settings.camera import load_camera

PARAMS = TemplateParams()


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    return load_camera(minirefs.camera_file(tmp_path_factory.mktemp("camera")))


@pytest.fixture(scope="module")
def sky(camera):
    return minirefs.random_sky(camera)


@pytest.fixture(scope="module")
def grid(camera):
    return minirefs.grid_of(camera)


@pytest.fixture(scope="module")
def passer_by(grid):
    """An asteroid seen in one epoch, 80,000 DN, at native pixel (90, 60)."""
    return (*map(float, grid.wcs.pixel_to_sky(90.0, 60.0)), 8e4)


@pytest.fixture(scope="module")
def exposures(camera, sky, passer_by):
    """Twelve epochs: an asteroid in the fourth, a hole at the same sky in all, a trail in the sixth."""
    taken = []
    for k, shot in enumerate(minirefs.shots(12)):
        shot = replace(shot, extra=(passer_by,) if k == 3 else ())
        if k == 5:
            shot = replace(shot, bits=((maskbits.TRACK, slice(40, 44), slice(None)),))
        exposure = minirefs.take(camera, sky, shot)
        x, y = (round(float(v)) for v in exposure.wcs.sky_to_pixel(*hole_at(camera)))
        exposure.mask[y - 5 : y + 6, x - 5 : x + 6] |= maskbits.SATURATED
        taken.append(exposure)
    return taken


def hole_at(camera):
    return minirefs.grid_of(camera).wcs.pixel_to_sky(140.0, 120.0)


@pytest.fixture(scope="module")
def reference(exposures, grid):
    return make_reference(exposures, grid, minirefs.MAGZP, PARAMS, {"rfid": 7})


def stars_on(grid, sky, margin=12):
    x, y = grid.wcs.sky_to_pixel(*sky.stars[:, :2].T)
    n_y, n_x = grid.shape
    inside = (x > margin) & (y > margin) & (x < n_x - margin) & (y < n_y - margin)
    inside &= np.hypot(x - 140, y - 120) > 20
    return x[inside], y[inside], sky.stars[inside, 2]


def test_stars_have_their_flux_and_place(reference, grid, sky):
    catalogue = reference.template.catalogue
    x, y, flux = stars_on(grid, sky)
    distance = np.hypot(catalogue["xpos"][:, None] - 1 - x, catalogue["ypos"][:, None] - 1 - y)
    assert (distance.min(axis=0) < 0.5).all()
    found = catalogue[distance.argmin(axis=0)]
    bright = flux > 3000
    assert bright.sum() >= 10
    assert np.median(found["flux"][bright] / flux[bright]) == pytest.approx(1.0, abs=0.004)
    assert np.std(found["flux"][bright] / flux[bright]) < 0.012
    assert np.median(distance.min(axis=0)[bright]) < 0.02
    np.testing.assert_allclose(found["mag"] + 2.5 * np.log10(found["flux"]), minirefs.MAGZP, atol=1e-4)
    assert np.median(np.abs(found["flux"] - flux) / found["sigflux"]) < 1.1


def test_noise_is_what_the_uncertainty_says(reference, grid, sky):
    """In sums over 4 x 4 pixels; single pixels are smoother, for resampling correlates them."""
    blank = np.ones(grid.shape, bool)
    yy, xx = np.mgrid[: grid.shape[0], : grid.shape[1]]
    for x, y in zip(*grid.wcs.sky_to_pixel(*sky.stars[:, :2].T)):
        blank &= np.hypot(xx - x, yy - y) > 14
    blank &= (np.hypot(xx - 140, yy - 120) > 14) & (reference.coverage == 12)
    n_y, n_x = (n // 4 for n in grid.shape)
    cut = np.s_[: 4 * n_y, : 4 * n_x]
    whole = blank[cut].reshape(n_y, 4, n_x, 4).all(axis=(1, 3))
    assert whole.sum() > 200
    sums = reference.pix[cut].reshape(n_y, 4, n_x, 4).sum(axis=(1, 3))[whole]
    expected = np.sqrt((reference.template.sigma[cut] ** 2).reshape(n_y, 4, n_x, 4).sum(axis=(1, 3)))[whole]
    assert np.std((sums - np.median(sums)) / expected) == pytest.approx(1.0, abs=0.12)
    assert 0.8 < np.std(reference.pix[blank] / reference.template.sigma[blank]) < 1.0


def test_passing_things_are_gone(reference, exposures, grid):
    window = np.s_[56:65, 86:95]
    alone = make_reference(exposures[:3] + exposures[4:], grid, minirefs.MAGZP, PARAMS, {})
    difference = (reference.pix - alone.pix)[window] / reference.template.sigma[window]
    assert np.abs(difference).max() < 3  # 80,000 / 12 DN would be a thousand sigma
    assert reference.coverage[60, 90] == 11
    assert (reference.coverage[20:-20, 20:-20] < 12).mean() < 0.08  # trail 4.6%, hole 1.2%, asteroid 1%


def test_holes_are_marked_and_smooth(reference):
    template = reference.template
    assert reference.coverage[120, 140] == 0 and np.isinf(template.sigma[120, 140]) and reference.pix[120, 140] == 0
    assert template.mask[120, 140] & maskbits.NAN and template.mask[120, 140] & maskbits.SATURATED
    assert not template.mask[100, 140] & (maskbits.NAN | maskbits.SATURATED)
    assert np.isfinite(template.coefficients).all()
    around = spline_sample(template.coefficients, native_mapping(template.grid), template.grid.shape)[112:129, 132:149]
    usual = np.median(template.sigma[np.isfinite(template.sigma)])
    assert np.abs(around).max() < 6 * usual  # no ringing about the hole


def test_spline_gives_stars_at_any_shift(reference, grid, sky):
    """The fine image, sampled a fraction of a pixel on, holds the same stars: sums over them agree."""
    template = reference.template
    shape = (grid.shape[0] - 2, grid.shape[1] - 2)
    moved = Mapping.of(lambda x, y: (grid.to_fine(x + 0.37), grid.to_fine(y + 0.81)), shape)
    shifted = spline_sample(template.coefficients, moved, shape)
    x, y, flux = stars_on(grid, sky, 20)
    for k in np.flatnonzero(flux > 5000):
        i, j = round(x[k]), round(y[k])
        here = reference.pix[j - 9 : j + 10, i - 9 : i + 10].sum(dtype=float)
        there = shifted[j - 9 : j + 10, i - 9 : i + 10].sum(dtype=float)
        assert there == pytest.approx(here, rel=0.02)


def test_same_bits_again(reference, exposures, grid):
    again = make_reference(exposures, grid, minirefs.MAGZP, PARAMS, {"rfid": 7})
    assert np.array_equal(again.template.coefficients, reference.template.coefficients)
    assert np.array_equal(again.template.catalogue, reference.template.catalogue)


def test_trimmed_average_agrees(reference, exposures, grid):
    params = PARAMS.model_copy(update={"coadd": PARAMS.coadd.model_copy(update={"method": "trimmed"})})
    other = make_reference(exposures, grid, minirefs.MAGZP, params, {})
    both = (reference.coverage >= 11) & (other.coverage >= 11)
    quiet = both & (reference.pix < 30)
    difference = (other.pix - reference.pix)[quiet] / reference.template.sigma[quiet]
    assert np.std(difference) < 0.6
    assert 1.0 < np.median(other.template.sigma[quiet] / reference.template.sigma[quiet]) < 1.1


def test_warped_epoch_keeps_flux_and_scale(camera, grid):
    star = minirefs.Sky(np.array([[*map(float, grid.wcs.pixel_to_sky(60.3, 70.8)), 3e4]]))
    shot = replace(minirefs.shots(1)[0], magzp=25.5)
    layer = prepare_epoch(minirefs.take(camera, star, shot), grid, minirefs.MAGZP, PARAMS.warp)
    fine = warp_rows(layer, grid, -5, grid.fine_shape[0] + 9, PARAMS.warp)
    assert np.isnan(fine[:5]).all() and np.isnan(fine[-4:]).all()
    i, j = round(float(grid.to_fine(60.3))), round(float(grid.to_fine(70.8))) + 5
    window = fine[j - 21 : j + 22, i - 21 : i + 22]
    assert window.sum(dtype=float) / 2.25 == pytest.approx(3e4, rel=0.03)  # 2% are noise
    peak = np.unravel_index(window.argmax(), window.shape)
    assert np.hypot(*(np.array(peak) - 21)) < 1.5
    assert layer.facts.sky_var == pytest.approx(10 ** (0.8 * 0.775) * (300 / 6 + (10 / 6) ** 2), rel=0.03)


def test_epoch_elsewhere_is_refused(camera, sky, grid):
    away = replace(minirefs.shots(1)[0], shift_arcsec=(600.0, 0.0))
    with pytest.raises(BadInput, match="overlap"):
        prepare_epoch(minirefs.take(camera, sky, away), grid, minirefs.MAGZP, PARAMS.warp)


def test_epoch_without_zero_point_is_refused(exposures, grid):
    with pytest.raises(BadInput, match="zero point"):
        prepare_epoch(replace(exposures[0], magzp=float("nan")), grid, minirefs.MAGZP, PARAMS.warp)


def test_all_masked_epochs_fail(exposures, grid):
    masked = [replace(e, mask=np.full_like(e.mask, maskbits.DEAD)) for e in exposures[:3]]
    with pytest.raises(AlgorithmFailure, match="background"):
        make_reference(masked, grid, minirefs.MAGZP, PARAMS, {})


def test_no_star_fails(exposures, grid):
    rng = np.random.default_rng(4)
    blank = [replace(e, pix=rng.normal(300, 7, e.pix.shape).astype(np.float32), mask=0 * e.mask) for e in exposures[:4]]
    with pytest.raises(AlgorithmFailure, match="no source"):
        make_reference(blank, grid, minirefs.MAGZP, PARAMS, {})
