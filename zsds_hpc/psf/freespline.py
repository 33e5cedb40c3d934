"""What the stars' residuals show beyond the elliptical profile: a free spline, polynomial over the image."""

from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded

from zsds_hpc.kernels.psfbuild import spline_gradient, spline_normal, subtract_spline_inplace


class FreeSpline(NamedTuple):
    """Factorised normal matrices of a spline's terms.

    Attributes
    ----------
    factors : list of ndarray
        Banded Cholesky factor of each term, in units of `scatter`.
    size : list of float
        Expected size of each term's coefficients, in units of `scatter`.
    scatter : ndarray, shape (n_nodes, n_nodes)
        Relative size of the coefficients.
    oversampling : int
    """

    factors: list[np.ndarray]
    size: list[float]
    scatter: np.ndarray
    oversampling: int


class Residuals(NamedTuple):
    """What is left of the stars.

    Attributes
    ----------
    pix, inverse_var : ndarray, shape (n, side, side), float32
        Residuals (DN) and weights, 0 where unusable.
    flux : ndarray, shape (n,)
        DN.
    phase : ndarray, shape (n, 2), float64
        Offset (x, y) of the star from the middle of its window.
    terms : ndarray, shape (n, n_terms)
        Terms over the image, near orthonormal over the stars.
    """

    pix: np.ndarray
    inverse_var: np.ndarray
    flux: np.ndarray
    phase: np.ndarray
    terms: np.ndarray


def prepare(
    stars: Residuals, scatter: np.ndarray, oversampling: int, largest: float, before: FreeSpline | None = None
) -> FreeSpline:
    """Factorise the normal matrix of each term by itself, with a prior of zero mean on its coefficients.

    The width of the prior is what the data say: of the right-hand side b = N c + noise, where N is the normal matrix,
    the expected square is trace N + size^2 |N|^2.

    Parameters
    ----------
    stars : Residuals
        Of the model as it is.
    scatter : ndarray, shape (n_nodes, n_nodes)
    oversampling : int
        Nodes per pixel of the spline.
    largest : float
        Upper limit of `size`.
    before : FreeSpline, optional
        Of the round before, whose sizes what is found now adds to.
    """
    factors, sizes = [], []
    noise = max(float((stars.pix**2 * stars.inverse_var).sum(dtype=float) / (stars.inverse_var > 0).sum()), 0.1)
    for t, bands in enumerate(_normal_matrices(stars, scatter, oversampling)):
        right = _right_side(stars, t, scatter, oversampling)
        square = (bands[0] ** 2).sum() + 2 * (bands[1:] ** 2).sum()
        excess = ((right**2).sum() - noise * bands[0].sum()) / max(square, 1e-300)
        known = before.size[t] ** 2 if before is not None else 0.0
        sizes.append(float(np.clip(np.sqrt(max(excess, 0.0) + known), 1e-3 * largest, largest)))
        bands[0] += 1 / sizes[-1] ** 2
        factors.append(cholesky_banded(bands, lower=True, overwrite_ab=True, check_finite=False))
    return FreeSpline(factors, sizes, scatter, oversampling)


def _normal_matrices(stars, scatter, oversampling):
    n, squares = scatter.shape[0], np.ascontiguousarray(stars.terms**2, np.float32)
    weight = stars.inverse_var * (stars.flux**2).astype(np.float32)[:, None, None]
    sums = np.zeros((n, n, squares.shape[1], 10, 16), np.float32)
    spline_normal(weight, stars.phase, squares, oversampling, sums)
    return [_banded(sums[:, :, t], scatter) for t in range(squares.shape[1])]


def _banded(sums, scatter):
    """Lower banded form of a normal matrix scaled by the coefficients' relative size, from the products of taps."""
    n, size = scatter.shape[0], scatter.ravel()
    bands = np.zeros((3 * n + 4, n, n))
    planes = np.ascontiguousarray(np.moveaxis(sums[: n - 3, : n - 3], (0, 1), (2, 3)))
    for pair, (j, i) in enumerate(combinations_with_replacement(range(4), 2)):
        for k in range(4):
            for m in range(k if i == j else 0, 4):
                bands[(i - j) * n + m - k, j : j + n - 3, k : k + n - 3] += planes[pair, 4 * k + m]
    bands = bands.reshape(-1, n * n)
    for shift in (dy * n + dx for dy in range(4) for dx in range(-3 if dy else 0, 4)):
        bands[shift, : n * n - shift] *= size[: n * n - shift] * size[shift:]
    return bands


def _right_side(stars, t, scatter, oversampling):
    out = np.zeros(scatter.shape)
    spline_gradient(stars.pix * stars.inverse_var, stars.phase, _share(stars, t), oversampling, out)
    return (out * scatter).ravel()


def _share(stars, t):
    return (stars.flux * stars.terms[:, t]).astype(np.float32)


def sweep_inplace(spline: FreeSpline, coefficients: np.ndarray, stars: Residuals) -> None:
    """Improve the terms one after the other (Gauss-Seidel).

    Parameters
    ----------
    spline : FreeSpline
    coefficients : ndarray, shape (n_terms, n_nodes, n_nodes), float64
        Are changed.
    stars : Residuals
        Of the model with these coefficients; the pixels are changed too.
    """
    scatter = spline.scatter
    for t, factor in enumerate(spline.factors):
        right = _right_side(stars, t, scatter, spline.oversampling)
        right -= (coefficients[t] / scatter).ravel() / spline.size[t] ** 2
        change = cho_solve_banded((factor, True), right, check_finite=False).reshape(scatter.shape) * scatter
        coefficients[t] += change
        subtract_spline_inplace(change, stars.phase, _share(stars, t), spline.oversampling, stars.pix)
