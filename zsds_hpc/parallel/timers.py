"""CPU seconds per step, and their minimum, mean and maximum over ranks."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zsds_hpc.parallel.comm import gather


class Timers:
    """Accumulates CPU seconds of this process by step name."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a block."""
        start = time.process_time()
        try:
            yield
        finally:
            self.cpu_s[step] += time.process_time() - start

    def rounded(self) -> dict[str, float]:
        """Steps and their CPU seconds, to the millisecond."""
        return {step: round(seconds, 3) for step, seconds in self.cpu_s.items()}


def over_ranks(comm: Any, cpu_s: dict[str, float]) -> dict[str, tuple[float, float, float]] | None:
    """Minimum, mean and maximum over ranks of each step, on rank 0; None elsewhere."""
    everyone = gather(comm, dict(cpu_s))
    if everyone is None:
        return None
    steps = sorted({step for one in everyone for step in one})
    table = {step: [one.get(step, 0.0) for one in everyone] for step in steps}
    return {step: (min(v), sum(v) / len(v), max(v)) for step, v in table.items()}
