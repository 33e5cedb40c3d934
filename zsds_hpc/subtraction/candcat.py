"""The table of candidates: names, units and meanings of its columns, and how a fit becomes a row.

Names and meanings follow the survey's alert packets (schema ztf.alert.candidate 4.02); what they leave open is settled
here.
"""

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core import maskbits
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.robust import SIGMA_TO_FWHM
from zsds_hpc.photometry.aperture import box_flags
from zsds_hpc.subtraction.cutouts import HALF_PIX, Cutouts, cut_out, windows
from zsds_hpc.subtraction.diffphot import light_of_others
from zsds_hpc.subtraction.features import (
    aperture_photometry,
    filtered,
    moments,
    ring_level,
    ring_of,
    sign_counts,
)
from zsds_hpc.subtraction.images import Difference

#: name -> (format, unit, meaning). NaN only where it says so.
COLUMNS = {
    "xpos": ("f8", "pix", "position along x, first pixel at 1"),
    "ypos": ("f8", "pix", "position along y"),
    "ra": ("f8", "deg", "right ascension (ICRS)"),
    "dec": ("f8", "deg", "declination (ICRS)"),
    "isdiffpos": ("?", "", "true: brighter than the reference; false: fainter"),
    "flux": ("f4", "DN", "flux of the PSF fit, negative where isdiffpos is false"),
    "sigflux": ("f4", "DN", "error of flux"),
    "snr": ("f4", "", "|flux| / sigflux"),
    "scorr": ("f4", "", "significance at the summit of the matched filter, own photons left out"),
    "magpsf": ("f4", "mag", "magnitude of |flux|"),
    "sigmapsf": ("f4", "mag", "error of magpsf"),
    "sigx": ("f4", "pix", "error of xpos"),
    "sigy": ("f4", "pix", "error of ypos"),
    "chipsf": ("f4", "", "reduced chi2 of the PSF fit; NaN with fewer than four usable pixels"),
    "chi": ("f4", "", "mean absolute residual over that expected of the noise (DAOPHOT); NaN as chipsf"),
    "sharp": ("f4", "", "about 0 for stars, positive for extended, negative for sharper (DAOPHOT)"),
    "fluxap": ("f4", "DN", "flux in 14 px diameter above sky, of the sign of flux for a star"),
    "sigfluxap": ("f4", "DN", "error of fluxap"),
    "magap": ("f4", "mag", "magnitude in 14 px diameter; NaN where fluxap has the other sign"),
    "sigmagap": ("f4", "mag", "error of magap; NaN with it"),
    "magapbig": ("f4", "mag", "magnitude in 18 px diameter; NaN as magap"),
    "sigmagapbig": ("f4", "mag", "error of magapbig; NaN with it"),
    "sky": ("f4", "DN", "level of the difference around, median at 20-30 px, as seen in the turned difference"),
    "magdiff": ("f4", "mag", "magap - magpsf; NaN without magap"),
    "fwhm": ("f4", "pix", "FWHM of the core as a Gaussian, from aimage and bimage"),
    "classtar": ("f4", "", "1 as wide as a star, 1/2 at half as wide again; not SExtractor's network"),
    "aimage": ("f4", "pix", "windowed rms along the major axis"),
    "bimage": ("f4", "pix", "windowed rms along the minor axis"),
    "aimagerat": ("f4", "", "aimage / fwhm"),
    "bimagerat": ("f4", "", "bimage / fwhm"),
    "elong": ("f4", "", "aimage / bimage"),
    "seeratio": ("f4", "", "FWHM of the difference's PSF / fwhm, at most 2"),
    "mindtoedge": ("f4", "pix", "least of xpos, ypos, nx + 1/2 - xpos, ny + 1/2 - ypos"),
    "magfromlim": ("f4", "mag", "diffmaglim - magap; NaN without magap"),
    "diffmaglim": ("f4", "mag", "5-sigma limit of the image for a star, PSF fit"),
    "limitmag": ("f4", "mag", "the same at this place; NaN where half of a star is on unusable pixels"),
    "nneg": ("i2", "", "negative pixels of the turned difference in 5x5"),
    "nbad": ("i2", "", "unusable pixels (mask or outside) in 5x5"),
    "sumrat": ("f4", "", "sum / sum of absolute values in 5x5, after a 3x3 median within"),
    "dsnrms": ("f4", "", "pixel of the difference over the local rms of the difference"),
    "ssnrms": ("f4", "", "filtered difference there over its local rms"),
    "dsdiff": ("f4", "", "dsnrms - ssnrms"),
    "distnr": ("f4", "pix", "distance to the nearest source of the reference; NaN when it has none, as all *nr"),
    "magnr": ("f4", "mag", "its magnitude"),
    "sigmagnr": ("f4", "mag", "error of magnr"),
    "snrnr": ("f4", "", "its S/N"),
    "chinr": ("f4", "", "its chi"),
    "sharpnr": ("f4", "", "its sharp"),
    "ranr": ("f8", "deg", "its right ascension"),
    "decnr": ("f8", "deg", "its declination"),
    "dxnr": ("f4", "pix", "xpos less that of the source"),
    "dynr": ("f4", "pix", "ypos less that of the source"),
    "fluxnr": ("f4", "DN", "its flux on the scale of the science image"),
    "fluxref": ("f4", "DN", "PSF-weighted flux of the matched reference at this place"),
    "fluxratio": ("f4", "", "|flux| over |fluxref|, or over sigflux where that is larger"),
    "dipole": ("f4", "", "deepest filtered value of the other sign within 2.2 FWHM, over the candidate's; at most 99"),
    "level": ("f4", "DN", "mean of the turned difference about the candidate, the fitted sources out; NaN as siglevel"),
    "siglevel": ("f4", "DN", "error of level; NaN where all pixels are unusable"),
    "snrlevel": ("f4", "", "snr if level goes on below the candidate; snr where level is not significant"),
    "maskfrac": ("f4", "", "share of pixels within 7 px that are unusable"),
    "noiserat": ("f4", "", "robust width of difference / sigma around"),
    "flags": ("i2", "", "OR of the survey mask in the 5x5 box; -1 at or near the edge"),
    "rb": ("f4", "", "score of the classifier on features, 0 bogus, 1 real; NaN when not vetted"),
    "drb": ("f4", "", "score of the classifier on cutouts; NaN when not vetted"),
}

CANDIDATE_DTYPE = np.dtype([(name, form) for name, (form, _, _) in COLUMNS.items()])

_MAG = 2.5 / np.log(10)
_MAX_SEERATIO = 2.0  # of the survey's packets
_MASK_RADIUS_PIX = 7.0
_LARGEST_DIPOLE = 99.0
_NOISE_STRIDE = 3  # the filtered image is smooth over about this


class FeatureParams(Params):
    """How candidates are measured."""

    aperture_pix: float = param(14.0, "Diameter of the aperture of magap.", "px", 2.0, 40.0)
    big_aperture_pix: float = param(18.0, "Diameter of the aperture of magapbig.", "px", 2.0, 40.0)
    sky_inner_pix: float = param(20.0, "Inner radius of the ring of sky.", "px", 2.0, 30.0)
    sky_outer_pix: float = param(30.0, "Outer radius of the ring of sky.", "px", 3.0, 31.0)
    noise_inner_pix: float = param(10.0, "Radius outside which the cutout tells the local noise.", "px", 2.0, 30.0)
    dipole_fwhm: float = param(2.2, "How far the other half of a dipole is looked for.", "FWHM", 0.5, 4.0)
    level_inner_fwhm: float = param(1.25, "Inner radius of the ring of level.", "FWHM", 0.5, 5.0)
    level_outer_fwhm: float = param(3.5, "Outer radius of the ring of level.", "FWHM", 1.0, 10.0)
    level_sigma: float = param(3.0, "Significance of level that counts.", "", 0.0, 100.0)
    bad_bits: int = param(maskbits.UNUSABLE, "Pixels with any of these mask bits count in nbad.", "", 0, 32767)


def measure(
    difference: Difference, wcs: TPV, fits: np.ndarray, limits: tuple[float, np.ndarray], params: FeatureParams
) -> tuple[np.ndarray, Cutouts]:
    """Table and cutouts of fitted sources.

    Parameters
    ----------
    difference : Difference
    wcs : TPV
    fits : ndarray, shape (n,), `diffphot.FIT_DTYPE`
    limits : tuple
        5-sigma limit (mag) of the image, and at the place of each fit, shape (n,).
    params : FeatureParams

    Returns
    -------
    table : ndarray, shape (n,), `CANDIDATE_DTYPE`
    cutouts : Cutouts
    """
    table = np.zeros(len(fits), CANDIDATE_DTYPE)
    sign = np.where(fits["flux"] < 0, -1.0, 1.0)
    cutouts = cut_out(difference, fits["x"], fits["y"], sign)
    if not len(fits):
        return table, cutouts
    _fill_fit(table, difference, wcs, fits, limits)
    level, rms, n_sky = ring_level(cutouts.difference, ring_of(params.sky_inner_pix, params.sky_outer_pix))
    level, rms = np.nan_to_num(level), np.nan_to_num(rms)
    table["sky"] = level
    sigma_sky = np.sqrt(np.pi / 2) * rms / np.sqrt(np.maximum(n_sky, 1))
    half = _half_of_measures(difference.psf, params)
    inner = slice(HALF_PIX - half, HALF_PIX + half + 1)
    above = cutouts.difference[:, inner, inner] - level[:, None, None]
    others = sign[:, None, None] * light_of_others(difference.psf, fits, half, 2.0 * half)
    _fill_apertures(table, difference, fits, (above - others, sigma_sky), params)
    _fill_level(table, difference, fits, cutouts.difference[:, inner, inner] - others, params)
    _fill_shape(table, difference.psf, fits, above)
    _fill_pixels(table, difference, fits, cutouts.difference, params)
    _fill_noise(table, difference, fits, cutouts.difference, params)
    _fill_reference(table, difference, fits)
    return table, cutouts


def _fill_fit(table, difference, wcs, fits, limits):
    """What the PSF fit tells."""
    n_y, n_x = difference.pix.shape
    table["xpos"], table["ypos"] = fits["x"] + 1, fits["y"] + 1
    table["ra"], table["dec"] = wcs.pixel_to_sky(fits["x"], fits["y"])
    for name in ("flux", "sigflux", "chi", "sharp"):
        table[name] = fits[name]
    table["scorr"], table["chipsf"] = fits["score"], fits["chi2_dof"]
    flux = np.abs(fits["flux"])
    table["isdiffpos"], table["snr"] = fits["flux"] > 0, flux / fits["sigflux"]
    table["magpsf"], table["sigmapsf"] = difference.magzp - 2.5 * np.log10(flux), _MAG * fits["sigflux"] / flux
    table["sigx"], table["sigy"] = np.sqrt(fits["var_x"]), np.sqrt(fits["var_y"])
    x, y = table["xpos"], table["ypos"]
    table["mindtoedge"] = np.min([x, y, n_x + 0.5 - x, n_y + 0.5 - y], axis=0)
    table["diffmaglim"], table["limitmag"] = limits
    table["rb"] = table["drb"] = np.nan


def _half_of_measures(psf, params):
    """Half side of windows that hold apertures and shapes."""
    widest = max(params.aperture_pix, params.big_aperture_pix) / 2
    return min(HALF_PIX, int(np.ceil(max(widest + 1, 3.0 * psf.fwhm_pix))))


def _fill_apertures(table, difference, fits, sky_free, params):
    """Aperture photometry above the local sky, without the other sources; bad pixels take the fitted star's value."""
    lone, sigma_sky = sky_free
    half = lone.shape[1] // 2
    model = difference.psf.images(fits["x"], fits["y"], half) * np.abs(fits["flux"])[:, None, None]
    stamps = (lone, windows(difference.sigma, fits["x"], fits["y"], half), model)
    for diameter, names in (
        (params.aperture_pix, ("magap", "sigmagap")),
        (params.big_aperture_pix, ("magapbig", "sigmagapbig")),
    ):
        flux, error = aperture_photometry(stamps, fits["x"], fits["y"], diameter / 2, difference.gain_e)
        error = np.hypot(error, np.pi * diameter**2 / 4 * sigma_sky)
        if names[0] == "magap":
            table["fluxap"], table["sigfluxap"] = np.sign(fits["flux"]) * flux, error
        safe = np.where(flux > 0, flux, np.nan)
        table[names[0]], table[names[1]] = difference.magzp - 2.5 * np.log10(safe), _MAG * error / safe
    table["magdiff"], table["magfromlim"] = table["magap"] - table["magpsf"], table["diffmaglim"] - table["magap"]


def _fill_level(table, difference, fits, lone, params):
    """Light about the candidate that is not its own: halos of bright stars, wings that were badly subtracted."""
    psf, half = difference.psf, lone.shape[1] // 2
    profile = psf.images(fits["x"], fits["y"], half)
    sigma = windows(difference.sigma, fits["x"], fits["y"], half)
    ring = ring_of(params.level_inner_fwhm * psf.fwhm_pix, params.level_outer_fwhm * psf.fwhm_pix, half)
    known = np.isfinite(lone) & np.isfinite(sigma) & ring
    weight = np.where(known, 1 / np.where(known, sigma, 1.0).astype(float) ** 2, 0.0)
    residual = np.where(known, lone - np.abs(fits["flux"])[:, None, None] * profile, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        table["level"] = (weight * residual).sum(axis=(1, 2)) / weight.sum(axis=(1, 2))
        table["siglevel"] = 1 / np.sqrt(weight.sum(axis=(1, 2)))
    table["siglevel"][~known.any(axis=(1, 2))] = np.nan
    pixels = profile.sum(axis=(1, 2)) / (profile**2).sum(axis=(1, 2))  # flux of a star that is fitted to a level of 1
    significant = table["level"] > params.level_sigma * table["siglevel"]
    beneath = np.where(significant, table["level"] * pixels, 0.0)
    table["snrlevel"] = (np.abs(fits["flux"]) - beneath) / fits["sigflux"]


def _fill_shape(table, psf, fits, above):
    """Width and elongation, scaled to those of the PSF; neighbours stay in, so that pieces of a trail are long."""
    major, minor = moments(above, fits["x"], fits["y"], psf.fwhm_pix)
    star = moments(psf.center(above.shape[1] // 2)[None], np.zeros(1), np.zeros(1), psf.fwhm_pix)
    scale = psf.fwhm_pix / (SIGMA_TO_FWHM * np.sqrt(star[0][0] * star[1][0]))
    table["aimage"], table["bimage"] = major * scale, minor * scale
    table["fwhm"] = SIGMA_TO_FWHM * scale * np.sqrt((major**2 + minor**2) / 2)
    table["elong"] = major / minor
    table["aimagerat"], table["bimagerat"] = table["aimage"] / table["fwhm"], table["bimage"] / table["fwhm"]
    table["seeratio"] = np.minimum(psf.fwhm_pix / table["fwhm"], _MAX_SEERATIO)
    table["classtar"] = 0.5 ** (((table["fwhm"] / psf.fwhm_pix - 1) / 0.5) ** 2)


def _fill_pixels(table, difference, fits, turned, params):
    """Signs and defects of the middle pixels."""
    box = slice(HALF_PIX - 2, HALF_PIX + 3)
    table["nneg"], table["sumrat"] = sign_counts(turned[:, box, box])
    position = np.stack([fits["x"], fits["y"]], axis=1)
    table["flags"] = box_flags(difference.mask, position)
    half = int(np.ceil(_MASK_RADIUS_PIX))
    defects = windows(difference.mask, fits["x"], fits["y"], half, -1) & params.bad_bits != 0
    defects |= ~np.isfinite(windows(difference.sigma, fits["x"], fits["y"], half))
    box = slice(half - 2, half + 3)
    table["nbad"] = defects[:, box, box].sum(axis=(1, 2))
    table["maskfrac"] = defects[:, ring_of(-1, _MASK_RADIUS_PIX, half)].mean(axis=1)


def _fill_noise(table, difference, fits, turned, params):
    """Contrast with the local noise, and how well the noise is known."""
    psf, ring = difference.psf, ring_of(params.noise_inner_pix, HALF_PIX)
    ring[::2, 1::2] = ring[1::2, ::2] = False  # half of the pixels tell the noise to 3%
    _, rms, _ = ring_level(turned, ring)
    sigma = windows(difference.sigma, fits["x"], fits["y"], HALF_PIX)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["noiserat"] = ring_level(turned / sigma, ring)[1]
        table["dsnrms"] = turned[:, HALF_PIX, HALF_PIX] / rms
    reach = int(np.ceil(1.5 * psf.fwhm_pix))
    profile = psf.center(reach)
    sparse = filtered(turned, profile, _NOISE_STRIDE)
    steps = reach + _NOISE_STRIDE * np.arange(sparse.shape[1]) - HALF_PIX
    far = steps[:, None] ** 2 + steps[None, :] ** 2 > params.noise_inner_pix**2
    _, filtered_rms, _ = ring_level(sparse, far)
    wide = int(np.ceil(params.dipole_fwhm * psf.fwhm_pix))
    near = slice(HALF_PIX - reach - wide, HALF_PIX + reach + wide + 1)
    score = filtered(turned[:, near, near], profile)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["ssnrms"] = score[:, wide, wide] / filtered_rms
        deepest = score[:, ring_of(-1, params.dipole_fwhm * psf.fwhm_pix, wide)].min(axis=1)
        table["dipole"] = np.where(score[:, wide, wide] > 0, -deepest / score[:, wide, wide], np.inf)
    table["dipole"] = table["dipole"].clip(0, _LARGEST_DIPOLE)
    table["dsdiff"] = table["dsnrms"] - table["ssnrms"]


def _fill_reference(table, difference, fits):
    """The nearest source of the reference, and its light at the place."""
    sources, psf = difference.sources, difference.psf
    pairs = [("magnr", "mag"), ("sigmagnr", "sigmag"), ("snrnr", "snr"), ("chinr", "chi"), ("sharpnr", "sharp")]
    pairs += [("ranr", "ra"), ("decnr", "dec"), ("fluxnr", "flux")]
    if len(sources):
        tree = cKDTree(np.stack([sources["x"], sources["y"]], axis=1), balanced_tree=False, compact_nodes=False)
        table["distnr"], row = tree.query(np.stack([fits["x"], fits["y"]], axis=1))
        table["dxnr"], table["dynr"] = fits["x"] - sources["x"][row], fits["y"] - sources["y"][row]
        for name, source_name in pairs:
            table[name] = sources[source_name][row]
    else:
        for name in ("distnr", "dxnr", "dynr", *(name for name, _ in pairs)):
            table[name] = np.nan
    half = min(int(np.ceil(1.5 * psf.fwhm_pix)), psf.half_pix)
    profile = psf.images(fits["x"], fits["y"], half).astype(float)
    sigma = windows(difference.sigma, fits["x"], fits["y"], half, np.inf)
    weighted = np.where(np.isfinite(sigma), profile / np.where(np.isfinite(sigma), sigma, 1.0) ** 2, 0.0)
    reference = np.nan_to_num(windows(difference.reference, fits["x"], fits["y"], half, 0.0))
    information = np.maximum((weighted * profile).sum(axis=(1, 2)), 1e-300)
    table["fluxref"] = (weighted * reference).sum(axis=(1, 2)) / information
    table["fluxratio"] = np.abs(table["flux"]) / np.maximum(np.abs(table["fluxref"]), table["sigflux"])
