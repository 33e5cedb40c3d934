"""One channel of 512 x 520 px: a night of epochs with their reference, and a night to be searched. Made once.

On the second night there are two exposures in the reference's filter and one in another, for which there is no flat.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.helpers import launch, night
from zsds_hpc.production import cli

REFERENCE_NIGHT, NIGHT = "20200901", "20200924"
FIELD, RCID, CODE = 655, 20, "zr"
SEEING = (1.8, 1.9, 2.1, 1.75, 2.0, 1.85)
_PLAN = """\
seed: 12
camera: {camera}
ccdids: [6]
rcids: [20]
fields:
  655: {{ra_deg: 55.0608, dec_deg: 33.35, stars_per_channel: 30000}}
physics: {{galaxies_per_channel: 400, transients_per_channel: 200, n_orbits: 2000, cosmic_per_channel: 6}}
nights:
  - night: '20200901'
    bias:
      - {{n: 5, start: '00:20:00'}}
    flats:
      - {{filter: zr, n: 5, start: '01:20:00', level_dn: 20000.0}}
    science:
{epochs}
  - night: '20200924'
    science:
      - {{field: 655, filter: zr, n: 1, start: '09:40:30', seeing_pix: 2.0, cloud_mag: 0.0, n_tracks: 0}}
      - {{field: 655, filter: zr, n: 1, start: '10:21:45', seeing_pix: 2.5, cloud_mag: 0.0, n_tracks: 0}}
      - {{field: 655, filter: zg, n: 1, start: '10:41:45', seeing_pix: 2.0, cloud_mag: 0.0, n_tracks: 0}}
"""
_EPOCH = "      - {{field: 655, filter: zr, n: 1, start: '09:{:02d}:00', seeing_pix: {}, cloud_mag: 0.0, n_tracks: 0}}"


@dataclass(frozen=True)
class DiffNight:
    """Where everything lies: the sky, and archives at several stages of its processing."""

    root: Path

    @property
    def camera(self) -> Path:
        """Camera file."""
        return self.root / "one.yml"

    @property
    def refcats(self) -> Path:
        """Stores `gaia` and `ps1`."""
        return self.root / "refcats"

    @property
    def ingested(self) -> Path:
        """Archive with a reference and the raw images of the night to be searched."""
        return self.root / "ingested"

    @property
    def searched(self) -> Path:
        """The same after realtime on one rank, calibrated images continued in memory."""
        return self.root / "searched"

    def options(self, archive: Path) -> list[str]:
        """Options of a pipeline on the night to be searched."""
        return [
            "--archive", str(archive), "--camera", str(self.camera), "--refcats", str(self.refcats), "--night", NIGHT
        ]  # fmt: skip

    def copy_of(self, archive: Path, to: Path) -> Path:
        """A copy that a test may spoil."""
        return Path(shutil.copytree(archive, to))


def products(archive: Path) -> dict[str, str]:
    """SHA-256 of every product of the night to be searched, by name."""
    return {name: value for name, value in night.products(archive).items() if "2020/0924" in name}


def diff_night(shared: Path) -> DiffNight:
    """The night below a directory that all workers of a test run share."""
    made = DiffNight(shared / "diff_night")
    with night.made_once(made.root) as is_first:
        if is_first:
            _make(made)
    return made


def _make(made: DiffNight) -> None:
    camera = yaml.safe_load(night.camera_text())
    camera["channels"] = [c for c in camera["channels"] if c["rcid"] == RCID]
    camera["crosstalk"], camera["channels"][0]["overscan"]["ext"] = [[0.0]], 2  # one image and its strip in a file
    made.camera.write_text(yaml.safe_dump({**camera, "name": "one"}, sort_keys=False))
    plan, sky = made.root / "plan.yml", made.root / "sky"
    epochs = "\n".join(_EPOCH.format(5 * k, seeing) for k, seeing in enumerate(SEEING))
    plan.write_text(_PLAN.format(camera=made.camera, epochs=epochs))
    done = launch.launch(0, ["-m", "tools.skysim", plan, "--out", sky], 300)
    assert done.returncode == 0, done.stderr[-3000:]
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        for kind in ("gaia", "ps1"):
            source = sky / "refcats" / f"{kind}.parquet"
            assert cli.main(["refcat", "build", kind, str(source), "--out", str(made.refcats / kind)]) == 0
        for night_, pipelines in (
            (REFERENCE_NIGHT, ("ingest", "superbias", "highv_flat", "calibrate", "reference")), (NIGHT, ("ingest",)),
        ):  # fmt: skip
            for pipeline in pipelines:
                _run(made, made.ingested, pipeline, night_)
    made.copy_of(made.ingested, made.searched)
    assert _run(made, made.searched, "realtime", NIGHT) == 20, "the exposure without a flat is blocked"


def _run(made: DiffNight, archive: Path, pipeline: str, night_: str) -> int:
    words = made.options(archive)
    words[words.index(NIGHT)] = night_
    words += ["--incoming", str(made.root / "sky" / "incoming" / night_)]
    if pipeline == "reference":
        words += ["--set", "select.n_min=5", "--set", "select.seeing_min_pix=1.0"]
    code = cli.main([pipeline, *words])
    assert code == 0 or pipeline == "realtime", f"{pipeline} {night_}: {code}"
    return code
