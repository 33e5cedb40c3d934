"""Trained models: a data file of a safe format beside a card, read only if its bytes are those of the card.

A model called NAME is two files: `NAME.json`, the card, and the data file that the card names. LightGBM models are its
text format, nets are `.npz`. Neither can carry code: there is no pickle anywhere on this path.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive.atomic import write_bytes, write_json
from zsds_hpc.core.errors import BadInput

#: Models that come with the suite.
MODELS_DIRECTORY = Path(__file__).parents[1] / "models"
SUFFIX_OF_KIND = {"lightgbm": ".txt", "npz": ".npz"}
MOST_BYTES = 2_000_000
REQUIRED = {"name": str, "version": str, "kind": str, "file": str, "sha256": str, "size": int, "date": str}


@dataclass(frozen=True)
class ModelFile:
    """A model whose bytes were verified.

    Attributes
    ----------
    name : str
    card : dict
        Name, version, kind, file, sha256, size, date, and what the trainer tells: data, seed, features, ROC.
    data : bytes
        Content of the data file.
    """

    name: str
    card: dict[str, Any]
    data: bytes

    @property
    def version(self) -> str:
        """Version of the model, as alert packets quote it."""
        return self.card["version"]

    @property
    def text(self) -> str:
        """Content of a text model, for ``lightgbm.Booster(model_str=...)``.

        Raises
        ------
        BadInput
            It is not a text model.
        """
        if self.card["kind"] != "lightgbm":
            raise BadInput(f"model {self.name}: kind {self.card['kind']}, lightgbm was asked for")
        return self.data.decode("ascii")

    def arrays(self) -> dict[str, np.ndarray]:
        """Read the arrays of a `.npz` model, by name.

        Raises
        ------
        BadInput
            It is not such a model, or it holds Python objects.
        """
        if self.card["kind"] != "npz":
            raise BadInput(f"model {self.name}: kind {self.card['kind']}, npz was asked for")
        try:
            with np.load(io.BytesIO(self.data), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"model {self.name}: {error}") from error


def load_model(name: str, directory: str | Path | None = None, sha256: str | None = None) -> ModelFile:
    """Read a model and verify it against its card.

    Parameters
    ----------
    name : str
        Such as ``realbogus_features``.
    directory : str or Path, optional
        Where card and data file are; by default those that come with the suite.
    sha256 : str, optional
        Hash that the data file must have, besides the card's.

    Raises
    ------
    BadInput
        Card or data file is missing, incomplete, of another name, too large, or of other bytes than the card says.
    """
    directory = MODELS_DIRECTORY if directory is None else Path(directory)
    card = _read_card(name, directory)
    if card["size"] > MOST_BYTES:
        raise BadInput(f"model {name}: {card['size']} bytes, at most {MOST_BYTES} are read")
    try:
        with open(directory / card["file"], "rb") as file:
            data = file.read(card["size"] + 1)
    except OSError as error:
        raise BadInput(f"model {name}: {card['file']}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    for wanted in (card["sha256"], sha256 or found):
        if found != wanted:
            raise BadInput(f"model {name}: SHA-256 of {card['file']} is {found[:12]}..., expected {wanted[:12]}...")
    return ModelFile(name, card, data)


def _read_card(name, directory):
    path = directory / f"{name}.json"
    try:
        card = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"model {name}: card {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"model {name}: card {path.name} is not JSON: {error}") from error
    wrong = [key for key, kind in REQUIRED.items() if not isinstance(card, dict) or not isinstance(card.get(key), kind)]
    if wrong:
        raise BadInput(f"model {name}: card {path.name} lacks {', '.join(wrong)}")
    suffix = SUFFIX_OF_KIND.get(card["kind"])
    if card["name"] != name or suffix is None or card["file"] != name + suffix:
        raise BadInput(f"model {name}: card {path.name} is of {card['name']}, {card['kind']}, {card['file']}")
    return card


def write_model(directory: str | Path, data: bytes, card: dict[str, Any]) -> ModelFile:
    """Write a model's data file and, last, its card.

    Parameters
    ----------
    directory : str or Path
    data : bytes
        LightGBM text, or a `.npz` file as `npz_bytes` makes it.
    card : dict
        name, version, kind ('lightgbm' or 'npz'), date (YYYY-MM-DD of the training) and whatever describes the
        training; file, sha256 and size are added here.
    """
    file = card["name"] + SUFFIX_OF_KIND[card["kind"]]
    card = {**card, "file": file, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    write_bytes(Path(directory) / file, data)
    write_json(Path(directory) / f"{card['name']}.json", card)
    return ModelFile(card["name"], card, data)


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """A `.npz` file in memory; the same arrays give the same bytes.

    Raises
    ------
    BadInput
        An array holds Python objects.
    """
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise BadInput(f"model: {', '.join(objects)} hold Python objects")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    return buffer.getvalue()
