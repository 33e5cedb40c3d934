"""What is no light from the sky: radiation hits, bad pixels, tracks, bleeding, ghosts, careless masks."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zsds_hpc.core.maskbits import SATURATED, SPIKE, TRACK
from zsds_hpc.psf.model import PsfModel

Image = NDArray[np.float32]

#: Kinds of defects; where a candidate is none of these it is a residual of a star, or noise.
KINDS = ("spot", "muon", "worm", "half_masked_hit", "bad_pixel", "column", "row", "track", "bleed", "ghost",
         "reference_hit")  # fmt: skip
DEFECT_DTYPE = np.dtype([("x", "f8"), ("y", "f8"), ("kind", "i2")])


def add_defects(
    rng: np.random.Generator, images: tuple[Image, Image, NDArray], psf: PsfModel, noise_dn: float, rate: float = 1.0
) -> NDArray:
    """Add all kinds of defects to science, reference and mask in place; returns points on them.

    `rate` multiplies the number of small ones.
    """
    science, reference, mask = images
    points = [
        *_hits(rng, science, mask, noise_dn, rate),
        *_bad_pixels(rng, science, noise_dn, rate),
        *_lines(rng, science, noise_dn),
        *_track(rng, science, mask, psf, noise_dn),
        *_careless_saturation(rng, science, mask, noise_dn),
        *_ghost(rng, science, noise_dn),
        *_reference_hits(rng, reference, psf, noise_dn),
    ]
    table = np.zeros(len(points), DEFECT_DTYPE)
    for row, (x, y, kind) in zip(table, points):
        row["x"], row["y"], row["kind"] = x, y, KINDS.index(kind)
    return table


def _place(rng: np.random.Generator, image: Image) -> tuple[float, float]:
    return float(rng.uniform(0, image.shape[1])), float(rng.uniform(0, image.shape[0]))


def _path(rng: np.random.Generator, kind: str) -> NDArray:
    """Points (x, y) along a hit, a tenth of a pixel apart, and its relative charge."""
    if kind == "spot":
        length = rng.exponential(0.6)
    elif kind == "muon":
        length = 2 + rng.exponential(6.0)
    else:
        length = rng.uniform(3, 25)
    n = max(int(length / 0.1), 6)
    bend = 0.1 * rng.normal(0, 1, n) if kind == "worm" else np.zeros(n)
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(bend)
    step = length / n
    return np.stack([np.cumsum(step * np.cos(angle)), np.cumsum(step * np.sin(angle))])


def _deposit(rng: np.random.Generator, image: Image, kind: str, charge_dn: float) -> NDArray:
    """One hit; returns the (y, x) of its pixels. Charge is per pixel of length for tracks, in all for spots."""
    path = _path(rng, kind)
    x0, y0 = _place(rng, image)
    copies = 12
    spread = rng.normal(0, rng.uniform(0.1, 0.4), (2, path.shape[1] * copies))
    x, y = np.rint(np.repeat(path, copies, axis=1) + np.array([[x0], [y0]]) + spread).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
    total = charge_dn * (1 if kind == "spot" else 1 + path.shape[1] * 0.1 * 0.5)
    np.add.at(image, (y[inside], x[inside]), np.float32(total / x.size))
    return np.unique(np.stack([y[inside], x[inside]]), axis=1)


def _hits(rng: np.random.Generator, science: Image, mask: NDArray, noise_dn: float, rate: float) -> list:
    """Hits that nobody masked (mostly faint), and hits whose brightest pixels were masked."""
    points = []
    for _ in range(rng.poisson(90 * rate)):
        kind = str(rng.choice(["spot", "muon", "worm"], p=[0.75, 0.17, 0.08]))
        pixels = _deposit(rng, science, kind, noise_dn * np.exp(rng.uniform(np.log(15), np.log(500))))
        points += [(x, y, kind) for y, x in pixels.T[:: max(1, pixels.shape[1] // 12)]]
    for _ in range(rng.poisson(40 * rate)):
        pixels = _deposit(rng, science, "muon", noise_dn * np.exp(rng.uniform(np.log(30), np.log(500))))
        bright = science[*pixels] > noise_dn * rng.uniform(4, 15)
        kept = bright & (rng.random(bright.size) > 0.15)
        mask[*pixels[:, kept]] |= SPIKE
        points += [(x, y, "half_masked_hit") for y, x in pixels.T[:: max(1, pixels.shape[1] // 12)]]
    return points


def _bad_pixels(rng: np.random.Generator, science: Image, noise_dn: float, rate: float) -> list:
    """Single pixels that read too high or too low."""
    points = []
    for _ in range(rng.poisson(25 * rate)):
        x, y = (int(k) for k in _place(rng, science))
        science[y, x] += noise_dn * rng.choice([-1.0, 1.0]) * np.exp(rng.uniform(np.log(8), np.log(200)))
        points.append((x, y, "bad_pixel"))
    return points


def _lines(rng: np.random.Generator, science: Image, noise_dn: float) -> list:
    """Pieces of columns and rows off by a few sigma."""
    points = []
    for kind, mean in (("column", 1.0), ("row", 0.5)):
        for _ in range(rng.poisson(mean)):
            x, y = (int(k) for k in _place(rng, science))
            n, level = int(rng.uniform(10, 250)), noise_dn * rng.choice([-1.0, 1.0]) * np.exp(rng.uniform(0.7, 3.0))
            if kind == "column":
                science[y : y + n, x] += level * (1 + 0.3 * rng.normal(size=science[y : y + n, x].size))
                points += [(x, y + k, kind) for k in range(0, n, 3)]
            else:
                science[y, x : x + n] += level * (1 + 0.3 * rng.normal(size=science[y, x : x + n].size))
                points += [(x + k, y, kind) for k in range(0, n, 3)]
    return points


def _track(rng: np.random.Generator, science: Image, mask: NDArray, psf: PsfModel, noise_dn: float) -> list:
    """At times a satellite, faint or flashing, mostly unmasked."""
    if rng.random() > 0.35:
        return []
    n_y, n_x = science.shape
    (x0, y0), angle = _place(rng, science), rng.uniform(0, np.pi)
    along = np.arange(-1500, 1500, 0.25)
    x, y = x0 + along * np.cos(angle), y0 + along * np.sin(angle)
    level = noise_dn * np.exp(rng.uniform(np.log(0.7), np.log(20))) * psf.fwhm_pix
    if rng.random() < 0.5:
        level = level * (np.sin(along / rng.uniform(2, 40)) > rng.uniform(-0.5, 0.9))
    inside = (x > -0.5) & (y > -0.5) & (x < n_x - 0.5) & (y < n_y - 0.5)
    light = np.zeros_like(science)
    at = np.rint(np.stack([y, x])[:, inside]).astype(int)
    np.add.at(light, tuple(at), (np.broadcast_to(level, x.shape)[inside] * 0.25).astype(np.float32))
    light = ndimage.gaussian_filter(light, psf.fwhm_pix / 2.355)
    science += light
    if rng.random() < 0.3:
        mask[(light > 1.5 * noise_dn) & (rng.random(science.shape) < 0.97)] |= TRACK
    return [(px, py, "track") for py, px in at.T[::12]]


def _careless_saturation(rng: np.random.Generator, science: Image, mask: NDArray, noise_dn: float) -> list:
    """Bleeding along columns, and saturated stars of which too little was masked."""
    points = []
    labels, n = ndimage.label(mask & SATURATED)
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels, n), start=1):
        x, y = 0.5 * (columns.start + columns.stop - 1), 0.5 * (rows.start + rows.stop - 1)
        reach, xi = int(rng.uniform(5, 60)), round(x)
        bleed = slice(max(rows.start - reach, 0), rows.stop + reach)
        science[bleed, xi] += noise_dn * np.exp(rng.uniform(0, 4)) * rng.random(science[bleed, xi].size)
        if rng.random() < 0.4:
            own = labels[rows, columns] == k
            rim = own & ~ndimage.binary_erosion(own, iterations=int(rng.integers(1, 4)))
            mask[rows, columns][rim] = 0
            science[rows, columns][own] = np.minimum(science[rows, columns][own], 52_000.0)
        points += [(x, y + d, "bleed") for d in range(-reach - 8, reach + 9, 3)]
        points += [(x + d, y + e, "bleed") for d in range(-9, 10, 3) for e in range(-9, 10, 3)]
    return points


def _ghost(rng: np.random.Generator, science: Image, noise_dn: float) -> list:
    """At times a disc of light with a sharp edge, of which the background took the smooth part."""
    if rng.random() > 0.2:
        return []
    (x0, y0), radius = _place(rng, science), rng.uniform(20, 120)
    n_y, n_x = science.shape
    r = np.hypot(np.arange(n_x)[None, :] - x0, np.arange(n_y)[:, None] - y0)
    level = noise_dn * np.exp(rng.uniform(np.log(0.3), np.log(4)))
    light = (level * np.clip((radius - r) / rng.uniform(0.5, 4) + 0.5, 0, 1)).astype(np.float32)
    light -= ndimage.uniform_filter(light, 41)
    science += light
    rows, columns = np.nonzero(np.abs(light[::4, ::4]) > 0.15 * noise_dn)
    return [(4 * x, 4 * y, "ghost") for y, x in zip(rows, columns)]


def _reference_hits(rng: np.random.Generator, reference: Image, psf: PsfModel, noise_dn: float) -> list:
    """Remnants of hits in the reference: interpolated, at times convolved with a matching kernel."""
    layer, points = np.zeros_like(reference), []
    for _ in range(rng.poisson(12)):
        kind = str(rng.choice(["spot", "muon"]))
        pixels = _deposit(rng, layer, kind, noise_dn * np.exp(rng.uniform(np.log(10), np.log(150))))
        points += [(x, y, "reference_hit") for y, x in pixels.T[:: max(1, pixels.shape[1] // 12)]]
    reference += ndimage.gaussian_filter(layer, rng.uniform(0.25, 0.3 * psf.fwhm_pix))
    return points
