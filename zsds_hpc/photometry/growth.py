"""Aperture corrections to total flux, by PSF fits or by the curve of growth; noise-equivalent area of a star."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.aperture import circular_sums
from zsds_hpc.photometry.detect import FLAG_APERTURE, FLAG_BLENDED, FLAG_SATURATED, FLAG_TRUNCATED, Detections
from zsds_hpc.photometry.linefit import fit_linear
from zsds_hpc.photometry.profile import PHASE_STEPS, StarProfile, noise_equivalent_area, profile_table
from zsds_hpc.photometry.seeing import BAD_IN_STAR
from zsds_hpc.psf.model import PsfModel

_MAG_PER_LN = 2.5 / np.log(10)
_POINT_SPREAD = 0.005
_PROFILE_ERROR_MAG = 0.05
_LEAST_RATIO_ERROR = 1e-3
_PHASE_STRIDE = 4  # of the profile's tabulated phases


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
    match_pix: float = param(1.0, "PSF fit and source in the catalogue are this close.", unit="pix", ge=0.1, le=10.0)


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


def aperture_corrections_to_psf(
    catalogue: np.ndarray, fits: np.ndarray, diameters_pix: tuple[float, ...], params: ApertureCorrectionParams
) -> ApertureCorrections:
    """Magnitude of the PSF fit minus aperture magnitude, of bright isolated stars.

    For each aperture, aperture flux / PSF flux is fitted as g + c / PSF flux, robustly: c takes up what an error of
    the sky adds, and 2.5 log10 g is the correction. What the PSF's normalisation is wrong by is in every correction
    and in the zero point alike, so that m = MAG_APER + APCOR + MAGZP holds for the zero point of the PSF fits.

    Parameters
    ----------
    catalogue : ndarray
        Aperture catalogue from `aperture.measure`.
    fits : ndarray, `psffit.PSF_FIT_DTYPE`
        PSF fits of the same image.
    diameters_pix : tuple of float
        Apertures of the catalogue.
    params : ApertureCorrectionParams

    Returns
    -------
    ApertureCorrections
        `outer_fraction` is NaN: the extrapolation is the PSF's.

    Raises
    ------
    AlgorithmFailure
        Fewer than `min_stars` stars; `aperture_corrections` does with less.
    """
    rows = _growth_stars(catalogue, params)
    rows, fitted = _same_star(catalogue, rows, fits, params.match_pix)
    if rows.size < params.min_stars:
        raise AlgorithmFailure("aperture corrections: too few stars with PSF fits", n_stars=int(rows.size))
    flux = fits["flux"][fitted]
    design = np.stack([np.ones(rows.size), np.median(flux) / flux], axis=1)
    ratios, errors = np.zeros(len(diameters_pix)), np.zeros(len(diameters_pix))
    for k in range(len(diameters_pix)):
        ratio = catalogue["FLUX_APER"][rows, k] / flux
        noise = np.hypot(catalogue["FLUXERR_APER"][rows, k] / flux, _LEAST_RATIO_ERROR)
        fit = fit_linear(design, ratio, noise)
        ratios[k], errors[k] = fit.coefficients[0], np.sqrt(fit.cov[0, 0])
    if not (ratios > 0).all():
        raise AlgorithmFailure("aperture corrections: no light in an aperture", least_ratio=float(ratios.min()))
    return ApertureCorrections(
        np.array(diameters_pix), 2.5 * np.log10(ratios), _MAG_PER_LN * errors / ratios, int(rows.size), float("nan")
    )


def _same_star(catalogue, rows, fits, radius_pix):
    """Rows of the catalogue and of the fits that are each other's nearest, within a radius."""
    usable = np.flatnonzero(np.isfinite(fits["x"] + fits["y"] + fits["flux"]) & (fits["flux"] > 0))
    if not rows.size or not usable.size:
        return rows[:0], usable[:0]
    there = np.stack([fits["x"][usable], fits["y"][usable]], axis=1)
    here = np.stack([catalogue["XWIN_IMAGE"][rows] - 1, catalogue["YWIN_IMAGE"][rows] - 1], axis=1)
    near = cKDTree(there).query(here, distance_upper_bound=radius_pix)[1]
    found = near < usable.size
    rows, near = rows[found], near[found]
    # Where two claim a fit the brighter, which comes first, keeps it.
    first = np.unique(near, return_index=True)[1]
    first.sort()
    return rows[first], usable[near[first]]


def growth_difference(to_psf: ApertureCorrections, growth: ApertureCorrections) -> tuple[float, float]:
    """Total magnitude of the curve of growth minus that of the PSF, and its error: is the PSF normalised?

    Taken at the aperture where the two are best known together. The extrapolated part of the curve of growth counts
    with half its size as error.
    """
    unc = np.hypot(to_psf.unc_mag, growth.unc_mag)
    k = int(np.argmin(unc))
    return float(growth.correction_mag[k] - to_psf.correction_mag[k]), float(unc[k])


def rescaled_to_growth(fits: np.ndarray, psf: PsfModel, offset_mag: float) -> tuple[np.ndarray, PsfModel]:
    """PSF fits and PSF with the total flux of the curve of growth: the wings' extrapolation is measured, not modelled.

    Flux times PSF, the image of each star, stays what it was.

    Parameters
    ----------
    fits : ndarray, `psffit.PSF_FIT_DTYPE`
    psf : PsfModel
        Of these fits.
    offset_mag : float
        From `growth_difference`.

    Returns
    -------
    fits : ndarray
        Copy with `flux` and `sigflux` scaled.
    psf : PsfModel
    """
    factor = float(10 ** (-0.4 * offset_mag))
    scaled = fits.copy()
    scaled["flux"] *= factor
    scaled["sigflux"] *= factor
    coefficients = (psf.coefficients / factor).astype(np.float32)
    return scaled, replace(psf, coefficients=coefficients, wing=(psf.wing[0] / factor, psf.wing[1]))


def psf_noise_area(psf: PsfModel, n_places: int = 5, n_phases: int = 4) -> float:
    """Noise-equivalent area (px) of a star: 1 / sum P^2 (King 1983), median over the image and mean over phases.

    Parameters
    ----------
    psf : PsfModel
    n_places : int
        Places along each axis, on a regular grid inside the image.
    n_phases : int
        Positions in the pixel along each axis.
    """
    n_y, n_x = psf.shape
    place = (np.arange(n_places) + 0.5) / n_places
    phase = (np.arange(n_phases) + 0.5) / n_phases - 0.5
    y, x, dy, dx = (
        a.ravel()
        for a in np.meshgrid(np.rint(place * (n_y - 1)), np.rint(place * (n_x - 1)), phase, phase, indexing="ij")
    )
    images = psf.images(x + dx, y + dy, psf.half_pix)
    area = 1 / np.square(images, dtype=np.float64).sum(axis=(1, 2))
    return float(np.median(area.reshape(n_places**2, n_phases**2).mean(axis=1)))
