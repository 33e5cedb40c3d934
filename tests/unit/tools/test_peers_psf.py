"""What the peers of PSF-fit photometry are given, and how their thresholds are chosen."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import channel, peer_programs, peers, peers_psf
from tools.scorecard import limits, psfmodel
from tools.skysim import optics

PSF = optics.Psf(2.0, (-0.01, 0.02, 0.012), (0.03, 0.02, 0.0, 0.01), (-0.02, 0.0, 0.01, 0.0), 1535.5, 1539.5)


@pytest.fixture(scope="module")
def given():
    model = psfmodel.sampled_truth(PSF, (3080, 3072))
    return {**vars(model), "wing": peers_psf._true_wing(PSF), "corner": (500, 700), "full_shape": (3080, 3072)}


def test_python_programs_are_given_the_true_psf_with_its_slopes_and_wings(given):
    x, y = np.array([700.3, 1500.0, 2900.5]), np.array([100.2, 1500.5, 3000.9])
    images = peer_programs.Psf(given).images(x, y, 41)
    true = limits.star_planes(PSF, x, y, 20).transpose(1, 0, 2, 3)
    peak = true[0].max()
    assert np.abs(images[0] - true[0]).max() < 2e-3 * peak
    assert np.abs(images[1:] - true[1:]).max() < 1e-2 * peak
    corner = slice(0, 6)
    assert images[0][:, corner, corner] == pytest.approx(true[0][:, corner, corner], rel=0.3)


def test_crowdsource_counts_rows_first(given):
    psf = peer_programs.ForCrowdsource(peer_programs.Psf(given))
    value, by_row, by_column = psf(700.3, 1200.0, stampsz=19, deriv=True)
    assert value.shape == (19, 19) and value.sum() == pytest.approx(0.99, abs=0.01)
    # The star lies above the middle of its pixel, so the row above is the brighter neighbour.
    assert value[10, 9] > value[8, 9] and by_row[10, 9] > 0.0 and abs(by_column[10, 9]) < 0.2 * by_row[10, 9]


def _check(n_spurious):
    return SimpleNamespace(n_spurious=n_spurious, n_detections=1000)


def test_lowest_pure_threshold():
    runs = iter([(0.7, 5.0, _check(40)), (0.8, 4.0, _check(9)), (0.9, 3.0, _check(2))])
    assert peers_psf.purest(runs)[:2] == (4.0, 0.8)
    assert next(runs)[0] == 0.9, "nothing is run beyond it"
    assert peers_psf.purest([(0.7, 5.0, _check(40)), (0.8, 4.0, _check(30))]).threshold == 0.8
    with pytest.raises(peers.Missing):
        peers_psf.purest([])


def test_missing_program_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSDS_PEERS_PYTHON", "/bin/false")
    with pytest.raises(peers.Missing, match="crowdsource"):
        peers_psf.in_python("crowdsource", {}, tmp_path)


def test_costs_have_the_targets_of_their_field():
    result = {
        "steps": {"sources": 1.0, "psf_model": 0.5, "psf_fit": 0.8, "photometry": 0.1},
        "total_cpu_s": 2.9,
        "peak_mib": 700.0,
    }
    result["psf"] = {"some": {}}
    few, many = (channel.cost_lines(n, result) for n in (6000, 60000))
    assert few["cpu_s_psf"]["value"] == pytest.approx(1.4) and not few["cpu_s_psf"]["ok"] and many["cpu_s_psf"]["ok"]
    assert not few["cpu_s_raw_to_catalogues"]["ok"] and many["cpu_s_raw_to_catalogues"]["ok"]
    assert channel.cost_lines(6000, result | {"psf": {}})["cpu_s_psf"]["ok"] is False
