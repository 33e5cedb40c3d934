"""The TPV world-coordinate system: a gnomonic projection with polynomial distortion.

Intermediate coordinates ``(xi, eta) = CD (p - CRPIX)`` pass through the PV polynomials and the gnomonic
projection about CRVAL. Term order and defaults follow the FITS registry of the TPV convention (Shupe et al. 2012;
https://fits.gsfc.nasa.gov/registry/tpvwcs.html): terms 3, 11, 23, 39 are odd powers of the radius, and axis 2
counts its powers with the two coordinates exchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zsds_hpc.astrometry.sphere import deproject, project
from zsds_hpc.core.errors import BadInput

N_TERMS = 40
MAX_DEGREE = 7
#: TPV term -> power of the radius.
RADIAL = {3: 1, 11: 3, 23: 5, 39: 7}
_OTHERS = [j for j in range(N_TERMS) if j not in RADIAL]
#: TPV term -> powers of (own axis, other axis).
POWERS = dict(zip(_OTHERS, [(d - k, k) for d in range(MAX_DEGREE + 1) for k in range(d + 1)], strict=True))
#: Pixels handled at once: the temporaries stay in the cache.
_CHUNK = 8192
_NEWTON_STEPS = 30


@dataclass(frozen=True, eq=False)
class TPV:
    """A TPV solution.

    Attributes
    ----------
    crval : ndarray, shape (2,), float64
        Right ascension and declination of the tangent point, degrees.
    crpix : ndarray, shape (2,), float64
        Reference pixel (x, y), 0-based.
    cd : ndarray, shape (2, 2), float64
        Degrees per pixel.
    pv1, pv2 : ndarray, shape (40,), float64
        Polynomial coefficients of the two axes (degrees, in powers of degrees).
    """

    crval: np.ndarray
    crpix: np.ndarray
    cd: np.ndarray
    pv1: np.ndarray
    pv2: np.ndarray

    def __post_init__(self):
        shapes = {"crval": (2,), "crpix": (2,), "cd": (2, 2), "pv1": (N_TERMS,), "pv2": (N_TERMS,)}
        for name, shape in shapes.items():
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise BadInput(f"TPV {name}: shape {value.shape} or values unusable, {shape} finite numbers wanted")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if np.linalg.det(self.cd) == 0.0:
            raise BadInput(f"TPV CD matrix is singular: {self.cd.tolist()}")

    @property
    def degree(self) -> int:
        """Highest degree with a non-zero polynomial term."""
        used = [sum(POWERS[j]) for j in POWERS if self.pv1[j] or self.pv2[j]]
        return max(used, default=0)

    def pixel_to_sky(self, x, y):
        """Sky positions of pixels.

        Parameters
        ----------
        x, y : array_like, float64
            0-based pixel coordinates, any shape.

        Returns
        -------
        ra, dec : ndarray, float64, the same shape
            Degrees ICRS, ra in [0, 360).
        """
        return _by_chunks(self._to_sky, x, y)

    def sky_to_pixel(self, ra, dec):
        """Pixels of sky positions, by Newton's method on the polynomial.

        Returns
        -------
        x, y : ndarray, float64
            0-based pixels, to better than 1e-6; NaN where there is none: 90 deg or more from the tangent point, or
            where the polynomial folds over and the iteration does not settle.
        """
        return _by_chunks(self._to_pixel, ra, dec)

    def pixel_to_plane(self, x, y):
        """Gnomonic coordinates (degrees) about CRVAL of pixels, distortion included."""
        return _by_chunks(self._to_plane, x, y)

    def pixel_scale_arcsec(self, x, y):
        """Local pixel scale: square root of the pixel's solid angle, in arcsec, same shape as x and y."""
        a, b = self._intermediate(np.asarray(x, np.float64), np.asarray(y, np.float64))
        j11, j12, j21, j22 = self._jacobian(a, b)
        xi, eta = self._distort(a, b)
        area = np.abs((j11 * j22 - j12 * j21) * np.linalg.det(self.cd))
        # Solid angle of the tangent plane: cube of the cosine of the distance from the tangent point.
        shrink = (1.0 + np.radians(xi) ** 2 + np.radians(eta) ** 2) ** -0.75
        return 3600.0 * np.sqrt(area) * shrink

    def to_cards(self) -> list[tuple[str, object, str]]:
        """FITS cards (keyword, value, comment); CRPIX becomes 1-based."""
        cards = [
            ("WCSAXES", 2, "Number of WCS axes"),
            ("RADESYS", "ICRS", "Coordinate reference system"),
            ("EQUINOX", 2000.0, "Equinox"),
            ("CTYPE1", "RA---TPV", "Type of axis 1: gnomonic, polynomial distortion"),
            ("CTYPE2", "DEC--TPV", "Type of axis 2: gnomonic, polynomial distortion"),
        ]
        for i in (1, 2):
            cards += [
                (f"CUNIT{i}", "deg", "Unit of the axis"),
                (f"CRPIX{i}", float(self.crpix[i - 1]) + 1.0, "Reference pixel"),
                (f"CRVAL{i}", float(self.crval[i - 1]), "[deg] Coordinate at the reference pixel"),
            ]
        for i, j in ((1, 1), (1, 2), (2, 1), (2, 2)):
            cards.append((f"CD{i}_{j}", float(self.cd[i - 1, j - 1]), "[deg/pix] WCS matrix"))
        for i, pv in ((1, self.pv1), (2, self.pv2)):
            kept = [j for j in range(N_TERMS) if pv[j] or j == 1]
            cards += [(f"PV{i}_{j}", float(pv[j]), "Projection distortion parameter") for j in kept]
        return cards

    @classmethod
    def from_cards(cls, cards: Mapping) -> "TPV":
        """Read a TPV or plain TAN header.

        Parameters
        ----------
        cards : mapping
            Keyword -> value, such as an astropy header.

        Raises
        ------
        BadInput
            The projection is another one, or a keyword is missing or not a number.
        """
        kinds = (str(cards.get("CTYPE1", "")).strip(), str(cards.get("CTYPE2", "")).strip())
        if kinds not in (("RA---TPV", "DEC--TPV"), ("RA---TAN", "DEC--TAN")):
            raise BadInput(f"CTYPE1, CTYPE2 = {kinds}: only RA---TPV, DEC--TPV (or TAN) can be read")
        for i in (1, 2):
            unit = str(cards.get(f"CUNIT{i}", "deg")).strip()
            if unit != "deg":
                raise BadInput(f"CUNIT{i} = {unit!r}: only deg can be read")
        pv = [[_number(cards, f"PV{i}_{j}", float(j == 1)) for j in range(N_TERMS)] for i in (1, 2)]
        return cls(
            crval=np.array([_number(cards, f"CRVAL{i}") for i in (1, 2)]),
            crpix=np.array([_number(cards, f"CRPIX{i}") for i in (1, 2)]) - 1.0,
            cd=np.array([[_number(cards, f"CD{i}_{j}") for j in (1, 2)] for i in (1, 2)]),
            pv1=np.array(pv[0]),
            pv2=np.array(pv[1]),
        )

    def _intermediate(self, x, y):
        dx, dy = x - self.crpix[0], y - self.crpix[1]
        return self.cd[0, 0] * dx + self.cd[0, 1] * dy, self.cd[1, 0] * dx + self.cd[1, 1] * dy

    @cached_property
    def _matrices(self):
        return coefficient_matrix(self.pv1, 1), coefficient_matrix(self.pv2, 2)

    def _to_plane(self, x, y):
        return self._distort(*self._intermediate(x, y))

    def _to_sky(self, x, y):
        return deproject(*self._to_plane(x, y), *self.crval)

    def _distort(self, a, b):
        first, second = (horner(c, a, b) for c in self._matrices)
        for j, power in RADIAL.items():
            if self.pv1[j] or self.pv2[j]:
                radius = np.sqrt(a * a + b * b) ** power
                first, second = first + self.pv1[j] * radius, second + self.pv2[j] * radius
        return first, second

    def _jacobian(self, a, b):
        """Derivatives (d1/da, d1/db, d2/da, d2/db) of the distorted by the intermediate coordinates."""
        c1, c2 = self._matrices
        slopes = [horner(d, a, b) for c in (c1, c2) for d in (_derivative_a(c), _derivative_a(c.T).T)]
        for j, power in RADIAL.items():
            if self.pv1[j] or self.pv2[j]:
                radius = np.sqrt(a * a + b * b)
                # d(r^n)/da = n r^(n-2) a, which is zero at the origin (for r itself: taken as zero).
                pull = power * np.where(radius > 0, radius, 1.0) ** (power - 2)
                for k, pv in enumerate((self.pv1, self.pv2)):
                    slopes[2 * k] = slopes[2 * k] + pv[j] * pull * a
                    slopes[2 * k + 1] = slopes[2 * k + 1] + pv[j] * pull * b
        return slopes

    def _to_pixel(self, ra, dec):
        target1, target2 = project(ra, dec, *self.crval)
        (s11, s12), (s21, s22) = np.linalg.inv([[self.pv1[1], self.pv1[2]], [self.pv2[2], self.pv2[1]]])
        u, v = target1 - self.pv1[0], target2 - self.pv2[0]
        a, b = s11 * u + s12 * v, s21 * u + s22 * v
        inverse = np.linalg.inv(self.cd)
        tolerance = 1e-8 / np.abs(inverse).max()
        for _ in range(_NEWTON_STEPS):
            f1, f2 = self._distort(a, b)
            f1 -= target1
            f2 -= target2
            j11, j12, j21, j22 = self._jacobian(a, b)
            det = j11 * j22 - j12 * j21
            step_a, step_b = (j22 * f1 - j12 * f2) / det, (j11 * f2 - j21 * f1) / det
            a, b = a - step_a, b - step_b
            lost = (np.abs(step_a) > tolerance) | (np.abs(step_b) > tolerance)
            if not lost.any():
                break
        a = np.where(lost, np.nan, a)
        x = inverse[0, 0] * a + inverse[0, 1] * b + self.crpix[0]
        return x, inverse[1, 0] * a + inverse[1, 1] * b + self.crpix[1]


def coefficient_matrix(pv: np.ndarray, axis: int) -> np.ndarray:
    """Matrix c[i, j] of the terms ``xi^i eta^j`` from the TPV coefficients of axis 1 or 2, radial ones left out."""
    degree = max((sum(POWERS[j]) for j in POWERS if pv[j]), default=0)
    matrix = np.zeros((degree + 1, degree + 1))
    for j, (own, other) in POWERS.items():
        if own + other <= degree:
            matrix[(own, other) if axis == 1 else (other, own)] = pv[j]
    return matrix


def pv_terms(matrix: np.ndarray, axis: int) -> np.ndarray:
    """TPV coefficients, shape (40,), from the matrix of ``xi^i eta^j``; inverts `coefficient_matrix`."""
    pv = np.zeros(N_TERMS)
    for j, (own, other) in POWERS.items():
        if own + other < len(matrix):
            pv[j] = matrix[(own, other) if axis == 1 else (other, own)]
    return pv


def horner(matrix: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of ``matrix[i, j] a^i b^j`` over ``i + j < len(matrix)``, by nested multiplication."""
    n = len(matrix)
    total = np.full(np.shape(a), matrix[n - 1, 0])
    for i in range(n - 2, -1, -1):
        row = np.full(np.shape(b), matrix[i, n - 1 - i])
        for j in range(n - 2 - i, -1, -1):
            row *= b
            row += matrix[i, j]
        total *= a
        total += row
    return total


def _derivative_a(matrix: np.ndarray) -> np.ndarray:
    n = len(matrix)
    slope = matrix[1:] * np.arange(1, n)[:, None]
    return slope[:, : n - 1] if n > 1 else np.zeros((1, 1))


def _by_chunks(function, first, second):
    first, second = np.broadcast_arrays(np.asarray(first, np.float64), np.asarray(second, np.float64))
    shape, first, second = first.shape, first.ravel(), second.ravel()
    out1, out2 = np.empty(first.size), np.empty(first.size)
    for start in range(0, first.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        out1[part], out2[part] = function(first[part], second[part])
    return out1.reshape(shape)[()], out2.reshape(shape)[()]


def _number(cards: Mapping, key: str, default: float | None = None) -> float:
    value = cards.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not np.isfinite(value)
    ):
        raise BadInput(f"{key} = {value!r}: a finite number is wanted")
    return float(value)
