"""Pictures of an image's point-spread function and PSF catalogue, from the products in an archive.

    python -m tools.psfpicture ARCHIVE/sci/.../X_sciimg.fits --out DIR [--center X Y] [--size N]

writes `psf.png` (FWHM and ellipticity over the image, chi2 of the PSF's stars, residuals of the zero point) and
`field.png` (a cutout: image, stars found, model, what is left in units of the noise).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tools.scorecard.style import ORANGE, RED, new_figure, picture, stretched, use_style
from zsds_hpc.archive.fitsfiles import FitsFile
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.core.errors import UsageError, ZsdsError
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.pipelines.calibrate_image import CalibrateParams
from zsds_hpc.production.forced import ForcedImage, read_image, scene_of
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.psf.qa import psf_shapes

SUFFIX = "sciimg.fits"
N_PLACES = 7


def metrics_of(path: Path) -> dict[str, Any]:
    """Metrics of the record of a science image in an archive.

    Raises
    ------
    UsageError
        The image does not lie in an archive, or has no record.
    """
    if not path.name.endswith(f"_{SUFFIX}") or len(path.parents) < 5:
        raise UsageError(f"{path}: not a sciimg of an archive")
    stem = path.name.removesuffix(f"_{SUFFIX}")
    night = parse_raw_name(stem.rsplit("_q", 1)[0] + ".fits.fz").night
    record = read_record(path.parents[4] / "records" / "calibrate" / night / f"{stem}.json")
    if record is None:
        raise UsageError(f"{path}: has no record in {path.parents[4]}")
    return record.metrics


def cells(axes: Axes, values: NDArray, title: str, label: str, form: str, cmap: str, shift: float = 0.0) -> None:
    """A map over the image with its numbers, in the middle of each cell or shifted."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 < high:
        high = max(high, -low)
        low = -high
    picture(axes, values, low, high, cmap, label)
    axes.set_title(title)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(value - low) > 0.7 * (high - low) or (low < 0 and value - low < 0.3 * (high - low))
            axes.text(column, row + shift, f"{value:{form}}", ha="center", va="center", fontsize=7.0,
                      color="white" if dark else "black")  # fmt: skip


def draw_psf(psf: PsfModel, metrics: dict[str, Any], path: Path) -> None:
    """Figures of the point-spread function over the image."""
    shapes = psf_shapes(psf, N_PLACES)
    figure = new_figure(10.0, 8.6)
    axes = figure.subplots(2, 2)
    middle = f"middle of the image: {psf.fwhm_pix:.2f} px"
    cells(axes[0, 0], shapes.fwhm_pix, f"FWHM of the PSF; {middle}", "px", ".2f", "Blues")
    cells(axes[0, 1], shapes.ellipticity, "ellipticity 1 - b/a, major axes", "", ".3f", "Blues", -0.36)
    angle = np.radians(shapes.angle_deg)
    row, column = np.indices(angle.shape)
    axes[0, 1].quiver(
        column, row, np.cos(angle) * shapes.ellipticity, np.sin(angle) * shapes.ellipticity, color=ORANGE,
        headwidth=0, headlength=0, headaxislength=0, pivot="mid", width=0.006, zorder=0.5,
        scale=1.2 * N_PLACES * float(shapes.ellipticity.max()),
    )  # fmt: skip
    chi2 = np.array(metrics.get("psf_chi2_map", [[None]]), float)
    cells(axes[1, 0], chi2, f"median chi2 per degree of freedom of the PSF's {psf.n_stars} stars", "", ".2f", "Blues")
    residual = 1000.0 * np.array(metrics.get("zeropoint_map_mag", [[None]]), float)
    error = 1000.0 * np.array(metrics.get("zeropoint_map_unc", [[None]]), float)
    title = f"zero point, cell - image; errors {np.nanmedian(error):.1f} mmag" if np.isfinite(error).any() else "none"
    cells(axes[1, 1], residual, title, "mmag", "+.1f", "RdBu")
    figure.savefig(path)


def draw_field(image: ForcedImage, center: tuple[int, int], size: int, path: Path) -> None:
    """A cutout of the image, its stars, their model and what is left."""
    assert image.known is not None  # read with its catalogue
    scene = scene_of(image, CalibrateParams())
    x0, y0 = (int(np.clip(c - size // 2, 0, n - size)) for c, n in zip(center, image.pix.shape[::-1]))
    cut = (slice(y0, y0 + size), slice(x0, x0 + size))
    data, model, variance = (part[cut].astype(float) for part in scene.images)
    inside = ((image.known[:, :2] > (x0, y0)) & (image.known[:, :2] < (x0 + size, y0 + size))).all(axis=1)
    x, y = (image.known[inside, :2] - (x0, y0)).T
    left = (data - model) / np.sqrt(variance + np.maximum(model, 0.0) / image.gain)
    shown = np.where(np.isfinite(variance), data, np.nan)
    figure = new_figure(10.0, 10.3)
    axes = figure.subplots(2, 2)
    for one, pix in ((axes[0, 0], shown), (axes[0, 1], shown), (axes[1, 0], model)):
        picture(one, _like(pix, shown), 0.0, 1.0, "gray")
    axes[0, 1].plot(x, y, "o", ms=5.0, mfc="none", mec=RED, mew=0.8)
    axes[0, 0].set_title(f"image, {size} x {size} px, background subtracted; white: masked")
    axes[0, 1].set_title(f"the {x.size} stars of the PSF catalogue")
    axes[1, 0].set_title("model")
    picture(axes[1, 1], np.where(np.isfinite(variance), left, np.nan), -5.0, 5.0, "RdBu")
    rms = float(np.std(left[np.isfinite(variance)]))
    axes[1, 1].set_title(f"image - model over its noise, -5 to 5; rms {rms:.2f}")
    figure.savefig(path)


def _like(pix: NDArray, reference: NDArray) -> NDArray:
    """Stretched as the reference is."""
    both = stretched(np.concatenate([reference, pix]))
    return both[len(reference) :]


def main(arguments: list[str] | None = None) -> int:
    """Parse, read, draw."""
    parser = argparse.ArgumentParser(prog="python -m tools.psfpicture", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("image", type=Path, metavar="SCIIMG", help="science image in an archive, products beside it")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the pictures go")
    parser.add_argument("--center", type=int, nargs=2, default=(1536, 1540), metavar=("X", "Y"), help="of the cutout")
    parser.add_argument("--size", type=int, default=100, metavar="N", help="side of the cutout, px")
    options = parser.parse_args(arguments)
    try:
        metrics = metrics_of(options.image.absolute())
        beside = [Path(str(options.image).removesuffix(SUFFIX) + name) for name in
                  ("mskimg.fits", "sciimg.psf", "psfcat.fits")]  # fmt: skip
        image = read_image(FitsFile(options.image), *beside)
    except (ZsdsError, ValueError) as error:
        print(f"psfpicture: {error}", file=sys.stderr)
        return 2
    use_style()
    options.out.mkdir(parents=True, exist_ok=True)
    draw_psf(image.psf, metrics, options.out / "psf.png")
    draw_field(image, tuple(options.center), options.size, options.out / "field.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
