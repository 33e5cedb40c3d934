"""What a pipeline is: one declaration that feeds the command line, the runner, the docs and resume."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsds_hpc.archive import database
from zsds_hpc.archive.atomic import Staging, sha256_of
from zsds_hpc.archive.database import Engine
from zsds_hpc.core import ids
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.params import Params
from zsds_hpc.parallel.timers import Timers
from zsds_hpc.settings.camera import Camera


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes
    ----------
    unit_id : str
        Unique within the pipeline; also the stem of its record.
    night : str
        YYYYMMDD.
    cost : float
        Relative; the costliest are handed out first.
    inputs : dict
        Path relative to the archive -> SHA-256 that it must have (empty when not known).
    attrs : dict
        Whatever `run_unit` needs to know, JSON-ready.
    blocked_by : str
        Non-empty when an input is known to be missing: the reason.
    first : Unit or None
        Unit of the pipeline that this one continues; it is brought to its end before.
    """

    unit_id: str
    night: str
    cost: float = 1.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    blocked_by: str = ""
    first: "Unit | None" = None


@dataclass(frozen=True)
class Archive:
    """The product tree, its database and the camera."""

    root: Path
    camera: Camera
    database_url: str | None = None

    def engine(self) -> Engine:
        """Database of the archive; for rank 0 only."""
        return database.open_database(self.root, self.database_url)

    def path(self, relative: str) -> Path:
        """Absolute path of a file of the archive."""
        return self.root / relative


@dataclass
class Work:
    """What `run_unit` is given besides its unit.

    Attributes
    ----------
    archive : Archive
    stage : Staging
        Where products are written; sealed by the runner when the unit is done.
    timers : Timers
    log : logging.Logger
    comm : communicator or None
        Ranks that share this unit.
    carry : dict
        What a unit leaves in memory for the one that continues it; empty when it was sealed before.
    """

    archive: Archive
    stage: Staging
    timers: Timers
    log: logging.Logger
    comm: Any = None
    carry: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline:
    """Declaration of a pipeline.

    Attributes
    ----------
    name : str
        The same word for the driver, the batch script, the settings file and the records.
    unit : str
        What one unit of work is.
    inputs, outputs : tuple of str
        Kinds of files read and written.
    params : type
        Declaration of its settings.
    plan : callable
        ``plan(archive, engine, params, request) -> list[Unit]``, on rank 0.
    run_unit : callable
        ``run_unit(unit, work, params) -> metrics``; writes its products to ``work.stage``.
    catalogue : callable
        ``catalogue(engine, camera, records) -> None``: enter what a batch of records says in the database.
    ensemble : bool
        A unit is shared by a group of ranks.
    retries_bad_input : bool
        A rerun looks again at units that were UNPROCESSABLE (files may be delivered again).
    serial : bool
        Each unit builds on what those before it entered in the database: rank 0 runs them one by one in the order of
        the plan, and stops at the first that is ABORTED.
    continues : str
        Pipeline whose unit of the same name each unit of this one continues, in memory where it can.
    restore : callable or None
        ``restore(archive, engine, records) -> None``: enter again what `run_unit` itself enters in the database,
        where it is missing.
    """

    name: str
    unit: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: type[Params]
    plan: Callable[..., list[Unit]]
    run_unit: Callable[..., dict[str, Any]]
    catalogue: Callable[..., None]
    ensemble: bool = False
    retries_bad_input: bool = False
    serial: bool = False
    continues: str = ""
    restore: Callable[..., None] | None = None


@dataclass(frozen=True)
class Request:
    """What the operator asked for.

    Attributes
    ----------
    night : str
        YYYYMMDD.
    incoming : Path or None
        Where the camera's files arrive (ingest).
    refcats : Path or None
        Directory of the reference-catalogue stores.
    only : tuple of str
        Keep the units whose id contains one of these; all when empty.
    """

    night: str
    incoming: Path | None = None
    refcats: Path | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            ids.nid_of_night(self.night)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def keeps(self, unit: Unit) -> bool:
        """Whether the unit was asked for."""
        return not self.only or any(text in unit.unit_id for text in self.only)


def store_inputs(request: Request, pipeline: str) -> dict[str, str]:
    """The reference-catalogue stores as inputs of a unit: name -> SHA-256 of what describes the store.

    Raises
    ------
    UsageError
        None are given, or there is none in that directory.
    """
    if request.refcats is None:
        raise UsageError(f"{pipeline} needs --refcats: the directory of the stores `gaia` and `ps1`")
    found = {}
    for kind in ("gaia", "ps1"):
        stamp = request.refcats / kind / "catalog.json"
        if not stamp.is_file():
            raise UsageError(f"{stamp.parent}: no such store; `zsds refcat build {kind} ...` makes it")
        found[f"refcats/{kind}"] = sha256_of(stamp)
    return found
