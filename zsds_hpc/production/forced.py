"""`zsds forced`: fluxes at given positions on a calibrated image, its mask and its point-spread function."""

import argparse
import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.archive.atomic import atomic_path, write_bytes
from zsds_hpc.archive.fitsfiles import FitsFile, Hdu, card_value, clean_cards, read_bytes, write_fits
from zsds_hpc.archive.psffile import read_psf
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput, UsageError
from zsds_hpc.photometry.aperture import box_flags, magnitudes
from zsds_hpc.photometry.background import estimate_background
from zsds_hpc.photometry.forced import force_in_scene
from zsds_hpc.photometry.psffit import FIT_HELD, Fitter, Scene, make_scene
from zsds_hpc.photometry.psfphot import subtract_background
from zsds_hpc.pipelines.calibrate_image import CalibrateParams
from zsds_hpc.production import driver
from zsds_hpc.psf.model import PsfModel

#: name -> (format, unit, meaning)
COLUMNS = {
    "ra": ("f8", "deg", "right ascension (ICRS), as given or by the image's WCS; NaN without one"),
    "dec": ("f8", "deg", "declination (ICRS)"),
    "x": ("f8", "pix", "position along x, first pixel at 1, as given or by the image's WCS"),
    "y": ("f8", "pix", "position along y"),
    "flux": ("f4", "DN", "total flux, may be negative; NaN off the image and where no pixel is usable"),
    "sigflux": ("f4", "DN", "error of flux: photons, sky and what neighbours add"),
    "mag": ("f4", "mag", "-2.5 log10 flux + MAGZP (instrumental without MAGZP), 99 where flux is not positive"),
    "sigmag": ("f4", "mag", "error of mag, 99 where flux is not positive"),
    "snr": ("f4", "", "flux / sigflux"),
    "chi": ("f4", "", "mean absolute residual over that expected of the noise"),
    "flags": ("i2", "", "OR of the survey mask in the 5x5 box; -1 at, near or beyond the edge"),
}
FORCED_DTYPE = np.dtype([(name, form) for name, (form, _, _) in COLUMNS.items()])
_SUFFIXES = (".fits", ".csv")
_EXAMPLE = """example:
  zsds forced X_sciimg.fits --mask X_mskimg.fits --psf X_sciimg.psf --psfcat X_psfcat.fits \\
      --positions targets.csv --out targets_forced.csv
targets.csv has a line of names and columns ra,dec (deg) or x,y (px, first pixel at 1); other columns are ignored.
"""


@dataclass(frozen=True)
class ForcedImage:
    """A calibrated image to be measured at given positions.

    Attributes
    ----------
    pix : ndarray, shape (ny, nx), float32
        DN, with its sky.
    mask : ndarray, shape (ny, nx), int16
    gain : float
        e/DN.
    psf : PsfModel
    known : ndarray, shape (m, 3), or None
        x, y (0-based px) and flux of the image's stars, fitted along.
    """

    pix: np.ndarray
    mask: np.ndarray
    gain: float
    psf: PsfModel
    known: np.ndarray | None = None


def add_command(commands: Any) -> None:
    """Add `zsds forced` to the command line."""
    parser = commands.add_parser(
        "forced", help="PSF-fit fluxes at given positions on a calibrated image", epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Forced photometry on plain files: flux at each position, whether a source is seen there or not.",
    )  # fmt: skip
    parser.add_argument("image", type=Path, metavar="SCIIMG", help="calibrated image, with GAIN and MAGZP")
    for option, text in (
        ("mask", "its mask image"),
        ("psf", "its point-spread function (sciimg.psf)"),
        ("positions", "CSV file with columns ra,dec or x,y"),
    ):
        parser.add_argument(f"--{option}", type=Path, required=True, metavar="FILE", help=text)
    parser.add_argument("--psfcat", type=Path, metavar="FILE", help="its PSF catalogue: neighbours are fitted along")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write, .csv or .fits")
    parser.add_argument("--dry-run", action="store_true", help="check the files and count the positions, no more")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of calibrate, another file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace one setting of it")
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    if options.out.suffix not in _SUFFIXES:
        raise UsageError(f"--out {options.out}: the name must end in {' or '.join(_SUFFIXES)}")
    params = driver.settings_of("calibrate", options)
    file = FitsFile(options.image)
    header = file.header()
    image = read_image(file, options.mask, options.psf, options.psfcat)
    table = placed(options.positions, header, image.pix.shape)
    magzp = _number(file.name, header, "MAGZP") if "MAGZP" in header else None
    n_inside = int((table["flags"] == 0).sum())
    print(
        f"{file.name}: {len(table)} positions, {n_inside} on the image; PSF of {image.psf.n_stars} stars, "
        f"{0 if image.known is None else len(image.known)} neighbours, "
        f"{'no MAGZP: instrumental magnitudes' if magzp is None else f'MAGZP {magzp:.4f}'}",
        file=sys.stderr,
    )
    if options.dry_run:
        return 0
    measure_inplace(table, image, magzp, params)
    _write(options.out, table, clean_cards(header))
    print(options.out)
    return 0


def read_image(file: FitsFile, mask_path: Path, psf_path: Path, psfcat: Path | None) -> ForcedImage:
    """Image, mask, point-spread function and stars from the products of an image.

    Raises
    ------
    BadInput
        A file is damaged or of another kind, or their shapes differ.
    """
    pix = file.image(0).astype(np.float32, copy=False)
    mask = FitsFile(mask_path).image(0, pix.shape)
    if mask.dtype != maskbits.MASK_DTYPE:
        raise BadInput(f"{mask_path.name}: {mask.dtype} pixels, a mask has {np.dtype(maskbits.MASK_DTYPE)}")
    psf = read_psf(psf_path)
    if psf.shape != pix.shape:
        raise BadInput(f"{psf_path.name}: for images of shape {psf.shape}, {file.name} has {pix.shape}")
    known = _known(psfcat) if psfcat else None
    return ForcedImage(pix, mask, _number(file.name, file.header(), "GAIN"), psf, known)


def _number(name: str, header: Any, keyword: str) -> float:
    value = card_value(header, keyword)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise BadInput(f"{name}: {keyword} = {value}")
    return float(value)


def _known(path: Path) -> np.ndarray:
    """Positions (0-based) and fluxes of a PSF catalogue, shape (n, 3)."""
    rows = FitsFile(path).table(1)
    lacking = [name for name in ("xpos", "ypos", "flux") if name not in (rows.dtype.names or ())]
    if lacking:
        raise BadInput(f"{path.name}: not a PSF catalogue, without column {', '.join(lacking)}")
    known = np.column_stack([rows["xpos"] - 1, rows["ypos"] - 1, rows["flux"].astype(float)])
    return known[np.isfinite(known).all(axis=1)]


def placed(path: Path, header: Any, shape: tuple[int, int]) -> np.ndarray:
    """Table of the positions of a file, not measured yet: flags 0 on the image and -1 off it.

    Parameters
    ----------
    path : Path
        CSV with columns ra, dec or x, y.
    header : mapping
        Of the image, for its WCS.
    shape : tuple of int
        (ny, nx) of the image.

    Returns
    -------
    ndarray, shape (n,), `FORCED_DTYPE`

    Raises
    ------
    BadInput
        Columns or numbers are missing, or the image has no WCS where one is needed.
    """
    on_sky, places = read_positions(path)
    table = np.zeros(len(places), FORCED_DTYPE)
    for name in ("ra", "dec", "flux", "sigflux", "chi"):
        table[name] = np.nan
    if on_sky:
        table["ra"], table["dec"] = places.T
        x, y = TPV.from_cards(header).sky_to_pixel(*places.T)
        table["x"], table["y"] = x + 1, y + 1
    else:
        table["x"], table["y"] = places.T
        if "CTYPE1" in header:
            table["ra"], table["dec"] = TPV.from_cards(header).pixel_to_sky(*(places - 1).T)
    n_y, n_x = shape
    inside = (table["x"] > 0.5) & (table["x"] < n_x + 0.5) & (table["y"] > 0.5) & (table["y"] < n_y + 0.5)
    table["flags"] = np.where(inside, 0, -1)
    return table


def read_positions(path: Path) -> tuple[bool, np.ndarray]:
    """Whether positions are on the sky, and the positions (n, 2), of a CSV file.

    Raises
    ------
    BadInput
        The file cannot be read, has neither ra, dec nor x, y, or a value in them is not a finite number.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not a text file") from None
    lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise BadInput(f"{path}: no line of column names")
    rows = list(csv.reader(line for _, line in lines))
    names = [name.strip().lower() for name in rows[0]]
    pair = next((p for p in (("ra", "dec"), ("x", "y")) if set(p) <= set(names)), None)
    if pair is None:
        raise BadInput(f"{path}: columns {', '.join(names)}; ra and dec (deg) or x and y (px) are wanted")
    columns = [names.index(name) for name in pair]
    values = [_finite(row, columns, f"{path}, line {k}") for (k, _), row in zip(lines[1:], rows[1:])]
    return pair[0] == "ra", np.array(values, np.float64).reshape(-1, 2)


def _finite(row: list[str], columns: list[int], where: str) -> list[float]:
    try:
        values = [float(row[column]) for column in columns]
    except (ValueError, IndexError):
        raise BadInput(f"{where}: no number for the position: {','.join(row)}") from None
    if not np.isfinite(values).all():
        raise BadInput(f"{where}: the position is not finite: {','.join(row)}")
    return values


def measure_inplace(table: np.ndarray, image: ForcedImage, magzp: float | None, params: CalibrateParams) -> None:
    """Fill in fluxes, errors, magnitudes and flags of the positions on the image.

    Parameters
    ----------
    table : ndarray, `FORCED_DTYPE`
        From `placed`; is changed.
    image : ForcedImage
    magzp : float or None
    params : CalibrateParams
        Its `background` and `psfphot` are used, as for the PSF catalogue.
    """
    rows = np.flatnonzero(table["flags"] == 0)
    places = np.column_stack([table["x"][rows], table["y"][rows]]) - 1
    if rows.size:
        # A position that is listed twice is one star.
        single, of_row = np.unique(places, axis=0, return_inverse=True)
        known = np.zeros((0, 3)) if image.known is None else image.known
        fits = force_in_scene(scene_of(image, params), known, single)[of_row.ravel()]
        for name in ("flux", "sigflux", "chi"):
            table[name][rows] = fits[name]
        table["flags"][rows] = box_flags(image.mask, places)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["snr"] = table["flux"] / table["sigflux"]
    mag, table["sigmag"] = magnitudes(table["flux"].astype(float), table["sigflux"].astype(float))
    table["mag"] = np.where(table["flux"] > 0, mag + (magzp or 0.0), mag)


def scene_of(image: ForcedImage, params: CalibrateParams) -> Scene:
    """The image on the bench, background subtracted as for the PSF catalogue; its model holds the known stars.

    Parameters
    ----------
    image : ForcedImage
    params : CalibrateParams
    """
    mask = image.mask
    if image.known is not None:  # their light is modelled: the segments of sources need not be left out
        mask = mask & ~np.int16(maskbits.SOURCES)
    sky = estimate_background(image.pix, mask, params.background)
    scene = make_scene((image.pix - sky.level, sky.rms, mask), image.gain, image.psf, params.psfphot.fit)
    if image.known is not None and len(image.known):
        fitter = Fitter(scene)
        fitter.add(image.known, 0, FIT_HELD)
        subtract_background(fitter, params.psfphot)
    return scene


def _write(out: Path, table: np.ndarray, cards: list) -> None:
    """The table as FITS, with the cards of the image, or as CSV."""
    if out.suffix == ".fits":
        with atomic_path(out) as temporary:
            write_fits(temporary, [Hdu(None, cards), Hdu(table, name="FORCED")])
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.dtype.names or ())
    writer.writerows([str(value) for value in row] for row in table)
    write_bytes(out, text.getvalue().encode())
