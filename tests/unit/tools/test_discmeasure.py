"""The measure of difference images and candidates says what was put into them."""

import numpy as np
import pytest

from tools.scorecard import disccard, discmeasure, disctruth, limits
from tools.scorecard.discmeasure import Candidates, DiffProducts
from tools.skysim import render, variables
from tools.skysim.scene import GALAXY_TRUTH, MOVER_TRUTH, STAR_TRUTH, TRANSIENT_TRUTH

SIDE, ZERO, GAIN, READ_NOISE_E, SKY = 600, 26.3, 6.2, 10.0, 200.0
N_EPOCHS = 16


def to_sky(x, y):
    dec = 33.0 + np.asarray(y) / 3600.0
    return 55.0 - np.asarray(x) / 3600.0 / np.cos(np.radians(dec)), dec


def sky_grid():
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(-9, SIDE + 9, 9), np.linspace(-9, SIDE + 9, 9)))
    grid = np.zeros(x.size, [(k, "f8") for k in ("x", "y", "ra", "dec")])
    grid["x"], grid["y"], (grid["ra"], grid["dec"]) = x, y, to_sky(x, y)
    return grid


class FakeScience:
    """What the measure asks of an exposure, from tables of its own."""

    rcid, night = 20, "20200924"
    gain_and_noise_e = (GAIN, READ_NOISE_E)

    def __init__(self, name, seeing, **tables):
        self.exposure = name
        empty = {"stars": STAR_TRUTH, "galaxies": GALAXY_TRUTH, "transients": TRANSIENT_TRUTH, "movers": MOVER_TRUTH}
        self.tables = {key: np.zeros(0, dtype) for key, dtype in empty.items()}
        self.tables["cosmic_rays"] = np.zeros(0, [("index", "i4"), ("electrons", "f4"), ("clump", "i4")])
        self.tables["tracks"] = np.zeros(0, [(k, "f8") for k in ("x0", "y0", "x1", "y1", "width_pix", "kind")])
        self.tables |= {"wcs": sky_grid()} | tables
        self.header = {"NAXIS1": SIDE, "NAXIS2": SIDE}
        self.facts = {
            "core_fwhm_pix": seeing, "sky_dn": SKY, "zero_point_channel": ZERO, "full_well_dn": 60000.0,
            "psf_fwhm_terms": [0, 0, 0], "psf_e1_terms": [0, 0, 0, 0], "psf_e2_terms": [0, 0, 0, 0],
        }  # fmt: skip

    def table(self, name):
        return self.tables[name]


def rows(dtype, x, y, mag, **columns):
    table = np.zeros(np.size(x), dtype)
    table["x"], table["y"], table["mag"] = x, y, mag
    table["ra"], table["dec"] = to_sky(table["x"], table["y"])
    table["flux_dn"] = 10 ** (-0.4 * (table["mag"] - ZERO))
    table["smooth_response"] = 1.0
    table["id"] = 1000 + np.arange(table.size)
    for name, values in columns.items():
        table[name] = values
    return table


def grid(step=15.0, shift=0.3, seed=0):
    rng = np.random.default_rng(seed)
    axis = np.arange(45.0, SIDE - 45.0, step)
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    return x + rng.uniform(-shift, shift, x.size), y + rng.uniform(-shift, shift, x.size)


@pytest.fixture(scope="module")
def field():
    """Stars and probes that do not touch, and sixteen epochs of the same seeing without the probes."""
    rng = np.random.default_rng(5)
    x, y = grid()
    is_star = np.arange(x.size) % 2 == 0
    stars = rows(STAR_TRUTH, x[is_star], y[is_star], rng.uniform(12.5, 20.0, is_star.sum()))
    kinds = rng.choice(variables.PROBE_KINDS, (~is_star).sum())
    probes = rows(TRANSIENT_TRUTH, x[~is_star], y[~is_star], rng.uniform(17.0, 22.0, (~is_star).sum()), kind=kinds)
    science = FakeScience("new", 2.0, stars=stars, transients=probes)
    return science, [FakeScience(f"old{k}", 2.0, stars=stars) for k in range(N_EPOCHS)]


@pytest.fixture(scope="module")
def images(field):
    """Difference with its exact noise: expected counts drawn, the mean of the epochs subtracted."""
    science, _ = field
    rng = np.random.default_rng(6)
    psf, stars, probes = limits.true_psf(science), science.table("stars"), science.table("transients")
    constant, new = (np.zeros((SIDE, SIDE), np.float32) for _ in range(2))
    render.add_stars(constant, stars["x"], stars["y"], stars["flux_dn"], psf)
    render.add_stars(new, probes["x"], probes["y"], probes["flux_dn"], psf)
    dark = SKY / GAIN + (READ_NOISE_E / GAIN) ** 2 + 1 / 12
    var = (dark + constant / GAIN) * (1 + 1 / N_EPOCHS)
    pix = new + np.sqrt(var + new / GAIN) * rng.standard_normal(constant.shape)
    return pix.astype(np.float32), np.sqrt(var).astype(np.float32)


def fitted(field, images):
    """Fluxes with known PSF and places, weighted with the true variance."""
    science, _ = field
    probes, psf = science.table("transients"), limits.true_psf(science)
    star = limits.star_planes(psf, probes["x"], probes["y"], 10)[:, 0]
    k = np.arange(-10, 11)
    row, column = (np.rint(probes[p]).astype(int)[:, None, None] for p in ("y", "x"))
    pix = images[0][row + k[:, None], column + k]
    var = images[1][row + k[:, None], column + k] ** 2 + star * probes["flux_dn"][:, None, None] / GAIN
    information = (star**2 / var).sum(axis=(1, 2))
    flux = (star * pix / var).sum(axis=(1, 2)) / information
    return Candidates(probes["x"], probes["y"], flux, information**-0.5, np.full(flux.size, np.nan))


def test_noise_of_an_equal_reference_adds_its_share():
    star = np.outer(*2 * [np.exp(-0.5 * np.arange(-12, 13) ** 2)])
    star /= star.sum()
    assert disctruth.variance_factor(star, star, 0.3) == pytest.approx(1.3, rel=1e-9)
    wide = np.outer(*2 * [np.exp(-0.125 * np.arange(-12, 13) ** 2)])
    assert disctruth.variance_factor(star, wide / wide.sum(), 0.3) > 1.5  # a blurred reference must be sharpened


def test_bounds_are_those_of_a_weighted_fit(field, images):
    science, epochs = field
    changed = disctruth.changes(science, epochs)
    assert disctruth.is_probe(changed).all()
    own = fitted(field, images)
    order = np.argsort(changed["id"])
    np.testing.assert_allclose(changed["sigma"][order], own.sigflux, rtol=0.02)
    np.testing.assert_allclose(changed["flux"][order], science.table("transients")["flux_dn"], rtol=1e-12)


def test_perfect_difference_meets_every_target(field, images):
    science, epochs = field
    own = fitted(field, images)
    check = discmeasure.check(science, epochs, DiffProducts(*images, own.select(own.snr > 5.0)))
    values = {m.name: m for m in disccard.metrics([check])}
    assert 0.98 < check.widths["all"] < 1.02
    assert values["half_complete_snr"].value == pytest.approx(5.0, abs=0.25)
    assert values["completeness_snr6"].ok
    assert values["flux_scatter_over_bound"].value == pytest.approx(1.0, abs=0.12)
    assert values["pull_width_max"].ok and values["pull_width_min"].ok
    assert values["flux_bias_mmag"].ok
    assert values["false_per_channel"].value == 0.0
    assert values["star_rms_1_2"].value == pytest.approx(1.0, abs=0.06)
    assert "new" in disccard.as_text([check])


def test_faults_are_seen(field, images):
    science, epochs = field
    pix, sigma = images
    own = fitted(field, images)
    half = own.select(own.snr > 9.0)._replace(flux=own.select(own.snr > 9.0).flux * 1.02)
    check = discmeasure.check(science, epochs, DiffProducts(pix * 1.2, sigma, half))
    values = {m.name: m for m in disccard.metrics([check])}
    assert not values["width_max"].ok and check.widths["sky"] == pytest.approx(1.2, abs=0.03)
    assert values["half_complete_snr"].value == pytest.approx(9.0, abs=0.6)
    assert values["flux_bias_mmag"].value == pytest.approx(21.7, abs=3.0)
    assert values["star_rms_1_2"].value == pytest.approx(1.2, abs=0.08)


def test_false_positives_have_their_reason(field):
    science, epochs = field
    stars, probes = science.table("stars"), science.table("transients")
    hits = np.zeros(1, science.tables["cosmic_rays"].dtype)
    hits["index"] = 300 * SIDE + 337
    own = FakeScience("new", 2.0, stars=stars, transients=probes, cosmic_rays=hits)
    depth = stars["mag"] - disctruth.saturation_mag(own)
    star = stars[np.argmin(np.abs(depth - 4.0))]
    faint = probes[np.argmin(np.abs(probes["mag"] - 19.0))]
    x = np.array([337.4, star["x"] + 1.0, faint["x"] + 1.5, 12.0])
    y = np.array([300.8, star["y"], faint["y"], 300.0])
    loud = Candidates(x, y, np.full(4, -60.0), np.full(4, 10.0), np.full(4, np.nan))
    false = discmeasure.false_positives(own, disctruth.changes(own, epochs), loud, (SIDE, SIDE))
    assert [discmeasure.REASONS[k] for k in false["reason"]][:2] == ["cosmic ray", "star"]
    assert len(false) == 3 and discmeasure.REASONS[false["reason"][2]] == "edge"


def test_variable_star_is_a_change_against_the_mean_of_the_epochs():
    mags = np.array([18.0, 18.4, 18.2])
    old = [FakeScience(str(m), 2.0, stars=rows(STAR_TRUTH, [300.2], [301.0], m, kind=1)) for m in mags]
    new = FakeScience("new", 2.0, stars=rows(STAR_TRUTH, [300.2], [301.0], 17.9, kind=1))
    changed = disctruth.changes(new, old)
    expected = 10 ** (-0.4 * (17.9 - ZERO)) - np.mean(10 ** (-0.4 * (mags - ZERO)))
    assert changed["flux"] == pytest.approx([expected]) and changed["kind"][0] == disctruth.VARIABLE


def test_transient_that_has_faded_is_a_negative_change():
    bright = rows(TRANSIENT_TRUTH, [200.3], [150.7], 18.0)
    old = [FakeScience(str(k), 2.0, transients=t) for k, t in enumerate((bright, bright[:0]))]
    changed = disctruth.changes(FakeScience("new", 2.0), old)
    assert changed["flux"] == pytest.approx([-0.5 * 10 ** (-0.4 * (18.0 - ZERO))])
    assert changed["x"] == pytest.approx([200.3], abs=0.02) and changed["y"] == pytest.approx([150.7], abs=0.02)


def test_epoch_whose_image_ends_before_an_object_does_not_count():
    same = rows(TRANSIENT_TRUTH, [SIDE - 5.0], [300.0], 18.0, kind=variables.SN_II)
    beside = sky_grid()
    beside["x"] += 10.0
    old = [FakeScience("in", 2.0, transients=same), FakeScience("out", 2.0, transients=same[:0], wcs=beside)]
    changed = disctruth.changes(FakeScience("new", 2.0, transients=same), old)
    assert changed["flux"] == pytest.approx([0.0], abs=1e-9)


def test_nothing_is_a_defined_outcome(field):
    science, epochs = field
    none = Candidates(*(np.zeros(0) for _ in range(5)))
    masked = np.full((SIDE, SIDE), np.inf, np.float32)
    check = discmeasure.check(science, epochs, DiffProducts(np.zeros((SIDE, SIDE), np.float32), masked, none))
    assert not check.probes["clean"].any() and not check.probes["found"].any()
    assert np.isnan(check.widths["all"]) and check.false.size == 0
    values = {m.name: m.value for m in disccard.metrics([check])}
    assert values["completeness_snr6"] is None and values["false_per_channel"] == 0.0
