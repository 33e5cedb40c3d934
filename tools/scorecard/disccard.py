"""Lines of the scorecard on discovery: completeness, residuals, false positives, photometry of transients."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtr

from tools.scorecard import disctruth
from tools.scorecard.card import Metric, at_least, at_most, reported
from tools.scorecard.discmeasure import PROBE, REASONS, STAR_BINS, ZONES, DiscCheck, robust_width

Array = NDArray[np.float64]

#: Completeness is asked above this S/N, and at the S/N where half are found.
COMPLETE_SNR, HALF_SNR = 6.0, 5.1
#: Photometry is compared above this S/N, where the selection by S/N does not bias it; the bias above the second.
PHOTOMETRY_SNR, BIAS_SNR = 8.0, 50.0
#: Channels with at most this many stars are sparse.
SPARSE_STARS = 9000
LEAST_PROBES = 10


def half_complete_snr(snr: Array, found: NDArray[np.bool_]) -> tuple[float, float]:
    """S/N at which half are found, and the width of the transition, from the likelihood of a Gaussian integral.

    Returns NaN for fewer than LEAST_PROBES probes with S/N from 2 to 12.
    """
    own = (snr > 2.0) & (snr < 12.0)
    x, y = snr[own], found[own]
    if x.size < LEAST_PROBES or y.all() or not y.any():
        return float("nan"), float("nan")

    def cost(p: Array) -> float:
        chance = np.clip(ndtr((x - p[0]) / np.exp(p[1])), 1e-4, 1.0 - 1e-4)
        return -float(np.log(np.where(y, chance, 1.0 - chance)).sum())

    best = min((minimize(cost, [x0, 0.0], method="Nelder-Mead") for x0 in (4.0, 5.0, 7.0)), key=lambda r: r.fun)
    return float(best.x[0]), float(np.exp(best.x[1]))


def all_probes(checks: Sequence[DiscCheck], on_galaxies: bool = False) -> NDArray:
    """Clean probes of all exposures, those on galaxies or the others."""
    probes = np.concatenate([c.probes for c in checks]) if checks else np.zeros(0, PROBE)
    return probes[probes["clean"] & ((probes["kind"] == disctruth.PROBE_GALAXY) == on_galaxies)]


def _share(found: NDArray) -> float | None:
    return float(found.mean()) if found.size else None


def completeness(checks: Sequence[DiscCheck]) -> list[Metric]:
    """Lines on completeness."""
    away, galaxies = all_probes(checks), all_probes(checks, on_galaxies=True)
    seen = away[away["snr"] > COMPLETE_SNR]
    low = away[(away["snr"] > COMPLETE_SNR) & (away["snr"] < 8.0)]
    half, width = half_complete_snr(away["snr"], away["found"])
    half_on, _ = half_complete_snr(galaxies["snr"], galaxies["found"])
    seen_on = galaxies[galaxies["snr"] > COMPLETE_SNR]
    return [
        at_least("completeness_snr6", _share(seen["found"]), 0.95, f"{seen.size} probes above S/N 6, off galaxies"),
        at_most("half_complete_snr", half, HALF_SNR, f"S/N of truth; transition {width:.2f} wide, noise alone gives 1"),
        reported("completeness_snr6_8", _share(low["found"]), f"{low.size} of them from S/N 6 to 8"),
        reported("completeness_snr6_galaxies", _share(seen_on["found"]), f"{seen_on.size} probes near galaxy cores"),
        reported("half_complete_snr_galaxies", half_on, "near galaxy cores"),
    ]


def residuals(checks: Sequence[DiscCheck]) -> list[Metric]:
    """Lines on difference / sigma."""
    rows = [(width, zone, c) for c in checks for zone, width in c.widths.items() if np.isfinite(width)]
    lines = []
    if rows:
        low, high = min(rows, key=lambda r: r[0]), max(rows, key=lambda r: r[0])
        lines = [
            at_least("width_min", low[0], 0.97, f"difference / sigma, {low[1]}, seeing x {low[2].seeing_ratio:.2f}"),
            at_most("width_max", high[0], 1.05, f"difference / sigma, {high[1]}, seeing x {high[2].seeing_ratio:.2f}"),
        ]
        for zone in ("all", *ZONES):
            widths = [c.widths[zone] for c in checks if np.isfinite(c.widths[zone])]
            if widths:
                lines.append(reported(f"width_{zone.replace(' ', '_')}", float(np.mean(widths)), "mean of exposures"))
    for (low_mag, high_mag), target in zip(STAR_BINS, (None, 1.5, 1.1, 1.1, 1.1), strict=True):
        name, value, n = f"star_rms_{low_mag:g}_{high_mag:g}", *_pooled(checks, (low_mag, high_mag))
        note = f"within 3 px of constant stars, mag below saturation, {n} px"
        lines.append(at_most(name, value, target, note) if target else reported(name, value, note))
    return lines


def _pooled(checks: Sequence[DiscCheck], key: tuple[float, float]) -> tuple[float | None, int]:
    """rms over the exposures' pixels together, and their number."""
    rows = [c.star_rms[key] for c in checks if c.star_rms[key][0]]
    n = sum(count for count, _ in rows)
    return (float(np.sqrt(sum(count * rms**2 for count, rms in rows) / n)) if n else None), n


def echo_reason() -> int:
    """Index of the reason that is counted apart."""
    return REASONS.index("echo of a bright change")


def false_lines(checks: Sequence[DiscCheck]) -> list[Metric]:
    """Lines on false positives, sparse and dense channels apart."""
    lines = []
    for name, few, target in (("", True, 10.0), ("_dense", False, 30.0)):
        own = [c for c in checks if (c.n_stars <= SPARSE_STARS) == few]
        if not own:
            continue
        echo = echo_reason()
        counts = np.array([[(c.false["reason"] != echo).sum(), (c.false["reason"] == echo).sum()] for c in own])
        false = np.concatenate([c.false for c in own])
        positive = float((false["snr"] > 0).sum()) / len(own)
        reasons = Counter(REASONS[k] for k in false["reason"])
        told = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()) or "none"
        note = f"before vetting, S/N >= 5, + and -, {len(own)} channels, {positive:.1f} of them +"
        lines += [
            at_most(f"false_per_channel{name}", float(counts[:, 0].mean()), target, note),
            reported(f"false_worst_channel{name}", float(counts[:, 0].max()), f"all channels by reason: {told}"),
            reported(f"echoes_per_channel{name}", float(counts[:, 1].mean()), "within 20 px of a change of S/N > 50"),
        ]
    return lines


def photometry(checks: Sequence[DiscCheck]) -> list[Metric]:
    """Lines on the fluxes of probes."""
    away = all_probes(checks)
    found = away[away["found"] & (away["snr"] > PHOTOMETRY_SNR) & (away["snr"] < 300.0)]
    error = found["measured"] - found["flux"]
    bright = away[away["found"] & (away["snr"] > BIAS_SNR)]
    ratio = bright["measured"] / bright["flux"]
    bias = 1085.7 * abs(float(np.median(ratio)) - 1.0) if bright.size else None
    galaxies = all_probes(checks, on_galaxies=True)
    hosted = galaxies[galaxies["found"] & (galaxies["snr"] > PHOTOMETRY_SNR)]
    on = hosted["measured"] - hosted["flux"]
    return [
        at_most("flux_scatter_over_bound", _width(error / found["sigma"]), 1.15,
                f"{found.size} probes of S/N {PHOTOMETRY_SNR:g} to 300"),
        at_most("flux_bias_mmag", bias, 5.0, f"median of {bright.size} probes above S/N {BIAS_SNR:g}"),
        at_least("pull_width_min", _width(error / found["stated"]), 0.95, "error over stated error"),
        at_most("pull_width_max", _width(error / found["stated"]), 1.15, "error over stated error"),
        reported("position_error_pix", float(np.median(found["offset_pix"])) if found.size else None, "median"),
        reported("flux_scatter_over_bound_galaxies", _width(on / hosted["sigma"]), f"{hosted.size} near galaxy cores"),
    ]  # fmt: skip


def _width(values: Array) -> float | None:
    return robust_width(values) if values.size >= 100 else float(np.std(values)) if values.size > 5 else None


def metrics(checks: Sequence[DiscCheck]) -> list[Metric]:
    """All lines."""
    return [*completeness(checks), *residuals(checks), *false_lines(checks), *photometry(checks)]


def as_text(checks: Sequence[DiscCheck]) -> str:
    """A line for each exposure: what the means hide."""
    head = (
        f"  {'exposure':<34} {'seeing':>6} {'width':>6} {'bright':>6} {'1-2 mag':>7} {'2-3':>6} {'false':>6} {'S50':>6}"
    )
    lines = [head]
    echo = echo_reason()
    for c in checks:
        away = all_probes([c])
        half, _ = half_complete_snr(away["snr"], away["found"])
        n_false = int((c.false["reason"] != echo).sum())
        lines.append(
            f"  {c.name:<34} x{c.seeing_ratio:5.2f} {c.widths['all']:6.3f} {c.widths['bright stars']:6.3f} "
            f"{c.star_rms[STAR_BINS[1]][1]:7.2f} {c.star_rms[STAR_BINS[2]][1]:6.2f} {n_false:6d} {half:6.2f}"
        )
    return "\n".join(lines)
