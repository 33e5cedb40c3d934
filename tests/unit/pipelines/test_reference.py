"""Plans of references: what is made, what is not, versions, and a database that was lost."""

import json
from dataclasses import replace

import pytest

from tests.helpers import minirefs, night
from zsds_hpc.archive import database, paths
from zsds_hpc.archive.atomic import sha256_of
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.archive.refimages import read_template
from zsds_hpc.core.states import State
from zsds_hpc.production import cli
from zsds_hpc.settings.camera import load_camera

FEW = ("select.n_min=4", "select.seeing_min_pix=1.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("refs")
    archive, camera = minirefs.make_archive(root, 6)
    assert run(archive, camera) == 0
    return archive, camera


@pytest.fixture
def fresh(tmp_path):
    return minirefs.make_archive(tmp_path, 5)


def run(archive, camera, *sets, night_=minirefs.NIGHT):
    options = [word for text in (*FEW, *sets) for word in ("--set", text)]
    return cli.main(
        ["reference", "--archive", str(archive), "--camera", str(camera), "--night", night_, *options]
    )  # fmt: skip


def rows(archive, table=database.reference_images):
    engine = database.open_database(archive)
    try:
        return database.get(engine, table)
    finally:
        engine.dispose()


def refimg(archive, version=1):
    return archive / paths.reference(minirefs.FIELD, "zr", 6, 1, "refimg.fits", version)


def record_of(archive, version=1, night_=minirefs.NIGHT):
    return read_record(archive / paths.record("reference", night_, f"ref_000655_zr_c06_q1_v{version:03d}"))


def test_reference_is_sealed_and_entered(made):
    archive, _ = made
    (row,) = rows(archive)
    record = record_of(archive)
    assert record.state == State.DONE and len(record.outputs) == 10 and len(record.inputs) == 12
    assert row["path"] == str(refimg(archive).relative_to(archive)) and row["sha256"] == sha256_of(refimg(archive))
    assert (row["rfid"], row["version"], row["n_frames"], row["magzp"]) == (655120220, 1, 6, 26.275)
    assert row["epochs"] == [minirefs.stem_of(k) for k in range(6)] and row["usable"]
    template = read_template(refimg(archive))
    assert template.facts["jdstart"] == row["jdstart"] < row["jdend"] and template.facts["n_frames"] == 6


def test_a_second_run_makes_nothing(made, capfd):
    archive, camera = made
    before = {p: p.stat().st_mtime_ns for p in archive.rglob("ref/**/*") if p.is_file()}
    assert run(archive, camera) == 0
    assert "0 units planned" in capfd.readouterr().err
    assert run(archive, camera, "coadd.n_sigma=4.0") == 0  # other settings do not make a sealed one over
    assert {p: p.stat().st_mtime_ns for p in archive.rglob("ref/**/*") if p.is_file()} == before


@pytest.mark.parametrize("infobits", [0, 8])
def test_too_few_epochs_are_no_work(fresh, infobits):
    archive, camera = fresh
    reason = "5 images: at least 6 are needed"
    if infobits:
        sky = minirefs.random_sky(load_camera(camera))
        name = minirefs.seal_epoch(archive, load_camera(camera), sky, minirefs.Shot(7), infobits=infobits)
        reason = f"6 images, 5 good epochs; first rejected: {name}: INFOBITS [3]: at least 6 are needed"
    assert run(archive, camera, "select.n_min=6") == 0
    record = record_of(archive)
    assert record.state == State.NO_WORK and record.reason == reason
    assert not rows(archive) and not list((archive / "ref").rglob("*.fits"))
    assert run(archive, camera, "select.n_min=6", night_="20201001") == 0  # nothing new on that night: no unit
    assert record_of(archive, night_="20201001") is None


def test_rejected_epochs_have_their_reason(fresh):
    archive, camera = fresh
    sky = minirefs.random_sky(load_camera(camera))
    minirefs.seal_epoch(archive, load_camera(camera), sky, minirefs.Shot(7), infobits=8)
    assert run(archive, camera, "psf_stars_min=1000") == 0
    assert not rows(archive)[0]["usable"]
    name = minirefs.stem_of(7)
    assert record_of(archive).metrics["unit"]["rejected"] == {name: "INFOBITS [3]"}
    log = refimg(archive).with_name(refimg(archive).name.replace("refimg.fits", "log.txt")).read_text()
    assert f"rejected: {name}: INFOBITS [3]" in log and log.count("epoch: ") == 5


def test_unreadable_epoch_is_left_out_and_named(fresh):
    archive, camera = fresh
    image = next(archive.rglob(f"{minirefs.stem_of(2)}_sciimg.fits"))
    image.write_bytes(image.read_bytes()[:30000])
    assert run(archive, camera) == 0
    metrics = record_of(archive).metrics
    assert metrics["n_frames"] == 4 and len(metrics["unreadable"]) == 1 and image.name in metrics["unreadable"][0]
    assert run(archive, camera) == 0


def test_fewer_than_needed_can_be_read(fresh):
    archive, camera = fresh
    for image in list(archive.rglob("*_mskimg.fits"))[:2]:
        image.unlink()
    assert run(archive, camera) == 20
    record = record_of(archive)
    assert record.state == State.FAILED and "3 epochs, at least 4 are needed; first lost" in record.reason


def test_another_filter_is_left_out(fresh):
    archive, camera = fresh
    shot = replace(minirefs.shots(9)[8], header={"DBFID": 1})
    minirefs.seal_epoch(archive, load_camera(camera), minirefs.random_sky(load_camera(camera)), shot)
    assert run(archive, camera) == 0
    assert "DBFID = 1, the reference has 2" in record_of(archive).metrics["unreadable"][0]


def test_versions_do_not_touch_each_other(fresh):
    archive, camera = fresh
    assert run(archive, camera) == 0
    before = sha256_of(refimg(archive))
    assert run(archive, camera, "renew=true") == 0  # the same epochs: nothing new
    assert len(rows(archive)) == 1
    later = "20200925"
    minirefs.seal_epoch(
        archive, load_camera(camera), minirefs.random_sky(load_camera(camera)), minirefs.Shot(9), night_=later
    )  # fmt: skip
    assert run(archive, camera, night_=later) == 0
    assert len(rows(archive)) == 1
    assert run(archive, camera, "renew=true", night_=later) == 0
    assert sorted(row["version"] for row in rows(archive)) == [1, 2]
    assert sha256_of(refimg(archive)) == before and refimg(archive, 2).parent.name == "v002"
    assert read_template(refimg(archive, 2)).facts["rfid"] == 655121220
    first, second = (read_template(refimg(archive, v)).grid.wcs for v in (1, 2))
    assert first.crval.tolist() == second.crval.tolist() and first.crpix.tolist() == second.crpix.tolist()


def test_a_lost_database_is_filled_again(fresh):
    archive, camera = fresh
    assert run(archive, camera) == 0
    expected, before = rows(archive), sha256_of(refimg(archive))
    (archive / "zsds.sqlite").unlink()
    sky = minirefs.random_sky(load_camera(camera))
    minirefs.seal_epoch(archive, load_camera(camera), sky, minirefs.Shot(9), night_="20200925")
    assert run(archive, camera, night_="20200925") == 0
    assert json.dumps(rows(archive), sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert sha256_of(refimg(archive)) == before


def test_a_damaged_reference_is_made_again_as_it_was(fresh):
    archive, camera = fresh
    assert run(archive, camera) == 0
    expected = night.records(archive)
    refimg(archive).write_bytes(b"")
    assert run(archive, camera) == 0
    assert night.records(archive) == expected and refimg(archive).stat().st_size > 0


def test_plain_files(fresh, tmp_path, capsys):
    archive, camera = fresh
    images = [str(path) for path in sorted(archive.rglob("*_sciimg.fits"))]
    options = ["--camera", str(camera), "--out", str(tmp_path / "out"), "--set", "select.n_min=4"]
    assert cli.main(["reference", *images, *options]) == 0
    assert "n_frames = 5" in capsys.readouterr().out
    template = read_template(tmp_path / "out" / "refimg.fits")
    assert run(archive, camera) == 0
    sealed = read_template(refimg(archive))
    assert template.facts == sealed.facts and (template.coefficients == sealed.coefficients).all()
