"""Discovery on a run's last nights: every searched channel against the truth, its packets, and what to show of it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.scorecard import disccard, discfigure, discmeasure, discproducts, disctrace, disctruth
from tools.scorecard.card import Metric
from tools.scorecard.discmeasure import DiscCheck
from tools.scorecard.disctrace import TraceCheck
from tools.scorecard.products import Run, Science

#: Examples in the figure: kind of change, least and largest |S/N|.
SHOWN = ((disctruth.PROBE_SKY, 8, 12), (disctruth.PROBE_SKY, 25, 60), (disctruth.PROBE_GALAXY, 10, 25),
         (disctruth.PROBE_GALAXY, 30, 200), (disctruth.PROBE_STAR, 15, 80), (disctruth.TRANSIENT, 8, 500),
         (disctruth.VARIABLE, 15, 300), (disctruth.ASTEROID, 8, 500))  # fmt: skip


@dataclass
class Discoveries:
    """Searched channels: measures, traces, examples; lists of one length but for the examples."""

    checks: list[DiscCheck] = field(default_factory=list)
    traces: list[TraceCheck] = field(default_factory=list)
    examples: list[discfigure.Example] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.checks)


def compare(run: Run) -> Discoveries:
    """Measure and trace every channel that was searched against a reference of earlier nights."""
    out, wanted = Discoveries(), list(SHOWN)
    for science in run.science():
        epochs = discproducts.epochs_of(science) if discproducts.is_searched(science) else []
        if not epochs:
            continue
        products = discproducts.read_products(science)
        changed = disctruth.changes(science, epochs)
        out.checks.append(discmeasure.check(science, epochs, products, changed=changed))
        usable = np.isfinite(products.sigma) & (products.sigma > 0)
        packets = discproducts.packets(science)
        out.traces.append(disctrace.check(science, changed, usable, products.candidates, packets))
        out.examples += _examples(science, out.traces[-1].traces, wanted)
        science.forget_pixels()
    return out


def _examples(science: Science, traces: NDArray, wanted: list[tuple[int, int, int]]) -> list[discfigure.Example]:
    """The wanted examples that this channel has; they are taken from the list."""
    out = []
    cutouts = discproducts.cutouts(science)
    for want in list(wanted):
        kind, low, high = want
        size = np.abs(traces["snr"])
        own = traces[(traces["kind"] == kind) & (size > low) & (size < high) & (traces["row"] >= 0)]
        if own.size:
            pick = own[own.size // 2]
            title = f"{disctruth.KINDS[kind]}\nmag {pick['mag']:.1f}, S/N {pick['snr']:.0f}"
            # The difference of what has faded is stored turned.
            signs = 1.0, 1.0, float(np.sign(pick["snr"]))
            shown = [sign * c[pick["row"]] for sign, c in zip(signs, cutouts, strict=True)]
            out.append(discfigure.Example(title, shown, SHOWN.index(want)))
            wanted.remove(want)
    return out


def metrics(found: Discoveries) -> list[Metric]:
    """Lines of the scorecard."""
    return [*disccard.metrics(found.checks), *disctrace.metrics(found.traces)]


def as_text(found: Discoveries) -> str:
    """Tables by exposure and by kind."""
    return f"{disccard.as_text(found.checks)}\n\n{disctrace.as_text(found.traces)}"


def draw_examples(found: Discoveries, path: Path) -> None:
    """Science, reference and difference side by side."""
    discfigure.side_by_side(sorted(found.examples, key=lambda e: e.order), path)


def draw_quality(found: Discoveries, path: Path) -> None:
    """Four panels on what is found and what is left."""
    discfigure.quality(found.checks, path)
