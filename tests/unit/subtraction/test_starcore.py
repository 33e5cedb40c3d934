"""Cores and wings of stars: what is put into residuals comes out, only stars are given it, borders are safe."""

from functools import cache

import numpy as np
import pytest

from tests.helpers.diffsky import GAIN_E, SHAPE, SKY_SIGMA, Profile
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.subtraction import starcore
from zsds_hpc.subtraction.images import SOURCE_DTYPE
from zsds_hpc.subtraction.polish import Windows
from zsds_hpc.subtraction.psfmatch import Kernels
from zsds_hpc.subtraction.starcore import StarCoreParams

PROFILE = Profile(1.8)
HALF = 8


def lacking(dx, dy):
    """What the reference lacks of a star of unit flux: a sharper core less a wider one, nothing in sum."""
    r2 = dx**2 + dy**2
    return 0.02 * (np.exp(-r2 / 0.5) / 0.5 - np.exp(-r2 / 1.28) / 1.28) / np.pi


@cache
def stars(n=160, seed=3):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(20, SHAPE[1] - 20, n), rng.uniform(20, SHAPE[0] - 20, n)
    return x, y, rng.uniform(90_000.0**-0.6, 8000.0**-0.6, n) ** (-1 / 0.6)


def windows_with(noise=1.0, trend=0.0):
    """Residuals of the stars, lacking changing along x by `trend` at the borders."""
    x, y, flux = stars()
    column, row, steps = np.rint(x).astype(int), np.rint(y).astype(int), np.arange(-HALF, HALF + 1)
    dx, dy = steps[None, None] - (x - column)[:, None, None], steps[None, :, None] - (y - row)[:, None, None]
    profile = np.array([PROFILE.at(dx[k], dy[k], 200.0) for k in range(len(x))])
    var = SKY_SIGMA**2 + flux[:, None, None] * profile / GAIN_E
    scale = 1 + trend * (2 * x / (SHAPE[1] - 1) - 1)
    rest = (scale * flux)[:, None, None] * lacking(dx, dy)
    rest = rest + noise * np.random.default_rng(4).normal(size=var.shape) * np.sqrt(var)
    reference = np.zeros((len(x), 2 * HALF + 9, 2 * HALF + 9))
    phase = np.stack([x - column, y - row], axis=1)
    return Windows(rest, reference, var, column, row, phase, flux)


def cores_of(windows, used=None, **params):
    used = np.ones(len(windows.x), bool) if used is None else used
    return starcore.fit_cores(windows.rest, windows, used, PROFILE.model(), StarCoreParams(**params))


@pytest.mark.parametrize("trend", [0.0, 0.4])
def test_what_stars_lack_is_found_at_any_phase(trend):
    """To a tenth of it, between the pixels, at both sides of the image."""
    cores, steps = cores_of(windows_with(trend=trend)), np.arange(-3, 4)
    for x, y in ((60.3, 200.0), (200.5, 210.5), (339.8, 40.2)):
        dx, dy = steps - (x - np.rint(x)), steps - (y - np.rint(y))
        expected = (1 + trend * (2 * x / (SHAPE[1] - 1) - 1)) * lacking(dx[None], dy[:, None])
        image = cores.images(np.array([x]), np.array([y]), 3)[0]
        print(np.abs(image - expected).max() / np.abs(lacking(0.0, 0.0)))
        assert np.abs(image - expected).max() < 0.1 * abs(lacking(0.0, 0.0))


def test_taken_off_it_leaves_noise():
    windows = windows_with()
    left = starcore.without_cores(windows.rest, windows, cores_of(windows), StarCoreParams())
    core = (slice(None), slice(HALF - 3, HALF + 4), slice(HALF - 3, HALF + 4))
    chi = [np.sqrt(np.mean(r[core] ** 2 / windows.var[core])) for r in (windows.rest, left)]
    print(chi)
    assert chi[0] > 1.3 and 0.93 < chi[1] < 1.05
    outside = np.ones(left.shape, bool)
    outside[core] = False
    assert np.array_equal(left[outside], windows.rest[outside])


def test_noise_alone_gives_next_to_nothing():
    windows = windows_with()
    noise = windows._replace(rest=windows.rest - windows_with(noise=0.0).rest)
    image = cores_of(noise).center(3)
    assert np.abs(image).max() < 0.05 * abs(lacking(0.0, 0.0)) + 2e-4


def test_variable_stars_do_not_count():
    windows, used = windows_with(), np.ones(160, bool)
    rest = windows.rest.copy()
    used[::5] = False
    rest[::5] += 1e4
    clean, spoilt = cores_of(windows, used), cores_of(windows._replace(rest=rest), used)
    assert np.array_equal(clean.coefficients, spoilt.coefficients)


def test_the_degree_falls_with_the_number_of_stars():
    windows = windows_with()
    for n, degree in ((25, 0), (74, 0), (75, 1), (160, 1)):
        assert cores_of(windows, np.arange(160) < n).degree == degree


def sources_at(*places, sharp=0.0, flux=50_000.0):
    """Stars at places, and enough others to tell how sharp stars are."""
    rng = np.random.default_rng(5)
    table = np.zeros(200 + len(places), SOURCE_DTYPE)
    table["x"], table["y"] = -500.0, -500.0
    table["snr"], table["flux"], table["chi"] = 1000.0, flux, 1.0
    table["sharp"] = rng.normal(0, 0.004, len(table))
    for k, (x, y) in enumerate(places):
        table["x"][k], table["y"][k], table["sharp"][k] = x, y, sharp
    return table


def flat_cores(value=0.01):
    """A correction that is the same everywhere within its reach."""
    return PsfModel(np.full((1, 21, 21), value, np.float32), 2, 0, SHAPE)


def test_stars_are_given_their_cores_and_galaxies_are_not():
    params = StarCoreParams()
    for sharp, n in ((0.0, 1), (0.5, 0)):
        image = np.zeros(SHAPE, np.float32)
        sources = sources_at((100.0, 90.0), sharp=sharp)
        starcore.add_cores_inplace(image, sources, flat_cores(), 8.0, params)
        assert (image[87:94, 97:104] != 0).all() == bool(n) and (image != 0).sum() == 49 * n
    assert image.sum() == 0


def test_faint_stars_are_left_alone():
    image = np.zeros(SHAPE, np.float32)
    sources = sources_at((100.0, 90.0), flux=0.09 * 8.0 / 0.01)
    assert starcore.add_cores_inplace(image, sources, flat_cores(), 8.0, StarCoreParams()) == 0 and not image.any()


@pytest.mark.parametrize(
    "place", [(0.0, 0.0), (-2.0, 50.0), (SHAPE[1] + 1.0, 60.0), (30.0, SHAPE[0] - 1.0), (-40.0, 9e5)]
)
def test_stamps_are_cut_at_the_borders(place):
    image, sources = np.zeros(SHAPE, np.float32), sources_at(place)[:1]
    starcore.add_stamps_inplace(image, np.ones((1, 7, 7)), sources)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    assert np.array_equal(image, (np.abs(x - place[0]) <= 3) & (np.abs(y - place[1]) <= 3))


def test_wings_are_added_at_the_phase_of_the_star():
    """A ramp about the star: brightest in the right direction, of every source that is bright enough."""
    m = 21
    points = (np.arange(3 * m) - 3 * m // 2) / 3
    ramp = np.tile(1e-3 * points, (4, 3 * m, 1))
    wings = Kernels(ramp, *np.array([[100, 300, 100, 300], [100, 100, 300, 300]], float))
    image = np.zeros(SHAPE, np.float32)
    sources = sources_at((200.33, 210.0), sharp=0.9, flux=1e5)
    sources["flux"][1:] = 10.0
    assert starcore.add_wings_inplace(image, sources, wings, 8.0, StarCoreParams()) == 1
    half = (m - 3) // 2
    part = image[210 - half : 210 + half + 1, 200 - half : 200 + half + 1]
    expected = 1e2 * (np.arange(-half, half + 1) - 1 / 3)
    assert np.allclose(part, expected[None], atol=0.5) and image.astype(bool).sum() <= part.size
