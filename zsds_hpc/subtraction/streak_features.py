"""What a fitted trail looks like: the numbers by which real ones are told from artefacts."""

from typing import NamedTuple

import numpy as np

from zsds_hpc.core.maskbits import TRACK
from zsds_hpc.subtraction.streak_fit import Trail, alternatives, misfit
from zsds_hpc.subtraction.streak_table import STREAK_DTYPE
from zsds_hpc.subtraction.streak_trail import along_and_across, planes

_PIECE_SNR = 2.5
_PIECES = 3, 16
_OUTLIER_SIGMA = 3.0
_SIDE_SHARE = 0.02
_BEYOND_SHARE = 0.25
_BEYOND_LEAST_PIX = 4.0
_NEAR_REFERENCE_PIX = 20.0
_FAR_PIX = 99.0
_REFERENCE_SHARE = 0.1
_EDGE_PIX = 4.0
_TRACK_PIX = 300.0
_INLINE_PIX, _INLINE_DEG = 5.0, 3.0
_MOST_REF_RATIO = 3.0


class Surroundings(NamedTuple):
    """What the features need of the image beyond the pixels of the trail."""

    mask: np.ndarray  # (ny, nx) int16
    sources: np.ndarray  # `subtraction.images.SOURCE_DTYPE`
    median_sigma: float  # DN


def describe(trail: Trail, around: Surroundings) -> np.ndarray:
    """Row of the table for a trail, without sky positions, magnitudes and score.

    Parameters
    ----------
    trail : Trail
    around : Surroundings

    Returns
    -------
    ndarray, shape (), `STREAK_DTYPE`
    """
    row = np.zeros((), STREAK_DTYPE)
    row["score"] = row["ra1"] = row["dec1"] = row["ra2"] = row["dec2"] = np.nan
    _geometry_inplace(row, trail)
    _profile_inplace(row, trail)
    _pieces_inplace(row, trail)
    _sides_inplace(row, trail, around)
    _places_inplace(row, trail, around)
    return row


def _geometry_inplace(row, trail):
    """Ends in the order of x, flux, errors."""
    x1, y1, x2, y2 = trail.ends
    flip = x2 < x1
    row["x1"], row["y1"], row["x2"], row["y2"] = (x2, y2, x1, y1) if flip else (x1, y1, x2, y2)
    cov, length = trail.covariance, trail.length
    density = trail.flux / length
    first, second = (2, 1) if flip else (1, 2)
    row["sigalong1"], row["sigalong2"] = np.sqrt(cov[first, first]), np.sqrt(cov[second, second])
    row["sigacross"] = np.sqrt(max(cov[3, 3] + cov[4, 4] + 2 * cov[3, 4], 0)) / 2
    row["length"] = length
    row["siglength"] = np.sqrt(max(cov[1, 1] + cov[2, 2] - 2 * cov[1, 2], 0))
    angle = np.degrees(trail.angle)
    row["angle"] = angle - 180 if angle > 90 else angle + 180 if angle <= -90 else angle
    row["sigangle"] = np.degrees(np.sqrt(max(cov[3, 3] + cov[4, 4] - 2 * cov[3, 4], 0)) / length)
    slopes = np.array([length, -density, density, 0.0, 0.0])
    row["flux"], row["sigflux"] = trail.flux, np.sqrt(max(slopes @ cov @ slopes, 0))
    row["snr"] = trail.snr


def _profile_inplace(row, trail):
    """Brightness, agreement with the model, shape across."""
    strip, model = trail.strip, trail.model
    weight, v = strip.weight, trail.places[1]
    residual = strip.data - model
    usable = weight > 0
    top = float(model.max())
    at_top = int(np.argmax(model * usable))
    row["brightness"] = top * np.sqrt(weight[at_top])
    chi2 = trail.chi2
    row["chi2dof"], row["misfit"] = chi2 / max(int(usable.sum()) - 5, 1), misfit(chi2, strip, trail.snr)
    point, pair = alternatives(trail)
    row["gain"], row["pair"] = trail.snr**2 - point**2, pair / trail.snr
    light, expected = model * strip.data * weight, model * model * weight
    second = float(np.dot(expected, v**2)) / max(float(expected.sum()), 1e-30)
    row["width"] = float(np.dot(light, v**2)) / max(float(light.sum()), 1e-30) / max(second, 1e-30) - 1
    bend = trail.planes[3] * trail.flux / trail.length * (1 - (2 * trail.places[0] / trail.length) ** 2 - 2 / 3)
    norm = max(float(np.dot(bend**2, weight)), 1e-30)
    row["curvature"] = float(np.dot(bend * residual, weight)) / norm
    row["sigcurvature"] = norm**-0.5
    noise = 1 / np.sqrt(np.where(usable, weight, 1))
    row["spike"] = float(np.where(usable, strip.data - 2 * noise, -np.inf).max()) / top


def _pieces_inplace(row, trail):
    """Evenness along the trail."""
    n = int(np.clip(round(trail.snr / _PIECE_SNR), *_PIECES))
    u, model, weight = trail.places[0], trail.model, trail.strip.weight
    piece = np.floor((u / trail.length + 0.5) * n).astype(int)
    on = (piece >= 0) & (piece < n)
    norm, light = (
        np.bincount(piece[on], weights=(model * other * weight)[on], minlength=n) for other in (model, trail.strip.data)
    )
    seen = norm > 0.1 * norm.max()
    part, norm = light[seen] / norm[seen], norm[seen]
    if part.size < 2:
        row["evenness"], row["filled"], row["unbroken"] = 99.0, 0.0, 0.0
        return
    row["evenness"] = float(np.dot((part - np.average(part, weights=norm)) ** 2, norm)) / (part.size - 1)
    row["filled"] = float(np.mean((part - 1) * np.sqrt(norm) > -2))
    rest = np.argsort(part, kind="stable")[: part.size - max(1, part.size // 4)]
    row["unbroken"] = float(np.dot(part[rest], norm[rest])) / float(norm[rest].sum())


def _sides_inplace(row, trail, around):
    """Light and defects beside the trail and beyond its ends."""
    strip, model = trail.strip, trail.model
    usable = strip.weight > 0
    signal = strip.data * np.sqrt(strip.weight)
    beside = usable & (model < _SIDE_SHARE * model.max())
    n_beside = max(int(beside.sum()), 1)
    row["sides"] = float(signal[beside].sum()) / n_beside
    row["negative"] = float((signal < -_OUTLIER_SIGMA).sum()) / max(int(usable.sum()), 1)
    row["positive"] = (float((signal[beside] > _OUTLIER_SIGMA).sum()) + strip.n_clipped) / n_beside
    row["beyond"], row["sigbeyond"] = _beyond(trail)
    row["masked"] = 1 - float(model[usable].sum()) / max(float(model.sum()), 1e-30)
    row["maskednear"] = 1 - float(usable.mean())
    sigma = 1 / np.sqrt(max(float(np.median(strip.weight[usable])), 1e-30)) if usable.any() else np.inf
    row["noise"] = min(sigma / around.median_sigma, 99.0)


def _beyond(trail):
    """Brightness of short prolongations over that of the trail, the brighter one, and its error."""
    reach = min(max(_BEYOND_LEAST_PIX, _BEYOND_SHARE * trail.length), 2 * _BEYOND_LEAST_PIX)
    residual = trail.strip.data - trail.model
    density, half = trail.flux / trail.length, trail.length / 2
    best = (-np.inf, 0.0)
    for start, end in ((-half - 1 - reach, -half - 1), (half + 1, half + 1 + reach)):
        picture = planes(trail.tables, trail.places, start, end)[0]
        norm = float(np.dot(picture**2, trail.strip.weight))
        if norm > 0:
            best = max(
                best, (float(np.dot(picture * residual, trail.strip.weight)) / norm / density, norm**-0.5 / density)
            )
    return best if np.isfinite(best[0]) else (0.0, 99.0)


def _places_inplace(row, trail, around):
    """Reference sources, masked tracks and edges of the image near the trail."""
    n_y, n_x = around.mask.shape
    row["refdist"], row["refratio"] = _references(trail, around.sources)
    row["track"] = _track_share(trail, around.mask)
    pairs = np.reshape(trail.ends, (2, 2))
    least = np.minimum(pairs, np.array([n_x - 1, n_y - 1]) - pairs).min(axis=1)
    row["n_edges"] = int((least < _EDGE_PIX).sum())


def _references(trail, sources):
    """Distance of the nearest source that matters, and log10 of the light of those on the line over the trail's."""
    reach = trail.length / 2 + _NEAR_REFERENCE_PIX
    x1, y1, x2, y2 = trail.ends
    near = (np.abs(sources["x"] - (x1 + x2) / 2) < reach) & (np.abs(sources["y"] - (y1 + y2) / 2) < reach)
    near &= sources["flux"] > _REFERENCE_SHARE * trail.flux
    if not near.any():
        return _FAR_PIX, -_MOST_REF_RATIO
    u, v = along_and_across(np.stack([sources["x"][near], sources["y"][near]]), trail.ends)
    distance = np.hypot(np.maximum(np.abs(u) - trail.length / 2, 0), v)
    on_line = float(sources["flux"][near][distance < trail.tables.half_pix / 2].sum()) / trail.flux
    ratio = float(np.clip(np.log10(max(on_line, 1e-3)), -_MOST_REF_RATIO, _MOST_REF_RATIO))
    return (float(distance.min()) if distance.min() < _NEAR_REFERENCE_PIX else _FAR_PIX), ratio


def _track_share(trail, mask):
    """Share of the line through the trail, 300 px beyond either end, that lies in a masked track."""
    x1, y1, x2, y2 = trail.ends
    half = trail.length / 2 + _TRACK_PIX
    u = np.arange(-half, half + 1)
    cos, sin = np.cos(trail.angle), np.sin(trail.angle)
    x, y = np.rint((x1 + x2) / 2 + u * cos).astype(int), np.rint((y1 + y2) / 2 + u * sin).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    return float(((mask[y[inside], x[inside]] & TRACK) != 0).mean()) if inside.any() else 0.0


def n_in_line(table: np.ndarray) -> np.ndarray:
    """Number of other streaks on the line of each.

    Parameters
    ----------
    table : ndarray, shape (n,), `STREAK_DTYPE`
    """
    out = np.zeros(len(table), np.int16)
    middle = np.stack([(table["x1"] + table["x2"]) / 2, (table["y1"] + table["y2"]) / 2])
    for k, row in enumerate(table):
        ends = np.array([row[name] for name in ("x1", "y1", "x2", "y2")])
        u, v = along_and_across(middle, ends)
        turn = np.abs((table["angle"] - row["angle"] + 90) % 180 - 90)
        slack = np.hypot(table["sigangle"], row["sigangle"])
        close = (np.abs(v) < _INLINE_PIX + np.radians(row["sigangle"]) * np.abs(u)) & (turn < _INLINE_DEG + 2 * slack)
        out[k] = int(close.sum()) - 1
    return out
