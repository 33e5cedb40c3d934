"""Latency of watch mode: raw files are replayed at the survey's cadence, packets are timed from a file's arrival.

Each cadence of 38.7 s delivers a number of raw files at once, as the CCDs of an exposure arrive together. A file holds
one lit channel (the archive of `benchmarks.discovery` has its reference); the other three are taken in and left alone,
so that a channel costs a whole file's ingest instead of a quarter: the figures are on the safe side.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import disc_cost, disc_data
from benchmarks.disc_data import FIELD, FILTER, QID, ROOT, say

NIGHT = "20200925"
CADENCE_S = 38.7
STAGES = ("ingest", "calibrate", "realtime", "alerts")
#: Seconds after the last delivery until whatever is missing is given up.
PATIENCE_S = 900.0


def plan_text(stars: int, seed: int, n: int) -> str:
    """A night of n exposures of the benchmark's field."""
    head = disc_data.plan_text(stars, seed, 0.02).split("nights:\n")[0]
    return f"{head}nights:\n  - night: '{NIGHT}'\n    science:\n" + (
        f"      - {{field: {FIELD}, filter: {FILTER}, n: {n}, start: '09:00:00', cloud_mag: 0.0, n_tracks: 0}}\n"
    )


def prepare(place: Path, stars: int, seed: int, n: int) -> Path:
    """Raw files to deliver; the folder of them."""
    if not (place / disc_data.MARK).exists():
        sys.exit(f"{place}: no reference; run `python -m benchmarks.discovery --stars {stars}` first")
    sky = place / "watch"
    sky.mkdir(exist_ok=True)
    plan = sky / "simulation.yml"
    plan.write_text(plan_text(stars, seed, n))
    say(f"{n} raw files")
    disc_data.call("-m", "tools.skysim", plan, "--out", sky)
    return sky / "incoming" / NIGHT


def start_watcher(place: Path, archive: Path, incoming: Path, options: argparse.Namespace) -> subprocess.Popen:
    """`zsds night run --watch` on an archive that knows calibrations and reference."""
    words = ["-m", "zsds_hpc.production.cli", "night", "run", NIGHT, "--archive", archive, "--incoming", incoming]
    words += ["--refcats", place / "refcats", "--ranks", options.ranks, "--watch", "--poll-s", options.poll_s]
    words += ["--only", f"_q{QID}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    log = (archive.parent / "watch.log").open("w")
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def replay(source: Path, incoming: Path, channels: int, cadence_s: float) -> dict[str, float]:
    """Deliver files, some at each cadence; file name -> time of its arrival."""
    names = sorted(path.name for path in source.glob("*.fits.fz"))
    arrived, start = {}, time.time()
    for k, name in enumerate(names):
        time.sleep(max(0.0, start + (k // channels) * cadence_s - time.time()))
        shutil.copy(source / name, incoming / f".{name}.part")
        (incoming / f".{name}.part").rename(incoming / name)
        arrived[name] = time.time()
    return arrived


def sealed_times(archive: Path, names: dict[str, float]) -> dict[str, dict[str, float]]:
    """Stage -> file name -> time at which its record was sealed."""
    found: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
    for stage in STAGES:
        for name in names:
            stem = name.removesuffix(".fits.fz") + ("" if stage == "ingest" else f"_q{QID}")
            record = archive / "records" / stage / NIGHT / f"{stem}.json"
            if record.is_file() and json.loads(record.read_text())["state"] == "DONE":
                found[stage][name] = record.stat().st_mtime
    return found


def latencies(arrived: dict[str, float], sealed: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Quantiles of the latency of each stage, s, and how the last third of the packets fared against the first."""
    out: dict[str, Any] = {}
    for stage, times in sealed.items():
        values = np.array([times[name] - arrived[name] for name in arrived if name in times])
        if values.size:
            out[f"{stage}_p50_s"], out[f"{stage}_p95_s"] = (float(np.percentile(values, p)) for p in (50, 95))
    order = sorted((name for name in arrived if name in sealed["alerts"]), key=lambda name: arrived[name])
    values = np.array([sealed["alerts"][name] - arrived[name] for name in order])
    third = values.size // 3
    out |= {"n_files": len(arrived), "n_packets_sealed": int(values.size)}
    if third:
        out["growth_s"] = float(np.median(values[-third:]) - np.median(values[:third]))
    return out


def run(place: Path, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One replay."""
    archive = disc_cost.fresh_archive(place, place / "watched")
    incoming = place / "watched" / "incoming"
    incoming.mkdir()
    shutil.copy(source / f"ztf_{NIGHT}_manifest.txt", incoming)
    watcher = start_watcher(place, archive, incoming, options)
    try:
        arrived = replay(source, incoming, options.channels, options.cadence_s)
        watcher.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        say("the watcher did not end: not all files were done in time")
    finally:
        watcher.terminate()
        watcher.wait()
    result = latencies(arrived, sealed_times(archive, arrived))
    if not options.keep:
        shutil.rmtree(place / "watched")
    return {"channels": options.channels, "cadence_s": options.cadence_s, "ranks": options.ranks, **result}


def main() -> int:
    """Parse, prepare, replay, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description=__doc__)
    parser.add_argument("--stars", type=int, default=6000, help="stars in the channel (default: 6000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sky")
    parser.add_argument("--channels", type=int, default=4, help="files at each cadence (default: 4)")
    parser.add_argument("--cadences", type=int, default=8, help="how many (default: 8)")
    parser.add_argument("--cadence-s", type=float, default=CADENCE_S, help="seconds between them (default: 38.7)")
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks (default: 2)")
    parser.add_argument("--poll-s", type=float, default=1.0, help="seconds between polls (default: 1)")
    parser.add_argument("--keep", action="store_true", help="keep the archive that was filled")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks", help="where skies are kept")
    options = parser.parse_args()
    place = options.out.absolute() / f"discovery_{options.stars}_{options.seed}"
    source = prepare(place, options.stars, options.seed, options.channels * options.cadences)
    say(f"{options.channels} channels every {options.cadence_s} s")
    print(json.dumps(run(place, source, options), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
