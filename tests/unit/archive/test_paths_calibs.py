"""Names of files in the archive, and the choice of calibrations."""

import pytest

from zsds_hpc.archive import calibs, database, paths
from zsds_hpc.core.names import parse_raw_name

NAME = parse_raw_name("ztf_20200924431366_000655_zr_c13_o.fits.fz")


def test_names_of_the_survey():
    stem = "ztf_20200924431366_000655_zr_c13_o"
    assert paths.raw(NAME) == f"raw/2020/0924/431366/{stem}.fits.fz"
    assert paths.channel(NAME, 3) == f"raw/2020/0924/431366/{stem}_q3_raw.fits"
    place = "ref/000/field000655/zg/ccd11/q3"
    assert paths.reference(655, "zg", 11, 3, "refimg.fits") == f"{place}/ztf_000655_zg_c11_q3_refimg.fits"
    assert paths.reference(655, "zg", 11, 3, "refimg.fits", 2) == f"{place}/v002/ztf_000655_zg_c11_q3_refimg.fits"
    assert paths.reference(1655, "zr", 1, 1, "refcov.fits").startswith("ref/001/field001655/zr/ccd01/q1/ztf_001655_")
    assert paths.science(NAME, 3, "sciimg.fits") == f"sci/2020/0924/431366/{stem}_q3_sciimg.fits"
    assert paths.calibration("biasunc", "20200924", "bi", 13, 3) == (
        "cal/2020/0924/bias/bi/ccd13/q3/ztf_20200924_bi_c13_q3_biasunc.fits"
    )
    assert paths.calibration("hifreqflat", "20200924", "zr", 1, 4) == (
        "cal/2020/0924/hifreqflat/zr/ccd01/q4/ztf_20200924_zr_c01_q4_hifreqflat.fits"
    )


def test_all_names_differ():
    names = {paths.calibration(k, "20200924", f, c, q) for k in paths.CAL_KINDS for f in ("zg", "bi")
             for c in (1, 11) for q in (1, 2)}  # fmt: skip
    assert len(names) == len(paths.CAL_KINDS) * 8


def rows(*nights, usable=True):
    return [{"night": night, "usable": usable, "path": night} for night in nights]


@pytest.mark.parametrize(
    ("nights", "validity", "chosen"),
    [
        (["20200923", "20200924", "20200925"], 7, "20200924"),
        (["20200920", "20200922", "20200925"], 7, "20200922"),
        (["20200925", "20200926"], 7, "20200925"),
        (["20200917"], 7, "20200917"),
        (["20200916", "20201002"], 7, None),
        (["20200929", "20200916"], 7, "20200929"),
        (["20200224", "20200301"], 365, "20200301"),
        ([], 7, None),
        (["20200923"], 0, None),
    ],
)
def test_choice_by_date(nights, validity, chosen):
    found = calibs.choose(rows(*nights), "20200924", validity)
    assert (found and found["night"]) == chosen


def test_unusable_is_passed_over():
    found = calibs.choose([*rows("20200924", usable=False), *rows("20200922")], "20200924", 7)
    assert found["night"] == "20200922"


def test_days_over_new_year_and_leap_day():
    assert calibs.days_between("20191231", "20200101") == 1
    assert calibs.days_between("20200301", "20200228") == -2


def test_choice_by_channel_and_filter(tmp_path):
    engine = database.open_database(tmp_path)
    base = {"sha256": "0", "unit_id": "u", "kind": "bias", "night": "20200924", "n_frames": 9, "usable": True}
    database.put(engine, database.calibrations, [
        {**base, "path": "a", "rcid": 1, "filtercode": "bi"}, {**base, "path": "b", "rcid": 2, "filtercode": "bi"},
        {**base, "path": "c", "rcid": 1, "filtercode": "zr", "kind": "hifreqflat"},
    ])  # fmt: skip
    choice = calibs.CalibrationChoice(engine, "bias", 3)
    engine.dispose()
    assert choice(1, "bi", "20200925")["path"] == "a" and choice(2, "bi", "20200924")["path"] == "b"
    assert choice(1, "zr", "20200924") is None and choice(3, "bi", "20200924") is None
    assert choice(1, "bi", "20200930") is None
