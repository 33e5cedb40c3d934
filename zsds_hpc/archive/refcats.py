"""Store of a reference catalogue (Gaia, PS1), partitioned on the sky and read by cone.

A store is a directory: ``nside32/NNNNN.npy``, one file of rows for each occupied HEALPix pixel (nested, nside 32, 1.8
deg); ``index.npy``, where in its file each finer pixel (nside 512, 7 arcmin) begins; and ``catalog.json``, with
counts, columns, sources and the SHA-256 of every file. Rows of a cone are a few contiguous slices of memory-mapped
files: 8 ms for 50,000 stars, where Parquet takes 20 ms to decode each of the one to four partitions. Each file is
checked against its hash when it is first touched.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hpgeom
import numpy as np

from zsds_hpc.archive.atomic import flush_to_disk, passing_faults, sha256_of, temporary_name, write_json
from zsds_hpc.archive.refcat_sources import (
    GAIA_COLUMNS,
    GAIA_DTYPE,
    PS1_COLUMNS,
    PS1_DTYPE,
    RefKind,
    RowCounts,
    kind_named,
    photometric_kind,
    read_rows,
)
from zsds_hpc.astrometry.sphere import unit_vectors, wrap_360
from zsds_hpc.core.errors import BadInput, UsageError

__all__ = ["GAIA_COLUMNS", "GAIA_DTYPE", "PS1_COLUMNS", "PS1_DTYPE", "RefCat", "build_refcat"]

NSIDE = 32
NSIDE_FINE = 512
_FINE_PER_FILE = (NSIDE_FINE // NSIDE) ** 2
_FORMAT = 1


class RefCat:
    """A reference catalogue, read by cone.

    Parameters
    ----------
    path : str or Path
        Directory of a store made by `build_refcat`.

    Attributes
    ----------
    kind : RefKind
    n_sources : int
    summary : dict
        What `catalog.json` says of the store as a whole.

    Raises
    ------
    BadInput
        There is no store at `path`, or a file of it is missing or altered.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            catalog = json.loads((self.path / "catalog.json").read_text())
            self.kind, self.summary = kind_named(catalog["kind"]), catalog["summary"]
            self._files = {int(name): entry for name, entry in catalog["partitions"].items()}
            self._index_hash, self._max_pm = catalog["index_sha256"], catalog["max_pm_mas_yr"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self.path}: no reference-catalogue store ({error})") from error
        if catalog.get("format") != _FORMAT:
            raise BadInput(f"{self.path}: store of format {catalog.get('format')}, {_FORMAT} wanted: build it again")
        self._row_of = {pixel: row for row, pixel in enumerate(sorted(self._files))}
        self._parts: dict[int, np.ndarray] = {}
        self._starts = self._load("index.npy", self._index_hash, np.dtype(np.int32))

    @classmethod
    def from_file(
        cls, path: str | Path, kind: str | RefKind = "gaia", columns: Mapping[str, str] | None = None
    ) -> "RefCat":
        """A plain CSV, FITS, VOTable or Parquet file as a small catalogue held in memory.

        Parameters
        ----------
        path : str or Path
        kind : {"gaia", "ps1"} or RefKind
        columns : mapping, optional
            Our column name -> name in the file, where it is not the archive's own.
        """
        self = cls.__new__(cls)
        self.path, counts = Path(path), RowCounts()
        self.kind = kind_named(kind) if isinstance(kind, str) else kind
        rows = _one_of_each(
            _joined(self.kind, read_rows(self.path, self.kind, columns or {}, counts)), self.kind, counts
        )
        self.summary = {"n_sources": len(rows)} | vars(counts)
        self._max_pm = _fastest(rows)
        self._files, self._row_of, self._starts = {}, {}, np.zeros((0, _FINE_PER_FILE + 1), np.int32)
        self._parts = {-1: rows}
        return self

    @classmethod
    def open(cls, path: str | Path, kind: str) -> "RefCat":
        """A store where `path` is a directory, otherwise a plain catalogue file."""
        return cls(path) if Path(path).is_dir() else cls.from_file(path, kind)

    @classmethod
    def open_photometric(cls, path: str | Path, bands: Sequence[str]) -> "RefCat":
        """Stars with magnitudes in some bands: a PS1 store or file for bands of PS1, otherwise a plain file.

        Raises
        ------
        BadInput
            A store has no such band, or the file lacks a column (`refcat_sources.photometric_kind`).
        """
        others = [band for band in bands if f"{band}mag" not in PS1_COLUMNS]
        if not others:
            return cls.open(path, "ps1")
        if Path(path).is_dir():
            raise BadInput(f"{path}: a PS1 store has no band {', '.join(others)}; give a file with ra, dec, Xmag, Xerr")
        return cls.from_file(path, photometric_kind(bands))

    @property
    def n_sources(self) -> int:
        """Number of sources of the whole catalogue."""
        return int(self.summary["n_sources"])

    def cone(self, ra: float, dec: float, radius_deg: float, epoch_yr: float | None = None) -> np.ndarray:
        """Sources within a radius of a position.

        Parameters
        ----------
        ra, dec : float
            Centre, degrees ICRS.
        radius_deg : float
        epoch_yr : float, optional
            Julian year to which the positions are moved (Gaia only); the errors grow by those of the proper motion.

        Returns
        -------
        ndarray
            Structured, of the kind's dtype, by magnitude and then identity; sources without a magnitude last.

        Raises
        ------
        BadInput
            The cone is not on the sphere, or a partition is missing or altered.
        """
        if not (np.isfinite(ra) and abs(dec) <= 90.0 and 0.0 < radius_deg <= 90.0):
            raise BadInput(f"cone at ra {ra}, dec {dec}, radius {radius_deg} deg: not on the sphere")
        epoch = epoch_yr if self.kind.name == "gaia" else None
        rows = self._near(ra % 360.0, dec, min(radius_deg + self._drift_deg(epoch), 90.0))
        vectors = unit_vectors(rows["ra"], rows["dec"])
        if epoch is not None:
            vectors = _move(rows, vectors, epoch)
        centre = unit_vectors(ra, dec)
        chord2 = sum((vectors[:, k] - centre[k]) ** 2 for k in range(3))
        # take and compress copy whole rows; indexing a structured array copies field by field, ten times slower.
        rows = np.compress(chord2 <= 4.0 * np.sin(np.radians(radius_deg) / 2.0) ** 2, rows)
        return rows.take(_by_magnitude(rows, self.kind))

    def verify(self) -> None:
        """Check every file of the store against its hash.

        Raises
        ------
        BadInput
            A file is missing or altered: the message names it.
        """
        for pixel, entry in sorted(self._files.items()):
            self._check(_file_name(pixel), entry["sha256"])
        if self._files:
            self._check("index.npy", self._index_hash)

    def _drift_deg(self, epoch_yr):
        """How far the fastest star may have moved; no catalogue in use is older than 2000."""
        return 0.0 if epoch_yr is None else self._max_pm / 3.6e6 * max(abs(epoch_yr - 2016.0), 16.0)

    def _near(self, ra, dec, radius_deg):
        """Copy of the rows of all fine pixels that touch a circle."""
        if -1 in self._parts:
            return self._parts[-1].copy()
        ranges = hpgeom.query_circle(NSIDE_FINE, ra, dec, radius_deg, inclusive=True, return_pixel_ranges=True)
        pieces = []
        for low, high in np.asarray(ranges):
            for pixel in range(int(low) // _FINE_PER_FILE, (int(high) - 1) // _FINE_PER_FILE + 1):
                if pixel in self._files:
                    first = max(int(low) - pixel * _FINE_PER_FILE, 0)
                    last = min(int(high) - pixel * _FINE_PER_FILE, _FINE_PER_FILE)
                    starts = self._starts[self._row_of[pixel]]
                    pieces.append(self._part(pixel)[starts[first] : starts[last]])
        if not pieces:
            return np.empty(0, self.kind.dtype)
        whole_rows = [piece.view(f"V{self.kind.dtype.itemsize}") for piece in pieces]
        return np.concatenate(whole_rows).view(self.kind.dtype)

    def _part(self, pixel):
        if pixel not in self._parts:
            self._parts[pixel] = self._load(_file_name(pixel), self._files[pixel]["sha256"], self.kind.dtype)
        return self._parts[pixel]

    def _load(self, name, sha256, dtype):
        self._check(name, sha256)
        rows = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        if rows.dtype != dtype:
            raise BadInput(
                f"{self.path / name}: columns {rows.dtype.names}, {dtype.names} wanted: build the store again"
            )
        return rows.view(np.ndarray)

    def _check(self, name, sha256):
        try:
            found = sha256_of(self.path / name)
        except OSError as error:
            raise BadInput(f"{self.path / name}: partition cannot be read ({error.strerror})") from error
        if found != sha256:
            raise BadInput(f"{self.path / name}: altered since the store was built (SHA-256 differs)")


def build_refcat(
    kind: str,
    sources: Iterable[str | Path],
    out_dir: str | Path,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Build the store of a reference catalogue; it appears under its name only when it is whole.

    The sources are read in pieces; memory holds one piece and one partition. Where the same store (kind, columns and
    sources of the same hashes) is there already, nothing is done.

    Parameters
    ----------
    kind : {"gaia", "ps1"}
    sources : iterable of path
        CSV, FITS, VOTable or Parquet files.
    out_dir : path
    columns : mapping, optional
        Our column name -> name in the sources, where it is not the archive's own (`GAIA_COLUMNS`, `PS1_COLUMNS`).

    Returns
    -------
    dict
        n_sources, n_partitions, n_read, n_bad, n_duplicate, n_no_pm.

    Raises
    ------
    BadInput
        A source cannot be read or lacks a column, or holds no usable row.
    UsageError
        Something else stands at `out_dir`.
    """
    ref_kind, out, columns = kind_named(kind), Path(out_dir), dict(columns or {})
    paths = sorted(Path(source) for source in sources)
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
    recipe = {"kind": kind, "columns": columns, "sources": {path.name: sha256_of(path) for path in paths}}
    if out.exists():
        return _standing(out, recipe)
    with passing_faults(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = temporary_name(out)
        try:
            summary = _build_in(work, ref_kind, paths, recipe)
            os.replace(work, out)
            flush_to_disk(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return summary


def _standing(out, recipe):
    """Summary of the store that stands at `out`, if it is the one wanted."""
    try:
        catalog = json.loads((out / "catalog.json").read_text())
    except (OSError, ValueError):
        catalog = {}
    if catalog.get("format") != _FORMAT or any(catalog.get(key) != value for key, value in recipe.items()):
        raise UsageError(f"{out} exists and is not the store of these sources: remove it or give another name")
    return catalog["summary"]


def _build_in(work: Path, kind: RefKind, paths, recipe) -> dict[str, Any]:
    (work / f"nside{NSIDE}").mkdir(parents=True)
    counts, starts, fastest = RowCounts(), [], 0.0
    partitions: dict[str, dict[str, Any]] = {}
    for path in paths:
        for rows in read_rows(path, kind, recipe["columns"], counts):
            _spool(work, rows)
    for spool in sorted(work.glob("*.spool")):
        pixel = int(spool.stem)
        rows = _one_of_each(np.fromfile(spool, kind.dtype), kind, counts)
        rows, first = _by_fine_pixel(rows, pixel, kind)
        spool.unlink()
        np.save(work / _file_name(pixel), rows)
        flush_to_disk(work / _file_name(pixel))
        partitions[f"{pixel:05d}"] = {"count": len(rows), "sha256": sha256_of(work / _file_name(pixel))}
        starts.append(first)
        fastest = max(fastest, _fastest(rows))
    if not partitions:
        raise BadInput(f"{', '.join(map(str, paths)) or 'no source'}: no usable row in {counts.n_read}")
    np.save(work / "index.npy", np.stack(starts))
    flush_to_disk(work / "index.npy")
    n_sources = sum(entry["count"] for entry in partitions.values())
    summary = {"n_sources": n_sources, "n_partitions": len(partitions)} | vars(counts)
    layout = {"format": _FORMAT, "nside": NSIDE, "nside_fine": NSIDE_FINE, "dtype": [list(d) for d in kind.dtype.descr]}
    hashes = {"partitions": partitions, "index_sha256": sha256_of(work / "index.npy"), "max_pm_mas_yr": fastest}
    write_json(work / "catalog.json", recipe | layout | hashes | {"summary": summary})
    return summary


def _file_name(pixel: int) -> str:
    return f"nside{NSIDE}/{pixel:05d}.npy"


def _spool(work: Path, rows: np.ndarray) -> None:
    """Append rows to the spool file of their partition."""
    pixels = hpgeom.angle_to_pixel(NSIDE, rows["ra"], rows["dec"])
    order = np.argsort(pixels, kind="stable")
    values, first = np.unique(pixels[order], return_index=True)
    for pixel, piece in zip(values, np.split(rows[order], first[1:]), strict=False):
        with open(work / f"{pixel:05d}.spool", "ab") as file:
            file.write(piece.tobytes())


def _one_of_each(rows: np.ndarray, kind: RefKind, counts: RowCounts) -> np.ndarray:
    """Rows by magnitude and identity; of repeated identities the first."""
    rows = rows[np.lexsort([rows[kind.identity], _finite_magnitude(rows, kind)])]
    _, first = np.unique(rows[kind.identity], return_index=True)
    counts.n_duplicate += len(rows) - len(first)
    return rows[np.sort(first)]


def _by_fine_pixel(rows, pixel, kind):
    """Rows by fine pixel (then as they are), and where each fine pixel begins."""
    fine = hpgeom.angle_to_pixel(NSIDE_FINE, rows["ra"], rows["dec"]) - pixel * _FINE_PER_FILE
    order = np.argsort(fine, kind="stable")
    first = np.searchsorted(fine[order], np.arange(_FINE_PER_FILE + 1)).astype(np.int32)
    return rows[order], first


def _joined(kind, pieces):
    pieces = list(pieces)
    return np.concatenate(pieces) if pieces else np.empty(0, kind.dtype)


def _fastest(rows: np.ndarray) -> float:
    """Largest proper motion of the rows, mas/yr."""
    if "pmra" not in (rows.dtype.names or ()) or not len(rows):
        return 0.0
    return float(np.hypot(rows["pmra"], rows["pmdec"]).max())


def _finite_magnitude(rows, kind):
    magnitude = rows[kind.magnitude]
    return np.where(np.isnan(magnitude), np.float32(np.inf), magnitude)


def _by_magnitude(rows: np.ndarray, kind: RefKind) -> np.ndarray:
    """Order by magnitude, then identity: one quick sort of (magnitude, row) packed into 64 bits, then the ties."""
    magnitude = _finite_magnitude(rows, kind)
    bits = magnitude.view(np.uint32)
    # As unsigned integers floats sort like numbers once the sign bit is turned over, negative ones all bits.
    sortable = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    packed = np.sort(sortable << np.uint64(32) | np.arange(len(rows), dtype=np.uint64))
    order = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    same = np.diff(packed >> np.uint64(32)) == 0
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    among = order[tied]
    order[tied] = among[np.lexsort([rows[kind.identity][among], magnitude[among]])]
    return order


def _move(rows: np.ndarray, vectors: np.ndarray, epoch_yr: float) -> np.ndarray:
    """Apply proper motions in place; returns the moved unit vectors. Exact at the poles and across ra 0."""
    x, y, z = vectors.T
    years = epoch_yr - rows["epoch"].astype(np.float64)
    cos_d = np.sqrt(x * x + y * y)
    # At the poles themselves East is taken as for right ascension zero.
    safe = np.where(cos_d > 0, cos_d, 1.0)
    cos_ra, sin_ra = np.where(cos_d > 0, x / safe, 1.0), y / safe
    step = np.radians(1.0 / 3.6e6) * years
    east, north = step * rows["pmra"], step * rows["pmdec"]
    moved = np.empty_like(vectors)
    moved[:, 0] = x - east * sin_ra - north * z * cos_ra
    moved[:, 1] = y + east * cos_ra - north * z * sin_ra
    moved[:, 2] = z + north * cos_d
    x, y, z = moved.T
    flat = np.sqrt(x * x + y * y)
    rows["ra"] = wrap_360(np.degrees(np.arctan2(y, x)))
    rows["dec"] = np.degrees(np.arctan2(z, flat))
    moved /= np.sqrt(flat * flat + z * z)[:, None]
    for axis in ("ra", "dec"):
        rows[f"{axis}_err"] = np.sqrt(rows[f"{axis}_err"] ** 2 + (rows[f"pm{axis}_err"] * years) ** 2)
    rows["epoch"] = epoch_yr
    return moved
