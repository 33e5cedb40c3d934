"""Differences of drawn images: noise, constant stars, new stars, defects, all three methods."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from tests.helpers import diffsky
from tests.helpers.diffsky import GAIN_E, SHAPE, SKY_SIGMA, Profile
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.subtraction.difference import DifferenceParams, subtract
from zsds_hpc.subtraction.images import Difference
from zsds_hpc.subtraction.starcore import StarCoreParams

METHODS = ("kernel", "zogy", "proper")
#: Seeing (px) of the reference, and of science images from 0.9 to 1.5 times as wide.
REFERENCE, SEEING = 1.9, (1.7, 2.0, 2.4, 2.85)
N_FRAMES = 20


@cache
def stars():
    return diffsky.random_stars(320, brightest=110_000.0)


@cache
def template():
    return diffsky.template(stars(), Profile(REFERENCE, trend=0.02), n_frames=N_FRAMES)


def gain(u, v):
    return 0.04 + 0.02 * u - 0.01 * v


def shift(u, v):
    return 0.2 + 0.1 * u * v, -0.15 + 0.08 * v**2


@cache
def new_stars():
    """Places far from others, fluxes of S/N 25 to 200."""
    x, y, _ = diffsky.seen_by(stars(), diffsky.wcs((1.7, -3.3), 0.03), shift)
    rng, places = np.random.default_rng(21), []
    while len(places) < 40:
        place = rng.uniform(25, (SHAPE[1] - 25, SHAPE[0] - 25))
        others = [np.hypot(x - place[0], y - place[1]).min(), *(np.hypot(*(place - p)) for p in places)]
        if min(others) > 13:
            places.append(place)
    return np.column_stack([places, rng.uniform(1000, 9000, len(places))])


@cache
def seen(fwhm, with_new=True, seed=1):
    profile = Profile(fwhm, 2.9, trend=-0.02)
    return diffsky.science(stars(), profile, seed, new=new_stars() if with_new else (), shift=shift, gain=gain)


@cache
def made(method, fwhm, with_new=True) -> Difference:
    return subtract(seen(fwhm, with_new).science, template(), DifferenceParams(method=method))


def ratio_of(difference):
    """Difference over its error, NaN where unusable."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(difference.sigma), difference.pix / difference.sigma, np.nan)


def width(values):
    values = values[np.isfinite(values)]
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def star_rms(ratio, image, least, most):
    """rms within 3 px of the stars of some flux (DN), and their number."""
    reach, squares = np.arange(-4, 5), []
    for x, y, flux in zip(image.x, image.y, image.flux):
        i, j = round(x), round(y)
        if least < flux < most and 10 < i < SHAPE[1] - 11 and 10 < j < SHAPE[0] - 11:
            near = np.hypot(reach - (x - i), reach[:, None] - (y - j)) <= 3
            squares.append(np.mean(ratio[j - 4 : j + 5, i - 4 : i + 5][near] ** 2))
    return float(np.sqrt(np.nanmean(squares))), len(squares)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fwhm", SEEING)
def test_difference_over_error_has_unit_width_everywhere(method, fwhm):
    ratio = ratio_of(made(method, fwhm, False))
    n_y, n_x = (n // 2 for n in SHAPE)
    parts = [ratio, ratio[:n_y, :n_x], ratio[:n_y, n_x:], ratio[n_y:, :n_x], ratio[n_y:, n_x:]]
    widths = [width(part) for part in parts]
    print(method, fwhm, np.round(widths, 3), made(method, fwhm, False).noise_scale)
    assert all(0.97 < w < 1.05 for w in widths)
    assert 0.95 < made(method, fwhm, False).noise_scale < 1.1
    assert np.nanmean(ratio > 5) < 2e-5 and np.nanmean(ratio < -5) < 2e-5


@pytest.mark.parametrize("fwhm", SEEING)
def test_constant_stars_vanish(fwhm):
    difference, image = made("kernel", fwhm, False), seen(fwhm, False)
    faint, n_faint = star_rms(ratio_of(difference), image, 300, 10_000)
    bright, n_bright = star_rms(ratio_of(difference), image, 10_000, 2e5)
    print(fwhm, faint, bright, difference.metrics["misfit_gain"], difference.metrics["misfit_shift_pix"])
    assert n_faint > 150 and n_bright > 20 and faint <= 1.1 and bright <= 1.5
    assert difference.metrics["misfit_gain"] < 0.01 and difference.metrics["misfit_shift_pix"] < 0.02


@cache
def coadded():
    return diffsky.coadded_template(stars(), np.random.default_rng(7).uniform(1.6, 2.1, 14))


@cache
def measured_pair(fwhm):
    """Reference and science image through the suite's own co-add and photometry, sharpened noise and all."""
    return coadded(), diffsky.measured_science(stars(), Profile(fwhm))


@cache
def measured_difference(fwhm, half_pix):
    reference, image = measured_pair(fwhm)
    return subtract(image.science, reference, DifferenceParams(starcore=StarCoreParams(half_pix=half_pix)))


@pytest.mark.parametrize("fwhm", [1.65, 2.0, 2.6])
def test_constant_stars_of_measured_images_vanish(fwhm):
    """Science images from 0.8 to 1.25 times as wide as a co-add of epochs of 1.6 to 2.1 px."""
    difference, image = measured_difference(fwhm, 3), measured_pair(fwhm)[1]
    ratio = ratio_of(difference)
    faint, bright = (star_rms(ratio, image, *limits)[0] for limits in ((300, 10_000), (10_000, 2e5)))
    print(fwhm, f"width {width(ratio):.3f}, faint {faint:.2f}, bright {bright:.2f}", difference.metrics)
    assert 0.97 < width(ratio) < 1.05 and faint <= 1.1 and bright <= 1.5


def test_cores_of_stars_are_what_the_reference_does_not_resolve():
    """Against photon noise alone: the correction takes off much of what is left of bright stars."""
    rms = {}
    for half_pix in (0, 3):
        difference = measured_difference(1.65, half_pix)
        photons = SKY_SIGMA**2 * (1 + 1 / 14) + np.maximum(difference.reference, 0) * (1 + 1 / 14) / GAIN_E
        rms[half_pix] = star_rms(difference.pix / np.sqrt(photons), measured_pair(1.65)[1], 10_000, 2e5)[0]
    print("rms of bright stars without and with the correction", rms)
    assert rms[3] < 0.7 * rms[0] and rms[0] > 1.8


class Fitted(NamedTuple):
    """Fluxes (DN) of a star at a known place: by least squares with the difference's PSF, and within 8 px."""

    psf: float
    psf_error: float
    aperture: float
    aperture_error: float


def fitted(difference, x, y, flux):
    """Measure a star; its own photons, of which the difference knows nothing, come into the errors."""
    i, j, reach = round(x), round(y), np.arange(-9, 10)
    part = (slice(j - 9, j + 10), slice(i - 9, i + 10))
    stamp = difference.psf.images(np.array([x]), np.array([y]), 9)[0].astype(float)
    var = difference.sigma[part].astype(float) ** 2 + np.maximum(flux * stamp, 0) / GAIN_E
    near, disc = (np.hypot(reach - (x - i), reach[:, None] - (y - j)) <= radius for radius in (6, 8))
    s, v, d = stamp[near], var[near], difference.pix[part][near]
    information, share = (s**2 / v).sum(), stamp[disc].sum()
    aperture, error = difference.pix[part][disc].sum() / share, np.sqrt(var[disc].sum()) / share
    return Fitted((s * d / v).sum() / information, information**-0.5, aperture, error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fwhm", SEEING)
def test_new_stars_have_their_flux(method, fwhm):
    """The PSF that goes with the method: PSF flux, flux in an aperture and truth agree, errors are honest."""
    truth = new_stars()
    flux, error, aperture, aperture_error = np.array([fitted(made(method, fwhm), *star) for star in truth]).T
    pull = (flux - truth[:, 2]) / error
    bias = np.average(flux / truth[:, 2] - 1, weights=(truth[:, 2] / error) ** 2)
    bias_error = np.sum((truth[:, 2] / error) ** 2) ** -0.5
    away = np.sum((aperture - truth[:, 2]) / aperture_error) / np.sqrt(len(truth))
    print(method, fwhm, f"bias {bias:.4f} +- {bias_error:.4f}, pull {pull.std():.2f}, aperture {away:.2f} sigma")
    assert abs(bias) < 0.005 + 2.5 * bias_error and abs(away) < 3.5
    assert 0.7 < pull.std() < 1.35


def test_a_star_that_has_brightened_keeps_its_difference():
    """The correction on the stars does not learn from variable ones."""
    x, y, flux = seen(2.4, False).x, seen(2.4, False).y, seen(2.4, False).flux
    inside = (x > 30) & (y > 30) & (x < SHAPE[1] - 30) & (y < SHAPE[0] - 30)
    chosen = np.flatnonzero(inside & (flux > 8000))[::6]
    extra = np.column_stack([x[chosen], y[chosen], 0.25 * flux[chosen]])
    image = diffsky.science(stars(), Profile(2.4, 2.9, trend=-0.02), 1, new=extra, shift=shift, gain=gain)
    difference = subtract(image.science, template(), DifferenceParams())
    excess = np.array([fitted(difference, *star).psf / star[2] - 1 for star in extra])
    print(np.round(excess, 3))
    assert len(extra) >= 4 and np.abs(np.median(excess)) < 0.03 and np.abs(excess).max() < 0.1


def test_whitening_takes_the_correlation_out_of_the_noise():
    """A shallow reference and wide science image, where the matched reference's noise is smooth."""
    poor = diffsky.template(stars(), Profile(1.8), n_frames=1)
    image = diffsky.science(stars(), Profile(2.9)).science
    correlation = {}
    for method in METHODS:
        ratio = ratio_of(subtract(image, poor, DifferenceParams(method=method, max_noise_scale=3.0)))
        a, b = ratio[:, 1:], ratio[:, :-1]
        good = np.isfinite(a) & np.isfinite(b) & (np.abs(a) < 4) & (np.abs(b) < 4)
        correlation[method] = float(np.corrcoef(a[good], b[good])[0, 1])
    print(correlation)
    assert correlation["kernel"] > 0.03
    assert max(abs(correlation["zogy"]), abs(correlation["proper"])) < 0.015


DEFECTS = (maskbits.DEAD, maskbits.NAN, maskbits.SATURATED, maskbits.SPIKE, maskbits.TRACK)


@pytest.mark.parametrize("method", METHODS)
def test_masked_pixels_never_leak(method):
    """Absurd values under the mask of either image: 0 +- infinity there, everything else as without them."""
    clean = seen(2.4, False).science
    pix, mask = clean.pix.copy(), clean.mask.copy()
    for k, bit in enumerate(DEFECTS):
        mask[60 + 50 * k : 64 + 50 * k, 150:155] |= bit
        pix[60 + 50 * k : 64 + 50 * k, 150:155] = (1e6, np.nan, -1e6, np.inf, 6e4)[k]
    there = template()
    sigma, reference_mask = there.sigma.copy(), there.mask.copy()
    sigma[100:110, 250:260] = np.inf
    reference_mask[200:203, 250:253] |= maskbits.SATURATED
    holed = replace(there, sigma=sigma, mask=reference_mask)
    found = subtract(replace(clean, pix=pix, mask=mask), holed, DifferenceParams(method=method))
    unusable = (found.mask & maskbits.UNUSABLE) != 0
    assert (found.pix[unusable] == 0).all() and np.isinf(found.sigma[unusable]).all()
    assert np.isfinite(found.pix).all() and np.isfinite(found.sigma[~unusable]).all() and (found.sigma > 0).all()
    assert unusable[(mask & maskbits.UNUSABLE) != 0].all()
    plain = made(method, 2.4, False)
    both = ~unusable & np.isfinite(plain.sigma)
    assert 0.9 * both.size < both.sum() < plain.pix.size - 80
    # away from the holes nothing has changed but for the corrections, which see a few stars less
    assert np.nanmax(np.abs(ratio_of(found) - ratio_of(plain))[both]) < 2.0
    assert width((ratio_of(found) - ratio_of(plain))[both]) < 0.05
    assert np.nanmax(np.abs(ratio_of(found))) < 6.5


def test_holes_of_the_reference_and_saturation_are_widened():
    there = template()
    sigma = there.sigma.copy()
    sigma[200, 250] = np.inf
    clean = seen(2.4, False).science
    mask = clean.mask.copy()
    mask[300, 100], mask[320, 100] = maskbits.SATURATED, maskbits.DEAD
    found = subtract(replace(clean, mask=mask), replace(there, sigma=sigma), DifferenceParams())
    plain = made("kernel", 2.4, False)
    added = np.isinf(found.sigma) & np.isfinite(plain.sigma)
    assert added.sum() == 25 + 25 + 1
    assert added[298:303, 98:103].all() and added[320, 100] and not added[319, 100]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_unusable_whatever_the_mask_says(value):
    clean = seen(2.4, False).science
    pix = clean.pix.copy()
    x, y = round(seen(2.4, False).x[40]), round(seen(2.4, False).y[40])
    pix[100:104, 200:204] = pix[y, x] = value
    found = subtract(replace(clean, pix=pix), template(), DifferenceParams())
    assert not found.pix[100:104, 200:204].any() and np.isinf(found.sigma[100:104, 200:204]).all()
    assert found.pix[y, x] == 0 and (found.mask[y, x] & maskbits.NAN) != 0
    assert np.isfinite(found.pix).all() and abs(width(ratio_of(found)) - 1) < 0.05


def test_thirty_percent_masked_is_still_a_difference():
    clean = seen(2.4, True).science
    mask = clean.mask.copy()
    mask[:, : int(0.15 * SHAPE[1])] = maskbits.DEAD
    mask[np.random.default_rng(3).random(SHAPE) < 0.0015] = maskbits.SPIKE
    mask[: int(0.15 * SHAPE[0])] = maskbits.GHOST
    found = subtract(replace(clean, mask=mask), template(), DifferenceParams())
    assert 0.27 < found.metrics["masked_fraction"] < 0.33 and 0.97 < width(ratio_of(found)) < 1.05


def with_mask(share):
    mask = np.zeros(SHAPE, np.int16)
    mask[: int(share * SHAPE[0])] = maskbits.DEAD
    return replace(seen(2.4, False).science, mask=mask)


BAD = {
    "hopeless seeing": (lambda: seen(5.5, False).science, template, "seeing over the reference's is 2.69"),
    "far too sharp": (
        lambda: seen(2.0, False).science,
        lambda: replace(template(), psf=Profile(3.9).model()),
        "seeing over the reference's is 0.5",
    ),
    "most of it masked": (lambda: with_mask(0.75), template, "share of unusable pixels is 0.7"),
    "no data in the reference": (
        lambda: seen(2.4, False).science,
        lambda: replace(template(), sigma=np.full(SHAPE, np.inf, np.float32)),
        "share of unusable pixels is 1",
    ),
    "coefficients that are no numbers": (
        lambda: seen(2.4, False).science,
        lambda: replace(template(), coefficients=np.full_like(template().coefficients, np.nan)),
        "share of unusable pixels is 1",
    ),
    "clouds that leave no stars": (
        lambda: replace(seen(2.4, False).science, psfcat=seen(2.4, False).science.psfcat[:5]),
        template,
        "stars match",
    ),
    "another part of the sky": (
        lambda: replace(seen(2.4, False).science, wcs=diffsky.wcs((80.0, 80.0))),
        template,
        "stars match",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("method", ["kernel", "zogy"])
def test_what_gives_no_difference_says_why(name, method):
    science, reference, reason = BAD[name]
    with pytest.raises(AlgorithmFailure, match=reason) as caught:
        subtract(science(), reference(), DifferenceParams(method=method))
    assert all(np.isfinite(value) for value in caught.value.figures.values()) and caught.value.figures


def test_a_psf_that_is_no_number_is_refused():
    model = Profile(2.0).model()
    with pytest.raises(BadInput, match="finite"):
        PsfModel(np.full_like(model.coefficients, np.nan), model.oversampling, model.degree, model.shape)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_again_and_inputs_are_kept(method):
    science, reference = seen(2.4).science, template()
    inputs = (science.pix, science.mask, science.psfcat, reference.coefficients, reference.sigma, reference.mask)
    kept = [a.copy() for a in inputs]
    again = subtract(science, reference, DifferenceParams(method=method))
    first = made(method, 2.4)
    for name in ("pix", "sigma", "mask", "science", "reference", "sources"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert np.array_equal(first.psf.coefficients, again.psf.coefficients) and first.metrics == again.metrics
    assert all(a.tobytes() == b.tobytes() for a, b in zip(kept, inputs))


def test_what_else_is_handed_on():
    """Images for cutouts on one flux scale, sources in the frame, types and shapes."""
    found = made("kernel", 2.4)
    assert found.pix.dtype == found.sigma.dtype == found.science.dtype == found.reference.dtype == np.float32
    assert found.mask.dtype == maskbits.MASK_DTYPE and found.pix.shape == SHAPE
    usable = np.isfinite(found.sigma)
    assert np.allclose((found.science - found.reference)[usable], found.pix[usable], atol=1e-2)
    assert abs(np.median(found.science)) < 2 and abs(found.metrics["background_dn"] - 300) < 2
    assert abs(2.5 * np.log10(found.metrics["gain"]) - 0.04) < 0.01
    assert len(found.sources) == len(template().catalogue) and found.gain_e == GAIN_E
