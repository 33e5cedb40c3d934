"""The measure of PSF-fit catalogues says what was put into them."""

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers.fake_run import make_run
from tools import scorecard
from tools.scorecard import limits, psfcard, psfmodel, psfphot
from tools.scorecard.findings import compare
from tools.scorecard.products import Run
from tools.skysim import optics, render
from tools.skysim.scene import GALAXY_TRUTH


@pytest.fixture(scope="module")
def science(tmp_path_factory):
    return next(iter(Run(make_run(tmp_path_factory.mktemp("run"))).science()))


@pytest.fixture(scope="module")
def truth(science):
    return psfphot.truths(science)


PSF = optics.Psf(2.0, (-0.01, 0.02, 0.012), (0.03, 0.02, 0.0, 0.01), (-0.02, 0.0, 0.01, 0.0), 255.5, 255.5)


def catalogue(truth, seed=3, cut=5.0, widen=1.0, scale=1.0):
    """What a fit at the bound would give, its errors widened by a factor, its fluxes scaled."""
    rng = np.random.default_rng(seed)
    objects, bound, n = truth.objects, truth.bounds, len(truth.objects)
    x, y = (objects[k] + widen * s * rng.standard_normal(n) for k, s in zip("xy", (bound.sigma_x, bound.sigma_y)))
    flux = scale * (objects["flux"] + widen * bound.sigma_flux * rng.standard_normal(n))
    kept = flux > cut * bound.sigma_flux
    pixels = np.stack([bound.sigma_x, bound.sigma_y], axis=1)
    return psfphot.Catalogue(*(p[kept] for p in (x, y, flux, bound.sigma_flux, pixels)), 26.3)


def many(science, truth, n=4000, snr=(4.0, 400.0)):
    """More stars than the fake run has, all alone."""
    rng = np.random.default_rng(1)
    objects = np.zeros(n, truth.objects.dtype)
    objects["is_star"] = True
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), axis=-1).reshape(-1, 2)[:n] * 7.6 + 10.0
    objects["x"], objects["y"] = (grid + rng.uniform(-0.5, 0.5, (n, 2))).T
    bound = limits.bounds(science, objects["x"], objects["y"], np.full(n, 500.0))
    objects["flux"] = bound.sigma_flux * np.exp(rng.uniform(*np.log(snr), n))
    objects["mag"] = 26.3 - 2.5 * np.log10(objects["flux"])
    bound = limits.bounds(science, objects["x"], objects["y"], objects["flux"])
    limit = limits.limit_mag(science)
    return psfphot.Truths(objects, bound, objects["mag"] - limit, np.zeros(n), limit)


def test_planes_are_what_the_simulator_renders_and_their_derivatives():
    x, y = np.array([100.3, 200.49, 300.0, 411.7]), np.array([55.1, 300.2, 20.0, 500.6])
    planes = limits.star_planes(PSF, x, y, 8)
    rendered = render.psf_stamps(x, y, np.ones(4), PSF, 8)
    assert np.abs(planes[:, 0] - rendered).max() < 1e-4 * rendered.max()
    # The window stays where it is for these steps; a bound does not count that the PSF changes with the place.
    step, same = 0.002, optics.Psf(2.0, (0.0,) * 3, (0.03, 0.0, 0.0, 0.0), (-0.02, 0.0, 0.0, 0.0), 255.5, 255.5)
    planes = limits.star_planes(same, x, y, 8)
    for axis, (dx, dy) in enumerate(((step, 0.0), (0.0, step)), start=1):
        ahead, behind = (limits.star_planes(same, x + s * dx, y + s * dy, 8)[:, 0] for s in (1.0, -1.0))
        assert planes[:, axis] == pytest.approx((ahead - behind) / (2.0 * step), abs=2e-5)


def test_bound_is_the_scatter_of_a_fit(science):
    """A linear least-squares fit with the true PSF, variances and derivatives, of 2000 noisy images."""
    rng = np.random.default_rng(5)
    n, gain = 2000, science.gain_and_noise_e[0]
    x, y, flux = np.full(n, 250.2), np.full(n, 200.4), np.full(n, 3000.0)
    planes = limits.star_planes(limits.true_psf(science), x[:1], y[:1], 10)[0]
    variance = flux[0] * gain * planes[0] + limits.background_var_e(science)
    noise = rng.standard_normal((n, planes[0].size)) * np.sqrt(variance.ravel())
    design = (planes * np.array([1.0, flux[0], flux[0]])[:, None, None]).reshape(3, -1) * gain
    weight = 1.0 / np.sqrt(variance.ravel())
    fit, *_ = np.linalg.lstsq((design * weight).T, (noise * weight).T, rcond=None)
    bound = limits.bounds(science, x[:1], y[:1], flux[:1])
    assert fit.std(axis=1) == pytest.approx([part[0] for part in bound], rel=0.04)


def test_neighbour_adds_its_overlap():
    distance, share = limits.overlap(PSF)
    assert share[0] == pytest.approx(1.0) and np.all(np.diff(share) < 0.0)
    star, other = limits.star_planes(PSF, np.array([255.0, 258.0]), np.array([255.0, 255.0]), 25)[:, 0]
    moved = np.zeros_like(other)
    moved[:, 3:] = other[:, :-3]
    assert np.interp(3.0, distance, share) == pytest.approx((star * moved).sum() / (star * star).sum(), rel=0.15)


def test_match_uses_each_detection_once():
    objects = np.zeros(4, psfphot.sources.OBJECT)
    objects["x"], objects["y"] = [10.0, 10.6, 50.0, 80.0], 20.0
    objects["flux"] = [100.0, 90.0, 100.0, 100.0]
    x = np.array([10.1, 50.2, 50.9, 80.1])
    found = psfphot.Catalogue(x, np.full(4, 20.0), np.array([190.0, 100.0, 100.0, 300.0]), np.ones(4))
    assert psfphot.match(objects, found).tolist() == [0, -1, 1, -1], "one blend, one double, one too bright"
    assert psfphot.match(objects, psfphot.Catalogue(*np.zeros((4, 0)))).tolist() == [-1] * 4


def test_perfect_catalogue_is_at_the_bound(science, truth):
    stars = many(science, truth)
    check = psfphot.check(science, catalogue(stars), stars)
    metrics = {m.name: m for m in psfcard.metrics([check])}
    assert metrics["psf_flux_over_bound_all"].value == pytest.approx(1.0, abs=0.05)
    assert metrics["psf_position_over_bound_all"].value == pytest.approx(1.0, abs=0.05)
    assert metrics["psf_pull_width_most"].ok and metrics["psf_pull_width_least"].ok
    assert metrics["psf_position_pull_width"].value == pytest.approx(1.0, abs=0.05)
    assert metrics["psf_bias_faint_sigma"].value < 0.08
    assert metrics["psf_spurious_fraction"].value == 0.0
    assert metrics["psf_zero_point_error_mmag"].value == pytest.approx(0.0, abs=1e-6)
    assert metrics["psf_completeness_19_20"].value > 0.99
    # Half of the stars of S/N 5 pass a cut at 5.
    n, found = psfcard.completeness(check.stars, -0.1, 0.1)
    assert found / n == pytest.approx(0.5, abs=0.12)


def test_faults_are_seen(science, truth):
    stars = many(science, truth)
    wide = {m.name: m for m in psfcard.metrics([psfphot.check(science, catalogue(stars, widen=1.3), stars)])}
    assert wide["psf_flux_over_bound_all"].value == pytest.approx(1.3, abs=0.06)
    assert not wide["psf_flux_over_bound"].ok and not wide["psf_pull_width_most"].ok
    bright = {m.name: m for m in psfcard.metrics([psfphot.check(science, catalogue(stars, scale=1.01), stars)])}
    assert bright["psf_bias_bright_mmag"].value == pytest.approx(10.8, abs=1.0)
    good = catalogue(stars)
    ghosts = np.arange(40) * 7.6 + 13.8
    extra = (ghosts, np.full(40, 203.8), np.full(40, 400.0), np.full(40, 20.0))
    check = psfphot.check(science, psfphot.Catalogue(*map(np.append, good[:4], extra)), stars)
    assert check.n_spurious == 40


def test_light_of_unclaimed_sources_explains_a_detection(science, truth):
    """Two stars at 1.2 px seen as one between them: no match, but not spurious."""
    stars = many(science, truth, 2, snr=(20.0, 20.1))
    objects = stars.objects.copy()
    objects["x"], objects["y"], objects["flux"] = [200.0, 202.2], 300.0, 150.0
    middle = psfphot.Catalogue(*(np.array([v]) for v in (201.1, 300.0, 230.0, 20.0)))
    row = psfphot.match(objects, middle)
    assert row.tolist() == [-1, -1]
    assert not psfphot.spurious(science, stars._replace(objects=objects), middle, row).any()


def test_knots_of_a_galaxy_are_no_fault(science, monkeypatch):
    galaxies = np.zeros(2, GALAXY_TRUTH)
    galaxies["x"], galaxies["y"], galaxies["r_half_arcsec"] = [100.0, 300.0], 100.0, [0.5, 5.0]
    monkeypatch.setitem(science._tables, "galaxies", galaxies)
    where = np.array([[103.5, 100.0], [105.0, 100.0], [300.0, 114.0], [300.0, 116.0]])
    assert psfphot.in_galaxies(science, where).tolist() == [True, False, True, False]


def test_selection_bias_is_that_of_a_truncated_law():
    rng = np.random.default_rng(2)
    flux = 5.5 + rng.standard_normal(400_000)
    assert psfphot.expected_selected(5.5, 5.0) == pytest.approx(np.median(flux[flux > 5.0]) - 5.5, abs=0.01)
    assert psfphot.expected_selected(30.0, 5.0) == pytest.approx(0.0, abs=1e-6)


def test_free_position_adds_to_a_peak():
    """The highest point near the truth of a smooth signal with matched-filtered noise, by brute force."""
    rng = np.random.default_rng(4)
    axis = np.arange(-12, 13) * 0.25
    kernel = np.exp(-0.5 * (axis / 0.9) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    snr, n = 8.0, 3000
    response = np.exp(-0.25 * (axis[8:17, None] ** 2 + axis[None, 8:17] ** 2) / 0.9**2)
    band = np.array([np.pad(kernel, (k, 8 - k)) for k in range(9)])
    gains = np.empty(n)
    for k in range(n):
        field = band @ rng.standard_normal((33, 33)) @ band.T
        gains[k] = (snr * response + field).max() - snr
    assert gains.mean() == pytest.approx(psfphot.expected_free_position(snr), abs=0.06)


def psfex_file(path, model):
    """A model in PSFEx's layout."""
    mask = model.samples[None].astype("f4")
    n_terms, n = mask.shape[1:3]
    column = fits.Column("PSF_MASK", f"{mask.size}E", dim=f"({n},{n},{n_terms})", array=mask)
    hdu = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    (zero_x, zero_y), (scale_x, scale_y) = model.zero, model.scale
    hdu.header.update({"POLNAXIS": 2, "POLNAME1": "X_IMAGE", "POLZERO1": zero_x, "POLSCAL1": scale_x, "POLDEG1": 2,
                       "POLNAME2": "Y_IMAGE", "POLZERO2": zero_y, "POLSCAL2": scale_y,
                       "PSF_SAMP": model.step_pix})  # fmt: skip
    hdu.writeto(path)


def test_psf_file_of_the_truth_has_no_error(science, tmp_path):
    psfex_file(tmp_path / "true.psf", psfmodel.sampled_truth(limits.true_psf(science), (512, 512)))
    error = psfmodel.model_error(science, tmp_path / "true.psf")
    assert error.worst.max() < 2e-3 and error.worst.size == 36
    assert np.abs(error.shift_pix).max() < 1e-3 and error.scale == pytest.approx(1.0, abs=2e-3)


def test_psf_model_off_centre_too_weak_and_too_wide(science):
    psf = limits.true_psf(science)

    def model(x, y, half, dx=0.02, scale=0.99, width=1.0):
        wide = optics.Psf(psf.fwhm_pix * width, *[getattr(psf, k) for k in ("fwhm_terms", "e1_terms", "e2_terms")],
                          psf.half_x, psf.half_y)  # fmt: skip
        planes = limits.star_planes(wide, x, y, half)
        return scale * (planes[:, 0] + dx * planes[:, 1])

    error = psfmodel.compare(science, model)
    assert error.shift_pix[:, 0] == pytest.approx(0.02 * 0.99, abs=1e-6)
    assert error.scale == pytest.approx(0.99, abs=1e-6) and error.worst_shape.max() < 1e-6
    error = psfmodel.compare(science, lambda x, y, half: model(x, y, half, 0.0, 1.0, 1.02))
    assert 0.005 < error.worst_shape.max() < error.worst.max() < 0.04


def test_nothing_to_measure(science, truth):
    empty = psfphot.Catalogue(*np.zeros((4, 0)))
    check = psfphot.check(science, empty, truth)
    assert check.n_detections == 0 and not len(check.clean)
    missed = {m.name for m in psfcard.metrics([check]) if not m.ok}
    assert {"psf_flux_over_bound", "psf_completeness_19_20", "psf_model_error_percent"} <= missed
    assert psfcard.metrics([]) == []
    assert "completeness" in psfcard.as_text(check)


def test_surface_takes_a_trend_out_of_the_bright_floor():
    rng = np.random.default_rng(8)
    clean = np.zeros(800, psfphot.CLEAN)
    clean["u"], clean["v"] = rng.uniform(-1.0, 1.0, (2, 800))
    clean["mag"], clean["snr"] = 15.0, 300.0
    clean["ratio"] = 10.0 ** (-0.4e-3 * (rng.normal(0.0, 3.6, 800) + 12.0 * clean["u"] * clean["v"]))
    floor = psfcard.bright(clean)
    assert floor.after_surface == pytest.approx(3.6, rel=0.08) and floor.raw > 5.0
    assert floor.limit == pytest.approx(1085.74 / 300.0)


@pytest.fixture
def run_with_psf(tmp_path):
    """The fake run with a PSF catalogue at the bound and the true PSF in a file."""
    path = make_run(tmp_path / "run")
    science = next(iter(Run(path).science()))
    truth = psfphot.truths(science)
    found = catalogue(truth, scale=1.005)
    rows = np.zeros(found.x.size, [(name, "f8") for name in ("xpos", "ypos", "flux", "sigflux")])
    for name, values in zip(rows.dtype.names, (found.x + 1.0, found.y + 1.0, found.flux, found.sigflux)):
        rows[name] = values
    head = fits.Header([("MAGZP", 26.3015)])
    fits.HDUList([fits.PrimaryHDU(header=head), fits.BinTableHDU(rows, name="PSF_CATALOG")]).writeto(
        science.path("psfcat.fits")
    )
    psfex_file(science.path("sciimg.psf"), psfmodel.sampled_truth(limits.true_psf(science), (512, 512)))
    return path


def test_section_and_picture_of_the_scorecard(run_with_psf):
    run = Run(run_with_psf)
    findings = compare(run)
    cards = scorecard.sections(run, findings)
    metrics = {m.name: m for m in cards["PSF-fit photometry"]}
    assert metrics["psf_bias_bright_mmag"].value == pytest.approx(5.4, abs=1.0)
    assert metrics["psf_zero_point_error_mmag"].value == pytest.approx(1.5, abs=1e-3)
    assert metrics["psf_model_error_percent"].value < 0.3
    page = scorecard.page.write_report(run, findings, cards)
    assert "psf.png" in page.read_text() and (page.parent / "psf.png").stat().st_size > 20_000


def test_without_a_psf_catalogue_there_is_no_section(tmp_path):
    run = Run(make_run(tmp_path))
    assert "PSF-fit photometry" not in scorecard.sections(run, compare(run))


def test_width_of_a_mixture():
    rng = np.random.default_rng(9)
    sigmas = rng.uniform(1.0, 5.0, 200_000)
    assert psfcard.expected_width(sigmas[:500]) == pytest.approx(
        psfcard.width(sigmas * rng.standard_normal(sigmas.size)), rel=0.05
    )
