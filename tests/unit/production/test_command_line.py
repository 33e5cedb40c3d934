"""The command line: a user's mistake gives one line and exit code 2, never a traceback; the dry run does nothing."""

import os
import subprocess
import time

import pytest

from tests.helpers import launch, mininight
from tests.helpers.mininight import NIGHT, Raw
from zsds_hpc.production import cli

RUN = ["ingest", "--archive", "{tmp}/archive", "--night", NIGHT, "--incoming", "{tmp}/in", "--camera", "{tmp}/mini.yml"]

NIGHT_RUN = ["night", "run", NIGHT, "--archive", "{tmp}/a", "--incoming", "{tmp}/in", "--refcats", "{tmp}/r"]


@pytest.fixture
def zsds(tmp_path, capsys):
    mininight.write_camera(tmp_path / "mini.yml")

    def run(*arguments):
        try:
            code = cli.main([str(a).replace("{tmp}", str(tmp_path)) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        return code, printed.out, printed.err

    run.tmp = tmp_path
    return run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ingest", "--archive", "{tmp}/a"], 2, "give --archive and --night"),
        (["ingest", "--archive", "{tmp}/a", "--night", NIGHT], 2, "--incoming"),
        (["ingest", "--archive", "{tmp}/a", "--night", "20201301", "--incoming", "{tmp}"], 2, "20201301"),
        (["ingest", "--archive", "{tmp}/a", "--night", "../../x", "--incoming", "{tmp}"], 2, "YYYYMMDD"),
        (["ingest", "--archive", "{tmp}/a", "--night", NIGHT, "--incoming", "{tmp}/none"], 2, "no such file"),
        (["ingest", "--archive", "/proc/x", "--night", NIGHT, "--incoming", "{tmp}"], 2, "/proc/x"),
        ([*RUN, "--camera", "zft"], 2, "zft.yml: No such file"),
        ([*RUN, "--set", "preview_bin"], 2, "KEY=VALUE"),
        ([*RUN, "--set", "preview_bin=[1"], 2, "preview_bin=[1"),
        ([*RUN, "--set", "preview_bin=100"], 2, "less than or equal to 64"),
        ([*RUN, "--set", "previewbin=1"], 2, "did you mean 'preview_bin'"),
        ([*RUN, "--set", "preview_bin.x=1"], 2, "preview_bin"),
        ([*RUN, "--config", "{tmp}/none.yml"], 2, "none.yml"),
        ([*RUN, "--database", "rubbish"], 2, "rubbish"),
        ([*RUN, "--database", "sqlite:////proc/none/x.sqlite"], 75, "unable to open"),
        (["superbias", "{tmp}/a.fits"], 2, "--out"),
        (["superbias", "{tmp}/a.fits", "--out", "{tmp}/o", "--camera", "nickel"], 20, "no such file"),
        (["ingest", "{tmp}/mini.yml", "--out", "{tmp}/o"], 20, "mini.yml: not a FITS file"),
        (["ingest", "{tmp}", "--out", "{tmp}/o"], 20, "directory"),
        (["highv_flat", "{tmp}/none.fits", "--out", "{tmp}/o"], 20, "none.fits: no such file"),
        (["calibrate", "{tmp}/none.fits", "--out", "{tmp}/o"], 20, "none.fits"),
        (["night", "status", NIGHT, "--archive", "{tmp}/none"], 2, "no such archive"),
        ([*NIGHT_RUN, "--site", "mars"], 2, "mars"),
        (["night", "run", "2020", *NIGHT_RUN[3:]], 2, "YYYYMMDD"),
        (["night", "status", "2020", "--archive", "{tmp}"], 2, "YYYYMMDD"),
        (["refcat", "verify", "{tmp}/none"], 20, "none"),
        (["refcat", "build", "gaia", "{tmp}/none.csv", "--out", "{tmp}/r"], 20, "none.csv"),
        (["refcat", "build", "gaia", "{tmp}/none.csv", "--out", "{tmp}/r", "--column", "ra"], 2, "OURS=THEIRS"),
    ],
)  # fmt: skip
def test_mistake_is_one_line(zsds, arguments, code, words):
    found, _, error = zsds(*arguments)
    assert found == code, error
    assert words in error and error.count("\n") == 1 and error.startswith("zsds")


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["ingest", "--fly"], ["night"], ["night", "status"], ["refcat", "build", "x"]]
)
def test_usage_errors(zsds, arguments):
    code, _, error = zsds(*arguments)
    assert code == 2 and "error:" in error.splitlines()[-1]


@pytest.mark.parametrize("command", ["ingest", "superbias", "highv_flat", "calibrate", "night", "refcat", "scorecard"])
def test_help_ends_with_an_example(zsds, command):
    for arguments in ([], [command]):
        code, text, _ = zsds(*arguments, "--help")
        assert code == 0 and "usage: zsds" in text
    assert "example" in zsds("--help")[1]


def test_dry_run_lists_and_does_nothing(zsds):
    raws = [Raw(fracday=10_000 * i) for i in (1, 2, 3)]
    mininight.write_night(zsds.tmp / "in", raws)
    (zsds.tmp / "in" / raws[1].filename).unlink()
    code, text, _ = zsds(*RUN, "--dry-run")
    assert code == 0 and len(text.splitlines()) == 3 and text.count("has not arrived") == 1
    assert not list(zsds.tmp.glob("archive/records/*"))


def test_only_some_units(zsds):
    raws = [Raw(fracday=10_000 * i) for i in (1, 2)]
    mininight.write_night(zsds.tmp / "in", raws)
    assert zsds(*RUN, "--only", raws[1].filename[:20])[0] == 0
    assert len(list(zsds.tmp.glob("archive/records/*/*/*.json"))) == 1
    text = zsds("night", "status", NIGHT, "--archive", "{tmp}/archive", "--camera", "{tmp}/mini.yml", "--files")[1]
    assert text.splitlines()[0] == "manifest: 2 files: 1 DONE, 1 PENDING"


def test_night_run_prints_its_commands(zsds):
    code, text, _ = zsds(*NIGHT_RUN, "--ranks", "3", "--dry-run")
    lines = text.splitlines()
    names = ("ingest", "superbias", "highv_flat", "realtime", "alerts", "reference")
    assert code == 0 and len(lines) == len(names)
    assert all(f"drivers/{name}.py" in line and "-n 3" in line for name, line in zip(names, lines))
    assert "--incoming" in lines[0] and "--refcats" in lines[3] and not (zsds.tmp / "a").exists()


def test_unknown_night(zsds):
    mininight.write_night(zsds.tmp / "in", [Raw()])
    assert zsds(*RUN)[0] == 0
    code, _, error = zsds("night", "status", "20200925", "--archive", "{tmp}/archive", "--camera", "{tmp}/mini.yml")
    assert code == 2 and f"nights: {NIGHT}" in error


def test_lost_database_is_rebuilt_with_the_manifest(zsds):
    raws = [Raw(fracday=10_000 * i) for i in (1, 2, 3)]
    mininight.write_night(zsds.tmp / "in", raws, "rubbish\n")
    (zsds.tmp / "in" / raws[2].filename).unlink()
    assert zsds(*RUN)[0] == 20
    status = ["night", "status", NIGHT, "--archive", "{tmp}/archive", "--camera", "{tmp}/mini.yml", "--files"]
    before = zsds(*status)
    (zsds.tmp / "archive" / "zsds.sqlite").unlink()
    assert zsds(*status)[:2] == before[:2]


def test_watch_takes_in_what_arrives(zsds):
    raws = [Raw(fracday=10_000 * i) for i in (1, 2)]
    incoming = zsds.tmp / "in"
    contents = mininight.write_night(incoming, raws)
    late = incoming / raws[1].filename
    late.unlink()
    command = ["-m", "zsds_hpc.production.cli", "night", "run", NIGHT, "--archive", zsds.tmp / "archive", "--incoming",
               incoming, "--refcats", zsds.tmp, "--camera", zsds.tmp / "mini.yml", "--pipelines", "ingest",
               "--ranks", "1", "--watch", "--poll-s", "0.2"]  # fmt: skip
    process = subprocess.Popen(launch.command(0, command), env=launch.environment(), stderr=subprocess.PIPE, text=True)
    end = time.time() + 60
    while not list(zsds.tmp.glob("archive/records/ingest/*/*c06_o.json")) and time.time() < end:
        time.sleep(0.05)
    late.with_suffix(".part").write_bytes(contents[late.name])
    os.replace(late.with_suffix(".part"), late)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "waiting for 1 files" in error
    _, text, _ = zsds("night", "status", NIGHT, "--archive", "{tmp}/archive", "--camera", "{tmp}/mini.yml")
    assert "2 DONE" in text and "late" in text
