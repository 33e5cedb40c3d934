"""Train the two vetting classifiers: ``python -m tools.train_realbogus examples`` and then ``... train``.

`examples` makes labelled candidates from simulated scenes (`tools.training.scene`) and keeps them under ``--work``;
files of other origin may lie beside them (`tools.training.channels`). `train` splits them by image, trains both
classifiers, and writes models, cards and a figure. One seed decides everything; the date of the card is an argument.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from tools.training import nettrain
from tools.training.examples import BOGUS, KINDS, REAL, UNCLEAR, Examples, Truth, examples_of, joined, load, save
from tools.training.roc import summary
from tools.training.vettingfigure import Judged, draw
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
    "objective": "binary", "learning_rate": 0.08, "num_leaves": 14, "min_data_in_leaf": 40, "feature_fraction": 0.7,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "deterministic": True, "force_row_wise": True,
    "num_threads": 1, "verbosity": -1,
}  # fmt: skip
MOST_TREES = 260
SCENES_PER_FILE = 25
#: Training sees also what the candidate filter of the survey would count out by its shape.
LOOSE = CandidateParams(max_chi=100.0, max_chipsf=1000.0, dipole_balance=0.0)
#: Where candidates come from: simulated scenes; whole channels as they are and with defects added, before and after the
#: filter by shape.
ORIGINS = ("scenes", "asis-loose", "spoiled-loose", "asis-filtered", "spoiled-filtered")
WEIGHT_OF_ORIGIN = (1.0, 3.0, 2.0, 0.0, 0.0)
#: The network trains on this share of those with a greater S/N.
BRIGHT_SNR, BRIGHT_SHARE = 15.0, 0.3
TRAIN, CHOOSE, HOLD_OUT = range(3)
#: Classifier -> name of its model file, after ``realbogus_``.
NAMES = {"rb": "features", "drb": "cutouts"}


def scene_examples(seed: int) -> Examples:
    """Labelled candidates of one simulated scene."""
    from tools.training.scene import make_scene

    made = make_scene(seed)
    try:
        found = find_candidates(made.difference, made.wcs, LOOSE)
    except AlgorithmFailure as failure:
        print(f"scene {seed}: {failure}")
        made = make_scene(seed + 1_000_000)
        found = find_candidates(made.difference, made.wcs, LOOSE)
    return examples_of(found, made.difference, Truth(made.real, made.defects), seed)


def make_examples(work: Path, first: int, n_scenes: int) -> None:
    """Files of labelled candidates; those that exist are kept."""
    for start in range(first, first + n_scenes, SCENES_PER_FILE):
        path = work / f"scenes_{start:06d}.npz"
        if not path.exists():
            last = min(start + SCENES_PER_FILE, first + n_scenes)
            save(path, joined([scene_examples(seed) for seed in range(start, last)]))
            print(f"{path.name}: scenes {start}-{last - 1}")


def make_channels(arguments: argparse.Namespace) -> None:
    """Files of labelled candidates of a simulated run: of its images as they are, and with defects added."""
    from tools.training.channels import Searches, run_examples

    filters = {"loose": LOOSE, "filtered": CandidateParams()} if arguments.held_out else {"loose": LOOSE}
    searches = Searches(arguments.reference, arguments.spoiled, filters)
    found: dict[str, list[Examples]] = {}
    for what, part in run_examples(arguments.run, arguments.number, searches):
        found.setdefault(what, []).append(part)
        print(part.image[:1], what, np.bincount(part.label + 1, minlength=3), flush=True)
    use = "heldout" if arguments.held_out else "training"
    for what, parts in found.items():
        save(arguments.work / f"{use}_{arguments.number:03d}_{what}.npz", joined(parts))


class Pool(NamedTuple):
    """All clear examples.

    `origin` is an index into ORIGINS; `use` is TRAIN, CHOOSE or HOLD_OUT, the same for all candidates of an image.
    """

    examples: Examples
    origin: NDArray[np.int8]
    use: NDArray[np.int8]

    def of(self, rows: NDArray) -> "Pool":
        """Some of the rows."""
        return Pool(self.examples.of(rows), self.origin[rows], self.use[rows])


def read_pool(work: Path) -> Pool:
    """All clear examples under a directory.

    Of ten images of scenes one chooses the number of trees and three are held out. Of whole channels, runs that are
    declared so are held out, and of ten images of the others one chooses.
    """
    parts, origins, uses = [], [], []
    for path in sorted(work.glob("*.npz")):
        part = load(path)
        draw = (
            part.image.astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32) // np.uint64(65536)
        ) % np.uint64(10)
        use = np.where(draw == 0, CHOOSE, TRAIN).astype(np.int8)
        if path.name.startswith("scenes"):
            use[(draw >= 1) & (draw <= 3)] = HOLD_OUT
        elif path.name.startswith("heldout"):
            use[:] = HOLD_OUT
        name = path.stem.split("_")[-1] if not path.name.startswith("scenes") else "scenes"
        parts.append(part._replace(table=columns_of(part.table, FEATURES)))
        origins.append(np.full(len(use), ORIGINS.index(name), np.int8))
        uses.append(use)
    pool = Pool(joined(parts), np.concatenate(origins), np.concatenate(uses))
    return pool.of(pool.examples.label != UNCLEAR)


def columns_of(table: NDArray, names: Sequence[str]) -> NDArray:
    """Some columns of a table: files of earlier versions of it may lack or have others."""
    out = np.zeros(len(table), [(name, "f4") for name in names])
    for name in names:
        out[name] = table[name]
    return out


def weights_of(pool: Pool) -> NDArray[np.float32]:
    """Real and bogus count the same in all; rows of whole channels more than those of scenes."""
    weight = np.array(WEIGHT_OF_ORIGIN, np.float32)[pool.origin]
    real = pool.examples.label == REAL
    weight[real] /= weight[real].sum()
    weight[~real] /= weight[~real].sum()
    return (weight / weight.mean()).astype(np.float32)


def thinned(pool: Pool, weight: NDArray[np.float32], seed: int) -> tuple[Pool, NDArray[np.float32]]:
    """Fewer of the bright ones, which are easy, with the more weight: the network's training takes long."""
    bright = pool.examples.table["scorr"] > BRIGHT_SNR
    kept = ~bright | (np.random.default_rng([seed, 3]).random(len(bright)) < BRIGHT_SHARE)
    return pool.of(kept), np.where(bright, weight / BRIGHT_SHARE, weight)[kept].astype(np.float32)


def train_trees(train: Examples, choose: Examples, weight: NDArray, seed: int) -> lightgbm.Booster:
    """Gradient-boosted trees; their number is chosen on images that do not train."""
    own = lightgbm.Dataset(features_matrix(train.table, FEATURES), train.label == REAL, weight=weight)
    other = lightgbm.Dataset(features_matrix(choose.table, FEATURES), choose.label == REAL, reference=own)
    stop = lightgbm.early_stopping(40, verbose=False)
    return lightgbm.train({**TREES, "seed": seed}, own, MOST_TREES, valid_sets=[other], callbacks=[stop])


def scores_of(examples: Examples, booster: lightgbm.Booster, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """Scores of both classifiers."""
    features = features_matrix(examples.table, FEATURES)
    rb = booster.predict(features, num_threads=1)
    net, odds = CutNet.from_arrays(arrays), []
    for start in range(0, len(examples.seen), 512):
        part = slice(start, start + 512)
        odds.append(net.logits(examples.seen[part].astype(np.float32), features[part]))
    return {"rb": np.asarray(rb), "drb": 1 / (1 + np.exp(-np.concatenate(odds).astype(float)))}


def populations(pool: Pool) -> dict[str, NDArray[np.bool_]]:
    """Sets of candidates of which a card tells the ROC; masked pixels within 7 px only where it says so."""
    examples = pool.examples
    clear = examples.table["maskfrac"] == 0
    peak = (examples.kind == KINDS.index("noise")) & (examples.label == BOGUS)

    def of(*names: str) -> NDArray[np.bool_]:
        return np.isin(pool.origin, [ORIGINS.index(name) for name in names]) & clear

    every, filtered = of("asis-loose", "spoiled-loose"), of("asis-filtered", "spoiled-filtered")
    sets = {
        "channels": every, "channels, peaks of noise apart": every & ~peak,
        "channels, filtered by shape": filtered, "the same, peaks of noise apart": filtered & ~peak,
        "channels as they are": of("asis-loose"), "the same, filtered by shape": of("asis-filtered"),
        "scenes": of("scenes"),
        "scenes, masked pixels near": (pool.origin == ORIGINS.index("scenes")) & (examples.table["maskfrac"] > 0),
    }  # fmt: skip
    return {name: rows for name, rows in sets.items() if len(set(examples.label[rows].tolist())) == 2}


def evaluate(pool: Pool, score: NDArray) -> dict[str, Any]:
    """Population -> numbers for the card."""
    real = pool.examples.label == REAL
    return {what: summary(score[rows], real[rows]) for what, rows in populations(pool).items()}


def by_kind(examples: Examples, score: NDArray, threshold: float) -> dict[str, list[float]]:
    """Kind -> number held out and share at or above the threshold."""
    out = {}
    for k, kind in enumerate(KINDS):
        rows = examples.kind == k
        if rows.any():
            out[kind] = [int(rows.sum()), round(float((score[rows] >= threshold).mean()), 4)]
    return out


def train_all(arguments: argparse.Namespace) -> None:
    """Train, tell, and write models, cards and figure."""
    pool = read_pool(arguments.work)
    training, test = pool.of(pool.use == TRAIN), pool.of(pool.use == HOLD_OUT)
    train, weight = training.examples, weights_of(training)
    booster = train_trees(train, pool.of(pool.use == CHOOSE).examples, weight, arguments.seed)
    schedule = nettrain.Schedule(n_epochs=arguments.epochs)
    few, few_weight = thinned(training, weight, arguments.seed)
    numbers, real = features_matrix(few.examples.table, FEATURES), few.examples.label == REAL
    lesson = nettrain.Lesson(few.examples.seen, numbers, real, few_weight)
    arrays = nettrain.train(lesson, arguments.seed, schedule)
    common = {
        "date": arguments.date, "seed": arguments.seed, "data": arguments.data, "features": list(FEATURES),
        "n_train": {"real": int((train.label == REAL).sum()), "bogus": int((train.label == BOGUS).sum())},
        "n_images": {"train": len(set(train.image.tolist())), "held_out": len(set(test.examples.image.tolist()))},
    }  # fmt: skip
    files = {"rb": (booster.model_to_string().encode("ascii"), "lightgbm"), "drb": (npz_bytes(arrays), "npz")}
    scores = scores_of(test.examples, booster, arrays)
    for name, (data, kind) in files.items():
        card = {**common, "name": f"realbogus_{NAMES[name]}", "version": f"{name}{arguments.version}", "kind": kind}
        card |= report(test, scores[name])
        write_model(arguments.out, data, card)
        tell(card)
    if arguments.figure:
        rows = next(iter(populations(test).values()))
        own = {name: score[rows] for name, score in scores.items()}
        threshold = report(test, scores[arguments.winner])["threshold"]
        draw(Judged(test.examples.of(rows), own, arguments.winner, threshold), arguments.figure)


def report(test: Pool, score: NDArray) -> dict[str, Any]:
    """What a card tells of held-out images; the threshold keeps 1% of the false ones of the first population."""
    held_out, rows = evaluate(test, score), next(iter(populations(test).values()))
    threshold = next(row["threshold"] for row in next(iter(held_out.values()))["roc"] if row["false_kept"] == 0.01)
    kinds = by_kind(test.examples.of(rows), score[rows], threshold)
    return {"held_out": held_out, "threshold": threshold, "kept_by_kind": kinds}


def tell(card: dict[str, Any]) -> None:
    """Print what a card says."""
    for what, entry in card["held_out"].items():
        at = next(row for row in entry["roc"] if row["false_kept"] == 0.01)
        print(
            f"{card['name']} {what:32} {entry['n_real']:6} real {entry['n_bogus']:6} bogus  auc {entry['auc']:.5f}  "
            f"lost at 1%: {100 * at['real_lost']:.2f}% (score {at['threshold']:.4f})"
        )
    print(card["name"], card["kept_by_kind"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    examples = commands.add_parser("examples", help="make labelled candidates of simulated scenes")
    examples.add_argument("--first", type=int, default=1, help="seed of the first scene")
    examples.add_argument("--scenes", type=int, default=500)
    channels = commands.add_parser("channels", help="the same of a simulated run, searched with the suite's own code")
    channels.add_argument("--run", type=Path, required=True, help="run directory: sky/ and archive/")
    channels.add_argument("--number", type=int, required=True, help="of the run, among all")
    channels.add_argument("--reference", type=int, default=20, help="images, by time, that make the reference")
    channels.add_argument("--spoiled", type=int, default=3, help="times that each image is searched with defects")
    channels.add_argument("--held-out", action="store_true", help="never train with these")
    train = commands.add_parser("train", help="train both classifiers on what is under --work")
    train.add_argument("--out", type=Path, default=Path("zsds_hpc/models"))
    train.add_argument("--date", required=True, help="YYYY-MM-DD, for the card")
    train.add_argument("--figure", type=Path, help="picture of the held-out candidates")
    train.add_argument("--winner", choices=sorted(NAMES), default="drb", help="classifier that the figure is about")
    train.add_argument("--version", default="1")
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--epochs", type=int, default=14)
    train.add_argument("--data", default="simulated scenes of tools.training.scene", help="for the card")
    for sub in (examples, channels, train):
        sub.add_argument("--work", type=Path, default=Path("runs/vetting"))
    arguments = parser.parse_args()
    if arguments.command == "examples":
        make_examples(arguments.work, arguments.first, arguments.scenes)
    elif arguments.command == "channels":
        make_channels(arguments)
    else:
        train_all(arguments)


if __name__ == "__main__":
    main()
