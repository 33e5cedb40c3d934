"""The night's job killed at random moments and at every step of a commit: rerun, it completes with the same hashes."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import launch, night
from zsds_hpc.production import cli

pytestmark = pytest.mark.mpi
N_UNITS = {"ingest": 20, "superbias": 4, "highv_flat": 8, "calibrate": 8}


def stat_of(pid: int) -> list[str]:
    """State, parent and so on of a process, from /proc; nothing once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []
    return fields if fields[0] != "Z" else []


def children(pid: int) -> list[int]:
    """Processes below one."""
    processes = {int(name): stat_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = [child for child, stat in processes.items() if stat and int(stat[1]) == pid]
    return found + [grandchild for child in found for grandchild in children(child)]


def is_gone(pid: int) -> bool:
    return not stat_of(pid)


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


class Launched:
    """A job in the background, ended with the test whatever happens."""

    def __init__(self, ranks, program, log):
        with open(log, "w") as stream:
            self.process = subprocess.Popen(
                launch.command(ranks, program), cwd=launch.ROOT, env=launch.environment(), stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill_all()

    def kill_all(self):
        """SIGKILL to launcher and ranks."""
        pids = [self.process.pid, *children(self.process.pid)]
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: all(map(is_gone, pids)))

    def ranks(self):
        """Process ids of the ranks."""
        return [pid for pid in children(self.process.pid) if "python" in os.readlink(f"/proc/{pid}/exe")]


def sealed(archive):
    """Name of every record and of its products -> time of writing."""
    names = [*night.records(archive)]
    for record in night.records(archive).values():
        names += record["outputs"]
    return {name: (archive / name).stat().st_mtime_ns for name in names}


def n_records(archive):
    return len(list(archive.glob("records/*/*/*.json")))


def status(archive, camera, capsys):
    """What `zsds night status` says: pipeline -> units done, and files of the manifest that are done."""
    cli.main(["night", "status", night.NIGHT, "--archive", str(archive), "--camera", str(camera)])
    text = capsys.readouterr().out
    done = {name: re.search(rf"^{name}: .*?(\d+) DONE", text, re.M) for name in ("manifest", *N_UNITS)}
    return {name: int(found[1]) if found else 0 for name, found in done.items()}


def check_status(archive, camera, capsys):
    """The account must agree with the records that are there."""
    told = status(archive, camera, capsys)
    there = {name: len(list(archive.glob(f"records/{name}/*/*.json"))) for name in N_UNITS}
    assert told == {"manifest": there["ingest"], **there}


def check_same(archive, finished):
    assert night.products(archive) == night.products(finished)
    assert night.records(archive) == night.records(finished)
    assert night.tables(archive) == night.tables(finished)
    assert not night.leftovers(archive)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(tmp_path, small_night, finished_night, capsys, seed):
    rng = np.random.default_rng(seed)
    archive, program = tmp_path / "archive", night.night_program(tmp_path / "archive", small_night)
    before: dict = {}
    for number, after in enumerate(np.sort(rng.choice(np.arange(1, sum(N_UNITS.values())), 4, replace=False))):
        with Launched(2, program, tmp_path / f"job{number}.log") as job:
            wait_for(lambda: n_records(archive) >= after or job.process.poll() is not None)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.3))
            if number % 2:
                for pid in job.ranks()[-1:]:
                    os.kill(pid, signal.SIGKILL)
                job.process.wait(timeout=60)
                assert job.process.returncode != 0 or n_records(archive) == sum(N_UNITS.values())
            else:
                job.kill_all()
        now = sealed(archive)
        assert {name: now[name] for name in before} == before, "what was sealed was made again"
        check_status(archive, small_night.camera, capsys)
        before = now
    done = night.whole_night(2, archive, small_night)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {name: sealed(archive)[name] for name in before} == before
    check_same(archive, finished_night)
    assert status(archive, small_night.camera, capsys) == {"manifest": night.N_RAW, **N_UNITS}


@pytest.mark.parametrize(
    ("pipeline", "unit", "n_renames"),
    [("ingest", "013869_000000_bi", 7), ("superbias", "bi_c06_q3", 4), ("calibrate", "655_zr_c06_o_q2", 8)],
)
def test_killed_at_every_step_of_a_commit(tmp_path, small_night, finished_night, pipeline, unit, n_renames):
    """A unit renames its products and then its record (ingest, before, its copy of the manifest): death before each."""
    archive = tmp_path / "archive"
    shutil.copytree(finished_night, archive)
    program = ["tests/helpers/crash_points.py", archive, "--night", night.NIGHT, *night.archive_options(small_night)]
    done = launch.launch(0, [*program, "--only", unit, "--pipeline", pipeline], 300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) == n_renames
    check_same(archive, finished_night)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_night_seals_what_it_has_at_hand(tmp_path, small_night, finished_night, ranks):
    archive = tmp_path / "archive"
    program = ["-m", "zsds_hpc.production.cli", "night", "run", night.NIGHT, "--archive", archive]
    program += [*night.archive_options(small_night), "--ranks", ranks]
    with Launched(0, program, tmp_path / "stopped.log") as job:
        wait_for(lambda: n_records(archive) >= 4)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(timeout=60) == 75
        assert not children(job.process.pid)
    text = (tmp_path / "stopped.log").read_text()
    assert "Traceback" not in text
    before = sealed(archive)
    assert 4 <= n_records(archive) < sum(N_UNITS.values()) and not night.leftovers(archive)
    assert night.whole_night(0, archive, small_night).returncode == 0
    assert {name: sealed(archive)[name] for name in before} == before
    check_same(archive, finished_night)
