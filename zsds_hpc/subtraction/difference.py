"""Difference of a science image and a reference: register, match, subtract, say how certain it is."""

from typing import Any, Literal, NamedTuple

import numpy as np

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.convolve import convolve_blocks
from zsds_hpc.kernels.joinmask import join_masks
from zsds_hpc.kernels.nearest import read_nearest
from zsds_hpc.numerics.resample import spline_sample
from zsds_hpc.numerics.robust import median_mad
from zsds_hpc.photometry.background import Background, BackgroundParams, estimate_background
from zsds_hpc.subtraction import polish, psfmatch, starcore, zogy
from zsds_hpc.subtraction.images import Difference, Science, Template
from zsds_hpc.subtraction.polish import Misfit, PolishParams
from zsds_hpc.subtraction.psfmatch import Kernels, PsfMatchParams
from zsds_hpc.subtraction.register import RegisterParams, Registration, register
from zsds_hpc.subtraction.starcore import StarCoreParams

#: Rows worked on at once, so that temporaries stay in the cache.
_BAND = 64
#: Science pixels along a side of the blocks with one correcting or whitening kernel.
_BLOCK_PIX = 64
_WHITENING_HALF_PIX = 6
#: method -> kernel corrected on the stars; difference whitened
_STEPS = {"kernel": (True, False), "zogy": (False, True), "proper": (True, True)}


class DifferenceParams(Params):
    """How two images are subtracted."""

    method: Literal["kernel", "zogy", "proper"] = param(
        "kernel",
        "kernel: PSF-matching kernel, corrected on the stars; zogy: both PSF models, whitened; proper: corrected and "
        "whitened.",
    )
    registration: RegisterParams = param(RegisterParams(), "Stars in both images.")
    psfmatch: PsfMatchParams = param(PsfMatchParams(), "Kernel from the two PSF models.")
    polish: PolishParams = param(PolishParams(), "Correction of the kernel on the stars.")
    starcore: StarCoreParams = param(StarCoreParams(), "Cores of stars that the reference does not resolve.")
    background: BackgroundParams = param(BackgroundParams(), "Background and noise of the difference.")
    grow_pix: int = param(2, "Saturated pixels, and unusable ones of the reference, are widened by this.", "px", 0, 20)
    max_masked: float = param(0.6, "An image with a larger share of unusable pixels is not searched.", "", 0.0, 1.0)
    max_seeing_ratio: float = param(2.5, "Science over reference FWHM beyond which it is hopeless.", "", 1.0, 10.0)
    min_seeing_ratio: float = param(0.6, "And below which.", "", 0.1, 1.0)
    max_noise_scale: float = param(1.5, "A difference whose noise exceeds the expected one by more is not used.", "", 1)


class _Pair(NamedTuple):
    """Both images on the science pixels: reference and science (float32, DN), their mask, error of the reference."""

    science: np.ndarray
    reference: np.ndarray
    mask: np.ndarray
    reference_sigma: np.ndarray


def subtract(science: Science, template: Template, params: DifferenceParams) -> Difference:
    """Subtract a reference from a science image.

    Parameters
    ----------
    science : Science
    template : Template
    params : DifferenceParams

    Returns
    -------
    Difference

    Raises
    ------
    AlgorithmFailure
        Too few stars match, too much is masked, the seeing is hopeless, or the difference is too noisy.
    """
    metrics: dict[str, Any] = {"seeing_ratio": science.psf.fwhm_pix / template.psf.fwhm_pix}
    _check("seeing over the reference's", metrics["seeing_ratio"], params.min_seeing_ratio, params.max_seeing_ratio)
    found = register(science, template, params.registration)
    metrics |= {"n_registered": found.n_stars, "register_rms_pix": found.rms_pix, "gain_rms_mag": found.rms_mag}
    metrics["gain"] = float(found.gain_at(*_middle(science.pix.shape)))
    kernels = _matching_kernels(found, params.psfmatch)
    pair = _pair(found, kernels, params)
    metrics["masked_fraction"] = float((pair.mask & maskbits.UNUSABLE != 0).mean())
    _check("share of unusable pixels", metrics["masked_fraction"], 0.0, params.max_masked)
    sources = found.sources()
    corrects, whitens = _STEPS[params.method]
    if corrects:
        there = found.to_native(kernels.x, kernels.y)
        wings = psfmatch.wing_residuals(science.psf, template.psf, kernels, there, params.psfmatch)
        starcore.add_wings_inplace(pair.reference, sources, wings, _noise(pair), params.starcore)
    pair, misfit = _polished(pair, sources, science, corrects, params)
    metrics |= {f"misfit_{name}": value for name, value in misfit._asdict().items()}
    pix, sky = _difference(pair, params.background)
    np.subtract(pair.science, sky.level, out=pair.science)
    psf = science.psf
    if whitens:
        pix, psf = _whitened(pix, pair, sky, kernels, psf)
        sky = estimate_background(pix, pair.mask, params.background)
    sigma = _sigma(pair, sky, misfit, science.gain_e, template.facts.get("n_frames", 1))
    scale = _unit_width_inplace(pix, sigma)
    _check("noise over the expected one", scale, 0.0, params.max_noise_scale)
    metrics |= {"noise_scale": scale, "background_dn": sky.global_level, "noise_dn": sky.global_rms}
    return Difference(
        pix, sigma, pair.mask, psf, pair.science, pair.reference, sources, science.gain_e, science.magzp, scale, metrics
    )


def _check(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise AlgorithmFailure(f"{what} is {value:.3g}, outside {low:g} to {high:g}", value=float(value))


def _middle(shape):
    return (shape[1] - 1) / 2, (shape[0] - 1) / 2


def _matching_kernels(found: Registration, params: PsfMatchParams) -> Kernels:
    at = psfmatch.places(found.science.pix.shape, params.n_places)
    return psfmatch.matching_kernels(found.science.psf, found.template.psf, at, found.to_native(*at), params)


def _pair(found: Registration, kernels: Kernels, params: DifferenceParams) -> _Pair:
    """Reference brought to point-spread function, pixels and flux of the science image; masks of both."""
    science, template = found.science, found.template
    shape, grid = science.pix.shape, template.grid
    blocks_y, blocks_x = (max(1, n // params.psfmatch.block_pix) for n in grid.fine_shape)
    there = np.meshgrid(
        *(
            grid.to_native((np.arange(b) + 0.5) * n / b - 0.5)
            for n, b in zip(grid.fine_shape[::-1], (blocks_x, blocks_y))
        )
    )
    of_blocks = psfmatch.kernel_field(kernels, shape, params.psfmatch.degree).at(*found.from_native(*there))
    matched = np.empty_like(template.coefficients)
    convolve_blocks(template.coefficients, psfmatch.to_correlate(of_blocks), matched)
    reference = spline_sample(matched, found.mapping(fine=True), shape)
    native = found.mapping(fine=False)
    sigma, mask = np.empty(shape, np.float32), np.empty(shape, maskbits.MASK_DTYPE)
    read_nearest(template.sigma, native.nodes, native.step, np.inf, sigma)
    read_nearest(template.mask, native.nodes, native.step, maskbits.NAN, mask)
    mask[~np.isfinite(sigma)] |= maskbits.NAN
    mask[~np.isfinite(reference)] |= maskbits.NAN
    np.nan_to_num(reference, copy=False)
    sigma *= np.float32(found.gain_at(*_middle(shape)))
    joint = _joint_mask(science.mask, mask, params.grow_pix)
    joint[~np.isfinite(science.pix)] |= maskbits.NAN
    return _Pair(science.pix.copy(), reference, joint, sigma)


def _joint_mask(science: np.ndarray, reference: np.ndarray, grow_pix: int) -> np.ndarray:
    """Bits of both but the reference's sources (its mask is changed); its unusable pixels, and saturated ones of
    either, are widened."""
    out = np.empty_like(science)
    reference &= ~maskbits.SOURCES
    join_masks(science, reference, maskbits.SATURATED, maskbits.UNUSABLE, maskbits.NAN, grow_pix, out)
    return out


def _polished(
    pair: _Pair, sources: np.ndarray, science: Science, corrects: bool, params: DifferenceParams
) -> tuple[_Pair, Misfit]:
    """The reference corrected on the stars, and what they say about errors in proportion to their flux."""
    shape = pair.science.shape
    noise_dn = _noise(pair)
    images = (pair.science, pair.reference, pair.mask)
    windows = polish.star_windows(images, noise_dn**2, sources, science.gain_e, params.polish)
    used = np.ones(len(windows.x), bool)
    side = 2 * params.polish.half_pix + 1
    coefficients = np.zeros((1, side, side))
    if corrects and len(used):
        coefficients, used = polish.fit_correction(windows, shape, params.polish)
        out = np.empty_like(pair.reference)
        convolve_blocks(pair.reference, polish.correction_of_blocks(coefficients, shape, _blocks(shape)), out)
        pair = pair._replace(reference=out)
    left = polish.residuals(windows, coefficients, shape, params.polish)
    if corrects and params.starcore.half_pix and used.sum() >= params.starcore.stars_per_term:
        cores = starcore.fit_cores(left, windows, used, science.psf, params.starcore)
        starcore.add_cores_inplace(pair.reference, sources, cores, noise_dn, params.starcore)
        left = starcore.without_cores(left, windows, cores, params.starcore)
    return pair, polish.measure_misfit(left, windows, used, params.polish.half_pix)


def _noise(pair: _Pair) -> float:
    """Noise of a pixel of the difference without sources, DN."""
    usable = pair.mask[::9, ::7] & (maskbits.UNUSABLE | maskbits.SOURCE) == 0
    return median_mad((pair.science[::9, ::7] - pair.reference[::9, ::7])[usable]).sigma


def _blocks(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Middles (x, y) of blocks of science pixels."""
    y, x = ((np.arange(b := max(1, n // _BLOCK_PIX)) + 0.5) * n / b - 0.5 for n in shape)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x, grid_y


def _difference(pair: _Pair, params: BackgroundParams) -> tuple[np.ndarray, Background]:
    """Difference without its background; zero where unusable."""
    pix = pair.science - pair.reference
    sky = estimate_background(pix, pair.mask, params)
    pix -= sky.level
    pix[pair.mask & maskbits.UNUSABLE != 0] = 0.0
    return pix, sky


def _whitened(pix: np.ndarray, pair: _Pair, sky: Background, kernels: Kernels, psf: Any) -> tuple[np.ndarray, Any]:
    """Difference with white noise, and its point-spread function."""
    usable = np.isfinite(pair.reference_sigma[::9, ::7])
    noise = float(np.median(pair.reference_sigma[::9, ::7][usable]))
    own = np.sqrt(max(sky.global_rms**2 - noise**2 * np.square(kernels.images).sum(axis=(1, 2)).mean(), 0.1 * noise**2))
    white = zogy.whitening_kernels(kernels, noise / own, 1.5, _WHITENING_HALF_PIX)
    of_blocks = psfmatch.kernel_field(white, pix.shape, 2).at(*_blocks(pix.shape))
    out = np.empty_like(pix)
    convolve_blocks(pix, psfmatch.to_correlate(of_blocks), out)
    out[pair.mask & maskbits.UNUSABLE != 0] = 0.0
    return out, zogy.convolved(psf, white)


def _sigma(pair: _Pair, sky: Background, misfit: Misfit, gain_e: float, n_frames: int) -> np.ndarray:
    """Error of each pixel of the difference; infinite where unusable."""
    n_y = len(pair.reference)
    out = np.empty_like(pair.reference)
    typical = float(np.median(pair.reference_sigma[::9, ::7])) ** 2
    for start in range(0, n_y, _BAND):
        rows = slice(start, min(start + _BAND, n_y))
        wide = pair.reference[max(start - 1, 0) : min(start + _BAND + 1, n_y)]
        star = np.maximum(pair.reference[rows], 0.0)
        var = sky.rms[rows] ** 2 + star * np.float32((1 + 1 / n_frames) / gain_e)
        var += np.maximum(pair.reference_sigma[rows] ** 2 - typical, 0.0)
        if misfit.gain or misfit.shift_pix:
            slopes = np.gradient(wide)
            inner = slice(min(start, 1), min(start, 1) + len(star))
            var += np.float32(misfit.gain**2) * star**2
            var += np.float32(misfit.shift_pix**2 / 2) * (slopes[0][inner] ** 2 + slopes[1][inner] ** 2)
        out[rows] = np.sqrt(var)
    out[pair.mask & maskbits.UNUSABLE != 0] = np.inf
    return out


def _unit_width_inplace(pix: np.ndarray, sigma: np.ndarray) -> float:
    """Scale the errors so that difference over error has a robust width of one; returns the factor."""
    ratio = pix[::3, ::2] / sigma[::3, ::2]
    scale = median_mad(ratio[ratio != 0.0]).sigma
    sigma *= np.float32(scale)
    return float(scale)
