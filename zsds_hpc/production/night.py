"""`zsds night`: run a night's pipelines in order under MPI, watch for arrivals, and account for every file."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zsds_hpc.archive import database
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_RETRY, EXIT_UNITS_FAILED, EXIT_USAGE, MEANING, State
from zsds_hpc.pipelines import ingest
from zsds_hpc.pipelines.base import Archive, Request
from zsds_hpc.pipelines.registry import AT_THE_END, NAMES, OF_A_NIGHT, get_pipeline
from zsds_hpc.production.bookkeeping import rebuild
from zsds_hpc.settings.camera import load_camera
from zsds_hpc.settings.site import SiteFacts, load_site

DRIVERS = Path(__file__).parents[2] / "drivers"


def add_command(commands: Any) -> None:
    """Add `zsds night` to the command line."""
    parser = commands.add_parser("night", help="run a night, or say where it stands")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run", help="run all pipelines of a night; repeat it to resume",
        epilog="example: zsds night run 20200924 --archive runs/demo/archive --incoming in/20200924 --refcats refcats",
    )  # fmt: skip
    _add_common(run)
    run.add_argument("--incoming", type=Path, required=True, metavar="DIR", help="files and manifest of the night")
    run.add_argument("--refcats", type=Path, required=True, metavar="DIR", help="stores `gaia` and `ps1`")
    run.add_argument("--site", default="laptop", metavar="NAME|FILE", help="site file (default: laptop)")
    run.add_argument("--ranks", type=int, default=0, help="MPI ranks (default: the site's, or the cores)")
    run.add_argument("--pipelines", nargs="+", choices=NAMES, default=OF_A_NIGHT, metavar="NAME", help="some only")
    run.add_argument(
        "--only", action="append", default=[], metavar="TEXT",
        help="only units whose id has TEXT, such as _q1; ingest takes whole files all the same",
    )  # fmt: skip
    run.add_argument("--watch", action="store_true", help="poll for arrivals until the manifest is complete")
    run.add_argument("--poll-s", type=float, default=10.0, help="seconds between polls (default: 10)")
    run.add_argument(
        "--trust-sizes", action="store_true",
        help="sealed products of the right size are not hashed again (as in all but the first pass of --watch)",
    )  # fmt: skip
    run.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    run.set_defaults(run_command=_run)
    status = actions.add_parser("status", help="every file of the manifest and every unit accounted for")
    _add_common(status)
    status.add_argument("--files", action="store_true", help="a line for every file, not only for what is wrong")
    status.set_defaults(run_command=_status)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("night", metavar="YYYYMMDD")
    parser.add_argument("--archive", type=Path, required=True, metavar="DIR")
    parser.add_argument("--camera", default="ztf", metavar="NAME|FILE")
    parser.add_argument("--database", metavar="URL")


def _run(options: argparse.Namespace) -> int:
    Request(options.night)  # refuses what is not a night
    stop = _Stop()
    try:
        if options.watch and not options.dry_run:
            return _watch(options, stop)
        return _all_pipelines(options, stop, options.pipelines)
    finally:
        stop.restore()


class _Stop:
    """SIGTERM and SIGUSR1 mean: let the job at work seal the units at hand, then end.

    Launchers pass SIGUSR1 on to their ranks; at SIGTERM some kill them.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.child: subprocess.Popen | None = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _note(self, *_: Any) -> None:
        self.asked.set()
        if self.child is not None:
            self.child.send_signal(signal.SIGUSR1)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _all_pipelines(options: argparse.Namespace, stop: _Stop, names: Sequence[str]) -> int:
    site = load_site(options.site)
    worst = EXIT_CLEAN
    for name in names:
        code = _launch(name, options, site, stop)
        if stop.asked.is_set():
            return EXIT_RETRY
        if code not in (EXIT_CLEAN, EXIT_UNITS_FAILED, EXIT_RETRY):
            return code if code == EXIT_USAGE else _died(name, code)
        worst = max(worst, code)
    return worst


def _watch(options: argparse.Namespace, stop: _Stop) -> int:
    """Run the pipelines whenever something has arrived, until nothing of the manifest is missing."""
    if not options.incoming.is_dir():
        raise UsageError(f"{options.incoming}: no such directory to watch")
    source = options.incoming / ingest.manifest_name(options.night)
    while not source.exists() and not stop.asked.wait(options.poll_s):
        pass
    meanwhile, at_the_end = ([n for n in options.pipelines if (n in AT_THE_END) == last] for last in (False, True))
    code, seen, waiting = EXIT_RETRY, None, set[str]()
    while not stop.asked.is_set():
        now = _arrived(options.incoming)
        if now != seen or waiting & now.keys():
            code, seen = _all_pipelines(options, stop, meanwhile), now
            options.trust_sizes = True  # hashing the whole night at every arrival would take longer than the night
            waiting = set() if code == EXIT_USAGE else _waiting(options)
            if not waiting and _arrived(options.incoming) == seen:
                break
        stop.asked.wait(options.poll_s)
    if not stop.asked.is_set() and code in (EXIT_CLEAN, EXIT_UNITS_FAILED, EXIT_RETRY):
        code = max(code, _all_pipelines(options, stop, at_the_end))
    return code


def _arrived(incoming: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file in the incoming directory."""
    found = {}
    for name in os.listdir(incoming):
        with contextlib.suppress(FileNotFoundError):  # the temporary name of a copy may be gone by now
            facts = os.lstat(incoming / name)
            found[name] = (facts.st_size, facts.st_mtime_ns)
    return found


def _died(name: str, code: int) -> int:
    print(f"zsds night: the {name} job died (exit code {code}); the same command resumes it", file=sys.stderr)
    return EXIT_RETRY


def _launch(name: str, options: argparse.Namespace, site: SiteFacts, stop: _Stop) -> int:
    ranks = options.ranks or site.ranks or len(os.sched_getaffinity(0))
    command = [word.replace("{ranks}", str(ranks)) for word in site.launcher] if ranks > 1 else []
    command += [sys.executable, str(DRIVERS / f"{name}.py"), "--archive", str(options.archive)]
    command += ["--night", options.night, "--camera", options.camera]
    command += ["--incoming", str(options.incoming)] if name == "ingest" else []
    command += ["--refcats", str(options.refcats)] if name in ("calibrate", "realtime", "alerts") else []
    command += ["--database", options.database] if options.database else []
    command += [word for text in options.only if name != "ingest" for word in ("--only", text)]
    command += ["--trust-sizes"] if options.trust_sizes else []
    if options.dry_run:
        print(" ".join(command))
        return EXIT_CLEAN
    with subprocess.Popen(command, env={**os.environ, **site.environment}) as stop.child:
        code = stop.child.wait()
    stop.child = None
    return code


def _waiting(options: argparse.Namespace) -> set[str]:
    """Files of the manifest that have not arrived."""
    engine = _archive(options).engine()
    states = (ingest.PENDING, ingest.NOT_ARRIVED)
    names = {
        row["filename"] for row in database.get(engine, database.manifest_files, night=options.night, state=states)
    }
    engine.dispose()
    if names:
        print(f"zsds night: waiting for {len(names)} files of the manifest", file=sys.stderr)
    return names


def _archive(options: argparse.Namespace) -> Archive:
    if not options.archive.is_dir():
        raise UsageError(f"{options.archive}: no such archive; `zsds night run` makes it")
    return Archive(options.archive.absolute(), load_camera(options.camera), options.database)


def _status(options: argparse.Namespace) -> int:
    Request(options.night)
    archive = _archive(options)
    ingest.recall_manifest(archive, archive.engine(), options.night)
    rebuild(archive, [get_pipeline(name) for name in NAMES], options.night)
    engine = archive.engine()
    files = database.get(engine, database.manifest_files, ("filename",), night=options.night)
    if not files:
        raise UsageError(f"night {options.night} is not known here; nights: {_nights(engine)}")
    _print_files(files, options.files)
    is_bad = False
    for name in NAMES:
        rows = database.get(engine, database.units, ("unit_id",), pipeline=name, night=options.night)
        is_bad |= _print_units(name, rows)
    is_bad |= any(row["state"] not in (State.DONE, ingest.PENDING) for row in files)
    return EXIT_UNITS_FAILED if is_bad else EXIT_CLEAN


def _nights(engine: Any) -> str:
    nights = {row["night"] for row in database.get(engine, database.manifest_files)}
    return ", ".join(sorted(nights)) or "none"


def _print_files(files: list[dict[str, Any]], every: bool) -> None:
    counts = Counter(row["state"] for row in files)
    print(f"manifest: {len(files)} files: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    for row in files:
        if every or row["state"] != State.DONE or row["reason"]:
            print(f"  {row['state']:<14} {row['filename']}" + (f"  ({row['reason']})" if row["reason"] else ""))


def _print_units(name: str, rows: list[dict[str, Any]]) -> bool:
    counts = Counter(row["state"] for row in rows)
    states = ", ".join(f"{n} {state} ({MEANING[State(state)]})" for state, n in sorted(counts.items()))
    cpu_s = sum(row["cpu_s"] or 0 for row in rows)
    print(f"{name}: {len(rows)} units: {states or 'not run yet'}; {cpu_s:.1f} CPU s")
    bad = [row for row in rows if row["state"] not in (State.DONE, State.NO_WORK)]
    for row in bad:
        print(f"  {row['state']:<14} {row['unit_id']}  ({row['reason']})")
    return bool(bad)
