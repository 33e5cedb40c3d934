"""The light that reaches one channel in one science exposure: expected counts in DN, and what caused them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.skysim import movers, optics, render, sky, tracks, variables
from tools.skysim.camera import Camera, Channel
from tools.skysim.survey import Exposure, Simulation

Array = NDArray[np.float64]
Image = NDArray[np.float32]

MARGIN_PIX = 140.0
#: Around a CCD: pointing error, and light that reaches in from outside.
CCD_MARGIN_DEG = 0.127

_COMMON = [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("x", "f8"), ("y", "f8"), ("mag", "f8"), ("color", "f8"),
           ("flux_dn", "f8"), ("smooth_response", "f4")]  # fmt: skip
STAR_TRUTH = np.dtype(
    [*_COMMON, ("g", "f4"), ("r", "f4"), ("i", "f4"), ("pmra", "f4"), ("pmdec", "f4"), ("kind", "i2"),
     ("peak_dn", "f4"), ("saturated", "?")]
)  # fmt: skip
GALAXY_TRUTH = np.dtype([*_COMMON, ("r_half_arcsec", "f4"), ("axis_ratio", "f4"), ("pa_deg", "f4"), ("bulge", "f4")])
TRANSIENT_TRUTH = np.dtype([*_COMMON, ("kind", "i2"), ("host_id", "i8"), ("t_peak_mjd", "f8")])
MOVER_TRUTH = np.dtype(
    [*_COMMON, ("fast", "?"), ("x_start", "f8"), ("y_start", "f8"), ("x_end", "f8"), ("y_end", "f8"),
     ("rate_arcsec_s", "f8")]
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """One channel in one exposure: everything that maps sky to pixels and magnitudes to DN."""

    camera: Camera
    channel: Channel
    exposure: Exposure
    pointing: optics.Pointing
    psf: optics.Psf

    @property
    def band(self) -> str:
        """g, r or i."""
        return self.camera.filters[self.exposure.filtercode]["band"]

    def to_pixel(self, ra: Array, dec: Array) -> tuple[Array, Array]:
        """Sky to pixel."""
        return optics.sky_to_pixel(self.channel, self.camera, self.pointing, ra, dec)

    @property
    def zero_point(self) -> float:
        """Zero point at the centre of the channel, the cloud there included."""
        east, north = self.exposure.cloud_gradient
        return self.exposure.zero_point - east * self.channel.xi_deg - north * self.channel.eta_deg

    @property
    def sky_dn(self) -> float:
        """Sky at the centre of the channel, DN/px above the camera."""
        e = self.exposure
        return e.sky_dn * (1.0 + e.sky_gradient[0] * self.channel.xi_deg + e.sky_gradient[1] * self.channel.eta_deg)

    def flux_dn(self, mag: Array, color: Array, x: Array, y: Array) -> Array:
        """DN above the camera of a source: mag = -2.5 log10(DN) + ZP + c * colour, through the cloud at its place."""
        east, north = self.exposure.cloud_gradient
        c11, _, _, c22 = self.channel.cd_deg
        cloud = east * c11 * (x - 0.5 * self.camera.n_x) + north * c22 * (y - 0.5 * self.camera.n_y)
        return 10.0 ** (-0.4 * (mag - self.zero_point + cloud - self.exposure.color_coefficient * color))

    def color_of(self, g: Array, r: Array, i: Array) -> Array:
        """The filter's colour: g - r or r - i."""
        first, second = self.camera.filters[self.exposure.filtercode]["color"]
        bands = {"g": g, "r": r, "i": i}
        return bands[first] - bands[second]


class Scene(NamedTuple):
    """Light of one channel: DN without detector response, and truth tables."""

    image_dn: Image
    stars: NDArray
    galaxies: NDArray
    transients: NDArray
    movers: NDArray
    tracks: NDArray


@lru_cache(maxsize=4)
def _objects(simulation: Simulation, field: int, xi: float, eta: float, radius_deg: float) -> sky.Tile:
    """Objects about one CCD of a field; kept for the next exposure."""
    entry = simulation.fields[field]
    ra, dec = optics.gnomonic_inverse(np.asarray(xi), np.asarray(eta), entry["ra_deg"], entry["dec_deg"])
    return sky.objects_around(simulation.sky, float(ra), float(dec), radius_deg)


def ccd_center(camera: Camera, ccdid: int) -> tuple[float, float]:
    """Tangent-plane position of a CCD's centre (deg)."""
    channels = camera.of_ccd(ccdid)
    return float(np.mean([c.xi_deg for c in channels])), float(np.mean([c.eta_deg for c in channels]))


def ccd_radius_deg(camera: Camera) -> float:
    """From a CCD's centre to its corner, and a margin (deg)."""
    return float(np.hypot(camera.n_x, camera.n_y)) * camera.pixel_scale_arcsec / 3600.0 + CCD_MARGIN_DEG


def make_view(simulation: Simulation, camera: Camera, exposure: Exposure, channel: Channel) -> View:
    """Draw the state of telescope and atmosphere; the same for all channels of an exposure."""
    seed = simulation.seed
    pointing = optics.make_pointing(exposure.ra_deg, exposure.dec_deg, np.random.default_rng([seed, 41, exposure.seed]))
    psf = optics.make_psf(camera, channel.rcid, exposure.seeing_pix, np.random.default_rng([seed, 42, exposure.seed]))
    return View(camera, channel, exposure, pointing, psf)


def _near(view: View, ra: Array, dec: Array) -> NDArray[np.intp]:
    """Objects that may fall within the margin of the channel (by the linear part of the map)."""
    xi, eta = optics.gnomonic(ra, dec, view.pointing.ra_deg, view.pointing.dec_deg)
    c11, c12, c21, c22 = view.channel.cd_deg
    inverse = np.linalg.inv(np.array([[c11, c12], [c21, c22]]))
    d_xi, d_eta = xi - view.channel.xi_deg, eta - view.channel.eta_deg
    x, y = inverse[0, 0] * d_xi + inverse[0, 1] * d_eta, inverse[1, 0] * d_xi + inverse[1, 1] * d_eta
    reach = MARGIN_PIX + 60.0
    return np.flatnonzero((abs(x) < 0.5 * view.camera.n_x + reach) & (abs(y) < 0.5 * view.camera.n_y + reach))


def _fill(table: NDArray, source: NDArray, columns: tuple[str, ...]) -> None:
    """Copy columns."""
    for name in columns:
        table[name] = source[name]


def _place(view: View, table: NDArray, ra: Array, dec: Array, mag: Array, color: Array) -> None:
    """Fill position and flux columns."""
    table["ra"], table["dec"], table["mag"], table["color"] = ra, dec, mag, color
    table["x"], table["y"] = view.to_pixel(ra, dec)
    table["flux_dn"] = view.flux_dn(mag, color, table["x"], table["y"])


def _star_table(view: View, stars: NDArray) -> NDArray:
    """Stars near the channel at the date of the exposure, variability included."""
    mjd = view.exposure.mjd + 15.0 / 86400.0
    ra, dec = sky.stars_at(stars, mjd)
    near = _near(view, ra, dec)
    own = stars[near]
    table = np.zeros(own.size, STAR_TRUTH)
    _fill(table, own, ("id", "g", "r", "i", "pmra", "pmdec", "kind"))
    mag = own[view.band] + variables.magnitude_change(own, mjd, view.band)
    _place(view, table, ra[near], dec[near], mag, view.color_of(own["g"], own["r"], own["i"]))
    return table


def _galaxy_table(view: View, galaxies: NDArray) -> NDArray:
    """Galaxies near the channel."""
    own = galaxies[_near(view, galaxies["ra"], galaxies["dec"])]
    table = np.zeros(own.size, GALAXY_TRUTH)
    _fill(table, own, ("id", "r_half_arcsec", "axis_ratio", "pa_deg", "bulge"))
    _place(view, table, own["ra"], own["dec"], own[view.band], view.color_of(own["g"], own["r"], own["i"]))
    return table


def _transient_table(view: View, transients: NDArray) -> NDArray:
    """Transients near the channel that shine at this date."""
    own = transients[_near(view, transients["ra"], transients["dec"])]
    mjd = view.exposure.mjd
    mags = {band: variables.transient_magnitude(own, mjd, band) for band in "gri"}
    lit = mags[view.band] < 24.0
    own = own[lit]
    table = np.zeros(own.size, TRANSIENT_TRUTH)
    _fill(table, own, ("id", "kind", "host_id", "t_peak_mjd"))
    color = np.clip(view.color_of(*(np.minimum(mags[b][lit], 30.0) for b in "gri")), -1.0, 2.0)
    _place(view, table, own["ra"], own["dec"], mags[view.band][lit], color)
    return table


def _asteroid_table(simulation: Simulation, view: View) -> NDArray:
    """Asteroids near the channel, with their places at shutter opening and closing."""
    e, physics = view.exposure, simulation.physics
    night_mjd = float(np.floor(e.mjd)) + 0.35
    centers = tuple((f["ra_deg"], f["dec_deg"]) for f in simulation.fields.values())
    orbits = movers.asteroids_near(
        simulation.seed, physics.n_orbits, night_mjd, centers, physics.max_asteroid_mag + 0.5
    )
    middle = movers.ephemeris(orbits, e.mjd + 15.0 / 86400.0)
    near = _near(view, middle.ra, middle.dec)
    own = orbits[near]
    table = np.zeros(own.size, MOVER_TRUTH)
    table["id"] = own["id"]
    r_mag = middle.v_mag[near] - 0.2
    mag = r_mag + {"g": own["g_r"], "r": 0.0 * r_mag, "i": -own["r_i"]}[view.band]
    _place(view, table, middle.ra[near], middle.dec[near], mag, view.color_of(own["g_r"], 0.0 * r_mag, -own["r_i"]))
    for suffix, seconds in (("start", 0.0), ("end", e.exptime_s)):
        place = movers.ephemeris(own, e.mjd + seconds / 86400.0)
        table[f"x_{suffix}"], table[f"y_{suffix}"] = view.to_pixel(place.ra, place.dec)
    return table


def _streaker_table(simulation: Simulation, view: View) -> NDArray:
    """Fast objects about this CCD."""
    e, ccdid = view.exposure, view.channel.ccdid
    same = [o for o in simulation.exposures if o.night == e.night and o.field == e.field and o.kind == "object"]
    drawn = movers.draw_streakers(
        simulation.seed, e.night, e.field, ccdid, simulation.physics.streakers_per_ccd, same[0].mjd
    )
    xi0, eta0 = ccd_center(view.camera, ccdid)
    table = np.zeros(drawn.id.size, MOVER_TRUTH)
    table["id"], table["fast"] = drawn.id, True
    places = {}
    for name, seconds in (("start", 0.0), ("middle", 0.5 * e.exptime_s), ("end", e.exptime_s)):
        t = (e.mjd - drawn.mjd0) * 86400.0 + seconds
        xi, eta = xi0 + drawn.xi + drawn.rate_xi * t / 3600.0, eta0 + drawn.eta + drawn.rate_eta * t / 3600.0
        places[name] = optics.gnomonic_inverse(xi, eta, e.ra_deg, e.dec_deg)
    shift = {"g": 0.55, "r": 0.0, "i": -0.15}[view.band]
    color = np.full(drawn.id.size, view.color_of(np.asarray(0.55), np.asarray(0.0), np.asarray(-0.15)))
    _place(view, table, *places["middle"], drawn.r_mag + shift, color)
    for name in ("start", "end"):
        table[f"x_{name}"], table[f"y_{name}"] = view.to_pixel(*places[name])
    return table


def _mover_table(simulation: Simulation, view: View) -> NDArray:
    """All moving objects within the margin."""
    table = np.concatenate([_asteroid_table(simulation, view), _streaker_table(simulation, view)])
    length = np.hypot(table["x_end"] - table["x_start"], table["y_end"] - table["y_start"])
    table["rate_arcsec_s"] = length * view.camera.pixel_scale_arcsec / view.exposure.exptime_s
    return table[_inside(view, table, MARGIN_PIX)]


def _inside(view: View, table: NDArray, margin: float) -> NDArray[np.bool_]:
    """Rows whose position is within the image and a margin."""
    x, y = table["x"], table["y"]
    return (x > -margin) & (y > -margin) & (x < view.camera.n_x - 1 + margin) & (y < view.camera.n_y - 1 + margin)


def _add_sky(image: Image, view: View) -> None:
    """Sky with its gradient."""
    camera, channel, e = view.camera, view.channel, view.exposure
    c11, _, _, c22 = channel.cd_deg
    xi = channel.xi_deg + c11 * (np.arange(camera.n_x) - 0.5 * camera.n_x)
    eta = channel.eta_deg + c22 * (np.arange(camera.n_y) - 0.5 * camera.n_y)
    # A thin cloud is smooth on this scale; both are linear over the field.
    row = e.sky_dn * (1.0 + e.sky_gradient[0] * xi)
    column = e.sky_dn * e.sky_gradient[1] * eta
    image += row.astype(np.float32)[None, :]
    image += column.astype(np.float32)[:, None]


def _add_reflections(image: Image, view: View, stars: NDArray) -> None:
    """Halos and ghosts of bright stars by the camera file's model."""
    halo, ghost = view.camera.ghost["halo"], view.camera.ghost["ghost"]
    for star in stars[stars["flux_dn"] > halo["min_flux_dn"]]:
        radius = halo["radius_pix"]
        peak = star["flux_dn"] * halo["flux_fraction"] * 3.0 / (np.pi * radius**2)
        _add_disc(image, star["x"], star["y"], radius, lambda r, p=peak, s=radius: p * np.maximum(1.0 - r / s, 0.0))
    bright = stars[stars["flux_dn"] > ghost["min_flux_dn"]]
    xi, eta = optics.gnomonic(bright["ra"], bright["dec"], view.pointing.ra_deg, view.pointing.dec_deg)
    k = ghost["center_scale"]
    x, y = optics.tangent_to_pixel(view.channel, view.camera, view.pointing, k * xi, k * eta)
    inner, outer = ghost["radius_in_pix"], ghost["radius_out_pix"]
    level = bright["flux_dn"] * ghost["flux_fraction"] / (np.pi * (outer**2 - inner**2))
    for cx, cy, height in zip(x, y, level, strict=True):
        _add_disc(image, cx, cy, outer, lambda r, h=height: h * ((r >= inner) & (r <= outer)))


def _add_disc(image: Image, x: float, y: float, radius: float, profile) -> None:
    """Add profile(r) within a radius."""
    ny, nx = image.shape
    y0, y1 = max(int(y - radius), 0), min(int(y + radius) + 2, ny)
    x0, x1 = max(int(x - radius), 0), min(int(x + radius) + 2, nx)
    if y0 < y1 and x0 < x1:
        r = np.hypot(np.arange(y0, y1)[:, None] - y, np.arange(x0, x1)[None, :] - x)
        image[y0:y1, x0:x1] += profile(r).astype(np.float32)


def _add_movers(image: Image, view: View, table: NDArray) -> None:
    """Movers as short or long streaks."""
    for row in table:
        ends = np.array([[row["x_start"], row["y_start"]], [row["x_end"], row["y_end"]]])
        render.add_streak(image, ends, float(row["flux_dn"]), view.psf)


def make_scene(simulation: Simulation, view: View) -> Scene:
    """Everything in one channel."""
    camera, e = view.camera, view.exposure
    objects = _objects(simulation, e.field, *ccd_center(camera, view.channel.ccdid), ccd_radius_deg(camera))
    image = np.zeros((camera.n_y, camera.n_x), np.float32)
    stars, transients = _star_table(view, objects.stars), _transient_table(view, objects.transients)
    galaxies = _galaxy_table(view, objects.galaxies)
    moving = _mover_table(simulation, view)
    for table in (stars, transients):
        render.add_stars(image, table["x"], table["y"], table["flux_dn"], view.psf)
    render.add_galaxies(image, galaxies, view.psf, camera.pixel_scale_arcsec)
    _add_movers(image, view, moving)
    crossing = tracks.add_tracks(image, simulation, view.exposure, view.channel, camera, view.pointing)
    _add_reflections(image, view, stars)
    _add_sky(image, view)
    stars, galaxies, transients = (t[_inside(view, t, 0.5)] for t in (stars, galaxies, transients))
    return Scene(image, stars, galaxies, transients, moving, crossing)
