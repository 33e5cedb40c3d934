"""Make `tests.helpers` importable however pytest is started; inputs that many tests share."""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy: two workers with two threads each only wait)

import sys  # isort: skip
from pathlib import Path  # isort: skip

import pytest  # isort: skip

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def small_night(tmp_path_factory):
    """A small simulated night (`helpers.night.SmallNight`), made once for all workers."""
    from tests.helpers import night

    return night.small_night(night.shared_directory(tmp_path_factory))


@pytest.fixture(scope="session")
def finished_night(tmp_path_factory, small_night):
    """Archive of the small night after an undisturbed serial run; not to be changed."""
    from tests.helpers import night

    return night.finished_night(night.shared_directory(tmp_path_factory), small_night)


@pytest.fixture(scope="session")
def diff_night(tmp_path_factory):
    """A reference and a night that was searched (`helpers.diffnight.DiffNight`), made once for all workers."""
    from tests.helpers import diffnight, night

    return diffnight.diff_night(night.shared_directory(tmp_path_factory))
