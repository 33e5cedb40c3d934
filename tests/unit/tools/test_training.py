"""The trainer's gradients against differences, its repeatability, ROC numbers, and the simulated scenes."""

import numpy as np
import pytest
from scipy import signal

from tools.train_realbogus import LOOSE
from tools.training import nettrain, roc, scene
from tools.training.examples import Truth, label_candidates
from zsds_hpc.archive.models import load_model
from zsds_hpc.subtraction.candidates import find_candidates
from zsds_hpc.subtraction.cutnet import CROP_PIX, CutNet
from zsds_hpc.subtraction.realbogus import VettingParams, accepted, build_models, score

SMALL = nettrain.Schedule(n_epochs=3, batch=16, widths=(3, 3, 4, 4, 5), dropout=0.0, memory=0.9)


def test_gradients_are_those_of_the_loss():
    rng = np.random.default_rng(0)
    arrays = {k: v.astype(float) for k, v in nettrain.fresh_arrays(rng, SMALL.widths, 2).items()}
    x, kept = rng.normal(size=(4, CROP_PIX, CROP_PIX, 3)).astype(np.float32), np.ones((4, 5), np.float32)
    numbers, spread = rng.normal(size=(4, 2)), {"center": np.zeros(2), "scale": np.ones(2)}
    odds, trail = nettrain.forward(arrays, x, np.arcsinh(numbers), kept)
    assert odds == pytest.approx(CutNet.from_arrays({**arrays, **spread}).logits(x, numbers), abs=1e-4)
    grads = nettrain.backward(arrays, trail, np.ones(4), kept)
    for name, array in arrays.items():
        where = tuple(rng.integers(n) for n in array.shape)
        before, ends = array[where], []
        for step in (1e-4, -1e-4):
            array[where] = before + step
            ends.append(nettrain.forward(arrays, x, np.arcsinh(numbers), kept)[0].sum())
        array[where] = before
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(grads[name][where], rel=0.02, abs=0.01), name


def test_training_learns_and_repeats():
    rng = np.random.default_rng(1)
    real = rng.random(320) < 0.5
    seen = rng.normal(0, 0.3, (320, CROP_PIX, CROP_PIX, 3)).astype(np.float16)
    seen[real, 11:14, 11:14, 2] += 1.5
    losses = []
    schedule = nettrain.Schedule(n_epochs=12, batch=16, rate=5e-3, widths=(4, 4, 6, 6, 8), memory=0.9)
    numbers = rng.normal(5.0, 3.0, (320, 2))
    numbers[::7, 1] = np.nan
    lesson = nettrain.Lesson(seen[:240], numbers[:240], real[:240], np.ones(240, np.float32))
    arrays, again = (nettrain.train(lesson, 3, schedule, losses.append) for _ in range(2))
    assert all(np.array_equal(arrays[k], again[k]) for k in arrays)
    assert arrays["center"] == pytest.approx(5.0, abs=1.0) and arrays["scale"] == pytest.approx(3.0, abs=1.0)
    odds = CutNet.from_arrays(arrays).logits(seen[240:].astype(np.float32), numbers[240:])
    assert ((odds > 0) == real[240:]).mean() > 0.95


def test_roc_counts_by_hand():
    score = np.array([0.9, 0.8, 0.8, 0.7, 0.1])
    real = np.array([True, True, False, True, False])
    curve = roc.roc(score, real)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.7, 0.1]
    assert curve.false_kept.tolist() == [0.0, 0.5, 0.5, 1.0]
    assert curve.real_lost == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0])
    assert roc.lost_at(curve, 0.49) == (pytest.approx(2 / 3), 0.9)
    assert roc.lost_at(curve, 0.5) == (pytest.approx(0.0), 0.7)
    assert roc.summary(score, real)["auc"] == pytest.approx(0.75)


def test_scene_is_repeatable_and_its_noise_model_holds_on_empty_sky():
    first, again = scene.make_scene(5), scene.make_scene(5)
    difference = first.difference
    assert np.array_equal(difference.pix, again.difference.pix) and np.array_equal(first.real, again.real)
    ratio = np.where(np.isfinite(difference.sigma), difference.pix / difference.sigma, 0)
    weights = np.outer(*[signal.windows.gaussian(13, difference.psf.fwhm_pix / 2.355)] * 2)
    score = signal.fftconvolve(ratio, weights, mode="same") / np.sqrt((weights**2).sum())
    assert 0.93 < 1.4826 * np.median(np.abs(score)) < 1.07
    assert 0.8 < difference.noise_scale < 1.5
    assert len(first.real) > 40 and len(first.defects) > 100


def test_a_bright_new_star_has_its_flux_in_the_difference():
    made = scene.make_scene(5)
    alone = made.real[(made.real["kind"] == scene.TRANSIENT) & (made.real["flux"] > 0)]
    row = alone[np.argmax(alone["flux"])]
    x, y = round(row["x"]), round(row["y"])
    window = made.difference.pix[max(y - 10, 0) : y + 11, max(x - 10, 0) : x + 11]
    assert window.sum() == pytest.approx(row["flux"], rel=0.15)


def test_psf_holds_its_flux_and_width():
    psf = scene.moffat_psf(2.4, 3.5, (0.05, -0.03), (200, 200))
    assert psf.images(np.array([100.3]), np.array([90.8]), scene.BRIGHT_STAMP_PIX).sum() == pytest.approx(1.0, abs=3e-3)
    assert psf.fwhm_pix == pytest.approx(np.hypot(2.4, 0.5), rel=0.06)  # the pixel widens it


def test_models_of_the_suite_know_real_from_false_on_skies_they_never_saw():
    """Guards against features that change their meaning after the training."""
    trees, net = load_model("realbogus_features"), load_model("realbogus_cutouts")
    model = build_models(trees.text, trees.card, net.arrays(), net.card)
    lost, kept = [], []
    for seed in range(900_001, 900_009):
        made = scene.make_scene(seed)
        found = find_candidates(made.difference, made.wcs, LOOSE)
        label, _ = label_candidates(found.table, made.difference, Truth(made.real, made.defects))
        scores = score(found.table, found.cutouts, model)
        wrong = np.stack([scores.rb < 0.5, ~accepted(scores, VettingParams())])
        lost.append(wrong[:, label == 1])
        kept.append(~wrong[:, label == 0])
    assert sum(part.shape[1] for part in lost) > 500 and sum(part.shape[1] for part in kept) > 700
    assert (np.concatenate(lost, axis=1).mean(axis=1) < 0.04).all()
    assert (np.concatenate(kept, axis=1).mean(axis=1) < 0.04).all()
