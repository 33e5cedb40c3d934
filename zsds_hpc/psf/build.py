"""Build the point-spread function of an image from windows of stars."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.psf import star_images
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf import elliptical, freespline
from zsds_hpc.psf.elliptical import Stage, StarFit
from zsds_hpc.psf.freespline import Residuals
from zsds_hpc.psf.model import PsfModel, monomials, spline_coefficients
from zsds_hpc.psf.stars import PsfStars

_NO_CLIP = 1e9
_MIN_PIXELS = 12
#: Error of the profile relative to its value in the first rounds of correction.
_FIRST_ERRORS = (0.03,)


class PsfParams(Params):
    """How the point-spread function is built."""

    nodes_per_fwhm: float = param(5.0, "Spline nodes per FWHM, at least.", "", 1.0, 20.0)
    nodes_per_fwhm_core: float = param(3.5, "Nodes per FWHM of the free spline, at least.", "", 1.0, 20.0)
    half_fwhm: float = param(6.0, "Half side of the model.", "FWHM", 2.0, 20.0)
    core_fwhm: float = param(2.2, "Half side of the part that a free spline corrects.", "FWHM", 1.0, 5.0)
    max_half_pix: int = param(40, "Half side of the model at most.", "px", 6, 60)
    degree: int = param(2, "Of the polynomial over the image, at most.", "", 0, 4)
    stars_per_term: float = param(5.0, "Stars that a term of the polynomial needs.", "", 1.0, 1000.0)
    correction_size: float = param(0.5, "Largest size of the correction relative to the profile.", "", 1e-4, 10.0)
    profile_error: float = param(0.003, "Error of the final profile relative to its value.", "", 0.0, 0.1)
    wing_error: float = param(0.005, "The same while the profile's wings are fitted.", "", 0.0, 1.0)
    sky_error: float = param(0.03, "Error of the background, over the noise of a pixel.", "", 1e-3, 10.0)
    n_sweeps: int = param(2, "Rounds of correction, each followed by a new fit of the stars.", "", 0, 20)
    clip_sigma: float = param(6.0, "Residual at which a pixel is left out.", "", 3.0, 1e6)
    clip_chi2: float = param(2.5, "Chi2 over the median at which a star is left out.", "", 1.1, 1e6)
    max_wing_stars: int = param(250, "Brightest stars that the wings are measured from.", "", 5, 100_000)
    max_wing_pixels: int = param(300_000, "Pixels of such stars at most.", "px", 10_000, 1_000_000_000)


@dataclass(frozen=True)
class PsfBuild:
    """A point-spread function and the stars that it was built from.

    Attributes
    ----------
    model : PsfModel
    x, y : ndarray, shape (n,)
        Fitted places of all stars given, 0-based px.
    flux : ndarray, shape (n,)
        DN; 0 where there was nothing to fit.
    chi2_dof : ndarray, shape (n,)
        NaN where there was nothing to fit.
    used : ndarray, shape (n,), bool
        Whether the star had a part in the model.
    """

    model: PsfModel
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    chi2_dof: np.ndarray
    used: np.ndarray


class _Layout(NamedTuple):
    """Sizes that follow from the FWHM: nodes per pixel of model and correction; half sides (px)."""

    oversampling: int
    oversampling_core: int
    half: int
    half_core: int
    half_first: int

    @property
    def reach(self) -> int:
        """Nodes of the model on either side of the middle one."""
        return self.oversampling * (self.half + 1) + 2

    @property
    def reach_core(self) -> int:
        """Nodes of the correction on either side of the middle one."""
        return self.oversampling_core * (self.half_core + 1) + 2


def layout_of(fwhm_pix: float, params: PsfParams) -> _Layout:
    """Sizes for stars of an observed FWHM."""
    half = int(np.clip(np.ceil(params.half_fwhm * fwhm_pix), 6, params.max_half_pix))
    oversampling = int(np.clip(np.ceil(params.nodes_per_fwhm / fwhm_pix), 1, 160 // (2 * half + 8)))
    coarse = int(np.clip(np.ceil(params.nodes_per_fwhm_core / fwhm_pix), 1, oversampling))
    core = int(np.clip(np.ceil(params.core_fwhm * fwhm_pix), 3, half))
    return _Layout(oversampling, coarse, half, core, int(np.clip(np.ceil(1.7 * fwhm_pix), 3, half)))


def window_half_pix(profile: StarProfile, params: PsfParams) -> int:
    """Half side of the windows that `build_psf` can use."""
    return layout_of(profile.observed_fwhm_pix, params).half


def profile_psf(profile: StarProfile, shape: tuple[int, int], params: PsfParams) -> PsfModel:
    """The mean star profile as a model that is constant over the image."""
    layout = layout_of(profile.observed_fwhm_pix, params)
    base = elliptical.from_profile(profile)
    return _model(elliptical.as_spline(base, 0, layout.oversampling, layout.reach), base, layout, shape)


def _model(coefficients, base, layout, shape) -> PsfModel:
    degree = elliptical.degree_of(len(coefficients))
    profile = coefficients[0].copy()
    for term in coefficients:
        _even_sums(term, profile, layout.oversampling)
    wing = base.wing(layout.half + 0.5)
    return PsfModel(coefficients.astype(np.float32), layout.oversampling, degree, shape, wing)


def build_psf(stars: PsfStars, shape: tuple[int, int], profile: StarProfile, params: PsfParams) -> PsfBuild:
    """Build a point-spread function.

    First an elliptical profile whose shape is a polynomial over the image and whose radial form is fitted
    (`psf.elliptical`), then a free spline in the core, also a polynomial over the image, from the residuals; in
    turn with fits of the stars' fluxes and places. Stars that fit badly and single outlying pixels are left out.
    With few stars the degrees fall, and what they do not determine stays as it was.

    Parameters
    ----------
    stars : PsfStars
    shape : tuple of int
        (ny, nx) of the image.
    profile : StarProfile
        The mean profile: sizes and first guess.
    params : PsfParams

    Raises
    ------
    BadInput
        Windows and variances are not of one odd-sided shape.
    AlgorithmFailure
        No star is usable.
    """
    work = _prepared(stars, shape, profile, params)
    fit = elliptical.first_fit(work.pix, work.var, *work.offset)
    if not fit.used.any():
        raise AlgorithmFailure("PSF: no usable star", n_stars=len(stars.x))
    base, fit = _fit_elliptical(elliptical.from_profile(profile), work, fit, params)
    degree = _degree(int(fit.used.sum()), params)
    coefficients = elliptical.as_spline(base, degree, work.layout.oversampling, work.layout.reach)
    model = _model(coefficients, base, work.layout, shape)
    model, fit = _corrected(model, work, fit, params)
    return _finished(model, stars, fit)


class _Work(NamedTuple):
    """Windows at hand: pixels, variances (0 where unusable), offsets of the guess, (u, v), sky^2 expected, sizes."""

    pix: np.ndarray
    var: np.ndarray
    offset: tuple[np.ndarray, np.ndarray]
    field: np.ndarray
    sky_var: np.ndarray
    layout: _Layout


def _prepared(stars, shape, profile, params):
    pix, var = stars.pix, stars.var
    if pix.ndim != 3 or pix.shape != var.shape or pix.shape[1] != pix.shape[2] or pix.shape[1] % 2 == 0:
        raise BadInput(f"PSF stars: windows {pix.shape} and variances {var.shape} must be of one odd-sided shape")
    layout = layout_of(profile.observed_fwhm_pix, params)
    half = pix.shape[1] // 2
    if half < layout.half_first:
        raise BadInput(
            f"PSF stars: windows of half side {half} px for stars of FWHM {profile.observed_fwhm_pix:.2f} px"
        )
    layout = layout._replace(half=min(half, layout.half), half_core=min(half, layout.half_core))
    cut = slice(half - layout.half, half + layout.half + 1)
    pix, var = pix[:, cut, cut], var[:, cut, cut]
    good = np.isfinite(pix) & np.isfinite(var) & (var > 0)
    pix, var = np.where(good, pix, np.float32(0)), np.where(good, var, np.float32(0))
    offset = (stars.x - np.rint(stars.x), stars.y - np.rint(stars.y))
    n_y, n_x = shape
    field = np.stack([2 * stars.x / (n_x - 1) - 1, 2 * stars.y / (n_y - 1) - 1], axis=1)
    noise = np.min(var, axis=(1, 2), where=good, initial=np.float32(1e30)).astype(float)
    return _Work(pix, var, offset, field, params.sky_error**2 * noise, layout)


def _degree(n_stars, params):
    """Highest degree whose terms have enough stars."""
    degree = params.degree
    while degree and n_stars < params.stars_per_term * (degree + 1) * (degree + 2) / 2:
        degree -= 1
    return degree


def _fit_elliptical(base, work, fit, params):
    """Elliptical profile: on the cores of all stars, then with its radial form on whole windows."""
    layout = work.layout
    stars = (work.pix, work.var, work.field, work.sky_var)
    first = Stage(layout.half_first, layout.half_first, 0.03, False, _NO_CLIP)
    for n_most, degree in ((params.max_wing_stars, 0), (params.max_wing_stars, 1), (len(work.pix), params.degree)):
        rows = _spread(np.flatnonzero(fit.usable), n_most)
        degree = min(degree, _degree(rows.size, params))
        base, part = elliptical.step(base, _rows(stars, rows), StarFit(*_rows(fit, rows)), degree, first)
        fit = _merged(fit, part, rows)
    rows = np.flatnonzero(fit.used)
    n_most = min(params.max_wing_stars, params.max_wing_pixels // (2 * layout.half + 1) ** 2)
    rows = np.sort(rows[np.argsort(-fit.flux[rows], kind="stable")[: max(n_most, 5)]])
    bright, part = _rows(stars, rows), StarFit(*_rows(fit, rows))
    for misfit in (max(0.02, params.wing_error), params.wing_error):
        stage = Stage(layout.half, layout.half_first, misfit, True, params.clip_sigma)
        base, part = elliptical.step(base, bright, part, degree, stage)
    last = Stage(layout.half_first, layout.half_first, 0.004, False, _NO_CLIP)
    return elliptical.step(base, stars, _merged(fit, part, rows), degree, last)


def _spread(rows, n_most):
    """At most so many of the rows, evenly taken."""
    return rows[np.linspace(0, rows.size - 1, min(rows.size, n_most)).astype(int)]


def _rows(columns, rows):
    """The same rows of several arrays."""
    return tuple(column[rows] for column in columns)


def _merged(fit, part, chosen):
    """Put the fit of some stars back among all."""
    columns = [a.copy() for a in fit]
    for column, values in zip(columns, part):
        column[chosen] = values
    return StarFit(*columns)


def _planes(model, field, fit, half):
    """Unit stars and their slopes at their places, shape (n, 3, side, side)."""
    phase = np.stack([fit.dx, fit.dy], axis=1)
    return star_images(model.by_phase(half), np.array(model.wing, float), model.degree, field, phase, half)


def _stars_fitted(model, work, fit, params, least_error=0.0):
    """Refit flux and place of each star; returns the fit, the residuals and the inverse variances."""
    half = min(work.layout.half_core, model.half_pix)
    cut = slice(work.layout.half - half, work.layout.half + half + 1)
    pix, var = np.ascontiguousarray(work.pix[:, cut, cut]), np.ascontiguousarray(work.var[:, cut, cut])
    pix -= fit.sky.astype(np.float32)[:, None, None]
    error = np.float32(max(params.profile_error, least_error))
    for _ in range(2):
        planes = _planes(model, work.field, fit, half)
        flux = fit.flux.astype(np.float32)[:, None, None]
        signal = flux * planes[:, 0]
        residual = pix - signal
        misfit = (error * signal) ** 2
        weight = np.where(var > 0, 1 / (np.maximum(var, 1e-30) + misfit), 0)
        weight[residual**2 > params.clip_sigma**2 * (var + 100 * misfit)] = 0
        planes[:, 1:] *= flux[:, None]
        fit = _improved(fit, planes, residual, weight, params)
    if not fit.used.any():
        raise AlgorithmFailure("PSF: no star fits", n_stars=len(pix))
    return fit, residual, weight


def _improved(fit, planes, residual, weight, params):
    n = len(residual)
    jacobian = planes.reshape(n, 3, -1)
    weighted = jacobian * weight.reshape(n, 1, -1)
    matrix = (weighted @ jacobian.swapaxes(1, 2)).astype(float)
    vector = (weighted @ residual.reshape(n, -1, 1))[:, :, 0].astype(float)
    n_pixels = (weight > 0).reshape(n, -1).sum(axis=1)
    good = fit.usable & (n_pixels >= _MIN_PIXELS)
    matrix[:, np.arange(3), np.arange(3)] += 1e-30 + 1e-6 * matrix[:, np.arange(3), np.arange(3)]
    change = np.linalg.solve(matrix, vector[:, :, None])[:, :, 0]
    chi2 = (weight * residual**2).sum(axis=(1, 2), dtype=float) - (change * vector).sum(axis=1)
    chi2_dof = chi2 / np.maximum(n_pixels - 3, 1)
    if good.any():
        good &= chi2_dof <= params.clip_chi2 * max(float(np.median(chi2_dof[good])), 1.0)
    return elliptical.moved_stars(fit, fit.flux + change[:, 0], change[:, 1:], fit.sky, chi2_dof, good)


def _with_sky(model, work, fit):
    """Level of the sky about each star, from the outer part of its window."""
    half, core = work.layout.half, work.layout.half_core
    planes = _planes(model, work.field, fit, half)[:, 0]
    weight = np.where(work.var > 0, 1 / np.maximum(work.var, 1e-30), 0)
    inner = slice(half - core, half + core + 1)
    weight[:, inner, inner] = 0
    residual = work.pix - fit.flux.astype(np.float32)[:, None, None] * planes
    total = weight.sum(axis=(1, 2), dtype=float) + 1 / work.sky_var
    return fit._replace(sky=(weight * residual).sum(axis=(1, 2), dtype=float) / total)


def _corrected(model, work, fit, params):
    """The model with the free spline added, and the stars fitted with it."""
    layout = work.layout
    fit = _with_sky(model, work, fit)
    total, spline, mixing = model, None, None
    scatter = _scatter(model, layout)
    for error in (*_FIRST_ERRORS[: params.n_sweeps], *[0.0] * (params.n_sweeps - len(_FIRST_ERRORS))):
        fit, residual, weight = _stars_fitted(total, work, fit, params, error)
        rows = np.flatnonzero(fit.used)
        if mixing is None:
            mixing = _orthogonal(model, work.field[rows], weight[rows], fit.flux[rows], params)
            correction = np.zeros((len(mixing), *scatter.shape))
        terms = monomials(work.field[rows, 0], work.field[rows, 1], elliptical.degree_of(len(mixing))) @ mixing
        phase = np.stack([fit.dx, fit.dy], axis=1)[rows]
        left = Residuals(residual[rows], weight[rows], fit.flux[rows], phase, terms)
        spline = freespline.prepare(left, scatter, layout.oversampling_core, params.correction_size, spline)
        freespline.sweep_inplace(spline, correction, left)
        total = _added(model, np.tensordot(mixing, correction, axes=(1, 0)), layout)
    return total, _stars_fitted(total, work, fit, params)[0]


def _orthogonal(model, field, weight, flux, params):
    """Matrix that turns monomials into terms that are orthonormal over the stars, each with its weight."""
    degree = max(min(_degree(len(field), params), model.degree) - 1, 0)
    terms = monomials(field[:, 0], field[:, 1], degree)
    size = np.sqrt(weight.sum(axis=(1, 2), dtype=float)) * flux
    size /= np.sqrt((size**2).mean())
    triangle = np.linalg.qr(terms * size[:, None] / np.sqrt(len(terms)), mode="r")
    return np.linalg.inv(triangle + 1e-6 * np.eye(len(triangle)))


def _scatter(model, layout):
    """Relative size of the correction's coefficients: like the profile, but wider; little at the rim."""
    steps = np.arange(-layout.reach_core, layout.reach_core + 1)
    profile = np.abs(
        _resampled(model.coefficients[:1].astype(float), layout.oversampling, steps / layout.oversampling_core)[0]
    )
    rim = np.clip(4 * (1 - np.abs(steps) / layout.reach_core), 0.02, 1)
    return np.sqrt(profile * profile.max()) * np.minimum(rim[:, None], rim)


def _resampled(coefficients, oversampling, offsets):
    """Values of splines at a grid of offsets (px), shape (n_terms, n, n); 0 outside of their nodes."""
    middle = coefficients.shape[1] // 2
    at = offsets * oversampling + middle
    first = np.floor(at).astype(int)
    t = at - first
    weights = (
        np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3], axis=1) / 6
    )
    matrix = np.zeros((len(at), coefficients.shape[1] + 4))
    columns = first[:, None] + np.arange(-1, 3) + 2
    inside = (columns >= 0) & (columns < matrix.shape[1])
    matrix[np.nonzero(inside)[0], columns[inside]] = weights[inside]
    matrix = matrix[:, 2:-2]
    return matrix @ coefficients @ matrix.T


def _added(model, correction, layout):
    """Model plus a correction without flux, at any phase of the pixel, and without shift."""
    reach = model.coefficients.shape[1] // 2
    offsets = np.arange(-reach, reach + 1) / layout.oversampling
    full = spline_coefficients(_resampled(correction, layout.oversampling_core, offsets))
    mean = model.coefficients[0].astype(float)
    slope_y, slope_x = np.gradient(mean)
    for term in full:
        for slope in (slope_x, slope_y):
            term -= (term * slope).sum() / (slope**2).sum() * slope
        term -= term.sum() / mean.sum() * mean
        _even_sums(term, mean, layout.oversampling)
    raised = elliptical.raised(full.reshape(len(full), -1), model.degree).reshape(model.coefficients.shape)
    return replace(model, coefficients=(model.coefficients + raised).astype(np.float32))


def _even_sums(term, profile, oversampling):
    """Give each phase of the pixel the same flux, in place: pixels tile the plane, so that those of a star sum to its
    flux wherever it is. Flux by phase times PSF by phase is not told from the PSF by the stars."""
    even, profile = term.sum() / oversampling**2, np.maximum(profile, 0)
    for row in range(oversampling):
        for column in range(oversampling):
            nodes = (slice(row, None, oversampling), slice(column, None, oversampling))
            term[nodes] += (even - term[nodes].sum()) * profile[nodes] / profile[nodes].sum()


def _finished(model, stars, fit):
    """The result, in the image's coordinates."""
    x, y = np.rint(stars.x) + fit.dx, np.rint(stars.y) + fit.dy
    n_used = int(fit.used.sum())
    chi2 = float(np.median(fit.chi2_dof[fit.used])) if n_used else float("nan")
    return PsfBuild(replace(model, n_stars=n_used, chi2_dof=chi2), x, y, fit.flux, fit.chi2_dof, fit.used)
