"""Identifiers of candidates against real packets; names of objects."""

import re
from pathlib import Path

import fastavro
import numpy as np
import pytest

from zsds_hpc.alerts.ids import candidate_ids, object_name

REAL = Path(__file__).parents[4] / "shared" / "data" / "ztf_alerts"


def test_numbers_run_by_sign():
    candid, tblid = candidate_ids(1362374983015, np.array([True, False, True, True, False]))
    assert candid.tolist() == [1362374983015000000 + n for n in (15000, 10000, 15001, 15002, 10001)]
    assert tblid.tolist() == [0, 0, 1, 2, 1]


def test_none_and_too_many():
    assert [len(found) for found in candidate_ids(7, np.zeros(0, bool))] == [0, 0]
    candid, _ = candidate_ids(7, np.repeat([True, False], 5000))
    assert len(set(candid.tolist())) == 10_000
    with pytest.raises(ValueError, match="5001 candidates of one sign"):
        candidate_ids(7, np.ones(5001, bool))


@pytest.mark.real
def test_real_packets_follow_the_rule():
    files = sorted(REAL.glob("*/*.avro"))
    if not files:
        pytest.skip("no ../shared/data/ztf_alerts here")
    n_checked = 0
    for file in files:
        with open(file, "rb") as stream:
            for packet in fastavro.reader(stream):
                row = packet["candidate"]
                if packet.get("schemavsn") == "3.5":
                    continue  # two packets' images of another pipeline version: 060 and 065 in place of 010 and 015
                same_sign = np.full(row["tblid"] + 1, row["isdiffpos"] == "t")
                candid, tblid = candidate_ids(row["pid"], same_sign)
                assert (candid[-1], tblid[-1]) == (row["candid"], row["tblid"])
                n_checked += 1
    assert n_checked > 50


def test_names():
    name = object_name(1362374983015015000, 2459116.875)
    assert re.fullmatch("ZTF20[a-z]{7}", name) and object_name(1362374983015015000, 2459116.875) == name
    assert object_name(1362374983015015000, 2459116.875, 1) != name
    assert object_name(1, 2459215.4999)[:5] == "ZTF20" and object_name(1, 2459215.5)[:5] == "ZTF21"


def test_names_are_spread_evenly():
    names = [object_name(candid, 2459116.875) for candid in range(20_000)]
    assert len(set(names)) >= 19_999
    for k in range(5, 12):
        counts = np.unique([name[k] for name in names], return_counts=True)[1]
        assert len(counts) == 26 and abs(counts - 20_000 / 26).max() < 5 * np.sqrt(20_000 / 26)
