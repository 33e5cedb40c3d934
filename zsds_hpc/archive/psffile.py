"""Point-spread functions as files in the layout of PSFEx (Bertin 2011), which other programs read."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from zsds_hpc.archive.fitsfiles import Card, FitsFile, Hdu, card_value, stored_header, write_fits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.psf.model import PsfModel, spline_coefficients

_NODE_WEIGHTS = np.array([1.0, 4.0, 1.0]) / 6  # of a cubic B-spline at its nodes


def write_psf(path: str | Path, model: PsfModel, cards: Sequence[Card] = ()) -> None:
    """Write a point-spread function: its values at the nodes of the spline, one plane for each term.

    Parameters
    ----------
    path : str or Path
        Written directly: give a staged or temporary name.
    model : PsfModel
    cards : sequence of (keyword, value[, comment])
        More header cards, or other values: LOADED, the stars that were looked at, is taken to be those used.
    """
    samples = _samples(model)
    rows = np.zeros(1, [("PSF_MASK", "f4", samples.shape)])
    rows["PSF_MASK"] = samples
    header = {card[0]: card for card in (*_cards(model), *cards)}
    write_fits(path, [Hdu(rows, list(header.values()), "PSF_DATA")])


def _samples(model: PsfModel) -> np.ndarray:
    """Flux per pixel of the image at the nodes, as PSFEx has it."""
    values = model.coefficients.astype(np.float64)
    for axis in (1, 2):
        values = ndimage.correlate1d(values, _NODE_WEIGHTS, axis=axis, mode="mirror")
    return values.astype(np.float32)


def as_stored(model: PsfModel) -> PsfModel:
    """A point-spread function as `read_psf` gives it back."""
    header = stored_header(_cards(model))
    coefficients = spline_coefficients(_samples(model).astype(np.float64)).astype(np.float32)
    wing, chi2 = (header["PSFWINGF"], header["PSFWINGE"]), header["CHI2"] if model.n_stars else float("nan")
    return PsfModel(coefficients, model.oversampling, model.degree, model.shape, wing, model.n_stars, chi2)


def _cards(model: PsfModel) -> list[Card]:
    n_y, n_x = model.shape
    chi2 = model.chi2_dof if math.isfinite(model.chi2_dof) else 0.0
    wing, exponent = (float(value) for value in model.wing)
    n_terms, n_nodes, _ = model.coefficients.shape
    return [
        ("LOADED", model.n_stars, "Number of loaded sources"),
        ("ACCEPTED", model.n_stars, "Number of accepted sources"),
        ("CHI2", chi2, "Median chi2 per degree of freedom"),
        ("POLNAXIS", 2, "Number of context parameters"),
        ("POLGRP1", 1, "Polynom group for this context parameter"),
        ("POLNAME1", "X_IMAGE", "Name of this context parameter"),
        ("POLZERO1", (n_x + 1) / 2, "Offset value for this context parameter"),
        ("POLSCAL1", (n_x - 1) / 2, "Scale value for this context parameter"),
        ("POLGRP2", 1, "Polynom group for this context parameter"),
        ("POLNAME2", "Y_IMAGE", "Name of this context parameter"),
        ("POLZERO2", (n_y + 1) / 2, "Offset value for this context parameter"),
        ("POLSCAL2", (n_y - 1) / 2, "Scale value for this context parameter"),
        ("POLNGRP", 1, "Number of context groups"),
        ("POLDEG1", model.degree, "Polynom degree for this context group"),
        ("PSF_FWHM", model.fwhm_pix, "PSF FWHM in image pixels"),
        ("PSF_SAMP", 1 / model.oversampling, "Sampling step of the PSF data in image pixels"),
        ("PSFNAXIS", 3, "Dimensionality of the PSF data"),
        ("PSFAXIS1", n_nodes, "Number of elements along this axis"),
        ("PSFAXIS2", n_nodes, "Number of elements along this axis"),
        ("PSFAXIS3", n_terms, "Number of elements along this axis"),
        ("PSFWINGF", wing, "Flux/px beyond the data: PSFWINGF r^-PSFWINGE"),
        ("PSFWINGE", exponent, "Exponent of the profile beyond the data"),
    ]


def read_psf(path: str | Path) -> PsfModel:
    """Read a point-spread function that `write_psf` wrote.

    Raises
    ------
    BadInput
        Damaged, or not of this layout: a whole number of samples per pixel, the polynomial's variables from -1 to 1
        over the image.
    """
    file = FitsFile(path)
    header = file.header(1)

    def number(keyword: str) -> float:
        value = card_value(header, keyword)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadInput(f"{file.name}: {keyword} = {value}")
        return float(value)

    rows = file.table(1)
    if rows.dtype.names != ("PSF_MASK",) or len(rows) != 1 or rows["PSF_MASK"].ndim != 4:
        raise BadInput(f"{file.name}: not a table of one PSF_MASK")
    step, scales = number("PSF_SAMP"), (number("POLSCAL2"), number("POLSCAL1"))
    oversampling = round(1 / step) if step > 0 else 0
    n_y, n_x = (round(2 * scale + 1) for scale in scales)
    centred = abs(number("POLZERO1") - (n_x + 1) / 2) < 1e-6 and abs(number("POLZERO2") - (n_y + 1) / 2) < 1e-6
    if oversampling < 1 or abs(step * oversampling - 1) > 1e-6 or not centred:
        raise BadInput(f"{file.name}: sampling {step} px or place of the polynomial is not of this layout")
    samples = rows["PSF_MASK"][0].astype(np.float64)
    if not np.isfinite(samples).all():
        raise BadInput(f"{file.name}: samples are not finite")
    wing, n_stars = (number("PSFWINGF"), number("PSFWINGE")), int(number("ACCEPTED"))
    chi2 = number("CHI2") if n_stars else float("nan")
    coefficients = spline_coefficients(samples).astype(np.float32)
    return PsfModel(coefficients, oversampling, int(number("POLDEG1")), (n_y, n_x), wing, n_stars, chi2)
