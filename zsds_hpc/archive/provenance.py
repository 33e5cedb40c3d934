"""The record of a unit of work: written last, it is what makes the unit's products count."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsds_hpc import __version__
from zsds_hpc.archive import atomic
from zsds_hpc.archive.atomic import Seal
from zsds_hpc.core.states import State


@dataclass(frozen=True)
class Record:
    """What became of a unit.

    Attributes
    ----------
    unit_id, pipeline, night : str
    state : State
    reason : str
        One line; empty when DONE.
    fingerprint : str
        SHA-256 over pipeline, software version, parameters and input hashes: equal means that a rerun would give
        the same products.
    inputs : dict
        Relative path -> SHA-256.
    outputs : dict
        Relative path -> Seal.
    params : dict
        Parameters in full.
    metrics : dict
        QA numbers, or the figures that decided a failure.
    steps : dict
        Step -> CPU seconds.
    run : dict
        Facts of this run only: job, host, rank, wall seconds, peak memory, start time, versions.
    """

    unit_id: str
    pipeline: str
    night: str
    state: State
    fingerprint: str
    reason: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Seal] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Commit the record atomically."""
        atomic.write_json(path, {**plain(dataclasses.asdict(self)), "record_version": 1})


def plain(value: Any) -> Any:
    """JSON-ready copy: NumPy scalars to Python ones, NaN and infinities to null, the rest to text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def read_record(path: Path) -> Record | None:
    """Read a record; None where there is none or it is not whole."""
    try:
        content = json.loads(path.read_text())
        content.pop("record_version")
        content["state"] = State(content["state"])
        content["outputs"] = {name: Seal(**seal) for name, seal in content["outputs"].items()}
        return Record(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprint_of(pipeline: str, params: dict[str, Any], inputs: dict[str, str]) -> str:
    """Identity of a computation: the same fingerprint gives the same products."""
    return digest_of([pipeline, __version__, params, sorted(inputs.items())])


def digest_of(content: Any) -> str:
    """SHA-256 of JSON-like content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()


def outputs_hold(root: Path, record: Record, rehash: bool = True) -> str:
    """Check that the sealed products are there and whole.

    Returns
    -------
    str
        Empty when all hold, otherwise what is wrong with the first that does not.
    """
    for relative, seal in record.outputs.items():
        path = root / relative
        if not path.is_file():
            return f"{relative} is missing"
        if path.stat().st_size != seal.size or (rehash and atomic.sha256_of(path) != seal.sha256):
            return f"{relative} is corrupt"
    return ""
