"""Epochs of a small field with known stars, rendered here, in memory or as the sealed science images of an archive."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml

from tests.helpers import night
from zsds_hpc.archive import database, paths
from zsds_hpc.archive.atomic import Seal, sha256_of
from zsds_hpc.archive.fitsfiles import Hdu, write_fits
from zsds_hpc.archive.provenance import Record
from zsds_hpc.astrometry.geometry import initial_wcs
from zsds_hpc.coadd.footprint import Grid, footprint_of
from zsds_hpc.coadd.warp import Exposure
from zsds_hpc.core import ids, maskbits
from zsds_hpc.core.states import State
from zsds_hpc.pipelines.ingest import geometry_of
from zsds_hpc.settings.camera import load_camera

NIGHT, FIELD, RCID, CODE = "20200924", 655, 20, "zr"
RA, DEC = 55.0608, 33.35
MAGZP = 26.275
GAIN, SKY, READ_NOISE = 6.0, 300.0, 10.0
N_X, N_Y = 180, 170
_FINE = 5


@dataclass(frozen=True)
class Sky:
    """Stars (ra, dec, flux in DN at `MAGZP`)."""

    stars: np.ndarray


@dataclass(frozen=True)
class Shot:
    """How an epoch was taken.

    `extra`: further stars (ra, dec, flux) of this epoch alone; `bits`: mask bits to set, (bit, rows, columns).
    """

    number: int
    seeing_pix: float = 2.0
    magzp: float = MAGZP
    shift_arcsec: tuple[float, float] = (0.0, 0.0)
    turn_deg: float = 0.0
    extra: tuple[tuple[float, float, float], ...] = ()
    bits: tuple[tuple[int, slice, slice], ...] = ()
    noise: bool = True
    header: dict = field(default_factory=dict)


def camera_file(root: Path) -> Path:
    """The real camera with channels of 180 x 170 pixels."""
    camera = yaml.safe_load((night.ROOT / "config/cameras/ztf.yml").read_text())
    channels = [c for c in camera["channels"] if c["rcid"] == RCID]
    for channel in channels:  # the distortion of the same number of pixels
        for key in ("distortion_xi_arcsec", "distortion_eta_arcsec"):
            channel[key] = [0.05 * value for value in channel[key]]
    path = root / "mini.yml"
    small = {**camera, "name": "mini", "n_x": N_X, "n_y": N_Y, "channels": channels}
    path.write_text(yaml.safe_dump(small, sort_keys=False))
    return path


def geometry(camera):
    """Of the one channel."""
    return geometry_of(camera.channels[0], camera)


def grid_of(camera) -> Grid:
    """Footprint of the field's channel."""
    return footprint_of(geometry(camera), RA, DEC, camera.pixel_scale_arcsec)


def random_sky(camera, n: int = 60, seed: int = 1, faintest: float = 500.0) -> Sky:
    """Stars a few pixels apart at least, some of them beyond the footprint; counts rise as flux to -0.7."""
    rng, grid = np.random.default_rng(seed), grid_of(camera)
    places: list[np.ndarray] = []
    while len(places) < n:
        place = rng.uniform((-12, -12), (N_X + 12, N_Y + 12))
        if all(np.hypot(*(place - other)) > 11 for other in places):
            places.append(place)
    flux = faintest * (1 - rng.uniform(0, 0.985, n)) ** (-1 / 0.7)
    ra, dec = grid.wcs.pixel_to_sky(*np.array(places).T)
    return Sky(np.column_stack([ra, dec, flux]))


def render(x, y, flux, seeing_pix, shape):
    """Sum of Moffat stars (beta 3.5), integrated over pixels by 5 x 5 points."""
    image = np.zeros(shape)
    alpha2, half = (seeing_pix / 2) ** 2 / (2 ** (1 / 3.5) - 1), 22
    sub = (np.arange((2 * half + 1) * _FINE) + 0.5) / _FINE - 0.5 - half
    for x0, y0, f in zip(x, y, flux):
        i, j = round(x0), round(y0)
        r2 = (sub - (x0 - i)) ** 2 + (sub[:, None] - (y0 - j)) ** 2
        points = 2.5 / (np.pi * alpha2) * (1 + r2 / alpha2) ** -3.5
        stamp = points.reshape(2 * half + 1, _FINE, -1, _FINE).mean(axis=(1, 3))
        y1, y2, x1, x2 = max(j - half, 0), min(j + half + 1, shape[0]), max(i - half, 0), min(i + half + 1, shape[1])
        if y1 < y2 and x1 < x2:
            image[y1:y2, x1:x2] += f * stamp[y1 - j + half : y2 - j + half, x1 - i + half : x2 - i + half]
    return image


def take(camera, sky: Sky, shot: Shot) -> Exposure:
    """Expose: the true WCS, sky 300 DN, photon and read noise."""
    east, north = np.array(shot.shift_arcsec) / 3600
    wcs = initial_wcs(geometry(camera), RA + east / np.cos(np.radians(DEC)), DEC + north, shot.turn_deg)
    stars = np.vstack([sky.stars, np.reshape(shot.extra, (-1, 3))])
    x, y = wcs.sky_to_pixel(stars[:, 0], stars[:, 1])
    scale = 10 ** (-0.4 * (MAGZP - shot.magzp))
    image = SKY + render(x, y, scale * stars[:, 2], shot.seeing_pix, (N_Y, N_X))
    if shot.noise:
        rng = np.random.default_rng(1000 + shot.number)
        image = rng.poisson(image * GAIN) / GAIN + rng.normal(0, READ_NOISE / GAIN, image.shape)
    mask = np.zeros(image.shape, maskbits.MASK_DTYPE)
    for bit, rows, columns in shot.bits:
        mask[rows, columns] |= bit
    pix = image.astype(np.float32)
    return Exposure(pix, mask, wcs, GAIN, 50000.0, shot.magzp, 0.08, shot.seeing_pix)


def shots(n: int, seed: int = 3) -> list[Shot]:
    """Epochs with dithers of some pixels, small turns, seeing 1.8-2.4 px and zero points that scatter."""
    rng = np.random.default_rng(seed)
    return [
        Shot(k, float(rng.uniform(1.8, 2.4)), MAGZP + float(rng.normal(0, 0.03)),
             tuple(float(v) for v in rng.normal(0, 4.0, 2)), float(rng.normal(0, 0.02)))
        for k in range(n)
    ]  # fmt: skip


def stem_of(number: int, night_: str = NIGHT) -> str:
    """Name of an epoch."""
    return f"ztf_{night_}{400000 + 500 * number:06d}_{FIELD:06d}_{CODE}_c06_o_q1"


def seal_epoch(archive: Path, camera, sky: Sky, shot: Shot, night_: str = NIGHT, **metrics) -> str:
    """Write an epoch into an archive, sealed by a record of calibrate, with its row in the database; its unit id."""
    exposure, stem = take(camera, sky, shot), stem_of(shot.number, night_)
    place = f"sci/{night_[:4]}/{night_[4:]}/{400000 + 500 * shot.number:06d}"
    jd = ids.nid_of_night(night_) + ids.NID_EPOCH_JD + 0.4 + 0.0005 * shot.number
    header = {
        "RCID": RCID, "DBFID": 2, "GAIN": GAIN, "SATURATE": exposure.saturate_dn, "MAGZP": shot.magzp,
        "CLRCOEFF": 0.08, "SEEING": shot.seeing_pix, "OBSJD": jd, "FIELDID": FIELD, "TELRAD": RA, "TELDECD": DEC,
        "FILTER": "ZTF_r", **shot.header,
    }  # fmt: skip
    cards = [*exposure.wcs.to_cards(), *header.items()]
    outputs = {}
    for suffix, image in (("sciimg.fits", exposure.pix), ("mskimg.fits", exposure.mask)):
        path = archive / place / f"{stem}_{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fits(path, [Hdu(image, cards)])
        outputs[f"{place}/{path.name}"] = Seal(sha256_of(path), path.stat().st_size)
    figures = {
        "field": FIELD, "rcid": RCID, "filtercode": CODE, "programid": 1, "obsjd": jd, "seeing_pix": shot.seeing_pix,
        "magzp": shot.magzp, "maglim": 20.8, "infobits": 0, "status": 1, "astrometric_map_error_arcsec": 0.001,
        "rms": 0.02, **metrics,
    }  # fmt: skip
    record = Record(stem, "calibrate", night_, State.DONE, "0" * 64, outputs=outputs, metrics=figures)
    record_path = archive / paths.record("calibrate", night_, stem)
    record.write(record_path)
    engine = database.open_database(archive)
    row = {c.name: figures[c.name] for c in database.science_images.columns if c.name in figures}
    database.put(engine, database.science_images, [
        {"path": next(iter(outputs)), "unit_id": stem, "night": night_, **row}
    ])  # fmt: skip
    database.put(engine, database.channel_images, [
        {"path": f"raw/{stem}_raw.fits", "sha256": "0" * 64, "unit_id": stem, "night": night_, "rawname": stem,
         "kind": "o", "filtercode": CODE, "field": FIELD, "rcid": RCID, "obsjd": jd, "ra_deg": RA, "dec_deg": DEC}
    ])  # fmt: skip
    engine.dispose()
    return stem


def make_archive(root: Path, n: int = 8, **changes) -> tuple[Path, Path]:
    """Archive with the sealed epochs of one night, and its camera file."""
    root.mkdir(parents=True, exist_ok=True)
    camera_path = camera_file(root)
    camera = load_camera(camera_path)
    sky = random_sky(camera)
    for shot in shots(n):
        seal_epoch(root / "archive", camera, sky, replace(shot, **changes))
    return root / "archive", camera_path
