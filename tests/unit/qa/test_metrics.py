"""QA figures, INFOBITS and STATUS."""

import numpy as np
import pytest

from zsds_hpc.core import maskbits
from zsds_hpc.qa.metrics import BITS, ImageMetrics, QaParams, bit_texts, describe, info_bits, saturated_percent, status

GOOD = {
    "background_dn": 400.0,
    "noise_dn": 8.2,
    "saturated_percent": 0.01,
    "n_sources": 3000,
    "seeing_pix": 2.0,
    "seeing_arcsec": 2.02,
    "maglim": 20.6,
    "n_calibrators": 1500,
    "magzp": 26.3,
    "magzp_rms": 0.02,
    "n_photometric": 900,
    "n_astrometric": 1200,
    "astrometric_rms_arcsec": 0.04,
    "scale_change_min_percent": -0.02,
    "scale_change_max_percent": 0.03,
    "astrometric_max_grid_residual_arcsec": 0.01,
    "matched_percent": 90.0,
}


def test_a_good_image_has_no_bits_and_is_usable():
    bits = info_bits(ImageMetrics(**GOOD), QaParams())
    assert bits == 0
    assert status(bits, QaParams()) == 1
    assert describe(bits, QaParams()) == []


@pytest.mark.parametrize(
    ("bit", "change"),
    [
        (0, {"background_dn": 4001.0}),
        (0, {"background_dn": float("nan")}),
        (1, {"noise_dn": 101.0}),
        (2, {"saturated_percent": 51.0}),
        (3, {"seeing_arcsec": 5.1}),
        (4, {"maglim": 17.4}),
        (7, {"n_sources": 19}),
        (8, {"magzp": None}),
        (9, {"n_calibrators": 29}),
        (10, {"n_photometric": 4}),
        (11, {"magzp_rms": 0.21}),
        (12, {"astrometric_rms_arcsec": None}),
        (14, {"n_astrometric": 99}),
        (16, {"scale_change_min_percent": -1.1}),
        (16, {"scale_change_max_percent": 1.1}),
        (19, {"astrometric_max_grid_residual_arcsec": 0.8}),
        (21, {"matched_percent": 49.0}),
    ],
)
def test_each_test_sets_its_own_bit_only(bit, change):
    bits = info_bits(ImageMetrics(**{**GOOD, **change}), QaParams())
    assert bits == 1 << bit
    assert len(describe(bits, QaParams())) == 1
    assert status(bits, QaParams()) == (0 if bit in (8, 12, 16) else 1)


def test_every_bit_has_a_test_here_and_a_text_without_holes():
    assert set(BITS) == {0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 14, 16, 19, 21}
    assert all("{" not in text for text in bit_texts(QaParams()).values())


def test_saturated_percent_counts_only_its_bit():
    mask = np.zeros((10, 20), np.int16)
    mask[0] = maskbits.SATURATED | maskbits.SOURCE
    mask[1] = maskbits.DEAD
    assert saturated_percent(mask) == pytest.approx(10.0)
