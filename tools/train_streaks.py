"""Train the classifier of streaks: ``python -m tools.train_streaks examples`` and then ``... train``.

`examples` draws trails into simulated difference images (`tools.training.scene`, with hits, residuals of stars, ghosts
and tracks that nobody masked), searches them and keeps labelled streaks under ``--work``. The trails are drawn by an
own renderer: an analytic profile, sampled at nine points of a pixel and moved in steps of 0.4 px, which knows nothing
of the spline that the fit uses. `train` splits by image, grows the trees, and writes model and card. One seed decides
everything; the date of the card is an argument.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from tools.training import defects
from tools.training.roc import summary
from tools.training.scene import GAIN_E, MOVER, SIDE_PIX, Conditions, Scene, make_scene
from zsds_hpc.archive.models import write_model
from zsds_hpc.subtraction.images import Difference
from zsds_hpc.subtraction.streak_model import StreakModel, feature_matrix
from zsds_hpc.subtraction.streaks import find_streaks

NAME = "streaks"
TREES = {
    "objective": "binary", "learning_rate": 0.07, "num_leaves": 12, "min_data_in_leaf": 25, "feature_fraction": 0.7,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "deterministic": True, "force_row_wise": True,
    "num_threads": 1, "verbosity": -1,
}  # fmt: skip
MOST_TREES = 220
#: Of every ten images, one chooses the number of trees, three are held out; the others train.
CHOOSE, HELD_OUT = (0,), (1, 2, 3)
N_TRAILS = 7
FALSE, REAL, UNCLEAR = 0, 1, -1
SNR, LENGTH_PIX, SATELLITE_SHARE = (7.0, 100.0), (4.5, 320.0), 0.06
_SUB = (np.arange(3) - 1) / 3
_REACH_PIX = 12
_STEP_PIX = 0.4

#: A trail that was drawn: ends (0-based px), signal to noise as it is seen, usable share of its flux.
TRAIL_DTYPE = np.dtype([(name, "f8") for name in ("x1", "y1", "x2", "y2", "flux", "snr", "seen")])


class Examples(NamedTuple):
    """Labelled streaks, the trails that were drawn, the row that each was found as (-1 for none)."""

    table: NDArray
    label: NDArray
    image: NDArray
    trails: NDArray
    found: NDArray
    trail_image: NDArray


def draw_trail(shape: tuple[int, int], ends: NDArray, c: Conditions) -> NDArray:
    """Moffat profile of unit flux moved from one end to the other, in pixels; shape (ny, nx), float32."""
    image = np.zeros(shape, np.float32)
    x1, y1, x2, y2 = ends
    n = max(int(np.ceil(np.hypot(x2 - x1, y2 - y1) / _STEP_PIX)), 1)
    part = (np.arange(n) + 0.5) / n
    grid = np.arange(-_REACH_PIX, _REACH_PIX + 1)
    for x, y in zip(x1 + part * (x2 - x1), y1 + part * (y2 - y1)):
        left, top = int(np.rint(x)) - _REACH_PIX, int(np.rint(y)) - _REACH_PIX
        rows = slice(max(top, 0), min(top + grid.size, shape[0]))
        columns = slice(max(left, 0), min(left + grid.size, shape[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            stamp = _moffat(c, grid + np.rint(x) - x, grid + np.rint(y) - y)
            image[rows, columns] += (
                stamp[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] / n
            )
    return image


def _moffat(c, dx, dy):
    """Mean of the profile over nine points of each pixel."""
    alpha2 = (c.fwhm_pix / 2) ** 2 / (2 ** (1 / c.beta) - 1)
    e1, e2 = c.ellipticity
    x, y = (dx[:, None] + _SUB).ravel(), (dy[:, None] + _SUB).ravel()[:, None]
    r2 = ((1 - e1) * x**2 + (1 + e1) * y**2 - 2 * e2 * x * y) / np.sqrt(1 - e1**2 - e2**2)
    fine = (c.beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -c.beta
    return fine.reshape(dy.size, 3, dx.size, 3).mean(axis=(1, 3))


def with_trails(rng: np.random.Generator, scene: Scene) -> tuple[Difference, NDArray]:
    """The difference with trails: some faint, some bright, at any angle; now and then a satellite's."""
    d = scene.difference
    light = np.zeros_like(d.pix)
    sky_sigma = float(np.median(d.sigma[np.isfinite(d.sigma)]))
    trails: list[tuple] = []
    taken = np.zeros(d.pix.shape, bool)
    for _ in range(3 * N_TRAILS):
        ends = _draw_ends(rng)
        own = draw_trail(d.pix.shape, ends, scene.conditions)
        touched = own > 1e-4 * own.max(initial=0.0)
        if len(trails) == N_TRAILS or taken[touched].any() or own.sum() < 0.3:
            continue
        taken |= touched
        flux = np.exp(rng.uniform(*np.log(SNR))) * sky_sigma / float(np.sqrt((own.astype(float) ** 2).sum()))
        weighted = np.where(np.isfinite(d.sigma), flux * own / d.sigma, 0.0)
        usable = float(own[np.isfinite(d.sigma)].sum()) / float(own.sum())
        trails.append((*ends, flux, np.sqrt((weighted**2).sum()), usable))
        light += np.float32(flux) * own
    noisy = rng.poisson(np.maximum(light, 0) * GAIN_E).astype(np.float32) / np.float32(GAIN_E)
    pix = np.where(np.isfinite(d.sigma), d.pix + noisy, np.float32(0))
    return replace(d, pix=pix, science=d.science + noisy), np.array(trails, TRAIL_DTYPE)


def _draw_ends(rng):
    """A satellite runs from edge to edge, or enters at one."""
    length, angle = np.exp(rng.uniform(*np.log(LENGTH_PIX))), rng.uniform(-np.pi / 2, np.pi / 2)
    if rng.random() < SATELLITE_SHARE:
        length = rng.uniform(350, 3 * SIDE_PIX)
    x, y = rng.uniform(0, SIDE_PIX - 1, 2)
    dx, dy = 0.5 * length * np.cos(angle), 0.5 * length * np.sin(angle)
    return np.array([x - dx, y - dy, x + dx, y + dy])


def matches(table: NDArray, trails: NDArray, slack_pix: float = 3.0) -> tuple[NDArray, NDArray]:
    """Row that each trail was found as (-1: none), and trail of each row (-1: none, -2: a piece of one).

    A row is of a trail when its middle lies on it, its direction agrees, and it is half to twice as long.
    """
    found, of = np.full(len(trails), -1), np.full(len(table), -1)
    for k, t in enumerate(trails):
        dx, dy = t["x2"] - t["x1"], t["y2"] - t["y1"]
        length = np.hypot(dx, dy)
        x = (table["x1"] + table["x2"]) / 2 - (t["x1"] + t["x2"]) / 2
        y = (table["y1"] + table["y2"]) / 2 - (t["y1"] + t["y2"]) / 2
        along, across = (x * dx + y * dy) / length, (y * dx - x * dy) / length
        turn = np.abs((table["angle"] - np.degrees(np.arctan2(dy, dx)) + 90) % 180 - 90)
        near = (np.abs(along) < length / 2 + slack_pix) & (np.abs(across) < slack_pix + 0.02 * length)
        good = near & (turn < 5 + np.degrees(np.arctan2(2 * slack_pix, length)))
        good &= (table["length"] > min(0.5 * length, length - slack_pix)) & (table["length"] < 2 * length + slack_pix)
        of[near & (of < 0)] = -2
        of[good] = k
        rows = np.flatnonzero(good)
        found[k] = rows[np.argmax(table["snr"][rows])] if rows.size else -1
    return found, of


def labels_of(table: NDArray, of: NDArray, scene: Scene) -> NDArray:
    """1 for trails that were drawn, -1 for what may be one (pieces, tracks of the scene, trailed movers), 0 else."""
    label = np.where(of >= 0, REAL, np.where(of == -2, UNCLEAR, FALSE))
    tracks = scene.defects[scene.defects["kind"] == defects.KINDS.index("track")]
    movers = scene.real[scene.real["kind"] == MOVER]
    for points, reach in ((tracks, 15.0), (movers, 6.0)):
        for k in np.flatnonzero(label == FALSE):
            row = table[k]
            dx, dy = float(row["x2"] - row["x1"]), float(row["y2"] - row["y1"])
            share = np.clip(
                ((points["x"] - row["x1"]) * dx + (points["y"] - row["y1"]) * dy) / max(dx**2 + dy**2, 1e-9), 0, 1
            )
            near = np.hypot(points["x"] - row["x1"] - share * dx, points["y"] - row["y1"] - share * dy) < reach
            if near.any():
                label[k] = UNCLEAR
    return label


def examples_of(seed: int) -> Examples:
    """Labelled streaks of one scene."""
    scene = make_scene(seed)
    difference, trails = with_trails(np.random.default_rng([seed, 11]), scene)
    table = find_streaks(difference, scene.wcs).table
    found, of = matches(table, trails)
    label = labels_of(table, of, scene)
    return Examples(table, label, np.full(len(table), seed), trails, found, np.full(len(trails), seed))


def joined(parts: list[Examples]) -> Examples:
    """Examples of several files; rows of `found` count on."""
    offset = np.cumsum([0, *(len(part.table) for part in parts)])
    found = [np.where(part.found < 0, -1, part.found + start) for part, start in zip(parts, offset)]
    columns = [np.concatenate(column) for column in zip(*(part._replace(found=f) for part, f in zip(parts, found)))]
    return Examples(*columns)


def make_examples(work: Path, first: int, n_scenes: int) -> None:
    """Files of labelled streaks, 25 scenes each; those that exist are kept."""
    work.mkdir(parents=True, exist_ok=True)
    for start in range(first, first + n_scenes, 25):
        path = work / f"streaks_{start:06d}.npz"
        if not path.exists():
            part = joined([examples_of(seed) for seed in range(start, min(start + 25, first + n_scenes))])
            np.savez(path, **part._asdict())
            print(f"{path.name}: {np.bincount(part.label + 1, minlength=3)} unclear, false, real", flush=True)


def load_examples(work: Path) -> Examples:
    """All files of a directory."""
    parts = []
    for path in sorted(work.glob("streaks_*.npz")):
        with np.load(path) as file:
            parts.append(Examples(*(file[name] for name in Examples._fields)))
    return joined(parts)


def completeness(examples: Examples, score: NDArray, threshold: float, part: NDArray) -> dict:
    """Share of the trails that are found and taken for real, by signal to noise and length; and the false ones."""
    trails, found = examples.trails, examples.found
    length = np.hypot(trails["x2"] - trails["x1"], trails["y2"] - trails["y1"])
    kept = (found >= 0) & (score[found] >= threshold)
    fair = np.isin(examples.trail_image, part) & (trails["seen"] > 0.7) & (length >= 5) & (length <= 300)
    cells = {}
    for low, high in ((7, 8.5), (8.5, 10), (10, 12), (12, 20), (20, 1000), (10, 1000)):
        cell = fair & (trails["snr"] >= low) & (trails["snr"] < high)
        cells[f"snr_{low}_{high}"] = [int(cell.sum()), int((cell & (found >= 0)).sum()), int((cell & kept).sum())]
    for low, high in ((5, 7), (7, 10), (10, 30), (30, 100), (100, 300)):
        cell = fair & (trails["snr"] >= 10) & (length >= low) & (length < high)
        cells[f"length_{low}_{high}"] = [int(cell.sum()), int((cell & (found >= 0)).sum()), int((cell & kept).sum())]
    rows = np.isin(examples.image, part) & (score >= threshold)
    cells["vetted_real_false"] = [
        int((rows & (examples.label == REAL)).sum()),
        int((rows & (examples.label == FALSE)).sum()),
    ]
    return cells


def train(work: Path, out: Path, date: str, seed: int, version: str) -> None:
    """Grow the trees, choose their number and the threshold, test, and write model and card."""
    examples = load_examples(work)
    columns = feature_matrix(examples.table)
    names = tuple(sorted(columns))
    matrix = np.column_stack([columns[name] for name in names])
    digit, clear = examples.image % 10, examples.label != UNCLEAR
    choose, held = np.isin(digit, CHOOSE) & clear, np.isin(digit, HELD_OUT) & clear
    grow = clear & ~choose & ~held
    data = lightgbm.Dataset(matrix[grow], examples.label[grow], feature_name=list(names))
    check = lightgbm.Dataset(matrix[choose], examples.label[choose], reference=data)
    booster = lightgbm.train(
        {**TREES, "seed": seed}, data, MOST_TREES, valid_sets=[check],
        callbacks=[lightgbm.early_stopping(30, verbose=False)],
    )  # fmt: skip
    text = booster.model_to_string(num_iteration=booster.best_iteration)
    text = text[: text.index("\nparameters:")] + "\nend of trees\n" if "\nparameters:" in text else text
    score = StreakModel(text, names).score(examples.table)
    images = np.unique(examples.image)
    held_images = images[np.isin(images % 10, HELD_OUT)]
    tests = {str(t): completeness(examples, score, t, held_images) for t in (0.3, 0.5, 0.7, 0.9)}
    card = {
        "name": NAME, "version": version, "kind": "lightgbm", "date": date, "seed": seed, "features": list(names),
        "n_trees": booster.best_iteration, "data": f"{images.size} simulated scenes of {SIDE_PIX} px with trails",
        "n_train": [int((grow & (examples.label == k)).sum()) for k in (FALSE, REAL)],
        "held_out": summary(score[held], examples.label[held] == REAL),
        "held_out_trails_found_vetted": tests,
    }  # fmt: skip
    write_model(out, text.encode("ascii"), card)
    gain = sorted(zip(booster.feature_importance("gain"), names), reverse=True)
    print({k: v for k, v in card.items() if k != "features"}, *gain[:12], sep="\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("examples", "train"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, default=Path("runs/training/streaks"))
        command.add_argument("--seed", type=int, default=1)
    commands.choices["examples"].add_argument("--first", type=int, default=0)
    commands.choices["examples"].add_argument("--scenes", type=int, default=600)
    commands.choices["train"].add_argument("--out", type=Path, default=Path("zsds_hpc/models"))
    commands.choices["train"].add_argument("--date", required=True, help="of the card, YYYY-MM-DD")
    commands.choices["train"].add_argument("--version", default="s1")
    arguments = parser.parse_args()
    if arguments.command == "examples":
        make_examples(arguments.work, 100_000 * arguments.seed + arguments.first, arguments.scenes)
    else:
        train(arguments.work, arguments.out, arguments.date, arguments.seed, arguments.version)


if __name__ == "__main__":
    main()
