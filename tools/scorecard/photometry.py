"""Zero points, aperture magnitudes and completeness against the truth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.scorecard.card import Metric, at_least, at_most, reported
from tools.scorecard.products import Science
from tools.scorecard.sources import UNUSABLE, Matched, inside

APERTURE_DIAMETER_PIX = 6.0
CLEAN = 0.003
SNR_EDGES = np.array([3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0, 50.0, 100.0, 300.0, 1000.0, 1e4])
MMAG = 1000.0


@dataclass(frozen=True)
class PhotometryCheck:
    """One channel.

    Attributes
    ----------
    zero_point_error, zero_point_unc, color_error, color_unc : float
        mag; product minus truth. NaN where there is no zero point.
    typical_color : float
        Median colour of the calibrators, mag.
    mag, residual, snr : ndarray
        True magnitude, calibrated aperture magnitude minus true (mag), ideal S/N, of isolated stars.
    n_true, n_found : ndarray, shape (n_bins,)
        Stars in usable pixels and those detected, in bins of ideal S/N (SNR_EDGES).
    n_detections, n_spurious : int
        Catalogue rows in usable pixels, and those that nothing rendered explains.
    """

    zero_point_error: float
    zero_point_unc: float
    color_error: float
    color_unc: float
    typical_color: float
    mag: NDArray
    residual: NDArray
    snr: NDArray
    n_true: NDArray
    n_found: NDArray
    n_detections: int
    n_spurious: int


def check(science: Science, matched: Matched) -> PhotometryCheck:
    """Compare one channel's photometry."""
    header, facts = science.header, science.facts
    zero, color = header.get("MAGZP", np.nan), header.get("CLRCOEFF", np.nan)
    mag, residual, snr = aperture_residuals(science, matched)
    n_true, n_found = completeness(science, matched)
    usable = usable_at(science, *science.positions.T)
    return PhotometryCheck(
        zero - facts["zero_point_channel"], header.get("MAGZPUNC", np.nan), color - facts["color_coefficient"],
        header.get("CLRCOUNC", np.nan), header.get("CLRMED", np.nan), mag, residual, snr, n_true, n_found,
        int(usable.sum()), int((usable & ~matched.is_known).sum()),
    )  # fmt: skip


def usable_at(science: Science, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
    """Positions inside the image whose pixel carries no bit of the unusable template."""
    n_y, n_x = science.mask.shape
    row, column = (np.clip(np.rint(v), 0, n - 1).astype(int) for v, n in ((y, n_y), (x, n_x)))
    return inside(science, x, y) & (science.mask[row, column] & UNUSABLE == 0)


def aperture_residuals(science: Science, matched: Matched) -> tuple[NDArray, NDArray, NDArray]:
    """True magnitude, calibrated minus true, and S/N of isolated unsaturated stars.

    The smooth response, which the low-frequency flat of a later step removes, is taken out of the truth.
    """
    objects, header = matched.objects, science.header
    pick = objects["is_star"] & (matched.row >= 0) & (objects["contamination"] < CLEAN) & (objects["snr"] > 5.0)
    pick &= usable_at(science, objects["x"], objects["y"])
    star, row = objects[pick], science.catalogue[matched.row[pick]]
    good = (row["FLAGS"] == 0) & (row["MAG_APER"].min(axis=1) < 90.0)
    star, row = star[good], row[good]
    diameters = [float(d) for d in str(header["FIXAPERS"]).split(",")]
    k = int(np.argmin(np.abs(np.array(diameters) - APERTURE_DIAMETER_PIX)))
    calibrated = row["MAG_APER"][:, k] + header.get(f"APCOR{k + 1}", np.nan) + header.get("MAGZP", np.nan)
    calibrated = calibrated + header.get("CLRCOEFF", np.nan) * star["color"]
    mean = 10.0 ** (0.4 * (science.facts["zero_point_channel"] - science.facts["zero_point"]))
    true = star["mag"] - 2.5 * np.log10(star["response"] / mean)
    return star["mag"], calibrated - true, star["snr"]


def completeness(science: Science, matched: Matched) -> tuple[NDArray, NDArray]:
    """Stars in usable pixels, without a brighter neighbour, and those detected, in bins of S/N."""
    objects = matched.objects
    pick = objects["is_star"] & (objects["contamination"] < 1.0) & usable_at(science, objects["x"], objects["y"])
    snr, found = objects["snr"][pick], matched.row[pick] >= 0
    return np.histogram(snr, SNR_EDGES)[0], np.histogram(snr[found], SNR_EDGES)[0]


def metrics(checks: list[PhotometryCheck]) -> list[Metric]:
    """Lines of the scorecard."""
    return zero_point_metrics(checks) + star_metrics(checks) + detection_metrics(checks)


def zero_point_metrics(checks: list[PhotometryCheck]) -> list[Metric]:
    """Zero point and colour coefficient."""
    error, unc, color, color_unc, typical = (
        np.array([getattr(c, name) for c in checks])
        for name in ("zero_point_error", "zero_point_unc", "color_error", "color_unc", "typical_color")
    )
    n = f"{np.isfinite(error).sum()} of {len(checks)} channels"
    worst, rms, pull = _largest(error * MMAG), _rms(error * MMAG), _rms(error / unc)
    return [
        at_most("zero_point_worst_mmag", worst, 3.0, f"largest |MAGZP - true zero point|, {n}"),
        at_most("zero_point_rms_mmag", rms, 3.0, "rms of the same"),
        at_most("zero_point_pull", pull, 1.3, "rms of error over stated MAGZPUNC; 1 is honest"),
        reported(
            "zero_point_typical_color_worst_mmag",
            _largest((error + color * typical) * MMAG),
            "the worst at the calibrators' median colour instead of colour 0, which is extrapolated",
        ),
        reported("zero_point_unc_mmag", float(np.nanmedian(unc) * MMAG) if len(unc) else None, "median MAGZPUNC"),
        reported("color_coefficient_rms_mmag", _rms(color * MMAG), "rms of CLRCOEFF - truth, mmag per mag"),
        reported("color_coefficient_pull", _rms(color / color_unc), "rms of error over stated CLRCOUNC"),
    ]


def star_metrics(checks: list[PhotometryCheck]) -> list[Metric]:
    """Calibrated magnitudes of isolated stars."""
    mag = np.concatenate([c.mag for c in checks]) if checks else np.zeros(0)
    residual = np.concatenate([c.residual for c in checks]) if checks else np.zeros(0)
    pick = (mag > 15.0) & (mag < 17.0) & np.isfinite(residual)
    offset = float(np.median(residual[pick])) * MMAG if pick.any() else None
    low, high = np.percentile(residual[pick], [15.87, 84.13]) if pick.any() else (np.nan, np.nan)
    return [
        at_most("magnitude_offset_mmag", None if offset is None else abs(offset), 5.0,
                f"|median calibrated - true magnitude| of {pick.sum()} isolated stars, 15-17 mag"),
        at_most("magnitude_scatter_mmag", (high - low) / 2.0 * MMAG, 15.0, "their scatter (half of 16-84%)"),
    ]  # fmt: skip


def detection_metrics(checks: list[PhotometryCheck]) -> list[Metric]:
    """Completeness and spurious detections."""
    n_true, n_found = (
        np.sum([getattr(c, name) for c in checks], axis=0) if checks else np.zeros(SNR_EDGES.size - 1)
        for name in ("n_true", "n_found")
    )
    from_10 = slice(int(np.searchsorted(SNR_EDGES, 10.0)), None)
    n_all, n_bad = sum(c.n_detections for c in checks), sum(c.n_spurious for c in checks)
    share = n_found[from_10].sum() / n_true[from_10].sum() if n_true[from_10].sum() else None
    return [
        at_least("completeness_snr10", share, 0.97,
                 f"of {int(n_true[from_10].sum())} stars with S/N >= 10 without a brighter neighbour within 6 px"),
        at_most("spurious_fraction", n_bad / n_all if n_all else None, 0.02,
                f"{n_bad} of {n_all} detections that nothing in the sky explains"),
    ]  # fmt: skip


def _rms(values: NDArray) -> float | None:
    good = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(good**2))) if good.size else None


def _largest(values: NDArray) -> float | None:
    good = np.abs(values[np.isfinite(values)])
    return float(good.max()) if good.size else None
