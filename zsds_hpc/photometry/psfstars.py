"""Stars of a fitted scene that show its point-spread function, their neighbours subtracted."""

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry.psffit import FIT_SATURATED, Fitter, Scene, Stars
from zsds_hpc.psf.stars import PsfStars


class PsfStarParams(Params):
    """Which fitted stars show the PSF."""

    max_stars: int = param(600, "Stars used at most; the brightest of each part of the image.", "", 5, 100_000)
    min_snr: float = param(40.0, "Least significance.", "", 5.0, 1e5)
    n_parts: int = param(4, "Parts of the image along each axis that share the stars evenly.", "", 1, 64)
    saturation_fraction: float = param(0.6, "Peaks above this fraction of saturation are left out.", "", 0.05, 1.0)
    neighbour_share: float = param(0.5, "Most flux of neighbours within 2 FWHM over the star's own.", "", 0.0, 100.0)
    min_good_fraction: float = param(0.9, "Usable fraction of the window, at least.", "", 0.1, 1.0)


def select_stars(fitter: Fitter, saturate_dn: float, params: PsfStarParams) -> np.ndarray:
    """Rows of bright, unsaturated stars that dominate their surroundings, spread over the image.

    Parameters
    ----------
    fitter : Fitter
        Its stars fitted at least once.
    saturate_dn : float
        Saturation level above the background, DN.
    params : PsfStarParams

    Returns
    -------
    ndarray, shape (n,), int
        Brightest first.
    """
    scene, stars = fitter.scene, fitter.stars
    flux = stars.value[:, 2]
    information, n_pix = stars.information.T
    good = (flux * np.sqrt(information) >= params.min_snr) & (stars.flags & FIT_SATURATED == 0)
    good &= flux * fitter.peak < params.saturation_fraction * saturate_dn
    good &= n_pix >= params.min_good_fraction * (2 * np.array(fitter.halves)[stars.kind] + 1) ** 2
    good &= _core_is_good(scene, stars)
    rows = np.flatnonzero(good)
    if rows.size == 0:
        return rows
    near = cKDTree(stars.value[:, :2]).query_pairs(2 * scene.psf.fwhm_pix, output_type="ndarray")
    others = np.bincount(near.ravel(), flux[near[:, ::-1]].ravel(), len(stars))
    rows = rows[others[rows] <= params.neighbour_share * flux[rows]]
    return _spread_evenly(rows, stars, scene.data.shape, params)


def _core_is_good(scene, stars):
    """Whether the 3 x 3 pixels about each star are usable."""
    n_y, n_x = scene.data.shape
    x, y = stars.middle.T
    good = (x >= 1) & (x < n_x - 1) & (y >= 1) & (y < n_y - 1)
    x, y = np.clip(x, 1, n_x - 2), np.clip(y, 1, n_y - 2)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            good &= np.isfinite(scene.variance[y + dy, x + dx])
    return good


def _spread_evenly(rows, stars, shape, params):
    """The brightest of each part of the image, in turn, until there are enough."""
    rows = rows[np.argsort(-stars.value[rows, 2], kind="stable")]
    n_y, n_x = shape
    column, line = (
        np.clip(stars.value[rows, k] * params.n_parts // n, 0, params.n_parts - 1) for k, n in ((0, n_x), (1, n_y))
    )
    part = (line * params.n_parts + column).astype(int)
    order = np.argsort(part, kind="stable")
    first = np.searchsorted(part[order], np.arange(params.n_parts**2))
    rank = np.empty(rows.size, int)
    rank[order] = np.arange(rows.size) - first[part[order]]
    return rows[np.sort(np.argsort(rank, kind="stable")[: params.max_stars])]


def cut_stars(scene: Scene, stars: Stars, half: int) -> PsfStars:
    """Windows of stars with all other stars subtracted.

    Parameters
    ----------
    scene : Scene
        Its model holds these stars and their neighbours.
    stars : Stars
    half : int
        Half side of the windows, px.
    """
    steps = np.arange(-half, half + 1)
    n_y, n_x = scene.data.shape
    rows, columns = stars.middle[:, 1, None, None] + steps[:, None], stars.middle[:, 0, None, None] + steps
    outside = (rows < 0) | (rows >= n_y) | (columns < 0) | (columns >= n_x)
    rows, columns = rows.clip(0, n_y - 1), columns.clip(0, n_x - 1)
    x, y, flux = stars.value.T
    model = scene.model[rows, columns]
    own = flux[:, None, None].astype(np.float32) * scene.psf.images(x, y, half)
    var = scene.variance[rows, columns] + np.maximum(model, 0) / np.float32(scene.gain)
    var[outside | ~np.isfinite(var)] = -1
    return PsfStars(x.copy(), y.copy(), scene.data[rows, columns] - model + own, var)
