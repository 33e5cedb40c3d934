"""The co-add of many epochs on the fine grid, band by band, alone or shared by the ranks of a group."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np

from zsds_hpc.coadd.combine import CoaddParams, StackFacts, combine_rows
from zsds_hpc.coadd.footprint import Grid
from zsds_hpc.coadd.warp import Layer, WarpParams, warp_rows
from zsds_hpc.kernels.coadd import HALO


class Share(Protocol):
    """How ranks share a stack: each warps its own epochs and combines its own rows."""

    size: int

    def guard(self, what: str) -> AbstractContextManager[None]:
        """What fails inside on one rank fails on all."""

    def to_slabs(self, frames: Sequence[np.ndarray], shape: tuple[int, int]) -> Sequence[np.ndarray]:
        """From this rank's epochs, all rows, to this rank's rows, all epochs."""

    def gather(self, slab: np.ndarray, n_y: int) -> np.ndarray:
        """All rows on the first rank, none elsewhere."""


class Alone:
    """One process has all epochs."""

    size = 1

    def guard(self, what: str) -> AbstractContextManager[None]:
        """Nobody else to tell."""
        return nullcontext()

    def to_slabs(self, frames: Sequence[np.ndarray], shape: tuple[int, int]) -> Sequence[np.ndarray]:
        """The frames themselves."""
        return frames

    def gather(self, slab: np.ndarray, n_y: int) -> np.ndarray:
        """The rows themselves."""
        return slab


class Coadd(NamedTuple):
    """Result of `stack_epochs`; without rows except on the first rank.

    Attributes
    ----------
    fine : ndarray, shape `grid.fine_shape`, float32
        DN per native pixel; NaN without data.
    sky_var : ndarray, shape `grid.shape`, float32
        Variance of a native pixel from the sky, as it shows in sums over many; infinite without data.
    n_used : ndarray, shape `grid.shape`, int16
        Epochs at a native pixel.
    """

    fine: np.ndarray
    sky_var: np.ndarray
    n_used: np.ndarray


def stack_epochs(
    layers: Sequence[Layer],
    facts: StackFacts,
    grid: Grid,
    params: tuple[WarpParams, CoaddParams],
    share: Share | None = None,
    band_rows: int = 128,
) -> Coadd:
    """Warp and combine epochs.

    Every pixel depends on the epochs alone, not on bands or ranks.

    Parameters
    ----------
    layers : sequence of Layer
        Epochs of this rank; ranks' epochs follow each other in the order of the ranks.
    facts : StackFacts
        Of all epochs.
    grid : Grid
    params : (WarpParams, CoaddParams)
    share : Share, optional
    band_rows : int, optional
        Rows of the fine grid that a rank combines at once.
    """
    share = share or Alone()
    warp, combine = params
    n_y, n_x = grid.fine_shape
    height, deep = band_rows + 2 * HALO, band_rows * share.size
    columns = _nearest(grid, axis=1)
    rows_of_native = _nearest(grid, axis=0)
    out: Coadd | None = None
    for start in range(0, n_y, deep):
        with share.guard("warping"):
            starts = [start + k * band_rows - HALO for k in range(share.size)]
            parts = [[warp_rows(layer, grid, s, height, warp) for s in starts] for layer in layers]
            frames = [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]
        slab = share.to_slabs(frames, (share.size * height, n_x))
        with share.guard("combining"):
            part = combine_rows(slab, facts, combine)
        fine, sky_var, n_used = (share.gather(image, deep) for image in part)
        if len(fine):
            out = out or _empty(grid.fine_shape, grid.shape)
            out.fine[start : start + deep] = fine[: n_y - start]
            rows = np.flatnonzero((rows_of_native >= start) & (rows_of_native < start + deep))
            there = np.ix_(rows_of_native[rows] - start, columns)
            out.sky_var[rows], out.n_used[rows] = sky_var[there], n_used[there]
    return out or _empty((0, n_x), (0, 0))


def _empty(fine_shape: tuple[int, int], shape: tuple[int, int]) -> Coadd:
    return Coadd(np.empty(fine_shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.int16))


def _nearest(grid: Grid, axis: int) -> np.ndarray:
    """Fine pixel nearest to each native one along an axis."""
    return np.rint(grid.to_fine(np.arange(grid.shape[axis]))).astype(int)
