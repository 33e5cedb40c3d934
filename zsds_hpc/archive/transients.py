"""The transients database: difference images, candidates, objects, streaks, what was ever seen where, asteroids.

Tables of `archive.database.metadata`, the same for SQLite and PostgreSQL. Positions are found by `cell`, the nested
HEALPix pixel at `NSIDE`: small circles by lists of cells, large ones by ranges. Functions take a connection, so that
a unit's reading and writing is one transaction (`transaction`).
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import hpgeom
import numpy as np
import sqlalchemy as sa

from zsds_hpc.alerts import schema
from zsds_hpc.archive.database import Engine, metadata, transaction
from zsds_hpc.astrometry.sphere import separation_deg

Connection = sa.Connection
Row = dict[str, Any]

#: Cells of 6.4 arcsec.
NSIDE = 1 << 15
_MOST_CELLS = 64
#: Values in one list of a statement; SQLite takes 32,766.
_MOST_VALUES = 10_000

#: Fields of a packet's candidate that belong to its image.
IMAGE_FIELDS = (
    "jd", "fid", "pid", "diffmaglim", "pdiffimfilename", "programpi", "programid", "nid", "rcid", "field", "tooflag",
    "rfid", "jdstartref", "jdendref", "nframesref", "magzpsci", "magzpsciunc", "magzpscirms", "nmatches", "clrcoeff",
    "clrcounc", "zpclrcov", "zpmed", "clrmed", "clrrms", "exptime", "rbversion", "drbversion",
)  # fmt: skip
#: Those that a candidate has too, to be found by.
SHARED_FIELDS = ("jd", "fid", "programid", "rcid", "field")
#: Fields that the candidate has alone.
CANDIDATE_FIELDS = tuple(f.name for f in schema.fields("candidate") if f.name not in IMAGE_FIELDS)
#: Fields of a packet's history.
HISTORY_FIELDS = tuple(field.name for field in schema.fields("prv_candidate"))
CORNERS = tuple(f"{axis}{k}" for axis in ("ra", "dec") for k in range(1, 5))
_SQL_TYPES: dict[str, Any] = {
    "int": sa.Integer, "long": sa.BigInteger, "float": sa.Float(53), "double": sa.Float(53), "string": sa.String(200)
}  # fmt: skip


def _columns(names: Iterable[str]) -> list[sa.Column]:
    kinds = {field.name: field.kind for field in schema.fields("candidate")}
    return [sa.Column(name, _SQL_TYPES[kinds[name]]) for name in names]


def _unit_columns() -> list[sa.Column]:
    return [
        sa.Column("unit_id", sa.String(100), nullable=False, index=True),
        sa.Column("night", sa.String(8), nullable=False, index=True),
    ]


difference_products = sa.Table(
    "difference_products",
    metadata,
    sa.Column("unit_id", sa.String(100), primary_key=True),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("obsjd", sa.Float(53), nullable=False),
    sa.Column("rcid", sa.Integer, nullable=False),
    sa.Column("files", sa.JSON, nullable=False),  # relative path -> SHA-256
)

difference_images = sa.Table(
    "difference_images",
    metadata,
    sa.Column("unit_id", sa.String(100), primary_key=True),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),  # of the middle
    *[sa.Column(name, sa.Float(53), nullable=False) for name in CORNERS],
    *_columns(IMAGE_FIELDS),
    sa.Column("seeing_pix", sa.Float(53)),
    sa.Column("n_candidates", sa.Integer, nullable=False),
    sa.Column("n_streaks", sa.Integer, nullable=False),
    sa.Column("rolled_off", sa.Boolean, nullable=False),
)

candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("candid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("objectid", sa.String(12), nullable=False, index=True),
    *_unit_columns(),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),
    *_columns(SHARED_FIELDS),
    *_columns(name for name in CANDIDATE_FIELDS if name != "candid"),
)

objects = sa.Table(
    "objects",
    metadata,
    sa.Column("objectid", sa.String(12), primary_key=True),
    sa.Column("candid", sa.BigInteger, nullable=False),  # the first detection, which gives the position
    *_unit_columns(),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),
    sa.Column("ra", sa.Float(53), nullable=False),
    sa.Column("dec", sa.Float(53), nullable=False),
    sa.Column("jd", sa.Float(53), nullable=False),
    sa.Column("programid", sa.Integer),
)

#: Detections that have left `candidates`, counted by object and channel; never deleted.
sky_flags = sa.Table(
    "sky_flags",
    metadata,
    sa.Column("objectid", sa.String(12), primary_key=True),
    sa.Column("field", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rcid", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("programid", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),
    sa.Column("ra", sa.Float(53), nullable=False),
    sa.Column("dec", sa.Float(53), nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("jd_first", sa.Float(53), nullable=False),
    sa.Column("jd_last", sa.Float(53), nullable=False),
)

streaks = sa.Table(
    "streaks",
    metadata,
    sa.Column("unit_id", sa.String(100), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),  # of the middle
    *_columns(SHARED_FIELDS),
    *[sa.Column(name, sa.Float(53)) for name in ("ra", "dec", "ra1", "dec1", "ra2", "dec2")],
    *[
        sa.Column(name, sa.Float(53))
        for name in ("length", "angle", "flux", "sigflux", "snr", "mag", "sigmag", "score")
    ],
    sa.Column("kind", sa.String(16)),
)

#: Predicted positions (UTC, degrees, arcsec/h on the sky, magnitudes), filled by the movers' pipeline.
known_asteroids = sa.Table(
    "known_asteroids",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("jd", sa.Float(53), primary_key=True),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),
    *[sa.Column(name, sa.Float(53), nullable=False) for name in ("ra", "dec", "rate_ra", "rate_dec", "mag")],
)

#: Where rows of `candidates` and `streaks` have gone.
longterm_files = sa.Table(
    "longterm_files",
    metadata,
    sa.Column("path", sa.String(200), primary_key=True),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("night", sa.String(8), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("n_rows", sa.Integer, nullable=False),
)

#: Tables with rows of a unit of the alerts pipeline.
UNIT_TABLES = (difference_images, candidates, objects, streaks)


def cells_of(ra, dec) -> np.ndarray:
    """Cell of each position, int64."""
    return hpgeom.angle_to_pixel(NSIDE, np.mod(ra, 360.0), dec)


def cells_around(ra, dec, radius_arcsec: float) -> list[int]:
    """Cells that circles about some positions touch; for circles of not much more than a cell."""
    found = [
        hpgeom.query_circle(NSIDE, float(a) % 360.0, float(d), radius_arcsec / 3600.0, inclusive=True)
        for a, d in zip(ra, dec)
    ]
    return np.unique(np.concatenate(found)).tolist() if found else []


def ranges_around(ra: float, dec: float, radius_deg: float) -> list[tuple[int, int]]:
    """Ranges of cells (both ends included) that cover a circle: some tens at most, of coarser pixels where needed."""
    nside = NSIDE
    while nside > 1 and np.pi * np.radians(radius_deg) ** 2 > _MOST_CELLS * 4.0 * np.pi / (12 * nside * nside):
        nside //= 2
    per_cell = (NSIDE // nside) ** 2
    ranges = hpgeom.query_circle(nside, ra % 360.0, dec, radius_deg, inclusive=True, return_pixel_ranges=True)
    return [(int(low) * per_cell, int(high) * per_cell - 1) for low, high in ranges]


def in_circle(table: sa.Table, ra: float, dec: float, radius_deg: float) -> sa.ColumnElement[bool]:
    """Condition that the cell touches a circle."""
    return sa.or_(*[table.c.cell.between(low, high) for low, high in ranges_around(ra, dec, radius_deg)])


def cone(connection: Connection, table: sa.Table, ra: float, dec: float, radius_deg: float) -> list[Row]:
    """Rows within a circle, nearest first, with their distance as `arcsec`."""
    rows = _fetch(connection, sa.select(table).where(in_circle(table, ra, dec, radius_deg)))
    return nearest_first(rows, ra, dec, radius_deg)


def nearest_first(rows: Sequence[Row], ra: float, dec: float, radius_deg: float) -> list[Row]:
    """Rows within a circle by their distance, which is added as `arcsec`."""
    if not rows:
        return []
    arcsec = 3600.0 * separation_deg(
        np.array([row["ra"] for row in rows]), np.array([row["dec"] for row in rows]), ra, dec
    )
    order = np.argsort(arcsec, kind="stable")
    return [rows[i] | {"arcsec": float(arcsec[i])} for i in order if arcsec[i] <= radius_deg * 3600.0]


def objects_in(connection: Connection, cells: Sequence[int]) -> list[Row]:
    """Objects in some cells, by identifier of their first detection."""
    rows = _in_cells(connection, sa.select(objects), objects, cells)
    return sorted(rows, key=lambda row: row["candid"])


def objects_of(connection: Connection, unit_id: str) -> list[Row]:
    """Objects that a unit has founded, now or in an earlier run."""
    query = sa.select(objects).where(objects.c.unit_id == unit_id).order_by(objects.c.candid)
    return _fetch(connection, query)


def detections_in(connection: Connection, cells: Sequence[int], jd_before: float) -> list[Row]:
    """Candidates of earlier images in some cells, earliest first: fields of a packet's history, and ``objectid``."""
    of_image = [name for name in HISTORY_FIELDS if name in IMAGE_FIELDS and name not in SHARED_FIELDS]
    own = [name for name in HISTORY_FIELDS if name not in of_image]
    wanted = [candidates.c[name] for name in ("objectid", *own)] + [difference_images.c[name] for name in of_image]
    joined = candidates.join(difference_images, candidates.c.unit_id == difference_images.c.unit_id)
    query = sa.select(*wanted).select_from(joined).where(candidates.c.jd < jd_before)
    return sorted(_in_cells(connection, query, candidates, cells), key=lambda row: (row["jd"], row["candid"]))


def flags_in(connection: Connection, cells: Sequence[int], field: int, rcid: int) -> list[Row]:
    """Counts of rolled-off detections of a field and channel in some cells."""
    query = sa.select(sky_flags).where(sky_flags.c.field == field, sky_flags.c.rcid == rcid)
    return _in_cells(connection, query, sky_flags, cells)


def footprints_about(
    connection: Connection, ra: float, dec: float, radius_deg: float, jd_before: float
) -> tuple[list[str], np.ndarray]:
    """Unit and corners, shape (m, 8), of the earlier images whose middle lies within a circle, earliest first."""
    table = difference_images
    query = sa.select(table.c.unit_id, *(table.c[name] for name in CORNERS))
    query = query.where(in_circle(table, ra, dec, radius_deg), table.c.jd < jd_before)
    rows = connection.execute(query.order_by(table.c.jd, table.c.unit_id)).all()
    return [row[0] for row in rows], np.array([tuple(row)[1:] for row in rows]).reshape(-1, len(CORNERS))


def images_of(connection: Connection, unit_ids: Sequence[str], jd_from: float) -> dict[str, Row]:
    """Images by unit, of those that began at a time or later."""
    rows: list[Row] = []
    for chunk in _chunks(unit_ids):
        where = difference_images.c.unit_id.in_(chunk), difference_images.c.jd >= jd_from
        rows += _fetch(connection, sa.select(difference_images).where(*where))
    return {row["unit_id"]: row for row in rows}


def asteroids_about(
    connection: Connection, ra: float, dec: float, radius_deg: float, jd: float, half_span_days: float
) -> list[Row]:
    """Predicted positions in a circle, of each asteroid the nearest in time."""
    table = known_asteroids
    near_in_time = table.c.jd.between(jd - half_span_days, jd + half_span_days)
    rows = _fetch(connection, sa.select(table).where(in_circle(table, ra, dec, radius_deg), near_in_time))
    nearest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (abs(row["jd"] - jd), row["jd"])):
        nearest.setdefault(row["name"], row)
    return [nearest[name] for name in sorted(nearest)]


def names_taken(connection: Connection, names: Sequence[str]) -> set[str]:
    """Those of some names that objects have."""
    found: set[str] = set()
    for chunk in _chunks(names):
        found.update(connection.scalars(sa.select(objects.c.objectid).where(objects.c.objectid.in_(chunk))))
    return found


def forget_units(connection: Connection, unit_ids: Sequence[str]) -> None:
    """Delete what units have entered; an object that other units' candidates belong to stays."""
    others = candidates.alias("others")
    for chunk in _chunks(unit_ids):
        for table in (difference_images, candidates, streaks):
            connection.execute(sa.delete(table).where(table.c.unit_id.in_(chunk)))
        is_used = sa.exists().where(others.c.objectid == objects.c.objectid)
        is_known = sa.exists().where(sky_flags.c.objectid == objects.c.objectid)
        connection.execute(sa.delete(objects).where(objects.c.unit_id.in_(chunk), ~is_used, ~is_known))


def enter(connection: Connection, rows: Mapping[str, Sequence[Row]]) -> None:
    """Insert rows, by name of the table; NaN becomes null. One statement for each table."""
    for table in (*UNIT_TABLES, known_asteroids, longterm_files):
        if rows.get(table.name):
            names = [column.name for column in table.columns]
            connection.execute(sa.insert(table), [_plain(row, names) for row in rows[table.name]])


def _plain(row: Row, names: Sequence[str]) -> Row:
    return {name: None if (value := row.get(name)) != value else value for name in names}


def enter_products(engine: Engine, records: Sequence[Any]) -> None:
    """Enter the sealed products of difference units, for the alerts pipeline to find; removes those no longer sealed.

    Parameters
    ----------
    records : sequence of Record
        Of the pipeline `realtime`; metrics hold ``obsjd`` and ``rcid``.
    """
    rows = [
        {
            "unit_id": record.unit_id,
            "night": record.night,
            "obsjd": record.metrics["obsjd"],
            "rcid": record.metrics["rcid"],
            "files": {path: seal.sha256 for path, seal in record.outputs.items()},
        }
        for record in records
        if record.outputs
    ]
    with transaction(engine) as connection:
        for chunk in _chunks([record.unit_id for record in records]):
            connection.execute(sa.delete(difference_products).where(difference_products.c.unit_id.in_(chunk)))
        if rows:
            connection.execute(sa.insert(difference_products), rows)


def products_of(engine: Engine, night: str) -> list[Row]:
    """Difference units of a night with their files, in order of time and channel."""
    table = difference_products
    query = sa.select(table).where(table.c.night == night).order_by(table.c.obsjd, table.c.rcid, table.c.unit_id)
    with transaction(engine) as connection:
        return _fetch(connection, query)


def units_entered(connection: Connection, unit_ids: Sequence[str]) -> dict[str, bool]:
    """Those of some units whose image has been entered -> whether its candidates have been rolled off."""
    found: dict[str, bool] = {}
    for chunk in _chunks(unit_ids):
        query = sa.select(difference_images.c.unit_id, difference_images.c.rolled_off)
        for unit_id, rolled_off in connection.execute(query.where(difference_images.c.unit_id.in_(chunk))):
            found[unit_id] = bool(rolled_off)
    return found


def ever_detected(connection: Connection, ra: float, dec: float, radius_deg: float) -> Row:
    """Whether anything was ever detected in a circle: ``n``, ``jd_first``, ``jd_last``, ``objectids``.

    Detections that have left the table of candidates are counted where their object lies.
    """
    hot = cone(connection, candidates, ra, dec, radius_deg)
    rolled = cone(connection, sky_flags, ra, dec, radius_deg)
    first = [row["jd"] for row in hot] + [row["jd_first"] for row in rolled]
    last = [row["jd"] for row in hot] + [row["jd_last"] for row in rolled]
    return {
        "n": len(hot) + sum(row["n"] for row in rolled),
        "jd_first": min(first, default=None),
        "jd_last": max(last, default=None),
        "objectids": sorted({row["objectid"] for row in hot + rolled}),
    }


def _fetch(connection: Connection, query: sa.Select) -> list[Row]:
    result = connection.execute(query)
    names = list(result.keys())
    return [dict(zip(names, row)) for row in result]


def _in_cells(connection: Connection, query: sa.Select, table: sa.Table, cells: Sequence[int]) -> list[Row]:
    found = [_fetch(connection, query.where(table.c.cell.in_(chunk))) for chunk in _chunks(cells)]
    return list(itertools.chain.from_iterable(found))


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _MOST_VALUES):
        yield values[start : start + _MOST_VALUES]
