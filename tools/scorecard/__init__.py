"""The scorecard: products of a simulated run against the simulator's truth, as a table, as JSON and as pictures.

It shares nothing with the algorithms of the suite: it finds the products by the archive's names and compares with
NumPy, SciPy and astropy alone.
"""

import sys
from pathlib import Path

from tools.scorecard import (
    accounting,
    artifacts,
    astrometry,
    calibrations,
    disccheck,
    page,
    photometry,
    psfcard,
)
from tools.scorecard.card import Metric, as_json, as_table
from tools.scorecard.findings import Findings, compare
from tools.scorecard.products import Run
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_UNITS_FAILED


def sections(run: Run, findings: Findings) -> dict[str, list[Metric]]:
    """The scorecard by headings."""
    psf_fits = {"PSF-fit photometry": psfcard.metrics(findings.psf_fits)} if findings.psf_fits else {}
    found = findings.discoveries
    discovery = {"Discovery": disccheck.metrics(found)} if found else {}
    return {
        "Files and units": accounting.file_metrics(run),
        "Super-bias, flat, bad pixels": calibrations.metrics(findings.biases, findings.flats),
        "Astrometry": astrometry.metrics(findings.positions),
        "Photometry": photometry.metrics(findings.magnitudes),
        **psf_fits,
        "Hits, saturation, tracks": artifacts.metrics(findings.masks),
        **discovery,
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
    print(as_json(every) if as_json_only else as_table(cards), flush=True)
    if findings.discoveries and not as_json_only:
        print("\n" + disccheck.as_text(findings.discoveries), flush=True)
    written = page.write_report(run, findings, cards)
    missed = [metric.name for metric in every if not metric.ok]
    told = f"{len(missed)} targets missed: {', '.join(missed)}" if missed else "every target is met"
    print(f"\n{told}\npictures: {written}", file=sys.stderr if as_json_only else sys.stdout)
    return EXIT_UNITS_FAILED if missed else EXIT_CLEAN
