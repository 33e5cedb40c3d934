"""What the noise allows: Cramer-Rao bounds of the flux and position of each star, with the simulator's own PSF.

The PSF is integrated over pixels where each star is, with its local width and ellipse, so that nothing is averaged over
places or sub-pixel phases. Fluxes in DN, positions in 0-based pixels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.scorecard.products import Science
from tools.skysim import optics

Array = NDArray[np.float64]

#: Half sides of the windows that a bound is summed over, px: of stars whose peak is below the background, whose wings
#: tell nothing, and of brighter ones.
HALF_FAINT_PIX, HALF_BRIGHT_PIX = 6, 16
#: Stars at a time: the working arrays stay in the cache.
CHUNK = 64
#: Gauss-Legendre nodes over a pixel, as offsets, and their weights.
NODES = ((-0.3872983346207417, 5 / 18), (0.0, 8 / 18), (0.3872983346207417, 5 / 18))


class Bounds(NamedTuple):
    """Bounds of unbiased estimates, flux and position free together.

    Attributes
    ----------
    sigma_flux : ndarray, shape (n,)
        DN.
    sigma_x, sigma_y : ndarray, shape (n,)
        px.
    """

    sigma_flux: Array
    sigma_x: Array
    sigma_y: Array


def true_psf(science: Science) -> optics.Psf:
    """The PSF that a channel was rendered with; a round and constant one where the truth tells no terms."""
    facts, (n_y, n_x) = science.facts, image_shape(science)

    def terms(name: str, n: int) -> tuple[float, ...]:
        return tuple(float(value) for value in facts.get(name, np.zeros(n)))

    return optics.Psf(
        float(facts["core_fwhm_pix"]), terms("psf_fwhm_terms", 3), terms("psf_e1_terms", 4), terms("psf_e2_terms", 4),
        0.5 * (n_x - 1), 0.5 * (n_y - 1),
    )  # fmt: skip


def image_shape(science: Science) -> tuple[int, int]:
    """(ny, nx) of the calibrated image."""
    return int(science.header["NAXIS2"]), int(science.header["NAXIS1"])


def star_planes(psf: optics.Psf, x: Array, y: Array, half: int) -> NDArray[np.float64]:
    """Stars of unit flux and their derivatives by x and y, integrated over pixels.

    Parameters
    ----------
    psf : optics.Psf
    x, y : ndarray, shape (n,)
    half : int
        Half side of the windows about the pixel nearest to each star.

    Returns
    -------
    ndarray, shape (n, 3, 2 half + 1, 2 half + 1)
        Flux per pixel, its derivative by the star's x, by its y.
    """
    fwhm, e1, e2 = psf.shape(x, y)
    a, b, c = (k[:, None, None] for k in optics.ellipse(e1, e2))
    grid = np.arange(-half, half + 1)
    planes = np.zeros((x.size, 3, grid.size, grid.size))
    from_x, from_y = (grid + (np.rint(p) - p)[:, None] for p in (x, y))
    alphas = optics.moffat_alphas(fwhm)
    for node_y, weight_y in NODES:
        dy = (from_y + node_y)[:, :, None]
        for node_x, weight_x in NODES:
            dx = (from_x + node_x)[:, None, :]
            r2 = a * dx * dx + 2.0 * b * dx * dy + c * dy * dy
            for weight, beta, alpha in zip(optics.MOFFAT_WEIGHTS, optics.MOFFAT_BETAS, alphas, strict=True):
                alpha_sq = (alpha * alpha)[:, None, None]
                t = 1.0 / (1.0 + r2 / alpha_sq)
                value = (weight_x * weight_y * weight * (beta - 1.0) / np.pi) / alpha_sq * t**beta
                slope = value * t * (2.0 * beta / alpha_sq)
                planes[:, 0] += value
                planes[:, 1] += slope * (a * dx + b * dy)
                planes[:, 2] += slope * (b * dx + c * dy)
    return planes


def background_var_e(science: Science) -> float:
    """Variance of a pixel without stars, electrons squared: sky, read-out, rounding to whole DN."""
    gain, read_noise = science.gain_and_noise_e
    return float(science.facts["sky_dn"]) * gain + read_noise**2 + gain**2 / 12.0


def bounds(science: Science, x: Array, y: Array, flux_dn: Array) -> Bounds:
    """Cramer-Rao bounds of isolated stars of known sky, from the inverse of the Fisher matrix of (flux, x, y).

    Parameters
    ----------
    science : Science
    x, y, flux_dn : ndarray, shape (n,)
        Positions and the flux that the calibrated image should hold.

    Returns
    -------
    Bounds
    """
    psf, gain, dark = true_psf(science), science.gain_and_noise_e[0], background_var_e(science)
    out = np.empty((x.size, 3))
    is_faint = 0.2 * flux_dn * gain < dark
    chunks = [
        (half, own[start : start + CHUNK])
        for half, own in ((HALF_FAINT_PIX, np.flatnonzero(is_faint)), (HALF_BRIGHT_PIX, np.flatnonzero(~is_faint)))
        for start in range(0, own.size, CHUNK)
    ]
    for half, part in chunks:
        planes = star_planes(psf, x[part], y[part], half)
        electrons = np.maximum(flux_dn[part], 1e-3) * gain
        variance = electrons[:, None, None] * planes[:, 0] + dark
        planes[:, 1:] *= electrons[:, None, None, None]
        fisher = np.einsum("niyx,njyx->nij", planes / variance[:, None], planes, optimize=True)
        out[part] = np.sqrt(np.diagonal(np.linalg.inv(fisher), axis1=1, axis2=2))
    return Bounds(out[:, 0] / gain, out[:, 1], out[:, 2])


def limit_mag(science: Science, sigmas: float = 5.0) -> float:
    """Magnitude (PS1, colour 0) of a star in the middle of the image whose flux over its bound is `sigmas`."""
    n_y, n_x = image_shape(science)
    flux = np.logspace(0.0, 4.0, 161)
    middle = np.ones_like(flux)
    found = bounds(science, middle * (n_x // 2), middle * (n_y // 2), flux)
    at_limit = np.exp(np.interp(np.log(sigmas), np.log(flux / found.sigma_flux), np.log(flux)))
    return float(science.facts["zero_point_channel"] - 2.5 * np.log10(at_limit))


def overlap(psf: optics.Psf, reach_pix: float = 40.0) -> tuple[Array, Array]:
    """What a neighbour of unit flux adds to a fit with the PSF alone at a distance.

    Returns
    -------
    distance_pix, share : ndarray
        The PSF's autocorrelation along a line, 1 at distance 0.
    """
    half = int(np.ceil(reach_pix)) + 8
    middle = np.array([psf.half_x]), np.array([psf.half_y])
    star = star_planes(psf, np.rint(middle[0]), np.rint(middle[1]), half)[0, 0]
    spectrum = np.abs(np.fft.rfft2(star, (4 * half, 4 * half))) ** 2
    product = np.fft.irfft2(spectrum)
    share = 0.5 * (product[0, : half - 7] + product[: half - 7, 0]) / product[0, 0]
    return np.arange(share.size, dtype=float), share
