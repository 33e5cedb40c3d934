"""A point-spread function that varies over the image: cubic B-spline in the pixel, polynomial over the image."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from zsds_hpc.core.errors import BadInput
from zsds_hpc.kernels.psf import star_images


@dataclass(frozen=True)
class PsfModel:
    """Pixel-integrated ("effective", Anderson & King 2000) point-spread function of unit flux.

    P(dx, dy; x, y) = sum_t T_t(u, v) sum_ij c_tij B(m dx - i) B(m dy - j), with the cubic B-spline B, nodes i, j
    counted from the middle one, and the monomials T of u, v = place on the image from -1 to 1 along each axis
    (exponents as PSFEx counts them: 1, u, u^2, ..., v, u v, ...). Outside the nodes P = wing[0] * r^-wing[1].

    Attributes
    ----------
    coefficients : ndarray, shape (n_terms, n_nodes, n_nodes), float32
        Axes: term, y, x; n_nodes is odd.
    oversampling : int
        m, nodes per pixel.
    degree : int
        Of the polynomial over the image.
    shape : tuple of int
        (ny, nx) of the image.
    wing : tuple of float
        Factor and exponent of the profile outside the nodes, r in px.
    n_stars : int
        Stars that it was measured from; 0 for an assumed one.
    chi2_dof : float
        Median over the stars of chi2 per degree of freedom; NaN for an assumed one.
    """

    coefficients: np.ndarray
    oversampling: int
    degree: int
    shape: tuple[int, int]
    wing: tuple[float, float] = (0.0, 3.0)
    n_stars: int = 0
    chi2_dof: float = float("nan")

    def __post_init__(self) -> None:
        """Refuse what cannot be a model.

        Raises
        ------
        BadInput
            Shapes and numbers do not belong together.
        """
        n_terms, n_y, n_x = self.coefficients.shape
        if n_terms != (self.degree + 1) * (self.degree + 2) // 2 or n_y != n_x or n_x % 2 == 0:
            raise BadInput(f"PSF: {self.coefficients.shape} coefficients for a polynomial of degree {self.degree}")
        if not np.isfinite(self.coefficients).all() or min(self.shape) < 2 or self.oversampling < 1:
            raise BadInput("PSF: coefficients must be finite, the image and the nodes per pixel positive")

    @property
    def half_pix(self) -> int:
        """Half side of the largest window that the spline covers wherever the star is in its pixel."""
        return ((self.coefficients.shape[1] - 1) // 2 - 2) // self.oversampling - 1

    @cached_property
    def _cropped(self) -> dict[int, np.ndarray]:
        return {}

    def by_phase(self, half: int) -> np.ndarray:
        """Coefficients that windows of a half side need, as the kernels want them: (n_terms, n, m, ceil(n / m))."""
        half = min(half, self.half_pix)
        if half not in self._cropped:
            extra = (self.coefficients.shape[1] - 1) // 2 - (self.oversampling * (half + 1) + 2)
            inner = slice(extra, self.coefficients.shape[1] - extra)
            self._cropped[half] = by_phase(self.coefficients[:, inner, inner], self.oversampling)
        return self._cropped[half]

    def field(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Place on the image, (u, v) from -1 to 1, shape (n, 2), of 0-based pixels."""
        n_y, n_x = self.shape
        return np.stack([2 * np.asarray(x, float) / (n_x - 1) - 1, 2 * np.asarray(y, float) / (n_y - 1) - 1], axis=-1)

    def images(self, x: np.ndarray, y: np.ndarray, half: int, n_planes: int = 1) -> np.ndarray:
        """Stars of unit flux on windows about the pixel nearest to each.

        Parameters
        ----------
        x, y : ndarray, shape (n,)
            0-based px.
        half : int
            Half side of the windows.
        n_planes : int
            1 for the flux per pixel; 3 to add the derivatives by x and by y.

        Returns
        -------
        ndarray, shape (n, 2 half + 1, 2 half + 1), or (n, n_planes, ...), float32
        """
        x, y = np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
        phase = np.stack([x - np.rint(x), y - np.rint(y)], axis=1)
        planes = self._planes(self.field(x, y), phase, half)
        return planes[:, 0] if n_planes == 1 else planes[:, :n_planes]

    @cached_property
    def fwhm_pix(self) -> float:
        """FWHM (px, pixel included) in the middle of the image: diameter of the disc as large as the core's half."""
        steps, half = 8, self.half_pix
        phase = (np.stack(np.meshgrid(*[np.arange(steps)] * 2), axis=-1).reshape(-1, 2) + 0.5) / steps - 0.5
        planes = self._planes(np.zeros((steps**2, 2)), phase, half)
        return float(2 * np.sqrt((planes[:, 0] > planes[:, 0].max() / 2).sum() / steps**2 / np.pi))

    def center(self, half: int) -> np.ndarray:
        """A star in the middle of the image and of its pixel, shape (2 half + 1, 2 half + 1), float32."""
        n_y, n_x = self.shape
        at_middle = self.field(np.array([(n_x - 1) / 2]), np.array([(n_y - 1) / 2]))
        return self._planes(at_middle, np.zeros((1, 2)), half)[0, 0]

    def _planes(self, field, phase, half):
        return star_images(self.by_phase(half), np.array(self.wing, float), self.degree, field, phase, half)


def by_phase(coefficients: np.ndarray, oversampling: int) -> np.ndarray:
    """Coefficients (n_terms, n, n) sorted by phase along x: element (term, row, column % m, column // m), float32."""
    n_terms, n, _ = coefficients.shape
    n_q = -(-n // oversampling)
    padded = np.zeros((n_terms, n, n_q * oversampling), np.float32)
    padded[:, :, :n] = coefficients
    return np.ascontiguousarray(padded.reshape(n_terms, n, n_q, oversampling).swapaxes(2, 3))


def node_offsets(half: int, oversampling: int) -> np.ndarray:
    """Offsets (px) of the nodes of a spline that covers windows of the given half side."""
    reach = oversampling * (half + 1) + 2
    return np.arange(-reach, reach + 1) / oversampling


def spline_coefficients(samples: np.ndarray) -> np.ndarray:
    """Coefficients of the cubic B-spline that passes through samples at the nodes, along the last two axes.

    Unser 1999, IEEE Signal Processing Magazine 16, 22: a recursive filter, mirrored at the borders.
    """
    out = ndimage.spline_filter1d(np.asarray(samples, np.float64), 3, axis=-1, mode="mirror")
    return ndimage.spline_filter1d(out, 3, axis=-2, mode="mirror")


def monomials(u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Monomials u^i v^j, i + j <= degree, i running fastest; shape (n, n_terms)."""
    return np.stack([u**i * v**j for j in range(degree + 1) for i in range(degree + 1 - j)], axis=-1)
