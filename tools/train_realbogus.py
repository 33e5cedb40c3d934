"""Train the two vetting classifiers: ``python -m tools.train_realbogus examples`` and then ``... train``.

`examples` makes labelled candidates from simulated scenes (`tools.training.scene`) and keeps them under ``--work``;
files of other origin may lie beside them (`tools.training.channels`). `train` splits them by image, trains both
classifiers, and writes models, cards and a figure. One seed decides everything; the date of the card is an argument.
"""

import argparse
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from tools.training import nettrain
from tools.training.examples import BOGUS, KINDS, REAL, UNCLEAR, Examples, Truth, examples_of, joined, load, save
from tools.training.roc import lost_at, roc, summary
from zsds_hpc.archive.models import npz_bytes, write_model
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.subtraction.candidates import CandidateParams, find_candidates
from zsds_hpc.subtraction.cutnet import CutNet
from zsds_hpc.subtraction.realbogus import features_matrix

#: What the trees see: nothing that tells place, brightness of the sky or the sign.
FEATURES = (
    "snr", "scorr", "chipsf", "chi", "sharp", "magdiff", "classtar", "aimagerat", "elong", "seeratio", "nneg", "nbad",
    "sumrat", "dsnrms", "ssnrms", "dsdiff", "distnr", "snrnr", "chinr", "sharpnr", "fluxratio", "dipole", "maskfrac",
    "noiserat",
)  # fmt: skip
TREES = {
    "objective": "binary", "learning_rate": 0.06, "num_leaves": 20, "min_data_in_leaf": 40, "feature_fraction": 0.7,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "deterministic": True, "force_row_wise": True,
    "num_threads": 1, "verbosity": -1,
}  # fmt: skip
MOST_TREES = 300
SCENES_PER_FILE = 25
#: Of every ten images, one chooses the number of trees, three are held out; the others train.
CHOOSE, HELD_OUT = (0,), (1, 2, 3)
WEIGHT_OF_CHANNELS = 3.0


def scene_examples(seed: int) -> Examples:
    """Labelled candidates of one simulated scene."""
    from tools.training.scene import make_scene

    made = make_scene(seed)
    try:
        found = find_candidates(made.difference, made.wcs, CandidateParams())
    except AlgorithmFailure as failure:
        print(f"scene {seed}: {failure}")
        made = make_scene(seed + 1_000_000)
        found = find_candidates(made.difference, made.wcs, CandidateParams())
    return examples_of(found, made.difference, Truth(made.real, made.defects), seed)


def make_examples(work: Path, first: int, n_scenes: int) -> None:
    """Files of labelled candidates; those that exist are kept."""
    for start in range(first, first + n_scenes, SCENES_PER_FILE):
        path = work / f"scenes_{start:06d}.npz"
        if not path.exists():
            last = min(start + SCENES_PER_FILE, first + n_scenes)
            save(path, joined([scene_examples(seed) for seed in range(start, last)]))
            print(f"{path.name}: scenes {start}-{last - 1}")


def part_of(image: NDArray) -> NDArray:
    """0-9 for each image number, the same for all candidates of an image."""
    return (image.astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32) // np.uint64(65536)) % np.uint64(10)


def weights_of(examples: Examples, channel: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Real and bogus count the same in all; rows of whole channels more than those of scenes."""
    weight = np.where(channel, np.float32(WEIGHT_OF_CHANNELS), np.float32(1))
    real = examples.label == REAL
    weight[real] /= weight[real].sum()
    weight[~real] /= weight[~real].sum()
    return (weight / weight.mean()).astype(np.float32)


def train_trees(train: Examples, choose: Examples, weight: NDArray, seed: int) -> lightgbm.Booster:
    """Gradient-boosted trees; their number is chosen on images that do not train."""
    own = lightgbm.Dataset(features_matrix(train.table, FEATURES), train.label == REAL, weight=weight)
    other = lightgbm.Dataset(features_matrix(choose.table, FEATURES), choose.label == REAL, reference=own)
    stop = lightgbm.early_stopping(40, verbose=False)
    return lightgbm.train({**TREES, "seed": seed}, own, MOST_TREES, valid_sets=[other], callbacks=[stop])


def scores_of(examples: Examples, booster: lightgbm.Booster, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """Scores of both classifiers."""
    rb = booster.predict(features_matrix(examples.table, FEATURES), num_threads=1)
    net, odds = CutNet.from_arrays(arrays), []
    for start in range(0, len(examples.seen), 512):
        odds.append(net.logits(examples.seen[start : start + 512].astype(np.float32)))
    return {"rb": np.asarray(rb), "drb": 1 / (1 + np.exp(-np.concatenate(odds).astype(float)))}


def populations(examples: Examples, channel: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Sets of held-out candidates of which a card tells the ROC: all, without noise peaks, of whole channels."""
    clear = examples.table["maskfrac"] == 0
    noise = (examples.kind == KINDS.index("noise")) & (examples.label == BOGUS)
    sets = {"scenes": ~channel & clear, "scenes, noise peaks apart": ~channel & clear & ~noise,
            "scenes, masked pixels near": ~channel & ~clear, "channels": channel & clear,
            "channels, noise peaks apart": channel & clear & ~noise}  # fmt: skip
    has_both = {name: len(set(examples.label[rows].tolist())) == 2 for name, rows in sets.items()}
    return {name: rows for name, rows in sets.items() if has_both[name]}


def evaluate(examples: Examples, channel: NDArray, scores: dict[str, NDArray]) -> dict[str, dict[str, Any]]:
    """Classifier -> population -> numbers for the card."""
    sets, real = populations(examples, channel), examples.label == REAL
    return {
        name: {what: summary(score[rows], real[rows]) for what, rows in sets.items()} for name, score in scores.items()
    }


def by_kind(examples: Examples, score: NDArray, threshold: float) -> dict[str, list[float]]:
    """Kind -> number held out and share at or above the threshold."""
    out = {}
    for k, kind in enumerate(KINDS):
        rows = examples.kind == k
        if rows.any():
            out[kind] = [int(rows.sum()), round(float((score[rows] >= threshold).mean()), 4)]
    return out


def read_examples(work: Path) -> tuple[Examples, NDArray[np.bool_]]:
    """All clear examples, and which are of whole channels."""
    paths = sorted(work.glob("*.npz"))
    parts = [load(path) for path in paths]
    from_channel = np.concatenate(
        [np.full(len(p.label), path.name.startswith("channel")) for path, p in zip(paths, parts)]
    )
    everything = joined(parts)
    clear = everything.label != UNCLEAR
    return everything.of(clear), from_channel[clear]


def train_all(arguments: argparse.Namespace) -> None:
    """Train, tell, and write models, cards and figure."""
    examples, channel = read_examples(arguments.work)
    part = part_of(examples.image)
    choosing, held_out = np.isin(part, CHOOSE), np.isin(part, HELD_OUT)
    training = ~choosing & ~held_out
    train, weight = examples.of(training), weights_of(examples.of(training), channel[training])
    booster = train_trees(train, examples.of(choosing), weight, arguments.seed)
    schedule = nettrain.Schedule(n_epochs=arguments.epochs)
    arrays = nettrain.train(train.seen, train.label == REAL, weight, arguments.seed, schedule)
    test, of_channel = examples.of(held_out), channel[held_out]
    scores = scores_of(test, booster, arrays)
    numbers = evaluate(test, of_channel, scores)
    common = {
        "date": arguments.date, "seed": arguments.seed, "n_train": int(training.sum()),
        "n_images": {"train": len(set(train.image.tolist())), "held_out": len(set(test.image.tolist()))},
        "data": arguments.data, "held_out": "images that neither train nor choose; by images, not by candidates",
    }  # fmt: skip
    texts = {"rb": (booster.model_to_string().encode("ascii"), "lightgbm"), "drb": (npz_bytes(arrays), "npz")}
    for name, (data, kind) in texts.items():
        threshold = lost_at(roc(scores[name], test.label == REAL), 0.01)[1]
        card = {**common, "name": f"realbogus_{name}", "version": f"{name}{arguments.version}", "kind": kind,
                "evaluation": numbers[name], "kept_by_kind": by_kind(test, scores[name], threshold)}  # fmt: skip
        write_model(arguments.out, data, {**card, **({"features": list(FEATURES)} if name == "rb" else {})})
    _tell(numbers, {name: by_kind(test, s, lost_at(roc(s, test.label == REAL), 0.01)[1]) for name, s in scores.items()})


def _tell(numbers: dict, kinds: dict) -> None:
    for name, sets in numbers.items():
        for what, entry in sets.items():
            at = next(row for row in entry["roc"] if row["false_kept"] == 0.01)
            print(
                f"{name:4} {what:30} {entry['n_real']:6} real {entry['n_bogus']:6} bogus  auc {entry['auc']:.5f}  "
                f"lost at 1%: {100 * at['real_lost']:.2f}% (score {at['threshold']:.4f})"
            )
        print(name, kinds[name])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    examples = commands.add_parser("examples", help="make labelled candidates of simulated scenes")
    examples.add_argument("--first", type=int, default=1, help="seed of the first scene")
    examples.add_argument("--scenes", type=int, default=500)
    train = commands.add_parser("train", help="train both classifiers on what is under --work")
    train.add_argument("--out", type=Path, default=Path("zsds_hpc/models"))
    train.add_argument("--date", required=True, help="YYYY-MM-DD, for the card")
    train.add_argument("--version", default="1")
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--epochs", type=int, default=14)
    train.add_argument("--data", default="simulated scenes of tools.training.scene", help="for the card")
    for sub in (examples, train):
        sub.add_argument("--work", type=Path, default=Path("runs/vetting"))
    arguments = parser.parse_args()
    if arguments.command == "examples":
        make_examples(arguments.work, arguments.first, arguments.scenes)
    else:
        train_all(arguments)


if __name__ == "__main__":
    main()
