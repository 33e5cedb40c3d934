"""Reading between pixels, against SciPy's splines and a plain sum of Lanczos weights."""

import numpy as np
import pytest
from scipy import ndimage

from zsds_hpc.core.errors import BadInput
from zsds_hpc.numerics import resample
from zsds_hpc.numerics.resample import Mapping, lanczos, spline_filter, spline_sample

SHAPE = (150, 131)


@pytest.fixture
def image():
    """White noise, the hardest to interpolate."""
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def bent(x, y):
    """A small turn, a shift and a distortion."""
    u, v = x / 100, y / 100
    return 7.3 + 0.62 * x - 0.02 * y + 0.3 * u * u - 0.2 * u * v, 5.7 + 0.02 * x + 0.61 * y + 0.25 * v**3


def pixels(shape):
    return np.meshgrid(np.arange(shape[1], dtype=float), np.arange(shape[0], dtype=float))


def slow_lanczos(image, x, y):
    """Sum over the six by six nearest pixels, weights normalised; NaN near the border."""
    out = np.full(x.shape, np.nan)
    for index in np.ndindex(x.shape):
        left, low = int(np.floor(x[index])) - 2, int(np.floor(y[index])) - 2
        if left < 0 or low < 0 or left + 6 > image.shape[1] or low + 6 > image.shape[0]:
            continue
        wx, wy = (np.sinc(t) * np.sinc(t / 3) for t in (x[index] - left - np.arange(6), y[index] - low - np.arange(6)))
        window = image[low : low + 6, left : left + 6]
        out[index] = (wy @ window @ wx) / (wx.sum() * wy.sum())
    return out


def test_coefficients_are_scipys(image):
    expected = ndimage.spline_filter(image.astype(float), order=5, mode="mirror")
    np.testing.assert_allclose(spline_filter(image), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(2, 3), (33, 2), (5, 64), (40, 39)])
def test_small_images_have_coefficients_too(shape):
    image = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    expected = ndimage.spline_filter(image.astype(float), order=5, mode="mirror")
    np.testing.assert_allclose(spline_filter(image), expected, atol=2e-5 * np.abs(expected).max())


def test_image_is_left_alone_by_the_filter(image):
    before = image.copy()
    spline_filter(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_filter_refuses_what_is_not_finite(image, bad):
    image[77, 31] = bad
    with pytest.raises(BadInput, match="not finite"):
        spline_filter(image)


def test_filter_refuses_a_single_row():
    with pytest.raises(BadInput, match="2 x 2"):
        spline_filter(np.zeros((1, 9), np.float32))


def test_spline_is_scipys_up_to_the_rounded_phase(image):
    shape = (200, 170)
    x, y = bent(*pixels(shape))
    found = spline_sample(spline_filter(image), Mapping.of(bent, shape), shape)
    reference = ndimage.spline_filter(image.astype(float), order=5, mode="mirror")
    # The steepest slope of white noise of sigma 1 is about 5 per px; a phase is off by 1/4096 px at most.
    expected = ndimage.map_coordinates(reference, [y, x], order=5, prefilter=False, mode="mirror")
    inside = np.isfinite(found)
    np.testing.assert_allclose(found[inside], expected[inside], atol=2.5e-3)
    assert np.std(found[inside] - expected[inside]) < 4e-4
    deep = (x > 3) & (y > 3) & (x < SHAPE[1] - 5) & (y < SHAPE[0] - 5)
    assert inside[deep].all() and not inside[(x < 2) | (y > SHAPE[0] - 2)].any()


def test_spline_passes_through_the_pixels(image):
    same = Mapping.of(lambda x, y: (x, y), SHAPE)
    found = spline_sample(spline_filter(image), same, SHAPE)
    np.testing.assert_allclose(found[4:-6, 4:-6], image[4:-6, 4:-6], atol=2e-5)


def test_lanczos_is_the_plain_sum(image):
    shape = (90, 80)
    expected = slow_lanczos(image, *bent(*pixels(shape)))
    found = lanczos(image, Mapping.of(bent, shape), shape, most_missing=0.0)
    both = np.isfinite(expected) & np.isfinite(found)
    assert both.sum() > 0.9 * np.isfinite(found).sum() and both.sum() > 4000
    np.testing.assert_allclose(found[both], expected[both], atol=2.5e-3)


def test_constant_stays_constant():
    shape = (64, 64)
    found = lanczos(np.full(SHAPE, 7.0, np.float32), Mapping.of(bent, shape), shape)
    np.testing.assert_allclose(found[np.isfinite(found)], 7.0, rtol=1e-6)


def test_bands_make_the_whole(image):
    shape = (200, 170)
    mapping = Mapping.of(bent, shape)
    whole = lanczos(image, mapping, shape)
    parts = [lanczos(image, mapping, shape, slice(a, b)) for a, b in [(0, 1), (1, 77), (77, 77), (77, 200)]]
    assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)


def test_nodes_give_positions_to_a_millionth_of_a_pixel():
    shape = (400, 500)

    def distorted(x, y):  # 3 px at the edge of a channel, as a cubic
        u, v = (x - 250) / 1540, (y - 200) / 1540
        return x + 3 * u**3 + 3 * u * v, y + 3 * v**2 + 3 * u * u * v

    mapping, ones = Mapping.of(distorted, shape), np.ones((700, 700), np.float32)
    x, y = pixels(shape)
    centre = np.full_like(mapping.nodes[0], 300.0)
    for k, expected in enumerate(distorted(x, y)):
        # The factor of the value is interpolated as the positions are, and can be seen.
        bend = mapping.nodes[k] - np.meshgrid(*((np.arange(n) - 1.0) * 32 for n in mapping.nodes.shape[:0:-1]))[k]
        found = lanczos(ones, Mapping(np.stack([centre, centre, bend]), 32), shape)
        np.testing.assert_allclose(found, expected - (x, y)[k], atol=1e-6)


def test_stars_keep_their_flux():
    x, y = pixels((160, 160))
    star = np.exp(-((x - 80.2) ** 2 + (y - 79.6) ** 2) / (2 * 2.0**2)).astype(np.float32)

    def finer(u, v):
        return (u + 0.5) / 1.5 + 3.3 + 1e-4 * u * v, (v + 0.5) / 1.5 + 2.1

    shape = (220, 220)
    own = lanczos(star, Mapping.of(finer, shape, flux_scale=1.0), shape)
    per_coarse = lanczos(star, Mapping.of(finer, shape, flux_scale=2.25), shape)
    assert np.nansum(own, dtype=float) == pytest.approx(star.sum(dtype=float), rel=1e-4)
    np.testing.assert_allclose(per_coarse, 2.25 * own, rtol=1e-6, atol=1e-9)


def test_missing_pixels_spread_no_farther_than_their_weight(image):
    image[60, 60] = np.nan
    same = Mapping.of(lambda x, y: (x + 0.5, y), (120, 120))
    found = lanczos(image, same, (120, 120), most_missing=0.1)
    clean = lanczos(np.nan_to_num(image), same, (120, 120))
    missing = np.argwhere(np.isnan(found[10:-10, 10:-10])) + 10
    # Half-way between two pixels the shares are 0.016, 0.088 and 0.396: only those above a tenth are lost.
    assert missing.tolist() == [[60, 59], [60, 60]]
    others = np.ones((120, 120), bool)
    others[60, 55:65] = False
    np.testing.assert_allclose(found[others], clean[others], atol=1e-6)
    assert np.isnan(lanczos(image, same, (120, 120), most_missing=0.0)[60, 57:63]).all()


def test_outside_and_unknown_positions_are_missing(image):
    def nowhere(x, y):
        return np.where(x > 60, np.nan, x - 1e12 * (x < 20)), y

    found = lanczos(image, Mapping.of(nowhere, (100, 100), step=1), (100, 100))
    assert np.isnan(found[:, :18]).all() and np.isnan(found[:, 62:]).all()
    assert np.isfinite(found[6:, 24:58]).all()


def test_all_missing_gives_all_missing():
    empty = np.full((40, 40), np.nan, np.float32)
    assert np.isnan(lanczos(empty, Mapping.of(lambda x, y: (x, y), (40, 40)), (40, 40))).all()


def test_mapping_must_reach(image):
    with pytest.raises(ValueError, match="not up to"):
        lanczos(image, Mapping.of(bent, (64, 64)), (200, 64))


@pytest.mark.parametrize("table", [resample._lanczos_table, resample._bspline_table])
def test_weights_add_up_to_one_and_mirror(table):
    weights = table()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=3e-7)
    np.testing.assert_allclose(weights[:, :6], weights[::-1, 5::-1], atol=1e-7)


def test_holes_under_a_spline(image):
    """Where no hole is near nothing changes; where one weighs too much there is no value; between, the filled one."""
    holed = image.copy()
    holed[60, 60] = holed[0, 0] = holed[149, 130] = np.nan
    holes = resample.find_holes(holed, 0.1)
    filled = np.nan_to_num(holed)
    same, coefficients = Mapping.of(lambda x, y: (x + 0.5, y), (120, 120)), spline_filter(filled)
    plain = spline_sample(coefficients, same, (120, 120))
    found = spline_sample(coefficients, same, (120, 120), holes=holes)
    lost = np.isnan(found) & ~np.isnan(plain)
    # Half-way along a row the weights are 0.00026, 0.062 and 0.44, across it 0.0083, 0.22 and 0.55.
    assert np.argwhere(lost).tolist() == [[60, 59], [60, 60]]
    assert np.array_equal(found[~lost], plain[~lost], equal_nan=True)
    strict = spline_sample(coefficients, same, (120, 120), holes=holes._replace(most_missing=0.0))
    lost = np.isnan(strict) & ~np.isnan(plain)
    assert lost.sum() == 31 and lost[58:63, 57:63].all() and lost[2, 2]
    with pytest.raises(ValueError, match="holes"):
        spline_sample(coefficients[1:], same, (120, 120), holes=holes)
