"""`zsds transients` and the alerts driver on some ranks."""

import json
import logging

import pytest

from tests.helpers import launch
from tests.helpers.toyalerts import DEC, RA, Image, Stars, ToySky
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.ids import night_of_jd
from zsds_hpc.pipelines.alerts_image import AlertsParams
from zsds_hpc.production import cli
from zsds_hpc.production.rolloff import oldest_kept

OLD = Image(100000, [(0.0, 0.0, True), (10.0, 10.0, False)], night="20200801")
NEW = Image(300000, [(0.2, 0.0, True)])


@pytest.fixture
def sky(tmp_path):
    (tmp_path / "stars").mkdir()
    made = ToySky(tmp_path, Stars(tmp_path / "stars"))
    made.add(OLD, NEW)
    for night in ("20200801", "20200924"):
        made.run(night)
    yield made
    for handler in logging.getLogger("zsds").handlers[:]:
        handler.close()


def zsds(*words):
    return cli.main([str(word) for word in words])


def query(sky, *more):
    return zsds("transients", "query", "--archive", sky.root, "--ra", RA, "--dec", DEC, *more)


def test_query_before_and_after_roll_off(sky, capsys):
    assert query(sky) == 0
    before = capsys.readouterr().out.splitlines()
    assert before[0].startswith("2 detections of ZTF20") and len(before) == 3
    assert zsds("transients", "rolloff", "--archive", sky.root, "--night", "20200924", "--dry-run") == 0
    assert capsys.readouterr().out == "20200801\n"
    assert zsds("transients", "rolloff", "--archive", sky.root, "--night", "20200924") == 0
    assert capsys.readouterr().out == "20200801: 2 candidates, 0 streaks\n"
    query(sky)
    after = capsys.readouterr().out.splitlines()
    assert after[0] == before[0] and len(after) == 2, "the flag stays"
    query(sky, "--long-term")
    assert capsys.readouterr().out.splitlines() == before
    query(sky, "--json", "--long-term", "--radius", 20)
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["n"] == 3 and len(found["candidates"]) == 3
    assert zsds("transients", "rolloff", "--archive", sky.root, "--night", "20200924") == 0
    assert capsys.readouterr().out == ""


def test_nothing_here(sky, capsys):
    assert zsds("transients", "query", "--archive", sky.root, "--ra", 100, "--dec", -20) == 0
    assert capsys.readouterr().out == "nothing was ever detected here\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query", "--ra", "1", "--dec", "91"], "--dec within 90 degrees"),
        (["query", "--ra", "1", "--dec", "9", "--radius", "0"], "--radius up to"),
        (["query", "--ra", "nan", "--dec", "9"], "--ra within 360"),
        (["rolloff", "--night", "2020"], "not of the form YYYYMMDD"),
        (["rolloff", "--night", "20201124", "--set", "keep_days=20.0"], "keep_days 20 is less than history_days 30"),
    ],
)
def test_mistakes(tmp_path, capsys, words, message):
    assert zsds("transients", *words, "--archive", tmp_path) == 2
    assert message in capsys.readouterr().err


def test_no_archive(tmp_path, capsys):
    assert zsds("transients", "query", "--ra", 1, "--dec", 1, "--archive", tmp_path / "none") == 2
    assert "no such archive" in capsys.readouterr().err


def test_what_is_kept():
    assert oldest_kept("20200924", AlertsParams(keep_days=40.0)) == night_of_jd(2459116.5 - 40.0) == "20200815"
    with pytest.raises(UsageError, match="less than history_days"):
        oldest_kept("20200924", AlertsParams(keep_days=10.0))


@pytest.mark.mpi
def test_driver_on_three_ranks(sky, tmp_path):
    (tmp_path / "other").mkdir()
    other = ToySky(tmp_path / "other", sky.stars)
    other.add(OLD, NEW)
    for night in ("20200801", "20200924"):
        done = launch.launch(
            3,
            ["drivers/alerts.py", "--archive", other.root, "--night", night, "--camera", tmp_path / "mini.yml",
             "--refcats", sky.stars.place / "refcats"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in sky.root.glob("alerts/**/*.*")}
    assert len(made) == 4
    assert {path.name: path.read_bytes() for path in other.root.glob("alerts/**/*.*")} == made
