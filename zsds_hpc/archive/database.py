"""The relational database behind the archive: one schema for SQLite and PostgreSQL, through SQLAlchemy Core.

Only rank 0 of a job writes, in batches. Everything here can be rebuilt from the sealed records.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from zsds_hpc.archive import paths
from zsds_hpc.core.errors import Retryable, UsageError

Engine = sa.Engine

metadata = sa.MetaData()

manifest_files = sa.Table(
    "manifest_files",
    metadata,
    sa.Column("night", sa.String(8), primary_key=True),
    sa.Column("filename", sa.String(200), primary_key=True),
    sa.Column("sha256", sa.String(64)),
    sa.Column("size", sa.BigInteger),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
)

raw_files = sa.Table(
    "raw_files",
    metadata,
    sa.Column("filename", sa.String(100), primary_key=True),
    sa.Column("path", sa.String(200), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("unit_id", sa.String(100), nullable=False, index=True),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("kind", sa.String(1), nullable=False),
    sa.Column("filtercode", sa.String(2), nullable=False),
    sa.Column("field", sa.Integer, nullable=False),
    sa.Column("ccdid", sa.Integer, nullable=False),
    sa.Column("programid", sa.Integer),
    sa.Column("program_pi", sa.String(80)),
    sa.Column("obsjd", sa.Float),
    sa.Column("exptime_s", sa.Float),
    sa.Column("airmass", sa.Float),
    sa.Column("ra_deg", sa.Float),
    sa.Column("dec_deg", sa.Float),
    sa.Column("telemetry", sa.JSON),
)

channel_images = sa.Table(
    "channel_images",
    metadata,
    sa.Column("path", sa.String(200), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("unit_id", sa.String(100), nullable=False, index=True),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("rawname", sa.String(100), nullable=False),
    sa.Column("kind", sa.String(1), nullable=False),
    sa.Column("filtercode", sa.String(2), nullable=False),
    sa.Column("field", sa.Integer, nullable=False),
    sa.Column("rcid", sa.Integer, nullable=False),
    sa.Column("programid", sa.Integer),
    sa.Column("obsjd", sa.Float),
    sa.Column("exptime_s", sa.Float),
    sa.Column("airmass", sa.Float),
    sa.Column("ra_deg", sa.Float),
    sa.Column("dec_deg", sa.Float),
    sa.Column("metrics", sa.JSON),
)

calibrations = sa.Table(
    "calibrations",
    metadata,
    sa.Column("path", sa.String(200), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("unit_id", sa.String(100), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("night", sa.String(8), nullable=False),
    sa.Column("filtercode", sa.String(2), nullable=False),
    sa.Column("rcid", sa.Integer, nullable=False),
    sa.Column("n_frames", sa.Integer),
    sa.Column("usable", sa.Boolean, nullable=False),
    sa.Index("calibrations_lookup", "kind", "rcid", "filtercode", "night"),
)

science_images = sa.Table(
    "science_images",
    metadata,
    sa.Column("path", sa.String(200), primary_key=True),
    sa.Column("unit_id", sa.String(100), nullable=False),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("field", sa.Integer, nullable=False),
    sa.Column("rcid", sa.Integer, nullable=False),
    sa.Column("filtercode", sa.String(2), nullable=False),
    sa.Column("programid", sa.Integer),
    sa.Column("obsjd", sa.Float),
    sa.Column("seeing_pix", sa.Float),
    sa.Column("magzp", sa.Float),
    sa.Column("maglim", sa.Float),
    sa.Column("infobits", sa.Integer),
    sa.Column("status", sa.Integer),
)

reference_images = sa.Table(
    "reference_images",
    metadata,
    sa.Column("path", sa.String(200), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("unit_id", sa.String(100), nullable=False),
    sa.Column("night", sa.String(8), nullable=False),
    sa.Column("field", sa.Integer, nullable=False),
    sa.Column("rcid", sa.Integer, nullable=False),
    sa.Column("filtercode", sa.String(2), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("rfid", sa.BigInteger, nullable=False),
    sa.Column("n_frames", sa.Integer, nullable=False),
    sa.Column("jdstart", sa.Float),
    sa.Column("jdend", sa.Float),
    sa.Column("epochs", sa.JSON, nullable=False),
    sa.Column("ra_deg", sa.Float, nullable=False),
    sa.Column("dec_deg", sa.Float, nullable=False),
    sa.Column("magzp", sa.Float, nullable=False),
    sa.Column("maglim", sa.Float),
    sa.Column("seeing_pix", sa.Float),
    sa.Column("usable", sa.Boolean, nullable=False),
    sa.Index("reference_images_lookup", "field", "rcid", "filtercode", "version"),
)

units = sa.Table(
    "units",
    metadata,
    sa.Column("pipeline", sa.String(32), primary_key=True),
    sa.Column("unit_id", sa.String(100), primary_key=True),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("job", sa.String(64)),
    sa.Column("cpu_s", sa.Float),
    sa.Column("peak_mib", sa.Float),
    sa.Column("metrics", sa.JSON),
)


def open_database(root: str | Path, url: str | None = None) -> sa.Engine:
    """Open the archive's database and create missing tables.

    Parameters
    ----------
    root : str or Path
        Archive root; holds the embedded SQLite file.
    url : str, optional
        SQLAlchemy URL of a server instead.

    Raises
    ------
    UsageError
        The URL is not one, its driver is not installed, the file is not a database, or its tables are of another
        version of the software.
    Retryable
        The database cannot be reached or is locked.
    """
    if url is None:
        Path(root).mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{Path(root).absolute() / paths.database()}"
    from zsds_hpc.archive import transients  # noqa: F401  (declares its tables, and builds on this module)

    try:
        engine = sa.create_engine(url)
        metadata.create_all(engine)
        _check_columns(engine, _shown(url))
    except sa.exc.OperationalError as error:
        raise Retryable(f"database {_shown(url)}: {error.orig}") from error
    except (sa.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise UsageError(f"database {_shown(url)}: {getattr(error, 'orig', error)}") from error
    return engine


def _check_columns(engine: sa.Engine, name: str) -> None:
    inspector = sa.inspect(engine)
    for table in metadata.sorted_tables:
        lacking = {column.name for column in table.columns} - {c["name"] for c in inspector.get_columns(table.name)}
        if lacking:
            raise UsageError(
                f"database {name} is of another version: table {table.name} has no column {min(lacking)}; move it away "
                "and run its nights again: it is filled from the records, and nothing sealed is made again"
            )


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string()
    except (sa.exc.ArgumentError, ValueError):
        return repr(url)


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction: all of it or nothing.

    Raises
    ------
    Retryable
        The database cannot be reached, went away or is locked.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        reason = " ".join(str(error.orig).split())
        raise Retryable(f"database {engine.url.render_as_string()}: {reason}") from error


def put(engine: sa.Engine, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, replacing those of equal primary key; one transaction."""
    if not rows:
        return
    keys = list(table.primary_key.columns)
    with transaction(engine) as connection:
        match = sa.and_(*(column == sa.bindparam(f"key_{column.name}") for column in keys))
        connection.execute(sa.delete(table).where(match), [{f"key_{c.name}": r[c.name] for c in keys} for r in rows])
        connection.execute(sa.insert(table), list(rows))


def remove(engine: sa.Engine, table: sa.Table, **where: Any) -> None:
    """Delete the rows that match all of the given column values (a list means any of them)."""
    with transaction(engine) as connection:
        connection.execute(sa.delete(table).where(*_conditions(table, where)))


def _conditions(table: sa.Table, where: dict[str, Any]) -> list[Any]:
    several = (list, tuple, set)
    return [table.c[n].in_(v) if isinstance(v, several) else table.c[n] == v for n, v in where.items()]


def get(engine: sa.Engine, table: sa.Table, order_by: Iterable[str] = (), **where: Any) -> list[dict[str, Any]]:
    """Rows that match all of the given column values (a list means any of them)."""
    query = sa.select(table).where(*_conditions(table, where)).order_by(*(table.c[name] for name in order_by))
    with transaction(engine) as connection:
        return [dict(row._mapping) for row in connection.execute(query)]
