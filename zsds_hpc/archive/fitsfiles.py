"""FITS files in and out: verified when read, checksummed when written, equal content giving equal bytes."""

import io
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyUserWarning

from zsds_hpc.archive import fitswalk
from zsds_hpc.core.errors import BadInput

_STRUCTURE = re.compile(
    r"|SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|BZERO|BSCALE|Z?CHECKSUM|Z?DATASUM|ZHECKSUM|EXTNAME|EXTVER|END"
    r"|TFIELDS|T(?:TYPE|FORM|DIM|UNIT|NULL)\d+|Z(?:IMAGE|TENSION|SIMPLE|EXTEND|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE)"
    r"|Z(?:NAME\d+|VAL\d+|QUANTIZ|DITHER0|PCOUNT|GCOUNT|BLANK)"
)
_MAX_TILE_RATIO = 4000  # pixels of a tile to bytes of the unit; Rice packs a constant tile about 500 to one
_EMPTY_PRIMARY = fits.PrimaryHDU().header.tostring().encode("ascii")

Card = tuple[str, Any] | tuple[str, Any, str]


@dataclass(frozen=True)
class Hdu:
    """One unit of a FITS file: an image, a table, or only a header.

    Attributes
    ----------
    data : ndarray or None
        Image (ny, nx) of float32, int16, uint8, uint16 or int32; or a structured array for a table.
    cards : sequence of (keyword, value[, comment])
        Header beyond the structural cards.
    name : str
        EXTNAME.
    """

    data: np.ndarray | None = None
    cards: Sequence[Card] = field(default_factory=tuple)
    name: str = ""


class FitsFile:
    """A FITS file read whole into memory, its structure and all its checksums verified.

    Parameters
    ----------
    path : str or Path
    require_checksums : bool, optional
        Foreign files (another camera's) may come without; if they carry the cards these must hold all the same.
    unpack : callable, optional
        Applied to the bytes of the file first (`gzip.decompress`).

    Raises
    ------
    BadInput
        Missing, unreadable, truncated or damaged.
    """

    def __init__(
        self,
        path: str | Path,
        require_checksums: bool = True,
        unpack: Callable[[bytes], bytes] | None = None,
    ):
        self.path = Path(path)
        self.name = self.path.name
        stored = read_bytes(self.path)
        self.data = stored if unpack is None else _unpacked(stored, unpack, self.name)
        self.units = fitswalk.walk(self.data, self.name)
        checked = self.units if require_checksums else [u for u in self.units if "CHECKSUM" in u.cards]
        fitswalk.verify_checksums(self.data, checked, self.name)

    def unit(self, ext: int) -> fitswalk.Unit:
        """Structure of an extension."""
        if ext >= len(self.units):
            raise BadInput(f"{self.name}: has {len(self.units)} units, extension {ext} is missing")
        return self.units[ext]

    def header(self, ext: int = 0) -> fits.Header:
        """Header of an extension, as it stands in the file."""
        unit = self.unit(ext)
        return fits.Header.fromstring(self.data[unit.start : unit.data_start].decode("ascii"))

    def _number(self, unit: fitswalk.Unit, keyword: str, default: float) -> float:
        text = unit.cards.get(keyword, str(default))
        try:
            return float(text.replace("D", "E"))
        except ValueError:
            raise BadInput(f"{self.name}[{unit.index}]: {keyword} = {text}") from None

    def image(self, ext: int = 0, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Pixels of an extension in native byte order.

        Parameters
        ----------
        ext : int
        shape : tuple of int, optional
            (ny, nx) that the image must have; checked before any pixel is touched.
        """
        unit = self.unit(ext)
        found = unit.image_shape
        if found is None or (shape is not None and found != shape):
            raise BadInput(f"{self.name}[{ext}]: image of shape {found} where {shape or 'one'} is expected")
        if unit.cards.get("ZIMAGE") == "T":
            return self._compressed(unit)
        return self._plain(unit, found)

    def _plain(self, unit: fitswalk.Unit, shape: tuple[int, ...]) -> np.ndarray:
        kind = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[unit.integer("BITPIX") or 0]
        stored = np.frombuffer(self.data, kind, int(np.prod(shape)), unit.data_start).reshape(shape)
        zero, scale = self._number(unit, "BZERO", 0.0), self._number(unit, "BSCALE", 1.0)
        if scale == 1 and zero == 32768 and kind == ">i2":
            return stored.astype(np.int16).view(np.uint16) ^ np.uint16(0x8000)
        native = stored.astype(stored.dtype.newbyteorder("="))
        return native if (scale, zero) == (1, 0) else (native * scale + zero).astype(np.float32)

    def _compressed(self, unit: fitswalk.Unit) -> np.ndarray:
        self._check_tiles(unit)
        return self._decoded(unit, "decompressed", np.ascontiguousarray)

    def _check_tiles(self, unit: fitswalk.Unit) -> None:
        """A few bytes can declare an image of terabytes: as many tiles must be there as its shape asks for."""
        shape = [unit.integer(f"ZNAXIS{axis}", 0) or 0 for axis in (1, 2)]
        tile = [unit.integer("ZTILE1", shape[0]) or 0, unit.integer("ZTILE2", 1) or 0]
        rows = unit.integer("NAXIS2", 0)
        if min(*shape, *tile) < 1 or math.prod(-(-n // t) for n, t in zip(shape, tile)) != rows:
            raise BadInput(f"{self.name}[{unit.index}]: {rows} tiles of {tile} do not make an image of {shape}")
        if math.prod(tile) > _MAX_TILE_RATIO * (unit.end - unit.data_start):
            raise BadInput(f"{self.name}[{unit.index}]: tiles of {tile} in {unit.end - unit.data_start} bytes")

    def _decoded(self, unit: fitswalk.Unit, verb: str, take: Callable[[Any], np.ndarray]) -> np.ndarray:
        lone = io.BytesIO(_EMPTY_PRIMARY + self.data[unit.start : unit.end])
        try:
            with warnings.catch_warnings(), fits.open(lone, memmap=False) as hdus:
                warnings.simplefilter("error", AstropyUserWarning)
                return take(hdus[1].data)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"{self.name}[{unit.index}]: cannot be {verb} ({reason})") from error

    def table(self, ext: int = 1) -> np.ndarray:
        """Rows of a binary table as a structured array in native byte order; text stays bytes."""
        unit = self.unit(ext)
        if unit.cards.get("XTENSION", "").strip("' ") != "BINTABLE":
            raise BadInput(f"{self.name}[{ext}]: not a binary table")
        return self._decoded(unit, "read as a table", _native_rows)


def _native_rows(data: fits.FITS_rec) -> np.ndarray:
    stored = np.asarray(data)
    # Logical and unsigned columns are stored as other types: astropy's columns hold the values.
    columns = {n: stored[n] if stored[n].dtype.kind == "S" else np.asarray(data[n]) for n in data.names}
    rows = np.empty(len(data), [(n, c.dtype.newbyteorder("="), c.shape[1:]) for n, c in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    return rows


def read_bytes(path: Path) -> bytes:
    """Whole file; a clear error where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _unpacked(stored: bytes, unpack: Callable[[bytes], bytes], name: str) -> bytes:
    try:
        return unpack(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{name}: cannot be unpacked ({error})") from None


def _stored(data: np.ndarray) -> tuple[memoryview, list[Card]]:
    if data.dtype == np.uint16:
        return (data ^ np.uint16(0x8000)).byteswap().data.cast("B"), [("BZERO", 32768), ("BSCALE", 1)]
    return np.ascontiguousarray(data).byteswap().data.cast("B"), []


_BITPIX = {"float32": -32, "float64": -64, "int16": 16, "uint16": 16, "int32": 32, "int64": 64, "uint8": 8}


def _image_cards(data: np.ndarray | None, first: bool) -> list[Card]:
    bitpix = _BITPIX[data.dtype.name] if data is not None else 8
    shape = data.shape[::-1] if data is not None else ()
    cards: list[Card] = [("SIMPLE", True)] if first else [("XTENSION", "IMAGE")]
    cards += [("BITPIX", bitpix), ("NAXIS", len(shape))]
    cards += [(f"NAXIS{i + 1}", int(n)) for i, n in enumerate(shape)]
    return [*cards, ("EXTEND", True)] if first else [*cards, ("PCOUNT", 0), ("GCOUNT", 1)]


def _table_parts(rows: np.ndarray) -> tuple[list[Card], memoryview]:
    hdu = fits.BinTableHDU(rows)
    stored = hdu.data.view(np.ndarray)
    big = stored.astype(stored.dtype.newbyteorder(">"))
    cards: list[Card] = [(c.keyword, c.value, c.comment) for c in hdu.header.cards]
    return cards, memoryview(big.tobytes())


def _unit_parts(hdu: Hdu, first: bool) -> tuple[bytes, memoryview, bytes]:
    if hdu.data is not None and hdu.data.dtype.names:
        structure, body = _table_parts(hdu.data)
    else:
        structure = _image_cards(hdu.data, first)
        body, scaling = _stored(hdu.data) if hdu.data is not None else (memoryview(b""), [])
        structure += scaling
    header = fits.Header([fits.Card(*card) for card in structure])
    if hdu.name:
        header["EXTNAME"] = hdu.name
    header.extend([fits.Card(*card) for card in hdu.cards], update=True)
    return with_checksums(header, body)


def with_checksums(header: fits.Header, body: memoryview) -> tuple[bytes, memoryview, bytes]:
    """Header with its checksums, data, and what fills the last block, as they are written."""
    fill = b"\0" * (-len(body) % fitswalk.BLOCK)
    data_sum = fitswalk.ones_complement_sum(body)
    header["CHECKSUM"] = ("0" * 16, "HDU checksum")
    header["DATASUM"] = (str(data_sum), "data unit checksum")
    text = header.tostring().encode("ascii")
    total = fitswalk.ones_complement_sum(text) + data_sum
    total = (total & 0xFFFFFFFF) + (total >> 32)
    text = text.replace(b"'" + b"0" * 16 + b"'", f"'{fitswalk.checksum_text(total)}'".encode(), 1)
    return text, body, fill


def write_fits(path: str | Path, hdus: Iterable[Hdu]) -> None:
    """Write a FITS file with CHECKSUM and DATASUM in every unit.

    The bytes depend on the content alone. The path is written directly: give a staged or temporary one.

    Parameters
    ----------
    path : str or Path
    hdus : iterable of Hdu
        The first is the primary; if it is a table, an empty primary goes before it.
    """
    listed = list(hdus)
    if listed[0].data is not None and listed[0].data.dtype.names:
        listed.insert(0, Hdu())
    with open(path, "wb") as file:
        for index, hdu in enumerate(listed):
            file.writelines(_unit_parts(hdu, first=index == 0))


def clean_cards(header: fits.Header, drop: Iterable[str] = ()) -> list[Card]:
    """Cards of a header without structure, checksums and compression bookkeeping, to be carried on."""
    unwanted = set(drop)
    return [
        (card.keyword, card.value, card.comment)
        for card in header.cards
        if card.keyword not in unwanted and not _STRUCTURE.fullmatch(card.keyword) and _is_readable(card)
    ]


def _is_readable(card: fits.Card) -> bool:
    try:
        return card.value is not None
    except VerifyError:
        return False


def stored_header(cards: Iterable[Card]) -> fits.Header:
    """A header as it reads once it was written: numbers have the digits that a card holds."""
    written = fits.Header([fits.Card(*card) for card in cards]).tostring()
    return fits.Header.fromstring(written)


def card_value(header: fits.Header, keyword: str) -> Any:
    """Value of a card; its text where the value is not legal FITS (``NaN``); None where there is none."""
    try:
        value = header.get(keyword)
    except VerifyError:
        with warnings.catch_warnings(action="ignore"):
            return header.cards[keyword].image[10:].strip("' ")
    return None if isinstance(value, fits.card.Undefined) else value
