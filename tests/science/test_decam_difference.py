"""Real pixels: aligned DECam cutouts, the kernel fitted on their stars against the kernels published with them.

The published kernels (Hu et al. 2022, SFFT; their test data) turn image b into image a: a - (b convolved with k). They
come from whole detectors, ours from the ten or twenty stars of a cutout, of which one is brighter than all others
together: so each star is also judged by a kernel that was fitted without it.
"""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy import ndimage, signal
from zsds_hpc.kernels.convolve import convolve_blocks

from zsds_hpc.subtraction import polish
from zsds_hpc.subtraction.images import SOURCE_DTYPE
from zsds_hpc.subtraction.polish import PolishParams

DATA = Path(__file__).parents[3] / "shared/data/diff_decam_sfft/input_data"
PARAMS = PolishParams(half_pix=10, degree=0, window_half_pix=12, min_snr=10.0, prior=0.03, clip_sigma=20.0, cells=100)
GAIN_E = 4.0

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason="the DECam cutouts of ../shared/data/diff_decam_sfft are not there"),
]


def read(name):
    return np.ascontiguousarray(fits.getdata(DATA / f"DEC-{name}.fits.gz"), np.float64)


def stars_of(image):
    """Peaks of the smoothed image, away from the borders."""
    smooth = ndimage.gaussian_filter(image, 2.0)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    y, x = np.nonzero((smooth == ndimage.maximum_filter(smooth, 13)) & (smooth > 4 * noise))
    sources = np.zeros(len(x), SOURCE_DTYPE)
    sources["x"], sources["y"] = x, y
    sources["flux"], sources["snr"] = smooth[y, x] * 8 * np.pi, 10 * smooth[y, x] / noise
    return sources


class Pair:
    """Two cutouts, their stars, and the published kernel."""

    def __init__(self, name):
        self.a, self.b = (read(f"OBS{name}{part}.mini") for part in "ab")
        self.kernel = read(f"OBS{name}b.MatchKernel")
        self.sources = stars_of(self.a)
        plain = self.a - self.b
        self.sky_var = (1.4826 * np.median(np.abs(plain - np.median(plain)))) ** 2

    def matched_by_published(self):
        return signal.fftconvolve(self.b, self.kernel, mode="same")

    def windows(self, sources):
        images = (self.a.astype(np.float32), self.b.astype(np.float32), np.zeros(self.a.shape, np.int16))
        return polish.star_windows(images, self.sky_var, sources, GAIN_E, PARAMS)

    def matched_by_us(self, sources):
        coefficients, used = polish.fit_correction(self.windows(sources), self.a.shape, PARAMS)
        assert used.sum() >= 10 and np.abs(coefficients).max() > 0.01
        at = np.full((1, 1), 128.0), np.full((1, 1), 128.0)
        kernel = polish.correction_of_blocks(coefficients, self.a.shape, at)
        out = np.empty(self.a.shape, np.float32)
        convolve_blocks(self.b.astype(np.float32), kernel, out)
        return out, kernel[0, 0, ::-1, ::-1]

    def core_rms(self, matched, x, y):
        """rms of the difference within 4 px of a star, DN, its surroundings' median taken off."""
        part = (slice(y - 12, y + 13), slice(x - 12, x + 13))
        rest = (self.a - matched)[part]
        j, i = np.mgrid[-12:13, -12:13]
        return float(np.sqrt(np.mean((rest - np.median(rest[np.hypot(i, j) > 8]))[np.hypot(i, j) <= 4] ** 2)))


@pytest.fixture(scope="module", params=["04", "18"])
def pair(request):
    return Pair(request.param)


def brightest(pair, n):
    windows = pair.windows(pair.sources)
    order = np.argsort(-windows.flux)[:n]
    return list(zip(windows.x[order], windows.y[order]))


def test_the_published_kernel_turns_b_into_a(pair):
    """What the comparison rests on: any other reading of the files leaves more."""
    readings = {
        "plain": pair.matched_by_published(),
        "turned": signal.fftconvolve(pair.b, pair.kernel[::-1, ::-1], mode="same"),
        "swapped": signal.fftconvolve(pair.b, pair.kernel.T, mode="same"),
        "none": pair.b,
    }
    (x, y), *_ = brightest(pair, 1)
    left = {name: pair.core_rms(matched, x, y) for name, matched in readings.items()}
    assert min(left, key=left.get) == "plain", left


def compared(pair, ours, n):
    """Ratio of what our kernel leaves of the brightest stars to what the published one does; both rms of all, DN."""
    published = pair.matched_by_published()
    mine, theirs = (np.array([pair.core_rms(m, x, y) for x, y in brightest(pair, n)]) for m in (ours, published))
    return mine / theirs, np.sqrt(np.mean(mine**2)), np.sqrt(np.mean(theirs**2))


def test_stars_are_left_no_worse_than_by_the_published_kernel(pair):
    """All together and most of them one by one; the second brightest is worse, the brightest much better."""
    ours, kernel = pair.matched_by_us(pair.sources)
    ratio, mine, theirs = compared(pair, ours, 10)
    print("ratios", np.round(ratio, 2), f"together {mine:.0f} DN, published {theirs:.0f} DN")
    assert abs(kernel.sum() - pair.kernel.sum()) < 0.03
    assert mine < theirs and np.median(ratio) < 1.05


def test_sky_is_no_noisier_than_with_the_published_kernel(pair):
    """A kernel fitted to few stars must not be bought with noise."""
    ours, kernel = pair.matched_by_us(pair.sources)
    noise = {}
    for name, matched in (("ours", ours), ("published", pair.matched_by_published())):
        rest = (pair.a - matched)[15:-15, 15:-15]
        noise[name] = 1.4826 * np.median(np.abs(rest - np.median(rest)))
    print(noise, np.sum(kernel**2), np.sum(pair.kernel**2))
    assert noise["ours"] < 1.05 * noise["published"]


def test_stars_that_the_kernel_was_not_fitted_on(pair):
    """Each of the brightest left out in turn."""
    ratios = []
    for x, y in brightest(pair, 7):
        others = pair.sources[np.hypot(pair.sources["x"] - x, pair.sources["y"] - y) > 5]
        mine = pair.core_rms(pair.matched_by_us(others)[0], x, y)
        ratios.append((mine / pair.core_rms(pair.matched_by_published(), x, y), mine / pair.core_rms(pair.b, x, y)))
    print("to the published kernel's, to none:", np.round(ratios, 2).tolist())
    to_published, to_none = np.median(ratios, axis=0)
    assert to_published < 1.15 and to_none < 1.0
