"""What the stars' residuals show beyond the elliptical profile: a free spline, polynomial over the image."""

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded

from zsds_hpc.kernels.psfbuild import spline_gradient, spline_normal, subtract_spline_inplace

_LANES = 8


class FreeSpline(NamedTuple):
    """Factorised normal matrices of a spline's terms.

    Attributes
    ----------
    factors : list of ndarray
        Banded Cholesky factor of each term, in units of `scatter`.
    scatter : ndarray, shape (n_nodes, n_nodes)
        Expected size of the coefficients.
    oversampling : int
    """

    factors: list[np.ndarray]
    scatter: np.ndarray
    oversampling: int


def normal_matrices(
    weight: np.ndarray, phase: np.ndarray, terms: np.ndarray, scatter: np.ndarray, oversampling: int
) -> FreeSpline:
    """Normal matrix of each term by itself, with a prior on the size of the coefficients, factorised.

    Parameters
    ----------
    weight : ndarray, shape (n, side, side), float32
        flux^2 / variance.
    phase : ndarray, shape (n, 2), float64
    terms : ndarray, shape (n, n_terms)
        Near orthogonal over the stars.
    scatter : ndarray, shape (n_nodes, n_nodes)
    oversampling : int
    """
    n = scatter.shape[0]
    factors = []
    for first in range(0, terms.shape[1], _LANES):
        part = terms[:, first : first + _LANES]
        squares = np.zeros((len(terms), _LANES), np.float32)
        squares[:, : part.shape[1]] = part**2
        sums = np.zeros((n, n, 28, _LANES), np.float32)
        spline_normal(weight, phase, squares, oversampling, sums)
        factors += [cholesky_banded(_banded(sums[..., t], scatter), lower=True) for t in range(part.shape[1])]
    return FreeSpline(factors, scatter, oversampling)


def _banded(sums, scatter):
    """Lower banded form of a normal matrix scaled by the coefficients' expected size, plus 1 for the prior."""
    n = scatter.shape[0]
    size = scatter.ravel()
    bands = np.zeros((3 * n + 4, n * n))
    for dy in range(4):
        for dx in range(-3 if dy else 0, 4):
            shift = dy * n + dx
            column = sums[:, :, 7 * dy + dx + 3].ravel()[: n * n - shift]
            bands[shift, : n * n - shift] = column * size[: n * n - shift] * size[shift:]
    bands[0] += 1
    return bands


def sweep_inplace(
    spline: FreeSpline, coefficients: np.ndarray, data: tuple[np.ndarray, np.ndarray, np.ndarray], phase, terms
) -> None:
    """Improve the terms one after the other (Gauss-Seidel).

    Parameters
    ----------
    spline : FreeSpline
    coefficients : ndarray, shape (n_terms, n_nodes, n_nodes), float64
        Are changed.
    data : tuple of ndarray
        Residuals (n, side, side), float32, which are changed too; their inverse variances; flux (n,) of the stars.
    phase : ndarray, shape (n, 2), float64
    terms : ndarray, shape (n, n_terms)
    """
    residual, inverse_var, flux = data
    for t, factor in enumerate(spline.factors):
        share = (flux * terms[:, t]).astype(np.float32)
        right = np.zeros(spline.scatter.shape)
        spline_gradient(residual * inverse_var, phase, share, spline.oversampling, right)
        right = (right * spline.scatter).ravel() - (coefficients[t] / spline.scatter).ravel()
        change = cho_solve_banded((factor, True), right).reshape(spline.scatter.shape) * spline.scatter
        coefficients[t] += change
        subtract_spline_inplace(change, phase, share, spline.oversampling, residual)
