"""Realtime killed at random moments, calibrated images in memory: resumed, its products are the same."""

import os
import signal
import subprocess
import time

import numpy as np

from tests.helpers import diffnight, launch, night


def check_same(archive, diff_night):
    assert diffnight.products(archive) == diffnight.products(diff_night.searched)
    assert night.records(archive) == night.records(diff_night.searched)
    assert night.tables(archive) == night.tables(diff_night.searched)
    assert not night.leftovers(archive)


def sealed(archive):
    """Records of the night, of both pipelines -> time of writing."""
    found = [p for name in ("calibrate", "realtime") for p in archive.glob(f"records/{name}/{diffnight.NIGHT}/*.json")]
    return {path: path.stat().st_mtime_ns for path in found}


def test_killed_and_resumed(tmp_path, diff_night):
    """After none, one and two records; what is sealed is not made again."""
    archive, rng = diff_night.copy_of(diff_night.ingested, tmp_path / "archive"), np.random.default_rng(1)
    program = launch.command(0, ["drivers/realtime.py", *diff_night.options(archive)])
    before: dict = {}
    for after in (0, 1, 3):
        process = subprocess.Popen(program, cwd=launch.ROOT, env=launch.environment(), stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while (len(sealed(archive)) < after or not any(archive.glob("logs/realtime_*"))) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = sealed(archive)
        assert {path: now[path] for path in before} == before
        before = now
    done = launch.launch(0, ["drivers/realtime.py", *diff_night.options(archive)])
    assert done.returncode == 20 and "1 BLOCKED, 2 DONE" in done.stderr, done.stderr[-3000:]
    now = sealed(archive)
    assert {path: now[path] for path in before} == before
    check_same(archive, diff_night)
