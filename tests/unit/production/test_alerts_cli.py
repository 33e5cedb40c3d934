"""`zsds alerts` on a sealed night: what an operator sees, and that a mistake gives one line."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from tests.helpers import alertpackets, sealedalerts
from zsds_hpc.archive import paths
from zsds_hpc.archive.alertfiles import read_alerts, read_archive, sealed_alerts
from zsds_hpc.archive.provenance import Record
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_UNITS_FAILED, EXIT_USAGE, State
from zsds_hpc.production.cli import main

NIGHT = "20200924"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    sealedalerts.seal_night(root, NIGHT)
    return root


@pytest.fixture
def file(archive):
    return sealed_alerts(archive, NIGHT)[1][0]


def zsds(*arguments):
    return main(["alerts", *(str(argument) for argument in arguments)])


def test_show_lists_packets(file, capsys):
    assert zsds("show", file) == EXIT_CLEAN
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["candid", "objectId", "start"]
    assert [line.split()[0] for line in lines] == ["13", "11", "12"]
    assert lines[0].split()[1:] == [
        "ZTF20aaaaaab", "2020-09-24T02:57:46.598", "2", "150.123457", "-12.500000", "+", "18.250", "0.993", "1", "1"
    ]  # fmt: skip


def test_show_one_with_every_field_and_history(file, capsys):
    assert zsds("show", file, "--candid", 11) == EXIT_CLEAN
    text = capsys.readouterr().out
    for line in ("magpsf           18.25 mag\n", "magap            null\n", "candid           11\n"):
        assert line in text
    assert "18.900 +- 0.100 f" in text and text.rstrip().endswith("limit")


def test_show_as_json(file, capsys):
    assert zsds("show", file, "--json", "--candid", 12, "--candid", 13) == EXIT_CLEAN
    packets = json.loads(capsys.readouterr().out)
    assert [packet["candid"] for packet in packets] == [13, 12]
    assert "cutoutScience" not in packets[0]


def test_schema(capsys):
    assert zsds("schema") == EXIT_CLEAN
    assert json.loads(capsys.readouterr().out)["version"] == "4.02"


def test_picture(file, tmp_path):
    assert zsds("show", file, "--candid", 11, "--png", tmp_path / "look.png") == EXIT_CLEAN
    pix = np.asarray(Image.open(tmp_path / "look.png"))
    side = 4 * 63 + 8
    assert pix.shape == (side, 3 * side)
    difference = pix[4:-4, 2 * side + 4 : -4]
    assert difference[31 * 4 + 1, 31 * 4 + 1] == 255, "the candidate is the brightest"
    assert (difference[-12:] == 128).all(), "rows off the image are grey, and the first row is at the bottom"
    assert difference[:-12].std() > 20


def test_export(file, tmp_path):
    assert zsds("export", file, "--out", tmp_path / "vo", "--role", "test") == EXIT_CLEAN
    names = sorted(path.name for path in (tmp_path / "vo").iterdir())
    assert names == ["11.xml", "12.xml", "13.xml"]
    assert ET.parse(tmp_path / "vo" / "11.xml").getroot().get("role") == "test"


def test_close_makes_an_archive_for_each_program(archive, capsys, tmp_path):
    assert zsds("close", NIGHT, "--archive", archive) == EXIT_CLEAN
    said = capsys.readouterr().out
    public = archive / "alerts/2020/0924/ztf_public_20200924.tar.gz"
    assert f"{public}: 5 packets, sha256" in said and "ztf_partnership_20200924.tar.gz: 1 packets" in said
    before = public.read_bytes()
    assert zsds("close", NIGHT, "--archive", archive, "--program", 1) == EXIT_CLEAN
    assert public.read_bytes() == before
    for name, data in read_archive(public):
        (packet,) = alertpackets.TinyAvro(data).records()
        assert name == f"{packet['candid']}.avro"
    capsys.readouterr()
    assert zsds("show", public, "--candid", 21) == EXIT_CLEAN
    assert "candid           21\n" in capsys.readouterr().out
    assert len(read_alerts(sealed_alerts(archive, NIGHT)[1][0])) == 3


def test_close_tells_which_images_lack(tmp_path, capsys):
    sealedalerts.seal_night(tmp_path, NIGHT)
    Record("image_q1", "alerts", NIGHT, State.ABORTED, "f").write(tmp_path / paths.record("alerts", NIGHT, "image_q1"))
    assert zsds("close", NIGHT, "--archive", tmp_path) == EXIT_UNITS_FAILED
    said = capsys.readouterr()
    assert "5 packets" in said.out and "1 images without packets, close again after them: image_q1" in said.err


def test_dry_run_of_publish_needs_no_broker(archive, capsys):
    assert zsds("publish", NIGHT, "--archive", archive, "--dry-run") == EXIT_CLEAN
    assert "program 1: 5 packets to send, none sent" in capsys.readouterr().out


def test_settings_of_the_broker(archive, tmp_path, capsys):
    settings = tmp_path / "broker.properties"
    settings.write_text("# ours\nbootstrap.servers = 127.0.0.1:1\n\nno.such.key=1\n")
    assert zsds("publish", NIGHT, "--archive", archive, "--broker-config", settings) == EXIT_USAGE
    assert "no.such.key" in capsys.readouterr().err
    settings.write_text("bootstrap.servers\n")
    assert zsds("publish", NIGHT, "--archive", archive, "--broker-config", settings) == EXIT_USAGE
    assert "line 1: KEY = VALUE is wanted" in capsys.readouterr().err
    assert zsds("publish", NIGHT, "--archive", archive) == EXIT_USAGE
    assert "which broker?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "none.avro"], EXIT_UNITS_FAILED, "no such file"),
        (["show", "FILE", "--candid", "99"], EXIT_USAGE, "has no packet 99"),
        (["close", "20201301", "--archive", "ARCHIVE"], EXIT_USAGE, "is not a date"),
        (["close", "20200925", "--archive", "ARCHIVE"], EXIT_USAGE, "no alert packets of night 20200925"),
        (["close", NIGHT, "--archive", "ARCHIVE", "--program", "3"], EXIT_USAGE, "no packets of program 3"),
    ],
)
def test_mistakes_give_one_line(archive, file, capsys, arguments, code, message):
    known = {"FILE": str(file), "ARCHIVE": str(archive)}
    assert zsds(*(known.get(argument, argument) for argument in arguments)) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and message in said.err
