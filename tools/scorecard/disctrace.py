"""Every change in the sky followed from the truth to its candidate and its alert packet, and what was lost where."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tools.scorecard import disctruth
from tools.scorecard.card import Metric, at_least, at_most, reported
from tools.scorecard.discmeasure import Candidates
from tools.scorecard.products import Science

#: What is followed: fluxes above this S/N.
TRACED_SNR = 8.0
CANDIDATE_PIX, PACKET_ARCSEC = 2.0, 2.0
EDGE_PIX, MASKED_PIX, SATURATED_PIX = 10, 2, 25.0
#: Where a change ends, in order; all but the last two are losses that are explained.
PACKET, NO_PACKET, EDGE, MASKED, BY_SATURATED, CROWDED, UNEXPLAINED = range(7)
STAGES = (
    "packet", "candidate without packet", "at the edge", "on unusable pixels", "beside a saturated star",
    "beside a stronger change", "no candidate",
)  # fmt: skip
#: Kinds that are followed; streakers have tables of their own.
KINDS = (disctruth.PROBE_SKY, disctruth.PROBE_GALAXY, disctruth.PROBE_STAR, disctruth.TRANSIENT, disctruth.VARIABLE,
         disctruth.ASTEROID)  # fmt: skip
INJECTED = (disctruth.PROBE_SKY, disctruth.PROBE_GALAXY, disctruth.PROBE_STAR, disctruth.TRANSIENT)
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")

#: A change and where it ended; row of its candidate, candid of its packet (-1 without).
TRACE = np.dtype(
    [("exposure", "U40"), ("id", "i8"), ("kind", "i2"), ("x", "f8"), ("y", "f8"), ("ra", "f8"), ("dec", "f8"),
     ("mag", "f8"), ("snr", "f8"), ("stage", "i2"), ("row", "i8"), ("candid", "i8")]
)  # fmt: skip


@dataclass(frozen=True)
class TraceCheck:
    """One exposure of one channel.

    Attributes
    ----------
    traces : ndarray of TRACE
    n_packets : int
    n_broken : int
        Packets without three cutouts or without a position in the image.
    n_false_packets : int
        Packets with nothing real within reach.
    faults : list of str
        What was wrong with broken packets.
    """

    traces: NDArray
    n_packets: int
    n_broken: int
    n_false_packets: int
    faults: list[str] = field(default_factory=list)


def check(
    science: Science, changed: NDArray, usable: NDArray, candidates: Candidates, packets: list[dict]
) -> TraceCheck:
    """Follow the changes of one exposure.

    Parameters
    ----------
    science : Science
    changed : ndarray of disctruth.CHANGE
    usable : ndarray, shape (ny, nx), bool
        Pixels that the difference vouches for.
    candidates : Candidates
    packets : list of dict
        As an independent reader gives them.
    """
    n_y, n_x = usable.shape
    inside = (changed["x"] > -0.5) & (changed["y"] > -0.5) & (changed["x"] < n_x - 0.5) & (changed["y"] < n_y - 0.5)
    own = changed[inside & np.isin(changed["kind"], KINDS) & (np.abs(changed["snr"]) > TRACED_SNR)]
    out = np.zeros(own.size, TRACE)
    for name in ("id", "kind", "x", "y", "ra", "dec", "mag", "snr"):
        out[name] = own[name]
    out["exposure"] = science.exposure
    out["row"] = _nearest(own["x"], own["y"], candidates.x, candidates.y, CANDIDATE_PIX)
    faults = [text for packet in packets if (text := fault_of(packet))]
    places = np.array([(p["candidate"]["ra"], p["candidate"]["dec"]) for p in packets]).reshape(-1, 2)
    where = _flat(places[:, 0], places[:, 1], changed)
    at = _nearest(*_flat(own["ra"], own["dec"], changed), *where, PACKET_ARCSEC)
    candids = np.array([p["candid"] for p in packets] + [-1], dtype=np.int64)
    out["candid"] = candids[at]
    out["stage"] = _stages(science, changed, usable, out)
    real = _nearest(*where, *_flat(changed["ra"], changed["dec"], changed), PACKET_ARCSEC) >= 0
    return TraceCheck(out, len(packets), len(faults), int((~real).sum()), faults)


def _flat(ra: NDArray, dec: NDArray, about: NDArray) -> tuple[NDArray, NDArray]:
    """Plane coordinates, arcsec, good to a fraction of an arcsec over a channel and exact for small separations."""
    ra0, dec0 = (float(about[k][0]) if about.size else 0.0 for k in ("ra", "dec"))
    return ((ra - ra0 + 180.0) % 360.0 - 180.0) * 3600.0 * np.cos(np.radians(dec)), (dec - dec0) * 3600.0


def _nearest(x: NDArray, y: NDArray, to_x: NDArray, to_y: NDArray, reach: float) -> NDArray[np.int64]:
    """Row of the nearest target within reach, -1 where there is none."""
    if not len(x) or not len(to_x):
        return np.full(len(x), -1, np.int64)
    distance, row = cKDTree(np.stack([to_x, to_y], axis=1)).query(np.stack([x, y], axis=1))
    return np.where(distance < reach, row, -1)


def fault_of(packet: dict[str, Any]) -> str:
    """What is wrong with a packet as a reader gets it; empty for a good one."""
    candidate = packet.get("candidate") or {}
    values = [candidate.get(name) for name in ("ra", "dec", "magpsf", "sigmapsf", "jd")]
    if any(v is None or not np.isfinite(v) for v in values):
        return f"{packet.get('candid')}: no position, magnitude or time"
    for name in CUTOUTS:
        cutout = packet.get(name)
        if not cutout or not cutout.get("stampData"):
            return f"{packet.get('candid')}: no {name}"
    return "" if packet.get("candid") == candidate.get("candid") else f"{packet.get('candid')}: two candids"


def _stages(science: Science, changed: NDArray, usable: NDArray, traces: NDArray) -> NDArray[np.int16]:
    n_y, n_x = usable.shape
    x, y = traces["x"], traces["y"]
    edge = np.minimum.reduce([x, y, n_x - 1 - x, n_y - 1 - y]) < EDGE_PIX
    grid = np.arange(-MASKED_PIX, MASKED_PIX + 1)
    rows = np.clip(np.rint(y).astype(int)[:, None, None] + grid[:, None], 0, n_y - 1)
    columns = np.clip(np.rint(x).astype(int)[:, None, None] + grid, 0, n_x - 1)
    masked = (~usable[rows, columns]).sum(axis=(1, 2)) > 4
    stars = science.table("stars")
    full = stars[stars["mag"] < disctruth.saturation_mag(science)]
    beside = _nearest(x, y, full["x"], full["y"], SATURATED_PIX) >= 0
    stage = np.full(traces.size, UNEXPLAINED, np.int16)
    for code, hit in ((CROWDED, _outshone(changed, traces)), (BY_SATURATED, beside), (MASKED, masked), (EDGE, edge),
                      (NO_PACKET, traces["row"] >= 0), (PACKET, traces["candid"] >= 0)):  # fmt: skip
        stage[hit] = code
    return stage


def _outshone(changed: NDArray, traces: NDArray, reach_pix: float = 6.0) -> NDArray[np.bool_]:
    """A change of other origin at least half as strong is within reach."""
    if not traces.size:
        return np.zeros(0, bool)
    tree = cKDTree(np.stack([changed["x"], changed["y"]], axis=1))
    near = tree.query_ball_point(np.stack([traces["x"], traces["y"]], axis=1), reach_pix)
    return np.array(
        [
            any(changed["id"][k] != t["id"] and abs(changed["snr"][k]) > 0.5 * abs(t["snr"]) for k in rows)
            for rows, t in zip(near, traces, strict=True)
        ],
        dtype=bool,
    )


def all_traces(checks: Sequence[TraceCheck]) -> NDArray:
    """Traces of all exposures."""
    return np.concatenate([c.traces for c in checks]) if checks else np.zeros(0, TRACE)


def metrics(checks: Sequence[TraceCheck]) -> list[Metric]:
    """Lines of the scorecard."""
    traces = all_traces(checks)
    own = traces[np.isin(traces["kind"], INJECTED)]
    seen = own[np.isin(own["stage"], (PACKET, NO_PACKET, UNEXPLAINED))]
    n_packet, n_candidate = (seen["stage"] == PACKET).sum(), (seen["stage"] != UNEXPLAINED).sum()
    packets, broken = sum(c.n_packets for c in checks), sum(c.n_broken for c in checks)
    told = ", ".join(f"{n} {STAGES[k]}" for k, n in sorted(Counter(own["stage"].tolist()).items()))
    return [
        at_least("injected_to_candidate", n_candidate / seen.size if seen.size else None, 0.99,
                 f"{seen.size} injected transients above S/N {TRACED_SNR:g} in the open"),
        at_least("candidate_to_packet", n_packet / n_candidate if n_candidate else None, 1.0,
                 f"all {own.size}: {told}"),
        at_most("packets_broken", broken, 0, f"of {packets} packets, by a reader of its own"),
        reported("packets_false_per_channel", sum(c.n_false_packets for c in checks) / max(len(checks), 1),
                 "packets with nothing real within 2 arcsec"),
    ]  # fmt: skip


def as_text(checks: Sequence[TraceCheck]) -> str:
    """Table: kinds by where they ended."""
    traces = all_traces(checks)
    lines = ["  " + f"{'above S/N 8':<18}{'all':>6}" + "".join(f"{stage:>26}" for stage in STAGES)]
    for kind in KINDS:
        own = traces["stage"][traces["kind"] == kind]
        counts = [int((own == stage).sum()) for stage in range(len(STAGES))]
        lines.append(f"  {disctruth.KINDS[kind]:<18}{own.size:>6}" + "".join(f"{n:>26}" for n in counts))
    lost = traces[traces["stage"] == UNEXPLAINED]
    lines += [
        f"  lost: {disctruth.KINDS[t['kind']]}, {t['exposure']} x {t['x']:.1f} y {t['y']:.1f} mag {t['mag']:.2f} "
        f"S/N {t['snr']:.1f}"
        for t in lost[np.argsort(-np.abs(lost["snr"]))][:20]
    ]
    return "\n".join(lines)
