"""Whitening of a difference (proper image subtraction, Zackay, Ofek & Gal-Yam 2016).

Their difference (P_r S - P_s R) / sqrt(s^2 |P_r|^2 + r^2 |P_s|^2), with point-spread functions P and noises s, r of the
science image S and the reference R, divided by P_r, is a difference of matched images, S - k R with k = P_s / P_r,
times w = 1 / sqrt(1 + (r / s)^2 |k|^2): so it is made here, with k and w that vary over the image. Noise of the
difference is white, and nothing is divided by a vanishing P_r where k is large, because w falls as 1 / k.
"""

import numpy as np
from scipy import fft
from scipy.signal import fftconvolve

from zsds_hpc.psf.model import PsfModel, monomials
from zsds_hpc.subtraction.psfmatch import Kernels

_SIZE = 48  # px, of the native grid on which spectra are sampled


def whitening_kernels(matching: Kernels, noise_ratio: float, factor: float, half: int) -> Kernels:
    """Kernels w at the places of the matching kernels k, on science pixels, of unit sum.

    Parameters
    ----------
    matching : Kernels
        On a grid finer by `factor`.
    noise_ratio : float
        Noise of the reference, brought to the flux of the science image, over that of the science image, per px.
    factor : float
    half : int
        Half side of w, px.
    """
    side = matching.images.shape[1]
    offset = (np.arange(side) - side // 2) / factor
    waves = np.exp(-2j * np.pi * np.outer(fft.fftfreq(_SIZE), offset))
    transfer = np.einsum("ya,nab,xb->nyx", waves, matching.images, waves, optimize=True)
    spectrum = 1 / np.sqrt(1 + noise_ratio**2 * np.abs(transfer) ** 2)
    kernel = fft.fftshift(fft.ifft2(spectrum).real, axes=(1, 2))
    middle = slice(_SIZE // 2 - half, _SIZE // 2 + half + 1)
    kernel = kernel[:, middle, middle]
    return Kernels(kernel / kernel.sum(axis=(1, 2), keepdims=True), matching.x, matching.y)


def convolved(psf: PsfModel, kernels: Kernels) -> PsfModel:
    """A point-spread function convolved with kernels on the pixels of its image.

    The spline's nodes stand `oversampling` to a pixel, so a shift by whole pixels is one of the coefficients: exact in
    the pixel; over the image a polynomial of the model's degree is fitted through the places of the kernels.
    """
    m, side = psf.oversampling, kernels.images.shape[1]
    spread = np.zeros((len(kernels.x), m * (side - 1) + 1, m * (side - 1) + 1))
    spread[:, ::m, ::m] = kernels.images
    u, v = psf.field(kernels.x, kernels.y).T
    terms = monomials(u, v, psf.degree)
    local = np.tensordot(terms, psf.coefficients.astype(np.float64), axes=1)
    local = fftconvolve(local, spread, mode="same", axes=(1, 2))
    fitted = np.linalg.lstsq(terms, local.reshape(len(local), -1), rcond=None)[0]
    return PsfModel(
        fitted.reshape(psf.coefficients.shape).astype(np.float32), m, psf.degree, psf.shape, psf.wing, psf.n_stars,
        psf.chi2_dof,
    )  # fmt: skip
