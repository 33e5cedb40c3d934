"""Row slabs: frames read by rank are exchanged once, so that each rank owns all frames of its rows."""

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


def to_slabs(comm: Any, frames: np.ndarray) -> np.ndarray:
    """Exchange whole frames for row slabs.

    Parameters
    ----------
    comm : communicator or None
    frames : ndarray, shape (n_mine, ny, nx), float32
        Frames of this rank, possibly none; the stack holds rank 0's first, then rank 1's, and so on.

    Returns
    -------
    ndarray, shape (n_frames, n_rows, nx), float32
        All frames of this rank's rows, in order.
    """
    if comm is None:
        return frames
    edges = np.cumsum([0, *comm.allgather(len(frames))])
    owners = [slice(a, b) for a, b in pairwise(edges)]
    n_y, n_x = frames.shape[1:]
    rows = shares(n_y, comm.size)
    mine = rows[comm.rank]
    slab = np.empty((int(edges[-1]), mine.stop - mine.start, n_x), np.float32)
    for turn in range(comm.size):
        to, source = (comm.rank + turn) % comm.size, (comm.rank - turn) % comm.size
        send = np.ascontiguousarray(frames[:, rows[to]])
        receive = slab[owners[source]]
        check_counts([send.size])
        check_counts([receive.size])
        comm.Sendrecv(send, dest=to, recvbuf=receive, source=source)
    return slab


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


def broadcast_image(comm: Any, image: np.ndarray | None, shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """Image of rank 0 on every rank of the group."""
    if comm is None:
        assert image is not None
        return image
    buffer = np.ascontiguousarray(image) if comm.rank == 0 else np.empty(shape, dtype)
    check_counts([buffer.size])
    comm.Bcast(buffer, root=0)
    return buffer
