"""Moving objects: asteroids on Kepler orbits seen from the Earth's centre, and fast streaking objects."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GAUSS_K = 0.01720209895  # sqrt(GM_sun), au^1.5 / day
LIGHT_DAY_PER_AU = 0.0057755183
UTC_TO_TDB_S = 69.184
OBLIQUITY_DEG = 23.4392911
ORBIT_EPOCH_MJD = 59000.0
SLOPE_G = 0.15

ORBIT_DTYPE = np.dtype(
    [("id", "i8"), ("a_au", "f8"), ("e", "f8"), ("incl_deg", "f8"), ("node_deg", "f8"), ("peri_deg", "f8"),
     ("mean_anomaly_deg", "f8"), ("epoch_mjd_tdb", "f8"), ("h_mag", "f8"), ("g_r", "f8"), ("r_i", "f8")]
)  # fmt: skip


class Ephemeris(NamedTuple):
    """Apparent place (deg), V magnitude, distances to Sun and Earth (au)."""

    ra: Array
    dec: Array
    v_mag: Array
    r_au: Array
    delta_au: Array


def draw_orbits(seed: int, n: int) -> NDArray:
    """A main belt with a few near-Earth objects; H counts rise as 10^(0.33 H) to 17.3."""
    rng = np.random.default_rng([seed, 31])
    orbits = np.zeros(n, ORBIT_DTYPE)
    orbits["id"] = 100_001 + np.arange(n)
    zone = rng.choice(4, n, p=[0.34, 0.36, 0.29, 0.01])
    low, high = np.array([2.1, 2.5, 2.82, 1.1])[zone], np.array([2.5, 2.82, 3.27, 2.2])[zone]
    orbits["a_au"] = rng.uniform(low, high)
    orbits["e"] = np.where(zone == 3, rng.uniform(0.1, 0.5, n), np.minimum(rng.rayleigh(0.11, n), 0.35))
    orbits["incl_deg"] = np.minimum(rng.rayleigh(7.0, n), 35.0)
    for name in ("node_deg", "peri_deg", "mean_anomaly_deg"):
        orbits[name] = rng.uniform(0.0, 360.0, n)
    orbits["epoch_mjd_tdb"] = ORBIT_EPOCH_MJD
    orbits["h_mag"] = np.maximum(17.3 + np.log10(np.maximum(rng.random(n), 1e-7)) / 0.33, 5.0)
    stony = rng.random(n) < 0.5
    orbits["g_r"] = np.where(stony, 0.62, 0.47) + rng.normal(0.0, 0.03, n)
    orbits["r_i"] = np.where(stony, 0.20, 0.10) + rng.normal(0.0, 0.02, n)
    return orbits


def _eccentric_anomaly(mean_rad: Array, e: Array) -> Array:
    """Kepler's equation by Newton's method (eight steps reach 1e-14 for e < 0.9)."""
    mean = np.remainder(mean_rad + np.pi, 2.0 * np.pi) - np.pi
    anomaly = mean + e * np.sin(mean)
    for _ in range(8):
        anomaly = anomaly - (anomaly - e * np.sin(anomaly) - mean) / (1.0 - e * np.cos(anomaly))
    return anomaly


def heliocentric(orbits: NDArray, mjd_tdb: Array | float) -> Array:
    """Ecliptic J2000 positions (3, n), au."""
    a, e = orbits["a_au"], orbits["e"]
    mean = np.radians(orbits["mean_anomaly_deg"]) + GAUSS_K * a**-1.5 * (mjd_tdb - orbits["epoch_mjd_tdb"])
    anomaly = _eccentric_anomaly(mean, e)
    x, y = a * (np.cos(anomaly) - e), a * np.sqrt(1.0 - e * e) * np.sin(anomaly)
    w, o, i = (np.radians(orbits[k]) for k in ("peri_deg", "node_deg", "incl_deg"))
    cw, sw, co, so, ci, si = np.cos(w), np.sin(w), np.cos(o), np.sin(o), np.cos(i), np.sin(i)
    return np.array([
        (cw * co - sw * so * ci) * x + (-sw * co - cw * so * ci) * y,
        (cw * so + sw * co * ci) * x + (-sw * so + cw * co * ci) * y,
        sw * si * x + cw * si * y,
    ])  # fmt: skip


def earth(mjd_tdb: float) -> Array:
    """Heliocentric ecliptic J2000 position of the Earth (Standish's mean elements), au."""
    t = (mjd_tdb - 51544.5) / 36525.0
    orbit = np.zeros(1, ORBIT_DTYPE)
    orbit["a_au"], orbit["e"] = 1.00000261 + 0.00000562 * t, 0.01671123 - 0.00004392 * t
    orbit["incl_deg"] = -0.00001531 - 0.01294668 * t
    longitude, perihelion = 100.46457166 + 35999.37244981 * t, 102.93768193 + 0.32327364 * t
    orbit["peri_deg"], orbit["mean_anomaly_deg"] = perihelion, (longitude - perihelion) % 360.0
    orbit["epoch_mjd_tdb"] = mjd_tdb
    return heliocentric(orbit, mjd_tdb)[:, 0]


def ephemeris(orbits: NDArray, mjd_utc: float) -> Ephemeris:
    """Geocentric astrometric place with light time, and the H, G magnitude."""
    mjd = mjd_utc + UTC_TO_TDB_S / 86400.0
    observer = earth(mjd)[:, None]
    position = heliocentric(orbits, mjd)
    for _ in range(2):
        delta = np.sqrt(((position - observer) ** 2).sum(axis=0))
        position = heliocentric(orbits, mjd - LIGHT_DAY_PER_AU * delta)
    line = position - observer
    delta, r = np.sqrt((line**2).sum(axis=0)), np.sqrt((position**2).sum(axis=0))
    s, c = np.sin(np.radians(OBLIQUITY_DEG)), np.cos(np.radians(OBLIQUITY_DEG))
    equatorial = line[0], c * line[1] - s * line[2], s * line[1] + c * line[2]
    ra = np.degrees(np.arctan2(equatorial[1], equatorial[0])) % 360.0
    dec = np.degrees(np.arcsin(equatorial[2] / delta))
    cos_phase = np.clip((line * position).sum(axis=0) / (delta * r), -1.0, 1.0)
    tangent = np.tan(0.5 * np.arccos(cos_phase))
    phi = (1.0 - SLOPE_G) * np.exp(-3.33 * tangent**0.63) + SLOPE_G * np.exp(-1.87 * tangent**1.22)
    v_mag = orbits["h_mag"] + 5.0 * np.log10(r * delta) - 2.5 * np.log10(np.maximum(phi, 1e-6))
    return Ephemeris(ra, dec, v_mag, r, delta)


@lru_cache(maxsize=8)
def asteroids_near(
    seed: int, n: int, mjd: float, fields: tuple[tuple[float, float], ...], faintest_mag: float
) -> NDArray:
    """Orbits of the asteroids within six degrees of any field centre on a night."""
    orbits = draw_orbits(seed, n)
    place = ephemeris(orbits, mjd)
    near = np.zeros(n, bool)
    for ra, dec in fields:
        d_ra = (place.ra - ra + 180.0) % 360.0 - 180.0
        near |= np.hypot(d_ra * np.cos(np.radians(dec)), place.dec - dec) < 6.0
    return orbits[near & (place.v_mag < faintest_mag)]


class Streakers(NamedTuple):
    """Fast objects about one CCD: tangent-plane position (deg) at ``mjd0``, motion (arcsec/s), r magnitude, id."""

    id: NDArray[np.int64]
    xi: Array
    eta: Array
    rate_xi: Array
    rate_eta: Array
    r_mag: Array
    mjd0: float


def draw_streakers(seed: int, night: str, field: int, ccdid: int, mean_number: float, mjd0: float) -> Streakers:
    """Near-Earth objects that pass one CCD of a field on a night, 0.5 to 3 arcsec/s."""
    rng = np.random.default_rng([seed, 32, int(night), field, ccdid])
    n = int(rng.poisson(mean_number))
    rate, angle = rng.uniform(0.5, 3.0, n), rng.uniform(0.0, 2.0 * np.pi, n)
    xi, eta = rng.uniform(-0.8, 0.8, n), rng.uniform(-0.8, 0.8, n)
    number = (int(night) * 10_000 + field) * 1000 + ccdid * 10 + np.arange(n)
    return Streakers(
        number.astype(np.int64), xi, eta, rate * np.cos(angle), rate * np.sin(angle), rng.uniform(15.0, 18.5, n), mjd0
    )
