"""The data of the discovery benchmark: reference epochs, a night to search, everything through the real pipelines.

One channel, one field. Twenty epochs of 1.7 to 2.4 px seeing on an earlier night make the reference; six exposures of
0.8 to 1.6 times its seeing are searched on a later one, on which probes (injected sources of constant flux) shine. A
night between has one exposure without probes: its cost is measured, with as many candidates as the sky gives.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIELD, FILTER, CCDID, RCID, QID = 655, "zr", 6, 20, 1
REFERENCE_NIGHT, TIMED_NIGHT, NIGHT = "20200901", "20200915", "20200924"
REFERENCE_SEEING = (1.76, 1.77, 2.13, 1.70, 1.97, 1.70, 2.22, 2.04, 2.27, 1.90,
                    2.08, 1.94, 1.85, 2.03, 1.75, 1.93, 2.14, 2.01, 1.92, 2.44)  # fmt: skip
#: 0.8 to 1.6 times the reference's mean.
SEEING = (1.58, 1.77, 1.97, 2.36, 2.76, 3.15)
TIMED_SEEING = 1.97
#: The exposure of the night that other programs are given.
PEERS = 2
#: Copy of the database when the reference is there and the night is not.
SNAPSHOT = "reference.sqlite"
#: Says that sky and reference are made; without it both are made again.
MARK = "reference.json"
#: Exposures in the archive as raw images at a time.
BATCH = 5

_HEAD = """\
seed: {seed}
camera: config/cameras/ztf.yml
ccdids: [{ccdid}]
rcids: [{rcid}]
physics: {{probes_per_channel: 600.0, probes_from: '{night}', variable_fraction: {variables},
  transients_per_channel: 10.0, streakers_per_ccd: 1.0, tracks_per_exposure: 0.0}}
fields:
  {field}: {{ra_deg: 55.06078, dec_deg: 33.35, stars_per_channel: {stars}}}
nights:
  - night: '{reference_night}'
    bias:
      - {{n: 10, start: '00:20:00'}}
    flats:
      - {{filter: {filter}, n: 10, start: '01:20:00', level_dn: 20000.0}}
    science:
"""


def say(text: str) -> None:
    """Progress, kept out of the result."""
    print(f"== {text}", file=sys.stderr, flush=True)


def plan_text(stars: int, seed: int, variable_fraction: float) -> str:
    """The simulation file."""
    text = _HEAD.format(
        seed=seed, ccdid=CCDID, rcid=RCID, night=NIGHT, variables=variable_fraction, field=FIELD, stars=stars,
        reference_night=REFERENCE_NIGHT, filter=FILTER,
    )  # fmt: skip
    line = "      - {{field: {}, filter: {}, n: 1, start: '{}', seeing_pix: {}, cloud_mag: 0.0, n_tracks: 0}}\n"
    for k, seeing in enumerate(REFERENCE_SEEING):
        text += line.format(FIELD, FILTER, f"{9 + 5 * k // 60:02d}:{5 * k % 60:02d}:00", seeing)
    text += f"  - night: '{TIMED_NIGHT}'\n    science:\n"
    text += line.format(FIELD, FILTER, "09:14:00", TIMED_SEEING)
    text += f"  - night: '{NIGHT}'\n    science:\n"
    for k, seeing in enumerate(SEEING):
        text += line.format(FIELD, FILTER, f"09:{7 * k:02d}:00", seeing)
    return text


def call(*words: str | Path, allowed: tuple[int, ...] = (0,)) -> None:
    """Run one of the suite's own commands on one core, its talk on stderr."""
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    if done.returncode not in allowed:
        sys.exit(f"{' '.join(command[1:5])} ... ended with exit code {done.returncode}")


def drive(pipeline: str, place: Path, night: str, *only: str) -> None:
    """One pipeline of a night through its driver; units that are not wanted are left out."""
    words: list[str | Path] = [f"drivers/{pipeline}.py", "--archive", place / "archive", "--night", night]
    words += ["--incoming", place / "sky" / "incoming" / night] if pipeline == "ingest" else []
    words += ["--refcats", place / "refcats"] if pipeline in ("calibrate", "realtime", "alerts") else []
    for text in only:
        words += ["--only", text]
    call(*words, allowed=(0, 20))


def prepare_sky(place: Path, stars: int, seed: int, variable_fraction: float = 0.02) -> None:
    """Raw files, truth and reference catalogues; what is there is kept."""
    place.mkdir(parents=True, exist_ok=True)
    plan = place / "simulation.yml"
    plan.write_text(plan_text(stars, seed, variable_fraction))
    say(f"sky of {stars} stars in {place}")
    call("-m", "tools.skysim", plan, "--out", place / "sky")
    for kind in ("gaia", "ps1"):
        store, source = place / "refcats" / kind, place / "sky" / "refcats" / f"{kind}.parquet"
        if not (store / "catalog.json").is_file() or (store / "catalog.json").stat().st_mtime < source.stat().st_mtime:
            shutil.rmtree(store, ignore_errors=True)
            call("-m", "zsds_hpc.production.cli", "refcat", "build", kind, source, "--out", store)


def drop_raw(place: Path, night: str) -> None:
    """Remove ingested raw images of a night: 38 MB a channel, three of four dark but needed for the cross-talk."""
    shutil.rmtree(place / "archive" / "raw" / night[:4] / night[4:], ignore_errors=True)


def calibrate_epochs(place: Path) -> None:
    """Super-bias, flat and the reference epochs, a few at a time to spare the disk."""
    say("super-bias, flat, reference epochs")
    drive("ingest", place, REFERENCE_NIGHT, f"_c{CCDID:02d}_b", f"_c{CCDID:02d}_f")
    for pipeline in ("superbias", "highv_flat"):
        drive(pipeline, place, REFERENCE_NIGHT, "q1")
    drop_raw(place, REFERENCE_NIGHT)
    files = sorted((place / "sky" / "incoming" / REFERENCE_NIGHT).glob("*_o.fits.fz"))
    stems = [path.name.removesuffix(".fits.fz") for path in files]
    for start in range(0, len(stems), BATCH):
        batch = stems[start : start + BATCH]
        drive("ingest", place, REFERENCE_NIGHT, *batch)
        drive("calibrate", place, REFERENCE_NIGHT, *(f"{stem}_q{QID}" for stem in batch))
        drop_raw(place, REFERENCE_NIGHT)


def prepare_reference(place: Path) -> None:
    """Calibrated epochs of the reference night and the reference image; a copy of the database as it is then."""
    calibrate_epochs(place)
    say("reference image")
    drive("reference", place, REFERENCE_NIGHT)
    found = sorted(str(path.relative_to(place)) for path in (place / "archive" / "ref").rglob("*refimg.fits"))
    if not found:
        sys.exit("the reference pipeline made no reference image; see the log")
    shutil.copy(place / "archive" / "zsds.sqlite", place / SNAPSHOT)
    shutil.rmtree(place / "sky" / "incoming" / REFERENCE_NIGHT)  # gigabytes that nothing needs any more
    shutil.rmtree(place / "sky" / "truth" / "parts")
    (place / MARK).write_text(json.dumps(found))


def prepare(place: Path, stars: int, seed: int, variable_fraction: float = 0.02) -> None:
    """Everything up to the search: sky, calibrated reference epochs, reference; then the night itself."""
    plan = place / "simulation.yml"
    is_same = plan.exists() and plan.read_text() == plan_text(stars, seed, variable_fraction)
    if not (is_same and (place / MARK).exists()):
        (place / MARK).unlink(missing_ok=True)
        shutil.rmtree(place / "archive", ignore_errors=True)
        prepare_sky(place, stars, seed, variable_fraction)
        prepare_reference(place)
    for night in (TIMED_NIGHT, NIGHT):
        say(f"night {night}")
        for pipeline in ("ingest", "realtime", "alerts"):
            drive(pipeline, place, night, *(() if pipeline == "ingest" else (f"_q{QID}",)))
        drop_raw(place, night)
