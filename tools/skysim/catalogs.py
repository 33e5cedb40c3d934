"""Gaia-like and PS1-like reference catalogues of the simulated sky, with errors and gaps, as Parquet files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tools.skysim import optics, sky
from tools.skysim.camera import Camera
from tools.skysim.scene import ccd_center, ccd_radius_deg
from tools.skysim.survey import Simulation

Array = NDArray[np.float64]

GAIA_LIMIT_MAG = 20.7
PS1_BRIGHT_MAG, PS1_LIMIT_MAG = 14.0, 22.0
PS1_EPOCH_MJD = 56200.0
#: What the PS1 archive puts where it has no measurement.
PS1_MISSING = -999.0


def simulated_tiles(simulation: Simulation, camera: Camera) -> list[tuple[int, int]]:
    """Tiles of the sky that any simulated CCD can see, sorted."""
    tiles: set[tuple[int, int]] = set()
    for entry in simulation.fields.values():
        for ccdid in simulation.ccdids:
            xi, eta = (np.asarray(c) for c in ccd_center(camera, ccdid))
            ra, dec = optics.gnomonic_inverse(xi, eta, entry["ra_deg"], entry["dec_deg"])
            tiles |= set(sky.tiles_around(float(ra), float(dec), ccd_radius_deg(camera)))
    return sorted(tiles)


def gaia_magnitudes(g: Array, r: Array, i: Array) -> tuple[Array, Array]:
    """Gaia G and BP-RP from PS1 g, r, i (smooth relations of the right size)."""
    g_i = g - i
    return r + 0.05 - 0.06 * g_i - 0.04 * g_i**2, 0.35 + 0.80 * g_i - 0.03 * g_i**2


def gaia_rows(tile: sky.Tile, rng: np.random.Generator) -> dict[str, NDArray]:
    """What Gaia lists of a tile, epoch 2016.0; errors 0.02 mas (bright) to 1 mas (faint)."""
    stars = tile.stars
    g_mag, bp_rp = gaia_magnitudes(stars["g"], stars["r"], stars["i"])
    error = np.clip(0.02 * 10.0 ** (0.29 * (g_mag - 15.0)), 0.02, 1.2)
    crowding = min(stars.size / 40_000.0, 0.25)
    chance = np.where(g_mag < 20.0, 0.985 - 0.3 * crowding, 0.90 - crowding)
    chance = np.where(g_mag < 9.0, 0.8, chance)
    draws = rng.standard_normal((5, stars.size))
    kept = (g_mag < GAIA_LIMIT_MAG) & (rng.random(stars.size) < chance)
    cos_dec = np.cos(np.radians(stars["dec"]))
    rows = {
        "source_id": stars["id"],
        "ra": stars["ra"] + draws[0] * error / 3.6e6 / cos_dec,
        "dec": stars["dec"] + draws[1] * error / 3.6e6,
        "ref_epoch": np.full(stars.size, 2016.0),
        "pmra": stars["pmra"] + draws[2] * error,
        "pmdec": stars["pmdec"] + draws[3] * error,
        "ra_error": error,
        "dec_error": error,
        "phot_g_mean_mag": (g_mag + 0.003 * draws[4]).astype(np.float32),
        "bp_rp": (bp_rp + 0.02 * rng.standard_normal(stars.size)).astype(np.float32),
    }
    return {name: values[kept] for name, values in rows.items()}


def ps1_rows(tile: sky.Tile, rng: np.random.Generator) -> dict[str, NDArray]:
    """What PS1 lists of a tile: stars at its mean epoch and galaxies (whose PSF magnitudes miss some light)."""
    stars, galaxies = tile.stars, tile.galaxies
    ra, dec = sky.stars_at(stars, PS1_EPOCH_MJD)
    ra, dec = np.concatenate([ra, galaxies["ra"]]), np.concatenate([dec, galaxies["dec"]])
    missed = 0.6 * np.log10(1.0 + (galaxies["r_half_arcsec"] / 0.5) ** 2)
    floor = rng.uniform(0.005, 0.012, ra.size)
    rows = {
        "objID": np.concatenate([stars["id"], galaxies["id"]]),
        "raMean": ra + rng.normal(0.0, 0.01, ra.size) / 3600.0 / np.cos(np.radians(dec)),
        "decMean": dec + rng.normal(0.0, 0.01, ra.size) / 3600.0,
    }
    seen = np.zeros(ra.size, bool)
    for band in "gri":
        mag = np.concatenate([stars[band], galaxies[band] + missed])
        error = np.hypot(floor, 0.05 * 10.0 ** (0.4 * (mag - PS1_LIMIT_MAG)))
        measured = (mag > PS1_BRIGHT_MAG) & (mag < PS1_LIMIT_MAG + 0.8)
        value = mag + error * rng.standard_normal(ra.size)
        rows[f"{band}MeanPSFMag"] = np.where(measured, value, PS1_MISSING)
        rows[f"{band}MeanPSFMagErr"] = np.where(measured, error, PS1_MISSING)
        seen |= measured & (mag < PS1_LIMIT_MAG)
    kept = seen & (rng.random(ra.size) < 0.985)
    return {name: values[kept] for name, values in rows.items()}


def write_catalogs(simulation: Simulation, camera: Camera, folder: Path) -> list[Path]:
    """Write ``gaia.parquet`` and ``ps1.parquet`` for everything simulated."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[dict[str, NDArray]]] = {"gaia": [], "ps1": []}
    for band, cell in simulated_tiles(simulation, camera):
        tile = sky.make_tile(simulation.sky, band, cell)
        rng = np.random.default_rng([simulation.seed, 71, band, cell])
        parts["gaia"].append(gaia_rows(tile, rng))
        parts["ps1"].append(ps1_rows(tile, rng))
    written = []
    for name, rows in parts.items():
        columns = {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}
        path = folder / f"{name}.parquet"
        temporary = path.with_suffix(".tmp")
        pq.write_table(pa.table(columns), temporary, compression="zstd")
        temporary.rename(path)
        written.append(path)
    return written
