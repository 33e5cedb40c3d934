"""Changes are followed to the right end; the reader of Avro agrees with another one; pictures are drawn."""

import io

import fastavro
import numpy as np
import pytest

from tests.unit.tools.test_discmeasure import SIDE, FakeScience, rows, to_sky
from tools.scorecard import avro, disccard, discfigure, discmeasure, disctrace, disctruth
from tools.scorecard.discmeasure import Candidates, DiffProducts
from tools.skysim import variables
from tools.skysim.scene import STAR_TRUTH, TRANSIENT_TRUTH


@pytest.fixture(scope="module")
def case():
    """Seven bright probes: found and sent, found only, at the edge, masked, beside a saturated star, beside a stronger
    one, and lost; and a faint one that is not followed."""
    x = np.array([100.2, 200.4, 3.0, 300.1, 400.3, 500.0, 250.6, 100.0, 503.5])
    y = np.array([100.7, 120.1, 300.0, 300.2, 300.9, 500.1, 450.2, 400.0, 502.0])
    mag = np.array([17.0] * 7 + [21.8, 15.5])
    probes = rows(TRANSIENT_TRUTH, x, y, mag, kind=variables.ON_SKY)
    stars = rows(STAR_TRUTH, [408.0], [309.0], 9.0)
    science = FakeScience("new", 2.0, stars=stars, transients=probes)
    changed = disctruth.changes(science, [FakeScience("old", 2.0, stars=stars)])
    usable = np.ones((SIDE, SIDE), bool)
    usable[296:305, 296:305] = False
    candidates = Candidates(x[:2] + 0.2, y[:2], np.full(2, 900.0), np.full(2, 10.0), np.full(2, np.nan))
    return science, changed, usable, candidates


def packet(x, y, candid=1, **changes):
    ra, dec = (float(v) for v in to_sky(x, y))
    candidate = {"candid": candid, "ra": ra, "dec": dec, "magpsf": 18.0, "sigmapsf": 0.1, "jd": 2459116.9}
    cutouts = {name: {"fileName": "x.fits.gz", "stampData": b"1"} for name in disctrace.CUTOUTS}
    return {"candid": candid, "candidate": candidate, **cutouts, **changes}


def test_every_end_is_named(case):
    check = disctrace.check(*case, [packet(100.4, 100.7, 7), packet(520.0, 40.0, 8)])
    order = np.argsort(check.traces["id"])
    names = [disctrace.STAGES[k] for k in check.traces["stage"][order]]
    assert names[:7] == [
        "packet", "candidate without packet", "at the edge", "on unusable pixels", "beside a saturated star",
        "beside a stronger change", "no candidate",
    ]  # fmt: skip
    assert len(names) == 8  # the strong one itself is lost; the faint one is not followed
    assert check.traces["candid"][order][0] == 7
    assert check.n_packets == 2 and check.n_false_packets == 1 and check.n_broken == 0


def test_lines_and_table_count_what_is_lost(case):
    check = disctrace.check(*case, [packet(100.4, 100.7, 7)])
    values = {m.name: m for m in disctrace.metrics([check])}
    assert values["injected_to_candidate"].value == pytest.approx(2 / 4) and not values["injected_to_candidate"].ok
    assert values["candidate_to_packet"].value == pytest.approx(1 / 2)
    text = disctrace.as_text([check])
    assert "lost: probe on sky, new x 250.6 y 450.2" in text


def test_broken_packets_are_told(case):
    bad = [
        packet(100.4, 100.7, cutoutTemplate=None), packet(100.4, 100.7, candid=3) | {"candid": 4},
        packet(float("nan"), 10.0),
    ]  # fmt: skip
    check = disctrace.check(*case, bad[:2])
    assert check.n_broken == 2 and "cutoutTemplate" in check.faults[0] and "candids" in check.faults[1]
    assert "no position" in disctrace.fault_of(bad[2])


def test_no_packets_no_changes(case):
    science, changed, usable, _ = case
    none = Candidates(*(np.zeros(0) for _ in range(5)))
    check = disctrace.check(science, changed[:0], usable, none, [])
    assert check.traces.size == 0 and check.n_packets == 0
    assert disctrace.metrics([check])[0].value is None


SCHEMA = {
    "type": "record", "name": "outer", "namespace": "a.b", "fields": [
        {"name": "n", "type": "long"}, {"name": "f", "type": "float"}, {"name": "d", "type": ["double", "null"]},
        {"name": "inner", "type": {"type": "record", "name": "inner", "fields": [
            {"name": "s", "type": ["null", "string"]}, {"name": "b", "type": "bytes"},
            {"name": "ok", "type": "boolean"},
        ]}},
        {"name": "more", "type": {"type": "array", "items": "a.b.inner"}},
        {"name": "table", "type": {"type": "map", "values": "int"}},
        {"name": "kind", "type": {"type": "enum", "name": "kind", "symbols": ["p", "q"]}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_reader_of_avro_agrees_with_fastavro(codec):
    inner = {"s": "héllo", "b": bytes(range(256)), "ok": True}
    records = [
        {"n": n, "f": 0.5, "d": None if n < 0 else 1e300, "inner": inner, "more": [inner] * 3 + [{**inner, "s": None}],
         "table": {"a": -7, "b": 70000}, "kind": "q"}
        for n in (0, -1, 2**62, -(2**62), 300)
    ]  # fmt: skip
    stream = io.BytesIO()
    fastavro.writer(stream, SCHEMA, records, codec=codec, sync_interval=200)
    assert avro.read_container(stream.getvalue()) == records


def test_damaged_container_is_refused():
    stream = io.BytesIO()
    fastavro.writer(stream, {"type": "record", "name": "r", "fields": [{"name": "n", "type": "long"}]}, [{"n": 5}])
    data = stream.getvalue()
    for broken in (b"x" + data[1:], data[:-3], data[:-1] + b"!"):
        with pytest.raises(ValueError):
            avro.read_container(broken)


def test_pictures_are_drawn(case, tmp_path):
    science, changed, usable, candidates = case
    rng = np.random.default_rng(1)
    epochs = [FakeScience("old", 2.0, stars=science.table("stars"))]
    products = DiffProducts(rng.standard_normal((SIDE, SIDE)), np.where(usable, 1.0, np.inf), candidates)
    check = discmeasure.check(science, epochs, products, changed=changed)
    discfigure.quality([check], tmp_path / "quality.png")
    stamps = [rng.normal(0, 3, (63, 63)) for _ in range(3)]
    stamps[2][:, :20] = np.nan
    discfigure.side_by_side([discfigure.Example("probe", stamps)], tmp_path / "side.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("quality.png", "side.png"))
    assert disccard.as_text([check])
