"""What image differencing takes and gives: a calibrated image, a reference, their difference."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.coadd.footprint import Grid
from zsds_hpc.psf.model import PsfModel


@dataclass(frozen=True)
class Science:
    """A calibrated image as the archive stores it.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Detrended image with its sky, DN.
    mask : ndarray, shape (ny, nx), int16
        Survey mask.
    psf : PsfModel
    psfcat : ndarray, `photometry.psfcat.PSFCAT_DTYPE`
    wcs : TPV
    gain_e : float
        e/DN.
    saturate_dn : float
        Above the sky of the detector.
    magzp, clrcoeff : float
        Zero point and colour coefficient, mag.
    seeing_pix, maglim : float
    """

    pix: np.ndarray
    mask: np.ndarray
    psf: PsfModel
    psfcat: np.ndarray
    wcs: TPV
    gain_e: float
    saturate_dn: float
    magzp: float
    clrcoeff: float
    seeing_pix: float
    maglim: float


@dataclass(frozen=True)
class Template:
    """A reference image, ready to be brought to the frame of a science image.

    Attributes
    ----------
    coefficients : ndarray, shape `grid.fine_shape`, float32
        Quintic B-spline coefficients of the sky-subtracted image on the fine grid, flux per native pixel, DN at
        `magzp`; unusable pixels were filled first. Finite everywhere.
    sigma : ndarray, shape (ny, nx), float32
        1-sigma error of a native pixel, DN; infinite where there is no data.
    mask : ndarray, shape (ny, nx), int16
        Survey bits of the native pixels: NAN where no epoch has data, SATURATED where a star saturates, ...
    psf : PsfModel
        Of the native pixels (flux of a star per native pixel; the same on every grid that the spline is sampled on).
    catalogue : ndarray, `photometry.psfcat.PSFCAT_DTYPE`
        PSF-fit catalogue (refpsfcat).
    grid : Grid
    magzp, clrcoeff : float
        Fixed zero point; colour coefficient of the epochs, mag.
    facts : dict
        rfid, version, n_frames, jdstart, jdend, maglim, seeing_pix, field, rcid, filtercode.
    """

    coefficients: np.ndarray
    sigma: np.ndarray
    mask: np.ndarray
    psf: PsfModel
    catalogue: np.ndarray
    grid: Grid
    magzp: float
    clrcoeff: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Science less reference, on the pixels and the flux scale of the science image.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        Difference, DN; 0 where unusable.
    sigma : ndarray, shape (ny, nx), float32
        1-sigma error of a pixel: sky, photons of the constant sources, reference, registration and gain; infinite
        where unusable. Neighbouring errors are taken as independent.
    mask : ndarray, shape (ny, nx), int16
        Bits of science image and reference together.
    psf : PsfModel
        Effective PSF of the difference: image of a new star of unit flux.
    science, reference : ndarray, shape (ny, nx), float32
        Sky-subtracted science image and the reference matched to it, DN: for cutouts and ratios.
    sources : ndarray, `SOURCE_DTYPE`
        Reference sources on and around the image, in its pixels.
    gain_e, magzp : float
        Of the science image.
    noise_scale : float
        Robust width of pix / sigma before it was brought to one (QA; sigma includes it).
    metrics : dict
        QA numbers.
    log : list of str
    """

    pix: np.ndarray
    sigma: np.ndarray
    mask: np.ndarray
    psf: PsfModel
    science: np.ndarray
    reference: np.ndarray
    sources: np.ndarray
    gain_e: float
    magzp: float
    noise_scale: float
    metrics: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


#: Reference sources in the frame of the science image: 0-based px; flux in DN of the science image.
SOURCE_DTYPE = np.dtype(
    [("x", "f8"), ("y", "f8"), ("flux", "f4"), ("sigflux", "f4"), ("mag", "f4"), ("sigmag", "f4"), ("snr", "f4"),
     ("chi", "f4"), ("sharp", "f4"), ("ra", "f8"), ("dec", "f8")]
)  # fmt: skip
