"""Names of raw files and of what is made from them (the survey's own convention)."""

import re
from dataclasses import dataclass

KINDS = {"o": "object", "b": "bias", "f": "flat", "d": "dark"}

_RAW = re.compile(
    r"ztf_(?P<night>\d{8})(?P<fracday>\d{6})_(?P<field>\d{6})_(?P<filtercode>[a-z]{2})"
    r"_c(?P<ccdid>\d{2})_(?P<kind>[obfd])\.fits\.fz",
    re.ASCII,
)


@dataclass(frozen=True)
class RawName:
    """The parts of a raw CCD file name.

    Attributes
    ----------
    night : str
        Date YYYYMMDD.
    fracday : str
        Six digits of the fraction of the day; a name, about 1 s off, never a time.
    field : int
        Field id, 0 for bias frames.
    filtercode : str
        ``zg``, ``zr``, ``zi``, or ``bi`` for bias frames.
    ccdid : int
        1-16.
    kind : str
        ``o`` science, ``b`` bias, ``f`` dome flat, ``d`` dark.
    """

    night: str
    fracday: str
    field: int
    filtercode: str
    ccdid: int
    kind: str

    @property
    def exposure(self) -> str:
        """Name of the exposure: the file name up to the CCD."""
        return f"ztf_{self.night}{self.fracday}_{self.field:06d}_{self.filtercode}"

    @property
    def stem(self) -> str:
        """File name without its endings."""
        return f"{self.exposure}_c{self.ccdid:02d}_{self.kind}"

    @property
    def filename(self) -> str:
        """File name as the camera writes it."""
        return f"{self.stem}.fits.fz"

    def channel_stem(self, qid: int) -> str:
        """Stem of the name of a readout-channel image."""
        return f"{self.stem}_q{qid}"


def parse_raw_name(filename: str) -> RawName:
    """Take a raw file name apart.

    Raises
    ------
    ValueError
        The name does not follow ``ztf_YYYYMMDDffffff_FFFFFF_fi_cNN_T.fits.fz``.
    """
    found = _RAW.fullmatch(filename)
    if not found or not 1 <= int(found["ccdid"]) <= 16:
        raise ValueError(f"{filename!r} is not a raw file name (ztf_YYYYMMDDffffff_FFFFFF_fi_cNN_T.fits.fz)")
    parts = found.groupdict()
    return RawName(
        parts["night"], parts["fracday"], int(parts["field"]), parts["filtercode"], int(parts["ccdid"]), parts["kind"]
    )
