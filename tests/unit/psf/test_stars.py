"""The choice of stars, and their windows."""

import time

import numpy as np
import pytest

from tests.unit.psf.psf_truth import SHAPE, render
from zsds_hpc.core import maskbits
from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.aperture import sexcat_dtype
from zsds_hpc.photometry.detect import FLAG_SATURATED, SOURCE_DTYPE, Detections
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf.build import PsfParams, profile_psf
from zsds_hpc.psf.stars import StarSelectParams, cut_stars, select_psf_stars

PARAMS = StarSelectParams()


def catalogue_of(n, seed=3, least_snr=5.0):
    """Stars over the image: significance, width, SPREAD_MODEL as a catalogue has them."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, sexcat_dtype(6))
    rows["XWIN_IMAGE"], rows["YWIN_IMAGE"] = rng.uniform(8, SHAPE[1] - 8, n), rng.uniform(8, SHAPE[0] - 8, n)
    rows["SNR_WIN"] = least_snr * (1 - rng.uniform(0, 0.998, n)) ** -0.8
    rows["FLUX_APER"] = (rows["SNR_WIN"] * 80)[:, None]
    rows["FLUX_MAX"] = 0.15 * rows["FLUX_APER"][:, 0]
    rows["FWHM_IMAGE"] = 2.2 * np.exp(rng.normal(0, 0.03, n))
    rows["SPREADERR_MODEL"] = 0.3 / rows["SNR_WIN"]
    rows["SPREAD_MODEL"] = rng.normal(0, np.hypot(rows["SPREADERR_MODEL"], 0.001))
    rows["BACKGROUND"] = 500.0
    return rows


def test_saturated_extended_and_crowded_sources_are_not_chosen():
    rows = catalogue_of(600, least_snr=25.0)
    rows["FLAGS"][:50] = FLAG_SATURATED
    rows["FLUX_MAX"][50:100] = 45_000
    rows["SPREAD_MODEL"][100:150] = 0.05 + 10 * rows["SPREADERR_MODEL"][100:150]
    rows["FWHM_IMAGE"][150:200] = 4.5
    for name in ("XWIN_IMAGE", "YWIN_IMAGE"):
        rows[name][200:250] = rows[name][250:300] + 1.5  # pairs
    rows["FLUX_APER"][250:300] = rows["FLUX_APER"][200:250]
    chosen = select_psf_stars(rows, SHAPE, 50_000.0, PARAMS)
    assert chosen.min() >= 300
    assert chosen.size > 200
    assert (np.diff(chosen) > 0).all()


@pytest.mark.parametrize(("n", "least"), [(0, 0), (3, 1), (20, 5), (100, 30), (100_000, 700)])
def test_works_with_few_and_with_many(n, least):
    rows = catalogue_of(n)
    start = time.process_time()
    chosen = select_psf_stars(rows, SHAPE, 50_000.0, StarSelectParams(min_snr=8.0))
    assert time.process_time() - start < 1.0
    assert least <= chosen.size <= 800
    if n == 100_000:
        counts = np.histogram2d(rows["YWIN_IMAGE"][chosen], rows["XWIN_IMAGE"][chosen], 4)[0]
        assert counts.min() > 0.6 * counts.mean()
        assert np.median(rows["SNR_WIN"][chosen]) > 100


@pytest.fixture
def scene():
    """Two stars 7 px apart, one at the edge, one with a bad pixel."""
    x, y, flux = (np.array(a) for a in ([50.2, 57.1, 1.4, 90.3], [40.3, 40.4, 70.2, 60.0], [2e4, 1e4, 2e4, 3e4]))
    pix, rms = np.zeros((100, 110), np.float32), np.full((100, 110), 10.0, np.float32)
    segments = np.zeros(pix.shape, np.int32)
    for k, image in enumerate(render(x, y, 8, 2.0) * flux[:, None, None]):
        row, column = round(y[k]), round(x[k])
        low = max(8 - column, 0)
        pix[row - 8 : row + 9, column - 8 + low : column + 9] += image[:, low:]
        near = np.hypot(*np.meshgrid(np.arange(110) - x[k], np.arange(100) - y[k])) < 3.4
        segments[near] = k + 1
    mask = np.zeros(pix.shape, np.int16)
    mask[61, 92] = maskbits.LOWRESP
    pix[58, 88] = np.nan
    return (pix, rms, mask), Detections(np.zeros(4, SOURCE_DTYPE), segments), np.stack([x, y], axis=1), flux


def test_windows_of_stars(scene):
    images, sources, positions, flux = scene
    guess = profile_psf(StarProfile(2.06, 3.0), images[0].shape, PsfParams())
    stars = cut_stars(images, 5.0, sources, positions, guess, 8)
    assert stars.pix.shape == stars.var.shape == (4, 17, 17)
    assert stars.pix[0, 8, 8] == images[0][40, 50]
    neighbour = sources.segments[32:49, 42:59] == 2
    assert (stars.var[0][neighbour] == 0).all()  # and the pixels next to them
    assert (stars.var[0][8, 11:] == 0).all()
    assert (stars.var[0][:, :10] > 0).all()
    assert (stars.var[2][:, :7] == 0).all()
    assert (stars.var[2][:, 7:] > 0).all()
    assert stars.var[3][9, 10] == 0 == stars.var[3][6, 6]
    truth = 100 + render(positions[3:, 0], positions[3:, 1], 8, 2.0)[0] * flux[3] / 5.0
    used = stars.var[3] > 0
    assert np.abs(stars.var[3] / truth - 1)[used].max() < 0.15
    assert np.isfinite(stars.pix).all()


def test_gain_must_be_positive(scene):
    images, sources, positions, _ = scene
    guess = profile_psf(StarProfile(2.06, 3.0), images[0].shape, PsfParams())
    with pytest.raises(BadInput, match="gain"):
        cut_stars(images, 0.0, sources, positions, guess, 8)
