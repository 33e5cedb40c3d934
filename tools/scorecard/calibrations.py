"""Super-bias, high-frequency flat and bad pixels against the detector maps of the truth."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from tools.scorecard.card import Metric, at_least, at_most, reported
from tools.scorecard.products import NightTruth, Run, read_image

LOW, HIGH, NOISY, DEAD = 4, 8, 16, 512
BLOCK_PIX = 64
SURFACE_DEGREE = 6
#: Full images are compared; more channels than this would take minutes.
MAX_CHANNELS = 8


@dataclass(frozen=True)
class BiasCheck:
    """One super-bias. Noise in DN; `ratio` is residual over expected noise, `row_dn` the rms of row means."""

    night: str
    rcid: int
    n_frames: int
    expected_dn: float
    residual_dn: float
    ratio: float
    row_dn: float


@dataclass(frozen=True)
class FlatCheck:
    """One flat: residual over photon noise, rms of the smooth residual, and the calibration mask's counts."""

    night: str
    rcid: int
    filtercode: str
    n_frames: int
    expected: float
    ratio: float
    smooth_rms: float
    found: dict[str, tuple[int, int]]
    n_false: int
    n_good: int


def robust_rms(values: NDArray) -> float:
    """1.4826 times the median absolute deviation, of at most four million values."""
    sample = values.ravel()
    sample = sample[:: max(1, sample.size // 4_000_000)]
    sample = sample[np.isfinite(sample)]
    return 1.4826 * float(np.median(np.abs(sample - np.median(sample)))) if sample.size else np.nan


def bias_residual(product: NDArray, truth: NightTruth, rcid: int) -> NDArray:
    """Super-bias less truth and a constant, bad pixels NaN."""
    residual = product - truth.map(rcid, "bias_dn")
    residual[truth.map(rcid, "mask") != 0] = np.nan
    return residual - np.nanmedian(residual[::4, ::4])


def bias_noise_dn(truth: NightTruth, rcid: int, n_frames: int) -> float:
    """Noise of the mean of N bias frames: read noise and rounding to whole DN."""
    gain, read_noise = truth.electronics(rcid)
    return float(np.sqrt(((read_noise / gain) ** 2 + 1.0 / 12.0) / n_frames))


def check_bias(run: Run, night: str, rcid: int) -> BiasCheck | None:
    """Compare a super-bias; None where there is none."""
    path, truth = run.calibration("bias", night, "bi", rcid), run.truths[night]
    if not path.is_file():
        return None
    product, header = read_image(path)
    n_frames = int(header["NFRAMES"])
    residual, expected = bias_residual(product, truth, rcid), bias_noise_dn(truth, rcid, n_frames)
    rms = robust_rms(residual)
    return BiasCheck(night, rcid, n_frames, expected, rms, rms / expected, robust_rms(np.nanmean(residual, axis=1)))


def block_medians(image: NDArray) -> NDArray:
    """Medians of whole blocks; what is left over at the far edges is not used."""
    n_y, n_x = (n // BLOCK_PIX for n in image.shape)
    cut = image[: n_y * BLOCK_PIX, : n_x * BLOCK_PIX].reshape(n_y, BLOCK_PIX, n_x, BLOCK_PIX)
    return np.median(cut.transpose(0, 2, 1, 3).reshape(n_y, n_x, -1), axis=2)


def low_order_surface(image: NDArray, degree: int = SURFACE_DEGREE) -> NDArray[np.float32]:
    """Chebyshev surface of a total degree through the block medians, dust specks clipped."""
    medians = block_medians(image)
    axes = [(np.arange(n) + 0.5) * BLOCK_PIX - 0.5 for n in medians.shape]
    inside = [chebyshev.chebvander(2.0 * a / (n - 1) - 1.0, degree) for a, n in zip(axes, image.shape)]
    kept = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    design = np.stack([np.outer(inside[0][:, i], inside[1][:, j]).ravel() for i, j in kept], axis=1)
    values, good = medians.ravel(), np.ones(medians.size, bool)
    for _ in range(6):
        solution = np.linalg.lstsq(design[good], values[good], rcond=None)[0]
        residual = values - design @ solution
        good = np.abs(residual) < 4.0 * max(robust_rms(residual[good]), 1e-6)
    coefficients = np.zeros((degree + 1, degree + 1))
    coefficients[tuple(np.array(kept).T)] = solution
    whole = [chebyshev.chebvander(np.linspace(-1.0, 1.0, n), degree) for n in image.shape]
    return (whole[0] @ coefficients @ whole[1].T).astype(np.float32)


def true_flat(truth: NightTruth, rcid: int, filtercode: str) -> NDArray[np.float32]:
    """Response of the pixels with dust, divided by its own low-order surface as the product is."""
    response = truth.highfreq_flat(rcid, filtercode)
    return response / low_order_surface(response)


def flat_noise(truth: NightTruth, rcid: int, filtercode: str, levels_dn: NDArray) -> NDArray[np.float32]:
    """Relative noise of the mean of flats of these levels: photons, read noise, rounding; (ny, nx)."""
    gain, read_noise = truth.electronics(rcid)
    lamp = truth.map(rcid, "vignetting") * truth.map(rcid, f"lamp_{filtercode}")
    # With s the illumination: variance of a frame / level^2 = 1/(g L s) + (r^2/g^2 + 1/12)/(L s)^2.
    photons = np.float32(np.mean(1.0 / levels_dn) / gain)
    electronics = np.float32(np.mean(1.0 / levels_dn**2) * ((read_noise / gain) ** 2 + 1.0 / 12.0))
    return np.sqrt((photons + electronics / lamp) / lamp / np.float32(levels_dn.size))


def levels_of(truth: NightTruth, filtercode: str) -> NDArray[np.float64]:
    """Levels (DN) of the night's dome flats in a filter."""
    found = [truth.exposure(name) for name in truth.exposures("flat")]
    return np.array([e["level_dn"] for e in found if e["filtercode"] == filtercode])


def flat_residual(product: NDArray, truth: NightTruth, rcid: int, filtercode: str) -> NDArray:
    """Flat less truth; bad pixels NaN."""
    residual = product - true_flat(truth, rcid, filtercode)
    residual[truth.map(rcid, "mask") != 0] = np.nan
    return residual


def check_flat(run: Run, night: str, rcid: int, filtercode: str) -> FlatCheck | None:
    """Compare a flat and its calibration mask; None where there is none."""
    path, truth = run.calibration("hifreqflat", night, filtercode, rcid), run.truths[night]
    if not path.is_file():
        return None
    product, header = read_image(path)
    levels = levels_of(truth, filtercode)[: int(header["NFRAMES"])]
    residual, noise = flat_residual(product, truth, rcid, filtercode), flat_noise(truth, rcid, filtercode, levels)
    smooth = block_medians(np.nan_to_num(residual))
    cmask, bad = read_image(run.calibration("cmask", night, filtercode, rcid))[0], truth.map(rcid, "mask")
    found = {
        name: (int(np.count_nonzero((bad & bit) != 0)), int(np.count_nonzero(((bad & bit) != 0) & (cmask != 0))))
        for name, bit in (("dead", DEAD), ("low", LOW), ("high", HIGH), ("noisy", NOISY))
    }
    return FlatCheck(
        night, rcid, filtercode, levels.size, float(np.median(noise[::8, ::8])), robust_rms(residual / noise),
        robust_rms(smooth), found, int(np.count_nonzero((cmask != 0) & (bad == 0))), int(np.count_nonzero(bad == 0)),
    )  # fmt: skip


def check_all(run: Run) -> tuple[list[BiasCheck], list[FlatCheck]]:
    """Super-biases and flats of some channels of every night."""
    biases, flats = [], []
    for night, truth in run.truths.items():
        filters = sorted({truth.exposure(name)["filtercode"] for name in truth.exposures("flat")})
        rcids = truth.rcids()
        for rcid in rcids[:: max(1, len(rcids) // MAX_CHANNELS)][:MAX_CHANNELS]:
            biases.append(check_bias(run, night, rcid))
            flats += [check_flat(run, night, rcid, code) for code in filters]
    return [b for b in biases if b], [f for f in flats if f]


def metrics(biases: list[BiasCheck], flats: list[FlatCheck]) -> list[Metric]:
    """Lines of the scorecard; the worst channel counts."""
    frames = f"{min((b.n_frames for b in biases), default=0)} frames"
    n_flats = f"{min((f.n_frames for f in flats), default=0)} frames"
    rows = [
        at_most("superbias_residual_over_noise", _worst(b.ratio for b in biases), 1.1,
                f"rms(product - truth) / sqrt((read noise^2 + 1/12) / N), worst channel, {frames}"),
        reported("superbias_row_noise_dn", _worst(b.row_dn for b in biases),
                 f"rms of row means of that residual: what the over-scan leaves "
                 f"(noise floor of a pixel {_worst(b.expected_dn for b in biases) or 0:.3f} DN)"),
        at_most("flat_residual_over_noise", _worst(f.ratio for f in flats), 1.1,
                f"rms((product - truth) / photon noise), worst channel and filter, {n_flats}"),
        reported("flat_smooth_residual_ppm", _worst(1e6 * f.smooth_rms for f in flats),
                 f"rms of that difference in {BLOCK_PIX} px blocks"),
    ]  # fmt: skip
    for name in ("dead", "low", "high", "noisy"):
        pairs = [f.found[name] for f in flats]
        n_true, n_found = (sum(pair[k] for pair in pairs) for k in (0, 1))
        text = f"{n_found} of {n_true} {name} pixels are in the calibration mask"
        rows.append(at_least(f"{name}_pixels_recall", n_found / n_true if n_true else None, 0.99, text))
    n_good = sum(f.n_good for f in flats)
    n_false = sum(f.n_false for f in flats)
    rows.append(at_most("good_pixels_masked_ppm", 1e6 * n_false / n_good if n_good else None, 100.0,
                        f"{n_false} of {n_good} good pixels are in the calibration mask"))  # fmt: skip
    return rows


def _worst(values) -> float | None:
    return max((float(v) for v in values), default=None)
