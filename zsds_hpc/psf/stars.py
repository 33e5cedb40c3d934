"""Stars that the point-spread function is built from: their choice, and their windows."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry.detect import FLAG_APERTURE, FLAG_SATURATED, FLAG_TRUNCATED, Detections
from zsds_hpc.photometry.seeing import half_sample_mode
from zsds_hpc.psf.model import PsfModel

#: Pixels with any of these mask bits have no part in the point-spread function.
BAD_IN_PSF = maskbits.UNUSABLE & ~(maskbits.GHOST | maskbits.HALO)
_NOT_WHOLE = FLAG_SATURATED | FLAG_TRUNCATED | FLAG_APERTURE
_CORE_PIX = 2


class StarSelectParams(Params):
    """Which stars the point-spread function is built from."""

    max_stars: int = param(800, "Stars at most.", "", 1, 100_000)
    n_cells: int = param(8, "The image is divided into so many parts along each axis, each with its share.", "", 1, 100)
    min_snr: float = param(20.0, "Least significance.", "", 3.0, 1e4)
    enough_snr: float = param(300.0, "More significance is no merit.", "", 3.0, 1e6)
    saturation_fraction: float = param(0.75, "Highest pixel, of saturation.", "", 0.05, 1.0)
    width_tolerance: float = param(0.25, "Stars this far (ln) from the commonest FWHM are left out.", "", 0.02, 2.0)
    spread_sigma: float = param(5.0, "Sources this far from the stars' SPREAD_MODEL are left out.", "", 1.0, 1e3)
    max_neighbours: float = param(0.1, "Neighbours' light at the star, over its own.", "", 1e-4, 10.0)
    neighbour_fwhm: float = param(5.0, "How far neighbours are looked for.", "FWHM", 1.0, 50.0)


class PsfStars(NamedTuple):
    """Stars to build a point-spread function from.

    Attributes
    ----------
    x, y : ndarray, shape (n,), float64
        First guess of the place, 0-based px.
    pix : ndarray, shape (n, side, side), float32
        Background- and neighbour-subtracted windows about the pixel nearest to (x, y), DN.
    var : ndarray, shape (n, side, side), float32
        Variance of each pixel, not positive where it is unusable.
    """

    x: np.ndarray
    y: np.ndarray
    pix: np.ndarray
    var: np.ndarray


def select_psf_stars(
    catalogue: np.ndarray, shape: tuple[int, int], saturate_dn: float, params: StarSelectParams
) -> np.ndarray:
    """Choose bright, single, unsaturated stars, evenly over the image.

    Parameters
    ----------
    catalogue : ndarray
        Aperture catalogue (`photometry.aperture.COLUMNS`).
    shape : tuple of int
        (ny, nx) of the image.
    saturate_dn : float
        Saturation level, DN, background included.
    params : StarSelectParams

    Returns
    -------
    ndarray, shape (n,), int
        Rows of the catalogue, in order; may be empty.
    """
    candidates = _star_like(catalogue, saturate_dn, params)
    snr = np.minimum(catalogue["SNR_WIN"][candidates].astype(float), params.enough_snr)
    cells = _cells(catalogue[candidates], shape, params.n_cells)
    some = _best_of_cells(snr, cells, 3 * params.max_stars)
    candidates, snr, cells = candidates[some], snr[some], cells[some]
    if not candidates.size:
        return candidates
    fwhm = float(np.median(catalogue["FWHM_IMAGE"][candidates]))
    light = _neighbours(catalogue, candidates, fwhm, params)
    single = light < params.max_neighbours
    if single.sum() < min(10, candidates.size):
        single = light <= np.sort(light)[min(10, candidates.size) - 1]
    merit = np.where(single, snr / np.hypot(1, snr * light), 0)
    chosen = _best_of_cells(merit, cells, params.max_stars)
    return np.sort(candidates[chosen[merit[chosen] > 0]])


def _star_like(catalogue, saturate_dn, params):
    """Rows of whole, significant sources that look like the others."""
    sky = np.nan_to_num(catalogue["BACKGROUND"])
    good = (catalogue["FLAGS"] & _NOT_WHOLE == 0) & (catalogue["SNR_WIN"] >= params.min_snr)
    good &= catalogue["FLUX_MAX"] + sky < params.saturation_fraction * saturate_dn
    good &= (catalogue["FWHM_IMAGE"] > 0.5) & np.isfinite(catalogue["SPREAD_MODEL"])
    rows = np.flatnonzero(good)
    if rows.size < 5:
        return rows
    width = np.log(catalogue["FWHM_IMAGE"][rows].astype(float))
    rows = rows[np.abs(width - half_sample_mode(width)) < params.width_tolerance]
    spread, error = (catalogue[name][rows].astype(float) for name in ("SPREAD_MODEL", "SPREADERR_MODEL"))
    if not rows.size:
        return rows
    off = np.abs(spread - half_sample_mode(spread))
    scatter = 1.4826 * np.median(off[error <= np.median(error)])
    return rows[off <= params.spread_sigma * np.hypot(scatter, error)]


def _cells(rows, shape, n_cells):
    """Number of the part of the image that each source is in."""
    n_y, n_x = shape
    column, row = (
        np.clip((rows[name] - 0.5) / n * n_cells, 0, n_cells - 1).astype(int)
        for name, n in (("XWIN_IMAGE", n_x), ("YWIN_IMAGE", n_y))
    )
    return row * n_cells + column


def _best_of_cells(merit, cells, n_wanted):
    """Indices of the best of each cell, then of the second best, until there are enough."""
    order = np.lexsort((-merit, cells))
    rank = np.empty(len(merit), int)
    _, first = np.unique(cells[order], return_index=True)
    rank[order] = np.arange(len(merit)) - np.repeat(first, np.diff(np.append(first, len(merit))))
    return np.lexsort((-merit, rank))[:n_wanted]


def _neighbours(catalogue, candidates, fwhm, params):
    """Light of other sources at each candidate, over its own: falling as the third power of the distance."""
    places = np.stack([catalogue["XWIN_IMAGE"], catalogue["YWIN_IMAGE"]], axis=1)
    flux = np.maximum(catalogue["FLUX_APER"][:, min(2, catalogue["FLUX_APER"].shape[1] - 1)].astype(float), 0)
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in (places[candidates], places)]
    pairs = trees[0].sparse_distance_matrix(trees[1], params.neighbour_fwhm * fwhm, output_type="ndarray")
    pairs = pairs[candidates[pairs["i"]] != pairs["j"]]
    share = flux[pairs["j"]] / np.maximum(flux[candidates[pairs["i"]]], 1e-30) * (1 + (pairs["v"] / fwhm) ** 2) ** -1.5
    return np.bincount(pairs["i"], share, len(candidates))


def cut_stars(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    gain: float,
    sources: Detections,
    positions: np.ndarray,
    guess: PsfModel,
    half: int,
) -> PsfStars:
    """Windows of stars for the first point-spread function; pixels of other sources are unusable.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx)
        Background-subtracted image, noise of the sky (float32, DN), survey mask (int16).
    gain : float
        e/DN.
    sources : Detections
        Whose segments tell what belongs to other sources.
    positions : ndarray, shape (n, 2)
        x, y of the stars, 0-based px.
    guess : PsfModel
        For the photon noise: `build.profile_psf` of the mean profile.
    half : int
        Half side of the windows, px.
    """
    pix_sub, rms, mask = images
    x, y = np.asarray(positions, float).reshape(-1, 2).T
    own = _nearest(sources.segments, x, y)
    other = _windows(sources.segments, x, y, half, 0)
    other = _grown((other != 0) & (other != own[:, None, None]))
    bad = other | (_windows(mask, x, y, half, maskbits.NAN) & BAD_IN_PSF != 0)
    pix = _windows(pix_sub, x, y, half, np.nan)
    bad |= ~np.isfinite(pix)
    pix[bad] = 0
    unit = guess.images(x, y, half)
    core = (slice(None), *[slice(half - _CORE_PIX, half + _CORE_PIX + 1)] * 2)
    template = np.where(bad[core], 0, unit[core])
    flux = (template * pix[core]).sum(axis=(1, 2)) / np.maximum((template**2).sum(axis=(1, 2)), 1e-12)
    return PsfStars(x, y, pix, _variance(unit, flux, _nearest(rms, x, y), gain, bad))


def _variance(unit, flux, noise, gain, bad):
    """Sky and photon noise of model stars, 0 where unusable."""
    if not gain > 0:
        raise BadInput(f"PSF stars: gain {gain} must be positive")
    photons = np.maximum(unit, 0) * np.maximum(flux / gain, 0).astype(np.float32)[:, None, None]
    var = photons + noise.astype(np.float32)[:, None, None] ** 2
    var[bad | ~np.isfinite(var)] = 0
    return var


def _nearest(image, x, y):
    """Value of the pixel at each place, the nearest one inside."""
    row, column = (np.clip(np.rint(p).astype(int), 0, n - 1) for p, n in zip((y, x), image.shape))
    return image[row, column]


def _windows(image, x, y, half, outside):
    """Windows about the nearest pixels, shape (n, 2 half + 1, 2 half + 1); a fixed value outside of the image."""
    n_y, n_x = image.shape
    side = 2 * half + 1
    out = np.full((len(x), side, side), outside, image.dtype)
    for k, (top, left) in enumerate(zip(np.rint(y).astype(int) - half, np.rint(x).astype(int) - half)):
        low_y, low_x, high_y, high_x = max(-top, 0), max(-left, 0), min(side, n_y - top), min(side, n_x - left)
        if low_y < high_y and low_x < high_x:
            out[k, low_y:high_y, low_x:high_x] = image[top + low_y : top + high_y, left + low_x : left + high_x]
    return out


def _grown(flag):
    """Flagged pixels and their neighbours along rows and columns."""
    out = flag.copy()
    out[:, 1:] |= flag[:, :-1]
    out[:, :-1] |= flag[:, 1:]
    out[:, :, 1:] |= flag[:, :, :-1]
    out[:, :, :-1] |= flag[:, :, 1:]
    return out
