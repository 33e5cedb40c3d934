"""Candidates of synthetic differences: which are found, which are not, and how well they are measured."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from zsds_hpc.kernels.psfpeaks import find_peaks

from tests.unit.subtraction.diffscene import (
    MAGZP,
    SKY_SIGMA_DN,
    add_star,
    flux_sigma,
    make_difference,
    pixels,
    psf_of,
    wcs,
)
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.psfdetect import local_filters
from zsds_hpc.subtraction.candidates import REASONS, CandidateParams, detect, find_candidates
from zsds_hpc.subtraction.images import SOURCE_DTYPE

PARAMS = CandidateParams()
SIGMA = flux_sigma(2.0)


def grid(n, step, seed):
    """Places, n x n, `step` px apart, anywhere in their pixels."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(30 + step * np.arange(n), 30 + step * np.arange(n))
    return x.ravel() + rng.uniform(-3, 3, n * n), y.ravel() + rng.uniform(-3, 3, n * n)


def found_at(table, x, y, reach=1.6):
    """Row of the candidate at each place, -1 where there is none."""
    if not len(table):
        return np.full(len(x), -1)
    tree = cKDTree(np.stack([table["xpos"] - 1, table["ypos"] - 1], axis=1))
    distance, row = tree.query(np.stack([x, y], axis=1), distance_upper_bound=reach)
    return np.where(np.isfinite(distance), row, -1)


def cramer_rao(x, y, flux, fwhm=2.0):
    steps, h = np.arange(-10, 11), 1e-3
    dx, dy = steps[None, :] - (x - np.rint(x)), steps[:, None] - (y - np.rint(y))
    slopes = (pixels(dx - h, dy, fwhm) - pixels(dx + h, dy, fwhm), pixels(dx, dy - h, fwhm) - pixels(dx, dy + h, fwhm))
    profile = pixels(dx, dy, fwhm)
    planes = np.stack([profile, *(flux * s / (2 * h) for s in slopes)])
    weight = 1 / (SKY_SIGMA_DN**2 + np.maximum(flux * profile, 0) / 6.2)
    return np.sqrt(np.linalg.inv(np.einsum("aij,bij,ij->ab", planes, planes, weight))[0, 0])


@pytest.fixture(scope="module", params=[1.6, 2.0, 3.2])
def field(request):
    """900 stars of either sign, S/N 3-7.5, FWHM of the parameter: truth (x, y, S/N, sign), candidates."""
    fwhm, (x, y) = request.param, grid(30, 34, 1)
    rng = np.random.default_rng(2)
    snr, sign = rng.uniform(3, 7.5, len(x)), rng.choice([-1, 1], len(x))
    flux = sign * snr * [cramer_rao(a, b, 1e-3, fwhm) for a, b in zip(x, y)]
    difference = make_difference(np.stack([x, y, flux], axis=1), (1050, 1050), fwhm, 3)
    return x, y, snr, sign, find_candidates(difference, wcs(), PARAMS)


def test_completeness_against_snr(field):
    x, y, snr, sign, candidates = field
    row = found_at(candidates.table, x, y)
    middle = (snr > 4) & (snr < 6)
    half = 4 + 2 * np.mean(row[middle] < 0)  # S/N at 50% of a curve that rises evenly about it
    assert half <= 5.1 + 0.05  # over 2,700 stars it is 5.06, 5.05, 5.00; the standard error of these is 0.05
    assert (row[snr > 6] >= 0).mean() >= 0.93  # 0.95 would be that of 6 to 7.5 with errors of 1, cut at 5
    assert (row[snr > 6.7] >= 0).mean() >= 0.95
    assert (row[snr < 4] >= 0).mean() < 0.15
    seen = row >= 0
    assert (candidates.table["isdiffpos"][row[seen]] == (sign[seen] > 0)).all()
    assert len(candidates.table) - len(np.unique(row[seen])) <= 4


def test_noise_alone_gives_few():
    counts = [
        len(find_candidates(make_difference((), (1536, 1536), 2.0, seed), wcs(), PARAMS).table) for seed in (1, 2)
    ]
    assert sum(counts) <= 6  # about 1 / Mpx


@pytest.mark.parametrize("snr", [10, 60, 600])
@pytest.mark.parametrize("sign", [1, -1])
def test_photometry_is_as_good_as_can_be(snr, sign):
    x, y = grid(20, 40, 5)
    flux = sign * snr * SIGMA
    table = find_candidates(
        make_difference(np.stack([x, y, np.full(len(x), flux)], axis=1), (824, 824), 2.0, 7), wcs(), PARAMS
    ).table
    row = found_at(table, x, y)
    assert (row >= 0).all()
    t, n = table[row], len(x)
    error = t["flux"] - flux
    bound = np.mean([cramer_rao(a, b, flux) for a, b in zip(x[:40], y[:40])])
    assert error.std() < 1.1 * bound
    assert abs(error.mean()) < 3.5 * bound / np.sqrt(n)
    assert 0.93 < (error / t["sigflux"]).std() < 1.09
    np.testing.assert_allclose(t["snr"], np.abs(t["flux"]) / t["sigflux"], rtol=1e-4)
    for name, truth in (("x", x), ("y", y)):
        pull = (t[f"{name}pos"] - 1 - truth) / t[f"sig{name}"]
        assert 0.9 < pull.std() < 1.15 and abs(pull.mean()) < 0.2
    np.testing.assert_allclose(t["magpsf"], MAGZP - 2.5 * np.log10(np.abs(t["flux"])), atol=1e-3)
    assert abs(np.median(t["chipsf"]) - 1) < 0.05 and abs(np.median(t["chi"]) - 1) < 0.06


def test_either_sign_is_the_mirror_of_the_other():
    """Without the photons of its own a negative source is measured as its positive twin."""
    x, y = grid(6, 40, 5)
    light = np.zeros((300, 300))
    for a, b in zip(x, y):
        add_star(light, a, b, 12 * SIGMA, 2.0)
    plain = make_difference((), (300, 300))
    noise = plain.pix
    up, down = (
        find_candidates(replace(plain, pix=(sign * (light + noise)).astype(np.float32), gain_e=1e9), wcs(), PARAMS)
        for sign in (1, -1)
    )
    assert len(up.table) == len(down.table) >= 36
    assert up.rejected == down.rejected
    for name in ("xpos", "magpsf", "magap", "fwhm", "elong", "nneg", "sumrat", "dsnrms", "dipole", "chipsf", "sky"):
        np.testing.assert_allclose(up.table[name], down.table[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(up.table["isdiffpos"], ~down.table["isdiffpos"])
    np.testing.assert_array_equal(up.cutouts.difference, down.cutouts.difference)


def test_bands_see_what_the_whole_image_shows():
    difference = make_difference((), (900, 400), 1.6, 4)
    params = PARAMS.model_copy(update={"tile_pix": 128})
    banded = detect(difference, params)
    least = np.abs(banded["snr"]).min()
    half = int(np.ceil(params.filter_fwhm * difference.psf.fwhm_pix))
    images = difference.pix, np.zeros_like(difference.pix), difference.sigma**2
    filters = local_filters(difference.psf, 128, half)
    whole = find_peaks(
        images, np.zeros(2), filters, np.ones((1, 6), np.uint8), least - 1e-4, params.least_share, both_signs=True
    )
    whole = whole[np.lexsort((whole[:, 0], whole[:, 1]))]
    assert len(whole) > 5
    np.testing.assert_allclose(
        np.stack([banded[n] for n in ("x", "y", "flux", "snr")], axis=1), whole[:, :4], rtol=1e-5
    )


def test_a_blank_image_has_no_candidate():
    result = find_candidates(make_difference(sigma=1e-3), wcs(), PARAMS)
    blank = replace(make_difference(), pix=np.zeros((500, 500), np.float32))
    result = find_candidates(blank, wcs(), PARAMS)
    assert len(result.table) == 0 and result.n_raw == 0 and set(result.rejected) == set(REASONS)
    assert result.cutouts.science.shape == (0, 63, 63)
    assert abs(result.limit_mag - (MAGZP - 2.5 * np.log10(5 * SIGMA))) < 0.02


def test_nan_islands_and_masked_pixels_are_not_seen():
    """NaN in the data, infinite or zero errors: nothing is found in them, and what is beside them is measured."""

    def edit(pix, sigma, mask, reference):
        pix[95:106, 95:106] = np.nan
        pix[200:211, 200:211], sigma[200:211, 200:211] = 1e6, np.inf
        pix[300:311, 300:311], sigma[300:311, 300:311] = 1e6, np.nan
        pix[400:411, 400:411], sigma[400:411, 400:411] = 1e6, 0.0

    result = find_candidates(make_difference([(112.3, 100.2, 60 * SIGMA)], edit=edit), wcs(), PARAMS)
    assert len(result.table) == 1
    row = result.table[0]
    assert abs(row["flux"] / (60 * SIGMA) - 1) < 0.06
    assert np.isfinite([row[name] for name in ("magap", "fwhm", "dsnrms", "noiserat", "sumrat", "limitmag")]).all()
    assert np.isnan(result.cutouts.difference[0]).any()
    everything = make_difference(edit=lambda pix, sigma, mask, reference: sigma.fill(np.inf))
    result = find_candidates(everything, wcs(), PARAMS)
    assert len(result.table) == 0 and np.isnan(result.limit_mag)


def test_bad_pixels_in_the_box_reject():
    def edit(pix, sigma, mask, reference):
        mask[100, 98:103] = maskbits.DEAD
        mask[200, 199:203] = maskbits.DEAD
        mask[300, 298:303] = maskbits.SOURCE

    stars = [(100.0, 100.0, 90 * SIGMA), (200.0, 200.0, 90 * SIGMA), (300.0, 300.0, 90 * SIGMA)]
    result = find_candidates(make_difference(stars, edit=edit), wcs(), PARAMS)
    assert result.rejected["nbad"] == 1
    assert sorted(zip(result.table["nbad"], result.table["flags"] & maskbits.DEAD)) == [(0, 0), (4, maskbits.DEAD)]


def test_edges():
    stars = [(1.5, 250.0, 90 * SIGMA), (250.0, 496.9, 90 * SIGMA), (6.0, 100.0, 90 * SIGMA), (494.0, 494.0, 90 * SIGMA)]
    result = find_candidates(make_difference(stars), wcs(), PARAMS)
    assert result.rejected["edge"] == 2
    np.testing.assert_allclose(np.sort(result.table["mindtoedge"]), [5.5, 7.0], atol=0.1)
    assert np.isnan(result.cutouts.difference).any(axis=(1, 2)).all()


@pytest.mark.parametrize("snr", [100, 5000])
@pytest.mark.parametrize("wrong", [0.97, 1.0, 1.03])
def test_a_bright_one_has_no_companions(snr, wrong):
    """Lobes of the filter and of an error of the PSF."""
    x, y = grid(4, 110, 9)
    difference = make_difference(np.stack([x, y, np.full(16, snr * SIGMA)], axis=1), (420, 420))
    result = find_candidates(replace(difference, psf=psf_of(2.0 * wrong, (420, 420))), wcs(), PARAMS)
    assert len(result.table) == 16 and (found_at(result.table, x, y) >= 0).all()


def test_a_faint_one_beside_a_bright_one_is_measured_without_it():
    stars = [
        (100.2, 100.4, 200 * SIGMA),
        (106.2, 100.4, 12 * SIGMA),
        (300.0, 300.0, 40 * SIGMA),
        (305.0, 300.0, -40 * SIGMA),
    ]
    table = find_candidates(make_difference(stars, seed=1), wcs(), PARAMS).table
    assert len(table) == 4
    for x, y, flux in stars:
        row = table[found_at(table, np.array([x]), np.array([y]))[0]]
        assert abs(row["flux"] - flux) < 4 * row["sigflux"]
        assert abs(row["fluxap"] - flux) < 4 * row["sigfluxap"]


@pytest.mark.parametrize("shift, amplitude", [(0.1, 1000), (0.5, 200), (2.0, 100)])
def test_halves_of_a_dipole_are_rejected(shift, amplitude):
    stars = [(100.2, 100.4, amplitude * SIGMA), (100.2 + shift, 100.4, -amplitude * SIGMA)]
    result = find_candidates(make_difference(stars), wcs(), PARAMS)
    assert len(result.table) == 0 and result.rejected["dipole"] == 2


def test_what_is_no_star_is_rejected():
    """Ripples about a bright star and lone hot pixels are as significant as a star, but do not look like one."""

    def edit(pix, sigma, mask, reference):
        y, x = np.mgrid[:41, :41] - 20.0
        pix[80:121, 80:121] += (60 * np.sin(2.2 * np.hypot(x, y)) * (np.hypot(x, y) < 12)).astype(np.float32)
        pix[300, 300] += 30 * SKY_SIGMA_DN
        pix[400, 400] -= 30 * SKY_SIGMA_DN

    result = find_candidates(make_difference(edit=edit), wcs(), PARAMS)
    assert len(result.table) == 0 and result.rejected["chi"] >= 2


def test_summits_of_a_halo_are_rejected():
    """A level that goes on below takes its part of a candidate away; what stands out of it stays."""

    def edit(pix, sigma, mask, reference):
        y, x = np.mgrid[:500, :500]
        pix[(x - 250) ** 2 + (y - 250) ** 2 < 60**2] += 1.2 * SKY_SIGMA_DN

    result = find_candidates(make_difference([(250.3, 250.1, 40 * SIGMA)], edit=edit), wcs(), PARAMS)
    assert result.rejected["level"] > 10
    row = result.table[found_at(result.table, np.array([250.3]), np.array([250.1]))[0]]
    assert 0.65 < row["level"] / (1.2 * SKY_SIGMA_DN) < 1.05  # the star's fit took a part of it
    profile = pixels(*np.meshgrid(np.arange(-9, 10), np.arange(-9, 10)), 2.0)
    beneath = row["level"] * profile.sum() / (profile**2).sum()
    assert row["snr"] - row["snrlevel"] == pytest.approx(beneath / row["sigflux"], rel=0.05)
    inside = np.hypot(result.table["xpos"] - 251, result.table["ypos"] - 251) < 55
    assert inside.sum() <= 3


def test_dipole_tells_a_one_sided_counterpart():
    stars = [(100.0, 100.0, 60 * SIGMA), (103.0, 100.0, -30 * SIGMA), (300.0, 300.0, 60 * SIGMA)]
    table = find_candidates(make_difference(stars), wcs(), PARAMS).table
    both = table[table["isdiffpos"]]
    assert both["dipole"][0] > 0.3 and both["dipole"][1] < 0.1


def test_streaks_and_blobs_are_left_to_others():
    def edit(pix, sigma, mask, reference):
        for k in range(40):
            add_star(pix, 100 + 0.5 * k, 100 + 0.3 * k, 12 * SIGMA, 2.0)
        add_star(pix, 300, 300, 4000 * SIGMA, 10.0, half=40)

    result = find_candidates(make_difference(edit=edit), wcs(), PARAMS)
    assert len(result.table) == 0
    assert result.rejected["elong"] > 0 and result.rejected["fwhm"] + result.rejected["magdiff"] > 0


def test_nearest_source_and_light_beneath():
    sources = np.zeros(2, SOURCE_DTYPE)
    sources["x"], sources["y"], sources["flux"] = [101.0, 400.0], [104.0, 400.0], 5e3
    sources["ra"], sources["mag"], sources["chi"] = [10.0, 20.0], [17.0, 18.0], [1.0, 2.0]

    def edit(pix, sigma, mask, reference):
        add_star(reference, 101.0, 104.0, 5e3, 2.0)

    stars = [(101.0, 104.0, 60 * SIGMA), (104.0, 108.0, -50 * SIGMA)]
    table = find_candidates(make_difference(stars, edit=edit, sources=sources), wcs(), PARAMS).table
    np.testing.assert_allclose(table["distnr"], [0, 5], atol=0.1)
    np.testing.assert_allclose(table["dxnr"], [0, 3], atol=0.1)
    assert set(table["ranr"]) == {10.0} and set(table["magnr"]) == {17.0} and set(table["chinr"]) == {1.0}
    np.testing.assert_allclose(table["fluxref"][0], 5e3, rtol=0.01)
    np.testing.assert_allclose(table["fluxratio"][0], 60 * SIGMA / 5e3, rtol=0.1)
    assert abs(table["fluxref"][1]) < 0.05 * 5e3


def test_positions_on_the_sky():
    table = find_candidates(make_difference([(300.3, 200.7, 100 * SIGMA)]), wcs(), PARAMS).table
    ra, dec = wcs().pixel_to_sky(table["xpos"] - 1, table["ypos"] - 1)
    np.testing.assert_allclose([table["ra"], table["dec"]], [ra, dec], rtol=1e-12)


def test_the_same_bits_twice():
    stars = [(100.2, 100.4, 60 * SIGMA), (104.2, 100.4, -50 * SIGMA), (300.0, 300.0, 40 * SIGMA)]
    one, two = (find_candidates(make_difference(stars), wcs(), PARAMS) for _ in range(2))
    assert one.table.tobytes() == two.table.tobytes()
    assert [a.tobytes() for a in one.cutouts] == [a.tobytes() for a in two.cutouts]


def test_inputs_are_left_alone():
    difference = make_difference([(100.2, 100.4, 60 * SIGMA)])
    before = [getattr(difference, name).copy() for name in ("pix", "sigma", "mask", "science", "reference")]
    find_candidates(difference, wcs(), PARAMS)
    for name, old in zip(("pix", "sigma", "mask", "science", "reference"), before):
        np.testing.assert_array_equal(getattr(difference, name), old)


def test_what_cannot_be_is_refused():
    good = make_difference()
    empty = replace(good.psf, coefficients=np.zeros_like(good.psf.coefficients))
    for change in (
        {"sigma": good.sigma[:-1]},
        {"psf": psf_of(2.0, (9, 9))},
        {"psf": empty},
        {"gain_e": 0.0},
        {"magzp": np.nan},
    ):
        with pytest.raises(BadInput):
            find_candidates(replace(good, **change), wcs(), PARAMS)
    with pytest.raises(AlgorithmFailure) as failure:
        find_candidates(replace(good, sigma=good.sigma / 20), wcs(), PARAMS.model_copy(update={"max_peaks": 2000}))
    assert failure.value.figures["max_peaks"] == 2000
    with pytest.raises(AlgorithmFailure):
        find_candidates(good, wcs(), PARAMS.model_copy(update={"least_snr": 3.0, "max_candidates": 9}))
