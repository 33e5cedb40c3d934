"""Reference images as files: the survey's native products, and the spline coefficients of the finer grid."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive import previews
from zsds_hpc.archive.fitsfiles import Card, FitsFile, Hdu, card_value, write_fits
from zsds_hpc.archive.psffile import read_psf, write_psf
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.coadd.footprint import Grid
from zsds_hpc.coadd.template import Reference
from zsds_hpc.core import ids, maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE
from zsds_hpc.subtraction.images import Template

IMAGE = "refimg.fits"
#: What `read_template` reads, and what else is written.
SUFFIXES = ("refunc.fits", "refmsk.fits", "refpsfcat.fits", "refimg.psf", "refgrid.fits")
OTHERS = ("refcov.fits", "refsexcat.fits", "log.txt", "preview.jpg")
#: Key of `Template.facts` -> (keyword, comment).
FACTS = {
    "rfid": ("RFID", "Reference-image id"),
    "version": ("REFVER", "Version of the reference"),
    "field": ("FIELDID", "Field"),
    "rcid": ("RCID", "Readout-channel id"),
    "filtercode": ("FILTERCO", "Filter code"),
    "n_frames": ("NFRAMES", "Epochs combined"),
    "jdstart": ("JDSTART", "[d] Start of the earliest epoch, JD (UTC)"),
    "jdend": ("JDEND", "[d] Start of the latest epoch, JD (UTC)"),
    "maglim": ("MAGLIM", "5-sigma mag-limit of point sources [mag]"),
    "seeing_pix": ("SEEING", "Seeing FWHM [pixels]"),
}


def reference_cards(reference: Reference, epochs: Sequence[str], filtername: str) -> list[Card]:
    """Header of all products of a reference.

    Parameters
    ----------
    reference : Reference
    epochs : sequence of str
        Names of the images combined, in their order.
    filtername : str
    """
    template, m = reference.template, reference.metrics
    ccdid, qid = ids.ccdid_qid_of(template.facts["rcid"])
    cards: list[Card] = [*template.grid.wcs.to_cards()]
    cards += [(key, template.facts[name], text) for name, (key, text) in FACTS.items() if name in template.facts]
    cards += [
        ("CCDID", ccdid, "CCD id"),
        ("QID", qid, "Quadrant id"),
        ("FILTERID", ids.FILTER_IDS.get(template.facts["filtercode"], 0), "Filter id"),
        ("FILTER", filtername, "Filter name"),
        ("GAIN", reference.gain_e, "Electrons of all epochs per DN [e-/DN]"),
        ("SATURATE", reference.saturate_dn, "Lowest saturation of an epoch [DN]"),
        ("MAGZP", template.magzp, "Fixed magnitude zero point [mag]"),
        ("CLRCOEFF", template.clrcoeff, "Mean color coefficient of the epochs"),
        ("NPSFSTAR", m.get("n_psf_stars", 0), "Stars that the PSF was built from"),
        ("PSFFWHM", m["psf_fwhm_pix"], "FWHM of the PSF [pixels]"),
        ("NPSFCAT", m["n_psf_sources"], "Sources in the PSF catalogue"),
        ("SKYSIGMA", m["sky_sigma_dn"], "Median error of a pixel of the sky [DN]"),
        ("PIXSIGMA", m["pixel_sigma_dn"], "Scatter of pixels, smoothed by resampling [DN]"),
        ("GRIDFACT", template.grid.factor, "Fine pixels per native pixel along an axis"),
        ("GRIDMARG", template.grid.margin_pix, "[pix] Fine grid beyond each border"),
    ]
    return cards + [(f"FRAME{i:03d}", name[:68]) for i, name in enumerate(epochs, 1)]


def write_reference(reference: Reference, cards: list[Card], log: Sequence[str], place: Callable[[str], Path]) -> None:
    """Write all products of a reference.

    Parameters
    ----------
    reference : Reference
    cards : list of (keyword, value, comment)
        From `reference_cards`.
    log : sequence of str
    place : callable
        Suffix -> path, a staged or temporary one.
    """
    template = reference.template
    fine = {card[0]: card for card in cards} | {card[0]: card for card in template.grid.fine_wcs().to_cards()}
    write_fits(place(IMAGE), [Hdu(reference.pix, cards)])
    write_fits(place("refunc.fits"), [Hdu(template.sigma, cards)])
    write_fits(place("refcov.fits"), [Hdu(reference.coverage, cards)])
    write_fits(place("refmsk.fits"), [Hdu(template.mask, cards)])
    write_fits(place("refpsfcat.fits"), [Hdu(None, cards), Hdu(template.catalogue, name="PSF_CATALOG")])
    write_fits(place("refsexcat.fits"), [Hdu(None, cards), Hdu(reference.sexcat, name="SEXTRACTOR_CATALOG")])
    write_psf(place("refimg.psf"), template.psf)
    write_fits(place("refgrid.fits"), [Hdu(template.coefficients, list(fine.values()))])
    place("log.txt").write_text("".join(f"{line}\n" for line in log))
    previews.write_preview(place("preview.jpg"), reference.pix)


def companion(refimg: Path, suffix: str) -> Path:
    """Another product of the reference whose image this is.

    Raises
    ------
    BadInput
        The name is not that of a reference image.
    """
    if not refimg.name.endswith(IMAGE):
        raise BadInput(f"{refimg}: a reference image is named ..._{IMAGE}")
    return refimg.with_name(refimg.name.removesuffix(IMAGE) + suffix)


def read_template(refimg: Path) -> Template:
    """Read what image differencing needs of a reference.

    Parameters
    ----------
    refimg : Path
        Its ``refimg.fits``; the other products lie beside it.

    Raises
    ------
    BadInput
        A product is missing, damaged or does not belong to the others.
    """
    noise = FitsFile(companion(refimg, "refunc.fits"))
    header, sigma = noise.header(), noise.image()
    mask = FitsFile(companion(refimg, "refmsk.fits")).image(0, sigma.shape)
    grid_file = FitsFile(companion(refimg, "refgrid.fits"))
    grid = Grid(TPV.from_cards(header), sigma.shape, _number(header, "GRIDFACT"), int(_number(header, "GRIDMARG")))
    coefficients = grid_file.image(0, grid.fine_shape)
    psf = read_psf(companion(refimg, "refimg.psf"))
    rows = FitsFile(companion(refimg, "refpsfcat.fits")).table(1)
    if mask.dtype != maskbits.MASK_DTYPE or psf.shape != sigma.shape or rows.dtype.names != PSFCAT_DTYPE.names:
        raise BadInput(f"{refimg.name}: its mask, PSF or catalogue is of another kind")
    if not np.isfinite(coefficients[0, 0]) or card_value(grid_file.header(), "RFID") != card_value(header, "RFID"):
        raise BadInput(f"{refimg.name}: its grid is of another reference or not finite")
    facts: dict[str, Any] = {name: card_value(header, key) for name, (key, _) in FACTS.items() if key in header}
    return Template(
        coefficients, sigma, mask, psf, rows.astype(PSFCAT_DTYPE), grid, _number(header, "MAGZP"),
        _number(header, "CLRCOEFF"), facts,
    )  # fmt: skip


def _number(header: Any, keyword: str) -> float:
    value = card_value(header, keyword)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise BadInput(f"reference: {keyword} = {value}")
    return float(value)
