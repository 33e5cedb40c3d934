"""From raw counts to a flat, linear image in one pass over memory.

The signal is undone in the reverse order of its making. Light falls on pixels of different response (flat);
the charge is amplified and converted with a response that is not quite linear; the electronics add a
pedestal that drifts from row to row (over-scan level) and differs from pixel to pixel (super-bias). So:

1. subtract the row's level and the super-bias: what is left is the converted signal x;
2. linearise: ``x / (a x^2 + b x + 1)``;
3. divide by the high-frequency and the low-frequency response.
"""

from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.linearity import check_linearity
from zsds_hpc.kernels.detrend import detrend_pixels


class DetrendInputs(NamedTuple):
    """Calibration of one readout channel; what is None is taken as absent.

    Attributes
    ----------
    superbias : ndarray, shape (ny, nx), float32, or None
        Bias structure above the over-scan level, DN.
    flat : ndarray, shape (ny, nx), float32, or None
        High-frequency response about 1. Where it is NaN or not positive, the pixel is not divided.
    lowv_flat : ndarray, shape (ny, nx), float32, or None
        Low-frequency response about 1.
    linearity_a, linearity_b : float
        Coefficients in DN^-2 and DN^-1.
    """

    superbias: np.ndarray | None = None
    flat: np.ndarray | None = None
    lowv_flat: np.ndarray | None = None
    linearity_a: float = 0.0
    linearity_b: float = 0.0


def detrend(raw: np.ndarray, level_dn: np.ndarray, calibration: DetrendInputs) -> np.ndarray:
    """Subtract level and super-bias, linearise, divide by the responses.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx), uint16 or float32
    level_dn : ndarray, shape (ny,), float32
        Level of each row (`overscan.floating_bias`).
    calibration : DetrendInputs

    Returns
    -------
    ndarray, shape (ny, nx), float32, DN

    Raises
    ------
    BadInput
        Shapes or types do not fit, or the linearity coefficients are absurd.
    """
    check_linearity(calibration.linearity_a, calibration.linearity_b)
    if raw.ndim != 2 or raw.dtype not in (np.uint16, np.float32):
        raise BadInput(f"raw image is {raw.dtype} {raw.shape}: 2-D uint16 or float32 expected")
    if level_dn.shape != raw.shape[:1]:
        raise BadInput(f"over-scan level has {level_dn.size} rows, the image {raw.shape[0]}")
    zero, one = (np.full((1, raw.shape[1]), value, np.float32) for value in (0.0, 1.0))
    planes = [
        _plane(calibration.superbias, zero, raw.shape, "super-bias"),
        _plane(calibration.flat, one, raw.shape, "high-frequency flat"),
        _plane(calibration.lowv_flat, one, raw.shape, "low-frequency flat"),
    ]
    level = np.ascontiguousarray(level_dn, np.float32)
    pixels = np.ascontiguousarray(raw)
    return detrend_pixels(pixels, level, planes, calibration.linearity_a, calibration.linearity_b)


def _plane(image: np.ndarray | None, absent: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if image is None:
        return absent
    if image.shape != shape:
        raise BadInput(f"{name} has shape {image.shape}, the image {shape}")
    return np.ascontiguousarray(image, np.float32)
