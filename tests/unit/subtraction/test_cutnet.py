"""The network's forward pass against SciPy's correlation, and what it is shown."""

import numpy as np
import pytest
from scipy import signal

from zsds_hpc.core.errors import BadInput
from zsds_hpc.subtraction.cutnet import (
    CROP_PIX,
    KERNEL,
    N_CHANNELS,
    CutNet,
    difference_noise,
    inputs_of,
    network_input,
)

WIDTHS = {"conv1": 4, "conv2": 5, "conv3": 6, "conv4": 7, "dense1": 8, "dense2": 1}
N_NUMBERS = 3


def random_arrays(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {"center": np.array([1, 2, 3], np.float32), "scale": np.array([1, 0.5, 2], np.float32)}
    n_in = N_CHANNELS
    for layer, n_out in WIDTHS.items():
        arrays[f"{layer}_w"] = rng.normal(0, 0.3, (inputs_of(layer, n_in, N_NUMBERS), n_out)).astype(np.float32)
        arrays[f"{layer}_b"] = rng.normal(0, 0.3, n_out).astype(np.float32)
        n_in = n_out
    return arrays


def slow_logit(arrays, x, numbers):
    """One candidate, map by map, in double precision."""
    for layer in ("conv1", "conv2", "conv3", "conv4"):
        w = arrays[f"{layer}_w"].astype(float).reshape(KERNEL, KERNEL, x.shape[2], -1)
        maps = [
            sum(signal.correlate2d(x[:, :, c], w[:, :, c, k], mode="valid") for c in range(x.shape[2]))
            + arrays[f"{layer}_b"][k]
            for k in range(w.shape[3])
        ]
        x = np.maximum(np.stack(maps, axis=2), 0)
        if layer in ("conv2", "conv4"):
            n = x.shape[0] // 2
            x = np.array(
                [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(0, 1)) for j in range(n)] for i in range(n)]
            )
    told = np.arcsinh((numbers - arrays["center"]) / arrays["scale"])
    hidden = np.maximum(np.r_[x.ravel(), told] @ arrays["dense1_w"] + arrays["dense1_b"], 0)
    return (hidden @ arrays["dense2_w"] + arrays["dense2_b"])[0]


def stamps(n=3, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(10 * k, 2.0, (n, 63, 63)).astype(np.float32) for k in range(3)]


def test_forward_pass_is_that_of_its_definition():
    arrays = random_arrays()
    rng = np.random.default_rng(2)
    seen = rng.normal(size=(3, CROP_PIX, CROP_PIX, N_CHANNELS)).astype(np.float32)
    numbers = rng.normal(2.0, 3.0, (3, N_NUMBERS))
    found = CutNet.from_arrays(arrays).logits(seen, numbers)
    expected = [slow_logit(arrays, x.astype(float), row) for x, row in zip(seen, numbers)]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_unknown_number_is_an_ordinary_one():
    arrays = random_arrays()
    net, seen = CutNet.from_arrays(arrays), np.zeros((3, CROP_PIX, CROP_PIX, N_CHANNELS), np.float32)
    numbers = np.tile(arrays["center"].astype(float), (3, 1))
    numbers[1, 0], numbers[2, 2] = np.nan, np.inf
    odds = net.logits(seen, numbers)
    assert odds[1:] == pytest.approx(odds[0], abs=1e-6)


def test_many_at_once_are_as_one_by_one():
    net = CutNet.from_arrays(random_arrays())
    seen = np.random.default_rng(3).normal(size=(21, CROP_PIX, CROP_PIX, N_CHANNELS)).astype(np.float32)
    numbers = np.random.default_rng(4).normal(size=(21, N_NUMBERS))
    one_by_one = np.concatenate([net.logits(x[None], row[None]) for x, row in zip(seen, numbers)])
    assert net.logits(seen, numbers) == pytest.approx(one_by_one, rel=1e-4, abs=1e-5)
    assert np.array_equal(net.logits(seen, numbers), net.logits(seen, numbers))
    assert net.logits(seen[:0], numbers[:0]).shape == (0,)


def test_levels_and_units_do_not_matter():
    science, template, difference = stamps()
    seen = network_input(science, template, difference, np.ones(3, bool))
    scaled = network_input(7 * science + 100, 7 * template - 50, 7 * difference, np.ones(3, bool))
    assert seen.shape == (3, CROP_PIX, CROP_PIX, N_CHANNELS)
    assert scaled == pytest.approx(seen, abs=2e-3)


def test_noise_is_that_of_the_difference():
    difference = np.random.default_rng(4).normal(3.0, 2.0, (40, 63, 63)).astype(np.float32)
    assert difference_noise(difference).mean() == pytest.approx(2.0, rel=0.03)
    difference[:, 20:43, 20:43] += 500.0  # a star does not make noise
    assert difference_noise(difference).mean() == pytest.approx(2.0, rel=0.4)


def test_a_vanished_star_is_shown_as_a_new_one():
    science, template, difference = stamps()
    new = network_input(science, template, difference, np.ones(3, bool))
    gone = network_input(template, science, difference, np.zeros(3, bool))
    assert np.array_equal(new, gone)


def test_missing_pixels_are_level_and_what_has_none_is_finite():
    science, template, difference = stamps()
    science[0, 25:30, 25:30] = np.nan
    difference[1] = np.nan
    template[2] = 5.0
    difference[2] = 0.0
    seen = network_input(science, template, difference, np.ones(3, bool))
    assert np.isfinite(seen).all()
    assert (seen[0, 6:11, 6:11, 0] == 0).all() and (seen[1, :, :, 2] == 0).all() and (seen[2, :, :, 1:] == 0).all()
    assert network_input(*(image[:0] for image in stamps()), np.zeros(0, bool)).shape[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("conv3_b"), "missing"),
        (lambda a: a.update(conv9_w=a["conv1_w"]), "unknown"),
        (lambda a: a.update(conv2_w=a["conv2_w"][:-1]), "conv2"),
        (lambda a: a.update(dense1_b=a["dense1_b"][:-1]), "dense1"),
        (lambda a: a.update(center=a["center"][:-1]), "center"),
        (lambda a: a.update(scale=0 * a["scale"]), "scale"),
        (lambda a: a["conv4_w"].__setitem__((0, 0), np.nan), "finite"),
        (lambda a: a.update(dense2_w=np.ones((8, 2), np.float32), dense2_b=np.ones(2, np.float32)), "outputs"),
    ],
)
def test_arrays_that_are_no_network_are_refused(change, message):
    arrays = random_arrays()
    change(arrays)
    with pytest.raises(BadInput, match=message):
        CutNet.from_arrays(arrays)
