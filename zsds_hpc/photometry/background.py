"""Sky background and pixel noise on a mesh, from the low side of each mesh's histogram."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.special import ndtr

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.background import clipped_sums, mesh_histograms

#: Mask bits of pixels that say nothing about the sky; ghosts and halos are sky as far as a star in them goes.
NOT_SKY = (maskbits.UNUSABLE & ~(maskbits.GHOST | maskbits.HALO)) | maskbits.SOURCE

_N_SAMPLES = 12  # a mesh is first looked at on a grid of 12 x 12 pixels
_HALF_RANGE_SIGMA = 6.0
_N_BINS = 128
_LOW_CUT, _HIGH_CUT = -3.0, 1.0
_N_ITERATIONS = 12
_PDF_LOW, _PDF_HIGH = np.exp(-0.5 * np.array([_LOW_CUT, _HIGH_CUT]) ** 2) / np.sqrt(2 * np.pi)
_BETWEEN_CUTS = ndtr(_HIGH_CUT) - ndtr(_LOW_CUT)
#: Mean of a standard normal variable between the cuts.
_MEAN_BETWEEN_CUTS = (_PDF_LOW - _PDF_HIGH) / _BETWEEN_CUTS
#: And its variance.
_SHRINK = 1 + (_LOW_CUT * _PDF_LOW - _HIGH_CUT * _PDF_HIGH) / _BETWEEN_CUTS - _MEAN_BETWEEN_CUTS**2
#: Largest step of the level (sigma), and limits of that of -1 / (2 sigma^2), in a round of `residual_background`.
_MAX_STEP, _WIDTH_STEPS = 1.0, (-0.5, 0.3)
_PAD = 2  # meshes


class BackgroundParams(Params):
    """How the background is estimated."""

    mesh_pix: int = param(64, "Approximate side of a mesh.", unit="pix", ge=8, le=4096)
    filter_size: int = param(3, "Side of the median filter over meshes.", unit="meshes", ge=1, le=15)
    min_good_fraction: float = param(0.1, "A mesh with a smaller fraction of good pixels is filled in.", ge=0.0, le=1.0)
    not_sky_bits: int = param(NOT_SKY, "Pixels with any of these mask bits are left out.", ge=0, le=32767)


@dataclass(frozen=True)
class Background:
    """Background of an image.

    Attributes
    ----------
    level, rms : ndarray, shape (ny, nx), float32
        Sky level and pixel noise of the sky, DN.
    global_level, global_rms : float
        Medians of the meshes, DN.
    filled_fraction : float
        Fraction of the meshes that had too few good pixels and were filled from their neighbours.
    """

    level: np.ndarray
    rms: np.ndarray
    global_level: float
    global_rms: float
    filled_fraction: float


def estimate_background(pix: np.ndarray, mask: np.ndarray, params: BackgroundParams) -> Background:
    """Estimate sky level and noise.

    In each mesh the mean and width of a Gaussian are fitted to the histogram between -3 and +1 sigma, where
    few pixels hold starlight (maximum likelihood of a truncated normal). The meshes are median filtered and
    are the control points of a cubic B-spline surface, which reproduces planes exactly and damps the noise
    of the meshes. Pass the mask with the SOURCE bit set for a second, cleaner estimate.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        Image, DN.
    mask : ndarray, shape (ny, nx), int16
        Survey mask bits.
    params : BackgroundParams

    Raises
    ------
    BadInput
        Shapes differ.
    AlgorithmFailure
        No mesh has enough good pixels.
    """
    if pix.ndim != 2 or pix.shape != mask.shape:
        raise BadInput(f"background: image {pix.shape} and mask {mask.shape} must be of one 2-D shape")
    y_edges, x_edges = (_edges(n, params.mesh_pix) for n in pix.shape)
    low, width = _histogram_ranges(pix, mask, params.not_sky_bits, y_edges, x_edges)
    counts = np.zeros((*low.shape, _N_BINS), np.int32)
    mesh_histograms(pix, mask, params.not_sky_bits, y_edges, x_edges, low, (1 / width).astype(np.float32), counts)
    level, rms = _fit_truncated_normal(counts, low, width)
    area = np.diff(y_edges)[:, None] * np.diff(x_edges)
    good = counts.sum(axis=2) >= np.maximum(params.min_good_fraction * area, 8)
    if not good.any():
        raise AlgorithmFailure("background: no mesh has enough good pixels", n_good_pixels=int(counts.sum()))
    level, rms = (_control_points(_fill(m, good), params.filter_size) for m in (level, rms))
    middle = slice(_PAD, -_PAD)
    return Background(
        _surface(level, pix.shape),
        _surface(rms, pix.shape),
        float(np.median(level[middle, middle])),
        float(np.median(rms[middle, middle])),
        float(1 - good.mean()),
    )


def residual_background(
    images: tuple[np.ndarray, np.ndarray, np.ndarray], params: BackgroundParams
) -> tuple[np.ndarray, float]:
    """Level and noise that are left in an image once its stars are subtracted.

    In each mesh, the middle of the normal whose part between -3 and +1 sigma (the low side, which faint sources leave
    alone) has the mean of the residuals, where no star's model is above the noise. The noise is the given one times a
    factor common to the image, from the width of the same part. Meshes are treated as in `estimate_background`.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx), float32
        Data, model of the stars, variance of the sky (infinite where unusable).
    params : BackgroundParams

    Returns
    -------
    level : ndarray, shape (ny, nx), float32
        Zero where no mesh has enough good pixels.
    noise_factor : float
        Noise found over noise given.
    """
    shape, variance = images[0].shape, images[2]
    y_edges, x_edges = (_edges(n, params.mesh_pix) for n in shape)
    center, factor = np.zeros((y_edges.size - 1, x_edges.size - 1), np.float32), 1.0
    noise = np.sqrt(variance[np.ix_(*[(e[:-1] + e[1:]) // 2 for e in (y_edges, x_edges)])])
    usual = float(np.median(noise[np.isfinite(noise)])) if np.isfinite(noise).any() else 0.0
    noise = np.where(np.isfinite(noise), noise, usual)
    enough = np.maximum(params.min_good_fraction * np.diff(y_edges)[:, None] * np.diff(x_edges), 8)
    # The cuts find their place on some of the rows; the last round is of all.
    for every in (4, 4, 1):
        sums = np.zeros((*center.shape, 3))
        clipped_sums(images, y_edges, x_edges, center, np.array([usual, factor, _LOW_CUT, _HIGH_CUT]), every, sums)
        good = sums[..., 0] * every >= enough
        if not good.any():
            return np.zeros(shape, np.float32), 1.0
        step, wide = _truncated_normal_step(sums, good)
        center += (step * factor * noise).astype(np.float32)
        factor *= wide
    return _surface(_control_points(_fill(center, good), params.filter_size), shape), float(factor)


def _truncated_normal_step(sums, good):
    """Step of the middle of each mesh (sigma) and factor of the common width, by one Newton step of the likelihood.

    Between fixed cuts a normal is an exponential family: means of x and x^2 change with mu / sigma^2 and
    -1 / (2 sigma^2) by their covariance.
    """
    n = np.maximum(sums[..., 0], 1)
    low, high = _LOW_CUT, _HIGH_CUT
    m = [1.0, _MEAN_BETWEEN_CUTS]
    for k in range(1, 4):
        m.append(k * m[k - 1] + (low**k * _PDF_LOW - high**k * _PDF_HIGH) / _BETWEEN_CUTS)
    cov = np.array([[m[2] - m[1] ** 2, m[3] - m[1] * m[2]], [m[3] - m[1] * m[2], m[4] - m[2] ** 2]])
    mean, square = sums[..., 1] / n - m[1], sums[..., 2] / n - m[2]
    by_mesh = (cov[0, 0] * square - cov[0, 1] * mean) / np.linalg.det(cov)
    width = np.clip(np.median(by_mesh[good]), *_WIDTH_STEPS)
    variance = 1 / (1 - 2 * width)
    step = (mean - cov[0, 1] * width) / cov[0, 0] * variance
    return np.clip(step, -_MAX_STEP, _MAX_STEP), np.sqrt(variance)


def _edges(n, mesh_pix):
    return np.rint(np.linspace(0, n, max(1, round(n / mesh_pix)) + 1)).astype(np.int32)


def _histogram_ranges(pix, mask, bits, y_edges, x_edges):
    """First bin and bin width of each mesh (float32), from the median and lower 16% of a grid of its pixels."""
    rows, columns = (_sample_positions(edges) for edges in (y_edges, x_edges))
    sample = np.where(mask[np.ix_(rows, columns)] & bits, np.nan, pix[np.ix_(rows, columns)])
    my, mx = y_edges.size - 1, x_edges.size - 1
    sample = sample.reshape(my, _N_SAMPLES, mx, _N_SAMPLES).transpose(0, 2, 1, 3).reshape(my, mx, -1)
    sample = np.sort(np.where(np.isfinite(sample), sample, np.nan), axis=2)  # NaN last
    n = np.isfinite(sample).sum(axis=2, keepdims=True)
    median = np.take_along_axis(sample, n // 2, axis=2)[:, :, 0] if n.any() else np.zeros((my, mx))
    sigma = median - np.take_along_axis(sample, (0.16 * n).astype(int), axis=2)[:, :, 0]
    few = n[:, :, 0] < 8
    if few.all():
        return np.zeros((my, mx), np.float32), np.ones((my, mx), np.float32)
    median = np.where(few, np.median(median[~few]), median)
    sigma = np.where(few, np.median(sigma[~few]), sigma)
    sigma = np.maximum(sigma, 1e-5 * np.abs(median) + 1e-6)
    return (median - _HALF_RANGE_SIGMA * sigma).astype(np.float32), 2 * _HALF_RANGE_SIGMA / _N_BINS * sigma


def _sample_positions(edges):
    steps = (np.arange(_N_SAMPLES) + 0.5) / _N_SAMPLES
    return (edges[:-1, None] + steps * np.diff(edges)[:, None]).astype(int).ravel()


def _fit_truncated_normal(counts, low, width):
    """Mean and sigma of the normal whose part between the two cuts has the observed mean and variance."""
    weights = counts.reshape(-1, _N_BINS).astype(np.float64)
    centre = np.arange(_N_BINS) + 0.5
    mean, sigma = _start(weights)
    for _ in range(_N_ITERATIONS):
        below = np.clip((mean + _HIGH_CUT * sigma)[:, None] - centre + 0.5, 0, 1)
        kept = weights * below * np.clip(centre + 0.5 - (mean + _LOW_CUT * sigma)[:, None], 0, 1)
        n = np.maximum(kept.sum(axis=1), 1)
        cut_mean = kept @ centre / n
        sigma = np.sqrt(np.maximum(kept @ centre**2 / n - cut_mean**2, 0.08) / _SHRINK)
        mean = cut_mean - _MEAN_BETWEEN_CUTS * sigma
    shape = counts.shape[:2]
    return low + mean.reshape(shape) * width, sigma.reshape(shape) * width


def _start(weights):
    """Median of each histogram and the distance to its lower 16%, in bins."""
    cumulative = np.cumsum(weights, axis=1)
    total = cumulative[:, -1:]
    median = (cumulative < 0.5 * total).sum(axis=1) + 0.5
    return median, np.maximum(median - (cumulative < 0.16 * total).sum(axis=1), 1.0)


def _fill(mesh, good):
    """Bad meshes take the value of the nearest good one."""
    if good.all():
        return mesh
    nearest = ndimage.distance_transform_edt(~good, return_distances=False, return_indices=True)
    return mesh[tuple(nearest)]


def _control_points(mesh, size):
    """Median-filtered mesh with a border of `_PAD`: what is left of a plane is filtered and continued as it is."""
    y, x = (np.arange(-_PAD, n + _PAD, dtype=float) for n in mesh.shape)
    plane = np.stack([np.ones((y.size, x.size)), *np.broadcast_arrays(y[:, None], x)], axis=2)
    inner = plane[_PAD:-_PAD, _PAD:-_PAD].reshape(-1, 3)
    trend = plane @ np.linalg.lstsq(inner, mesh.ravel(), rcond=None)[0]
    rest = ndimage.median_filter(mesh - trend[_PAD:-_PAD, _PAD:-_PAD], size, mode="nearest")
    return trend + np.pad(rest, _PAD, mode="edge")


def _surface(control, shape):
    """Cubic B-spline surface, float32, of control points that reach `_PAD` meshes beyond the image."""
    along_y, along_x = (_spline_weights(n, m - 2 * _PAD) for n, m in zip(shape, control.shape))
    lines = np.ascontiguousarray((along_x @ control.T).T.astype(np.float32))
    return along_y.astype(np.float32) @ lines


def _spline_weights(n, n_mesh):
    """Sparse (n, n_mesh + 2 _PAD) matrix: cubic B-spline weights of the padded control points at each pixel."""
    t = (np.arange(n) + 0.5) * n_mesh / n - 0.5 + _PAD
    start = np.floor(t).astype(int) - 1
    u = t - start - 1
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], axis=1)
    columns = start[:, None] + np.arange(4)
    rows = np.broadcast_to(np.arange(n)[:, None], columns.shape)
    return sparse.csr_array((weights.ravel() / 6, (rows.ravel(), columns.ravel())), shape=(n, n_mesh + 2 * _PAD))
