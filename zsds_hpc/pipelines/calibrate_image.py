"""Instrumental calibration of one readout-channel image, on arrays: the steps in their order and nothing else."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zsds_hpc.archive.rawfiles import RawChannel
from zsds_hpc.astrometry.channel import AstrometryParams, calibrate_astrometry
from zsds_hpc.astrometry.match import Detections as Found
from zsds_hpc.astrometry.match import Reference
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core import ids, maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.detector.cosmicrays import CosmicRayParams, Detector, find_cosmic_rays
from zsds_hpc.detector.crosstalk import CrosstalkParams, subtract_crosstalk_inplace
from zsds_hpc.detector.detrend import DetrendInputs, detrend
from zsds_hpc.detector.ghosts import GhostParams, halo_and_ghost_mask, offset_about_axis
from zsds_hpc.detector.overscan import OverscanParams, floating_bias
from zsds_hpc.detector.saturation import SaturationParams, saturation_mask
from zsds_hpc.detector.tracks import TrackParams, find_tracks
from zsds_hpc.parallel.timers import Timers
from zsds_hpc.photometry import aperture
from zsds_hpc.photometry.aperture import MeasureParams
from zsds_hpc.photometry.background import Background, BackgroundParams, estimate_background
from zsds_hpc.photometry.channel import (
    STANDARD_DTYPE,
    ChannelPhotometry,
    calibrate_photometry,
    depth,
    listed,
    normalize,
)
from zsds_hpc.photometry.detect import FLAG_SATURATED, FLAG_TRUNCATED, Detections, DetectParams, detect_sources
from zsds_hpc.photometry.growth import ApertureCorrectionParams, aperture_corrections
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.psfcat import psfcat_of
from zsds_hpc.photometry.psfphot import PsfPhotometry, PsfPhotParams, psf_photometry
from zsds_hpc.photometry.seeing import quick_seeing
from zsds_hpc.photometry.zeropoint import CalibratorParams, ZeroPointParams
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.psf.qa import chi2_map, psf_metrics
from zsds_hpc.qa.metrics import ImageMetrics, QaParams, describe, info_bits, saturated_percent, status
from zsds_hpc.settings.camera import Camera, StrayLight


class CalibrateParams(Params):
    """Settings of the calibration pipeline."""

    validity_days: int = param(30, "How far from the night a calibration product may be.", "d", 0, 10_000)
    require_flat: bool = param(True, "Without a valid flat an image is blocked; otherwise unity is used.")
    preview_bin: int = param(4, "Pixels averaged along each side for the JPEG preview; 0 makes none.", "px", 0, 64)
    overscan: OverscanParams = param(OverscanParams(), "Floating bias from the over-scan.")
    saturation: SaturationParams = param(SaturationParams(), "Saturation and bleeding.")
    crosstalk: CrosstalkParams = param(CrosstalkParams(), "Cross-talk from the CCD's other channels.")
    cosmicrays: CosmicRayParams = param(CosmicRayParams(), "Radiation hits.")
    tracks: TrackParams = param(TrackParams(), "Satellite and aircraft trails.")
    background: BackgroundParams = param(BackgroundParams(), "Background.")
    detect: DetectParams = param(DetectParams(), "Detection.")
    measure: MeasureParams = param(MeasureParams(), "Aperture catalogue.")
    astrometry: AstrometryParams = param(AstrometryParams(), "Match to Gaia, TPV fit, checks.")
    psfphot: PsfPhotParams = param(PsfPhotParams(), "PSF model and PSF catalogue.")
    calibrators: CalibratorParams = param(CalibratorParams(), "Which PSF fits may calibrate.")
    zeropoint: ZeroPointParams = param(ZeroPointParams(), "Zero point and colour term.")
    growth: ApertureCorrectionParams = param(ApertureCorrectionParams(), "Curve of growth.")
    qa: QaParams = param(QaParams(), "Thresholds of the INFOBITS.")
    assumed_magzp: float = param(26.0, "For the flux of bright stars where there is no zero point.", "mag", 0, 40)
    match_radius_arcsec: float = param(1.5, "Largest distance of a PS1 match.", "arcsec", 0.01, 60)


@dataclass(frozen=True)
class Calibration:
    """Calibration images of a channel; what is None is taken as absent.

    Attributes
    ----------
    superbias, flat, lowv_flat : ndarray, shape (ny, nx), float32, or None
    cmask : ndarray, shape (ny, nx), int16, or None
    """

    superbias: np.ndarray | None = None
    flat: np.ndarray | None = None
    lowv_flat: np.ndarray | None = None
    cmask: np.ndarray | None = None


@dataclass(frozen=True)
class Setting:
    """Camera and parameters of a calibration.

    Attributes
    ----------
    camera : Camera
    params : CalibrateParams
    """

    camera: Camera
    params: CalibrateParams


@dataclass(frozen=True)
class References:
    """Where the telescope was told to point, and the reference stars there.

    Attributes
    ----------
    wcs : TPV
        From the commanded pointing and the camera's prior map.
    gaia, ps1 : ndarray or None
        Rows of the stores (`archive.refcats`), Gaia at the epoch of the image; None where there is no catalogue.
    """

    wcs: TPV
    gaia: np.ndarray | None = None
    ps1: np.ndarray | None = None


@dataclass(frozen=True)
class Calibrated:
    """Result of `calibrate_image`.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Detrended image with its sky, DN.
    mask : ndarray, shape (ny, nx), int16
    catalogue : ndarray, `photometry.aperture.sexcat_dtype`
        Aperture catalogue.
    psfcat : ndarray, `photometry.psfcat.PSFCAT_DTYPE`
        PSF-fit catalogue.
    psf : PsfModel
    wcs : TPV
    metrics : dict
        QA numbers.
    log : list of str
        What was done, without times or places.
    """

    pix: np.ndarray
    mask: np.ndarray
    catalogue: np.ndarray
    psfcat: np.ndarray
    psf: PsfModel
    wcs: TPV
    metrics: dict[str, Any]
    log: list[str]


@dataclass
class _Bench:
    """The image on the bench: what the steps hand on to one another."""

    raw: RawChannel
    params: CalibrateParams
    detector: Detector
    wcs: TPV
    metrics: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def note(self, text: str, **numbers: Any) -> None:
        """Add a line to the log, and numbers to line and metrics."""
        self.metrics.update(numbers)
        self.log.append(text + "".join(f" {key}={_short(value)}" for key, value in numbers.items()))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def calibrate_image(
    raw: RawChannel,
    siblings: Sequence[np.ndarray],
    calibration: Calibration,
    references: References,
    setting: Setting,
    timers: Timers,
) -> Calibrated:
    """Calibrate one image.

    Parameters
    ----------
    raw : RawChannel
    siblings : sequence of ndarray, shape (ny, nx), uint16
        Raw images of the other channels of the CCD, by quadrant; empty when cross-talk is not corrected.
    calibration : Calibration
    references : References
    setting : Setting
        Camera and parameters.
    timers : Timers

    Raises
    ------
    BadInput
        The over-scan or the image is unusable.
    AlgorithmFailure
        No background, no sources, or no astrometric solution.
    """
    channel, params = raw.channel, setting.params
    bench = _Bench(raw, params, Detector(channel.gain_e, channel.read_noise_e), references.wcs)
    with timers("detrend"):
        pix, mask = _detrended(bench, siblings, calibration, setting)
    with timers("artifacts"):
        _mask_artifacts(bench, pix, mask)
    with timers("sources"):
        sky, sub, sources = _sources(bench, pix, mask)
    with timers("measure"):
        catalogue = aperture.measure(sub, sky.rms, mask, channel.gain_e, sources, params.measure)
        catalogue = aperture.attach_background(catalogue, sky.level)
    with timers("psf"):
        fitted = _psf_fits(bench, (sub, sky.rms, mask), sources)
    with timers("astrometry"):
        bench.wcs = _astrometry(bench, catalogue, references, setting)
        catalogue = aperture.attach_sky(catalogue, bench.wcs)
    with timers("photometry"):
        scaled = _photometry(bench, (sub, mask), (sources, catalogue), fitted, references, setting)
        _depth(bench, sky, scaled)
    with timers("mask"):
        mask = _final_mask(bench, mask, sources, scaled.fits, references, setting)
        catalogue["IMAFLAGS_ISO"] = aperture.box_flags(mask, _positions(catalogue))
        psfcat = psfcat_of(scaled.fits, mask, bench.metrics.get("magzp"), bench.wcs)
        _judge(bench, mask, catalogue, setting)
    return Calibrated(pix, mask, catalogue, psfcat, scaled.psf, bench.wcs, bench.metrics, bench.log)


def _detrended(
    bench: _Bench, siblings: Sequence[np.ndarray], calibration: Calibration, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    """Detrended image (float32, DN) and the mask of what the detector did (int16)."""
    raw, camera, channel = bench.raw, setting.camera, bench.raw.channel
    overscan = bench.params.overscan.model_copy(update={"n_skip": camera.overscan_n_skip})
    drift = floating_bias(raw.overscan, overscan)
    pedestal = float(np.median(drift.level_dn))
    a, b = channel.linearity_on(ids.night_of_jd(raw.exposure.jd))
    inputs = DetrendInputs(calibration.superbias, calibration.flat, calibration.lowv_flat, a, b)
    pix = detrend(raw.pix, drift.level_dn, inputs)
    saturate_dn = min(channel.saturate_dn + pedestal, camera.adc_max_dn)
    saturated = saturation_mask(raw.pix, saturate_dn, bench.params.saturation)
    if siblings:
        _subtract_crosstalk(pix, siblings, calibration.flat, setting, channel.qid)
    mask = calibration.cmask.copy() if calibration.cmask is not None else np.zeros(pix.shape, maskbits.MASK_DTYPE)
    mask[saturated] |= maskbits.SATURATED
    mask[~np.isfinite(pix)] |= maskbits.NAN
    bench.note(
        "detrended:", floating_bias_dn=pedestal, overscan_rms_dn=float(drift.rms_dn),
        saturated_fraction=float(saturated.mean()), saturate_dn=saturate_dn - pedestal,
    )  # fmt: skip
    return pix, mask


def _subtract_crosstalk(
    pix: np.ndarray, siblings: Sequence[np.ndarray], flat: np.ndarray | None, setting: Setting, qid: int
) -> None:
    row = setting.camera.crosstalk[qid - 1]
    coefficients = [value for j, value in enumerate(row) if j != qid - 1]
    levels = [float(np.median(sibling[::16, ::16])) for sibling in siblings]
    subtract_crosstalk_inplace(pix, siblings, coefficients, setting.params.crosstalk, levels, flat)


def _mask_artifacts(bench: _Bench, pix: np.ndarray, mask: np.ndarray) -> None:
    """Trails and radiation hits, into the mask."""
    trails = find_tracks(pix, mask, bench.params.tracks)
    mask[trails.mask] |= maskbits.TRACK
    bench.note("trails:", n_tracks=len(trails.segments), track_fraction=float(trails.mask.mean()))
    hits = find_cosmic_rays(pix, mask, bench.detector, bench.params.cosmicrays)
    mask[hits.mask] |= maskbits.SPIKE
    bench.note("radiation hits:", n_cosmicrays=int(hits.n_clumps), cosmicray_pixels=int(hits.n_pixels))


def _sources(bench: _Bench, pix: np.ndarray, mask: np.ndarray) -> tuple[Background, np.ndarray, Detections]:
    """Background, background-subtracted image, detections with the mean star profile."""
    params = bench.params
    sky = estimate_background(pix, mask, params.background)
    sub = pix - sky.level
    fwhm = params.detect.fwhm_pix
    try:
        quick = quick_seeing(pix, sky.level, sky.rms, mask, bench.metrics["saturate_dn"])
        fwhm = StarProfile(quick.fwhm_pix).observed_fwhm_pix
    except AlgorithmFailure as failure:
        bench.note(f"seeing: {failure}; assumed")
    found = detect_sources(sub, sky.rms, mask, params.detect.model_copy(update={"fwhm_pix": float(fwhm)}))
    if not len(found):
        raise AlgorithmFailure("no source detected", background_dn=sky.global_level, noise_dn=sky.global_rms)
    found = aperture.with_profile(sub, sky.rms, mask, found, params.measure)
    profile = found.profile
    assert profile is not None  # with_profile sees to it
    bench.note(
        "sources:", n_sources=len(found), background_dn=sky.global_level, noise_dn=sky.global_rms,
        seeing_pix=float(profile.observed_fwhm_pix), elongation=profile.elongation,
        n_seeing_stars=profile.n_stars,
    )  # fmt: skip
    return sky, sub, found


def _positions(catalogue: np.ndarray) -> np.ndarray:
    """0-based positions, shape (n, 2)."""
    return np.stack([catalogue["XWIN_IMAGE"] - 1, catalogue["YWIN_IMAGE"] - 1], axis=1)


def _astrometry(bench: _Bench, catalogue: np.ndarray, references: References, setting: Setting) -> TPV:
    """TPV solution on Gaia, checked on held-back stars."""
    if references.gaia is None:
        bench.note("astrometry: no Gaia catalogue given, WCS from the commanded pointing")
        return references.wcs
    gaia, params = references.gaia, bench.params
    clean = catalogue["FLAGS"] & (FLAG_SATURATED | FLAG_TRUNCATED) == 0
    x, y = _positions(catalogue).T
    sigma = np.sqrt((catalogue["ERRX2WIN_IMAGE"] + catalogue["ERRY2WIN_IMAGE"]) / 2.0)
    clean &= np.isfinite(x + y + sigma) & (sigma > 0)
    found = Found(x[clean], y[clean], catalogue["MAG_AUTO"][clean].astype(float), sigma[clean].astype(float))
    gaia_error = np.hypot(gaia["ra_err"], gaia["dec_err"]) / np.sqrt(2.0) / 1000.0
    reference = Reference(gaia["ra"], gaia["dec"], gaia["mag"].astype(float), gaia_error.astype(float))
    result = calibrate_astrometry(found, reference, references.wcs, setting.camera.shape, params.astrometry)
    bench.note("astrometry:", **result.metrics)
    bench.metrics["astrometric_residual_map_arcsec"] = result.residuals.median_arcsec.tolist()
    bench.metrics["scale_change_map_percent"] = result.scale.map_percent.tolist()
    return result.wcs


def _psf_fits(bench: _Bench, images: tuple[np.ndarray, np.ndarray, np.ndarray], sources: Detections) -> PsfPhotometry:
    """PSF model and PSF fits."""
    assert sources.profile is not None  # with_profile sees to it
    bright = sources.table[sources["flags"] & FLAG_SATURATED != 0]
    seeds = np.stack([bright["x"], bright["y"], bright["flux_iso"]], axis=1).astype(np.float64)
    fitted = psf_photometry(
        images, bench.detector.gain_e, sources.profile, bench.metrics["saturate_dn"], bench.params.psfphot, seeds
    )
    bench.note("PSF fits:", n_psf_sources=len(fitted.table), n_psf_stars=fitted.psf.n_stars)
    bench.metrics["n_psf_sources_of_pass"] = fitted.n_found
    if fitted.build is None:
        bench.note("PSF: no star shows it, the mean profile stands in", psf_fwhm_pix=fitted.psf.fwhm_pix)
    else:
        bench.note("PSF:", **psf_metrics(fitted.build))
        bench.metrics["psf_chi2_map"] = listed(chi2_map(fitted.build))
    return fitted


def _photometry(
    bench: _Bench,
    images: tuple[np.ndarray, np.ndarray],
    measured: tuple[Detections, np.ndarray],
    fitted: PsfPhotometry,
    references: References,
    setting: Setting,
) -> ChannelPhotometry:
    """Curve of growth, PSF fits scaled to it, zero point and colour term on PS1."""
    params, diameters = bench.params, bench.params.measure.aperture_diameters_pix
    growth = aperture_corrections(*images, *measured, diameters, params.growth)
    scaled = normalize(fitted.table, fitted.psf, measured[1], growth, params.growth)
    bench.metrics.update(scaled.metrics)
    bench.note("curve of growth:", n_growth_stars=growth.n_stars, extrapolated_fraction=growth.outer_fraction)
    code = bench.raw.exposure.filtercode
    if references.ps1 is None or code not in setting.camera.filters:
        bench.note("photometry: no PS1 catalogue given")
        return scaled
    standards = _standards(bench, references.ps1, setting)
    radius = params.match_radius_arcsec / setting.camera.pixel_scale_arcsec
    try:
        zero = calibrate_photometry(scaled, images[1], standards, radius, params.calibrators, params.zeropoint)
    except AlgorithmFailure as failure:
        bench.note(f"photometry: {failure}", **failure.figures)
        return scaled
    bench.metrics.update({key: value for key, value in zero.items() if isinstance(value, list)})
    bench.note("photometry:", **{key: value for key, value in zero.items() if not isinstance(value, list)})
    return scaled


def _standards(bench: _Bench, ps1: np.ndarray, setting: Setting) -> np.ndarray:
    """PS1 stars on the image."""
    item = setting.camera.filters[bench.raw.exposure.filtercode]
    one, other = item.color
    there = bench.wcs.sky_to_pixel(ps1["ra"], ps1["dec"])
    n_y, n_x = setting.camera.shape
    inside = (there[0] > 0) & (there[0] < n_x - 1) & (there[1] > 0) & (there[1] < n_y - 1)
    out, ps1 = np.zeros(int(inside.sum()), STANDARD_DTYPE), ps1[inside]
    out["x"], out["y"] = there[0][inside], there[1][inside]
    out["mag"], out["err"] = ps1[f"{item.band}mag"], ps1[f"{item.band}err"]
    out["color"] = ps1[f"{one}mag"].astype(float) - ps1[f"{other}mag"]
    out["color_err"] = np.hypot(ps1[f"{one}err"].astype(float), ps1[f"{other}err"])
    out["sign"] = (item.band == one) - (item.band == other)
    bench.metrics["n_calibrators"] = len(out)
    return out


def _depth(bench: _Bench, sky: Background, scaled: ChannelPhotometry) -> None:
    """Limiting magnitude (5 sigma) of point sources."""
    magzp = bench.metrics.get("magzp")
    if magzp is not None:
        bench.note("depth:", maglim=depth(scaled.psf, sky.global_rms, bench.detector.gain_e, magzp))


def _final_mask(
    bench: _Bench,
    mask: np.ndarray,
    sources: Detections,
    fits: np.ndarray,
    references: References,
    setting: Setting,
) -> np.ndarray:
    """Mask with halos, ghosts, the pixels of sources and those of PSF fits."""
    mask[sources.segments > 0] |= maskbits.SOURCE
    n_y, n_x = mask.shape
    x, y = (np.clip(np.rint(fits[name]), 0, n - 1).astype(int) for name, n in (("x", n_x), ("y", n_y)))
    mask[y, x] |= maskbits.PSFSOURCE
    if setting.camera.ghost is not None and references.gaia is not None:
        mask |= stray_light_mask(bench, references.gaia, setting)
    return mask


def stray_light_mask(bench: _Bench, gaia: np.ndarray, setting: Setting) -> np.ndarray:
    """Halos and ghosts of Gaia stars, their flux from G and the image's zero point."""
    light, channel = setting.camera.ghost, bench.raw.channel
    assert light is not None
    magzp = bench.metrics.get("magzp", bench.params.assumed_magzp)
    stars = np.zeros(len(gaia), [("x", "f8"), ("y", "f8"), ("flux_dn", "f8")])
    stars["flux_dn"] = 10.0 ** (0.4 * (magzp - gaia["mag"].astype(float)))
    stars = stars[bright := stars["flux_dn"] > min(light.halo.min_flux_dn, light.ghost.min_flux_dn)]
    stars["x"], stars["y"] = bench.wcs.sky_to_pixel(gaia["ra"][bright], gaia["dec"][bright])
    n_y, n_x = setting.camera.shape
    axis = np.linalg.solve(np.reshape(channel.cd_deg, (2, 2)), [-channel.xi_deg, -channel.eta_deg])
    offset = offset_about_axis(axis[0] + (n_x - 1) / 2, axis[1] + (n_y - 1) / 2, light.ghost.center_scale)
    return halo_and_ghost_mask((n_y, n_x), stars, offset, _ghost_params(light))


def _ghost_params(light: StrayLight) -> GhostParams:
    return GhostParams(
        halo_radius=light.halo.radius_pix,
        halo_fraction=light.halo.flux_fraction,
        halo_min_flux=light.halo.min_flux_dn,
        ghost_radius=light.ghost.radius_out_pix,
        ghost_inner_radius=light.ghost.radius_in_pix,
        ghost_fraction=light.ghost.flux_fraction,
        ghost_min_flux=light.ghost.min_flux_dn,
    )


def _judge(bench: _Bench, mask: np.ndarray, catalogue: np.ndarray, setting: Setting) -> None:
    """INFOBITS, STATUS and what the archive keeps of an image."""
    m, qa, exposure = bench.metrics, bench.params.qa, bench.raw.exposure
    scale = setting.camera.pixel_scale_arcsec
    m["seeing_arcsec"] = m["seeing_pix"] * scale
    m["saturated_percent"] = saturated_percent(mask)
    known = {f.name for f in dataclasses.fields(ImageMetrics)}
    figures = {key: value for key, value in m.items() if key in known}
    figures["magzp_rms"], figures["n_photometric"] = m.get("rms"), m.get("n_matches", 0)
    bits = info_bits(ImageMetrics(**figures), qa)
    bench.note("quality:", infobits=bits, status=status(bits, qa))
    for text in describe(bits, qa):
        bench.note(f"  {text}")
    m.update(
        field=exposure.field, rcid=bench.raw.channel.rcid, filtercode=exposure.filtercode,
        programid=exposure.programid, obsjd=exposure.jd, mask_fractions=maskbits.fractions(mask),
    )  # fmt: skip
