"""One log file per rank while the job runs, merged by time (UTC) when it ends."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from zsds_hpc.parallel.comm import rank_of

_FORMAT = "%(asctime)s.%(msecs)03d {rank:04d} %(levelname)-7s %(message)s"
_DATES = "%Y-%m-%dT%H:%M:%S"


def start_log(directory: Path, comm: Any, console: bool = True) -> logging.Logger:
    """Logger of this rank: a file `rankNNNN.log` in `directory`, and rank 0's messages on standard error too."""
    rank = rank_of(comm)
    directory.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("zsds")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [logging.FileHandler(directory / f"rank{rank:04d}.log")]
    if console and rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        formatter = logging.Formatter(_FORMAT.format(rank=rank), _DATES)
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger


def merge_logs(directory: Path) -> Path:
    """Merge the ranks' logs by time into `<directory>.log`; the parts stay where they are."""
    entries: list[tuple[str, str]] = []
    for part in sorted(directory.glob("rank*.log")):
        stamp = ""
        for line in part.read_text(errors="replace").splitlines():
            # A line without a time stamp continues the entry before it (a traceback).
            stamp = line[:23] if line[4:5] == "-" and line[10:11] == "T" else stamp
            entries.append((stamp, line))
    merged = directory.with_suffix(".log")
    merged.write_text("".join(f"{line}\n" for _, line in sorted(entries, key=lambda e: e[0])))
    return merged
