"""Every file of the manifests in one state, every unit in one state, and what the units cost."""

from collections import Counter

import numpy as np

from tools.scorecard.card import Metric, at_most, reported
from tools.scorecard.products import PIPELINES, Run
from zsds_hpc.archive import database, paths
from zsds_hpc.archive.provenance import Record
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.core.states import State

#: Channels with at most this many stars count for the speed target, which is given for 6,000.
SPARSE_STARS = 9000
_MIB = 1024.0


def listed_files(run: Run, night: str) -> dict[str, tuple[str, int]]:
    """Manifest of the incoming directory as the simulator wrote it: name -> (SHA-256, size)."""
    lines = (run.sky / "incoming" / night / f"ztf_{night}_manifest.txt").read_text().splitlines()
    parts = [line.split(maxsplit=2) for line in lines if line.strip()]
    return {name: (sha256, int(size)) for sha256, size, name in parts}


def unexplained_files(run: Run, night: str) -> list[str]:
    """Files of the manifest that the archive does not account for in exactly one state.

    A file is accounted for when the database has one row for it, and this says DONE and the archived copy has the
    manifest's size and (by its sealed record) hash, or it says something else and why.
    """
    engine = database.open_database(run.archive)
    rows = database.get(engine, database.manifest_files, night=night)
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(row["filename"], []).append(row)
    sealed = {name: seal for r in run.records("ingest") for name, seal in r.outputs.items()}
    bad = []
    for name, (sha256, size) in listed_files(run, night).items():
        found = by_name.pop(name, [])
        copy = paths.raw(parse_raw_name(name))
        is_there = copy in sealed and sealed[copy].sha256 == sha256 and (run.archive / copy).stat().st_size == size
        if len(found) != 1 or not (is_there if found[0]["state"] == State.DONE else found[0]["reason"]):
            bad.append(name)
    return bad + list(by_name)


def file_metrics(run: Run) -> list[Metric]:
    """Lines about files and units."""
    listed = sum(len(listed_files(run, night)) for night in run.nights)
    unexplained = [name for night in run.nights for name in unexplained_files(run, night)]
    states = Counter(r.state for name in PIPELINES for r in run.records(name))
    not_done = sum(n for state, n in states.items() if state not in (State.DONE, State.NO_WORK))
    science = list(run.science())
    missing = sum(not s.is_processed for s in science)
    text = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    return [
        at_most("files_unexplained", len(unexplained), 0, f"of {listed} files listed in {len(run.nights)} manifests"),
        at_most("units_not_done", not_done, 0, f"units by state: {text or 'none'}"),
        at_most("science_images_missing", missing, 0, f"of {len(science)} science channel images simulated"),
    ]


def _mean_cpu_s(records: list[Record]) -> float | None:
    return float(np.mean([sum(r.steps.values()) for r in records])) if records else None


def cost_metrics(run: Run) -> list[Metric]:
    """Lines about CPU seconds and memory, from the sealed records."""
    sparse = {
        f"{s.name.stem}_q{s.rcid % 4 + 1}": s.name.stem for s in run.science() if s.table("stars").size <= SPARSE_STARS
    }
    calibrate = [r for r in run.records("calibrate") if r.state == State.DONE]
    few = [r for r in calibrate if r.unit_id in sparse]
    ingest = [r for r in run.records("ingest") if r.unit_id in set(sparse.values())]
    own, share = _mean_cpu_s(few), _mean_cpu_s(ingest)
    per_channel = own + share / 4.0 if own is not None and share is not None else None
    dense = _mean_cpu_s([r for r in calibrate if r.unit_id not in sparse])
    peak = max((r.run.get("peak_mib", 0.0) for r in calibrate), default=None)
    rows = [
        at_most("cpu_s_per_channel", per_channel, 2.8,
                f"raw to calibrated, {len(few)} channels below {SPARSE_STARS} stars: "
                f"a quarter of ingest {_seconds(share, 0.25)}, calibrate {_seconds(own)}"),
        reported("cpu_s_per_dense_channel", dense, "calibrate alone, the fields with more stars"),
        at_most("peak_mib", peak, _MIB, "largest resident memory of a calibrate process"),
    ]  # fmt: skip
    for pipeline, text in (("superbias", "a super-bias"), ("highv_flat", "a flat")):
        made = [r for r in run.records(pipeline) if r.state == State.DONE]
        steps = {step: np.mean([r.steps.get(step, 0.0) for r in made]) for r in made[:1] for step in r.steps}
        split = ", ".join(f"{step} {seconds:.2f}" for step, seconds in steps.items())
        rows.append(reported(f"{pipeline}_cpu_s", _mean_cpu_s(made), f"first rank's share of {text}: {split}"))
    return rows


def _seconds(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.2f} s"


def step_seconds(run: Run) -> dict[str, float]:
    """Mean CPU seconds of each step of calibrate."""
    records = [r for r in run.records("calibrate") if r.state == State.DONE]
    names = list(dict.fromkeys(step for r in records for step in r.steps))
    return {name: float(np.mean([r.steps.get(name, 0.0) for r in records])) for name in names}
