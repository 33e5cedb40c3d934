"""Linearity and the fused detrending pass against plain NumPy in float64."""

import numpy as np
import pytest

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.detrend import DetrendInputs, detrend
from zsds_hpc.detector.linearity import linearize

A, B = 1.0e-12, -1.0e-7


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    shape = (40, 53)
    return {
        "raw": rng.integers(900, 60000, shape).astype(np.uint16),
        "level": rng.normal(1000, 3, shape[0]).astype(np.float32),
        "superbias": rng.normal(0, 3, shape).astype(np.float32),
        "flat": rng.normal(1, 0.05, shape).astype(np.float32),
        "lowv": rng.normal(1, 0.02, shape).astype(np.float32),
    }


def expected(scene, a, b, flat=1.0, lowv=1.0, superbias=0.0):
    x = scene["raw"].astype(np.float64) - scene["level"][:, None] - superbias
    return x / (a * x * x + b * x + 1.0) / flat / lowv


def test_everything_together(scene):
    inputs = DetrendInputs(scene["superbias"], scene["flat"], scene["lowv"], A, B)
    before = {name: array.copy() for name, array in scene.items()}
    got = detrend(scene["raw"], scene["level"], inputs)
    assert got.dtype == np.float32
    truth = expected(scene, A, B, scene["flat"], scene["lowv"], scene["superbias"])
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-3)
    for name, array in before.items():
        np.testing.assert_array_equal(scene[name], array)


def test_absent_inputs(scene):
    bare = detrend(scene["raw"], scene["level"], DetrendInputs())
    np.testing.assert_allclose(bare, expected(scene, 0, 0), rtol=1e-6, atol=1e-3)
    only_flat = detrend(scene["raw"], scene["level"], DetrendInputs(flat=scene["flat"]))
    np.testing.assert_allclose(only_flat, expected(scene, 0, 0, scene["flat"]), rtol=1e-6, atol=1e-3)


def test_float_images_and_strided_input_give_the_same(scene):
    inputs = DetrendInputs(scene["superbias"], scene["flat"])
    whole = detrend(scene["raw"], scene["level"], inputs)
    as_float = detrend(scene["raw"].astype(np.float32), scene["level"].astype(np.float64), inputs)
    strided = detrend(np.asfortranarray(scene["raw"]), scene["level"], inputs)
    assert whole.tobytes() == as_float.tobytes() == strided.tobytes()


def test_a_light_path_is_undone_in_the_right_order():
    """Light -> response -> non-linear electronics -> pedestal, and back."""
    light = np.linspace(50, 55000, 600, dtype=np.float64).reshape(20, 30)
    flat = np.random.default_rng(1).normal(1, 0.05, light.shape).astype(np.float32)
    charge = light * flat
    x = charge.copy()
    for _ in range(50):  # the measured x with x / (A x^2 + B x + 1) = charge
        x = charge * (A * x * x + B * x + 1.0)
    level = np.linspace(990, 1010, 20).astype(np.float32)
    got = detrend((x + level[:, None]).astype(np.float32), level, DetrendInputs(None, flat, None, A, B))
    np.testing.assert_allclose(got, light, rtol=2e-6, atol=0.01)


def test_pixels_without_response_keep_their_signal_and_nan_bias_shows(scene):
    scene["flat"][0, :3] = [np.nan, 0.0, -1.0]
    scene["superbias"][1, 0] = np.nan
    got = detrend(scene["raw"], scene["level"], DetrendInputs(scene["superbias"], scene["flat"]))
    np.testing.assert_allclose(got[0, :3], expected(scene, 0, 0, 1, 1, scene["superbias"])[0, :3], rtol=1e-6)
    assert np.isnan(got).sum() == 1


def test_linearize_agrees_with_its_formula_and_spares_small_values():
    x = np.array([[-5.0, 0.0, 0.5, 100.0], [1e4, 3e4, 6e4, np.nan]], np.float32)
    got = linearize(x, 2e-12, -3e-7)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(got, wide / (2e-12 * wide**2 - 3e-7 * wide + 1), rtol=2e-7)
    np.testing.assert_allclose(got[0, :3], x[0, :3], rtol=1e-5)
    assert got.dtype == np.float32 and got.shape == x.shape
    assert linearize(x, 0.0, 0.0).tobytes() == x.tobytes()


@pytest.mark.parametrize(("a", "b"), [(0.0, 1e-4), (-1e-9, 0.0), (2.3e-9, -1e-4), (np.nan, 0.0), (0.0, np.inf)])
def test_absurd_coefficients(a, b):
    with pytest.raises(BadInput, match="linearity coefficients"):
        linearize(np.ones((2, 2), np.float32), a, b)


def test_bad_shapes_and_types(scene):
    raw, level = scene["raw"], scene["level"]
    with pytest.raises(BadInput, match="int32"):
        detrend(raw.astype(np.int32), level, DetrendInputs())
    with pytest.raises(BadInput, match="39 rows, the image 40"):
        detrend(raw, level[1:], DetrendInputs())
    with pytest.raises(BadInput, match="high-frequency flat has shape"):
        detrend(raw, level, DetrendInputs(flat=scene["flat"][1:]))
    with pytest.raises(BadInput, match="super-bias has shape"):
        detrend(raw, level, DetrendInputs(superbias=scene["flat"][:1]))
