"""Images that cannot be searched: each ends in one state with the figure that decided it, none gives a candidate."""

import shutil

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers import diffsky
from tests.helpers.diffnight import NIGHT
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.archive.psffile import write_psf
from zsds_hpc.core import maskbits
from zsds_hpc.core.states import State
from zsds_hpc.production import cli

UNIT = "ztf_20200924403105_000655_zr_c06_o_q1"
PARTS = ("sciimg.fits", "mskimg.fits", "psfcat.fits", "sciimg.psf")


class Searched:
    """A calibrated image of the searched night and its reference as plain files, to be spoilt."""

    def __init__(self, diff_night, place, capfd):
        self.camera, self.place, self.capfd = diff_night.camera, place, capfd
        for suffix in PARTS:
            shutil.copy(next(diff_night.searched.glob(f"sci/2020/0924/*/{UNIT}_{suffix}")), place)
        self.refimg = next(diff_night.searched.rglob("*_refimg.fits"))

    def edit(self, suffix, change, ext=0):
        """Change the data of a file, its checksums made right again; what `change` returns takes their place."""
        with fits.open(self.place / f"{UNIT}_{suffix}", mode="update") as hdus:
            changed = change(hdus[ext].data)
            if changed is not None:
                hdus[ext].data = changed
            hdus[ext].add_checksum()

    def run(self, *more):
        """Exit code, and what was said."""
        code = cli.main(
            ["realtime", str(self.place / f"{UNIT}_sciimg.fits"), "--refimg", str(self.refimg),
             "--out", str(self.place / "out"), "--camera", str(self.camera), *more]
        )  # fmt: skip
        return code, "".join(self.capfd.readouterr())

    def refused(self, *words):
        code, said = self.run()
        assert code == 20 and all(word in said for word in words), said
        assert "unforeseen" not in said and "Traceback" not in said
        assert not list(self.place.glob("out/*"))

    def log(self):
        (path,) = self.place.glob("out/*difflog.txt")
        return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


@pytest.fixture
def image(diff_night, tmp_path, capfd):
    return Searched(diff_night, tmp_path, capfd)


def test_clouds_that_leave_few_stars(image):
    """Twelve stars are left in the catalogue."""
    image.edit("psfcat.fits", lambda rows: rows[np.argsort(-rows["snr"])[:12]], 1)
    image.refused("stars match the reference, at least 20 are needed")


def test_an_empty_catalogue(image):
    image.edit("psfcat.fits", lambda rows: rows[:0], 1)
    image.refused("0 stars match the reference, at least 20 are needed")


def test_hopeless_seeing(image):
    """Nearly six pixels, the reference two."""
    model = diffsky.Profile(5.9).model((520, 512))
    write_psf(image.place / f"{UNIT}_sciimg.psf", model)
    image.refused("seeing over the reference's is 2.", "outside 0.6 to 2.5")


def test_a_psf_that_is_no_number(image):
    def spoil(data):
        data = data.copy()
        for name in data.dtype.names or ():
            if data[name].dtype.kind == "f" and data[name].size > 100:
                data[name].flat[50] = np.nan
        if not data.dtype.names:
            data.flat[50] = np.nan
        return data

    with fits.open(image.place / f"{UNIT}_sciimg.psf") as hdus:
        ext = next(k for k, hdu in enumerate(hdus) if hdu.data is not None)
    image.edit("sciimg.psf", spoil, ext)
    image.refused(f"{UNIT}_sciimg.psf", "finite")


def test_a_psf_that_is_missing(image):
    (image.place / f"{UNIT}_sciimg.psf").unlink()
    image.refused(f"{UNIT}_sciimg.psf")


def test_thirty_percent_masked_is_searched(image):
    def mask(data):
        data[: int(0.3 * len(data))] |= maskbits.DEAD

    image.edit("mskimg.fits", mask)
    code, said = image.run()
    assert code == 0, said
    log = image.log()
    assert 0.3 < float(log["masked_fraction"]) < 0.42 and 0.95 < float(log["noise_scale"]) < 1.1
    (table,) = image.place.glob("out/*diffcand.fits")
    assert (fits.getdata(table, 1)["ypos"] > 0.29 * 520).all()


def test_nearly_all_masked(image):
    def mask(data):
        data[: int(0.9 * len(data))] |= maskbits.DEAD

    image.edit("mskimg.fits", mask)
    image.refused("share of unusable pixels is 0.9", "outside 0 to 0.6")


def test_no_pixel_is_a_number(image):
    image.edit("sciimg.fits", lambda data: np.full_like(data, np.nan))
    image.refused("share of unusable pixels is 1")


def test_islands_of_no_numbers_that_no_mask_tells(image):
    """On a star and on the sky: no candidate on them, and nothing else notices."""

    def spoil(data):
        data[200:230, 300:340] = np.nan
        data[100:103, 100:103] = np.inf

    code, said = image.run()
    plain = image.log()
    shutil.rmtree(image.place / "out")
    image.edit("sciimg.fits", spoil)
    code, said = image.run()
    assert code == 0, said
    (table,) = image.place.glob("out/*diffcand.fits")
    rows = fits.getdata(table, 1)
    x, y = rows["xpos"] - 1, rows["ypos"] - 1
    assert not ((x > 298) & (x < 341) & (y > 198) & (y < 231)).any() and not (np.hypot(x - 101, y - 101) < 4).any()
    assert abs(int(image.log()["n_candidates"]) - int(plain["n_candidates"])) <= 2


@pytest.mark.parametrize(
    ("setting", "state", "reason", "figure"),
    [
        ("difference.registration.min_stars=5000", State.FAILED, "stars match the reference", "n_matched"),
        ("difference.max_seeing_ratio=1.0", State.FAILED, "seeing over the reference's is", "value"),
        ("difference.max_masked=0.001", State.FAILED, "share of unusable pixels is", "value"),
    ],
)
def test_the_record_holds_the_figure(diff_night, tmp_path, setting, state, reason, figure):
    archive = diff_night.copy_of(diff_night.searched, tmp_path / "archive")
    unit = UNIT.replace("403105", "431751")
    code = cli.main(["realtime", *diff_night.options(archive), "--only", unit, "--set", setting])
    record = read_record(archive / f"records/realtime/{NIGHT}/{unit}.json")
    assert code == 20 and record.state == state and reason in record.reason and not record.outputs
    assert record.metrics[figure] > 0
    assert read_record(archive / f"records/calibrate/{NIGHT}/{unit}.json").state == State.DONE
