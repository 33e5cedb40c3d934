"""Scores of candidates: features in the order of the card, defined outcomes for what is missing."""

import lightgbm
import numpy as np
import pytest
from test_cutnet import random_arrays

from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.cutouts import Cutouts
from zsds_hpc.subtraction.realbogus import (
    Scores,
    VettingParams,
    accepted,
    build_models,
    features_matrix,
    score,
)

FEATURES = ["sharp", "snr"]
NET_CARD = {"version": "drb1", "features": ["snr", "sharp", "nbad"]}


def toy_table(n, seed=0):
    rng = np.random.default_rng(seed)
    table = np.zeros(n, [("x", "f8"), ("isdiffpos", "?"), ("snr", "f4"), ("sharp", "f4"), ("nbad", "i4")])
    table["snr"], table["sharp"] = rng.uniform(5, 50, n), rng.normal(0, 1, n)
    table["isdiffpos"] = rng.random(n) < 0.8
    return table


def toy_cutouts(n, seed=0):
    rng = np.random.default_rng(seed)
    return Cutouts(*(rng.normal(size=(n, 63, 63)).astype(np.float32) for _ in range(3)))


@pytest.fixture(scope="module")
def trees():
    table = toy_table(600)
    data = lightgbm.Dataset(features_matrix(table, FEATURES), table["sharp"] > 0.3)
    settings = {"objective": "binary", "num_threads": 1, "verbosity": -1, "num_leaves": 4, "deterministic": True}
    return lightgbm.train(settings, data, 15).model_to_string()


@pytest.fixture(scope="module")
def model(trees):
    return build_models(trees, {"version": "rb1", "features": FEATURES}, random_arrays(), NET_CARD)


def test_features_are_taken_by_name_in_the_order_of_the_card(model):
    table = toy_table(200, seed=5)
    matrix = features_matrix(table, model.features)
    assert np.array_equal(matrix[:, 0], table["sharp"].astype(float)) and matrix.dtype == np.float64
    rb = score(table, toy_cutouts(200), model).rb
    assert (rb[table["sharp"] > 0.5] > 0.5).all() and (rb[table["sharp"] < 0.1] < 0.5).all()


def test_scores_are_shares_repeat_and_follow_their_candidates(model):
    table, cutouts = toy_table(40), toy_cutouts(40)
    scores = score(table, cutouts, model)
    for values in scores:
        assert values.shape == (40,) and values.dtype == np.float32 and (values >= 0).all() and (values <= 1).all()
    assert all(np.array_equal(a, b) for a, b in zip(scores, score(table, cutouts, model)))
    order = np.random.default_rng(1).permutation(40)
    turned = score(table[order], Cutouts(*(stamps[order] for stamps in cutouts)), model)
    assert np.array_equal(turned.rb, scores.rb[order])
    assert turned.drb == pytest.approx(scores.drb[order], abs=1e-5)


def test_none_and_blank_candidates_have_a_defined_outcome(model):
    assert [len(values) for values in score(toy_table(0), toy_cutouts(0), model)] == [0, 0]
    table, cutouts = toy_table(2), toy_cutouts(2)
    table["sharp"][0] = np.nan
    cutouts.difference[1] = np.nan
    scores = score(table, cutouts, model)
    assert np.isfinite(scores.rb).all() and np.isfinite(scores.drb).all() and scores.drb[1] == 0


def test_what_does_not_fit_is_refused(model, trees):
    with pytest.raises(BadInput, match="lack the features sharp"):
        features_matrix(toy_table(3)[["x", "snr"]], FEATURES)
    with pytest.raises(BadInput, match="3 candidates"):
        score(toy_table(3), toy_cutouts(2), model)
    with pytest.raises(BadInput, match="2 features, its card names 1"):
        build_models(trees, {"version": "rb1", "features": ["snr"]}, random_arrays(), NET_CARD)
    with pytest.raises(BadInput, match="3 numbers, its card names 2"):
        card = {**NET_CARD, "features": FEATURES}
        build_models(trees, {"version": "rb1", "features": FEATURES}, random_arrays(), card)
    with pytest.raises(BadInput, match="features model"):
        build_models("no tree", {"version": "rb1", "features": FEATURES}, random_arrays(), NET_CARD)


def test_the_setting_names_the_judge():
    scores = Scores(np.array([0.9, 0.1], np.float32), np.array([0.2, 0.8], np.float32))
    assert accepted(scores, VettingParams(classifier="rb", least_score=0.5)).tolist() == [True, False]
    assert accepted(scores, VettingParams(classifier="drb", least_score=0.5)).tolist() == [False, True]
