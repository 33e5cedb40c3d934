"""Run one unit again and again, dying before each rename of its commit in turn, and resume after each death.

Prints the number of renames at which it died. Forks, so that the imports are paid once.
"""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import argparse  # isort: skip
import json  # isort: skip
import os  # isort: skip
from pathlib import Path  # isort: skip

from zsds_hpc.pipelines.registry import get_pipeline  # isort: skip
from zsds_hpc.production import driver  # isort: skip

CRASH = 99


def in_child(action) -> int:
    """Exit code of a forked process that runs the action."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = action()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_at(number: int, action):
    """The action, in a process that ends before its rename of this number (from 1)."""
    rename, count = os.replace, 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == number:
            os._exit(CRASH)
        rename(source, target)

    def run() -> int:
        os.replace = replace
        return action()

    return run


def forget(archive: Path, pipeline: str, unit: str) -> Path:
    """Remove the unit's record and products; the record's path."""
    (record,) = [path for path in archive.glob(f"records/{pipeline}/*/*.json") if unit in path.name]
    for name in json.loads(record.read_text())["outputs"]:
        (archive / name).unlink()
    record.unlink()
    return record


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--pipeline")
    driver.add_archive_options(parser)
    options = parser.parse_args()
    options.archive, n_points = options.root, 0
    get_pipeline(options.pipeline)  # imported here, not in every child

    def work() -> int:
        return driver.run_on_archive(options.pipeline, options)

    while True:
        record = forget(options.root, options.pipeline, options.only[0])
        code = in_child(dying_at(n_points + 1, work))
        if code != CRASH:
            break
        assert not record.exists(), "a record before all products were in place"
        n_points += 1
        assert in_child(work) == 0 and record.exists()
    assert code == 0 and record.exists()
    print(n_points)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
