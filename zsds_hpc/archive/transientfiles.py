"""Files of the transients database: the rows of a unit, to restore them from, and long-term storage in Parquet."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from zsds_hpc.archive.atomic import atomic_path, sha256_of
from zsds_hpc.core.errors import BadInput

_GZIP_LEVEL = 3


def write_rows(path: str | Path, rows: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Write rows of several tables, gzip-compressed JSON; the same rows give the same bytes.

    The path is written directly: give a staged or temporary one.
    """
    content = {}
    for table, listed in rows.items():
        names = sorted({name for row in listed for name in row})
        content[table] = {"columns": names, "rows": [[_plain(row.get(name)) for name in names] for row in listed]}
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    Path(path).write_bytes(gzip.compress(text.encode(), _GZIP_LEVEL, mtime=0))


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value != value else value


def read_rows(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by table, as they were written.

    Raises
    ------
    BadInput
        Missing or damaged.
    """
    try:
        content = json.loads(gzip.decompress(Path(path).read_bytes()))
        return {
            table: [dict(zip(part["columns"], row, strict=True)) for row in part["rows"]]
            for table, part in content.items()
        }
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: no whole file of a unit's rows ({error})") from error


def write_parquet(path: str | Path, types: Mapping[str, str], batches: Iterable[Sequence[Sequence[Any]]]) -> str:
    """Write rows to a Parquet file, whole or not at all; returns its SHA-256. Memory holds one batch.

    Parameters
    ----------
    path : path
    types : mapping
        Column -> ``int long double string``.
    batches : iterable
        Some rows each, a row with its values in the order of the columns. Ordered by sky cell, so that a reader of
        one place skips most of the file.
    """
    kinds = {"int": pa.int32(), "long": pa.int64(), "double": pa.float64(), "string": pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in types.items()])
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for rows in batches:
            arrays = [pa.array(values, field.type) for field, values in zip(schema, zip(*rows))]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return sha256_of(path)


def read_cells(files: Sequence[Path], ranges: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows of Parquet files whose ``cell`` lies in one of some ranges (both ends included).

    Raises
    ------
    BadInput
        A file is missing or damaged.
    """
    if not files:
        return []
    wanted = [(pc.field("cell") >= low) & (pc.field("cell") <= high) for low, high in ranges]
    condition = wanted[0]
    for other in wanted[1:]:
        condition = condition | other
    try:
        return ds.dataset([str(path) for path in files], format="parquet").to_table(filter=condition).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"long-term storage: {' '.join(str(error).split())}") from error
