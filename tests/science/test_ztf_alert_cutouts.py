"""What we measure on the difference cutouts of real alert packets against what the packets say of them."""

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.subtraction.candcat import FeatureParams
from zsds_hpc.subtraction.features import aperture_weights, ring_level, ring_of, sign_counts

fastavro = pytest.importorskip("fastavro")
ALERTS = Path(__file__).parents[2].parent / "shared" / "data" / "ztf_alerts"
pytestmark = pytest.mark.skipif(not ALERTS.is_dir(), reason=f"{ALERTS} is not there")
PARAMS = FeatureParams()


def pixels(cutout):
    with warnings.catch_warnings(action="ignore"), fits.open(io.BytesIO(gzip.decompress(cutout["stampData"]))) as hdus:
        return hdus[0].data.astype(np.float64)


@pytest.fixture(scope="module")
def packets():
    """(candidate, difference cutout) of every packet with a whole cutout, each candid once."""
    found = {}
    for path in sorted(ALERTS.rglob("*.avro")):
        with open(path, "rb") as file:
            for packet in fastavro.reader(file):
                if packet["cutoutDifference"] is not None:
                    stamp = pixels(packet["cutoutDifference"])
                    if stamp.shape == (63, 63) and np.isfinite(stamp).all():
                        found[packet["candidate"]["candid"]] = packet["candidate"], stamp
    assert len(found) > 80
    return list(found.values())


def column(packets, name):
    return np.array([candidate[name] for candidate, _ in packets], float)


def aperture_flux(packets, stamps, diameter, level):
    x, y = (column(packets, name) for name in ("xpos", "ypos"))
    weights = aperture_weights(x, y, diameter / 2, 31)
    return (weights * (stamps - level[:, None, None])).sum(axis=(1, 2))


@pytest.fixture(scope="module")
def calibrated(packets):
    """Those that give the zero point of their magnitudes."""
    return [packet for packet in packets if packet[0].get("magzpsci")]


def residuals(calibrated, name, diameter):
    """Our magnitudes less the packets'."""
    stamps = np.array([stamp for _, stamp in calibrated])
    level, _, _ = ring_level(stamps, ring_of(PARAMS.sky_inner_pix, PARAMS.sky_outer_pix))
    flux = aperture_flux(calibrated, stamps, diameter, level)
    assert (flux > 0).all(), "the packets' cutouts are turned so that the candidate is positive"
    return column(calibrated, "magzpsci") - 2.5 * np.log10(flux) - column(calibrated, name)


@pytest.mark.parametrize("name, diameter", [("magap", PARAMS.aperture_pix), ("magapbig", PARAMS.big_aperture_pix)])
def test_aperture_magnitudes(calibrated, name, diameter):
    """Medians: -0.001 and 0.001 mag. The survey's sky, from beyond the cutout, is some 0.1 DN/px off ours."""
    away = residuals(calibrated, name, diameter)
    assert abs(np.median(away)) < 0.01
    assert np.median(np.abs(away) / column(calibrated, f"sig{name}")) < 0.35


def test_no_other_aperture_does_as_well(calibrated):
    spread = [np.median(np.abs(residuals(calibrated, "magap", diameter))) for diameter in (12, 13, 14, 15, 16)]
    assert np.argmin(spread) == 2 and spread[2] < 0.025


def test_signs_of_the_middle_pixels(packets):
    """Exactly."""
    stamps = np.array([stamp[29:34, 29:34] for _, stamp in packets])
    nneg, sumrat = sign_counts(stamps)
    np.testing.assert_array_equal(nneg, column(packets, "nneg"))
    np.testing.assert_allclose(sumrat, column(packets, "sumrat"), atol=1e-4)


def test_definitions_that_need_no_pixels(packets):
    x, y = (column(packets, name) for name in ("xpos", "ypos"))
    edge = np.min([x, y, 3072.5 - x, 3080.5 - y], axis=0)
    np.testing.assert_allclose(column(packets, "mindtoedge"), edge, atol=2e-3)
    for name, one, two in (("magdiff", "magap", "magpsf"), ("magfromlim", "diffmaglim", "magap")):
        np.testing.assert_allclose(column(packets, name), column(packets, one) - column(packets, two), atol=1e-5)
    for name, one, two in (
        ("elong", "aimage", "bimage"),
        ("aimagerat", "aimage", "fwhm"),
        ("bimagerat", "bimage", "fwhm"),
    ):
        np.testing.assert_allclose(column(packets, name), column(packets, one) / column(packets, two), rtol=1e-4)
    assert column(packets, "seeratio").max() == 2.0
