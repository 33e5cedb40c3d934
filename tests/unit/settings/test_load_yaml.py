"""YAML traps, unknown and missing keys, ranges: one line that names file, key and the nearest valid key."""

import pytest

from zsds_hpc.core.errors import SettingsError
from zsds_hpc.core.params import Params, param
from zsds_hpc.settings.load import load_params, parse_yaml, read_yaml


class Inner(Params):
    n_sigma: float = param(5.0, "Threshold.", "sigma", 0, 100)
    mode: str = param("robust", "Kind of mean.")


class Outer(Params):
    n_frames: int = param(..., "Frames.", ge=2, le=1000)
    trim_fraction: float = param(0.1, "Trim.", ge=0, le=0.5)
    is_fast: bool = param(False, "Fast.")
    inner: Inner = param(Inner(), "Inner.")
    names: tuple[str, ...] = param((), "Names.")


@pytest.fixture
def load(tmp_path):
    def loader(text, overrides=None):
        path = tmp_path / "s.yml"
        path.write_text(text)
        return load_params(Outer, path, overrides)

    return loader


def refused(load, text, *words, overrides=None):
    with pytest.raises(SettingsError) as error:
        load(text, overrides)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message, message
    return message


def test_good(load):
    found = load("n_frames: 20\ntrim_fraction: 1e-3\ninner: {n_sigma: 4, mode: no}\nnames: [on, 12:34:56, 1_000]\n")
    assert found.trim_fraction == 0.001 and found.inner == Inner(n_sigma=4.0, mode="no")
    assert found.names == ("on", "12:34:56", "1_000")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("5.", 5.0), ("12:34:56", "12:34:56"), ("no", "no"),
        ("yes", "yes"),
        ("on", "on"), ("off", "off"), ("Yes", "Yes"), ("true", True), ("True", "True"), ("017", "017"), ("08", "08"),
        ("0x1F", "0x1F"), ("0o17", "0o17"), ("1_000", "1_000"), ("2020-09-24", "2020-09-24"), (".inf", ".inf"),
        (".nan", ".nan"), ("nan", "nan"), ("~", None), ("null", None), ("20200924", 20200924), ("-3", -3), ("+3", 3),
        ("1e400", float("inf")), ("0", 0), ("=", "="), ("'5'", "5"),
    ],
)  # fmt: skip
def test_scalars(text, value):
    found = parse_yaml(f"x: {text}", "s")["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2", "x: {a: 1, a: 1}", "a: &x [1]\nb: *x", "a: !!python/object/apply:os.system [ls]",
        "a: [1", "\tb: 1",
        "a: 1\n---\nb: 2", "? [1]\n: 2", "a: b: c", "a: !!set {x}", "a: \x01",
        "a: &a [x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]", "[" * 3000,
    ],
)  # fmt: skip
def test_refused_yaml(load, text):
    message = refused(load, text)
    assert "s.yml" in message


def test_duplicate_key_is_named(load):
    refused(load, "n_frames: 3\nn_frames: 4\n", "s.yml", "n_frames", "twice", "line")


def test_unknown_key_and_the_nearest(load):
    refused(load, "n_frame: 3", "s.yml", "'n_frame'", "did you mean 'n_frames'", "'n_frames' is missing")
    refused(load, "n_frames: 3\ninner: {nsigma: 3}", "'inner.nsigma'", "did you mean 'n_sigma'")
    assert "did you mean" not in refused(load, "n_frames: 3\nqqqqqq: 3", "unknown key 'qqqqqq'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trim_fraction: 0.1", ["'n_frames' is missing"]),
        ("n_frames: '20'", ["'n_frames'", "integer", "'20'"]),
        ("n_frames: 20.5", ["'n_frames'", "20.5"]),
        ("n_frames: true", ["'n_frames'"]),
        ("n_frames: 1", ["'n_frames'", "greater than or equal to 2"]),
        ("n_frames: 1001", ["less than or equal to 1000"]),
        ("n_frames: 20\ntrim_fraction: 1e400", ["trim_fraction", "finite"]),
        ("n_frames: 20\ntrim_fraction: .nan", ["trim_fraction"]),
        ("n_frames: 20\nis_fast: yes", ["is_fast", "'yes'"]),
        ("n_frames: 20\nis_fast: 1", ["is_fast"]),
        ("n_frames: 20\ninner: 5", ["'inner'"]),
        ("n_frames: 20\ninner: [n_sigma]", ["'inner'"]),
        ("n_frames: 20\nnames: abc", ["'names'"]),
        ("n_frames: null", ["n_frames"]),
        ("- n_frames", ["keys and values"]),
        ("hello", ["keys and values"]),
        ("n_frames: " + "9" * 5000, ["s.yml"]),
        ("n_frames: 20\ninner: {mode: " + "x" * 9000 + ", a: 1}", ["'inner.a'"]),
    ],
)
def test_wrong_content(load, text, words):
    refused(load, text, *words)


def test_overrides(load):
    found = load("n_frames: 20", {"inner.n_sigma": 3.0, "trim_fraction": 0.25})
    assert (found.inner.n_sigma, found.trim_fraction, found.n_frames) == (3.0, 0.25, 20)
    refused(load, "n_frames: 20", "inner.n_sigmas", overrides={"inner.n_sigmas": 3.0})
    refused(load, "n_frames: 20\ninner: 5", "inner", overrides={"inner.n_sigma": 3.0})
    refused(load, "n_frames: 20", overrides={"": 3.0})


def test_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "s.yml").write_text("# nothing\n")
    assert load_params(Inner, tmp_path / "s.yml") == Inner()


def test_unreadable_files(tmp_path):
    with pytest.raises(SettingsError, match=r"none.yml: No such file"):
        read_yaml(tmp_path / "none.yml")
    with pytest.raises(SettingsError, match="directory"):
        read_yaml(tmp_path)
    (tmp_path / "b.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not a text file"):
        read_yaml(tmp_path / "b.yml")


def test_params_are_frozen():
    with pytest.raises(ValueError):
        Inner().n_sigma = 3.0  # type: ignore[misc]
