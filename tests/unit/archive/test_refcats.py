"""The store of reference catalogues: building from exports, cones, proper motions, faults."""

import gzip
import json
import time

import numpy as np
import pyarrow as pa
import pytest
from astropy.table import Table
from pyarrow import parquet

from zsds_hpc.archive import refcats
from zsds_hpc.archive.refcats import GAIA_DTYPE, PS1_DTYPE, RefCat, build_refcat
from zsds_hpc.astrometry.sphere import separation_deg, unit_vectors
from zsds_hpc.core.errors import BadInput, UsageError


def gaia_columns(n=3000, seed=0, centre=(0.0, 20.0), size_deg=3.0):
    """A Gaia export as a dictionary of columns, across right ascension zero."""
    rng = np.random.default_rng(seed)
    half = size_deg / 2
    return {
        "source_id": rng.permutation(n).astype(np.int64) + 4_000_000_000_000_000_000,
        "ra": (centre[0] + rng.uniform(-half, half, n) / np.cos(np.radians(centre[1]))) % 360.0,
        "dec": centre[1] + rng.uniform(-half, half, n),
        "ref_epoch": np.full(n, 2016.0),
        "pmra": rng.normal(0, 20, n), "pmdec": rng.normal(0, 20, n),
        "ra_error": rng.uniform(0.02, 1.0, n), "dec_error": rng.uniform(0.02, 1.0, n),
        "phot_g_mean_mag": np.round(rng.uniform(10, 20.7, n), 2), "bp_rp": rng.uniform(0, 3, n),
    }  # fmt: skip


def write(columns, path):
    """Write columns in the format of the path's suffix."""
    if path.name.endswith(".parquet"):
        parquet.write_table(pa.table(columns), path, row_group_size=1000)
    elif path.name.endswith(".vot"):
        Table(columns).write(path, format="votable")
    elif path.name.endswith(".csv.gz"):
        plain = write(columns, path.with_suffix(""))
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        Table(columns).write(path, format="ascii.csv" if ".csv" in path.name else None, overwrite=True)
    return path


def expected_in_cone(columns, ra, dec, radius_deg):
    """Identities within a radius, by the haversine formula, ordered by magnitude and identity."""
    d_ra, d_dec = np.radians(columns["ra"] - ra), np.radians(columns["dec"] - dec)
    cosines = np.cos(np.radians(dec)) * np.cos(np.radians(columns["dec"]))
    away = 2 * np.arcsin(np.sqrt(np.sin(d_dec / 2) ** 2 + cosines * np.sin(d_ra / 2) ** 2))
    inside = np.flatnonzero(np.degrees(away) <= radius_deg)
    order = np.lexsort([columns["source_id"][inside], columns["phot_g_mean_mag"][inside].astype(np.float32)])
    return columns["source_id"][inside][order]


@pytest.fixture(scope="module")
def gaia(tmp_path_factory):
    columns = gaia_columns(20_000)
    place = tmp_path_factory.mktemp("gaia")
    build_refcat("gaia", [write(columns, place / "g.parquet")], place / "store")
    return columns, place / "store"


@pytest.mark.parametrize(
    "cone", [(0.0, 20.0, 0.7), (359.7, 20.5, 0.3), (0.9, 19.2, 0.05), (0.0, 20.0, 5.0), (1.5, 18.5, 1e-4)]
)
def test_cone_holds_what_it_should(gaia, cone):
    columns, store = gaia
    rows = RefCat(store).cone(*cone)
    assert rows.dtype == GAIA_DTYPE
    np.testing.assert_array_equal(rows["source_id"], expected_in_cone(columns, *cone))


def test_cone_far_away_is_empty(gaia):
    rows = RefCat(gaia[1]).cone(180.0, -60.0, 1.0, 2020.0)
    assert len(rows) == 0 and rows.dtype == GAIA_DTYPE


def test_values_are_kept(gaia):
    columns, store = gaia
    row = RefCat(store).cone(0.0, 20.0, 3.0)[0]
    k = int(np.flatnonzero(columns["source_id"] == row["source_id"])[0])
    assert (row["ra"], row["dec"]) == (columns["ra"][k], columns["dec"][k])
    for ours, theirs in (("pmra", "pmra"), ("ra_err", "ra_error"), ("mag", "phot_g_mean_mag"), ("color", "bp_rp")):
        assert row[ours] == np.float32(columns[theirs][k])


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "fits", "fits.gz", "vot", "parquet"])
def test_every_format_gives_the_same_store(tmp_path, suffix):
    columns = gaia_columns(500)
    stores = []
    for name in ("parquet", suffix):
        out = tmp_path / f"store-{name}"
        build_refcat("gaia", [write(columns, tmp_path / f"g.{name}")], out)
        stores.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*.npy")})
    assert stores[0] == stores[1]


def test_pieces_and_duplicates(tmp_path, monkeypatch):
    """Two overlapping sources read in small pieces give the store of one source, repeats counted."""
    columns = gaia_columns(5000)
    monkeypatch.setattr("zsds_hpc.archive.refcat_sources.CHUNK_ROWS", 300)
    first = write({k: v[:3000] for k, v in columns.items()}, tmp_path / "a.parquet")
    second = write({k: v[2500:] for k, v in columns.items()}, tmp_path / "b.fits")
    whole = write(columns, tmp_path / "whole.csv")
    summary = build_refcat("gaia", [second, first], tmp_path / "two")
    build_refcat("gaia", [whole], tmp_path / "one")
    assert (summary["n_sources"], summary["n_duplicate"], summary["n_read"]) == (5000, 500, 5500)
    one, two = (RefCat(tmp_path / name).cone(0, 20, 3.0) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_bad_rows_are_counted(tmp_path):
    columns = gaia_columns(200)
    columns["ra"][:5], columns["dec"][5:8], columns["dec"][8] = np.nan, np.inf, 95.0
    columns["pmra"][20:30] = np.nan
    columns["ra_error"][40] = np.nan
    summary = build_refcat("gaia", [write(columns, tmp_path / "g.csv")], tmp_path / "s")
    assert (summary["n_bad"], summary["n_no_pm"], summary["n_sources"]) == (9, 10, 191)
    rows = RefCat(tmp_path / "s").cone(0, 20, 4.0)
    still = rows[np.isin(rows["source_id"], columns["source_id"][20:30])]
    assert (still["pmra"] == 0).all() and (still["pmdec"] == 0).all() and (still["pmra_err"] == 10.0).all()
    assert rows["ra_err"][rows["source_id"] == columns["source_id"][40]] == 10.0
    assert np.isfinite([rows[name] for name in ("ra", "dec", "ra_err", "pmra_err", "epoch")]).all()


def test_nulls_in_every_format(tmp_path):
    table = pa.table({"source_id": [1, None, 3], "ra": [10.0, 10.1, None], "dec": [5.0, 5.0, 5.0],
                      "phot_g_mean_mag": [None, 12.0, 13.0]})  # fmt: skip
    parquet.write_table(table, tmp_path / "g.parquet")
    (tmp_path / "g.csv").write_text(
        "# made by hand\nsource_id,ra,dec,phot_g_mean_mag\n1,10.0,5.0,null\n,10.1,5,12\n3,,5,13\n"
    )
    for name in ("g.parquet", "g.csv"):
        cat = RefCat.from_file(tmp_path / name)
        rows = cat.cone(10.0, 5.0, 1.0, 2020.0)
        assert rows["source_id"].tolist() == [1]
        assert np.isnan(rows["mag"][0]) and cat.summary["n_bad"] == 2


def test_proper_motion_against_small_steps():
    """Linear motion on the sphere, also at high declination and across right ascension zero."""
    for ra, dec in ((359.99999, 10.0), (30.0, 89.999), (200.0, -89.9999)):
        start = np.zeros(1, GAIA_DTYPE)
        start["ra"], start["dec"], start["epoch"] = ra, dec, 2016.0
        start["pmra"], start["pmdec"], start["pmra_err"], start["ra_err"] = 3000.0, -4000.0, 0.4, 0.3
        start["pmdec_err"], start["dec_err"] = 0.1, 0.2
        rows = start.copy()
        refcats._move(rows, unit_vectors(rows["ra"], rows["dec"]), 2026.0)
        assert 3.6e6 * separation_deg(ra, dec, rows["ra"], rows["dec"])[0] == pytest.approx(50_000, abs=0.1)
        a, d = np.radians(ra), np.radians(dec)
        east, north = (
            np.array([-np.sin(a), np.cos(a), 0]),
            np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)]),
        )
        moved = unit_vectors(rows["ra"], rows["dec"])[0]
        assert np.degrees(moved @ east) * 3.6e6 == pytest.approx(30_000, abs=0.1)
        assert np.degrees(moved @ north) * 3.6e6 == pytest.approx(-40_000, abs=0.1)
        assert rows["ra_err"][0] == pytest.approx(np.hypot(0.3, 4.0))
        assert rows["dec_err"][0] == pytest.approx(np.hypot(0.2, 1.0))
        assert rows["epoch"][0] == 2026.0


def test_fast_star_enters_and_leaves_the_cone(tmp_path):
    columns = {k: v[:2].copy() for k, v in gaia_columns(10).items()}
    columns["ra"][:], columns["dec"][:] = [10.0, 10.0], [0.0, 0.3]
    columns["pmra"][:], columns["pmdec"][:] = 0.0, [10_000.0, 0.0]
    build_refcat("gaia", [write(columns, tmp_path / "g.csv")], tmp_path / "s")
    cat = RefCat(tmp_path / "s")
    radius = 20 / 3600
    assert len(cat.cone(10.0, 0.0, radius, 2016.0)) == 1
    assert len(cat.cone(10.0, 0.0, radius, 2019.0)) == 0
    assert len(cat.cone(10.0, 100 / 3600, radius, 2026.0)) == 1
    assert len(cat.cone(10.0, 100 / 3600, radius)) == 0


def test_poles_and_wide_cones(tmp_path):
    rng = np.random.default_rng(1)
    columns = gaia_columns(3000)
    columns["ra"], columns["dec"] = rng.uniform(0, 360, 3000), 90 - np.sqrt(rng.uniform(0, 4, 3000))
    build_refcat("gaia", [write(columns, tmp_path / "g.parquet")], tmp_path / "s")
    cat = RefCat(tmp_path / "s")
    for cone in ((0.0, 90.0, 1.0), (123.0, 89.5, 0.7), (359.99, 89.9, 0.5)):
        np.testing.assert_array_equal(cat.cone(*cone)["source_id"], expected_in_cone(columns, *cone))


def ps1_columns():
    return {"objID": np.array([7, 8, 9]), "raMean": np.array([10.0, 10.1, 10.2]), "decMean": np.full(3, -5.0),
            "gMeanPSFMag": np.array([15.0, -999.0, 17.0]), "gMeanPSFMagErr": np.full(3, 0.01),
            "rMeanPSFMag": np.array([15.0, 14.0, -999.0]), "rMeanPSFMagErr": np.full(3, 0.01),
            "iMeanPSFMag": np.array([15.0, 16.0, 17.0]), "iMeanPSFMagErr": np.full(3, 0.01)}  # fmt: skip


def test_ps1(tmp_path):
    build_refcat("ps1", [write(ps1_columns(), tmp_path / "p.csv")], tmp_path / "s")
    rows = RefCat(tmp_path / "s").cone(10.1, -5.0, 1.0, epoch_yr=2020.0)
    assert rows.dtype == PS1_DTYPE
    assert rows["objid"].tolist() == [8, 7, 9]  # by r, the one without r last
    assert np.isnan(rows["gmag"][0]) and np.isnan(rows["rmag"][2])


def test_own_column_names(tmp_path):
    columns = {{"ra": "RA_ICRS", "phot_g_mean_mag": "Gmag"}.get(k, k): v for k, v in gaia_columns(50).items()}
    path = write(columns, tmp_path / "g.csv")
    with pytest.raises(BadInput, match=r"g\.csv: no column 'ra' \(our ra\).*'RA_ICRS'"):
        build_refcat("gaia", [path], tmp_path / "s")
    assert not (tmp_path / "s").exists()
    build_refcat("gaia", [path], tmp_path / "s", {"ra": "RA_ICRS", "mag": "gmag"})  # case does not matter
    with pytest.raises(BadInput, match="no column 'magnitude' in a gaia catalogue; the nearest is 'mag'"):
        RefCat.from_file(path, "gaia", {"magnitude": "Gmag"})


def test_small_file_is_a_catalogue(gaia, tmp_path):
    columns, store = gaia
    cat = RefCat.from_file(write(columns, tmp_path / "g.csv"))
    assert cat.n_sources == 20_000
    for epoch in (None, 2021.3):
        np.testing.assert_array_equal(cat.cone(0.2, 20.1, 0.6, epoch), RefCat(store).cone(0.2, 20.1, 0.6, epoch))


def test_file_without_identities(tmp_path):
    (tmp_path / "g.csv").write_text("ra,dec,phot_g_mean_mag\n10,20,15\n10.01,20,14\n")
    assert RefCat.from_file(tmp_path / "g.csv").cone(10, 20, 1)["source_id"].tolist() == [1, 0]


def test_building_again(gaia, tmp_path):
    path = write(gaia_columns(100), tmp_path / "g.csv")
    first = build_refcat("gaia", [path], tmp_path / "s")
    stamp = (tmp_path / "s/catalog.json").stat().st_mtime_ns
    assert build_refcat("gaia", [path], tmp_path / "s") == first
    assert (tmp_path / "s/catalog.json").stat().st_mtime_ns == stamp
    write(gaia_columns(101), path)
    with pytest.raises(UsageError, match="remove it"):
        build_refcat("gaia", [path], tmp_path / "s")


def test_failed_build_leaves_nothing(tmp_path):
    good = write(gaia_columns(100), tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("source_id,ra,dec,phot_g_mean_mag\n1,10,x,12\n")
    with pytest.raises(BadInput, match=r"b\.csv: cannot be read"):
        build_refcat("gaia", [good, tmp_path / "b.csv"], tmp_path / "s")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("g.txt", b"ra,dec\n", "format '.txt' unknown"),
        ("g.csv", b"", "no line of column names"),
        ("g.parquet", b"PAR1 not at all", "cannot be read"),
        ("g.fits", b"SIMPLE", "cannot be read"),
        ("g.vot", b"<VOTABLE", "cannot be read"),
        ("g.csv.gz", b"no gzip", "cannot be read"),
        ("g.csv", b"source_id,ra,dec,phot_g_mean_mag\n", "no usable row"),
        ("g.csv", b"source_id,ra,dec,phot_g_mean_mag\n1,nan,5,12\n", "no usable row in 1"),
    ],
)
def test_unusable_sources(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        build_refcat("gaia", [path], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_missing_source_and_kind(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        build_refcat("gaia", [tmp_path / "absent.csv"], tmp_path / "s")
    with pytest.raises(BadInput, match="valid kinds are gaia, ps1"):
        build_refcat("2mass", [], tmp_path / "s")
    with pytest.raises(BadInput, match="no reference-catalogue store"):
        RefCat(tmp_path)


@pytest.mark.parametrize("cone", [(np.nan, 0.0, 1.0), (0.0, 91.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, np.nan)])
def test_cones_off_the_sphere(gaia, cone):
    with pytest.raises(BadInput, match="not on the sphere"):
        RefCat(gaia[1]).cone(*cone)


def test_a_flipped_bit_never_passes(tmp_path):
    store = tmp_path / "s"
    build_refcat("gaia", [write(gaia_columns(2000), tmp_path / "g.csv")], store)
    RefCat(store).verify()
    rng = np.random.default_rng(0)
    for path in sorted(store.rglob("*.npy")):
        whole = path.read_bytes()
        for _ in range(3):
            broken = bytearray(whole)
            broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(broken))
            with pytest.raises(BadInput, match=path.name):
                RefCat(store).cone(0.0, 20.0, 3.0)
            path.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(BadInput, match=path.name):
                RefCat(store).verify()
        path.write_bytes(whole)
    gone = sorted((store / "nside32").iterdir())[0]
    gone.unlink()
    with pytest.raises(BadInput, match=gone.name):
        RefCat(store).verify()


def test_catalog_of_another_format(tmp_path):
    build_refcat("gaia", [write(gaia_columns(20), tmp_path / "g.csv")], tmp_path / "s")
    catalog = tmp_path / "s/catalog.json"
    catalog.write_text(json.dumps(json.loads(catalog.read_text()) | {"format": 99}))
    with pytest.raises(BadInput, match="build it again"):
        RefCat(tmp_path / "s")


def test_a_cone_of_50000_stars_is_read_in_milliseconds(tmp_path):
    columns = gaia_columns(200_000, size_deg=2.4)
    build_refcat("gaia", [write(columns, tmp_path / "g.parquet")], tmp_path / "s")
    cat = RefCat(tmp_path / "s")
    seconds = []
    for _ in range(6):
        started = time.process_time()
        rows = cat.cone(0.0, 20.0, 0.7, 2020.7)
        seconds.append(time.process_time() - started)
    assert len(rows) > 45_000
    print(f"{len(rows)} rows: {1e3 * min(seconds):.1f} ms")
    assert min(seconds) < 0.05  # 10 ms on a quiet machine
