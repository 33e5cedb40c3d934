"""Files of candidates (`diffcand.fits`): header of the image, table, and the three cutouts of each."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zsds_hpc.archive.fitsfiles import Card, FitsFile, Hdu, card_value, clean_cards, write_fits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.candcat import CANDIDATE_DTYPE, COLUMNS
from zsds_hpc.subtraction.candidates import REASONS, Candidates
from zsds_hpc.subtraction.cutouts import HALF_PIX, Cutouts

_SIDE = 2 * HALF_PIX + 1
_CUTOUT_DTYPE = np.dtype([(name.upper(), "f4", (_SIDE, _SIDE)) for name in Cutouts._fields])


class CandidateFile(NamedTuple):
    """What a file of candidates holds.

    Attributes
    ----------
    table : ndarray, shape (n,), `candcat.CANDIDATE_DTYPE`
    cutouts : Cutouts
        Each (n, 63, 63), float32.
    cards : dict
        Keyword -> value of the primary header.
    """

    table: np.ndarray
    cutouts: Cutouts
    cards: dict[str, Any]


def rejection_keyword(reason: str) -> str:
    """Keyword of the count of a reason for rejection: REJ and up to five letters."""
    return "REJ" + reason.replace("_", "").upper()[:5]


def write_candidates(path: str | Path, candidates: Candidates, cards: Sequence[Card] = ()) -> None:
    """Write candidates.

    Parameters
    ----------
    path : str or Path
        Written directly: give a staged or temporary name.
    candidates : Candidates
    cards : sequence of (keyword, value[, comment])
        Of the image: identity, times, zero point, reference. Added to NCAND, NPEAKS, LIMMAG and the counts.
    """
    rows = np.zeros(len(candidates.table), _CUTOUT_DTYPE)
    for name, pixels in zip(Cutouts._fields, candidates.cutouts):
        rows[name.upper()] = pixels
    own: list[Card] = [
        ("NCAND", len(candidates.table), "Candidates"),
        ("NPEAKS", candidates.n_raw, "Peaks of the filtered difference"),
    ]
    if math.isfinite(candidates.limit_mag):
        own.append(("LIMMAG", candidates.limit_mag, "[mag] 5-sigma limit for a star, PSF fit"))
    own += [
        (rejection_keyword(reason), candidates.rejected.get(reason, 0), f"Rejected: {reason}") for reason in REASONS
    ]
    units: list[Card] = [(f"TUNIT{k}", unit) for k, (_, unit, _) in enumerate(COLUMNS.values(), 1) if unit]
    write_fits(path, [Hdu(None, [*cards, *own]), Hdu(candidates.table, units, "CANDIDATES"), Hdu(rows, (), "CUTOUTS")])


def read_candidates(path: str | Path) -> CandidateFile:
    """Read what `write_candidates` wrote.

    Raises
    ------
    BadInput
        Missing, damaged, or without the columns of this version.
    """
    file = FitsFile(path)
    table, pixels = file.table(1), file.table(2)
    missing = [name for name in COLUMNS if name not in (table.dtype.names or ())]
    if missing or any(name not in (pixels.dtype.names or ()) for name in _CUTOUT_DTYPE.names or ()):
        raise BadInput(f"{file.name}: columns {', '.join(missing) or 'of cutouts'} are missing")
    shapes = {pixels[name].shape for name in _CUTOUT_DTYPE.names or ()}
    if shapes != {(len(table), _SIDE, _SIDE)}:
        raise BadInput(f"{file.name}: {len(table)} candidates with cutouts {sorted(shapes)}")
    rows = np.zeros(len(table), CANDIDATE_DTYPE)
    for name in COLUMNS:
        rows[name] = table[name]
    header = file.header(0)
    cards = {card[0]: card_value(header, card[0]) for card in clean_cards(header)}
    return CandidateFile(rows, Cutouts(*(pixels[name.upper()] for name in Cutouts._fields)), cards)
