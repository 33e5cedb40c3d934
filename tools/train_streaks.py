"""Train the classifier of streaks: ``python -m tools.train_streaks scenes``, ``... channels``, and then ``... train``.

`scenes` draws trails (`tools.training.trails`) into simulated difference images with hits, residuals of stars, ghosts
and tracks that nobody masked, searches them and keeps labelled streaks under ``--work``; `channels` does so with the
images of a simulated run that the suite calibrated and subtracts a reference from, as they are and with defects added.
`train` splits scenes by image, grows the trees, and writes model and card. One seed decides everything; the date of the
card is an argument.
"""

import zsds_hpc.single_thread  # noqa: F401, I001  (before NumPy)

import argparse
from pathlib import Path
from typing import NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from tools.training import trails
from tools.training.roc import summary
from tools.training.scene import SIDE_PIX, make_scene
from tools.training.trails import FALSE, REAL, UNCLEAR, Searched
from zsds_hpc.archive.models import write_model
from zsds_hpc.subtraction.streak_model import StreakModel, feature_matrix
from zsds_hpc.subtraction.streaks import find_streaks

NAME = "streaks"
TREES = {
    "objective": "binary", "learning_rate": 0.1, "num_leaves": 8, "min_data_in_leaf": 25, "feature_fraction": 0.7,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "deterministic": True, "force_row_wise": True,
    "num_threads": 1, "verbosity": -1,
}  # fmt: skip
MOST_TREES = 160
#: Of every ten images, one chooses the number of trees, two are held out; the others train.
CHOOSE, HELD_OUT = (0,), (1, 2)
CHANNEL_NUMBER = 1_000_000
SCENES_PER_FILE = 25


class Examples(NamedTuple):
    """Labelled streaks, the trails that were drawn, the row that each was found as (-1 for none)."""

    table: NDArray
    label: NDArray
    image: NDArray
    trails: NDArray
    found: NDArray
    trail_image: NDArray


def examples_of(searched: Searched, number: int) -> Examples:
    """Labelled streaks of one image."""
    table = find_streaks(searched.difference, searched.wcs).table
    found, of = trails.matches(table, searched.trails)
    label = trails.labels(table, of, searched.unclear)
    own = np.full(len(searched.trails), number)
    return Examples(table, label, np.full(len(table), number), searched.trails, found, own)


def joined(parts: list[Examples]) -> Examples:
    """Examples of several files; rows of `found` count on."""
    offset = np.cumsum([0, *(len(part.table) for part in parts)])
    found = [np.where(part.found < 0, -1, part.found + start) for part, start in zip(parts, offset)]
    columns = [np.concatenate(column) for column in zip(*(part._replace(found=f) for part, f in zip(parts, found)))]
    return Examples(*columns)


def make_scenes(work: Path, first: int, n_scenes: int) -> None:
    """Files of labelled streaks of scenes; those that exist are kept."""
    work.mkdir(parents=True, exist_ok=True)
    for start in range(first, first + n_scenes, SCENES_PER_FILE):
        path = work / f"streaks_{start:06d}.npz"
        if not path.exists():
            seeds = range(start, min(start + SCENES_PER_FILE, first + n_scenes))
            save(path, joined([examples_of(trails.in_scene(k, make_scene(k)), k) for k in seeds]))


def make_channels(work: Path, run: Path, night: str, number: int) -> None:
    """Files of labelled streaks of a run: of its images as they are, and with defects added."""
    work.mkdir(parents=True, exist_ok=True)
    for spoil in (False, True):
        seed = CHANNEL_NUMBER + 1000 * number + 100 * spoil
        made = trails.in_channels(run, night, spoil, seed)
        save(work / f"streaks_{seed}.npz", joined([examples_of(s, seed + k) for k, (_, _, s) in enumerate(made)]))


def save(path: Path, part: Examples) -> None:
    """Write examples, and say how many there are."""
    np.savez(path, **part._asdict())
    print(f"{path.name}: {np.bincount(part.label + 1, minlength=3)} unclear, false, real", flush=True)


def load_examples(work: Path) -> Examples:
    """All files of a directory."""
    parts = []
    for path in sorted(work.glob("streaks_*.npz")):
        with np.load(path) as file:
            parts.append(Examples(*(file[name] for name in Examples._fields)))
    return joined(parts)


def completeness(examples: Examples, score: NDArray, threshold: float, part: NDArray) -> dict[str, list[int]]:
    """Trails that could be found, that are found, that are taken for real; and true and false rows taken for real."""
    drawn, found = examples.trails, examples.found
    length = np.hypot(drawn["x2"] - drawn["x1"], drawn["y2"] - drawn["y1"])
    kept = (found >= 0) & (score[found] >= threshold)
    fair = np.isin(examples.trail_image, part) & trails.is_fair(drawn)
    bright = fair & (drawn["snr"] >= 10)
    cells = {"snr_10": bright}
    for low, high in ((7, 8.5), (8.5, 10), (10, 12), (12, 20), (20, 1000)):
        cells[f"snr_{low}_{high}"] = fair & (drawn["snr"] >= low) & (drawn["snr"] < high)
    for low, high in ((5, 7), (7, 10), (10, 30), (30, 100), (100, 300)):
        cells[f"length_{low}_{high}"] = bright & (length >= low) & (length < high)
    out = {name: [int(c.sum()), int((c & (found >= 0)).sum()), int((c & kept).sum())] for name, c in cells.items()}
    rows = np.isin(examples.image, part) & (score >= threshold)
    out["vetted_real_false"] = [int((rows & (examples.label == k)).sum()) for k in (REAL, FALSE)]
    return out


def train(work: Path, out: Path, date: str, seed: int, version: str) -> None:
    """Grow the trees, choose their number, test them, and write model and card."""
    examples = load_examples(work)
    columns = feature_matrix(examples.table)
    names = tuple(sorted(columns))
    matrix = np.column_stack([columns[name] for name in names])
    own, clear = examples.image < CHANNEL_NUMBER, examples.label != UNCLEAR
    choose, held = (own & np.isin(examples.image % 10, digits) & clear for digits in (CHOOSE, HELD_OUT))
    grow = clear & ~choose & ~held
    data = lightgbm.Dataset(matrix[grow], examples.label[grow], feature_name=list(names))
    check = lightgbm.Dataset(matrix[choose], examples.label[choose], reference=data)
    booster = lightgbm.train(
        {**TREES, "seed": seed}, data, MOST_TREES, valid_sets=[check],
        callbacks=[lightgbm.early_stopping(30, verbose=False)],
    )  # fmt: skip
    text = booster.model_to_string(num_iteration=booster.best_iteration)
    score = StreakModel(text, names).score(examples.table)
    images = np.unique(examples.image)
    test = images[(images < CHANNEL_NUMBER) & np.isin(images % 10, HELD_OUT)]
    card = {
        "name": NAME, "version": version, "kind": "lightgbm", "date": date, "seed": seed, "features": list(names),
        "n_trees": booster.best_iteration,
        "data": f"{int((images < CHANNEL_NUMBER).sum())} simulated scenes of {SIDE_PIX} px with trails and defects, "
                f"{int((images >= CHANNEL_NUMBER).sum())} simulated channels through the suite's differencing",
        "n_train_false_real": [int((grow & (examples.label == k)).sum()) for k in (FALSE, REAL)],
        "held_out": summary(score[held], examples.label[held] == REAL),
        "held_out_trails_fair_found_vetted": {str(t): completeness(examples, score, t, test) for t in (0.3, 0.5, 0.7)},
    }  # fmt: skip
    write_model(out, text.encode("ascii"), card)
    gain = sorted(zip(booster.feature_importance("gain"), names), reverse=True)
    print({k: v for k, v in card.items() if k != "features"}, *gain[:12], sep="\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scenes, channel, last = (commands.add_parser(name) for name in ("scenes", "channels", "train"))
    for command in (scenes, channel, last):
        command.add_argument("--work", type=Path, default=Path("runs/training/streaks"))
    scenes.add_argument("--first", type=int, default=100_000)
    scenes.add_argument("--scenes", type=int, default=250)
    channel.add_argument("run", type=Path, help="run directory with a reference in its archive")
    channel.add_argument("--night", required=True, help="YYYYMMDD, the night that is searched")
    channel.add_argument("--number", type=int, required=True, help="of the run, from 1")
    last.add_argument("--seed", type=int, default=1)
    last.add_argument("--out", type=Path, default=Path("zsds_hpc/models"))
    last.add_argument("--date", required=True, help="of the card, YYYY-MM-DD")
    last.add_argument("--version", default="s1")
    arguments = parser.parse_args()
    if arguments.command == "scenes":
        make_scenes(arguments.work, arguments.first, arguments.scenes)
    elif arguments.command == "channels":
        make_channels(arguments.work, arguments.run, arguments.night, arguments.number)
    else:
        train(arguments.work, arguments.out, arguments.date, arguments.seed, arguments.version)


if __name__ == "__main__":
    main()
