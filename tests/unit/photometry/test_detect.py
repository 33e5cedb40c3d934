"""Detection against rendered truth and slow references."""

import numpy as np
import pytest
from scipy import ndimage
from starfield import add_stars
from zsds_hpc.kernels.detect import matched_filter, pixels_above, segment

from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import AlgorithmFailure, BadInput
from zsds_hpc.photometry.detect import (
    FLAG_BLENDED,
    FLAG_SATURATED,
    FLAG_TRUNCATED,
    DetectParams,
    detect_sources,
    ellipse_of_moments,
    gaussian_taps,
)

SIGMA = 8.2


def scene(shape, stars, seed=None):
    """Noisy (or, without seed, noiseless) image of stars (x, y, flux), noise map, mask."""
    pix = np.zeros(shape, np.float32)
    if stars:
        add_stars(pix, *np.array(stars, float).T)
    if seed is not None:
        pix += np.random.default_rng(seed).normal(0, SIGMA, shape).astype(np.float32)
    return pix, np.full(shape, SIGMA, np.float32), np.zeros(shape, np.int16)


def detect(pix, rms, mask, **changes):
    return detect_sources(pix, rms, mask, DetectParams(**changes))


def test_filter_is_a_correlation_and_keeps_the_noise():
    pix, _, mask = scene((90, 110), [], seed=1)
    pix[20, 30], mask[40, 50] = np.nan, maskbits.DEAD
    taps, out = gaussian_taps(2.0), np.empty_like(pix)
    matched_filter(pix, mask, maskbits.DEAD, taps, out)
    clean = np.where((mask > 0) | ~np.isfinite(pix), 0, pix).astype(float)
    np.testing.assert_allclose(out, ndimage.correlate(clean, np.outer(taps, taps), mode="constant"), atol=1e-3)
    assert out.std() == pytest.approx(SIGMA, rel=0.05)


def slow_segments(filtered, order, limits, noise):
    """The same flooding with plain lists: label of each pixel, by peak index."""
    label, members, dead = {}, {}, {}
    nx = filtered.shape[1]

    def root(p):
        while p in dead:
            p = dead[p]
        return p

    for index in order:
        y, x = divmod(int(index), nx)
        near = [
            (filtered[v, u], root(label[v, u]))
            for v in range(y - 1, y + 2)
            for u in range(x - 1, x + 2)
            if (v, u) in label
        ]
        if not near:
            label[y, x] = index
            continue
        rank = {p: np.flatnonzero(order == p)[0] for _, p in near}
        best = min(rank, key=rank.get)
        own = max(near, key=lambda pair: pair[0])[1]
        for p in sorted(rank, key=rank.get):
            top = filtered.ravel()[p]
            rise = limits[1] * noise + limits[2] * filtered[y, x]
            if p != best and not (top >= limits[0] * noise and top - filtered[y, x] >= rise):
                dead[p] = best
        label[y, x] = root(own)
    for place, p in label.items():
        if filtered.ravel()[root(p)] >= limits[0] * noise:
            members.setdefault(root(p), set()).add(place)
    return members


def test_segments_are_those_of_a_slow_reference():
    rng = np.random.default_rng(2)
    stars = [(*rng.uniform(2, 58, 2).round(), 10 ** rng.uniform(2, 3.5)) for _ in range(25)]
    pix, rms, mask = scene((60, 60), stars, seed=3)
    filtered, limits = np.empty_like(pix), np.array([4.5, 3.0, 0.02], np.float32)
    matched_filter(pix, mask, 0, gaussian_taps(2.0), filtered)
    order = pixels_above(filtered, rms, mask, 0, 2.5)
    np.testing.assert_array_equal(np.sort(order), np.flatnonzero(filtered > np.float32(2.5) * rms))
    assert (np.diff(filtered.ravel()[order]) <= 0).all()
    labels = np.zeros(pix.shape, np.int32)
    peaks, _ = segment(order, filtered, rms, limits, labels)
    expected = slow_segments(filtered, order, limits, SIGMA)
    assert set(peaks.tolist()) == {int(p) for p in expected}
    for k, p in enumerate(peaks):
        assert set(zip(*(c.tolist() for c in np.nonzero(labels == k + 1)))) == expected[p]


def test_isolated_star_is_one_source_where_it_is():
    found = detect(*scene((80, 90), [(40.25, 33.5, 5000.0)], seed=4))
    assert len(found) == 1
    assert found["x"][0] == pytest.approx(40.25, abs=0.1)
    assert found["y"][0] == pytest.approx(33.5, abs=0.1)
    assert found["flags"][0] == 0
    assert found["n_pix"][0] == (found.segments == 1).sum()


def test_blank_sky_gives_as_many_false_sources_as_gaussian_noise_does():
    """Maxima above u of a Gaussian field (Bond & Efstathiou 1987): area u exp(-u^2/2) / ((2 pi)^1.5 2 s^2)."""
    u, smoothing2 = 4.5, (2.1 / 2.3548) ** 2
    expected = 1e6 * u * np.exp(-(u**2) / 2) / ((2 * np.pi) ** 1.5 * 2 * smoothing2)
    found = len(detect(*scene((1000, 1000), [], seed=5)))
    assert abs(found - expected) < 3 * np.sqrt(expected)


def test_completeness_follows_the_significance():
    rng = np.random.default_rng(6)
    y, x = np.mgrid[12:600:24, 12:600:24]
    # A star of unit flux has a filtered peak of 0.272, the mean over phases (its own profile against the Gaussian).
    for flux, low, high in ((110.0, 0.05, 0.5), (220.0, 0.95, 1.0)):
        stars = [(u + rng.integers(16) / 16, v + rng.integers(16) / 16, flux) for u, v in zip(x.ravel(), y.ravel())]
        found = detect(*scene((620, 620), stars, seed=7))
        places = np.array(stars)[:, :2]
        distance = np.hypot(found["x"][:, None] - places[:, 0], found["y"][:, None] - places[:, 1])
        assert low <= (distance.min(axis=0) < 2).mean() <= high


@pytest.mark.parametrize(("distance", "n"), [(1.0, 1), (5.0, 2)])
def test_pairs_are_split_when_resolved(distance, n):
    found = detect(*scene((60, 60), [(28.0, 30.0, 4000.0), (28.0 + distance, 30.0, 3000.0)], seed=8))
    assert len(found) == n
    assert ((found["flags"] & FLAG_BLENDED) > 0).all() == (n == 2)


def test_wings_of_a_bright_star_do_not_break_up():
    pix, rms, mask = scene((200, 200), [(100.25, 100.5, 3e5)])
    rng = np.random.default_rng(9)
    pix = ((rng.poisson((pix + 400) * 6.2) + rng.normal(0, 10, pix.shape)) / 6.2 - 400).astype(np.float32)
    assert len(detect(pix, rms, mask)) == 1


def test_saturated_core_with_a_bleed_is_one_flagged_source():
    pix, rms, mask = scene((120, 120), [(60.0, 60.0, 3e6)], seed=10)
    bleed = np.zeros(pix.shape, bool)
    bleed[30:95, 59:62] = True
    saturated = bleed | (pix > 50000)
    pix[saturated] = 55000 + np.random.default_rng(11).normal(0, 500, saturated.sum())
    mask[saturated] = maskbits.SATURATED
    found = detect(pix, rms, mask)
    assert (found["flags"] & FLAG_SATURATED > 0).sum() == 1
    assert found["mask_bits"][0] & maskbits.SATURATED


def test_bad_pixels_are_not_sources_and_edges_are_flagged():
    pix, rms, mask = scene((60, 60), [(0.0, 30.0, 5000.0)], seed=12)
    pix[20, 20], mask[20, 20], pix[40, 40] = 9000, maskbits.SPIKE, np.nan
    found = detect(pix, rms, mask)
    assert len(found) == 1
    assert found["flags"][0] & FLAG_TRUNCATED


def test_fully_masked_image_has_no_sources():
    pix, rms, mask = scene((50, 50), [(20.0, 20.0, 1e4)], seed=13)
    assert len(detect(pix, rms, np.full_like(mask, maskbits.DEAD))) == 0
    assert len(detect(np.full_like(pix, np.nan), rms, mask)) == 0


def test_refusals():
    pix, rms, mask = scene((50, 50), [(20.0, 20.0, 1e4), (40.0, 40.0, 1e4)], seed=14)
    with pytest.raises(BadInput, match="one shape"):
        detect(pix[:40], rms, mask)
    with pytest.raises(AlgorithmFailure, match="too many") as failure:
        detect(pix, rms, mask, max_sources=1)
    assert failure.value.figures["n_sources"] == 2


def test_small_segments_are_dropped_and_the_rest_renumbered():
    pix, rms, mask = scene((50, 50), [(20.0, 20.0, 1e4), (40.0, 40.0, 300.0)], seed=15)
    found = detect(pix, rms, mask, min_pixels=40)
    assert len(found) == 1
    assert set(np.unique(found.segments)) == {0, 1}


def test_ellipse_of_known_moments():
    angle, a, b = np.radians(30.0), 3.0, 1.5
    c, s = np.cos(angle), np.sin(angle)
    moments = (a**2 * c**2 + b**2 * s**2, a**2 * s**2 + b**2 * c**2, (a**2 - b**2) * c * s)
    np.testing.assert_allclose(ellipse_of_moments(*(np.array([m]) for m in moments)), [[3.0], [1.5], [30.0]])
