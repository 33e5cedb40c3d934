"""What other programs cost and reach on the same calibrated image: source-extractor, SCAMP, astroscrappy."""

import dataclasses
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from tools.scorecard import artifacts, astrometry, photometry, sources
from tools.scorecard.products import Science
from zsds_hpc.archive import paths
from zsds_hpc.core import ids

APERTURES_PIX = "2,3,4,6,10,14"
#: Positions are compared for stars without neighbours whose ideal S/N is at least this, whatever a program says of it.
POSITION_SNR = 15.0
_FILTER = "CONV NORM\n1 2 1\n2 4 2\n1 2 1\n"
_COLUMNS = """NUMBER XWIN_IMAGE YWIN_IMAGE ERRAWIN_IMAGE ERRBWIN_IMAGE ERRTHETAWIN_IMAGE ALPHAWIN_J2000 DELTAWIN_J2000
FLUX_APER(6) FLUXERR_APER(6) FLUX_AUTO FLUXERR_AUTO KRON_RADIUS FLUX_RADIUS A_IMAGE B_IMAGE THETA_IMAGE FWHM_IMAGE
FLAGS"""


class Missing(Exception):
    """A program that is not installed."""


def own_accuracy(science: Science) -> dict[str, float]:
    """What the suite reached on this channel."""
    matched = sources.match(science)
    places, mags = astrometry.check(science, matched), photometry.check(science, matched)
    good = places.is_clean & (places.snr >= POSITION_SNR)
    return {
        "map_error_mas": places.map_rms_mas,
        "gaia_stars": float(places.n_stars),
        "star_position_rms_snr15_mas": astrometry.rms_per_axis(places.residuals[good]) or np.nan,
        "zero_point_error_mmag": 1000.0 * mags.zero_point_error,
        "zero_point_unc_mmag": 1000.0 * mags.zero_point_unc,
        "n_detections": float(mags.n_detections),
        **_hit_accuracy(science, matched),
    }


def _hit_accuracy(science: Science, matched: sources.Matched) -> dict[str, float]:
    check = artifacts.check(science, matched)
    return {
        "cosmic_ray_recall": check.n_hits_masked / max(check.n_hits, 1),
        "stars_touched": check.n_stars_touched / max(check.n_stars, 1),
    }


def timed(words: list[str], folder: Path) -> float:
    """Run a program on one thread; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise Missing(f"{words[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise Missing(f"{names[0]} is not installed")
    return found


def _extract(science: Science, folder: Path) -> float:
    """Catalogue of the calibrated image in ``image.cat`` (FITS_LDAC); CPU seconds."""
    sextractor = program("source-extractor", "sex")
    (folder / "default.conv").write_text(_FILTER)
    (folder / "columns.param").write_text("\n".join(_COLUMNS.split()) + "\n")
    (folder / "empty.sex").write_text("")
    gain, _ = science.gain_and_noise_e
    settings = {
        "CATALOG_NAME": "image.cat", "CATALOG_TYPE": "FITS_LDAC", "PARAMETERS_NAME": "columns.param",
        "FILTER_NAME": "default.conv", "DETECT_MINAREA": "3", "DETECT_THRESH": "1.5", "ANALYSIS_THRESH": "1.5",
        "PHOT_APERTURES": APERTURES_PIX, "GAIN": f"{gain:.3f}", "SATUR_LEVEL": f"{science.header['SATURATE']:.0f}",
        "BACK_SIZE": "64", "BACK_FILTERSIZE": "3", "CHECKIMAGE_TYPE": "NONE", "VERBOSE_TYPE": "QUIET",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"-{key}", value)]
    return timed([sextractor, str(science.path("sciimg.fits")), "-c", "empty.sex", *words], folder)


def source_extractor(science: Science, folder: Path) -> tuple[float, dict[str, float]]:
    """Detection and aperture catalogue with the same apertures, no check images."""
    seconds = min(_extract(science, folder) for _ in range(3))
    with fits.open(folder / "image.cat") as hdus:
        rows = np.asarray(hdus["LDAC_OBJECTS"].data)
    found = np.stack([rows["XWIN_IMAGE"] - 1.0, rows["YWIN_IMAGE"] - 1.0], axis=1)
    matched = sources.match_positions(science, found, rows["FLUX_AUTO"])
    objects, row = matched.objects, matched.row
    pick = objects["is_star"] & (row >= 0) & (objects["contamination"] < astrometry.CLEAN)
    pick &= sources.inside(science, objects["x"], objects["y"]) & (objects["snr"] >= POSITION_SNR)
    star, own = objects[pick], rows[row[pick]]
    good = own["FLAGS"] & astrometry.SATURATED_FLAG == 0
    offset = found[row[pick]][good] - np.stack([star["x"], star["y"]], axis=1)[good]
    rms = astrometry.rms_per_axis(offset * astrometry.SCALE_MAS) or np.nan
    return seconds, {"n_detections": float(len(rows)), "star_position_rms_snr15_mas": rms}


def _gaia_ldac(science: Science, path: Path) -> None:
    """Gaia stars of the run's own store about the image, at its epoch, as a catalogue that SCAMP reads."""
    from zsds_hpc.archive.refcats import RefCat

    header = science.header
    epoch = 2000.0 + (header["OBSJD"] - 2451545.0) / 365.25
    store = science.run.path.resolve().parent / "refcats" / "gaia"
    stars = RefCat(store).cone(header["CRVAL1"], header["CRVAL2"], 0.75, epoch)
    kept = np.isfinite(stars["mag"])
    stars = stars[kept]
    columns = [
        fits.Column("X_WORLD", "1D", "deg", array=stars["ra"]),
        fits.Column("Y_WORLD", "1D", "deg", array=stars["dec"]),
        fits.Column("ERRA_WORLD", "1E", "deg", array=stars["ra_err"] / 3.6e6),
        fits.Column("ERRB_WORLD", "1E", "deg", array=stars["dec_err"] / 3.6e6),
        fits.Column("MAG", "1E", "mag", array=stars["mag"]),
        fits.Column("MAGERR", "1E", "mag", array=np.full(stars.size, 0.01)),
        fits.Column("OBSDATE", "1D", "yr", array=np.full(stars.size, epoch)),
    ]
    text = fits.Header([("EXTEND", True)]).tostring(endcard=True, padding=True)
    card = fits.Column("Field Header Card", f"{len(text)}A", array=[text])
    head = fits.BinTableHDU.from_columns([card], name="LDAC_IMHEAD")
    head.header["TDIM1"] = f"(80, {len(text) // 80})"
    fits.HDUList([fits.PrimaryHDU(), head, fits.BinTableHDU.from_columns(columns, name="LDAC_OBJECTS")]).writeto(path)


def _pointing_header(science: Science) -> str:
    """WCS from the commanded pointing, as the raw channel image has it, in the form of an ``.ahead`` file."""
    raw = fits.getheader(science.run.archive / paths.channel(science.name, ids.ccdid_qid_of(science.rcid)[1]))
    kept = [c for c in raw.cards if c.keyword.startswith(("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD", "PV", "RADESYS"))]
    return "".join(f"{str(card).rstrip()}\n" for card in kept if card.keyword != "CDATE") + "END\n"


def scamp(science: Science, folder: Path) -> tuple[float, dict[str, float]]:
    """Astrometric solution of degree 3 from the commanded pointing, with a local catalogue; its own pass excluded."""
    own = program("scamp")
    _extract(science, folder)
    _gaia_ldac(science, folder / "gaia.cat")
    (folder / "image.ahead").write_text(_pointing_header(science))
    (folder / "empty.scamp").write_text("")
    settings = {
        "ASTREF_CATALOG": "FILE", "ASTREFCAT_NAME": "gaia.cat", "ASTREFCENT_KEYS": "X_WORLD,Y_WORLD",
        "ASTREFERR_KEYS": "ERRA_WORLD,ERRB_WORLD", "ASTREFMAG_KEY": "MAG", "ASTREFMAGERR_KEY": "MAGERR",
        "ASTREFOBSDATE_KEY": "OBSDATE", "CENTROID_KEYS": "XWIN_IMAGE,YWIN_IMAGE",
        "CENTROIDERR_KEYS": "ERRAWIN_IMAGE,ERRBWIN_IMAGE,ERRTHETAWIN_IMAGE", "DISTORT_KEYS": "XWIN_IMAGE,YWIN_IMAGE",
        "DISTORT_DEGREES": "3", "POSITION_MAXERR": "2.0", "SOLVE_PHOTOM": "N", "CHECKPLOT_TYPE": "NONE",
        "WRITE_XML": "N", "SAVE_REFCATALOG": "N", "NTHREADS": "1", "VERBOSE_TYPE": "QUIET",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"-{key}", value)]
    seconds = min(timed([own, "image.cat", "-c", "empty.scamp", *words], folder) for _ in range(2))
    # SCAMP signs its headers with a letter that FITS does not allow.
    text = (folder / "image.head").read_bytes().decode("ascii", errors="ignore")
    header = fits.Header.fromstring(text, sep="\n")
    error = astrometry.map_error(science, header)
    return seconds, {"map_error_mas": float(np.sqrt(np.mean(error**2)))}


def astroscrappy(science: Science, folder: Path) -> tuple[float, dict[str, float]]:
    """L.A.Cosmic with the settings that the anchors were measured with."""
    try:
        from astroscrappy import detect_cosmics
    except ImportError:
        raise Missing("astroscrappy is not installed") from None
    gain, read_noise = science.gain_and_noise_e
    unusable = (science.mask & ~artifacts.SPIKE & sources.UNUSABLE) != 0
    start = time.process_time()
    found, _ = detect_cosmics(
        science.pix, inmask=unusable, gain=gain, readnoise=read_noise, satlevel=float(science.header["SATURATE"]),
        objlim=5.0, niter=4,
    )  # fmt: skip
    seconds = time.process_time() - start
    other = dataclasses.replace(science)
    other.__dict__["mask"] = _with_hits(science.mask, np.asarray(found))
    return seconds, _hit_accuracy(other, sources.match(other))


def _with_hits(mask: NDArray, hits: NDArray) -> NDArray:
    return np.where(hits, mask | artifacts.SPIKE, mask & ~artifacts.SPIKE).astype(mask.dtype)


PEERS: dict[str, Callable[[Science, Path], tuple[float, dict[str, float]]]] = {
    "source-extractor": source_extractor,
    "scamp": scamp,
    "astroscrappy": astroscrappy,
}
