"""Calibration mask from planted defects."""

import numpy as np
import pytest

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import DEAD, HIGHRESP, LOWRESP, NOISY
from zsds_hpc.detector.badpix import BadpixParams, build_cmask

SHAPE = (700, 300)


@pytest.fixture
def flat():
    return np.random.default_rng(0).normal(1, 0.007, SHAPE).astype(np.float32)


@pytest.fixture
def noisy():
    return np.zeros(SHAPE, bool)


def test_good_pixels_have_no_bits(noisy, flat):
    mask = build_cmask(noisy, flat)
    assert mask.dtype == np.int16 and not mask.any()


def test_single_pixels(noisy, flat):
    flat[10, :7] = [0.0, 0.05, 0.3, 0.75, 1.25, 3.0, np.nan]
    flat[10, 7] = np.nan
    noisy[10, [5, 7]] = True
    before = flat.copy()
    got = build_cmask(noisy, flat)
    expected = [DEAD, DEAD, LOWRESP, LOWRESP, HIGHRESP, HIGHRESP | NOISY, DEAD, NOISY, 0]
    assert got[10, :9].tolist() == expected
    assert np.count_nonzero(got) == 8
    np.testing.assert_array_equal(flat, before)


@pytest.mark.parametrize(("response", "bit"), [(0.0, DEAD), (0.4, LOWRESP), (0.95, LOWRESP), (1.05, HIGHRESP)])
def test_bad_columns(noisy, flat, response, bit):
    flat[:, 40] *= response
    mask = build_cmask(noisy, flat)
    # The last rows are too few for a segment of their own and are judged with the one before.
    assert (mask[:, 40] == bit).all()
    assert not np.delete(mask, 40, axis=1).any()


def test_a_column_that_is_bad_in_part(noisy, flat):
    flat[256:, 40] *= 0.9
    mask = build_cmask(noisy, flat)
    assert (mask[256:, 40] == LOWRESP).all() and not mask[:256].any()


def test_a_column_with_many_bad_pixels_is_bad_as_a_whole(noisy, flat):
    noisy[:256:2, 40] = True
    flat[0, 40] = 0.0
    noisy[300:512:9, 41] = True
    mask = build_cmask(noisy, flat)
    assert ((mask[:256, 40] & NOISY) != 0).sum() >= 255
    assert mask[0, 40] == DEAD | NOISY
    assert (mask[:, 41] == NOISY).sum() == noisy[:, 41].sum()


def test_a_dead_column_begins_where_it_begins(noisy, flat):
    flat[100:, 40] = 0.0
    flat[300:, 41] *= 0.4
    mask = build_cmask(noisy, flat)
    assert np.array_equal(np.flatnonzero(mask[:, 40] == DEAD), np.arange(100, 700))
    assert np.array_equal(np.flatnonzero(mask[:, 41] == LOWRESP), np.arange(300, 700))
    assert np.count_nonzero(mask) == 600 + 400


def test_neighbouring_bad_columns_and_edges(noisy, flat):
    for x in (0, 1, 150, 151, 152, SHAPE[1] - 1):
        flat[:, x] *= 0.9
    mask = build_cmask(noisy, flat)
    assert sorted(set(np.nonzero(mask)[1])) == [0, 1, 150, 151, 152, SHAPE[1] - 1]


def test_dust_is_not_a_bad_column(noisy, flat):
    y, x = np.indices(SHAPE)
    flat *= 1 - 0.04 * (np.hypot(y - 350, x - 150) < 60)
    assert not build_cmask(noisy, flat).any()


def test_nothing_usable_and_tiny_images(noisy):
    assert (build_cmask(noisy, np.full(SHAPE, np.nan, np.float32)) == DEAD).all()
    assert not build_cmask(noisy[:5, :4], np.ones((5, 4), np.float32)).any()
    assert build_cmask(noisy[:0], np.ones((0, 300), np.float32)).shape == (0, 300)


def test_bad_input(noisy, flat):
    with pytest.raises(BadInput, match="do not fit"):
        build_cmask(noisy[1:], flat)
    with pytest.raises(BadInput, match="not in order"):
        build_cmask(noisy, flat, BadpixParams(dead_max=0.9))
