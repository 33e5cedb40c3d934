"""Simultaneous PSF fits of all stars of an image: sparse normal equations, Gauss-Newton steps, errors.

One image is one least-squares problem: flux and position of every star are free at once, and stars whose cores touch
share terms of the normal equations (blocks of 3 x 3), which conjugate gradients solve. What is farther apart meets
through the residuals of the next step. Nothing grows with the size of a group.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

import zsds_hpc.kernels.psffit as kernel
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.params import Params, param
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
_OFF_MIDDLE = 0.6  # px from the window's middle beyond which the window is moved
_WINDOW_REACH = 0.9  # px that a star may move before its window is moved


class PsfFitParams(Params):
    """How stars are fitted."""

    window_fwhm: float = param(2.5, "Half side of the window of a faint star, in FWHM.", "FWHM", 1.0, 6.0)
    window_edge_sigma: float = param(0.15, "A star's window reaches to where it falls below this sky noise.", "", 0.01)
    pair_fwhm: float = param(3.5, "Stars this close along each axis are solved together.", "FWHM", 0.5, 5.0)
    damping_pix: float = param(1.0, "Levenberg damping of the steps in position.", "px", 0.05, 100.0)
    max_step_pix: float = param(0.5, "Largest step in position.", "px", 0.05, 5.0)
    rest_sigma: float = param(0.03, "A star whose step is smaller, in units of its error, is at rest.", "", 0.0, 1.0)
    tolerance: float = param(0.01, "Of the conjugate gradients.", "", 1e-10, 0.5)
    max_solver_iterations: int = param(60, "Of the conjugate gradients.", "", 1, 10_000)
    psf_error: float = param(0.0, "Error of the PSF relative to the model, in the noise of the fit.", "", 0.0, 0.5)
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
    active : ndarray, shape (n,), bool
        What is not yet at rest.
    information : ndarray, shape (n, 2), float64
        On the flux alone (1 / DN^2), and usable pixels, as of the last step.
    """

    value: np.ndarray
    middle: np.ndarray
    kind: np.ndarray
    pass_: np.ndarray
    flags: np.ndarray
    active: np.ndarray
    information: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: np.ndarray) -> "Stars":
        """Copy of some rows, in their order."""
        return Stars(*(np.ascontiguousarray(getattr(self, f.name)[rows]) for f in fields(self)))

    def scaled(self, factor: float) -> "Stars":
        """The same stars with fluxes times a factor."""
        return replace(self, value=self.value * np.array([1.0, 1.0, factor]))


def joined(one: Stars, other: Stars) -> Stars:
    """Both, sorted."""
    return in_order(Stars(*(np.concatenate([getattr(one, f.name), getattr(other, f.name)]) for f in fields(Stars))))


def in_order(stars: Stars) -> Stars:
    """The stars by row and column of their windows' middles."""
    return stars[np.lexsort((stars.value[:, 1], stars.value[:, 0], stars.middle[:, 0], stars.middle[:, 1]))]


class Fitter:
    """The machinery of one scene; keeps the scene's model equal to the sum of its stars."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        base = int(np.clip(np.ceil(scene.params.window_fwhm * scene.psf.fwhm_pix), 3, 60))
        self.halves = (base, *(h for h in _WINDOWS_PIX if h > base))
        self.stars = self._made(np.zeros((0, 3)), 0, 0)
        self.use_psf(scene.psf)

    def use_psf(self, psf: PsfModel) -> None:
        """Take this PSF from now on; all stars are rendered again and active."""
        self.scene.psf = psf
        self.psf = kernel.Psf([psf.by_phase(h) for h in self.halves], self.halves, psf.wing, psf.degree, psf.shape)
        self.reach = int(min(2 * self.halves[0], np.ceil(self.scene.params.pair_fwhm * psf.fwhm_pix)))
        self.edges = _edge_values(psf, self.halves)
        self.peak = float(psf.center(1)[1, 1])
        self.activate()
        self._render_all()

    def window_class(self, flux: np.ndarray) -> np.ndarray:
        """Class of the window that a star of each flux needs, int32."""
        with np.errstate(divide="ignore"):
            limits = self.scene.params.window_edge_sigma * self.scene.sky_noise_dn / self.edges
        return np.searchsorted(np.maximum.accumulate(limits), flux).clip(0, len(self.halves) - 1).astype(np.int32)

    def _made(self, value: np.ndarray, pass_: int, flags: int) -> Stars:
        n, middle = len(value), np.rint(value[:, :2]).astype(np.int32)
        kind = self.window_class(value[:, 2]) if n else np.zeros(0, np.int32)
        passes, bits = np.full(n, pass_, np.int16), np.full(n, flags, np.int16)
        return Stars(np.asarray(value, np.float64), middle, kind, passes, bits, np.ones(n, bool), np.zeros((n, 2)))

    def add(self, value: np.ndarray, pass_: int, flags: int = 0) -> None:
        """Add stars, rows (x, y, flux); they and what they touch become active."""
        new = in_order(self._made(value, pass_, flags))
        self._render(new)
        n_old = len(self.stars)
        self.stars = joined(self.stars, new)
        if n_old:
            self._wake(self.stars.pass_ == pass_)

    def drop(self, gone: np.ndarray) -> None:
        """Remove stars; what they touched becomes active."""
        if gone.any():
            self._wake(gone)
            self._render(self.stars[gone].scaled(-1.0))
            self.stars = self.stars[~gone]

    def activate(self) -> None:
        """All stars are to be fitted again."""
        self.stars.active[:] = True

    def _wake(self, source: np.ndarray) -> None:
        """Stars paired with these become active."""
        start, earlier = kernel.find_pairs(self.stars.middle, self.reach)
        later = np.repeat(np.arange(len(self.stars)), np.diff(start))
        self.stars.active[later[source[earlier]]] = True
        self.stars.active[earlier[source[later]]] = True

    def _render(self, stars: Stars) -> None:
        kernel.render(self.psf, stars.value, stars.middle, stars.kind, self.scene.model)

    def _render_all(self) -> None:
        self.scene.model[:] = 0
        self._render(self.stars)

    def _replace(self, rows: np.ndarray, new: Stars) -> None:
        """Give some stars new values and windows."""
        if 2 * rows.size > len(self.stars):
            self._assign(rows, new)
            self._render_all()
        else:
            self._render(self.stars[rows].scaled(-1.0))
            self._render(new)
            self._assign(rows, new)

    def _assign(self, rows: np.ndarray, new: Stars) -> None:
        for f in fields(new):
            getattr(self.stars, f.name)[rows] = getattr(new, f.name)

    def _equations(self, stars: Stars, pairs: tuple) -> tuple[np.ndarray, np.ndarray]:
        """Normal equations (own, shared) about the present values."""
        own, shared = np.zeros((len(stars), 10)), np.zeros((len(pairs[1]), 9))
        kernel.normal_equations(
            self.psf, self.scene.images, self.scene.noise, stars.value, stars.middle, stars.kind, pairs, own, shared
        )
        hold_positions(own, shared, pairs, stars.flags & FIT_HELD != 0)
        return own, shared

    def step(self) -> None:
        """One Gauss-Newton step of all active stars; those at rest with resting neighbours leave the active set."""
        rows, params = np.flatnonzero(self.stars.active), self.scene.params
        stars = self.stars[rows]
        pairs = kernel.find_pairs(stars.middle, self.reach)
        own, shared = self._equations(stars, pairs)
        stars.information = own[:, [0, 9]]
        own[:, 3] += params.damping_pix**-2
        own[:, 5] += params.damping_pix**-2
        step, _ = kernel.solve(own, shared, pairs, params.max_solver_iterations, params.tolerance)
        stars.value[:, :2] += np.clip(step[:, 1:], -params.max_step_pix, params.max_step_pix)
        reach = stars.middle + np.array([[[-_WINDOW_REACH]], [[_WINDOW_REACH]]])
        stars.value[:, :2] = stars.value[:, :2].clip(reach[0], reach[1])
        stars.value[:, 2] += step[:, 0]
        size = np.abs(step) * np.sqrt(np.maximum(own[:, [0, 3, 5]], 0))
        stars.active = _moving(size.max(axis=1, initial=0) > params.rest_sigma, pairs)
        self._replace(rows, stars)

    def fit(self, n_iterations: int) -> None:
        """Gauss-Newton steps until all stars are at rest, at most so many."""
        for _ in range(n_iterations):
            if not self.stars.active.any():
                break
            self.step()

    def fit_fluxes(self, n_iterations: int = 3) -> None:
        """Fluxes of stars whose positions are all held: linear but for the photon noise of the weights."""
        for _ in range(n_iterations):
            self.activate()
            self.step()
            self.recenter()

    def recenter(self) -> None:
        """Windows about where the stars are now, as wide as their flux asks for."""
        stars = self.stars
        kind = self.window_class(stars.value[:, 2])
        off = np.abs(stars.value[:, :2] - stars.middle).max(axis=1, initial=0) > _OFF_MIDDLE
        rows = np.flatnonzero(off | (kind != stars.kind))
        new = stars[rows]
        new.kind, new.middle = kind[rows], np.rint(new.value[:, :2]).astype(np.int32)
        self._replace(rows, new)
        self.stars = in_order(self.stars)

    def table(self) -> np.ndarray:
        """Results with errors, shape (n,), `PSF_FIT_DTYPE`."""
        stars, params, psf = self.stars, self.scene.params, self.scene.psf
        pairs = kernel.find_pairs(stars.middle, self.reach)
        own, shared = self._equations(stars, pairs)
        cov = kernel.covariances(own, shared, pairs, params.least_coupling)
        quality = kernel.quality(
            self.psf, self.scene.images, self.scene.noise, stars.value, stars.middle, params.chi_fwhm * psf.fwhm_pix,
            psf.fwhm_pix / 2,
        )  # fmt: skip
        out = np.zeros(len(stars), PSF_FIT_DTYPE)
        out["x"], out["y"], flux = stars.value.T
        out["flux"] = flux - _flux_bias(flux, own[:, 0], stars.flags & FIT_HELD != 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out["sigflux"] = np.sqrt(cov[:, 0])
            out["crowding"] = 1 - 1 / (own[:, 0] * cov[:, 0])
        out["var_x"], out["cov_xy"], out["var_y"] = cov[:, 3], cov[:, 4], cov[:, 5]
        out["chi"], out["sharp"], out["dominance"] = quality.T
        out["n_pix"], out["flags"], out["pass_"] = own[:, 9], stars.flags, stars.pass_
        return out


def _flux_bias(flux, information, held):
    """What a free position adds to the flux on average: the fit climbs the noise, by sigma^2 / flux.

    Portillo, Speagle & Finkbeiner 2020, AJ 159, 165: (p - 1) / 2 sigma^2 / flux for p free parameters.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = 1 / (information * flux)
    return np.where((flux > 0) & (information > 0) & ~held, np.minimum(bias, flux / 2), 0.0)


def _moving(moved, pairs):
    """Stars that moved, and those paired with one."""
    start, earlier = pairs
    later = np.repeat(np.arange(moved.size), np.diff(start))
    moving = moved.copy()
    moving[later[moved[earlier]]] = True
    moving[earlier[moved[later]]] = True
    return moving


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
