"""Rows of a reference catalogue from what the archives export: CSV, FITS, VOTable and Parquet, piece by piece."""

import csv
import difflib
import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsds_hpc.core.errors import BadInput

CHUNK_ROWS = 1 << 17
#: Proper motion error (mas/yr) of a star without a measured proper motion: the spread of proper motions.
UNKNOWN_PM_MAS_YR = 10.0
#: Position error (mas) where the catalogue gives none.
UNKNOWN_ERROR_MAS = 10.0
#: Error of the proper motion per year over the error of the position, where the export leaves it out (Gaia DR3).
PM_ERROR_RATIO = 1.3

GAIA_DTYPE = np.dtype(
    [("source_id", "i8"), ("ra", "f8"), ("dec", "f8"), ("pmra", "f4"), ("pmdec", "f4"), ("ra_err", "f4"),
     ("dec_err", "f4"), ("pmra_err", "f4"), ("pmdec_err", "f4"), ("epoch", "f4"), ("mag", "f4"), ("color", "f4")]
)  # fmt: skip
PS1_DTYPE = np.dtype(
    [("objid", "i8"), ("ra", "f8"), ("dec", "f8"), ("gmag", "f4"), ("gerr", "f4"), ("rmag", "f4"), ("rerr", "f4"),
     ("imag", "f4"), ("ierr", "f4")]
)  # fmt: skip

#: Our name -> name in a Gaia archive export.
GAIA_COLUMNS = {
    "source_id": "source_id", "ra": "ra", "dec": "dec", "pmra": "pmra", "pmdec": "pmdec", "ra_err": "ra_error",
    "dec_err": "dec_error", "pmra_err": "pmra_error", "pmdec_err": "pmdec_error", "epoch": "ref_epoch",
    "mag": "phot_g_mean_mag", "color": "bp_rp",
}  # fmt: skip
#: Our name -> name in a PS1 (MAST) export.
PS1_COLUMNS = {
    "objid": "objID", "ra": "raMean", "dec": "decMean", "gmag": "gMeanPSFMag", "gerr": "gMeanPSFMagErr",
    "rmag": "rMeanPSFMag", "rerr": "rMeanPSFMagErr", "imag": "iMeanPSFMag", "ierr": "iMeanPSFMagErr",
}  # fmt: skip


@dataclass(frozen=True)
class RefKind:
    """One kind of reference catalogue.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of the rows: degrees ICRS, mas, mas/yr (pmra includes cos dec), Julian years, magnitudes.
    columns : dict
        Our name -> default name in the sources.
    optional : dict
        Our name -> value where the sources have no such column and none was asked for.
    identity, magnitude : str
        Columns that order the rows: by magnitude, then identity.
    """

    name: str
    dtype: np.dtype
    columns: Mapping[str, str]
    optional: Mapping[str, float]
    identity: str
    magnitude: str


_GAIA_OPTIONAL = ("pmra", "pmdec", "ra_err", "dec_err", "pmra_err", "pmdec_err", "color")
KINDS = {
    "gaia": RefKind(
        "gaia", GAIA_DTYPE, GAIA_COLUMNS, dict.fromkeys(_GAIA_OPTIONAL, np.nan) | {"epoch": 2016.0, "source_id": -1},
        "source_id", "mag",
    ),
    "ps1": RefKind(
        "ps1", PS1_DTYPE, PS1_COLUMNS, {"objid": -1} | dict.fromkeys(("gerr", "rerr", "ierr"), np.nan), "objid", "rmag"
    ),
}  # fmt: skip


def photometric_kind(bands: Iterable[str]) -> RefKind:
    """Kind of a plain file of photometric standards in any bands: ra, dec, and for each band X Xmag and Xerr.

    Without a column of errors they are taken as zero.
    """
    bands = tuple(dict.fromkeys(bands))
    types = {"objid": "i8", "ra": "f8", "dec": "f8"} | {f"{b}{what}": "f4" for b in bands for what in ("mag", "err")}
    optional = {"objid": -1} | {f"{band}err": 0.0 for band in bands}
    return RefKind(
        "photometric", np.dtype([*types.items()]), {name: name for name in types}, optional, "objid", f"{bands[0]}mag"
    )


@dataclass
class RowCounts:
    """How many rows were read, and what was wrong with some.

    Attributes
    ----------
    n_read, n_bad, n_duplicate, n_no_pm : int
        Rows read; left out for a position that is not on the sphere or a missing identity; left out as repeated;
        kept with a proper motion of zero and its error set to `UNKNOWN_PM_MAS_YR`.
    """

    n_read: int = 0
    n_bad: int = 0
    n_duplicate: int = 0
    n_no_pm: int = 0


def kind_named(name: str) -> RefKind:
    """`RefKind` of a name; BadInput names the valid ones."""
    if name not in KINDS:
        raise BadInput(f"reference catalogue of kind {name!r}: valid kinds are {', '.join(KINDS)}")
    return KINDS[name]


def read_rows(path: Path, kind: RefKind, columns: Mapping[str, str], counts: RowCounts) -> Iterator[np.ndarray]:
    """Rows of one source file in the dtype of its kind, in pieces; bad rows are left out and counted.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.ecsv``, ``.fits``, ``.fit``, ``.vot``, ``.xml``, ``.votable``, ``.parquet``; all but the last also
        with ``.gz``.
    kind : RefKind
    columns : mapping
        Our name -> name in the file, where it is not the default.
    counts : RowCounts
        Updated.

    Raises
    ------
    BadInput
        The file cannot be read, or lacks a column: the message names the file, the column and the nearest one.
    """
    for unknown in columns.keys() - kind.columns.keys():
        raise BadInput(f"no column {unknown!r} in a {kind.name} catalogue; {_nearest(unknown, kind.columns)}")
    with _reading(path):
        names_of, chunks_of = _FORMATS[_format_of(path)]
        names = _resolve(path, kind, columns, names_of(path))
        for chunk in chunks_of(path, names, kind):
            yield _converted(kind, chunk, counts)


def _resolve(path, kind, columns, available):
    """Our name -> name in the file, of the columns that the file has; case does not matter."""
    by_lower = {name.lower(): name for name in available}
    names = {}
    for ours, default in kind.columns.items():
        theirs = columns.get(ours, default)
        if theirs in available or theirs.lower() in by_lower:
            names[ours] = theirs if theirs in available else by_lower[theirs.lower()]
        elif ours in columns or ours not in kind.optional:
            raise BadInput(f"{path}: no column {theirs!r} (our {ours}); {_nearest(theirs, available)}")
    return names


def _nearest(name, available):
    """Text that names the nearest available column: one that begins alike, else one spelt alike."""
    begin = [other for other in available if other.lower().startswith(name.lower())]
    lower = [other.lower() for other in available]
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.3)
    nearest = begin or [other for other in available if other.lower() in close]
    return f"the nearest is {nearest[0]!r}" if nearest else f"there are {', '.join(map(repr, available))}"


def _converted(kind: RefKind, chunk: Mapping[str, np.ndarray], counts: RowCounts) -> np.ndarray:
    n = len(chunk["ra"])
    rows = np.empty(n, kind.dtype)
    for ours in kind.dtype.names or ():
        rows[ours] = chunk.get(ours, kind.optional.get(ours, np.nan))
    if kind.identity not in chunk:
        rows[kind.identity] = counts.n_read + np.arange(n)
    good = np.isfinite(rows["ra"]) & (np.abs(rows["dec"]) <= 90.0) & (np.abs(rows["ra"]) <= 720.0)
    good &= rows[kind.identity] >= 0
    counts.n_read += n
    counts.n_bad += int(n - good.sum())
    rows = rows[good]
    rows["ra"] %= 360.0
    if kind.name == "gaia":
        counts.n_no_pm += _fill_motions(rows)
    else:
        _fill_magnitudes(rows)
    return rows


def _fill_motions(rows: np.ndarray) -> int:
    """Stand-ins for what Gaia does not give, in place; returns how many stars have no proper motion."""
    rows["epoch"][np.isnan(rows["epoch"])] = 2016.0
    unknown = ~(np.isfinite(rows["pmra"]) & np.isfinite(rows["pmdec"]))
    for axis in ("ra", "dec"):
        error, pm_error = rows[f"{axis}_err"], rows[f"pm{axis}_err"]
        error[~(error >= 0)] = UNKNOWN_ERROR_MAS
        missing = ~(pm_error >= 0)
        pm_error[missing] = PM_ERROR_RATIO * error[missing]
        rows[f"pm{axis}"][unknown] = 0.0
        pm_error[unknown] = UNKNOWN_PM_MAS_YR
    return int(unknown.sum())


def _fill_magnitudes(rows: np.ndarray) -> None:
    """PS1 writes -999 where a band was not measured: NaN here, in place."""
    for name in rows.dtype.names or ():
        if name.endswith(("mag", "err")):
            rows[name][rows[name] < -100.0] = np.nan


def _as_numpy(values: Any, is_identity: bool) -> np.ndarray:
    """Float64 (masked values NaN) or int64 (masked values -1) from a table's column."""
    filled = np.ma.filled(np.ma.asarray(values).astype("i8" if is_identity else "f8"), -1 if is_identity else np.nan)
    return np.ascontiguousarray(filled)


def _parquet_names(path):
    from pyarrow import parquet

    return parquet.read_schema(path).names


def _parquet_chunks(path, names, kind):
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(CHUNK_ROWS, columns=list(dict.fromkeys(names.values()))):
            yield _from_arrow(batch, names, kind)


def _from_arrow(batch, names, kind):
    import pyarrow as pa

    chunk = {}
    for ours, theirs in names.items():
        integer = ours == kind.identity
        column = batch.column(batch.schema.get_field_index(theirs)).cast(pa.int64() if integer else pa.float64())
        chunk[ours] = column.fill_null(-1 if integer else np.nan).to_numpy(zero_copy_only=False)
    return chunk


def _open_text(path):
    return gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="")


def _csv_head(path):
    """Number of comment lines before the line of names (as ECSV has them), and the names."""
    with _open_text(path) as file:
        for n_comments, line in enumerate(file):
            if not line.startswith("#"):
                return n_comments, [name.strip() for name in next(csv.reader([line]))]
    raise BadInput(f"{path}: no line of column names")


def _csv_names(path):
    return _csv_head(path)[1]


def _csv_chunks(path, names, kind):
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    n_comments, header = _csv_head(path)
    types = {theirs: pa.int64() if ours == kind.identity else pa.float64() for ours, theirs in names.items()}
    reader = arrow_csv.open_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            skip_rows=n_comments + 1, column_names=header, block_size=1 << 24, use_threads=False
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=list(types), column_types=types, null_values=["", "null", "NULL", "nan", "NaN", "NA", "--"]
        ),
    )
    for batch in reader:
        yield _from_arrow(batch, names, kind)


def _fits_table(file, path):
    for hdu in file[1:]:
        if hdu.is_image is False and hasattr(hdu, "columns"):
            return hdu
    raise BadInput(f"{path}: no table extension")


def _fits_names(path):
    from astropy.io import fits

    with fits.open(path, memmap=True) as file:
        return _fits_table(file, path).columns.names


def _fits_chunks(path, names, kind):
    from astropy.io import fits

    with fits.open(path, memmap=True) as file:
        data = _fits_table(file, path).data
        for start in range(0, len(data), CHUNK_ROWS):
            rows = data[start : start + CHUNK_ROWS]
            yield {ours: _as_numpy(rows[theirs], ours == kind.identity) for ours, theirs in names.items()}


def _votable(path):
    from astropy.io.votable import parse_single_table

    return parse_single_table(path, verify="ignore")


def _votable_names(path):
    return [field.name for field in _votable(path).fields]


def _votable_chunks(path, names, kind):
    table = _votable(path).to_table(use_names_over_ids=True)
    yield {ours: _as_numpy(table[theirs], ours == kind.identity) for ours, theirs in names.items()}


_FORMATS = {
    "csv": (_csv_names, _csv_chunks),
    "fits": (_fits_names, _fits_chunks),
    "votable": (_votable_names, _votable_chunks),
    "parquet": (_parquet_names, _parquet_chunks),
}
_SUFFIXES = {
    ".csv": "csv", ".ecsv": "csv", ".fits": "fits", ".fit": "fits", ".vot": "votable", ".xml": "votable",
    ".votable": "votable", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def _format_of(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in _SUFFIXES:
        raise BadInput(f"{path}: format {suffix!r} unknown; valid are {', '.join(_SUFFIXES)}")
    return _SUFFIXES[suffix.lower()]


@contextmanager
def _reading(path: Path):
    """Turn whatever a reader raises on a broken file into one line that names the file."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        yield
    except BadInput:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, LookupError, ArithmeticError) as error:
        text = str(error).strip().splitlines()
        raise BadInput(f"{path}: cannot be read: {text[0] if text else type(error).__name__}") from error
