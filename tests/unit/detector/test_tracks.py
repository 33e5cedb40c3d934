import numpy as np
import pytest

from benchmarks import hitsky
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import DEAD, SATURATED
from zsds_hpc.detector import track_strip
from zsds_hpc.detector.tracks import SEGMENT_DTYPE, find_tracks
from zsds_hpc.kernels import tracks as kernel

SHAPE = (1280, 1300)
NOISE_DN = 8.2


def field(density, seed, shape=SHAPE, n_hits=30):
    """Stars, galaxies and hits with the density of a full channel of so many stars."""
    return hitsky.render(round(density * shape[0] * shape[1] / (3080 * 3072)), n_hits, seed, shape)


def trail(shape, ends, fwhm, peak_dn, dash=0.0):
    """Straight trail with a Gaussian cross-section between two points."""
    x0, y0, x1, y1 = ends
    length = np.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    y, x = np.mgrid[: shape[0], : shape[1]]
    along, across = (x - x0) * ux + (y - y0) * uy, (y - y0) * ux - (x - x0) * uy
    light = peak_dn * np.exp(-4 * np.log(2) * (across / fwhm) ** 2) * ((along > 0) & (along < length))
    return (light * np.where((along / dash) % 1 < 0.4, 1, 0.15) if dash else light).astype(np.float32)


def cover(found, light, level):
    """Part of the trail's brighter pixels that is masked."""
    core = light > level
    return (found.mask & core).sum() / core.sum()


@pytest.fixture(scope="module")
def sky():
    return field(6000, 1)


@pytest.mark.parametrize(
    "ends, fwhm, peak_dn",
    [
        ((-20, 100, 1320, 900), 3.0, 400.0),
        ((-20, 100, 1320, 900), 3.0, NOISE_DN),
        ((300, -20, 560, 1300), 2.0, NOISE_DN),
        ((20, 1290, 1290, 30), 12.0, NOISE_DN),
        ((640, -10, 650, 1290), 4.0, 30.0),
        ((-10, 500, 1310, 520), 3.0, 30.0),
    ],
)
def test_crossing_trails(sky, ends, fwhm, peak_dn):
    light = trail(SHAPE, ends, fwhm, peak_dn)
    found = find_tracks(sky.pix + light, sky.mask)
    assert len(found.segments) == 1
    assert cover(found, light, 0.3 * peak_dn) > 0.99
    assert (found.mask & (light < 0.02 * peak_dn)).sum() < 0.8 * found.mask.sum()
    assert found.segments["width"][0] == pytest.approx(fwhm, rel=0.35, abs=0.6)


def test_trail_that_ends_in_the_image(sky):
    light = trail(SHAPE, (500, 400, 1400, 900), 3.0, 20.0)
    found = find_tracks(sky.pix + light, sky.mask)
    assert len(found.segments) == 1
    ends = sorted([(s["x0"], s["y0"]) for s in found.segments] + [(s["x1"], s["y1"]) for s in found.segments])
    assert np.hypot(ends[0][0] - 500, ends[0][1] - 400) < 45
    assert ends[1][0] > 1290
    assert cover(found, light, 6.0) > 0.97


def test_short_faint_trail(sky):
    light = trail(SHAPE, (500, 500, 720, 760), 4.0, NOISE_DN)  # 340 px at 1 sigma a pixel
    found = find_tracks(sky.pix + light, sky.mask)
    assert len(found.segments) == 1
    assert cover(found, light, 4.0) > 0.9


def test_aircraft_with_parallel_dashed_lights(sky):
    light = sum(trail(SHAPE, (-20, 700 + dy, 1320, 300 + dy), 8.0, 300.0, dash=250.0) for dy in (-30, 0, 30))
    found = find_tracks(sky.pix + light, sky.mask)
    assert cover(found, light, 40.0) > 0.99


def test_two_crossing_trails(sky):
    one, two = (trail(SHAPE, ends, 3.0, 40.0) for ends in ((-10, 200, 1310, 1000), (100, -10, 1000, 1300)))
    found = find_tracks(sky.pix + one + two, sky.mask)
    assert len(found.segments) == 2
    assert cover(found, one + two, 10.0) > 0.99


def test_dense_field():
    sky = field(60000, 2)
    light = trail(SHAPE, (-20, 100, 1320, 900), 3.0, 1.5 * NOISE_DN)
    assert len(find_tracks(sky.pix, sky.mask).segments) == 0
    found = find_tracks(sky.pix + light, sky.mask)
    assert len(found.segments) == 1
    assert cover(found, light, 5.0) > 0.95


@pytest.mark.parametrize("density", [1000, 6000, 60000])
def test_no_false_tracks(density):
    for seed in range(4):
        sky = field(density, 100 + seed)
        assert len(find_tracks(sky.pix, sky.mask).segments) == 0


def test_bad_columns_bleeding_and_halos_are_no_tracks(sky):
    pix, mask = sky.pix.copy(), sky.mask.copy()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for cx, cy in ((300, 400), (900, 800), (700, 200)):
        r = np.hypot(x - cx, y - cy)
        pix += (300 * np.maximum(1 - r / 110, 0) + 3e5 * (1 + (r / 3) ** 2) ** -2.5).astype(np.float32)
        pix[cy - 150 : cy + 150, cx] = 58000
    pix[:, 1000] += 50  # a warm column that nobody masked
    full = pix >= 58000
    mask[full | np.roll(full, 1, 1) | np.roll(full, -1, 1)] |= SATURATED
    assert len(find_tracks(np.minimum(pix, 58000), mask).segments) == 0


def test_empty_and_masked_images():
    rng = np.random.default_rng(0)
    pix = rng.normal(400, 8, (600, 500)).astype(np.float32)
    mask = np.zeros(pix.shape, np.int16)
    for image, bad in (
        (pix, mask | DEAD),
        (np.full_like(pix, np.nan), mask),
        (np.full_like(pix, 7), mask),
        (pix, mask),
    ):
        found = find_tracks(image, bad)
        assert not found.mask.any() and found.segments.dtype == SEGMENT_DTYPE and len(found.segments) == 0


def test_nan_island_does_not_hide_a_trail(sky):
    light = trail(SHAPE, (-20, 100, 1320, 900), 3.0, 40.0)
    pix = sky.pix + light
    pix[300:600, 500:800] = np.nan
    found = find_tracks(pix, sky.mask)
    assert len(found.segments) == 1
    assert cover(found, light, 15.0) > 0.99


def test_same_bits_and_inputs_untouched(sky):
    pix = sky.pix + trail(SHAPE, (-20, 100, 1320, 900), 3.0, 40.0)
    kept = pix.copy()
    first, second = find_tracks(pix, sky.mask), find_tracks(pix, sky.mask)
    assert np.array_equal(first.mask, second.mask) and np.array_equal(first.segments, second.segments)
    assert np.array_equal(pix, kept)


def test_bad_input(sky):
    with pytest.raises(BadInput, match="shape"):
        find_tracks(sky.pix, sky.mask[:5])


def test_binning_kernel_against_numpy():
    rng = np.random.default_rng(1)
    pix = rng.normal(size=(43, 38)).astype(np.float32)
    pix[3, 4] = np.nan
    mask = (rng.uniform(size=pix.shape) < 0.2).astype(np.int16) * np.int16(SATURATED)
    mean, number = kernel.bin_image(pix, mask, SATURATED, 4)
    for y, x in np.ndindex(10, 9):
        box = np.s_[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        good = pix[box][(mask[box] == 0) & np.isfinite(pix[box])]
        assert number[y, x] == good.size
        assert mean[y, x] == pytest.approx(good.sum() / max(good.size, 1), abs=1e-5)


def slow_path(height, moved):
    """Columns of the fast transform's line from 0 to `moved`, by its own recursive definition."""
    if height == 1:
        return [0]
    lower = slow_path(height // 2, moved // 2)
    return lower + [moved - moved // 2 + c for c in lower]


def test_line_sums_against_explicit_paths():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 9, (16, 20)).astype(np.float32)
    for height, sums in kernel.line_sums(image, 8, 2):
        assert sums.shape == (16 // height, height, 20)
        for strip, moved, x in np.ndindex(*sums.shape):
            path = slow_path(height, moved)
            assert path[-1] == moved and max(np.abs(np.array(path) - moved * np.arange(height) / (height - 1))) <= 1.5
            cells = [(strip * height + k, x + c) for k, c in enumerate(path) if x + c < 20]
            assert sums[strip, moved, x] == sum(image[c] for c in cells)


def test_refine_recovers_shift_and_tilt():
    rng = np.random.default_rng(3)
    shape = (800, 400)
    truth = track_strip.Line(x_mid=203.0, y_mid=399.5, slope=0.110, y0=0, y1=800, swapped=False)
    y, x = np.mgrid[: shape[0], : shape[1]]
    pix = rng.normal(0, 1, shape) + 5 * np.exp(-0.5 * ((x - truth.x(y)) / 1.2) ** 2)
    guess = truth._replace(x_mid=198.0, slope=0.102)
    nothing = np.zeros(shape, np.int16)
    strip = track_strip.straighten(pix.astype(np.float32), nothing, nothing.astype(bool), guess, 60)
    line = track_strip.refine(strip, guess)
    rows = np.array([0, 799])
    assert np.abs(line.x(rows) - truth.x(rows)).max() < 1.5
