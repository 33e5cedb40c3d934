"""Communicators, and the serial case: ``comm=None`` on the same code path."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

_LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS")
MAX_COUNT = 2**31 - 1


def world() -> Any:
    """World communicator when started by an MPI launcher with more than one rank, otherwise None."""
    if not any(name in os.environ for name in _LAUNCHER_VARIABLES):
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None


def rank_of(comm: Any) -> int:
    """Rank in `comm`; 0 when serial."""
    return 0 if comm is None else comm.rank


def size_of(comm: Any) -> int:
    """Number of ranks in `comm`; 1 when serial."""
    return 1 if comm is None else comm.size


def broadcast(comm: Any, value: Any) -> Any:
    """Small Python object from rank 0 to all."""
    return value if comm is None else comm.bcast(value, root=0)


def gather(comm: Any, value: Any) -> list[Any] | None:
    """Small Python objects of all ranks on rank 0; None elsewhere."""
    return [value] if comm is None else comm.gather(value, root=0)


def groups(comm: Any, group_size: int) -> tuple[Any, int, int]:
    """Split `comm` into groups of at most `group_size` consecutive ranks.

    Returns
    -------
    group : communicator or None
        None for a group of one.
    index, n_groups : int
        Which group this rank is in, and how many there are.
    """
    if comm is None:
        return None, 0, 1
    n_groups = -(-comm.size // group_size)
    index = comm.rank * n_groups // comm.size
    group = comm.Split(color=index, key=comm.rank)
    return (group if group.size > 1 else None), index, n_groups


def check_counts(counts: Sequence[int]) -> None:
    """Counts of a buffer collective must fit MPI's 32-bit integers.

    Raises
    ------
    OverflowError
        Use more ranks, or smaller pieces.
    """
    if np.sum(counts, dtype=np.int64) > MAX_COUNT:
        raise OverflowError(f"{int(np.sum(counts, dtype=np.int64))} elements in one MPI call: use more ranks")
