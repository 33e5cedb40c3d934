"""Names and identifiers: round trips over their whole range, refusal outside it."""

import datetime
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsds_hpc.core import ids, maskbits, states
from zsds_hpc.core.names import KINDS, RawName, parse_raw_name

DIGITS = st.text(string.digits, min_size=6, max_size=6)
NIGHTS = st.dates(datetime.date(2017, 1, 1), datetime.date(2099, 12, 31)).map(lambda d: d.strftime("%Y%m%d"))
NAMES = st.builds(
    RawName, NIGHTS, DIGITS, st.integers(0, 999_999), st.sampled_from(["zg", "zr", "zi", "bi"]), st.integers(1, 16),
    st.sampled_from(sorted(KINDS)),
)  # fmt: skip


@given(NAMES)
def test_name_round_trip(name):
    assert parse_raw_name(name.filename) == name
    assert name.filename.startswith(name.stem) and name.stem.startswith(name.exposure)


@given(NAMES, st.integers(0, 40), st.characters())
def test_a_changed_name_is_refused_or_round_trips(name, position, character):
    text = name.filename
    changed = text[:position] + character + text[position + 1 :]
    try:
        assert parse_raw_name(changed).filename == changed
    except ValueError as error:
        assert "raw file name" in str(error)


@given(st.text())
def test_any_text(text):
    with pytest.raises(ValueError):
        parse_raw_name(text)


@pytest.mark.parametrize("ccdid", ["00", "17", "99"])
def test_ccd_outside(ccdid):
    with pytest.raises(ValueError, match="not a raw file name"):
        parse_raw_name(f"ztf_20200924431366_000655_zr_c{ccdid}_o.fits.fz")


def test_rcid_is_one_to_one():
    pairs = [(c, q) for c in range(1, 17) for q in range(1, 5)]
    assert [ids.rcid_of(*pair) for pair in pairs] == list(range(64))
    assert [ids.ccdid_qid_of(rcid) for rcid in range(64)] == pairs


@pytest.mark.parametrize("bad", [(0, 1), (17, 1), (1, 0), (1, 5)])
def test_rcid_outside(bad):
    with pytest.raises(ValueError, match="outside"):
        ids.rcid_of(*bad)


@pytest.mark.parametrize("bad", [-1, 64])
def test_ccdid_outside(bad):
    with pytest.raises(ValueError, match="outside"):
        ids.ccdid_qid_of(bad)


@given(NIGHTS)
def test_night_ids_agree(night):
    nid = ids.nid_of_night(night)
    assert ids.nid_of_jd(ids.NID_EPOCH_JD + nid + 0.4) == nid
    assert ids.night_of_jd(ids.NID_EPOCH_JD + nid) == night
    assert ids.night_of_jd(ids.NID_EPOCH_JD + nid + 0.999) == night


def test_real_image():
    """The real image ztf_20200924431366_000655_zr_c13_o_q3: JD 2459116.93, nid 1362."""
    assert ids.nid_of_night("20200924") == ids.nid_of_jd(2459116.9313657) == 1362
    assert ids.expid_of(1362, "431366") == 136243136
    assert ids.rawid_of(136243136, 50) == 13624313650
    assert ids.procid_of(13624313650, 15) == 1362431365015


@pytest.mark.parametrize(
    "night", ["", "2020924", "20201301", "20200230", "２０２００９２４", "2020-9-4", "../../..", "20200924 "]
)
def test_not_a_night(night):
    with pytest.raises(ValueError, match="night"):
        ids.nid_of_night(night)


def test_mask_templates_of_the_survey():
    assert maskbits.SOURCES == maskbits.SOURCE | maskbits.PSFSOURCE == 2050
    every = sum(1 << bit for bit in maskbits.BITS)
    assert maskbits.UNUSABLE == every - maskbits.SOURCES == 6141
    assert (maskbits.TRACK, maskbits.SATURATED, maskbits.HALO) == (1, 256, 4096)


@given(st.integers(0, 8191))
def test_decode(value):
    assert sum(getattr(maskbits, name) for name in maskbits.decode(value)) == value


def test_fractions_by_counting():
    mask = np.random.default_rng(3).integers(-32768, 32767, (50, 60)).astype(np.int16)
    found = maskbits.fractions(mask)
    for bit, (name, _) in maskbits.BITS.items():
        assert found[name] == pytest.approx(np.mean(mask.astype(int) >> bit & 1))


def test_every_state_has_a_meaning():
    assert set(states.MEANING) == set(states.State)
    assert states.State.ABORTED not in states.FINAL and states.State.BLOCKED not in states.FINAL


def test_reference_ids_are_the_surveys():
    assert ids.rfid_of(306, 2, 51, 1) == 306120251  # from a packet of the survey
    assert ids.rfid_of(651, 3, 31, 1) == 651120331
    assert ids.rfid_of(651, 3, 31, 2) == 651121331
