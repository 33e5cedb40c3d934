"""Images in tile-compressed FITS files (Rice), quantised in steps of a chosen size."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from zsds_hpc.archive import fitswalk
from zsds_hpc.archive.fitsfiles import Card, clean_cards, with_checksums

_LARGEST = 32767
#: Of a tile: one for each row would spend more time on the tiles than on the pixels.
_TILE_ROWS = 20


def write_compressed(path: str | Path, pix: np.ndarray, cards: Sequence[Card] = (), step: float = 1.0) -> None:
    """Write an image, Rice-compressed in tiles of some rows, as 16-bit integers times a step.

    The bytes depend on the content alone. What is not finite is written as 0; beyond 32767 steps values are cut off.

    Parameters
    ----------
    path : str or Path
        Written directly: give a staged or temporary name.
    pix : ndarray, shape (ny, nx), float32 or int16
    cards : sequence of (keyword, value[, comment])
    step : float
        Size of a step, in the unit of the image; 1 keeps integers as they are.
    """
    stored = pix if pix.dtype == np.int16 else _quantised(pix, step)
    content = io.BytesIO()
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.CompImageHDU(
                stored, compression_type="RICE_1", tile_shape=(min(_TILE_ROWS, len(stored)), stored.shape[1])
            ),
        ]
    ).writeto(content)
    data = content.getvalue()
    with open(path, "wb") as file:
        for unit in fitswalk.walk(data, Path(path).name):
            header = fits.Header.fromstring(data[unit.start : unit.data_start].decode("ascii"))
            if unit.index:
                header.extend([fits.Card(*card) for card in cards], update=True)
                header["BSCALE"], header["BZERO"] = float(step), 0.0
            file.writelines(with_checksums(header, memoryview(data[unit.data_start : unit.end])))


def _quantised(pix: np.ndarray, step: float) -> np.ndarray:
    out = pix * np.float32(1 / step)
    np.rint(out, out=out)
    np.nan_to_num(out, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(out, -_LARGEST, _LARGEST, out=out).astype(np.int16)


def image_cards(cards: Sequence[Card]) -> list[Card]:
    """Cards without those that describe an image's own storage."""
    return clean_cards(fits.Header([fits.Card(*card) for card in cards]))
