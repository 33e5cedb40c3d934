"""Whole files or none: faults at every boundary of a write leave nothing behind."""

import errno
import os
import subprocess
import sys

import pytest

from zsds_hpc.archive import atomic
from zsds_hpc.core.errors import Retryable


def files_below(root):
    return sorted(p.name for p in root.rglob("*") if p.is_file())


class Killed(BaseException):
    """Stands for the death of the process at a boundary (nothing catches it on the way)."""


def failing(error, after=0):
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) > after:
            raise error

    return call


def test_write_replaces_whole(tmp_path):
    atomic.write_bytes(tmp_path / "deep" / "a", b"one")
    atomic.write_bytes(tmp_path / "deep" / "a", b"two")
    assert (tmp_path / "deep" / "a").read_bytes() == b"two"
    assert files_below(tmp_path) == ["a"]


@pytest.mark.parametrize("boundary", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Retryable),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Retryable),
        (OSError(errno.EROFS, "Read-only file system"), Retryable),
        (OSError(errno.EACCES, "Permission denied"), OSError),
        (Killed(), Killed),
    ],
)
def test_fault_at_a_boundary(tmp_path, monkeypatch, boundary, error, raised):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, boundary, failing(error))
    with pytest.raises(raised):
        atomic.write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert files_below(tmp_path) == ["a"]


def test_fault_inside_the_block(tmp_path):
    with pytest.raises(Retryable, match=r"a: .*resume"), atomic.atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ZeroDivisionError), atomic.atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert files_below(tmp_path) == []


def test_json_is_deterministic_and_refuses_nan(tmp_path):
    atomic.write_json(tmp_path / "a", {"b": 1, "a": [1.5, None]})
    atomic.write_json(tmp_path / "b", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "c", {"x": float("nan")})
    assert files_below(tmp_path) == ["a", "b"]


def staged(tmp_path, names=("x/one", "x/two", "y/three")):
    stage = atomic.Staging(tmp_path)
    for name in names:
        stage.path(name).write_bytes(name.encode())
    return stage


def test_staging_seals(tmp_path):
    stage = staged(tmp_path)
    assert not (tmp_path / "x/one").exists()
    seals = stage.seal()
    assert files_below(tmp_path) == ["one", "three", "two"]
    for name, seal in seals.items():
        assert seal == atomic.Seal(atomic.sha256_of(tmp_path / name), len(name))


def test_staging_discards(tmp_path):
    staged(tmp_path).discard()
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("after", [0, 1, 2])
def test_full_disk_while_sealing(tmp_path, monkeypatch, after):
    stage = staged(tmp_path)
    replace = os.replace
    count = []

    def replace_some(*args):
        count.append(args)
        if len(count) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(*args)

    monkeypatch.setattr(os, "replace", replace_some)
    with pytest.raises(Retryable):
        stage.seal()
    monkeypatch.undo()
    stage.discard()
    assert files_below(tmp_path) == []


def test_product_never_written(tmp_path):
    stage = staged(tmp_path)
    stage.path("z/none")
    with pytest.raises(FileNotFoundError):
        stage.seal()
    stage.discard()
    assert files_below(tmp_path) == []


def test_leftovers_of_the_dead_only(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = atomic.temporary_name(tmp_path / "mine.fits")
    host, pid = mine.name.split(".")[-2].rsplit("-", 2)[0], dead.stdout.decode().strip()
    names = {
        f".a.fits.{host}-{pid}-0123abcd.zsds-tmp": False,
        f".b.fits.{host}7-{pid}-0123abcd.zsds-tmp": True,
        f".c.fits.other-{pid}-0123abcd.zsds-tmp": True,
        f".d.fits.{host}-{os.getpid()}-0123abcd.zsds-tmp": True,
        f".e.fits.{host}-1-0123abcd.zsds-tmp": True,
        f".f.fits.{host}-{'9' * 30}-0123abcd.zsds-tmp": False,
        ".odd.zsds-tmp": True,
        "visible.zsds-tmp": True,
        f"g.fits.{host}-{pid}-0123abcd": True,
    }
    (tmp_path / "deep").mkdir()
    for name in names:
        (tmp_path / "deep" / name).touch()
    mine.touch()
    assert atomic.remove_leftovers(tmp_path) == 2
    assert files_below(tmp_path / "deep") == sorted(name for name, stays in names.items() if stays)
    assert mine.exists()


def test_host_with_dots_owns_its_leftovers(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.socket, "gethostname", lambda: "node1.cluster.example.org")
    name = atomic.temporary_name(tmp_path / "a.fits").name.replace(f"-{os.getpid()}-", "-4194303999-")
    (tmp_path / name).touch()
    assert atomic.remove_leftovers(tmp_path) == 1
