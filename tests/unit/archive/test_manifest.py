"""The manifest's lines are not trusted: hostile, malformed, contradictory and duplicated ones are accounted for."""

import hashlib

import pytest

from tests.helpers.mininight import NIGHT
from zsds_hpc.archive.manifest import read_manifest
from zsds_hpc.core.errors import BadInput

GOOD = f"ztf_{NIGHT}400000_000655_zr_c06_o.fits.fz"
OTHER = f"ztf_{NIGHT}500000_000655_zr_c06_o.fits.fz"


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def line(name, content="x", size=10):
    return f"{sha(content)}  {size}  {name}\n"


def entries(tmp_path, text, night=NIGHT):
    path = tmp_path / "m.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {e.filename: e for e in read_manifest(path, night)}


def test_plain(tmp_path):
    found = entries(tmp_path, "# comment\n\n" + line(OTHER, "y") + line(GOOD) + line(GOOD))
    assert list(found) == [GOOD, OTHER] and not any(e.problem for e in found.values())
    assert (found[GOOD].sha256, found[GOOD].size) == (sha("x"), 10)


def test_windows_line_ends_and_no_last_newline(tmp_path):
    found = entries(tmp_path, line(GOOD).replace("\n", "\r\n") + line(OTHER, "y").rstrip())
    assert [e.problem for e in found.values()] == ["", ""]


@pytest.mark.parametrize(
    "name",
    [
        "../x", f"../{GOOD}", "../../etc/passwd", "/etc/passwd", f"/tmp/{GOOD}", f"a/{GOOD}", f"./{GOOD}", "..", ".",
        f"{GOOD}/", "a\\b", f"..\\{GOOD}", "C:\\x", "zt\0f", f"{GOOD}\0", "\x1b[31mred", "x" * 5000, "ztf_.fits.fz",
        f"ztf_{NIGHT}４00000_000655_zr_c06_o.fits.fz", f"{GOOD}\u202egnp", "a b", "-rf", "$(reboot)", "~root",
        "ztf_20200924400000_000655_zr_c17_o.fits.fz", "ztf_20200924400000_000655_zr_c06_x.fits.fz", GOOD.upper(),
    ],
)  # fmt: skip
def test_hostile_names_are_kept_with_their_problem(tmp_path, name):
    found = entries(tmp_path, line(name, "evil") + line(GOOD))
    assert found.pop(GOOD).problem == ""
    (entry,) = found.values()
    assert entry.problem
    assert len(entry.filename) < 200 and entry.filename.isprintable()


def test_hostile_twin_does_not_disable_a_good_file(tmp_path):
    found = entries(tmp_path, line("../" + GOOD, "x") + line("aaa", "x") + line(GOOD, "x"))
    assert found[GOOD].problem == ""


@pytest.mark.parametrize(
    "bad",
    ["hello", f"{sha('x')}", f"{sha('x')} 10", f"{sha('x')[:-1]} 10 {GOOD}", f"{sha('x')} -1 {OTHER}",
     f"{sha('x')} 1e3 {OTHER}", f"{sha('x').upper()} 10 {OTHER}", f"{sha('x')} 9999999999999 {OTHER}"],
)  # fmt: skip
def test_malformed_lines_are_named_by_number(tmp_path, bad):
    found = entries(tmp_path, line(GOOD) + bad + "\n")
    assert found[GOOD].problem == ""
    assert "line 2: not" in found["(line 2)"].problem


def test_bytes_that_are_no_text(tmp_path):
    found = entries(tmp_path, line(GOOD).encode() + b"\xff\xfe\x00 rubbish\n" + line(OTHER, "y").encode())
    assert len(found) == 3 and found[GOOD].problem == found[OTHER].problem == ""


def test_contradictory(tmp_path):
    found = entries(tmp_path, line(GOOD, "x") + line(GOOD, "y") + line(GOOD, "x") + line(OTHER, "x"))
    assert "contradictory" in found[GOOD].problem
    assert found[OTHER].problem == ""
    assert "contradictory" in entries(tmp_path, line(GOOD, "x", 10) + line(GOOD, "x", 11))[GOOD].problem


def test_duplicate_content(tmp_path):
    found = entries(tmp_path, line(OTHER, "x") + line(GOOD, "x"))
    assert found[GOOD].problem == "" and found[OTHER].problem == f"duplicate: same content as {GOOD}"


def test_wrong_night(tmp_path):
    assert "20200924" in entries(tmp_path, line(GOOD), "20200925")[GOOD].problem


@pytest.mark.parametrize("text", [b"\x00" * 100, b"\x89PNG\r\n\x1a\n", b"SIMPLE  =                    T"])
def test_not_a_manifest(tmp_path, text):
    with pytest.raises(BadInput, match="not a manifest"):
        entries(tmp_path, text)


def test_missing_and_empty(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_manifest(tmp_path / "none", NIGHT)
    assert entries(tmp_path, "") == {}
