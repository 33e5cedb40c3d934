"""Picture of PSF-fit photometry: errors over their bounds, completeness, error of the PSF model over the image."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tools.scorecard import psfcard
from tools.scorecard.findings import Findings
from tools.scorecard.products import Run
from tools.scorecard.psfphot import PsfCheck
from tools.scorecard.style import BLUE, GREEN, GREY, ORANGE, new_figure, running


def psf_photometry(run: Run, findings: Findings, path: Path) -> None:
    """Four panels of all channels that have a PSF catalogue."""
    draw(findings.psf_fits, path)


def draw(checks: list[PsfCheck], path: Path) -> None:
    """The figure of some comparisons."""
    clean = np.concatenate([c.clean for c in checks])
    stars = np.concatenate([c.stars for c in checks])
    figure = new_figure(12.0, 8.0)
    axes = figure.subplots(2, 2)
    _errors(axes[0, 0], clean)
    _widths(axes[0, 1], clean)
    _completeness(axes[1, 0], stars, checks)
    _model(axes[1, 1], checks)
    figure.savefig(path)


def _errors(axes: Axes, clean: NDArray) -> None:
    edges = np.arange(13.0, 22.6, 0.5)
    mag, error = clean["mag"], clean["flux_sigma"]
    if mag.size:
        axes.hexbin(mag, error, gridsize=(80, 60), extent=(13.0, 22.5, -6.0, 6.0), bins="log", mincnt=1, cmap="Greys",
                    linewidths=0.0)  # fmt: skip
        x, middle, width = running(mag, error, edges)
        axes.plot(x, middle, "o-", ms=3.5, color=BLUE, label="median")
        axes.plot(x, middle - width, color=BLUE, lw=1.0, label="68%")
        axes.plot(x, middle + width, color=BLUE, lw=1.0)
    for level in (-1.0, 0.0, 1.0):
        axes.axhline(level, color=ORANGE, lw=1.0, ls="-" if level == 0.0 else "--")
    axes.set(xlabel="true magnitude", ylabel="(flux - true) / bound", xlim=(13.0, 22.5), ylim=(-6.0, 6.0),
             title=f"{mag.size} unblended stars; dashed: Cramer-Rao bound")  # fmt: skip
    axes.legend(loc="upper left")


def _widths(axes: Axes, clean: NDArray) -> None:
    rows = psfcard.bins(clean)
    x = [(b.low + b.high) / 2.0 for b in rows]
    for name, color, label in (("flux", BLUE, "flux"), ("x", GREEN, "x"), ("y", GREY, "y")):
        values = np.array([getattr(b, name) for b in rows])
        unc = values / np.sqrt([b.n for b in rows])
        axes.errorbar(x, values, unc, fmt="o-", ms=4.0, lw=1.2, color=color, label=label)
    axes.axhline(1.0, color=ORANGE, lw=1.2)
    axes.axhline(1.1, color=ORANGE, lw=1.0, ls="--")
    axes.text(13.1, 1.105, "target", color=ORANGE, va="bottom")
    axes.set(xlabel="true magnitude", ylabel="scatter / bound", xlim=(13.0, 22.5), ylim=(0.6, 1.6),
             title="scatter over the Cramer-Rao bound of each star")  # fmt: skip
    axes.legend(loc="upper left", ncols=3)


def _completeness(axes: Axes, stars: NDArray, checks: list[PsfCheck]) -> None:
    edges = np.arange(-4.0, 1.51, 0.25)
    middle = (edges[1:] + edges[:-1]) / 2.0
    for kept, color, label in ((np.ones(stars.size, bool), BLUE, "all stars"), (stars["is_alone"], GREEN, "unblended")):
        own = stars[kept]
        n = np.histogram(own["depth"], edges)[0]
        found = np.histogram(own["depth"][np.isfinite(own["error_mag"])], edges)[0]
        enough = n >= 20
        axes.plot(middle[enough], found[enough] / n[enough], "o-", ms=4.0, color=color, label=label)
    axes.axvline(0.0, color=GREY, lw=1.0, ls="--")
    axes.text(0.03, 0.97, "5 sigma", color=GREY, va="top")
    for name, target in (("19_20", 0.95), ("20_205", 0.75)):
        low, high = (edge - psfcard.REFERENCE_LIMIT for edge in psfcard.BINS[name])
        axes.plot([low, high], [target, target], color=ORANGE, lw=2.0, label="target" if name == "19_20" else None)
    n_all, n_bad = sum(c.n_detections for c in checks), sum(c.n_spurious for c in checks)
    axes.set(xlabel="magnitude - that of a 5-sigma star", ylabel="found share", xlim=(-4.0, 1.5), ylim=(0.0, 1.03),
             title=f"completeness; {n_bad} of {n_all} detections spurious")  # fmt: skip
    axes.legend(loc="lower left")


def _model(axes: Axes, checks: list[PsfCheck]) -> None:
    models = [c.psf for c in checks if c.psf is not None]
    axes.set(xlabel="x (px)", ylabel="y (px)", title="PSF model: no file")
    if not models:
        return
    # The typical channel: the one with the median of the worst error.
    model = sorted(models, key=lambda m: float(m.worst.max()))[len(models) // 2]
    n = round(np.sqrt(model.worst.size))
    x, y = (model.places[:, k].reshape(n, n) for k in (0, 1))
    worst = 100.0 * model.worst.reshape(n, n)
    shown = axes.pcolormesh(x[0], y[:, 0], worst, cmap="Blues", vmin=0.0, vmax=max(0.4, worst.max()), shading="nearest")
    for (column, row), value in zip(model.places, 100.0 * model.worst):
        color = "white" if value > 0.7 * max(0.4, worst.max()) else "black"
        axes.text(float(column), float(row), f"{value:.2f}", ha="center", va="center", fontsize=8.0, color=color)
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label("worst pixel of all phases, % of the peak")
    bar.outline.set_visible(False)
    axes.set(aspect=1.0, title=f"PSF model - truth, rms {100.0 * np.sqrt(np.mean(model.rms**2)):.2f}% of the peak")
    axes.grid(False)
