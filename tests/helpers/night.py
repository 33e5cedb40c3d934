"""A small simulated night: one CCD of four 512 x 520 channels with the real camera's scale, made once per test run."""

import fcntl
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

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
  655: {{ra_deg: 55.0608, dec_deg: 33.35, stars_per_channel: 60000}}
physics: {{galaxies_per_channel: 400, transients_per_channel: 1, n_orbits: 4000, cosmic_per_channel: 6}}
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


def environment() -> dict[str, str]:
    """Environment for programs and MPI launches of the tests: one thread each, no launcher's variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_", "PMI_"))}
    return kept | {
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }  # fmt: skip


def zsds(*arguments, timeout_s: float = 120.0) -> subprocess.CompletedProcess:
    """Run the `zsds` command."""
    return program("-m", "zsds_hpc.production.cli", *arguments, timeout_s=timeout_s)


def program(*arguments, timeout_s: float = 120.0) -> subprocess.CompletedProcess:
    """Run a Python program from the root of the source tree."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )


def small_night(shared: Path) -> SmallNight:
    """The small night below a directory that all workers of a test run share; made by the first that asks."""
    night = SmallNight(shared / f"small_night_{hashlib.sha256(PLAN.encode()).hexdigest()[:8]}")
    with open(shared / "small_night.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (night.root / "ready").exists():
            _make(night)
            (night.root / "ready").touch()
    return night


def _make(night: SmallNight) -> None:
    night.root.mkdir(parents=True, exist_ok=True)
    night.camera.write_text(camera_text())
    plan = night.root / "plan.yml"
    plan.write_text(PLAN.format(camera=night.camera))
    sky = night.root / "sky"
    _checked(program("-m", "tools.skysim", plan, "--out", sky))
    for kind in ("gaia", "ps1"):
        _checked(zsds("refcat", "build", kind, sky / "refcats" / f"{kind}.parquet", "--out", night.refcats / kind))


def _checked(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
