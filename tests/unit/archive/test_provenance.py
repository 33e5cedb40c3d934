"""Sealed records: round trip, refusal of what is not whole, identity of a computation."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsds_hpc.archive import atomic
from zsds_hpc.archive.provenance import Record, digest_of, fingerprint_of, outputs_hold, plain, read_record
from zsds_hpc.core.states import State

RECORD = Record(
    "u1", "toy", "20200924", State.DONE, "f" * 64, "", {"in": "a" * 64}, {"out": atomic.Seal("b" * 64, 3)}, {"p": 1},
    {"m": 1.5}, {"read": 0.1}, {"job": "j"},
)  # fmt: skip


def test_round_trip(tmp_path):
    RECORD.write(tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == RECORD


@pytest.mark.parametrize("content", ["", "{", "[]", "1", '"x"', "null", "{}", '{"record_version": 1}'])
def test_what_is_not_a_record(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    assert read_record(tmp_path / "r.json") is None
    assert read_record(tmp_path / "none.json") is None


def test_every_truncation_is_no_record(tmp_path):
    RECORD.write(tmp_path / "r.json")
    whole = (tmp_path / "r.json").read_bytes()
    for n in range(len(whole) - 2):
        (tmp_path / "r.json").write_bytes(whole[:n])
        assert read_record(tmp_path / "r.json") is None, n


def test_unknown_state_or_key_is_no_record(tmp_path):
    RECORD.write(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    for changed in ({**content, "state": "FINE"}, {**content, "extra": 1}):
        (tmp_path / "r.json").write_text(json.dumps(changed))
        assert read_record(tmp_path / "r.json") is None


def test_plain_is_json_without_nan():
    value = {
        "f": np.float32(0.5), "n": np.float64("nan"), "i": np.int64(3), "a": np.array([1.0, np.inf]), "t": (1, 2),
        "b": np.bool_(True), "p": Path("x"), 3: State.DONE, "none": None,
    }  # fmt: skip
    expected = {
        "f": 0.5, "n": None, "i": 3, "a": [1.0, None], "t": [1, 2], "b": True, "p": "x", "3": "DONE", "none": None,
    }  # fmt: skip
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_fingerprint_sees_every_part():
    base = ("toy", {"a": 1, "b": 2}, {"x": "1", "y": "2"})
    same = fingerprint_of("toy", {"b": 2, "a": 1}, {"y": "2", "x": "1"})
    assert fingerprint_of(*base) == same
    others = [
        fingerprint_of("toz", *base[1:]), fingerprint_of("toy", {"a": 1, "b": 3}, base[2]),
        fingerprint_of("toy", base[1], {"x": "1", "y": "3"}), fingerprint_of("toy", base[1], {"x": "1"}),
        fingerprint_of("toy", base[1], {"x": "2", "y": "1"}),
    ]  # fmt: skip
    assert len({same, *others}) == 6


@given(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.integers() | st.text()))
def test_digest_does_not_depend_on_order(content):
    assert digest_of(content) == digest_of(dict(reversed(content.items())))


def test_outputs_hold(tmp_path):
    (tmp_path / "out").write_bytes(b"abc")
    seal = atomic.Seal(atomic.sha256_of(tmp_path / "out"), 3)
    record = Record("u", "p", "n", State.DONE, "f", outputs={"out": seal})
    assert outputs_hold(tmp_path, record) == ""
    (tmp_path / "out").write_bytes(b"abd")
    assert outputs_hold(tmp_path, record, rehash=False) == ""
    assert outputs_hold(tmp_path, record) == "out is corrupt"
    (tmp_path / "out").write_bytes(b"ab")
    assert outputs_hold(tmp_path, record, rehash=False) == "out is corrupt"
    (tmp_path / "out").unlink()
    assert outputs_hold(tmp_path, record) == "out is missing"
