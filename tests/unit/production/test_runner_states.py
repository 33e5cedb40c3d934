"""The runner: every way a unit can end, containment, resume by records, exit codes."""

import json
import logging
import os
import signal
import subprocess
import time

import pytest
import sqlalchemy as sa

from tests.helpers import launch, toy
from tests.helpers.toy import NIGHT, OUT, ToyParams
from zsds_hpc.archive import atomic, database
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.core.states import State
from zsds_hpc.production import runner
from zsds_hpc.production.bookkeeping import rebuild

ENDINGS = {
    "fine": ("done", State.DONE, ""),
    "idle": ("no_work", State.NO_WORK, "nothing there"),
    "bad": ("bad", State.UNPROCESSABLE, "f.fits[2]: truncated"),
    "fail": ("fail", State.FAILED, "no match"),
    "waits": ("blocked", State.BLOCKED, "input x failed"),
    "retry": ("retry", State.ABORTED, "disk full"),
    "full": ("enospc", State.ABORTED, "full: No space left on device; free or mend the disk, then resume"),
    "memory": ("memory", State.ABORTED, "out of memory"),
    "crash": ("crash", State.FAILED, "unforeseen ZeroDivisionError: two lines"),
}


@pytest.fixture
def night(tmp_path):
    return Night(tmp_path)


class Night:
    """An archive, and the plan of toy units for it."""

    def __init__(self, place):
        self.root, self.plan, self.trace = place / "archive", place / "plan.json", place / "trace"

    def run(self, ensemble=False, **units):
        job = {
            key: units.pop(key)
            for key in ("params", "max_unforeseen", "retry_failed", "trust_sizes", "serial")
            if key in units
        }
        self.plan.write_text(json.dumps({name: [does, 1.0] for name, does in units.items()}))
        self.trace.unlink(missing_ok=True)
        os.environ["TOY_TRACE"] = str(self.trace)
        try:
            return toy.run(self.root, self.plan, ensemble, **job)
        finally:
            del os.environ["TOY_TRACE"]

    @property
    def made(self):
        return sorted(self.trace.read_text().split()) if self.trace.exists() else []

    def record(self, name):
        return read_record(self.root / "records" / "toy" / NIGHT / f"{name}.json")

    def rows(self):
        engine = database.open_database(self.root)
        rows = {row["unit_id"]: row for row in database.get(engine, database.units)}
        engine.dispose()
        return rows

    def products(self):
        return sorted(path.name for path in (self.root / OUT).glob("*")) if (self.root / OUT).exists() else []

    def no_leftovers(self):
        return not [p for p in self.root.rglob("*") if p.name.endswith(".zsds-tmp")]


@pytest.mark.parametrize("ensemble", [False, True])
def test_every_ending_is_recorded_and_contained(night, ensemble):
    code = night.run(ensemble, **{name: does for name, (does, _, _) in ENDINGS.items()})
    assert code == 75
    rows = night.rows()
    for name, (_, state, reason) in ENDINGS.items():
        record = night.record(name)
        assert (record.state, record.reason) == (state, reason), name
        assert (rows[name]["state"], rows[name]["reason"]) == (state, reason)
        assert bool(record.outputs) == (state == State.DONE)
    assert night.products() == ["fine.a", "fine.b"]
    assert night.no_leftovers()


def test_record_says_what_was_done(night):
    night.run(fine="done", fail="fail")
    record = night.record("fine")
    for name, seal in record.outputs.items():
        assert seal == atomic.Seal(atomic.sha256_of(night.root / name), (night.root / name).stat().st_size)
    assert record.params["level"] == 1 and record.inputs == {"in": "fine"} and "act" in record.steps
    assert record.metrics == {"n": 1, "nan": None} and record.run["peak_mib"] > 10
    assert night.record("fail").metrics == {"n_matched": 3, "worst": None}


@pytest.mark.parametrize(
    ("does", "code"),
    [
        ("done", 0),
        ("no_work", 0),
        ("bad", 20),
        ("fail", 20),
        ("blocked", 20),
        ("crash", 20),
        ("retry", 75),
        ("enospc", 75),
    ],
)
def test_exit_code(night, does, code):
    assert night.run(one="done", two=does) == code


def test_nothing_to_do(night):
    assert night.run() == 0


def test_resume_skips_the_sealed(night):
    night.run(a="done", b="done", c="no_work", d="bad", e="fail", f="retry", g="blocked", h="crash")
    before = {p: p.stat().st_mtime_ns for p in (night.root / OUT).iterdir()}
    assert night.run(a="done", b="done", c="done", d="done", e="done", f="done", g="done", h="done") == 20
    assert night.made == ["f", "g"], "final states are looked up, passing ones tried again"
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert [night.record(n).state for n in "cdeh"] == [State.NO_WORK, State.UNPROCESSABLE, State.FAILED, State.FAILED]
    assert night.run(d="done", e="done", h="done", c="done", retry_failed=True) == 0
    assert night.made == ["d", "e", "h"]


def test_changed_params_are_made_again(night):
    night.run(a="done")
    first = night.record("a")
    assert night.run(a="done", params=ToyParams(level=2)) == 0
    assert night.made == ["a"] and night.record("a").fingerprint != first.fingerprint
    assert (night.root / OUT / "a.a").read_text().startswith(f"{OUT}/a.a level 2")


def test_changed_camera_is_made_again(night, monkeypatch):
    night.run(a="done")
    monkeypatch.setattr(toy, "load_camera", lambda path: _camera(path).model_copy(update={"n_x": 97}))
    night.run(a="done")
    assert night.made == ["a"]


_camera = toy.load_camera


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "record_cut", "record_remove"])
def test_harmed_products_are_made_again(night, harm):
    night.run(a="done", b="done")
    product, record = night.root / OUT / "a.b", night.root / "records" / "toy" / NIGHT / "a.json"
    whole, at = product.read_bytes(), record if harm.startswith("record") else product
    data = bytearray(at.read_bytes())
    data[len(data) // 2] ^= 1
    {"flip": lambda: at.write_bytes(data), "cut": lambda: at.write_bytes(data[:-1]), "remove": at.unlink,
     "record_cut": lambda: at.write_bytes(data[: len(data) // 2]), "record_remove": at.unlink}[harm]()  # fmt: skip
    assert night.run(a="done", b="done") == 0
    assert night.made == ["a"] and product.read_bytes() == whole


def test_trusted_sizes_are_not_hashed(night):
    night.run(a="done", b="done")
    flipped, cut = night.root / OUT / "a.b", night.root / OUT / "b.b"
    flipped.write_bytes(b"#" + flipped.read_bytes()[1:])
    cut.write_bytes(cut.read_bytes()[1:])
    night.run(a="done", b="done", trust_sizes=True)
    assert night.made == ["b"]
    night.run(a="done", b="done")
    assert night.made == ["a"]


def test_touching_a_product_changes_nothing(night):
    night.run(a="done")
    os.utime(night.root / OUT / "a.a", (0, 0))
    night.run(a="done")
    assert night.made == []


def test_a_lost_input_does_not_undo_what_was_sealed(night):
    night.run(a="done")
    assert night.run(a="blocked", params=ToyParams(level=3)) == 0
    assert night.record("a").state == State.DONE and night.products() == ["a.a", "a.b"]


def test_too_many_unforeseen_stop_the_job(night):
    units = {f"u{i:02}": "crash" for i in range(10)} | {"zz": "done"}
    assert night.run(max_unforeseen=3, **units) == 75
    assert len(night.rows()) == 4 and "zz" not in night.rows()


def test_unforeseen_is_logged_whole(night):
    night.run(one="crash")
    (log,) = (night.root / "logs").glob("*.log")
    text = log.read_text()
    assert "Traceback" in text and "ZeroDivisionError" in text and "one: unforeseen error" in text


@pytest.mark.parametrize("where", ["seal", "record"])
def test_full_disk_at_the_end_leaves_nothing(night, monkeypatch, where):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((atomic.os, "replace", no_space) if where == "seal" else (atomic, "write_json", no_space)))
    assert night.run(a="done") == 75
    monkeypatch.undo()
    assert night.products() == [] and night.record("a") is None and night.no_leftovers()
    assert night.rows()["a"]["state"] == State.ABORTED
    assert night.run(a="done") == 0 and night.products() == ["a.a", "a.b"]


def test_database_is_rebuilt_from_records(night):
    night.run(a="done", b="bad", c="fail")
    before = night.rows()
    (night.root / "zsds.sqlite").unlink()
    archive = toy.Archive(night.root, toy.load_camera(night.root.parent / "mini0.yml"))
    assert rebuild(archive, [toy.pipeline()], NIGHT) == 3
    assert night.rows() == before


def test_costliest_first(night):
    units = [toy.Unit(f"u{i}", NIGHT, cost) for i, cost in enumerate([1.0, 5.0, 3.0, 5.0])]
    ordered = runner._ordered(toy.pipeline(), units, toy.Request(NIGHT))
    assert [u.unit_id for u in ordered] == ["u1", "u3", "u2", "u0"]
    some = toy.Request(NIGHT, only=("u2", "u0"))
    assert [u.unit_id for u in runner._ordered(toy.pipeline(), units, some)] == ["u2", "u0"]
    assert [u.unit_id for u in runner._ordered(toy.pipeline(serial=True), units, some)] == ["u0", "u2"]


def test_serial_stops_at_the_first_that_is_aborted(night):
    assert night.run(serial=True, c="done", a="bad", x="retry", b="done") == 75
    assert night.trace.read_text().split() == ["c"] and sorted(night.rows()) == ["a", "c", "x"]
    assert night.record("b") is None
    assert night.run(serial=True, c="done", a="bad", x="done", b="done") == 20
    assert night.trace.read_text().split() == ["x", "b"]


@pytest.mark.mpi
def test_serial_is_of_rank_0_alone(night):
    night.plan.write_text(json.dumps({name: ["done", 1.0] for name in "dbca"}))
    program = ["tests/helpers/toy.py", night.root, night.plan, "serial"]
    done = launch.launch(3, program, TOY_TRACE=str(night.trace))
    assert done.returncode == 0, done.stderr
    assert night.trace.read_text().split() == list("dbca") and {night.record(n).run["rank"] for n in "abcd"} == {0}


def test_database_lost_at_the_end_is_worth_retrying(night):
    lose = sa.event.listens_for(sa.Engine, "before_cursor_execute")

    @lose
    def fail(connection, cursor, statement, *_):
        if statement.startswith(("INSERT", "DELETE")) and not is_back:
            raise sa.exc.OperationalError(statement, {}, Exception("server closed the connection"))

    is_back = False
    try:
        assert night.run(a="done", b="done") == 75
        assert [night.record(name).state for name in "ab"] == [State.DONE] * 2 and night.rows() == {}
        is_back = True
        assert night.run(a="done", b="done") == 0
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)
    assert night.made == [] and sorted(night.rows()) == ["a", "b"]


@pytest.mark.parametrize("ensemble", [[], ["ensemble"]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signal_finishes_the_unit_at_hand(night, number, ensemble):
    night.plan.write_text(json.dumps({f"u{i:02}": ["slow", 1.0] for i in range(60)}))
    program = ["tests/helpers/toy.py", night.root, night.plan, *ensemble]
    process = subprocess.Popen(launch.command(0, program), cwd=launch.ROOT, env=launch.environment(),
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for(lambda: len(list(night.root.glob("records/toy/*/*.json"))) >= 2)
    process.send_signal(number)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 75 and "Traceback" not in error
    n_done = len(night.rows())
    assert 2 <= n_done < 30 and len(night.products()) == 2 * n_done and night.no_leftovers()


def test_kill_and_resume(night):
    night.plan.write_text(json.dumps({f"u{i}": ["slow", 1.0] for i in range(8)}))
    program = ["tests/helpers/toy.py", night.root, night.plan]
    process = subprocess.Popen(launch.command(0, program), cwd=launch.ROOT, env=launch.environment(),
                               stderr=subprocess.DEVNULL)  # fmt: skip
    wait_for(lambda: len(list(night.root.glob("records/toy/*/*.json"))) >= 3)
    process.kill()
    process.wait()
    sealed = {p.stem for p in night.root.glob("records/toy/*/*.json")}
    assert night.run(**{f"u{i}": "slow" for i in range(8)}) == 0
    assert set(night.made) == {f"u{i}" for i in range(8)} - sealed
    assert len(night.products()) == 16 and night.no_leftovers() and len(night.rows()) == 8


def wait_for(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "never happened"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def quiet():
    yield
    for handler in logging.getLogger("zsds").handlers[:]:
        handler.close()
