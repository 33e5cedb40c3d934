"""Super-bias: the bias structure that is left after over-scan subtraction, from many bias frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.combine import CombineParams, combine_trimmed, mean_error_factor
from zsds_hpc.numerics.robust import median_mad, moments
from zsds_hpc.numerics.surface import block_medians, column_medians

#: Pixels of an image that its metrics look at.
N_METRIC = 1_000_000


class SuperbiasParams(Params):
    """How bias frames are combined and noisy pixels found."""

    combine: CombineParams = param(CombineParams(), "Trimming of the stack of each pixel.")
    n_frames_min: int = param(5, "Least number of bias frames.", ge=2)
    noisy_n_sigma: float = param(
        6.0, "Pixels noisier than their surroundings by this many standard deviations are noisy.", ge=3.0
    )
    noisy_block_pix: int = param(64, "Side of the blocks in which the usual noise is measured.", unit="px", ge=8)
    hot_n_sigma: float = param(
        10.0, "Pixels off from their column by this many standard deviations of all pixels are hot.", ge=3.0
    )
    hot_min_dn: float = param(5.0, "... and by at least this.", unit="DN", ge=0.0)


DEFAULTS = SuperbiasParams()


class Superbias(NamedTuple):
    """Result of `combine_superbias`.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Bias structure above the over-scan level, DN.
    std : ndarray, shape (ny, nx), float32
        Standard deviation of a pixel over the frames, DN.
    n_used : ndarray, shape (ny, nx), int16
        Frames with a valid value.
    """

    pix: np.ndarray
    std: np.ndarray
    n_used: np.ndarray


def combine_superbias(frames: np.ndarray | Sequence[np.ndarray], params: SuperbiasParams = DEFAULTS) -> Superbias:
    """Trimmed mean and standard deviation of each pixel over bias frames, or over a slab of their rows.

    Parameters
    ----------
    frames : ndarray, shape (n, ny, nx), float32, or sequence of n arrays, shape (ny, nx)
        Bias frames, over-scan level subtracted, DN.
    params : SuperbiasParams

    Returns
    -------
    Superbias

    Raises
    ------
    BadInput
        Too few frames, or frames that do not fit together.
    """
    if len(frames) < params.n_frames_min:
        raise BadInput(f"{len(frames)} bias frames: at least {params.n_frames_min} are needed")
    return Superbias(*combine_trimmed(frames, params.combine))


def noisy_pixels(std: np.ndarray, params: SuperbiasParams = DEFAULTS) -> np.ndarray:
    """Pixels whose scatter over the frames stands out from that of their surroundings.

    The usual scatter is the median of a block; how much pixels of the same noise differ from it (16% for 20
    frames) is measured over the whole image, so the limit adapts to the number of frames.

    Parameters
    ----------
    std : ndarray, shape (ny, nx), float32
        `Superbias.std` of the whole image.
    params : SuperbiasParams

    Returns
    -------
    ndarray, shape (ny, nx), bool
        NaN in `std` is not noisy.

    Raises
    ------
    BadInput
        No pixel has a finite standard deviation.
    """
    if not np.isfinite(std).any():
        raise BadInput("super-bias: no pixel has a finite standard deviation")
    usual = local_level(std, params.noisy_block_pix)
    spread = median_mad(np.divide(std, usual, out=np.full_like(std, np.nan), where=usual > 0), max_n=N_METRIC)
    limit = spread.median + params.noisy_n_sigma * max(spread.sigma, 0.01)
    return std > usual * np.float32(limit if np.isfinite(limit) else 1.0)


def hot_pixels(pix: np.ndarray, params: SuperbiasParams = DEFAULTS) -> np.ndarray:
    """Pixels whose bias stands out from their stretch of column: mostly dark current during the readout.

    A long exposure collects more of it than a bias frame, so that the super-bias does not correct it.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        `Superbias.pix` of the whole image, DN.
    params : SuperbiasParams

    Returns
    -------
    ndarray, shape (ny, nx), bool
        NaN in `pix` is not hot.
    """
    offset = pix.copy()
    for rows in np.array_split(offset, max(1, round(pix.shape[0] / params.noisy_block_pix))):
        rows -= column_medians(rows)
    limit = max(params.hot_n_sigma * median_mad(offset, max_n=N_METRIC).sigma, params.hot_min_dn)
    return np.abs(offset) > np.float32(limit)


def local_level(image: np.ndarray, block_pix: int) -> np.ndarray:
    """Median of the block that each pixel lies in (or nearest to it at the edges).

    Returns
    -------
    ndarray, shape (ny, nx), float32
        Blocks without a finite pixel take the median of the other blocks.
    """
    blocks = block_medians(image, block_pix)
    medians = blocks.medians.astype(np.float32)
    medians[np.isnan(medians)] = median_mad(medians).median
    side = max(1, min(block_pix, *image.shape))
    rows, columns = (
        np.clip(np.rint((np.arange(n) - centres[0]) / side).astype(np.intp), 0, centres.size - 1)
        for n, centres in zip(image.shape, (blocks.y_pix, blocks.x_pix))
    )
    return medians[rows][:, columns]


def superbias_metrics(superbias: Superbias, n_inputs: int, params: SuperbiasParams = DEFAULTS) -> dict[str, float]:
    """Figures by which a super-bias is judged.

    Parameters
    ----------
    superbias : Superbias
    n_inputs : int
        Number of frames.
    params : SuperbiasParams

    Returns
    -------
    dict
        ``n_inputs``; ``level_dn``, ``spatial_noise_dn`` (1.4826 MAD), ``second_moment_dn2`` and
        ``third_moment_dn3`` about the median within 5 robust sigma; ``frame_noise_dn`` (median scatter of a
        pixel over the frames); ``mean_error_dn`` (error of a super-bias pixel from it); ``n_missing`` (pixels
        without a valid value).
    """
    level = median_mad(superbias.pix, max_n=N_METRIC)
    spread = moments(superbias.pix, max_n=N_METRIC)
    frame_noise = median_mad(superbias.std, max_n=N_METRIC).median
    error = float(mean_error_factor(n_inputs, params.combine)[n_inputs])
    return {
        "n_inputs": n_inputs,
        "level_dn": level.median,
        "spatial_noise_dn": level.sigma,
        "second_moment_dn2": spread.second,
        "third_moment_dn3": spread.third,
        "frame_noise_dn": frame_noise,
        "mean_error_dn": frame_noise * error,
        "n_missing": int(np.count_nonzero(superbias.n_used == 0)),
    }
