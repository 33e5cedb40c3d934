"""Identifiers of the survey: readout channel, filter, night, exposure and the numbers built from them."""

import datetime
import math

FILTER_CODES = {1: "zg", 2: "zr", 3: "zi"}
FILTER_IDS = {code: fid for fid, code in FILTER_CODES.items()}
BIAS_CODE = "bi"
DARK_CODE = "dk"
N_CCDS = 16
N_QUADRANTS = 4
#: Julian date at which the night id (nid) is zero: 2017 January 1, 0h UTC.
NID_EPOCH_JD = 2457754.5


def rcid_of(ccdid: int, qid: int) -> int:
    """Readout-channel id, 0-63, of a CCD (1-16) and quadrant (1-4)."""
    if not (1 <= ccdid <= N_CCDS and 1 <= qid <= N_QUADRANTS):
        raise ValueError(f"ccdid {ccdid}, qid {qid}: outside 1-{N_CCDS}, 1-{N_QUADRANTS}")
    return N_QUADRANTS * (ccdid - 1) + qid - 1


def ccdid_qid_of(rcid: int) -> tuple[int, int]:
    """CCD id (1-16) and quadrant id (1-4) of a readout channel (0-63)."""
    if not 0 <= rcid < N_CCDS * N_QUADRANTS:
        raise ValueError(f"rcid {rcid}: outside 0-{N_CCDS * N_QUADRANTS - 1}")
    return rcid // N_QUADRANTS + 1, rcid % N_QUADRANTS + 1


def nid_of_jd(jd: float) -> int:
    """Night id of a UTC Julian date."""
    return int(jd - NID_EPOCH_JD)


def nid_of_night(night: str) -> int:
    """Night id of a night written YYYYMMDD.

    Raises
    ------
    ValueError
        Not eight digits, or no date.
    """
    if not (len(night) == 8 and night.isascii() and night.isdigit()):
        raise ValueError(f"night {night!r} is not of the form YYYYMMDD")
    try:
        date = datetime.datetime.strptime(night, "%Y%m%d").date()
    except ValueError:
        raise ValueError(f"night {night!r} is not a date YYYYMMDD") from None
    return (date - datetime.date(2017, 1, 1)).days


def night_of_jd(jd: float) -> str:
    """Night YYYYMMDD (the UTC date) of a Julian date."""
    return (datetime.date(1858, 11, 17) + datetime.timedelta(days=math.floor(jd - 2400000.5))).strftime("%Y%m%d")


def expid_of(nid: int, fracday: str) -> int:
    """Exposure id: night id and the first five digits of the fraction of day in the file name."""
    return nid * 100_000 + int(fracday[:5])


def rawid_of(expid: int, rcid: int) -> int:
    """Raw readout-channel image id (`rid`)."""
    return expid * 100 + rcid


def rfid_of(field: int, fid: int, rcid: int, version: int) -> int:
    """Reference-image id: as the survey has it (306120251: field 306, filter 2, channel 51); version 2 is 1000 on."""
    return field * 1_000_000 + (119 + version) * 1000 + fid * 100 + rcid


def procid_of(rawid: int, pipeline_id: int) -> int:
    """Processed-image id (`pid`)."""
    return rawid * 100 + pipeline_id
