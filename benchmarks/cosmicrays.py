"""Cosmic rays against truth and against astroscrappy: ``python -m benchmarks.cosmicrays --stars 6000 --json``.

Fields of 3072 x 3080 pixels from `benchmarks.hitsky`. ``recall`` counts hits whose brightest pixel stands 5 sigma
above the light under it; ``stars_touched`` is among stars of S/N above 5 without a hit within 3 px.
"""

import argparse
import json
import time
import tracemalloc

import numpy as np

from benchmarks import hitsky
from zsds_hpc.detector.cosmicrays import Detector, find_cosmic_rays

DETECTOR = Detector(hitsky.GAIN_E, hitsky.READ_NOISE_E)


def cpu_seconds(function, n_repeats):
    """Least CPU time of several calls, and the last result."""
    seconds = []
    for _ in range(n_repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def peak_mib(function):
    """Peak of the memory that a call allocates by itself, in MiB."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def astroscrappy_mask(sky):
    """L.A.Cosmic as astroscrappy does it, one iteration; None when it is not installed."""
    try:
        import astroscrappy
    except ImportError:
        return None
    return astroscrappy.detect_cosmics(
        sky.pix, inmask=sky.mask != 0, gain=hitsky.GAIN_E, readnoise=hitsky.READ_NOISE_E, niter=1,
        satlevel=hitsky.SATURATE_DN * hitsky.GAIN_E, sigclip=4.5, objlim=5, sepmed=True,
    )[0]  # fmt: skip


def run(args):
    """Scores summed over the fields, and the costs."""
    scores, peers, seconds, peer_seconds = [], [], [], []
    for seed in range(args.seed, args.seed + args.fields):
        sky = hitsky.render(args.stars, args.hits, seed, fwhm_pix=args.fwhm)
        cost, found = cpu_seconds(lambda sky=sky: find_cosmic_rays(sky.pix, sky.mask, DETECTOR), args.repeats)
        seconds.append(cost)
        scores.append(hitsky.score(sky, found.mask))
        if args.peers:
            cost, mask = cpu_seconds(lambda sky=sky: astroscrappy_mask(sky), 1)
            if mask is not None:
                peer_seconds.append(cost)
                peers.append(hitsky.score(sky, mask))
    result = {"steps": {"cosmicrays": min(seconds)}, "total_cpu_s": min(seconds)}
    result["peak_mib"] = peak_mib(lambda: find_cosmic_rays(sky.pix, sky.mask, DETECTOR))
    result.update(summary(scores))
    result["peers"] = {"astroscrappy": min(peer_seconds)} if peers else {}
    result["peer_scores"] = {"astroscrappy": summary(peers)} if peers else {}
    return result


def summary(scores):
    """Means over fields, weighted by the numbers they are fractions of."""
    hits, stars = [s.n_hits for s in scores], [s.n_stars for s in scores]
    return {
        "recall": float(np.average([s.recall for s in scores], weights=hits)),
        "recall_snr10": float(np.average([s.recall_matched for s in scores], weights=[s.n_matched for s in scores])),
        "charge_covered": float(np.average([s.charge_covered for s in scores], weights=hits)),
        "stars_touched": float(np.average([s.stars_touched for s in scores], weights=stars)),
        "false_pixels": float(np.mean([s.n_false_pixels for s in scores])),
        "n_hits": int(sum(hits)),
        "n_stars": int(sum(stars)),
    }


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stars", type=int, default=6000)
    parser.add_argument("--hits", type=int, default=400)
    parser.add_argument("--fwhm", type=float, default=2.0, help="seeing in px")
    parser.add_argument("--fields", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:16s} {value}")


if __name__ == "__main__":
    main()
