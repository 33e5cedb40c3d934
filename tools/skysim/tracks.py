"""Trails of satellites and aircraft across a CCD."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.skysim import optics
from tools.skysim.camera import Camera, Channel
from tools.skysim.survey import Exposure, Simulation

Array = NDArray[np.float64]
Image = NDArray[np.float32]

SATELLITE, AIRCRAFT = 0, 1
TRACK_TRUTH = np.dtype(
    [("id", "i4"), ("kind", "i2"), ("x0", "f8"), ("y0", "f8"), ("x1", "f8"), ("y1", "f8"), ("width_pix", "f8"),
     ("peak_dn", "f8"), ("dash_pix", "f8")]
)  # fmt: skip


class Track(NamedTuple):
    """A straight trail in the tangent plane: a point (deg), direction, FWHM (px), peak (DN/px), dashes.

    dash_pix: period of the blinking light along the trail, 0 for steady. lights: offsets of parallel trails (px).
    """

    id: int
    kind: int
    xi: float
    eta: float
    angle: float
    width_pix: float
    peak_dn: float
    dash_pix: float
    lights: tuple[float, ...]


def draw_tracks(simulation: Simulation, exposure: Exposure, ccdid: int, center: tuple[float, float]) -> list[Track]:
    """Trails over one CCD in one exposure."""
    rng = np.random.default_rng([simulation.seed, 51, exposure.seed, ccdid])
    mean = simulation.physics.tracks_per_exposure
    n = int(rng.poisson(mean)) if exposure.n_tracks < 0 else exposure.n_tracks
    found = []
    for k in range(n):
        aircraft = rng.random() < 0.15
        xi, eta = (c + rng.uniform(-0.6, 0.6) for c in center)
        angle = rng.uniform(0.0, np.pi)
        peak = 10.0 ** rng.uniform(1.3, 3.3)
        if aircraft:
            gap = rng.uniform(15.0, 40.0)
            found.append(Track(k, AIRCRAFT, xi, eta, angle, rng.uniform(6.0, 14.0), 2.0 * peak + 100.0,
                               rng.uniform(150.0, 400.0), (-gap, 0.0, gap)))  # fmt: skip
        else:
            width = exposure.seeing_pix * rng.uniform(1.0, 1.6)
            dash = rng.uniform(200.0, 900.0) if rng.random() < 0.2 else 0.0
            found.append(Track(k, SATELLITE, xi, eta, angle, width, peak, dash, (0.0,)))
    return found


def _clip(x: float, y: float, dx: float, dy: float, nx: int, ny: int, border: float) -> tuple[float, float] | None:
    """Range of the line parameter within the image and a border, or None."""
    low, high = -1e9, 1e9
    for p, d, size in ((x, dx, nx), (y, dy, ny)):
        if abs(d) < 1e-9:
            if not -border <= p <= size - 1 + border:
                return None
            continue
        a, b = sorted(((-border - p) / d, (size - 1 + border - p) / d))
        low, high = max(low, a), min(high, b)
    return (low, high) if low < high else None


def add_tracks(
    image: Image,
    simulation: Simulation,
    exposure: Exposure,
    channel: Channel,
    camera: Camera,
    pointing: optics.Pointing,
) -> NDArray:
    """Add every trail that crosses the channel, and return its end points there."""
    channels = camera.of_ccd(channel.ccdid)
    center = float(np.mean([c.xi_deg for c in channels])), float(np.mean([c.eta_deg for c in channels]))
    rows = []
    for track in draw_tracks(simulation, exposure, channel.ccdid, center):
        step = 0.02
        xi = track.xi + step * np.array([-1.0, 1.0]) * math.cos(track.angle)
        eta = track.eta + step * np.array([-1.0, 1.0]) * math.sin(track.angle)
        x, y = _linear_pixels(channel, camera, xi, eta)
        length = math.hypot(x[1] - x[0], y[1] - y[0])
        dx, dy = (x[1] - x[0]) / length, (y[1] - y[0]) / length
        span = _clip(x[0], y[0], dx, dy, camera.n_x, camera.n_y, 0.0)
        _draw_line(image, x[0], y[0], dx, dy, track)
        if span:
            ends = (x[0] + span[0] * dx, y[0] + span[0] * dy, x[0] + span[1] * dx, y[0] + span[1] * dy)
            rows.append((track.id, track.kind, *ends, track.width_pix, track.peak_dn, track.dash_pix))
    return np.array(rows, TRACK_TRUTH)


def _linear_pixels(channel: Channel, camera: Camera, xi: Array, eta: Array) -> tuple[Array, Array]:
    """Pixels by the linear map alone: a trail is straight within a pixel, and may start far from the channel."""
    c11, c12, c21, c22 = channel.cd_deg
    inverse = np.linalg.inv(np.array([[c11, c12], [c21, c22]]))
    d_xi, d_eta = xi - channel.xi_deg, eta - channel.eta_deg
    x = inverse[0, 0] * d_xi + inverse[0, 1] * d_eta + 0.5 * (camera.n_x - 1)
    return x, inverse[1, 0] * d_xi + inverse[1, 1] * d_eta + 0.5 * (camera.n_y - 1)


def _draw_line(image: Image, x: float, y: float, dx: float, dy: float, track: Track) -> None:
    """Add the trail's lights: a Moffat-like cross-section, walked along the axis nearest to the trail."""
    if abs(dy) > abs(dx):
        _draw_line(image.T, y, x, dy, dx, track)
        return
    ny, nx = image.shape
    alpha = 0.5 * track.width_pix / math.sqrt(2.0 ** (1.0 / 2.5) - 1.0)
    reach = 5.0 * track.width_pix
    for offset in track.lights:
        columns = np.arange(nx)
        center = y + offset / dx + (columns - x) * dy / dx
        half = math.ceil(reach / abs(dx))
        near = (center > -half) & (center < ny + half)
        columns, center = columns[near], center[near]
        rows = np.rint(center).astype(int)[:, None] + np.arange(-half, half + 1)[None, :]
        distance = (rows - center[:, None]) * abs(dx)
        light = track.peak_dn * (1.0 + (distance / alpha) ** 2) ** -2.5
        light *= _blink(columns / dx, track)[:, None]
        inside = (rows >= 0) & (rows < ny)
        image[rows[inside], np.broadcast_to(columns[:, None], rows.shape)[inside]] += light[inside].astype(np.float32)


def _blink(along_pix: NDArray, track: Track) -> NDArray:
    """Brightness along the trail: steady, or strobe flashes over a faint steady light."""
    if track.dash_pix == 0.0:
        return np.ones_like(along_pix)
    phase = np.remainder(along_pix / track.dash_pix + 0.37 * track.id, 1.0)
    return 0.15 + 0.85 * (phase < 0.35)
