"""The calibration of a channel from detections to checked WCS."""

import json

import numpy as np
import pytest
from astropy.wcs import WCS

from tests.unit.astrometry.skyfield import N_X, N_Y, Truth, make_field, map_error_mas
from zsds_hpc.astrometry.channel import AstrometryParams, calibrate_astrometry
from zsds_hpc.astrometry.geometry import initial_wcs
from zsds_hpc.astrometry.match import MatchParams
from zsds_hpc.astrometry.solve import SolveParams
from zsds_hpc.core.errors import AlgorithmFailure

POINTING = (55.0, 33.0)


def calibrated(n_stars, contamination=0.2, seed=0, params=None, **changes):
    truth = Truth(POINTING, **({"bend_arcsec": 0.003, "seed": seed} | changes))
    field = make_field(truth, n_stars, contamination, seed)
    prior = initial_wcs(truth.geometry(), *POINTING)
    return calibrate_astrometry(field.detections, field.reference, prior, (N_Y, N_X), params), truth, field


@pytest.mark.parametrize("n_stars, limit_mas", [(20, 60.0), (100, 12.0), (1500, 2.0), (20_000, 1.0)])
def test_map_error(n_stars, limit_mas):
    result, truth, field = calibrated(n_stars)
    assert map_error_mas(result.wcs, truth)[0] < limit_mas
    right = field.det_id[result.i_det] == field.ref_id[result.i_ref]
    assert right.mean() > 0.995
    assert result.metrics["astrometric_chi2"] == pytest.approx(1.0, abs=0.4 if n_stars < 500 else 0.1)


def test_metrics_and_cards():
    result, *_ = calibrated(1500)
    metrics = result.metrics
    json.dumps(metrics, allow_nan=False)
    assert metrics["n_astrometric"] == result.solution.n_used > 1300
    assert 70 < metrics["matched_percent"] <= 100
    assert metrics["scale_change_max_percent"] == pytest.approx(0.01, abs=0.005)
    assert metrics["scale_changed"] is False
    assert metrics["held_back_n"] > 100
    assert metrics["held_back_chi2_ratio"] == pytest.approx(1.0, abs=0.3)
    assert metrics["astrometric_max_grid_residual_arcsec"] < 0.05
    assert 15 < metrics["pointing_offset_arcsec"] < 30
    cards = {key: value for key, value, _ in result.cards()}
    assert cards["ASTROMN"] == result.solution.n_used
    assert cards["ASTRRMS1"] == pytest.approx(metrics["astrometric_rms_xi_arcsec"] / 3600)
    sky = WCS(cards).all_pix2world(100.0, 200.0, 0)
    np.testing.assert_allclose(sky, result.wcs.pixel_to_sky(100.0, 200.0), rtol=0, atol=1e-10)


def test_metrics_of_few_stars_hold_none_where_nothing_can_be_told():
    result, *_ = calibrated(20)
    json.dumps(result.metrics, allow_nan=False)
    assert result.metrics["held_back_chi2_ratio"] is None
    assert result.metrics["astrometric_max_grid_residual_arcsec"] is None


def test_changed_scale_marks_the_image():
    params = AstrometryParams(match=MatchParams(scale_error=0.03))
    result, truth, _ = calibrated(800, params=params, scale=1.015, error_arcsec=(0.0, 0.0))
    assert result.metrics["scale_changed"] is True
    assert map_error_mas(result.wcs, truth)[0] < 5.0


def test_badly_known_distortion():
    """A camera whose distortion is off by a pixel at the edge is still solved, the lost corners are recovered."""
    result, truth, field = calibrated(1500, bend_arcsec=0.6)
    assert map_error_mas(result.wcs, truth)[0] < 2.5
    assert result.solution.n_used > 0.93 * np.isin(field.det_id, field.ref_id).sum()


def test_wrong_field():
    truth, other = Truth(POINTING), Truth((80.0, 10.0))
    prior = initial_wcs(truth.geometry(), *POINTING)
    detections = make_field(other, 1000, seed=7).detections
    with pytest.raises(AlgorithmFailure):
        calibrate_astrometry(detections, make_field(truth, 1000).reference, prior, (N_Y, N_X))


def test_degree_of_other_cameras():
    params = AstrometryParams(solve=SolveParams(degree=3))
    result, truth, _ = calibrated(1500, params=params, bend_arcsec=0.1)
    assert result.solution.degree == 3
    assert map_error_mas(result.wcs, truth)[0] < 2.5
