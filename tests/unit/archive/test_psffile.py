"""PSF files: read back as they were, and by an independent reader of PSFEx files."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.archive.fitsfiles import Hdu, write_fits
from zsds_hpc.archive.psffile import read_psf, write_psf
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf.build import PsfParams, profile_psf

SHAPE = (308, 320)


@pytest.fixture(scope="module")
def model():
    """Wider towards the upper right."""
    params = PsfParams()
    narrow, wide = (profile_psf(StarProfile(f, 3.0, 0.1, 0.05), SHAPE, params).coefficients[0] for f in (2.0, 2.2))
    plain = profile_psf(StarProfile(2.0, 3.0), SHAPE, params)
    middle = plain.coefficients.shape[1]
    size = min(narrow.shape[0], wide.shape[0], middle)
    narrow, wide = (a[(a.shape[0] - size) // 2 :][:size, (a.shape[0] - size) // 2 :][:, :size] for a in (narrow, wide))
    terms = np.stack([(narrow + wide) / 2, (wide - narrow) / 4, (wide - narrow) / 4])
    return replace(plain, coefficients=terms.astype(np.float32), degree=1, n_stars=57, chi2_dof=1.02)


def test_reading_back_restores_the_model(model, tmp_path):
    write_psf(tmp_path / "a.psf", model, [("LOADED", 80)])
    again = read_psf(tmp_path / "a.psf")
    assert np.abs(again.coefficients - model.coefficients).max() < 1e-6 * model.coefficients.max()
    for name in ("oversampling", "degree", "shape", "n_stars", "chi2_dof"):
        assert getattr(again, name) == getattr(model, name)
    assert again.wing == pytest.approx(model.wing)
    header = fits.getheader(tmp_path / "a.psf", 1)
    assert header["EXTNAME"] == "PSF_DATA"
    assert header["LOADED"] == 80
    assert header["PSF_FWHM"] == pytest.approx(model.fwhm_pix)


def test_assumed_model_has_no_chi2(model, tmp_path):
    write_psf(tmp_path / "a.psf", replace(model, n_stars=0, chi2_dof=float("nan")))
    assert np.isnan(read_psf(tmp_path / "a.psf").chi2_dof)


def test_galsim_reads_the_same_stars(model, tmp_path):
    galsim = pytest.importorskip("galsim")
    des = pytest.importorskip("galsim.des")
    write_psf(tmp_path / "a.psf", model)
    reader = des.DES_PSFEx(str(tmp_path / "a.psf"))
    m = model.oversampling
    for x, y, limit in ((50.0, 60.0, 3e-4), (290 + 1 / m, 300 - 1 / m, 3e-4), (20.37, 290.21, 6e-3)):
        star = reader.getPSF(galsim.PositionD(x + 1, y + 1))
        image = star.drawImage(nx=15, ny=15, scale=1.0, method="no_pixel", offset=(x - round(x), y - round(y))).array
        ours = model.images(np.array([x]), np.array([y]), 7)[0]
        # Between the samples it interpolates with another function.
        assert np.abs(image - ours).max() < limit * ours.max()


@pytest.mark.parametrize(
    ("card", "value", "what"),
    [
        ("PSF_SAMP", 0.4, "layout"),
        ("POLZERO1", 3.0, "layout"),
        ("ACCEPTED", "x", "ACCEPTED"),
        ("PSFWINGF", "x", "WINGF"),
    ],
)
def test_other_layouts_are_refused(model, tmp_path, card, value, what):
    write_psf(tmp_path / "a.psf", model, [(card, value)])
    with pytest.raises(BadInput, match=what):
        read_psf(tmp_path / "a.psf")


def test_damaged_files_are_refused(model, tmp_path):
    path = tmp_path / "a.psf"
    write_psf(path, model)
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    (tmp_path / "flipped.psf").write_bytes(data)
    (tmp_path / "short.psf").write_bytes(path.read_bytes()[:-2880])
    write_fits(tmp_path / "other.psf", [Hdu(np.zeros(3, [("X", "f4")]))])
    for name in ("flipped.psf", "short.psf", "other.psf", "missing.psf"):
        with pytest.raises(BadInput):
            read_psf(tmp_path / name)
