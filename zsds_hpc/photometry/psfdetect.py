"""Detection by a matched filter with the local point-spread function, on what is not modelled yet."""

import numpy as np

from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.psfpeaks import find_peaks
from zsds_hpc.photometry.psffit import Scene
from zsds_hpc.psf.model import PsfModel

PEAK_DTYPE = np.dtype([("x", "f8"), ("y", "f8"), ("flux", "f8"), ("snr", "f8"), ("model", "f8")])

_BLOCK_PIX = (8, 64)


class PsfDetectParams(Params):
    """How peaks are found."""

    detect_sigma: float = param(4.8, "Significance of a star at a peak of the filtered image.", "", 2.0, 100.0)
    filter_fwhm: float = param(1.5, "Half side of the filter, in FWHM.", "FWHM", 0.5, 4.0)
    tile_pix: int = param(256, "The PSF is taken as constant over tiles of about this side.", "px", 32, 8192)
    least_share: float = param(0.4, "Share of the filter that must lie on usable pixels.", "", 0.05, 1.0)
    psf_error: float = param(0.02, "Error of the PSF relative to the model: noise under stars already found.", "", 0.0)


def local_peaks(scene: Scene, params: PsfDetectParams, changed: np.ndarray | None = None) -> np.ndarray:
    """Peaks of the significance of an additional star, by row and column.

    At each pixel, flux = sum p w r / sum p^2 w and significance = sum p w r / sqrt(sum p^2 w), with the residual r,
    weights w = 1 / variance (sky, photons of the stars found so far, error of their PSF), and the local profile p
    (e.g. Zackay & Ofek 2017, eq. 29 with a varying variance).

    Parameters
    ----------
    scene : Scene
        Its model holds what was found before.
    params : PsfDetectParams
    changed : ndarray, shape (n, 2), optional
        Only blocks of the image near these places (x, y) are searched.

    Returns
    -------
    ndarray, shape (n,), `PEAK_DTYPE`
        Position (0-based px), flux (DN), significance, model in the pixel (DN).
    """
    half = max(1, int(np.ceil(params.filter_fwhm * scene.psf.fwhm_pix)))
    noise = (1 / scene.gain, params.psf_error**2)
    filters = local_filters(scene.psf, params.tile_pix, half)
    wanted = _blocks(scene.data.shape, changed, 2 * half)
    found = find_peaks(scene.images, noise, filters, wanted, params.detect_sigma, params.least_share)
    return np.rec.fromarrays(found.T, dtype=PEAK_DTYPE).view(np.ndarray)


def local_filters(psf: PsfModel, tile_pix: int, half: int) -> np.ndarray:
    """Stars of unit flux in the middle of a pixel, for each tile: shape (ty, tx, side, side), float32."""
    n_y, n_x = (max(1, round(n / tile_pix)) for n in psf.shape)
    y, x = ((np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip((n_y, n_x), psf.shape))
    grid_y, grid_x = (np.rint(a).ravel() for a in np.meshgrid(y, x, indexing="ij"))
    side = 2 * half + 1
    return np.ascontiguousarray(psf.images(grid_x, grid_y, half).reshape(n_y, n_x, side, side))


def _blocks(shape, changed, margin):
    """Which blocks of the image are near the places (n, 2); all when there are none given."""
    counts = [max(1, n // size) for n, size in zip(shape, _BLOCK_PIX)]
    if changed is None:
        return np.ones(counts, np.uint8)
    wanted = np.zeros(counts, np.uint8)
    for dx in (-margin, 0, margin):
        for dy in (-margin, 0, margin):
            row, column = (
                ((changed[:, axis] + move) * count // n).astype(int).clip(0, count - 1)
                for axis, move, count, n in ((1, dy, counts[0], shape[0]), (0, dx, counts[1], shape[1]))
            )
            wanted[row, column] = 1
    return wanted
