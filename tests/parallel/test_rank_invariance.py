"""Products, records and database of a night are the same for any number of ranks."""

import pytest

from tests.helpers import night

pytestmark = pytest.mark.mpi


def same_as(finished, archive):
    """Hash by hash, record by record, row by row."""
    assert night.products(archive) == night.products(finished)
    assert night.records(archive) == night.records(finished)
    assert night.tables(archive) == night.tables(finished)
    assert not night.leftovers(archive)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_whole_night(tmp_path, small_night, finished_night, ranks):
    done = night.whole_night(ranks, tmp_path / "archive", small_night)
    assert done.returncode == 0, done.stderr[-3000:]
    same_as(finished_night, tmp_path / "archive")


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_that_share_a_stack(tmp_path, small_night, finished_night, size):
    """Three ranks as three groups of one, and as one group; the default, groups of two, is what others run."""
    archive = night.ingested_copy(finished_night, tmp_path / "archive")
    options = ["--pipelines", "superbias", "highv_flat", "--set", f"ranks_per_unit={size}"]
    done = night.whole_night(3, archive, small_night, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    made = night.products(archive)
    assert made and made == {k: v for k, v in night.products(finished_night).items() if not k.startswith("sci/")}
