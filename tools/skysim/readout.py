"""From a plan's exposure to the pixels of one CCD: light, detector, electronics, and the truth of it."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.skysim import cosmic, detector, optics
from tools.skysim.camera import Camera, Channel, load_camera
from tools.skysim.rawfile import ChannelPixels
from tools.skysim.scene import Scene, View, make_scene, make_view
from tools.skysim.survey import Exposure, Simulation

Array = NDArray[np.float64]
Image = NDArray[np.float32]

BLOCK_ROWS = 88
WCS_GRID, WCS_BORDER_PIX = 33, 32.0
ENERGY_RADII_PIX = np.array([1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0])


@dataclass
class ChannelTruth:
    """Truth of one channel in one exposure: scalars and tables for the HDF5 file."""

    rcid: int
    attributes: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, NDArray] = field(default_factory=dict)


@lru_cache(maxsize=4)
def _maps(camera_path: str, rcid: int) -> detector.Maps:
    """Fixed maps, kept for the four channels of the CCD at work."""
    return detector.make_maps(load_camera(camera_path), rcid)


@lru_cache(maxsize=4)
def _response(camera_path: str, rcid: int, filtercode: str, kind: str) -> Image:
    """Response to sky or lamp, kept for the four channels of the CCD at work."""
    camera = load_camera(camera_path)
    return detector.response_map(camera, camera.channels[rcid], _maps(camera_path, rcid), filtercode, kind)


def expose(
    simulation: Simulation, camera: Camera, exposure: Exposure, ccdid: int
) -> tuple[ChannelPixels, list[ChannelTruth]]:
    """Raw pixels of the four channels of a CCD, and their truth."""
    channels = camera.of_ccd(ccdid)
    signals, truths = [], []
    for channel in channels:
        rng = np.random.default_rng([simulation.seed, 61, exposure.seed, channel.rcid])
        truth = ChannelTruth(channel.rcid)
        signals.append(_signal(simulation, camera, exposure, channel, rng, truth))
        truths.append(truth)
    _crosstalk(signals, camera)
    pixels = {}
    for channel, signal, truth in zip(channels, signals, truths, strict=True):
        rng = np.random.default_rng([simulation.seed, 62, exposure.seed, channel.rcid])
        pixels[channel.qid] = _read_out(simulation, camera, channel, signal, rng, truth)
    return pixels, truths


def _signal(
    simulation: Simulation, camera: Camera, exposure: Exposure, channel: Channel, rng: np.random.Generator,
    truth: ChannelTruth,
) -> Image:  # fmt: skip
    """Charge of a channel with all its noise, in DN of true signal (before the amplifier's non-linearity)."""
    maps = _maps(simulation.camera_path, channel.rcid)
    electrons, scene, view = _expected(simulation, camera, exposure, channel)
    seconds = exposure.exptime_s + detector.READOUT_S
    flat = electrons.ravel()
    flat[maps.defects.hot_index] += maps.defects.dark_e_s * np.float32(seconds)
    hits = cosmic.draw_hits(rng, simulation.physics.cosmic_per_channel * seconds / 40.0, camera.n_y, camera.n_x)
    np.add.at(flat, hits.pixel, hits.electrons)
    truth.tables["cosmic_rays"] = _hit_table(hits)
    full_well = detector.FULL_WELL_FACTOR * channel.saturate_dn * channel.gain_e
    if scene is not None and view is not None:
        _record_scene(truth, scene, view, electrons, full_well)
    saturated = detector.bleed(electrons, full_well)
    truth.tables["saturated_pixels"] = saturated.astype(np.int32)
    truth.attributes["full_well_dn"] = full_well / channel.gain_e
    detector.add_noise(electrons, channel.read_noise_e, rng)
    noisy = maps.defects.noisy_index
    flat[noisy] += maps.defects.noise_e * rng.standard_normal(noisy.size, np.float32)
    electrons *= np.float32(1.0 / channel.gain_e)
    return electrons


def _expected(
    simulation: Simulation, camera: Camera, exposure: Exposure, channel: Channel
) -> tuple[Image, Scene | None, View | None]:
    """Expected electrons from light alone."""
    if exposure.kind == "bias" or (simulation.rcids and channel.rcid not in simulation.rcids):
        return np.zeros((camera.n_y, camera.n_x), np.float32), None, None
    response = _response(simulation.camera_path, channel.rcid, exposure.filtercode, exposure.kind)
    if exposure.kind == "flat":
        return response * np.float32(exposure.level_dn * channel.gain_e), None, None
    view = make_view(simulation, camera, exposure, channel)
    scene = make_scene(simulation, view)
    image = scene.image_dn
    image *= np.float32(channel.gain_e)
    image *= response
    return image, scene, view


def _crosstalk(signals: list[Image], camera: Camera) -> None:
    """Each channel picks up a little of the others, in place."""
    mixing = (np.eye(len(signals)) + camera.crosstalk).astype(np.float32)
    for start in range(0, camera.n_y, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, camera.n_y))
        block = np.stack([s[rows].ravel() for s in signals])
        for signal, mixed in zip(signals, mixing @ block, strict=True):
            signal[rows] = mixed.reshape(-1, camera.n_x)


def _read_out(
    simulation: Simulation, camera: Camera, channel: Channel, signal: Image, rng: np.random.Generator,
    truth: ChannelTruth,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:  # fmt: skip
    """Amplifier, bias and converter: the image and its over-scan. ``signal`` is used up."""
    detector.distort_linearity(signal, channel.linearity_a, channel.linearity_b)
    levels = detector.row_levels(camera.n_y, rng)
    truth.attributes["bias_level_dn"] = float(levels.mean())
    truth.tables["row_level_dn"] = levels.astype(np.float32)
    strip = detector.overscan_strip(camera, channel, signal[:, -1], levels, rng)
    signal += _maps(simulation.camera_path, channel.rcid).bias_dn
    signal += levels.astype(np.float32)[:, None]
    return detector.quantise(signal, camera.adc_max_dn), strip


def _hit_table(hits: cosmic.Hits) -> NDArray:
    """Hit pixels as one table."""
    table = np.zeros(hits.pixel.size, [("index", "i4"), ("electrons", "f4"), ("clump", "i4")])
    table["index"], table["electrons"], table["clump"] = hits
    return table


def _mean_response(camera: Camera, channel: Channel, filtercode: str) -> float:
    """Mean over the pixels of the smooth response, on a grid of equal cells."""
    x, y = np.meshgrid(*((np.arange(64) + 0.5) * n / 64 - 0.5 for n in (camera.n_x, camera.n_y)))
    return float(detector.smooth_response(camera, channel, filtercode, x.ravel(), y.ravel()).mean(dtype=np.float64))


def _wcs_table(*columns: Array) -> NDArray:
    """x, y, ra, dec as one table."""
    table = np.zeros(columns[0].size, [(name, "f8") for name in ("x", "y", "ra", "dec")])
    for name, values in zip(table.dtype.names or (), columns, strict=True):
        table[name] = values
    return table


def _record_scene(truth: ChannelTruth, scene: Scene, view: View, electrons: Image, full_well_e: float) -> None:
    """Copy everything worth knowing about the light into the truth."""
    camera, channel, e = view.camera, view.channel, view.exposure
    columns = np.clip(np.rint(scene.stars["x"]).astype(int), 0, camera.n_x - 1)
    rows = np.clip(np.rint(scene.stars["y"]).astype(int), 0, camera.n_y - 1)
    peak = electrons[rows, columns]
    scene.stars["peak_dn"], scene.stars["saturated"] = peak / channel.gain_e, peak > full_well_e
    for name in ("stars", "galaxies", "transients", "movers", "tracks"):
        truth.tables[name] = getattr(scene, name)
    axes = [np.linspace(-WCS_BORDER_PIX, n - 1 + WCS_BORDER_PIX, WCS_GRID) for n in (camera.n_x, camera.n_y)]
    x, y = (a.ravel() for a in np.meshgrid(*axes))
    ra, dec = optics.pixel_to_sky(channel, camera, view.pointing, x, y)
    truth.tables["wcs"] = _wcs_table(x, y, ra, dec)
    fwhm = optics.effective_fwhm(e.seeing_pix)
    mean = _mean_response(camera, channel, e.filtercode)
    for name in ("stars", "galaxies", "transients", "movers"):
        table = truth.tables[name]
        table["smooth_response"] = detector.smooth_response(camera, channel, e.filtercode, table["x"], table["y"])
    truth.attributes |= {
        "zero_point": view.zero_point, "color_coefficient": e.color_coefficient, "sky_dn": view.sky_dn * mean,
        "zero_point_channel": view.zero_point + 2.5 * np.log10(mean), "psf_fwhm_pix": fwhm,
        "core_fwhm_pix": e.seeing_pix, "airmass": e.airmass, "cloud_mag": e.cloud_mag,
        "psf_fwhm_terms": view.psf.fwhm_terms, "psf_e1_terms": view.psf.e1_terms, "psf_e2_terms": view.psf.e2_terms,
        "energy_radii_pix": ENERGY_RADII_PIX,
        "encircled_energy": optics.encircled_energy(e.seeing_pix, ENERGY_RADII_PIX),
        "true_ra_deg": view.pointing.ra_deg, "true_dec_deg": view.pointing.dec_deg,
    }  # fmt: skip
