"""Zero point and colour term, aperture corrections to total flux, limiting magnitude."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.aperture import circular_sums
from zsds_hpc.photometry.detect import FLAG_APERTURE, FLAG_BLENDED, FLAG_SATURATED, FLAG_TRUNCATED, Detections
from zsds_hpc.photometry.linefit import fit_linear
from zsds_hpc.photometry.profile import PHASE_STEPS, StarProfile, noise_equivalent_area, profile_table
from zsds_hpc.photometry.seeing import BAD_IN_STAR

_MAG_PER_LN = 2.5 / np.log(10)
_POINT_SPREAD = 0.005
_PROFILE_ERROR_MAG = 0.05
_PHASE_STRIDE = 4  # of the profile's tabulated phases


class ZeroPointParams(Params):
    """Which calibrators are used."""

    bright_mag: float = param(13.5, "Brightest calibrator, catalogue magnitude.", unit="mag", ge=0.0, le=30.0)
    faint_mag: float = param(19.0, "Faintest calibrator, catalogue magnitude.", unit="mag", ge=0.0, le=30.0)
    blue_color: float = param(0.0, "Bluest calibrator.", unit="mag", ge=-5.0, le=10.0)
    red_color: float = param(1.3, "Reddest calibrator.", unit="mag", ge=-5.0, le=10.0)
    max_error_mag: float = param(0.1, "Largest combined error of a calibrator.", unit="mag", ge=0.001, le=1.0)
    min_matches: int = param(5, "With fewer calibrators there is no zero point.", ge=3, le=10000)
    min_surface_matches: int = param(100, "With fewer calibrators no surface over the image is fitted.", ge=10)
    fit_flux_offset: bool = param(True, "Fit a constant that the sky and faint neighbours add to every flux.")
    fixed_color_coefficient: float | None = param(None, "Hold the colour coefficient at this value.", ge=-2.0, le=2.0)


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
        zero point.
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
    rms: float
    scatter: float
    n_matches: int
    zpmed: float
    zpavg: float
    zprmsall: float
    clrmed: float
    clravg: float
    clrrms: float


def fit_zeropoint(
    inst_mag: np.ndarray,
    inst_err: np.ndarray,
    ps1_mag: np.ndarray,
    ps1_err: np.ndarray,
    color: np.ndarray,
    params: ZeroPointParams,
    position: np.ndarray | None = None,
) -> ZeroPoint:
    """Fit zero point and colour term to matched calibrators.

    Variables, blends and galaxies among them are tolerated up to about 20%: Tukey's biweight gives them no
    weight, and the intrinsic scatter is part of the fit (`linefit.fit_line`).

    Parameters
    ----------
    inst_mag, inst_err : ndarray, shape (n,)
        Instrumental magnitudes of total flux, -2.5 log10(DN) and aperture correction, and their errors.
    ps1_mag, ps1_err, color : ndarray, shape (n,)
        Catalogue magnitudes, errors and colours.
    params : ZeroPointParams
    position : ndarray, shape (n, 2), optional
        Places on the image, from -1 to 1 along each axis. With them a quadratic surface of zero mean is fitted too: a
        response that varies over the image then neither passes for scatter nor moves the zero point, which is the
        mean over the image wherever the calibrators lie. Too few calibrators for it are fitted without.

    Raises
    ------
    BadInput
        Lengths differ.
    AlgorithmFailure
        Fewer than `min_matches` calibrators pass the cuts.
    """
    if not inst_mag.shape == inst_err.shape == ps1_mag.shape == ps1_err.shape == color.shape:
        raise BadInput("zero point: the five arrays must be of one length")
    columns = [np.asarray(a, np.float64) for a in (inst_mag, inst_err, ps1_mag, ps1_err, color)]
    chosen = _calibrators(columns, params)
    if chosen.sum() < params.min_matches:
        raise AlgorithmFailure(
            "zero point: too few calibrators", n_matches=int(chosen.sum()), n_needed=params.min_matches
        )
    inst, inst_e, cat, cat_e, shade = (a[chosen] for a in columns)
    difference = cat - inst
    middle = float(np.median(shade))
    regressors, held = _regressors(shade - middle, cat - np.median(difference), params)
    if position is not None and chosen.sum() >= params.min_surface_matches:
        regressors = np.hstack([regressors, _surface_terms(np.asarray(position, np.float64)[chosen])])
    fit = fit_linear(regressors, difference - held, np.maximum(np.hypot(inst_e, cat_e), 1e-4))
    value, cov = _named(fit, params)
    # The fit is about the median colour; the zero point is at colour 0.
    back = np.array([1.0, -middle, 0.0])
    return ZeroPoint(
        magzp=float(value @ back),
        magzp_unc=float(np.sqrt(back @ cov @ back)),
        clrcoeff=float(value[1]),
        clrcoeff_unc=float(np.sqrt(cov[1, 1])),
        zpclrcov=float((back @ cov)[1]),
        flux_offset_dn=float(value[2] / _MAG_PER_LN),
        rms=fit.rms,
        scatter=fit.scatter,
        n_matches=int(fit.used.sum()),
        **_spread("zpmed zpavg zprmsall", difference),
        **_spread("clrmed clravg clrrms", shade),
    )


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


def _surface_terms(position):
    """Legendre products of degree 1 and 2: each has zero mean over the image."""
    x, y = position.T
    return np.stack([x, y, x * y, 1.5 * x**2 - 0.5, 1.5 * y**2 - 0.5], axis=1)


def _named(fit, params):
    """Zero point, colour coefficient and offset with their covariance; what was held has none."""
    kept = [True, params.fixed_color_coefficient is None, params.fit_flux_offset]
    value, cov, n = np.zeros(3), np.zeros((3, 3)), sum(kept)
    value[1] = params.fixed_color_coefficient or 0.0
    value[kept], cov[np.ix_(kept, kept)] = fit.coefficients[:n], fit.cov[:n, :n]
    return value, cov


def _spread(names, values):
    return dict(zip(names.split(), (float(np.median(values)), float(np.mean(values)), float(np.std(values)))))


def _calibrators(columns, params):
    inst, inst_e, cat, cat_e, color = columns
    with np.errstate(invalid="ignore"):
        good = np.isfinite(inst + inst_e + cat + cat_e + color) & (inst < 90) & (inst_e >= 0) & (cat_e >= 0)
        good &= (cat >= params.bright_mag) & (cat <= params.faint_mag)
        good &= (color >= params.blue_color) & (color <= params.red_color)
        return good & (np.hypot(inst_e, cat_e) <= params.max_error_mag)


class ApertureCorrectionParams(Params):
    """Which stars give the curve of growth, and how far out."""

    min_snr: float = param(40.0, "Least significance of a star.", ge=10.0, le=1e5)
    max_stars: int = param(1000, "Stars used at most, brightest first.", ge=5, le=10000)
    min_stars: int = param(5, "With fewer stars the mean profile is used.", ge=3, le=1000)
    base_diameter_pix: float = param(6.0, "Aperture that the others are compared with.", unit="pix", ge=1.0, le=50.0)
    outer_diameter_pix: float = param(
        24.0, "Aperture up to which light is measured, or the largest one if wider.", unit="pix", ge=10.0, le=200.0
    )
    wing_exponent: float = param(
        3.0,
        "Light missing outside radius r falls as r to minus this, from half the outer aperture on.",
        ge=1.0,
        le=10.0,
    )
    isolation_pix: float = param(10.0, "No comparable source within this distance.", unit="pix", ge=0.0, le=200.0)
    isolation_flux: float = param(0.02, "Comparable: this fraction of the star's flux or more.", ge=0.0, le=10.0)


@dataclass(frozen=True)
class ApertureCorrections:
    """What to add to aperture magnitudes to get magnitudes of total flux.

    Attributes
    ----------
    diameters_pix, correction_mag, unc_mag : ndarray, shape (k,)
    n_stars : int
        Stars used; 0 if the corrections are those of the mean star profile.
    outer_fraction : float
        Fraction of the light that is extrapolated, outside the outer aperture.
    """

    diameters_pix: np.ndarray
    correction_mag: np.ndarray
    unc_mag: np.ndarray
    n_stars: int
    outer_fraction: float


def aperture_corrections(
    pix_sub: np.ndarray,
    mask: np.ndarray,
    sources: Detections,
    catalogue: np.ndarray,
    diameters_pix: tuple[float, ...],
    params: ApertureCorrectionParams,
) -> ApertureCorrections:
    """Measure the curve of growth of bright isolated stars and refer it to total flux.

    For each aperture, flux / base flux of the stars is fitted as g + c / base flux: c takes up what an
    error of the sky adds, g is the ratio of light. Outside the outer aperture the light is extrapolated
    with a power law through the last factor of two in radius.

    Parameters
    ----------
    pix_sub : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), int16
    sources : Detections
    catalogue : ndarray
        Aperture catalogue of these sources, from `aperture.measure`.
    diameters_pix : tuple of float
        Apertures of the catalogue.
    params : ApertureCorrectionParams

    Raises
    ------
    AlgorithmFailure
        Too few stars and no mean star profile either.
    """
    chosen = _growth_stars(catalogue, params)
    outer_pix = max(params.outer_diameter_pix, params.base_diameter_pix, *diameters_pix)
    radii = np.unique([*diameters_pix, params.base_diameter_pix, outer_pix / 2, outer_pix]) / 2
    if chosen.size < params.min_stars:
        return _profile_corrections(sources.profile, diameters_pix, chosen.size)
    sums = _growth_sums(pix_sub, mask, sources, catalogue[chosen], radii)
    sky_noise = catalogue["FLUXERR_APER"][chosen, 0]
    ratio, unc = _growth_curve(
        sums, sky_noise[:, None] * radii / radii[0], int(np.searchsorted(radii, params.base_diameter_pix / 2))
    )
    middle = int(np.searchsorted(radii, outer_pix / 4))
    missing = max(ratio[-1] - ratio[middle], 0.0) / (2**params.wing_exponent - 1)
    total = ratio[-1] + missing
    at = np.searchsorted(radii, np.array(diameters_pix) / 2)
    correction = -2.5 * np.log10(total / ratio[at])
    error = _MAG_PER_LN * np.hypot(unc[at] / ratio[at], np.hypot(unc[-1], missing / 2) / total)
    return ApertureCorrections(np.array(diameters_pix), correction, error, int(chosen.size), float(missing / total))


def _growth_stars(catalogue, params):
    """Rows of bright, isolated, clean point sources, brightest first."""
    isolation = (params.isolation_pix, params.isolation_flux)
    rows = np.flatnonzero(isolated_stars(catalogue, *isolation) & (catalogue["SNR_WIN"] >= params.min_snr))
    return rows[np.argsort(-catalogue["FLUX_AUTO"][rows], kind="stable")][: params.max_stars]


def isolated_stars(catalogue: np.ndarray, radius_pix: float = 8.0, flux_fraction: float = 0.05) -> np.ndarray:
    """Clean point sources without comparable neighbour: the sources to calibrate with.

    Parameters
    ----------
    catalogue : ndarray
        From `aperture.measure`.
    radius_pix : float
        Distance within which neighbours count.
    flux_fraction : float
        Flux of the brightest neighbour over that of the source, at most.

    Returns
    -------
    ndarray, shape (n,), bool
        Not blended, saturated or cut, no bad pixel within 2 px, SPREAD_MODEL of a point, isolated.
    """
    bad = FLAG_BLENDED | FLAG_SATURATED | FLAG_TRUNCATED | FLAG_APERTURE
    good = (catalogue["FLAGS"] & bad == 0) & (catalogue["IMAFLAGS_ISO"] >= 0)
    good &= catalogue["IMAFLAGS_ISO"] & BAD_IN_STAR == 0
    good &= np.abs(catalogue["SPREAD_MODEL"]) < _POINT_SPREAD + 3 * catalogue["SPREADERR_MODEL"]
    if len(catalogue) < 2:
        return good
    places = np.stack([catalogue["XWIN_IMAGE"], catalogue["YWIN_IMAGE"]], axis=1)
    pairs = cKDTree(places).query_pairs(radius_pix, output_type="ndarray")
    flux = np.maximum(catalogue["FLUX_AUTO"], 0)
    for one, other in (pairs.T, pairs.T[::-1]):
        good[one[flux[other] > flux_fraction * flux[one]]] = False
    return good


def _growth_sums(pix_sub, mask, sources, stars, radii):
    position = np.stack([stars["XWIN_IMAGE"] - 1, stars["YWIN_IMAGE"] - 1], axis=1)
    sums, replaced = np.zeros((len(stars), radii.size)), np.zeros((len(stars), radii.size))
    own = stars["NUMBER"].astype(np.int32)
    circular_sums(pix_sub, mask, sources.segments, BAD_IN_STAR, own, position, radii, sums, replaced)
    return sums


def _growth_curve(sums, noise, base):
    """Flux in each aperture over that in the base aperture, and its error."""
    inverse = 1 / sums[:, base]
    design = np.stack([np.ones(inverse.size), inverse], axis=1)
    fits = [
        fit_linear(design, sums[:, k] * inverse, np.hypot(noise[:, k] * inverse, 1e-4)) for k in range(noise.shape[1])
    ]
    return np.array([fit.coefficients[0] for fit in fits]), np.sqrt([fit.cov[0, 0] for fit in fits])


def _profile_corrections(profile, diameters_pix, n_stars):
    """Corrections of the mean Moffat profile, integrated over pixels, mean over phases."""
    if profile is None:
        raise AlgorithmFailure("aperture corrections: too few stars", n_stars=int(n_stars))
    radii = np.array(diameters_pix, np.float64) / 2
    half = int(radii.max()) + 2
    table = profile_table(profile, half)[:-1:_PHASE_STRIDE, :-1:_PHASE_STRIDE, 0]
    phases = np.arange(-0.5, 0.5, _PHASE_STRIDE / PHASE_STEPS)
    inside = np.zeros((phases.size**2, radii.size))
    for k, (j, i) in enumerate(np.ndindex(phases.size, phases.size)):
        star = np.ascontiguousarray(table[j, i].reshape(2 * half + 1, -1))
        nothing, centre = np.zeros(star.shape, np.int16), np.array([[half + phases[i], half + phases[j]]])
        labels, replaced = nothing.astype(np.int32), np.zeros((1, radii.size))
        circular_sums(star, nothing, labels, 0, np.ones(1, np.int32), centre, radii, inside[k : k + 1], replaced)
    correction = 2.5 * np.log10(inside.mean(axis=0))
    return ApertureCorrections(np.array(diameters_pix), correction, np.full(inside.size, _PROFILE_ERROR_MAG), 0, 0.0)


def point_source_area(profile: StarProfile, corrections: ApertureCorrections) -> float:
    """Noise-equivalent area (px) of a star: sky variance of an optimally weighted total flux over that of a pixel.

    1 / sum p^2 of the mean profile (King 1983). The light that the Moffat puts into wings that it was not
    fitted to is replaced by the measured curve of growth, through the aperture nearest to three times the
    FWHM.
    """
    area = noise_equivalent_area(profile)
    k = int(np.argmin(np.abs(corrections.diameters_pix - 3 * profile.observed_fwhm_pix)))
    measured = 10 ** (0.4 * corrections.correction_mag[k])
    modelled = 10 ** (0.4 * _profile_corrections(profile, corrections.diameters_pix[k : k + 1], 0).correction_mag[0])
    return float(area * (modelled / measured) ** 2)


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
