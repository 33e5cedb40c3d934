"""The aperture catalogue (sexcat): fluxes in concentric apertures, Kron fluxes, positions, shapes and flags.

Column names and meanings are SExtractor's, and so is the pixel convention of the *_IMAGE columns: FITS, the
centre of the first pixel is (1, 1). What differs from SExtractor is listed in `COLUMNS`.
"""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Strict

from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.aperture import circular_sums, core_widths, kron_sums
from zsds_hpc.numerics.robust import SIGMA_TO_FWHM
from zsds_hpc.photometry.centroid import CentroidParams, fit_positions
from zsds_hpc.photometry.detect import FLAG_APERTURE, FLAG_NEIGHBOUR, Detections
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.seeing import BAD_IN_STAR, SeeingParams, measure_profile

NO_MAGNITUDE = 99.0

#: name -> (format, unit, meaning); "A" stands for one value per aperture.
COLUMNS = {
    "NUMBER": ("i4", "", "running number, brightest peak first"),
    "X_IMAGE": ("f8", "pix", "isophotal barycentre along x, first pixel at 1"),
    "Y_IMAGE": ("f8", "pix", "isophotal barycentre along y"),
    "XWIN_IMAGE": ("f8", "pix", "position along x, least squares with the mean star profile"),
    "YWIN_IMAGE": ("f8", "pix", "position along y, least squares with the mean star profile"),
    "ERRX2WIN_IMAGE": ("f4", "pix2", "variance of XWIN_IMAGE"),
    "ERRY2WIN_IMAGE": ("f4", "pix2", "variance of YWIN_IMAGE"),
    "ERRXYWIN_IMAGE": ("f4", "pix2", "covariance of XWIN_IMAGE and YWIN_IMAGE"),
    "ALPHAWIN_J2000": ("f8", "deg", "right ascension of XWIN, YWIN (ICRS); NaN until attached"),
    "DELTAWIN_J2000": ("f8", "deg", "declination of XWIN, YWIN (ICRS); NaN until attached"),
    "FLUX_APER": ("Af4", "DN", "flux in fixed circular apertures"),
    "FLUXERR_APER": ("Af4", "DN", "error of FLUX_APER: sky and photon noise"),
    "MAG_APER": ("Af4", "mag", "-2.5 log10 FLUX_APER, 99 where not positive"),
    "MAGERR_APER": ("Af4", "mag", "error of MAG_APER, 99 where not positive"),
    "FLUX_AUTO": ("f4", "DN", "flux in the Kron ellipse"),
    "FLUXERR_AUTO": ("f4", "DN", "error of FLUX_AUTO"),
    "MAG_AUTO": ("f4", "mag", "-2.5 log10 FLUX_AUTO, 99 where not positive"),
    "MAGERR_AUTO": ("f4", "mag", "error of MAG_AUTO"),
    "KRON_RADIUS": ("f4", "", "Kron ellipse in units of A_IMAGE and B_IMAGE"),
    "FLUX_RADIUS": (
        "f4",
        "pix",
        "radius with half of FLUX_AUTO, within the largest aperture; 0 if it is larger",
    ),
    "SNR_WIN": ("f4", "", "flux over error of the fit with the mean star profile"),
    "FLUX_MAX": ("f4", "DN", "highest pixel above the background"),
    "BACKGROUND": ("f4", "DN", "sky level at the source; NaN until attached"),
    "ISOAREA_IMAGE": ("i4", "pix2", "area of the segment"),
    "A_IMAGE": ("f4", "pix", "isophotal rms along the major axis"),
    "B_IMAGE": ("f4", "pix", "isophotal rms along the minor axis"),
    "THETA_IMAGE": ("f4", "deg", "angle of the major axis from +x to +y"),
    "ELONGATION": ("f4", "", "A_IMAGE / B_IMAGE"),
    "ELLIPTICITY": ("f4", "", "1 - B_IMAGE / A_IMAGE"),
    "FWHM_IMAGE": (
        "f4",
        "pix",
        "FWHM of the core as a Gaussian (adaptive moments), pixel included; 0 if it fails",
    ),
    "SPREAD_MODEL": (
        "f4",
        "",
        "0 for stars, positive for extended, negative for sharper (Desai et al. 2012)",
    ),
    "SPREADERR_MODEL": ("f4", "", "error of SPREAD_MODEL"),
    "CHI2_WIN": ("f4", "", "chi2 per degree of freedom of the fit with the mean star profile"),
    "FLAGS": (
        "i2",
        "",
        "SExtractor: 1 neighbour or bad pixels, 2 blended, 4 saturated, 8 edge, 16 aperture data",
    ),
    "IMAFLAGS_ISO": ("i2", "", "OR of the survey mask in the 5x5 box; -1 at or near the edge"),
}


class MeasureParams(Params):
    """How the aperture catalogue is measured."""

    aperture_diameters_pix: Annotated[tuple[float, ...], Strict(False)] = param(
        (2.0, 3.0, 4.0, 6.0, 10.0, 14.0), "Diameters of the circular apertures, increasing.", unit="pix"
    )
    kron_factor: float = param(2.5, "Kron ellipse in units of the first moment.", ge=0.5, le=10.0)
    kron_minimum: float = param(3.5, "Least Kron ellipse in units of A and B.", ge=0.0, le=10.0)
    kron_search: float = param(6.0, "Ellipse of the first moment in units of A and B.", ge=1.0, le=20.0)
    kron_half_box_pix: float = param(60.0, "Kron ellipses are cut at this distance.", unit="pix", ge=5.0, le=1000.0)
    neighbour_area: float = param(0.1, "Replaced share of the neighbour aperture that sets flag 1.", ge=0.0, le=1.0)
    neighbour_aperture: int = param(3, "Which aperture (from 0) flags 1 and 16 are about.", ge=0, le=15)
    fallback_fwhm_pix: float = param(2.0, "FWHM when there are too few stars.", unit="pix", ge=0.5, le=20.0)
    bad_bits: int = param(BAD_IN_STAR, "Pixels with any of these mask bits are replaced.", ge=0, le=32767)
    seeing: SeeingParams = param(SeeingParams(), "Choice of the stars for the mean profile.")
    centroid: CentroidParams = param(CentroidParams(), "Fit of the positions.")


def sexcat_dtype(n_apertures: int) -> np.dtype:
    """dtype of the aperture catalogue."""
    fields: list[Any] = []
    for name, (form, _, _) in COLUMNS.items():
        fields.append((name, form[1:], (n_apertures,)) if form.startswith("A") else (name, form))
    return np.dtype(fields)


def with_profile(
    pix_sub: np.ndarray, rms: np.ndarray, mask: np.ndarray, sources: Detections, params: MeasureParams
) -> Detections:
    """The same detections with the image's mean star profile; an assumed one (n_stars 0) if there are too few stars."""
    return replace(sources, profile=_profile_of(pix_sub, rms, mask, sources, params))


def _profile_of(pix_sub, rms, mask, sources, params):
    try:
        return measure_profile(pix_sub, rms, mask, sources, params.seeing)
    except AlgorithmFailure:
        return StarProfile(params.fallback_fwhm_pix)


def measure(
    pix_sub: np.ndarray,
    rms: np.ndarray,
    mask: np.ndarray,
    gain: float,
    sources: Detections,
    params: MeasureParams,
) -> np.ndarray:
    """Measure the aperture catalogue.

    Bad pixels and pixels of other sources are replaced by those opposite the source, or by 0 (the sky), as
    SExtractor's MASK_TYPE CORRECT does.

    Parameters
    ----------
    pix_sub, rms : ndarray, shape (ny, nx), float32
        Background-subtracted image and noise of the sky, DN.
    mask : ndarray, shape (ny, nx), int16
        Survey mask bits.
    gain : float
        e/DN, for photon noise.
    sources : Detections
        From `detect_sources`; the mean star profile is measured here unless `with_profile` has added it.
    params : MeasureParams

    Returns
    -------
    ndarray, shape (n,), `sexcat_dtype`
        Columns as in `COLUMNS`.

    Raises
    ------
    BadInput
        Gain not positive, or apertures not increasing.
    """
    radii = np.array(params.aperture_diameters_pix, np.float64) / 2
    if not gain > 0 or radii.size == 0 or not (np.diff(np.concatenate([[0.0], radii])) > 0).all():
        raise BadInput(f"apertures: gain {gain} and diameters {params.aperture_diameters_pix} must be positive, rising")
    profile = sources.profile or _profile_of(pix_sub, rms, mask, sources, params)
    catalogue = np.zeros(len(sources), sexcat_dtype(radii.size))
    catalogue["NUMBER"] = np.arange(1, len(sources) + 1)
    position = _fill_positions(catalogue, (pix_sub, rms, mask), gain, replace(sources, profile=profile), params)
    _fill_shapes(catalogue, sources)
    frame = (pix_sub, mask, sources.segments, params.bad_bits, np.arange(1, len(sources) + 1, dtype=np.int32))
    noise = _at(rms, position)
    _fill_apertures(catalogue, frame, position, radii, (noise, gain, params))
    _fill_kron(catalogue, frame, position, (noise, gain, params))
    catalogue["FLUX_RADIUS"] = half_flux_radius(catalogue["FLUX_APER"], radii, catalogue["FLUX_AUTO"])
    sigma = np.zeros(len(sources))
    core_widths(*frame, position, profile.observed_fwhm_pix / SIGMA_TO_FWHM, sigma)
    catalogue["FWHM_IMAGE"] = SIGMA_TO_FWHM * sigma
    catalogue["IMAFLAGS_ISO"] = box_flags(mask, position)
    return catalogue


def attach_sky(catalogue: np.ndarray, wcs: Any) -> np.ndarray:
    """Copy of the catalogue with ALPHAWIN_J2000 and DELTAWIN_J2000 from a solution's `pixel_to_sky(x, y)`."""
    out = catalogue.copy()
    out["ALPHAWIN_J2000"], out["DELTAWIN_J2000"] = wcs.pixel_to_sky(out["XWIN_IMAGE"] - 1, out["YWIN_IMAGE"] - 1)
    return out


def attach_background(catalogue: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Copy of the catalogue with BACKGROUND from a level map, shape (ny, nx), DN."""
    out = catalogue.copy()
    position = np.stack([out["XWIN_IMAGE"] - 1, out["YWIN_IMAGE"] - 1], axis=1)
    out["BACKGROUND"] = _at(level, position)
    return out


def _at(image, position):
    """Value of the pixel under each position, the nearest inside the image."""
    x = np.clip(np.rint(position[:, 0]).astype(int), 0, image.shape[1] - 1)
    y = np.clip(np.rint(position[:, 1]).astype(int), 0, image.shape[0] - 1)
    return image[y, x]


def _fill_positions(catalogue, images, gain, sources, params):
    """Fill the position columns; returns the positions (n, 2), 0-based."""
    fit = fit_positions(images, gain, sources, sources.profile, params.centroid)
    table = sources.table
    catalogue["X_IMAGE"], catalogue["Y_IMAGE"] = table["x"] + 1, table["y"] + 1
    catalogue["XWIN_IMAGE"], catalogue["YWIN_IMAGE"] = fit["x"] + 1, fit["y"] + 1
    catalogue["ERRX2WIN_IMAGE"], catalogue["ERRY2WIN_IMAGE"] = fit["var_x"], fit["var_y"]
    catalogue["ERRXYWIN_IMAGE"], catalogue["CHI2_WIN"] = fit["cov_xy"], fit["chi2_dof"]
    catalogue["SPREAD_MODEL"], catalogue["SPREADERR_MODEL"] = fit["spread"], np.sqrt(fit["var_spread"])
    catalogue["SNR_WIN"] = np.where(fit["fitted"], fit["flux"] / np.sqrt(fit["var_flux"]), 0)
    for name in ("ALPHAWIN_J2000", "DELTAWIN_J2000", "BACKGROUND"):
        catalogue[name] = np.nan
    return np.ascontiguousarray(np.stack([fit["x"], fit["y"]], axis=1))


def _fill_shapes(catalogue, sources):
    table = sources.table
    catalogue["A_IMAGE"], catalogue["B_IMAGE"], catalogue["THETA_IMAGE"] = (
        table["a"],
        table["b"],
        table["theta_deg"],
    )
    catalogue["ELONGATION"] = table["a"] / table["b"]
    catalogue["ELLIPTICITY"] = 1 - table["b"] / table["a"]
    catalogue["FLUX_MAX"], catalogue["ISOAREA_IMAGE"] = table["flux_max"], table["n_pix"]
    catalogue["FLAGS"] = table["flags"]


def _fill_apertures(catalogue, frame, position, radii, noise_gain_params):
    noise, gain, params = noise_gain_params
    sums, replaced = np.zeros((len(catalogue), radii.size)), np.zeros((len(catalogue), radii.size))
    circular_sums(*frame, position, radii, sums, replaced)
    area = np.pi * radii**2
    error = np.sqrt(noise[:, None] ** 2 * area + np.maximum(sums, 0) / gain)
    catalogue["FLUX_APER"], catalogue["FLUXERR_APER"] = sums, error
    catalogue["MAG_APER"], catalogue["MAGERR_APER"] = magnitudes(sums, error)
    k = min(params.neighbour_aperture, radii.size - 1)
    catalogue["FLAGS"] |= np.where(replaced[:, k] > params.neighbour_area * area[k], FLAG_NEIGHBOUR, 0).astype(np.int16)
    ny, nx = frame[0].shape
    reach = np.minimum(position, np.array([nx - 1, ny - 1]) - position).min(axis=1) + 0.5
    catalogue["FLAGS"] |= np.where(reach < radii[k], FLAG_APERTURE, 0).astype(np.int16)


def _fill_kron(catalogue, frame, position, noise_gain_params):
    noise, gain, params = noise_gain_params
    a, b = (
        np.maximum(catalogue["A_IMAGE"], 0.5).astype(float),
        np.maximum(catalogue["B_IMAGE"], 0.5).astype(float),
    )
    c, s = (f(np.radians(catalogue["THETA_IMAGE"].astype(float))) for f in (np.cos, np.sin))
    ratio2 = (a / b) ** 2
    shape = np.stack([c**2 + s**2 * ratio2, s**2 + c**2 * ratio2, 2 * c * s * (1 - ratio2)], axis=1) / (a**2)[:, None]
    result = np.zeros((len(catalogue), 3))
    settings = np.array([params.kron_search, params.kron_factor, params.kron_minimum, params.kron_half_box_pix])
    kron_sums(*frame, np.ascontiguousarray(np.hstack([position, shape])), settings, result)
    error = np.sqrt(noise**2 * result[:, 2] + np.maximum(result[:, 1], 0) / gain)
    catalogue["KRON_RADIUS"], catalogue["FLUX_AUTO"], catalogue["FLUXERR_AUTO"] = (
        result[:, 0],
        result[:, 1],
        error,
    )
    catalogue["MAG_AUTO"], catalogue["MAGERR_AUTO"] = magnitudes(result[:, 1], error)


def magnitudes(flux: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instrumental magnitudes -2.5 log10(DN) and their errors; both 99 where the flux is not positive."""
    positive = flux > 0
    safe = np.where(positive, flux, 1.0)
    mag = np.where(positive, -2.5 * np.log10(safe), NO_MAGNITUDE)
    return mag, np.where(positive, 2.5 / np.log(10) * error / safe, NO_MAGNITUDE)


def half_flux_radius(flux_aper: np.ndarray, radii: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Radius (px) with half of `total`, linear in the enclosed area between apertures; 0 beyond the last one.

    Parameters
    ----------
    flux_aper : ndarray, shape (n, k)
    radii : ndarray, shape (k,)
    total : ndarray, shape (n,)
    """
    curve = np.hstack([np.zeros((len(flux_aper), 1)), flux_aper])
    area = np.concatenate([[0.0], radii**2])
    reached = curve[:, 1:] >= total[:, None] / 2
    k = np.argmax(reached, axis=1)
    rows = np.arange(len(curve))
    low, high = curve[rows, k], curve[rows, k + 1]
    share = np.clip((total / 2 - low) / np.where(high > low, high - low, 1), 0, 1)
    radius = np.sqrt(area[k] + share * (area[k + 1] - area[k]))
    return np.where(reached.any(axis=1) & (total > 0), radius, 0)


def box_flags(mask: np.ndarray, position: np.ndarray) -> np.ndarray:
    """OR of the mask in the 5x5 box about each position (n, 2), int16; -1 where the box leaves the image."""
    ny, nx = mask.shape
    x, y = np.rint(position).astype(int).T
    inside = (x >= 2) & (x < nx - 2) & (y >= 2) & (y < ny - 2)
    flat = (np.clip(y, 2, max(ny - 3, 2)) * nx + np.clip(x, 2, max(nx - 3, 2))) * inside
    values = np.zeros(len(position), mask.dtype)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            values |= mask.ravel()[(flat + dy * nx + dx) * inside]
    return np.where(inside, values, -1).astype(np.int16)
