"""The alerts job killed at random moments: resumed, its packets and its database are as if nothing had happened."""

import logging
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import sqlalchemy as sa

from tests.helpers import launch
from tests.helpers.toyalerts import Image, Stars, ToySky
from zsds_hpc.archive import transients

NIGHT = "20200924"
IMAGES = [
    Image(100000 + 1000 * k, [(0.2 * (k % 3), 0.1, k % 2 == 0), (10.0, -3.0 * k, True), (-15.0, 2.0, True)])
    for k in range(16)
]


@pytest.fixture(autouse=True)
def quiet():
    yield
    for handler in logging.getLogger("zsds").handlers[:]:
        handler.close()


def state(sky):
    """Bytes of the products, and rows of the database."""
    made = {path.name: path.read_bytes() for path in sky.root.glob("alerts/**/[!.]*") if path.is_file()}
    with transients.transaction(sky.archive.engine()) as connection:
        return made, {t.name: sorted(map(tuple, connection.execute(sa.select(t)))) for t in transients.UNIT_TABLES}


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_resumed(tmp_path, seed):
    rng = np.random.default_rng(seed)
    places = [tmp_path / name for name in ("stars", "whole", "killed")]
    for place in places:
        place.mkdir()
    stars = Stars(places[0])
    whole, sky = (ToySky(place, stars) for place in places[1:])
    for each in (whole, sky):
        each.add(*IMAGES)
    assert whole.run() == 0
    program = ["drivers/alerts.py", "--archive", sky.root, "--night", NIGHT, "--camera", places[2] / "mini.yml",
               "--refcats", stars.place / "refcats"]  # fmt: skip
    for after in (2, 7, 12):
        process = subprocess.Popen(
            launch.command(0, program), cwd=launch.ROOT, env=launch.environment(), stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while len(list(sky.root.glob("records/alerts/*/*.json"))) < after and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    n_before = len(list(sky.root.glob("records/alerts/*/*.json")))
    assert 12 <= n_before <= len(IMAGES)
    done = launch.launch(0, program)
    assert done.returncode == 0, done.stderr
    assert state(sky) == state(whole)
    assert not list(sky.root.rglob("*.zsds-tmp"))
