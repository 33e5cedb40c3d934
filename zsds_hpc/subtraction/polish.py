"""What the models of both point-spread functions leave, taken from the stars of the image: a small kernel."""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from zsds_hpc.core import maskbits
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.robust import median_mad
from zsds_hpc.photometry.linefit import fit_linear
from zsds_hpc.psf.model import monomials
from zsds_hpc.subtraction.psfmatch import to_correlate

#: Scatter of log10 chi^2 per pixel of a window that there is at least.
_EXCESS_ERROR = 0.03


class PolishParams(Params):
    """Correction of the matched reference on the stars of the image."""

    half_pix: int = param(4, "Half side of the correcting kernel.", "px", 0, 10)
    degree: int = param(2, "Degree of its polynomials over the image.", "", 0, 4)
    window_half_pix: int = param(8, "Half side of the windows of stars.", "px", 3, 30)
    min_snr: float = param(80.0, "Stars fainter than this do not count.", "", 10.0, 1000.0)
    max_stars: int = param(400, "Stars used.", "", 10, 10_000)
    cells: int = param(10, "Stars are taken evenly from so many cells along each axis.", "", 1, 100)
    prior: float = param(0.01, "Expected size of an element of the correcting kernel.", "", 1e-5, 1.0)
    floor: float = param(0.003, "Error of a star's profile, relative; keeps the brightest from ruling.", "", 0.0, 0.1)
    clip_sigma: float = param(
        4.0, "Stars that fit worse than the others by this are variable: left out.", "", 2.0, 20.0
    )


class Windows(NamedTuple):
    """Windows of stars.

    Attributes
    ----------
    rest : ndarray, shape (n, w, w)
        Science less matched reference, float64, DN.
    reference : ndarray, shape (n, w + 2 h, w + 2 h)
        Matched reference, wider by the half side h of the kernel.
    var : ndarray, shape (n, w, w)
    x, y : ndarray, shape (n,), int
        Middle pixels.
    phase : ndarray, shape (n, 2), float64
        Offset (x, y) of the star from the middle of its window.
    flux : ndarray, shape (n,), float64
        DN.
    """

    rest: np.ndarray
    reference: np.ndarray
    var: np.ndarray
    x: np.ndarray
    y: np.ndarray
    phase: np.ndarray
    flux: np.ndarray


class Misfit(NamedTuple):
    """Errors that grow with the brightness of a constant source.

    Attributes
    ----------
    gain : float
        Relative error of the flux in a pixel.
    shift_pix : float
        Error of the registration.
    chi : float
        rms of residual over error within 3 px of the stars, without these two.
    n_stars : int
    """

    gain: float
    shift_pix: float
    chi: float
    n_stars: int


def star_windows(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    sky_var: float,
    sources: np.ndarray,
    gain_e: float,
    params: PolishParams,
) -> Windows:
    """Windows of bright stars without an unusable pixel, evenly over the image.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx)
        Science, matched reference (float32, DN), mask of both (int16).
    sky_var : float
        Variance of a pixel without sources, DN^2.
    sources : ndarray, `images.SOURCE_DTYPE`
    gain_e : float
    params : PolishParams
    """
    science, reference, mask = images
    n_y, n_x = science.shape
    half, wide = params.window_half_pix, params.window_half_pix + params.half_pix
    x, y = np.rint(sources["x"]).astype(int), np.rint(sources["y"]).astype(int)
    inside = (x >= wide) & (x < n_x - wide) & (y >= wide) & (y < n_y - wide) & (sources["snr"] > params.min_snr)
    rows = np.flatnonzero(inside)
    rows = rows[_even(x[rows], y[rows], sources["flux"][rows], science.shape, params)]
    span, wide_span = np.arange(-half, half + 1), np.arange(-wide, wide + 1)

    def cut(image, keep, reach):
        return image[y[keep, None, None] + reach[:, None], x[keep, None, None] + reach]

    rows = rows[(cut(mask, rows, span) & maskbits.UNUSABLE == 0).all(axis=(1, 2))][: params.max_stars]
    window = cut(reference, rows, wide_span).astype(np.float64)
    inner = window[:, params.half_pix : params.half_pix + len(span), params.half_pix : params.half_pix + len(span)]
    var = sky_var + np.maximum(inner, 0.0) / gain_e
    phase = np.stack([sources["x"][rows] - x[rows], sources["y"][rows] - y[rows]], axis=1)
    flux = sources["flux"][rows].astype(np.float64)
    return Windows(cut(science, rows, span) - inner, window, var, x[rows], y[rows], phase, flux)


def _even(x, y, flux, shape, params):
    """Rows by their rank of brightness within their cell, brightest first."""
    cell = y * params.cells // shape[0] * params.cells + x * params.cells // shape[1]
    order = np.lexsort((-flux, cell))
    first = np.r_[True, cell[order][1:] != cell[order][:-1]]
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    by_rank = np.argsort(rank, kind="stable")
    return order[by_rank][: 2 * params.max_stars]


def fit_correction(windows: Windows, shape: tuple[int, int], params: PolishParams) -> tuple[np.ndarray, np.ndarray]:
    """Kernel that, added to a point, takes away what is left of the stars.

    rest = sum_jk c_jk(x, y) reference(x - k, y - j) + a constant for each star, with polynomials c over the image;
    ridge regression towards zero, with variable stars left out.

    Parameters
    ----------
    windows : Windows
    shape : tuple of int
        (ny, nx) of the image.
    params : PolishParams

    Returns
    -------
    coefficients : ndarray, shape (n_terms, side, side)
    used : ndarray, shape (n,), bool
    """
    side, n_stars = 2 * params.half_pix + 1, len(windows.x)
    degree = max((d for d in range(params.degree + 1) if n_stars >= 10 * (d + 1) * (d + 2) // 2), default=-1)
    if degree < 0:
        return np.zeros((1, side, side)), np.ones(n_stars, bool)
    terms = _terms(windows.x, windows.y, shape, degree)
    equations = [_star_equations(windows, k, params) for k in range(n_stars)]
    normals, sides, squares = (np.stack(part) for part in zip(*equations))
    used = np.ones(n_stars, bool)
    for _ in range(3):
        solution = _solve(normals[used], sides[used], terms[used], params.prior)
        excess = _excess((normals, sides, squares), terms @ solution)
        excess -= _usual(excess, windows.flux)
        kept = excess < params.clip_sigma * median_mad(excess[used]).sigma
        if (kept == used).all():
            break
        used = kept
    return solution.reshape(-1, side, side), used


def _terms(x, y, shape, degree):
    n_y, n_x = shape
    return monomials(2.0 * np.asarray(x) / (n_x - 1) - 1, 2.0 * np.asarray(y) / (n_y - 1) - 1, degree)


def _design(windows, k, half):
    """Shifted references under a window, demeaned with the weights; shape (n_pix, side^2)."""
    n = windows.rest.shape[1]
    views = np.lib.stride_tricks.sliding_window_view(windows.reference[k], (n, n))
    return views[::-1, ::-1].reshape(-1, n * n).T


def _weights(windows, k, params):
    inner = slice(params.half_pix, params.half_pix + windows.rest.shape[1])
    return 1 / (windows.var[k] + (params.floor * windows.reference[k, inner, inner]) ** 2).ravel()


def _star_equations(windows, k, params):
    weight = _weights(windows, k, params)
    design, rest = _design(windows, k, params.half_pix), windows.rest[k].ravel()
    share = weight / weight.sum()
    design, rest = design - share @ design, rest - share @ rest
    weighted = design * weight[:, None]
    return weighted.T @ design, weighted.T @ rest, weight @ rest**2


def _solve(normals, sides, terms, prior):
    n_terms, n = terms.shape[1], sides.shape[1]
    matrix = np.einsum("sa,sb,sij->aibj", terms, terms, normals, optimize=True).reshape(n_terms * n, -1)
    side = np.einsum("sa,si->ai", terms, sides).ravel()
    matrix[np.diag_indices_from(matrix)] += prior**-2
    return np.linalg.solve(matrix, side).reshape(n_terms, n)


def _excess(equations, kernels):
    """log10 of chi2 of each star after the correction."""
    normals, sides, squares = equations
    quadratic = np.einsum("si,sij,sj->s", kernels, normals, kernels, optimize=True)
    return np.log10(np.maximum(squares - 2 * (sides * kernels).sum(axis=1) + quadratic, 1e-3))


def _usual(excess, flux):
    """What stars of a flux have on average, robustly: where the kernel cannot follow, all the bright ones fit worse."""
    brightness = np.log10(flux / np.median(flux))
    design = monomials(brightness, np.zeros_like(brightness), 2)[:, :3]  # 1, b, b^2
    fit = fit_linear(design, excess, np.full(len(excess), _EXCESS_ERROR))
    return design @ fit.coefficients


def correction_of_blocks(coefficients: np.ndarray, shape: tuple[int, int], at: tuple) -> np.ndarray:
    """A point plus the correction at other places, as kernels to correlate with.

    Parameters
    ----------
    coefficients : ndarray, shape (n_terms, side, side)
    shape : tuple of int
    at : tuple of ndarray, shape (n_y, n_x)
        Places (x, y), science px.

    Returns
    -------
    ndarray, shape (n_y, n_x, side, side), float32
    """
    n_terms, side, _ = coefficients.shape
    degree = int((np.sqrt(8 * n_terms + 1) - 3) / 2)
    terms = _terms(at[0].ravel(), at[1].ravel(), shape, degree)
    out = (terms @ coefficients.reshape(n_terms, -1)).reshape(*at[0].shape, side, side)
    out[..., side // 2, side // 2] += 1.0
    return to_correlate(out)


def measure_misfit(left: np.ndarray, windows: Windows, used: np.ndarray, half: int) -> Misfit:
    """Errors in proportion to the flux and to its slope that explain what is left of the stars.

    Non-negative least squares of residual^2 - var = gain^2 R^2 + shift^2 |grad R|^2 over the cores.

    Parameters
    ----------
    left : ndarray, shape (n, w, w)
        Residuals after the correction.
    windows : Windows
    used : ndarray, shape (n,), bool
        Constant stars.
    half : int
        By how much windows.reference is wider.
    """
    if not used.any():
        return Misfit(0.0, 0.0, float("nan"), 0)
    n = left.shape[1]
    wide, var, left = windows.reference[used], windows.var[used], left[used]
    slope_y, slope_x = np.gradient(wide, axis=(1, 2))
    inner = slice(half, half + n)
    star, slope2 = wide[:, inner, inner], (slope_x**2 + slope_y**2)[:, inner, inner] / 2
    y, x = np.mgrid[:n, :n] - n // 2
    core = np.hypot(x, y) <= 3.0
    ratio2, a, b = left[:, core] ** 2 / var[:, core], star[:, core] ** 2 / var[:, core], slope2[:, core] / var[:, core]
    chi = float(np.sqrt(np.median(ratio2.mean(axis=1))))
    gain2 = shift2 = 0.0
    for _ in range(8):
        expected = 1 + gain2 * a + shift2 * b
        weight = (ratio2 < 16 * expected) / expected**2
        design = np.stack([a[weight > 0], b[weight > 0]], axis=1) * np.sqrt(weight[weight > 0])[:, None]
        gain2, shift2 = optimize.nnls(design, (ratio2 - 1)[weight > 0] * np.sqrt(weight[weight > 0]))[0]
    return Misfit(float(np.sqrt(gain2)), float(np.sqrt(shift2)), chi, int(used.sum()))


def residuals(windows: Windows, coefficients: np.ndarray, shape: tuple[int, int], params: PolishParams) -> np.ndarray:
    """What is left of the stars after the correction, a constant taken off each; shape (n, w, w)."""
    degree = int((np.sqrt(8 * len(coefficients) + 1) - 3) / 2)
    kernels = _terms(windows.x, windows.y, shape, degree) @ coefficients.reshape(len(coefficients), -1)
    out = np.empty_like(windows.rest)
    for k in range(len(out)):
        weight = _weights(windows, k, params)
        left = windows.rest[k].ravel() - _design(windows, k, params.half_pix) @ kernels[k]
        out[k] = (left - (weight @ left) / weight.sum()).reshape(out[k].shape)
    return out
