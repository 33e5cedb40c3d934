"""Source detection: matched filter, segmentation by the prominence of peaks, isophotal moments."""

from dataclasses import dataclass

import numpy as np

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.core.params import Params, param
from zsds_hpc.kernels.detect import matched_filter, pixels_above, segment, segment_sums
from zsds_hpc.photometry.profile import StarProfile

#: Mask bits of pixels that are not looked at; saturated ones are, and make one peak.
BLIND = maskbits.UNUSABLE & ~(
    maskbits.GHOST | maskbits.HALO | maskbits.SATURATED | maskbits.LOWRESP | maskbits.HIGHRESP | maskbits.TRACK
)

#: SExtractor's bits of FLAGS.
FLAG_NEIGHBOUR, FLAG_BLENDED, FLAG_SATURATED, FLAG_TRUNCATED, FLAG_APERTURE = 1, 2, 4, 8, 16

SOURCE_DTYPE = np.dtype(
    [
        ("x", "f8"),  # isophotal barycentre, 0-based px
        ("y", "f8"),
        ("x_peak", "i4"),  # peak of the filtered image, 0-based px
        ("y_peak", "i4"),
        ("snr", "f4"),  # of the peak of the filtered image
        ("flux_iso", "f4"),  # DN
        ("flux_max", "f4"),  # DN above the background
        ("n_pix", "i4"),
        ("a", "f4"),  # isophotal rms along the major and minor axis, px
        ("b", "f4"),
        ("theta_deg", "f4"),  # of the major axis, from +x to +y
        ("flags", "i2"),  # SExtractor bits
        ("mask_bits", "i2"),  # OR of the survey mask over the segment
    ]
)


class DetectParams(Params):
    """How sources are detected."""

    fwhm_pix: float = param(2.1, "FWHM of stars in the image, pixels included.", unit="pix", ge=0.8, le=20.0)
    detect_sigma: float = param(4.5, "Significance that a peak of the filtered image must reach.", ge=2.0, le=100.0)
    isophote_sigma: float = param(3.0, "Significance at which segments end.", ge=0.5, le=100.0)
    deblend_sigma: float = param(3.0, "Rise of a blended peak above its saddle, in noise.", ge=0.0, le=100.0)
    deblend_contrast: float = param(0.02, "And relative to the value at the saddle.", ge=0.0, le=10.0)
    min_pixels: int = param(2, "A segment with fewer pixels is dropped.", unit="pix", ge=1, le=1000)
    blind_bits: int = param(BLIND, "Pixels with any of these mask bits count as sky.", ge=0, le=32767)
    max_sources: int = param(1_000_000, "More sources than this mean a failed image.", ge=1, le=100_000_000)


@dataclass(frozen=True)
class Detections:
    """Detected sources, brightest peak first.

    Attributes
    ----------
    table : ndarray, shape (n,), `SOURCE_DTYPE`
    segments : ndarray, shape (ny, nx), int32
        1 + the row of the source that a pixel belongs to, 0 for sky.
    profile : StarProfile, optional
        Mean star profile of the image, once it is measured.
    """

    table: np.ndarray
    segments: np.ndarray
    profile: StarProfile | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, column: str) -> np.ndarray:
        """Column of the table."""
        return self.table[column]


def detect_sources(pix_sub: np.ndarray, rms: np.ndarray, mask: np.ndarray, params: DetectParams) -> Detections:
    """Detect sources.

    The image is correlated with a Gaussian of the stars' width. Above the isophote, pixels are taken from the
    brightest down and flow to the neighbouring peak; a peak survives if it is significant and rises enough
    above the saddle to a higher one (persistence, Edelsbrunner et al. 2002). Positions and shapes are
    moments of the unfiltered image over the segment.

    Parameters
    ----------
    pix_sub, rms : ndarray, shape (ny, nx), float32
        Background-subtracted image and noise of the sky, DN. NaN counts as sky.
    mask : ndarray, shape (ny, nx), int16
        Survey mask bits.
    params : DetectParams

    Raises
    ------
    BadInput
        Shapes differ.
    AlgorithmFailure
        More than `max_sources` sources.
    """
    if not pix_sub.shape == rms.shape == mask.shape or pix_sub.ndim != 2:
        raise BadInput(
            f"detection: image {pix_sub.shape}, noise {rms.shape} and mask {mask.shape} must be of one shape"
        )
    filtered = np.empty_like(pix_sub)
    matched_filter(pix_sub, mask, params.blind_bits, gaussian_taps(params.fwhm_pix), filtered)
    order = pixels_above(filtered, rms, mask, maskbits.SATURATED & ~params.blind_bits, params.isophote_sigma)
    limits = np.array([params.detect_sigma, params.deblend_sigma, params.deblend_contrast], np.float32)
    segments = np.zeros(pix_sub.shape, np.int32)
    peaks, blended = segment(order, filtered, rms, limits, segments)
    if len(peaks) > params.max_sources:
        raise AlgorithmFailure("detection: too many sources", n_sources=len(peaks), max_sources=params.max_sources)
    table = _measure_segments(order, pix_sub, mask, segments, peaks)
    table["snr"] = (filtered.ravel()[peaks] / rms.ravel()[peaks]).astype(np.float32)
    table["flags"] |= np.where(blended, FLAG_BLENDED, 0).astype(np.int16)
    return _drop_small(Detections(table, segments), params.min_pixels)


def gaussian_taps(fwhm_pix: float) -> np.ndarray:
    """One-dimensional Gaussian, float32, cut at 1.6 FWHM, scaled so that the 2-D filter keeps white noise as it is."""
    half = int(np.ceil(1.6 * fwhm_pix))
    taps = np.exp(-4 * np.log(2) * (np.arange(-half, half + 1) / fwhm_pix) ** 2)
    return (taps / np.sqrt((taps**2).sum())).astype(np.float32)


def _measure_segments(order, pix_sub, mask, segments, peaks):
    """Positions, moments and flags of all segments."""
    table = np.zeros(len(peaks), SOURCE_DTYPE)
    sums, highest = np.zeros((len(peaks), 6)), np.full(len(peaks), -np.inf, np.float32)
    n_pix, bits = np.zeros(len(peaks), np.int32), np.zeros(len(peaks), np.int32)
    segment_sums(order, pix_sub, mask, segments, peaks, sums, n_pix, bits, highest)
    table["y_peak"], table["x_peak"] = np.divmod(peaks, pix_sub.shape[1])
    flux = np.maximum(sums[:, 0], 1e-30)
    dx, dy = sums[:, 1] / flux, sums[:, 2] / flux
    table["x"], table["y"] = table["x_peak"] + dx, table["y_peak"] + dy
    table["a"], table["b"], table["theta_deg"] = ellipse_of_moments(
        sums[:, 3] / flux - dx**2, sums[:, 4] / flux - dy**2, sums[:, 5] / flux - dx * dy
    )
    table["flux_iso"], table["flux_max"], table["n_pix"] = sums[:, 0], np.maximum(highest, 0), n_pix
    table["mask_bits"] = bits
    table["flags"] = np.where(bits & maskbits.SATURATED, FLAG_SATURATED, 0)
    edge = np.unique(np.concatenate([segments[[0, -1]].ravel(), segments[:, [0, -1]].ravel()]))
    table["flags"][edge[edge > 0] - 1] |= FLAG_TRUNCATED
    return table


def ellipse_of_moments(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes a >= b (px) and position angle (degrees from +x to +y) of second moments.

    Moments narrower than a pixel get 1/12 px^2 added to the variances, as SExtractor does.
    """
    thin = xx * yy - xy**2 < 1 / 144
    xx, yy = np.where(thin, xx + 1 / 12, xx), np.where(thin, yy + 1 / 12, yy)
    mean, half_difference = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    theta = np.degrees(np.arctan2(2 * xy, xx - yy) / 2)
    return np.sqrt(mean + half_difference), np.sqrt(np.maximum(mean - half_difference, 1e-6)), theta


def _drop_small(found, min_pixels):
    keep = found.table["n_pix"] >= min_pixels
    if keep.all():
        return found
    number = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)]).astype(np.int32)
    return Detections(found.table[keep], number[found.segments])
