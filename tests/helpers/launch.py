"""Start programs, under mpiexec or not, with the site's environment and a time-out."""

import os
import subprocess
import sys
from pathlib import Path

from zsds_hpc.settings.site import load_site

ROOT = Path(__file__).parents[2]


def command(ranks: int, program: list) -> list[str]:
    """Command line that starts a Python program on some ranks."""
    launcher = [word.replace("{ranks}", str(ranks)) for word in load_site("laptop").launcher] if ranks else []
    return [*launcher, sys.executable, *map(str, program)]


def environment(**more: str) -> dict[str, str]:
    """Environment of the site file."""
    return {**os.environ, **load_site("laptop").environment, "PYTHONPATH": str(ROOT), **more}


def launch(ranks: int, program: list, timeout_s: float = 60, **more: str) -> subprocess.CompletedProcess:
    """Run to the end; a run that hangs fails the test."""
    return subprocess.run(
        command(ranks, program), cwd=ROOT, env=environment(**more), timeout=timeout_s, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
