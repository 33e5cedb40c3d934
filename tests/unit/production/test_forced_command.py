"""`zsds forced` on files that this test renders: Gaussian stars (error function), their neighbours, sky and noise."""

import csv

import numpy as np
import pytest
from scipy.special import erf

from zsds_hpc.archive.fitsfiles import FitsFile, Hdu, write_fits
from zsds_hpc.archive.psffile import write_psf
from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.core import maskbits
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE
from zsds_hpc.production import cli
from zsds_hpc.production.forced import COLUMNS
from zsds_hpc.psf.model import PsfModel, spline_coefficients

SHAPE, SKY_DN, SKY_SIGMA, GAIN, MAGZP, SIGMA_PIX = (260, 300), 200.0, 5.0, 6.2, 26.0, 0.9
OVERSAMPLING, REACH = 3, 45


def pixel_share(offset):
    """Light of a Gaussian line in pixels at an offset from its middle."""
    return (erf((offset + 0.5) / (SIGMA_PIX * 2**0.5)) - erf((offset - 0.5) / (SIGMA_PIX * 2**0.5))) / 2


def wcs():
    linear = np.eye(N_TERMS)[1]
    cd = np.array([[-2.8e-4, 3e-6], [2e-6, 2.8e-4]])
    return TPV(np.array([55.0, 33.0]), np.array([149.5, 129.5]), cd, linear, linear)


def rendered(stars, seed=5):
    """Image with sky and noise of stars, rows (x, y, flux), 0-based."""
    light = np.zeros(SHAPE)
    for x, y, flux in stars:
        light += flux * pixel_share(np.arange(SHAPE[0]) - y)[:, None] * pixel_share(np.arange(SHAPE[1]) - x)
    noise = np.random.default_rng(seed).normal(size=SHAPE) * np.sqrt(SKY_SIGMA**2 + light / GAIN)
    return (SKY_DN + light + noise).astype(np.float32)


def field():
    """Stars on a grid, rows (x, y, flux), each with a neighbour five times as bright 2.5 px to its right."""
    rng = np.random.default_rng(1)
    y, x = (a.ravel() for a in np.meshgrid(np.arange(20, 245, 20.0), np.arange(20, 285, 24.0), indexing="ij"))
    x, y = x + rng.uniform(-1, 1, x.size), y + rng.uniform(-1, 1, x.size)
    stars = np.column_stack([x, y, 10 ** rng.uniform(2.0, 3.5, x.size)])
    return stars, stars * [1, 1, 5] + [2.5, 0, 0]


class Place:
    """A directory with the products of an image."""

    def __init__(self, root, stars, neighbours):
        self.root = root
        mask = np.zeros(SHAPE, np.int16)
        mask[96:116, 96:116] = maskbits.DEAD
        cards = [("GAIN", GAIN, ""), ("MAGZP", MAGZP, ""), *wcs().to_cards()]
        write_fits(root / "sciimg.fits", [Hdu(rendered([*stars, *neighbours]), cards)])
        write_fits(root / "mskimg.fits", [Hdu(mask, cards)])
        samples = pixel_share(np.arange(-REACH, REACH + 1) / OVERSAMPLING)
        coefficients = spline_coefficients(samples[None, :, None] * samples[None, None]).astype(np.float32)
        write_psf(root / "sciimg.psf", PsfModel(coefficients, OVERSAMPLING, 0, SHAPE, (0.0, 3.0), 50, 1.0))
        rows = np.zeros(len(neighbours), PSFCAT_DTYPE)
        rows["xpos"], rows["ypos"], rows["flux"] = neighbours.T + np.array([[1], [1], [0]])
        write_fits(root / "psfcat.fits", [Hdu(None, cards), Hdu(rows, name="PSF_CATALOG")])

    def positions(self, names, rows):
        lines = [",".join(names), *(",".join(repr(float(v)) for v in row) for row in rows)]
        (self.root / "list.csv").write_text("# targets\n" + "\n".join(lines) + "\n")

    def words(self, out, *more):
        at = lambda name: str(self.root / name)  # noqa: E731
        return ["forced", at("sciimg.fits"), "--mask", at("mskimg.fits"), "--psf", at("sciimg.psf"), "--positions",
                at("list.csv"), "--out", at(out), *more]  # fmt: skip

    @property
    def psfcat(self):
        return "--psfcat", str(self.root / "psfcat.fits")

    def table(self, name):
        with open(self.root / name, newline="") as file:
            rows = list(csv.DictReader(file))
        return {key: np.array([float(row[key]) for row in rows]) for key in COLUMNS}


@pytest.fixture(scope="module")
def stars():
    return field()


@pytest.fixture
def place(tmp_path, stars):
    return Place(tmp_path, *stars)


def off_bad(found):
    return (found["flags"] == 0) & np.isfinite(found["flux"])


def test_fluxes_among_neighbours(place, stars):
    faint = stars[0]
    place.positions(["name", "x", "y"], np.column_stack([np.arange(len(faint)), faint[:, :2] + 1]))
    assert cli.main(place.words("with.csv", *place.psfcat)) == 0
    assert cli.main(place.words("without.csv")) == 0
    found, alone = place.table("with.csv"), place.table("without.csv")
    good = off_bad(found)
    assert good.sum() > 120
    pull = (found["flux"] - faint[:, 2])[good] / found["sigflux"][good]
    assert abs(pull.mean()) < 3 / np.sqrt(good.sum()) + 0.05
    assert 0.85 < pull.std() < 1.15
    # A neighbour that nobody knows of is counted in: the catalogue is there to prevent that.
    assert np.median((alone["flux"] - faint[:, 2])[good] / alone["sigflux"][good]) > 5
    mag = -2.5 * np.log10(found["flux"][good]) + MAGZP
    assert found["mag"][good] == pytest.approx(mag, abs=1e-4)
    assert found["snr"][good] == pytest.approx(found["flux"][good] / found["sigflux"][good], rel=1e-5)
    assert np.median(found["chi"][good]) == pytest.approx(1, abs=0.1)


def test_positions_on_the_sky_and_both_formats(place, stars):
    faint = stars[0]
    place.positions(["X", "Y"], faint[:, :2] + 1)
    assert cli.main(place.words("pixels.csv", *place.psfcat)) == 0
    place.positions(["RA", "DEC"], np.column_stack(wcs().pixel_to_sky(*faint[:, :2].T)))
    assert cli.main(place.words("sky.fits", *place.psfcat)) == 0
    by_pixel, file = place.table("pixels.csv"), FitsFile(place.root / "sky.fits")
    rows = file.table(1)
    assert rows.dtype.names == tuple(COLUMNS) and file.header()["MAGZP"] == MAGZP
    for name, tolerance in (("x", 1e-6), ("y", 1e-6), ("ra", 1e-9), ("dec", 1e-9), ("flux", 0.02), ("sigflux", 1e-3)):
        assert rows[name] == pytest.approx(by_pixel[name], abs=tolerance, nan_ok=True), name
    assert (rows["flags"] == by_pixel["flags"]).all()


def test_places_without_a_star(place):
    """Empty sky, a hole in the mask, off the image, off the hemisphere, and a place listed twice."""
    place.positions(["x", "y"], [[32.0, 11.0], [105.5, 105.5], [-4.0, 50.0], [301.0, 50.0], [32.0, 11.0]])
    assert cli.main(place.words("out.csv", *place.psfcat)) == 0
    found = place.table("out.csv")
    assert abs(found["snr"][0]) < 4 and np.isfinite(found["sigflux"][0])
    assert found["flux"][4] == found["flux"][0]
    assert np.isnan(found["flux"][1:4]).all() and (found["mag"][1:4] == 99).all()
    assert found["flags"].tolist() == [0, maskbits.DEAD, -1, -1, 0]
    place.positions(["ra", "dec"], [[235.0, -33.0]])
    assert cli.main(place.words("far.csv")) == 0
    far = place.table("far.csv")
    assert np.isnan(far["flux"][0]) and far["flags"][0] == -1 and far["ra"][0] == 235.0


def test_no_positions_give_an_empty_table(place):
    place.positions(["x", "y"], [])
    assert cli.main(place.words("none.fits")) == 0
    assert len(FitsFile(place.root / "none.fits").table(1)) == 0


def test_without_zero_point_magnitudes_are_instrumental(place, capsys):
    file = FitsFile(place.root / "sciimg.fits")
    write_fits(place.root / "sciimg.fits", [Hdu(file.image(), [("GAIN", GAIN, "")])])
    place.positions(["x", "y"], [[22.0, 22.0]])
    assert cli.main(place.words("out.csv")) == 0
    found = place.table("out.csv")
    assert "no MAGZP" in capsys.readouterr().err
    assert found["mag"][0] == pytest.approx(-2.5 * np.log10(found["flux"][0]), abs=1e-4)
    assert np.isnan(found["ra"][0])


def test_same_input_same_bits(place, stars):
    place.positions(["x", "y"], stars[0][:, :2] + 1)
    for out in ("one.fits", "two.fits"):
        assert cli.main(place.words(out, *place.psfcat)) == 0
    assert (place.root / "one.fits").read_bytes() == (place.root / "two.fits").read_bytes()


def test_dry_run_writes_nothing(place, capsys):
    place.positions(["x", "y"], [[22.0, 22.0], [-9.0, 3.0]])
    before = sorted(place.root.iterdir())
    assert cli.main(place.words("out.csv", "--dry-run")) == 0
    assert "2 positions, 1 on the image" in capsys.readouterr().err
    assert sorted(place.root.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line of column names"),
        ("a,b\n1,2\n", "columns a, b; ra and dec"),
        ("x,y\n1,2\n3\n", "line 3: no number for the position: 3"),
        ("x,y\n1,two\n", "line 2: no number"),
        ("# c\n\nx,y\n1,nan\n", "line 4: the position is not finite"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_mistakes_in_the_list(place, capsys, text, words):
    (place.root / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(place.words("out.csv")) == 20
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (place.root / "out.csv").exists()


def test_mistakes_in_the_files(place, capsys):
    def told(code, words, arguments):
        assert cli.main(arguments) == code
        error = capsys.readouterr().err
        assert words in error and error.startswith("zsds forced: ") and error.count("\n") == 1, error

    place.positions(["x", "y"], [[22.0, 22.0]])
    words = place.words("out.csv")
    told(2, "must end in .fits or .csv", place.words("out.txt"))
    told(20, "no such file", [*words, "--psfcat", str(place.root / "none.fits")])
    told(20, "not a PSF catalogue", [*words, "--psfcat", str(place.root / "sciimg.psf")])
    told(20, "a mask has int16", [*words, "--mask", str(place.root / "sciimg.fits")])
    told(20, "not a table of one PSF_MASK", [*words, "--psf", str(place.root / "psfcat.fits")])
    told(2, "psfphot.mesh", [*words, "--set", "psfphot.mesh=3"])
    write_fits(place.root / "small.fits", [Hdu(np.zeros((20, 20), np.int16))])
    told(20, "(20, 20)", [*words, "--mask", str(place.root / "small.fits")])
    write_fits(place.root / "sciimg.fits", [Hdu(np.zeros(SHAPE, np.float32))])
    told(20, "GAIN = None", words)
    write_fits(place.root / "sciimg.fits", [Hdu(np.zeros(SHAPE, np.float32), [("GAIN", GAIN, "")])])
    place.positions(["ra", "dec"], [[55.0, 33.0]])
    told(20, "CTYPE1", words)
    assert not (place.root / "out.csv").exists()
    write_fits(place.root / "sciimg.fits", [Hdu(np.full(SHAPE, np.nan, np.float32), [("GAIN", GAIN, "")])])
    place.positions(["x", "y"], [[22.0, 22.0]])
    assert cli.main(words) == 20 and "background" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["forced", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "example" in text and "--positions targets.csv" in text
