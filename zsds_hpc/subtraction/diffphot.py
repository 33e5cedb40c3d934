"""PSF fits of new, vanished and variable stars on a difference image: flux of either sign, position free.

A difference image is almost empty: the fits are small least-squares problems, done for all sources at once with
NumPy. What lies close together is fitted with the others' models subtracted.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core.params import Params, param
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.subtraction.cutouts import offsets, windows
from zsds_hpc.subtraction.images import Difference

FIT_DTYPE = np.dtype(
    [
        ("x", "f8"),  # 0-based px
        ("y", "f8"),
        ("flux", "f8"),  # DN, of either sign, without the bias of a free position
        ("sigflux", "f8"),  # position free, own photons included
        ("var_x", "f8"),  # px^2
        ("var_y", "f8"),
        ("cov_xy", "f8"),
        ("score", "f8"),  # |flux| over its error without own photons, at the summit: what detection looks at
        ("chi2_dof", "f8"),
        ("chi", "f8"),  # DAOPHOT
        ("sharp", "f8"),
        ("share", "f8"),  # of the star's weight that lies on usable pixels
        ("lobe", "?"),  # was found beside a much brighter one, which accounts for it
    ]
)


class DiffPhotParams(Params):
    """How the sources of a difference image are fitted."""

    window_fwhm: float = param(2.0, "Half side of the window of a fit, in FWHM.", "FWHM", 1.0, 5.0)
    link_fwhm: float = param(2.5, "Sources closer than this are fitted together.", "FWHM", 0.5, 6.0)
    merge_fwhm: float = param(0.6, "Sources closer than this are one.", "FWHM", 0.0, 3.0)
    psf_error: float = param(0.03, "Error of the PSF relative to it: noise beside a brighter source.", "", 0.0, 0.5)
    quick_steps: int = param(3, "Gauss-Newton steps before faint ones are given up.", "", 1, 20)
    steps: int = param(9, "Further steps at most.", "", 1, 50)
    damping_pix: float = param(1.0, "Levenberg damping of the steps in position.", "px", 0.05, 100.0)
    max_step_pix: float = param(0.5, "Largest step in position.", "px", 0.05, 5.0)
    max_walk_pix: float = param(1.5, "A source does not leave its peak by more, along each axis.", "px", 0.2, 10.0)
    rest_sigma: float = param(0.01, "Steps smaller than this, in errors, end the fit.", "", 0.0, 1.0)
    chi_fwhm: float = param(1.5, "chi and sharp see pixels within this distance.", "FWHM", 0.5, 4.0)


@dataclass
class _Scene:
    """Sources being fitted on an image; `value` holds x, y, flux and is changed in place."""

    difference: Difference
    half: int
    params: DiffPhotParams
    value: np.ndarray
    home: np.ndarray

    @property
    def reach(self) -> float:
        """Distance (px) within which sources see each other."""
        return self.params.link_fwhm * self.difference.psf.fwhm_pix


class _Pairs(NamedTuple):
    """Source `other` lies near source `own`, whose window gets its light; every pair in both directions."""

    own: np.ndarray
    other: np.ndarray


class _Equations(NamedTuple):
    """Normal equations of (flux, x, y) of n sources, and what they are made of on their windows."""

    matrix: np.ndarray
    right: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    null_weight: np.ndarray
    profile: np.ndarray


def fit_sources(difference: Difference, peaks: np.ndarray, least_score: float, params: DiffPhotParams) -> np.ndarray:
    """Fit a star to every peak of the filtered difference.

    The brightest of a group comes first; what lies beside it must be significant with its light subtracted and an
    error of the PSF allowed for, or is its lobe. Those that remain are fitted together. Steps are Gauss and Newton's,
    with the weights of the present fluxes.

    Parameters
    ----------
    difference : Difference
    peaks : ndarray, shape (n,)
        x, y (0-based px), flux (DN) and snr, of either sign.
    least_score : float
        Sources with a smaller score are given up; lobes are returned for the count.
    params : DiffPhotParams

    Returns
    -------
    ndarray, shape (m,), `FIT_DTYPE`
        By y, then x.
    """
    half = min(int(np.ceil(params.window_fwhm * difference.psf.fwhm_pix)), difference.psf.half_pix)
    value = np.stack([peaks["x"], peaks["y"], peaks["flux"]], axis=1).astype(float)
    scene = _Scene(difference, half, params, value, value[:, :2].copy())
    alive, lobe = np.zeros(len(value), bool), np.zeros(len(value), bool)
    for rows in _rounds(value, np.abs(peaks["snr"]), scene.reach):
        _judge(scene, rows, least_score, alive, lobe)
    rows = np.flatnonzero(alive)
    _fit_inplace(scene, rows, _pairs(scene, rows, rows), params.steps)
    out = _table(scene, np.flatnonzero(alive | lobe), rows)
    out["lobe"] = lobe[alive | lobe]
    out = out[out["lobe"] | (out["score"] >= least_score)]
    return out[np.lexsort((out["x"], out["y"]))]


def _rounds(value, strength, reach):
    """Rows in rounds: each round has those with no stronger one left within reach."""
    pairs = cKDTree(value[:, :2]).query_pairs(reach, output_type="ndarray") if len(value) else np.zeros((0, 2), int)
    swapped = strength[pairs[:, 0]] < strength[pairs[:, 1]]
    strong, weak = np.where(swapped, pairs[:, 1], pairs[:, 0]), np.where(swapped, pairs[:, 0], pairs[:, 1])
    waiting = np.ones(len(value), bool)
    while waiting.any():
        turn = waiting.copy()
        turn[weak[waiting[strong]]] = False
        yield np.flatnonzero(turn)
        waiting &= ~turn


def _judge(scene, rows, least_score, alive, lobe):
    """Fit some sources beside those known to be alive, and mark in place what they are."""
    known = np.flatnonzero(alive)
    pairs = _pairs(scene, rows, known)
    _fit_inplace(scene, rows, pairs, scene.params.quick_steps)
    score = _scores(scene, rows, _equations(scene, rows, pairs))
    distance = np.full(len(rows), np.inf)
    if known.size:
        distance = cKDTree(scene.value[known, :2]).query(scene.value[rows, :2])[0]
    real = (score >= least_score) & (distance > scene.params.merge_fwhm * scene.difference.psf.fwhm_pix)
    alive[rows[real]] = True
    lobe[rows[~real & (distance < scene.reach + scene.params.max_walk_pix)]] = True


def _pairs(scene, rows, others):
    """Which of the others lie within reach of each of the rows."""
    if not len(rows) or not len(others):
        return _Pairs(np.zeros(0, np.intp), np.zeros(0, np.intp))
    tree = cKDTree(scene.value[others, :2])
    near = tree.query_ball_point(scene.value[rows, :2], scene.reach + scene.params.max_walk_pix, return_sorted=True)
    own = np.repeat(rows, [len(list_) for list_ in near])
    other = others[np.array([k for list_ in near for k in list_], np.intp)]
    return _Pairs(own[own != other], other[own != other])


def _fit_inplace(scene, rows, pairs, n_steps):
    """Gauss-Newton steps of some sources, the light of their pairs subtracted as it is at each step."""
    params = scene.params
    for _ in range(n_steps):
        if not rows.size:
            break
        matrix, right = _equations(scene, rows, pairs)[:2]
        step = _damped(matrix, right, params)
        place = scene.value[rows, :2] + step[:, 1:]
        home = scene.home[rows]
        scene.value[rows, :2] = place.clip(home - params.max_walk_pix, home + params.max_walk_pix)
        scene.value[rows, 2] += step[:, 0]
        size = np.abs(step) * np.sqrt(np.maximum(np.einsum("nkk->nk", matrix), 0))
        rows = rows[(size.max(axis=1) > params.rest_sigma) | np.isin(rows, pairs.own)]


def _damped(matrix, right, params):
    """Steps (flux, x, y); none where there is no information."""
    damped = matrix.copy()
    damped[:, [1, 2], [1, 2]] += params.damping_pix**-2
    blind = ~(matrix[:, 0, 0] > 0)
    damped[blind] = np.eye(3)
    step = np.linalg.solve(damped, np.where(blind[:, None], 0.0, right)[:, :, None])[:, :, 0]
    step[:, 1:] = step[:, 1:].clip(-params.max_step_pix, params.max_step_pix)
    return step


def _equations(scene, rows, pairs):
    """Normal equations of some sources about their present values."""
    difference, (x, y, flux) = scene.difference, scene.value[rows].T
    data = windows(difference.pix, x, y, scene.half, 0.0)
    sigma = windows(difference.sigma, x, y, scene.half, np.inf)
    usable = np.isfinite(sigma) & (sigma > 0) & np.isfinite(data)
    planes = difference.psf.images(x, y, scene.half, 3).astype(float)
    model = flux[:, None, None] * planes[:, 0]
    light = _light(scene, rows, pairs)
    residual = np.where(usable, data, 0.0) - model - light
    variance = np.where(usable, sigma, 1.0).astype(float) ** 2 + (scene.params.psf_error * light) ** 2
    variance += np.maximum(light, 0) / difference.gain_e
    weight = usable / (variance + np.maximum(model, 0) / difference.gain_e)
    base = planes.copy()
    base[:, 1:] *= flux[:, None, None, None]
    weighted = base * weight[:, None]
    matrix = np.einsum("nkij,nlij->nkl", weighted, base)
    right = np.einsum("nkij,nij->nk", weighted, residual)
    return _Equations(matrix, right, residual, weight, usable / variance, planes[:, 0])


def _light(scene, rows, pairs):
    """Light of the paired sources in the windows of some sources; 0.0 where there is none."""
    wanted = np.isin(pairs.own, rows)
    if not wanted.any():
        return 0.0
    own, other = np.searchsorted(rows, pairs.own[wanted]), pairs.other[wanted]
    middle = np.rint(scene.value[rows, :2]).astype(np.intp)
    return _summed(scene.difference.psf, (middle, scene.half), scene.value, _Pairs(own, other))


def _summed(psf, places, value, pairs):
    """Light of sources `pairs.other` of `value` in the windows `pairs.own`, given by their middles and half side."""
    middle, half = places
    side = 2 * half + 1
    shift = middle[pairs.own] - np.rint(value[pairs.other, :2]).astype(np.intp)
    wide = half + int(np.abs(shift).max())
    sources, index = np.unique(pairs.other, return_inverse=True)
    x, y, flux = value[sources].T
    stamps = psf.images(x, y, wide) * flux[:, None, None]
    out = np.zeros((len(middle), side, side))
    for own, source, (column, row) in zip(pairs.own, index, shift + wide - half):
        out[own] += stamps[source, row : row + side, column : column + side]
    return out


def light_of_others(psf: PsfModel, fits: np.ndarray, half: int, reach_pix: float) -> np.ndarray:
    """Light of the other fitted sources in a window about each.

    Parameters
    ----------
    psf : PsfModel
    fits : ndarray, shape (n,), `FIT_DTYPE`
    half : int
        Half side of the windows.
    reach_pix : float
        Sources farther away than this are left out.

    Returns
    -------
    ndarray, shape (n, 2 half + 1, 2 half + 1), float64
    """
    value = np.stack([fits["x"], fits["y"], fits["flux"]], axis=1)
    near = cKDTree(value[:, :2]).query_pairs(reach_pix, output_type="ndarray")
    if not len(near):
        return np.zeros((len(fits), 2 * half + 1, 2 * half + 1))
    pairs = _Pairs(*np.concatenate([near, near[:, ::-1]]).T)
    return _summed(psf, (np.rint(value[:, :2]).astype(np.intp), half), value, pairs)


def _scores(scene, rows, equations):
    """Significance of each source without the photons of its own: |sum p w d| / sqrt(sum p^2 w)."""
    weighted = equations.null_weight * equations.profile
    information = (weighted * equations.profile).sum(axis=(1, 2))
    signal = (weighted * equations.residual).sum(axis=(1, 2)) + scene.value[rows, 2] * information
    return np.abs(signal) / np.sqrt(np.maximum(information, 1e-300))


def _table(scene, rows, others):
    """Results of some sources beside the others."""
    out = np.zeros(len(rows), FIT_DTYPE)
    equations = _equations(scene, rows, _pairs(scene, rows, others))
    out["x"], out["y"], flux = scene.value[rows].T
    matrix = equations.matrix
    blind = ~(np.linalg.det(matrix) > 0)
    covariance = np.linalg.inv(np.where(blind[:, None, None], np.eye(3), matrix))
    covariance[blind] = np.nan
    out["sigflux"] = np.sqrt(np.maximum(covariance[:, 0, 0], 0))
    out["var_x"], out["var_y"], out["cov_xy"] = covariance[:, 1, 1], covariance[:, 2, 2], covariance[:, 1, 2]
    out["flux"] = flux - _flux_bias(flux, matrix[:, 0, 0])
    out["score"] = _scores(scene, rows, equations)
    square = equations.profile**2
    out["share"] = (square * (equations.weight > 0)).sum(axis=(1, 2)) / square.sum(axis=(1, 2))
    out["chi2_dof"], out["chi"], out["sharp"] = _quality(scene, rows, equations)
    return out


def _flux_bias(flux, information):
    """What a free position adds to the flux on average: the fit climbs the noise, by sigma^2 / flux.

    Portillo, Speagle & Finkbeiner 2020, AJ 159, 165: (p - 1) / 2 sigma^2 / flux for p free parameters.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = np.minimum(1 / (information * np.abs(flux)), np.abs(flux) / 2)
    return np.where(information > 0, np.sign(flux) * bias, 0.0)


def _quality(scene, rows, equations):
    """Reduced chi2 in the window; chi and sharp of DAOPHOT (Stetson 1987) near the middle, as `kernels.psffit` has."""
    (x, y, flux), fwhm = scene.value[rows].T, scene.difference.psf.fwhm_pix
    dx, dy = offsets(x, y, scene.half)
    r2, used = dx**2 + dy**2, equations.weight > 0
    near = used & (r2 <= (scene.params.chi_fwhm * fwhm) ** 2)
    weighted = equations.residual * np.sqrt(equations.weight)
    n_all, n_near = used.sum(axis=(1, 2)), near.sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        chi2 = (weighted**2).sum(axis=(1, 2)) / (n_all - 3)
        chi = 1.2533 * (np.abs(weighted) * near).sum(axis=(1, 2)) / n_near * np.sqrt(n_near / (n_near - 3))
        rho = np.log(2) * r2 / (fwhm / 2) ** 2
        change = np.where(near & (rho <= 6 * np.log(2)), np.exp(-rho) * (rho - 1), 0.0)
        top = (change * equations.residual * equations.weight).sum(axis=(1, 2))
        bottom = (change**2 * equations.weight).sum(axis=(1, 2))
        peak = equations.profile[:, scene.half, scene.half]
        sharp = 1.4427 * (fwhm / 2) ** 2 * top / (bottom * flux * peak)
    chi2[n_all <= 3] = chi[n_near <= 3] = np.nan
    return chi2, chi, sharp
