"""A reference is the same for any number of ranks that share it, and comes whole out of a job that was killed."""

import shutil

import pytest

from tests.helpers import launch, minirefs, night
from zsds_hpc.archive.atomic import sha256_of

pytestmark = pytest.mark.mpi
UNIT = "ref_000655_zr_c06_q1"


def program(archive, camera, ranks_per_unit):
    sets = (f"ranks_per_unit={ranks_per_unit}", "select.n_min=4", "select.seeing_min_pix=1.0")
    options = [word for text in sets for word in ("--set", text)]
    return ["drivers/reference.py", "--archive", archive, "--camera", camera, "--night", minirefs.NIGHT, *options]


def products(archive):
    return {str(p.relative_to(archive)): sha256_of(p) for p in sorted((archive / "ref").rglob("*")) if p.is_file()}


def facts(archive):
    """Records without their run and without the number of ranks; rows of references."""
    records = night.records(archive)
    for record in records.values():
        record["params"].pop("ranks_per_unit", None)
        record.pop("fingerprint")
    return records, night.tables(archive)["reference_images"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    archive, camera = minirefs.make_archive(tmp_path_factory.mktemp("alone"), 7)
    done = launch.launch(0, program(archive, camera, 1), 300)
    assert done.returncode == 0, done.stderr[-3000:]
    return archive, camera


def before(alone, to):
    """Archive as it was before its reference."""
    shutil.copytree(alone[0], to, ignore=shutil.ignore_patterns("ref", "reference", "logs"))
    return to


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_any_number_of_ranks(tmp_path, alone, ranks):
    """Nine ranks are more than the seven epochs: some have none."""
    archive = before(alone, tmp_path / "archive")
    done = launch.launch(ranks, program(archive, alone[1], ranks), 300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(products(archive)) == 10 and products(archive) == products(alone[0])
    assert facts(archive) == facts(alone[0])


def test_an_epoch_that_one_rank_cannot_read(tmp_path, alone):
    """The others go on with theirs; the result is that of one rank."""
    results = []
    for ranks in (0, 3):
        archive = before(alone, tmp_path / f"archive{ranks}")
        next(archive.rglob(f"{minirefs.stem_of(4)}_sciimg.fits")).write_bytes(b"nothing")
        done = launch.launch(ranks, program(archive, alone[1], max(ranks, 1)), 300)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(products(archive))
    assert len(results[0]) == 10 and results[0] == results[1] != products(alone[0])


def test_killed_before_each_rename_of_its_commit(tmp_path, alone):
    archive = tmp_path / "archive"
    shutil.copytree(alone[0], archive)
    options = program(archive, alone[1], 1)[3:]
    crash = ["tests/helpers/crash_points.py", archive, *options, "--only", UNIT, "--pipeline", "reference"]
    done = launch.launch(0, crash, 600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) == 11  # ten products and the record
    assert products(archive) == products(alone[0]) and facts(archive) == facts(alone[0])
    assert not night.leftovers(archive)
