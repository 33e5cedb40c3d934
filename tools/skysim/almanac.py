"""Low-precision astronomy for headers and observing conditions: times, Sun, Moon, altitude, airmass.

Good to some minutes of arc (Meeus, Astronomical Algorithms, chapters 12, 13, 25, 47), which is all that is asked.
"""

import datetime

import numpy as np

MJD_ZERO = datetime.datetime(1858, 11, 17)


def mjd_of(when: datetime.datetime) -> float:
    """MJD (UTC) of a time."""
    return (when - MJD_ZERO) / datetime.timedelta(days=1)


def time_of(mjd: float) -> datetime.datetime:
    """Time of an MJD (UTC), to a microsecond."""
    return MJD_ZERO + datetime.timedelta(days=mjd)


def isot(mjd: float) -> str:
    """ISO time with milliseconds."""
    return (time_of(mjd) + datetime.timedelta(microseconds=500)).isoformat(timespec="milliseconds")


def local_sidereal_deg(mjd: float, longitude_deg: float) -> float:
    """Local mean sidereal time, deg."""
    return (280.46061837 + 360.98564736629 * (mjd - 51544.5) + longitude_deg) % 360.0


def altaz(ra_deg: float, dec_deg: float, mjd: float, site: dict[str, float]) -> tuple[float, float, float]:
    """Altitude, azimuth (from North through East) and hour angle (-180..180), deg."""
    hour = (local_sidereal_deg(mjd, site["longitude_deg"]) - ra_deg + 180.0) % 360.0 - 180.0
    h, d, p = np.radians(hour), np.radians(dec_deg), np.radians(site["latitude_deg"])
    altitude = np.arcsin(np.sin(p) * np.sin(d) + np.cos(p) * np.cos(d) * np.cos(h))
    azimuth = np.arctan2(-np.cos(d) * np.sin(h), np.sin(d) * np.cos(p) - np.cos(d) * np.sin(p) * np.cos(h))
    return float(np.degrees(altitude)), float(np.degrees(azimuth) % 360.0), float(hour)


def airmass(altitude_deg: float) -> float:
    """Airmass by Hardie's formula."""
    s = 1.0 / np.sin(np.radians(max(altitude_deg, 5.0))) - 1.0
    return float(1.0 + s * (1.0 - 0.0018167) - 0.002875 * s**2 - 0.0008083 * s**3)


def _equatorial(longitude_rad: float, latitude_rad: float) -> tuple[float, float]:
    """Ecliptic to equatorial J2000, deg."""
    e = np.radians(23.4393)
    sin_d = np.sin(latitude_rad) * np.cos(e) + np.cos(latitude_rad) * np.sin(e) * np.sin(longitude_rad)
    ra = np.arctan2(np.sin(longitude_rad) * np.cos(e) - np.tan(latitude_rad) * np.sin(e), np.cos(longitude_rad))
    return float(np.degrees(ra) % 360.0), float(np.degrees(np.arcsin(sin_d)))


def sun(mjd: float) -> tuple[float, float]:
    """RA, Dec of the Sun, deg."""
    n = mjd - 51544.5
    g = np.radians(357.528 + 0.9856003 * n)
    longitude = np.radians(280.460 + 0.9856474 * n + 1.915 * np.sin(g) + 0.020 * np.sin(2.0 * g))
    return _equatorial(longitude, 0.0)


def moon(mjd: float) -> tuple[float, float]:
    """RA, Dec of the Moon, deg (largest terms)."""
    n = mjd - 51544.5
    mean, anomaly = 218.316 + 13.176396 * n, np.radians(134.963 + 13.064993 * n)
    node_angle, elongation = np.radians(93.272 + 13.229350 * n), np.radians(297.850 + 12.190749 * n)
    longitude = mean + 6.289 * np.sin(anomaly) + 1.274 * np.sin(2 * elongation - anomaly)
    longitude += 0.658 * np.sin(2 * elongation)
    return _equatorial(np.radians(longitude), np.radians(5.128 * np.sin(node_angle)))


def separation_deg(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Angle between two directions, deg."""
    a, b, c, d = (np.radians(v) for v in (ra1, dec1, ra2, dec2))
    cosine = np.sin(b) * np.sin(d) + np.cos(b) * np.cos(d) * np.cos(a - c)
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def moon_illumination(mjd: float) -> float:
    """Illuminated fraction of the Moon."""
    return 0.5 * (1.0 - np.cos(np.radians(separation_deg(*sun(mjd), *moon(mjd)))))


def sexagesimal(degrees: float, hours: bool) -> str:
    """Sexagesimal text with sign, as the telescope writes it."""
    value = degrees / 15.0 if hours else degrees
    total = round(abs(value) * 3600.0 * (100 if hours else 10))
    unit = 100 if hours else 10
    whole, rest = divmod(total, 3600 * unit)
    minutes, seconds = divmod(rest, 60 * unit)
    text = f"{seconds / unit:05.2f}" if hours else f"{seconds / unit:04.1f}"
    return f"{'-' if value < 0 else '+'}{whole:02d}:{minutes:02d}:{text}"
