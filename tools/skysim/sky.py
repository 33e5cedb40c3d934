"""What is in the sky: stars, variables, quasars, galaxies and transients, generated tile by tile.

A tile is a cell of about half a degree on the sky with random numbers of its own, so an object is the same for
whatever exposure, CCD or rank looks at it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tools.skysim.probes import draw_probes
from tools.skysim.variables import (
    AGN,
    CEPHEID,
    CONSTANT,
    ECLIPSING,
    FLARE,
    LPV,
    ON_SKY,
    RR_LYRAE,
    draw_light_curves,
    draw_transients,
)

Array = NDArray[np.float64]

TILE_DEG = 0.5
#: Sky area of one channel, square degrees.
CHANNEL_DEG2 = 3072 * 3080 * (1.012 / 3600.0) ** 2
STAR_EPOCH_MJD = 57388.5  # J2016.0

STAR_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("pmra", "f8"), ("pmdec", "f8"), ("g", "f8"), ("r", "f8"),
     ("i", "f8"), ("kind", "i2"), ("period_d", "f8"), ("amp_mag", "f8"), ("phase", "f8")]
)  # fmt: skip
GALAXY_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("g", "f8"), ("r", "f8"), ("i", "f8"), ("r_half_arcsec", "f8"),
     ("axis_ratio", "f8"), ("pa_deg", "f8"), ("bulge", "f8")]
)  # fmt: skip

# Knots of log10 of differential star counts against r; high-latitude shape.
COUNT_R = (8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.8)
COUNT_LOG = (-3.75, -3.05, -2.43, -1.85, -1.32, -0.9, -0.5, -0.3)


@dataclass(frozen=True)
class SkyModel:
    """Settings of the sky.

    seed: of the whole simulation. fields: rows (ra_deg, dec_deg, stars_per_channel), the nearest one rules.
    galaxies_per_channel, transients_per_channel: expected numbers. variable_fraction: of the stars.
    transients_mjd: first and last date of explosion. probes_per_channel: expected number of probes; they shine from
    probes_from_mjd on, with r magnitudes uniform in probes_mag.
    """

    seed: int
    fields: tuple[tuple[float, float, float], ...]
    galaxies_per_channel: float
    transients_per_channel: float
    variable_fraction: float
    transients_mjd: tuple[float, float]
    probes_per_channel: float = 0.0
    probes_from_mjd: float = 0.0
    probes_mag: tuple[float, float] = (15.5, 21.5)


@dataclass(frozen=True)
class Tile:
    """Contents of one tile, structured arrays."""

    stars: NDArray
    galaxies: NDArray
    transients: NDArray


def galactic_latitude(ra_deg: float, dec_deg: float) -> float:
    """Galactic latitude, deg."""
    pole_ra, pole_dec = np.radians(192.85948), np.radians(27.12825)
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    sin_b = np.sin(dec) * np.sin(pole_dec) + np.cos(dec) * np.cos(pole_dec) * np.cos(ra - pole_ra)
    return float(np.degrees(np.arcsin(sin_b)))


def default_stars_per_channel(ra_deg: float, dec_deg: float) -> float:
    """Stars to r = 22.8 in a channel by galactic latitude: about 4,000 at the pole, 100,000 in the plane."""
    sin_b = abs(np.sin(np.radians(galactic_latitude(ra_deg, dec_deg))))
    return float(np.clip(4000.0 / max(sin_b, 0.04) ** 1.15, 4000.0, 100_000.0))


def tiles_around(ra_deg: float, dec_deg: float, radius_deg: float) -> list[tuple[int, int]]:
    """Tiles that touch a circle, in a fixed order."""
    found = []
    first, last = (int(np.floor((dec_deg + s * radius_deg + 90.0) / TILE_DEG)) for s in (-1, 1))
    for band in range(max(first, 0), min(last, int(180 / TILE_DEG) - 1) + 1):
        n_cells, width = _band_cells(band)
        cos_dec = max(np.cos(np.radians(min(abs(dec_deg) + radius_deg, 89.0))), 0.02)
        reach = int(np.ceil(radius_deg / cos_dec / width)) + 1
        middle = int(np.floor((ra_deg % 360.0) / width))
        cells = {(middle + k) % n_cells for k in range(-reach, reach + 1)}
        found += [(band, cell) for cell in sorted(cells)]
    return found


def _band_cells(band: int) -> tuple[int, float]:
    """Number of cells of a declination band and their width in RA (deg)."""
    middle = (band + 0.5) * TILE_DEG - 90.0
    n_cells = max(1, int(np.ceil(360.0 * np.cos(np.radians(middle)) / TILE_DEG)))
    return n_cells, 360.0 / n_cells


def _positions(rng: np.random.Generator, n: int, band: int, cell: int) -> tuple[Array, Array]:
    """Uniform positions in a tile."""
    _, width = _band_cells(band)
    low, high = (np.sin(np.radians((band + k) * TILE_DEG - 90.0)) for k in (0, 1))
    return (cell + rng.random(n)) * width, np.degrees(np.arcsin(rng.uniform(low, high, n)))


def _tile_area(band: int) -> float:
    """Solid angle of a tile, square degrees."""
    low, high = (np.sin(np.radians((band + k) * TILE_DEG - 90.0)) for k in (0, 1))
    return float(np.degrees(high - low) * _band_cells(band)[1])


def _stars_per_channel(model: SkyModel, ra: float, dec: float) -> float:
    """Density setting of the nearest field."""

    def distance(field: tuple[float, float, float]) -> float:
        d_ra = (field[0] - ra + 180.0) % 360.0 - 180.0
        return float(np.hypot(d_ra * np.cos(np.radians(dec)), field[1] - dec))

    return min(model.fields, key=distance)[2]


def _magnitudes(rng: np.random.Generator, n: int, plane: float) -> Array:
    """r magnitudes from the counts; ``plane`` in [0, 1] steepens them towards the galactic plane."""
    grid = np.linspace(COUNT_R[0], COUNT_R[-1], 600)
    density = 10.0 ** (np.interp(grid, COUNT_R, COUNT_LOG) + 0.05 * plane * (grid - 17.0))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return np.interp(rng.random(n) * cumulative[-1], cumulative, grid)


def _colors(rng: np.random.Generator, r: Array) -> tuple[Array, Array]:
    """PS1-like g-r and r-i on a stellar locus: turn-off stars and M dwarfs, more of these when fainter."""
    n = r.size
    m_dwarf = rng.random(n) < np.clip(0.12 + 0.08 * (r - 14.0), 0.05, 0.6)
    giants = rng.random(n) < 0.15
    blue = rng.normal(0.45, 0.14, n) + np.where(giants, rng.exponential(0.25, n), 0.0)
    red = rng.normal(1.20, 0.07, n)
    g_r = np.clip(np.where(m_dwarf, red, blue), -0.4, 1.5)
    r_i = np.where(m_dwarf, np.clip(0.45 + rng.exponential(0.35, n), 0.45, 2.3), 0.42 * g_r - 0.02)
    return g_r + rng.normal(0.0, 0.015, n), r_i + rng.normal(0.0, 0.015, n)


def _draw_stars(rng: np.random.Generator, model: SkyModel, band: int, cell: int) -> NDArray:
    """All stars of a tile."""
    _, width = _band_cells(band)
    ra0, dec0 = (cell + 0.5) * width, (band + 0.5) * TILE_DEG - 90.0
    per_channel = _stars_per_channel(model, ra0, dec0)
    n = int(rng.poisson(per_channel / CHANNEL_DEG2 * _tile_area(band)))
    stars = np.zeros(n, STAR_DTYPE)
    stars["ra"], stars["dec"] = _positions(rng, n, band, cell)
    plane = float(np.clip(np.log10(per_channel / 4000.0) / np.log10(25.0), 0.0, 1.0))
    stars["r"] = _magnitudes(rng, n, plane)
    g_r, r_i = _colors(rng, stars["r"])
    stars["g"], stars["i"] = stars["r"] + g_r, stars["r"] - r_i
    # Nearer (brighter or redder) stars move more; heavy-tailed, median about 5 mas/yr.
    speed = 4.0 * rng.standard_gamma(1.2, n) * (1.0 + 6.0 * (rng.random(n) < 0.03)) + np.clip(18 - stars["r"], 0, 8)
    angle = rng.uniform(0.0, 2.0 * np.pi, n)
    stars["pmra"], stars["pmdec"] = speed * np.cos(angle), speed * np.sin(angle) - 3.0
    _make_variable(rng, stars, model.variable_fraction)
    return stars


def _make_variable(rng: np.random.Generator, stars: NDArray, fraction: float) -> None:
    """Turn a fraction of the stars into variables and quasars, in place."""
    n = stars.size
    is_variable = rng.random(n) < fraction
    faint = stars["r"] > 17.5
    kinds = np.where(
        faint, rng.choice([RR_LYRAE, ECLIPSING, FLARE, AGN], n), rng.choice([RR_LYRAE, CEPHEID, LPV, ECLIPSING], n)
    )
    stars["kind"] = np.where(is_variable, kinds, CONSTANT)
    colors = {RR_LYRAE: (0.2, 0.05), CEPHEID: (0.6, 0.2), LPV: (1.4, 0.9), FLARE: (1.25, 1.1), AGN: (0.15, 0.1)}
    for kind, (g_r, r_i) in colors.items():
        own = stars["kind"] == kind
        stars["g"][own], stars["i"][own] = stars["r"][own] + g_r, stars["r"][own] - r_i
    quasar = stars["kind"] == AGN
    stars["pmra"][quasar] = 0.0
    stars["pmdec"][quasar] = 0.0
    stars["period_d"], stars["amp_mag"], stars["phase"] = draw_light_curves(rng, stars["kind"])


def _draw_galaxies(rng: np.random.Generator, model: SkyModel, band: int, cell: int) -> NDArray:
    """Galaxies to r = 22: exponential discs with de Vaucouleurs bulges."""
    n = int(rng.poisson(model.galaxies_per_channel / CHANNEL_DEG2 * _tile_area(band)))
    galaxies = np.zeros(n, GALAXY_DTYPE)
    galaxies["ra"], galaxies["dec"] = _positions(rng, n, band, cell)
    r = np.maximum(22.0 + np.log10(np.maximum(rng.random(n), 1e-12)) / 0.42, 13.5)  # counts 10^(0.42 m)
    galaxies["r"] = r
    galaxies["g"] = r + rng.normal(0.7, 0.25, n)
    galaxies["i"] = r - rng.normal(0.35, 0.12, n)
    galaxies["r_half_arcsec"] = np.clip(1.2 * 10.0 ** (-0.13 * (r - 20.0)) * rng.lognormal(0.0, 0.35, n), 0.4, 25.0)
    galaxies["axis_ratio"] = rng.uniform(0.3, 1.0, n)
    galaxies["pa_deg"] = rng.uniform(0.0, 180.0, n)
    galaxies["bulge"] = np.where(rng.random(n) < 0.3, 1.0, rng.uniform(0.0, 0.4, n))
    return galaxies


def _draw_probes(model: SkyModel, band: int, cell: int, stars: NDArray, galaxies: NDArray) -> NDArray:
    """Probes of a tile, from random numbers of their own: nothing else changes with them."""
    rng = np.random.default_rng([model.seed, 12, band, cell])
    n = int(rng.poisson(model.probes_per_channel / CHANNEL_DEG2 * _tile_area(band)))
    table = draw_probes(rng, n, stars, galaxies, model.probes_from_mjd, model.probes_mag)
    blank = table["kind"] == ON_SKY
    ra, dec = _positions(rng, n, band, cell)
    table["ra"][blank], table["dec"][blank] = ra[blank], dec[blank]
    return table


@lru_cache(maxsize=256)
def make_tile(model: SkyModel, band: int, cell: int) -> Tile:
    """Everything in one tile; ids are tile number * 10^7 + (0, 5e6 for galaxies, 8e6 for transients) + index."""
    rng = np.random.default_rng([model.seed, 11, band, cell])
    stars = _draw_stars(rng, model, band, cell)
    galaxies = _draw_galaxies(rng, model, band, cell)
    n_transients = int(rng.poisson(model.transients_per_channel / CHANNEL_DEG2 * _tile_area(band)))
    transients = draw_transients(rng, n_transients, galaxies, model.transients_mjd)
    hostless = transients["host_index"] < 0
    ra, dec = _positions(rng, n_transients, band, cell)
    transients["ra"][hostless], transients["dec"][hostless] = ra[hostless], dec[hostless]
    if model.probes_per_channel > 0.0:
        transients = np.concatenate([transients, _draw_probes(model, band, cell, stars, galaxies)])
        hostless = transients["host_index"] < 0
    base = (band * 1000 + cell) * 10_000_000
    for table, offset in ((stars, 0), (galaxies, 5_000_000), (transients, 8_000_000)):
        table["id"] = base + offset + np.arange(table.size)
    transients["host_id"] = np.where(hostless, -1, base + 5_000_000 + transients["host_index"])
    return Tile(stars, galaxies, transients)


def objects_around(model: SkyModel, ra_deg: float, dec_deg: float, radius_deg: float) -> Tile:
    """Everything within the tiles that touch a circle (so somewhat beyond it)."""
    tiles = [make_tile(model, band, cell) for band, cell in tiles_around(ra_deg, dec_deg, radius_deg)]
    return Tile(
        np.concatenate([t.stars for t in tiles]),
        np.concatenate([t.galaxies for t in tiles]),
        np.concatenate([t.transients for t in tiles]),
    )


def stars_at(stars: NDArray, mjd: float) -> tuple[Array, Array]:
    """RA, Dec (deg) of stars at a date: proper motion from J2016.0, no parallax."""
    years = (mjd - STAR_EPOCH_MJD) / 365.25
    dec = stars["dec"] + stars["pmdec"] * years / 3.6e6
    ra = stars["ra"] + stars["pmra"] * years / 3.6e6 / np.cos(np.radians(stars["dec"]))
    return ra % 360.0, dec
