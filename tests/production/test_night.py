"""A whole night through the command line: what the operator starts, sees and gets."""

import json
import shutil
import subprocess
import time

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers import launch, night
from zsds_hpc.production import cli

SUFFIXES = (
    "sciimg.fits",
    "sciimg.psf",
    "mskimg.fits",
    "sexcat.fits",
    "psfcat.fits",
    "log.txt",
    "preview.jpg",
)
MANIFEST = f"ztf_{night.NIGHT}_manifest.txt"


def zsds(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def finished(finished_night, small_night):
    """Words of `zsds night status` for the finished night."""
    return ["night", "status", night.NIGHT, "--archive", finished_night, "--camera", small_night.camera]


def test_status_accounts_for_every_file(finished, small_night, capsys):
    assert zsds(*finished) == 0
    text = capsys.readouterr().out
    assert f"manifest: {night.N_RAW} files: {night.N_RAW} DONE" in text
    for name, n_units in (("ingest", 20), ("superbias", 4), ("highv_flat", 8), ("calibrate", 8)):
        assert f"{name}: {n_units} units: {n_units} DONE" in text
    assert zsds(*finished, "--files") == 0
    listed = capsys.readouterr().out
    assert all(line.split()[-1] in listed for line in (small_night.incoming / MANIFEST).read_text().splitlines())


def test_every_product_is_there(finished_night):
    made = night.products(finished_night)
    science = [name for name in made if name.startswith("sci/")]
    stems = {name.rsplit("_", 1)[0] for name in science}
    assert len(stems) == 4 * night.N_SCIENCE
    assert sorted(science) == sorted(f"{stem}_{suffix}" for stem in stems for suffix in SUFFIXES)
    assert sum(name.startswith("cal/") for name in made) == 4 * 3 + 8 * 3
    assert sum(name.endswith("_raw.fits") for name in made) == 4 * night.N_RAW
    logs = list(finished_night.glob("logs/*.log"))
    assert len(logs) == 6 and all("units planned" in log.read_text() for log in logs)


def test_every_channel_is_calibrated(finished_night):
    headers = [fits.getheader(path) for path in sorted(finished_night.rglob("*sciimg.fits"))]
    assert len(headers) == 4 * night.N_SCIENCE
    for header in headers:
        assert header["CALBIAS"].endswith("_bias.fits") and header["CALHIFLT"].endswith("_hifreqflat.fits")
        assert header["ASTROMN"] >= 100 and header["ASTRRMS1"] * 3600 < 0.2 and header["NMATCHES"] >= 30
        assert header["SEEING"] == pytest.approx(2.2, abs=0.4) and 20 < header["MAGLIM"] < 22


def test_scorecard(finished_night, small_night, tmp_path):
    """The scorecard reads a night of another camera. Its targets are for whole channels: a flat's surface of degree 6
    follows dust rings in 512 px, and a zero point rests on a fortieth of the stars, so most are looser here."""
    (tmp_path / "archive").symlink_to(finished_night)
    (tmp_path / "sky").symlink_to(small_night.root / "sky")
    done = launch.launch(0, ["-m", "zsds_hpc.production.cli", "scorecard", tmp_path, "--json"], 120)
    assert done.returncode in (0, 20), done.stderr
    card = json.loads(done.stdout)
    assert all({"value", "target", "ok"} <= set(metric) for metric in card.values())
    value = {name: metric["value"] for name, metric in card.items()}
    for name in ("files_unexplained", "units_not_done", "science_images_missing"):
        assert value[name] == 0
    assert value["superbias_residual_over_noise"] < 1.1
    assert value["star_position_rms_mas"] < 60 and value["map_error_few_stars_mas"] < 5
    assert value["completeness_snr10"] > 0.95 and value["spurious_fraction"] < 0.05
    assert value["cosmic_ray_recall"] > 0.9 and value["saturation_recall"] > 0.99
    assert value["zero_point_worst_mmag"] < 30
    assert (tmp_path / "report" / "index.html").is_file()


def test_usage_errors_are_one_line(finished_night, small_night, tmp_path, capfd):
    camera = ["--camera", small_night.camera]
    run = ["night", "run", night.NIGHT, "--archive", tmp_path / "archive", "--ranks", 1, *camera]
    nothing = ["--incoming", tmp_path, "--refcats", small_night.refcats]
    cases = [
        (["night", "status", "20200925", "--archive", finished_night, *camera], "nights: 20200924"),
        (["night", "status", night.NIGHT, "--archive", tmp_path / "none", *camera], "no such archive"),
        ([*run, *nothing, "--pipelines", "ingest"], MANIFEST),
        ([*run, "--incoming", tmp_path / "none", "--refcats", small_night.refcats, "--watch"], "no such directory"),
    ]
    for words, told in cases:
        assert zsds(*words) == 2
        error = capfd.readouterr().err
        assert told in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_dry_run_starts_nothing(small_night, tmp_path, capsys):
    words = ["night", "run", night.NIGHT, "--archive", tmp_path / "archive", *night.archive_options(small_night)]
    assert zsds(*words, "--ranks", 2, "--dry-run") == 0
    commands = capsys.readouterr().out.splitlines()
    assert [command.split("drivers/")[1].split(".py")[0] for command in commands] == [
        "ingest", "superbias", "highv_flat", "realtime", "alerts", "reference"
    ]  # fmt: skip
    assert not (tmp_path / "archive").exists()


@pytest.mark.mpi
def test_watch_completes_the_night_by_itself(small_night, finished_night, tmp_path):
    """Files come in any order, one in two halves; the manifest comes late and grows, its last line in two halves."""
    incoming, archive = tmp_path / "incoming", tmp_path / "archive"
    incoming.mkdir()
    lines = (small_night.incoming / MANIFEST).read_text().splitlines(keepends=True)
    rng = np.random.default_rng(5)
    lines = [lines[i] for i in rng.permutation(len(lines))]
    files = [line.split()[-1] for line in lines]
    program = ["-m", "zsds_hpc.production.cli", "night", "run", night.NIGHT, "--archive", archive, "--camera"]
    program += [small_night.camera, "--incoming", incoming, "--refcats", small_night.refcats, "--ranks", 1]
    with open(tmp_path / "watch.log", "w") as log:
        watcher = subprocess.Popen(
            launch.command(0, [*program, "--watch", "--poll-s", 1]), cwd=launch.ROOT, env=launch.environment(),
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deliver(files[:6], small_night.incoming, incoming)
        grow(incoming / MANIFEST, "".join(lines[:12])[:-20])
        wait_until(lambda: n_sealed(archive) >= 6, watcher)
        half = (small_night.incoming / files[12]).read_bytes()
        (incoming / files[12]).write_bytes(half[: len(half) // 2])
        grow(incoming / MANIFEST, (small_night.incoming / MANIFEST).read_text())
        deliver(files[6:12] + files[13:], small_night.incoming, incoming)
        wait_until(lambda: n_sealed(archive) >= night.N_RAW - 1, watcher)
        deliver(files[12:13], small_night.incoming, incoming)
        assert watcher.wait(timeout=300) == 0, (tmp_path / "watch.log").read_text()[-3000:]
    finally:
        watcher.kill()
        watcher.wait()
    assert night.products(archive) == night.products(finished_night)
    assert {row for row in night.tables(archive)["manifest_files"] if "late" not in row} <= set(
        night.tables(finished_night)["manifest_files"]
    )
    assert zsds("night", "status", night.NIGHT, "--archive", archive, "--camera", small_night.camera) == 0


def deliver(names, source, target):
    for name in names:
        shutil.copy(source / name, target / name)


def grow(path, text):
    """A longer manifest, written in place as a camera would append to it."""
    path.write_text(text)


def n_sealed(archive):
    return sum('"state": "DONE"' in path.read_text() for path in archive.glob("records/ingest/*/*.json"))


def wait_until(condition, watcher, seconds=150.0):
    end = time.monotonic() + seconds
    while not condition():
        assert watcher.poll() is None and time.monotonic() < end
        time.sleep(0.05)
