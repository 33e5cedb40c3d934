"""A small run directory made by hand: truth and products whose differences are known exactly."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from tools.skysim.scene import GALAXY_TRUTH, MOVER_TRUTH, STAR_TRUTH, TRANSIENT_TRUTH
from tools.skysim.tracks import TRACK_TRUTH
from zsds_hpc.archive import database, paths
from zsds_hpc.archive.atomic import Seal
from zsds_hpc.archive.provenance import Record
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.core.states import State

NIGHT, RCID, N_PIX, GAIN, READ_NOISE, SKY_DN = "20200924", 20, 512, 6.0, 9.0, 150.0
EXPOSURE = f"ztf_{NIGHT}431751_000655_zr"
RAW = f"{EXPOSURE}_c06_o.fits.fz"
N_FRAMES, LEVEL_DN = 20, 20000.0
ZERO_POINT, COLOR_COEFFICIENT = 26.3, 0.08
TPV = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 256.5, "CRPIX2": 256.5, "CRVAL1": 55.0, "CRVAL2": 33.0,
       "CD1_1": -2.81e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 2.81e-4, "CUNIT1": "deg", "CUNIT2": "deg"}  # fmt: skip


def header_wcs() -> fits.Header:
    """The true map as header cards."""
    return fits.Header(list(TPV.items()))


def true_stars(rng: np.random.Generator) -> np.ndarray:
    """Isolated stars on a jittered grid of 40 px, S/N from 20 to 1000."""
    y, x = (a.ravel() + rng.uniform(-3, 3, a.size) for a in np.mgrid[30:490:40, 30:490:40])
    stars = np.zeros(x.size, STAR_TRUTH)
    stars["id"], stars["x"], stars["y"] = np.arange(x.size), x, y
    stars["ra"], stars["dec"] = WCS(header_wcs()).all_pix2world(x, y, 0)
    stars["color"] = rng.uniform(0.2, 1.2, x.size)
    stars["flux_dn"] = 10.0 ** rng.uniform(2.9, 5.0, x.size)
    stars["mag"] = -2.5 * np.log10(stars["flux_dn"]) + ZERO_POINT + COLOR_COEFFICIENT * stars["color"]
    stars["smooth_response"] = 1.0
    return stars


def write_truth(path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Truth file of one science channel, one bias and one flat exposure."""
    ones = np.ones((N_PIX, N_PIX), np.float32)
    mask = np.zeros((N_PIX, N_PIX), np.int16)
    mask[100, 100:110], mask[200, 100:110] = 512, 16
    maps = {"bias_dn": rng.normal(0.0, 3.0, (N_PIX, N_PIX)).astype(np.float32), "dust": ones, "vignetting": ones,
            "lamp_zr": ones, "mask": mask}  # fmt: skip
    maps["prnu"] = 1.0 + 0.007 * rng.standard_normal((N_PIX, N_PIX), np.float32)
    hits = np.zeros(6, [("index", "i4"), ("electrons", "f4"), ("clump", "i4")])
    hits["index"] = [50 * N_PIX + 55, 50 * N_PIX + 56, 91 * N_PIX + 96, 132 * N_PIX + 135, 213 * N_PIX + 51, 60]
    hits["electrons"], hits["clump"] = [3000, 900, 2500, 4000, 5000, 20], [0, 0, 1, 2, 3, 4]
    axis = np.linspace(-32.0, N_PIX + 31.0, 33)
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    ra, dec = WCS(header_wcs()).all_pix2world(x, y, 0)
    wcs = np.rec.fromarrays([x, y, ra, dec], names="x,y,ra,dec")
    tracks = np.array([(0, 0, 0.0, 310.0, 511.0, 310.0, 3.0, 500.0, 0.0)], TRACK_TRUTH)
    tables = {"stars": true_stars(rng), "galaxies": np.zeros(0, GALAXY_TRUTH), "movers": np.zeros(0, MOVER_TRUTH),
              "transients": np.zeros(0, TRANSIENT_TRUTH), "tracks": tracks, "cosmic_rays": hits, "wcs": wcs,
              "saturated_pixels": np.array([255 * N_PIX + 20, 256 * N_PIX + 20], np.int32)}  # fmt: skip
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as out:
        detector = out.create_group(f"detector/{RCID}")
        detector.attrs.update({"gain_e": GAIN, "read_noise_e": READ_NOISE, "prnu_factor_zr": 1.0})
        for name, image in maps.items():
            detector[name] = image
        for k in range(N_FRAMES):
            flat = out.create_group(f"exposures/ztf_{NIGHT}05{k:04d}_000000_zr")
            flat.attrs.update({"kind": "flat", "filtercode": "zr", "level_dn": LEVEL_DN})
        exposure = out.create_group(f"exposures/{EXPOSURE}")
        exposure.attrs.update({"kind": "object", "filtercode": "zr", "level_dn": 0.0})
        channel = exposure.create_group(str(RCID))
        channel.attrs.update({"zero_point": ZERO_POINT, "zero_point_channel": ZERO_POINT, "sky_dn": SKY_DN,
                              "color_coefficient": COLOR_COEFFICIENT, "core_fwhm_pix": 2.0})  # fmt: skip
        for name, table in tables.items():
            channel[name] = table
    return {**maps, **{f"table_{name}": table for name, table in tables.items()}}


def _write(path: Path, data: np.ndarray, header: fits.Header | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(data, header).writeto(path)


def write_calibrations(archive: Path, truth: dict[str, np.ndarray], rng: np.random.Generator, noise: float) -> None:
    """Super-bias and flat with `noise` times the noise of N frames, and a mask that misses one noisy pixel in ten."""
    frames = fits.Header([("NFRAMES", N_FRAMES)])
    shape = (N_PIX, N_PIX)
    sigma = np.sqrt(((READ_NOISE / GAIN) ** 2 + 1 / 12) / N_FRAMES)
    bias = truth["bias_dn"] + noise * sigma * rng.standard_normal(shape) + 2.5
    _write(archive / paths.calibration("bias", NIGHT, "bi", 6, 1), bias.astype(np.float32), frames)
    sigma = np.sqrt((1 / (GAIN * LEVEL_DN)) / N_FRAMES)
    flat = truth["prnu"] + noise * sigma * rng.standard_normal(shape)
    _write(archive / paths.calibration("hifreqflat", NIGHT, "zr", 6, 1), flat.astype(np.float32), frames)
    cmask = truth["mask"].copy()
    cmask[200, 109], cmask[300, 300] = 0, 4
    _write(archive / paths.calibration("cmask", NIGHT, "zr", 6, 1), cmask, frames)


def write_science(archive: Path, truth: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Products with known faults: 30 mas of scatter, 2 mmag of zero point, one hit of four missed, one star touched."""
    stars = truth["table_stars"]
    header = header_wcs()
    header.update({"MAGZP": ZERO_POINT + 0.002, "MAGZPUNC": 0.002, "CLRCOEFF": COLOR_COEFFICIENT, "CLRCOUNC": 0.001,
                   "FIXAPERS": "4,6", "APCOR1": -0.2, "APCOR2": -0.1, "ASTROMN": 2000})  # fmt: skip
    mask = truth["mask"].copy()
    mask[50, 55] = mask[91, 96] = mask[132, 135] = 128
    mask[round(stars["y"][60]), round(stars["x"][60])] = 128
    mask[255:257, 20] = 256
    mask[308:313] |= 1
    name = parse_raw_name(RAW)
    pix = np.full((N_PIX, N_PIX), SKY_DN, np.float32)
    _write(archive / paths.science(name, 1, "sciimg.fits"), pix, header)
    _write(archive / paths.science(name, 1, "mskimg.fits"), mask, header)
    rows = np.zeros(stars.size + 1, [("XWIN_IMAGE", "f8"), ("YWIN_IMAGE", "f8"), ("ALPHAWIN_J2000", "f8"),
                                     ("DELTAWIN_J2000", "f8"), ("FLUX_AUTO", "f4"), ("FLUXERR_AUTO", "f4"),
                                     ("MAG_APER", "f4", 2), ("FLAGS", "i2")])  # fmt: skip
    own = rows[:-1]
    own["XWIN_IMAGE"], own["YWIN_IMAGE"] = stars["x"] + 1, stars["y"] + 1
    scatter = rng.normal(0.0, 30.0, (2, stars.size)) / 3.6e6
    own["ALPHAWIN_J2000"] = stars["ra"] + scatter[0] / np.cos(np.radians(stars["dec"]))
    own["DELTAWIN_J2000"] = stars["dec"] + scatter[1]
    own["FLUX_AUTO"], own["FLUXERR_AUTO"] = stars["flux_dn"], stars["flux_dn"] / 50.0
    own["MAG_APER"] = (-2.5 * np.log10(stars["flux_dn"]))[:, None] + [0.2, 0.1]
    rows["XWIN_IMAGE"][-1], rows["YWIN_IMAGE"][-1] = 400.0, 70.5
    table = fits.BinTableHDU(rows, name="SEXTRACTOR_CATALOG")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(archive / paths.science(name, 1, "sexcat.fits"))


def write_books(run: Path) -> None:
    """Manifest of two files, one of which was never accounted for; records of ingest and calibrate."""
    archive, content = run / "archive", b"raw"
    digest = hashlib.sha256(content).hexdigest()
    incoming = run / "sky" / "incoming" / NIGHT
    incoming.mkdir(parents=True)
    lost = RAW.replace("431751", "500000")
    lines = [f"{digest}  {len(content)}  {name}\n" for name in (RAW, lost)]
    (incoming / f"ztf_{NIGHT}_manifest.txt").write_text("".join(lines))
    copy = paths.raw(parse_raw_name(RAW))
    (archive / copy).parent.mkdir(parents=True, exist_ok=True)
    (archive / copy).write_bytes(content)
    row = {"night": NIGHT, "filename": RAW, "sha256": digest, "size": 3, "state": "DONE", "reason": ""}
    database.put(database.open_database(archive), database.manifest_files, [row])
    stem = parse_raw_name(RAW).stem
    for pipeline, unit, steps in (("ingest", stem, {"split": 1.0}), ("calibrate", f"{stem}_q1", {"a": 1.0, "b": 0.5})):
        record = Record(unit, pipeline, NIGHT, State.DONE, "", steps=steps, run={"peak_mib": 600.0},
                        outputs={copy: Seal(digest, 3)})  # fmt: skip
        record.write(archive / paths.record(pipeline, NIGHT, unit))


def make_run(run: Path, noise: float = 1.0) -> Path:
    """Write the whole run directory."""
    rng = np.random.default_rng(7)
    truth = write_truth(run / "sky" / "truth" / f"truth_{NIGHT}.h5", rng)
    write_calibrations(run / "archive", truth, rng, noise)
    write_science(run / "archive", truth, rng)
    write_books(run)
    return run
