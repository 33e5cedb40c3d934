"""Injected point sources of constant flux that shine from a given night on: the yardstick of discovery.

A declared number per channel, half of them in galaxies near their cores, a third on blank sky, the rest on stars. Half
of the magnitudes are uniform, half in the faintest part of the range, where it is decided what is found. They are
transients like others in the truth, told apart by their kind.
"""

import numpy as np
from numpy.typing import NDArray

from tools.skysim.variables import ON_GALAXY, ON_SKY, ON_STAR, TRANSIENT_DTYPE

SHARES = {ON_GALAXY: 0.5, ON_SKY: 0.35, ON_STAR: 0.15}
#: Hosts: galaxies that a survey sees, stars that do not saturate; offsets in half-light radii and in arcsec.
GALAXY_R, STAR_R = (14.0, 20.5), (15.0, 19.5)
GALAXY_OFFSET, STAR_OFFSET_ARCSEC = 0.3, 0.5
#: Width of the faintest part of the magnitudes.
FAINT_MAG = 2.0


def draw_probes(
    rng: np.random.Generator, n: int, stars: NDArray, galaxies: NDArray, from_mjd: float, mag_range: tuple[float, float]
) -> NDArray:
    """Probes of a tile; those on blank sky (and those that find no host) still need their positions.

    `host_index` counts the galaxies for probes in galaxies, and is -1 for others.
    """
    table = np.zeros(n, TRANSIENT_DTYPE)
    table["host_index"], table["t_peak_mjd"] = -1, from_mjd
    table["kind"] = rng.choice(list(SHARES), n, p=list(SHARES.values()))
    bright, faint = mag_range
    brightest = np.where(rng.random(n) < 0.5, bright, max(bright, faint - FAINT_MAG))
    table["peak_r"] = brightest + (faint - brightest) * rng.random(n)
    table["g_r"], table["r_i"] = rng.normal(0.4, 0.2, n), rng.normal(0.15, 0.1, n)
    for kind, hosts, limits in ((ON_GALAXY, galaxies, GALAXY_R), (ON_STAR, stars, STAR_R)):
        fit = np.flatnonzero((hosts["r"] > limits[0]) & (hosts["r"] < limits[1]))
        own = np.flatnonzero(table["kind"] == kind)
        if not fit.size:
            table["kind"][own] = ON_SKY
            continue
        host = fit[rng.integers(0, fit.size, own.size)]
        scale = galaxies["r_half_arcsec"][host] * GALAXY_OFFSET if kind == ON_GALAXY else STAR_OFFSET_ARCSEC
        _put_near(rng, table, own, hosts[host], scale)
        if kind == ON_GALAXY:
            table["host_index"][own] = host
    return table


def _put_near(rng: np.random.Generator, table: NDArray, own: NDArray, hosts: NDArray, scale_arcsec) -> None:
    """Place some probes about their hosts, in place: offsets normal along both axes."""
    shift = rng.normal(0.0, 1.0, (2, own.size)) * scale_arcsec / 3600.0
    table["dec"][own] = hosts["dec"] + shift[1]
    table["ra"][own] = hosts["ra"] + shift[0] / np.cos(np.radians(hosts["dec"]))
