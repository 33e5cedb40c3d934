"""Fits of trails: unbiased, with errors that hold, and what spoils them."""

import functools

import numpy as np
import pytest

from tests.unit.subtraction.streakscene import SIGMA, difference_of, ends_of, flux_at, make_psf, trail_light
from zsds_hpc.subtraction.streak_fit import Pixels, alternatives, fit_trail, misfit, refined, strip_of
from zsds_hpc.subtraction.streak_trail import RoughTables, local_tables

SHAPE = (150, 160)


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE, fwhm=2.2)


@pytest.fixture(scope="module")
def tables(psf):
    return functools.partial(local_tables, psf)


def pixels_of(psf, light, seed):
    d = difference_of(psf, light, seed)
    return Pixels(d.pix, d.sigma)


def ordered(trail, truth):
    """Ends and errors in the order of the truth's."""
    if np.dot(trail.ends[2:] - trail.ends[:2], truth[2:] - truth[:2]) > 0:
        return trail.ends, trail.covariance
    order = [0, 2, 1, 4, 3]
    return trail.ends[[2, 3, 0, 1]], trail.covariance[np.ix_(order, order)]


def test_ends_and_flux_scatter_as_their_errors_say(psf, tables):
    rng = np.random.default_rng(5)
    pulls = []
    for k in range(40):
        truth = ends_of(*rng.uniform(70, 85, 2), np.exp(rng.uniform(np.log(8), np.log(90))), rng.uniform(-90, 90))
        light = trail_light(psf, truth)
        flux = flux_at(light, 25)
        pixels = pixels_of(psf, flux * light, k)
        trail = fit_trail(pixels, truth + rng.uniform(-1.5, 1.5, 4), tables)
        ends, cov = ordered(trail, truth)
        along = (truth[2:] - truth[:2]) / np.hypot(*(truth[2:] - truth[:2]))
        off = (ends - truth).reshape(2, 2)
        slopes = np.array([trail.length, -trail.flux / trail.length, trail.flux / trail.length, 0, 0])
        across = off @ [-along[1], along[0]]
        errors = np.sqrt(np.diag(cov))
        pulls.append(
            [(trail.flux - flux) / np.sqrt(slopes @ cov @ slopes), *(off @ along / errors[1:3]), *(across / errors[3:])]
        )
        assert trail.snr == pytest.approx(25, abs=4)
    pulls = np.array(pulls)
    assert np.abs(pulls.mean(axis=0)).max() < 0.5
    assert np.all(pulls.std(axis=0) > 0.65)
    assert np.all(pulls.std(axis=0) < 1.4)


def test_bright_trail_comes_back_to_a_percent(psf, tables):
    truth = ends_of(80.3, 75.6, 33.0, 31.0)
    light = trail_light(psf, truth, step=0.1)
    trail = fit_trail(pixels_of(psf, 2e6 * light, 1), truth + [1, -1, -2, 1], tables)
    assert trail.flux == pytest.approx(2e6, rel=0.01)
    assert np.abs(trail.ends - truth).max() < 0.05


@pytest.mark.parametrize(("length", "angle"), [(12, 80), (40, -35), (100, 10)])
def test_refined_finds_the_line_from_a_rough_one(psf, length, angle):
    truth = ends_of(78, 74, length, angle)
    light = trail_light(psf, truth)
    pixels = pixels_of(psf, flux_at(light, 20) * light, 2)
    turned = ends_of(78 + 2, 74 - 2, 0.6 * length, angle + np.degrees(3 / length))
    ends, snr = refined(pixels, turned, psf.fwhm_pix)
    if np.dot(ends[2:] - ends[:2], truth[2:] - truth[:2]) < 0:
        ends = ends[[2, 3, 0, 1]]
    assert np.abs(ends - truth).max() < 6
    assert 13 < snr < 25


def test_refined_stops_at_a_gap_and_at_the_border(psf):
    first, second = ends_of(40, 75, 30, 0), ends_of(115, 75, 30, 0)
    light = trail_light(psf, first) + trail_light(psf, second)
    pixels = pixels_of(psf, flux_at(light, 40) * light, 3)
    ends, _ = refined(pixels, first, psf.fwhm_pix)
    assert np.abs(np.sort(ends[[0, 2]]) - first[[0, 2]]).max() < 5
    through = ends_of(80, 75, 300, 40)
    light = trail_light(psf, through)
    ends, _ = refined(pixels_of(psf, flux_at(light, 60) * light, 4), ends_of(80, 75, 40, 41), psf.fwhm_pix)
    assert min(ends) > -1
    assert np.hypot(ends[2] - ends[0], ends[3] - ends[1]) > 170


def test_star_beside_and_hit_on_a_long_trail_do_not_spoil_it(psf, tables):
    truth = ends_of(80, 75, 80, 20)
    light = trail_light(psf, truth)
    flux = flux_at(light, 30)
    pixels = pixels_of(psf, flux * light + 9000 * trail_light(psf, ends_of(84, 86, 0.01, 0)), 6)
    x, y = 70, int(np.rint(75 - 10 * np.tan(np.radians(20))))
    pixels.pix[y - 1 : y + 2, x] += 2500
    trail = fit_trail(pixels, truth, tables)
    assert trail.flux == pytest.approx(flux, rel=0.15)
    assert misfit(trail.chi2, trail.strip, trail.snr) < 0.2


def test_unusable_pixels_cost_signal_only(psf, tables):
    truth = ends_of(80, 75, 60, -25)
    light = trail_light(psf, truth)
    flux = flux_at(light, 30)
    pixels = pixels_of(psf, flux * light, 7)
    pixels.pix[:, 74:86], pixels.sigma[:, 74:86] = np.nan, np.inf
    trail = fit_trail(pixels, truth, tables)
    assert trail.flux == pytest.approx(flux, rel=0.15)
    assert 22 < trail.snr < 30


def test_what_is_no_trail_is_none_or_a_misfit(psf, tables):
    dark = pixels_of(psf, np.zeros(SHAPE), 8)
    nothing = Pixels(np.zeros(SHAPE, np.float32), np.full(SHAPE, np.inf, np.float32))
    assert fit_trail(nothing, ends_of(80, 75, 30, 0), tables) is None
    point = trail_light(psf, ends_of(80.2, 74.7, 0.001, 0))
    trail = fit_trail(pixels_of(psf, 4000 * point, 9), ends_of(80, 75, 6, 30), tables)
    assert trail is None or trail.length < 3
    hit = np.zeros(SHAPE)
    hit[75, 70:84] = 600.0
    trail = fit_trail(pixels_of(psf, hit, 10), ends_of(77, 75, 14, 0), tables)
    assert trail is None or misfit(trail.chi2, trail.strip, trail.snr) > 0.4
    trail = fit_trail(dark, ends_of(80, 75, 30, 0), tables)
    assert trail is None or trail.snr < 6


def test_point_sources_explain_their_share_of_the_light(psf, tables):
    long, short = ends_of(80, 75, 60, 15), ends_of(80, 75, 4, 15)
    for ends, low, high in ((long, 0.2, 0.55), (short, 0.85, 0.99)):
        light = trail_light(psf, ends)
        trail = fit_trail(pixels_of(psf, flux_at(light, 60) * light, 11), ends, tables)
        point, pair = alternatives(trail)
        assert low < point / trail.snr < high
        assert point < pair < 1.02 * trail.snr


def test_two_stars_are_better_than_a_trail(psf, tables):
    light = trail_light(psf, ends_of(76, 75, 0.001, 0)) + trail_light(psf, ends_of(84, 78, 0.001, 0))
    trail = fit_trail(pixels_of(psf, flux_at(light, 20) * light, 12), np.array([76.0, 75, 84, 78]), tables)
    assert alternatives(trail).pair > 1.1 * trail.snr


def test_rough_tables_do_for_a_look(psf, tables):
    truth = ends_of(95, 60, 30, 38)
    light = trail_light(psf, truth)
    pixels = pixels_of(psf, flux_at(light, 40) * light, 13)
    rough, exact = (fit_trail(pixels, truth, source) for source in (RoughTables(psf), tables))
    assert rough.snr == pytest.approx(exact.snr, rel=0.02)
    assert np.abs(rough.ends - exact.ends).max() < 0.3


def test_strip_holds_the_pixels_near_the_segment(psf):
    pixels = Pixels(np.ones(SHAPE, np.float32), np.full(SHAPE, 2, np.float32))
    for ends in (ends_of(80, 75, 40, 70), ends_of(80, 75, 40, -10), ends_of(2, 3, 30, 45)):
        strip = strip_of(pixels, ends, 6.0)
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        dx, dy = ends[2] - ends[0], ends[3] - ends[1]
        share = np.clip(((x - ends[0]) * dx + (y - ends[1]) * dy) / (dx**2 + dy**2), 0, 1)
        near = np.hypot(x - ends[0] - share * dx, y - ends[1] - share * dy) < 6
        listed = np.zeros(SHAPE, int)
        np.add.at(listed, (strip.xy[1].astype(int), strip.xy[0].astype(int)), 1)
        assert listed.max() == 1
        assert np.all(listed[near] == 1)
        assert np.all(strip.weight == 1 / SIGMA**2 * 16)
