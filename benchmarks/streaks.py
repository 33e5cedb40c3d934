"""Streaks in difference images of the suite: ``python -m benchmarks.streaks RUN --night 20200924 --json``.

Trails drawn by the simulator (5-300 px, any angle, S/N 8-60, apart from each other) are added to calibrated images of a
simulated night, a reference of earlier nights is subtracted, and streaks are searched. Asked of trails of integrated
S/N >= 10 with 70% of their flux in usable pixels. The cost is that of the images without these trails.
"""

import zsds_hpc.single_thread  # noqa: F401, I001  (before NumPy)

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.scorecard.card import Metric, as_json, as_table, at_least, at_most, reported
from tools.training import trails
from tools.training.trails import FALSE, REAL, Searched
from zsds_hpc.archive.models import load_model
from zsds_hpc.subtraction.streak_model import StreakModel
from zsds_hpc.subtraction.streaks import Streaks, find_streaks

SNR_LIMIT = 10.0
FOUND, FALSE_SHARE, CPU_S = 0.96, 0.01, 0.25
LENGTHS_PIX = (5, 7, 10, 30, 100, 300)


def cpu_seconds(searched: Searched, model: StreakModel, n_repeats: int) -> float:
    """Least CPU time of several searches."""
    seconds = []
    for _ in range(n_repeats):
        start = time.process_time()
        find_streaks(searched.difference, searched.wcs, None, model)
        seconds.append(time.process_time() - start)
    return min(seconds)


def scores(searched: Searched, streaks: Streaks) -> dict[str, NDArray]:
    """Of one image: what each trail was found as, pulls of those found, labels of the vetted rows."""
    table, drawn = streaks.table, searched.trails
    found, of = trails.matches(table, drawn)
    vetted = ~(table["score"] < streaks.min_score)
    hit = (found >= 0) & (drawn["flux"] > 0)
    rows, own = table[found[hit]], drawn[hit]
    length = np.hypot(drawn["x2"] - drawn["x1"], drawn["y2"] - drawn["y1"])
    return {
        "length": length,
        "fair": trails.is_fair(drawn) & (drawn["snr"] >= SNR_LIMIT),
        "found": hit,
        "vetted": hit & np.isin(found, np.flatnonzero(vetted)),
        "label": trails.labels(table, of, searched.unclear)[vetted],
        "flux_pull": (rows["flux"] - own["flux"]) / rows["sigflux"],
        "length_pull": (rows["length"] - length[hit]) / rows["siglength"],
        "satellite": rows["kind"] == b"satellite",
    }


def card_of(parts: Sequence[dict[str, NDArray]], seconds: Sequence[float]) -> list[Metric]:
    """Metrics of all images."""
    total = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    fair, n_fair = total["fair"], max(int(total["fair"].sum()), 1)
    real, false = (int((total["label"] == k).sum()) for k in (REAL, FALSE))
    told = f"{n_fair} trails of S/N >= {SNR_LIMIT:g} on {len(parts)} images"
    lines = [
        at_least("found", float((fair & total["found"]).sum() / n_fair), FOUND, told),
        at_least("found_and_vetted", float((fair & total["vetted"]).sum() / n_fair), FOUND, told),
        at_most("false_of_vetted", false / max(real + false, 1), FALSE_SHARE, f"{false} false, {real} real"),
        reported("false_per_image", false / len(parts), "vetted"),
        reported("called_satellite", float(total["satellite"].mean()), "of the trails found; all are shorter"),
        at_most("cpu_s", float(np.median(seconds)), CPU_S, f"median; most {max(seconds):.2f}"),
    ]
    for low, high in itertools.pairwise(LENGTHS_PIX):
        cell = fair & (total["length"] >= low) & (total["length"] < high)
        share = float((cell & total["vetted"]).sum() / max(cell.sum(), 1))
        lines.append(reported(f"vetted_{low}_{high}_pix", share, f"{int(cell.sum())} trails"))
    for name in ("flux_pull", "length_pull"):
        width = 0.7413 * float(np.subtract(*np.percentile(total[name], [75, 25])))
        lines.append(reported(f"{name}_width", width, f"robust; median {np.median(total[name]):+.2f}"))
    return lines


def measure(arguments: argparse.Namespace) -> list[Metric]:
    """All images of the night, with trails for the scores and without for the cost."""
    file = load_model("streaks")
    model = StreakModel(file.text, tuple(file.card["features"]))
    run, night, seed = arguments.run, arguments.night, arguments.seed
    parts, seconds = [], []
    for exposure, fwhm, s in trails.in_channels(run, night, arguments.spoil, seed):
        parts.append(scores(s, find_streaks(s.difference, s.wcs, None, model)))
        fair, vetted = (int((parts[-1]["fair"] & parts[-1][name]).sum()) for name in ("fair", "vetted"))
        n_false = int((parts[-1]["label"] == FALSE).sum())
        print(f"{exposure} FWHM {fwhm:.2f} px: {vetted} of {fair} vetted, {n_false} false", flush=True)
    for _, _, s in trails.in_channels(run, night, False, seed, 0):
        seconds.append(cpu_seconds(s, model, arguments.repeats))
    return card_of(parts, seconds)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run directory with a reference in its archive")
    parser.add_argument("--night", default="20200924", help="YYYYMMDD, the night that is searched")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--spoil", action="store_true", help="with defects that the mask does not tell")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    arguments = parser.parse_args()
    lines = measure(arguments)
    if arguments.json:
        print(as_json(lines))
    else:
        print(as_table({"streaks": lines}))


if __name__ == "__main__":
    main()
