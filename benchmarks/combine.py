"""Combination of a stack against np.sort and scipy: ``python -m benchmarks.combine --frames 20 --json``.

CPU seconds (user + system) of one thread, the least of several calls. ``peak_mib`` is what a call
allocates besides the frames. The peers get row slabs, so that their copies stay small.
"""

import argparse
import json
import time
import tracemalloc

import numpy as np
from scipy import stats

from zsds_hpc.detector.combine import combine_trimmed

SHAPE = (3080, 3072)
ROWS_OF_SLAB = 154


def bias_frames(n_frames, hit_fraction, seed=0):
    """Frames of 2 DN noise about 1000 DN with cosmic rays."""
    rng = np.random.default_rng(seed)
    frames = np.empty((n_frames, *SHAPE), np.float32)
    for frame in frames:
        rng.standard_normal(dtype=np.float32, out=frame)
        frame *= 2.0
        frame += 1000.0
        n_hits = int(hit_fraction * frame.size)
        frame.reshape(-1)[rng.integers(0, frame.size, n_hits)] += rng.exponential(500.0, n_hits).astype(np.float32)
    return frames


def cpu_seconds(function, n_repeats):
    """Least CPU time of several calls."""
    seconds = []
    for _ in range(n_repeats):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def by_slabs(function, frames):
    for first in range(0, SHAPE[0], ROWS_OF_SLAB):
        function(frames[:, first : first + ROWS_OF_SLAB])


def sorted_mean(slab):
    n_trim = len(slab) // 20
    return np.sort(slab, axis=0)[n_trim : len(slab) - n_trim].mean(axis=0)


def peak_mib(function):
    """Peak of the memory that a call allocates, in MiB."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def run(args):
    """Costs of the suite and of its peers."""
    frames = bias_frames(args.frames, args.hits)
    seconds = cpu_seconds(lambda: combine_trimmed(frames), args.repeats)
    result = {"steps": {"combine": seconds}, "total_cpu_s": seconds, "peers": {}}
    result["peak_mib"] = peak_mib(lambda: combine_trimmed(frames))
    if args.peers:
        peers = {"np.sort": sorted_mean, "scipy.trim_mean": lambda slab: stats.trim_mean(slab, 0.05, axis=0)}
        for name, peer in peers.items():
            result["peers"][name] = cpu_seconds(lambda peer=peer: by_slabs(peer, frames), 2)
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split(":", 1)[0], epilog="example: python -m benchmarks.combine --frames 20 --json"
    )
    parser.add_argument("--frames", type=int, default=20, help="number of frames (default 20)")
    parser.add_argument("--hits", type=float, default=1e-4, help="fraction of pixels hit in a frame (default 1e-4)")
    parser.add_argument("--repeats", type=int, default=5, help="the least of this many calls counts (default 5)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave the peers out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"combine {result['total_cpu_s']:.2f} s, {result['peak_mib']:.0f} MiB besides the frames")
    for name, seconds in result["peers"].items():
        print(f"{name} {seconds:.2f} s")


if __name__ == "__main__":
    main()
