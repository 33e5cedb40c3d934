"""Zero point and colour term, their residuals over the image, limiting magnitude."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry.linefit import LinearFit, fit_linear
from zsds_hpc.photometry.psfcat import PointSourceParams, is_point_source
from zsds_hpc.photometry.seeing import BAD_IN_STAR

_MAG_PER_LN = 2.5 / np.log(10)
#: Mean squares over the image of the terms of the surface.
_SURFACE_NORMS = np.array([1 / 3, 1 / 3, 1 / 9, 1 / 5, 1 / 5])


class ZeroPointParams(Params):
    """Which calibrators are used."""

    bright_mag: float = param(13.5, "Brightest calibrator, catalogue magnitude.", unit="mag", ge=0.0, le=30.0)
    faint_mag: float = param(20.5, "Faintest calibrator, catalogue magnitude.", unit="mag", ge=0.0, le=30.0)
    blue_color: float = param(0.0, "Bluest calibrator.", unit="mag", ge=-5.0, le=10.0)
    red_color: float = param(1.3, "Reddest calibrator.", unit="mag", ge=-5.0, le=10.0)
    max_error_mag: float = param(0.04, "Largest combined error of a calibrator.", unit="mag", ge=0.001, le=1.0)
    min_matches: int = param(5, "With fewer calibrators there is no zero point.", ge=3, le=10000)
    min_surface_matches: int = param(100, "With fewer calibrators no surface over the image is fitted.", ge=10)
    fit_flux_offset: bool = param(False, "Fit a constant that the sky and faint neighbours add to every flux.")
    fixed_color_coefficient: float | None = param(None, "Hold the colour coefficient at this value.", ge=-2.0, le=2.0)


class CalibratorParams(Params):
    """Which PSF fits may calibrate."""

    min_snr: float = param(10.0, "Least flux over error.", "", 3.0, 1000.0)
    max_crowding: float = param(0.3, "Largest share of the variance of the flux owed to neighbours.", "", 0.0, 1.0)
    min_dominance: float = param(0.8, "Least share of the star in the model at its middle pixel.", "", 0.0, 1.0)
    bad_bits: int = param(BAD_IN_STAR, "None of these mask bits in the 5x5 box.", "", 0, 32767)
    point: PointSourceParams = param(PointSourceParams(), "Stars by sharp and chi.")


class Calibrators(NamedTuple):
    """Stars matched to the photometric catalogue; all of shape (n,), magnitudes.

    Attributes
    ----------
    inst_mag, inst_err : ndarray
        Instrumental magnitudes of total flux, -2.5 log10 DN, and their errors.
    cat_mag, cat_err, color : ndarray
        Catalogue magnitudes, errors and colours.
    color_err : ndarray or None
        Errors of the colours; None counts them as exact.
    color_sign : int
        1 if the catalogue magnitude is the first of the colour's two, -1 if it is the second, 0 if it is neither:
        its error is then part of the colour's.
    position : ndarray, shape (n, 2), or None
        Places on the image, from -1 to 1 along each axis.
    """

    inst_mag: np.ndarray
    inst_err: np.ndarray
    cat_mag: np.ndarray
    cat_err: np.ndarray
    color: np.ndarray
    color_err: np.ndarray | None = None
    color_sign: int = 0
    position: np.ndarray | None = None


@dataclass(frozen=True)
class ZeroPoint:
    """m = m_inst + magzp + clrcoeff * colour, all in mag.

    Attributes
    ----------
    magzp, magzp_unc : float
        Zero point at colour 0 and its 1-sigma error.
    clrcoeff, clrcoeff_unc : float
        Colour coefficient and its error.
    zpclrcov : float
        Covariance of magzp and clrcoeff, mag^2.
    flux_offset_dn : float
        What unresolved neighbours and an error of the sky add to each flux, DN; fitted, not part of the
        zero point. 0 where it is not fitted.
    surface_rms : float
        RMS over the image of the fitted surface; 0 without one.
    rms : float
        RMS residual of the calibrators that were kept.
    scatter : float
        Intrinsic scatter beyond the stated errors.
    n_matches : int
        Calibrators kept.
    zpmed, zpavg, zprmsall : float
        Median, mean and standard deviation of all differences catalogue - instrumental, without colour term.
    clrmed, clravg, clrrms : float
        Median, mean and standard deviation of the calibrators' colours.
    """

    magzp: float
    magzp_unc: float
    clrcoeff: float
    clrcoeff_unc: float
    zpclrcov: float
    flux_offset_dn: float
    surface_rms: float
    rms: float
    scatter: float
    n_matches: int
    zpmed: float
    zpavg: float
    zprmsall: float
    clrmed: float
    clravg: float
    clrrms: float


@dataclass(frozen=True)
class ZeroPointFit:
    """A zero point and what it leaves of each calibrator.

    Attributes
    ----------
    zero : ZeroPoint
    residual : ndarray, shape (n,)
        Catalogue minus calibrated magnitude, surface not removed; NaN where a calibrator was not used.
    weight : ndarray, shape (n,)
        Biweight over variance, 1 / mag^2; 0 where a calibrator was not used.
    """

    zero: ZeroPoint
    residual: np.ndarray
    weight: np.ndarray


def calibrator_stars(fits: np.ndarray, box_flags: np.ndarray, params: CalibratorParams) -> np.ndarray:
    """PSF fits that may calibrate: clean stars that the fit has well apart from their neighbours.

    Parameters
    ----------
    fits : ndarray, shape (n,), `psffit.PSF_FIT_DTYPE`
    box_flags : ndarray, shape (n,), int16
        OR of the mask in the 5x5 boxes, from `aperture.box_flags`.
    params : CalibratorParams

    Returns
    -------
    ndarray, shape (n,), bool
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        good = (fits["flags"] == 0) & (fits["flux"] > params.min_snr * fits["sigflux"]) & (fits["sigflux"] > 0)
        good &= (fits["crowding"] <= params.max_crowding) & (fits["dominance"] >= params.min_dominance)
    good &= (box_flags >= 0) & (box_flags & params.bad_bits == 0)
    return good & is_point_source(fits, params.point)


def calibrate_zeropoint(calibrators: Calibrators, params: ZeroPointParams) -> ZeroPointFit:
    """Fit zero point and colour term to matched calibrators.

    Variables, blends and galaxies among them are tolerated up to about 20%: Tukey's biweight gives them no weight,
    and the intrinsic scatter is part of the fit (`linefit.fit_linear`). With places on the image a quadratic surface
    of zero mean is fitted too: a response that varies over the image then neither passes for scatter nor moves the
    zero point, which is the mean over the image wherever the calibrators lie. Calibrators too few for it, or in one
    part of the image only, are fitted without. The errors of the colours, which share the catalogue magnitude's own,
    would tilt the colour term; what they add to the normal equations is taken out (Fuller 1987, Measurement Error
    Models, eq. 2.2.12).

    Parameters
    ----------
    calibrators : Calibrators
    params : ZeroPointParams

    Raises
    ------
    BadInput
        Lengths differ.
    AlgorithmFailure
        Fewer than `min_matches` calibrators pass the cuts.
    """
    columns = [np.asarray(a, np.float64) for a in calibrators[:5]]
    if len({a.shape for a in columns}) != 1:
        raise BadInput("zero point: the five arrays must be of one length")
    chosen, columns[1] = _usable(columns, params)
    if chosen.sum() < params.min_matches:
        raise AlgorithmFailure(
            "zero point: too few calibrators", n_matches=int(chosen.sum()), n_needed=params.min_matches
        )
    inst, inst_e, cat, cat_e, shade = (a[chosen] for a in columns)
    difference = cat - inst
    middle = float(np.median(shade))
    regressors, held = _regressors(shade - middle, cat - np.median(difference), params)
    if calibrators.position is not None:
        position = np.asarray(calibrators.position, np.float64)[chosen]
        if len(position) >= params.min_surface_matches and _covers_image(position):
            regressors = np.hstack([regressors, _surface_terms(position)])
    fit = fit_linear(regressors, difference - held, np.maximum(np.hypot(inst_e, cat_e), 1e-4))
    shift = np.zeros(regressors.shape[1])
    if calibrators.color_err is not None and params.fixed_color_coefficient is None:
        color_var = np.asarray(calibrators.color_err, np.float64)[chosen] ** 2
        shift = _color_noise_shift(fit, regressors, color_var, calibrators.color_sign * cat_e**2)
    zero = _zero_point(fit, shift, middle, params, difference, shade)
    return ZeroPointFit(zero, *_leftover(chosen, difference, shade, fit, zero))


def _color_noise_shift(fit: LinearFit, regressors, color_var, color_cov):
    """What to add to the coefficients for the noise of the colours, of variance and covariance with the magnitude."""
    color_var = np.where(np.isfinite(color_var), color_var, 0.0)
    matrix = regressors.T @ (fit.weight[:, None] * regressors)
    matrix[1, 1] -= fit.weight @ color_var
    excess = np.zeros(len(matrix))
    excess[1] = fit.weight @ (color_var * fit.coefficients[1] - color_cov)
    return np.linalg.lstsq(matrix, excess, rcond=1e-12)[0]


def _zero_point(fit, shift, middle, params, difference, shade):
    value, cov, surface = _named(fit, shift, params)
    # The fit is about the median colour; the zero point is at colour 0.
    back = np.array([1.0, -middle, 0.0])
    return ZeroPoint(
        magzp=float(value @ back),
        magzp_unc=float(np.sqrt(back @ cov @ back)),
        clrcoeff=float(value[1]),
        clrcoeff_unc=float(np.sqrt(cov[1, 1])),
        zpclrcov=float((back @ cov)[1]),
        flux_offset_dn=float(value[2] / _MAG_PER_LN),
        surface_rms=float(np.sqrt(surface**2 @ _SURFACE_NORMS[: surface.size])),
        rms=fit.rms,
        scatter=fit.scatter,
        n_matches=int(fit.used.sum()),
        **_spread("zpmed zpavg zprmsall", difference),
        **_spread("clrmed clravg clrrms", shade),
    )


def _leftover(chosen, difference, shade, fit, zero):
    """Residual and weight of all calibrators."""
    residual, weight = np.full(chosen.size, np.nan), np.zeros(chosen.size)
    residual[chosen] = difference - zero.magzp - zero.clrcoeff * shade
    weight[chosen] = fit.weight
    return residual, weight


def _regressors(color, expected_mag, params):
    """Columns of the fit, and the part of the model that is held."""
    columns, held = [np.ones(color.size)], 0.0
    if params.fixed_color_coefficient is None:
        columns.append(color)
    else:
        held = params.fixed_color_coefficient * color
    if params.fit_flux_offset:
        # From the catalogue's magnitude, so that the regressor does not share the noise of the difference.
        columns.append(10 ** (0.4 * expected_mag))
    return np.stack(columns, axis=1), held


def _covers_image(position):
    """Whether seven of the nine parts of the image hold three calibrators: a surface is not to be extrapolated."""
    part = np.clip((position + 1) * 1.5, 0, 2).astype(int)
    return (np.bincount(part[:, 1] * 3 + part[:, 0], minlength=9) >= 3).sum() >= 7


def _surface_terms(position):
    """Legendre products of degree 1 and 2: each has zero mean over the image."""
    x, y = position.T
    return np.stack([x, y, x * y, 1.5 * x**2 - 0.5, 1.5 * y**2 - 0.5], axis=1)


def _named(fit, shift, params):
    """Zero point, colour coefficient and offset with their covariance (what was held has none), and the surface."""
    kept = [True, params.fixed_color_coefficient is None, params.fit_flux_offset]
    value, cov, n = np.zeros(3), np.zeros((3, 3)), sum(kept)
    coefficients = fit.coefficients + shift
    value[1] = params.fixed_color_coefficient or 0.0
    value[kept], cov[np.ix_(kept, kept)] = coefficients[:n], fit.cov[:n, :n]
    return value, cov, coefficients[n:]


def _spread(names, values):
    return dict(zip(names.split(), (float(np.median(values)), float(np.mean(values)), float(np.std(values)))))


def _usable(columns, params):
    """Calibrators within the cuts, and errors of the instrumental magnitudes for the flux that the catalogue predicts.

    An error that follows the measured flux would prefer stars that the noise made bright.
    """
    inst, inst_e, cat, cat_e, color = columns
    with np.errstate(invalid="ignore"):
        good = np.isfinite(inst + inst_e + cat + cat_e + color) & (inst < 90) & (inst_e >= 0) & (cat_e >= 0)
        good &= (cat >= params.bright_mag) & (cat <= params.faint_mag)
        good &= (color >= params.blue_color) & (color <= params.red_color)
    expected = np.full(inst.size, np.inf)
    if good.any():
        difference = (cat - inst)[good]
        expected[good] = inst_e[good] * 10 ** (0.4 * (difference - np.median(difference)))
    return good & (np.hypot(expected, cat_e) <= params.max_error_mag), expected


class ResidualMap(NamedTuple):
    """Residuals of the zero point in cells over the image; shape (n_cells, n_cells), rows along y.

    Attributes
    ----------
    mean_mag, unc_mag : ndarray
        Robust mean of catalogue minus calibrated magnitude and its error; NaN in cells without calibrators.
    n_stars : ndarray, int
    """

    mean_mag: np.ndarray
    unc_mag: np.ndarray
    n_stars: np.ndarray


def residual_map(fit: ZeroPointFit, position: np.ndarray, n_cells: int = 8) -> ResidualMap:
    """Means over cells of the residuals: what the zero point of the image misses from place to place.

    Parameters
    ----------
    fit : ZeroPointFit
    position : ndarray, shape (n, 2)
        Places of the calibrators, from -1 to 1 along each axis.
    n_cells : int
        Along each axis.
    """
    used = fit.weight > 0
    weight, residual = fit.weight[used], fit.residual[used]
    column, row = np.clip(((np.asarray(position)[used] + 1) / 2 * n_cells).astype(int), 0, n_cells - 1).T
    cell = row * n_cells + column
    total, n = np.bincount(cell, weight, n_cells**2), np.bincount(cell, minlength=n_cells**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(cell, weight * residual, n_cells**2) / total
        unc = np.where(n > 0, 1 / np.sqrt(total), np.nan)
    return ResidualMap(*(a.reshape(n_cells, n_cells) for a in (mean, unc, n)))


def limiting_magnitude(rms_dn: float, gain: float, area_pix: float, magzp: float, n_sigma: float = 5.0) -> float:
    """Magnitude (colour 0) of a star whose optimally weighted flux has the given significance.

    With noise-equivalent area A (px) and sky noise s (DN/px), a flux F (DN) has variance A s^2 + F / gain;
    the limit is the F with F = n_sigma * sigma(F), and the magnitude magzp - 2.5 log10 F.

    Raises
    ------
    BadInput
        Noise, gain or area not positive.
    """
    if not (rms_dn > 0 and gain > 0 and area_pix > 0):
        raise BadInput(f"limiting magnitude: noise {rms_dn}, gain {gain} and area {area_pix} must be positive")
    photon = n_sigma**2 / (2 * gain)
    return float(magzp - 2.5 * np.log10(photon + np.sqrt(photon**2 + n_sigma**2 * area_pix * rms_dn**2)))
