"""Units handed out dynamically, costliest first; every rank works, rank 0 too.

A thread on rank 0 answers requests between its own units, so no core is spent on a master. Each request carries the
compact result of the previous unit, so rank 0 hears of it at once.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

_ASK, _GIVE = 11, 12
_NO_MORE = -1
_POLL_S = 0.002


class _Counter:
    """Next index under a lock, until the end or until the job is told to stop."""

    def __init__(self, n_units: int, stopped: Callable[[], bool]):
        self._next, self._n_units, self._stopped, self._lock = 0, n_units, stopped, threading.Lock()

    def take(self) -> int:
        with self._lock:
            if self._next >= self._n_units or self._stopped():
                return _NO_MORE
            self._next += 1
            return self._next - 1


class Dispatcher:
    """Hands out indices 0 .. n_units-1, each once, to the ranks of `comm`.

    Parameters
    ----------
    comm : communicator or None
    n_units : int
    on_result : callable
        Called on rank 0 with (index, result) for each finished unit, never concurrently.
    stopped : callable, optional
        When it returns True on rank 0 no more units are handed out.
    """

    def __init__(
        self,
        comm: Any,
        n_units: int,
        on_result: Callable[[int, Any], None],
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._comm: Any = None if comm is None else comm.Dup()
        self._counter = _Counter(n_units, stopped)
        self._on_result, self._result_lock = on_result, threading.Lock()
        self._failure: BaseException | None = None

    def run(self, work: Callable[[int], Any]) -> None:
        """Call `work(index)` for the indices that fall to this rank; return when all ranks are through."""
        server = None
        if self._comm is not None and self._comm.rank == 0:
            server = threading.Thread(target=self._serve, daemon=True)
            server.start()
        if self._comm is None or self._comm.rank == 0:
            self._work_here(work)
        else:
            self._work_for_rank_0(work)
        if server is not None:
            server.join()
        if self._comm is not None:
            self._comm.Free()
        if self._failure is not None:
            raise self._failure

    def _work_here(self, work: Callable[[int], Any]) -> None:
        while (index := self._counter.take()) != _NO_MORE:
            self._deliver(index, work(index))

    def _work_for_rank_0(self, work: Callable[[int], Any]) -> None:
        message: Any = None
        while True:
            self._comm.send(message, dest=0, tag=_ASK)
            index = self._receive(0, _GIVE)
            if index == _NO_MORE:
                return
            message = (index, work(index))

    def _deliver(self, index: int, result: Any) -> None:
        with self._result_lock:
            self._on_result(index, result)

    def _receive(self, source: int, tag: int) -> Any:
        while not self._comm.Iprobe(source=source, tag=tag):
            time.sleep(_POLL_S)
        return self._comm.recv(source=source, tag=tag)

    def _serve(self) -> None:
        from mpi4py import MPI

        status, n_open = MPI.Status(), self._comm.size - 1
        while n_open:
            if not self._comm.Iprobe(source=MPI.ANY_SOURCE, tag=_ASK, status=status):
                time.sleep(_POLL_S)
                continue
            source = status.Get_source()
            message = self._comm.recv(source=source, tag=_ASK)
            try:
                if message is not None:
                    self._deliver(*message)
            except Exception as error:
                self._failure = error
            index = self._counter.take()
            n_open -= index == _NO_MORE
            self._comm.send(index, dest=source, tag=_GIVE)
