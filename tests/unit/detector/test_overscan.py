"""Floating bias: the error of the level against the known drift, and bad strips."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter1d
from scipy.signal import savgol_filter

from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.overscan import OverscanParams, floating_bias

NICKEL = Path(__file__).parents[4] / "shared" / "data" / "raw_nickel"
N_ROWS, READ_NOISE_DN = 3080, 1.6
RNG_STEPS = np.random.default_rng(11)
ROWS = np.arange(N_ROWS)
WALK = np.cumsum(RNG_STEPS.normal(0.0, 0.02, N_ROWS))
JITTER = RNG_STEPS.normal(0.0, 1.0, N_ROWS)


def strip_of(drift, seed=0, n_columns=30):
    """Digitised over-scan whose first columns carry a trail of the image."""
    rng = np.random.default_rng(seed)
    level = 1000.0 + drift[:, None] + 20.0 * 0.3 ** np.arange(n_columns)
    return np.rint(level + rng.normal(0.0, READ_NOISE_DN, level.shape)).astype(np.uint16)


def rms_error(bias, drift):
    return np.sqrt(np.mean((bias.level_dn - 1000.0 - drift) ** 2))


@pytest.mark.parametrize(
    ("drift", "most_dn"),
    [
        (np.zeros(N_ROWS), 0.02),
        (0.003 * ROWS, 0.02),
        (WALK, 0.07),
        (3.0 * np.sin(ROWS / 200.0), 0.06),
        (20.0 * np.exp(-ROWS / 100.0), 0.09),
        (5.0 * (ROWS > 1000), 0.14),
    ],
    ids=["flat", "line", "walk", "wave", "settling", "jump"],
)
def test_error_of_the_level(drift, most_dn):
    """A row's own mean errs by 1.62 / sqrt(26) = 0.318 DN."""
    assert rms_error(floating_bias(strip_of(drift)), drift) < most_dn


def test_jitter_of_the_rows_is_followed_only_when_it_is_said_to_be_in_the_image():
    """Otherwise it is noise of the strip: an estimate that followed it would stripe the image by 1 DN."""
    strip = strip_of(WALK + JITTER)
    assert rms_error(floating_bias(strip), WALK) < 0.15
    assert rms_error(floating_bias(strip, OverscanParams(follow_jitter=True)), WALK + JITTER) < 0.32
    steady = floating_bias(strip_of(WALK), OverscanParams(follow_jitter=True))
    assert rms_error(steady, WALK) < 0.07


def test_better_than_any_savitzky_golay_window_on_a_random_walk():
    strip = strip_of(WALK)
    means = strip[:, 4:].mean(axis=1) - 1000.0
    windows = [savgol_filter(means, w, k, mode="interp") for w in (5, 11, 21, 51, 101, 201) for k in (1, 2, 3)]
    best = min(np.sqrt(np.mean((w - WALK) ** 2)) for w in windows)
    assert rms_error(floating_bias(strip), WALK) < best


def test_quality_figures():
    bias = floating_bias(strip_of(WALK))
    assert bias.read_noise_dn == pytest.approx(np.hypot(READ_NOISE_DN, 12**-0.5), rel=0.02)
    assert bias.rms_dn == pytest.approx(bias.read_noise_dn / np.sqrt(26), rel=0.05)
    assert bias.n_rejected < 20
    assert bias.level_dn.shape == (N_ROWS,) and bias.level_dn.dtype == np.float32


def test_hits_and_lost_rows_do_not_matter():
    strip = strip_of(WALK).astype(np.float32)
    clean = floating_bias(strip)
    rng = np.random.default_rng(3)
    strip[rng.integers(0, N_ROWS, 300), rng.integers(4, 30, 300)] += 5000.0
    strip[700:703] = 60000.0
    strip[1500:1510] = np.nan
    strip[0] = np.nan
    before = strip.copy()
    bias = floating_bias(strip)
    np.testing.assert_array_equal(strip, before)
    assert rms_error(bias, WALK) < 1.1 * rms_error(clean, WALK)
    assert 300 <= bias.n_rejected <= 300 + 3 * 26 + 20


def test_the_trail_of_the_image_is_skipped():
    error = [np.mean(floating_bias(strip_of(0.0 * WALK), OverscanParams(n_skip=n)).level_dn) - 1000 for n in (0, 4)]
    assert error[0] > 0.1 and abs(error[1]) < 0.03


def test_quiet_channel_narrower_than_a_step_of_the_converter():
    rng = np.random.default_rng(5)
    strip = np.rint(1000.3 + rng.normal(0, 0.3, (500, 30))).astype(np.uint16)
    assert np.mean(floating_bias(strip).level_dn) == pytest.approx(strip[:, 4:].mean(), abs=0.01)


@pytest.mark.real
def test_the_level_adds_no_stripes_to_real_bias_frames():
    """Rows of ten Nickel bias frames about their common structure: 1.69 DN after subtracting the row means."""
    frames = [NICKEL / f"d10{k:02d}.fits.gz" for k in range(1, 11)]
    if not all(path.exists() for path in frames):
        pytest.skip(f"needs the Nickel frames in {NICKEL}")
    images = [fits.getdata(path).astype(np.float64) for path in frames]
    image_rows = np.array([image[:, :1024].mean(axis=1) for image in images])
    levels = np.array([floating_bias(image[:, 1024:], OverscanParams(n_skip=2)).level_dn for image in images])
    strip_means = np.array([image[:, 1026:].mean(axis=1) for image in images])
    before, after, by_means = (row_noise(rows) for rows in (image_rows, image_rows - levels, image_rows - strip_means))
    assert after < 1.02 * before
    assert by_means > 3 * before


def row_noise(rows):
    """Rms of the differences between frames that vary faster than some 15 rows."""
    rows = rows - rows.mean(axis=0)
    return np.std(rows - gaussian_filter1d(rows, 15, axis=1))


@pytest.mark.parametrize(
    ("strip", "says"),
    [
        (np.zeros((100, 8), np.uint16), "4 columns skipped, 5 more"),
        (np.zeros(100, np.uint16), "shape"),
        (np.zeros((1, 30), np.uint16), "2 rows"),
        (np.full((100, 30), np.nan, np.float32), "100 of 100 rows"),
        (np.full((100, 30), 1000, np.uint16), r"constant .* 1000 DN"),
        (np.repeat(np.arange(100, dtype=np.uint16)[:, None], 30, axis=1), "constant"),
        (np.where(np.arange(100)[:, None] < 30, np.nan, np.ones((1, 30))), "30 of 100 rows"),
    ],
)
def test_bad_strips(strip, says):
    with pytest.raises(BadInput, match=says):
        floating_bias(strip)
