"""What every driver does: parse, load settings, get the communicator, run, exit with the job's code."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from zsds_hpc.core.errors import Retryable, UsageError, ZsdsError
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_RETRY, EXIT_USAGE
from zsds_hpc.parallel.comm import broadcast, rank_of, world
from zsds_hpc.parallel.guard import abort_on_crash, agree, was_agreed
from zsds_hpc.pipelines.base import Archive, Pipeline, Request
from zsds_hpc.pipelines.registry import get_pipeline
from zsds_hpc.production.runner import Job, run_pipeline
from zsds_hpc.settings.camera import load_camera
from zsds_hpc.settings.load import CONFIG_DIR, load_params, parse_yaml


def add_archive_options(parser: argparse.ArgumentParser) -> None:
    """Options that every pipeline takes when it works on an archive."""
    parser.add_argument("--archive", type=Path, metavar="DIR", help="root of the product tree and its database")
    parser.add_argument("--night", metavar="YYYYMMDD", help="night to work on")
    parser.add_argument("--incoming", type=Path, metavar="DIR", help="where the camera's files arrive (ingest)")
    parser.add_argument("--refcats", type=Path, metavar="DIR", help="stores `gaia` and `ps1` (calibrate)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="only units whose id has TEXT")
    parser.add_argument("--retry-failed", action="store_true", help="also units that failed or were unprocessable")
    parser.add_argument(
        "--trust-sizes", action="store_true", help="sealed products of the right size are not hashed again"
    )
    parser.add_argument("--database", metavar="URL", help="SQLAlchemy URL instead of the embedded SQLite file")
    parser.add_argument("--dry-run", action="store_true", help="list the units, run none")
    add_settings_options(parser)


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Options for camera and settings."""
    parser.add_argument("--camera", default="ztf", metavar="NAME|FILE", help="camera file (default: ztf)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings instead of config/pipelines/...")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace one setting")


def settings_of(name: str, options: argparse.Namespace) -> Any:
    """Parameters of a pipeline: its YAML file with the replacements of the command line."""
    overrides = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: give KEY=VALUE, such as --set combine.trim_fraction=0.1")
        overrides[key] = parse_yaml(value, f"--set {text}")
    path = options.config or CONFIG_DIR / "pipelines" / f"{name}.yml"
    return load_params(get_pipeline(name).params, path, overrides)


def new_job_id(name: str) -> str:
    """Name of this launch, for its logs: Slurm's job id where there is one."""
    slurm = os.environ.get("SLURM_JOB_ID")
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{name}_{slurm}_{stamp}" if slurm else f"{name}_{stamp}_{os.getpid()}"


def run_on_archive(name: str, options: argparse.Namespace) -> int:
    """Run a pipeline over a night of an archive; collective when started by mpiexec or srun.

    Returns
    -------
    int
        Exit code.
    """
    comm = world()
    with abort_on_crash(comm):
        try:
            code = _run(name, options, comm)
        except (ZsdsError, OSError) as error:
            if not was_agreed(error) and comm is not None:
                raise
            if rank_of(comm) == 0:
                print(f"zsds {name}: {error}", file=sys.stderr)
            code = EXIT_RETRY if isinstance(error, Retryable) else EXIT_USAGE
        # A launcher ends the job at the first rank that exits with a failure: rank 0 carries the code.
        return code if rank_of(comm) == 0 else EXIT_CLEAN


def _run(name: str, options: argparse.Namespace, comm: Any) -> int:
    with agree(comm, "settings"):
        if options.archive is None or options.night is None:
            raise UsageError("give --archive and --night, or plain files and --out")
        archive = Archive(options.archive.absolute(), load_camera(options.camera), options.database)
        params = settings_of(name, options)
        request = Request(options.night, options.incoming, options.refcats, tuple(options.only))
    if options.dry_run:
        with agree(comm, "planning"):
            return _list_units(name, archive, params, request) if rank_of(comm) == 0 else EXIT_CLEAN
    job_id = broadcast(comm, new_job_id(name))
    with agree(comm, "logs"):
        job = make_job(get_pipeline(name), archive, params, job_id, comm)
        for one in (job, job.before) if job.before else (job,):
            one.retry_failed, one.trust_sizes = options.retry_failed, options.trust_sizes
    return run_pipeline(job, request)


def make_job(pipeline: Pipeline, archive: Archive, params: Any, job_id: str, comm: Any = None) -> Job:
    """A job, and with it that of the pipeline it continues, which has the settings of its own file."""
    job = Job(pipeline, archive, params, job_id, comm)
    if pipeline.continues:
        first = get_pipeline(pipeline.continues)
        own = load_params(first.params, CONFIG_DIR / "pipelines" / f"{first.name}.yml", {})
        job.before = Job(first, archive, own, job_id, comm, log=job.log)
    return job


def _list_units(name: str, archive: Archive, params: Any, request: Request) -> int:
    units = get_pipeline(name).plan(archive, archive.engine(), params, request)
    for unit in units:
        if request.keeps(unit):
            print(unit.unit_id, f"blocked: {unit.blocked_by}" if unit.blocked_by else f"{len(unit.inputs)} inputs")
    return EXIT_CLEAN


def main(name: str) -> int:
    """Entry of `drivers/<name>.py`."""
    pipeline = get_pipeline(name)
    parser = argparse.ArgumentParser(
        description=f"{name}: {pipeline.unit}",
        epilog=f"example: mpiexec -n 2 python drivers/{name}.py --archive runs/demo/archive --night 20200924",
    )
    add_archive_options(parser)
    return run_on_archive(name, parser.parse_args())
