"""The CCDs: fixed maps of each channel, and the way from expected electrons to the numbers in a raw file.

Every map of a channel follows from its rcid alone, so all exposures share them. Images are (ny, nx) float32.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.skysim.camera import Camera, Channel

Array = NDArray[np.float64]
Image = NDArray[np.float32]

BIAS_LEVEL_DN = 1000.0
#: Charge that a pixel holds, over the camera file's saturation level; above it charge bleeds along the column.
FULL_WELL_FACTOR = 1.03
READOUT_S = 8.0
VIGNETTING_AT_CORNER = 0.06
CORNER_DEG = 4.9
PRNU_SIGMA = 0.007
#: PRNU of each filter relative to r.
PRNU_FACTOR = {"zg": 1.15, "zr": 1.0, "zi": 0.9}
#: Deferred charge: share of the last column's signal in the first over-scan column, and decay per column.
TRAIL_FRACTION, TRAIL_DECAY = 4e-4, 0.35
#: Traps hold back this much of even a faint column, DN, filled by a signal of TRAP_SIGNAL_DN.
TRAP_DN, TRAP_SIGNAL_DN = 3.0, 60.0

# Bits of the survey's mask that the simulator's defects belong to.
BIT_LOW, BIT_HIGH, BIT_NOISY, BIT_DEAD = 4, 8, 16, 512


@dataclass(frozen=True)
class Defects:
    """Bad pixels of a channel as flat indices (sorted) with one value each.

    response: factor on the sensitivity (dead 0, low, high). dark_e_s: dark current of hot pixels.
    noise_e: extra read noise of noisy pixels.
    """

    response_index: NDArray[np.intp]
    response: Image
    hot_index: NDArray[np.intp]
    dark_e_s: Image
    noisy_index: NDArray[np.intp]
    noise_e: Image


@dataclass(frozen=True)
class Maps:
    """Fixed maps of a channel: bias structure (DN), PRNU (mean 1), dust (<= 1), defects."""

    bias_dn: Image
    prnu: Image
    dust: Image
    defects: Defects


def centred_axes(camera: Camera) -> tuple[Image, Image]:
    """u (1, nx) and v (ny, 1): pixel coordinates scaled to +-1."""
    u = (np.arange(camera.n_x) - 0.5 * (camera.n_x - 1)) / (0.5 * camera.n_x)
    v = (np.arange(camera.n_y) - 0.5 * (camera.n_y - 1)) / (0.5 * camera.n_y)
    return u.astype(np.float32)[None, :], v.astype(np.float32)[:, None]


def make_maps(camera: Camera, rcid: int) -> Maps:
    """All maps of a channel."""
    rng = np.random.default_rng([555, rcid])
    prnu = rng.standard_normal((camera.n_y, camera.n_x), np.float32)
    prnu *= np.float32(PRNU_SIGMA)
    prnu += 1.0
    return Maps(_bias_structure(camera, rng), prnu, _dust(camera, rng), _defects(camera, rng))


def _bias_structure(camera: Camera, rng: np.random.Generator) -> Image:
    """Column pattern, 2-D ramp and amplifier glow in a corner, DN relative to the over-scan."""
    u, v = centred_axes(camera)
    columns = rng.normal(0.0, 1.2, camera.n_x) + 1.5 * np.sin(2.0 * np.pi * np.arange(camera.n_x) / 16.0)
    strong = rng.choice(camera.n_x, 25, replace=False)
    columns[strong] += rng.normal(0.0, 8.0, strong.size)
    ramp = rng.normal(0.0, 1.5, 4)
    bias = (columns.astype(np.float32)[None, :] + np.float32(ramp[0]) * u).astype(np.float32)
    bias = bias + (np.float32(ramp[1]) * v + np.float32(ramp[2]) * (u * v))
    bias += 6.0 * np.exp(-(1.0 + v) * 12.0) * np.exp(-(1.0 + u) * 8.0)
    return bias.astype(np.float32)


def _dust(camera: Camera, rng: np.random.Generator) -> Image:
    """Shadows of dust grains on the windows: rings of 10 to 60 pixels, 0.5 to 4 per cent deep."""
    dust = np.ones((camera.n_y, camera.n_x), np.float32)
    for _ in range(int(rng.integers(12, 25))):
        cx, cy = int(rng.integers(0, camera.n_x)), int(rng.integers(0, camera.n_y))
        radius, hole = rng.uniform(10.0, 60.0), rng.uniform(0.0, 0.5)
        depth = rng.uniform(0.005, 0.04)
        reach = int(radius) + 4
        y0, y1 = max(cy - reach, 0), min(cy + reach + 1, camera.n_y)
        x0, x1 = max(cx - reach, 0), min(cx + reach + 1, camera.n_x)
        r = np.hypot(np.arange(y0, y1)[:, None] - cy, np.arange(x0, x1)[None, :] - cx)
        ring = 1.0 / (1.0 + np.exp((r - radius) / 1.5)) - 1.0 / (1.0 + np.exp((r - hole * radius) / 1.5))
        dust[y0:y1, x0:x1] *= (1.0 - depth * ring).astype(np.float32)
    return dust


def _defects(camera: Camera, rng: np.random.Generator) -> Defects:
    """Bad columns and isolated dead, low, high, hot and noisy pixels."""
    ny, nx = camera.n_y, camera.n_x
    values: dict[int, float] = {}
    for weakest, strongest, n in ((0.0, 0.0, 250), (0.3, 0.75, 900), (1.25, 1.6, 150)):
        index = rng.integers(0, ny * nx, n)
        values.update(zip(index.tolist(), rng.uniform(weakest, strongest, n).tolist(), strict=True))
    for _ in range(int(rng.integers(3, 7))):
        column, start = int(rng.integers(0, nx)), int(rng.integers(0, ny - 200))
        factor = float(rng.choice([0.0, 0.4, 0.7]))
        values.update({row * nx + column: factor for row in range(start, ny)})
    response_index = np.array(sorted(values), np.intp)
    response = np.array([values[k] for k in response_index.tolist()], np.float32)
    hot_index = np.unique(rng.integers(0, ny * nx, 700))
    dark = (10.0 ** rng.uniform(1.0, 3.7, hot_index.size)).astype(np.float32)
    noisy_index = np.unique(rng.integers(0, ny * nx, 1200))
    extra = (10.0 * 10.0 ** rng.uniform(0.5, 1.3, noisy_index.size)).astype(np.float32)
    return Defects(response_index, response, hot_index, dark, noisy_index, extra)


def defect_mask(camera: Camera, defects: Defects) -> NDArray[np.int16]:
    """Mask of the defects in the survey's bits: dead 9, low 2, high 3, noisy and hot 4."""
    mask = np.zeros(camera.n_y * camera.n_x, np.int16)
    r = defects.response
    bits = np.where(r == 0.0, BIT_DEAD, np.where(r < 1.0, BIT_LOW, BIT_HIGH)).astype(np.int16)
    mask[defects.response_index] |= bits
    mask[defects.hot_index] |= BIT_NOISY
    mask[defects.noisy_index] |= BIT_NOISY
    return mask.reshape(camera.n_y, camera.n_x)


def vignetting(camera: Camera, channel: Channel, u: Image, v: Image) -> Image:
    """Loss towards the edge of the field, 1 at the axis, at centred coordinates that broadcast together."""
    c11, _, _, c22 = channel.cd_deg
    xi = np.float32(channel.xi_deg) + np.float32(c11 * 0.5 * camera.n_x) * u
    eta = np.float32(channel.eta_deg) + np.float32(c22 * 0.5 * camera.n_y) * v
    r2 = xi * xi + eta * eta
    r2 *= np.float32(1.0 / CORNER_DEG**2)
    r2 *= r2
    r2 *= np.float32(-VIGNETTING_AT_CORNER)
    r2 += 1.0
    return r2


def low_frequency(rcid: int, filtercode: str, u: Image, v: Image) -> Image:
    """What the dome flat does not see: a smooth response error of about one per cent, mean near 1."""
    rng = np.random.default_rng([556, rcid, ord(filtercode[1])])
    a = (0.006 * rng.standard_normal(5)).astype(np.float32)
    along_u = a[0] * u + a[1] * (u * u - np.float32(1 / 3))
    along_v = a[2] * v + a[3] * (v * v - np.float32(1 / 3))
    response = (np.float32(1.0) + along_u) + along_v
    response += a[4] * (u * v)
    return response


def smooth_response(camera: Camera, channel: Channel, filtercode: str, x: Array, y: Array) -> Image:
    """Vignetting times low-frequency response at pixels: what a high-frequency flat leaves in a star's flux."""
    u = ((x - 0.5 * (camera.n_x - 1)) / (0.5 * camera.n_x)).astype(np.float32)
    v = ((y - 0.5 * (camera.n_y - 1)) / (0.5 * camera.n_y)).astype(np.float32)
    return vignetting(camera, channel, u, v) * low_frequency(channel.rcid, filtercode, u, v)


def lamp(channel: Channel, filtercode: str, u: Image, v: Image) -> Image:
    """Illumination by the dome lamps: smooth, up to some 8 per cent over the focal plane."""
    rng = np.random.default_rng([557, ord(filtercode[1])])
    a = rng.uniform(-0.03, 0.03, 4).astype(np.float32)
    x = np.float32(channel.xi_deg / 3.5) - np.float32(0.123) * u
    y = np.float32(channel.eta_deg / 3.5) - np.float32(0.124) * v
    return (np.float32(1.0) + a[0] * x + a[2] * (x * x)) + (a[1] * y + a[3] * (y * y))


def prnu_of_filter(maps: Maps, filtercode: str) -> Image:
    """Pixel response times dust in a filter: the high-frequency flat that the suite should find."""
    factor = np.float32(PRNU_FACTOR[filtercode])
    response = maps.prnu * factor
    response += np.float32(1.0) - factor
    response *= maps.dust
    return response


def response_map(camera: Camera, channel: Channel, maps: Maps, filtercode: str, kind: str) -> Image:
    """Response to the sky (``object``) or to the lamp (``flat``, lamp pattern included), defects included."""
    response = prnu_of_filter(maps, filtercode)
    axes = centred_axes(camera)
    response *= vignetting(camera, channel, *axes)
    if kind == "flat":
        response *= lamp(channel, filtercode, *axes)
    else:
        response *= low_frequency(channel.rcid, filtercode, *axes)
    response.ravel()[maps.defects.response_index] *= maps.defects.response
    return response


def bleed(electrons: Image, full_well_e: float) -> NDArray[np.intp]:
    """Spill charge above the full well along the columns, both ways, in place; flat indices of full pixels."""
    nx = electrons.shape[1]
    over = np.flatnonzero(electrons.ravel() > full_well_e)
    for column in np.unique(over % nx).tolist():
        charge = electrons[:, column].astype(np.float64)
        _bleed_column(charge, full_well_e)
        electrons[:, column] = charge
    if over.size == 0:
        return over
    columns = np.unique(over % nx)
    rows, which = np.nonzero(electrons[:, columns] >= np.float32(full_well_e * 0.9999))
    return np.sort(rows * nx + columns[which])


def _bleed_column(charge: Array, full_well_e: float) -> None:
    """Spread the excess of each run of overfull pixels evenly to both sides until it fits; in place."""
    over = np.flatnonzero(charge > full_well_e)
    runs = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
    for run in runs:
        excess = float((charge[run] - full_well_e).sum())
        charge[run] = full_well_e
        for step, edge in ((-1, run[0]), (1, run[-1])):
            left = 0.5 * excess
            position = int(edge) + step
            while left > 0.0 and 0 <= position < charge.size:
                room = full_well_e - charge[position]
                moved = min(max(room, 0.0), left)
                charge[position] += moved
                left -= moved
                position += step


def add_noise(electrons: Image, read_noise_e: float, rng: np.random.Generator) -> None:
    """Photon noise and read noise together, in place.

    The Poisson law is taken as a Gaussian with its third cumulant (Cornish-Fisher): for mean m and total variance
    s^2 = m + n^2, m + s z + m (z^2 - 1) / (6 s^2). Good to a per cent of the distribution for m > 30.
    """
    z = rng.standard_normal(electrons.shape, np.float32)
    for rows in np.array_split(np.arange(electrons.shape[0]), 32):
        part, draw = electrons[rows[0] : rows[-1] + 1], z[rows[0] : rows[-1] + 1]
        mean = np.maximum(part, 0.0)
        variance = mean + np.float32(read_noise_e**2)
        skew = draw * draw
        skew -= 1.0
        skew *= mean
        skew /= variance * np.float32(6.0)
        draw *= np.sqrt(variance)
        part += draw
        part += skew


def distort_linearity(signal_dn: Image, a: float, b: float) -> None:
    """True DN to measured DN in place: x with x / (a x^2 + b x + 1) = t, as a series in t (exact to 0.01 DN)."""
    series = [
        5 * a**3 + 30 * a * a * b * b, 10 * a * a * b + 10 * a * b**3 + b**5, 2 * a * a + 6 * a * b * b + b**4,
        3 * a * b + b**3, a + b * b, b, 1.0,
    ]  # fmt: skip
    for rows in np.array_split(np.arange(signal_dn.shape[0]), 32):
        t = signal_dn[rows[0] : rows[-1] + 1]
        x = t * np.float32(series[0])
        for coefficient in series[1:]:
            x += np.float32(coefficient)
            x *= t
        t[...] = x


def row_levels(n_rows: int, rng: np.random.Generator) -> Array:
    """Floating bias of each row: exposure level, slow drift and a bounded random walk, DN."""
    level = BIAS_LEVEL_DN + rng.normal(0.0, 8.0)
    t = np.linspace(-1.0, 1.0, n_rows)
    drift = rng.normal(0.0, 2.0) * t + rng.normal(0.0, 1.0) * t * t + 3.0 * np.exp(-(t + 1.0) * 15.0)
    walk = np.cumsum(rng.normal(0.0, 0.02, n_rows))
    return level + drift + walk


def quantise(levels_dn: Image, adc_max_dn: int) -> NDArray[np.uint16]:
    """Analogue-to-digital conversion."""
    np.rint(levels_dn, out=levels_dn)
    np.clip(levels_dn, 0, adc_max_dn, out=levels_dn)
    return levels_dn.astype(np.uint16)


def overscan_strip(
    camera: Camera, channel: Channel, last_column_dn: Image, levels: Array, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Over-scan columns: row level, read noise, and a trail of the last image column in the first of them."""
    noise = rng.standard_normal((camera.n_y, camera.n_overscan), np.float32)
    noise *= np.float32(channel.read_noise_e / channel.gain_e)
    noise += levels.astype(np.float32)[:, None]
    signal = np.maximum(last_column_dn, 0.0)
    held = TRAIL_FRACTION * signal + TRAP_DN * (1.0 - np.exp(-signal / TRAP_SIGNAL_DN))
    decay = TRAIL_DECAY ** np.arange(camera.n_overscan)
    noise += (held[:, None] * decay).astype(np.float32)
    return quantise(noise, camera.adc_max_dn)
