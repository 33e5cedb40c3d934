"""Header cards of a calibrated image: what is known is there in the survey's keywords, what is not is left out."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.astrometry.tpv import N_TERMS, TPV
from zsds_hpc.photometry.psfcat import PSFCAT_DTYPE
from zsds_hpc.pipelines.calibrate_header import science_cards
from zsds_hpc.pipelines.calibrate_image import Calibrated, CalibrateParams, Setting
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.settings.camera import load_camera

CAMERA = load_camera("ztf")
NAME = "ztf_20200924431751_000655_zr_c06_o_q1"
FIGURES = {
    "saturate_dn": 57822.8, "floating_bias_dn": 989.8, "overscan_rms_dn": 0.27, "seeing_pix": 2.1, "infobits": 0,
    "status": 1, "background_dn": 135.6, "noise_dn": 5.0, "filtercode": "zr",
}  # fmt: skip
BUILT = {
    "n_psf_stars": 592, "psf_fwhm_pix": 2.239, "psf_fwhm_min_pix": 2.203, "psf_fwhm_max_pix": 2.283,
    "psf_ellipticity": 0.0346, "psf_angle_deg": 82.2, "psf_chi2": 1.027, "psf_normalization_mag": -0.0012,
}  # fmt: skip
PSF_KEYWORDS = ["NPSFSTAR", "PSFFWHM", "PSFFWMIN", "PSFFWMAX", "PSFELLIP", "PSFANGLE", "PSFCHI2", "PSFNORM"]


def header(metrics, n_psf=7, carried=()):
    """Header as it will stand in a file."""
    linear = np.eye(N_TERMS)[1]
    wcs = TPV(np.array([55.0, 33.0]), np.array([1535.5, 1539.5]), np.diag([-2.8e-4, 2.8e-4]), linear, linear)
    psf = PsfModel(np.zeros((1, 9, 9), np.float32), 1, 0, CAMERA.shape)
    pix, mask = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int16)
    result = Calibrated(pix, mask, np.zeros(3), np.zeros(n_psf, PSFCAT_DTYPE), psf, wcs, metrics, [])
    raw = SimpleNamespace(
        name=NAME, channel=next(c for c in CAMERA.channels if c.rcid == 20), cards=list(carried),
        exposure=SimpleNamespace(programid=1),
    )  # fmt: skip
    cards = science_cards(raw, {}, result, Setting(CAMERA, CalibrateParams()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a comment that does not fit
        return fits.Header.fromstring(fits.Header([fits.Card(*card) for card in cards]).tostring())


def test_figures_of_the_psf():
    found = header(FIGURES | BUILT)
    assert [found[key] for key in PSF_KEYWORDS] == [pytest.approx(value) for value in BUILT.values()]
    assert found["NPSFCAT"] == 7


def test_a_psf_that_stands_in_has_no_shape():
    found = header(FIGURES | {"n_psf_stars": 0, "psf_fwhm_pix": 2.2, "psf_chi2": float("nan")}, n_psf=0)
    assert found["NPSFSTAR"] == 0 and found["NPSFCAT"] == 0 and found["PSFFWHM"] == 2.2
    assert [key for key in PSF_KEYWORDS if key in found] == ["NPSFSTAR", "PSFFWHM"]


def test_unknown_values_are_left_out_and_raw_cards_replaced():
    found = header(FIGURES, carried=[("PSFFWHM", 9.9, "of the guider"), ("TELESCOP", "P48", ""), ("CD1_1", 1.0, "")])
    assert "PSFFWHM" not in found and found["TELESCOP"] == "P48"  # the raw file's is not ours
    assert found.count("CD1_1") == 1 and found["CD1_1"] == pytest.approx(-2.8e-4)
    assert "MAGZP" not in found and "APCOR1" not in found and found["NMATCHES"] == 0


def test_zero_point_and_apertures():
    zero = {
        "magzp": 26.3055,
        "magzp_unc": 0.0022,
        "clrcoeff": 0.0743,
        "n_matches": 1261,
        "apcor1": -1.2,
        "apcorun1": 0.01,
    }
    found = header(FIGURES | zero)
    assert (found["MAGZP"], found["MAGZPUNC"], found["NMATCHES"]) == (26.3055, 0.0022, 1261)
    assert found["APCOR1"] == -1.2 and found["PCOLOR"] and found["DBFID"] == 2
