"""Camera and site files: those that are shipped, and what is refused."""

import pytest

from tests.helpers import mininight
from zsds_hpc.core import ids
from zsds_hpc.core.errors import SettingsError
from zsds_hpc.pipelines.registry import NAMES, get_pipeline
from zsds_hpc.settings.camera import ROLES, load_camera
from zsds_hpc.settings.load import CONFIG_DIR, load_params
from zsds_hpc.settings.site import load_site


def test_ztf():
    camera = load_camera("ztf")
    assert camera.shape == (3080, 3072) and len(camera.channels) == 64
    for channel in camera.channels:
        assert (channel.ccdid, channel.qid) == ids.ccdid_qid_of(channel.rcid)
        assert (channel.image.ext, channel.overscan.ext) == (channel.qid, channel.qid + 4)
    assert [c.rcid for c in camera.ccd(13)] == [48, 49, 50, 51]
    assert camera.filters["zr"].pcolor == "g - r" and camera.filters["zi"].pcolor == "r - i"
    assert set(camera.required) == {
        "image_type", "exptime_s", "field", "ra_deg", "dec_deg", "filter", "jd", "program_id", "ccdid"
    }  # fmt: skip


def test_linearity_is_dated():
    channel = load_camera("ztf").channel(5)
    assert channel.linearity_on("20161231") == (0.0, 0.0)
    assert channel.linearity_on("20170101")[0] > 0


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "cameras").glob("*.yml")), ids=lambda p: p.stem)
def test_every_camera_loads(path):
    camera = load_camera(path.stem)
    assert camera.name == path.stem
    assert set(camera.header) <= set(ROLES)


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "sites").glob("*.yml")), ids=lambda p: p.stem)
def test_every_site_loads(path):
    site = load_site(path.stem)
    assert any("{ranks}" in word for word in site.launcher)


@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_file_loads(name):
    load_params(get_pipeline(name).params, CONFIG_DIR / "pipelines" / f"{name}.yml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("IMGTYPE,", "IMGTYPE, colour: X,", ["colour", "unknown"]),
        ("ccdid: CCD_ID}", "}", ["ccdid", "no keyword"]),
        ("rcid: 21", "rcid: 20", ["same rcid"]),
        ("n_x: 96", "n_x: 0", ["n_x"]),
        ("n_x: 96\n", "", ["n_x", "missing"]),
        ("n_x: 96", "n_x: 2000000000", ["n_x"]),
        ("gain_e: 6.0", "gain_e: -1", ["channels.0.gain_e"]),
        ("gain_e", "gain", ["channels.0.gain", "did you mean 'gain_e'"]),
        ("[-2.81e-4, 0.0, 0.0, -2.81e-4]", "[1, 2, 3]", ["cd_deg"]),
        ("pixel_scale_arcsec: 1.012", "pixel_scale_arcsec: .nan", ["pixel_scale_arcsec"]),
    ],
)
def test_refused_camera(tmp_path, old, new, words):
    path = mininight.write_camera(tmp_path / "mini.yml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SettingsError) as error:
        load_camera(path)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_unknown_names():
    with pytest.raises(SettingsError, match="zft"):
        load_camera("zft")
    with pytest.raises(SettingsError, match="mars"):
        load_site("mars")
    with pytest.raises(ValueError, match="no readout channel 64"):
        load_camera("ztf").channel(64)
