"""High-frequency flat: response of the pixels relative to their surroundings, from many dome flats.

Each flat is divided by a low-order surface through its own medians of blocks, which removes lamp,
vignetting and whatever else varies slowly, and brings frames of different exposure to 1. Their trimmed mean
is the flat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.maskbits import UNUSABLE
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.combine import CombineParams, combine_trimmed, mean_error_factor
from zsds_hpc.numerics.robust import median_mad, moments
from zsds_hpc.numerics.surface import block_medians, fit_surface, surface_image

#: Pixels of an image that its metrics look at.
N_METRIC = 1_000_000


class HighvFlatParams(Params):
    """How dome flats are normalised and combined."""

    combine: CombineParams = param(CombineParams(), "Trimming of the stack of each pixel.")
    n_frames_min: int = param(5, "Least number of flats.", ge=2)
    surface_degree: int = param(6, "Total degree of the surface that a flat is divided by.", ge=0, le=15)
    block_pix: int = param(64, "Side of the blocks whose medians the surface goes through.", unit="px", ge=4)
    level_min_dn: float = param(1000.0, "Flats with a lower median are refused.", unit="DN", ge=0.0)
    level_max_dn: float = param(50000.0, "Flats with a higher median are refused.", unit="DN", ge=0.0)


DEFAULTS = HighvFlatParams()


class NormalizedFlat(NamedTuple):
    """Result of `normalize_flat`.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Flat about 1, NaN where masked.
    level_dn : float
        Median level of the frame.
    coefficients : ndarray, shape (degree + 1, degree + 1), float64
        Legendre coefficients of the surface, DN (`numerics.surface.Surface`).
    """

    pix: np.ndarray
    level_dn: float
    coefficients: np.ndarray


class HighvFlat(NamedTuple):
    """Result of `combine_highv_flat`.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Response about 1; NaN where every frame is masked.
    unc : ndarray, shape (ny, nx), float32
        Standard error of `pix`, from the scatter of the frames; NaN where fewer than two values are kept.
    n_used : ndarray, shape (ny, nx), int16
        Frames with a valid value.
    """

    pix: np.ndarray
    unc: np.ndarray
    n_used: np.ndarray


def normalize_flat(
    frame: np.ndarray,
    superbias: np.ndarray | None,
    mask: np.ndarray | None,
    params: HighvFlatParams = DEFAULTS,
) -> NormalizedFlat:
    """One dome flat, bias subtracted and linear, divided by its own low-order surface.

    Parameters
    ----------
    frame : ndarray, shape (ny, nx), float32
        Dome flat, over-scan level subtracted, DN.
    superbias : ndarray, shape (ny, nx), float32, or None
        Subtracted; None when it has been already (`detrend` without a flat also linearises).
    mask : ndarray, shape (ny, nx), int16, or None
        Pixels with an unusable bit become NaN.
    params : HighvFlatParams

    Returns
    -------
    NormalizedFlat

    Raises
    ------
    BadInput
        The level of the frame is out of range, or too little of it is usable.
    AlgorithmFailure
        The fitted surface is not positive everywhere.
    """
    pix = frame.astype(np.float32) if superbias is None else frame - superbias
    if mask is not None:
        np.copyto(pix, np.float32(np.nan), where=(mask & UNUSABLE) != 0)
    # Many pixels of each block: the response of those looked at is common to all frames and does not average out.
    blocks = block_medians(pix, _block_side(pix.shape, params), n_sample=1024)
    level = median_mad(blocks.medians).median
    if not params.level_min_dn <= level <= params.level_max_dn:
        raise BadInput(
            f"flat has a median of {level:.6g} DN: {params.level_min_dn:g} to {params.level_max_dn:g} expected"
        )
    surface = fit_surface(blocks, pix.shape, params.surface_degree)
    smooth = surface_image(surface)
    lowest = float(smooth.min())
    if lowest <= 0.05 * level:
        raise AlgorithmFailure("surface of the flat falls to zero", lowest_dn=lowest, level_dn=level)
    pix /= smooth
    return NormalizedFlat(pix, level, surface.coefficients)


def _block_side(shape: tuple[int, ...], params: HighvFlatParams) -> int:
    """Side of the blocks: smaller in a small image, so that the surface stays determined."""
    return max(1, min(params.block_pix, min(shape) // (2 * (params.surface_degree + 1))))


def combine_highv_flat(frames: np.ndarray | Sequence[np.ndarray], params: HighvFlatParams = DEFAULTS) -> HighvFlat:
    """Trimmed mean of normalised flats, or of a slab of their rows, with its standard error.

    Parameters
    ----------
    frames : ndarray, shape (n, ny, nx), float32, or sequence of n arrays, shape (ny, nx)
        `NormalizedFlat.pix` of each frame; NaN is excluded.
    params : HighvFlatParams

    Returns
    -------
    HighvFlat

    Raises
    ------
    BadInput
        Too few frames, or frames that do not fit together.
    """
    if len(frames) < params.n_frames_min:
        raise BadInput(f"{len(frames)} flats: at least {params.n_frames_min} are needed")
    combined = combine_trimmed(frames, params.combine)
    unc = combined.std * mean_error_factor(len(frames), params.combine)[combined.n_used]
    return HighvFlat(combined.mean, unc, combined.n_used)


def highv_flat_metrics(flat: HighvFlat, levels_dn: Sequence[float]) -> dict[str, float]:
    """Figures by which a flat is judged.

    Parameters
    ----------
    flat : HighvFlat
    levels_dn : sequence of float
        `NormalizedFlat.level_dn` of the inputs.

    Returns
    -------
    dict
        ``n_inputs``; ``input_level_dn`` (median), ``level``, ``spatial_noise`` (1.4826 MAD),
        ``second_moment``, ``third_moment`` about the median within 5 robust sigma, ``unc_median``,
        ``response_sigma`` (spatial noise with the uncertainty taken off in quadrature), ``n_missing``
        (pixels without a valid value).
    """
    level = median_mad(flat.pix, max_n=N_METRIC)
    spread = moments(flat.pix, max_n=N_METRIC)
    unc = median_mad(flat.unc, max_n=N_METRIC).median
    return {
        "n_inputs": len(levels_dn),
        "input_level_dn": median_mad(np.asarray(levels_dn)).median,
        "level": level.median,
        "spatial_noise": level.sigma,
        "second_moment": spread.second,
        "third_moment": spread.third,
        "unc_median": unc,
        "response_sigma": float(np.sqrt(max(level.sigma**2 - unc**2, 0.0))),
        "n_missing": int(np.count_nonzero(flat.n_used == 0)),
    }
