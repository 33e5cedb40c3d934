"""The scorecard: products of a simulated run against the simulator's truth, as a table, as JSON and as pictures.

It shares nothing with the algorithms of the suite: it finds the products by the archive's names and compares with
NumPy, SciPy and astropy alone.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.scorecard import accounting, artifacts, astrometry, calibrations, photometry, sources
from tools.scorecard.card import Metric, as_json, as_table
from tools.scorecard.products import Run, Science
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_UNITS_FAILED

#: At most this many science channels are compared pixel by pixel, spread evenly over the run.
MAX_CHANNELS = 48


@dataclass
class Findings:
    """Everything that was compared."""

    biases: list[calibrations.BiasCheck] = field(default_factory=list)
    flats: list[calibrations.FlatCheck] = field(default_factory=list)
    science: list[Science] = field(default_factory=list)
    positions: list[astrometry.AstrometryCheck] = field(default_factory=list)
    magnitudes: list[photometry.PhotometryCheck] = field(default_factory=list)
    masks: list[artifacts.ArtifactCheck] = field(default_factory=list)


def compare(run: Run) -> Findings:
    """Compare calibrations and a sample of the science channels."""
    findings = Findings()
    findings.biases, findings.flats = calibrations.check_all(run)
    processed = [science for science in run.science() if science.is_processed]
    step = -(-len(processed) // MAX_CHANNELS) if processed else 1
    # By channel, so that its detector maps are read once.
    for science in sorted(processed[::step], key=lambda s: (s.night, s.rcid, s.exposure)):
        matched = sources.match(science)
        findings.science.append(science)
        findings.positions.append(astrometry.check(science, matched))
        findings.magnitudes.append(photometry.check(science, matched))
        findings.masks.append(artifacts.check(science, matched))
        science.forget_pixels()
    return findings


def sections(run: Run, findings: Findings) -> dict[str, list[Metric]]:
    """The scorecard by headings."""
    return {
        "Files and units": accounting.file_metrics(run),
        "Super-bias, flat, bad pixels": calibrations.metrics(findings.biases, findings.flats),
        "Astrometry": astrometry.metrics(findings.positions),
        "Photometry": photometry.metrics(findings.magnitudes),
        "Hits, saturation, tracks": artifacts.metrics(findings.masks),
        "Cost": accounting.cost_metrics(run),
    }


def report(path: Path, as_json_only: bool = False) -> int:
    """Compare a run with its truth, print the scorecard, write ``report/``.

    Parameters
    ----------
    path : Path
        Directory of a run, such as ``runs/demo``.
    as_json_only : bool
        Print ``{metric: {"value", "target", "ok"}}`` and nothing else on stdout.

    Returns
    -------
    int
        Exit code: 0, or 20 when a target is missed.

    Raises
    ------
    UsageError
        The directory holds no simulated run.
    """
    run = Run(path)
    findings = compare(run)
    cards = sections(run, findings)
    every = [metric for metrics in cards.values() for metric in metrics]
    print(as_json(every) if as_json_only else as_table(cards))
    missed = [metric.name for metric in every if not metric.ok]
    if not as_json_only:
        print(f"\n{len(missed)} targets missed: {', '.join(missed)}" if missed else "\nevery target is met")
    sys.stdout.flush()
    return EXIT_UNITS_FAILED if missed else EXIT_CLEAN
