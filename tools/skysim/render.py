"""Draw sources into an image by their pixel-integrated profile, in expected counts (no noise).

Images are (ny, nx) float32 and are added to in place. Positions are 0-based pixels, fluxes total counts.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tools.skysim.optics import (
    MOFFAT_BETAS,
    MOFFAT_WEIGHTS,
    MOFFAT_WIDTHS,
    Psf,
    ellipse,
    moffat_alphas,
)

Array = NDArray[np.float64]
Image = NDArray[np.float32]

#: A stamp leaves at most this many counts of the star's wing outside: far below the noise of any star.
LOST_COUNTS = 4.0
RADII_PIX = (8, 11, 15, 21, 30, 42, 60, 85, 120, 170, 240)
CORE_RADIUS_PIX, SMOOTH_RADIUS_PIX = 5, 12
CHUNK_ELEMENTS = 40_000

# Gauss-Legendre nodes and weights over one pixel: three by three in the core (exact to 5e-5 of the peak at a FWHM
# of 1.7 px), two by two outside it, the middle of the pixel in the far wing (1e-5 of the peak).
_CORE_NODES = ((-0.3872983346207417, 5 / 18), (0.0, 8 / 18), (0.3872983346207417, 5 / 18))
_WING_NODES = ((-0.28867513459481287, 0.5), (0.28867513459481287, 0.5))
_FAR_NODES = ((0.0, 1.0),)

# Mixtures of Gaussians for the exponential and de Vaucouleurs profiles, fitted to the profile itself at first use:
# sigmas in half-light radii.
_EXP_SIGMAS = np.array([0.06, 0.16, 0.35, 0.65, 1.05, 1.6])
_DEV_SIGMAS = np.array([0.01, 0.03, 0.08, 0.2, 0.45, 1.0, 2.1, 4.2])


def stamp_radius(flux: Array, fwhm_pix: float) -> NDArray[np.intp]:
    """Class (index into RADII_PIX) of the stamp that a star of this flux needs."""
    alpha = MOFFAT_WIDTHS[1] * fwhm_pix / (2.0 * np.sqrt(2.0 ** (1.0 / MOFFAT_BETAS[1]) - 1.0))
    share = np.maximum(flux, 0.0) * MOFFAT_WEIGHTS[1] / LOST_COUNTS
    radius = alpha * np.sqrt(np.maximum(share ** (1.0 / (MOFFAT_BETAS[1] - 1.0)) - 1.0, 0.0))
    return np.minimum(np.searchsorted(RADII_PIX, radius), len(RADII_PIX) - 1)


def psf_stamps(x: Array, y: Array, flux: Array, psf: Psf, radius: int) -> Image:
    """Pixel-integrated stars, shape (n, 2*radius+1, 2*radius+1), centred on the pixel nearest to each."""
    fwhm, e1, e2 = psf.shape(x, y)
    a, b, c = (k.astype(np.float32)[:, None, None] for k in ellipse(e1, e2))
    alphas = [k.astype(np.float32) for k in moffat_alphas(fwhm)]
    heights = [
        (flux * w * (beta - 1.0) / (np.pi * alpha.astype(np.float64) ** 2)).astype(np.float32)[:, None, None]
        for w, beta, alpha in zip(MOFFAT_WEIGHTS, MOFFAT_BETAS, alphas, strict=True)
    ]
    inverse = [(1.0 / np.square(alpha))[:, None, None] for alpha in alphas]
    offset_x, offset_y = (np.rint(p) - p for p in (x, y))
    shape = (a, b, c, heights, inverse)
    stamps = _integrate(offset_x, offset_y, shape, radius, _FAR_NODES if radius > SMOOTH_RADIUS_PIX else _WING_NODES)
    for inner, nodes in ((SMOOTH_RADIUS_PIX, _WING_NODES), (CORE_RADIUS_PIX, _CORE_NODES)):
        if radius > inner:
            middle = slice(radius - inner, radius + inner + 1)
            stamps[:, middle, middle] = _integrate(offset_x, offset_y, shape, inner, nodes)
    return stamps


def _integrate(offset_x: Array, offset_y: Array, shape: tuple, radius: int, nodes: tuple) -> Image:
    """Sum of both Moffats over each pixel of a stamp by Gauss-Legendre quadrature."""
    a, b, c, heights, inverse = shape
    grid = np.arange(-radius, radius + 1)
    total = np.zeros((offset_x.size, grid.size, grid.size), np.float32)
    for node_y, weight_y in nodes:
        dy = (grid + (offset_y[:, None] + node_y)).astype(np.float32)[:, :, None]
        c_dy2, b_dy = c * dy * dy, (2.0 * b) * dy
        for node_x, weight_x in nodes:
            dx = (grid + (offset_x[:, None] + node_x)).astype(np.float32)[:, None, :]
            r2 = b_dy * dx
            r2 += a * dx * dx
            r2 += c_dy2
            weight = np.float32(weight_x * weight_y)
            t = 1.0 / (1.0 + r2 * inverse[0])
            t2 = t * t
            t2 *= t
            t2 *= np.sqrt(t)
            total += t2 * (weight * heights[0])
            r2 *= inverse[1]
            r2 += 1.0
            t = 1.0 / r2
            t2 = t * t
            t2 *= np.sqrt(t)
            total += t2 * (weight * heights[1])
    return total


def paste(image: Image, stamps: Image, center_x: NDArray[np.intp], center_y: NDArray[np.intp]) -> None:
    """Add stamps to the image, cut at its borders."""
    ny, nx = image.shape
    radius = stamps.shape[1] // 2
    for stamp, cx, cy in zip(stamps, center_x.tolist(), center_y.tolist(), strict=True):
        x0, x1, y0, y1 = cx - radius, cx + radius + 1, cy - radius, cy + radius + 1
        if x0 >= 0 and y0 >= 0 and x1 <= nx and y1 <= ny:
            image[y0:y1, x0:x1] += stamp
        elif x1 > 0 and y1 > 0 and x0 < nx and y0 < ny:
            rows, columns = slice(max(y0, 0), min(y1, ny)), slice(max(x0, 0), min(x1, nx))
            image[rows, columns] += stamp[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]


def add_stars(image: Image, x: Array, y: Array, flux: Array, psf: Psf) -> None:
    """Add point sources; the order of the arrays does not depend on anything but the arrays."""
    classes = stamp_radius(flux, psf.fwhm_pix)
    ny, nx = image.shape
    for k, radius in enumerate(RADII_PIX):
        near = (x > -radius) & (y > -radius) & (x < nx + radius) & (y < ny + radius)
        own = np.flatnonzero((classes == k) & near & (flux > 0.0))
        step = max(1, CHUNK_ELEMENTS // (2 * radius + 1) ** 2)
        for start in range(0, own.size, step):
            part = own[start : start + step]
            stamps = psf_stamps(x[part], y[part], flux[part], psf, radius)
            paste(image, stamps, np.rint(x[part]).astype(np.intp), np.rint(y[part]).astype(np.intp))


def add_streak(image: Image, ends: Array, flux: float, psf: Psf) -> None:
    """Add a moving point source: ends (2, 2) as rows x, y of start and end; total flux spread evenly in time."""
    length = float(np.hypot(*(ends[1] - ends[0])))
    n = max(2, int(np.ceil(2.0 * length)) + 1)
    t = (np.arange(n) + 0.5) / n
    x, y = (ends[0, k] + t * (ends[1, k] - ends[0, k]) for k in (0, 1))
    add_stars(image, x, y, np.full(n, flux / n), psf)


def _sersic_weights(sigmas: Array, profile: str) -> Array:
    """Non-negative light fractions of round Gaussians that reproduce a profile of unit half-light radius."""
    from scipy.optimize import nnls

    r = np.geomspace(0.02, 6.0, 300)
    sersic, b = (1.0, 1.6783) if profile == "exp" else (4.0, 7.6692)
    target = np.exp(-b * (r ** (1.0 / sersic) - 1.0))
    target /= np.trapezoid(target * 2.0 * np.pi * r, r)
    basis = np.exp(-0.5 * (r[:, None] / sigmas) ** 2) / (2.0 * np.pi * sigmas**2)
    scale = r / (target * r).max() ** 0.5
    weights, _ = nnls(basis * scale[:, None], target * scale)
    return weights / weights.sum()


@lru_cache(maxsize=2)
def galaxy_mixture(profile: str) -> tuple[Array, Array]:
    """Sigmas (in half-light radii) and light fractions of a profile, ``exp`` or ``dev``."""
    sigmas = _EXP_SIGMAS if profile == "exp" else _DEV_SIGMAS
    return sigmas, _sersic_weights(sigmas, profile)


@lru_cache(maxsize=1)
def psf_mixture() -> tuple[Array, Array]:
    """Sigmas (per FWHM) and fractions of Gaussians that stand for the PSF when it blurs a galaxy; 2e-4 of the peak."""
    from scipy.optimize import nnls

    sigmas = np.geomspace(0.25, 4.0, 8)
    r = np.concatenate([np.linspace(0.01, 2.0, 200), np.linspace(2.0, 12.0, 200)])
    target = np.zeros_like(r)
    for w, beta, alpha in zip(MOFFAT_WEIGHTS, MOFFAT_BETAS, moffat_alphas(np.asarray(1.0)), strict=True):
        target += w * (beta - 1.0) / (np.pi * alpha**2) * (1.0 + (r / alpha) ** 2) ** -beta
    basis = np.exp(-0.5 * (r[:, None] / sigmas) ** 2) / (2.0 * np.pi * sigmas**2)
    weights, _ = nnls(basis / np.sqrt(target)[:, None], np.sqrt(target))
    return sigmas, weights / weights.sum()


def galaxy_components(galaxy: NDArray, psf: Psf, pixel_scale_arcsec: float) -> Array:
    """Gaussian components of one blurred galaxy: rows (fraction, C_xx, C_xy, C_yy) in px^2, strongest kept."""
    r_half = float(galaxy["r_half_arcsec"]) / pixel_scale_arcsec
    bulge, q = float(galaxy["bulge"]), float(galaxy["axis_ratio"])
    parts = []
    for profile, share in (("exp", 1.0 - bulge), ("dev", bulge)):
        sigmas, weights = galaxy_mixture(profile)
        parts.append(np.column_stack([share * weights, (sigmas * r_half) ** 2]))
    own = np.concatenate(parts)
    psf_sigma, psf_weight = psf_mixture()
    fraction = (own[:, 0][:, None] * psf_weight).ravel()
    major = np.repeat(own[:, 1], psf_sigma.size) / q
    minor = np.repeat(own[:, 1], psf_sigma.size) * q
    fwhm, e1, e2 = psf.shape(galaxy["x"], galaxy["y"])
    a, b, c = ellipse(e1, e2)  # of unit determinant, so that its inverse is [[c, -b], [-b, a]]
    blur = np.tile((psf_sigma * fwhm) ** 2, own.shape[0])
    # Position angle from North through East; x grows to the West, y to the South.
    angle = np.radians(float(galaxy["pa_deg"]))
    sx, sy = -np.sin(angle), -np.cos(angle)
    c_xx = major * sx * sx + minor * sy * sy + c * blur
    c_yy = major * sy * sy + minor * sx * sx + a * blur
    c_xy = (major - minor) * sx * sy - b * blur
    rows = np.column_stack([fraction, c_xx, c_xy, c_yy])[fraction > 1e-3]
    rows[:, 0] /= rows[:, 0].sum()
    return rows


def _galaxy_stamp(rows: Array, offset_x: float, offset_y: float, radius: int, nodes: tuple) -> Image:
    """Sum of the components on a stamp, unit flux, by Gauss-Legendre quadrature over each pixel."""
    determinant = rows[:, 1] * rows[:, 3] - rows[:, 2] ** 2
    a, b, c = (
        (-0.5 * value / determinant).astype(np.float32)[:, None, None]
        for value in (rows[:, 3], -2.0 * rows[:, 2], rows[:, 1])
    )
    height = (rows[:, 0] / (2.0 * np.pi * np.sqrt(determinant))).astype(np.float32)
    grid = np.arange(-radius, radius + 1)
    total = np.zeros((grid.size, grid.size), np.float32)
    for node_y, weight_y in nodes:
        dy = (grid + (offset_y + node_y)).astype(np.float32)[None, :, None]
        for node_x, weight_x in nodes:
            dx = (grid + (offset_x + node_x)).astype(np.float32)[None, None, :]
            exponent = a * (dx * dx) + b * (dx * dy) + c * (dy * dy)
            total += np.float32(weight_x * weight_y) * np.tensordot(height, np.exp(exponent), axes=1)
    return total


def add_galaxies(image: Image, galaxies: NDArray, psf: Psf, pixel_scale_arcsec: float) -> None:
    """Add galaxies as mixtures of Gaussians already convolved with the PSF of their place, integrated over pixels.

    ``galaxies`` has columns x, y, flux_dn, r_half_arcsec, axis_ratio, pa_deg and bulge.
    """
    x, y, flux = (galaxies[name] for name in ("x", "y", "flux_dn"))
    wings = np.array(RADII_PIX)[stamp_radius(flux, psf.fwhm_pix)]
    for k in range(x.size):
        rows = galaxy_components(galaxies[k], psf, pixel_scale_arcsec)
        # Wider for brighter galaxies: six half-light radii at most, or what a star as bright needs.
        r_half = float(galaxies["r_half_arcsec"][k]) / pixel_scale_arcsec
        reach = np.clip(3.0 * psf.fwhm_pix + 1.5 * r_half * np.log10(10.0 + flux[k]), 8, 6.0 * r_half + 12)
        radius = max(int(reach), min(int(wings[k]), 60))
        cx, cy = round(float(x[k])), round(float(y[k]))
        offset = cx - float(x[k]), cy - float(y[k])
        stamp = _galaxy_stamp(rows, *offset, radius, _FAR_NODES)
        for inner, nodes in ((SMOOTH_RADIUS_PIX, _WING_NODES), (CORE_RADIUS_PIX, _CORE_NODES)):
            half = min(inner, radius)
            middle = slice(radius - half, radius + half + 1)
            stamp[middle, middle] = _galaxy_stamp(rows, *offset, half, nodes)
        stamp *= np.float32(flux[k])
        paste(image, stamp[None], np.array([cx]), np.array([cy]))
