"""Radiation hits in a single image, by filters that no sum of stars can excite.

Only pixels that stand above the sky are ever looked at. Each is tested with a bank of small linear filters
(`hit_filters`), made for the seeing of the image; the level at which stars just fail to excite a filter is then
taken from the bright stars of the image itself, so that the true PSF, its ellipticity and its variation need not be
known. Pixels that pass are removed and their neighbours tested again at a lower threshold, until no more are found.
The idea that hits are sharper than stars is van Dokkum's (2001, PASP 113, 1420, L.A.Cosmic).
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.maskbits import UNUSABLE
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector import hit_filters
from zsds_hpc.kernels import cosmic  # type: ignore[attr-defined]

_SKY_BOX_PIX = 128
_SKY_STRIDE = 3
_MIN_STARS = 25
_MIN_STARS_FOR_SEEING = 8
_MIN_LEVEL = 0.75  # below what any PSF reaches when the seeing is right to a step of the ladder
_NO_STAR = 1e3  # stands for the infinite ratio of a lone pixel
_FWHM_LADDER_PIX = np.geomspace(1.0, 6.0, 60)


class CosmicRayParams(Params):
    """How radiation hits are told from stars."""

    n_sigma_seed: float = param(3.8, "Significance at which a pixel is called a hit.", ge=2, le=20)
    n_sigma_chain: float = param(3.2, "Lower significance at which a chain of pixels is called a hit.", ge=1, le=20)
    min_chain: int = param(3, "Pixels that such a chain needs.", "px", ge=2, le=100)
    n_sigma_grow: float = param(1.5, "Significance for pixels that touch a hit.", ge=1, le=20)
    n_sigma_pixel: float = param(3.0, "Only pixels this far above the sky are looked at.", ge=2, le=20)
    n_sigma_alone: float = param(4.3, "A hit without a chain stands this far above the sky.", ge=2, le=20)
    n_sigma_pixel_grow: float = param(2.0, "The same for pixels that touch a hit.", ge=1, le=20)
    n_sigma_star: float = param(60.0, "Peaks above this S/N set the filters' levels.", ge=10, le=1000)
    max_n_stars: int = param(400, "At most this many peaks are used for it.", ge=20, le=10000)
    margin: float = param(1.05, "Factor on the level of the sharpest stars.", ge=1, le=2)
    fallback_fwhm_pix: float = param(2.0, "Seeing when there are too few bright stars.", "px", ge=1, le=6)
    fallback_margin: float = param(1.3, "Factor on the model's level in that case.", ge=1, le=3)
    max_n_iterations: int = param(30, "Growth stops after this many steps.", ge=1, le=1000)
    max_candidates: float = param(0.5, "Give up when more than this fraction stands above the sky.", ge=0.01, le=1)


class Detector(NamedTuple):
    """What a pixel's noise is made of."""

    gain_e: float  # electrons per DN
    read_noise_e: float  # electrons


class CosmicRays(NamedTuple):
    """Radiation hits of one image."""

    mask: np.ndarray  # (ny, nx) bool
    n_clumps: int  # groups of touching pixels, diagonals included
    n_pixels: int
    fwhm_pix: float  # seeing that the filters were made for
    n_stars: int  # peaks that set the levels; 0 when the fall-back was used


def find_cosmic_rays(
    pix: np.ndarray,
    mask: np.ndarray,
    detector: Detector,
    params: CosmicRayParams | None = None,
    background: np.ndarray | float | None = None,
) -> CosmicRays:
    """Find radiation hits in a detrended image.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        Image in DN with the sky still in it, since the sky's photons set the noise; NaN allowed.
    mask : ndarray, shape (ny, nx), int16
        Known bad and saturated pixels (`core.maskbits`); unusable ones are neither tested nor reported.
    detector : Detector
        Gain and read noise.
    params : CosmicRayParams, optional
    background : float or ndarray, optional
        Sky level in DN: one number, a coarse mesh over the image, or a map of its shape. Measured when not given.

    Returns
    -------
    CosmicRays

    Raises
    ------
    BadInput
        Shapes differ, or the gain or read noise is not positive and finite.
    AlgorithmFailure
        More candidates than `max_candidates`: the background does not fit the image.
    """
    params = params or CosmicRayParams()
    _check(pix, mask, detector)
    mesh = sky_mesh(pix, mask) if background is None else np.atleast_2d(np.asarray(background, np.float32))
    hit = np.zeros(pix.shape, np.uint8)
    if not np.isfinite(mesh).any():
        return CosmicRays(hit.view(bool), 0, 0, params.fallback_fwhm_pix, 0)
    finder = _Finder(pix, mask, np.ascontiguousarray(mesh), detector, params)
    filters, fwhm_pix, n_stars = finder.tune()
    finder.search(filters, hit)
    where = np.flatnonzero(hit)
    return CosmicRays(hit.view(bool), clumps(where, pix.shape[1])[0], where.size, fwhm_pix, n_stars)


def sky_mesh(pix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Median of the usable pixels in boxes of about 128 px, on a subsample; empty boxes take the overall median.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), int16

    Returns
    -------
    ndarray, shape (n_boxes_y, n_boxes_x), float32
        NaN everywhere when the image has no usable pixel.
    """
    n_boxes = [max(1, round(n / _SKY_BOX_PIX)) for n in pix.shape]
    edges_y, edges_x = (np.linspace(0, n, m + 1).astype(int) for n, m in zip(pix.shape, n_boxes))
    mesh = np.full(n_boxes, np.nan, np.float32)
    for j, i in np.ndindex(*n_boxes):
        box = slice(edges_y[j], edges_y[j + 1], _SKY_STRIDE), slice(edges_x[i], edges_x[i + 1], _SKY_STRIDE)
        values = pix[box][(mask[box] & UNUSABLE) == 0]
        values = values[np.isfinite(values)]
        if values.size:
            mesh[j, i] = np.median(values)
    good = np.isfinite(mesh)
    return np.where(good, mesh, np.median(mesh[good]) if good.any() else np.nan).astype(np.float32)


def sky_rows(mesh: np.ndarray, nx: int) -> np.ndarray:
    """Sky mesh interpolated along rows to every column; constant beyond the outermost box centres."""
    if mesh.shape[1] == nx:
        return np.ascontiguousarray(mesh)
    centres = (np.arange(mesh.shape[1]) + 0.5) * nx / mesh.shape[1] - 0.5
    return np.array([np.interp(np.arange(nx), centres, row) for row in mesh], np.float32)


def clumps(where: np.ndarray, nx: int) -> tuple[int, np.ndarray]:
    """Number of 8-connected groups among flat pixel numbers given in ascending order, and the group of each.

    Parameters
    ----------
    where : ndarray, shape (n,), int
    nx : int
        Row length of the image.

    Returns
    -------
    n_clumps : int
    label : ndarray, shape (n,), int
    """
    if where.size == 0:
        return 0, np.zeros(0, np.int32)
    first, second = [], []
    for step in (1, nx - 1, nx, nx + 1):
        at = np.minimum(np.searchsorted(where, where + step), where.size - 1)
        ok = (where[at] == where + step) & (np.abs(where % nx - (where + step) % nx) <= 1)
        first.append(np.flatnonzero(ok))
        second.append(at[ok])
    rows, cols = np.concatenate(first), np.concatenate(second)
    graph = coo_matrix((np.ones(rows.size, np.int8), (rows, cols)), shape=(where.size, where.size))
    return connected_components(graph, directed=False)


def _check(pix, mask, detector):
    if pix.ndim != 2 or pix.shape != mask.shape:
        raise BadInput(f"cosmic rays: image {pix.shape} and mask {mask.shape} differ in shape")
    if not (np.isfinite(detector).all() and detector.gain_e > 0 and detector.read_noise_e >= 0):
        raise BadInput(f"cosmic rays: gain {detector.gain_e} e/DN, read noise {detector.read_noise_e} e")


class _Banks(NamedTuple):
    """Tuned filters as (half size of the window, filters)."""

    whole: list
    edge: list  # for pixels whose smallest window holds an unusable one


class _Finder:
    """The arrays that every step of the search looks at."""

    def __init__(self, pix, mask, mesh, detector, params):
        self.pix, self.params = pix, params
        self.sky_dn = float(np.median(mesh))
        self.gain_e, self.floor_var = noise_model(pix, self.sky_dn, detector)
        self.light = np.empty(pix.shape, np.float32)
        candidate = np.empty(pix.shape, np.uint8)
        noise = self.gain_e, self.floor_var, params.n_sigma_pixel
        cosmic.flatten(pix, mask, UNUSABLE, sky_rows(mesh, pix.shape[1]), *noise, self.light, candidate)
        self.candidates = np.flatnonzero(candidate)
        fraction = self.candidates.size / pix.size
        if fraction > params.max_candidates:
            raise AlgorithmFailure("cosmic rays: too many pixels above the sky", candidate_fraction=fraction)

    def tune(self):
        """Filters for this image's stars, the seeing, and the number of stars that set the levels."""
        sigma_dn = np.sqrt(max(self.sky_dn, 0) / self.gain_e + self.floor_var)
        peaks = self.peaks(self.params.n_sigma_star * sigma_dn)
        fwhm_pix = self.seeing(peaks)
        floor_dn = 0.5 * self.params.n_sigma_star * sigma_dn
        tuned, n_stars = [], peaks.size
        for bank in hit_filters.hit_filters(fwhm_pix) + hit_filters.edge_filters(fwhm_pix):
            level, n_used = self.levels(peaks, bank, floor_dn)
            tuned.append((bank.half, bank.positive - level * bank.negative))
            n_stars = min(n_stars, n_used)
        n_whole = len(hit_filters.HALVES)
        return _Banks(tuned[:n_whole], tuned[n_whole:]), fwhm_pix, n_stars

    def peaks(self, threshold_dn):
        """Flat numbers of bright local maxima of 5x5 whose windows are inside the image and usable."""
        ny, nx = self.pix.shape
        rim = 2 * max(hit_filters.HALVES)
        bright = self.candidates[self.light.ravel()[self.candidates] > threshold_dn]
        y, x = np.divmod(bright, nx)
        inside = (y >= rim) & (y < ny - rim) & (x >= rim) & (x < nx - rim)
        y, x = y[inside], x[inside]
        top = np.ones(y.size, bool)
        for dy, dx in np.ndindex(5, 5):
            top &= self.light[y + dy - 2, x + dx - 2] <= self.light[y, x]
        peaks = bright[inside][top]
        if peaks.size > self.params.max_n_stars:
            peaks = peaks[np.linspace(0, peaks.size - 1, self.params.max_n_stars).astype(int)]
        return peaks

    def seeing(self, peaks):
        """Seeing from the share of a peak's light in its central pixel, where the peaks are densest in it."""
        if peaks.size < _MIN_STARS_FOR_SEEING:
            return self.params.fallback_fwhm_pix
        y, x = np.divmod(peaks, self.pix.shape[1])
        total = sum(self.light[y + dy - 1, x + dx - 1] for dy, dx in np.ndindex(3, 3))
        share = np.sort(self.light[y, x] / total)
        # The shortest interval with a third of the peaks: hits scatter widely, stars do not.
        third = share.size // 3
        first = int(np.argmin(share[third:] - share[: share.size - third]))
        centre = float(np.median(share[first : first + third + 1]))
        return float(np.interp(-centre, -_central_share(), _FWHM_LADDER_PIX))

    def levels(self, peaks, bank, floor_dn):
        """Factor on each filter's negative part at which the sharpest stars just fail to excite it."""
        ones = np.ones(bank.positive.shape[1], np.float32)
        if peaks.size < _MIN_STARS:
            return ones * np.float32(self.params.fallback_margin), 0
        reach = np.arange(-bank.half, bank.half + 1)
        around = (reach[:, None] * self.pix.shape[1] + reach[None, :]).ravel()
        where = (peaks[:, None] + around[None, :]).ravel()
        ratio = cosmic.part_ratio(self.light, where, bank.half, bank.positive, bank.negative, floor_dn)
        ratio = np.minimum(ratio.reshape(peaks.size, around.size, -1).max(axis=1), _NO_STAR)
        # Hits among the peaks lie far beyond the sharp upper edge of the stars, which is near 1.
        level, keep = np.full(ones.size, 1.2), np.ones(peaks.size, bool)
        for _ in range(5):
            keep = (ratio < 1.3 * np.maximum(level, _MIN_LEVEL)).all(axis=1)
            if keep.sum() < _MIN_STARS:
                return ones * np.float32(self.params.fallback_margin), 0
            level = np.percentile(ratio[keep], 98, axis=0)
        return np.float32(self.params.margin) * np.maximum(level, _MIN_LEVEL).astype(np.float32), int(keep.sum())

    def snr(self, where, filters):
        """Largest significance over all filters at the given pixels."""
        noise = self.gain_e, self.floor_var
        found = [cosmic.significance(self.light, self.pix, where, *bank, *noise) for bank in filters.whole]
        snr = functools.reduce(np.maximum, found)
        at_edge = ~cosmic.is_whole(self.light, where, hit_filters.HALVES[0])
        for bank in filters.edge:
            edge_snr = cosmic.significance(self.light, self.pix, where[at_edge], *bank, *noise)
            snr[at_edge] = np.maximum(snr[at_edge], edge_snr)
        return snr

    def seeds(self, filters):
        """Candidates that are hits by themselves or members of a chain of less significant ones."""
        where = self.candidates[cosmic.stands_out(self.light, self.candidates)]
        snr = self.snr(where, filters)
        weak = snr > self.params.n_sigma_chain
        where, snr = where[weak], snr[weak]
        strong = (snr > self.params.n_sigma_seed) & self.above_sky(where, self.params.n_sigma_alone)
        _, label = clumps(where, self.pix.shape[1])
        return where[strong | (np.bincount(label)[label] >= self.params.min_chain)]

    def search(self, filters, hit):
        """Mark hits in `hit`: seeds first, then what touches them, in `light` cleaned of what was found."""
        new = self.seeds(filters)
        for _ in range(self.params.max_n_iterations):
            if new.size == 0:
                return
            hit.ravel()[new] = 1
            cosmic.clean_inplace(self.light, hit, new)
            near = self.bright_neighbours(new, hit)
            new = near[self.snr(near, filters) > self.params.n_sigma_grow]

    def bright_neighbours(self, where, hit):
        """Pixels that touch the given ones, are not hit yet and stand above the sky."""
        ny, nx = self.pix.shape
        y, x = np.divmod(where, nx)
        steps = [(dy - 1, dx - 1) for dy, dx in np.ndindex(3, 3)]
        near = np.concatenate([np.clip(y + dy, 0, ny - 1) * nx + np.clip(x + dx, 0, nx - 1) for dy, dx in steps])
        near = np.unique(near[hit.ravel()[near] == 0])
        return near[self.above_sky(near, self.params.n_sigma_pixel_grow)]

    def above_sky(self, where, n_sigma):
        """Whether the given pixels stand n_sigma above the sky."""
        noise_dn = np.sqrt(np.maximum(self.pix.ravel()[where], 0) / self.gain_e + self.floor_var)
        return self.light.ravel()[where] > n_sigma * noise_dn


def noise_model(pix: np.ndarray, sky_dn: float, detector: Detector) -> tuple[float, float]:
    """Effective gain (e/DN) and squared read noise (DN^2): the detector's, scaled up to the noise that is seen.

    The noise is the median absolute difference of neighbours, on a subsample; a map that was scaled or subtracted
    without saying so is then searched less deeply instead of breaking into false hits.
    """
    floor_var = (detector.read_noise_e / detector.gain_e) ** 2
    rows = pix[:: max(1, pix.shape[0] // 256)]
    difference = np.abs(rows[:, 1::2] - rows[:, : rows.shape[1] // 2 * 2 : 2][:, : rows[:, 1::2].shape[1]])
    seen_var = (1.4826 * float(np.nanmedian(difference))) ** 2 / 2 if np.isfinite(difference).any() else 0.0
    scale = max(1.0, seen_var / max(sky_dn / detector.gain_e + floor_var, 1e-6))
    return detector.gain_e / scale, floor_var * scale


def _central_share() -> np.ndarray:
    """Central pixel over its 3x3 box for a star of each seeing of the ladder, at a typical phase."""
    stars = [hit_filters.star_image(fwhm, 0.25, 0.25, half=1) for fwhm in _FWHM_LADDER_PIX]
    return np.array([star[1, 1] / star.sum() for star in stars])
