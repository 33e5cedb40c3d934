"""Vetting of candidates: how much each looks like light from the sky, by its features and by its cutouts.

Two classifiers, as in the survey: `rb`, gradient-boosted trees on the features of the candidate table (Mahabal et al.
2019, PASP 131, 038002), and `drb`, a convolutional network on the cutouts (Duev et al. 2019, MNRAS 489, 3582) that is
told the features too. Both are from 0 (bogus) to 1 (real). Their training is `tools/train_realbogus.py`; which of them
decides is a setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.subtraction.cutnet import CutNet, network_input
from zsds_hpc.subtraction.cutouts import Cutouts


class VettingParams(Params):
    """Which classifier decides, and where it draws the line."""

    classifier: Literal["rb", "drb"] = param("drb", "Score that decides: rb (features) or drb (cutouts and features).")
    least_score: float = param(0.42, "Candidates below this score are taken for bogus.", ge=0.0, le=1.0)


class Scores(NamedTuple):
    """Scores of candidates, 0 to 1, each of shape (n,), float32."""

    rb: np.ndarray
    drb: np.ndarray


@dataclass(frozen=True)
class RealBogus:
    """Both classifiers.

    Attributes
    ----------
    booster : lightgbm.Booster
    features, numbers : tuple of str
        Columns of the table that the trees and the network take, in the order of their training.
    net : CutNet
    rb_version, drb_version : str
        As alert packets quote them.
    """

    booster: Any
    features: tuple[str, ...]
    numbers: tuple[str, ...]
    net: CutNet
    rb_version: str
    drb_version: str


def build_models(
    trees: str, trees_card: Mapping[str, Any], arrays: Mapping[str, np.ndarray], net_card: Mapping[str, Any]
) -> RealBogus:
    """Classifiers from the contents of verified model files and their cards.

    Parameters
    ----------
    trees : str
        LightGBM's text format.
    trees_card : mapping
        Has `version` and `features`.
    arrays : mapping of str to ndarray
        Of the network.
    net_card : mapping
        Has `version` and `features`.

    Raises
    ------
    BadInput
        The text is no model, or of another number of features than the card says; or the arrays are no network.
    """
    import lightgbm  # only who scores needs it

    features, numbers = (tuple(map(str, card.get("features", ()))) for card in (trees_card, net_card))
    try:
        booster = lightgbm.Booster(model_str=trees)
    except lightgbm.basic.LightGBMError as error:
        raise BadInput(f"features model: {error}") from error
    if booster.num_feature() != len(features):
        raise BadInput(f"features model: {booster.num_feature()} features, its card names {len(features)}")
    net = CutNet.from_arrays(arrays)
    if net.center.size != len(numbers):
        raise BadInput(f"network: {net.center.size} numbers, its card names {len(numbers)}")
    return RealBogus(booster, features, numbers, net, str(trees_card["version"]), str(net_card["version"]))


def features_matrix(table: np.ndarray, features: Sequence[str]) -> np.ndarray:
    """Features of candidates, shape (n, n_features), float64; NaN where a column has none.

    Raises
    ------
    BadInput
        The table lacks a column.
    """
    missing = [name for name in features if name not in (table.dtype.names or ())]
    if missing:
        raise BadInput(f"candidates lack the features {', '.join(missing)}")
    matrix = np.empty((len(table), len(features)))
    for k, name in enumerate(features):
        matrix[:, k] = table[name]
    return matrix


def score(table: np.ndarray, cutouts: Cutouts, model: RealBogus) -> Scores:
    """Score candidates with both classifiers.

    Parameters
    ----------
    table : ndarray
        Candidates, with the columns that `model.features` names, and `isdiffpos`.
    cutouts : Cutouts
        Of the same candidates.
    model : RealBogus

    Raises
    ------
    BadInput
        The table lacks a column, or cutouts and table are of different lengths.
    """
    n = len(table)
    if any(len(stamps) != n for stamps in cutouts):
        raise BadInput(f"{n} candidates, {[len(stamps) for stamps in cutouts]} cutouts")
    matrix, numbers = features_matrix(table, model.features), features_matrix(table, model.numbers)
    if not n:
        return Scores(np.zeros(0, np.float32), np.zeros(0, np.float32))
    rb = model.booster.predict(matrix, num_threads=1)
    seen = network_input(cutouts.science, cutouts.template, cutouts.difference, table["isdiffpos"])
    odds = np.clip(model.net.logits(seen, numbers), -30, 30).astype(np.float64)
    drb = np.where(np.isfinite(cutouts.difference).any(axis=(1, 2)), 1 / (1 + np.exp(-odds)), 0)
    return Scores(np.asarray(rb, np.float32), drb.astype(np.float32))


def accepted(scores: Scores, params: VettingParams) -> np.ndarray:
    """Those that the classifier of the settings takes for real; shape (n,), bool."""
    return getattr(scores, params.classifier) >= params.least_score
