"""Shape of a point-spread function over the image, how well it fits, and the figures that are kept of it."""

from typing import NamedTuple

import numpy as np

from zsds_hpc.kernels.psf import star_images
from zsds_hpc.psf.build import PsfBuild
from zsds_hpc.psf.model import PsfModel

_STEPS = 8  # phases per pixel at which the profile is looked at
_REACH_FWHM = 2.0
_SIGMA_OF_FWHM = 1 / np.sqrt(8 * np.log(2))


class PsfShapes(NamedTuple):
    """Shapes at places on the image; all of shape (n, n), axes y and x.

    Attributes
    ----------
    x, y : ndarray
        0-based px.
    fwhm_pix : ndarray
        Pixel included: diameter of the disc of the area above half the peak.
    ellipticity : ndarray
        1 - b / a of the core.
    angle_deg : ndarray
        Of the major axis, from +x to +y, -90 to 90.
    """

    x: np.ndarray
    y: np.ndarray
    fwhm_pix: np.ndarray
    ellipticity: np.ndarray
    angle_deg: np.ndarray


def psf_shapes(model: PsfModel, n_places: int = 5) -> PsfShapes:
    """Width, ellipticity and angle on a grid of places over the image, its corners included.

    Second moments are weighted with a Gaussian as wide as the star, whose effect is taken out (exact for a Gaussian
    star; Bernstein & Jarvis 2002, AJ 123, 583).
    """
    n_y, n_x = model.shape
    y, x = np.meshgrid(np.linspace(0, n_y - 1, n_places), np.linspace(0, n_x - 1, n_places), indexing="ij")
    half = min(model.half_pix, int(np.ceil(_REACH_FWHM * model.fwhm_pix)))
    fine = np.stack([_fine_image(model, u, v, half) for u, v in model.field(x.ravel(), y.ravel())])
    peak = fine.max(axis=(1, 2))
    fwhm = 2 * np.sqrt((fine > peak[:, None, None] / 2).sum(axis=(1, 2)) / np.pi) / _STEPS
    major, minor, angle = np.array([_axes(image, width * _SIGMA_OF_FWHM) for image, width in zip(fine, fwhm)]).T
    ellipticity = np.where(major > 0, 1 - minor / np.where(major > 0, major, 1), 0)
    return PsfShapes(x, y, *(a.reshape(x.shape) for a in (fwhm, ellipticity, np.degrees(angle))))


def _fine_image(model, u, v, half):
    """Star at a place of the image, sampled at 1 / _STEPS px."""
    phase = (np.arange(_STEPS) + 0.5) / _STEPS - 0.5
    py, px = (a.ravel() for a in np.meshgrid(phase, phase, indexing="ij"))
    field = np.tile([float(u), float(v)], (_STEPS**2, 1))
    planes = star_images(
        model.by_phase(half), np.array(model.wing, float), model.degree, field, np.stack([px, py], axis=1), half
    )
    side = 2 * half + 1
    # A pixel of a star at a larger phase is farther to the left of its centre.
    images = planes[:, 0].reshape(_STEPS, _STEPS, side, side)[::-1, ::-1]
    return images.transpose(2, 0, 3, 1).reshape(side * _STEPS, side * _STEPS).astype(float)


def _axes(image, sigma):
    """Major and minor axis (rms, px) and angle of the major one (radians)."""
    at = (np.arange(len(image)) - (len(image) - 1) / 2) / _STEPS
    x0 = y0 = 0.0
    for _ in range(4):
        weight = np.exp(-((at[:, None] - y0) ** 2 + (at - x0) ** 2) / (2 * sigma**2)) * image
        total = weight.sum()
        move_x, move_y = (weight * (at - x0)).sum() / total, (weight * (at[:, None] - y0)).sum() / total
        x0, y0 = x0 + move_x, y0 + move_y
    dx, dy = at - x0, at[:, None] - y0
    xx, yy, xy = ((weight * a).sum() / total for a in (dx**2, dy**2, dx * dy))
    inverse = np.linalg.inv([[xx, xy], [xy, yy]]) - np.eye(2) / sigma**2
    values, vectors = np.linalg.eigh(inverse)
    if not values[0] > 0:  # flatter than any Gaussian: the weighted moments themselves
        values, vectors = np.linalg.eigh(np.linalg.inv([[xx, xy], [xy, yy]]))
    angle = np.arctan2(vectors[1, 0], vectors[0, 0])
    return values[0] ** -0.5, values[1] ** -0.5, (angle + np.pi / 2) % np.pi - np.pi / 2


def chi2_map(build: PsfBuild, n_cells: int = 4) -> np.ndarray:
    """Median chi2 per degree of freedom of the stars used in each part of the image, NaN where there is none."""
    n_y, n_x = build.model.shape
    row, column = (np.clip(p / n * n_cells, 0, n_cells - 1).astype(int) for p, n in ((build.y, n_y), (build.x, n_x)))
    out = np.full((n_cells, n_cells), np.nan)
    for k in range(n_cells * n_cells):
        here = build.used & (row * n_cells + column == k)
        if here.any():
            out.flat[k] = np.median(build.chi2_dof[here])
    return out


def psf_metrics(build: PsfBuild) -> dict[str, float]:
    """Figures of a point-spread function for headers and the archive; without chi2 where it was assumed."""
    shapes = psf_shapes(build.model)
    figures = {
        "psf_fwhm_pix": float(np.median(shapes.fwhm_pix)),
        "psf_fwhm_min_pix": float(shapes.fwhm_pix.min()),
        "psf_fwhm_max_pix": float(shapes.fwhm_pix.max()),
        "psf_ellipticity": float(np.median(shapes.ellipticity)),
        "psf_ellipticity_max": float(shapes.ellipticity.max()),
        "psf_angle_deg": float(shapes.angle_deg[shapes.angle_deg.shape[0] // 2, shapes.angle_deg.shape[1] // 2]),
        "n_psf_candidates": len(build.x),
        "n_psf_stars": build.model.n_stars,
    }
    if build.model.n_stars:
        figures["psf_chi2"] = float(build.model.chi2_dof)
        figures["psf_chi2_worst_cell"] = float(np.nanmax(chi2_map(build)))
    return figures
