"""Loops of the PSF fit against splines by scipy and dense matrices by NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import zsds_hpc.kernels.psffit as kernel

from tests.unit.photometry.psfscene import GAIN, make_psf, paint, star

SHAPE = (70, 80)
HALVES = (6, 9)


def kernel_psf(psf, halves=HALVES):
    return kernel.Psf([psf.by_phase(h) for h in halves], halves, psf.wing, psf.degree, psf.shape)


def scene_of(stars, kind=0, seed=1, misfit=0.0, holes=True):
    """Arrays as the kernels take them: noisy data about stars that are given slightly wrong, and a few dead pixels."""
    psf, rng = make_psf(SHAPE), np.random.default_rng(seed)
    stars = np.asarray(stars, float)
    stars = stars[np.lexsort((np.rint(stars[:, 0]), np.rint(stars[:, 1])))]
    kind = np.ascontiguousarray(np.broadcast_to(kind, len(stars)), np.int32)
    model = paint(psf, stars, np.array(HALVES)[kind]).astype(np.float32)
    data = (paint(psf, stars + [0.1, -0.05, 30], 12) + rng.normal(0, 8, SHAPE)).astype(np.float32)
    variance = rng.uniform(50, 80, SHAPE).astype(np.float32)
    if holes:
        variance[rng.random(SHAPE) < 0.03] = np.inf
    middle = np.rint(stars[:, :2]).astype(np.int32)
    return SimpleNamespace(
        psf=psf, stars=stars, middle=middle, kind=kind, images=(data, model, variance),
        noise=np.array([1 / GAIN, misfit**2]),
    )  # fmt: skip


def crowd(n=25, seed=2):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-1, 80, n), rng.uniform(-1, 70, n), rng.uniform(300, 9000, n)])


def columns(scene, i, half):
    """Value and slopes (times flux) of star i on the image, zero outside its window: (3, ny nx)."""
    x, y, flux = scene.stars[i]
    planes = star(scene.psf, x, y, half) * np.array([1, flux, flux])[:, None, None]
    out = np.zeros((3, SHAPE[0] + 200, SHAPE[1] + 200))
    x0, y0 = scene.middle[i] - half + 100
    out[:, y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1] = planes
    return out[:, 100:-100, 100:-100].reshape(3, -1)


def weights(scene):
    data, model, variance = (a.astype(float) for a in scene.images)
    light = np.maximum(model, 0)
    weight = 1 / (variance + light * scene.noise[0] + light**2 * scene.noise[1])
    return weight.ravel(), (data - model).ravel()


def equations(scene, reach=11):
    pairs = kernel.find_pairs(scene.middle, reach)
    own, shared = np.zeros((len(scene.stars), 10)), np.zeros((len(pairs[1]), 9))
    kernel.normal_equations(
        kernel_psf(scene.psf), scene.images, scene.noise, scene.stars, scene.middle, scene.kind, pairs, own, shared
    )
    return own, shared, pairs


def dense(own, shared, pairs):
    """The whole matrix and right-hand side of what the kernel gives in blocks."""
    n = len(own)
    matrix = np.zeros((3 * n, 3 * n))
    upper = np.triu_indices(3)
    later = np.repeat(np.arange(n), np.diff(pairs[0]))
    for i in range(n):
        block = np.zeros((3, 3))
        block[upper] = own[i, :6]
        matrix[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = block + np.triu(block, 1).T
    for i, j, block in zip(later, pairs[1], shared.reshape(-1, 3, 3)):
        matrix[3 * i : 3 * i + 3, 3 * j : 3 * j + 3] = block
        matrix[3 * j : 3 * j + 3, 3 * i : 3 * i + 3] = block.T
    return matrix, own[:, 6:9].ravel()


@pytest.mark.parametrize(("x", "y"), [(30.0, 20.0), (30.5, 20.5), (29.5, 19.5), (3.21, 65.87), (78.9, 0.37)])
@pytest.mark.parametrize("half", [1, 6, 12, 17])
def test_stars_are_the_splines_of_scipy(x, y, half):
    psf = make_psf(SHAPE, wing=(0.3, 3.2))
    ours, theirs = psf.images(x, y, half, 3)[0], star(psf, x, y, half)
    np.testing.assert_allclose(ours, theirs, atol=5e-7 * theirs.max())  # a few times the rounding of float32


def test_slopes_are_differences():
    psf, step = make_psf(SHAPE, vary=0.0), 1e-3
    planes = psf.images(33.3, 40.2, 8, 3)[0]
    for plane, dx, dy in ((1, step, 0), (2, 0, step)):
        ahead, behind = (star(psf, 33.3 + s * dx, 40.2 + s * dy, 8)[0] for s in (1, -1))
        np.testing.assert_allclose(planes[plane], (ahead - behind) / (2 * step), atol=1e-6)


def test_rendering_adds_clipped_windows():
    scene = scene_of(crowd(), np.arange(25) % 2)
    image = np.full(SHAPE, 3, np.float32)
    kernel.render(kernel_psf(scene.psf), scene.stars, scene.middle, scene.kind, image)
    expected = 3 + paint(scene.psf, scene.stars, np.array(HALVES)[scene.kind])
    np.testing.assert_allclose(image, expected, atol=2e-6 * expected.max())


def test_rendering_far_outside_changes_nothing():
    places, image = np.array([[-40, 10], [99, -99], [40, 300]], np.int32), np.zeros(SHAPE, np.float32)
    stars = np.column_stack([places, np.full(3, 1e5)]).astype(float)
    kernel.render(kernel_psf(make_psf(SHAPE)), stars, places, np.zeros(3, np.int32), image)
    assert not image.any()


@pytest.mark.parametrize(("n", "reach"), [(0, 5), (1, 5), (300, 0), (300, 7), (300, 200)])
def test_pairs_are_those_of_brute_force(n, reach):
    rng = np.random.default_rng(n + reach)
    middle = rng.integers(-5, 90, (n, 2)).astype(np.int32)
    middle = np.ascontiguousarray(middle[np.lexsort((middle[:, 0], middle[:, 1]))])
    start, earlier = kernel.find_pairs(middle, reach)
    later = np.repeat(np.arange(n), np.diff(start))
    near = np.abs(middle[:, None] - middle).max(axis=2, initial=0) <= reach
    expected = {(i, j) for i in range(n) for j in range(i) if near[i, j]}
    assert set(zip(later.tolist(), earlier.tolist())) == expected
    assert len(earlier) == len(expected)


@pytest.mark.parametrize("misfit", [0.0, 0.05])
def test_normal_equations_are_those_of_the_dense_design(misfit):
    scene = scene_of(crowd(), np.arange(25) % 2, misfit=misfit)
    own, shared, pairs = equations(scene)
    weight, residual = weights(scene)
    for i, kind in enumerate(scene.kind):
        design = columns(scene, i, HALVES[kind])
        block, side = (design * weight) @ design.T, (design * weight) @ residual
        size = np.sqrt(np.diagonal(block))
        np.testing.assert_allclose(own[i, :6] / np.outer(size, size)[np.triu_indices(3)],
                                   (block / np.outer(size, size))[np.triu_indices(3)], atol=1e-5)  # fmt: skip
        np.testing.assert_allclose(own[i, 6:9] / size, side / size, atol=1e-3)
        x, y = scene.middle[i]
        rows, cols = (slice(max(c - HALVES[kind], 0), max(c + HALVES[kind] + 1, 0)) for c in (y, x))
        assert own[i, 9] == np.isfinite(scene.images[2][rows, cols]).sum()
    later = np.repeat(np.arange(25), np.diff(pairs[0]))
    assert len(later) > 10
    for i, j, block in zip(later, pairs[1], shared.reshape(-1, 3, 3)):
        expected = (columns(scene, i, HALVES[0]) * weight) @ columns(scene, j, HALVES[0]).T
        size = np.sqrt(np.outer(own[i, [0, 3, 5]], own[j, [0, 3, 5]]))
        np.testing.assert_allclose(block / size, expected / size, atol=1e-5)


def test_conjugate_gradients_solve_the_dense_system():
    own, shared, pairs = equations(scene_of(crowd(40)))
    own[:, [3, 5]] += 1
    matrix, side = dense(own, shared, pairs)
    step, n = kernel.solve(own, shared, pairs, 500, 1e-12)
    expected = np.linalg.solve(matrix, side)
    size = np.sqrt(np.diagonal(matrix))
    np.testing.assert_allclose(step.ravel() * size, expected * size, atol=1e-8)
    assert 2 < n < 120
    loose, n_loose = kernel.solve(own, shared, pairs, 500, 0.01)
    left = side - matrix @ loose.ravel()
    blocks = dense(own, np.zeros_like(shared), pairs)[0]
    assert n_loose < n
    assert left @ np.linalg.solve(blocks, left) <= 1.001e-4 * side @ np.linalg.solve(blocks, side)


def test_stars_without_pixels_stand_still():
    scene = scene_of([[20.0, 20, 500], [22.0, 20, 800], [60.0, 50, 900]], holes=False)
    scene.images[2][40:, 45:] = np.inf
    own, shared, pairs = equations(scene)
    step, _ = kernel.solve(own, shared, pairs, 100, 1e-10)
    assert (own[2] == 0).all() and (step[2] == 0).all()
    assert np.isfinite(step).all() and (step[:2] != 0).all()
    cov = kernel.covariances(own, shared, pairs, 0.0)
    assert np.isnan(cov[2]).all() and np.isfinite(cov[:2]).all()


def full_covariances(own, shared, pairs):
    inverse = np.linalg.inv(dense(own, shared, pairs)[0])
    blocks = [inverse[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] for i in range(len(own))]
    return np.array([block[np.triu_indices(3)] for block in blocks])


def test_covariances_of_a_group_are_those_of_the_inverse():
    rng = np.random.default_rng(4)
    group = np.column_stack([rng.uniform(35, 43, 9), rng.uniform(30, 38, 9), rng.uniform(2000, 9000, 9)])
    own, shared, pairs = equations(scene_of(group))
    expected = full_covariances(own, shared, pairs)
    found = kernel.covariances(own, shared, pairs, 0.0)
    size = np.sqrt(expected[:, [0, 3, 5]])
    scale = np.stack([size[:, a] * size[:, b] for a, b in zip(*np.triu_indices(3))], axis=1)
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)


def test_covariances_along_a_chain():
    """30 stars, each 1.2 FWHM from the next: only the nearest are seen, and are enough."""
    t = np.arange(30)
    chain = np.column_stack([6 + 2.3 * t + 0.3 * (t % 3), 15 + 1.3 * t, np.full(30, 4000.0) + 100 * t])
    own, shared, pairs = equations(scene_of(chain))
    expected, found = full_covariances(own, shared, pairs), kernel.covariances(own, shared, pairs, 0.005)
    np.testing.assert_allclose(found[:, [0, 3, 5]], expected[:, [0, 3, 5]], rtol=0.02)
    assert (1 / own[:, 0] < 0.9 * expected[:, 0]).any()


def test_covariances_of_many_neighbours_keep_the_strongest():
    """A star among 24 others within reach: twelve, the nearest, are freed."""
    y, x = (a.ravel() for a in np.mgrid[-2:3, -2:3])
    grid = np.column_stack([40 + 3.2 * x, 35 + 3.2 * y, np.full(25, 5000.0)])
    own, shared, pairs = equations(scene_of(grid, holes=False))
    expected, found = full_covariances(own, shared, pairs), kernel.covariances(own, shared, pairs, 0.0)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=0.02)


def test_chi_sharp_and_dominance_by_their_definitions():
    scene = scene_of(crowd())
    radius, hwhm = 3.3, 1.1
    out = kernel.quality(kernel_psf(scene.psf), scene.images, scene.noise, scene.stars, scene.middle, radius, hwhm)
    weight, residual = (a.reshape(SHAPE) for a in weights(scene))
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for i, (sx, sy, flux) in enumerate(scene.stars):
        r2 = (x - sx) ** 2 + (y - sy) ** 2
        near = (r2 <= radius**2) & (weight > 0)
        w, r, n = weight[near], residual[near], near.sum()
        if n <= 3:
            assert np.isnan(out[i, 0]) and np.isnan(out[i, 1])
            continue
        chi = 1.2533 * np.abs(r * np.sqrt(w)).mean() * np.sqrt(n / (n - 3))
        # d/dsigma^2 of a Gaussian, per amplitude: DAOPHOT's sharp.
        rho = np.log(2) * r2[near] / hwhm**2
        change = np.where(r2[near] <= 6 * hwhm**2, np.exp(-rho) * (rho - 1), 0)
        middle = star(scene.psf, sx, sy, 1)[0][1, 1]
        sharp = 1.4427 * hwhm**2 * (change * r * w).sum() / (change**2 * w).sum() / (flux * middle)
        np.testing.assert_allclose(out[i, :2], [chi, sharp], rtol=2e-4, atol=1e-6)
        mx, my = scene.middle[i]
        if 0 <= mx < SHAPE[1] and 0 <= my < SHAPE[0]:
            assert out[i, 2] == pytest.approx(flux * middle / scene.images[1][my, mx], rel=1e-5)


def test_sharp_is_the_excess_of_variance():
    """A source broadened by 0.3 px rms: its variance along each axis exceeds the profile's by 0.09 px^2."""
    psf = make_psf(SHAPE, vary=0.0)
    x, y, flux = 40.2, 35.1, 1e5
    shifts = 0.3 * np.sqrt(2) * np.array([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)])
    data = sum(paint(psf, [x + dx, y + dy, flux / 16], 12) for dx, dy in shifts.T).astype(np.float32)
    best = flux
    model = paint(psf, [x, y, best], 12).astype(np.float32)
    images = data, model, np.full(SHAPE, 1e4, np.float32)
    out = kernel.quality(
        kernel_psf(psf), images, np.array([0.0, 0.0]), np.array([[x, y, best]]), np.array([[40, 35]], np.int32),
        1.5 * psf.fwhm_pix, psf.fwhm_pix / 2,
    )  # fmt: skip
    assert out[0, 1] == pytest.approx(2 * 0.09, rel=0.25)


def test_psf_that_does_not_fit_the_buffers_is_refused():
    psf = make_psf(SHAPE)
    with pytest.raises(ValueError, match="too wide"):
        kernel_psf(psf, (6, 80))
    with pytest.raises(ValueError, match="terms"):
        kernel.Psf([psf.by_phase(6)], (6,), psf.wing, 2, psf.shape)
