"""Roll-off: old nights of candidates and streaks move from the database to Parquet files, and leave a flag behind.

A night is moved whole, in one transaction: its rows are written to files (sealed by hash, listed in `longterm_files`),
added to `sky_flags` and deleted. A crash in between leaves files that the next run writes again with the same content.
"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from zsds_hpc.archive import paths
from zsds_hpc.archive.atomic import sha256_of
from zsds_hpc.archive.database import Engine, transaction
from zsds_hpc.archive.transientfiles import read_cells, write_parquet
from zsds_hpc.archive.transients import (
    Connection,
    Row,
    candidates,
    difference_images,
    longterm_files,
    nearest_first,
    objects,
    ranges_around,
    sky_flags,
    streaks,
)
from zsds_hpc.core.errors import BadInput

_BATCH = 20_000
_KINDS = {sa.Integer: "int", sa.BigInteger: "long", sa.Float: "double", sa.String: "string"}


def nights_before(engine: Engine, night: str) -> list[str]:
    """Nights before one that still have rows in the database, earliest first."""
    table = difference_images
    query = sa.select(table.c.night).where(table.c.night < night, table.c.rolled_off.is_(False)).distinct()
    with transaction(engine) as connection:
        return sorted(connection.scalars(query))


def move_night(engine: Engine, root: Path, night: str) -> dict[str, int]:
    """Move the candidates and streaks of a night to long-term storage.

    Returns
    -------
    dict
        Table -> rows moved.

    Raises
    ------
    Retryable
        The database went away, or the disk is full; nothing was deleted.
    """
    with transaction(engine) as connection:
        moved = {table.name: _write_out(connection, table, root, night) for table in (candidates, streaks)}
        _add_flags(connection, night)
        for table in (candidates, streaks):
            connection.execute(sa.delete(table).where(table.c.night == night))
        rolled = sa.update(difference_images).where(difference_images.c.night == night)
        connection.execute(rolled.values(rolled_off=True))
    return moved


def _write_out(connection: Connection, table: sa.Table, root: Path, night: str) -> int:
    n_rows = connection.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.night == night)) or 0
    if not n_rows:
        return 0
    listed = sa.select(sa.func.count()).select_from(longterm_files)
    listed = listed.where(longterm_files.c.source == table.name, longterm_files.c.night == night)
    path = paths.longterm(table.name, night, (connection.scalar(listed) or 0) + 1)
    types = {column.name: _KINDS[type(column.type)] for column in table.columns}
    query = sa.select(table).where(table.c.night == night).order_by(table.c.cell, *table.primary_key.columns)
    found = connection.execute(query.execution_options(stream_results=True))
    sha256 = write_parquet(root / path, types, found.partitions(_BATCH))
    entry = {"path": path, "source": table.name, "night": night, "sha256": sha256, "n_rows": n_rows}
    connection.execute(sa.insert(longterm_files), [entry])
    return n_rows


def _add_flags(connection: Connection, night: str) -> None:
    """Add a night's candidates to the flags: first to those that are there, then as new ones."""
    own, flags = candidates, sky_flags
    key = ("objectid", "field", "rcid", "programid")
    same = sa.and_(own.c.night == night, *(own.c[name] == flags.c[name] for name in key))

    def over(what: Any) -> Any:
        return sa.select(what).where(same).scalar_subquery()

    first, last = over(sa.func.min(own.c.jd)), over(sa.func.max(own.c.jd))
    there = sa.update(flags).where(sa.exists().where(same))
    connection.execute(
        there.values(
            n=flags.c.n + over(sa.func.count()),
            jd_first=sa.case((first < flags.c.jd_first, first), else_=flags.c.jd_first),
            jd_last=sa.case((last > flags.c.jd_last, last), else_=flags.c.jd_last),
        )
    )
    keys = [own.c[name] for name in key]
    place = [objects.c[name] for name in ("cell", "ra", "dec")]
    counts = [sa.func.count(), sa.func.min(own.c.jd), sa.func.max(own.c.jd)]
    joined = own.join(objects, own.c.objectid == objects.c.objectid)
    new = sa.select(*keys, *place, *counts).select_from(joined).where(own.c.night == night, ~sa.exists().where(same))
    new = new.group_by(*keys, *place)
    names = [*key, "cell", "ra", "dec", "n", "jd_first", "jd_last"]
    connection.execute(sa.insert(flags).from_select(names, new))


def stored_near(engine: Engine, root: Path, ra: float, dec: float, radius_deg: float) -> list[Row]:
    """Candidates in long-term storage within a circle, nearest first, with their distance as `arcsec`.

    Raises
    ------
    BadInput
        A file is missing or is not the one that was sealed.
    """
    query = sa.select(longterm_files).where(longterm_files.c.source == candidates.name)
    with transaction(engine) as connection:
        files = {row.path: row.sha256 for row in connection.execute(query.order_by(longterm_files.c.path))}
    for path, sha256 in files.items():
        if not (root / path).is_file() or sha256_of(root / path) != sha256:
            raise BadInput(f"{path}: missing, or altered since it was sealed")
    rows = read_cells([root / path for path in files], ranges_around(ra, dec, radius_deg))
    return nearest_first(rows, ra, dec, radius_deg)
