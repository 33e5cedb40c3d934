"""Files of candidates come back as they were written, and are read by astropy alone."""

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.archive.diffcat import read_candidates, rejection_keyword, write_candidates
from zsds_hpc.archive.fitsfiles import Hdu, write_fits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.candcat import CANDIDATE_DTYPE, COLUMNS
from zsds_hpc.subtraction.candidates import REASONS, Candidates
from zsds_hpc.subtraction.cutouts import Cutouts


def candidates(n):
    rng = np.random.default_rng(4)
    table = np.zeros(n, CANDIDATE_DTYPE)
    for name, (form, _, _) in COLUMNS.items():
        table[name] = rng.integers(0, 2, n) if form in ("?", "i2") else rng.normal(size=n)
    table["magap"][: n // 2] = np.nan
    cutouts = [rng.normal(size=(n, 63, 63)).astype(np.float32) for _ in range(3)]
    for pixels in cutouts:
        pixels[:, :5] = np.nan
    return Candidates(table, Cutouts(*cutouts), 99, {"snr": 7, "lobe": 2}, 20.5)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_round_trip(tmp_path, n):
    written, path = candidates(n), tmp_path / "diffcand.fits"
    write_candidates(path, written, [("OBSJD", 2459000.5, "[d] UTC"), ("FIELDID", 655)])
    table, cutouts, cards = read_candidates(path)
    assert table.dtype == CANDIDATE_DTYPE and len(table) == n
    for name in COLUMNS:
        np.testing.assert_array_equal(table[name], written.table[name])
    for mine, theirs in zip(cutouts, written.cutouts):
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, theirs)
    assert cards["OBSJD"] == 2459000.5 and cards["FIELDID"] == 655
    assert cards["NCAND"] == n and cards["NPEAKS"] == 99 and cards["LIMMAG"] == 20.5
    assert cards[rejection_keyword("snr")] == 7 and cards[rejection_keyword("magdiff")] == 0


def test_the_same_content_is_the_same_file(tmp_path):
    for name in "ab":
        write_candidates(tmp_path / name, candidates(3), [("OBSJD", 1.0)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_astropy_reads_it_with_units(tmp_path):
    path, written = tmp_path / "diffcand.fits", candidates(4)
    write_candidates(path, written)
    with fits.open(path, checksum=True) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["CANDIDATES", "CUTOUTS"]
        columns = hdus["CANDIDATES"].columns
        assert columns.names == list(COLUMNS)
        assert {c.name: c.unit or "" for c in columns} == {name: unit for name, (_, unit, _) in COLUMNS.items()}
        np.testing.assert_array_equal(hdus["CANDIDATES"].data["isdiffpos"], written.table["isdiffpos"])
        assert hdus["CUTOUTS"].data["DIFFERENCE"].shape == (4, 63, 63)


def test_an_unknown_limit_is_left_out(tmp_path):
    write_candidates(tmp_path / "a", candidates(1)._replace(limit_mag=float("nan")))
    assert "LIMMAG" not in read_candidates(tmp_path / "a").cards


def test_keywords_of_the_reasons_differ():
    words = [rejection_keyword(reason) for reason in REASONS]
    assert len(set(words)) == len(REASONS) and max(map(len, words)) <= 8


def test_other_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.fits"
    write_fits(path, [Hdu(), Hdu(np.zeros(2, [("x", "f4")])), Hdu(np.zeros(2, [("y", "f4")]))])
    with pytest.raises(BadInput, match="xpos"):
        read_candidates(path)
    short = candidates(3)
    write_candidates(path, short._replace(cutouts=Cutouts(*short.cutouts)))
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput):
        read_candidates(path)
