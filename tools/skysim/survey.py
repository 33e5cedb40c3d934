"""The plan of a simulation: which exposures are taken, under which conditions, and what they are called."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tools.skysim import almanac
from tools.skysim.camera import Camera
from tools.skysim.sky import SkyModel, default_stars_per_channel

CADENCE_S = 38.7
# Zero point outside the atmosphere (mag of 1 DN in 30 s), extinction per airmass, colour coefficient,
# dark-sky brightness (mag/arcsec^2).
PHOTOMETRY = {
    "zg": (26.50, 0.17, -0.050, 22.0),
    "zr": (26.38, 0.10, 0.080, 21.0),
    "zi": (25.73, 0.06, 0.025, 19.9),
}
PROGRAMS = {1: "Kulkarni", 2: "Kulkarni", 3: "Prince"}
EXPTIME_S = {"bias": 0.0, "flat": 4.0, "object": 30.0}
KIND_LETTER = {"bias": "b", "flat": "f", "object": "o"}


@dataclass(frozen=True)
class Exposure:
    """One exposure: identity, time and conditions. All magnitudes in mag, levels in DN, lengths in pixels.

    Attributes
    ----------
    kind : str
        ``bias``, ``flat`` or ``object``.
    mjd : float
        Shutter opening, UTC.
    zero_point : float
        Magnitude of 1 DN in this exposure at colour zero.
    sky_gradient : tuple of float
        Relative change of the sky per degree to the East and North.
    cloud_gradient : tuple of float
        Change of the cloud's extinction, mag per degree to the East and North.
    """

    night: str
    kind: str
    filtercode: str
    mjd: float
    field: int = 0
    ra_deg: float = 0.0
    dec_deg: float = 0.0
    program_id: int = 1
    level_dn: float = 0.0
    airmass: float = 1.0
    seeing_pix: float = 2.0
    cloud_mag: float = 0.0
    zero_point: float = 0.0
    color_coefficient: float = 0.0
    sky_dn: float = 0.0
    sky_gradient: tuple[float, float] = (0.0, 0.0)
    cloud_gradient: tuple[float, float] = (0.0, 0.0)
    n_tracks: int = 0

    @property
    def seed(self) -> int:
        """What seeds its random numbers: its time, so that other exposures of the plan do not matter."""
        return time_seed(self.mjd)

    @property
    def frame(self) -> int:
        """Running number of a slot of the night."""
        return int(self.mjd % 1.0 * 86400.0 / CADENCE_S)

    @property
    def exptime_s(self) -> float:
        """Exposure time, s."""
        return EXPTIME_S[self.kind]

    @property
    def name(self) -> str:
        """Name of the exposure, ``ztf_YYYYMMDDffffff_FFFFFF_fi``; its time is a second early, as in the survey."""
        fraction = (self.mjd - 1.65 / 86400.0) % 1.0
        return f"ztf_{self.night}{int(fraction * 1e6):06d}_{self.field:06d}_{self.filtercode}"

    def filename(self, ccdid: int) -> str:
        """Name of the raw file of a CCD."""
        return f"{self.name}_c{ccdid:02d}_{KIND_LETTER[self.kind]}.fits.fz"


@dataclass(frozen=True)
class Physics:
    """Rates and switches that a simulation may set (``physics:`` in its file).

    cosmic_per_channel: mean number of hits in 40 s. tracks_per_exposure: satellites and aircraft that cross the
    CCD. streakers_per_ccd: fast near-Earth objects. n_orbits: asteroids of the whole sky. probes_per_channel: injected
    sources of constant flux, on from the night probes_from (YYYYMMDD) on; probes_mag: their range of r.
    """

    galaxies_per_channel: float = 800.0
    transients_per_channel: float = 3.0
    variable_fraction: float = 0.02
    cosmic_per_channel: float = 80.0
    tracks_per_exposure: float = 0.5
    streakers_per_ccd: float = 0.5
    n_orbits: int = 400_000
    max_asteroid_mag: float = 21.5
    probes_per_channel: float = 0.0
    probes_from: str = ""
    probes_mag: tuple[float, float] = (15.5, 21.5)


@dataclass(frozen=True)
class Simulation:
    """A whole simulation; channels outside ``rcids`` stay dark, where it is given."""

    seed: int
    camera_path: str
    ccdids: tuple[int, ...]
    sky: SkyModel
    physics: Physics
    exposures: tuple[Exposure, ...]
    rcids: tuple[int, ...] = ()
    fields: dict[int, dict[str, float]] = field(default_factory=dict, compare=False, hash=False)

    @property
    def nights(self) -> list[str]:
        """Nights, in order."""
        return sorted({e.night for e in self.exposures})


def time_seed(mjd: float) -> int:
    """A date in whole seconds."""
    return round(mjd * 86400.0)


def _start_mjd(night: str, clock: str) -> float:
    """MJD of a UTC clock time HH:MM:SS of a night."""
    return almanac.mjd_of(datetime.datetime.strptime(f"{night} {clock}", "%Y%m%d %H:%M:%S"))


def _sky_level(filtercode: str, zero_point_top: float, extinction: float, conditions: dict[str, float]) -> float:
    """Sky in DN/px: dark sky brightened with airmass, and scattered moonlight (Krisciunas & Schaefer's shape)."""
    pixel_area = 1.012**2
    dark = 10.0 ** (-0.4 * (PHOTOMETRY[filtercode][3] - (zero_point_top - extinction))) * pixel_area
    dark *= 0.4 + 0.6 * conditions["airmass"]
    if conditions["moon_altitude"] <= 0.0:
        return dark
    separation = np.radians(max(conditions["moon_separation"], 10.0))
    scatter = 10.0 ** (5.36 - 6.15) * (1.06 + np.cos(separation) ** 2) + 10.0 ** (-np.degrees(separation) / 40.0)
    blue = {"zg": 1.6, "zr": 0.9, "zi": 0.4}[filtercode]
    phase = conditions["moon_illumination"] ** 2.5 * np.sin(np.radians(conditions["moon_altitude"])) ** 0.5
    return dark * (1.0 + 8.0 * blue * phase * scatter)


def _conditions(camera: Camera, entry: dict[str, Any], mjd: float) -> dict[str, float]:
    """Airmass and Moon for a pointing."""
    altitude, _, _ = almanac.altaz(entry["ra_deg"], entry["dec_deg"], mjd, camera.site)
    moon_ra, moon_dec = almanac.moon(mjd)
    return {
        "airmass": almanac.airmass(altitude),
        "moon_altitude": almanac.altaz(moon_ra, moon_dec, mjd, camera.site)[0],
        "moon_separation": almanac.separation_deg(entry["ra_deg"], entry["dec_deg"], moon_ra, moon_dec),
        "moon_illumination": almanac.moon_illumination(mjd),
    }


def _science(base: dict[str, Any], entry: dict[str, Any], camera: Camera, block: dict[str, Any], seed: int) -> Exposure:
    """One science exposure with its drawn (or given) conditions."""
    rng = np.random.default_rng([seed, 21, time_seed(base["mjd"])])
    conditions = _conditions(camera, entry, base["mjd"])
    top, extinction, color, _ = PHOTOMETRY[block["filter"]]
    airmass = conditions["airmass"]
    drawn_cloud = float(rng.exponential(0.15)) if rng.random() < 0.15 else 0.0
    cloud = block.get("cloud_mag", drawn_cloud)
    seeing = block.get("seeing_pix", min(float(np.clip(rng.normal(1.95, 0.25), 1.6, 2.7)) * airmass**0.6, 3.0))
    zero_point = top - extinction * airmass - cloud + rng.normal(0.0, 0.01)
    sky = _sky_level(block["filter"], top, extinction, conditions) * (1.0 + 0.5 * cloud)
    to_east, to_north = rng.normal(0.0, 0.008 + 0.03 * min(cloud, 0.5), 2)
    thicker = rng.normal(0.0, 0.05 * cloud, 2)
    return Exposure(
        **base, kind="object", filtercode=block["filter"], field=block["field"], ra_deg=entry["ra_deg"],
        dec_deg=entry["dec_deg"], program_id=block.get("program_id", 1), airmass=airmass,
        seeing_pix=float(seeing), cloud_mag=float(cloud), zero_point=float(zero_point),
        color_coefficient=float(color + rng.normal(0.0, 0.004)), sky_dn=float(sky),
        sky_gradient=(float(to_east), float(to_north)),
        cloud_gradient=(float(thicker[0]), float(thicker[1])),
        n_tracks=int(block.get("n_tracks", -1)),
    )  # fmt: skip


def _night_exposures(raw: dict[str, Any], night: dict[str, Any], camera: Camera) -> list[Exposure]:
    """All exposures of a night: bias and dome flats in the afternoon, then the science blocks."""
    found: list[Exposure] = []
    date = str(night["night"])

    def base(mjd: float) -> dict[str, Any]:
        return {"night": date, "mjd": mjd}

    for kind in ("bias", "flats"):
        for block in night.get(kind, []):
            start = _start_mjd(date, block["start"])
            for k in range(block["n"]):
                when = base(start + k * CADENCE_S / 86400.0)
                rng = np.random.default_rng([raw["seed"], 22, time_seed(when["mjd"])])
                level = block.get("level_dn", 0.0) * (1.0 + rng.normal(0.0, 0.03))
                own, code = ("bias", "bi") if kind == "bias" else ("flat", block["filter"])
                found.append(Exposure(**when, kind=own, filtercode=code, level_dn=float(level)))
    for block in night.get("science", []):
        start, entry = _start_mjd(date, block["start"]), raw["fields"][block["field"]]
        for k in range(block["n"]):
            when = start + k * block.get("every_s", CADENCE_S) / 86400.0
            found.append(_science(base(when), entry, camera, block, raw["seed"]))
    return found


def load_simulation(path: Path | str, camera: Camera | None = None) -> Simulation:
    """Read a simulation file (``config/simulations/*.yml``) and draw its conditions."""
    from tools.skysim.camera import load_camera

    raw = yaml.safe_load(Path(path).read_text())
    camera = camera or load_camera(raw["camera"])
    exposures: list[Exposure] = []
    for night in raw["nights"]:
        exposures += _night_exposures(raw, night, camera)
    physics = Physics(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.get("physics", {}).items()})
    mjd = [e.mjd for e in exposures]
    rows = tuple(
        (f["ra_deg"], f["dec_deg"], f.get("stars_per_channel") or default_stars_per_channel(f["ra_deg"], f["dec_deg"]))
        for f in raw["fields"].values()
    )
    sky = SkyModel(
        raw["seed"], rows, physics.galaxies_per_channel, physics.transients_per_channel, physics.variable_fraction,
        (np.floor(min(mjd)) - 40.0, np.floor(max(mjd)) + 5.0),
        physics.probes_per_channel, _start_mjd(physics.probes_from, "00:00:00") if physics.probes_from else 0.0,
        physics.probes_mag,
    )  # fmt: skip
    return Simulation(
        raw["seed"], raw["camera"], tuple(raw["ccdids"]), sky, physics, tuple(exposures),
        tuple(raw.get("rcids", ())), raw["fields"],
    )  # fmt: skip
