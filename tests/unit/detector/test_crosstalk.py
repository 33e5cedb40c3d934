"""Cross-talk against the full sum over siblings."""

import numpy as np
import pytest

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.crosstalk import CrosstalkParams, subtract_crosstalk, subtract_crosstalk_inplace

COEFFICIENTS = [1.3e-4, -0.7e-4, 2.0e-4]


@pytest.fixture
def siblings():
    rng = np.random.default_rng(0)
    faint = rng.normal(400, 8, (3, 60, 70)).astype(np.float32)
    for sibling in faint:
        sibling[rng.integers(0, 60, 40), rng.integers(0, 70, 40)] = rng.uniform(100, 60000, 40)
    return faint


def full_sum(siblings):
    return np.tensordot(COEFFICIENTS, siblings.astype(np.float64), 1)


def test_what_is_left_is_below_the_threshold(siblings):
    victim = np.full((60, 70), 400.0, np.float32)
    got = subtract_crosstalk(victim + full_sum(siblings).astype(np.float32), list(siblings), COEFFICIENTS)
    left = got - victim
    assert np.abs(left).max() <= 3 * 0.2
    bright = np.abs(full_sum(siblings)) > 3 * 0.2
    assert bright.sum() > 50 and np.abs(full_sum(siblings)).max() > 10
    assert np.abs(left[bright]).max() < 0.3


def test_threshold_zero_is_the_full_sum(siblings):
    victim = np.full((60, 70), 400.0, np.float32)
    got = subtract_crosstalk(victim, siblings, COEFFICIENTS, CrosstalkParams(correction_min_dn=0.0))
    np.testing.assert_allclose(got, victim - full_sum(np.maximum(siblings, 0)), atol=1e-4)
    assert (victim == 400.0).all()


def test_raw_siblings_with_their_levels(siblings):
    raw = np.rint(siblings + 1000).clip(0, 65535).astype(np.uint16)
    victim = np.zeros((60, 70), np.float32)
    from_raw = subtract_crosstalk(victim, raw, COEFFICIENTS, levels_dn=[1000.0] * 3)
    from_signal = subtract_crosstalk(victim, raw.astype(np.float32) - 1000, COEFFICIENTS)
    np.testing.assert_allclose(from_raw, from_signal, atol=0.2)
    assert np.abs(from_raw).max() > 5


def test_victim_already_divided_by_its_flat(siblings):
    flat = np.random.default_rng(1).uniform(0.8, 1.2, (60, 70)).astype(np.float32)
    flat[0, 0] = np.nan
    siblings[0, 0, 0] = 50000.0
    plain = subtract_crosstalk(np.zeros((60, 70), np.float32), siblings, COEFFICIENTS)
    divided = subtract_crosstalk(np.zeros((60, 70), np.float32), siblings, COEFFICIENTS, response=flat)
    np.testing.assert_allclose(divided, plain / np.where(flat > 0, flat, 1), rtol=1e-5)


def test_in_place_and_nothing_to_do(siblings):
    victim = np.full((60, 70), 400.0, np.float32)
    expected = subtract_crosstalk(victim, siblings, COEFFICIENTS)
    subtract_crosstalk_inplace(victim, siblings, COEFFICIENTS)
    assert victim.tobytes() == expected.tobytes()
    assert subtract_crosstalk(victim, [], []).tobytes() == victim.tobytes()
    assert subtract_crosstalk(victim, siblings, [0, 0, 0]).tobytes() == victim.tobytes()
    siblings[:] = np.nan
    assert subtract_crosstalk(victim, siblings, COEFFICIENTS).tobytes() == victim.tobytes()


def test_a_coefficient_too_small_for_the_converter():
    victim, sibling = np.ones((2, 2), np.float32), np.full((2, 2), 65535, np.uint16)
    assert (subtract_crosstalk(victim, [sibling], [1e-9]) == 1.0).all()


def test_bad_input(siblings):
    victim = np.zeros((60, 70), np.float32)
    with pytest.raises(BadInput, match="3 siblings, 2 cross-talk"):
        subtract_crosstalk(victim, siblings, [1e-4, 1e-4])
    with pytest.raises(BadInput, match="sibling channel has shape"):
        subtract_crosstalk(victim, [siblings[0][1:]], [1e-4])
