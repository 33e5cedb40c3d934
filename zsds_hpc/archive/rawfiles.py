"""Raw CCD files of any camera that a camera file describes, and the per-channel files that ingest makes of them."""

import datetime
import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from zsds_hpc.archive.fitsfiles import Card, FitsFile, Hdu, card_value, clean_cards, write_fits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.settings.camera import Camera, Channel, Place

_MJD_0 = 2400000.5


@dataclass(frozen=True)
class Exposure:
    """What the header says of an exposure, in the suite's own terms.

    Attributes
    ----------
    kind : str
        ``object bias flat dark``.
    jd : float
        Start of the exposure, UTC.
    ra_deg, dec_deg : float
        Commanded pointing, ICRS; NaN where there is none.
    """

    kind: str
    filtercode: str
    field: int
    programid: int
    program_pi: str
    exptime_s: float
    jd: float
    ra_deg: float
    dec_deg: float
    airmass: float
    shutter_open: str
    shutter_close: str

    @property
    def mid_jd(self) -> float:
        """Middle of the exposure, UTC: (SHUTOPEN + SHUTCLSD) / 2 where the header has them."""
        if self.shutter_open and self.shutter_close:
            return (jd_of_iso(self.shutter_open) + jd_of_iso(self.shutter_close)) / 2
        return self.jd + self.exptime_s / 2 / 86400

    @property
    def epoch_yr(self) -> float:
        """Julian epoch of the middle of the exposure."""
        return 2000.0 + (self.mid_jd - 2451545.0) / 365.25


@dataclass(frozen=True)
class RawChannel:
    """Raw image of one readout channel.

    Attributes
    ----------
    channel : Channel
        From the camera file, with gain and read noise of the header where it has them.
    pix : ndarray, shape (ny, nx), uint16 or float32
        As read out, in DN.
    overscan : ndarray, shape (ny, n_columns)
    exposure : Exposure
    cards : list of Card
        Header to be carried on.
    name : str
        Stem of the file, for messages and product names.
    """

    channel: Channel
    pix: np.ndarray
    overscan: np.ndarray
    exposure: Exposure
    cards: list[Card]
    name: str


def jd_of_iso(text: str) -> float:
    """Julian date of an ISO date and time (UTC)."""
    when = datetime.datetime.fromisoformat(text.strip())
    return _MJD_0 + (when.replace(tzinfo=None) - datetime.datetime(1858, 11, 17)).total_seconds() / 86400


def _angle(value: Any, hours: bool) -> float:
    """Degrees from a number or from sexagesimal text."""
    if isinstance(value, (int, float)):
        return float(value)
    parts = str(value).strip().lstrip("+").split(":")
    sign = -1.0 if parts[0].strip().startswith("-") else 1.0
    total = sum(abs(float(part)) / 60**i for i, part in enumerate(parts))
    return sign * total * (15.0 if hours else 1.0)


class _Roles:
    """Header values by role, with errors that name file and keyword."""

    def __init__(self, headers: list[fits.Header], camera: Camera, name: str):
        self._headers, self._camera, self._name = headers, camera, name

    def value(self, role: str, default: Any = None) -> Any:
        keyword = self._camera.header.get(role)
        if keyword is None:
            return default
        for header in self._headers:
            value = card_value(header, keyword)
            if value is not None:
                return value
        if role in self._camera.required:
            raise BadInput(f"{self._name}: keyword {keyword} ({role}) is missing")
        return default

    def number(self, role: str, default: float = math.nan, low: float = -1e30, high: float = 1e30) -> float:
        value = self.value(role, default)
        try:
            number = _angle(value, hours=role == "ra_deg")
        except ValueError:
            number = math.nan
        bad = math.isnan(number) or not low <= number <= high
        if bad and (value is not default or role in self._camera.required):
            raise BadInput(f"{self._name}: keyword {self._camera.header[role]} = {value!r} is not usable as {role}")
        return number


def _exposure(roles: _Roles, camera: Camera, name: str) -> Exposure:
    kind_text = str(roles.value("image_type", "")).strip()
    kinds = [kind for kind, texts in camera.image_types.items() if kind_text in texts]
    if not kinds:
        raise BadInput(f"{name}: image type {kind_text!r} is none of {sorted(camera.image_types)}")
    filter_text = str(roles.value("filter", "")).strip()
    by_name = {item.name: code for code, item in camera.filters.items()}
    code = camera.filter_aliases.get(filter_text) or by_name.get(filter_text) or filter_text
    if kinds[0] in ("object", "flat") and code not in camera.filters:
        raise BadInput(f"{name}: filter {filter_text!r} is none of {sorted(by_name)}")
    opened, closed = (str(roles.value(role, "")).strip() for role in ("shutter_open", "shutter_close"))
    try:
        jd = roles.number("jd", jd_of_iso(opened) if opened else math.nan, 2400000.0, 2500000.0)
        if closed:
            jd_of_iso(closed)
    except ValueError:
        raise BadInput(f"{name}: shutter times {opened!r}, {closed!r} are not dates") from None
    return Exposure(
        kinds[0],
        code,
        int(roles.number("field", 0, 0, 999_999)),
        int(roles.number("program_id", 0, 0, 99)),
        str(roles.value("program_pi", "")),
        roles.number("exptime_s", 0.0, 0, 1e5),
        jd,
        roles.number("ra_deg", math.nan, 0, 360),
        roles.number("dec_deg", math.nan, -90, 90),
        roles.number("airmass", math.nan, 0.99, 40),
        opened,
        closed,
    )


def _cut(file: FitsFile, place: Place, shape: tuple[int, int], decoded: dict[int, np.ndarray]) -> np.ndarray:
    if place.section is None:
        return file.image(place.ext, shape)
    if place.ext not in decoded:
        decoded[place.ext] = file.image(place.ext)
    x0, x1, y0, y1 = place.section
    cut = decoded[place.ext][y0:y1, x0:x1]
    if cut.shape != shape or (y1 - y0, x1 - x0) != shape:
        raise BadInput(f"{file.name}[{place.ext}]: section {place.section} gives {cut.shape}, expected {shape}")
    return np.ascontiguousarray(cut)


def check_structure(file: FitsFile, camera: Camera, channels: list[Channel]) -> None:
    """Every image that the camera file names must be there with its exact shape; no pixel is touched.

    Raises
    ------
    BadInput
        Names the extension and the shape found.
    """
    for channel in channels:
        strip = (camera.n_y, camera.overscan_n_columns)
        for place, shape in ((channel.image, camera.shape), (channel.overscan, strip)):
            found = file.unit(place.ext).image_shape
            if found is None or (place.section is None and found != shape):
                raise BadInput(f"{file.name}[{place.ext}]: image of shape {found}, the camera has {shape}")


def _with_header_values(channel: Channel, roles: _Roles) -> Channel:
    """Gain and read noise of the header go before those of the camera file."""
    gain = roles.number("gain_e", channel.gain_e, 0.01, 1000)
    noise = roles.number("read_noise_e", channel.read_noise_e, 0, 1000)
    return channel.model_copy(update={"gain_e": gain, "read_noise_e": noise})


def _headers_of(file: FitsFile, channel: Channel) -> list[fits.Header]:
    own = [file.header(channel.image.ext)] if channel.image.ext else []
    return own + [file.header(0)]


def open_raw(path: str | Path, camera: Camera) -> FitsFile:
    """Raw file in memory, verified; ``.gz`` is unpacked."""
    path = Path(path)
    return FitsFile(path, camera.has_checksums, gzip.decompress if path.suffix == ".gz" else None)


def read_exposure(file: FitsFile, camera: Camera) -> Exposure:
    """Metadata of a raw file's primary header."""
    return _exposure(_Roles([file.header(0)], camera, file.name), camera, file.name)


def telemetry_of(file: FitsFile, camera: Camera) -> dict[str, Any]:
    """Cards of the primary header whose keywords begin as the camera's `telemetry` says."""
    cards = clean_cards(file.header(0)) if camera.telemetry else []
    return {card[0]: card[1] for card in cards if card[0].startswith(camera.telemetry)}


def read_raw_channels(file: FitsFile, camera: Camera, channels: list[Channel]) -> list[RawChannel]:
    """Decompress and split a raw file into its readout channels.

    Raises
    ------
    BadInput
        Wrong structure, missing or unusable metadata.
    """
    check_structure(file, camera, channels)
    decoded: dict[int, np.ndarray] = {}
    result = []
    for channel in channels:
        headers = _headers_of(file, channel)
        roles = _Roles(headers, camera, file.name)
        cards = {card[0] + str(i) * (card[0] in ("COMMENT", "HISTORY")): card for h in headers[::-1]
                 for i, card in enumerate(clean_cards(h))}  # fmt: skip
        result.append(
            RawChannel(
                _with_header_values(channel, roles),
                _cut(file, channel.image, camera.shape, decoded),
                _cut(file, channel.overscan, (camera.n_y, camera.overscan_n_columns), decoded),
                _exposure(roles, camera, file.name),
                list(cards.values()),
                f"{file.name.split('.')[0]}_q{channel.qid}",
            )
        )
    return result


def write_channel(path: Path, raw: RawChannel, extra: list[Card]) -> None:
    """Write a per-channel raw file: image, and over-scan in extension 1."""
    ids: list[Card] = [
        ("CCDID", raw.channel.ccdid, "CCD id"),
        ("QID", raw.channel.qid, "Quadrant id"),
        ("RCID", raw.channel.rcid, "Readout-channel id"),
    ]
    write_fits(path, [Hdu(raw.pix, [*raw.cards, *ids, *extra]), Hdu(raw.overscan, name="OVERSCAN")])


def is_channel_file(file: FitsFile) -> bool:
    """Whether a file was written by `write_channel`."""
    return len(file.units) == 2 and file.units[1].cards.get("EXTNAME", "").strip("' ") == "OVERSCAN"


def read_channel(path: str | Path, camera: Camera, rcid: int | None = None) -> RawChannel:
    """One readout channel from a per-channel file or straight from a raw file.

    Parameters
    ----------
    path : str or Path
    camera : Camera
    rcid : int, optional
        Which channel of a raw file; not needed where there is only one.
    """
    file = open_raw(path, camera)
    if not is_channel_file(file):
        return read_raw_channels(file, camera, [_the_channel(file, camera, rcid)])[0]
    header = file.header(0)
    try:
        channel = camera.channel(int(card_value(header, "RCID") or 0))
    except ValueError as error:
        raise BadInput(f"{file.name}: {error}") from None
    roles = _Roles([header], camera, file.name)
    return RawChannel(
        _with_header_values(channel, roles),
        file.image(0, camera.shape),
        file.image(1, (camera.n_y, camera.overscan_n_columns)),
        _exposure(roles, camera, file.name),
        clean_cards(header),
        file.name.removesuffix(".fits").removesuffix("_raw"),
    )


def channels_of(file: FitsFile, camera: Camera) -> list[Channel]:
    """Channels of the CCD that a raw file says it is from; all of the camera's where it does not say.

    Raises
    ------
    BadInput
        The camera has no such CCD.
    """
    keyword = camera.header.get("ccdid", "CCDID")
    ccdid = card_value(file.header(0), keyword)
    choices = [c for c in sorted(camera.channels, key=lambda c: c.rcid) if ccdid in (None, c.ccdid)]
    if not choices:
        raise BadInput(f"{file.name}: keyword {keyword} = {ccdid!r}: camera {camera.name} has no such CCD")
    return choices


def _the_channel(file: FitsFile, camera: Camera, rcid: int | None) -> Channel:
    choices = [c for c in channels_of(file, camera) if rcid in (None, c.rcid)]
    if len(choices) != 1:
        raise BadInput(f"{file.name}: holds channels {[c.rcid for c in choices]}; say which with --channel")
    return choices[0]
