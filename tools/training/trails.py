"""Trails drawn into images, and which streaks are these: what the classifier of streaks learns from and is tested on.

Two renderers, neither of which knows of the spline that the fit uses: for scenes an analytic profile, sampled at nine
points of a pixel and moved in small steps; for whole channels the simulator's own.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.scorecard import limits, products
from tools.skysim import render
from tools.training import channels, defects
from tools.training.scene import GAIN_E, MOVER, SIDE_PIX, Conditions, Scene
from zsds_hpc.archive.refimages import read_template
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.subtraction.difference import DifferenceParams, subtract
from zsds_hpc.subtraction.images import Difference, Science

FALSE, REAL, UNCLEAR = 0, 1, -1
#: Ends (0-based px), flux, signal to noise as it is seen, usable share of its flux.
TRAIL_DTYPE = np.dtype([(name, "f8") for name in ("x1", "y1", "x2", "y2", "flux", "snr", "seen")])
N_IN_SCENE, N_IN_CHANNEL = 7, 60
SCENE_SNR, SCENE_LENGTH_PIX, SATELLITE_SHARE = (7.0, 100.0), (4.5, 320.0), 0.06
N_PAIRS, PAIR_SNR = 4, (6.0, 40.0)
CHANNEL_SNR, CHANNEL_LENGTH_PIX = (8.0, 60.0), (5.0, 300.0)
#: Fair to ask for: that much of it is usable.
LEAST_SEEN = 0.7
_SUB = (np.arange(3) - 1) / 3
_REACH_PIX, _STEP_PIX = 12, 0.4
_MARGIN_PIX = 40
_APART_CELL_PIX = 16


class Searched(NamedTuple):
    """A difference image with trails drawn into it, the trails, and places where nothing is judged (px, px, reach)."""

    difference: Difference
    wcs: TPV
    trails: NDArray
    unclear: NDArray


def draw_trail(shape: tuple[int, int], ends: NDArray, c: Conditions) -> NDArray:
    """Moffat profile of unit flux moved from one end to the other, in pixels; shape (ny, nx), float32."""
    image = np.zeros(shape, np.float32)
    x1, y1, x2, y2 = ends
    n = max(int(np.ceil(np.hypot(x2 - x1, y2 - y1) / _STEP_PIX)), 1)
    part = (np.arange(n) + 0.5) / n
    grid = np.arange(-_REACH_PIX, _REACH_PIX + 1)
    for x, y in zip(x1 + part * (x2 - x1), y1 + part * (y2 - y1)):
        left, top = int(np.rint(x)) - _REACH_PIX, int(np.rint(y)) - _REACH_PIX
        rows = slice(max(top, 0), min(top + grid.size, shape[0]))
        columns = slice(max(left, 0), min(left + grid.size, shape[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            stamp = _moffat(c, grid + np.rint(x) - x, grid + np.rint(y) - y)
            image[rows, columns] += (
                stamp[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] / n
            )
    return image


def _moffat(c, dx, dy):
    """Mean of the profile over nine points of each pixel."""
    alpha2 = (c.fwhm_pix / 2) ** 2 / (2 ** (1 / c.beta) - 1)
    e1, e2 = c.ellipticity
    x, y = (dx[:, None] + _SUB).ravel(), (dy[:, None] + _SUB).ravel()[:, None]
    r2 = ((1 - e1) * x**2 + (1 + e1) * y**2 - 2 * e2 * x * y) / np.sqrt(1 - e1**2 - e2**2)
    fine = (c.beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -c.beta
    return fine.reshape(dy.size, 3, dx.size, 3).mean(axis=(1, 3))


def _random_ends(rng, length, shape):
    angle = rng.uniform(-np.pi / 2, np.pi / 2)
    x, y = rng.uniform(0, shape[1] - 1), rng.uniform(0, shape[0] - 1)
    dx, dy = 0.5 * length * np.cos(angle), 0.5 * length * np.sin(angle)
    return np.array([x - dx, y - dy, x + dx, y + dy])


def in_scene(seed: int, scene: Scene) -> Searched:
    """A scene with trails: some faint, some bright, at any angle; now and then a satellite's."""
    rng, d = np.random.default_rng([seed, 11]), scene.difference
    light, taken = np.zeros_like(d.pix), np.zeros(d.pix.shape, bool)
    sky_sigma = float(np.median(d.sigma[np.isfinite(d.sigma)]))
    trails: list[tuple] = []
    for _ in range(3 * N_IN_SCENE):
        length = np.exp(rng.uniform(*np.log(SCENE_LENGTH_PIX)))
        if rng.random() < SATELLITE_SHARE:
            length = rng.uniform(350, 3 * SIDE_PIX)
        ends = _random_ends(rng, length, d.pix.shape)
        own = draw_trail(d.pix.shape, ends, scene.conditions)
        touched = own > 1e-4 * own.max(initial=0.0)
        if len(trails) == N_IN_SCENE or taken[touched].any() or own.sum() < 0.3:
            continue
        taken |= touched
        flux = np.exp(rng.uniform(*np.log(SCENE_SNR))) * sky_sigma / float(np.sqrt((own.astype(float) ** 2).sum()))
        trails.append((*ends, flux, *_seen(own, d.sigma, flux)))
        light += np.float32(flux) * own
    light += _pairs(rng, scene, taken, sky_sigma)
    noisy = rng.poisson(np.maximum(light, 0) * GAIN_E).astype(np.float32) / np.float32(GAIN_E)
    pix = np.where(np.isfinite(d.sigma), d.pix + noisy, np.float32(0))
    difference = replace(d, pix=pix, science=d.science + noisy)
    movers = scene.real[scene.real["kind"] == MOVER]
    unclear = [*_track_points(scene.defects), *((m["x"], m["y"], 6.0) for m in movers)]
    return Searched(difference, scene.wcs, np.array(trails, TRAIL_DTYPE), np.array(unclear).reshape(-1, 3))


def _pairs(rng, scene, taken, sky_sigma):
    """New stars side by side, which are no trails."""
    light = np.zeros_like(scene.difference.pix)
    for _ in range(N_PAIRS):
        ends = _random_ends(rng, rng.uniform(2, 16), light.shape)
        if taken[tuple(np.clip(np.rint((ends[:2] + ends[2:]) / 2).astype(int)[::-1], 0, SIDE_PIX - 1))]:
            continue
        for x, y in ends.reshape(2, 2):
            own = draw_trail(light.shape, np.array([x, y, x, y]), scene.conditions)
            norm = float(np.sqrt((own.astype(float) ** 2).sum()))
            light += np.float32(np.exp(rng.uniform(*np.log(PAIR_SNR))) * sky_sigma / max(norm, 1e-3)) * own
    return light


def _seen(own, sigma, flux):
    """Signal to noise in the usable pixels, and their share of the flux."""
    usable = np.isfinite(sigma)
    own = own.astype(float)
    return flux * float(np.sqrt(((own[usable] / sigma[usable]) ** 2).sum())), float(own[usable].sum() / own.sum())


def _track_points(points):
    tracks = points[points["kind"] == defects.KINDS.index("track")]
    return [(p["x"], p["y"], 15.0) for p in tracks]


def in_channels(
    place: Path, night: str, spoil: bool, seed: int, n_trails: int = N_IN_CHANNEL
) -> Iterator[tuple[str, float, Searched]]:
    """Images of a simulated run with trails, differenced by the suite; exposure and FWHM (px) with each.

    Parameters
    ----------
    place : Path
        With a reference in its archive.
    night : str
    spoil : bool
        Add defects that the mask does not tell (`tools.training.defects`).
    seed : int
    n_trails : int
    """
    images = [i for i in products.Run(place).science() if i.night == night and i.is_processed]
    template = read_template(next((place / "archive").rglob("*_refimg.fits")))
    for number, truth in enumerate(images):
        rng = np.random.default_rng([seed, number, 13])
        science = channels.read_science(truth.path("sciimg.fits"))
        unclear: list[tuple] = []
        if spoil:
            science, points = channels.spoiled(rng, science, science.psf)
            unclear += _track_points(points)
        science, drawn = _with_trails(rng, science, truth, n_trails)
        difference = subtract(science, template, DifferenceParams())
        trails = np.zeros(len(drawn), TRAIL_DTYPE)
        for row, (ends, flux, (y0, x0), own) in zip(trails, drawn):
            sigma = difference.sigma[y0 : y0 + own.shape[0], x0 : x0 + own.shape[1]]
            values = (*ends, flux, *_seen(own, sigma, flux))
            for name, value in zip(TRAIL_DTYPE.names or (), values):
                row[name] = float(value)
        trails = np.concatenate([trails, _natural(truth)])
        yield (
            truth.exposure,
            float(difference.psf.fwhm_pix),
            Searched(difference, science.wcs, trails, np.array(unclear).reshape(-1, 3)),
        )
        truth.forget_pixels()


def _with_trails(rng, science: Science, truth: products.Science, n_trails: int):
    """The image with trails drawn by the simulator, and a list of (ends, flux, corner, picture of unit flux)."""
    n_y, n_x = science.pix.shape
    psf, light = limits.true_psf(truth), np.zeros_like(science.pix)
    sample = science.pix[::7, ::7]
    sky_sigma = 1.4826 * float(np.median(np.abs(sample - np.median(sample))))
    taken = np.zeros((n_y // _APART_CELL_PIX + 3, n_x // _APART_CELL_PIX + 3), bool)
    drawn: list[tuple] = []
    while len(drawn) < n_trails:
        ends = _random_ends(rng, np.exp(rng.uniform(*np.log(CHANNEL_LENGTH_PIX))), (n_y, n_x))
        if ends.min() < 8 or max(ends[0::2]) > n_x - 9 or max(ends[1::2]) > n_y - 9:
            continue
        part = np.linspace(0, 1, 100)
        j, i = (1 + ((ends[k] + part * (ends[k + 2] - ends[k])) // _APART_CELL_PIX).astype(int) for k in (1, 0))
        if any(taken[j + dy, i + dx].any() for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            continue
        taken[j, i] = True
        x0, y0 = (max(int(min(ends[k::2])) - _MARGIN_PIX, 0) for k in (0, 1))
        x1, y1 = (min(int(max(ends[k::2])) + _MARGIN_PIX, n) for k, n in ((0, n_x), (1, n_y)))
        own = np.zeros((y1 - y0, x1 - x0), np.float32)
        render.add_streak(own, ends.reshape(2, 2) - (x0, y0), 1.0, psf)
        snr = np.exp(rng.uniform(*np.log(CHANNEL_SNR)))
        flux = snr * sky_sigma / float(np.sqrt((own.astype(float) ** 2).sum()))
        light[y0:y1, x0:x1] += np.float32(flux) * own
        drawn.append((ends, flux, (y0, x0), own))
    photons = rng.poisson(np.maximum(light, 0) * science.gain_e).astype(np.float32) / np.float32(science.gain_e)
    return replace(science, pix=science.pix + photons), drawn


def _natural(truth: products.Science) -> NDArray:
    """The simulator's own fast movers, as trails of which nothing is asked."""
    movers = truth.table("movers")
    out = np.zeros(len(movers), TRAIL_DTYPE)
    for k, end in ((1, "start"), (2, "end")):
        for axis in "xy":
            out[f"{axis}{k}"] = movers[f"{axis}_{end}"]
    return out[np.hypot(out["x2"] - out["x1"], out["y2"] - out["y1"]) > 2]


def matches(table: NDArray, trails: NDArray, slack_pix: float = 3.0) -> tuple[NDArray, NDArray]:
    """Row that each trail was found as (-1: none), and trail of each row (-1: none, -2: a piece of one).

    A row is of a trail when its middle lies on it, its direction agrees, and it is half to twice as long.
    """
    found, of = np.full(len(trails), -1), np.full(len(table), -1)
    for k, t in enumerate(trails):
        dx, dy = t["x2"] - t["x1"], t["y2"] - t["y1"]
        length = np.hypot(dx, dy)
        x = (table["x1"] + table["x2"]) / 2 - (t["x1"] + t["x2"]) / 2
        y = (table["y1"] + table["y2"]) / 2 - (t["y1"] + t["y2"]) / 2
        along, across = (x * dx + y * dy) / length, (y * dx - x * dy) / length
        turn = np.abs((table["angle"] - np.degrees(np.arctan2(dy, dx)) + 90) % 180 - 90)
        near = (np.abs(along) < length / 2 + slack_pix) & (np.abs(across) < slack_pix + 0.02 * length)
        good = near & (turn < 5 + np.degrees(np.arctan2(2 * slack_pix, length)))
        good &= (table["length"] > min(0.5 * length, length - slack_pix)) & (table["length"] < 2 * length + slack_pix)
        of[near & (of < 0)] = -2
        of[good] = k
        rows = np.flatnonzero(good)
        found[k] = rows[np.argmax(table["snr"][rows])] if rows.size else -1
    return found, of


def labels(table: NDArray, of: NDArray, unclear: NDArray) -> NDArray:
    """1 for trails that were drawn, -1 for pieces of them and what may be a trail, 0 for the rest."""
    label = np.where(of >= 0, REAL, np.where(of == -2, UNCLEAR, FALSE))
    for k in np.flatnonzero(label == FALSE):
        row = table[k]
        dx, dy = float(row["x2"] - row["x1"]), float(row["y2"] - row["y1"])
        x, y, reach = unclear.T
        share = np.clip(((x - row["x1"]) * dx + (y - row["y1"]) * dy) / max(dx**2 + dy**2, 1e-9), 0, 1)
        if (np.hypot(x - row["x1"] - share * dx, y - row["y1"] - share * dy) < reach).any():
            label[k] = UNCLEAR
    return label


def is_fair(trails: NDArray) -> NDArray[np.bool_]:
    """Trails that are to be found when they are bright enough: long enough, usable."""
    length = np.hypot(trails["x2"] - trails["x1"], trails["y2"] - trails["y1"])
    return (trails["seen"] > LEAST_SEEN) & (length >= 5) & (length <= 300)
