"""Least-squares TPV solution with outlier rejection, optimal weights and a learned prior on the distortion.

The correction to the prior's map is a sum of Legendre products in the normalised pixel offsets (u, v), one sum per
axis of the tangent plane. Weights are the inverse variances of the star positions plus a scatter common to all
stars, found by maximum likelihood. Terms beyond the linear are drawn to zero by a Gaussian prior, one width per
order, and the widths are those of greatest evidence (MacKay 1992, Neural Computation 4, 415, eq. 4.7), starting from
the stability expected of the camera: twenty stars move only what twenty stars can know, a stable camera keeps its
map, and where the distortion has changed the stars decide.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import leg2poly, legvander

from zsds_hpc.astrometry.sphere import project
from zsds_hpc.astrometry.tpv import MAX_DEGREE, POWERS, TPV, pv_terms
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param

#: Median of the sum of two squared unit Gaussians.
_MEDIAN_CHI2_2 = 1.386
_MAX_ROUNDS = 40
#: Share of wrong matches reckoned with when the common scatter is sought.
_WRONG_SHARE = 0.1
#: Weight of the expected width, in coefficients, against those that the stars determine.
_PRIOR_COUNT = 1.0


class SolveParams(Params):
    """How the TPV solution is fitted."""

    degree: int = param(4, "Degree of the fitted correction; higher terms of the prior are kept.", ge=1, le=MAX_DEGREE)
    half_size_pix: float = param(1540.0, "Half the image size, which normalises the polynomial.", "pix", ge=16)
    clip_sigma: float = param(4.0, "Stars beyond this many standard deviations are rejected.", ge=2, le=20)
    floor_arcsec: float = param(0.001, "Least scatter added to the errors of all stars.", "arcsec", ge=1e-5, le=1)
    max_floor_arcsec: float = param(0.3, "Largest scatter that the fit may add.", "arcsec", ge=1e-4, le=10)
    linear_arcsec: float = param(10.0, "Prior width of offset, rotation, scale and shear.", "arcsec", ge=1e-3)
    quadratic_arcsec: float = param(0.003, "Expected change of the quadratic terms at the edge.", "arcsec", ge=1e-5)
    cubic_arcsec: float = param(0.001, "Expected change of the cubic terms at the edge.", "arcsec", ge=1e-5)
    higher_arcsec: float = param(0.0003, "Expected change of each higher term at the edge.", "arcsec", ge=1e-5)
    min_stars: int = param(6, "Fewest stars of a solution.", ge=3)


class Stars(NamedTuple):
    """Matched stars: 0-based pixels (n,), reference positions in degrees (n,), and the one-axis error of the
    difference in arcsec (n,)."""

    x: np.ndarray
    y: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    sigma_arcsec: np.ndarray


@dataclass(frozen=True, eq=False)
class AstrometricSolution:
    """A fitted map and how well it is known.

    Attributes
    ----------
    wcs : TPV
    rms_arcsec : ndarray, shape (2,)
        Standard deviation of the residuals of the stars used, along xi (East) and eta (North).
    n_used, n_rejected : int
    chi2 : float
        Sum over both axes of squared residuals over variances, `floor_arcsec` included.
    dof : float
        Residuals less the effective number of parameters.
    floor_arcsec : float
        Scatter common to all stars that the fit found.
    used : ndarray, shape (n,), bool
    residuals_arcsec : ndarray, shape (n, 2)
        Reference minus solution along xi and eta, of all stars given.
    covariance : ndarray, shape (k, k)
        Of the polynomial coefficients of one axis, arcsec^2; both axes have the same.
    degree : int
    half_size_pix : float
    """

    wcs: TPV
    rms_arcsec: np.ndarray
    n_used: int
    n_rejected: int
    chi2: float
    dof: float
    floor_arcsec: float
    used: np.ndarray
    residuals_arcsec: np.ndarray
    covariance: np.ndarray
    degree: int
    half_size_pix: float

    def map_error_arcsec(self, x, y) -> np.ndarray:
        """Formal one-axis standard error of the map itself at 0-based pixels, same shape as x and y."""
        u, v = _normalised(self.wcs, self.half_size_pix, x, y)
        design = design_matrix(u.ravel(), v.ravel(), self.degree)
        return np.sqrt(np.einsum("ij,jk,ik->i", design, self.covariance, design)).reshape(u.shape)


class _Problem(NamedTuple):
    design: np.ndarray
    start: np.ndarray
    sigma: np.ndarray
    params: SolveParams


class _Fit(NamedTuple):
    coefficients: np.ndarray
    covariance: np.ndarray
    residuals: np.ndarray
    variance: np.ndarray
    used: np.ndarray
    floor: float
    widths: np.ndarray
    log_evidence: float = 0.0


def fit_tpv(stars: Stars, prior: TPV, params: SolveParams | None = None) -> AstrometricSolution:
    """Fit a TPV solution to matched stars.

    Parameters
    ----------
    stars : Stars
        Matched pairs; wrong ones are rejected.
    prior : TPV
        Starting map, right to an arcsecond or so; carries the camera's distortion.
    params : SolveParams, optional

    Raises
    ------
    BadInput
        Columns differ in length or hold values that are not finite, or an error is not positive.
    AlgorithmFailure
        Fewer than `min_stars` stars are given or left; figures `n_used`, `n_matches`.
    """
    params = params or SolveParams()
    stars = _checked(stars, params)
    start = residuals_arcsec(prior, stars)
    u, v = _normalised(prior, params.half_size_pix, stars.x, stars.y)
    design = design_matrix(u, v, params.degree)
    problem = _Problem(design, start, stars.sigma_arcsec, params)
    # From the expected widths a change of distortion can pass for scatter; from wide ones noise can pass for it.
    starts = [_expected_widths(params)]
    if len(start) >= 2 * design.shape[1]:
        starts.append(np.full_like(starts[0], params.linear_arcsec))
    best = max((_converge(problem, widths) for widths in starts), key=lambda fit: fit.log_evidence)
    weights = best.used / best.variance
    n_parameters = 2.0 * (weights * np.einsum("ij,jk,ik->i", design, best.covariance, design)).sum()
    return AstrometricSolution(
        wcs=add_polynomial(prior, best.coefficients, params),
        rms_arcsec=np.sqrt(np.mean(best.residuals[best.used] ** 2, axis=0)),
        n_used=int(best.used.sum()),
        n_rejected=int((~best.used).sum()),
        chi2=float((weights[:, None] * best.residuals**2).sum()),
        dof=float(2 * best.used.sum() - n_parameters),
        floor_arcsec=best.floor,
        used=best.used,
        residuals_arcsec=best.residuals,
        covariance=best.covariance,
        degree=params.degree,
        half_size_pix=params.half_size_pix,
    )


def residuals_arcsec(wcs: TPV, stars: Stars) -> np.ndarray:
    """Reference minus mapped position in the tangent plane (xi, eta), shape (n, 2), arcsec."""
    targets = project(stars.ra, stars.dec, *wcs.crval)
    mapped = wcs.pixel_to_plane(stars.x, stars.y)
    return 3600.0 * np.stack([t - m for t, m in zip(targets, mapped, strict=True)], axis=1)


def terms(degree: int) -> list[tuple[int, int]]:
    """Degrees (in u, in v) of the Legendre products, in the order of the coefficients."""
    return [p for p in POWERS.values() if sum(p) <= degree]


def design_matrix(u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Values of the Legendre products ``P_i(u) P_j(v)``, shape (n, k)."""
    in_u, in_v = legvander(u, degree), legvander(v, degree)
    return np.stack([in_u[:, i] * in_v[:, j] for i, j in terms(degree)], axis=1)


def add_polynomial(prior: TPV, coefficients: np.ndarray, params: SolveParams) -> TPV:
    """TPV whose map is the prior's plus Legendre products in the normalised pixel offsets; exact.

    Parameters
    ----------
    prior : TPV
    coefficients : ndarray, shape (k, 2)
        Arcsec, of the terms of `terms`, for xi and eta.
    params : SolveParams
        Degree and normalisation.
    """
    # u and v are linear in the intermediate coordinates: (u, v) = substitution @ (a, b).
    substitution = np.linalg.inv(prior.cd) / params.half_size_pix
    pv = []
    for axis, old in ((1, prior.pv1), (2, prior.pv2)):
        matrix = _substituted(coefficients[:, axis - 1] / 3600.0, substitution, params.degree)
        pv.append(old + pv_terms(matrix, axis))
    return replace(prior, pv1=pv[0], pv2=pv[1])


def _substituted(coefficients, substitution, degree):
    """Matrix c[i, j] of ``a^i b^j`` from Legendre coefficients in (u, v) = substitution @ (a, b)."""
    legendre = np.zeros((degree + 1, degree + 1))
    for (i, j), c in zip(terms(degree), coefficients, strict=True):
        legendre[i, j] = c
    to_powers = np.stack([np.pad(leg2poly(row), (0, degree - i)) for i, row in enumerate(_unit_rows(degree))])
    powers = to_powers.T @ legendre @ to_powers
    total = np.zeros((degree + 1, degree + 1))
    for i, j in terms(degree):
        # u^i v^j is homogeneous: its coefficients of a^(n-k) b^k are those of a product of lines.
        line = np.array([powers[i, j]])
        for factor in [substitution[0]] * i + [substitution[1]] * j:
            line = np.convolve(line, factor)
        for k, value in enumerate(line):
            total[i + j - k, k] += value
    return total


def _unit_rows(degree):
    return [np.eye(i + 1)[i] for i in range(degree + 1)]


def _normalised(wcs, half_size_pix, x, y):
    return (np.asarray(x) - wcs.crpix[0]) / half_size_pix, (np.asarray(y) - wcs.crpix[1]) / half_size_pix


def _checked(stars: Stars, params: SolveParams) -> Stars:
    columns = [np.asarray(column, np.float64) for column in stars]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise BadInput(f"matched stars: columns of different lengths {[column.shape for column in columns]}")
    if not all(np.isfinite(column).all() for column in columns) or not (columns[4] > 0).all():
        raise BadInput("matched stars: a position is not finite or an error is not positive")
    if len(columns[0]) < params.min_stars:
        raise _too_few(len(columns[0]), len(columns[0]))
    return Stars(*columns)


def _too_few(n_used, n_matches):
    message = f"astrometry: {n_used} of {n_matches} matched stars are usable, too few for a solution"
    return AlgorithmFailure(message, n_used=n_used, n_matches=n_matches)


def _cautious_weights(start, sigma):
    """First weights: a wide common error, so that neither outliers nor few bright stars rule."""
    spread = np.median(np.abs(start - np.median(start, axis=0)), axis=0).max() * 1.4826
    distance2 = ((start - np.median(start, axis=0)) ** 2).sum(axis=1)
    variance = sigma**2 + spread**2
    return 1.0 / (variance * (1.0 + distance2 / (9.0 * variance)))


def _converge(problem: _Problem, widths: np.ndarray) -> _Fit:
    """Rounds of fit, common scatter, clip and new widths, until nothing moves; best evidence counts."""
    design, start, sigma, params = problem
    weights = _cautious_weights(start, sigma)
    for _ in range(_MAX_ROUNDS):
        coefficients, covariance = _ridge(design, start, weights, widths)
        residuals = start - design @ coefficients
        floor = _common_scatter(residuals, sigma, params)
        variance = sigma**2 + floor**2
        kept = _inliers(residuals, variance, params.clip_sigma)
        if kept.sum() < params.min_stars:
            raise _too_few(int(kept.sum()), len(kept))
        learned = _learned_widths(coefficients, covariance, widths, params)
        settled = np.array_equal(weights, kept / variance) and np.allclose(learned, widths, rtol=0.02)
        fit = _Fit(coefficients, covariance, residuals, variance, kept, floor, widths)
        weights, widths = kept / variance, learned
        if settled:
            break
    return fit._replace(log_evidence=_log_evidence(fit, params))


def _log_evidence(fit: _Fit, params: SolveParams) -> float:
    """Log probability of the data, coefficients integrated out; a rejected star counts as one at the clip."""
    ratio = np.where(fit.used, (fit.residuals**2).sum(axis=1) / fit.variance, params.clip_sigma**2)
    misfit = (ratio + 2.0 * np.log(fit.variance)).sum()
    pull = ((fit.coefficients / fit.widths[:, None]) ** 2).sum()
    occam = 2.0 * (2.0 * np.log(fit.widths).sum() - np.linalg.slogdet(fit.covariance)[1])
    return -0.5 * float(misfit + pull + occam)


def _ridge(design, values, weights, widths):
    """Weighted least squares with a Gaussian prior; coefficients (k, 2) and their covariance (k, k)."""
    weighted = design * weights[:, None]
    covariance = np.linalg.inv(design.T @ weighted + np.diag(widths**-2.0))
    return covariance @ (weighted.T @ values), covariance


def _expected_widths(params):
    """Prior width in arcsec of every coefficient, shape (k,)."""
    by_order = [params.linear_arcsec] * 2 + [params.quadratic_arcsec, params.cubic_arcsec]
    by_order += [params.higher_arcsec] * (MAX_DEGREE - 3)
    return np.array([by_order[i + j] for i, j in terms(params.degree)])


def _learned_widths(coefficients, covariance, widths, params):
    """Next widths: mean square of the coefficients of an order over how many of them the stars determine."""
    order = np.array([i + j for i, j in terms(params.degree)])
    determined = 1.0 - np.diag(covariance) / widths**2
    learned = _expected_widths(params)
    for n in range(2, params.degree + 1):
        of_order = order == n
        square = (coefficients[of_order] ** 2).sum() + _PRIOR_COUNT * learned[of_order][0] ** 2
        learned[of_order] = np.sqrt(square / (2.0 * determined[of_order].sum() + _PRIOR_COUNT))
    return learned


def _inliers(residuals, variance, clip_sigma):
    """Stars within the clip; where the stated errors are too small on the whole, the clip widens."""
    ratio = (residuals**2).sum(axis=1) / variance
    return ratio <= clip_sigma**2 * max(1.0, np.median(ratio) / _MEDIAN_CHI2_2)


def _common_scatter(residuals, sigma, params):
    """Maximum-likelihood scatter that all stars share beyond their own errors, on a logarithmic grid.

    The stars are a mixture of right matches, Gaussian, and wrong ones anywhere within an arcsecond, so that these do
    not pass for scatter (Hogg, Bovy & Lang 2010, section 3).
    """
    if params.max_floor_arcsec <= params.floor_arcsec:
        return params.floor_arcsec
    trial = np.geomspace(params.floor_arcsec, params.max_floor_arcsec, 40)
    half_distance2, variance = 0.5 * (residuals**2).sum(axis=1), sigma**2
    likelihood = []
    for v in (variance + f * f for f in trial):
        right = (1.0 - _WRONG_SHARE) / (2.0 * np.pi * v) * np.exp(-half_distance2 / v)
        likelihood.append(np.log(right + _WRONG_SHARE / np.pi).sum())
    return float(trial[int(np.argmax(likelihood))])
