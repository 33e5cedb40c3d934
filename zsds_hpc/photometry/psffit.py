"""Simultaneous PSF fits of all stars of an image: sparse normal equations, Gauss-Newton steps, errors.

One image is one least-squares problem: flux and position of every star are free at once, and stars whose cores touch
share terms of the normal equations (blocks of 3 x 3), which conjugate gradients solve. What is farther apart meets
through the residuals of the next step. Nothing grows with the size of a group.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels import psffit as kernel
from zsds_hpc.photometry.seeing import BAD_IN_STAR
from zsds_hpc.psf.model import PsfModel

PSF_FIT_DTYPE = np.dtype(
    [
        ("x", "f8"),  # 0-based px
        ("y", "f8"),
        ("flux", "f8"),  # total, DN
        ("sigflux", "f8"),
        ("var_x", "f8"),  # px^2
        ("var_y", "f8"),
        ("cov_xy", "f8"),
        ("chi", "f4"),
        ("sharp", "f4"),
        ("n_pix", "i4"),  # usable pixels of the window
        ("crowding", "f4"),  # share of the variance of the flux that is owed to neighbours
        ("dominance", "f4"),  # model of the star over the model of all stars, at its middle pixel
        ("flags", "i2"),  # FIT_* bits
        ("pass_", "i2"),  # in which it was found, from 1
    ]
)
#: Bits of `flags`: position held, saturated, cut by the border.
FIT_HELD, FIT_SATURATED, FIT_EDGE = 1, 2, 4

_WINDOWS_PIX = (8, 12, 18, 27, 40, 60)
_TOO_FEW_PIXELS = 6
_WINDOW_REACH = 0.9  # px that a star may move before its window is moved


class PsfFitParams(Params):
    """How stars are fitted."""

    window_fwhm: float = param(2.5, "Half side of the window of a faint star, in FWHM.", "FWHM", 1.0, 6.0)
    window_edge_sigma: float = param(0.15, "A star's window reaches to where it falls below this sky noise.", "", 0.01)
    pair_fwhm: float = param(3.5, "Stars this close along each axis are solved together.", "FWHM", 0.5, 5.0)
    damping_pix: float = param(1.0, "Levenberg damping of the steps in position.", "px", 0.05, 100.0)
    max_step_pix: float = param(0.5, "Largest step in position.", "px", 0.05, 5.0)
    tolerance: float = param(0.01, "Of the conjugate gradients.", "", 1e-10, 0.5)
    max_solver_iterations: int = param(60, "Of the conjugate gradients.", "", 1, 10_000)
    psf_error: float = param(0.0, "Error of the PSF relative to the model, added to the noise of the fit.", "", 0.0, 0.5)
    chi_fwhm: float = param(1.5, "chi and sharp see pixels within this distance.", "FWHM", 0.5, 4.0)
    least_coupling: float = param(0.005, "Neighbours less coupled than this are held when errors are taken.", "", 0.0)
    bad_bits: int = param(BAD_IN_STAR, "Pixels with any of these mask bits have no weight.", "", 0, 32767)


@dataclass
class Scene:
    """An image on the bench: data, what is modelled so far, noise.

    Attributes
    ----------
    data : ndarray, shape (ny, nx), float32
        Background-subtracted image, DN; 0 where unusable.
    model : ndarray, shape (ny, nx), float32
        All stars fitted so far.
    variance : ndarray, shape (ny, nx), float32
        Of the sky, DN^2; infinite where unusable.
    gain : float
        e/DN.
    psf : PsfModel
    params : PsfFitParams
    """

    data: np.ndarray
    model: np.ndarray
    variance: np.ndarray
    gain: float
    psf: PsfModel
    params: PsfFitParams

    @property
    def images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Data, model, variance: what the kernels take."""
        return self.data, self.model, self.variance

    @cached_property
    def sky_noise_dn(self) -> float:
        """Typical noise of the sky."""
        sample = self.variance[:: max(1, self.variance.shape[0] // 64), :: max(1, self.variance.shape[1] // 64)]
        good = sample[np.isfinite(sample)]
        return float(np.sqrt(np.median(good))) if good.size else 1.0

    @property
    def noise(self) -> np.ndarray:
        """1 / gain and the square of the relative error of the PSF."""
        return np.array([1 / self.gain, self.params.psf_error**2])


def make_scene(
    images: tuple[np.ndarray, np.ndarray, np.ndarray], gain: float, psf: PsfModel, params: PsfFitParams
) -> Scene:
    """Put an image on the bench.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx)
        Background-subtracted image, noise of the sky (float32, DN), survey mask (int16).
    gain : float
        e/DN.
    psf : PsfModel
    params : PsfFitParams

    Raises
    ------
    BadInput
        Shapes differ or the gain is not positive.
    """
    pix_sub, rms, mask = images
    if not pix_sub.shape == rms.shape == mask.shape == psf.shape or not gain > 0:
        raise BadInput(f"PSF fit: image {pix_sub.shape}, mask {mask.shape}, PSF {psf.shape}, gain {gain} do not fit")
    unusable = (mask & np.int16(params.bad_bits)) != 0
    unusable |= ~np.isfinite(pix_sub)
    variance = rms * rms
    unusable |= ~(variance > 0)
    np.copyto(variance, np.inf, where=unusable)
    data = pix_sub.astype(np.float32)
    np.copyto(data, 0, where=unusable)
    return Scene(data, np.zeros_like(data), variance, gain, psf, params)


@dataclass
class Stars:
    """Stars being fitted, sorted by row and column of the middle of their windows.

    Attributes
    ----------
    value : ndarray, shape (n, 3), float64
        x, y, flux.
    middle : ndarray, shape (n, 2), int32
        Middle pixel (x, y) of each window.
    kind : ndarray, shape (n,), int32
        Class of the window.
    pass_ : ndarray, shape (n,), int16
        In which pass each was found.
    flags : ndarray, shape (n,), int16
    """

    value: np.ndarray
    middle: np.ndarray
    kind: np.ndarray
    pass_: np.ndarray
    flags: np.ndarray

    def __len__(self) -> int:
        return len(self.value)


class Fitter:
    """The machinery of one scene: kernels' PSF, window classes."""

    def __init__(self, scene: Scene) -> None:
        psf, params = scene.psf, scene.params
        self.scene = scene
        base = int(np.clip(np.ceil(params.window_fwhm * psf.fwhm_pix), 3, 60))
        self.halves = (base, *(h for h in _WINDOWS_PIX if h > base))
        wing = psf.wing
        self.psf = kernel.Psf([psf.by_phase(h) for h in self.halves], self.halves, wing, psf.degree, psf.shape)
        self.reach = int(min(2 * base, np.ceil(params.pair_fwhm * psf.fwhm_pix)))
        self.edges = _edge_values(psf, self.halves)
        self.peak = float(psf.center(1)[1, 1])

    def window_class(self, flux: np.ndarray) -> np.ndarray:
        """Class of the window that a star of each flux needs, int32."""
        with np.errstate(divide="ignore"):
            limits = self.scene.params.window_edge_sigma * self.scene.sky_noise_dn / self.edges
        return np.searchsorted(np.maximum.accumulate(limits), flux).clip(0, len(self.halves) - 1).astype(np.int32)

    def arranged(self, value: np.ndarray, pass_: np.ndarray, flags: np.ndarray) -> Stars:
        """Stars sorted, with windows about where they are now."""
        middle = np.rint(value[:, :2]).astype(np.int32)
        order = np.lexsort((value[:, 0], middle[:, 0], middle[:, 1]))
        value, middle = np.ascontiguousarray(value[order]), np.ascontiguousarray(middle[order])
        return Stars(value, middle, self.window_class(value[:, 2]), pass_[order], flags[order])

    def render(self, stars: Stars) -> None:
        """The scene's model becomes that of these stars."""
        self.scene.model[:] = 0
        kernel.render(self.psf, stars.value, stars.middle, stars.kind, self.scene.model)

    def equations(self, stars: Stars, pairs: tuple) -> tuple[np.ndarray, np.ndarray]:
        """Normal equations (own, shared) about the present values; the scene's model must be up to date."""
        own, shared = np.zeros((len(stars), 10)), np.zeros((len(pairs[1]), 9))
        kernel.normal_equations(
            self.psf, self.scene.images, self.scene.noise, stars.value, stars.middle, stars.kind, pairs, own, shared
        )
        return own, shared

    def step(self, stars: Stars, pairs: tuple) -> np.ndarray:
        """One Gauss-Newton step of all stars; returns information on the flux and usable pixels, shape (n, 2)."""
        params = self.scene.params
        own, shared = self.equations(stars, pairs)
        hold_positions(own, shared, pairs, stars.flags & FIT_HELD != 0)
        own[:, 3] += params.damping_pix**-2
        own[:, 5] += params.damping_pix**-2
        step, _ = kernel.solve(own, shared, pairs, params.max_solver_iterations, params.tolerance)
        limited = np.clip(step[:, 1:], -params.max_step_pix, params.max_step_pix)
        moved = stars.value[:, :2] + limited
        stars.value[:, :2] = np.clip(moved, stars.middle - _WINDOW_REACH, stars.middle + _WINDOW_REACH)
        stars.value[:, 2] += step[:, 0]
        return own[:, [0, 9]]

    def fit(self, stars: Stars, n_iterations: int) -> tuple[tuple, np.ndarray]:
        """Gauss-Newton steps, the model brought up to date; returns pairs and what the last step returned."""
        pairs = kernel.find_pairs(stars.middle, self.reach)
        self.render(stars)
        information = np.zeros((len(stars), 2))
        for _ in range(n_iterations):
            information = self.step(stars, pairs)
            self.render(stars)
        return pairs, information

    def table(self, stars: Stars, pairs: tuple) -> np.ndarray:
        """Results with errors, shape (n,), `PSF_FIT_DTYPE`."""
        params, psf = self.scene.params, self.scene.psf
        own, shared = self.equations(stars, pairs)
        hold_positions(own, shared, pairs, stars.flags & FIT_HELD != 0)
        cov = kernel.covariances(own, shared, pairs, params.least_coupling)
        quality = kernel.quality(
            self.psf, self.scene.images, self.scene.noise, stars.value, stars.middle, params.chi_fwhm * psf.fwhm_pix,
            psf.fwhm_pix / 2,
        )  # fmt: skip
        out = np.zeros(len(stars), PSF_FIT_DTYPE)
        out["x"], out["y"], out["flux"] = stars.value.T
        with np.errstate(invalid="ignore", divide="ignore"):
            out["sigflux"] = np.sqrt(cov[:, 0])
            out["crowding"] = 1 - 1 / (own[:, 0] * cov[:, 0])
        out["var_x"], out["cov_xy"], out["var_y"] = cov[:, 3], cov[:, 4], cov[:, 5]
        out["chi"], out["sharp"], out["dominance"] = quality.T
        out["n_pix"], out["flags"], out["pass_"] = own[:, 9], stars.flags, stars.pass_
        return out


def hold_positions(own: np.ndarray, shared: np.ndarray, pairs: tuple, held: np.ndarray) -> None:
    """Take the positions of held stars out of the normal equations, in place."""
    own[held, 1:6] = np.array([0, 0, 1, 0, 1])
    own[held, 7:9] = 0
    later = np.repeat(np.arange(len(own)), np.diff(pairs[0]))
    shared[held[later], 3:] = 0
    columns = np.array([1, 2, 4, 5, 7, 8])
    shared[np.ix_(held[pairs[1]], columns)] = 0


def _edge_values(psf: PsfModel, halves: tuple[int, ...]) -> np.ndarray:
    """Profile at the distance of each half side, mean over the four axes' directions."""
    stamp, middle = psf.center(max(halves)), max(halves)
    ring = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    return np.array([np.mean([max(stamp[middle + h * a, middle + h * b], 0) for a, b in ring]) for h in halves])
