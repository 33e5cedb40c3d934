"""Trails of the trainer of streaks: drawn with their flux, told from each other, and found in a scene."""

import numpy as np
import pytest

from tools import train_streaks
from tools.training import scene, trails
from zsds_hpc.subtraction.streak_table import STREAK_DTYPE


def row(x1, y1, x2, y2, snr=20.0):
    out = np.zeros(1, STREAK_DTYPE)
    out["x1"], out["y1"], out["x2"], out["y2"], out["snr"] = x1, y1, x2, y2, snr
    out["length"], out["angle"] = np.hypot(x2 - x1, y2 - y1), np.degrees(np.arctan2(y2 - y1, x2 - x1))
    return out


def trail(*ends):
    out = np.zeros(1, trails.TRAIL_DTYPE)
    for name, value in zip(("x1", "y1", "x2", "y2"), ends):
        out[name] = value
    return out


@pytest.fixture(scope="module")
def conditions():
    return scene.draw_conditions(np.random.default_rng(3))


def test_drawn_trail_has_its_flux_and_place(conditions):
    image = trails.draw_trail((90, 120), np.array([40.2, 50.1, 78.4, 33.3]), conditions)
    y, x = np.mgrid[:90, :120]
    assert image.sum() == pytest.approx(1, abs=0.06)  # wings beyond 12 px are cut
    assert (image * x).sum() / image.sum() == pytest.approx(59.3, abs=0.1)
    assert (image * y).sum() / image.sum() == pytest.approx(41.7, abs=0.1)


def test_rows_are_matched_whichever_end_comes_first():
    drawn = np.concatenate([trail(10, 10, 60, 40), trail(100, 100, 90, 180), trail(200, 30, 240, 30)])
    table = np.concatenate([row(91, 179, 100, 101), row(12, 11, 59, 40), row(14, 13, 20, 16), row(150, 150, 170, 160)])
    found, of = trails.matches(table, drawn)
    assert found.tolist() == [1, 0, -1]
    assert of.tolist() == [1, 0, -2, -1]
    unclear = np.array([[160.0, 157.0, 5.0]])
    assert trails.labels(table, of, unclear).tolist() == [1, 1, -1, -1]
    assert trails.labels(table, of, np.zeros((0, 3))).tolist() == [1, 1, -1, 0]


def test_scene_with_trails_is_searched_and_joined(tmp_path):
    made = trails.in_scene(4, scene.make_scene(4))
    again = trails.in_scene(4, scene.make_scene(4))
    assert made.difference.pix.tobytes() == again.difference.pix.tobytes()
    assert 1 <= len(made.trails) <= trails.N_IN_SCENE
    part = train_streaks.examples_of(made, 4)
    bright = trails.is_fair(made.trails) & (made.trails["snr"] > 15)
    assert (part.found[bright] >= 0).mean() > 0.5
    both = train_streaks.joined([part, part])
    hit = both.found >= 0
    assert np.all(both.found[hit] < len(both.table))
    assert both.found[len(made.trails) :].max() >= len(part.table)
    train_streaks.save(tmp_path / "streaks_1.npz", part)
    assert train_streaks.load_examples(tmp_path).table.tobytes() == part.table.tobytes()
    cells = train_streaks.completeness(part, np.ones(len(part.table)), 0.5, np.array([4]))
    assert cells["vetted_real_false"][0] == int((part.label == trails.REAL).sum())
