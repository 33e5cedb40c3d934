"""Realtime on an archive: continued in memory or from files, what blocks it, which reference it takes, plain files."""

import json
import shutil
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits

from tests.helpers import diffnight, night
from tests.helpers.diffnight import CODE, FIELD, NIGHT, RCID
from zsds_hpc.archive import database, scifiles
from zsds_hpc.archive.atomic import sha256_of
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.core.errors import Retryable
from zsds_hpc.core.states import State
from zsds_hpc.pipelines import calibrate, realtime
from zsds_hpc.production import cli

FIRST, SECOND, OTHER = (
    f"ztf_20200924{fracday}_000655_{code}_c06_o_q1"
    for fracday, code in (("403105", "zr"), ("431751", "zr"), ("445640", "zg"))
)


@pytest.fixture
def searched(diff_night, tmp_path):
    """A copy of the archive in which all is done."""
    return diff_night.copy_of(diff_night.searched, tmp_path / "archive")


@pytest.fixture
def ingested(diff_night, tmp_path):
    """A copy of the archive as it was before."""
    return diff_night.copy_of(diff_night.ingested, tmp_path / "archive")


def run(diff_night, archive, pipeline="realtime", *more):
    return cli.main([pipeline, *diff_night.options(archive), *more])


def record(archive, unit, pipeline="realtime"):
    return read_record(archive / f"records/{pipeline}/{NIGHT}/{unit}.json")


@contextmanager
def references(archive):
    """The database's references, to be changed."""
    engine = database.open_database(archive)
    with engine.begin() as connection:
        yield connection, database.reference_images
    engine.dispose()


def product(archive, unit, suffix):
    (path,) = archive.glob(f"sci/2020/0924/*/{unit}_{suffix}")
    return path


def times(archive):
    return {p: p.stat().st_mtime_ns for p in archive.glob("sci/2020/0924/*/*")}


def test_every_unit_is_in_one_state(diff_night):
    archive = diff_night.searched
    assert [record(archive, unit).state for unit in (FIRST, SECOND, OTHER)] == [State.DONE, State.DONE, State.BLOCKED]
    assert record(archive, OTHER).reason == "calibrate is BLOCKED: no flat for filter zg within 30 days"
    for unit in (FIRST, SECOND):
        found = record(archive, unit)
        suffixes = {name.split("_q1_")[1] for name in found.outputs}
        assert suffixes == set(realtime.PIPELINE.outputs)
        made = record(archive, unit, "calibrate").outputs
        assert {name: found.inputs[name] for name in made} == {name: seal.sha256 for name, seal in made.items()}
        assert sum(name.endswith("refimg.fits") for name in found.inputs) == 1
    assert not night.leftovers(archive)


def test_products_are_read_by_astropy_and_belong_together(diff_night):
    found = record(diff_night.searched, FIRST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in found.outputs:
            if ".fits" in name:
                with fits.open(diff_night.searched / name, checksum=True) as hdus:
                    header = hdus[-1].header if name.endswith(".fz") else hdus[0].header
                    assert (header["RFID"], header["REFNFRM"], header["RCID"]) == (655120220, 6, RCID)
                    assert header["REFVER"] == 1 and "OBSJD" in header and header["MAGZP"] > 20
    pix, sigma, mask = (
        fits.getdata(product(diff_night.searched, FIRST, f"{kind}.fits.fz"), 1)
        for kind in ("scimrefdiffimg", "scimrefdiffunc", "diffmsk")
    )
    usable = sigma > 0
    ratio = pix[usable] / sigma[usable]
    assert np.isfinite(pix).all() and usable.mean() > 0.9 and (mask[~usable] != 0).all() and not pix[~usable].any()
    assert abs(np.sqrt(np.mean(ratio[np.abs(ratio) < 3] ** 2)) / 0.9866 - 1) < 0.03  # of a normal variate within 3
    psf = fits.getdata(product(diff_night.searched, FIRST, "diffimgpsf.fits"))
    assert psf.shape == (25, 25) and abs(psf.sum() - 1) < 0.03 and psf.argmax() == 312
    assert found.metrics["n_candidates"] == len(fits.getdata(product(diff_night.searched, FIRST, "diffcand.fits"), 1))


def test_continued_from_sealed_files_the_products_are_the_same(diff_night, ingested):
    assert run(diff_night, ingested, "calibrate") == 20
    before = times(ingested)
    assert run(diff_night, ingested) == 20
    after = times(ingested)
    assert {p: after[p] for p in before} == before, "calibrated images that are sealed are not made again"
    assert diffnight.products(ingested) == diffnight.products(diff_night.searched)
    assert night.records(ingested) == night.records(diff_night.searched)
    assert night.tables(ingested) == night.tables(diff_night.searched)


def test_an_image_in_memory_is_that_of_its_files(diff_night, ingested, monkeypatch):
    """To the bit: pixels, mask, model, catalogue, WCS, numbers and every card."""
    in_memory, kept = scifiles.science_in_memory, []

    def keep(*arguments):
        kept.append((in_memory(*arguments), arguments[-1]))
        return kept[-1][0]

    monkeypatch.setattr(scifiles, "science_in_memory", keep)
    assert run(diff_night, ingested, "realtime", "--only", FIRST) == 0
    (((science, cards), name),) = kept
    again, cards_again = scifiles.read_science(next(ingested.rglob(name)))
    for field in ("pix", "mask", "psfcat"):
        one, other = getattr(science, field), getattr(again, field)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), field
    assert science.psf.coefficients.tobytes() == again.psf.coefficients.tobytes()
    assert science.psf.wing == again.psf.wing and science.psf.shape == again.psf.shape
    for field in ("crval", "crpix", "cd", "pv1", "pv2"):
        assert np.array_equal(getattr(science.wcs, field), getattr(again.wcs, field)), field
    for field in ("gain_e", "saturate_dn", "magzp", "clrcoeff", "seeing_pix", "maglim"):
        assert getattr(science, field) == getattr(again, field), field
    own = {"CHECKSUM", "DATASUM", "SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "EXTEND"}
    assert {k: v for k, v in cards.items() if k not in own} == {k: v for k, v in cards_again.items() if k not in own}


def test_a_second_run_makes_nothing(diff_night, searched):
    before = times(searched)
    assert run(diff_night, searched) == 20
    assert times(searched) == before and night.records(searched) == night.records(diff_night.searched)


@pytest.mark.parametrize(
    ("lost", "remade"),
    [("diffcand.fits", {"diff", "scimref"}), ("sciimg.fits", {"sci", "msk", "psf", "sex", "log", "preview"})],
)
def test_a_lost_product_is_made_again_alone(diff_night, searched, lost, remade):
    """With the rest of its unit; the other pipeline's products and the other image stay as they are."""
    path, before = product(searched, FIRST, lost), times(searched)
    path.unlink()
    assert run(diff_night, searched) == 20
    after = times(searched)
    changed = {p.name.split("_q1_")[1] for p in after if after[p] != before.get(p)}
    assert lost in changed and all(name.startswith(tuple(remade)) for name in changed)
    assert ("scimrefdiffimg.fits.fz" in changed) == (lost == "diffcand.fits")
    assert diffnight.products(searched) == diffnight.products(diff_night.searched)


NO_REFERENCE = f"no reference of field {FIELD}, {CODE}, CCD 6, quadrant 1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: sa.delete(table), NO_REFERENCE),
        (lambda table: sa.update(table).values(filtercode="zg"), NO_REFERENCE),
        (lambda table: sa.update(table).values(field=656), NO_REFERENCE),
        (lambda table: sa.update(table).values(usable=False), NO_REFERENCE),
        (lambda table: sa.update(table).values(epochs=[FIRST, SECOND]), f"{NO_REFERENCE} that it has no part in"),
    ],
    ids=["none", "other filter", "other field", "not usable", "made of it"],
)
def test_without_a_reference_the_image_is_calibrated_all_the_same(diff_night, ingested, change, reason):
    with references(ingested) as (connection, table):
        connection.execute(change(table))
    assert run(diff_night, ingested, "realtime", "--only", FIRST) == 0
    found = record(ingested, FIRST)
    assert (found.state, found.reason, found.outputs) == (State.NO_WORK, reason, {})
    made = record(ingested, FIRST, "calibrate")
    assert made.state == State.DONE and len(made.outputs) == 7


def copy_reference(archive, version, epochs=None):
    """The reference once more, as a version that was made later."""
    with references(archive) as (connection, table):
        row = dict(connection.execute(sa.select(table)).mappings().first())
        old = archive / row["path"]
        for path in old.parent.glob("ztf_000655_zr_c06_q1_*"):
            shutil.copy(path, path.with_name(path.name.replace("_q1_", f"_q1_v{version:03d}_")))
        new = old.with_name(old.name.replace("_q1_", f"_q1_v{version:03d}_"))
        row |= {"path": str(new.relative_to(archive)), "version": version, "epochs": epochs or row["epochs"]}
        connection.execute(sa.insert(table).values(**row))
    return row["path"]


def reference_of(archive, unit):
    (name,) = [name for name in record(archive, unit).inputs if name.endswith("refimg.fits")]
    return name


def test_a_new_version_is_taken_where_it_is_asked_for(diff_night, searched):
    old, new = reference_of(searched, FIRST), copy_reference(searched, 2)
    before = times(searched)
    assert run(diff_night, searched) == 20
    assert reference_of(searched, FIRST) == old and times(searched) == before, "images keep the reference they had"
    assert run(diff_night, searched, "realtime", "--set", "renew=true") == 20
    assert {reference_of(searched, unit) for unit in (FIRST, SECOND)} == {new} != {old}
    after = times(searched)
    assert all(after[p] != before[p] for p in before if "_diff" in p.name)
    assert all(after[p] == before[p] for p in before if p.name.endswith(("sciimg.fits", "psfcat.fits")))


def test_the_newest_reference_that_the_image_has_no_part_in(diff_night, ingested):
    newer, newest = copy_reference(ingested, 2), copy_reference(ingested, 3, [FIRST])
    assert run(diff_night, ingested) == 20
    assert (reference_of(ingested, FIRST), reference_of(ingested, SECOND)) == (newer, newest)


@pytest.mark.parametrize(
    ("suffix", "how"), [("refgrid.fits", "cut"), ("refunc.fits", "lost"), ("refimg.psf", "cut"), ("refmsk.fits", "cut")]
)
def test_a_damaged_reference_is_named(diff_night, searched, suffix, how):
    (path,) = searched.rglob(f"*q1_{suffix}")
    path.unlink() if how == "lost" else path.write_bytes(path.read_bytes()[:4000])
    product(searched, FIRST, "diffcand.fits").unlink()
    assert run(diff_night, searched, "realtime", "--only", FIRST) == 20
    found = record(searched, FIRST)
    assert found.state == State.UNPROCESSABLE and path.name in found.reason and not found.outputs
    assert record(searched, FIRST, "calibrate").state == State.DONE


def test_a_calibration_that_fails_blocks_the_search(diff_night, ingested):
    """Half a raw image; mended, both run."""
    only = ("--only", FIRST)
    raw = next(ingested.glob(f"raw/2020/0924/*/{FIRST}_raw.fits"))
    content = raw.read_bytes()
    raw.write_bytes(content[: len(content) // 2])
    assert run(diff_night, ingested, "realtime", *only) == 20
    first, found = record(ingested, FIRST, "calibrate"), record(ingested, FIRST)
    assert first.state in (State.UNPROCESSABLE, State.FAILED) and found.state == State.BLOCKED
    assert found.reason == f"calibrate is {first.state}: {first.reason}" and not found.outputs
    raw.write_bytes(content)
    assert run(diff_night, ingested, "realtime", "--retry-failed", *only) == 0
    assert record(ingested, FIRST).state == State.DONE


def test_a_full_disk_is_worth_retrying(diff_night, ingested, monkeypatch):
    def full(*_):
        raise Retryable("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "write_products", full)
        assert run(diff_night, ingested, "realtime", "--only", FIRST) == 75
    assert record(ingested, FIRST, "calibrate").state == State.ABORTED
    assert record(ingested, FIRST).state == State.BLOCKED
    assert run(diff_night, ingested, "realtime", "--only", FIRST) == 0
    made = {k: v for k, v in diffnight.products(diff_night.searched).items() if FIRST in k}
    assert {k: v for k, v in diffnight.products(ingested).items() if FIRST in k} == made


def test_what_calibrate_found_unusable_is_not_searched(diff_night, searched):
    """By the flag in its header, which only the pipeline reads."""
    path = product(searched, FIRST, "sciimg.fits")
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["STATUS"] = 0
    place = searched / f"records/calibrate/{NIGHT}/{FIRST}.json"
    content = json.loads(place.read_text())
    (name,) = [name for name in content["outputs"] if name.endswith("sciimg.fits")]
    content["outputs"][name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    place.write_text(json.dumps(content))
    assert run(diff_night, searched, "realtime", "--only", FIRST) == 20
    found = record(searched, FIRST)
    assert found.state == State.UNPROCESSABLE and "not usable, INFOBITS = 0" in found.reason


class Plain:
    """Plain files of a searched archive: a calibrated image with what lies beside it, a reference."""

    def __init__(self, diff_night, place):
        self.night, self.out = diff_night, place / "out"
        for path in diff_night.searched.glob(f"sci/2020/0924/*/{FIRST}_*"):
            if path.name.endswith(("sciimg.fits", "mskimg.fits", "psfcat.fits", "sciimg.psf")):
                shutil.copy(path, place)
        shutil.copytree(next(diff_night.searched.rglob("*_refimg.fits")).parent, place / "ref")
        self.sciimg, self.refimg = place / f"{FIRST}_sciimg.fits", next((place / "ref").glob("*refimg.fits"))

    def run(self):
        return cli.main(
            ["realtime", str(self.sciimg), "--refimg", str(self.refimg), "--out", str(self.out),
             "--camera", str(self.night.camera)]
        )  # fmt: skip


@pytest.fixture
def plain(diff_night, tmp_path):
    return Plain(diff_night, tmp_path)


def test_plain_files_give_the_same_products(diff_night, plain):
    assert plain.run() == 0
    made = {path.name: sha256_of(path) for path in plain.out.iterdir()}
    searched = {path.rsplit("/", 1)[1]: value for path, value in diffnight.products(diff_night.searched).items()}
    assert {name for name in made if "diff" in name} == {n for n in searched if FIRST in n and "diff" in n}
    assert all(made[name] == searched[name] for name in made if "diff" in name)


def test_plain_files_of_another_filter_are_refused(plain, capfd):
    with fits.open(plain.sciimg, mode="update") as hdus:
        hdus[0].header["DBFID"], hdus[0].header["FILTER"] = 1, "ZTF_g"
    assert plain.run() == 20
    assert "filter ZTF_g, the reference is of zr" in "".join(capfd.readouterr())
    assert not plain.out.exists() or not list(plain.out.glob("*diff*"))


def test_plain_files_without_zero_point_are_refused(plain, capfd):
    with fits.open(plain.sciimg, mode="update") as hdus:
        del hdus[0].header["MAGZP"]
    assert plain.run() == 20
    assert "no MAGZP in its header: not photometrically calibrated" in "".join(capfd.readouterr())
