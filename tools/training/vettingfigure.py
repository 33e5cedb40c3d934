"""Picture of how well candidates are vetted: ROC, what is lost and kept by S/N, cutouts that are judged wrongly."""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tools.scorecard.style import BLUE, GREY, ORANGE, RED, use_style
from tools.training.examples import KINDS, REAL, Examples
from tools.training.roc import roc

COLORS = {"rb": ORANGE, "drb": BLUE}
LABELS = {"rb": "rb: features", "drb": "drb: cutouts and features"}
#: Required: at most this share of real ones lost while at most this share of false ones is kept.
LOST, KEPT = 0.011, 0.01
SNR_EDGES = np.array([5, 5.5, 6, 7, 8, 10, 14, 20, 40, 100, 1000.0])
N_SHOWN = 6


class Judged(NamedTuple):
    """Held-out candidates, their scores by classifier, the decisive one, and its threshold."""

    examples: Examples
    scores: dict[str, NDArray]
    winner: str
    threshold: float


def draw(judged: Judged, path: Path) -> None:
    """Write the figure."""
    use_style()
    figure = plt.figure(figsize=(12.0, 7.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
    left, middle, right = upper.subplots(1, 3)
    _roc(left, judged)
    _by_snr(middle, judged)
    _histogram(right, judged)
    lost, kept = lower.subfigures(1, 2)
    real = judged.examples.label == REAL
    score = judged.scores[judged.winner]
    _stamps(lost, judged.examples, np.flatnonzero(real)[np.argsort(score[real])[:N_SHOWN]], score)
    _stamps(kept, judged.examples, np.flatnonzero(~real)[np.argsort(-score[~real])[:N_SHOWN]], score)
    lost.suptitle("real sources with the lowest scores", fontsize=10, x=0.02, ha="left")
    kept.suptitle("false ones with the highest scores", fontsize=10, x=0.02, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _roc(axes: Axes, judged: Judged) -> None:
    real = judged.examples.label == REAL
    for name, score in judged.scores.items():
        curve = roc(score, real)
        axes.plot(
            100 * np.maximum(curve.false_kept, 1e-5), 100 * curve.real_lost, color=COLORS[name], label=LABELS[name]
        )
    axes.plot(100 * KEPT, 100 * LOST, "s", color=RED, ms=6, label="required")
    axes.set(xscale="log", yscale="log", xlim=(0.05, 20), ylim=(0.05, 30), xlabel="false ones kept (%)",
             ylabel="real ones lost (%)", title="Held-out channels")  # fmt: skip
    axes.legend()


def _by_snr(axes: Axes, judged: Judged) -> None:
    examples, above = judged.examples, judged.scores[judged.winner] >= judged.threshold
    snr, middle = examples.table["scorr"], np.sqrt(SNR_EDGES[1:] * SNR_EDGES[:-1])
    for wanted, color, label in ((True, BLUE, "real ones lost"), (False, RED, "false ones kept")):
        own = (examples.label == REAL) == wanted
        wrong = own & (above != wanted)
        n = np.histogram(snr[own], SNR_EDGES)[0]
        share = np.histogram(snr[wrong], SNR_EDGES)[0] / np.maximum(n, 1)
        error = np.sqrt((share * (1 - share) + 1 / np.maximum(n, 1)) / np.maximum(n, 1))
        used = n >= 10
        axes.errorbar(middle[used], 100 * share[used], 100 * error[used], fmt="o-", ms=4, color=color, label=label)
    axes.set(xscale="log", xlabel="S/N (scorr)", ylabel="%", title=f"{judged.winner} at score {judged.threshold:.3f}")
    axes.set_ylim(bottom=0)
    axes.legend()


def _histogram(axes: Axes, judged: Judged) -> None:
    score, real = judged.scores[judged.winner], judged.examples.label == REAL
    edges = np.linspace(0, 1, 41)
    axes.hist(score[real], edges, color=BLUE, histtype="step", label=f"{real.sum()} real")
    axes.hist(score[~real], edges, color=RED, histtype="step", label=f"{(~real).sum()} false")
    axes.axvline(judged.threshold, color=GREY, lw=1, ls="--")
    axes.set(yscale="log", xlabel=f"score {judged.winner}", ylabel="candidates", title="Scores")
    axes.legend(loc="upper center")


def _stamps(figure, examples: Examples, rows: NDArray, score: NDArray) -> None:
    """Science, template, difference of some candidates as the network sees them."""
    grid = figure.subplots(3, N_SHOWN, squeeze=False)
    for column, row in enumerate(rows):
        for k, name in enumerate(("science", "template", "difference")):
            axes, image = grid[k, column], examples.seen[row, :, :, k].astype(np.float32)
            axes.imshow(image, cmap="gray", vmin=-0.6, vmax=max(1.2, float(image[10:15, 10:15].max())))
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
        kind, snr = KINDS[examples.kind[row]].replace("_", " "), examples.table["scorr"][row]
        grid[0, column].set_title(f"{kind}\nS/N {snr:.1f}, {score[row]:.2f}", fontsize=7.5, loc="center")
