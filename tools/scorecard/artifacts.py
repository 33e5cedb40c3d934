"""Radiation hits, saturation and tracks in the mask image against what was rendered."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tools.scorecard.card import Metric, at_least, at_most, reported
from tools.scorecard.products import Science
from tools.scorecard.sources import Matched, distance_to_segment, inside, segments

TRACK, SPIKE, SATURATED = 1, 128, 256
#: A hit counts when its brightest pixel stands out by this much from the noise of the light under it.
HIT_SNR = 5.0
#: A star is touched by a SPIKE pixel this close to its centre...
STAR_PIX = 1.5
#: ... that has no true hit pixel within this many pixels.
EXPLAINED_PIX = 2
GROWTH_PIX = 3


@dataclass(frozen=True)
class ArtifactCheck:
    """Counts of one channel: hit clumps, stars with S/N >= 10, saturated pixels, length of tracks, false pixels."""

    n_hits: int
    n_hits_masked: int
    n_stars: int
    n_stars_touched: int
    n_saturated: int
    n_saturated_masked: int
    n_marked_saturated: int
    n_marked_true: int
    track_pix: int
    track_pix_masked: int
    n_false_track: int
    n_spike: int
    n_false_spike: int
    n_pixels: int


def check(science: Science, matched: Matched) -> ArtifactCheck:
    """Compare one channel's mask."""
    return ArtifactCheck(
        *_hits(science), *_touched_stars(science, matched), *_saturation(science), *_tracks(science),
        *_false_spikes(science), science.mask.size,
    )  # fmt: skip


def _hits(science: Science) -> tuple[int, int]:
    """Detectable clumps, and those whose brightest pixel is marked.

    Hits on pixels that are unusable for another reason (defects, saturation) cannot be seen and do not count.
    """
    table = science.table("cosmic_rays")
    if not table.size:
        return 0, 0
    order = np.lexsort((-table["electrons"], table["clump"]))
    _, first = np.unique(table["clump"][order], return_index=True)
    peak = table[order][first]
    gain, read_noise = science.gain_and_noise_e
    mask, pix = science.mask.ravel()[peak["index"]], science.pix.ravel()[peak["index"]]
    light_e = np.maximum(pix * gain - peak["electrons"], science.facts["sky_dn"] * gain)
    seen = peak["electrons"] > HIT_SNR * np.sqrt(light_e + read_noise**2)
    defect = science.truth.map(science.rcid, "mask").ravel()[peak["index"]] != 0
    full = np.isin(peak["index"], science.table("saturated_pixels"))
    seen &= ~defect & ~full & np.isfinite(pix)
    return int(seen.sum()), int((seen & (mask & SPIKE != 0)).sum())


def _touched_stars(science: Science, matched: Matched) -> tuple[int, int]:
    """Unsaturated stars with S/N >= 10, and those with an unexplained SPIKE pixel at their centre."""
    stars = matched.objects[matched.objects["is_star"] & (matched.objects["snr"] >= 10.0)]
    stars = stars[inside(science, stars["x"], stars["y"]) & ~_is_saturated(science, stars)]
    spikes = _pixels_with(science, SPIKE)
    spikes = spikes[~_near_true_hit(science, spikes)]
    if not len(spikes) or not len(stars):
        return len(stars), 0
    where = np.stack([stars["x"], stars["y"]], axis=1)
    distance, _ = cKDTree(spikes).query(where, distance_upper_bound=STAR_PIX)
    return len(stars), int(np.isfinite(distance).sum())


def _near_true_hit(science: Science, points: NDArray) -> NDArray[np.bool_]:
    """Points (n, 2) that a true hit, a defect of the detector or a track explains."""
    rows, columns = np.divmod(science.table("cosmic_rays")["index"], science.mask.shape[1])
    near = _within(np.stack([columns, rows], axis=1), points, EXPLAINED_PIX)
    column, row = points.astype(int).T
    near |= science.truth.map(science.rcid, "mask")[row, column] != 0
    for x0, y0, x1, y1, width in segments(science):
        near |= distance_to_segment(points, x0, y0, x1, y1) < width
    return near


def _is_saturated(science: Science, stars: NDArray) -> NDArray[np.bool_]:
    rows, columns = np.divmod(science.table("saturated_pixels"), science.mask.shape[1])
    return _within(np.stack([columns, rows], axis=1), np.stack([stars["x"], stars["y"]], axis=1), 2.5)


def _saturation(science: Science) -> tuple[int, int, int, int]:
    """True saturated pixels, those marked; marked pixels, those within GROWTH_PIX of a true one."""
    true = science.table("saturated_pixels")
    marked = np.flatnonzero((science.mask & SATURATED) != 0)
    n_x = science.mask.shape[1]
    near = _within(np.stack(np.divmod(true, n_x), axis=1), np.stack(np.divmod(marked, n_x), axis=1), GROWTH_PIX)
    return true.size, int(np.isin(true, marked).sum()), marked.size, int(near.sum())


def _within(targets: NDArray, points: NDArray, radius_pix: float) -> NDArray[np.bool_]:
    """Which points (n, 2) have a target within a radius, counted along the axes."""
    if not len(targets) or not len(points):
        return np.zeros(len(points), bool)
    distance, _ = cKDTree(targets).query(points, p=np.inf, distance_upper_bound=radius_pix + 1e-3)
    return np.isfinite(distance)


def _pixels_with(science: Science, bit: int) -> NDArray[np.float64]:
    """Positions (x, y) of the pixels with a bit, (n, 2)."""
    rows, columns = np.divmod(np.flatnonzero((science.mask & bit) != 0), science.mask.shape[1])
    return np.stack([columns, rows], axis=1).astype(float)


def _tracks(science: Science) -> tuple[int, int, int]:
    """Length of true tracks (px), the masked part of it, and TRACK pixels away from tracks and fast movers."""
    marked = science.mask & TRACK != 0
    n_y, n_x = marked.shape
    length = masked = 0
    for track in science.table("tracks"):
        n = int(np.hypot(track["x1"] - track["x0"], track["y1"] - track["y0"]))
        x, y = (np.rint(np.linspace(track[f"{c}0"], track[f"{c}1"], n)).astype(int) for c in "xy")
        kept = (x >= 0) & (x < n_x) & (y >= 0) & (y < n_y)
        length += int(kept.sum())
        masked += int(marked[y[kept], x[kept]].sum())
    points = _pixels_with(science, TRACK)
    far = np.ones(len(points), bool)
    for x0, y0, x1, y1, width in segments(science):
        far &= distance_to_segment(points, x0, y0, x1, y1) > 2.0 * width + 10.0
    return length, masked, int(far.sum())


def _false_spikes(science: Science) -> tuple[int, int]:
    """SPIKE pixels, and those that nothing explains."""
    points = _pixels_with(science, SPIKE)
    return len(points), int((~_near_true_hit(science, points)).sum())


def metrics(checks: list[ArtifactCheck]) -> list[Metric]:
    """Lines of the scorecard; counts of all channels together."""

    def total(name: str) -> int:
        return sum(getattr(c, name) for c in checks)

    def share(part: str, whole: str) -> float | None:
        return total(part) / total(whole) if total(whole) else None

    return [
        at_least("cosmic_ray_recall", share("n_hits_masked", "n_hits"), 0.97,
                 f"of {total('n_hits')} hit clumps, brightest pixel above {HIT_SNR:g} sigma of the light under it"),
        at_most("stars_touched", share("n_stars_touched", "n_stars"), 0.002,
                f"{total('n_stars_touched')} of {total('n_stars')} stars with S/N >= 10 have a SPIKE pixel within "
                f"{STAR_PIX} px that no hit, defect or track explains"),
        reported("spike_pixels_false", share("n_false_spike", "n_spike"), f"of {total('n_spike')} SPIKE pixels"),
        at_least("saturation_recall", share("n_saturated_masked", "n_saturated"), 0.99,
                 f"of {total('n_saturated')} pixels that reached full well, bleeding included"),
        at_least("saturation_purity", share("n_marked_true", "n_marked_saturated"), 0.98,
                 f"of {total('n_marked_saturated')} SATURATED pixels are within {GROWTH_PIX} px of a full one"),
        at_least("track_recall", share("track_pix_masked", "track_pix"), 0.9,
                 f"of {total('track_pix')} px of satellite and aircraft tracks"),
        at_most("track_false_ppm", 1e6 * total("n_false_track") / max(total("n_pixels"), 1), 100.0,
                f"{total('n_false_track')} TRACK pixels away from any track or fast mover, per million pixels"),
    ]  # fmt: skip
