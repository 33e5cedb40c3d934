"""Files of streaks: read back as they were, by us and by astropy."""

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.archive.fitsfiles import Hdu, write_fits
from zsds_hpc.archive.streakfile import read_streaks, write_streaks
from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.streak_table import COLUMNS, REASONS, STREAK_DTYPE
from zsds_hpc.subtraction.streaks import Streaks


def streaks_of(n):
    rng = np.random.default_rng(1)
    table = np.zeros(n, STREAK_DTYPE)
    for name, (form, _, _) in COLUMNS.items():
        if form.startswith("f"):
            table[name] = rng.normal(100, 30, n)
    table["score"] = np.linspace(0, 1, n) if n else 0
    table["kind"], table["n_edges"] = b"asteroid", 1
    return Streaks(table, dict.fromkeys(REASONS, 3), 0.5)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_reading_back(tmp_path, n):
    streaks = streaks_of(n)
    write_streaks(tmp_path / "a.fits", streaks, [("OBSJD", 2459116.5, "start")])
    again = read_streaks(tmp_path / "a.fits")
    assert again.dtype == STREAK_DTYPE
    for name in COLUMNS:
        if streaks.table[name].dtype.kind == "f":
            assert again[name] == pytest.approx(streaks.table[name], abs=1e-9)
        else:
            assert (again[name] == streaks.table[name]).all()


def test_astropy_reads_it_with_the_first_pixel_at_one(tmp_path):
    streaks = streaks_of(4)
    write_streaks(tmp_path / "a.fits", streaks)
    with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
        assert hdus["STREAKS"].data["x1"] == pytest.approx(streaks.table["x1"] + 1)
        assert hdus["STREAKS"].columns["x1"].unit == "pix"
        header = hdus[0].header
        assert (header["NSTREAK"], header["NVETTED"], header["REJPOINT"]) == (4, 2, 3)


def test_same_bytes_for_the_same_streaks(tmp_path):
    for name in "ab":
        write_streaks(tmp_path / name, streaks_of(5))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_foreign_table_is_refused(tmp_path):
    write_fits(tmp_path / "a.fits", [Hdu(np.zeros(2, [("x1", "f8")]), (), "STREAKS")])
    with pytest.raises(BadInput, match="columns"):
        read_streaks(tmp_path / "a.fits")
