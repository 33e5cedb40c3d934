"""A small simulated night: one CCD of four 512 x 520 channels with the real camera's scale, made once per test run."""

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import launch
from zsds_hpc.archive.atomic import sha256_of

ROOT = Path(__file__).parents[2]
NIGHT = "20200924"
CCDID = 6
N_X, N_Y = 512, 520
N_RAW, N_SCIENCE = 20, 2
PLAN = """\
seed: 11
camera: {camera}
ccdids: [6]
fields:
  655: {{ra_deg: 55.0608, dec_deg: 33.35, stars_per_channel: 50000}}
physics: {{galaxies_per_channel: 400, transients_per_channel: 1, n_orbits: 2000, cosmic_per_channel: 6}}
nights:
  - night: '20200924'
    bias:
      - {{n: 6, start: '00:20:00'}}
    flats:
      - {{filter: zg, n: 6, start: '00:50:00', level_dn: 20000.0}}
      - {{filter: zr, n: 6, start: '01:20:00', level_dn: 20000.0}}
    science:
      - {{field: 655, filter: zg, n: 1, start: '09:40:30', seeing_pix: 2.0, cloud_mag: 0.0, n_tracks: 0}}
      - {{field: 655, filter: zr, n: 1, start: '10:21:45', seeing_pix: 2.0, cloud_mag: 0.0, n_tracks: 1}}
"""


@dataclass(frozen=True)
class SmallNight:
    """Where a small night's inputs are."""

    root: Path

    @property
    def camera(self) -> Path:
        """Camera file."""
        return self.root / "small.yml"

    @property
    def incoming(self) -> Path:
        """Raw files and manifest."""
        return self.root / "sky" / "incoming" / NIGHT

    @property
    def refcats(self) -> Path:
        """Stores `gaia` and `ps1`."""
        return self.root / "refcats"


def camera_text() -> str:
    """The real camera's file, cut down to the middle of one CCD."""
    camera = yaml.safe_load((ROOT / "config/cameras/ztf.yml").read_text())
    full = camera["n_x"], camera["n_y"]
    channels = [c for c in camera["channels"] if c["ccdid"] == CCDID]
    for axis, size, whole in (("xi_deg", N_X, full[0]), ("eta_deg", N_Y, full[1])):
        centre = sum(c[axis] for c in channels) / 4
        for channel in channels:
            channel[axis] = centre + (channel[axis] - centre) * size / whole
    return yaml.safe_dump({**camera, "name": "small", "n_x": N_X, "n_y": N_Y, "channels": channels}, sort_keys=False)


def zsds(*arguments, timeout_s: float = 300.0) -> subprocess.CompletedProcess:
    """Run the `zsds` command."""
    return launch.launch(0, ["-m", "zsds_hpc.production.cli", *arguments], timeout_s)


def archive_options(night: SmallNight) -> list:
    """Options that the pipelines need to work on the small night."""
    return ["--camera", night.camera, "--incoming", night.incoming, "--refcats", night.refcats]


def whole_night(ranks: int, archive: Path, night: SmallNight, *more) -> subprocess.CompletedProcess:
    """All pipelines (or ``--pipelines`` some) in one launch on some ranks; 0 starts without mpiexec."""
    return launch.launch(ranks, night_program(archive, night, *more), 300)


def night_program(archive: Path, night: SmallNight, *more) -> list:
    """Program and arguments of `whole_night`."""
    return ["tests/helpers/whole_night.py", archive, "--night", NIGHT, *archive_options(night), *more]


def products(archive: Path) -> dict[str, str]:
    """SHA-256 of every product, by name relative to the archive."""
    found = [path for top in ("raw", "cal", "sci") for path in (archive / top).rglob("*") if path.is_file()]
    return {str(path.relative_to(archive)): sha256_of(path) for path in sorted(found)}


def records(archive: Path) -> dict[str, dict[str, Any]]:
    """Every record without the facts of its run, by name relative to the archive."""
    kept = {}
    for path in sorted((archive / "records").rglob("*.json")):
        content = json.loads(path.read_text())
        kept[str(path.relative_to(archive))] = {k: v for k, v in content.items() if k not in ("run", "steps")}
    return kept


def tables(archive: Path) -> dict[str, list[str]]:
    """Every row of the database without the facts of its run; JSON columns with their keys in order."""
    facts = ("job", "cpu_s", "peak_mib")

    def plain(value):
        is_json = isinstance(value, str) and value.startswith("{")
        return json.dumps(json.loads(value), sort_keys=True) if is_json else value

    with contextlib.closing(sqlite3.connect(archive / "zsds.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        rows = {name: connection.execute(f'select * from "{name}"').fetchall() for name in names}
    return {
        name: sorted(str({k: plain(v) for k, v in dict(r).items() if k not in facts}) for r in rows[name])
        for name in rows
    }


def ingested_copy(finished: Path, archive: Path) -> Path:
    """Copy of an archive as it was after ingest."""
    for part in ("raw", "records/ingest"):
        shutil.copytree(finished / part, archive / part)
    shutil.copy(finished / "zsds.sqlite", archive)
    return archive


def leftovers(archive: Path) -> list[Path]:
    """Temporary files."""
    return [*archive.rglob("*.zsds-tmp"), *archive.rglob("*.tmp")]


def shared_directory(factory) -> Path:
    """Directory that all xdist workers of this test run share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def made_once(place: Path):
    """Yield True to the first process that asks for `place`, False to the others once it is made."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not (place / "ready").exists()
        (place / "ready").touch()


def small_night(shared: Path) -> SmallNight:
    """The small night below a directory that all workers of a test run share; made by the first that asks."""
    night = SmallNight(shared / "small_night")
    with made_once(night.root) as is_first:
        if is_first:
            _make(night)
    return night


def finished_night(shared: Path, night: SmallNight) -> Path:
    """Archive of the small night, processed on one rank by ``zsds night run`` without disturbance."""
    place = shared / "finished_night"
    with made_once(place) as is_first:
        if is_first:
            _checked(zsds("night", "run", NIGHT, "--archive", place / "archive", *archive_options(night), "--ranks", 1))
    return place / "archive"


def _make(night: SmallNight) -> None:
    night.camera.write_text(camera_text())
    plan, sky = night.root / "plan.yml", night.root / "sky"
    plan.write_text(PLAN.format(camera=night.camera))
    _checked(launch.launch(0, ["-m", "tools.skysim", plan, "--out", sky], 300))
    for kind in ("gaia", "ps1"):
        _checked(zsds("refcat", "build", kind, sky / "refcats" / f"{kind}.parquet", "--out", night.refcats / kind))


def _checked(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
