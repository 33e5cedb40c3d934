"""A toy pipeline whose units do what a JSON file says; also a program for mpiexec:

mpiexec -n 2 python tests/helpers/toy.py ROOT PLAN [ensemble | serial]
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import zsds_hpc.single_thread  # noqa: F401
from tests.helpers import mininight
from zsds_hpc.core import errors
from zsds_hpc.core.params import Params, param
from zsds_hpc.parallel.comm import rank_of, size_of, world
from zsds_hpc.parallel.guard import abort_on_crash, agree
from zsds_hpc.pipelines.base import Archive, Pipeline, Request, Unit
from zsds_hpc.production.runner import Job, run_pipeline
from zsds_hpc.settings.camera import load_camera

NIGHT = mininight.NIGHT
#: Where the toy pipeline writes.
OUT = f"sci/{NIGHT[:4]}/{NIGHT[4:]}"


class ToyParams(Params):
    """Settings of the toy."""

    level: int = param(1, "Goes into every product.")
    ranks_per_unit: int = param(2, "Ranks of a group.", ge=1)


def plan(archive, engine, params, request):
    """Units of the JSON file: name -> [what it does, cost]."""
    planned = json.loads(request.incoming.read_text())
    return [
        Unit(name, NIGHT, cost, {"in": name}, {"does": does}, "input x failed" if does == "blocked" else "")
        for name, (does, cost) in planned.items()
    ]


def _fail_on(rank, error, work):
    if rank_of(work.comm) == rank:
        raise error


def act(does: str, work) -> None:
    """Do what the unit's word says."""
    here = rank_of(work.comm)
    simple = {
        "no_work": errors.NoWork("nothing there"),
        "bad": errors.BadInput("f.fits[2]: truncated"),
        "fail": errors.AlgorithmFailure("no match", n_matched=3, worst=float("nan")),
        "retry": errors.Retryable("disk full"),
        "enospc": OSError(28, "No space left on device"),
        "memory": MemoryError(),
        "crash": ZeroDivisionError("two\nlines"),
    }
    if does in simple:
        raise simple[does]
    if does == "slow":
        time.sleep(0.2)
    if does == "sleep":
        time.sleep(60)
    if does == "kill" and here == size_of(work.comm) - 1:
        os.kill(os.getpid(), 9)
    if does.startswith("agreed_"):
        with agree(work.comm, "step"):
            _fail_on(1 % size_of(work.comm), simple[does.removeprefix("agreed_")], work)
    if does == "lone_crash":
        _fail_on(1, ZeroDivisionError("alone"), work)


def run_unit(unit, work, params):
    """Write two products, then do what the unit does."""
    names = [f"{OUT}/{unit.unit_id}.{part}" for part in "ab"]
    if rank_of(work.comm) == 0:
        for name in names:
            work.stage.path(name).write_text(f"{name} level {params.level}\n" * 50)
    with work.timers("act"):
        act(unit.attrs["does"], work)
    if work.comm is not None:
        assert work.comm.allreduce(1) == work.comm.size
    trace = os.environ.get("TOY_TRACE")
    if trace and rank_of(work.comm) == 0:
        with open(trace, "a") as file:
            file.write(unit.unit_id + "\n")
    return {"n": 1, "nan": float("nan")}


def catalogue(engine, camera, records):
    """Nothing to enter."""


def pipeline(ensemble: bool = False, serial: bool = False) -> Pipeline:
    """Declaration of the toy."""
    return Pipeline("toy", "a toy", (), (), ToyParams, plan, run_unit, catalogue, ensemble=ensemble, serial=serial)


def run(root: Path, planned: Path, ensemble: bool = False, comm=None, serial: bool = False, **job) -> int:
    """Run the toy; returns the exit code."""
    camera = load_camera(mininight.write_camera(root.parent / f"mini{rank_of(comm)}.yml"))
    params = job.pop("params", ToyParams())
    job_id = f"toy_{time.time_ns()}" if comm is None else comm.bcast(f"toy_{time.time_ns()}")
    launch = Job(pipeline(ensemble, serial), Archive(root, camera), params, job_id, comm, **job)
    return run_pipeline(launch, Request(NIGHT, planned))


if __name__ == "__main__":
    communicator = world()
    with abort_on_crash(communicator):
        kind = sys.argv[3:]
        code = run(Path(sys.argv[1]), Path(sys.argv[2]), kind == ["ensemble"], communicator, kind == ["serial"])
    raise SystemExit(code if rank_of(communicator) == 0 else 0)
