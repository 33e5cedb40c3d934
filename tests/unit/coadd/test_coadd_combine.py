"""The clipped weighted mean against a slow one, and what it does to stars, outliers and holes."""

import numpy as np
import pytest
from scipy import ndimage
from zsds_hpc.kernels.coadd import HALO

from zsds_hpc.coadd.combine import CoaddParams, StackFacts, combine_rows, weigh
from zsds_hpc.coadd.fill import FillParams, fill_holes_inplace
from zsds_hpc.coadd.warp import EpochFacts
from zsds_hpc.core.errors import BadInput
from zsds_hpc.detector.combine import CombineParams

REACH = HALO // 3


def epochs(n, sky_var=4.0, seeing=2.0):
    return [EpochFacts(sky_var, 0.1, 5e4, seeing, 0.1) for _ in range(n)]


def slow(frames, facts: StackFacts, p: CoaddParams):
    """Mean of what lies within tolerance of the median, where anything lies outside that of the mean."""
    w, var, per_dn = (np.asarray(a, float)[:, None, None] for a in facts[:3])
    known = np.isfinite(frames)

    def mean_of(keep):
        weight = np.where(keep, w, 0)
        total = weight.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weight * np.where(keep, frames, 0)).sum(axis=0) / total
            noise = (weight**2 * var).sum(axis=0) / total**2
        return mean, np.where(keep.any(axis=0), noise, np.inf), keep.sum(axis=0)

    def tolerance(middle):
        padded = np.pad(middle, REACH, constant_values=np.nan)
        shape = middle.shape
        near = np.stack([padded[j : j + shape[0], i : i + shape[1]] for j in range(5) for i in range(5)])
        with np.errstate(invalid="ignore"):
            change = np.nan_to_num(np.nanmax(near, axis=0) - np.nanmin(near, axis=0))
        return p.n_sigma * np.sqrt(var + per_dn * np.maximum(middle, 0)) + p.steep * change

    first = mean_of(known)[0]
    odd = (np.abs(frames - first) > tolerance(first)).any(axis=0)
    odd[:REACH] = odd[-REACH:] = False  # rows that are only looked at
    odd = ndimage.maximum_filter(odd, 5, mode="constant")
    odd[: 2 * REACH] = odd[-2 * REACH :] = False
    middle = first.copy()
    some = odd & known.any(axis=0)
    middle[some] = np.nanmedian(frames[:, some], axis=0)
    keep = known & ~(odd & (np.abs(frames - middle) > tolerance(middle)))
    keep |= known & ~keep.any(axis=0)
    return tuple(a[HALO:-HALO] for a in mean_of(keep))


def random_stack(n=9, shape=(30, 47), seed=5):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    star = 900 * np.exp(-((x - 20) ** 2 + (y - 14) ** 2) / (2 * 1.5**2))
    frames = rng.normal(star, 2.0, (n, *shape)).astype(np.float32)
    frames[rng.uniform(size=frames.shape) < 0.03] += 60.0
    frames[rng.uniform(size=frames.shape) < 0.05] = np.nan
    frames[:, 12:16, 30:33] = np.nan
    return frames


def test_is_the_slow_mean():
    frames, p = random_stack(), CoaddParams(n_sigma=4.0, steep=0.3)
    facts = weigh([EpochFacts(4.0 + 0.2 * k, 0.1, 5e4, 2.0 + 0.05 * k, 0.0) for k in range(9)], p)
    found = combine_rows(list(frames), facts, p)
    mean, noise, n_used = slow(frames.astype(float), facts, p)
    assert np.array_equal(found.n_used, n_used) and (n_used < 9).any() and (n_used == 0).any()
    np.testing.assert_allclose(found.pix, mean, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(found.sky_var, noise, rtol=1e-5)


def test_bands_do_not_matter():
    frames, p = random_stack(shape=(40, 30)), CoaddParams()
    facts = weigh(epochs(9), p)
    whole = combine_rows(list(frames), facts, p)
    for start, stop in ((0, 7), (7, 32)):
        part = combine_rows([f[start : stop + 2 * HALO] for f in frames], facts, p)
        for a, b in zip(part, whole):
            assert np.array_equal(a, b[start:stop], equal_nan=True)


def test_outliers_go_and_the_rest_stays():
    rng = np.random.default_rng(0)
    frames = rng.normal(0, 2.0, (12, 60, 60)).astype(np.float32)
    clean = combine_rows(list(frames), weigh(epochs(12), CoaddParams()), CoaddParams())
    frames[3, 20, 20:40] += 200.0
    frames[4, 21, 22] -= 150.0
    found = combine_rows(list(frames), weigh(epochs(12), CoaddParams()), CoaddParams())
    hit = np.zeros((60 - 2 * HALO, 60), bool)
    hit[20 - HALO, 20:40] = hit[21 - HALO, 22] = True
    assert (found.n_used[hit] == 11).all() and (found.n_used[~hit] == 12).all()
    np.testing.assert_allclose(found.pix[~hit], clean.pix[~hit], atol=1e-5)
    assert np.abs(found.pix[hit]).max() < 6 * 2.0 / np.sqrt(11)


def test_stars_in_different_seeing_are_not_clipped():
    """The mean of a star is the weighted mean of its images, whatever its flux."""
    y, x = np.mgrid[:40, :41]
    widths = np.linspace(1.1, 1.7, 10)
    shapes = np.stack([np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / (2 * s**2)) / (2 * np.pi * s**2) for s in widths])
    p = CoaddParams()
    facts = weigh([EpochFacts(4.0, 0.1, 5e4, float(s), 0.0) for s in widths], p)
    expected = np.average(shapes, axis=0, weights=facts.weight)[HALO:-HALO]
    for flux in (1e3, 1e5, 1e6):
        found = combine_rows(list((flux * shapes).astype(np.float32)), facts, p)
        assert (found.n_used == 10).all()
        np.testing.assert_allclose(found.pix, flux * expected, rtol=1e-5, atol=1e-7 * flux)


def test_trimmed_average_and_its_error():
    rng = np.random.default_rng(2)
    p = CoaddParams(method="trimmed", trimmed=CombineParams(trim_fraction=0.2))
    frames = rng.normal(5.0, 2.0, (10, 200, 200)).astype(np.float32)
    frames[0, 50:60] = 1e4
    found = combine_rows(list(frames), weigh(epochs(10), p), p)
    assert np.std(found.pix) == pytest.approx(np.sqrt(np.median(found.sky_var)), rel=0.02)
    assert found.pix[50 - HALO : 60 - HALO].mean() == pytest.approx(5.0, abs=0.5)


def test_weights_favour_sharp_and_dark_epochs():
    facts = weigh(
        [EpochFacts(4.0, 0.1, 5e4, 2.0, 0.1), EpochFacts(8.0, 0.1, 4e4, 4.0, 0.3)], CoaddParams(seeing_power=2.0)
    )
    assert facts.weight[0] / facts.weight[1] == pytest.approx(8.0)
    assert facts.saturate_dn == 4e4 and facts.clrcoeff == pytest.approx((8 * 0.1 + 0.3) / 9)
    assert facts.mean_sky_var == pytest.approx((64 * 4 + 8) / 81)


@pytest.mark.parametrize("bad", [0.0, np.nan, -1.0])
def test_epochs_without_noise_are_refused(bad):
    with pytest.raises(BadInput, match="positive"):
        weigh([EpochFacts(bad, 0.1, 5e4, 2.0, 0.1)], CoaddParams())


def test_no_epochs_are_refused():
    with pytest.raises(BadInput, match="no epochs"):
        weigh([], CoaddParams())
    with pytest.raises(BadInput, match="0 epochs"):
        combine_rows([], weigh(epochs(1), CoaddParams()), CoaddParams())


def test_one_epoch_is_itself():
    frame = random_stack(1)[0]
    found = combine_rows([frame], weigh(epochs(1), CoaddParams()), CoaddParams())
    assert np.array_equal(found.pix, frame[HALO:-HALO], equal_nan=True)


def test_holes_are_filled_from_their_borders():
    x = np.arange(60) + np.zeros((50, 1))
    image = (10 + 0.1 * x).astype(np.float32)
    known = image.copy()
    image[20:23, 30:33] = image[10, 5] = np.nan
    image[:, 50:] = np.nan
    assert fill_holes_inplace(image, FillParams(reach_pix=4, fade=1.0)) == 10 + 500
    assert np.abs(image - known)[:, :47].max() < 0.11  # a pixel of the gradient
    assert (image[10:40, 50:54] > 14).all() and (image[:, 54:] == 0).all()


def test_an_empty_image_is_filled_with_the_sky():
    image = np.full((9, 8), np.nan, np.float32)
    fill_holes_inplace(image, FillParams(reach_pix=3))
    assert (image == 0).all()
