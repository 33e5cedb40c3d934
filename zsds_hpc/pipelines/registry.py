"""The pipelines by name, in the order in which a night runs them; modules are loaded when asked for."""

import importlib

from zsds_hpc.core.errors import UsageError
from zsds_hpc.pipelines.base import Pipeline

NAMES = ("ingest", "superbias", "highv_flat", "calibrate", "realtime", "alerts", "reference")
#: Those that a night runs: `realtime` takes `calibrate` with it; references are made of what the night has added.
OF_A_NIGHT = tuple(name for name in NAMES if name != "calibrate")
#: Those that wait until all of the night is there.
AT_THE_END = ("reference",)


def get_pipeline(name: str) -> Pipeline:
    """Declaration of a pipeline.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    if name not in NAMES:
        raise UsageError(f"no pipeline {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"zsds_hpc.pipelines.{name}").PIPELINE
