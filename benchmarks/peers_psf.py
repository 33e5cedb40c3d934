"""What other programs cost and reach in PSF-fit photometry on the same calibrated image.

Peers are tuned with the help of the truth: each threshold is the lowest of several with which at most 1% of the
detections are spurious, and their fluxes get the best constant factor (median of bright unblended stars). The Python
programs are given the true PSF; ``ZSDS_PEERS_PYTHON`` names an interpreter that has them.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from benchmarks import peers
from tools.scorecard import limits, psfcard, psfmodel, psfphot
from tools.scorecard.products import Science
from tools.skysim import optics

#: Pixels that no program is given: bad, noisy, hit. Saturated ones as well for those that have no word for them.
BAD_BITS, SATURATED_BIT = 0b11010011100, 256
SPURIOUS = 0.01
#: photutils is run on a square of this side in the middle, its time multiplied by the ratio of the areas.
CUT_PIX = 500
DAOFIND_SIGMA = 4.0
_VIGNETTE = """NUMBER X_IMAGE Y_IMAGE FLUX_RADIUS FLUX_APER(1) FLUXERR_APER(1) ELONGATION FLAGS SNR_WIN
VIGNET(35,35)"""
_PSF_COLUMNS = "NUMBER XPSF_IMAGE YPSF_IMAGE FLUX_PSF FLUXERR_PSF ERRX2PSF_IMAGE ERRY2PSF_IMAGE FLAGS"
_GAUSS = "CONV NORM\n" + "\n".join(
    " ".join(f"{np.exp(-0.5 * (x * x + y * y) / 0.72):.6f}" for x in range(-2, 3)) for y in range(-2, 3)
)
#: Of source-extractor: as it comes, and what was found best on fields of 6,000 and 60,000 stars.
DEFAULTS = {"DETECT_MINAREA": "5", "DEBLEND_NTHRESH": "32", "DEBLEND_MINCONT": "0.005", "FILTER_NAME": "default.conv"}
TUNED = {"DETECT_MINAREA": "4", "DEBLEND_NTHRESH": "64", "DEBLEND_MINCONT": "0.0001", "FILTER_NAME": "gauss.conv"}
THRESHOLDS = (0.7, 0.8, 0.9, 1.0, 1.1)


class Case(NamedTuple):
    """A channel and its truth, made once for all programs."""

    science: Science
    truth: psfphot.Truths


class Measured(NamedTuple):
    """One program: CPU seconds, where its threshold came to lie, and the comparison with the truth."""

    cpu_s: float
    threshold: float
    check: psfphot.PsfCheck

    def as_dict(self) -> dict[str, float]:
        """Values by the names of the scorecard."""
        return accuracy(self.check) | {"threshold": self.threshold}


def accuracy(check: psfphot.PsfCheck) -> dict[str, float]:
    """Lines of the scorecard that have a value."""
    return {m.name: m.value for m in psfcard.metrics([check]) if m.value is not None}


def compared(case: Case, found: psfphot.Catalogue) -> psfphot.PsfCheck:
    """Comparison after the best constant factor on the fluxes."""
    check = psfphot.check(case.science, found, case.truth)
    bright = check.clean["ratio"][check.clean["snr"] > psfcard.BRIGHT_SNR]
    factor = float(np.median(bright)) if bright.size else 1.0
    scaled = found._replace(flux=found.flux / factor, sigflux=found.sigflux / factor)
    return psfphot.check(case.science, scaled, case.truth)


def purest(runs: Iterable[tuple[float, float, psfphot.PsfCheck]]) -> Measured:
    """The first of (threshold, seconds, comparison), thresholds rising, that is pure enough; else the last."""
    best = None
    for threshold, seconds, check in runs:
        best = Measured(seconds, threshold, check)
        if check.n_spurious <= SPURIOUS * max(check.n_detections, 1):
            break
    if best is None:
        raise peers.Missing("nothing was run")
    return best


# ---- source-extractor and PSFEx


def _extract(science: Science, folder: Path, columns: str, **settings: str) -> float:
    """One pass of source-extractor into ``CATALOG_NAME``; CPU seconds."""
    program = peers.program("source-extractor", "sex")
    gain, _ = science.gain_and_noise_e
    (folder / "columns.param").write_text("\n".join(columns.split()) + "\n")
    all_settings = {
        "CATALOG_TYPE": "FITS_LDAC", "PARAMETERS_NAME": "columns.param", "PHOT_APERTURES": "10",
        "GAIN": f"{gain:.3f}", "SATUR_LEVEL": f"{0.98 * science.header['SATURATE']:.0f}", "BACK_SIZE": "64",
        "BACK_FILTERSIZE": "3", "WEIGHT_TYPE": "MAP_WEIGHT", "WEIGHT_IMAGE": "weight.fits", "VERBOSE_TYPE": "QUIET",
        **settings,
    }  # fmt: skip
    words = [word for key, value in all_settings.items() for word in (f"-{key}", value)]
    return peers.timed([program, str(science.path("sciimg.fits").resolve()), "-c", "empty.conf", *words], folder)


def _write_inputs(science: Science, folder: Path) -> None:
    (folder / "empty.conf").write_text("")
    (folder / "gauss.conv").write_text(_GAUSS + "\n")
    (folder / "default.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    good = (science.mask & BAD_BITS) == 0
    fits.PrimaryHDU(good.astype(np.float32)).writeto(folder / "weight.fits", overwrite=True)


def read_psf_catalogue(path: Path) -> psfphot.Catalogue:
    """FLUX_PSF and places of a FITS_LDAC catalogue."""
    with fits.open(path) as hdus:
        rows = np.array(hdus["LDAC_OBJECTS"].data)
    rows = rows[(rows["FLUX_PSF"] > 0.0) & (rows["FLUXERR_PSF"] > 0.0)]
    sigma = np.sqrt(np.stack([rows["ERRX2PSF_IMAGE"], rows["ERRY2PSF_IMAGE"]], axis=1).astype(float))
    x, y, flux, sigflux = (rows[k].astype(float) for k in _PSF_COLUMNS.split()[1:5])
    return psfphot.Catalogue(x - 1.0, y - 1.0, flux, sigflux, sigma)


def source_extractor(
    case: Case, folder: Path, psfex: dict[str, str], detection: dict[str, str], thresholds: tuple[float, ...]
) -> Measured:
    """Vignettes, PSFEx, and the pass with PSF fits: all three are charged."""
    psfex_program, science = peers.program("psfex"), case.science
    _write_inputs(science, folder)
    seconds = _extract(science, folder, _VIGNETTE, CATALOG_NAME="vignettes.cat", DETECT_THRESH="5",
                       ANALYSIS_THRESH="5", **detection)  # fmt: skip
    settings = {"CHECKPLOT_TYPE": "NONE", "CHECKIMAGE_TYPE": "NONE", "WRITE_XML": "N", "NTHREADS": "1",
                "VERBOSE_TYPE": "QUIET", **psfex}  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"-{key}", value)]
    seconds += peers.timed([psfex_program, "vignettes.cat", "-c", "empty.conf", *words], folder)

    def one(threshold: float) -> tuple[float, float, psfphot.PsfCheck]:
        told = {"DETECT_THRESH": f"{threshold}", "ANALYSIS_THRESH": f"{threshold}", "PSF_NAME": "vignettes.psf"}
        own = _extract(science, folder, _PSF_COLUMNS, CATALOG_NAME="psf.cat", **told, **detection)
        return threshold, seconds + own, compared(case, read_psf_catalogue(folder / "psf.cat"))

    best = purest(map(one, thresholds))
    model = psfmodel.model_error(science, folder / "vignettes.psf")
    return best._replace(check=_with_model(best.check, model))


def _with_model(check: psfphot.PsfCheck, model: psfmodel.PsfError | None) -> psfphot.PsfCheck:
    return psfphot.PsfCheck(**{**vars(check), "psf": model})


# ---- programs in Python


def _true_wing(psf: optics.Psf) -> tuple[float, float]:
    """Height and squared scale radius of the wide Moffat."""
    alpha = float(optics.moffat_alphas(np.asarray(psf.fwhm_pix))[1])
    weight, beta = optics.MOFFAT_WEIGHTS[1], optics.MOFFAT_BETAS[1]
    return weight * (beta - 1.0) / (np.pi * alpha**2), alpha**2


def inputs(science: Science, cut: tuple[slice, slice], half_pix: int) -> dict[str, Any]:
    """What a program in Python is given of a part of the image; samples of the true PSF out to `half_pix`."""
    psf = limits.true_psf(science)
    model = psfmodel.sampled_truth(psf, limits.image_shape(science), half_pix)
    gain, read_noise = science.gain_and_noise_e
    image, mask = science.pix[cut], science.mask[cut]
    sigma = np.sqrt(np.maximum(image, 1.0) * gain + read_noise**2) / gain
    return {
        "image": image, "sigma": sigma.astype(np.float32), "bad": (mask & (BAD_BITS | SATURATED_BIT)) != 0,
        "wing": _true_wing(psf), "corner": (cut[1].start or 0, cut[0].start or 0), "full_shape": science.pix.shape,
        **vars(model),
    }  # fmt: skip


def in_python(name: str, given: dict[str, Any], folder: Path) -> tuple[float, psfphot.Catalogue]:
    """Run a program of ``peer_programs.py`` on one thread; CPU seconds without imports, and its catalogue."""
    python = os.environ.get("ZSDS_PEERS_PYTHON", sys.executable)
    np.savez(folder / "in.npz", **given)
    threads = {f"{kind}_NUM_THREADS": "1" for kind in ("OMP", "OPENBLAS", "MKL")}
    words = [python, str(Path(__file__).with_name("peer_programs.py")), name, "in.npz", "out.npz"]
    done = subprocess.run(words, cwd=folder, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise peers.Missing(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no word'}")
    with np.load(folder / "out.npz") as out:
        x, y, flux, sigflux, sigma_x, sigma_y = (
            out[k].astype(float) for k in ("x", "y", "flux", "sigflux", "sigma_x", "sigma_y")
        )
        return float(out["cpu_s"]), psfphot.Catalogue(x, y, flux, sigflux, np.stack([sigma_x, sigma_y], axis=1))


def crowdsource(case: Case, folder: Path) -> Measured:
    """The whole image with the true PSF; of its detections at 5 sigma those above the lowest pure threshold count."""
    everything = (slice(0, None), slice(0, None))
    seconds, found = in_python("crowdsource", {**inputs(case.science, everything, 12), "threshold": 5.0}, folder)
    return purest((cut, seconds, compared(case, above(found, cut))) for cut in (0.0, 5.0, 5.5, 6.0, 7.0))


def above(found: psfphot.Catalogue, cut: float) -> psfphot.Catalogue:
    """Rows above a S/N."""
    return found.select(found.flux > cut * found.sigflux)


def photutils(case: Case, folder: Path) -> Measured:
    """A square in the middle with the true PSF, seconds scaled by area; its sparse bins say little."""
    science = case.science
    n_y, n_x = science.pix.shape
    cut = tuple(slice((n - CUT_PIX) // 2, (n + CUT_PIX) // 2) for n in (n_y, n_x))
    given = inputs(science, (cut[0], cut[1]), 25)
    part = Case(science, inside(case.truth, cut[0], cut[1]))
    noise = float(np.sqrt(limits.background_var_e(science))) / science.gain_and_noise_e[0]

    seconds, found = in_python("photutils", {**given, "threshold": DAOFIND_SIGMA * noise}, folder)
    seconds *= n_y * n_x / CUT_PIX**2
    return purest((cut, seconds, compared(part, above(found, cut))) for cut in (0.0, 5.0, 5.5, 6.0, 7.0, 9.0))


def inside(truth: psfphot.Truths, rows: slice, columns: slice) -> psfphot.Truths:
    """Objects of a part of the image."""
    x, y = truth.objects["x"], truth.objects["y"]
    kept: NDArray = (x > columns.start) & (x < columns.stop - 1) & (y > rows.start) & (y < rows.stop - 1)
    bounds = limits.Bounds(*(part[kept] for part in truth.bounds))
    return psfphot.Truths(truth.objects[kept], bounds, truth.depth[kept], truth.neighbours[kept], truth.limit_mag)


PSF_PEERS: dict[str, Callable[[Case, Path], Measured]] = {
    "sextractor + psfex NONE": partial(
        source_extractor, psfex={"BASIS_TYPE": "NONE", "SAMPLE_MINSN": "150"}, detection=TUNED, thresholds=THRESHOLDS
    ),
    "sextractor + psfex S/N>150": partial(
        source_extractor, psfex={"SAMPLE_MINSN": "150"}, detection=TUNED, thresholds=THRESHOLDS
    ),
    "sextractor + psfex, defaults": partial(source_extractor, psfex={}, detection=DEFAULTS, thresholds=(1.5,)),
    "crowdsource": crowdsource,
    "photutils": photutils,
}
