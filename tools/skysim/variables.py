"""Light curves of variables and transients: deterministic functions of the object and the date."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONSTANT, RR_LYRAE, CEPHEID, LPV, ECLIPSING, FLARE, AGN = range(7)
KIND_NAMES = ("constant", "RR Lyrae", "Cepheid", "long-period", "eclipsing", "flare", "quasar")
SN_IA, SN_II, CV, ON_SKY, ON_GALAXY, ON_STAR = range(6)
#: Probes are injected sources of constant flux (see `probes`).
PROBE_KINDS = (ON_SKY, ON_GALAXY, ON_STAR)
TRANSIENT_NAMES = (
    "supernova Ia", "supernova II", "dwarf nova", "probe on sky", "probe on galaxy", "probe on star"
)  # fmt: skip

TRANSIENT_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("kind", "i2"), ("host_index", "i8"), ("host_id", "i8"),
     ("t_peak_mjd", "f8"), ("peak_r", "f8"), ("g_r", "f8"), ("r_i", "f8")]
)  # fmt: skip

#: Amplitude in g and i relative to r.
BAND_FACTOR = {"g": 1.3, "r": 1.0, "i": 0.8}
# Rise and decline of transients by kind: days to rise e-fold, plateau, decline in mag/day.
RISE_D = np.array([4.0, 2.5, 0.7])
PLATEAU_D = np.array([3.0, 70.0, 4.0])
DECLINE_MAG_D = np.array([0.075, 0.03, 0.4])


def draw_light_curves(rng: np.random.Generator, kind: NDArray) -> tuple[Array, Array, Array]:
    """Period (d), amplitude (mag, in r) and phase of each object; zero amplitude for constants."""
    n = kind.size
    log_period = {RR_LYRAE: (-0.45, -0.1), CEPHEID: (0.3, 1.3), LPV: (1.9, 2.6), ECLIPSING: (-0.5, 0.9),
                  FLARE: (0.0, 0.8), AGN: (1.5, 2.5)}  # fmt: skip
    amplitude = {RR_LYRAE: (0.4, 1.1), CEPHEID: (0.4, 1.0), LPV: (0.8, 4.0), ECLIPSING: (0.1, 0.8),
                 FLARE: (0.3, 3.0), AGN: (0.1, 0.5)}  # fmt: skip
    period, amp = np.zeros(n), np.zeros(n)
    one, two = rng.random(n), rng.random(n)
    for code in log_period:
        own = kind == code
        low, high = log_period[code]
        period[own] = 10.0 ** (low + (high - low) * one[own])
        low, high = amplitude[code]
        amp[own] = low + (high - low) * two[own]
    return period, amp, rng.random(n)


def _sawtooth(phase: Array) -> Array:
    """Pulsator: fast rise, slow decline, mean 0, peak to peak 1 (positive = fainter)."""
    return np.where(phase < 0.85, phase / 0.85, (1.0 - phase) / 0.15) - 0.5


def _eclipse(phase: Array) -> Array:
    """Two eclipses of widths 0.12; the second half as deep."""
    first = np.exp(-0.5 * (np.minimum(phase, 1.0 - phase) / 0.03) ** 2)
    return first + 0.5 * np.exp(-0.5 * ((phase - 0.5) / 0.03) ** 2)


def _flare(phase: Array, period_d: Array) -> Array:
    """Minutes-long flare once a period: sudden rise, exponential decay of 20 minutes (negative = brighter)."""
    return -np.exp(-phase * period_d * 72.0)


def _wander(phase: Array, mjd: float, period_d: Array) -> Array:
    """Quasar: five incommensurate waves with a red spectrum, near unit peak to peak."""
    total = np.zeros_like(phase)
    for k in range(1, 6):
        total = total + np.sin(2.0 * np.pi * (mjd / (period_d / k**1.3) + phase * 7.77 * k)) / k
    return 0.35 * total


def magnitude_change(stars: NDArray, mjd: float, band: str) -> Array:
    """Change of magnitude of each star at a date in a band (mag, positive = fainter)."""
    change = np.zeros(stars.size)
    moving = np.flatnonzero(stars["kind"] != CONSTANT)
    if moving.size == 0:
        return change
    sub = stars[moving]
    kind, period = sub["kind"], np.maximum(sub["period_d"], 1e-3)
    phase = ((mjd - 55000.0) / period + sub["phase"]) % 1.0
    shapes = [
        (np.isin(kind, (RR_LYRAE, CEPHEID)), _sawtooth(phase)),
        (kind == LPV, 0.5 * np.cos(2.0 * np.pi * phase)),
        (kind == ECLIPSING, _eclipse(phase)),
        (kind == FLARE, _flare(phase, period)),
        (kind == AGN, _wander(sub["phase"], mjd, period)),
    ]
    shape = np.select([own for own, _ in shapes], [value for _, value in shapes], 0.0)
    grey = kind == ECLIPSING
    change[moving] = sub["amp_mag"] * shape * np.where(grey, 1.0, BAND_FACTOR[band])
    return change


def draw_transients(rng: np.random.Generator, n: int, galaxies: NDArray, mjd_range: tuple[float, float]) -> NDArray:
    """Transients of a tile: two thirds in galaxies (where there are any), the others anywhere (positions unset)."""
    table = np.zeros(n, TRANSIENT_DTYPE)
    table["host_index"] = -1
    table["kind"] = rng.choice([SN_IA, SN_II, CV], n, p=[0.5, 0.25, 0.25])
    hosted = (table["kind"] != CV) & (rng.random(n) < 0.9) & (galaxies.size > 0)
    if galaxies.size:
        host = rng.integers(0, galaxies.size, n)
        radius = galaxies["r_half_arcsec"][host] * np.abs(rng.normal(0.0, 1.0, n)) / 3600.0
        angle = rng.uniform(0.0, 2.0 * np.pi, n)
        table["host_index"] = np.where(hosted, host, -1)
        table["dec"] = galaxies["dec"][host] + radius * np.sin(angle)
        table["ra"] = galaxies["ra"][host] + radius * np.cos(angle) / np.cos(np.radians(table["dec"]))
    table["t_peak_mjd"] = rng.uniform(*mjd_range, n)
    table["peak_r"] = rng.uniform(16.5, 21.0, n)
    table["g_r"], table["r_i"] = rng.normal(0.1, 0.15, n), rng.normal(0.0, 0.1, n)
    return table


def transient_magnitude(table: NDArray, mjd: float, band: str) -> Array:
    """Magnitude of each transient at a date (99 before it is seen at all); probes are constant from their date on."""
    t = mjd - table["t_peak_mjd"]
    is_probe = np.isin(table["kind"], PROBE_KINDS)
    kind = np.where(is_probe, CV, table["kind"])
    rising = 1.0857 * (t / (0.5 * RISE_D[kind])) ** 2 * 0.35
    late = np.maximum(t - PLATEAU_D[kind], 0.0) * DECLINE_MAG_D[kind]
    change = np.where(t < 0.0, rising, late)
    change = np.where(is_probe, np.where(t < 0.0, 99.0, 0.0), change)
    color = np.clip(t, 0.0, 30.0) / 30.0 * np.where(kind == SN_IA, 0.9, np.where(is_probe, 0.0, 0.4))
    offset = {"g": table["g_r"] + color, "r": 0.0 * color, "i": -table["r_i"] - 0.3 * color}[band]
    magnitude = table["peak_r"] + change + offset
    return np.where(magnitude < 26.0, magnitude, 99.0)
