"""What no kernel can bring out of a reference: the part of a star's core that its pixels never held.

An under-sampled image holds frequencies above those of its pixels, folded; a co-add of resampled epochs has lost most
of them. For a point source they are known nevertheless, from the other stars: the residuals of the constant stars, put
together at their sub-pixel offsets, are one profile (polynomial over the image) of unit flux, which every star of the
reference's catalogue is given. Extended sources have nothing there to be lost.
"""

import numpy as np

from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry.psfcat import PointSourceParams, star_locus
from zsds_hpc.psf import freespline
from zsds_hpc.psf.freespline import Residuals
from zsds_hpc.psf.model import PsfModel, monomials, node_offsets
from zsds_hpc.subtraction.polish import Windows
from zsds_hpc.subtraction.psfmatch import Kernels, at_phase, kernel_field

#: Stars whose wings are held at once.
_CHUNK = 64


class StarCoreParams(Params):
    """Correction of the cores of stars."""

    half_pix: int = param(3, "Half side of the part of a star that is corrected; 0 corrects nothing.", "px", 0, 10)
    oversampling: int = param(2, "Nodes of the spline per px.", "", 1, 4)
    degree: int = param(1, "Degree of its polynomial over the image.", "", 0, 2)
    stars_per_term: int = param(25, "Stars that a term of the polynomial needs.", "", 1, 1000)
    largest: float = param(0.05, "Largest size of the correction relative to the profile.", "", 1e-4, 1.0)
    floor: float = param(0.003, "Error of a star's profile, relative.", "", 0.0, 0.1)
    min_sigma: float = param(0.1, "Stars whose correction stays below this are left alone.", "sigma", 0.0, 5.0)
    point_sources: PointSourceParams = param(PointSourceParams(), "Which sources of the reference are stars.")


def fit_cores(left: np.ndarray, windows: Windows, used: np.ndarray, psf: PsfModel, params: StarCoreParams) -> PsfModel:
    """Profile of what is left of the stars, per unit flux.

    Parameters
    ----------
    left : ndarray, shape (n, w, w)
        Residuals of the stars, DN.
    windows : Windows
    used : ndarray, shape (n,), bool
        Constant stars.
    psf : PsfModel
        Of the science image: where the correction may be large.
    params : StarCoreParams

    Returns
    -------
    PsfModel
        Sums to about zero.
    """
    m, half, shape = params.oversampling, params.half_pix, psf.shape
    n_stars = int(used.sum())
    degree = max(d for d in range(params.degree + 1) if n_stars >= params.stars_per_term * (d + 1) * (d + 2) // 2)
    inner = slice(left.shape[1] // 2 - half, left.shape[1] // 2 + half + 1)
    u, v = psf.field(windows.x[used], windows.y[used]).T
    terms = monomials(u, v, degree)
    flux, phase = windows.flux[used], windows.phase[used]
    profile = psf.images(windows.x[used] + phase[:, 0], windows.y[used] + phase[:, 1], half)
    var = windows.var[used][:, inner, inner] + (params.floor * flux[:, None, None] * profile) ** 2
    offsets = node_offsets(half, m)
    scatter = _expected_size(psf, offsets)
    pix = np.ascontiguousarray(left[used][:, inner, inner], np.float32)
    stars = Residuals(pix, (1 / var).astype(np.float32), flux, phase, terms)
    coefficients = np.zeros((terms.shape[1], len(offsets), len(offsets)))
    before = None
    for _ in range(2):
        before = freespline.prepare(stars, scatter, m, params.largest, before)
        freespline.sweep_inplace(before, coefficients, stars)
    return PsfModel(coefficients.astype(np.float32), m, degree, shape, n_stars=n_stars)


def _expected_size(psf: PsfModel, offsets: np.ndarray) -> np.ndarray:
    """Size of the correction at its nodes relative to the flux: as the profile itself."""
    half = int(np.ceil(offsets.max())) + 1
    image = psf.center(half)
    near = np.rint(offsets).astype(int) + half
    return np.maximum(image[np.ix_(near, near)], 1e-4 * image.max()).astype(np.float64)


def add_cores_inplace(
    reference: np.ndarray, sources: np.ndarray, cores: PsfModel, noise_dn: float, params: StarCoreParams
) -> int:
    """Add the correction of the stars to the matched reference.

    Parameters
    ----------
    reference : ndarray, shape (ny, nx), float32
        Is changed.
    sources : ndarray, `images.SOURCE_DTYPE`
    cores : PsfModel
    noise_dn : float
        Of a pixel without sources.
    params : StarCoreParams

    Returns
    -------
    int
        Stars that were corrected.
    """
    strongest = float(np.abs(cores.center(params.half_pix)).max())
    shows = sources["flux"] * strongest > params.min_sigma * noise_dn
    stars = sources[shows & _star_like(sources, params.point_sources)]
    stamps = cores.images(stars["x"], stars["y"], params.half_pix)
    add_stamps_inplace(reference, stamps * stars["flux"][:, None, None], stars)
    return len(stars)


def add_wings_inplace(
    reference: np.ndarray, sources: np.ndarray, wings: Kernels, noise_dn: float, params: StarCoreParams
) -> int:
    """Add to the matched reference what the kernel leaves of the wings of stars; returns how many there were.

    Parameters
    ----------
    reference : ndarray, shape (ny, nx), float32
        Is changed.
    sources : ndarray, `images.SOURCE_DTYPE`
    wings : Kernels
        From `psfmatch.wing_residuals`.
    noise_dn : float
        Of a pixel without sources.
    params : StarCoreParams
    """
    rows = sources[sources["flux"] * np.abs(wings.images).max() > params.min_sigma * noise_dn]
    place, field = np.stack([rows["x"], rows["y"]], axis=1), kernel_field(wings, reference.shape, 2)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        images = at_phase(field.at(*place[part].T), (place - np.rint(place))[part])
        add_stamps_inplace(reference, images * rows["flux"][part, None, None], rows[part])
    return len(rows)


def add_stamps_inplace(image: np.ndarray, stamps: np.ndarray, sources: np.ndarray) -> None:
    """Add square windows about the pixels nearest to sources, cut at the borders; one after the other."""
    half = stamps.shape[1] // 2
    places = np.rint([sources["x"], sources["y"]]).astype(int).T.tolist()
    for stamp, (i, j) in zip(stamps, places):
        top, left = max(half - j, 0), max(half - i, 0)
        part = image[max(j - half, 0) : max(j + half + 1, 0), max(i - half, 0) : max(i + half + 1, 0)]
        part += stamp[top : top + part.shape[0], left : left + part.shape[1]]


def _star_like(sources: np.ndarray, params: PointSourceParams) -> np.ndarray:
    """Sources as sharp as stars; chi, which of bright stars shows errors of the model, does not count here."""
    snr, chi, sharp = (sources[name].astype(np.float64) for name in ("snr", "chi", "sharp"))
    locus = star_locus(snr, chi, sharp, params)
    with np.errstate(invalid="ignore", divide="ignore"):
        away = (sharp - locus.center) / locus.sharp_sigma(snr)
    return (away < params.n_sigma) & (away > -params.n_sigma_sharp)


def without_cores(left: np.ndarray, windows: Windows, cores: PsfModel, params: StarCoreParams) -> np.ndarray:
    """Residuals of the stars less their correction; shape (n, w, w)."""
    half, middle = params.half_pix, left.shape[1] // 2
    inner = slice(middle - half, middle + half + 1)
    stamps = cores.images(windows.x + windows.phase[:, 0], windows.y + windows.phase[:, 1], half)
    out = left.copy()
    out[:, inner, inner] -= stamps * windows.flux[:, None, None]
    return out
