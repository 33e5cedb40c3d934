"""The runner: plans on rank 0, hands units out, catches every error of a unit in one place, seals records.

A unit ends in exactly one state. Its products are renamed into place first and its record is written last, so a
killed job leaves either a whole sealed unit or nothing that counts.
"""

import os
import resource
import signal
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zsds_hpc import __version__
from zsds_hpc.archive import paths
from zsds_hpc.archive.atomic import Seal, Staging, passing_faults, remove_leftovers
from zsds_hpc.archive.provenance import Record, digest_of, fingerprint_of, outputs_hold, plain, read_record
from zsds_hpc.core.errors import AlgorithmFailure, BadInput, NoWork, PeerFailure, Retryable
from zsds_hpc.core.params import Params
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_RETRY, EXIT_UNITS_FAILED, FINAL, State
from zsds_hpc.parallel import comm as mpi
from zsds_hpc.parallel.distribute import Dispatcher
from zsds_hpc.parallel.guard import agree, was_agreed
from zsds_hpc.parallel.logs import merge_logs, start_log
from zsds_hpc.parallel.timers import Timers, over_ranks
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit, Work

_BATCH = 200


@dataclass
class Job:
    """One launch of one pipeline: everything that its units share."""

    pipeline: Pipeline
    archive: Archive
    params: Params
    job_id: str
    comm: Any = None
    max_unforeseen: int = 20
    retry_failed: bool = False
    trust_sizes: bool = False
    #: Of the pipeline that this one continues.
    before: "Job | None" = None
    cpu_s: dict[str, float] = field(default_factory=dict)
    log: Any = None

    def __post_init__(self) -> None:
        #: Parameters in full, and the camera's: with the inputs they decide the products.
        self.settings = {**self.params.model_dump(mode="json"), "camera": digest_of(self.archive.camera.model_dump())}
        if self.log is None:
            self.log = start_log(self.archive.path(paths.logs(self.job_id)), self.comm)


def run_pipeline(job: Job, request: Request) -> int:
    """Plan, run and record all units of a request; collective over the job's ranks.

    Returns
    -------
    int
        Exit code: 0 clean, 20 some units failed and would fail again, 75 worth retrying.
    """
    units, engine = [], None
    with agree(job.comm, "planning"):
        if mpi.rank_of(job.comm) == 0:
            engine = job.archive.engine()
            places = paths.places(job.pipeline.name, request.night)
            n_removed = sum(remove_leftovers(job.archive.path(place)) for place in places)
            units = _ordered(job.pipeline, planned(job, engine, request), request)
            job.log.info("%s: %d units planned, %d leftovers removed", job.pipeline.name, len(units), n_removed)
    units = mpi.broadcast(job.comm, units)
    tally = _Tally(job, engine, len(units))
    runner = _run_ensembles if job.pipeline.ensemble else _run_serial if job.pipeline.serial else _run_single
    runner(job, units, tally)
    code = mpi.broadcast(job.comm, tally.finish() if mpi.rank_of(job.comm) == 0 else None)
    _report_steps(job)
    return code


def planned(job: Job, engine: Any, request: Request) -> list[Unit]:
    """Units of a job, those of the pipeline that it continues put before them."""
    units = job.pipeline.plan(job.archive, engine, job.params, request)
    if job.before is None:
        return units
    firsts = {unit.unit_id: unit for unit in job.before.pipeline.plan(job.archive, engine, job.before.params, request)}
    return [replace(unit, first=firsts.get(unit.unit_id)) for unit in units]


def _ordered(pipeline: Pipeline, units: list[Unit], request: Request) -> list[Unit]:
    kept = [unit for unit in units if request.keeps(unit)]
    return kept if pipeline.serial else sorted(kept, key=lambda u: (-u.cost, u.unit_id))


def _run_single(job: Job, units: list[Unit], tally: "_Tally") -> None:
    stop = _StopSignal()
    dispatcher = Dispatcher(job.comm, len(units), tally.add, lambda: stop.set or tally.too_many_unforeseen)
    dispatcher.run(lambda index: run_unit(job, units[index], None))
    stop.restore()


def _run_serial(job: Job, units: list[Unit], tally: "_Tally") -> None:
    stop = _StopSignal()
    for index, unit in enumerate(units if mpi.rank_of(job.comm) == 0 else []):
        result = run_unit(job, unit, None)
        tally.add(index, result)
        if stop.set or tally.too_many_unforeseen or result["record"].state == State.ABORTED:
            break
    stop.restore()


def _run_ensembles(job: Job, units: list[Unit], tally: "_Tally") -> None:
    stop, mine = _StopSignal(), []
    group, index, n_groups = mpi.groups(job.comm, getattr(job.params, "ranks_per_unit", 1))
    n_unforeseen = 0
    for i in range(index, len(units), n_groups):
        if mpi.broadcast(group, stop.set or n_unforeseen > job.max_unforeseen):
            break
        mine.append((i, run_unit(job, units[i], group)))
        n_unforeseen += mine[-1][1]["record"].metrics.get("unforeseen", 0)
    stop.restore()
    if mpi.rank_of(group) != 0:
        mine = []
    for results in mpi.gather(job.comm, mine) or []:
        for i, result in results:
            tally.add(i, result)


def run_unit(job: Job, unit: Unit, group: Any, carry: dict[str, Any] | None = None) -> dict[str, Any]:
    """Bring one unit to one state and seal its record; returns a compact result for rank 0.

    Parameters
    ----------
    group : communicator or None
        Ranks that share the unit; only the first of them writes.
    carry : dict, optional
        What the unit that this one continues has left in memory; what this one leaves is added.

    Returns
    -------
    dict
        ``record``; ``new``, False if it was sealed before; ``first``, the same of the unit that this one continues.
    """
    carry = {} if carry is None else carry
    if job.before is None:
        return _run_one(job, unit, group, carry)
    if unit.first is None:
        return _run_one(job, replace(unit, blocked_by=f"no unit of {job.before.pipeline.name}"), group, carry)
    first = run_unit(job.before, unit.first, group, carry)
    for step, seconds in job.before.cpu_s.items():
        job.cpu_s[step] = job.cpu_s.get(step, 0.0) + seconds
    job.before.cpu_s.clear()
    return {**_run_one(job, _continued(unit, first["record"]), group, carry), "first": first}


def _continued(unit: Unit, first: Record) -> Unit:
    """The unit with the products of the one before among its inputs, or blocked by its state."""
    if first.state != State.DONE:
        return replace(unit, blocked_by=f"{first.pipeline} is {first.state}: {first.reason}")
    made = {path: seal.sha256 for path, seal in first.outputs.items()}
    return replace(unit, inputs={**unit.inputs, **made})


def _run_one(job: Job, unit: Unit, group: Any, carry: dict[str, Any]) -> dict[str, Any]:
    fingerprint = fingerprint_of(job.pipeline.name, job.settings, dict(unit.inputs))
    record_path = job.archive.path(paths.record(job.pipeline.name, unit.night, unit.unit_id))
    sealed = mpi.broadcast(group, _sealed_before(job, unit, record_path, fingerprint, group))
    if sealed is not None:
        return {"record": sealed, "new": False}
    stage, timers, started = Staging(job.archive.root), Timers(), time.time()
    work = Work(job.archive, stage, timers, job.log, group, carry)
    state, reason, metrics = _outcome(job, unit, work)
    record = Record(
        unit.unit_id, job.pipeline.name, unit.night, state, fingerprint, reason, dict(unit.inputs), {}, job.settings,
        plain(metrics), timers.rounded(), _run_facts(job, started),
    )  # fmt: skip
    if mpi.rank_of(group) == 0:
        record = _commit(job, stage, record, record_path)
    else:
        stage.discard()
    for step, seconds in timers.cpu_s.items():
        job.cpu_s[step] = job.cpu_s.get(step, 0.0) + seconds
    return {"record": record, "new": True}


def _sealed_before(job: Job, unit: Unit, record_path: Path, fingerprint: str, group: Any) -> Record | None:
    """Record of a former run that still holds; looked up by the first rank of the group."""
    if mpi.rank_of(group) != 0:
        return None
    record = read_record(record_path)
    if record is None or record.state not in FINAL:
        return None
    if record.fingerprint != fingerprint and not (unit.blocked_by and record.state == State.DONE):
        return None
    if (job.retry_failed or job.pipeline.retries_bad_input) and record.state in (State.FAILED, State.UNPROCESSABLE):
        return None
    wrong = outputs_hold(job.archive.root, record, rehash=not job.trust_sizes)
    if wrong:
        job.log.warning("%s: %s; made again", record.unit_id, wrong)
        return None
    return record


def _outcome(job: Job, unit: Unit, work: Work) -> tuple[State, str, dict[str, Any]]:
    """Run the pipeline's own code; the only place where a unit's errors are caught."""
    if unit.blocked_by:
        return State.BLOCKED, unit.blocked_by, {}
    try:
        with passing_faults(unit.unit_id):
            metrics = job.pipeline.run_unit(unit, work, job.params)
        return State.DONE, "", metrics
    except NoWork as error:
        return State.NO_WORK, str(error), {}
    except BadInput as error:
        return State.UNPROCESSABLE, str(error), {}
    except AlgorithmFailure as error:
        return State.FAILED, str(error), dict(error.figures)
    except (Retryable, MemoryError) as error:
        return State.ABORTED, str(error) or "out of memory", {}
    except PeerFailure as error:
        return State.FAILED, f"unforeseen: {_one_line(error)}", {"unforeseen": 1}
    except Exception as error:
        job.log.exception("%s: unforeseen error", unit.unit_id)
        if work.comm is not None and not was_agreed(error):
            raise  # the other ranks of the group wait in a collective: only the end of the job frees them
        return State.FAILED, f"unforeseen {type(error).__name__}: {_one_line(error)}", {"unforeseen": 1}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _commit(job: Job, stage: Staging, record: Record, record_path: Any) -> Record:
    seals: dict[str, Seal] = {}
    try:
        if record.state == State.DONE:
            seals = stage.seal()
        else:
            stage.discard()
        sealed = Record(**{**record.__dict__, "outputs": seals})
        sealed.write(record_path)
        return sealed
    except (Retryable, OSError) as error:
        stage.discard()
        job.log.error("%s: cannot be sealed: %s", record.unit_id, error)
        return Record(**{**record.__dict__, "state": State.ABORTED, "reason": f"cannot be sealed: {error}"})


def _run_facts(job: Job, started: float) -> dict[str, Any]:
    return {
        "job": job.job_id,
        "host": socket.gethostname(),
        "rank": mpi.rank_of(job.comm),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_s": round(time.time() - started, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "software": __version__,
    }


class _StopSignal:
    """SIGTERM and SIGUSR1 mean: finish the unit at hand, seal it, hand out no more."""

    def __init__(self) -> None:
        self.set = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _note(self, *_: Any) -> None:
        self.set = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Tally:
    """Rank 0's count of states, its progress lines, and its batched writes to the database."""

    def __init__(self, job: Job, engine: Any, n_units: int):
        self._job, self._engine, self._n_units = job, engine, n_units
        self._counts: dict[State, int] = {}
        self._batches: dict[str, tuple[Pipeline, list[Record]]] = {}
        self._n_sealed_before = self._n_done = self._n_unforeseen = 0
        self._is_behind = False
        self._every = max(1, n_units // 10)

    @property
    def too_many_unforeseen(self) -> bool:
        return self._n_unforeseen > self._job.max_unforeseen

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Take in one unit's result."""
        record: Record = result["record"]
        self._counts[record.state] = self._counts.get(record.state, 0) + 1
        self._n_done += 1
        self._n_sealed_before += not result["new"]
        self._note(self._job.pipeline, record)
        if "first" in result and self._job.before is not None:
            self._note(self._job.before.pipeline, result["first"]["record"])
        if any(len(batch) >= _BATCH for _, batch in self._batches.values()):
            self._flush()
        if self._n_done % self._every == 0:
            self._job.log.info("%s: %d of %d units", self._job.pipeline.name, self._n_done, self._n_units)

    def _note(self, pipeline: Pipeline, record: Record) -> None:
        self._n_unforeseen += record.metrics.get("unforeseen", 0)
        self._is_behind |= record.state == State.ABORTED
        if record.state not in (State.DONE, State.NO_WORK):
            self._job.log.warning("%s %s %s: %s", record.state, pipeline.name, record.unit_id, record.reason)
        self._batches.setdefault(pipeline.name, (pipeline, []))[1].append(record)

    def _flush(self) -> None:
        from zsds_hpc.production.bookkeeping import enter_records

        for pipeline, batch in self._batches.values():
            try:
                enter_records(self._engine, self._job.archive.camera, pipeline, batch)
            except Retryable as error:  # the records are sealed: a rerun enters them
                self._job.log.error("%d records not entered: %s", len(batch), error)
                self._is_behind = True
        self._batches = {}

    def finish(self) -> int:
        """Write what is left, log the sum, return the exit code."""
        self._flush()
        states = ", ".join(f"{count} {state}" for state, count in sorted(self._counts.items())) or "no units"
        self._job.log.info("%s: %s (%d were sealed before)", self._job.pipeline.name, states, self._n_sealed_before)
        if self._n_done < self._n_units or self._is_behind or self.too_many_unforeseen:
            return EXIT_RETRY
        bad = {State.FAILED, State.UNPROCESSABLE, State.BLOCKED}
        return EXIT_UNITS_FAILED if bad & set(self._counts) else EXIT_CLEAN


def _report_steps(job: Job) -> None:
    table = over_ranks(job.comm, job.cpu_s)
    if table:
        for step, (least, mean, most) in table.items():
            job.log.info("CPU s %-24s min %8.2f mean %8.2f max %8.2f", step, least, mean, most)
    if mpi.rank_of(job.comm) == 0:
        merge_logs(job.archive.path(paths.logs(job.job_id)))
