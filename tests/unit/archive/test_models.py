"""Models are read by hash, from formats that cannot carry code."""

import hashlib
import io
import json
import pickle

import numpy as np
import pytest

from zsds_hpc.archive.models import MODELS_DIRECTORY, load_model, npz_bytes, write_model
from zsds_hpc.core.errors import BadInput

CARD = {"name": "toy", "version": "t1", "kind": "lightgbm", "date": "2020-09-01"}


def edit_card(directory, **changes):
    path = directory / "toy.json"
    card = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in card.items() if value is not None}))


def test_text_model_comes_back(tmp_path):
    written = write_model(tmp_path, b"tree\n", {**CARD, "roc": [[0.01, 0.99]]})
    model = load_model("toy", tmp_path, sha256=hashlib.sha256(b"tree\n").hexdigest())
    assert (model.text, model.version, model.card) == ("tree\n", "t1", written.card)
    with pytest.raises(BadInput, match="npz was asked"):
        _ = model.arrays()


def test_net_comes_back_and_its_bytes_repeat(tmp_path):
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2)}
    write_model(tmp_path, npz_bytes(arrays), {**CARD, "kind": "npz"})
    model = load_model("toy", tmp_path)
    assert model.data == npz_bytes(dict(reversed(arrays.items())))
    assert model.arrays().keys() == arrays.keys()
    assert all(np.array_equal(model.arrays()[k], v) and model.arrays()[k].dtype == v.dtype for k, v in arrays.items())
    with pytest.raises(BadInput, match="lightgbm was asked"):
        _ = model.text


@pytest.mark.parametrize("bad", [b"trEe\n", b"tree", b"tree\n\n"], ids=["changed", "cut", "longer"])
def test_other_bytes_are_refused(tmp_path, bad):
    write_model(tmp_path, b"tree\n", CARD)
    (tmp_path / "toy.txt").write_bytes(bad)
    with pytest.raises(BadInput, match="SHA-256"):
        load_model("toy", tmp_path)


def test_pinned_hash_is_checked_too(tmp_path):
    write_model(tmp_path, b"tree\n", CARD)
    with pytest.raises(BadInput, match="SHA-256"):
        load_model("toy", tmp_path, sha256="0" * 64)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": None}, {"size": "5"}, {"file": "../toy.txt"}, {"name": "other"}, {"kind": "pickle"}, {"size": 10**9}],
)
def test_bad_cards_are_refused(tmp_path, changes):
    write_model(tmp_path, b"tree\n", CARD)
    edit_card(tmp_path, **changes)
    with pytest.raises(BadInput, match="model toy"):
        load_model("toy", tmp_path)


def test_missing_files_and_broken_json_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"toy\.json"):
        load_model("toy", tmp_path)
    write_model(tmp_path, b"tree\n", CARD)
    (tmp_path / "toy.txt").unlink()
    with pytest.raises(BadInput, match=r"toy\.txt"):
        load_model("toy", tmp_path)
    (tmp_path / "toy.json").write_text("[1,")
    with pytest.raises(BadInput, match="not JSON"):
        load_model("toy", tmp_path)
    (tmp_path / "toy.json").write_text("[]")
    with pytest.raises(BadInput, match="lacks"):
        load_model("toy", tmp_path)


def test_pickled_arrays_are_refused_even_with_the_right_hash(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([{"a": 1}], dtype=object))
    write_model(tmp_path, buffer.getvalue(), {**CARD, "kind": "npz"})
    with pytest.raises(BadInput, match="allow_pickle"):
        _ = load_model("toy", tmp_path).arrays()
    lone = io.BytesIO()
    np.save(lone, np.zeros(3))
    for data in (pickle.dumps({"w": 1}), b"PK\x03\x04 and no more", b"", lone.getvalue()):
        write_model(tmp_path, data, {**CARD, "kind": "npz"})
        with pytest.raises(BadInput):
            _ = load_model("toy", tmp_path).arrays()
    with pytest.raises(BadInput, match="Python objects"):
        npz_bytes({"w": np.array([None])})


def test_models_of_the_suite_are_whole_and_small():
    for path in sorted(MODELS_DIRECTORY.glob("*.json")):
        model = load_model(path.stem)
        assert len(model.data) < 500_000
        assert model.arrays() if model.card["kind"] == "npz" else model.text
