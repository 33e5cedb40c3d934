"""Row slabs: frames read by rank are exchanged once, so that each rank owns all frames of its rows."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from zsds_hpc.parallel.comm import check_counts, rank_of, size_of


def shares(n_items: int, n_parts: int) -> list[slice]:
    """Contiguous shares of `n_items`, as equal as can be; some may be empty."""
    edges = [part * n_items // n_parts for part in range(n_parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def my_frames(comm: Any, n_frames: int) -> range:
    """Indices of the frames that this rank reads: contiguous, so that slabs keep the order of the frames."""
    mine = shares(n_frames, size_of(comm))[rank_of(comm)]
    return range(mine.start, mine.stop)


def to_slabs(comm: Any, frames: Sequence[np.ndarray], shape: tuple[int, int]) -> Sequence[np.ndarray]:
    """Exchange whole frames for row slabs.

    Parameters
    ----------
    comm : communicator or None
    frames : sequence of ndarray, shape (ny, nx), float32
        Frames of this rank, possibly none; the stack holds rank 0's first, then rank 1's, and so on.
    shape : tuple of int
        (ny, nx) of a frame.

    Returns
    -------
    sequence of n_frames ndarray, shape (n_rows, nx), float32
        All frames of this rank's rows, in order.
    """
    if comm is None:
        return frames
    edges = np.cumsum([0, *comm.allgather(len(frames))])
    owners = [slice(a, b) for a, b in pairwise(edges)]
    n_y, n_x = shape
    rows = shares(n_y, comm.size)
    mine = rows[comm.rank]
    slab = np.empty((int(edges[-1]), mine.stop - mine.start, n_x), np.float32)
    for turn in range(comm.size):
        to, source = (comm.rank + turn) % comm.size, (comm.rank - turn) % comm.size
        send = np.empty((len(frames), rows[to].stop - rows[to].start, n_x), np.float32)
        for k, frame in enumerate(frames):
            send[k] = frame[rows[to]]
        receive = slab[owners[source]]
        check_counts([send.size])
        check_counts([receive.size])
        comm.Sendrecv(send, dest=to, recvbuf=receive, source=source)
    return list(slab)


def gather_rows(comm: Any, slab: np.ndarray, n_y: int) -> np.ndarray:
    """Whole image on rank 0 of the group from the row slabs of all; no rows elsewhere.

    Parameters
    ----------
    slab : ndarray, shape (n_rows, nx)
    """
    if comm is None:
        return slab
    slab = np.ascontiguousarray(slab)
    n_x = slab.shape[1]
    counts = [(rows.stop - rows.start) * n_x for rows in shares(n_y, comm.size)]
    check_counts(counts)
    whole = np.empty((n_y if comm.rank == 0 else 0, n_x), slab.dtype)
    comm.Gatherv(slab, [whole, counts] if comm.rank == 0 else None, root=0)
    return whole
