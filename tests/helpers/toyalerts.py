"""A small sky for the alerts pipeline: stores of stars, and images with candidates where the test wants them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table

from tests.helpers import mininight
from zsds_hpc.archive import transients
from zsds_hpc.archive.atomic import Seal, sha256_of
from zsds_hpc.archive.diffcat import write_candidates
from zsds_hpc.archive.provenance import Record
from zsds_hpc.archive.refcats import build_refcat
from zsds_hpc.archive.streakfile import write_streaks
from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.core import ids
from zsds_hpc.core.states import State
from zsds_hpc.pipelines.alerts import PIPELINE
from zsds_hpc.pipelines.alerts_image import AlertsParams
from zsds_hpc.pipelines.base import Archive, Request
from zsds_hpc.production.runner import Job, run_pipeline
from zsds_hpc.settings.camera import load_camera
from zsds_hpc.subtraction.candcat import CANDIDATE_DTYPE
from zsds_hpc.subtraction.candidates import Candidates
from zsds_hpc.subtraction.cutouts import Cutouts
from zsds_hpc.subtraction.streak_table import STREAK_DTYPE
from zsds_hpc.subtraction.streaks import Streaks

N_X, N_Y = mininight.N_X, mininight.N_Y
#: Middle of the images, across right ascension zero.
RA, DEC = 0.002, 33.35
SCALE_DEG = 1.012 / 3600.0


def sky_place(x: float, y: float) -> tuple[float, float]:
    """Sky position of an offset (arcsec, east and north) from the middle."""
    return (RA + x / 3600.0 / np.cos(np.radians(DEC))) % 360.0, DEC + y / 3600.0


@dataclass
class Image:
    """An image: when it was taken, where, and what is on it.

    Attributes
    ----------
    seen : list of (x, y, is_positive)
        Candidates, arcsec from the middle of the sky.
    trails : list of (x, y)
        Western ends of streaks.
    shift_arcsec : float
        The image lies this far east.
    """

    fracday: int
    seen: list = dataclasses.field(default_factory=list)
    night: str = "20200924"
    field: int = 655
    filtercode: str = "zr"
    programid: int = 1
    shift_arcsec: float = 0.0
    qid: int = 1
    trails: list = dataclasses.field(default_factory=list)

    @property
    def unit_id(self) -> str:
        """Stem of its names."""
        return f"ztf_{self.night}{self.fracday:06d}_{self.field:06d}_{self.filtercode}_c06_o_q{self.qid}"

    @property
    def jd(self) -> float:
        """Start of the exposure."""
        return ids.NID_EPOCH_JD + ids.nid_of_night(self.night) + self.fracday / 1e6

    @property
    def limit(self) -> float:
        """Limiting magnitude, different for each."""
        return 20.0 + self.fracday / 1e6


def wcs(image: Image) -> TPV:
    """Without distortion; east to the left."""
    linear = np.zeros(N_TERMS)
    linear[1] = 1.0
    middle = np.array([sky_place(image.shift_arcsec, 0.0)[0], DEC])
    return TPV(middle, np.array([(N_X - 1) / 2, (N_Y - 1) / 2]), np.diag([-SCALE_DEG, SCALE_DEG]), linear, linear)


def candidates(image: Image) -> Candidates:
    """Candidates with arbitrary measurements."""
    rng = np.random.default_rng(image.fracday)
    table = np.zeros(len(image.seen), CANDIDATE_DTYPE)
    for name in CANDIDATE_DTYPE.names:
        if table[name].dtype.kind == "f":
            table[name] = rng.normal(10.0, 1.0, len(table))
    positions = [sky_place(x, y) for x, y, _ in image.seen]
    table["ra"], table["dec"] = np.array(positions).reshape(-1, 2).T
    table["xpos"], table["ypos"] = np.array(wcs(image).sky_to_pixel(table["ra"], table["dec"])) + 1.0
    table["isdiffpos"] = [positive for *_, positive in image.seen]
    table["ranr"][::2] = np.nan
    stamps = [rng.normal(0.0, 5.0, (len(table), 63, 63)).astype(np.float32) for _ in range(3)]
    return Candidates(table, Cutouts(*stamps), 3 * len(table), {}, image.limit)


def streaks(image: Image) -> Streaks:
    """One trail from each position to 20 arcsec east of it."""
    table = np.zeros(len(image.trails), STREAK_DTYPE)
    for row, (x, y) in zip(table, image.trails):
        row["ra1"], row["dec1"] = sky_place(x, y)
        row["ra2"], row["dec2"] = sky_place(x + 20.0, y)
        row["length"], row["snr"], row["score"], row["kind"] = 19.8, 12.5, 0.75, b"asteroid"
    return Streaks(table, {}, 0.5)


def cards(image: Image) -> list:
    """Header of the candidates' file."""
    jd = image.jd
    return [
        *wcs(image).to_cards(), ("OBSJD", jd, ""), ("PROGRMID", image.programid, ""), ("PROGRMPI", "Kulkarni", ""),
        ("EXPTIME", 30.0, ""), ("RFID", 655120120, ""), ("REFJDBEG", 2459093.6, ""), ("REFJDEND", 2459093.9, ""),
        ("REFNFRM", 20, ""), ("MAGZP", 26.2, ""), ("MAGZPRMS", 0.02, ""), ("NMATCHES", 321, ""), ("SEEING", 2.0, ""),
        ("QCOMMENT", "ToO_GW" if image.programid == 2 else "all_sky", ""), ("RBVERS", "t1", ""),
    ]  # fmt: skip


class Stars:
    """Stores of stars around the middle of the sky.

    Parameters
    ----------
    place : Path
        An empty directory.
    """

    def __init__(self, place: Path):
        self.place = place
        rng = np.random.default_rng(5)
        n = 400
        east, north = rng.uniform(-150, 150, (2, n))
        ra, dec = np.array([sky_place(x, y) for x, y in zip(east, north)]).T
        mags = np.round(rng.uniform(12.0, 21.0, n), 3)
        mags[0] = np.nan
        self.ps1 = Table(
            {"objID": np.arange(n) + 10**17, "raMean": ra, "decMean": dec, "gMeanPSFMag": mags + 0.5,
             "gMeanPSFMagErr": 0.01 + 0 * ra, "rMeanPSFMag": mags, "rMeanPSFMagErr": 0.01 + 0 * ra,
             "iMeanPSFMag": mags - 0.3, "iMeanPSFMagErr": 0.01 + 0 * ra}
        )  # fmt: skip
        moving = np.where(np.arange(n) % 3 == 0, 40.0, 0.0)
        self.gaia = Table(
            {"source_id": np.arange(n) + 1, "ra": ra, "dec": dec, "ref_epoch": 2016.0 + 0 * ra, "pmra": moving,
             "pmdec": 0 * ra, "ra_error": 0.1 + 0 * ra, "dec_error": 0.1 + 0 * ra, "pmra_error": 0.1 + 0 * ra,
             "pmdec_error": 0.1 + 0 * ra, "phot_g_mean_mag": np.where(np.isnan(mags), 19.0, mags), "bp_rp": 1 + 0 * ra}
        )  # fmt: skip
        for kind, rows in (("gaia", self.gaia), ("ps1", self.ps1)):
            rows.write(place / f"{kind}.csv", format="ascii.csv")
            build_refcat(kind, [place / f"{kind}.csv"], place / "refcats" / kind)


class ToySky:
    """An archive with images in it.

    Parameters
    ----------
    place : Path
        An empty directory.
    stars : Stars
    database : str, optional
        URL instead of the embedded file.
    """

    def __init__(self, place: Path, stars: Stars, database: str | None = None):
        self.root, self.stars = place / "archive", stars
        self.root.mkdir(parents=True)
        camera = load_camera(mininight.write_camera(place / "mini.yml"))
        self.archive = Archive(self.root, camera, database)

    def add(self, *images: Image) -> None:
        """Write the products of the difference pipeline, and enter them."""
        records = []
        for image in images:
            folder = f"sci/{image.night[:4]}/{image.night[4:]}/{image.fracday:06d}"
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            path = f"{folder}/{image.unit_id}_diffcand.fits"
            write_candidates(self.root / path, candidates(image), cards(image))
            trails = path.replace("diffcand", "diffstreaks")
            write_streaks(self.root / trails, streaks(image), cards(image))
            outputs = {
                each: Seal(sha256_of(self.root / each), (self.root / each).stat().st_size) for each in (path, trails)
            }
            outputs[f"{folder}/{image.unit_id}_scimrefdiffimg.fits.fz"] = Seal("0" * 64, 1)
            facts = {"obsjd": image.jd, "rcid": ids.rcid_of(6, image.qid)}
            records.append(
                Record(image.unit_id, "realtime", image.night, State.DONE, "", outputs=outputs, metrics=facts)
            )
        transients.enter_products(self.archive.engine(), records)

    def run(self, night: str = "20200924", **params) -> int:
        """Run the alerts pipeline; returns the exit code."""
        job = Job(PIPELINE, self.archive, AlertsParams(**params), "toy")
        return run_pipeline(job, Request(night, refcats=self.stars.place / "refcats"))
