"""Pictures of discovery: science, reference and difference side by side; what is found, and what is left over."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tools.scorecard import disccard, disctruth
from tools.scorecard.discmeasure import STAR_BINS, ZONES, DiscCheck
from tools.scorecard.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, new_figure, running

ROWS = ("science", "reference", "difference")


class Example(NamedTuple):
    """A candidate to show: what it is, its three cutouts (NaN outside the image), and its place in the row."""

    title: str
    cutouts: Sequence[NDArray]
    order: int = 0


def side_by_side(examples: Sequence[Example], path: Path) -> None:
    """Three rows of cutouts, one column for each example; the difference on the scale of its own noise."""
    figure = new_figure(1.5 * max(len(examples), 1) + 0.5, 5.2)
    axes = figure.subplots(3, max(len(examples), 1), squeeze=False)
    for k, example in enumerate(examples):
        sky = [float(np.nanmedian(c)) for c in example.cutouts]
        noise = [max(1.4826 * float(np.nanmedian(np.abs(c - s))), 1e-3) for c, s in zip(example.cutouts, sky)]
        for row, (cutout, level, one) in enumerate(zip(example.cutouts, sky, noise, strict=True)):
            shown = axes[row, k]
            scale = noise[0] if row < 2 else one
            low, high = (-2.0, 5.0) if row < 2 else (-5.0, 5.0)
            bright = (cutout - level) / scale
            shown.imshow(np.arcsinh(bright), vmin=np.arcsinh(low), vmax=np.arcsinh(high * (10.0 if row < 2 else 1.0)),
                         cmap="gray" if row < 2 else "RdBu_r")  # fmt: skip
            shown.set(xticks=[], yticks=[])
            shown.grid(False)
        axes[0, k].set_title(example.title, fontsize=7.5, loc="center")
    for row, name in enumerate(ROWS):
        axes[row, 0].set_ylabel(name)
    figure.savefig(path)


def quality(checks: Sequence[DiscCheck], path: Path) -> None:
    """Completeness, residuals of constant stars, widths of the noise, fluxes of probes."""
    figure = new_figure(12.0, 8.0)
    axes = figure.subplots(2, 2)
    _completeness(axes[0, 0], checks)
    _residuals(axes[0, 1], checks)
    _widths(axes[1, 0], checks)
    _fluxes(axes[1, 1], checks)
    figure.savefig(path)


def _completeness(axes: Axes, checks: Sequence[DiscCheck]) -> None:
    edges = np.concatenate([np.arange(2.0, 10.0, 1.0), [10.0, 14.0, 20.0, 40.0]])
    for on, color, label in ((False, BLUE, "on sky and stars"), (True, GREEN, "near galaxy cores")):
        own = disccard.all_probes(checks, on)
        rows = []
        for low, high in itertools.pairwise(edges):
            found = own["found"][(own["snr"] >= low) & (own["snr"] < high)]
            if found.size >= 5:
                share = found.mean()
                rows.append(
                    (np.sqrt(low * high), share, np.sqrt(max(share * (1 - share), 0.25 / found.size) / found.size))
                )
        if rows:
            x, y, unc = np.array(rows).T
            axes.errorbar(x, y, unc, fmt="o-", ms=4.0, lw=1.2, color=color, label=label)
    axes.axhline(0.95, color=ORANGE, lw=1.0, ls="--")
    axes.axvline(6.0, color=ORANGE, lw=1.0, ls="--")
    axes.set(
        xscale="log", xlabel="true S/N (photon noise)", ylabel="share found", ylim=(0.0, 1.05), title="completeness"
    )
    axes.set_xticks([2, 3, 5, 10, 20, 40], labels=["2", "3", "5", "10", "20", "40"])
    axes.set_xticks([], minor=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")


def _residuals(axes: Axes, checks: Sequence[DiscCheck]) -> None:
    middle = [(low + high) / 2.0 for low, high in STAR_BINS]
    for check, color in zip(checks, _colors(len(checks)), strict=True):
        axes.plot(middle, [check.star_rms[key][1] for key in STAR_BINS], "o-", ms=3.5, color=color,
                  label=f"seeing x {check.seeing_ratio:.2f}")  # fmt: skip
    axes.hlines([1.5, 1.1], [1.0, 2.0], [2.0, 6.0], color=ORANGE, lw=1.4, ls="--")
    axes.set(xlabel="magnitudes below saturation", ylabel="rms of difference / sigma", ylim=(0.8, 3.0),
             title="within 3 px of constant stars; dashed: target")  # fmt: skip
    if len(checks) <= 12:
        axes.legend(ncols=2)


def _colors(n: int) -> list[tuple[float, ...]]:
    import matplotlib as mpl

    return [tuple(mpl.colormaps["viridis"](k / max(n - 1, 1) * 0.9)) for k in range(n)]


def _widths(axes: Axes, checks: Sequence[DiscCheck]) -> None:
    names = ("all", *ZONES)
    for check, color in zip(checks, _colors(len(checks)), strict=True):
        axes.plot(range(len(names)), [check.widths[name] for name in names], "o", ms=5.0, color=color)
    for level in (0.97, 1.05):
        axes.axhline(level, color=ORANGE, lw=1.0, ls="--")
    axes.set_xticks(range(len(names)), labels=list(names))
    echo = disccard.echo_reason()
    false = [int((c.false["reason"] != echo).sum()) for c in checks]
    axes.set(ylabel="robust width", ylim=(0.9, 1.2),
             title=f"difference / sigma by zone; false positives per channel {min(false, default=0)}"
                   f"-{max(false, default=0)}")  # fmt: skip


def _fluxes(axes: Axes, checks: Sequence[DiscCheck]) -> None:
    own = disccard.all_probes(checks)
    own = own[own["found"]]
    error = (own["measured"] - own["flux"]) / own["sigma"]
    for kind, color in ((disctruth.PROBE_SKY, BLUE), (disctruth.PROBE_STAR, PURPLE)):
        pick = own["kind"] == kind
        axes.plot(own["snr"][pick], error[pick], ".", ms=2.5, color=color, alpha=0.5, label=disctruth.KINDS[kind])
    if own.size >= 30:
        x, middle, width = running(np.log10(own["snr"]), error, np.linspace(0.6, 2.8, 10))
        axes.errorbar(10.0**x, middle, width, fmt="o-", ms=4.0, color=RED, lw=1.2, label="median and 68%")
    for level in (-1.0, 0.0, 1.0):
        axes.axhline(level, color=GREY if level == 0.0 else ORANGE, lw=1.0, ls="-" if level == 0.0 else "--")
    axes.set(xscale="log", xlabel="true S/N", ylabel="(flux - true) / bound", ylim=(-5.0, 5.0),
             title="fluxes of probes; dashed: Cramer-Rao bound")  # fmt: skip
    axes.legend(loc="lower left", ncols=3)
