"""From epochs to a reference: the steps in their order, on arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zsds_hpc.coadd.combine import CoaddParams, StackFacts, weigh
from zsds_hpc.coadd.fill import FillParams, fill_holes_inplace
from zsds_hpc.coadd.footprint import Grid
from zsds_hpc.coadd.measure import MeasureReferenceParams, Plane, measure_reference
from zsds_hpc.coadd.stack import Coadd, stack_epochs
from zsds_hpc.coadd.warp import INHERITED, Exposure, WarpParams, count_inherited_inplace, prepare_epoch
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.resample import Mapping, spline_filter_inplace, spline_sample
from zsds_hpc.subtraction.images import Template


class TemplateParams(Params):
    """How a reference is made from its epochs."""

    warp: WarpParams = param(WarpParams(), "Epochs on the footprint.")
    coadd: CoaddParams = param(CoaddParams(), "Combination.")
    measure: MeasureReferenceParams = param(MeasureReferenceParams(), "PSF and catalogues.")
    inherit_share: float = param(0.1, "Epochs that must have a bit (saturated, ghost, halo) to mark a pixel.", "", 0, 1)
    fill: FillParams = param(FillParams(), "Holes of the co-add, in fine pixels.")


class Reference(NamedTuple):
    """A reference image with all its products.

    Attributes
    ----------
    template : Template
    pix : ndarray, shape (ny, nx), float32
        Sky-subtracted native image, DN; 0 without data.
    coverage : ndarray, shape (ny, nx), int16
        Epochs at a pixel.
    sexcat : ndarray
        Aperture catalogue.
    gain_e : float
        Electrons of all epochs per DN of the mean.
    saturate_dn : float
    metrics : dict
    """

    template: Template
    pix: np.ndarray
    coverage: np.ndarray
    sexcat: np.ndarray
    gain_e: float
    saturate_dn: float
    metrics: dict[str, Any]


def make_reference(
    exposures: Sequence[Exposure], grid: Grid, magzp: float, params: TemplateParams, facts: dict[str, Any]
) -> Reference:
    """Reference of some epochs in memory.

    Parameters
    ----------
    exposures : sequence of Exposure
    grid : Grid
    magzp : float
        Zero point of the reference.
    params : TemplateParams
    facts : dict
        For `Template.facts`: rfid, version, jdstart, ...

    Raises
    ------
    BadInput
        No epochs, or one that cannot be used.
    AlgorithmFailure
        No pixel has data, or there is nothing to measure.
    """
    layers = [prepare_epoch(exposure, grid, magzp, params.warp) for exposure in exposures]
    counts = np.zeros((len(INHERITED), *grid.shape), np.uint8)
    for exposure in exposures:
        count_inherited_inplace(counts, exposure, grid, params.warp)
    stack = weigh([layer.facts for layer in layers], params.coadd)
    coadd = stack_epochs(layers, stack, grid, (params.warp, params.coadd))
    return finish_reference(coadd, stack, counts, (grid, magzp, facts), params)


def finish_reference(
    coadd: Coadd,
    stack: StackFacts,
    bit_counts: np.ndarray,
    place: tuple[Grid, float, dict[str, Any]],
    params: TemplateParams,
) -> Reference:
    """Spline, native image, uncertainty, mask, PSF and catalogues of a co-add. `coadd.fine` ends as coefficients.

    Parameters
    ----------
    coadd : Coadd
    stack : StackFacts
    bit_counts : ndarray, shape (n_bits, ny, nx), uint8
        Epochs with each of `warp.INHERITED`.
    place : (Grid, float, dict)
        Footprint, zero point, and what `Template.facts` shall hold.
    params : TemplateParams

    Raises
    ------
    AlgorithmFailure
        No pixel has data, or there is nothing to measure.
    """
    grid, magzp, facts = place
    n_epochs = len(stack.weight)
    empty = coadd.n_used == 0
    if empty.all():
        raise AlgorithmFailure("no pixel of the footprint has data in any epoch", n_frames=n_epochs)
    n_filled = fill_holes_inplace(coadd.fine, params.fill)
    coefficients = spline_filter_inplace(coadd.fine)
    pix = spline_sample(coefficients, native_mapping(grid), grid.shape)
    pix[empty] = 0
    mask = _mask(bit_counts, empty, n_epochs, params.inherit_share)
    gain_e = 1 / stack.mean_var_per_dn
    plane = Plane(pix, np.sqrt(coadd.sky_var), mask, gain_e, stack.saturate_dn, magzp, grid.wcs)
    measured = measure_reference(plane, params.measure)
    metrics = {
        "n_frames": n_epochs, "coverage_median": float(np.median(coadd.n_used)), "empty_fraction": float(empty.mean()),
        "fine_filled_fraction": n_filled / coefficients.size, "gain_e": gain_e, "saturate_dn": stack.saturate_dn,
        "magzp": magzp, "clrcoeff": stack.clrcoeff, **measured.metrics,
    }  # fmt: skip
    template = Template(
        coefficients, _sigma(coadd.sky_var, pix, stack), measured.mask, measured.psf, measured.psfcat, grid, magzp,
        stack.clrcoeff, {**facts, **{key: metrics[key] for key in ("n_frames", "maglim", "seeing_pix")}},
    )  # fmt: skip
    return Reference(template, pix, coadd.n_used, measured.sexcat, gain_e, stack.saturate_dn, metrics)


def native_mapping(grid: Grid) -> Mapping:
    """Where the native pixels lie on the fine grid."""
    return Mapping.of(lambda x, y: (grid.to_fine(x), grid.to_fine(y)), grid.shape)


def _mask(bit_counts: np.ndarray, empty: np.ndarray, n_epochs: int, share: float) -> np.ndarray:
    mask = np.where(empty, maskbits.NAN, 0).astype(maskbits.MASK_DTYPE)
    for bit, count in zip(INHERITED, bit_counts):
        mask[count > share * n_epochs] |= bit
    return mask


def _sigma(sky_var: np.ndarray, pix: np.ndarray, stack: StackFacts) -> np.ndarray:
    """Error of a native pixel: sky, and the light's own noise, both of the epochs that are in the mean there."""
    relative = np.float32(stack.mean_var_per_dn / stack.mean_sky_var)
    return np.sqrt(sky_var * (1 + relative * np.maximum(pix, 0)))
