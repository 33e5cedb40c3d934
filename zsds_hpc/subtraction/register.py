"""Where the reference lies under a science image, and how much brighter the science image is."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zsds_hpc.astrometry.match import mutual_nearest
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.numerics.resample import Mapping
from zsds_hpc.numerics.robust import SIGMA_TO_FWHM
from zsds_hpc.photometry.linefit import fit_linear
from zsds_hpc.psf.model import monomials
from zsds_hpc.subtraction.images import SOURCE_DTYPE, Science, Template


class RegisterParams(Params):
    """How a reference is registered to a science image."""

    radius_pix: float = param(1.5, "Largest distance of a star from where the reference has it.", "px", 0.1, 20.0)
    min_snr: float = param(20.0, "Stars fainter than this in either image do not count.", "", 3.0, 1000.0)
    min_stars: int = param(20, "With fewer matched stars there is no difference image.", "", 5, 10_000)
    max_rms_pix: float = param(0.3, "Stars farther than this from their places match by chance.", "px", 0.01, 10.0)
    refine: bool = param(True, "Fit what is left of the offsets of the stars; otherwise both WCSs are trusted.")
    position_degree: int = param(3, "Degree of the polynomial of the offsets.", "", 0, 5)
    gain_degree: int = param(2, "Degree of the polynomial of the flux ratio.", "", 0, 4)
    floor_pix: float = param(0.005, "Error of a position besides photons.", "px", 0.0, 0.5)
    floor_mag: float = param(0.003, "Error of a flux besides photons.", "mag", 0.0, 0.1)
    stars_per_term: int = param(8, "The degrees are lowered to have so many stars per coefficient.", "", 2, 1000)


@dataclass(frozen=True)
class Registration:
    """A reference registered to a science image.

    Attributes
    ----------
    science, template : Science and Template
    shift : ndarray, shape (2, n_terms)
        Polynomial of what the WCSs leave: science position less mapped reference position, x and y, px.
    gain : ndarray, shape (n_terms,)
        Polynomial of 2.5 log10 (science flux / reference flux), mag.
    rms_pix, rms_mag : float
        Intrinsic scatter about both.
    n_stars : int
    """

    science: Science
    template: Template
    shift: np.ndarray
    gain: np.ndarray
    rms_pix: float
    rms_mag: float
    n_stars: int

    def to_native(self, x, y):
        """Native reference pixel of a science pixel."""
        dx, dy = (self._polynomial(c, x, y) for c in self.shift)
        return self.template.grid.wcs.sky_to_pixel(*self.science.wcs.pixel_to_sky(x - dx, y - dy))

    def from_native(self, x, y):
        """Science pixel of a native reference pixel."""
        x, y = self.science.wcs.sky_to_pixel(*self.template.grid.wcs.pixel_to_sky(x, y))
        dx, dy = (self._polynomial(c, x, y) for c in self.shift)
        return x + dx, y + dy

    def gain_at(self, x, y):
        """Science flux over reference flux."""
        return 10 ** (0.4 * self._polynomial(self.gain, x, y))

    def mapping(self, fine: bool) -> Mapping:
        """Fine or native reference pixels under the science image, flux per pixel kept, times the gain."""
        grid = self.template.grid

        def transform(x, y):
            there = self.to_native(x, y)
            return (grid.to_fine(there[0]), grid.to_fine(there[1])) if fine else there

        found = Mapping.of(transform, self.science.pix.shape, flux_scale=grid.factor**-2 if fine else 1.0)
        n_y, n_x = found.nodes.shape[1:]
        x, y = np.meshgrid((np.arange(n_x) - 1.0) * found.step, (np.arange(n_y) - 1.0) * found.step)
        found.nodes[2] *= self.gain_at(x, y)
        return found

    def sources(self) -> np.ndarray:
        """Reference sources on and around the science image, `SOURCE_DTYPE`."""
        catalogue = self.template.catalogue
        out = np.zeros(len(catalogue), SOURCE_DTYPE)
        out["x"], out["y"] = self.from_native(catalogue["xpos"] - 1.0, catalogue["ypos"] - 1.0)
        gain = self.gain_at(out["x"], out["y"])
        out["flux"], out["sigflux"] = catalogue["flux"] * gain, catalogue["sigflux"] * gain
        for name in ("mag", "sigmag", "snr", "chi", "sharp", "ra", "dec"):
            out[name] = catalogue[name]
        return out

    def _polynomial(self, coefficients, x, y):
        n_y, n_x = self.science.pix.shape
        degree = int((np.sqrt(8 * len(coefficients) + 1) - 3) / 2)
        u, v = 2 * np.asarray(x, float) / (n_x - 1) - 1, 2 * np.asarray(y, float) / (n_y - 1) - 1
        return monomials(u, v, degree) @ coefficients


class _Stars(NamedTuple):
    """Stars in both images: place on the science image, offset, ratio (mag), errors."""

    x: np.ndarray
    y: np.ndarray
    offset: np.ndarray
    ratio: np.ndarray
    error_pix: np.ndarray
    error_mag: np.ndarray


def register(science: Science, template: Template, params: RegisterParams) -> Registration:
    """Match the stars of a science image and a reference; fit their offsets and flux ratios.

    Parameters
    ----------
    science : Science
    template : Template
    params : RegisterParams

    Raises
    ------
    AlgorithmFailure
        Too few stars match, or they match by chance.
    """
    plain = Registration(science, template, np.zeros((2, 1)), np.zeros(1), 0.0, 0.0, 0)
    stars = _matched(plain, params)
    n_stars = len(stars.x)
    if n_stars < params.min_stars:
        raise AlgorithmFailure(
            f"{n_stars} stars match the reference, at least {params.min_stars} are needed", n_matched=n_stars
        )
    n_y, n_x = science.pix.shape
    place = 2 * stars.x / (n_x - 1) - 1, 2 * stars.y / (n_y - 1) - 1
    gain = fit_linear(monomials(*place, _degree(params.gain_degree, n_stars, params)), stars.ratio, stars.error_mag)
    design = monomials(*place, _degree(params.position_degree if params.refine else 0, n_stars, params))
    fits = [fit_linear(design, offset, stars.error_pix) for offset in stars.offset]
    scatter = float(np.mean([fit.scatter for fit in fits]))
    if scatter > params.max_rms_pix:
        raise AlgorithmFailure(
            f"{n_stars} stars scatter by {scatter:.2g} px about those of the reference: they match by chance",
            n_matched=n_stars,
            rms_pix=scatter,
        )
    shift = np.stack([fit.coefficients for fit in fits]) if params.refine else np.zeros((2, 1))
    return Registration(science, template, shift, gain.coefficients, scatter, gain.scatter, n_stars)


def _degree(most: int, n_stars: int, params: RegisterParams) -> int:
    degrees = [d for d in range(most + 1) if (d + 1) * (d + 2) // 2 * params.stars_per_term <= n_stars]
    return max(degrees, default=0)


def _good(catalogue: np.ndarray, params: RegisterParams) -> np.ndarray:
    usable = (catalogue["flags"] >= 0) & (catalogue["flags"] & maskbits.UNUSABLE == 0)
    usable &= np.isfinite(catalogue["xpos"] + catalogue["ypos"] + catalogue["flux"] + catalogue["sigmag"])
    return catalogue[usable & (catalogue["flux"] > 0) & (catalogue["snr"] > params.min_snr)]


def _matched(plain: Registration, params: RegisterParams) -> _Stars:
    here, there = _good(plain.science.psfcat, params), _good(plain.template.catalogue, params)
    place = np.stack([here["xpos"] - 1.0, here["ypos"] - 1.0], axis=1)
    expected = np.stack(plain.from_native(there["xpos"] - 1.0, there["ypos"] - 1.0), axis=1)
    i, j, _ = mutual_nearest(place, expected, params.radius_pix)
    here, there, place, expected = here[i], there[j], place[i], expected[j]
    sigma_pix = plain.science.seeing_pix / SIGMA_TO_FWHM * np.hypot(1 / here["snr"], 1 / there["snr"])
    return _Stars(
        place[:, 0],
        place[:, 1],
        (place - expected).T,
        2.5 * np.log10(here["flux"].astype(float) / there["flux"]),
        np.hypot(sigma_pix, params.floor_pix),
        np.hypot(np.hypot(here["sigmag"], there["sigmag"]), params.floor_mag).astype(float),
    )
