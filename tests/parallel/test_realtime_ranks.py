"""Products, records and rows of a searched night are the same for any number of ranks."""

import pytest

from tests.helpers import diffnight, launch, night

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks(tmp_path, diff_night, ranks):
    archive = diff_night.copy_of(diff_night.ingested, tmp_path / "archive")
    done = launch.launch(ranks, ["drivers/realtime.py", *diff_night.options(archive)], 300)
    assert done.returncode == 20 and "1 BLOCKED, 2 DONE" in done.stderr, done.stderr[-3000:]
    assert diffnight.products(archive) == diffnight.products(diff_night.searched)
    assert night.records(archive) == night.records(diff_night.searched)
    assert night.tables(archive) == night.tables(diff_night.searched)
    assert not night.leftovers(archive)
