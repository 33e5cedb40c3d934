"""Agreement before collectives: an exception on one rank of a group reaches all of them, and nobody hangs."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zsds_hpc.core.errors import PeerFailure


@contextmanager
def agree(comm: Any, what: str) -> Iterator[None]:
    """Run a block on every rank of a group; if it fails anywhere, it fails everywhere.

    The failing rank keeps its own exception; its peers raise `PeerFailure` with the message of the first.

    Parameters
    ----------
    comm : communicator or None
    what : str
        The step, for the message.
    """
    failure: BaseException | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if comm is not None:
        messages = comm.allgather(None if failure is None else f"{type(failure).__name__}: {failure}")
        told = [f"rank {rank}: {message}" for rank, message in enumerate(messages) if message is not None]
        if failure is None and told:
            raise PeerFailure(f"{what}: {told[0]}")
    if failure is not None:
        raise failure


@contextmanager
def abort_on_crash(comm: Any) -> Iterator[None]:
    """End the whole job when this rank leaves the block by an unforeseen exception."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        if comm is None:
            raise
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(75)
