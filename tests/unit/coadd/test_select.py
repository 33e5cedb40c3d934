"""Each rule rejects what it is for, and says so; of the good the best are kept."""

import re
from dataclasses import replace

import pytest

from zsds_hpc.coadd.select import Candidate, SelectParams, select_epochs

GOOD = [Candidate(f"e{k:02d}", 2459000.0 + k, 2.0 + 0.01 * k, 26.2, 20.8 + 0.01 * k) for k in range(20)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": 0}, "status 0"),
        ({"infobits": 1 << 3}, r"INFOBITS \[3\]"),
        ({"magzp": None}, "no zero point"),
        ({"jd": 2458000.0}, "before"),
        ({"jd": 2460000.0}, "after"),
        ({"astrometric_error_arcsec": 0.3}, "astrometric error 0.3"),
        ({"magzp_rms": 0.2}, "scatter by 0.2"),
        ({"magzp_rms": float("nan")}, "scatter by nan"),
        ({"magzp": 25.5}, "clouds: zero point 25.50 mag, the median is 26.20"),
        ({"maglim": 19.0}, "shallow: limiting magnitude 19.00"),
        ({"seeing_pix": 1.3}, "seeing 1.30 px outside"),
        ({"seeing_pix": 3.5}, "seeing 3.50 px outside"),
        ({"seeing_pix": 3.15}, "seeing 3.15 px, the median is"),
    ],
)
def test_rules(change, reason):
    params = SelectParams(first_jd=2458500.0, last_jd=2459500.0, seeing_max_ratio=1.4)
    bad = replace(GOOD[7], **change)
    found = select_epochs([*GOOD[:7], bad, *GOOD[8:]], params)
    assert list(found.rejected) == ["e07"]
    assert re.search(reason, found.rejected["e07"])
    assert found.chosen == [c.unit_id for c in GOOD if c.unit_id != "e07"]


def test_deepest_are_kept_in_the_order_of_time():
    found = select_epochs(GOOD[::-1], SelectParams(n_max=15))
    assert found.chosen == [f"e{k:02d}" for k in range(5, 20)]
    assert found.rejected["e04"] == "16 of 20 by depth (20.84 mag), the best 15 are used"


def test_nothing_to_choose_from():
    assert select_epochs([], SelectParams()) == select_epochs([replace(GOOD[0], status=0)][:0], SelectParams())
    assert select_epochs([replace(c, status=0) for c in GOOD], SelectParams()).chosen == []
