"""Which calibration products belong to an image: by date, channel and filter, with validity and fall-back."""

import datetime
from collections.abc import Iterable
from typing import Any

from zsds_hpc.archive import database


def days_between(night: str, other: str) -> int:
    """Days from `night` to `other`, both YYYYMMDD."""
    first, second = (datetime.datetime.strptime(text, "%Y%m%d") for text in (night, other))
    return (second - first).days


def choose(rows: Iterable[dict[str, Any]], night: str, validity_days: int) -> dict[str, Any] | None:
    """The best of some calibration products for a night.

    The same night's goes first, then the latest earlier one, then the earliest later one, within the validity.

    Parameters
    ----------
    rows : iterable of dict
        Rows of the calibrations table.
    night : str
        YYYYMMDD.
    validity_days : int
        How far from the night a product may be.
    """
    near = [(days_between(night, row["night"]), row) for row in rows if row["usable"]]
    near = [(days, row) for days, row in near if abs(days) <= validity_days]
    return min(near, key=lambda item: (item[0] > 0, abs(item[0])), default=(0, None))[1]


class CalibrationChoice:
    """Calibration products of one kind, looked up once and chosen many times.

    Parameters
    ----------
    engine : Engine
    kind : str
        See `archive.paths.CAL_KINDS`.
    validity_days : int
    """

    def __init__(self, engine: database.Engine, kind: str, validity_days: int):
        self._validity_days = validity_days
        self._by_channel: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in database.get(engine, database.calibrations, ("night", "path"), kind=kind):
            self._by_channel.setdefault((row["rcid"], row["filtercode"]), []).append(row)

    def __call__(self, rcid: int, filtercode: str, night: str) -> dict[str, Any] | None:
        """Row of the product to use, or None where none is valid."""
        return choose(self._by_channel.get((rcid, filtercode), []), night, self._validity_days)
