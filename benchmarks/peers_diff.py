"""Other programs on the same images: SWarp makes and resamples the reference, others subtract, SExtractor detects.

`ZSDS_PEERS_PYTHON` names an interpreter that has `sfft` or `ois` (both on PyPI). hotpants is in no package archive that
we know; what it reached on such images is in the README. Every difference is judged alike: its noise model is the
photons' with the best common factor, and its candidates are peaks of a filter with the true PSF.
"""

import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import ndimage, signal

from benchmarks import peers
from benchmarks.disc_data import say
from tools.scorecard import disccard, discmeasure, limits, psfphot, sources
from tools.scorecard.discmeasure import Candidates, DiffProducts
from tools.scorecard.products import Science, read_image

PROGRAMS = ("sfft", "ois")
REFERENCE_ZERO = 26.275
LEAST_SNR = 5.0


def compare(place: Path, science: Science, epochs: list[Science]) -> dict[str, Any]:
    """Difference of each program that is there against the truth, with its CPU seconds."""
    folder = place / "peers"
    folder.mkdir(exist_ok=True)
    results: dict[str, Any] = {}
    try:
        coadd_s = swarp_coadd(folder, epochs)
        reference, resample_s = swarp_resample(folder, science)
    except peers.Missing as reason:
        say(f"peers left out: {reason}")
        return {}
    given = inputs(science, reference)
    for name in PROGRAMS:
        say(f"peer {name}")
        try:
            difference, seconds = subtracted(name, given)
            found = judged(science, epochs, difference, given)
            results[f"swarp + {name}"] = found | {
                "coadd_cpu_s": coadd_s, "resample_cpu_s": resample_s, "subtract_cpu_s": seconds,
                "sextractor_cpu_s": extract(folder, science, difference),
            }  # fmt: skip
        except peers.Missing as reason:
            say(f"peer {name} left out: {reason}")
    return results


# ---- SWarp


def _write(path: Path, pix: NDArray, header: fits.Header | None = None) -> None:
    fits.PrimaryHDU(pix, header).writeto(path, overwrite=True)


def _swarp(folder: Path, images: list[str], **settings: str) -> float:
    program = peers.program("SWarp", "swarp")
    (folder / "empty.swarp").write_text("")
    common = {
        "RESAMPLING_TYPE": "LANCZOS3", "WEIGHT_TYPE": "MAP_WEIGHT", "WEIGHT_SUFFIX": ".weight.fits", "NTHREADS": "1",
        "SUBTRACT_BACK": "Y", "BACK_SIZE": "128", "VERBOSE_TYPE": "QUIET", "WRITE_XML": "N", "COPY_KEYWORDS": "OBJECT",
        "FSCALE_KEYWORD": "FLXSCALE", "FSCALASTRO_TYPE": "NONE", "DELETE_TMPFILES": "Y", "MEM_MAX": "1024",
        "COMBINE_BUFSIZE": "1024", **settings,
    }  # fmt: skip
    words = [word for key, value in common.items() for word in (f"-{key}", value)]
    return peers.timed([program, *images, "-c", "empty.swarp", *words], folder)


def swarp_coadd(folder: Path, epochs: list[Science]) -> float:
    """Average of the epochs on a native grid without distortion, ``ref.fits``; CPU seconds (0 where it is there)."""
    if (folder / "ref.fits").is_file():
        return float((folder / "ref.seconds").read_text())
    say(f"SWarp: co-add of {len(epochs)} epochs")
    with tempfile.TemporaryDirectory() as scratch:
        place, names = Path(scratch), []
        for k, epoch in enumerate(epochs):
            header = epoch.header.copy()
            header["FLXSCALE"] = 10.0 ** (0.4 * (REFERENCE_ZERO - header["MAGZP"]))
            _write(place / f"e{k}.fits", epoch.pix, header)
            _write(place / f"e{k}.weight.fits", ((epoch.mask & sources.UNUSABLE) == 0).astype(np.float32))
            names.append(f"e{k}.fits")
            epoch.forget_pixels()
        seconds = _swarp(
            place, names, COMBINE_TYPE="AVERAGE", IMAGEOUT_NAME=str(folder / "ref.fits"),
            WEIGHTOUT_NAME=str(folder / "ref.weight.fits"),
        )  # fmt: skip
    (folder / "ref.seconds").write_text(f"{seconds:.2f}")
    return seconds


def swarp_resample(folder: Path, science: Science) -> tuple[NDArray, float]:
    """The co-add on the pixels of a science image, and CPU seconds."""
    kept = ("NAXIS", "CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD", "PV", "RADESYS", "EQUINOX")
    cards = [c for c in science.header.cards if c.keyword.startswith(kept) and c.keyword != "CDATE"]
    (folder / "there.head").write_text("".join(f"{str(card).rstrip()}\n" for card in cards) + "END\n")
    seconds = _swarp(folder, ["ref.fits"], COMBINE_TYPE="AVERAGE", IMAGEOUT_NAME="there.fits",
                     WEIGHTOUT_NAME="there.weight.fits", SUBTRACT_BACK="N")  # fmt: skip
    pix, weight = (read_image(folder / name)[0] for name in ("there.fits", "there.weight.fits"))
    if pix.shape != science.pix.shape:
        raise peers.Missing(f"SWarp gave {pix.shape}, the science image is {science.pix.shape}")
    return np.where(weight > 0.0, pix, np.nan), seconds


# ---- subtraction


def inputs(science: Science, reference: NDArray) -> dict[str, Any]:
    """What the programs are given."""
    bad = ((science.mask & sources.UNUSABLE) != 0) | ~np.isfinite(reference)
    pix = science.pix - background(np.where(bad, np.nan, science.pix))
    found = psfphot.read_catalogue(science)
    bright = found.flux / found.sigflux > 40.0
    stars = discmeasure.disc_mask(pix.shape, found.x[bright], found.y[bright], 14.0)
    return {"science": np.where(bad, 0.0, pix), "reference": np.where(bad, 0.0, reference), "bad": bad, "stars": stars}


def background(pix: NDArray, cell: int = 77) -> NDArray:
    """Median of cells, smoothed and interpolated."""
    n_y, n_x = (max(1, n // cell) for n in pix.shape)
    cut = pix[: n_y * cell, : n_x * cell].reshape(n_y, cell, n_x, cell).swapaxes(1, 2).reshape(n_y, n_x, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells without a usable pixel
        level = np.nanmedian(cut, axis=2)
    level[~np.isfinite(level)] = np.nanmedian(level)
    level = ndimage.median_filter(level, 3)
    at = [(np.arange(n) + 0.5) / cell - 0.5 for n in pix.shape]
    return ndimage.map_coordinates(level, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")


def subtracted(name: str, given: dict[str, Any]) -> tuple[NDArray, float]:
    """Difference by a program in the peers' interpreter, and its CPU seconds."""
    interpreter = os.environ.get("ZSDS_PEERS_PYTHON")
    if not interpreter:
        raise peers.Missing("ZSDS_PEERS_PYTHON is not set")
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(Path(scratch) / "in.npz", **given)
        words = [interpreter, str(Path(__file__).with_name("peer_subtract.py")), name, "in.npz", "out.npz"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise peers.Missing(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
        with np.load(Path(scratch) / "out.npz") as out:
            return out["difference"], float(out["cpu_s"])


def extract(folder: Path, science: Science, difference: NDArray) -> float:
    """CPU seconds of source-extractor on the difference."""
    program = peers.program("source-extractor", "sex")
    _write(folder / "diff.fits", difference)
    (folder / "columns.param").write_text("NUMBER\nX_IMAGE\nY_IMAGE\nFLUX_APER(1)\nFLUXERR_APER(1)\nFLAGS\n")
    (folder / "default.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    (folder / "empty.sex").write_text("")
    gain, _ = science.gain_and_noise_e
    words = ["-CATALOG_NAME", "diff.cat", "-CATALOG_TYPE", "FITS_LDAC", "-PARAMETERS_NAME", "columns.param",
             "-FILTER_NAME", "default.conv", "-PHOT_APERTURES", "6", "-GAIN", f"{gain:.2f}",
             "-VERBOSE_TYPE", "QUIET"]  # fmt: skip
    return peers.timed([program, "diff.fits", "-c", "empty.sex", *words], folder)


# ---- what is left in a difference


def judged(science: Science, epochs: list[Science], difference: NDArray, given: dict[str, Any]) -> dict[str, float]:
    """Lines of the scorecard that have a value."""
    sigma = noise_model(science, difference, given)
    pix = difference - background(np.where(given["bad"], np.nan, difference))
    pix[given["bad"]] = 0.0
    check = discmeasure.check(science, epochs, DiffProducts(pix, sigma, filtered_peaks(science, pix, sigma)))
    lines = [*disccard.completeness([check]), *disccard.residuals([check]), *disccard.false_lines([check])]
    return {m.name: m.value for m in lines if m.value is not None}


def noise_model(science: Science, difference: NDArray, given: dict[str, Any]) -> NDArray:
    """Photons of sky and constant light, read-out, scaled so that the robust width over the image is one."""
    gain, _ = science.gain_and_noise_e
    var = limits.background_var_e(science) / gain**2 + np.maximum(given["reference"], 0.0) / gain
    sigma = np.sqrt(var)
    good = ~given["bad"]
    sigma *= discmeasure.robust_width((difference[good] - np.median(difference[good])) / sigma[good])
    sigma[given["bad"]] = np.inf
    return sigma.astype(np.float32)


def filtered_peaks(science: Science, pix: NDArray, sigma: NDArray) -> Candidates:
    """Peaks, of either sign, of the filter with the true PSF (of the image's middle), with flux and error there."""
    psf = limits.true_psf(science)
    middle = np.array([np.rint(psf.half_x)]), np.array([np.rint(psf.half_y)])
    star = limits.star_planes(psf, *middle, 8)[0, 0].astype(np.float32)
    weight = np.where(np.isfinite(sigma), 1.0 / np.square(sigma), 0.0).astype(np.float32)
    top = signal.oaconvolve(pix * weight, star[::-1, ::-1], mode="same")
    information = signal.oaconvolve(weight, np.square(star)[::-1, ::-1], mode="same")
    score = top / np.sqrt(np.maximum(information, 1e-12))
    size = np.abs(score)
    is_peak = (size == ndimage.maximum_filter(size, 5)) & (size >= LEAST_SNR - 0.5) & (weight > 0.0)
    y, x = np.nonzero(is_peak)
    (shift_y, rise_y), (shift_x, rise_x) = (_vertex(size, y, x, dy, dx) for dy, dx in ((1, 0), (0, 1)))
    error = 1.0 / np.sqrt(information[y, x])
    summit = np.sign(score[y, x]) * (size[y, x] + rise_x + rise_y)
    return Candidates(x + shift_x, y + shift_y, summit * error, error, np.full(x.size, np.nan))


def _vertex(size: NDArray, y: NDArray, x: NDArray, dy: int, dx: int) -> tuple[NDArray, NDArray]:
    """Offset of the summit of a parabola through three pixels, and its height above the middle one."""
    n_y, n_x = size.shape
    before = size[np.clip(y - dy, 0, n_y - 1), np.clip(x - dx, 0, n_x - 1)]
    after = size[np.clip(y + dy, 0, n_y - 1), np.clip(x + dx, 0, n_x - 1)]
    bend = np.minimum(before - 2.0 * size[y, x] + after, -1e-9)
    shift = np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
    return shift, -0.5 * bend * shift**2
