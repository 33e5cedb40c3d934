"""The parallel room under real mpiexec, and jobs that lose a rank."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.helpers.launch import launch
from tests.helpers.toy import OUT
from zsds_hpc.archive import database
from zsds_hpc.archive.atomic import sha256_of
from zsds_hpc.parallel import slabs
from zsds_hpc.parallel.comm import check_counts

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent
N_CHECKS = len(re.findall(r"^def check_", (HERE / "checks.py").read_text(), re.M))


@pytest.mark.parametrize("ranks", [0, 1, 2, 3, 5])
def test_checks(tmp_path, ranks):
    done = launch(ranks, [HERE / "checks.py", tmp_path])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert len(lines) == N_CHECKS and {line[2] for line in lines} == {str(ranks or 1)}


@pytest.mark.parametrize(
    ("way", "where"),
    [("collective", 1), ("agree", 0), ("agree", 2), ("die", 1), ("work", 0), ("work", 2), ("result", 0)],
)
def test_a_failing_rank_ends_the_job(way, where):
    start = time.time()
    done = launch(3, [HERE / "failing.py", way, where], timeout_s=30)
    assert done.returncode != 0
    assert time.time() - start < 20, "programs sleep for 60 s when they are not ended"
    if way != "die":
        assert "ZeroDivisionError" in done.stderr


def toy(ranks, root, units, *ensemble):
    plan = root.parent / "plan.json"
    plan.write_text(json.dumps({name: [does, 1.0] for name, does in units.items()}))
    return launch(ranks, ["tests/helpers/toy.py", root, plan, *ensemble], timeout_s=40)


def states(root):
    engine = database.open_database(root)
    rows = {r["unit_id"]: (r["state"], r["reason"]) for r in database.get(engine, database.units)}
    engine.dispose()
    return rows


UNITS = {"a": "done", "b": "no_work", "c": "bad", "d": "fail", "e": "blocked", "f": "crash", "g": "slow",
         "h": "agreed_bad", "i": "agreed_fail", "j": "agreed_crash", "k": "retry"}  # fmt: skip
EXPECTED = {"a": "DONE", "b": "NO_WORK", "c": "UNPROCESSABLE", "d": "FAILED", "e": "BLOCKED", "f": "FAILED",
            "g": "DONE", "h": "UNPROCESSABLE", "i": "FAILED", "j": "FAILED", "k": "ABORTED"}  # fmt: skip


@pytest.mark.parametrize("ensemble", [[], ["ensemble"]])
def test_states_and_products_are_the_same_for_any_number_of_ranks(tmp_path, ensemble):
    found = []
    for ranks in (1, 3):
        units = {name: does for name, does in UNITS.items() if not (ensemble and does == "crash")}
        place = tmp_path / str(ranks)
        place.mkdir()
        done = toy(ranks, place / "archive", units, *ensemble)
        assert done.returncode == 75, done.stderr
        root = place / "archive"
        rows = states(root)
        assert {name: state for name, (state, _) in rows.items()} == {n: EXPECTED[n] for n in units}
        hashes = {p.name: sha256_of(p) for p in root.glob(f"{OUT}/*")}
        metrics = {p.stem: json.loads(p.read_text())["metrics"] for p in root.glob("records/toy/*/*.json")}
        found.append((hashes, metrics))
        assert not list(root.rglob("*.zsds-tmp"))
        (merged,) = root.glob("logs/*.log")
        assert "units planned" in merged.read_text()
    assert found[0] == found[1]


def test_unforeseen_error_of_one_rank_of_a_group_ends_the_job(tmp_path):
    start = time.time()
    done = toy(3, tmp_path / "archive", {"a": "lone_crash"}, "ensemble")
    assert done.returncode != 0 and time.time() - start < 20
    assert "ZeroDivisionError: alone" in done.stderr


def test_killed_rank_then_resume(tmp_path):
    root = tmp_path / "archive"
    units = {f"u{i}": "slow" for i in range(6)}
    assert toy(2, root, {**units, "u3": "kill"}).returncode != 0
    sealed = {p.stem: p.stat().st_mtime_ns for p in root.glob("records/toy/*/*.json")}
    assert "u3" not in sealed
    assert toy(2, root, units).returncode == 0
    assert set(states(root)) == set(units) and not list(root.rglob("*.zsds-tmp"))
    now = {p.stem: p.stat().st_mtime_ns for p in root.glob("records/toy/*/*.json")}
    assert {name: now[name] for name in sealed} == sealed


def test_user_errors_under_mpi_are_one_line():
    done = launch(2, ["drivers/ingest.py", "--archive", "/nonexistent/x", "--night", "2020"], timeout_s=40)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("zsds")] == [
        "zsds ingest: night '2020' is not of the form YYYYMMDD"
    ]
    assert "Traceback" not in done.stderr


def test_shares():
    for n_items in range(12):
        for n_parts in range(1, 8):
            parts = slabs.shares(n_items, n_parts)
            assert [i for part in parts for i in range(n_items)[part]] == list(range(n_items))


def test_counts_beyond_mpi():
    check_counts([2**30, 2**30 - 1])
    with pytest.raises(OverflowError, match="use more ranks"):
        check_counts([2**30, 2**30])
