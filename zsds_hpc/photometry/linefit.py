"""Robust linear fit with an intrinsic scatter, so that the stated errors are honest."""

from dataclasses import dataclass

import numpy as np

from zsds_hpc.core.errors import AlgorithmFailure

#: Tuning constants of 95% efficiency for normal errors.
_HUBER, _TUKEY = 1.345, 4.685
_MAD_TO_SIGMA = 1.4826022185056018
_N_HUBER, _N_ITERATIONS = 5, 50


@dataclass(frozen=True)
class LinearFit:
    """y = design @ coefficients.

    Attributes
    ----------
    coefficients : ndarray, shape (p,)
    cov : ndarray, shape (p, p)
        Covariance of the coefficients.
    scatter : float
        Intrinsic scatter about the fit, beyond the stated errors.
    rms : float
        RMS residual of the points that were kept.
    used : ndarray, shape (n,), bool
        Points with weight.
    weight : ndarray, shape (n,)
        Biweight over variance, scatter included.
    """

    coefficients: np.ndarray
    cov: np.ndarray
    scatter: float
    rms: float
    used: np.ndarray
    weight: np.ndarray


def fit_linear(design: np.ndarray, y: np.ndarray, err: np.ndarray) -> LinearFit:
    """Iteratively reweighted least squares, Huber and then Tukey's biweight.

    The intrinsic scatter is set so that the standardised residuals have a robust width of 1; the covariance
    is that of an M-estimator (Huber & Ronchetti 2009, eq. 7.81).

    Parameters
    ----------
    design : ndarray, shape (n, p)
        First column 1.
    y, err : ndarray, shape (n,)
        Points and 1-sigma errors.

    Raises
    ------
    AlgorithmFailure
        Not more points than parameters, or all weights vanish.
    """
    n, p = design.shape
    if n <= p:
        raise AlgorithmFailure("linear fit: too few points", n_points=n, n_parameters=p)
    coefficients, scatter2 = np.zeros(p), 0.0
    coefficients[0] = np.median(y)
    for k in range(_N_ITERATIONS):
        residual = y - design @ coefficients
        scatter2, moved = _scatter_step(residual, err, scatter2)
        sigma = np.sqrt(err**2 + scatter2)
        weight = _weights(residual / sigma, k < _N_HUBER) / sigma**2
        last, coefficients = coefficients, _solve(design, y, weight)
        change = design @ (coefficients - last)
        if k > _N_HUBER and (weight * change**2).sum() < 1e-6 and moved < 1e-3:
            break
    return _describe(design, y, np.sqrt(err**2 + scatter2), coefficients, np.sqrt(scatter2))


def _weights(u, huber):
    if huber:
        return _HUBER / np.maximum(np.abs(u), _HUBER)
    return np.where(np.abs(u) < _TUKEY, (1 - (u / _TUKEY) ** 2) ** 2, 0.0)


def _solve(design, y, weight):
    if not weight.sum() > 0:
        raise AlgorithmFailure("linear fit: no point has weight", n_points=int(y.size))
    scale = np.sqrt((weight[:, None] * design**2).sum(axis=0) + 1e-300)
    scaled = design / scale
    return np.linalg.lstsq(scaled.T @ (weight[:, None] * scaled), scaled.T @ (weight * y), rcond=1e-12)[0] / scale


def _scatter_step(residual, err, scatter2):
    """Next intrinsic variance, towards standardised residuals with a MAD of 1 sigma, and its relative move."""
    var = err**2 + scatter2
    width2 = (_MAD_TO_SIGMA * np.median(np.abs(residual) / np.sqrt(var))) ** 2
    typical = float(np.median(var))
    new = max(scatter2 + (width2 - 1) * typical, 0.0)
    return new, abs(new - scatter2) / typical


def _describe(design, y, sigma, coefficients, scatter):
    residual = y - design @ coefficients
    u = residual / sigma
    inside = np.abs(u) < _TUKEY
    v = np.where(inside, (u / _TUKEY) ** 2, 1.0)
    psi, slope_of_psi = u * (1 - v) ** 2, (1 - v) * (1 - 5 * v)
    scale = np.sqrt(((design / sigma[:, None]) ** 2).sum(axis=0))
    scaled = design / sigma[:, None] / scale
    bread = np.linalg.pinv(scaled.T @ (slope_of_psi[:, None] * scaled))
    n, p = design.shape
    cov = bread @ (scaled.T @ (psi[:, None] ** 2 * scaled)) @ bread * (n / (n - p)) / np.outer(scale, scale)
    rms = float(np.sqrt(np.mean(residual[inside] ** 2))) if inside.any() else 0.0
    return LinearFit(coefficients, cov, float(scatter), rms, inside, (1 - v) ** 2 / sigma**2)
