"""The simultaneous fit: against a dense solution, known truth, and its own invariants."""

import numpy as np
import pytest

from tests.helpers.oracle_fit import fit_group
from tests.unit.photometry.psfscene import (
    GAIN,
    SKY_SIGMA,
    exposure,
    fitter_of,
    grid_stars,
    make_psf,
    nearest_rows,
    paint,
    star,
)
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.psffit import FIT_HELD, PSF_FIT_DTYPE, Fitter, PsfFitParams, make_scene

SHAPE = (120, 130)
EXACT = PsfFitParams(rest_sigma=0.0, tolerance=1e-6)


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE)


def fitted(sky, start=None, params=None, n=12, add=True):
    """Table of the fit from first guesses (default: the truth, shifted)."""
    start = sky.stars + [0.2, -0.15, 0] if start is None else start
    fitter = fitter_of(sky.images, sky.psf, start, params, n)
    fitter.recenter()
    fitter.fit(n)
    return fitter


def drawn(fitter):
    """The sum of the fitter's stars, drawn slowly, each within its window."""
    value, out = fitter.stars.value, np.zeros(fitter.scene.data.shape)
    for (x, y, flux), (mx, my), kind in zip(value, fitter.stars.middle, fitter.stars.kind):
        half = fitter.halves[kind]
        rx, ry = int(np.rint(x)), int(np.rint(y))
        wide = half + 2
        stamp = np.zeros((2 * half + 1, 2 * half + 1))
        source = star(fitter.scene.psf, x, y, wide)[0]
        stamp[:] = source[
            my - half - ry + wide : my + half + 1 - ry + wide, mx - half - rx + wide : mx + half + 1 - rx + wide
        ]
        rows, columns = np.arange(my - half, my + half + 1), np.arange(mx - half, mx + half + 1)
        inside = ((rows >= 0) & (rows < out.shape[0]))[:, None] & ((columns >= 0) & (columns < out.shape[1]))
        for row, line, use in zip(rows, stamp, inside):
            out[row, columns[use]] += flux * line[use]
    return out


def test_group_is_solved_as_by_the_dense_oracle(psf):
    """Six stars, 0.8 to 3 FWHM apart: values, errors and crowding."""
    stars = np.array([[60.3, 60.1, 9000], [62.1, 60.9, 6000], [60.9, 64.6, 12000], [66.4, 61.8, 4000],
                      [64.7, 66.2, 7000], [57.2, 57.6, 3000]])  # fmt: skip
    sky = exposure(psf, stars, 1)
    fitter = fitted(sky, params=EXACT, n=30)
    row, _ = nearest_rows({"x": fitter.stars.value[:, 0], "y": fitter.stars.value[:, 1]}, stars)
    table, halves = fitter.table()[row], np.array(fitter.halves)[fitter.stars.kind[row]]
    variance = np.full(SHAPE, SKY_SIGMA**2)
    oracle = fit_group((sky.images[0], variance), GAIN, lambda x, y, h: star(psf, x, y, h)[0], stars, halves)
    sigma = np.sqrt(np.diagonal(oracle.covariance, axis1=1, axis2=2))
    ours = np.column_stack([table["x"], table["y"], fitter.stars.value[row, 2]])
    assert np.abs((ours - oracle.value) / sigma).max() < 0.02
    np.testing.assert_allclose(table["sigflux"], sigma[:, 2], rtol=0.01)
    np.testing.assert_allclose(np.sqrt(table["var_x"]), sigma[:, 0], rtol=0.01)
    np.testing.assert_allclose(np.sqrt(table["var_y"]), sigma[:, 1], rtol=0.01)
    scale = sigma[:, 0] * sigma[:, 1]
    np.testing.assert_allclose(table["cov_xy"] / scale, oracle.covariance[:, 0, 1] / scale, atol=0.01)
    assert (table["crowding"][:2] > 0.5).all() and (table["crowding"][2:] < 0.1).all() and (table["crowding"] > 0).all()


def test_errors_and_biases_of_isolated_stars(psf):
    """700 stars of S/N 7 to 300: pulls have unit width and no mean, chi is 1, sharp is 0."""
    pulls, quality = [], []
    for seed in range(28):
        stars = grid_stars(SHAPE, 20, (500, 60000), seed)
        sky = exposure(psf, stars, seed)
        table = fitted(sky).table()
        row, distance = nearest_rows(table, stars)
        assert distance.max() < 1
        t = table[row]
        pulls.append([(t["flux"] - stars[:, 2]) / t["sigflux"], (t["x"] - stars[:, 0]) / np.sqrt(t["var_x"]),
                      (t["y"] - stars[:, 1]) / np.sqrt(t["var_y"])])  # fmt: skip
        quality.append([t["chi"], t["sharp"] * t["flux"] / t["sigflux"], t["crowding"], t["dominance"]])
    pulls, quality = np.concatenate(pulls, axis=1), np.concatenate(quality, axis=1)
    n = pulls.shape[1]
    assert n > 650
    assert (np.abs(pulls.mean(axis=1)) < 4 / np.sqrt(n)).all()
    assert (np.abs(pulls.std(axis=1) - 1) < 0.1).all()
    assert np.median(quality[0]) == pytest.approx(1, abs=0.03)
    assert abs(np.median(quality[1])) < 0.25
    assert (quality[2] < 0.01).all() and (quality[3] > 0.99).all()


def test_flux_of_faint_stars_is_not_inflated(psf):
    """S/N 7: a free position adds sigma^2 / flux (Portillo et al. 2020), 2% of the flux; the table is without it."""
    raw, corrected, flux = [], [], 245.0
    for seed in range(40):
        stars = grid_stars(SHAPE, 17, flux, seed)
        fitter = fitted(exposure(psf, stars, 100 + seed))
        raw.append(fitter.stars.value[:, 2])
        corrected.append(fitter.table()["flux"])
        snr = np.median(fitter.table()["flux"] / fitter.table()["sigflux"])
    raw, corrected = np.concatenate(raw), np.concatenate(corrected)
    error = corrected.std() / np.sqrt(corrected.size) / flux
    assert 6 < snr < 8 and error < 0.006
    assert corrected.mean() / flux - 1 == pytest.approx(0, abs=3 * error)
    assert raw.mean() / flux - 1 > 0.012
    assert (raw - corrected).mean() / flux == pytest.approx(1 / snr**2, rel=0.2)


def test_pair_within_the_profile(psf):
    """0.6 FWHM apart: both fluxes are right within the errors, which tell how little they are known."""
    pulls = []
    for seed in range(120):
        gap = 0.6 * psf.fwhm_pix
        stars = np.array([[60.2, 60.4, 30000.0], [60.2 + gap, 60.4, 20000.0]])
        table = fitted(exposure(psf, stars, seed), n=20).table()
        table = table[np.argsort(table["x"])]
        pulls.append((table["flux"] - stars[:, 2]) / table["sigflux"])
        assert (table["crowding"] > 0.8).all()
    assert 0.8 < np.std(pulls) < 1.2
    assert np.abs(np.mean(pulls, axis=0)).max() < 4 / np.sqrt(120)


def test_model_is_the_sum_of_the_stars_whatever_is_done(psf):
    stars = grid_stars(SHAPE, 14, (300, 3e5), 5, jitter=5)
    sky = exposure(psf, stars, 5)
    fitter = fitter_of(sky.images, psf, stars[::2])
    scale = sky.light.max()
    actions = [
        lambda: fitter.fit(3), fitter.recenter, lambda: fitter.add(stars[1::2], 2), lambda: fitter.fit(2),
        lambda: fitter.drop(np.arange(len(fitter.stars)) % 3 == 0), lambda: fitter.fit(2), fitter.recenter,
        lambda: fitter.drop(np.zeros(len(fitter.stars), bool)), lambda: fitter.use_psf(make_psf(SHAPE, 2.1)),
        lambda: fitter.fit(1), lambda: fitter.drop(np.ones(len(fitter.stars), bool)),
    ]  # fmt: skip
    for action in actions:
        action()
        np.testing.assert_allclose(fitter.scene.model, drawn(fitter), atol=2e-6 * scale)
    assert len(fitter.table()) == 0


def test_order_of_the_stars_does_not_matter(psf):
    stars = grid_stars(SHAPE, 9, (300, 3e4), 6, jitter=4)
    sky = exposure(psf, stars, 6)
    tables = [
        fitted(sky, stars[rows]).table()
        for rows in (np.arange(len(stars)), np.random.default_rng(1).permutation(len(stars)))
    ]
    assert tables[0].tobytes() == tables[1].tobytes()


def test_windows_follow_flux_and_noise(psf):
    wide = make_psf((200, 200), wing=(0.4, 3.0))
    images = exposure(wide, [], 1).images
    fitter = fitter_of(images, wide, [[60, 60, 500.0], [100, 100, 1e5], [140, 140, 3e6]])
    halves = np.array(fitter.halves)[fitter.stars.kind]
    assert halves[0] == fitter.halves[0] and (np.diff(halves) > 0).all()
    for (x, y, flux), half, kind in zip(fitter.stars.value, halves, fitter.stars.kind):
        limit = fitter.scene.params.window_edge_sigma * SKY_SIGMA
        if kind < len(fitter.halves) - 1:
            assert flux * star(wide, x, y, half)[0][half, 0] < 1.3 * limit
        if kind:
            smaller = fitter.halves[kind - 1]
            assert flux * star(wide, x, y, smaller)[0][smaller, 0] > 0.7 * limit


def test_bright_star_in_its_wide_window_leaves_no_residual():
    psf = make_psf((200, 200), wing=(0.4, 3.0))
    stars = np.array([[100.3, 99.6, 1e6], [122.0, 100.0, 3000.0]])
    sky = exposure(psf, stars, 2, half=60)
    table = fitted(sky).table()
    row, _ = nearest_rows(table, stars)
    pull = (table["flux"][row] - stars[:, 2]) / table["sigflux"][row]
    assert np.abs(pull).max() < 4


@pytest.mark.parametrize(
    "place", [(0, 0), (-0.4, 60.2), (129.4, 60.2), (60.2, -0.3), (60.2, 119.4), (129, 119), (0, 119)]
)
def test_stars_on_borders_and_corners(psf, place):
    sky = exposure(psf, [*place, 30000.0], 7)
    fitter = fitted(sky)
    table, half = fitter.table()[0], fitter.halves[fitter.stars.kind[0]]
    assert np.abs(table["flux"] - 30000) < 4 * table["sigflux"]
    assert np.abs(table["x"] - place[0]) < 4.5 * np.sqrt(table["var_x"])
    assert np.abs(table["y"] - place[1]) < 4.5 * np.sqrt(table["var_y"])
    assert table["n_pix"] < 0.6 * (2 * half + 1) ** 2


def test_islands_of_nan_and_masked_pixels_have_no_weight(psf):
    stars = grid_stars(SHAPE, 24, 20000.0, 8)
    sky = exposure(psf, stars, 8)
    pix, _, mask = sky.images
    pix[::7, ::5], mask[3::11, 2::9] = np.nan, maskbits.DEAD
    pix[mask > 0] = 1e9
    before = [a.copy() for a in sky.images]
    table = fitted(sky).table()
    for one, other in zip(before, sky.images):
        np.testing.assert_array_equal(one, other)
    row, _ = nearest_rows(table, stars)
    pull = (table["flux"][row] - stars[:, 2]) / table["sigflux"][row]
    assert np.abs(pull).max() < 4 and 0.6 < pull.std() < 1.4
    assert np.isfinite(table["chi"]).all()


def test_star_without_a_usable_pixel_is_told(psf):
    sky = exposure(psf, [[30.0, 30, 9000], [90.0, 90, 9000]], 9)
    sky.images[0][70:110, 70:110] = np.nan
    table = fitted(sky).table()
    assert table["n_pix"][1] == 0 and np.isnan(table["sigflux"][1]) and np.isnan(table["chi"][1])
    assert table["flux"][0] == pytest.approx(9000, abs=5 * table["sigflux"][0])


def test_fully_masked_image_and_no_stars(psf):
    sky = exposure(psf, [[30.0, 30, 9000]], 10)
    sky.images[2][:] = maskbits.DEAD
    fitter = fitted(sky)
    assert fitter.scene.sky_noise_dn == 1 and fitter.table()["n_pix"] == 0
    empty = fitter_of(exposure(psf, [], 1).images, psf, [], n_iterations=3)
    empty.recenter()
    assert empty.table().dtype == PSF_FIT_DTYPE and len(empty.table()) == 0


def test_held_positions_stay_and_fluxes_are_linear(psf):
    """The dense linear solution for fluxes alone."""
    rng = np.random.default_rng(11)
    stars = np.column_stack([rng.uniform(40, 60, 12), rng.uniform(40, 60, 12), rng.uniform(500, 5000, 12)])
    sky = exposure(psf, stars, 11, gain=1e9)
    fitter = Fitter(make_scene(sky.images, 1e9, psf, PsfFitParams(tolerance=1e-8)))
    fitter.add(stars * [1, 1, 0], 1, FIT_HELD)
    fitter.fit_fluxes(6)
    table = fitter.table()
    row, distance = nearest_rows(table, stars)
    assert distance.max() == 0
    halves = np.array(fitter.halves)[fitter.stars.kind[row]]
    design = np.array([paint(psf, s * [1, 1, 0] + [0, 0, 1], h).ravel() for s, h in zip(stars, halves)])
    normal = design @ design.T / SKY_SIGMA**2
    expected = np.linalg.solve(normal, design @ sky.images[0].ravel() / SKY_SIGMA**2)
    sigma = np.sqrt(np.diagonal(np.linalg.inv(normal)))
    assert np.abs((table["flux"][row] - expected) / sigma).max() < 0.02
    np.testing.assert_allclose(table["sigflux"][row], sigma, rtol=0.02)


def test_stars_at_rest_leave_the_active_set_and_are_woken_by_neighbours(psf):
    stars = grid_stars(SHAPE, 20, 9000.0, 12)
    neighbour = stars[7] + [3.5, 0, -8000]
    sky = exposure(psf, np.concatenate([stars, [neighbour]]), 12)
    fitter = fitter_of(sky.images, psf, stars, n_iterations=25)
    assert not fitter.stars.active.any()
    fitter.add(neighbour[None], 2)
    active = fitter.stars.value[fitter.stars.active]
    assert len(active) == 2
    fitter.fit(25)
    assert not fitter.stars.active.any()
    fitter.drop(fitter.stars.pass_ == 2)
    assert fitter.stars.active.sum() == 1


def test_resting_stars_are_where_the_full_fit_puts_them(psf):
    stars = grid_stars(SHAPE, 9, (300, 3e4), 13, jitter=4)
    sky = exposure(psf, stars, 13)
    quick, full = fitted(sky, n=8).table(), fitted(sky, params=EXACT, n=40).table()
    clear = full["crowding"] < 0.9
    assert clear.mean() > 0.8
    row, _ = nearest_rows(quick, np.column_stack([full["x"], full["y"]])[clear])
    off = (quick["flux"][row] - full["flux"][clear]) / full["sigflux"][clear]
    assert np.quantile(np.abs(off), 0.95) < 0.1


@pytest.mark.parametrize(("gain", "cut"), [(0.0, 0), (np.nan, 0), (6.2, 1)])
def test_what_does_not_fit_together_is_refused(psf, gain, cut):
    pix, rms, mask = exposure(psf, [], 1).images
    with pytest.raises(BadInput, match="PSF fit"):
        make_scene((pix[cut:], rms, mask), gain, psf, PsfFitParams())
