"""Cosmic rays: straight muon hits and worms of Compton electrons."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

THICKNESS_PIX = 2.7  # 40 microns of silicon at 15 microns a pixel
MUON_E_PER_PIX = 1200.0  # 80 e per micron of path
WORM_E_PER_PIX = 2500.0
DIFFUSION_PIX = 0.25
STEP_PIX = 0.1
WORM_SHARE = 0.3
#: Least charge of a pixel that counts as hit in the truth.
LEAST_E = 10.0


class Hits(NamedTuple):
    """Hit pixels: flat index (int32), charge (float32, electrons) and number of the clump (int32)."""

    pixel: NDArray[np.int32]
    electrons: NDArray[np.float32]
    clump: NDArray[np.int32]


def _muon(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Straight track through the chip: path in px and electrons of each step."""
    zenith = np.arccos(rng.random() ** (1.0 / 3.0))  # flux ~ cos^2 times the projected area
    length = min(THICKNESS_PIX * np.tan(zenith), 150.0)
    n = max(6, int(length / STEP_PIX))
    t = (np.arange(n) + 0.5) / n * length
    angle = rng.uniform(0.0, 2.0 * np.pi)
    landau = 1.0 + 0.25 * rng.standard_gamma(0.6)
    total = MUON_E_PER_PIX * THICKNESS_PIX / np.cos(zenith) * landau
    total = min(total, MUON_E_PER_PIX * 150.0)
    return t * np.cos(angle), t * np.sin(angle), np.full(n, total / n)


def _worm(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Curling track of a slow electron, loss rising to its end."""
    length = rng.uniform(4.0, 45.0)
    n = int(length / STEP_PIX)
    angle = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, 0.09, n))
    x, y = np.cumsum(STEP_PIX * np.cos(angle)), np.cumsum(STEP_PIX * np.sin(angle))
    loss = 1.0 + 2.0 * np.linspace(0.0, 1.0, n) ** 2
    return x, y, WORM_E_PER_PIX * rng.uniform(0.4, 1.2) * STEP_PIX * loss


def draw_hits(rng: np.random.Generator, mean_number: float, ny: int, nx: int) -> Hits:
    """All hits in one image, charge spread by diffusion."""
    index: list[NDArray] = []
    electrons: list[NDArray] = []
    clump: list[NDArray] = []
    for k in range(int(rng.poisson(mean_number))):
        dx, dy, charge = _worm(rng) if rng.random() < WORM_SHARE else _muon(rng)
        copies = 8
        n = dx.size * copies
        x = np.rint(rng.uniform(0, nx) + np.repeat(dx, copies) + rng.normal(0.0, DIFFUSION_PIX, n)).astype(int)
        y = np.rint(rng.uniform(0, ny) + np.repeat(dy, copies) + rng.normal(0.0, DIFFUSION_PIX, n)).astype(int)
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        pixels, where = np.unique(y[inside] * nx + x[inside], return_inverse=True)
        values = np.bincount(where, weights=np.repeat(charge, copies)[inside] / copies, minlength=pixels.size)
        kept = values >= LEAST_E
        index.append(pixels[kept])
        electrons.append(values[kept])
        clump.append(np.full(int(kept.sum()), k))
    none = np.zeros(0)
    return Hits(
        np.concatenate([none, *index]).astype(np.int32),
        np.concatenate([none, *electrons]).astype(np.float32),
        np.concatenate([none, *clump]).astype(np.int32),
    )
