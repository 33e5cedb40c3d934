"""The first form of the point-spread function: one radial profile, elliptical, of a shape that varies over the image.

The profile is a sum of Moffats of fixed relative widths; ln width and two ellipticities are polynomials over the image.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.kernels.psfbuild import profile_images, profile_sums
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf.model import monomials, spline_coefficients

#: Widths over the main component's, and Moffat exponents (0: the mean profile's).
COMPONENTS = ((0.7, 4.5), (1.0, 0.0), (1.5, 3.5), (2.4, 3.0), (4.5, 2.5))
#: What their weights may be, beside 1 for the main one (standard deviations).
_WEIGHT_SCATTER = np.array([0.3, 0.3, 0.3, 0.2, 0.03])
_MAIN = 1
_TABLE_ROWS = 2048
#: Expected size of the terms of ln width and ellipticities, by degree.
_SHAPE_SCATTER = (1.0, 0.1, 0.05, 0.02, 0.01)
_FIXED = 1e-7
_N_OWN, _N_SHAPE, _SKY = 4, 3, 3
_MAX_SHIFT_PIX, _MAX_STEP_PIX = 0.95, 0.4
_MIN_FLUX_DN = 1e-3
_WORSE = 3.0
_MIN_PIXELS = 12
_MIN_SNR = 5.0


class StarFit(NamedTuple):
    """Stars as they are fitted; all of shape (n,).

    Attributes
    ----------
    flux, sky : ndarray
        DN.
    dx, dy : ndarray
        Offset from the middle of the window, px.
    chi2_dof : ndarray
    used : ndarray, bool
        Whether the star has a part in the model.
    usable : ndarray, bool
        Whether it may have.
    """

    flux: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    sky: np.ndarray
    chi2_dof: np.ndarray
    used: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True)
class EllipticalPsf:
    """Sum of Moffats with elliptical isophotes.

    Attributes
    ----------
    terms : ndarray, shape (n_terms, 3)
        Polynomials of ln width (px), e1, e2 (as in `photometry.profile.StarProfile`), monomials of u, v.
    weights : ndarray, shape (n_components,)
        Their sum is 1.
    beta : float
        Exponent of the main component.
    """

    terms: np.ndarray
    weights: np.ndarray
    beta: float

    @property
    def degree(self) -> int:
        """Of the polynomials."""
        return degree_of(len(self.terms))

    def shape_at(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """ln width, e1, e2 at places on the image, shape (n, 3)."""
        shape = monomials(u, v, self.degree) @ self.terms
        return np.clip(shape, [np.log(0.3), -1.2, -1.2], [np.log(40.0), 1.2, 1.2])

    def samples(self, u: np.ndarray, v: np.ndarray, step_pix: float, reach: int) -> np.ndarray:
        """Pixel-integrated profiles at the nodes of a grid, shape (n, 2 reach + 1, 2 reach + 1)."""
        out = np.empty((len(u), 2 * reach + 1, 2 * reach + 1))
        profile_images(np.ascontiguousarray(self.shape_at(u, v)), self.table, step_pix, reach, out)
        return out

    @property
    def table(self) -> np.ndarray:
        """Tabulated for the kernel: sum, its derivative, components."""
        s = np.linspace(0, 1, _TABLE_ROWS, endpoint=False)
        s = s / (1 - s)
        columns = [_moffat(s, width, beta or self.beta) for width, beta in COMPONENTS]
        values, slopes = np.array([c[0] for c in columns]), np.array([c[1] for c in columns])
        return np.ascontiguousarray(np.vstack([self.weights @ values, self.weights @ slopes, values]).T, np.float32)

    def wing(self, radius_pix: float) -> tuple[float, float]:
        """Factor and exponent of the power law that continues the profile from a radius in the middle of the image."""
        s = (radius_pix * np.exp(-self.terms[0, 0])) ** 2
        pairs = [_moffat(np.array([s]), width, beta or self.beta) for width, beta in COMPONENTS]
        value = float(sum(w * p[0][0] for w, p in zip(self.weights, pairs)))
        slope = float(sum(w * p[1][0] for w, p in zip(self.weights, pairs)))
        if not value > 0:
            return 0.0, 3.0
        exponent = float(np.clip(-2 * s * slope / value, 2.2, 20.0))
        return float(value * np.exp(-2 * self.terms[0, 0]) * radius_pix**exponent), exponent


def degree_of(n_terms: int) -> int:
    """Degree of a polynomial in two variables with this many terms."""
    return int(np.rint(np.sqrt(2 * n_terms + 0.25) - 1.5))


def _moffat(s, width, beta):
    """Moffat of unit flux and FWHM `width` at s = r^2, and its derivative by s (s up to a whole pixel's reach)."""
    a2 = (width / 2) ** 2 / (2 ** (1 / beta) - 1)
    value = (beta - 1) / (np.pi * a2) * (1 + s / a2) ** -beta
    return value, -beta / (a2 + s) * value


def from_profile(profile: StarProfile) -> EllipticalPsf:
    """The mean profile, constant over the image."""
    shape = np.array([[np.log(profile.fwhm_pix), profile.e1, profile.e2]])
    weights = np.zeros(len(COMPONENTS))
    weights[_MAIN] = 1
    return EllipticalPsf(shape, weights, float(np.clip(profile.beta, 1.6, 12.0)))


class Stage(NamedTuple):
    """How one step of the fit is made: half side of the windows, misfit, whether the components are fitted."""

    half: int
    half_fine: int
    misfit: float
    with_components: bool
    clip_sigma: float


def first_fit(pix: np.ndarray, var: np.ndarray, x: np.ndarray, y: np.ndarray) -> StarFit:
    """Start for windows whose stars are at an offset (x, y) from the middle: flux from the 5 x 5 pixels about it."""
    half = pix.shape[1] // 2
    core = slice(half - 2, half + 3)
    usable = var[:, core, core] > 0
    flux = np.where(usable, pix[:, core, core], 0).sum(axis=(1, 2), dtype=float)
    noise = np.sqrt(np.where(usable, var[:, core, core], 0).sum(axis=(1, 2), dtype=float))
    used = (usable.sum(axis=(1, 2)) >= _MIN_PIXELS) & usable[:, 2, 2] & (flux > _MIN_SNR * noise)
    zeros = np.zeros(len(pix))
    return StarFit(np.maximum(flux, _MIN_FLUX_DN), x, y, zeros, zeros, used, used)


def step(
    psf: EllipticalPsf, stars: tuple[np.ndarray, ...], fit: StarFit, degree: int, stage: Stage
) -> tuple[EllipticalPsf, StarFit]:
    """One Gauss-Newton step of profile and stars together, the stars' own parameters projected out.

    Golub & Pereyra 1973, SIAM J. Numer. Anal. 10, 413.

    Parameters
    ----------
    psf : EllipticalPsf
    stars : tuple of ndarray
        Windows and variances (n, side, side), places (n, 2) of u, v, expected square (n,) of the sky that is left.
    fit : StarFit
    degree : int
        Of the polynomials of the shape from now on.
    stage : Stage

    Raises
    ------
    AlgorithmFailure
        No star fits.
    """
    pix, var, field, sky_var = stars
    psf = replace(psf, terms=raised(psf.terms, degree))
    normal, sums = _normal_equations(psf, pix, var, field, fit, stage)
    own, across = normal[:, :_N_OWN, :_N_OWN], normal[:, :_N_OWN, _N_OWN:]
    own[:, _SKY, _SKY] += 1 / sky_var
    sums[:, _SKY] -= fit.sky / sky_var
    known = np.concatenate([sums[:, :_N_OWN, None], across], axis=2)
    solved = np.linalg.solve(own, known)
    curvature = normal[:, _N_OWN:, _N_OWN:] - across.swapaxes(1, 2) @ solved[:, :, 1:]
    slope = sums[:, _N_OWN:-2] - (across.swapaxes(1, 2) @ solved[:, :, :1])[:, :, 0]
    chi2 = sums[:, -2] - (solved[:, :, 0] * sums[:, :_N_OWN]).sum(axis=1)
    chi2_dof = chi2 / np.maximum(sums[:, -1] - _N_OWN, 1)
    good = fit.usable & (sums[:, -1] >= _MIN_PIXELS)
    if not good.any():
        raise AlgorithmFailure("PSF: no star fits", n_stars=len(pix))
    good &= chi2_dof <= _WORSE * np.median(chi2_dof[good])
    terms = monomials(field[:, 0], field[:, 1], degree)
    moved = _shared_step(psf, curvature[good], slope[good], terms[good], stage.with_components)
    shared = np.hstack([terms @ moved[0], np.broadcast_to(moved[1], (len(pix), moved[1].size))])
    shared = shared[:, : across.shape[2]]
    own_step = solved[:, :, 0] - (solved[:, :, 1:] @ shared[:, :, None])[:, :, 0]
    return _moved(psf, moved), _stars_moved(fit, own_step, chi2_dof, good)


def _normal_equations(psf, pix, var, field, fit, stage):
    """Normal matrices (n, p, p) and right-hand sides with chi2 and pixel count (n, p + 2)."""
    n_components = len(COMPONENTS) if stage.with_components else 0
    n = _N_OWN + _N_SHAPE + n_components
    normal, sums = np.empty((len(pix), n, n)), np.empty((len(pix), n + 2))
    state = np.stack([fit.flux, fit.dx, fit.dy, fit.sky], axis=1)
    settings = np.array([stage.half, stage.half_fine, stage.misfit, n_components, stage.clip_sigma], float)
    profile_sums(pix, var, state, psf.shape_at(*field.T), psf.table, settings, normal, sums)
    diagonal = np.arange(n)
    normal[:, diagonal, diagonal] = normal[:, diagonal, diagonal] * (1 + 1e-9) + 1e-30
    return normal, sums


def raised(terms: np.ndarray, degree: int) -> np.ndarray:
    """The same polynomials with room for a higher degree (or cut to a lower one)."""
    old = degree_of(len(terms))
    out = np.zeros(((degree + 1) * (degree + 2) // 2, terms.shape[1]))
    rows = {(i, j): k for k, (i, j) in enumerate((i, j) for j in range(degree + 1) for i in range(degree + 1 - j))}
    for k, power in enumerate((i, j) for j in range(old + 1) for i in range(old + 1 - j)):
        if power in rows:
            out[rows[power]] = terms[k]
    return out


def _shared_step(psf, curvature, slope, terms, with_components):
    """Change of the polynomials (n_terms, 3) and of the weights of the components."""
    n_terms, n_parts = terms.shape[1], curvature.shape[1] - _N_SHAPE
    n_poly = n_terms * _N_SHAPE
    matrix, vector = np.zeros((n_poly + n_parts,) * 2), np.zeros(n_poly + n_parts)
    products = (terms[:, :, None] * terms[:, None, :]).reshape(len(terms), -1)
    blocks = curvature[:, :_N_SHAPE, :_N_SHAPE].reshape(len(terms), -1).T @ products
    blocks = blocks.reshape(_N_SHAPE, _N_SHAPE, n_terms, n_terms).transpose(2, 0, 3, 1)
    matrix[:n_poly, :n_poly] = blocks.reshape(n_poly, n_poly)
    matrix[:n_poly, n_poly:] = np.einsum("iak,it->tak", curvature[:, :_N_SHAPE, _N_SHAPE:], terms).reshape(n_poly, -1)
    matrix[n_poly:, :n_poly] = matrix[:n_poly, n_poly:].T
    matrix[n_poly:, n_poly:] = curvature[:, _N_SHAPE:, _N_SHAPE:].sum(axis=0)
    vector[:n_poly] = (terms.T @ slope[:, :_N_SHAPE]).ravel()
    vector[n_poly:] = slope[:, _N_SHAPE:].sum(axis=0)
    degree = psf.degree
    orders = [i + j for j in range(degree + 1) for i in range(degree + 1 - j)]
    scatter = np.repeat(np.array(_SHAPE_SCATTER)[orders, None], _N_SHAPE, axis=1)
    if with_components:  # whose weights can do what the mean width does
        scatter[0, 0] = _FIXED
    now, prior = psf.terms.copy(), 1 / scatter.ravel() ** 2
    now[0] = 0
    pull = -prior * now.ravel()
    if with_components:
        prior = np.concatenate([prior, 1 / _WEIGHT_SCATTER**2])
        pull = np.concatenate([pull, -(psf.weights - (np.arange(n_parts) == _MAIN)) / _WEIGHT_SCATTER**2])
    matrix[np.diag_indices_from(matrix)] += prior
    solution = np.linalg.solve(matrix, vector + pull)
    return np.clip(solution[:n_poly].reshape(n_terms, _N_SHAPE), -0.3, 0.3), solution[n_poly:]


def _moved(psf, moved):
    weights = psf.weights + moved[1] if moved[1].size else psf.weights
    return replace(psf, terms=psf.terms + moved[0], weights=weights / weights.sum())


def _stars_moved(fit, change, chi2_dof, good):
    flux, sky = fit.flux + change[:, 0], fit.sky + change[:, 3]
    return moved_stars(fit, flux, change[:, 1:3], sky, chi2_dof, good)


def moved_stars(
    fit: StarFit, flux: np.ndarray, shift: np.ndarray, sky: np.ndarray, chi2_dof: np.ndarray, good: np.ndarray
) -> StarFit:
    """The stars after a step, kept near the middle of their windows and positive."""
    dx, dy = (
        np.clip(at + np.clip(by, -_MAX_STEP_PIX, _MAX_STEP_PIX), -_MAX_SHIFT_PIX, _MAX_SHIFT_PIX)
        for at, by in zip((fit.dx, fit.dy), shift.T)
    )
    return StarFit(np.maximum(flux, _MIN_FLUX_DN), dx, dy, sky, chi2_dof, good & (flux > 0), fit.usable)


def as_spline(psf: EllipticalPsf, degree: int, oversampling: int, reach: int) -> np.ndarray:
    """Spline coefficients (n_terms, n, n), float64, of a model that follows an elliptical profile."""
    places = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1)) if psf.degree > 0 else np.zeros(1)
    u, v = (a.ravel() for a in np.meshgrid(places, places))
    samples = psf.samples(u, v, 1 / oversampling, reach)
    terms = monomials(u, v, degree if psf.degree > 0 else 0)
    fitted = (np.linalg.pinv(terms) @ samples.reshape(len(u), -1)).reshape(-1, *samples.shape[1:])
    return spline_coefficients(raised(fitted.reshape(len(fitted), -1), degree).reshape(-1, *samples.shape[1:]))
