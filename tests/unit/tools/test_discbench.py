"""Parts of the discovery and watch benchmarks that decide what their figures mean."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import disc_cost, disc_data, discovery, peer_subtract, peers_diff, watch
from tests.unit.tools.test_discmeasure import SIDE, FakeScience
from tools import night
from tools.scorecard import discproducts, limits
from tools.skysim.survey import load_simulation


def plan_of(tmp_path, text):
    path = tmp_path / "plan.yml"
    path.write_text(text.replace("config/cameras", str(disc_data.ROOT / "config/cameras")))
    return load_simulation(path)


def test_plan_has_epochs_then_one_exposure_without_probes_then_the_search(tmp_path):
    plan = plan_of(tmp_path, disc_data.plan_text(6000, 1, 0.02))
    science = [e for e in plan.exposures if e.kind == "object"]
    nights = [e.night for e in science]
    assert nights == sorted(nights) and len(nights) == 20 + 1 + 6
    assert plan.nights == [disc_data.REFERENCE_NIGHT, disc_data.TIMED_NIGHT, disc_data.NIGHT]
    ratio = np.array(disc_data.SEEING) / np.mean(disc_data.REFERENCE_SEEING)
    assert ratio.min() == pytest.approx(0.8, abs=0.01) and ratio.max() == pytest.approx(1.6, abs=0.01)
    assert [e.seeing_pix for e in science[-6:]] == list(disc_data.SEEING)
    starts = {e.mjd for e in science if e.night < disc_data.NIGHT}
    assert max(starts) < plan.sky.probes_from_mjd <= min(e.mjd for e in science[-6:])


def test_watched_night_is_consecutive(tmp_path):
    plan = plan_of(tmp_path, watch.plan_text(6000, 1, 5))
    mjd = np.array([e.mjd for e in plan.exposures])
    assert plan.nights == [watch.NIGHT] and np.allclose(np.diff(mjd) * 86400, watch.CADENCE_S, atol=0.01)


def test_latency_is_from_arrival_to_the_sealed_record(tmp_path):
    names = {f"n{k}.fits.fz": 1000.0 + 40.0 * k for k in range(6)}
    for stage, delay in zip(watch.STAGES, (5.0, 8.0, 10.0, 20.0), strict=True):
        for k, (name, at) in enumerate(names.items()):
            if stage == "alerts" and k == 5:
                continue
            stem = name.removesuffix(".fits.fz") + ("" if stage == "ingest" else "_q1")
            path = tmp_path / "records" / stage / watch.NIGHT / f"{stem}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"state": "DONE"}))
            os.utime(path, (at + delay + k, at + delay + k))
    found = watch.latencies(names, watch.sealed_times(tmp_path, names))
    assert found["alerts_p50_s"] == pytest.approx(22.0) and found["ingest_p50_s"] == pytest.approx(7.5)
    assert found["n_files"] == 6 and found["n_packets_sealed"] == 5
    assert found["growth_s"] == pytest.approx(4.0)


def test_lit_channels_of_a_plan(tmp_path):
    path = tmp_path / "plan.yml"
    path.write_text("rcids: [20, 22]\n")
    assert night.lit_channels(path) == ["--only", "_q1", "--only", "_q3"]
    path.write_text("seed: 1\n")
    assert night.lit_channels(path) == []
    assert night.lit_channels(Path("config/simulations/tiny.yml")) == ["--only", "_q1"]


def test_costs_are_summed_by_pipeline():
    result = {"steps": {"ingest.read": 0.2, "calibrate.psf": 1.0, "realtime.seal": 0.1, "realtime.write": 0.4,
                        "alerts.write": 0.5}, "peak_mib": 900.0}  # fmt: skip
    assert disc_cost.pipeline_seconds(result) == pytest.approx(
        {"ingest": 0.2, "calibrate": 1.0, "realtime": 0.5, "alerts": 0.5}
    )
    lines = {m.name: m for m in discovery.cost_lines(6000, result)}
    assert lines["cpu_s_difference_to_packets"].value == pytest.approx(1.0) and lines["cpu_s_raw_to_packets"].ok
    assert discovery.cost_lines(60000, result)[1].target is None


def test_peers_are_judged_by_a_filter_that_finds_both_signs():
    science = FakeScience("new", 2.0)
    rng = np.random.default_rng(3)
    x, y = rng.uniform(20, SIDE - 20, (2, 60))
    flux = np.where(rng.random(60) < 0.5, 1.0, -1.0) * 400.0
    pix = rng.standard_normal((SIDE, SIDE)) * 5.0
    stamps = limits.star_planes(limits.true_psf(science), x, y, 10)[:, 0] * flux[:, None, None]
    for stamp, cx, cy in zip(stamps, np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        pix[cy - 10 : cy + 11, cx - 10 : cx + 11] += stamp
    found = peers_diff.filtered_peaks(science, pix, np.full((SIDE, SIDE), 5.0))
    strong = found.select(np.abs(found.snr) > 6.0)
    distance = np.hypot(strong.x[:, None] - x, strong.y[:, None] - y)
    assert strong.x.size >= 55 and (distance.min(axis=1) < 0.5).mean() > 0.97
    near = distance.argmin(axis=1)
    assert np.median(strong.flux / flux[near]) == pytest.approx(1.0, abs=0.04)


def test_background_of_cells():
    y, x = np.mgrid[:700, :800] * 1.0
    pix = 100.0 + 0.02 * x + 0.01 * y + np.random.default_rng(2).normal(0, 3, (700, 800))
    pix[100:140, 100:180] = np.nan
    level = peers_diff.background(pix)
    assert np.abs(level - (100.0 + 0.02 * x + 0.01 * y))[160:-160, 160:-160].max() < 0.6


def test_cells_cover_an_image_once():
    seen = np.zeros((101, 90), int)
    for wide, own in peer_subtract.cells(seen.shape, 3):
        seen[own] += 1
        assert all(w.start <= o.start and w.stop >= o.stop for w, o in zip(wide, own, strict=True))
    assert (seen == 1).all()


def test_stored_steps_are_spread():
    rng = np.random.default_rng(4)
    stored = np.rint(rng.standard_normal((400, 300)) * 8.0) / 8.0
    spread = discproducts.spread(stored)
    assert np.abs(spread - stored).max() <= 0.0625 + 1e-6 and spread.std() == pytest.approx(1.0, abs=0.01)
    assert discproducts.spread(np.zeros((80, 20))).std() == 0.0
