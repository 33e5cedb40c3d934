"""Discovery measured: completeness, residuals, false positives, photometry, CPU seconds from raw file to packets.

A sky of one channel is simulated below ``runs/benchmarks``: reference epochs on one night, probes on a later one, at
0.8 to 1.6 times the reference's seeing. Everything goes through the real pipelines, and the products are compared with
the simulator's truth. The measured part of the cost runs in a process of its own, on one core; the best repeat counts.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import disc_cost, disc_data
from benchmarks.disc_data import ROOT, say
from tools.scorecard import disccard, disccheck, discproducts, style
from tools.scorecard.card import Metric, as_table, at_most, reported
from tools.scorecard.products import Run, Science

#: CPU seconds asked of difference to packets and of raw to packets, up to SPARSE_STARS and beyond; memory, MiB.
COST = {True: (2.0, 4.8), False: (3.5, None)}
PEAK_MIB = 1536.0


def searched(place: Path, night: str = disc_data.NIGHT) -> list[Science]:
    """Exposures of a night, in order."""
    found = [s for s in Run(place).science() if s.night == night and s.rcid == disc_data.RCID]
    return sorted(found, key=lambda s: s.exposure)


def accuracy(place: Path) -> disccheck.Discoveries:
    """Every searched exposure against the truth; two pictures of it."""
    found = disccheck.compare(Run(place))
    if not found:
        sys.exit(f"{place}: no difference images")
    style.use_style()
    disccheck.draw_examples(found, place / "discovery.png")
    disccheck.draw_quality(found, place / "difference.png")
    return found


def measured_apart(place: Path, repeats: int) -> dict[str, Any]:
    """`disc_cost.measure` in a fresh process, on one core."""
    exposure = searched(place, disc_data.TIMED_NIGHT)[0].exposure
    say(f"raw file to packets of {exposure}, {repeats} times")
    words = ["-m", "benchmarks.discovery", "--measure", str(place), exposure, "--repeats", str(repeats)]
    pinned = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    done = subprocess.run([*pinned, sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def cost_lines(stars: int, result: dict[str, Any]) -> list[Metric]:
    """Costs and what is asked of them."""
    seconds = disc_cost.pipeline_seconds(result)
    late, whole = COST[stars <= disccard.SPARSE_STARS]
    told = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    total = sum(seconds.values())
    return [
        at_most("cpu_s_difference_to_packets", seconds["realtime"] + seconds["alerts"], late, "realtime and alerts"),
        at_most("cpu_s_raw_to_packets", total, whole, told) if whole else reported("cpu_s_raw_to_packets", total, told),
        at_most("peak_mib", result["peak_mib"], PEAK_MIB, "largest resident memory"),
    ]


def as_dict(sections: dict[str, Sequence[Metric]]) -> dict[str, Any]:
    """Metrics as JSON has them."""
    return {
        heading: {m.name: {"value": m.value, "target": m.target, "sense": m.sense, "ok": m.ok} for m in lines}
        for heading, lines in sections.items()
    }


def peers(place: Path) -> dict[str, Any]:
    """Other programs on the same images."""
    from benchmarks import peers_diff

    science = searched(place)[disc_data.PEERS]
    return peers_diff.compare(place, science, discproducts.epochs_of(science))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.discovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=int, default=6000, help="stars in the channel (default: 6000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sky")
    parser.add_argument("--variables", type=float, default=0.02, help="fraction of the stars that vary")
    parser.add_argument("--repeats", type=int, default=3, help="of the cost; the best counts (default: 3)")
    parser.add_argument("--no-cost", action="store_true", help="accuracy only")
    parser.add_argument("--no-prepare", action="store_true", help="measure the products that are there")
    parser.add_argument("--no-peers", action="store_true", help="leave other programs out")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks", help="where skies are kept")
    parser.add_argument("--measure", nargs=2, metavar=("PLACE", "EXPOSURE"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> int:
    """Parse, prepare, measure, compare."""
    options = parse()
    if options.measure:
        place, exposure = options.measure
        print(json.dumps(disc_cost.measure(Path(place), exposure, options.repeats)))
        return 0
    place = options.out.absolute() / f"discovery_{options.stars}_{options.seed}"
    if not options.no_prepare:
        disc_data.prepare(place, options.stars, options.seed, options.variables)
    found = accuracy(place)
    sections: dict[str, Sequence[Metric]] = {"Discovery": disccheck.metrics(found)}
    result: dict[str, Any] = {}
    if not options.no_cost:
        result = measured_apart(place, options.repeats)
        sections["Cost"] = cost_lines(options.stars, result)
    theirs = {} if options.no_peers else peers(place)
    if options.json:
        print(json.dumps(as_dict(sections) | {"cost": result, "peers": theirs}, indent=1))
        return 0
    print(as_table({heading: list(lines) for heading, lines in sections.items()}))
    print("\n" + disccheck.as_text(found))
    for name, seconds in result.get("steps", {}).items():
        print(f"  {name:<28} {seconds:7.3f} CPU s")
    for name, values in theirs.items():
        print(f"  peer {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
