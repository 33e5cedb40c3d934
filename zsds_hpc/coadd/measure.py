"""PSF and both catalogues of a reference image."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry import aperture
from zsds_hpc.photometry.aperture import MeasureParams
from zsds_hpc.photometry.background import BackgroundParams, estimate_background
from zsds_hpc.photometry.channel import depth, normalize
from zsds_hpc.photometry.detect import FLAG_SATURATED, Detections, DetectParams, detect_sources
from zsds_hpc.photometry.growth import ApertureCorrectionParams, aperture_corrections
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.psfcat import psfcat_of
from zsds_hpc.photometry.psfphot import PsfPhotometry, PsfPhotParams, photometry_with_psf, psf_photometry
from zsds_hpc.photometry.seeing import quick_seeing
from zsds_hpc.psf.build import PsfParams
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.psf.qa import psf_metrics

#: The profile of a mean of epochs is no sum of Moffats: the free spline reaches farther, and the core, bright as it is,
#: must not bend the wings.
_PSF = PsfParams(core_fwhm=4.0, wing_error=0.2)


class MeasureReferenceParams(Params):
    """How a reference is measured."""

    background: BackgroundParams = param(BackgroundParams(), "What is left of the sky.")
    detect: DetectParams = param(DetectParams(), "Detection.")
    measure: MeasureParams = param(MeasureParams(), "Aperture catalogue.")
    psf_sigma: float = param(
        30.0, "The PSF is built from an image whose sources are this significant.", "", 5.0, 1000.0
    )
    psfphot: PsfPhotParams = param(PsfPhotParams(psf=_PSF), "PSF model and PSF catalogue.")
    growth: ApertureCorrectionParams = param(ApertureCorrectionParams(), "Curve of growth.")


class Plane(NamedTuple):
    """A co-added image to be measured.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Sky-subtracted, DN; finite.
    sky_sigma : ndarray, shape (ny, nx), float32
        Noise of the sky; infinite without data.
    mask : ndarray, shape (ny, nx), int16
    gain_e : float
        Electrons of all epochs per DN of the mean.
    saturate_dn : float
        Above the sky.
    magzp : float
    wcs : TPV
    """

    pix: np.ndarray
    sky_sigma: np.ndarray
    mask: np.ndarray
    gain_e: float
    saturate_dn: float
    magzp: float
    wcs: TPV


class Measured(NamedTuple):
    """Result of `measure_reference`.

    Attributes
    ----------
    psf : PsfModel
        Scaled to total flux.
    psfcat : ndarray, `photometry.psfcat.PSFCAT_DTYPE`
    sexcat : ndarray, `photometry.aperture.sexcat_dtype`
    mask : ndarray, shape (ny, nx), int16
        With the bits of sources.
    metrics : dict
    """

    psf: PsfModel
    psfcat: np.ndarray
    sexcat: np.ndarray
    mask: np.ndarray
    metrics: dict[str, Any]


def measure_reference(plane: Plane, params: MeasureReferenceParams) -> Measured:
    """Find and measure the sources of a reference.

    The noise is that of the stack, not that of neighbouring pixels, which resampling has made too smooth.

    Raises
    ------
    AlgorithmFailure
        No background or no sources.
    """
    metrics: dict[str, Any] = {}
    sky = estimate_background(plane.pix, plane.mask, params.background)
    sub = plane.pix - sky.level
    noise = np.where(np.isfinite(plane.sky_sigma), plane.sky_sigma, np.float32(sky.global_rms))
    sources = _sources(plane, sub, noise, params)
    catalogue = aperture.measure(sub, noise, plane.mask, plane.gain_e, sources, params.measure)
    catalogue = aperture.attach_sky(aperture.attach_background(catalogue, sky.level), plane.wcs)
    fitted = _psf_fits(plane, sub, noise, sources, params)
    growth = aperture_corrections(
        sub, plane.mask, sources, catalogue, params.measure.aperture_diameters_pix, params.growth
    )
    scaled = normalize(fitted.table, fitted.psf, catalogue, growth, params.growth)
    metrics |= scaled.metrics | (psf_metrics(fitted.build) if fitted.build else {"psf_fwhm_pix": fitted.psf.fwhm_pix})
    mask = _with_sources(plane.mask, sources, scaled.fits)
    catalogue["IMAFLAGS_ISO"] = aperture.box_flags(
        mask, np.stack([catalogue["XWIN_IMAGE"] - 1, catalogue["YWIN_IMAGE"] - 1], axis=1)
    )
    psfcat = psfcat_of(scaled.fits, mask, plane.magzp, plane.wcs)
    typical = float(np.median(noise[np.isfinite(plane.sky_sigma)]))
    assert sources.profile is not None  # _sources sees to it
    metrics |= {
        "n_sources": len(catalogue), "n_psf_sources": len(psfcat), "sky_sigma_dn": typical,
        "pixel_sigma_dn": sky.global_rms, "residual_sky_dn": sky.global_level,
        "seeing_pix": float(sources.profile.observed_fwhm_pix),
        "maglim": depth(scaled.psf, typical, plane.gain_e, plane.magzp),
    }  # fmt: skip
    return Measured(scaled.psf, psfcat, catalogue, mask, metrics)


def _sources(plane: Plane, sub: np.ndarray, noise: np.ndarray, params: MeasureReferenceParams) -> Detections:
    """Detections with the mean star profile."""
    fwhm = params.detect.fwhm_pix
    try:
        quick = quick_seeing(plane.pix, plane.pix - sub, noise, plane.mask, plane.saturate_dn)
        fwhm = StarProfile(quick.fwhm_pix).observed_fwhm_pix
    except AlgorithmFailure:
        pass  # an assumed width finds sources too
    found = detect_sources(sub, noise, plane.mask, params.detect.model_copy(update={"fwhm_pix": float(fwhm)}))
    if not len(found):
        raise AlgorithmFailure("no source detected on the reference", noise_dn=float(np.median(noise)))
    return aperture.with_profile(sub, noise, plane.mask, found, params.measure)


def _psf_fits(
    plane: Plane, sub: np.ndarray, noise: np.ndarray, sources: Detections, params: MeasureReferenceParams
) -> PsfPhotometry:
    """PSF from bright stars alone, then the fits of all.

    A reference is so deep that wings of bright stars, not in the mean profile yet, would be found as many faint stars,
    and the PSF, its neighbours subtracted, would lose its wings to them.
    """
    assert sources.profile is not None  # _sources sees to it
    bright = sources.table[sources["flags"] & FLAG_SATURATED != 0]
    seeds = np.stack([bright["x"], bright["y"], bright["flux_iso"]], axis=1).astype(np.float64)
    images, full = (sub, noise, plane.mask), params.psfphot
    detect = full.detect.model_copy(update={"detect_sigma": max(params.psf_sigma, full.detect.detect_sigma)})
    few = full.model_copy(update={"detect": detect, "min_snr": max(params.psf_sigma, full.min_snr)})
    first = psf_photometry(images, plane.gain_e, sources.profile, plane.saturate_dn, few, seeds)
    return replace(photometry_with_psf(images, plane.gain_e, first.psf, full, seeds), build=first.build)


def _with_sources(mask: np.ndarray, sources: Detections, fits: np.ndarray) -> np.ndarray:
    """Copy of the mask with the pixels of sources and of PSF fits."""
    out = mask.copy()
    out[sources.segments > 0] |= maskbits.SOURCE
    n_y, n_x = mask.shape
    x, y = (np.clip(np.rint(fits[name]), 0, n - 1).astype(int) for name, n in (("x", n_x), ("y", n_y)))
    out[y, x] |= maskbits.PSFSOURCE
    return out
