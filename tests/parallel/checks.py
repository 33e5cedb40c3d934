"""Program for mpiexec: many small checks of the parallel room in one launch; prints `ok NAME` from rank 0."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pytest

from zsds_hpc.core import errors
from zsds_hpc.parallel import comm as mpi
from zsds_hpc.parallel import guard, logs, slabs, timers
from zsds_hpc.parallel.distribute import Dispatcher

comm = mpi.world()
rank, size = mpi.rank_of(comm), mpi.size_of(comm)


def stack_of(n_frames, n_y, n_x):
    return np.random.default_rng(n_frames).normal(size=(n_frames, n_y, n_x)).astype(np.float32)


def check_slabs():
    """Also with fewer frames or rows than ranks."""
    for n_frames, n_y, n_x in ((7, 11, 5), (1, 3, 4), (2, 1, 9), (0, 4, 4), (20, 80, 96)):
        whole = stack_of(n_frames, n_y, n_x)
        mine = slabs.my_frames(comm, n_frames)
        before = whole[mine.start : mine.stop].copy()
        slab = slabs.to_slabs(comm, whole[mine.start : mine.stop], whole.shape[1:])
        rows = slabs.shares(n_y, size)[rank]
        slab = np.array(slab, np.float32).reshape(n_frames, len(range(*rows.indices(n_y))), n_x)
        assert np.array_equal(slab, whole[:, rows])
        assert np.array_equal(before, whole[mine.start : mine.stop])
        for image in (slab.sum(axis=0), (slab > 0).sum(axis=0, dtype=np.int16)):
            gathered = slabs.gather_rows(comm, image, n_y)
            assert len(gathered) == (n_y if rank == 0 else 0)
            if rank == 0:
                expected = whole.sum(axis=0) if image.dtype == np.float32 else (whole > 0).sum(axis=0)
                assert np.array_equal(gathered, expected) and gathered.dtype == image.dtype


def check_frames_are_shared():
    for n_frames in (0, 1, 4, 13):
        lists = mpi.gather(comm, list(slabs.my_frames(comm, n_frames)))
        if rank == 0:
            assert [i for part in lists for i in part] == list(range(n_frames))
            assert max(map(len, lists)) - min(map(len, lists)) <= 1


def dispatched(n_units, work, stopped=lambda: False):
    results = {}

    def take(index, result):
        assert rank == 0 and index not in results
        results[index] = result

    Dispatcher(comm, n_units, take, stopped).run(work)
    return results


def check_dispatcher():
    for n_units in (0, 1, size, 40):
        results = dispatched(n_units, lambda index: (index**2, rank))
        if rank == 0:
            assert {i: r[0] for i, r in results.items()} == {i: i**2 for i in range(n_units)}


def check_every_rank_works():
    results = dispatched(6 * size, lambda index: (time.sleep(0.03), rank)[1])
    if rank == 0:
        assert set(results.values()) == set(range(size))


def check_dispatcher_stops():
    seen = []
    results = dispatched(1000, lambda index: (seen.append(index), time.sleep(0.001)), lambda: len(seen) >= 5)
    if rank == 0:
        assert 5 <= len(results) < 900


def check_agree():
    with guard.agree(comm, "quiet"):
        pass
    for failing in range(size):
        for error, expected in (
            (errors.BadInput("x"), errors.BadInput), (errors.AlgorithmFailure("x", n=3), errors.AlgorithmFailure),
            (errors.NoWork("x"), errors.NoWork), (errors.Retryable("x"), errors.Retryable),
            (KeyError("k"), KeyError if rank == failing else errors.PeerFailure),
        ):  # fmt: skip
            with pytest.raises(expected) as caught, guard.agree(comm, "step"):
                if rank == failing:
                    raise error
            assert guard.was_agreed(caught.value)
            if expected is errors.AlgorithmFailure:
                assert caught.value.figures == {"n": 3}
    with pytest.raises(errors.BadInput, match="rank 0"), guard.agree(comm, "all fail"):
        raise errors.BadInput(f"rank {rank}")


def check_groups():
    for group_size in (1, 2, 3, 100):
        group, index, n_groups = mpi.groups(comm, group_size)
        members = mpi.gather(comm, (index, mpi.rank_of(group), mpi.size_of(group)))
        assert mpi.size_of(group) <= group_size
        if rank == 0:
            assert sorted({m[0] for m in members}) == list(range(n_groups))
            assert [m[0] for m in members] == sorted(m[0] for m in members)


def check_timers():
    table = timers.over_ranks(comm, {"step": float(rank), f"only{rank}": 1.0})
    assert (table is None) == (rank != 0)
    if rank == 0:
        assert table["step"] == (0.0, (size - 1) / 2, size - 1.0)
        assert table["only0"][2] == 1.0 and table["only0"][1] == 1.0 / size


def check_logs():
    place = Path(sys.argv[1]) / "logs" / "job"
    log = logs.start_log(place, comm, console=False)
    for turn in range(3):
        mpi.gather(comm, log.info("turn %d", turn))
        time.sleep(0.005)
        mpi.broadcast(comm, None)
    mpi.gather(comm, None)
    mpi.broadcast(comm, None)
    if rank == 0:
        lines = logs.merge_logs(place).read_text().splitlines()
        assert len(lines) == 3 * size and [line[:23] for line in lines] == sorted(line[:23] for line in lines)
        assert {line.split()[1] for line in lines} == {f"{r:04d}" for r in range(size)}


if __name__ == "__main__":
    with guard.abort_on_crash(comm):
        for name, check in sorted(globals().items()):
            if name.startswith("check_") and callable(check):
                check()
                mpi.gather(comm, None)
                if rank == 0:
                    print("ok", name, size, flush=True)
