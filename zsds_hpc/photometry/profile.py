"""The mean star profile of an image: an elliptical Moffat, integrated over pixels."""

from dataclasses import dataclass, replace

import numpy as np

from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.kernels.centroid import profile_images

#: Tabulated pixel phases per axis, less one; the profile is sampled at this step for the pixel integral too.
PHASE_STEPS = 16
MAX_HALF_PIX = 12
#: Scale length, in FWHM, of the exponential disc that defines "slightly extended" (Desai et al. 2012).
_DISC_SCALE = 1 / 16
_N_STEPS = 8
_FIT_STEPS = 8
_SHAPE_DELTA = 0.02
#: A star whose chi2 is this many times the median is not like the others.
_WORSE = 2.5


@dataclass(frozen=True)
class StarProfile:
    """Elliptical Moffat profile before it is integrated over pixels.

    Attributes
    ----------
    fwhm_pix : float
        Full width at half maximum, geometric mean of the axes, of the light as it falls on the detector.
    beta : float
        Moffat exponent.
    e1, e2 : float
        Ellipticity components: ln(a / b) times cos and sin of twice the angle of the major axis from +x to
        +y.
    n_stars : int
        Stars that it was measured from, 0 for an assumed profile.
    """

    fwhm_pix: float
    beta: float = 3.5
    e1: float = 0.0
    e2: float = 0.0
    n_stars: int = 0

    @property
    def elongation(self) -> float:
        """Major over minor axis."""
        return float(np.exp(np.hypot(self.e1, self.e2)))

    @property
    def angle_deg(self) -> float:
        """Angle of the major axis from +x towards +y, degrees."""
        return float(np.degrees(np.arctan2(self.e2, self.e1) / 2))

    @property
    def observed_fwhm_pix(self) -> float:
        """FWHM after integration over the pixel (variances added)."""
        return float(np.sqrt(self.fwhm_pix**2 + 8 * np.log(2) / 12))

    def density(self, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Flux per px^2 at an offset from the centre, for unit total flux."""
        alpha2 = (self.fwhm_pix / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        size = np.hypot(self.e1, self.e2)
        ch, sh = np.cosh(size), np.sinh(size) / size if size > 0 else 1.0
        r2 = ch * (dx**2 + dy**2) - sh * (self.e1 * (dx**2 - dy**2) + 2 * self.e2 * dx * dy)
        return (self.beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -self.beta


def window_half_pix(fwhm_pix: float) -> int:
    """Half side of the fitting window: 1.5 FWHM, at least 2 px."""
    return int(np.clip(np.ceil(1.5 * fwhm_pix), 2, MAX_HALF_PIX))


def noise_equivalent_area(profile: StarProfile) -> float:
    """Area (px) whose sky noise enters an optimally weighted flux: 1 / sum p^2 (King 1983), mean over phases."""
    half = window_half_pix(profile.fwhm_pix) + 2
    table = _by_phase(_integrated(profile, half, _FIT_STEPS)[None], half, _FIT_STEPS).astype(np.float64)
    return float(np.mean(1 / (table[:-1, :-1, 0] ** 2).sum(axis=2)))


def profile_table(profile: StarProfile, half: int, steps: int = PHASE_STEPS) -> np.ndarray:
    """Tabulate a profile for `kernels.centroid`.

    Parameters
    ----------
    profile : StarProfile
    half : int
        Half side of the window, px.
    steps : int
        Phases per pixel, even; also the step of the pixel integral.

    Returns
    -------
    ndarray, shape (steps + 1, steps + 1, 4, (2 half + 1)^2), float32
        Phase of the centre in y and x from -0.5 to 0.5; planes: profile, derivatives by the centre's x and
        y, and the change when the source is an exponential disc of scale FWHM / 16 instead of a point.
    """
    fine = _integrated(profile, half, steps)
    grad_y, grad_x = np.gradient(fine, 1 / steps)
    laplacian = np.gradient(grad_y, 1 / steps, axis=0) + np.gradient(grad_x, 1 / steps, axis=1)
    disc = 1.5 * (_DISC_SCALE * profile.fwhm_pix) ** 2 * laplacian
    return _by_phase(np.stack([fine, -grad_x, -grad_y, disc]), half, steps)


def _integrated(profile, half, steps):
    """The pixel-integrated profile on a grid of 1 / steps px, wide enough for all phases and two more steps."""
    reach = (half + 1) * steps + 2
    offsets = np.arange(-reach - steps // 2, reach + steps // 2 + 1) / steps
    density = profile.density(offsets[None, :], offsets[:, None])
    return _box_integral(_box_integral(density, steps).T, steps).T


def _by_phase(planes, half, steps):
    """Pixel i of phase p lies at i - p from the centre."""
    phase = np.arange(-(steps // 2), steps // 2 + 1)
    index = np.arange(-half, half + 1)[None, :] * steps - phase[:, None] + planes.shape[1] // 2
    table = planes[:, index[:, None, :, None], index[None, :, None, :]].astype(np.float32)
    return np.ascontiguousarray(table.transpose(1, 2, 0, 3, 4)).reshape(steps + 1, steps + 1, len(planes), -1)


def _box_integral(values, steps):
    """Integral of the rows over one pixel: trapezoids over `steps` intervals, end corrected (Simpson)."""
    weights = np.ones(steps + 1)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    weights /= 3 * steps
    n = values.shape[1] - steps
    return sum(w * values[:, k : k + n] for k, w in enumerate(weights))


def fit_star_profile(stamps: np.ndarray, var: np.ndarray, start: StarProfile) -> StarProfile:
    """Fit the profile that stars share, together with the flux, position and sky of each.

    Gauss-Newton steps in ln FWHM, 1/beta and the two ellipticities, with the stars' own parameters
    projected out (Golub & Pereyra 1973). Stars that fit much worse than the others (blends, galaxies) are
    dropped.

    Parameters
    ----------
    stamps, var : ndarray, shape (n, side, side), float64
        Background-subtracted windows centred on the brightest pixel, DN, and their variances.
    start : StarProfile
        First guess.

    Raises
    ------
    AlgorithmFailure
        Fewer than 3 stars, or the width leaves 0.3 to 20 px.
    """
    if len(stamps) < 3:
        raise AlgorithmFailure("star profile: too few stars", n_stars=len(stamps))
    data, weight = (a.reshape(len(stamps), -1) for a in (stamps, 1 / var))
    shape = np.array([np.log(start.fwhm_pix), 1 / start.beta, start.e1, start.e2])
    centres = np.zeros((len(data), 2))
    for _ in range(_N_STEPS):
        step, moves, good = _joint_step(shape, centres, data, weight, stamps.shape[1] // 2)
        shape = shape + np.clip(step, -0.2, 0.2)
        shape[1] = np.clip(shape[1], 0.05, 0.6)
        centres = np.clip(centres + np.clip(moves, -0.3, 0.3), -0.5, 0.5)
        if not 0.3 < np.exp(shape[0]) < 20:
            raise AlgorithmFailure("star profile: the width ran away", fwhm_pix=float(np.exp(shape[0])))
        if np.abs(step).max() < 1e-3:
            break
    return replace(_of_shape(shape), n_stars=int(good.sum()))


def _of_shape(shape):
    return StarProfile(float(np.exp(shape[0])), float(1 / shape[1]), float(shape[2]), float(shape[3]))


def _joint_step(shape, centres, data, weight, half):
    """Step of the shared shape (4,), moves of the centres (n, 2), and which stars were used."""
    planes = _planes(shape, centres, half)
    model = planes[:, 0]
    flux = (weight * model * data).sum(axis=1) / (weight * model**2).sum(axis=1)
    changed = [_changed(shape + d, centres, half) for d in np.eye(4) * _SHAPE_DELTA]
    shared = flux[:, None, None] * (np.stack(changed, axis=2) - model[:, :, None]) / _SHAPE_DELTA
    own = np.stack([model, flux[:, None] * planes[:, 1], flux[:, None] * planes[:, 2], np.ones_like(model)], axis=2)
    residual = data - flux[:, None] * model
    weighted = own * weight[:, :, None]
    inverse = np.linalg.pinv(np.einsum("nki,nkj->nij", weighted, own), hermitian=True)
    cross = np.einsum("nki,nkj->nij", weighted, shared)
    pull = np.einsum("nki,nk->ni", weighted, residual)
    chi2 = np.einsum("nk,nk->n", weight, residual**2) - np.einsum("ni,nij,nj->n", pull, inverse, pull)
    good = (chi2 < _WORSE * np.median(chi2)) & (flux > 0)
    curvature = np.einsum("nki,nk,nkj->nij", shared, weight, shared) - np.einsum(
        "nai,nab,nbj->nij", cross, inverse, cross
    )
    slope = np.einsum("nki,nk,nk->ni", shared, weight, residual) - np.einsum("nai,nab,nb->ni", cross, inverse, pull)
    step = np.linalg.lstsq(curvature[good].sum(axis=0), slope[good].sum(axis=0), rcond=1e-10)[0]
    moves = np.einsum("nab,nb->na", inverse, pull - cross @ step)[:, 1:3]
    return step, moves, good


def _planes(shape, centres, half):
    """Profile planes (n, 4, n_pixels) of unit stars at each centre."""
    return _images(profile_table(_of_shape(shape), half, _FIT_STEPS), centres)


def _changed(shape, centres, half):
    """Profile (n, n_pixels) of unit stars at each centre."""
    fine = _integrated(_of_shape(shape), half, _FIT_STEPS)
    return _images(_by_phase(fine[None], half, _FIT_STEPS), centres)[:, 0]


def _images(table, centres):
    n_planes = table.shape[2]
    flat = table.reshape(*table.shape[:2], 1, -1)
    images = profile_images(flat, *np.ascontiguousarray(centres.T))
    return images.reshape(len(centres), n_planes, -1).astype(np.float64)
