"""A reference written and read again; damaged and foreign products are refused."""

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers import minirefs
from zsds_hpc.archive import refimages
from zsds_hpc.archive.fitsfiles import FitsFile
from zsds_hpc.coadd.template import TemplateParams, make_reference
from zsds_hpc.core.errors import BadInput
from zsds_hpc.settings.camera import load_camera

FACTS = {
    "rfid": 655120220, "version": 1, "field": 655, "rcid": 20, "filtercode": "zr", "jdstart": 2459116.9,
    "jdend": 2459116.95,
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    camera = load_camera(minirefs.camera_file(tmp_path_factory.mktemp("camera")))
    sky = minirefs.random_sky(camera)
    exposures = [minirefs.take(camera, sky, shot) for shot in minirefs.shots(4)]
    return make_reference(exposures, minirefs.grid_of(camera), minirefs.MAGZP, TemplateParams(), FACTS)


@pytest.fixture
def written(tmp_path, reference):
    cards = refimages.reference_cards(reference, [f"epoch{k}" for k in range(4)], "ZTF_r")
    refimages.write_reference(reference, cards, ["a line"], lambda suffix: tmp_path / f"ref_{suffix}")
    return tmp_path / "ref_refimg.fits"


def test_template_comes_back(written, reference):
    found, template = refimages.read_template(written), reference.template
    for name in ("coefficients", "sigma", "mask", "catalogue"):
        assert np.array_equal(getattr(found, name), getattr(template, name), equal_nan=name != "catalogue"), name
    assert found.facts == template.facts
    assert (found.magzp, found.clrcoeff) == (template.magzp, template.clrcoeff)
    assert (found.grid.shape, found.grid.factor, found.grid.margin_pix) == ((170, 180), 1.5, 16)
    np.testing.assert_allclose(found.grid.wcs.cd, template.grid.wcs.cd, rtol=1e-12)
    np.testing.assert_allclose(found.psf.center(8), template.psf.center(8), atol=1e-6)


def test_every_product_is_there_and_read_by_others(written, reference):
    names = {path.name for path in written.parent.iterdir()}
    assert names == {f"ref_{s}" for s in (refimages.IMAGE, *refimages.SUFFIXES, *refimages.OTHERS)}
    with fits.open(written, checksum=True) as hdus:
        header = hdus[0].header
        np.testing.assert_array_equal(hdus[0].data, reference.pix)
    assert header["MAGZP"] == 26.275 and header["NFRAMES"] == 4 and header["FRAME004"] == "epoch3"
    assert header["RFID"] == 655120220 and header["CCDID"] == 6 and header["FILTERID"] == 2
    coverage = FitsFile(refimages.companion(written, "refcov.fits")).image()
    assert coverage.dtype == np.int16 and coverage.max() == 4
    assert len(FitsFile(refimages.companion(written, "refsexcat.fits")).table(1)) == reference.metrics["n_sources"]
    from astropy.wcs import WCS  # the fine grid's header is the fine grid's WCS

    fine = FitsFile(refimages.companion(written, "refgrid.fits")).header()
    place = WCS(fine).all_world2pix([reference.template.grid.wcs.pixel_to_sky(50.0, 60.0)], 0)[0]
    np.testing.assert_allclose(place, reference.template.grid.to_fine([50.0, 60.0]), atol=1e-5)


@pytest.mark.parametrize("suffix", refimages.SUFFIXES)
def test_damage_is_seen(written, suffix):
    path = refimages.companion(written, suffix)
    data = bytearray(path.read_bytes())
    data[-3000] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(BadInput):
        refimages.read_template(written)


@pytest.mark.parametrize("suffix", refimages.SUFFIXES)
def test_missing_product_is_named(written, suffix):
    refimages.companion(written, suffix).unlink()
    with pytest.raises(BadInput, match=suffix):
        refimages.read_template(written)


def test_products_of_two_references_do_not_mix(written, reference, tmp_path):
    other = reference._replace(template=reference.template)
    other.template.facts["rfid"] = 1
    try:
        cards = refimages.reference_cards(other, [], "ZTF_r")
    finally:
        other.template.facts["rfid"] = FACTS["rfid"]
    place = tmp_path / "other"
    place.mkdir()
    refimages.write_reference(other, cards, [], lambda suffix: place / f"ref_{suffix}")
    (place / "ref_refgrid.fits").replace(refimages.companion(written, "refgrid.fits"))
    with pytest.raises(BadInput, match="another reference"):
        refimages.read_template(written)


def test_only_reference_images_have_companions(tmp_path):
    with pytest.raises(BadInput, match="named"):
        refimages.companion(tmp_path / "sciimg.fits", "refunc.fits")
