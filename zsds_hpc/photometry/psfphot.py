"""PSF-fit photometry of an image in several passes: detect on the residuals, add, fit everything again."""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import pdtrc

from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry.background import BackgroundParams, residual_background
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.photometry.psfdetect import PsfDetectParams, local_peaks
from zsds_hpc.photometry.psffit import FIT_EDGE, FIT_SATURATED, Fitter, PsfFitParams, Scene, make_scene
from zsds_hpc.photometry.psfstars import PsfStarParams, cut_stars, select_stars
from zsds_hpc.psf.build import PsfBuild, PsfParams, build_psf, profile_psf, window_half_pix
from zsds_hpc.psf.model import PsfModel


class PsfPhotParams(Params):
    """How the PSF catalogue is made."""

    n_passes: int = param(3, "Passes of detection on the residuals.", "", 1, 10)
    n_iterations: int = param(2, "Gauss-Newton steps of each pass.", "", 1, 50)
    n_last_iterations: int = param(4, "Gauss-Newton steps after the last pass.", "", 1, 100)
    min_snr: float = param(4.5, "Stars whose flux is less significant in the end are dropped.", "", 0.0, 100.0)
    min_distance_fwhm: float = param(0.5, "Of two stars nearer than this the fainter one is dropped.", "FWHM", 0.0)
    min_contrast: float = param(0.25, "A peak must rise to this fraction of what is modelled there.", "", 0.0, 10.0)
    extended_chance: float = param(1e-3, "Peaks about a star that chance explains less are a galaxy's.", "", 0)
    extended_fwhm: float = param(2.0, "About a star: within this distance.", "FWHM", 0.5, 10.0)
    min_n_pix: int = param(12, "With fewer usable pixels there is no fit.", "px", 4, 1000)
    n_builds: int = param(1, "After how many passes the PSF is built anew.", "", 0, 9)
    background: BackgroundParams = param(BackgroundParams(mesh_pix=48), "Background of the residuals.")
    fit: PsfFitParams = param(PsfFitParams(), "The fit.")
    detect: PsfDetectParams = param(PsfDetectParams(), "Detection.")
    psf_stars: PsfStarParams = param(PsfStarParams(), "Stars that show the PSF.")
    psf: PsfParams = param(PsfParams(), "The PSF.")


@dataclass(frozen=True)
class PsfPhotometry:
    """Result of `psf_photometry`.

    Attributes
    ----------
    table : ndarray, shape (n,), `PSF_FIT_DTYPE`
        Stars in the order of their windows, about by row.
    psf : PsfModel
        The one that the fits were made with.
    build : PsfBuild or None
        How the PSF was built; None where it was given, or where no star could show it and a mean profile stands in.
    scene : Scene
        Data, model of all stars, variance: its data minus its model are the residuals.
    n_found : list of int
        Stars after each pass.
    """

    table: np.ndarray
    psf: PsfModel
    build: PsfBuild | None
    scene: Scene
    n_found: list[int] = field(default_factory=list)


def psf_photometry(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    gain: float,
    profile: StarProfile,
    saturate_dn: float,
    params: PsfPhotParams,
    seeds: np.ndarray | None = None,
) -> PsfPhotometry:
    """Find and fit all stars of an image, and build its point-spread function on the way.

    The first pass is made with the mean star profile; its stars, neighbours subtracted, show the PSF that the other
    passes use.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx)
        Background-subtracted image, noise of the sky (float32, DN), survey mask (int16).
    gain : float
        e/DN.
    profile : StarProfile
        Mean profile of the image's stars.
    saturate_dn : float
        Saturation level above the background, DN.
    params : PsfPhotParams
    seeds : ndarray, shape (n, 3), float64, optional
        x, y (0-based px) and flux (DN) of saturated stars, whose core the filter cannot see.

    Raises
    ------
    BadInput
        Shapes differ or the gain is not positive.
    """
    start = profile_psf(profile, images[0].shape, params.psf)
    return _photometry(images, gain, start, params, seeds, (profile, saturate_dn))


def photometry_with_psf(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    gain: float,
    psf: PsfModel,
    params: PsfPhotParams,
    seeds: np.ndarray | None = None,
) -> PsfPhotometry:
    """The same with a given point-spread function."""
    return _photometry(images, gain, psf, params, seeds, None)


def _photometry(images, gain, psf, params, seeds, building):
    scene = make_scene(images, gain, psf, params.fit)
    fitter, build, counts = Fitter(scene), None, []
    if seeds is not None:
        fitter.add(np.asarray(seeds, np.float64).reshape(-1, 3), 0, FIT_SATURATED)
    for k in range(1, params.n_passes + 1):
        if k > 1:
            if building and k <= 1 + params.n_builds:
                profile, saturate_dn = building
                build = rebuild_psf(fitter, profile, saturate_dn, params) or build
            subtract_background(fitter, params)
        fitter.add(new_stars(fitter, k, params), k)
        fitter.fit(params.n_iterations)
        fitter.recenter()
        fitter.drop(~worthy_stars(fitter, params))
        counts.append(len(fitter.stars))
    return PsfPhotometry(_finished(fitter, params), scene.psf, build, scene, counts)


def rebuild_psf(fitter: Fitter, profile: StarProfile, saturate_dn: float, params: PsfPhotParams) -> PsfBuild | None:
    """Build the PSF from the stars fitted so far and go on with it; None, and no change, where no star shows it."""
    rows = select_stars(fitter, saturate_dn, params.psf_stars)
    stars = cut_stars(fitter.scene, fitter.stars[rows], window_half_pix(profile, params.psf))
    try:
        build = build_psf(stars, fitter.scene.data.shape, profile, params.psf)
    except AlgorithmFailure:
        return None
    fitter.use_psf(build.model)
    fitter.fit(1)
    return build


def new_stars(fitter: Fitter, k: int, params: PsfPhotParams) -> np.ndarray:
    """Peaks of the residuals that are worth a star, rows (x, y, flux); in later passes near stars only."""
    scene, known = fitter.scene, fitter.stars
    peaks = local_peaks(scene, params.detect, known.value[:, :2] if k > 1 else None)
    contrast = params.min_contrast * np.ones(len(peaks))
    contrast[_in_light_of_saturated(fitter, peaks)] = 1.0
    peaks = peaks[peaks["flux"] * fitter.peak > contrast * peaks["model"]]
    places = np.stack([peaks["x"], peaks["y"]], axis=1)
    if len(known) and len(peaks):
        keep = _apart(places, fitter, params)
        peaks, places = peaks[keep], places[keep]
    return np.column_stack([places, peaks["flux"]])


def _in_light_of_saturated(fitter, peaks):
    """Peaks within the window of a saturated star, whose wings no PSF describes well."""
    bright = fitter.stars[fitter.stars.flags & FIT_SATURATED != 0]
    inside = np.zeros(len(peaks), bool)
    if not len(bright) or not len(peaks):
        return inside
    tree = cKDTree(np.stack([peaks["x"], peaks["y"]], axis=1))
    for near in tree.query_ball_point(bright.middle, np.array(fitter.halves)[bright.kind], p=np.inf):
        inside[near] = True
    return inside


def _apart(places, fitter, params):
    """Peaks that are not too near to a star, nor residuals of an extended source.

    Extended is a star of the first pass about which more peaks and stars of later passes lie than chance explains,
    given the density of stars around (Poisson).
    """
    known, fwhm_pix = fitter.stars, fitter.scene.psf.fwhm_pix
    reach = params.extended_fwhm * fwhm_pix
    every, first = cKDTree(known.value[:, :2]), known.value[known.pass_ <= 1, :2]
    tree, later = cKDTree(first), known.value[known.pass_ > 1, :2]
    star, added = (tree.query(p, distance_upper_bound=reach)[1] for p in (places, later))
    about = np.bincount(star, minlength=len(first) + 1) + np.bincount(added, minlength=len(first) + 1)
    about[len(first)] = 0
    rows = np.flatnonzero(about > 1)
    extended = np.zeros(about.size, bool)
    extended[rows] = pdtrc(about[rows] - 1.0, _expected(every, first[rows], reach)) < params.extended_chance
    return (every.query(places)[0] > params.min_distance_fwhm * fwhm_pix) & ~extended[star]


def _expected(tree, places, reach):
    """Stars expected within `reach` of places from those in a ring around, five times as wide."""
    inner, outer = (tree.query_ball_point(places, r, return_length=True) for r in (reach, 5 * reach))
    return (outer - inner + 1) / 24.0


def subtract_background(fitter: Fitter, params: PsfPhotParams) -> None:
    """Take what the residuals show of the background out of the scene's data, and correct its noise, in place."""
    scene = fitter.scene
    level, noise_factor = residual_background(scene.images, params.background)
    level[np.isinf(scene.variance)] = 0
    scene.data -= level
    scene.variance *= noise_factor**2
    fitter.activate()


def worthy_stars(fitter: Fitter, params: PsfPhotParams) -> np.ndarray:
    """Which stars are significant, have pixels, are within the image and are no double of a brighter one."""
    scene, stars = fitter.scene, fitter.stars
    x, y, flux = stars.value.T
    n_y, n_x = scene.data.shape
    worthy = (flux > 0) & (flux * np.sqrt(stars.information[:, 0]) >= params.min_snr)
    worthy &= stars.information[:, 1] >= params.min_n_pix
    worthy &= (x > -0.5) & (x < n_x - 0.5) & (y > -0.5) & (y < n_y - 0.5)
    rows = np.flatnonzero(worthy)
    if rows.size > 1:
        near = params.min_distance_fwhm * scene.psf.fwhm_pix
        one, other = rows[cKDTree(stars.value[rows, :2]).query_pairs(near, output_type="ndarray")].T
        worthy[np.where(flux[one] < flux[other], one, other)] = False
    return worthy


def _finished(fitter, params):
    """The last steps, with the table of results."""
    fitter.fit(params.n_last_iterations)
    fitter.recenter()
    worthy = worthy_stars(fitter, params)
    if not worthy.all():
        fitter.drop(~worthy)
        fitter.fit(2)
    stars, half = fitter.stars, fitter.halves[0]
    n_y, n_x = fitter.scene.data.shape
    inside = (stars.middle >= half).all(axis=1) & (stars.middle < np.array([n_x - half, n_y - half])).all(axis=1)
    stars.flags[~inside] |= FIT_EDGE
    return fitter.table()
