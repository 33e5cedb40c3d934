"""The truth of a night in one HDF5 file, ``truth/truth_YYYYMMDD.h5``, and its reader.

Layout (pixels 0-based, sky in degrees ICRS, fluxes in DN, times UTC)::

    /                               attributes: night, seed, camera
    /exposures/<name>/              attributes: kind filtercode field mjd_open exptime_s level_dn commanded_ra/dec_deg
    /exposures/<name>/<rcid>/       attributes: zero_point color_coefficient zero_point_channel sky_dn psf_fwhm_pix ...
        stars                       id ra dec x y mag color flux_dn smooth_response g r i pmra pmdec kind peak_dn
                                    saturated; kind as in variables.KIND_NAMES
        galaxies transients movers  positions, magnitudes and fluxes; movers also x,y at opening and closing;
                                    kind of transients as in variables.TRANSIENT_NAMES (probes among them)
        tracks                      end points in the channel, kind (0 satellite, 1 aircraft), width, peak, dashes
        cosmic_rays                 flat index (y*n_x + x), electrons, clump number
        saturated_pixels            flat indices that reached the full well (bleeding included)
        wcs                         x y ra dec on a 33x33 grid that reaches 32 px beyond the image
        row_level_dn                floating bias of each row
    /detector/<rcid>/               bias_dn prnu dust mask vignetting low_frequency_<fi> lamp_<fi>; attributes gain_e
                                    read_noise_e prnu_factor_<fi>. mask: survey bits low 2, high 3, noisy/hot 4, dead 9

Magnitudes: mag = -2.5 log10(flux_dn) + zero_point + color_coefficient * color, mag in the PS1 system, color the
filter's (g-r for g and r, r-i for i), flux_dn the total above the camera. A perfect high-frequency flat leaves
flux_dn * smooth_response in the image (vignetting and low-frequency response); zero_point_channel is the zero
point with the channel's mean smooth response folded in. Under a cloud zero_point holds at the channel's centre
and flux_dn includes the cloud's gradient. encircled_energy at energy_radii_pix says which fraction of a star is
within a radius.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from tools.skysim import detector
from tools.skysim.camera import Camera
from tools.skysim.readout import ChannelTruth
from tools.skysim.survey import Exposure

Array = NDArray[np.float64]

#: Maps are kept to these absolute steps, far below what any number of frames can show.
STEP = {"bias_dn": 2.0**-7}
DEFAULT_STEP = 2.0**-14


def write_part(path: Path, exposure: Exposure, truths: list[ChannelTruth]) -> None:
    """Truth of one CCD in one exposure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with h5py.File(temporary, "w") as out:
        group = out.create_group(f"exposures/{exposure.name}")
        group.attrs.update({
            "kind": exposure.kind, "filtercode": exposure.filtercode, "field": exposure.field,
            "mjd_open": exposure.mjd, "exptime_s": exposure.exptime_s, "level_dn": exposure.level_dn,
            "commanded_ra_deg": exposure.ra_deg, "commanded_dec_deg": exposure.dec_deg,
        })  # fmt: skip
        for truth in truths:
            channel = group.create_group(str(truth.rcid))
            for key in sorted(truth.attributes):
                channel.attrs[key] = truth.attributes[key]
            for key in sorted(truth.tables):
                _put(channel, key, truth.tables[key])
    temporary.rename(path)


def write_detector_part(path: Path, camera: Camera, rcid: int, filters: list[str]) -> None:
    """Fixed maps of one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    channel, maps, axes = camera.channels[rcid], detector.make_maps(camera, rcid), detector.centred_axes(camera)
    with h5py.File(temporary, "w") as out:
        group = out.create_group(f"detector/{rcid}")
        group.attrs["gain_e"], group.attrs["read_noise_e"] = channel.gain_e, channel.read_noise_e
        _put(group, "bias_dn", _rounded("bias_dn", maps.bias_dn))
        _put(group, "prnu", _rounded("prnu", maps.prnu))
        _put(group, "dust", _rounded("dust", maps.dust))
        _put(group, "mask", detector.defect_mask(camera, maps.defects))
        _put(group, "vignetting", _rounded("vignetting", detector.vignetting(camera, channel, *axes)))
        for code in filters:
            group.attrs[f"prnu_factor_{code}"] = detector.PRNU_FACTOR[code]
            _put(group, f"low_frequency_{code}", _rounded("", detector.low_frequency(rcid, code, *axes)))
            _put(group, f"lamp_{code}", _rounded("", detector.lamp(channel, code, *axes)))
    temporary.rename(path)


def _rounded(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values on a grid of absolute steps, so that they compress."""
    step = np.float32(STEP.get(name, DEFAULT_STEP))
    return np.rint(values / step) * step


def _put(group: h5py.Group, name: str, values: NDArray) -> None:
    """One dataset, compressed when it is not tiny."""
    if values.nbytes < 2048:
        group.create_dataset(name, data=values)
    else:
        chunks = (256, values.shape[1]) if values.ndim == 2 else None
        group.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True, chunks=chunks)


def merge(path: Path, parts: list[Path], attributes: dict[str, Any]) -> None:
    """Collect parts, in the order given, into the night's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with h5py.File(temporary, "w") as out:
        out.attrs.update(attributes)
        for part in parts:
            with h5py.File(part, "r") as source:
                _copy(source, out)
    temporary.rename(path)


def _copy(source: h5py.Group, target: h5py.Group) -> None:
    """Copy groups recursively, joining those that exist; compressed chunks are copied as they are."""
    for name in source:
        item = source[name]
        if isinstance(item, h5py.Group):
            group = target.require_group(name)
            for key in item.attrs:
                group.attrs[key] = item.attrs[key]
            _copy(item, group)
        else:
            source.copy(item, target, name=name)


class Truth:
    """Reader of one night's truth file.

    Parameters
    ----------
    path : path
        ``truth/truth_YYYYMMDD.h5``.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = h5py.File(path, "r")

    def __enter__(self) -> "Truth":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def exposures(self, kind: str | None = None) -> list[str]:
        """Names of exposures (``ztf_YYYYMMDDffffff_FFFFFF_fi``), of one kind if given."""
        group = self._file["exposures"]
        return [name for name in group if kind in (None, group[name].attrs["kind"])]

    def exposure(self, name: str) -> dict[str, Any]:
        """Attributes of an exposure."""
        return dict(self._file[f"exposures/{name}"].attrs)

    def rcids(self, name: str | None = None) -> list[int]:
        """Channels of an exposure, or those with detector maps."""
        return sorted(int(key) for key in self._file[f"exposures/{name}" if name else "detector"])

    def channel(self, name: str, rcid: int) -> dict[str, Any]:
        """Attributes of a channel in an exposure: zero_point, color_coefficient, sky_dn, psf_fwhm_pix, ..."""
        return dict(self._file[f"exposures/{name}/{rcid}"].attrs)

    def table(self, name: str, rcid: int, table: str) -> NDArray:
        """A structured array (or array of indices) of a channel in an exposure."""
        return self._file[f"exposures/{name}/{rcid}/{table}"][:]

    def map(self, rcid: int, name: str) -> NDArray:
        """A detector map, (ny, nx)."""
        return self._file[f"detector/{rcid}/{name}"][:]

    def highfreq_flat(self, rcid: int, filtercode: str) -> NDArray[np.float32]:
        """Pixel response times dust in a filter, bad pixels not included, mean about 1."""
        factor = np.float32(self._file[f"detector/{rcid}"].attrs[f"prnu_factor_{filtercode}"])
        return (1.0 + factor * (self.map(rcid, "prnu") - 1.0)) * self.map(rcid, "dust")

    def smooth_response(self, rcid: int, filtercode: str) -> NDArray[np.float32]:
        """Vignetting times low-frequency response: what a low-frequency flat should find."""
        return self.map(rcid, "vignetting") * self.map(rcid, f"low_frequency_{filtercode}")

    def pixel_to_sky(self, name: str, rcid: int, x: Array, y: Array) -> tuple[Array, Array]:
        """True RA, Dec (deg) of 0-based pixels, to better than 0.01 mas (quintic spline through the grid)."""
        grid = self.table(name, rcid, "wcs")
        n = round(float(np.sqrt(grid.size)))
        axis_x, axis_y = grid["x"][:n], grid["y"][::n]
        ra0 = grid["ra"][grid.size // 2]
        turned = (grid["ra"] - ra0 + 180.0) % 360.0 - 180.0
        values = []
        for column in (turned, grid["dec"]):
            spline = RectBivariateSpline(axis_y, axis_x, column.reshape(n, n), kx=5, ky=5)
            values.append(spline.ev(y, x))
        return (values[0] + ra0) % 360.0, values[1]
