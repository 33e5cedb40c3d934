"""The block structure of a FITS file, walked and checksummed without trusting a byte of it.

Libraries answer a truncated or bit-flipped file with a warning or with wrong pixels. Here every header unit must be
complete, every data unit must lie inside the file, and every unit must carry a CHECKSUM and a DATASUM that hold
(FITS standard 4.0, section 4.4.2.7 and appendix J).
"""

import re
from dataclasses import dataclass

import numpy as np

from zsds_hpc.core.errors import BadInput

BLOCK = 2880
CARD = 80
_MAX_HEADER_BLOCKS = 400
_INTEGER = re.compile(r"[+-]?\d+\Z")


@dataclass(frozen=True)
class Unit:
    """One header-and-data unit.

    Attributes
    ----------
    index : int
        0 is the primary.
    start, data_start, end : int
        Byte offsets of header, data and of what follows.
    cards : dict
        Keyword -> value text, as written, for the cards that describe the structure.
    """

    index: int
    start: int
    data_start: int
    end: int
    cards: dict[str, str]

    def integer(self, keyword: str, default: int | None = None) -> int | None:
        """Value of an integer card, or `default`."""
        text = self.cards.get(keyword, "")
        return int(text) if _INTEGER.match(text) else default

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape (ny, nx) of the image stored here, compressed or not; None for a table or an empty unit."""
        z = "Z" if self.cards.get("ZIMAGE") == "T" else ""
        if not z and self.cards.get("XTENSION", "'IMAGE'").strip("' ") != "IMAGE":
            return None
        n_axes = self.integer(f"{z}NAXIS", 0) or 0
        return tuple(self.integer(f"{z}NAXIS{axis}", 0) or 0 for axis in range(n_axes, 0, -1)) or None


def ones_complement_sum(data: bytes | memoryview) -> int:
    """32-bit ones' complement sum of big-endian words, the last one filled with zero bytes."""
    whole = len(data) // 4 * 4
    total = int(np.frombuffer(data, dtype=">u4", count=whole // 4).sum(dtype=np.uint64))
    total += int.from_bytes(bytes(data[whole:]).ljust(4, b"\0"), "big")
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _header_end(buffer: memoryview, start: int, where: str) -> int:
    for n_blocks in range(1, _MAX_HEADER_BLOCKS):
        end = start + n_blocks * BLOCK
        if end > len(buffer):
            raise BadInput(f"{where}: truncated in the header, file ends at byte {len(buffer)}")
        block = bytes(buffer[end - BLOCK : end])
        if any(block[i : i + CARD].rstrip() == b"END" for i in range(0, BLOCK, CARD)):
            return end
    raise BadInput(f"{where}: header has no END card")


def _cards(buffer: memoryview, start: int, end: int, where: str) -> dict[str, str]:
    try:
        text = bytes(buffer[start:end]).decode("ascii")
    except UnicodeDecodeError:
        raise BadInput(f"{where}: header is not ASCII text") from None
    cards: dict[str, str] = {}
    for i in range(0, len(text), CARD):
        card = text[i : i + CARD]
        if card[8:10] == "= ":
            value = card[10:]
            quoted = re.match(r"\s*'((?:[^']|'')*)'", value)
            cards.setdefault(card[:8].strip(), f"'{quoted[1]}'" if quoted else value.split("/")[0].strip())
    return cards


def _data_bytes(unit_cards: Unit, where: str) -> int:
    bitpix, n_axes = unit_cards.integer("BITPIX"), unit_cards.integer("NAXIS")
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise BadInput(f"{where}: BITPIX = {unit_cards.cards.get('BITPIX')}")
    if n_axes is None or not 0 <= n_axes <= 999:
        raise BadInput(f"{where}: NAXIS = {unit_cards.cards.get('NAXIS')}")
    size = 1 if n_axes else 0
    for axis in range(1, n_axes + 1):
        length = unit_cards.integer(f"NAXIS{axis}")
        if length is None or length < 0:
            raise BadInput(f"{where}: NAXIS{axis} = {unit_cards.cards.get(f'NAXIS{axis}')}")
        size *= length
    groups, extra = unit_cards.integer("GCOUNT", 1) or 0, unit_cards.integer("PCOUNT", 0) or 0
    if groups < 0 or extra < 0:
        raise BadInput(f"{where}: negative PCOUNT or GCOUNT")
    return abs(bitpix) // 8 * groups * (extra + size)


def walk(data: bytes, name: str) -> list[Unit]:
    """Header-and-data units of a FITS file held in memory.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        For messages.

    Raises
    ------
    BadInput
        Not FITS, truncated, absurd dimensions, or bytes after the last unit.
    """
    if not data.startswith(b"SIMPLE  =                    T"):
        raise BadInput(f"{name}: not a FITS file")
    buffer, start = memoryview(data), 0
    units: list[Unit] = []
    while start < len(buffer):
        where = f"{name}[{len(units)}]"
        data_start = _header_end(buffer, start, where)
        shell = Unit(len(units), start, data_start, data_start, _cards(buffer, start, data_start, where))
        n_bytes = _data_bytes(shell, where)
        end = data_start + -(-n_bytes // BLOCK) * BLOCK
        if end > len(buffer):
            raise BadInput(f"{where}: truncated, needs {end} bytes, file has {len(buffer)}")
        units.append(Unit(shell.index, start, data_start, end, shell.cards))
        start = end
    return units


def verify_checksums(data: bytes, units: list[Unit], name: str) -> None:
    """Require a CHECKSUM and DATASUM that hold in every unit.

    Raises
    ------
    BadInput
        A card is missing, or a sum does not hold: some bit of the unit is wrong.
    """
    buffer = memoryview(data)
    for unit in units:
        where = f"{name}[{unit.index}]"
        for keyword in ("CHECKSUM", "DATASUM"):
            if keyword not in unit.cards:
                raise BadInput(f"{where}: {keyword} card is missing")
        data_sum = ones_complement_sum(buffer[unit.data_start : unit.end])
        if unit.cards["DATASUM"].strip("' ") != str(data_sum):
            raise BadInput(f"{where}: DATASUM does not hold, pixels or table are damaged")
        total = data_sum + ones_complement_sum(buffer[unit.start : unit.data_start])
        if (total & 0xFFFFFFFF) + (total >> 32) not in (0xFFFFFFFF, 0):
            raise BadInput(f"{where}: CHECKSUM does not hold, the header is damaged")


def checksum_text(total: int) -> str:
    """The 16 characters that make a unit's sum all ones (FITS standard 4.0, appendix J.3).

    Parameters
    ----------
    total : int
        Ones' complement sum of the unit with its CHECKSUM card set to sixteen zeros.
    """
    value = 0xFFFFFFFF - total
    columns = []
    for shift in (24, 16, 8, 0):
        byte = value >> shift & 0xFF
        characters = [byte // 4 + 48] * 4
        characters[0] += byte % 4
        columns.append(_without_punctuation(characters))
    text = "".join(chr(columns[i][j]) for j in range(4) for i in range(4))
    return text[-1] + text[:-1]


def _without_punctuation(characters: list[int]) -> list[int]:
    forbidden = {*range(0x3A, 0x41), *range(0x5B, 0x61)}
    while any(c in forbidden for c in characters):
        for j in (0, 2):
            if characters[j] in forbidden or characters[j + 1] in forbidden:
                characters[j] += 1
                characters[j + 1] -= 1
    return characters
