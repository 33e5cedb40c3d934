"""Registration: injected offsets and flux ratios are recovered to the photons; what cannot be registered is refused."""

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers import diffsky
from tests.helpers.diffsky import GAIN_E, GRID, SHAPE, SKY_SIGMA, Profile
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE
from zsds_hpc.subtraction.register import RegisterParams, register

PROFILE = Profile(2.2)
SYSTEM = diffsky.wcs((1.7, -3.3), 0.03)


def shift(u, v):
    return 0.31 + 0.2 * u - 0.15 * u * v + 0.05 * v**3, -0.4 + 0.1 * v + 0.07 * u**2


def gain(u, v):
    return 0.03 + 0.02 * u - 0.015 * v**2


@pytest.fixture(scope="module")
def stars():
    return diffsky.random_stars(400)


@pytest.fixture(scope="module")
def reference(stars):
    return diffsky.template(stars, PROFILE)


@pytest.fixture(scope="module")
def blank(stars):
    """A science image whose catalogue the tests replace."""
    return diffsky.science(stars, PROFILE, system=SYSTEM).science


def listed(stars, seed=1, system=SYSTEM, **changes):
    """Catalogue of the stars on the science image."""
    return diffsky.catalogue(
        *diffsky.seen_by(stars, system, **changes), PROFILE, SKY_SIGMA, GAIN_E, seed, system
    )  # fmt: skip


def places():
    x, y = np.meshgrid(np.linspace(20, SHAPE[1] - 20, 5), np.linspace(20, SHAPE[0] - 20, 5))
    return x.ravel(), y.ravel()


def fit_error(table, sigma, degree, at):
    """Error of a polynomial at places (u, v) that is fitted to the stars of a catalogue."""

    def design(u, v):
        return np.stack([u**i * v**j for i in range(degree + 1) for j in range(degree + 1 - i)], axis=-1)

    stars = design(2 * (table["xpos"] - 1) / (SHAPE[1] - 1) - 1, 2 * (table["ypos"] - 1) / (SHAPE[0] - 1) - 1)
    covariance = np.linalg.inv(stars.T @ (stars / sigma[:, None] ** 2))
    there = design(*at)
    return np.sqrt(np.einsum("pi,ij,pj->p", there, covariance, there))


def test_offsets_and_flux_ratio_are_recovered_to_the_photons(stars, reference, blank):
    """Pulls over twelve noise realisations: the error at a place is that of the fit to the stars, floors included."""
    x, y = places()
    u, v = 2 * x / (SHAPE[1] - 1) - 1, 2 * y / (SHAPE[0] - 1) - 1
    truth_x, truth_y = x + shift(u, v)[0], y + shift(u, v)[1]
    there = GRID.wcs.sky_to_pixel(*SYSTEM.pixel_to_sky(x, y))
    errors, ratios, n_stars = [], [], []
    for seed in range(12):
        found = register(
            replace(blank, psfcat=listed(stars, seed, shift=shift, gain=gain)), reference, RegisterParams()
        )
        at = found.from_native(*there)
        errors.append([at[0] - truth_x, at[1] - truth_y])
        ratios.append(2.5 * np.log10(found.gain_at(x, y)) - gain(u, v))
        n_stars.append(found.n_stars)
        assert found.rms_pix < 0.02 and found.rms_mag < 0.01
    print("px", np.std(errors), "mag", np.std(ratios), "stars", np.mean(n_stars))
    assert np.mean(n_stars) > 150
    table = listed(stars)
    table = table[table["snr"] > 20]
    expected_pix = fit_error(table, np.hypot(PROFILE.fwhm_pix / 2.355 / table["snr"], 0.005), 3, (u, v))
    expected_mag = fit_error(table, np.hypot(1.0857 / table["snr"], 0.003), 2, (u, v))
    pulls = [np.sqrt(np.mean((np.array(e) / s) ** 2)) for e, s in ((errors, expected_pix), (ratios, expected_mag))]
    print("pulls", pulls)
    assert all(0.4 < pull < 1.3 for pull in pulls)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.012 and np.abs(np.mean(ratios, axis=0)).max() < 0.006


def test_both_ways_lead_back(stars, reference, blank):
    found = register(replace(blank, psfcat=listed(stars, shift=shift)), reference, RegisterParams())
    x, y = places()
    back = found.from_native(*found.to_native(x, y))
    assert max(np.abs(back[0] - x).max(), np.abs(back[1] - y).max()) < 2e-3


def test_trusting_the_systems_fits_no_offset(stars, reference, blank):
    found = register(
        replace(blank, psfcat=listed(stars, gain=gain)), reference, RegisterParams(refine=False)
    )  # fmt: skip
    x, y = places()
    expected = GRID.wcs.sky_to_pixel(*SYSTEM.pixel_to_sky(x, y))
    assert np.allclose(found.to_native(x, y), expected, atol=1e-9) and not found.shift.any()
    assert abs(found.gain_at(200.0, 200.0) - 10**0.012) < 0.005


def test_the_mapping_is_what_it_says(stars, reference, blank):
    """Positions at the nodes, on both grids; flux per pixel is kept, times the gain."""
    found = register(replace(blank, psfcat=listed(stars, gain=gain)), reference, RegisterParams())
    for fine in (True, False):
        mapping = found.mapping(fine)
        rows, columns = (np.arange(n) for n in mapping.nodes.shape[1:])
        x, y = np.meshgrid((columns - 1.0) * mapping.step, (rows - 1.0) * mapping.step)
        at = found.to_native(x, y)
        expected = [GRID.to_fine(a) for a in at] if fine else at
        assert np.allclose(mapping.nodes[:2], expected, atol=1e-9)
        inner = (slice(2, -2), slice(2, -2))
        assert np.allclose(mapping.nodes[2][inner] / found.gain_at(x, y)[inner], 1.0, atol=2e-4)


def test_sources_lie_on_their_stars(stars, reference, blank):
    found = register(replace(blank, psfcat=listed(stars, shift=shift, gain=gain)), reference, RegisterParams())
    x, y, flux = diffsky.seen_by(stars, SYSTEM, shift=shift, gain=gain)
    sources = found.sources()
    assert len(sources) == len(reference.catalogue)
    distance = np.hypot(sources["x"][:, None] - x, sources["y"][:, None] - y)
    near = distance.argmin(axis=1)
    bright = sources["snr"] > 100
    assert distance.min(axis=1)[bright].max() < 0.05
    assert np.abs(sources["flux"] / flux[near] - 1)[bright].max() < 0.05
    assert sources["snr"].tolist() == reference.catalogue["snr"].tolist()


def test_variable_stars_do_not_bend_the_flux_ratio(stars, reference, blank):
    table = listed(stars)
    table["flux"][::12] *= 2.0
    found = register(replace(blank, psfcat=table), reference, RegisterParams())
    assert np.abs(2.5 * np.log10(found.gain_at(*places()))).max() < 0.02


def test_colours_of_another_filter_show_as_scatter(stars, reference, blank):
    table = listed(stars)
    table["flux"] *= 10 ** (0.4 * np.random.default_rng(5).normal(0, 0.3, len(table)))
    found = register(replace(blank, psfcat=table), reference, RegisterParams())
    assert 0.2 < found.rms_mag < 0.4


def test_few_stars_get_polynomials_of_low_degree(stars, reference, blank):
    table = listed(stars)
    bright = table[np.argsort(-table["snr"])[:26]]
    found = register(replace(blank, psfcat=bright), reference, RegisterParams())
    assert 20 <= found.n_stars <= 26 and found.shift.shape == (2, 3) and found.gain.shape == (3,)


@pytest.mark.parametrize("n", [0, 7, 19])
def test_too_few_stars_are_refused_with_their_number(stars, reference, blank, n):
    table = listed(stars)
    table = table[np.argsort(-table["snr"])[:n]]
    with pytest.raises(AlgorithmFailure, match="at least 20 are needed") as caught:
        register(replace(blank, psfcat=table), reference, RegisterParams())
    assert caught.value.figures["n_matched"] <= n
    with pytest.raises(AlgorithmFailure, match="stars match"):
        register(blank, replace(reference, catalogue=np.zeros(n, PSFCAT_DTYPE)), RegisterParams())


def test_flagged_stars_do_not_count(stars, reference, blank):
    table = listed(stars)
    table["flags"] = 256
    with pytest.raises(AlgorithmFailure, match="0 stars match"):
        register(replace(blank, psfcat=table), reference, RegisterParams())


@pytest.mark.parametrize("column", ["xpos", "flux", "snr", "sigmag"])
def test_rows_that_are_no_numbers_do_not_count(stars, reference, blank, column):
    table, clean = listed(stars), register(replace(blank, psfcat=listed(stars)), reference, RegisterParams())
    table[column][::5] = np.nan
    found = register(replace(blank, psfcat=table), reference, RegisterParams())
    assert found.n_stars < clean.n_stars and np.isfinite(found.shift).all() and np.isfinite(found.gain).all()
    table[column] = np.nan
    with pytest.raises(AlgorithmFailure, match="0 stars match"):
        register(replace(blank, psfcat=table), reference, RegisterParams())


def test_matches_by_chance_are_refused(stars, blank):
    """A crowded image whose WCS is wrong: so many stars that hundreds match by chance."""
    rng = np.random.default_rng(8)
    crowd = diffsky.Stars(*GRID.wcs.pixel_to_sky(*rng.uniform(0, 400, (2, 2500))), rng.uniform(2000, 9000, 2500))
    wrong = diffsky.Stars(*GRID.wcs.pixel_to_sky(*rng.uniform(0, 400, (2, 2500))), crowd.flux)
    here = replace(blank, psfcat=listed(crowd))
    reference = diffsky.template(stars, PROFILE)
    there = diffsky.catalogue(
        *diffsky.seen_by(wrong, GRID.wcs), PROFILE, SKY_SIGMA / 4, GAIN_E * 20, 1, GRID.wcs
    )  # fmt: skip
    with pytest.raises(AlgorithmFailure, match="by chance") as caught:
        register(here, replace(reference, catalogue=there), RegisterParams())
    assert caught.value.figures["n_matched"] > 20 and caught.value.figures["rms_pix"] > 0.3
