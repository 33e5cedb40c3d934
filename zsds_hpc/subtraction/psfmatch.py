"""Kernels that turn the point-spread function of a reference into that of a science image, from the two models.

The kernel acts on the fine grid of the reference, before it is sampled on the science pixels: there also a
point-spread function of 1.6 px FWHM is (nearly) band-limited, and what folds over in the science image does so by the
sampling, as it did in the camera. A kernel on the science pixels cannot do that.
"""

from typing import NamedTuple

import numpy as np
from scipy import fft, linalg
from scipy.signal import fftconvolve

from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.robust import SIGMA_TO_FWHM
from zsds_hpc.psf.model import PsfModel, monomials

#: The models are evaluated at so many points per px; every second one is a pixel of a grid finer by 3/2.
_OVERSAMPLING, _STRIDE = 3, 2


class PsfMatchParams(Params):
    """Kernels from the models of both point-spread functions."""

    half_pix: int = param(12, "Half side of the windows on which the models are compared.", "px", 6, 40)
    n_places: int = param(4, "Places along each axis of the image.", "", 1, 15)
    degree: int = param(3, "Degree of the polynomials of the kernel's elements over the image.", "", 0, 5)
    block_pix: int = param(64, "Side of the blocks of fine pixels with one kernel.", "px", 8, 1024)
    wiener: float = param(2e-3, "Amplitudes of the reference's spectrum below this are not divided by.", "", 1e-5, 0.5)
    half_min: int = param(5, "Least half side of the kernel, fine px.", "px", 1, 12)
    half_max: int = param(11, "Largest half side of the kernel, fine px.", "px", 1, 12)
    wing_from_pix: float = param(2.0, "Wings that the kernel does not reach are corrected from here outward.", "px", 1)
    wing_half_pix: int = param(24, "Up to here.", "px", 5, 60)


class Kernels(NamedTuple):
    """Kernels at places of an image.

    Attributes
    ----------
    images : ndarray, shape (n, side, side), float64
        To be convolved with; they sum to the ratio of the fluxes.
    x, y : ndarray, shape (n,)
        Places, 0-based science px.
    """

    images: np.ndarray
    x: np.ndarray
    y: np.ndarray


def places(shape: tuple[int, int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Regular places (x, y) over an image, shape (n^2,) each."""
    y, x = ((np.arange(n) + 0.5) * size / n - 0.5 for size in shape)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x.ravel(), grid_y.ravel()


def fine_samples(psf: PsfModel, at: tuple[np.ndarray, np.ndarray], half: int, stride: int) -> np.ndarray:
    """A point-spread function on grids of `stride` thirds of a px, at all phases of these grids.

    Parameters
    ----------
    psf : PsfModel
    at : tuple of ndarray, shape (n,)
        Places (x, y), rounded to whole px.
    half : int
        Half side of the window, px.
    stride : int
        1, 2 or 3.

    Returns
    -------
    ndarray, shape (n, stride^2, m, m), float64
        Flux per px of a unit star; m samples along an axis.
    """
    dense = _lattice(psf, at, half)
    n = (dense.shape[1] - stride) // stride
    phases = [dense[:, b::stride, a::stride][:, :n, :n] for b in range(stride) for a in range(stride)]
    return np.stack(phases, axis=1)


def _lattice(psf: PsfModel, at: tuple[np.ndarray, np.ndarray], half: int) -> np.ndarray:
    """Stars of unit flux on points a third of a px apart, on windows about whole px; the middle point is the star."""
    m, side, (x, y) = _OVERSAMPLING, 2 * half + 1, at
    dense = np.empty((len(x), side, m, side, m))
    for j in range(m):
        for i in range(m):
            # A star moved by -t shows at pixel p the profile at p + t; within half a pixel the window stays.
            moved = np.rint(x) - (i - m // 2) / m, np.rint(y) - (j - m // 2) / m
            dense[:, :, j, :, i] = psf.images(*moved, half)
    return dense.reshape(len(x), side * m, side * m)


def matching_kernels(
    science: PsfModel, reference: PsfModel, at: tuple[np.ndarray, np.ndarray], there: tuple, params: PsfMatchParams
) -> Kernels:
    """Kernels k with science = k * reference, at places of the image, on a grid finer by 3/2.

    Least squares over all phases of the grid together (Alard & Lupton 1998 for two known profiles, one free element per
    fine pixel), with a ridge that draws the kernel to a Gaussian of the difference in width (to a point where the
    science image is the sharper one) wherever the reference has no power to decide.

    Parameters
    ----------
    science, reference : PsfModel
    at, there : tuple of ndarray
        The places (x, y) in the science image and in native reference pixels.
    params : PsfMatchParams
    """
    stride = _STRIDE
    one = fine_samples(science, at, params.half_pix, stride)
    other = fine_samples(reference, there, params.half_pix, stride)
    size = fft.next_fast_len(2 * one.shape[-1], real=True)
    s_hat, r_hat = (fft.rfft2(p, (size, size)) for p in (one, other))
    guess = _gaussian_hat(science.fwhm_pix, reference.fwhm_pix, size, _OVERSAMPLING / stride)
    power = fft.irfft2((np.abs(r_hat) ** 2).sum(axis=1), (size, size))
    cross = fft.irfft2((np.conj(r_hat) * (s_hat - guess * r_hat)).sum(axis=1), (size, size))
    half = kernel_half(science.fwhm_pix, reference.fwhm_pix, params)
    y, x = (a.ravel() for a in np.mgrid[-half : half + 1, -half : half + 1])
    round_ = np.hypot(y, x) < half + 0.5  # corners would take what belongs to the wings
    y, x = y[round_], x[round_]
    lag = (y[:, None] - y) % size * size + (x[:, None] - x) % size
    ridge = params.wiener**2 * stride**2 * (_OVERSAMPLING / stride) ** 4  # spectra of fine samples of unit stars
    kernel = np.empty((len(power), len(x)))
    for k in range(len(power)):
        normal = power[k].ravel().take(lag)
        normal[np.diag_indices_from(normal)] += ridge
        kernel[k] = linalg.solve(normal, cross[k, y, x], assume_a="pos", overwrite_a=True, check_finite=False)
    out = np.zeros((len(power), 2 * half + 1, 2 * half + 1))
    out[:, y + half, x + half] = kernel + fft.irfft2(guess, (size, size))[y, x]
    return Kernels(out, *at)


def wing_residuals(
    science: PsfModel, reference: PsfModel, kernels: Kernels, there: tuple, params: PsfMatchParams
) -> Kernels:
    """What the kernels leave of a star's wings, beyond their reach: science - k * reference, on science pixels.

    Zero in the core, which `params.wing_from_pix` bounds, fading in over as much again.

    Parameters
    ----------
    science, reference : PsfModel
    kernels : Kernels
    there : tuple of ndarray
        The places of the kernels in native reference pixels.
    params : PsfMatchParams

    Returns
    -------
    Kernels
        On points a third of a px apart, on windows of half side `params.wing_half_pix` + 1 px; see `at_phase`.
    """
    half, reach = params.wing_half_pix + 1, kernels.images.shape[1] // 2
    wide = half + 2 * reach // _OVERSAMPLING + 1
    side = _STRIDE * (kernels.images.shape[1] - 1) + 1
    spread = np.zeros((len(kernels.x), side, side))
    spread[:, ::_STRIDE, ::_STRIDE] = kernels.images
    matched = fftconvolve(_lattice(reference, there, wide), spread, mode="same", axes=(1, 2))
    cut = slice(_OVERSAMPLING * (wide - half), -_OVERSAMPLING * (wide - half))
    own = _lattice(science, (kernels.x, kernels.y), half)
    points = (np.arange(own.shape[1]) - own.shape[1] // 2) / _OVERSAMPLING
    fade_in = np.clip(np.hypot(points[:, None], points) / params.wing_from_pix - 1, 0.0, 1.0)
    return Kernels((own - matched[:, cut, cut]) * fade_in, kernels.x, kernels.y)


def at_phase(images: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Values on the pixels of windows about stars, of profiles on points a third of a px apart.

    Parameters
    ----------
    images : ndarray, shape (n, 3 m, 3 m)
    phase : ndarray, shape (n, 2)
        Offset (x, y) of each star from the middle of its window, rounded to a third of a px.

    Returns
    -------
    ndarray, shape (n, m - 2, m - 2)
    """
    m = images.shape[1] // _OVERSAMPLING
    pixels = _OVERSAMPLING * np.arange(1, m - 1) + _OVERSAMPLING // 2
    shift = np.clip(np.rint(_OVERSAMPLING * phase).astype(int), 1 - _OVERSAMPLING, _OVERSAMPLING - 1)
    rows, columns = (pixels - shift[:, axis, None] for axis in (1, 0))
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def kernel_half(science_fwhm: float, reference_fwhm: float, params: PsfMatchParams) -> int:
    """Half side of the kernel, fine px: it grows with the difference of the widths."""
    width = np.sqrt(abs(science_fwhm**2 - reference_fwhm**2)) * _OVERSAMPLING / 2
    return int(np.clip(np.ceil(params.half_min + 1.5 * width), params.half_min, params.half_max))


def _gaussian_hat(science_fwhm, reference_fwhm, size, factor):
    """Spectrum of a Gaussian as wide as the difference of the widths (px), on a grid of `factor` samples per px."""
    var = max(science_fwhm**2 - reference_fwhm**2, 0.0) / SIGMA_TO_FWHM**2 * factor**2
    f_y, f_x = fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :]
    return np.exp(-2 * np.pi**2 * var * (f_x**2 + f_y**2))


class KernelField(NamedTuple):
    """Kernels whose elements are polynomials over the image.

    Attributes
    ----------
    coefficients : ndarray, shape (n_terms, side, side), float32
    degree : int
    shape : tuple of int
        (ny, nx) of the science image.
    """

    coefficients: np.ndarray
    degree: int
    shape: tuple[int, int]

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Kernels at places (science px; those beyond the image are moved to its edge), shape (..., side, side)."""
        terms = _terms(x, y, self.shape, self.degree).astype(np.float32)
        n_terms, side, _ = self.coefficients.shape
        return (terms @ self.coefficients.reshape(n_terms, -1)).reshape(*np.shape(x), side, side)


def kernel_field(kernels: Kernels, shape: tuple[int, int], degree: int) -> KernelField:
    """Polynomials through each element of kernels at some places.

    Parameters
    ----------
    kernels : Kernels
    shape : tuple of int
        (ny, nx) of the science image.
    degree : int
        Lowered where there are too few places.
    """
    side = kernels.images.shape[1]
    degree = min(degree, int(np.sqrt(len(kernels.x))) - 1)
    design = _terms(kernels.x, kernels.y, shape, degree)
    fitted = np.linalg.lstsq(design, kernels.images.reshape(-1, side**2), rcond=None)[0]
    return KernelField(fitted.reshape(-1, side, side).astype(np.float32), degree, shape)


def _terms(x, y, shape, degree):
    u, v = (np.clip(2 * np.ravel(p) / (n - 1) - 1, -1.0, 1.0) for p, n in ((x, shape[1]), (y, shape[0])))
    return monomials(u, v, degree)


def to_correlate(kernels: np.ndarray) -> np.ndarray:
    """Kernels of blocks turned by 180 degrees, for `convolve_blocks`."""
    return np.ascontiguousarray(kernels[..., ::-1, ::-1], np.float32)
