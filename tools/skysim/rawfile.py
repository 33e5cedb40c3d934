"""Write raw files as the camera does: one per CCD, Rice-compressed, four channels and their over-scans.

Nothing in a file depends on when or where it was written; even the date in the comment of CHECKSUM is the
exposure's own.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from tools.skysim import almanac
from tools.skysim.camera import Camera, Channel
from tools.skysim.survey import PROGRAMS, Exposure

ChannelPixels = dict[int, tuple[NDArray[np.uint16], NDArray[np.uint16]]]


def _identity_cards(camera: Camera, exposure: Exposure, ccdid: int) -> list[tuple[str, Any, str]]:
    """Who, what and with which filter."""
    science = exposure.kind == "object"
    cards: list[tuple[str, Any, str]] = [
        ("ORIGIN", "Zwicky Transient Facility", "Data origin"),
        ("OBSERVER", "ZTF Robotic Observing Software", "Observer"),
        ("INSTRUME", "ZTF/MOSAIC", "Instrument name"),
        ("IMGTYPE", exposure.kind, "Image type"),
        ("EXPOSURE", exposure.exptime_s, "Total Exposure Time (s)"),
        ("EXPTIME", exposure.exptime_s, "Requested Exposure Time (s)"),
        ("MODE_NUM", 0, "Mode identifying key"),
        ("CCDSUM", "1 1", "CCD binning"),
        ("PIXSCALE", camera.pixel_scale_arcsec, "Pixel scale, in arcsec per pixel"),
        ("FILENAME", exposure.filename(ccdid).removesuffix(".fz"), "File name"),
        ("ORIGNAME", exposure.filename(ccdid).removesuffix(".fz"), "Original file name"),
        ("FRAMENUM", exposure.frame, "Detector frame number"),
        ("CCD_ID", ccdid, "ID value of CCD detector"),
        ("CCDNAME", f"S{ccdid:02d}", "Detector name or serial number"),
        ("FIELDID", exposure.field, "ZTF field ID number"),
        ("PROGRMID", exposure.program_id if science else 0, "Queue program ID"),
        ("PROGRMPI", PROGRAMS[exposure.program_id] if science else "Engineering", "Queue program PI"),
        ("REQUSTID", exposure.frame, "Queue request ID"),
        ("QCOMMENT", "all_sky" if science else "calibration", "Queue comment"),
    ]
    if exposure.kind != "bias":
        entry = camera.filters[exposure.filtercode]
        cards.append(("FILTERID", entry["fid"], "Filter ID code"))
        cards.append(("FILTER", entry["name"], "Filter name"))
        cards.append(("FILTPOS", entry["fid"], "Filter position"))
    else:
        cards.append(("FILTER", "NONE", "Filter name"))
    return cards


def _time_cards(camera: Camera, exposure: Exposure) -> list[tuple[str, Any, str]]:
    """Times: OBSJD is 0.65 s before the shutter opens, as in the survey."""
    obs = exposure.mjd - 0.65 / 86400.0
    closed = exposure.mjd + max(exposure.exptime_s, 0.0) / 86400.0
    return [
        ("OBSJD", round(obs + 2400000.5, 7), "Julian day corresponds to UTC-OBS (day)"),
        ("OBSMJD", round(obs, 7), "MJD corresponds to UTC-OBS (day)"),
        ("OBSLST", almanac.sexagesimal(almanac.local_sidereal_deg(obs, camera.site["longitude_deg"]), True),
         "Local Sidereal Time"),
        ("SHUTOPEN", almanac.isot(exposure.mjd), "Shutter open time"),
        ("SHUTCLSD", almanac.isot(closed), "Shutter close time"),
    ]  # fmt: skip


def _pointing_cards(camera: Camera, exposure: Exposure) -> list[tuple[str, Any, str]]:
    """Commanded pointing; at zenith for calibration frames. The true one differs by the pointing error."""
    site, mjd = camera.site, exposure.mjd
    ra, dec = exposure.ra_deg, exposure.dec_deg
    if exposure.kind != "object":
        ra, dec = round(almanac.local_sidereal_deg(mjd, site["longitude_deg"]), 4), site["latitude_deg"]
    altitude, azimuth, hour = almanac.altaz(ra, dec, mjd, site)
    return [
        ("OBJRA", almanac.sexagesimal(ra, True), "Queue object right ascension"),
        ("OBJDEC", almanac.sexagesimal(dec, False), "Queue object declination"),
        ("OBJRAD", ra, "Object right ascension (deg)"),
        ("OBJDECD", dec, "Object declination (deg)"),
        ("EQUINOX", 2000.0, "Equinox"),
        ("RAD", ra, "Requested right ascension (deg)"),
        ("DECD", dec, "Requested declination (deg)"),
        ("TELRA", almanac.sexagesimal(ra, True), "Telescope right ascension"),
        ("TELDEC", almanac.sexagesimal(dec, False), "Telescope declination"),
        ("TELRAD", ra, "Telescope right ascension (deg)"),
        ("TELDECD", dec, "Telescope declination (deg)"),
        ("HOURANGD", round(hour, 6), "Hour angle (deg)"),
        ("AZIMUTH", round(azimuth, 2), "Telescope azimuth (deg)"),
        ("ELVATION", round(altitude, 2), "Telescope elevation (deg)"),
        ("AIRMASS", round(almanac.airmass(altitude), 3), "Airmass (Hardie)"),
        ("OBSERVAT", "Palomar Observatory", "Observatory"),
        ("TELESCOP", "Palomar 48-inch", "Observatory telescope"),
        ("OBSLON", site["longitude_deg"], "Observatory longitude (deg)"),
        ("OBSLAT", site["latitude_deg"], "Observatory latitude (deg)"),
        ("OBSALT", site["altitude_m"], "Observatory altitude (m)"),
    ]


def _telemetry_cards(camera: Camera, exposure: Exposure) -> list[tuple[str, Any, str]]:
    """Weather, temperatures, Sun and Moon."""
    rng = np.random.default_rng([exposure.seed, 77])
    mjd = exposure.mjd
    sun_alt, sun_az, _ = almanac.altaz(*almanac.sun(mjd), mjd, camera.site)
    moon_ra, moon_dec = almanac.moon(mjd)
    moon_alt = almanac.altaz(moon_ra, moon_dec, mjd, camera.site)[0]
    cards: list[tuple[str, Any, str]] = [
        ("HEADTEMP", round(168.0 + rng.normal(0.0, 0.2), 3), "Cryo cooler cold head temp (K)"),
        ("DEWPRESS", 6.58e-05, "Dewar pressure (milli-torr)"),
    ]
    for ccdid in range(1, 17):
        temperature = round(172.0 + 0.2 * ccdid + rng.normal(0.0, 0.1), 3)
        cards.append((f"CCDTMP{ccdid:02d}", temperature, f"CCD temperature {ccdid:02d} (K)"))
    return cards + [
        ("FOCUSPOS", round(1.57 + rng.normal(0.0, 0.01), 4), "Hexapod Z (Focus) axis position (mm)"),
        ("TEMPTURE", round(18.0 + rng.normal(0.0, 1.0), 1), "Outside air temperature (C)"),
        ("WINDSPD", round(abs(rng.normal(0.0, 3.0)), 1), "Outside wind speed"),
        ("DEWPOINT", round(8.0 + rng.normal(0.0, 1.0), 1), "Dewpoint (C)"),
        ("HUMIDITY", round(31.0 + rng.normal(0.0, 4.0), 1), "Humidity"),
        ("SUNAZ", round(sun_az, 4), "Sun azimuth (deg)"),
        ("SUNALT", round(sun_alt, 4), "Sun altitude (deg)"),
        ("MOONRA", round(moon_ra, 3), "Moon J2000.0 R.A. (deg)"),
        ("MOONDEC", round(moon_dec, 3), "Moon J2000.0 Dec. (deg)"),
        ("MOONALT", round(moon_alt, 4), "Moon altitude (deg)"),
        ("MOONILLF", round(almanac.moon_illumination(mjd), 6), "Moon illuminated fraction (frac)"),
        ("DOMESTAT", "Open" if exposure.kind == "object" else "Closed", "Dome status at beginning of exposure"),
        ("NFRAMES", 8, "number of frames in FITS file"),
    ]


def primary_header(camera: Camera, exposure: Exposure, ccdid: int) -> fits.Header:
    """Header of the exposure."""
    header = fits.Header()
    for make in (_time_cards, _pointing_cards, _telemetry_cards):
        header.extend(make(camera, exposure))
    identity = fits.Header(_identity_cards(camera, exposure, ccdid))
    identity.extend(header)
    return identity


def _channel_hdu(channel: Channel, pixels: NDArray[np.uint16], extension: int) -> fits.CompImageHDU:
    """One compressed extension; image tiles are rows, as fpack makes them, an over-scan strip is one tile."""
    header = fits.Header()
    header["CCD_ID"] = (channel.ccdid, "ID value of CCD detector")
    header["CCDNAME"] = (f"S{channel.ccdid:02d}", "Detector name or serial number")
    header["AMP_ID"] = (channel.qid, "ID value of CCD amplifier")
    header["AMP_NAME"] = ("EFGH"[channel.qid - 1], "Name of CCD amplifier")
    header["GAIN"] = (channel.gain_e, "Gain e-/adu")
    header["READNOI"] = (channel.read_noise_e, "Read noise e-")
    header["SATURATE"] = (channel.saturate_dn, "Saturation above bias (DN)")
    header["DARKCUR"] = (0.1, "Dark current e-/s @ 150 K")
    ny, nx = pixels.shape
    tile = (1, nx) if extension <= 4 else (ny, nx)
    return fits.CompImageHDU(pixels, header=header, name=str(extension), compression_type="RICE_1", tile_shape=tile)


def raw_bytes(camera: Camera, exposure: Exposure, channels: list[Channel], pixels: ChannelPixels) -> bytes:
    """The file of one CCD; ``pixels[qid]`` is (image, over-scan)."""
    ccdid = channels[0].ccdid
    hdus: list[Any] = [fits.PrimaryHDU(header=primary_header(camera, exposure, ccdid))]
    for part in (0, 1):
        hdus += [_channel_hdu(c, pixels[c.qid][part], c.qid + 4 * part) for c in channels]
    plain = io.BytesIO()
    fits.HDUList(hdus).writeto(plain)
    plain.seek(0)
    sealed = io.BytesIO()
    stamp = almanac.isot(exposure.mjd + exposure.exptime_s / 86400.0)[:19]
    with fits.open(plain, disable_image_compression=True, memmap=False) as tables:
        for hdu in tables:
            hdu.add_checksum(when=stamp)
        tables.writeto(sealed)
    return sealed.getvalue()


def write_atomically(path: Path, content: bytes) -> str:
    """Write under a temporary name, flush, rename; the SHA-256 of the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)
    return hashlib.sha256(content).hexdigest()
