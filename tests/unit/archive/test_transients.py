"""The transients database on SQLite and, where it is installed, PostgreSQL; its files; roll-off."""

import numpy as np
import pytest
import sqlalchemy as sa

from tests.helpers import postgres
from zsds_hpc.alerts import schema
from zsds_hpc.archive import longterm, transientfiles, transients
from zsds_hpc.archive.atomic import Seal, sha256_of
from zsds_hpc.archive.database import metadata, open_database
from zsds_hpc.archive.provenance import Record
from zsds_hpc.astrometry.sphere import separation_deg
from zsds_hpc.core.errors import BadInput, Retryable
from zsds_hpc.core.states import State

NIGHTS = {"20200924": 2459116.5, "20200925": 2459117.5}


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def engine(request, tmp_path_factory):
    if request.param == "sqlite":
        yield open_database(tmp_path_factory.mktemp("database"))
        return
    with postgres.server() as url:
        opened = open_database(tmp_path_factory.mktemp("none"), url)
        yield opened
        opened.dispose()


@pytest.fixture
def connection(engine):
    """A connection to empty tables."""
    with transients.transaction(engine) as opened:
        for table in metadata.sorted_tables:
            opened.execute(sa.delete(table))
    with transients.transaction(engine) as opened:
        yield opened


def image(unit, night="20200924", jd=None, ra=10.0, dec=20.0, **more):
    """Row of an image one degree wide."""
    corners = dict(
        zip(transients.CORNERS, [ra - 0.5, ra + 0.5, ra + 0.5, ra - 0.5, *[dec - 0.5] * 2, *[dec + 0.5] * 2])
    )
    facts = {"unit_id": unit, "night": night, "cell": int(transients.cells_of(ra, dec)), "jd": jd or NIGHTS[night],
             "fid": 2, "pid": len(unit), "programid": 1, "field": 655, "rcid": 20, "diffmaglim": 20.5,
             "rbversion": "t1", "n_candidates": 0, "n_streaks": 0, "rolled_off": False}  # fmt: skip
    return {**corners, **facts, **more}


def candidate(candid, unit, ra, dec, objectid="ZTF20aaaaaaa", night="20200924", **more):
    """Row of a candidate."""
    return {"candid": candid, "objectid": objectid, "unit_id": unit, "night": night, "ra": ra, "dec": dec,
            "cell": int(transients.cells_of(ra, dec)), "jd": NIGHTS[night], "fid": 2, "programid": 1, "field": 655,
            "rcid": 20, "magpsf": 19.25, "isdiffpos": "t", "rb": float("nan"), **more}  # fmt: skip


def founder(row):
    """Row of the object that a candidate founds."""
    return {name.name: row[name.name] for name in transients.objects.columns}


def test_columns_are_those_of_a_packet():
    names = {field.name for field in schema.fields("candidate")}
    assert set(transients.IMAGE_FIELDS) | set(transients.CANDIDATE_FIELDS) == names
    assert not set(transients.IMAGE_FIELDS) & set(transients.CANDIDATE_FIELDS)
    assert set(transients.CANDIDATE_FIELDS) <= set(transients.candidates.columns.keys())
    assert all("programid" in table.columns for table in (*transients.UNIT_TABLES, transients.sky_flags))


@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.001, 41.0), (359.99, -88.0), (77.0, 89.999), (200.0, -35.0)])
@pytest.mark.parametrize("radius_arcsec", [0.5, 1.5, 40.0, 3000.0])
def test_cone_against_brute_force(connection, centre, radius_arcsec):
    rng = np.random.default_rng(1)
    ra0, dec0 = centre
    north = rng.uniform(-2, 2, 400) * radius_arcsec / 3600.0
    dec = np.clip(dec0 + north, -90, 90)
    ra = (ra0 + rng.uniform(-2, 2, 400) * radius_arcsec / 3600.0 / np.cos(np.radians(dec0))) % 360.0
    rows = [candidate(i, "u", float(ra[i]), float(dec[i])) for i in range(400)]
    transients.enter(connection, {"candidates": rows})
    away = 3600.0 * separation_deg(ra0, dec0, ra, dec)
    found = transients.cone(connection, transients.candidates, ra0, dec0, radius_arcsec / 3600.0)
    assert {row["candid"] for row in found} == set(np.flatnonzero(away <= radius_arcsec).tolist())
    assert len(found) > 30 and [row["arcsec"] for row in found] == sorted(row["arcsec"] for row in found)
    assert len(transients.ranges_around(ra0, dec0, radius_arcsec / 3600.0)) < 100


def test_cells_around_miss_nothing():
    rng = np.random.default_rng(4)
    ra, dec = rng.uniform(0, 360, 2000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2000)))
    angle = rng.uniform(0, 2 * np.pi, 2000)
    other_dec = dec + 1.49 / 3600.0 * np.sin(angle)
    other_ra = ra + 1.49 / 3600.0 * np.cos(angle) / np.cos(np.radians(dec))
    for a, d, near in zip(ra, dec, transients.cells_of(other_ra, other_dec)):
        assert near in transients.cells_around([a], [d], 1.5)
    assert transients.cells_around([], [], 1.5) == []


def test_nan_becomes_null_and_history_has_the_fields_of_packets(connection):
    transients.enter(connection, {"difference_images": [image("u1")], "candidates": [candidate(7, "u1", 10.0, 20.0)]})
    (row,) = transients.detections_in(connection, transients.cells_around([10.0], [20.0], 1.5), NIGHTS["20200925"])
    assert set(row) == {"objectid", *transients.HISTORY_FIELDS}
    assert (row["rb"], row["magpsf"], row["diffmaglim"], row["rbversion"]) == (None, 19.25, 20.5, "t1")
    assert not transients.detections_in(connection, transients.cells_around([10.0], [20.0], 1.5), NIGHTS["20200924"])


def test_more_cells_than_one_statement_takes(connection):
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 25_000), rng.uniform(-60, 60, 25_000)
    rows = [candidate(i, "u", float(ra[i]), float(dec[i]), f"Z{i}") for i in range(0, 25_000, 1000)]
    transients.enter(connection, {"objects": [founder(row) for row in rows]})
    found = transients.objects_in(connection, transients.cells_of(ra, dec).tolist())
    assert [row["candid"] for row in found] == [row["candid"] for row in rows]


def test_footprints(connection):
    near, far = image("near", jd=2459116.7), image("far", ra=30.0, jd=2459116.6)
    later, first = image("later", jd=2459117.9), image("first", jd=2459116.6)
    transients.enter(connection, {"difference_images": [near, far, later, first]})
    units, corners = transients.footprints_about(connection, 10.2, 20.1, 1.0, 2459117.0)
    assert units == ["first", "near"]
    np.testing.assert_array_equal(corners[0], [first[name] for name in transients.CORNERS])
    assert list(transients.images_of(connection, units, 2459116.65)) == ["near"]
    assert transients.footprints_about(connection, 60.0, 20.0, 1.0, 2459117.0)[1].shape == (0, 8)


def test_forgetting_a_unit_keeps_objects_that_others_use(connection):
    rows = [candidate(1, "u1", 10.0, 20.0, "ZTF20aaaaaaa"), candidate(2, "u1", 11.0, 20.0, "ZTF20bbbbbbb")]
    later = candidate(3, "u2", 10.0, 20.0, "ZTF20aaaaaaa", "20200925")
    transients.enter(
        connection,
        {
            "difference_images": [image("u1"), image("u2", "20200925")],
            "candidates": [*rows, later],
            "objects": [founder(row) for row in rows],
        },
    )
    transients.forget_units(connection, ["u1"])
    assert transients.units_entered(connection, ["u1", "u2"]) == {"u2": False}
    assert [row["candid"] for row in transients.cone(connection, transients.candidates, 10.0, 20.0, 5.0)] == [3]
    assert transients.names_taken(connection, ["ZTF20aaaaaaa", "ZTF20bbbbbbb"]) == {"ZTF20aaaaaaa"}
    assert [row["candid"] for row in transients.objects_of(connection, "u1")] == [1]


def test_asteroids_nearest_in_time(connection):
    entries = [("433", 2459116.4), ("433", 2459116.9), ("433", 2459117.4), ("1", 2459110.0)]
    rows = [{"name": name, "jd": jd, "ra": 10.0, "dec": 20.0, "cell": int(transients.cells_of(10.0, 20.0)),
             "rate_ra": 30.0, "rate_dec": 0.0, "mag": 18.0} for name, jd in entries]  # fmt: skip
    transients.enter(connection, {"known_asteroids": rows})
    found = transients.asteroids_about(connection, 10.1, 20.0, 1.0, 2459117.0, 0.6)
    assert [(row["name"], row["jd"]) for row in found] == [("433", 2459116.9)]


def record(unit, jd, rcid, state=State.DONE):
    outputs = {f"{unit}_diffcand.fits": Seal("a" * 64, 1)} if state == State.DONE else {}
    return Record(unit, "realtime", "20200924", state, "", outputs=outputs, metrics={"obsjd": jd, "rcid": rcid})


def test_products_come_in_order_of_time(engine, connection):
    connection.commit()
    transients.enter_products(
        engine, [record("c", 3.0, 5), record("a", 2.0, 9), record("b", 2.0, 1), record("d", 9.0, 0)]
    )
    transients.enter_products(engine, [record("d", 9.0, 0, State.FAILED), record("a", 2.0, 9)])
    found = transients.products_of(engine, "20200924")
    assert [row["unit_id"] for row in found] == ["b", "a", "c"]
    assert found[0]["files"] == {"b_diffcand.fits": "a" * 64}
    assert transients.products_of(engine, "20200925") == []


class Rolled:
    """Two nights with two objects; the first night is moved away."""

    def __init__(self, engine, connection, root):
        self.engine, self.root = engine, root
        first = [candidate(1, "u1", 10.0, 20.0), candidate(2, "u1", 10.1, 20.0, "ZTF20bbbbbbb")]
        second = candidate(3, "u2", 10.0, 20.0 + 0.3 / 3600.0, night="20200925")
        other = candidate(4, "u2", 10.0, 20.0, night="20200925", rcid=21)
        streak = {"unit_id": "u1", "number": 0, "night": "20200924", "ra": 10.0, "dec": 20.0, "cell": 5, "programid": 1,
                  "jd": NIGHTS["20200924"], "kind": "asteroid", "snr": 12.5}  # fmt: skip
        rows = {"difference_images": [image("u1"), image("u2", "20200925")], "candidates": [*first, second, other],
                "objects": [founder(row) for row in first], "streaks": [streak]}  # fmt: skip
        transients.enter(connection, rows)
        connection.commit()

    def rows(self, table):
        with transients.transaction(self.engine) as connection:
            return sorted(tuple(row) for row in connection.execute(sa.select(table)))


@pytest.fixture
def rolled(engine, connection, tmp_path):
    return Rolled(engine, connection, tmp_path)


def test_roll_off(rolled):
    engine, root = rolled.engine, rolled.root
    before = rolled.rows(transients.candidates)
    assert longterm.nights_before(engine, "20200924") == []
    assert longterm.nights_before(engine, "20200925") == ["20200924"]
    assert longterm.move_night(engine, root, "20200924") == {"candidates": 2, "streaks": 1}
    assert longterm.nights_before(engine, "20200925") == []
    assert {row[0] for row in rolled.rows(transients.candidates)} == {3, 4} and not rolled.rows(transients.streaks)
    flags = rolled.rows(transients.sky_flags)
    assert [(row[0], row[7], row[8], row[9]) for row in flags] == [
        ("ZTF20aaaaaaa", 1, NIGHTS["20200924"], NIGHTS["20200924"]),
        ("ZTF20bbbbbbb", 1, NIGHTS["20200924"], NIGHTS["20200924"]),
    ]
    stored = longterm.stored_near(engine, root, 10.0, 20.0, 1.0)
    names = [column.name for column in transients.candidates.columns]
    assert [tuple(row[name] for name in names) for row in stored] == [row for row in before if row[0] in (1, 2)]
    (path, source, night, sha256, n_rows), _ = rolled.rows(transients.longterm_files)
    assert (path, source) == ("longterm/candidates/2020/09/candidates_20200924_01.parquet", "candidates")
    assert (night, sha256, n_rows) == ("20200924", sha256_of(root / path), 2)


def test_flags_add_up_by_object_and_channel(rolled):
    for night in NIGHTS:
        longterm.move_night(rolled.engine, rolled.root, night)
    flags = {(row[0], row[2]): row[7:] for row in rolled.rows(transients.sky_flags)}
    assert flags == {
        ("ZTF20aaaaaaa", 20): (2, NIGHTS["20200924"], NIGHTS["20200925"]),
        ("ZTF20aaaaaaa", 21): (1, NIGHTS["20200925"], NIGHTS["20200925"]),
        ("ZTF20bbbbbbb", 20): (1, NIGHTS["20200924"], NIGHTS["20200924"]),
    }
    with transients.transaction(rolled.engine) as connection:
        cells = transients.cells_around([10.0], [20.0], 1.5)
        assert [flag["n"] for flag in transients.flags_in(connection, cells, 655, 20)] == [2]


def test_what_was_ever_detected_survives(rolled):
    def summary(ra):
        with transients.transaction(rolled.engine) as connection:
            return transients.ever_detected(connection, ra, 20.0, 1.5 / 3600.0)

    wanted = {"n": 3, "jd_first": NIGHTS["20200924"], "jd_last": NIGHTS["20200925"], "objectids": ["ZTF20aaaaaaa"]}
    for night in (None, *NIGHTS):
        if night:
            longterm.move_night(rolled.engine, rolled.root, night)
        assert summary(10.0) == wanted
    assert summary(12.0) == {"n": 0, "jd_first": None, "jd_last": None, "objectids": []}


def test_a_crash_before_the_commit_moves_nothing(rolled, monkeypatch):
    before = rolled.rows(transients.candidates)
    monkeypatch.setattr(longterm, "_add_flags", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        longterm.move_night(rolled.engine, rolled.root, "20200924")
    monkeypatch.undo()
    (left,) = rolled.root.rglob("candidates_*.parquet")
    content = left.read_bytes()
    assert rolled.rows(transients.candidates) == before and not rolled.rows(transients.sky_flags)
    longterm.move_night(rolled.engine, rolled.root, "20200924")
    assert left.read_bytes() == content and len(rolled.rows(transients.longterm_files)) == 2


def test_late_images_of_a_night_get_a_file_of_their_own(rolled):
    longterm.move_night(rolled.engine, rolled.root, "20200924")
    with transients.transaction(rolled.engine) as connection:
        late = candidate(9, "u9", 10.0, 20.0)
        transients.enter(connection, {"difference_images": [image("u9")], "candidates": [late]})
    assert longterm.nights_before(rolled.engine, "20200925") == ["20200924"]
    assert longterm.move_night(rolled.engine, rolled.root, "20200924") == {"candidates": 1, "streaks": 0}
    stored = longterm.stored_near(rolled.engine, rolled.root, 10.0, 20.0, 1.0)
    assert sorted(row["candid"] for row in stored) == [1, 2, 9]


def test_altered_long_term_file_is_noticed(rolled):
    longterm.move_night(rolled.engine, rolled.root, "20200924")
    (path,) = rolled.root.rglob("candidates_*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"candidates_20200924_01.parquet: missing, or altered"):
        longterm.stored_near(rolled.engine, rolled.root, 10.0, 20.0, 1.0)


def test_rows_in_a_file(tmp_path):
    rows = {
        "candidates": [{"candid": 2**60, "magpsf": np.float64(0.1), "rb": float("nan")}, {"candid": 1}],
        "objects": [],
    }
    for name in ("one", "two"):
        transientfiles.write_rows(tmp_path / name, rows)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = transientfiles.read_rows(tmp_path / "one")
    assert back["candidates"] == [
        {"candid": 2**60, "magpsf": 0.1, "rb": None},
        {"candid": 1, "magpsf": None, "rb": None},
    ]
    whole = (tmp_path / "one").read_bytes()
    for harm in (whole[:-5], b"", b"junk"):
        (tmp_path / "one").write_bytes(harm)
        with pytest.raises(BadInput, match="no whole file"):
            transientfiles.read_rows(tmp_path / "one")
    with pytest.raises(BadInput, match="no whole file"):
        transientfiles.read_rows(tmp_path / "none")


def test_locked_database_is_worth_retrying(tmp_path):
    url = f"sqlite:///{tmp_path}/x.sqlite?timeout=0.1"
    engine, other = open_database(tmp_path, url), sa.create_engine(url)
    with other.connect() as holder:
        holder.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(Retryable, match="database is locked"), transients.transaction(engine) as connection:
            transients.enter(connection, {"difference_images": [image("u")]})
    with transients.transaction(engine) as connection:
        transients.enter(connection, {"difference_images": [image("u")]})


def test_server_that_ends_is_worth_retrying(tmp_path):
    with postgres.server() as url:
        engine = open_database(tmp_path, url)
        with transients.transaction(engine) as connection:
            transients.enter(connection, {"difference_images": [image("u")]})
    with pytest.raises(Retryable), transients.transaction(engine) as connection:
        transients.units_entered(connection, ["u"])
    with pytest.raises(Retryable):
        open_database(tmp_path, url)
