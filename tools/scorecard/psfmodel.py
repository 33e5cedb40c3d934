"""The PSF file of a channel (PSFEx layout, any program's) against the PSF that was rendered; a reader of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import ndimage

from tools.scorecard import limits
from tools.scorecard.products import Science
from tools.skysim import optics

Array = NDArray[np.float64]
Images = Callable[[Array, Array, int], NDArray]

#: Compared at N_PLACES x N_PLACES over the image, N_PHASES x N_PHASES within the pixel, out to HALF_PIX.
N_PLACES, N_PHASES, HALF_PIX = 6, 4, 7


@dataclass(frozen=True)
class PsfexModel:
    """A PSF file: samples of the pixel-integrated PSF, a polynomial over the image.

    Attributes
    ----------
    samples : ndarray, shape (n_terms, n, n)
        Flux per pixel of the image (not per sample), as PSFEx has it.
    step_pix : float
        Pixels per sample (PSF_SAMP).
    degree : int
    zero, scale : tuple of float
        The polynomial's variables are (FITS pixel - zero) / scale.
    """

    samples: Array
    step_pix: float
    degree: int
    zero: tuple[float, float]
    scale: tuple[float, float]

    def images(self, x: Array, y: Array, half: int) -> Array:
        """Stars of unit flux on windows about the nearest pixel, by cubic splines through the samples."""
        u, v = (x + 1.0 - self.zero[0]) / self.scale[0], (y + 1.0 - self.zero[1]) / self.scale[1]
        terms = [u**i * v**j for j in range(self.degree + 1) for i in range(self.degree + 1 - j)]
        n = self.samples.shape[1]
        grid = np.arange(-half, half + 1)
        out = np.empty((x.size, grid.size, grid.size))
        smooth = ndimage.spline_filter1d(ndimage.spline_filter1d(self.samples, axis=1), axis=2)
        for k in range(x.size):
            here = np.tensordot([term[k] for term in terms], smooth, axes=1)
            row, column = ((grid + round(p[k]) - p[k]) / self.step_pix + n // 2 for p in (y, x))
            at = np.meshgrid(row, column, indexing="ij")
            out[k] = ndimage.map_coordinates(here, at, order=3, prefilter=False)
        return out


class PsfError(NamedTuple):
    """Model minus truth over the true peak.

    Attributes
    ----------
    places : ndarray, shape (n_places^2, 2)
        0-based px.
    worst, rms : ndarray, shape (n_places^2,)
        Over all phases and pixels at each place (rms: within half of HALF_PIX).
    shift_pix : ndarray, shape (n_places^2, 2)
        Of the model's centre.
    scale : ndarray, shape (n_places^2,)
        Of the model's amplitude: a fit with the model gives fluxes that are too small by this.
    worst_shape : ndarray, shape (n_places^2,)
        Like `worst`, after the best shift and scale.
    """

    places: Array
    worst: Array
    rms: Array
    shift_pix: Array
    scale: Array
    worst_shape: Array


def read_psf(path: Path) -> PsfexModel:
    """A file in PSFEx's layout (PSF_MASK of dimension x, y, term; polynomial of X and Y, one group)."""
    with fits.open(path, memmap=False) as hdus:
        hdu = hdus["PSF_DATA"] if "PSF_DATA" in hdus else hdus[1]
        head = hdu.header
        samples = np.array(hdu.data["PSF_MASK"][0], float)
    samples = samples.reshape(-1, *samples.shape[-2:])
    if head.get("POLNAXIS", 0) == 0:
        return PsfexModel(samples[:1], float(head["PSF_SAMP"]), 0, (0.0, 0.0), (1.0, 1.0))
    # PSFEx names the variables; x may come first or second, always with its own zero and scale.
    names = [str(head[f"POLNAME{k}"]).strip() for k in (1, 2)]
    if not names[0].upper().startswith("X"):
        raise ValueError(f"{path}: polynomial in {names}")
    zero, scale = ((float(head[f"{word}1"]), float(head[f"{word}2"])) for word in ("POLZERO", "POLSCAL"))
    return PsfexModel(samples, float(head["PSF_SAMP"]), int(head["POLDEG1"]), zero, scale)


def sampled_truth(psf: optics.Psf, shape: tuple[int, int], half_pix: int = 12, n_sub: int = 2) -> PsfexModel:
    """The true PSF as a PSF file would hold it: `n_sub` samples a pixel, a polynomial of degree 2 over the image.

    A sample at an offset is the flux in a pixel that is so far from the star. `shape` is (ny, nx).
    """
    n_y, n_x = shape
    x, y = (p.ravel() for p in np.meshgrid(*(2.0 * np.rint(np.linspace(10.0, n / 2.0 - 10.0, 5)) for n in (n_x, n_y))))
    samples = np.zeros((x.size, (2 * half_pix + 1) * n_sub - 1, (2 * half_pix + 1) * n_sub - 1))
    middle = samples.shape[1] // 2
    for j in range(n_sub):
        for i in range(n_sub):
            dx, dy = ((k if 2 * k <= n_sub else k - n_sub) / n_sub for k in (i, j))
            planes = limits.star_planes(psf, x - dx, y - dy, half_pix)[:, 0]
            # The window is about the nearest pixel, the same one of all stars because their pixels are even.
            left, low = (np.rint(p - d) - p for p, d in ((x, dx), (y, dy)))
            grid = np.arange(-half_pix, half_pix + 1)
            at_x, at_y = (np.rint((grid + s[0] + d) * n_sub).astype(int) + middle for s, d in ((left, dx), (low, dy)))
            in_x, in_y = ((p >= 0) & (p < samples.shape[1]) for p in (at_x, at_y))
            samples[:, at_y[in_y][:, None], at_x[in_x]] = planes[:, in_y][:, :, in_x]
    zero, scale = ((n_x + 1) / 2.0, (n_y + 1) / 2.0), (n_x / 2.0, n_y / 2.0)
    u, v = (x + 1.0 - zero[0]) / scale[0], (y + 1.0 - zero[1]) / scale[1]
    terms = np.stack([u**i * v**j for j in range(3) for i in range(3 - j)], axis=1)
    fit, *_ = np.linalg.lstsq(terms, samples.reshape(x.size, -1), rcond=None)
    terms_of: Array = np.array(fit, float).reshape(-1, *samples.shape[1:])
    return PsfexModel(terms_of, 1.0 / n_sub, 2, zero, scale)


def model_error(science: Science, path: Path | None = None) -> PsfError | None:
    """Error of a PSF file (the suite's own if none is given) over a channel; None where there is no file."""
    path = science.path("sciimg.psf") if path is None else path
    if not path.is_file():
        return None
    model = read_psf(path)
    return compare(science, model.images)


def compare(science: Science, images: Images) -> PsfError:
    """Error of any model: ``images(x, y, half)`` gives stars of unit flux, (n, 2 half + 1, 2 half + 1)."""
    n_y, n_x = limits.image_shape(science)
    psf, margin = limits.true_psf(science), 40.0
    axes = [np.rint(np.linspace(margin, n - 1 - margin, N_PLACES)) for n in (n_x, n_y)]
    places = np.stack([grid.ravel() for grid in np.meshgrid(*axes)], axis=1)
    phase = (np.arange(N_PHASES) + 0.5) / N_PHASES - 0.5
    shifts = np.stack([grid.ravel() for grid in np.meshgrid(phase, phase)], axis=1)
    rows = [_at_place(psf, images, place + shifts) for place in places]
    worst, rms, shift_x, shift_y, scale, shape = np.array(rows).T
    return PsfError(places, worst, rms, np.stack([shift_x, shift_y], axis=1), scale, shape)


def _at_place(psf: optics.Psf, images: Images, where: Array) -> tuple[float, ...]:
    """Worst and rms error, shift x and y, scale, worst error of the shape, over the phases at a place."""
    x, y = where.T
    planes = limits.star_planes(psf, x, y, HALF_PIX)
    peak = planes[:, 0].max()
    error = images(x, y, HALF_PIX) - planes[:, 0]
    inner = slice(HALF_PIX // 2, HALF_PIX // 2 + HALF_PIX + 1)
    design = planes.transpose(1, 0, 2, 3).reshape(3, -1)
    (scale, shift_x, shift_y), *_ = np.linalg.lstsq(design.T, error.ravel(), rcond=None)
    left = error.ravel() - np.array([scale, shift_x, shift_y]) @ design
    rms = np.sqrt(np.mean(error[:, inner, inner] ** 2))
    return (np.abs(error).max() / peak, rms / peak, shift_x, shift_y, 1.0 + scale, np.abs(left).max() / peak)
