"""A simulated night from nothing to a scorecard: simulate, build reference catalogues, process, compare.

Every part is skipped or resumed where a former run has done it. Run by `make night`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from zsds_hpc.settings.site import load_site  # noqa: E402


def say(text: str) -> None:
    """A heading between the parts."""
    print(f"== {time.strftime('%H:%M:%S')} {text}", flush=True)


def run(command: list[str], allowed: tuple[int, ...] = (0,)) -> int:
    """Run a part; stop with its exit code where that is not allowed."""
    site = load_site("laptop")
    environment = {**os.environ, **site.environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if code not in allowed:
        sys.exit(f"== stopped: {' '.join(command[-6:])} ended with exit code {code}; the same command resumes")
    return code


def under_mpi(ranks: int, program: list[str]) -> list[str]:
    """Command that starts a Python program on some ranks."""
    launcher = [word.replace("{ranks}", str(ranks)) for word in load_site("laptop").launcher]
    return [*(launcher if ranks > 1 else []), sys.executable, *program]


def build_refcats(sky: Path, refcats: Path) -> None:
    """Stores of the simulated Gaia and PS1, unless they are there."""
    for kind in ("gaia", "ps1"):
        if not (refcats / kind / "catalog.json").exists():
            source = str(sky / "refcats" / f"{kind}.parquet")
            run([sys.executable, "-m", "zsds_hpc.production.cli", "refcat", "build", kind, source, "--out",
                 str(refcats / kind)])  # fmt: skip


def lit_channels(plan: Path) -> list[str]:
    """Words that leave out the channels that a plan keeps dark."""
    rcids = yaml.safe_load(plan.read_text()).get("rcids", [])
    return [word for qid in sorted({rcid % 4 + 1 for rcid in rcids}) for word in ("--only", f"_q{qid}")]


def main() -> int:
    """Parse, run the parts, print where things are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="directory to work in")
    parser.add_argument("--size", choices=["tiny", "small", "full"], default="small", help="how much sky")
    parser.add_argument("--ranks", type=int, default=len(os.sched_getaffinity(0)), help="MPI ranks")
    options = parser.parse_args()
    place, started = options.run.absolute(), time.time()
    plan = f"config/simulations/{options.size}.yml"
    say(f"simulating {plan} on {options.ranks} ranks into {place / 'sky'}")
    run(under_mpi(options.ranks, ["-m", "tools.skysim", plan, "--out", str(place / "sky")]))
    say("building the reference catalogues")
    build_refcats(place / "sky", place / "refcats")
    worst = 0
    for incoming in sorted((place / "sky" / "incoming").iterdir()):
        say(f"processing night {incoming.name}")
        command = [sys.executable, "-m", "zsds_hpc.production.cli", "night", "run", incoming.name]
        command += ["--archive", str(place / "archive"), "--incoming", str(incoming)]
        command += ["--refcats", str(place / "refcats"), "--ranks", str(options.ranks), *lit_channels(ROOT / plan)]
        worst = max(worst, run(command, (0, 20)))
    say("scorecard against the simulator's truth")
    run([sys.executable, "-m", "zsds_hpc.production.cli", "scorecard", str(place)], (0, 20))
    say(f"done in {time.time() - started:.0f} s")
    print(f"products   {place / 'archive'}\npictures   {place / 'report'}\nlogs       {place / 'archive' / 'logs'}")
    (place / "night.json").write_text(json.dumps({"seconds": round(time.time() - started, 1), "exit": worst}))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
