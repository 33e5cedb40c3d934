"""Calibrated images as files: what image differencing reads of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive.fitsfiles import Card, FitsFile, card_value, stored_header
from zsds_hpc.archive.psffile import as_stored, read_psf
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.subtraction.images import Science

IMAGE = "sciimg.fits"
#: What is read beside the image.
COMPANIONS = ("mskimg.fits", "psfcat.fits", "sciimg.psf")
_NUMBERS = {
    "gain_e": "GAIN", "saturate_dn": "SATURATE", "magzp": "MAGZP", "seeing_pix": "SEEING", "maglim": "MAGLIM",
}  # fmt: skip


def read_science(sciimg: Path) -> tuple[Science, Mapping[str, Any]]:
    """A calibrated image and its header.

    Parameters
    ----------
    sciimg : Path
        Named ``..._sciimg.fits``; mask, PSF catalogue and PSF lie beside it.

    Raises
    ------
    BadInput
        A file is missing or damaged, or the header lacks what image differencing needs.
    """
    if not sciimg.name.endswith(IMAGE):
        raise BadInput(f"{sciimg}: a calibrated image is named ..._{IMAGE}")
    mask, psfcat, psf = (sciimg.with_name(sciimg.name.removesuffix(IMAGE) + suffix) for suffix in COMPANIONS)
    file = FitsFile(sciimg)
    header, pix = file.header(0), file.image(0)
    rows = FitsFile(psfcat).table(1)
    if rows.dtype != PSFCAT_DTYPE:
        raise BadInput(f"{psfcat.name}: columns of another version")
    cards = {card.keyword: card_value(header, card.keyword) for card in header.cards if card.keyword}
    return _science((pix, FitsFile(mask).image(0, pix.shape), rows), read_psf(psf), cards, file.name), cards


def science_in_memory(
    images: tuple[np.ndarray, np.ndarray, np.ndarray], psf: PsfModel, cards: list[Card], name: str
) -> tuple[Science, Mapping[str, Any]]:
    """The same of an image that has not left the memory: nothing differs from what its files would give.

    Parameters
    ----------
    images : tuple of ndarray
        Image, mask, PSF catalogue.
    psf : PsfModel
    cards : list of (keyword, value[, comment])
        As they are written.
    name : str
        For messages.
    """
    header = stored_header(cards)
    values = {card.keyword: card_value(header, card.keyword) for card in header.cards if card.keyword}
    return _science(images, as_stored(psf), values, name), values


def _science(images: tuple[np.ndarray, ...], psf: PsfModel, cards: Mapping[str, Any], name: str) -> Science:
    lacking = [key for key in _NUMBERS.values() if not isinstance(cards.get(key), (int, float))]
    if lacking:
        raise BadInput(f"{name}: no {', '.join(lacking)} in its header: not photometrically calibrated")
    numbers = {field: float(cards[key]) for field, key in _NUMBERS.items()}
    colour = cards.get("CLRCOEFF")
    clrcoeff = float(colour) if isinstance(colour, (int, float)) else 0.0
    return Science(images[0], images[1], psf, images[2], TPV.from_cards(cards), clrcoeff=clrcoeff, **numbers)
