"""The classifier of streaks: gradient-boosted trees on their features, and satellites by rule."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.streak_table import StreakParams

_SATELLITE_TRACK = 0.25
_SATELLITE_INLINE = 2
_SATELLITE_EDGE_PIX = 150.0


def feature_matrix(table: np.ndarray) -> dict[str, np.ndarray]:
    """Features of the classifier by name, from the table's columns; none depends on the place or the direction.

    Parameters
    ----------
    table : ndarray, shape (n,), `STREAK_DTYPE`
    """
    names = (
        "chi2dof", "misfit", "pair", "width", "evenness", "filled", "unbroken", "sides", "beyond", "negative",
        "positive", "spike", "masked", "maskednear", "n_edges", "noise", "refdist", "refratio",
    )  # fmt: skip
    out = {name: table[name].astype(float) for name in names}
    snr = np.maximum(table["snr"].astype(float), 1e-3)
    out["logsnr"] = np.log10(snr)
    out["loglength"] = np.log10(np.maximum(table["length"].astype(float), 1e-3))
    out["brightness"] = np.log10(np.maximum(table["brightness"].astype(float), 1e-3))
    out["gainshare"] = table["gain"] / snr**2
    out["loggain"] = np.log10(np.maximum(table["gain"].astype(float), 1.0))
    out["pairgain"] = (table["pair"].astype(float) ** 2 - 1) * snr**2
    out["lengthpull"] = table["length"] / np.maximum(table["siglength"].astype(float), 1e-3)
    out["curvaturepull"] = np.abs(table["curvature"]) / np.maximum(table["sigcurvature"].astype(float), 1e-6)
    out["bend"] = np.abs(table["curvature"]).astype(float)
    out["widthpull"] = table["width"] * snr
    out["beyondpull"] = table["beyond"] / np.maximum(table["sigbeyond"].astype(float), 1e-3)
    return out


@dataclass(frozen=True)
class StreakModel:
    """Trees in LightGBM's text format, and the features that they were grown on, in order.

    Attributes
    ----------
    text : str
    features : tuple of str
    """

    text: str
    features: tuple[str, ...]

    @cached_property
    def _booster(self) -> Any:
        from lightgbm import Booster
        from lightgbm.basic import LightGBMError

        try:
            booster = Booster(model_str=self.text)
        except LightGBMError as error:
            raise BadInput(f"streak model: {error}") from error
        if booster.num_feature() != len(self.features):
            raise BadInput(f"streak model: {booster.num_feature()} features where {len(self.features)} are named")
        return booster

    def score(self, table: np.ndarray) -> np.ndarray:
        """Scores from 0 (false) to 1 (real), shape (n,), float32.

        Raises
        ------
        BadInput
            The text is no model, or its features are not those of the table.
        """
        columns = feature_matrix(table)
        unknown = [name for name in self.features if name not in columns]
        if unknown:
            raise BadInput(f"streak model: unknown features {unknown}")
        if not len(table):
            return np.zeros(0, np.float32)
        matrix = np.column_stack([columns[name] for name in self.features])
        return np.asarray(self._booster.predict(matrix, num_threads=1), np.float32)


def kinds(table: np.ndarray, params: StreakParams) -> np.ndarray:
    """Satellites and aircraft told from asteroids.

    A satellite's trail is longer than an asteroid's can be, runs from the edge of the image for a good while, prolongs
    a masked track, or is one of several pieces of a line.

    Parameters
    ----------
    table : ndarray, shape (n,), `STREAK_DTYPE`
    params : StreakParams

    Returns
    -------
    ndarray, shape (n,), S9
    """
    satellite = table["length"] > params.max_length
    satellite |= (table["n_edges"] > 0) & (table["length"] > _SATELLITE_EDGE_PIX)
    satellite |= table["n_edges"] > 1
    satellite |= table["track"] > _SATELLITE_TRACK
    satellite |= table["n_inline"] >= _SATELLITE_INLINE
    return np.where(satellite, b"satellite", b"asteroid").astype("S9")
