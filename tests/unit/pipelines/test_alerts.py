"""The alerts pipeline on a small sky: history, upper limits, reruns, crashes, a database that goes away, roll-off."""

import gzip
import json
import logging
import re
import sqlite3

import numpy as np
import pytest
import sqlalchemy as sa

from tests.helpers import postgres
from tests.helpers.toyalerts import SCALE_DEG, Image, Stars, ToySky, sky_place
from zsds_hpc.archive import longterm, transients
from zsds_hpc.archive.alertfiles import read_alerts
from zsds_hpc.archive.atomic import Staging, sha256_of
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.astrometry.sphere import separation_deg
from zsds_hpc.core.states import State
from zsds_hpc.pipelines import alerts
from zsds_hpc.production.bookkeeping import rebuild

NIGHT = "20200924"
#: A source seen three times, one that fades, one seen as a dipole, one that comes late.
FIRST = Image(100000, [(0.0, 0.0, True), (10.0, 10.0, False), (-12.0, 5.0, True), (-11.6, 5.0, False)])
SECOND = Image(200000, [(0.3, 0.2, True)], filtercode="zg")
THIRD = Image(300000, [(0.1, 0.0, True), (20.0, -10.0, True), (10.5, 10.0, True)])
THREE = (FIRST, SECOND, THIRD)


@pytest.fixture(autouse=True)
def fresh():
    alerts._engine.cache_clear()
    alerts._store.cache_clear()
    yield
    for handler in logging.getLogger("zsds").handlers[:]:
        handler.close()


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    return Stars(tmp_path_factory.mktemp("stars"))


@pytest.fixture
def sky(tmp_path, stars):
    return ToySky(tmp_path, stars)


def packets(sky):
    """Packets by candid."""
    found = [packet for path in sorted(sky.root.glob("alerts/**/*.avro")) for packet in read_alerts(path)]
    return {packet["candid"]: packet for packet in found}


def products(sky):
    """Hash of every product of the pipeline."""
    return {path.name: sha256_of(path) for path in sky.root.glob("alerts/**/[!.]*") if path.is_file()}


def tables(sky):
    """Rows of the tables."""
    engine = sky.archive.engine()
    with transients.transaction(engine) as connection:
        return {t.name: sorted(map(tuple, connection.execute(sa.select(t)))) for t in transients.UNIT_TABLES}


def record(sky, image):
    return read_record(sky.root / f"records/alerts/{image.night}/{image.unit_id}.json")


def of(sky, image, n=0, positive=True):
    """Packet of the image's candidate of a sign."""
    (pid,) = {packet["candidate"]["pid"] for packet in packets(sky).values() if packet["candidate"]["jd"] == image.jd}
    return packets(sky)[pid * 10**6 + (15000 if positive else 10000) + n]


def history(packet):
    """(jd, whether it was seen, limit) of each entry."""
    rows = packet["prv_candidates"] or []
    return [(row["jd"], row["candid"] is not None, round(row["diffmaglim"], 4)) for row in rows]


def test_history_of_three_images(sky):
    sky.add(*THREE)
    assert sky.run() == 0
    assert len(packets(sky)) == 8
    source = [of(sky, image) for image in THREE]
    assert len({packet["objectId"] for packet in source}) == 1
    assert re.fullmatch("ZTF20[a-z]{7}", source[0]["objectId"])
    assert [packet["candidate"]["ndethist"] for packet in source] == [1, 2, 3]
    assert [packet["candidate"]["ncovhist"] for packet in source] == [1, 2, 3]
    assert {packet["candidate"]["jdstarthist"] for packet in source} == {FIRST.jd}
    assert [packet["candidate"]["jdendhist"] for packet in source] == [image.jd for image in THREE]
    assert history(source[0]) == []
    assert history(source[2]) == [(FIRST.jd, True, 20.1), (SECOND.jd, True, 20.2)]
    assert source[2]["prv_candidates"][0] == {
        name: source[0]["candidate"][name] for name in source[2]["prv_candidates"][0]
    }


def test_upper_limits(sky):
    sky.add(*THREE)
    sky.run()
    new, again = of(sky, THIRD, 1), of(sky, THIRD, 2)
    assert history(new) == [(FIRST.jd, False, 20.1), (SECOND.jd, False, 20.2)]
    assert history(again) == [(FIRST.jd, True, 20.1), (SECOND.jd, False, 20.2)]
    limit = new["prv_candidates"][0]
    assert (limit["fid"], limit["rcid"], limit["field"], limit["rbversion"]) == (2, 20, 655, "t1")
    assert (limit["magpsf"], limit["ra"], limit["isdiffpos"], limit["rb"]) == (None,) * 4
    assert limit["pdiffimfilename"] == f"{FIRST.unit_id}_scimrefdiffimg.fits.fz"
    assert again["objectId"] == of(sky, FIRST, 0, False)["objectId"] != new["objectId"]


def test_dipole_is_one_object_with_two_detections(sky):
    sky.add(FIRST)
    sky.run()
    one, other = of(sky, FIRST, 1), of(sky, FIRST, 1, False)
    assert one["objectId"] == other["objectId"]
    assert [packet["candidate"]["ndethist"] for packet in (one, other)] == [2, 2]
    assert one["prv_candidates"] is None and [p["candidate"]["isdiffpos"] for p in (one, other)] == ["t", "f"]


def test_close_to_a_detection_but_not_to_its_object(sky):
    """At 0, 1.2 and 2.4 arcsec: the last is not near the object's place, but it was detected there before."""
    images = [Image(100000 * (k + 1), [(1.2 * k, 0.0, True)]) for k in range(3)]
    sky.add(*images)
    sky.run()
    assert len({of(sky, image)["objectId"] for image in images}) == 1
    assert [of(sky, image)["candidate"]["ndethist"] for image in images] == [1, 2, 2]


def test_only_images_that_cover_the_place(sky):
    """An image shifted by 60 arcsec has its western edge at +11.9 arcsec or so: 48.6 arcsec from its middle."""
    edge = 60.0 - 96 / 2 * SCALE_DEG * 3600.0
    shifted = Image(200000, [], shift_arcsec=60.0)
    here = Image(300000, [(edge - 0.3, 0.0, True), (edge + 0.3, 0.0, True)])
    sky.add(shifted, here)
    sky.run()
    assert [of(sky, here, n)["candidate"]["ncovhist"] for n in (0, 1)] == [1, 2]
    assert [history(of(sky, here, n)) for n in (0, 1)] == [[], [(shifted.jd, False, 20.2)]]


def test_other_fields_are_history_but_do_not_count(sky):
    other = Image(100000, [(0.0, 0.0, True)], field=656)
    sky.add(other, SECOND)
    sky.run()
    packet = of(sky, SECOND)
    assert packet["candidate"]["ndethist"] == 1 and packet["candidate"]["ncovhist"] == 2
    assert history(packet) == [(other.jd, True, 20.1)]
    assert packet["objectId"] == of(sky, other)["objectId"]


def test_programs_do_not_see_more_than_they_may(sky):
    images = [
        Image(100000 * (k + 1), [(0.1 * k, 0.0, True)], programid=program) for k, program in enumerate((2, 1, 3, 2))
    ]
    sky.add(*images)
    sky.run()
    seen = [[row["programid"] for row in of(sky, image)["prv_candidates"] or []] for image in images]
    assert seen == [[], [], [2, 1], [2, 1]]
    assert [of(sky, image)["candidate"]["ndethist"] for image in images] == [1, 2, 3, 4]
    assert [of(sky, image)["candidate"]["tooflag"] for image in images] == [1, 0, 0, 1]
    names = sorted(path.name for path in sky.root.glob("alerts/**/*.avro"))
    assert [re.search(r"programid(\d)", name)[1] for name in names] == ["2", "1", "3", "2"]


def test_history_is_30_days_long_and_counts_are_not(sky):
    old = Image(100000, [(0.0, 0.0, True)], night="20200824")
    recent = Image(300001, [(0.0, 0.0, True)], night="20200825")
    sky.add(old, recent, THIRD)
    for night in ("20200824", "20200825", NIGHT):
        sky.run(night)
    packet = of(sky, THIRD)
    assert history(packet) == [(recent.jd, True, 20.3)]
    assert (packet["candidate"]["ndethist"], packet["candidate"]["jdstarthist"]) == (3, old.jd)


def test_measurements_and_cutouts_are_those_of_the_image(sky):
    from tests.helpers.toyalerts import candidates
    from zsds_hpc.alerts.packet import cutout_pixels

    sky.add(FIRST)
    sky.run()
    made = candidates(FIRST)
    for n, row, positive in ((0, 0, True), (0, 1, False)):
        packet = of(sky, FIRST, n, positive)
        assert packet["candidate"]["magpsf"] == made.table["magpsf"][row]
        assert packet["candidate"]["ra"] == made.table["ra"][row]
        assert packet["candidate"]["ranr"] == (-999.0 if row == 0 else made.table["ranr"][row])
        stamp = cutout_pixels(packet["cutoutDifference"]["stampData"])
        np.testing.assert_array_equal(stamp, made.cutouts.difference[row])


def test_stars_and_asteroids(sky):
    sky.add(FIRST)
    ra, dec = sky_place(10.0, 14.0)
    middle = FIRST.jd + 15.0 / 86400.0
    moved = {"name": "433", "jd": middle - 0.25, "ra": ra, "dec": dec - 60.0 / 3600.0, "rate_ra": 0.0, "rate_dec": 10.0,
             "mag": 17.5, "cell": int(transients.cells_of(ra, dec - 60.0 / 3600.0))}  # fmt: skip
    with transients.transaction(sky.archive.engine()) as connection:
        transients.enter(connection, {"known_asteroids": [moved]})
    sky.run()
    packet = of(sky, FIRST, 0, False)["candidate"]
    assert packet["ssnamenr"] == "433" and packet["ssdistnr"] == pytest.approx(4.0, abs=1e-3)
    assert packet["ssmagnr"] == 17.5
    assert record(sky, FIRST).metrics["n_asteroids"] == 4
    ps1 = sky.stars.ps1
    away = 3600.0 * separation_deg(packet["ra"], packet["dec"], ps1["raMean"].data, ps1["decMean"].data)
    nearest = int(np.argmin(away))
    assert packet["objectidps1"] == ps1["objID"][nearest]
    assert packet["distpsnr1"] == pytest.approx(away[nearest], abs=1e-3)
    assert packet["nmtchps"] == int((away <= 30.0).sum())
    assert packet["neargaia"] == pytest.approx(away[nearest], abs=0.3)


def test_image_without_candidates_counts_as_coverage(sky):
    empty = Image(100000, [])
    sky.add(empty, SECOND)
    assert sky.run() == 0
    assert not list(sky.root.glob(f"alerts/**/{empty.unit_id}*.avro"))
    assert history(of(sky, SECOND)) == [(empty.jd, False, 20.1)]


def test_streaks_are_entered(sky):
    image = Image(100000, [], trails=[(-10.0, 5.0), (3.0, -8.0)])
    sky.add(image)
    assert sky.run() == 0 and record(sky, image).metrics["n_streaks"] == 2
    ra, dec = sky_place(0.0, 5.0)
    with transients.transaction(sky.archive.engine()) as connection:
        (row,) = transients.cone(connection, transients.streaks, ra, dec, 1.0 / 3600.0)
    assert row["arcsec"] < 0.01 and (row["kind"], row["snr"], row["number"]) == ("asteroid", 12.5, 0)
    assert (row["rcid"], row["programid"], row["jd"]) == (20, 1, image.jd)
    assert tables(sky)["difference_images"][0][-2] == 2


def test_least_score(sky, monkeypatch):
    sky.add(FIRST)
    scored = alerts.candidate_rows

    def with_scores(*arguments):
        return [row | {"drb": 0.25 * k, "rb": 1.0} for k, row in enumerate(scored(*arguments))]

    monkeypatch.setattr(alerts, "candidate_rows", with_scores)
    sky.run(least_score=0.5)
    assert sorted(packet["candidate"]["drb"] for packet in packets(sky).values()) == [0.5, 0.75]
    assert len(tables(sky)["candidates"]) == 4


def test_rerun_makes_the_same(sky, tmp_path):
    sky.add(*THREE)
    sky.run()
    made, rows = products(sky), tables(sky)
    assert sky.run() == 0 and products(sky) == made and tables(sky) == rows
    for image in (FIRST, THIRD):
        (sky.root / f"records/alerts/{NIGHT}/{image.unit_id}.json").unlink()
    assert sky.run() == 0 and products(sky) == made and tables(sky) == rows
    other = ToySky(tmp_path / "other", sky.stars)
    other.add(*reversed(THREE))
    other.run()
    assert products(other) == made and tables(other) == rows


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("where", ["seal", "record"])
def test_death_between_commit_and_seal(sky, tmp_path, monkeypatch, where):
    whole = ToySky(tmp_path / "whole", sky.stars)
    for each in (whole, sky):
        each.add(*THREE)
    whole.run()
    seal, deaths = Staging.seal, []

    def die_once(stage):
        if deaths or len(tables(sky)["difference_images"]) < 2:
            return seal(stage)
        deaths.append(1)
        if where == "record":
            seal(stage)
        raise Died

    monkeypatch.setattr(Staging, "seal", die_once)
    alerts._engine.cache_clear()
    with pytest.raises(Died):
        sky.run()
    assert record(sky, SECOND) is None and len(tables(sky)["difference_images"]) == 2
    assert sky.run() == 0
    assert products(sky) == products(whole) and tables(sky) == tables(whole)


def test_database_that_goes_away(sky, tmp_path):
    whole = ToySky(tmp_path / "whole", sky.stars)
    for each in (whole, sky):
        each.add(*THREE)
    whole.run()
    alerts._engine.cache_clear()
    lost = []

    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def lose(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO candidates"):
            lost.append(1)
            if len(lost) == 2:
                raise sa.exc.OperationalError(statement, {}, Exception("server closed the connection"))

    try:
        assert sky.run() == 75
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", lose)
    assert [each and each.state for each in (record(sky, image) for image in THREE)] == [
        State.DONE,
        State.ABORTED,
        None,
    ]
    assert "server closed the connection" in record(sky, SECOND).reason
    assert sky.run() == 0
    assert products(sky) == products(whole) and tables(sky) == tables(whole)


def test_changed_image_replaces_what_it_entered(sky):
    sky.add(*THREE)
    sky.run()
    sky.add(Image(100000, [(0.0, 0.0, True)]))
    assert sky.run() == 0
    assert len([row for row in tables(sky)["candidates"] if FIRST.unit_id in row]) == 1
    names = {row[0] for row in tables(sky)["objects"]}
    assert {packet["objectId"] for packet in packets(sky).values()} == names, "the object that another image uses stays"


def test_harmed_file_of_candidates(sky):
    sky.add(*THREE)
    sky.run()
    path = next(sky.root.glob(f"sci/**/{SECOND.unit_id}_diffcand.fits"))
    path.write_bytes(path.read_bytes()[:4000])
    (sky.root / f"records/alerts/{NIGHT}/{SECOND.unit_id}.json").unlink()
    assert sky.run() == 20
    assert record(sky, SECOND).state == State.UNPROCESSABLE
    assert {row[0] for row in tables(sky)["difference_images"]} == {FIRST.unit_id, THIRD.unit_id}


def test_lacking_card(sky, monkeypatch):
    from tests.helpers import toyalerts

    cards = toyalerts.cards
    monkeypatch.setattr(toyalerts, "cards", lambda image: [card for card in cards(image) if card[0] != "RFID"])
    sky.add(FIRST)
    assert sky.run() == 20
    assert record(sky, FIRST).reason == f"{FIRST.unit_id}: header of the candidates without RFID"


def test_database_made_anew(sky):
    sky.add(*THREE)
    sky.run()
    rows = tables(sky)
    alerts._engine.cache_clear()
    (sky.root / "zsds.sqlite").unlink()
    assert rebuild(sky.archive, [alerts.PIPELINE], NIGHT) == 3
    assert tables(sky) == rows
    assert rebuild(sky.archive, [alerts.PIPELINE], NIGHT) == 3 and tables(sky) == rows


def test_counts_survive_roll_off(sky):
    old = Image(100000, [(0.0, 0.0, True), (10.0, 0.0, True)], night="20200801")
    sky.add(old, THIRD)
    sky.run("20200801")
    assert longterm.move_night(sky.archive.engine(), sky.root, "20200801")["candidates"] == 2
    sky.run()
    packet = of(sky, THIRD)
    assert packet["objectId"] == of(sky, old)["objectId"]
    assert (packet["candidate"]["ndethist"], packet["candidate"]["jdstarthist"]) == (2, old.jd)
    assert packet["candidate"]["ncovhist"] == 2 and history(packet) == []
    (sky.root / f"records/alerts/20200801/{old.unit_id}.json").unlink()
    assert sky.run("20200801") == 20
    assert "moved to long-term storage" in record(sky, old).reason


def test_names_that_collide(sky, monkeypatch):
    sky.add(FIRST)
    name = alerts.add_objects.__globals__["alert_ids"].object_name
    monkeypatch.setattr(
        "zsds_hpc.alerts.ids.object_name", lambda candid, jd, attempt=0: name(candid if attempt else 7, jd, attempt)
    )
    sky.run()
    names = [row[0] for row in tables(sky)["objects"]]
    assert len(set(names)) == 3


def test_same_on_postgresql(sky, tmp_path):
    sky.add(*THREE)
    sky.run()
    with postgres.server() as url:
        other = ToySky(tmp_path / "server", sky.stars, url)
        other.add(*THREE)
        alerts._engine.cache_clear()
        assert other.run() == 0
        assert products(other) == products(sky) and tables(other) == tables(sky)
        other.archive.engine().dispose()
        alerts._engine(other.root, url).dispose()


def test_rows_file_and_database_agree(sky):
    sky.add(FIRST)
    sky.run()
    (path,) = sky.root.glob("alerts/**/*_transients.json.gz")
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert {name: len(part["rows"]) for name, part in content.items()} == {
        "candidates": 4, "difference_images": 1, "objects": 3, "streaks": 0
    }  # fmt: skip
    database = sqlite3.connect(sky.root / "zsds.sqlite")
    (count,) = database.execute("SELECT count(*) FROM candidates").fetchone()
    assert count == 4
