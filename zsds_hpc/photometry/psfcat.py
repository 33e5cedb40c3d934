"""The catalogue of PSF fits (psfcat) in the survey's columns, and which of its sources look like stars."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.robust import MAD_TO_SIGMA
from zsds_hpc.photometry.aperture import box_flags, magnitudes

#: name -> (format, unit, meaning)
COLUMNS = {
    "sourceid": ("i4", "", "running number from 0, in the order of ypos"),
    "xpos": ("f8", "pix", "position along x, first pixel at 1"),
    "ypos": ("f8", "pix", "position along y"),
    "ra": ("f8", "deg", "right ascension (ICRS); NaN until attached"),
    "dec": ("f8", "deg", "declination (ICRS); NaN until attached"),
    "flux": ("f4", "DN", "total flux of the PSF fit, positive"),
    "sigflux": ("f4", "DN", "error of flux: photons, sky and what neighbours add"),
    "mag": ("f4", "mag", "-2.5 log10 flux + MAGZP, without colour term; instrumental without MAGZP"),
    "sigmag": ("f4", "mag", "error of mag, the zero point's not included"),
    "snr": ("f4", "", "flux / sigflux"),
    "chi": ("f4", "", "mean absolute residual over that expected of the noise (DAOPHOT)"),
    "sharp": ("f4", "", "about 0 for stars, positive for extended, negative for sharper (DAOPHOT)"),
    "flags": ("i2", "", "OR of the survey mask in the 5x5 box; -1 at or near the edge"),
}

PSFCAT_DTYPE = np.dtype([(name, form) for name, (form, _, _) in COLUMNS.items()])


def listed_rows(fits: np.ndarray) -> np.ndarray:
    """Rows of the fits that the catalogue lists, in its order.

    A fit without a positive flux and error has no magnitude and is not listed; the table of the fits keeps it.

    Parameters
    ----------
    fits : ndarray, shape (n,), `psffit.PSF_FIT_DTYPE`

    Returns
    -------
    ndarray, shape (m,), int
        By y, then x.
    """
    with np.errstate(invalid="ignore"):
        good = np.isfinite(fits["x"] + fits["y"] + fits["flux"] + fits["sigflux"])
        good &= (fits["flux"] > 0) & (fits["sigflux"] > 0)
    rows = np.flatnonzero(good)
    return rows[np.lexsort((fits["x"][rows], fits["y"][rows]))]


def psfcat_of(fits: np.ndarray, mask: np.ndarray, magzp: float | None = None, wcs: Any = None) -> np.ndarray:
    """Catalogue of the fits.

    Parameters
    ----------
    fits : ndarray, shape (n,), `psffit.PSF_FIT_DTYPE`
    mask : ndarray, shape (ny, nx), int16
        Survey mask.
    magzp : float, optional
        Zero point; without it magnitudes are instrumental.
    wcs : object with ``pixel_to_sky(x, y)``, optional
        Without it positions on the sky are NaN.

    Returns
    -------
    ndarray, shape (m,), `PSFCAT_DTYPE`
        Row k is ``fits[listed_rows(fits)[k]]``.

    Raises
    ------
    BadInput
        The zero point is not finite.
    """
    if magzp is not None and not np.isfinite(magzp):
        raise BadInput(f"psfcat: zero point {magzp}")
    listed = fits[listed_rows(fits)]
    out = np.zeros(len(listed), PSFCAT_DTYPE)
    out["sourceid"] = np.arange(len(out))
    out["xpos"], out["ypos"] = listed["x"] + 1, listed["y"] + 1
    out["ra"] = out["dec"] = np.nan
    if wcs is not None and len(out):
        out["ra"], out["dec"] = wcs.pixel_to_sky(listed["x"], listed["y"])
    for name in ("flux", "sigflux", "chi", "sharp"):
        out[name] = listed[name]
    out["snr"] = listed["flux"] / listed["sigflux"]
    mag, out["sigmag"] = magnitudes(listed["flux"], listed["sigflux"])
    out["mag"] = mag + (magzp or 0.0)
    out["flags"] = box_flags(mask, np.stack([listed["x"], listed["y"]], axis=1))
    return out


class PointSourceParams(Params):
    """Where the locus of stars in sharp and chi ends."""

    n_sigma: float = param(3.5, "A source wider than the stars by more than this is extended.", "sigma", 1.0, 20.0)
    n_sigma_sharp: float = param(6.0, "A source sharper than the stars by more is no star either.", "sigma", 1.0, 50.0)
    chi_factor: float = param(1.7, "Stars' chi is at most this many times that of stars as bright.", "", 1.1, 10.0)
    bright_snr: float = param(50.0, "Stars outnumber galaxies above this.", "", 10.0, 1e4)
    min_stars: int = param(20, "With fewer sources to learn from the locus is the default one.", "", 5, 10_000)
    default_floor: float = param(0.03, "Default width of the locus of sharp of bright stars, FWHM 2 px.", "", 1e-4, 1.0)
    default_slope: float = param(2.0, "Default width of the locus of sharp times S/N, FWHM 2 px.", "", 0.1, 50.0)


@dataclass(frozen=True)
class StarLocus:
    """Where stars lie in sharp and chi: sharp = center +- hypot(floor, slope / snr), chi = hypot(chi, rise snr).

    Attributes
    ----------
    center, floor, slope : float
        Of sharp.
    chi, rise : float
        chi of faint stars, and its growth with S/N by errors of the PSF.
    """

    center: float
    floor: float
    slope: float
    chi: float
    rise: float

    def sharp_sigma(self, snr: np.ndarray) -> np.ndarray:
        """Width of the locus of sharp."""
        return np.hypot(self.floor, self.slope / np.maximum(snr, 1e-3))

    def typical_chi(self, snr: np.ndarray) -> np.ndarray:
        """Middle of the locus of chi."""
        return np.hypot(self.chi, self.rise * snr)


def star_locus(snr: np.ndarray, chi: np.ndarray, sharp: np.ndarray, params: PointSourceParams) -> StarLocus:
    """Learn from an image where its stars lie.

    The middle is the median of bright sources, most of which are stars; widths come from the sharper half of the
    sources, where galaxies are not.

    Parameters
    ----------
    snr, chi, sharp : ndarray, shape (n,)
        NaN where unknown.
    params : PointSourceParams
    """
    known = np.isfinite(snr + chi + sharp) & (snr > 0)
    snr, chi, sharp = snr[known], chi[known], sharp[known]
    bright, faint = snr >= params.bright_snr, snr < params.bright_snr / 2
    if bright.sum() < params.min_stars:
        return StarLocus(0.0, params.default_floor, params.default_slope, 1.0, 0.0)
    center = float(np.median(sharp[bright]))
    below = center - sharp
    slope, chi_faint = params.default_slope, 1.0
    if (faint & (below > 0)).sum() >= params.min_stars:
        slope = MAD_TO_SIGMA * float(np.median((below * snr)[faint & (below > 0)]))
        chi_faint = float(np.median(chi[faint]))
    very = bright & (below > 0)
    excess = (MAD_TO_SIGMA * np.median(below[very])) ** 2 - np.median(slope / snr[very]) ** 2 if very.any() else 0.0
    growth = np.median((chi[bright] ** 2 - chi_faint**2) / snr[bright] ** 2)
    floor = max(float(np.sqrt(max(excess, 0.0))), params.default_floor / 10)
    return StarLocus(center, floor, slope, chi_faint, float(np.sqrt(max(growth, 0.0))))


def is_point_source(table: np.ndarray, params: PointSourceParams) -> np.ndarray:
    """Which sources cannot be told from stars.

    Parameters
    ----------
    table : ndarray, shape (n,)
        psfcat or PSF fits: flux, sigflux, chi, sharp.
    params : PointSourceParams

    Returns
    -------
    ndarray, shape (n,), bool
        False for what is wider, sharper or worse fitted than the image's stars of that brightness, and where
        sharp or chi are not known. Galaxies too faint to be told from stars are True.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = table["flux"].astype(float) / table["sigflux"]
        chi, sharp = table["chi"].astype(float), table["sharp"].astype(float)
        locus = star_locus(snr, chi, sharp, params)
        away = (sharp - locus.center) / locus.sharp_sigma(snr)
        good = (away < params.n_sigma) & (away > -params.n_sigma_sharp)
        return good & (chi < params.chi_factor * locus.typical_chi(snr)) & (snr > 0)
