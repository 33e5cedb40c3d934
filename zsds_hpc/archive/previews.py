"""Small JPEG pictures of images, for people."""

from pathlib import Path

import numpy as np
from PIL import Image

_SOFTENING = 10.0


def stretched(pix: np.ndarray, n_bin: int = 4) -> np.ndarray:
    """Block-averaged, asinh-stretched copy of an image.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx)
    n_bin : int

    Returns
    -------
    ndarray, shape (ny // n_bin, nx // n_bin), uint8
        Row 0 at the bottom of the sky is row 0 here; pictures are written upside down.
    """
    n_y, n_x = (n // n_bin for n in pix.shape)
    blocks = pix[: n_y * n_bin, : n_x * n_bin].reshape(n_y, n_bin, n_x, n_bin)
    small = np.nan_to_num(blocks.mean(axis=(1, 3), dtype=np.float32))
    low, mid, high = np.percentile(small[::4, ::4], [2, 50, 99.5])
    noise = max(float(mid - low), 1e-6)
    scaled = np.arcsinh(_SOFTENING * (small - low) / (10 * noise)) / np.arcsinh(
        _SOFTENING * max(float(high - low) / (10 * noise), 1.0)
    )
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def write_preview(path: Path, pix: np.ndarray, n_bin: int = 4) -> None:
    """Write a JPEG preview; the same pixels give the same bytes."""
    Image.fromarray(stretched(pix, n_bin)[::-1]).save(path, format="JPEG", quality=85)
