"""The scorecard says what was put into a run whose faults are known."""

import json
import math

import numpy as np
import pytest

from tests.helpers.fake_run import make_run
from tools import scorecard
from tools.scorecard import calibrations, card, sources
from tools.scorecard.findings import compare
from tools.scorecard.products import Run
from zsds_hpc.core.errors import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def metrics(run):
    cards = scorecard.sections(Run(run), compare(Run(run)))
    return {metric.name: metric for rows in cards.values() for metric in rows}


def test_verdicts():
    assert card.at_most("a", 1.0, 1.0, "").ok and not card.at_most("a", 1.01, 1.0, "").ok
    assert card.at_least("a", 0.9, 0.9, "").ok and not card.at_least("a", 0.89, 0.9, "").ok
    assert card.reported("a", None, "").ok
    assert not card.at_most("a", None, 1.0, "").ok, "what could not be measured is missed"
    assert not card.at_most("a", math.nan, 1.0, "").ok
    assert not card.at_most("a", math.inf, 1.0, "").ok


def test_json_holds_only_the_metrics():
    rows = [card.at_most("x", np.float32(0.5), 1.0, "text"), card.reported("y", math.nan, "text")]
    assert json.loads(card.as_json(rows)) == {
        "x": {"value": 0.5, "target": 1.0, "ok": True},
        "y": {"value": None, "target": None, "ok": True},
    }


def test_table_names_what_is_missed():
    text = card.as_table({"Heading": [card.at_most("noise", 2.0, 1.1, "why")]})
    assert "Heading" in text and "MISSED" in text and "<= 1.1" in text and "why" in text


def test_calibrations(metrics):
    assert metrics["superbias_residual_over_noise"].value == pytest.approx(1.0, abs=0.01)
    assert metrics["flat_residual_over_noise"].value == pytest.approx(1.0, abs=0.02)
    assert metrics["dead_pixels_recall"].value == 1.0
    assert metrics["noisy_pixels_recall"].value == pytest.approx(0.9) and not metrics["noisy_pixels_recall"].ok
    assert metrics["good_pixels_masked_ppm"].value == pytest.approx(1e6 / (512 * 512 - 20))


def test_noise_beyond_that_of_the_frames_is_seen(tmp_path):
    biases, flats = calibrations.check_all(Run(make_run(tmp_path, noise=1.2)))
    assert biases[0].ratio == pytest.approx(1.2, abs=0.02)
    assert flats[0].ratio == pytest.approx(1.2, abs=0.03)
    assert not calibrations.metrics(biases, flats)[0].ok


def test_astrometry(metrics):
    assert metrics["star_position_rms_mas"].value == pytest.approx(30.0, rel=0.15)
    assert metrics["map_error_mas"].value < 0.01, "the product's map is the true one"


def test_photometry(metrics):
    assert metrics["zero_point_worst_mmag"].value == pytest.approx(2.0, abs=1e-3)
    assert metrics["zero_point_pull"].value == pytest.approx(1.0, abs=1e-3)
    assert metrics["magnitude_offset_mmag"].value == pytest.approx(2.0, abs=0.05)
    assert metrics["completeness_snr10"].value == 1.0
    assert metrics["spurious_fraction"].value == pytest.approx(1 / 145, rel=0.1)


def test_masks(metrics):
    assert metrics["cosmic_ray_recall"].value == pytest.approx(3 / 4), "the faint fifth hit does not count"
    n_stars = int(metrics["stars_touched"].note.split(" of ")[1].split()[0])
    assert metrics["stars_touched"].value == pytest.approx(1 / n_stars) and n_stars > 100
    assert metrics["saturation_recall"].value == 1.0 and metrics["saturation_purity"].value == 1.0
    assert metrics["track_recall"].value == 1.0 and metrics["track_false_ppm"].value == 0.0


def test_files_and_cost(metrics):
    assert metrics["files_unexplained"].value == 1, "one file of the manifest is in no state"
    assert metrics["units_not_done"].value == 0 and metrics["science_images_missing"].value == 0
    assert metrics["cpu_s_per_channel"].value == pytest.approx(1.5 + 0.25)
    assert metrics["peak_mib"].value == 600.0


def test_report_writes_page_and_figures(run, capsys):
    assert scorecard.report(run, as_json_only=True) == 20
    values = json.loads(capsys.readouterr().out)
    assert values["files_unexplained"] == {"value": 1.0, "target": 0, "ok": False}
    page = (run / "report" / "index.html").read_text()
    assert "files_unexplained" in page
    for name in ("image.png", "calibrations.png", "astrometry.png", "photometry.png", "detection.png"):
        assert name in page and (run / "report" / name).stat().st_size > 5000
    assert (run / "report" / "overview.png").stat().st_size < 300_000


def test_without_products_every_target_is_missed(tmp_path):
    make_run(tmp_path)
    for path in (tmp_path / "archive").rglob("*.fits"):
        path.unlink()
    opened = Run(tmp_path)
    cards = scorecard.sections(opened, compare(opened))
    rows = {m.name: m for rows in cards.values() for m in rows}
    for name in ("superbias_residual_over_noise", "map_error_mas", "zero_point_worst_mmag", "cosmic_ray_recall"):
        assert rows[name].value is None and not rows[name].ok
    assert rows["science_images_missing"].value == 1


def test_not_a_run(tmp_path):
    with pytest.raises(UsageError, match="no truth"):
        Run(tmp_path)


def test_surface_ignores_dust():
    v, u = np.mgrid[-1:1:640j, -1:1:640j]
    smooth = 1.0 + 0.05 * u - 0.03 * v**2 + 0.02 * u**3 * v**3
    dusty = smooth.copy()
    dusty[100:230, 300:420] *= 0.97
    found = calibrations.low_order_surface(dusty)
    assert np.abs(found / smooth - 1.0).max() < 2e-3
    assert np.abs(found / smooth - 1.0).mean() < 2e-4


def test_noise_limits():
    electrons, snr, sigma = sources.noise_limits(2.0, 1000.0)
    assert np.all(np.diff(snr) > 0) and np.all(np.diff(sigma) < 0)
    assert snr[-1] == pytest.approx(math.sqrt(electrons[-1]), rel=0.02), "photons alone where the star is bright"
    k = int(np.searchsorted(snr, 10.0))
    # A Gaussian of this FWHM would give FWHM / (2.355 S/N); wings and pixels make it worse, not better.
    assert 1.0 < sigma[k] * snr[k] / (2.0 / 2.355) < 2.5


def test_position_limit_is_what_a_fit_reaches():
    """Monte Carlo: a matched-derivative estimate of the shift of a star of known flux and background."""
    rng = np.random.default_rng(3)
    flux, background = 2.0e4, 900.0
    psf = sources.pixel_psf(2.0, (0.0, 0.0))
    slope = (sources.pixel_psf(2.0, (0.02, 0.0)) - sources.pixel_psf(2.0, (-0.02, 0.0))) / 0.04
    expected = flux * psf + background
    images = rng.poisson(expected, (4000, *psf.shape)) - expected
    weight = flux * slope / expected
    shifts = (images * weight).sum(axis=(1, 2)) / (flux * slope * weight).sum()
    electrons, _, sigma = sources.noise_limits(2.0, background)
    limit = np.exp(np.interp(np.log(flux), np.log(electrons), np.log(sigma)))
    assert shifts.std() == pytest.approx(limit, rel=0.08)


def test_distance_to_segment():
    points = np.array([[0.0, 3.0], [5.0, 4.0], [13.0, 4.0]])
    assert sources.distance_to_segment(points, 0.0, 0.0, 10.0, 0.0) == pytest.approx([3.0, 4.0, 5.0])
