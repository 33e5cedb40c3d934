"""A PostgreSQL server of its own, where the programs and a driver are installed; ended with the test."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin")) + [Path(shutil.which("initdb") or "/none/x").parent]


def _find() -> Path:
    found = [place for place in _PROGRAMS if (place / "initdb").is_file() and (place / "pg_ctl").is_file()]
    if not found:
        pytest.skip("no PostgreSQL server here (Debian package postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no driver for PostgreSQL here (pip install 'psycopg[binary]')")
    return found[0]


def _as_ordinary_user(command: list) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return [*(["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []), *map(str, command)]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """SQLAlchemy URL of an empty database on a Unix socket."""
    programs, place = _find(), Path(tempfile.mkdtemp(prefix="zsds_pg_"))
    if os.getuid() == 0:
        shutil.chown(place, "postgres")
    data = place / "data"

    def run(*command) -> None:
        subprocess.run(_as_ordinary_user(list(command)), check=True, capture_output=True, cwd="/", timeout=60)

    try:
        run(programs / "initdb", "-D", data, "-U", "zsds", "-A", "trust", "--no-sync")
        options = f"-k {place} -c listen_addresses='' -c fsync=off"
        run(programs / "pg_ctl", "-D", data, "-l", place / "log", "-o", options, "-w", "start")
        yield f"postgresql+psycopg://zsds@/postgres?host={place}"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)
