"""Run some pipelines of a night one after the other in one launch, so that tests pay for the imports once.

``mpiexec -n N python tests/helpers/whole_night.py ARCHIVE --pipelines ingest superbias --camera ... --incoming ...``
"""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import argparse  # isort: skip
from pathlib import Path  # isort: skip

from zsds_hpc.pipelines.registry import NAMES  # isort: skip
from zsds_hpc.production import driver  # isort: skip


def main() -> int:
    """Stop at the first pipeline that does not end clean."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--pipelines", nargs="+", default=NAMES)
    driver.add_archive_options(parser)
    options = parser.parse_args()
    options.archive = options.root
    code = 0
    for name in options.pipelines:
        code = code or driver.run_on_archive(name, options)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
