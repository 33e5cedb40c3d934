"""The PSF catalogue's columns, and stars told from galaxies by sharp and chi."""

import numpy as np
import pytest
from starfield import Profile

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.psfcat import (
    COLUMNS,
    PSFCAT_DTYPE,
    PointSourceParams,
    is_point_source,
    listed_rows,
    psfcat_of,
    star_locus,
)

FITS = np.dtype(
    [("x", "f8"), ("y", "f8"), ("flux", "f8"), ("sigflux", "f8"), ("chi", "f4"), ("sharp", "f4"), ("flags", "i2")]
)
SHAPE = (60, 50)


def some_fits(rng, n=40):
    fits = np.zeros(n, FITS)
    fits["x"], fits["y"] = rng.uniform(3, 46, n), rng.uniform(3, 56, n)
    fits["flux"] = rng.uniform(100, 1e5, n)
    fits["sigflux"] = np.sqrt(fits["flux"] / 6.2 + 400)
    fits["chi"], fits["sharp"] = rng.normal(1, 0.1, n), rng.normal(0, 0.05, n)
    return fits


class Plane:
    """A solution that a test can invert."""

    def pixel_to_sky(self, x, y):
        return 10 + x / 1000, 20 + y / 1000


def test_columns_are_the_survey_s():
    names = "sourceid xpos ypos ra dec flux sigflux mag sigmag snr chi sharp flags"
    forms = "i4 f8 f8 f8 f8 f4 f4 f4 f4 f4 f4 f4 i2"
    assert np.dtype(list(zip(names.split(), forms.split()))) == PSFCAT_DTYPE
    units = {"xpos": "pix", "ra": "deg", "flux": "DN", "sigmag": "mag", "snr": "", "flags": ""}
    assert {name: COLUMNS[name][1] for name in units} == units


def test_values():
    fits = some_fits(np.random.default_rng(1))
    before, mask = fits.copy(), np.zeros(SHAPE, np.int16)
    out = psfcat_of(fits, mask, 26.0, Plane())
    order = np.lexsort((fits["x"], fits["y"]))
    assert out["sourceid"].tolist() == list(range(40))
    assert (np.diff(out["ypos"]) >= 0).all()
    np.testing.assert_array_equal(out["xpos"], fits["x"][order] + 1)
    np.testing.assert_allclose(out["ra"], 10 + fits["x"][order] / 1000, rtol=1e-14)
    np.testing.assert_allclose(out["dec"], 20 + fits["y"][order] / 1000, rtol=1e-14)
    np.testing.assert_allclose(out["mag"], 26 - 2.5 * np.log10(fits["flux"][order]), rtol=1e-6)
    np.testing.assert_allclose(out["snr"], (fits["flux"] / fits["sigflux"])[order], rtol=1e-6)
    np.testing.assert_allclose(out["sigmag"], 1.085736 / out["snr"], rtol=1e-6)
    np.testing.assert_array_equal(fits, before)


def test_without_zero_point_and_sky_the_magnitudes_are_instrumental():
    fits = some_fits(np.random.default_rng(2))
    out = psfcat_of(fits, np.zeros(SHAPE, np.int16))
    np.testing.assert_allclose(out["mag"], -2.5 * np.log10(out["flux"]), rtol=1e-6)
    assert np.isnan(out["ra"]).all() and np.isnan(out["dec"]).all()
    with pytest.raises(BadInput, match="zero point"):
        psfcat_of(fits, np.zeros(SHAPE, np.int16), np.nan)


def test_flags_are_the_mask_in_the_box():
    fits = some_fits(np.random.default_rng(3), 4)
    fits["x"], fits["y"] = [10.2, 30.0, 1.2, 40.0], [10.0, 20.4, 30.0, 40.0]
    mask = np.zeros(SHAPE, np.int16)
    mask[12, 8], mask[8, 12], mask[20, 33] = maskbits.SPIKE, maskbits.SATURATED, maskbits.DEAD
    assert psfcat_of(fits, mask)["flags"].tolist() == [maskbits.SPIKE | maskbits.SATURATED, 0, -1, 0]


def test_fits_without_positive_flux_are_not_listed():
    fits = some_fits(np.random.default_rng(4), 8)
    fits["flux"][[0, 1]] = [-5.0, 0.0]
    fits["sigflux"][[2, 3]] = [0.0, np.nan]
    fits["x"][4] = np.inf
    assert sorted(listed_rows(fits)) == [5, 6, 7]
    assert len(psfcat_of(fits, np.zeros(SHAPE, np.int16), 25.0)) == 3
    assert len(psfcat_of(fits[:0], np.zeros(SHAPE, np.int16), 25.0, Plane())) == 0
    assert not is_point_source(fits[:0], PointSourceParams()).size


# Stars and galaxies: rendered here, fitted here with the true PSF, chi and sharp by DAOPHOT's definitions.

HALF, SKY, GAIN = 7, 420.0, 6.2
PSF, FWHM = Profile(), 2.2


def galaxy_offsets(rng, scale_pix, n=40):
    """Points of an inclined exponential disc."""
    r = -scale_pix * np.log(rng.uniform(size=n) * rng.uniform(size=n))
    angle, tilt = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.3, 1)
    return np.minimum(r, 6 * scale_pix) * np.cos(angle), np.minimum(r, 6 * scale_pix) * tilt * np.sin(angle)


def fit_stamp(data, var):
    """Flux and position by Gauss-Newton with the true PSF; (flux, sigflux, chi, sharp)."""
    x = y = 0.0
    for _ in range(5):
        psf = PSF.stamp(x, y, HALF)
        slope = [
            (PSF.stamp(x + d, y + e, HALF) - PSF.stamp(x - d, y - e, HALF)) / 0.02 for d, e in ((0.01, 0), (0, 0.01))
        ]
        near = np.hypot(*np.meshgrid(*[np.arange(-HALF, HALF + 1)] * 2)) < 2.5 * FWHM
        weight = near / var
        flux = (weight * psf * data).sum() / (weight * psf**2).sum()
        design = np.stack([psf, flux * slope[0], flux * slope[1]], axis=-1)[near]
        normal = design.T @ (weight[near][:, None] * design)
        step = np.linalg.solve(normal, design.T @ (weight[near] * (data - flux * psf)[near]))
        flux, (x, y) = flux + step[0], np.clip(np.add([x, y], np.clip(step[1:], -0.3, 0.3)), -1, 1)
    residual = data - flux * PSF.stamp(x, y, HALF)
    return flux, np.sqrt(np.linalg.inv(normal)[0, 0]), *daophot_quality(residual, var, flux, (x, y))


def daophot_quality(residual, var, flux, center):
    """chi and sharp, Stetson 1987."""
    dx, dy = np.meshgrid(np.arange(-HALF, HALF + 1) - center[0], np.arange(-HALF, HALF + 1) - center[1])
    r2, hwhm = dx**2 + dy**2, FWHM / 2
    near = r2 < (1.5 * FWHM) ** 2
    chi = 1.2533 * np.mean(np.abs(residual[near]) / np.sqrt(var[near])) * np.sqrt(near.sum() / (near.sum() - 3))
    rho = np.log(2) * r2 / hwhm**2
    change = np.where(rho < 6 * np.log(2), np.exp(-rho) * (rho - 1), 0)
    amplitude = (change * residual / var).sum() / (change**2 / var).sum()
    return chi, 1.4427 * hwhm**2 * amplitude / (flux * PSF.stamp(*center, HALF)[HALF, HALF])


@pytest.fixture(scope="module")
def mixture():
    """400 stars and 150 galaxies of S/N from about 5 to 600, half-light radii 0.7 to 2.5 px; the last are galaxies."""
    rng = np.random.default_rng(20)
    table = np.zeros(550, FITS)
    half_light = np.zeros(550)
    half_light[400:] = rng.uniform(0.7, 2.5, 150)
    for k in range(550):
        flux, at = 10 ** rng.uniform(2.4, 5), rng.uniform(-0.5, 0.5, 2)
        if half_light[k]:
            points = np.transpose(galaxy_offsets(rng, half_light[k] / 1.678))
            image = flux * np.mean([PSF.stamp(*(at + p), HALF) for p in points], axis=0)
        else:
            image = flux * PSF.stamp(*at, HALF)
        data = rng.poisson((image + SKY) * GAIN) / GAIN - SKY
        fitted = fit_stamp(data, (np.maximum(image, 0) + SKY) / GAIN)
        for name, value in zip(("flux", "sigflux", "chi", "sharp"), fitted):
            table[name][k] = value
    return table, half_light


def test_stars_are_kept_at_every_brightness(mixture):
    table, half_light = mixture
    point = is_point_source(table, PointSourceParams())
    assert point[half_light == 0].mean() >= 0.985


def test_galaxies_are_recognised(mixture):
    """At S/N > 30 those of half-light radius 1 px (1"), at S/N > 100 of 0.7 px; at S/N 5 hardly any can be."""
    table, half_light = mixture
    point, snr = is_point_source(table, PointSourceParams()), table["flux"] / table["sigflux"]
    assert not point[(half_light > 1) & (snr > 30)].any()
    assert not point[(half_light > 0) & (snr > 100)].any()


def test_locus_is_learned_from_the_image():
    rng = np.random.default_rng(21)
    snr = 10 ** rng.uniform(0.7, 3, 6000)
    sharp = 0.1 + rng.normal(0, np.hypot(0.02, 1.5 / snr))
    chi = np.hypot(1.05, 0.004 * snr) * rng.normal(1, 0.08, 6000)
    sharp[:1500] += rng.uniform(0.1, 2, 1500)
    locus = star_locus(snr, chi, sharp, PointSourceParams())
    assert locus.center == pytest.approx(0.1, abs=0.02)
    assert locus.slope == pytest.approx(1.5, rel=0.15)
    assert locus.floor == pytest.approx(0.02, rel=0.4)
    assert locus.typical_chi(np.array([10.0, 300.0])) == pytest.approx([1.05, np.hypot(1.05, 1.2)], rel=0.05)


def test_few_sources_have_the_default_locus():
    fits = some_fits(np.random.default_rng(22), 10)
    fits["sharp"][:3], fits["chi"][3:5], fits["sharp"][5] = [3.0, -3.0, np.nan], 9.0, 0
    fits["flux"] = 1e5
    fits["sharp"][5:], fits["chi"][5:] = 0, 1
    assert is_point_source(fits, PointSourceParams()).tolist() == [False] * 5 + [True] * 5
    fits["chi"][9] = np.nan
    assert not is_point_source(fits, PointSourceParams())[9]
