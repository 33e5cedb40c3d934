"""Files of streaks (`diffstreaks.fits`): header of the image, counts of what was rejected, table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zsds_hpc.archive.fitsfiles import Card, FitsFile, Hdu, write_fits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.streak_table import COLUMNS, REASONS, STREAK_DTYPE
from zsds_hpc.subtraction.streaks import Streaks

_PIXELS = ("x1", "y1", "x2", "y2")


def rejection_keyword(reason: str) -> str:
    """Keyword of the count of a reason for rejection: REJ and up to five letters."""
    return "REJ" + reason.upper()[:5]


def write_streaks(path: str | Path, streaks: Streaks, cards: Sequence[Card] = ()) -> None:
    """Write streaks; the first pixel is at 1 in the file.

    Parameters
    ----------
    path : str or Path
        Written directly: give a staged or temporary name.
    streaks : Streaks
    cards : sequence of (keyword, value[, comment])
        Of the image. Added to NSTREAK, NVETTED, MINSCORE and the counts.
    """
    rows = streaks.table.copy()
    for name in _PIXELS:
        rows[name] += 1
    own: list[Card] = [
        ("NSTREAK", len(rows), "Streaks listed"),
        ("NVETTED", len(streaks.vetted), "Streaks taken for real"),
        ("MINSCORE", streaks.min_score, "Score of a real streak"),
    ]
    own += [(rejection_keyword(r), streaks.n_rejected.get(r, 0), f"Rejected: {r}") for r in REASONS]
    units: list[Card] = [(f"TUNIT{k}", unit) for k, (_, unit, _) in enumerate(COLUMNS.values(), 1) if unit]
    write_fits(path, [Hdu(None, [*cards, *own]), Hdu(rows, units, "STREAKS")])


def read_streaks(path: str | Path) -> np.ndarray:
    """Table of streaks that `write_streaks` wrote; the first pixel is at 0 again.

    Returns
    -------
    ndarray, shape (n,), `streak_table.STREAK_DTYPE`

    Raises
    ------
    BadInput
        Missing, damaged, or without the columns of this version.
    """
    file = FitsFile(path)
    stored = file.table(1)
    missing = [name for name in COLUMNS if name not in (stored.dtype.names or ())]
    if missing:
        raise BadInput(f"{file.name}: columns {', '.join(missing)} are missing")
    rows = np.zeros(len(stored), STREAK_DTYPE)
    for name in COLUMNS:
        rows[name] = stored[name]
    for name in _PIXELS:
        rows[name] -= 1
    return rows
