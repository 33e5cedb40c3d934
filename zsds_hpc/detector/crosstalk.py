"""Cross-talk: a small fraction of what the sibling channels of a CCD read at the same moment.

Coefficients are of order 1e-4, so only bright pixels of the siblings matter. Below the threshold the
correction would be a faint constant fraction of the siblings' sky, which is background to all that follows.
"""

from collections.abc import Sequence

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param


class CrosstalkParams(Params):
    """Which pixels of the siblings are bright enough to matter."""

    correction_min_dn: float = param(0.2, "Corrections smaller than this are left out.", unit="DN", ge=0.0)


DEFAULTS = CrosstalkParams()


def subtract_crosstalk(
    pix: np.ndarray,
    siblings: Sequence[np.ndarray],
    coefficients: Sequence[float],
    params: CrosstalkParams = DEFAULTS,
    levels_dn: Sequence[float] | None = None,
    response: np.ndarray | None = None,
) -> np.ndarray:
    """Victim image minus ``sum_j c_j * sibling_j`` where a sibling is bright.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        Victim, DN above the bias.
    siblings : sequence of ndarray, shape (ny, nx), floating or uint16
        Images of the other channels in the order of their readout: the same index was read at the same
        moment.
    coefficients : sequence of float
        One for each sibling.
    params : CrosstalkParams
    levels_dn : sequence of float, optional
        Level to subtract from each sibling, for siblings that are raw; 0 by default.
    response : ndarray, shape (ny, nx), float32, optional
        Flat by which the victim has been divided already; the correction is divided by it too.

    Returns
    -------
    ndarray, shape (ny, nx), float32

    Raises
    ------
    BadInput
        Numbers or shapes of siblings and coefficients do not fit.
    """
    corrected = np.array(pix, dtype=np.float32, order="C")
    subtract_crosstalk_inplace(corrected, siblings, coefficients, params, levels_dn, response)
    return corrected


def subtract_crosstalk_inplace(
    pix: np.ndarray,
    siblings: Sequence[np.ndarray],
    coefficients: Sequence[float],
    params: CrosstalkParams = DEFAULTS,
    levels_dn: Sequence[float] | None = None,
    response: np.ndarray | None = None,
) -> None:
    """As `subtract_crosstalk`, in the C-contiguous float32 image itself."""
    levels = [0.0] * len(siblings) if levels_dn is None else list(levels_dn)
    if not len(siblings) == len(coefficients) == len(levels):
        raise BadInput(f"{len(siblings)} siblings, {len(coefficients)} cross-talk coefficients, {len(levels)} levels")
    flat = pix.reshape(-1)
    for sibling, coefficient, level in zip(siblings, coefficients, levels):
        if sibling.shape != pix.shape:
            raise BadInput(f"sibling channel has shape {sibling.shape}, the victim {pix.shape}")
        if coefficient == 0.0:
            continue
        where, correction = _correction(sibling.reshape(-1), coefficient, level, params.correction_min_dn)
        if response is not None:
            divisor = response.reshape(-1)[where]
            correction = correction / np.where(divisor > 0, divisor, np.float32(1.0))
        flat[where] -= correction


def _correction(
    sibling: np.ndarray, coefficient: float, level: float, least_dn: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the bright pixels of a sibling and what they leave in the victim, float32 DN."""
    threshold = sibling.dtype.type(min(level + least_dn / abs(coefficient), _greatest(sibling.dtype)))
    where = np.flatnonzero(sibling > threshold)
    signal = sibling[where].astype(np.float32) - np.float32(level)
    return where, signal * np.float32(coefficient)


def _greatest(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max if dtype.kind in "ui" else np.finfo(dtype).max)
