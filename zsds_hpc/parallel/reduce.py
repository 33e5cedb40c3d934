"""Sums over the ranks of a group."""

from typing import Any

import numpy as np

from zsds_hpc.parallel.comm import check_counts


def add_up(comm: Any, counts: np.ndarray) -> np.ndarray:
    """Sum of the ranks' arrays of whole numbers on the first rank; elsewhere an empty array.

    Parameters
    ----------
    comm : communicator or None
    counts : ndarray of an integer type, the same shape on all ranks
        The sums must fit the type.
    """
    if comm is None:
        return counts
    check_counts([counts.size])
    counts = np.ascontiguousarray(counts)
    total = np.empty(counts.shape if comm.rank == 0 else (0,), counts.dtype)
    comm.Reduce(counts, total if comm.rank == 0 else None, root=0)
    return total
