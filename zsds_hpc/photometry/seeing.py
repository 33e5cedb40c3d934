"""Seeing and the mean star profile, from clean stars."""

from typing import NamedTuple

import numpy as np

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure
from zsds_hpc.core.params import Params, param
from zsds_hpc.photometry.detect import FLAG_SATURATED, FLAG_TRUNCATED, Detections
from zsds_hpc.photometry.profile import StarProfile, fit_star_profile, window_half_pix

#: Pixels with these bits have no weight in a star.
BAD_IN_STAR = maskbits.UNUSABLE & ~(maskbits.GHOST | maskbits.HALO | maskbits.LOWRESP | maskbits.HIGHRESP)
_BAND_PIX = 64
_QUICK_HALF = 4
_SIDES = 0.3  # of the peak: 0.4 for stars of 1.2 px FWHM, 0 to 0.3 for hits
_NOISE_OF_UNUSABLE = 1e15
_TYPICAL_GAIN = 5.0  # e/DN, for weights only


class SeeingParams(Params):
    """Which stars give the seeing."""

    min_snr: float = param(30.0, "Least significance of a star.", ge=5.0, le=1e4)
    max_stars: int = param(150, "Stars used at most.", ge=5, le=5000)
    min_stars: int = param(5, "With fewer stars there is no seeing.", ge=3, le=1000)
    width_tolerance: float = param(0.25, "Stars this far (ln) from the commonest width are left out.", ge=0.02, le=2.0)
    saturation_fraction: float = param(0.6, "Peaks above this fraction of saturation are left out.", ge=0.05, le=1.0)
    profile_error: float = param(0.01, "Error of the profile relative to the peak.", ge=0.0, le=0.5)


class QuickSeeing(NamedTuple):
    """FWHM of stars before pixel integration (px), number of stars."""

    fwhm_pix: float
    n_stars: int

    @property
    def observed_fwhm_pix(self) -> float:
        """FWHM after integration over the pixel."""
        return StarProfile(self.fwhm_pix).observed_fwhm_pix


def quick_seeing(
    pix: np.ndarray, background: np.ndarray, rms: np.ndarray, mask: np.ndarray, saturate: float
) -> QuickSeeing:
    """First estimate of the seeing, from the brightest isolated peaks, in the presence of cosmic rays.

    Hits are sharper than stars but of all widths; stars share one: the commonest width is the stars'.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        Image with its background, DN.
    background, rms : ndarray or float
        Level and noise of the sky, DN, broadcast to the image.
    mask : ndarray, shape (ny, nx), int16
    saturate : float
        Saturation level above background, DN.

    Raises
    ------
    AlgorithmFailure
        Fewer than 5 stars.
    """
    params = SeeingParams()
    sky, noise = (np.broadcast_to(np.asarray(a, np.float32), pix.shape) for a in (background, rms))
    top = params.saturation_fraction * saturate
    x, y = _bright_peaks(pix, sky, noise, mask, top, 3 * params.max_stars)
    rows, columns = _windows(x, y, _QUICK_HALF)
    stamps = (pix[rows, columns] - sky[rows, columns]).astype(np.float64)
    good = ~(mask[rows, columns] & BAD_IN_STAR).astype(bool) & np.isfinite(stamps)
    profile = _profile_of_stamps(np.where(good, stamps, 0), good, noise[y, x], params)
    return QuickSeeing(profile.fwhm_pix, profile.n_stars)


def _bright_peaks(pix, sky, noise, mask, top, n_wanted):
    """Isolated local maxima between 30 sigma and `top`, band by band over the whole image until there are enough."""
    starts = np.arange(0, pix.shape[0], _BAND_PIX)
    stride = max(1, round(0.382 * starts.size))
    while np.gcd(stride, starts.size) != 1:
        stride += 1
    found: list = []
    for start in starts[np.arange(starts.size) * stride % starts.size]:
        found.append(_peaks_of_band(pix, sky, noise, mask, top, start))
        if sum(len(part) for part in found) >= n_wanted:
            break
    x, y = np.concatenate(found).T[:, :n_wanted]
    return x, y


def _peaks_of_band(pix, sky, noise, mask, top, start):
    ny, nx = pix.shape
    band = slice(start, start + _BAND_PIX)
    above = pix[band] - sky[band]
    y, x = np.nonzero((above > 30 * noise[band]) & (above < top))
    y = y + start
    inside = (x >= _QUICK_HALF) & (x < nx - _QUICK_HALF) & (y >= _QUICK_HALF) & (y < ny - _QUICK_HALF)
    x, y = x[inside], y[inside]
    rows, columns = _windows(x, y, 2)
    values = (pix[rows, columns] - sky[rows, columns]).reshape(x.size, 25)
    # Stars have light on both sides along both axes; most hits do not.
    sides = np.minimum(values[:, 11] + values[:, 13], values[:, 7] + values[:, 17])
    peak = sides > _SIDES * values[:, 12]
    peak &= (values[:, 12:13] >= values[:, :12]).all(axis=1) & (values[:, 12:13] > values[:, 13:]).all(axis=1)
    peak &= mask[y, x] & BAD_IN_STAR == 0
    return np.stack([x[peak], y[peak]], axis=1)


def _windows(x, y, half):
    """Index arrays (n, side, side) of square windows."""
    steps = np.arange(-half, half + 1)
    return y[:, None, None] + steps[:, None], x[:, None, None] + steps


def measure_profile(
    pix_sub: np.ndarray, rms: np.ndarray, mask: np.ndarray, found: Detections, params: SeeingParams
) -> StarProfile:
    """Mean star profile of an image from its clean detections.

    Parameters
    ----------
    pix_sub, rms : ndarray, shape (ny, nx), float32
    mask : ndarray, shape (ny, nx), int16
    found : Detections
    params : SeeingParams

    Raises
    ------
    AlgorithmFailure
        Fewer than `min_stars` stars.
    """
    table = found.table
    half = window_half_pix(2 * float(np.median(table["b"])) * 1.1) + 1 if len(table) else 2
    half = max(half, _QUICK_HALF)
    usable = (table["snr"] >= params.min_snr) & (table["flags"] & (FLAG_SATURATED | FLAG_TRUNCATED) == 0)
    usable &= table["mask_bits"] & BAD_IN_STAR == 0
    for name, size in (("x_peak", pix_sub.shape[1]), ("y_peak", pix_sub.shape[0])):
        usable &= (table[name] >= half) & (table[name] < size - half)
    chosen = np.flatnonzero(usable)
    chosen = chosen[np.linspace(0, chosen.size - 1, min(chosen.size, 3 * params.max_stars)).astype(int)]
    x, y = table["x_peak"][chosen], table["y_peak"][chosen]
    rows, columns = _windows(x, y, half)
    segment = found.segments[rows, columns]
    good = (mask[rows, columns] & BAD_IN_STAR == 0) & ((segment == 0) | (segment == chosen[:, None, None] + 1))
    stamps = pix_sub[rows, columns].astype(np.float64)
    good &= np.isfinite(stamps)
    return _profile_of_stamps(np.where(good, stamps, 0), good, rms[y, x], params)


def _profile_of_stamps(stamps, good, noise, params):
    """Fit the profile to the stamps whose width is near the commonest."""
    half = stamps.shape[1] // 2
    sigma = adaptive_sigma(stamps)
    keep = (sigma > 0.3) & good[:, half, half]
    if keep.sum() >= params.min_stars:
        log_sigma = np.log(np.where(keep, sigma, 1.0))
        keep &= np.abs(log_sigma - half_sample_mode(log_sigma[keep])) < params.width_tolerance
    if keep.sum() < params.min_stars:
        raise AlgorithmFailure("seeing: too few stars", n_stars=int(keep.sum()), n_needed=params.min_stars)
    chosen = np.flatnonzero(keep)[: params.max_stars]
    stamps, signal = stamps[chosen], np.maximum(stamps[chosen], 0)
    # An error of the profile relative to the peak, in all pixels: the core decides, not the many pixels of
    # the wings.
    misfit = params.profile_error * signal[:, half, half]
    var = (noise[chosen].astype(np.float64) ** 2 + misfit**2)[:, None, None] + signal / _TYPICAL_GAIN
    var = np.where(good[chosen], var, _NOISE_OF_UNUSABLE)
    start = StarProfile(float(np.clip(2.2 * np.median(sigma[chosen]), 0.8, 8.0)))
    return fit_star_profile(stamps, var, start)


def adaptive_sigma(stamps: np.ndarray) -> np.ndarray:
    """Gaussian-weighted rms width (px) of each stamp, the weight as wide as the star (Bernstein & Jarvis 2002).

    Parameters
    ----------
    stamps : ndarray, shape (n, side, side)
        Background-subtracted, centred on the peak.

    Returns
    -------
    ndarray, shape (n,)
        0 where it does not converge.
    """
    steps = np.arange(stamps.shape[1]) - stamps.shape[1] // 2
    size2 = np.full(len(stamps), 1.0)
    x0, y0 = np.zeros(len(stamps)), np.zeros(len(stamps))
    for _ in range(8):
        wx = np.exp(-((steps - x0[:, None]) ** 2) / (2 * size2[:, None]))
        wy = np.exp(-((steps - y0[:, None]) ** 2) / (2 * size2[:, None]))
        along_x, along_y = np.einsum("nij,ni->nj", stamps, wy) * wx, np.einsum("nij,nj->ni", stamps, wx) * wy
        flux = np.maximum(along_x.sum(axis=1), 1e-30)
        dx, dy = (
            (along_x * (steps - x0[:, None])).sum(1) / flux,
            (along_y * (steps - y0[:, None])).sum(1) / flux,
        )
        xx = (along_x * (steps - x0[:, None]) ** 2).sum(1) / flux - dx**2
        yy = (along_y * (steps - y0[:, None]) ** 2).sum(1) / flux - dy**2
        x0, y0 = np.clip(x0 + 2 * dx, -1, 1), np.clip(y0 + 2 * dy, -1, 1)
        size2 = np.clip(xx + yy, 0.05, 25.0)
    return np.where((size2 > 0.06) & (size2 < 24), np.sqrt(size2), 0.0)


def half_sample_mode(values: np.ndarray) -> float:
    """Mode of a sample: the narrowest half, again and again (Bickel & Fruehwirth 2006)."""
    values = np.sort(values)
    while values.size > 3:
        n = (values.size + 1) // 2
        start = int(np.argmin(values[n - 1 :] - values[: values.size - n + 1]))
        values = values[start : start + n]
    return float(np.mean(values))
