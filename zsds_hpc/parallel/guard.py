"""Agreement before collectives: an exception on one rank of a group reaches all of them, and nobody hangs."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zsds_hpc.core import errors

_AGREED = "_agreed"


@contextmanager
def agree(comm: Any, what: str) -> Iterator[None]:
    """Run a block on every rank of a group; if it fails anywhere, it fails everywhere.

    Every rank raises the failure of the first failing rank: in its own class where that is one of the suite's,
    as `PeerFailure` otherwise (the failing rank itself raises what it met, with its traceback). `was_agreed` tells
    such an exception from one that the other ranks have not heard of.

    Parameters
    ----------
    comm : communicator or None
    what : str
        The step, for the message.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if comm is not None:
        told = comm.allgather(None if failure is None else _message(failure))
        first = next((message for message in told if message is not None), None)
        if first is not None and (failure is None or isinstance(failure, errors.ZsdsError)):
            failure = _as_told(what, *first)
    if failure is not None:
        failure.__dict__[_AGREED] = True
        raise failure


def was_agreed(error: BaseException) -> bool:
    """Whether all ranks of the group raise this error (or its like)."""
    return _AGREED in error.__dict__


def _message(failure: Exception) -> tuple[str, str, dict[str, Any]]:
    return type(failure).__name__, str(failure), getattr(failure, "figures", {})


def _as_told(what: str, kind: str, message: str, figures: dict[str, Any]) -> Exception:
    known = getattr(errors, kind, None)
    if known is errors.AlgorithmFailure:
        return errors.AlgorithmFailure(message, **figures)
    return known(message) if known is not None else errors.PeerFailure(f"{what}: {kind}: {message}")


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
