"""Whole files or none: temporary name, flush, rename, directory flush; and the sealing of a unit's products."""

import errno
import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zsds_hpc.core.errors import Retryable

TEMPORARY_SUFFIX = ".zsds-tmp"
_OWNED = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX))
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def temporary_name(final: Path) -> Path:
    """Name beside `final` that no other process on any host uses."""
    tag = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return final.with_name(f".{final.name}.{tag}{TEMPORARY_SUFFIX}")


@contextmanager
def passing_faults(what: str | Path) -> Iterator[None]:
    """Turn a full disk and its like into `Retryable`, with the file's name."""
    try:
        yield
    except OSError as error:
        if error.errno in _PASSING:
            raise Retryable(f"{what}: {error.strerror}; free or mend the disk, then resume") from error
        raise


def flush_to_disk(path: Path) -> None:
    """fsync a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_into_place(temporary: Path, final: Path) -> None:
    flush_to_disk(temporary)
    os.replace(temporary, final)
    flush_to_disk(final.parent)


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `final` when the block ends well, remove it otherwise.

    Raises
    ------
    Retryable
        The disk is full, read-only or failing.
    """
    final = Path(final)
    with passing_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(final)
        try:
            yield temporary
            _rename_into_place(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(final: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(final) as temporary:
        temporary.write_bytes(data)


def write_json(final: str | Path, content: object) -> None:
    """Write a JSON file atomically: sorted keys, one per line."""
    write_bytes(final, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Seal:
    """Hash and size of a sealed product."""

    sha256: str
    size: int


class Staging:
    """The products of one unit on their way to their final names.

    Products are written to `path(relative)`; nothing has a final name before `seal` is called, and `discard`
    leaves no trace.

    Parameters
    ----------
    root : Path
        Directory below which the products have their relative names.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._pending: dict[str, Path] = {}
        self._renamed: list[Path] = []

    def path(self, relative: str) -> Path:
        """Temporary path under which to write the product `relative`."""
        final = self.root / relative
        with passing_faults(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        self._pending[relative] = temporary_name(final)
        return self._pending[relative]

    def seal(self) -> dict[str, Seal]:
        """Hash, flush and rename every product; returns relative name -> `Seal`."""
        seals = {}
        for relative, temporary in self._pending.items():
            with passing_faults(relative):
                seals[relative] = Seal(sha256_of(temporary), temporary.stat().st_size)
        for relative, temporary in self._pending.items():
            with passing_faults(relative):
                self._renamed.append(self.root / relative)
                _rename_into_place(temporary, self.root / relative)
        self._pending.clear()
        return seals

    def discard(self) -> None:
        """Remove whatever was written, sealed products too: without a record they do not count."""
        for written in (*self._pending.values(), *self._renamed):
            written.unlink(missing_ok=True)
        self._pending.clear()
        self._renamed.clear()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def remove_leftovers(root: str | Path) -> int:
    """Remove temporary files that a killed process of this host left below `root`; returns how many."""
    n_removed = 0
    for path in Path(root).rglob(f".*{TEMPORARY_SUFFIX}"):
        owner = _OWNED.fullmatch(path.name)
        if owner and owner["host"] == _host() and not _is_running(int(owner["pid"])):
            path.unlink(missing_ok=True)
            n_removed += 1
    return n_removed
