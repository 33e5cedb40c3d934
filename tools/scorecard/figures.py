"""Pictures of the report: what came out, and how far it is from the truth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray
from PIL import Image

from tools.scorecard import calibrations, disccheck, photometry
from tools.scorecard.findings import Findings
from tools.scorecard.products import Run, Science, read_image
from tools.scorecard.psffigure import psf_photometry
from tools.scorecard.style import (
    BLUE,
    FILTER_COLOR,
    GREY,
    ORANGE,
    RED,
    binned,
    mask_picture,
    new_figure,
    picture,
    running,
    stretched,
)

CUT_PIX = 360
_RARE_BITS = (0, 3, 7, 8, 9)


def interesting_cut(science: Science) -> tuple[slice, slice]:
    """Square of the mask with the most kinds of things to see."""
    mask = science.mask
    n_y, n_x = (n // CUT_PIX for n in mask.shape)
    blocks = mask[: n_y * CUT_PIX, : n_x * CUT_PIX].reshape(n_y, CUT_PIX, n_x, CUT_PIX)
    score = np.zeros((n_y, n_x))
    for bit in _RARE_BITS:
        score += ((blocks >> bit) & 1).sum(axis=(1, 3)) >= 12
    row, column = np.unravel_index(int(np.argmax(score)), score.shape)
    return slice(row * CUT_PIX, (row + 1) * CUT_PIX), slice(column * CUT_PIX, (column + 1) * CUT_PIX)


def showpiece(findings: Findings) -> Science:
    """The channel with the longest track, or the first."""
    lengths = [check.track_pix for check in findings.masks]
    return findings.science[int(np.argmax(lengths))]


def image_and_mask(run: Run, findings: Findings, path: Path) -> None:
    """Calibrated image beside its mask."""
    science = showpiece(findings)
    cut = interesting_cut(science)
    figure = new_figure(11.5, 5.0)
    left, right = figure.subplots(1, 2)
    picture(left, stretched(science.pix[cut]), 0.0, 1.0)
    left.set_title(f"calibrated image, {science.exposure} rcid {science.rcid}")
    mask_picture(right, science.mask[cut])
    right.set_title("its mask")
    figure.savefig(path)
    science.forget_pixels()


def calibration_maps(run: Run, findings: Findings, path: Path) -> None:
    """Super-bias and flat with their residuals against the truth."""
    figure = new_figure(12.0, 7.2)
    axes = figure.subplots(2, 3)
    if findings.biases:
        _bias_row(run, findings.biases[0], axes[0])
    if findings.flats:
        _flat_row(run, findings.flats[0], axes[1])
    figure.savefig(path)


def _bias_row(run: Run, check: calibrations.BiasCheck, axes: NDArray) -> None:
    truth = run.truths[check.night]
    product, _ = read_image(run.calibration("bias", check.night, "bi", check.rcid))
    residual = calibrations.bias_residual(product, truth, check.rcid)
    level = np.median(product[::8, ::8])
    picture(axes[0], binned(product, 4) - level, -6.0, 6.0, label="DN")
    axes[0].set_title(f"super-bias of {check.n_frames} frames, rcid {check.rcid}")
    reach = 4.0 * check.expected_dn / 4.0
    picture(axes[1], binned(residual, 4), -reach, reach, "RdBu_r", "DN")
    axes[1].set_title("super-bias - truth, 4 x 4 pixels")
    _histogram(axes[2], residual[::4, ::4] / check.expected_dn, "residual / expected noise", check.ratio)


def _flat_row(run: Run, check: calibrations.FlatCheck, axes: NDArray) -> None:
    truth = run.truths[check.night]
    product, header = read_image(run.calibration("hifreqflat", check.night, check.filtercode, check.rcid))
    levels = calibrations.levels_of(truth, check.filtercode)[: int(header["NFRAMES"])]
    noise = calibrations.flat_noise(truth, check.rcid, check.filtercode, levels)
    residual = calibrations.flat_residual(product, truth, check.rcid, check.filtercode)
    picture(axes[0], binned(product, 4), 0.985, 1.015, label="response")
    axes[0].set_title(f"flat {check.filtercode} of {check.n_frames} frames, rcid {check.rcid}")
    reach = 4e2 * check.expected / 4.0
    picture(axes[1], 100.0 * binned(residual, 4), -reach, reach, "RdBu_r", "per cent")
    axes[1].set_title("flat - truth, 4 x 4 pixels")
    _histogram(axes[2], (residual / noise)[::4, ::4], "residual / photon noise", check.ratio)


def _histogram(axes: Axes, values: NDArray, label: str, ratio: float) -> None:
    axes.hist(
        values[np.isfinite(values)], 81, range=(-5.0, 5.0), density=True, color=BLUE, alpha=0.75, label="good pixels"
    )
    middle = np.linspace(-5.0, 5.0, 201)
    axes.plot(middle, np.exp(-0.5 * middle**2) / np.sqrt(2.0 * np.pi), color=ORANGE, lw=1.6, label="noise alone")
    axes.set(xlabel=label, ylabel="density", yscale="log", ylim=(1e-5, 1.0), title=f"{ratio:.3f} of the noise")
    axes.legend(loc="upper right")


def astrometric_residuals(run: Run, findings: Findings, path: Path) -> None:
    """Error of the map over a typical channel, and of star positions against signal-to-noise ratio."""
    figure = new_figure(12.0, 4.4)
    map_axes, star_axes, rms_axes = figure.subplots(1, 3, width_ratios=[1.0, 1.25, 1.0])
    _map_arrows(map_axes, findings)
    position_scatter(star_axes, findings)
    _map_rms(rms_axes, findings)
    figure.savefig(path)


def _map_arrows(axes: Axes, findings: Findings) -> None:
    rms = np.array([check.map_rms_mas for check in findings.positions])
    typical = int(np.argsort(rms)[len(rms) // 2])
    check, science = findings.positions[typical], findings.science[typical]
    axis = np.linspace(0.0, 1.0, check.map_error.shape[0])
    arrows = axes.quiver(
        axis, axis, check.map_error[..., 0], check.map_error[..., 1], color=BLUE, width=0.005,
        angles="uv", scale_units="width", scale=40.0 * max(check.map_rms_mas, 0.2),
    )  # fmt: skip
    length = max(round(2.0 * check.map_rms_mas, 1), 0.1)
    axes.quiverkey(arrows, 0.8, -0.04, length, f"{length:g} mas", labelpos="E")
    axes.set(xticks=[], yticks=[], aspect=1.0, xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.set_title(f"fitted - true map, {check.map_rms_mas:.2f} mas, {check.n_stars} stars")
    axes.set_xlabel(f"{science.exposure[12:]} rcid {science.rcid}", loc="left")


def position_scatter(axes: Axes, findings: Findings) -> None:
    """Rms of positions against ideal S/N, with the limit set by the noise."""
    checks = findings.positions
    clean = np.concatenate([c.is_clean for c in checks])
    snr = np.concatenate([c.snr for c in checks])[clean]
    residual = np.concatenate([c.residuals for c in checks])[clean]
    limit = np.concatenate([c.limit_mas for c in checks])[clean]
    edges = np.logspace(1.0, 3.5, 26)
    shown = np.hypot(*residual.T) / np.sqrt(2.0)
    axes.hexbin(snr, np.maximum(shown, 0.3), xscale="log", yscale="log", gridsize=55, bins="log", mincnt=1,
                cmap="Greys", linewidths=0.0)  # fmt: skip
    x, _, width = running(np.log10(snr), residual[:, 0], np.log10(edges))
    axes.plot(10**x, width, "o-", ms=3.5, color=BLUE, label="measured (East, 68%)")
    x, middle, _ = running(np.log10(snr), limit, np.log10(edges))
    axes.plot(10**x, middle, color=ORANGE, lw=1.6, label="limit of the noise")
    axes.set(xlabel="signal-to-noise ratio of an ideal fit", ylabel="error per axis (mas)", xscale="log")
    axes.set(yscale="log", ylim=(0.5, 500.0), xlim=(10.0, 3000.0), title="positions of stars without neighbours")
    axes.legend(loc="lower left")


def _map_rms(axes: Axes, findings: Findings) -> None:
    for code, color in FILTER_COLOR.items():
        pairs = [(c.n_stars, c.map_rms_mas) for c, s in zip(findings.positions, findings.science)
                 if s.filtercode == code]  # fmt: skip
        if pairs:
            axes.plot(*np.array(pairs).T, "o", ms=4.0, alpha=0.7, color=color, label=code)
    axes.axhline(1.5, color=GREY, lw=1.0, ls="--")
    axes.text(0.98, 1.55, "target", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    axes.set(xlabel="Gaia stars in the solution", ylabel="error of the map, rms per axis (mas)", xscale="log",
             yscale="log", title="all channels")  # fmt: skip
    axes.legend(loc="upper right")


def photometric_residuals(run: Run, findings: Findings, path: Path) -> None:
    """Aperture magnitudes against truth, and the zero points."""
    figure = new_figure(12.0, 4.2)
    star_axes, zero_axes = figure.subplots(1, 2, width_ratios=[1.25, 1.0])
    magnitude_scatter(star_axes, findings)
    zero_points(zero_axes, findings)
    figure.savefig(path)


def magnitude_scatter(axes: Axes, findings: Findings) -> None:
    """Calibrated minus true magnitude of isolated stars."""
    mag = np.concatenate([c.mag for c in findings.magnitudes])
    residual = 1000.0 * np.concatenate([c.residual for c in findings.magnitudes])
    good = np.isfinite(residual)
    mag, residual = mag[good], residual[good]
    if mag.size:
        axes.hexbin(mag, residual, gridsize=(80, 60), extent=(13.0, 21.0, -250.0, 250.0), norm=LogNorm(), mincnt=1,
                    cmap="Greys", linewidths=0.0)  # fmt: skip
        x, middle, width = running(mag, residual, np.arange(13.0, 21.1, 0.5))
        axes.plot(x, middle, "o-", ms=3.5, color=BLUE, label="median")
        axes.fill_between(x, middle - width, middle + width, color=BLUE, alpha=0.15, lw=0.0, label="68%")
        axes.legend(loc="upper left")
    axes.axhline(0.0, color=ORANGE, lw=1.0)
    axes.set(xlabel="true magnitude", ylabel="calibrated - true (mmag)", xlim=(13.0, 21.0), ylim=(-250.0, 250.0),
             title="isolated stars, aperture magnitudes")  # fmt: skip


def zero_points(axes: Axes, findings: Findings) -> None:
    """Error of each channel's zero point with its stated uncertainty."""
    worst = 4.0
    for number, (check, science) in enumerate(zip(findings.magnitudes, findings.science)):
        error, unc = 1000.0 * check.zero_point_error, 1000.0 * check.zero_point_unc
        if not np.isfinite(error):
            continue
        color = FILTER_COLOR[science.filtercode]
        axes.errorbar(number, np.clip(error, -9.5, 9.5), unc, fmt="o" if abs(error) < 9.5 else "x", ms=4.0,
                      color=color, lw=1.0)  # fmt: skip
        worst = max(worst, min(1.3 * (abs(error) + unc), 10.0))
    for code in sorted({s.filtercode for s in findings.science}):
        axes.plot([], [], "o", color=FILTER_COLOR[code], label=code)
    axes.axhspan(-3.0, 3.0, color=GREY, alpha=0.12, lw=0.0, label="target, 3 mmag")
    axes.axhline(0.0, color=ORANGE, lw=1.0)
    axes.set(xlabel="channel image", ylabel="zero point - truth (mmag)", ylim=(-worst, worst),
             title="zero points, stated errors (x: off scale)")  # fmt: skip
    axes.legend(loc="lower center", ncols=4, columnspacing=1.0, handletextpad=0.4)


def detection(run: Run, findings: Findings, path: Path) -> None:
    """Completeness against signal-to-noise ratio; recall of hits and false detections of each channel."""
    figure = new_figure(12.0, 4.0)
    complete_axes, precision_axes = figure.subplots(1, 2)
    completeness(complete_axes, findings)
    _precision(precision_axes, findings)
    figure.savefig(path)


def completeness(axes: Axes, findings: Findings) -> None:
    """Detected share of the stars in bins of ideal S/N."""
    n_true, n_found = (
        np.sum([getattr(c, name) for c in findings.magnitudes], axis=0) for name in ("n_true", "n_found")
    )
    edges = photometry.SNR_EDGES
    middle = np.sqrt(edges[:-1] * edges[1:])
    kept = n_true >= 20
    share = n_found[kept] / n_true[kept]
    axes.plot(middle[kept], share, "o-", ms=4.0, color=BLUE)
    axes.axvline(5.0, color=GREY, lw=1.0, ls="--")
    axes.text(5.15, 0.05, "5 sigma", color=GREY)
    axes.set(xscale="log", xlabel="signal-to-noise ratio of an ideal fit", ylabel="detected share", ylim=(0.0, 1.03),
             title="completeness of the catalogue", xlim=(3.0, 1000.0))  # fmt: skip


def _precision(axes: Axes, findings: Findings) -> None:
    number = np.arange(len(findings.masks))
    spurious = [100.0 * c.n_spurious / max(c.n_detections, 1) for c in findings.magnitudes]
    missed = [100.0 * (1.0 - c.n_hits_masked / max(c.n_hits, 1)) for c in findings.masks]
    touched = [100.0 * c.n_stars_touched / max(c.n_stars, 1) for c in findings.masks]
    for values, color, marker, label in (
        (spurious, BLUE, "o", "detections that nothing explains"),
        (missed, ORANGE, "s", "radiation hits missed"),
        (touched, RED, "^", "stars touched by a false hit"),
    ):
        axes.plot(number, np.maximum(values, 0.01), marker, ms=4.0, color=color, alpha=0.8, label=label)
    axes.set(xlabel="channel image", ylabel="per cent", yscale="log", ylim=(0.008, 100.0),
             title="what goes wrong, by channel (0.01: none)")  # fmt: skip
    axes.legend(loc="upper right")


#: File name -> (caption, drawing).
def discovered(run: Run, findings: Findings, path: Path) -> None:
    """Cutouts of candidates of every kind."""
    disccheck.draw_examples(findings.discoveries, path)


def difference_quality(run: Run, findings: Findings, path: Path) -> None:
    """Completeness, residuals, widths, fluxes."""
    disccheck.draw_quality(findings.discoveries, path)


FIGURES: dict[str, tuple[str, Callable[[Run, Findings, Path], None]]] = {
    "image.png": ("A calibrated image and its mask", image_and_mask),
    "calibrations.png": ("Super-bias and flat against the true maps of the detector", calibration_maps),
    "astrometry.png": ("Astrometry against the true map", astrometric_residuals),
    "photometry.png": ("Photometry against the true magnitudes", photometric_residuals),
    "psf.png": ("PSF-fit photometry against what the noise allows", psf_photometry),
    "detection.png": ("Completeness and purity", detection),
    "discovery.png": ("Science image, reference and difference", discovered),
    "difference.png": ("What is found, and what is left in the differences", difference_quality),
}


def overview(run: Run, findings: Findings, path: Path) -> None:
    """Six panels on one page, in few enough colours to stay small."""
    science = showpiece(findings)
    cut = interesting_cut(science)
    figure = new_figure(12.0, 7.4)
    axes = figure.subplots(2, 3)
    picture(axes[0, 0], stretched(science.pix[cut]), 0.0, 1.0)
    axes[0, 0].set_title("calibrated image")
    mask_picture(axes[0, 1], science.mask[cut])
    axes[0, 1].set_title("its mask")
    position_scatter(axes[0, 2], findings)
    magnitude_scatter(axes[1, 0], findings)
    zero_points(axes[1, 1], findings)
    completeness(axes[1, 2], findings)
    figure.savefig(path)
    science.forget_pixels()
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(96, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
