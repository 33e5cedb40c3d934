"""The co-add of many epochs of one channel from files, on one core, against SWarp and the truth.

Takes the calibrated epochs of a run (``runs/benchmarks/diff_6000`` or one that ``benchmarks.discovery`` made). Where
more epochs are asked for than there are, they are taken twice: that is for the cost, accuracy is of the single ones.
Peers: SWarp (Bertin et al. 2002) with LANCZOS3 onto the native grid of the same footprint, its own background, weight
maps of the masks and the zero points as scales, combined as AVERAGE, CLIPPED or WEIGHTED.
"""

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import h5py  # isort: skip
import numpy as np  # isort: skip
from astropy.io import fits  # isort: skip
from scipy import ndimage  # isort: skip
from scipy.spatial import cKDTree  # isort: skip

from zsds_hpc.archive import refimages  # isort: skip
from zsds_hpc.archive.atomic import Staging  # isort: skip
from zsds_hpc.archive.fitsfiles import FitsFile  # isort: skip
from zsds_hpc.astrometry.tpv import TPV  # isort: skip
from zsds_hpc.coadd.warp import NO_DATA  # isort: skip
from zsds_hpc.parallel.timers import Timers  # isort: skip
from zsds_hpc.pipelines import reference  # isort: skip
from zsds_hpc.pipelines.base import Archive, Work  # isort: skip
from zsds_hpc.settings.camera import load_camera  # isort: skip
from zsds_hpc.settings.load import CONFIG_DIR, load_params  # isort: skip

ROOT = Path(__file__).parents[1]
MAGZP, CLRCOEFF = 26.275, 0.0798
METHODS = ("AVERAGE", "CLIPPED", "WEIGHTED")
BLOCK = 4


class Truth(NamedTuple):
    """Sky positions of everything, and isolated stars with their flux in DN at the reference's zero point."""

    everything: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    flux: np.ndarray


def epochs_of(run: Path, n: int) -> list[Path]:
    """Calibrated images of the earliest night, the same again until there are enough."""
    nights = sorted((run / "archive" / "sci").glob("*/*"))
    images = sorted(nights[0].glob("*/*_sciimg.fits"))
    return (images * -(-n // len(images)))[:n]


def truth_of(run: Path) -> Truth:
    """What the simulator drew on the first science exposure."""
    with h5py.File(sorted((run / "sky" / "truth").glob("truth_*.h5"))[0]) as file:
        names = sorted(name for name in file["exposures"] if file["exposures"][name].attrs["kind"] == "object")
        channel = next(c for c in file["exposures"][names[0]].values() if "stars" in c)
        stars, galaxies = channel["stars"][:], channel["galaxies"][:]
    places = np.concatenate([np.stack([t["ra"], t["dec"]], axis=1) for t in (stars, galaxies)])
    flat = places * [np.cos(np.radians(places[:, 1].mean())), 1.0] * 3600
    alone = cKDTree(flat).query(flat[: len(stars)], k=2)[0][:, 1] > 11
    chosen = stars[alone & ~stars["saturated"] & (stars["kind"] == 0)]
    flux = 10 ** (-0.4 * (chosen["mag"] - MAGZP - CLRCOEFF * chosen["color"]))
    return Truth(places, chosen["ra"], chosen["dec"], flux)


def ours(images: list[Path], out: Path, method: str) -> dict[str, Any]:
    """Run the pipeline's own step in this process."""
    params = load_params(reference.ReferenceSettings, CONFIG_DIR / "pipelines" / "reference.yml", {})
    params = params.model_copy(update={"coadd": params.coadd.model_copy(update={"method": method})})
    archive = Archive(out, load_camera("ztf"))
    work = Work(archive, Staging(out), Timers(), logging.getLogger("zsds"))
    target = reference.target_of_files(images, archive.camera)
    start = time.process_time()
    metrics = reference.combine_images(target, [], work.stage.path, work, params)
    work.stage.seal()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": time.process_time() - start, "peak_mib": used.ru_maxrss / 1024, "steps": work.timers.rounded(),
        "n_frames": metrics["n_frames"], "sky_sigma_dn": metrics["sky_sigma_dn"],
    }  # fmt: skip


def ours_apart(run: Path, n: int, out: Path, method: str) -> dict[str, Any]:
    """`ours` in a fresh process."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.coadd",
        "--run",
        run,
        "--epochs",
        n,
        "--measure",
        out,
        "--method",
        method,
    ]
    done = subprocess.run([str(w) for w in words], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def swarp_inputs(images: list[Path], folder: Path) -> None:
    """Links to the images, weight maps (1 / variance of the sky, 0 where masked), zero points as scales."""
    for k, image in enumerate(images):
        header, mask = FitsFile(image).header(), FitsFile(reference.mask_of(image)).image()
        weight = np.where(mask & NO_DATA, 0, 1 / header["BACKRMS"] ** 2).astype(np.float32)
        (folder / f"e{k:03d}.fits").symlink_to(image)
        fits.PrimaryHDU(weight).writeto(folder / f"e{k:03d}.weight.fits")
        scale = 10 ** (0.4 * (MAGZP - header["MAGZP"]))
        (folder / f"e{k:03d}.head").write_text(f"FLXSCALE= {scale:.10f}\nEND     \n")


def swarp(folder: Path, n: int, refimg: Path, method: str) -> dict[str, Any]:
    """Run SWarp onto the native footprint of a reference image."""
    header = FitsFile(refimg).header()
    grid_wcs = TPV.from_cards(header)
    ra, dec = grid_wcs.pixel_to_sky((header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2)
    words = ["SWarp", *(f"e{k:03d}.fits" for k in range(n)), "-c", "/dev/null"]
    options = {
        "IMAGEOUT_NAME": f"{method}.fits", "WEIGHTOUT_NAME": f"{method}.weight.fits", "WEIGHT_TYPE": "MAP_WEIGHT",
        "COMBINE_TYPE": method, "RESAMPLING_TYPE": "LANCZOS3", "CENTER_TYPE": "MANUAL", "CENTER": f"{ra:.8f},{dec:.8f}",
        "PIXELSCALE_TYPE": "MANUAL", "PIXEL_SCALE": f"{np.sqrt(abs(np.linalg.det(grid_wcs.cd))) * 3600:.8f}",
        "IMAGE_SIZE": f"{header['NAXIS1']},{header['NAXIS2']}", "SUBTRACT_BACK": "Y", "BACK_SIZE": "64",
        "PROJECTION_TYPE": "TAN", "NTHREADS": "1", "WRITE_XML": "N", "VERBOSE_TYPE": "QUIET",
    }  # fmt: skip
    for key, value in options.items():
        words += [f"-{key}", value]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"SWarp: {done.stderr[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu_s, "peak_mib": after.ru_maxrss / 1024}


def accuracy(image: Path, truth: Truth) -> dict[str, float]:
    """Fluxes of isolated stars in apertures of radius 4 px, and the noise of the blank sky."""
    file = FitsFile(image, require_checksums=False)
    pix, wcs = file.image(), TPV.from_cards(file.header())
    x, y = wcs.sky_to_pixel(truth.ra, truth.dec)
    n_y, n_x = pix.shape
    inside = (x > 40) & (y > 40) & (x < n_x - 40) & (y < n_y - 40) & (truth.flux > 2e3) & (truth.flux < 1e5)
    ratio = np.array([_aperture(pix, a, b) for a, b in zip(x[inside], y[inside])]) / truth.flux[inside]
    faint = truth.flux[inside] < 1e4
    blank = _blank(wcs.sky_to_pixel(*truth.everything.T), pix.shape)
    rows, columns = (n // BLOCK for n in pix.shape)
    blocks = (rows, BLOCK, columns, BLOCK)
    cut = np.s_[: rows * BLOCK, : columns * BLOCK]
    whole = blank[cut].reshape(blocks).all(axis=(1, 3))
    return {
        "n_stars": float(inside.sum()),
        "flux_scatter_mmag": 1085.7 * _width(ratio[~faint]) / float(np.median(ratio[~faint])),
        "nonlinearity_mmag": 1085.7 * float(np.median(ratio[~faint]) / np.median(ratio[faint]) - 1),
        "flux_scale": float(np.median(ratio)),
        "blank_sigma_dn": _width(pix[blank]),
        "block_sigma_dn": _width(pix[cut].reshape(blocks).mean(axis=(1, 3))[whole]) * BLOCK,
    }


def _aperture(pix: np.ndarray, x: float, y: float) -> float:
    i, j = round(x), round(y)
    window = pix[j - 14 : j + 15, i - 14 : i + 15].astype(float)
    distance = np.hypot(np.arange(-14, 15) - (x - i), np.arange(-14, 15)[:, None] - (y - j))
    weight = np.clip(4.5 - distance, 0, 1)
    sky = np.median(window[(distance > 9) & (distance < 13)])
    return float((window * weight).sum() - sky * weight.sum())


def _blank(places: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels more than 14 px from anything, and 60 px from the border."""
    x, y = (np.rint(p).astype(int) for p in places)
    on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    objects = np.zeros(shape, bool)
    objects[y[on], x[on]] = True
    blank = ndimage.distance_transform_edt(~objects) > 14
    edge = np.ones(shape, bool)
    edge[60:-60, 60:-60] = False
    return blank & ~edge


def _width(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def compare(run: Path, n: int, folder: Path, with_peers: bool) -> dict[str, dict[str, Any]]:
    """Everything measured."""
    truth, single = truth_of(run), len(set(epochs_of(run, 10_000)))
    result: dict[str, dict[str, Any]] = {}
    for method in ("weighted", "trimmed"):
        cost = ours_apart(run, n, folder / f"{method}_cost", method)
        if n != single:
            ours_apart(run, single, folder / method, method)
        made = folder / (f"{method}_cost" if n == single else method) / refimages.IMAGE
        result[f"zsds {method}"] = cost | accuracy(made, truth)
    if with_peers:
        refimg = folder / ("weighted_cost" if n == single else "weighted") / refimages.IMAGE
        for method in METHODS:
            cost = _peer(run, n, folder, refimg, method)
            if n != single:
                _peer(run, single, folder, refimg, method)
            result[f"SWarp {method}"] = cost | accuracy(folder / "swarp" / f"{method}.fits", truth)
    return result


def _peer(run: Path, n: int, folder: Path, refimg: Path, method: str) -> dict[str, Any]:
    place = folder / "swarp"
    if len(list(place.glob("e*.head"))) != n:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        swarp_inputs(epochs_of(run, n), place)
    return swarp(place, n, refimg, method)


def parse() -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coadd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "benchmarks" / "diff_6000", help="run with epochs")
    parser.add_argument("--epochs", type=int, default=40, help="epochs whose co-add is timed (default: 40)")
    parser.add_argument("--no-peers", action="store_true", help="leave SWarp out")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="weighted", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Parse, measure, print."""
    options = parse()
    run = options.run.absolute()
    if options.measure:
        print(json.dumps(ours(epochs_of(run, options.epochs), options.measure, options.method)))
        return 0
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        has_peer = not options.no_peers and shutil.which("SWarp") is not None
        result = compare(run, options.epochs, Path(folder), has_peer)
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    for name, values in result.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, (int, float)))
        print(f"{name:<16} {figures}")
        if "steps" in values:
            print(f"{'':<16} " + ", ".join(f"{step} {seconds:.2f} s" for step, seconds in values["steps"].items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
