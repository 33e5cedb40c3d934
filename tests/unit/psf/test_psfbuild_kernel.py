"""The kernels against slow sums that are obviously right."""

import numpy as np
import pytest
from scipy.interpolate import BSpline
from zsds_hpc.kernels.psfbuild import (
    profile_images,
    profile_sums,
    spline_gradient,
    spline_normal,
    subtract_spline_inplace,
)

from tests.unit.psf.psf_truth import make_stars
from zsds_hpc.photometry.profile import StarProfile
from zsds_hpc.psf import elliptical
from zsds_hpc.psf.freespline import Residuals, _banded

M, HALF, N_NODES = 2, 3, 2 * (2 * 4 + 2) + 1


def test_profile_sums_are_the_normal_equations_of_numerical_derivatives():
    base = elliptical.from_profile(StarProfile(2.2, 3.0, 0.05, -0.03))
    made = make_stars(4, 2.0, 5)
    stars = np.array([[2e4, 0.2, -0.3, 3.0]] * 4)
    shape = np.tile(base.terms[0], (4, 1))
    n = 12
    normal, sums = np.empty((4, n, n)), np.empty((4, n + 2))
    settings = np.array([4, 4, 0.0, 5, 1e9])
    profile_sums(made.stars.pix, made.stars.var, stars, shape, base.table, settings, normal, sums)

    def model(parameters):
        flux, x, y, sky, *form = parameters[:7]
        weights = base.weights + parameters[7:]
        table = elliptical.EllipticalPsf(np.array([form]), weights, base.beta).table
        grid = np.empty((9, 9))
        for j in range(9):
            for i in range(9):
                grid[j, i] = _at(table, np.array(form), i - 4 - x, j - 4 - y)
        return flux * grid + sky

    start = np.concatenate([stars[0], shape[0], np.zeros(5)])
    steps = np.array([1.0, 1e-3, 1e-3, 1.0, 1e-3, 1e-3, 1e-3, *[1e-3] * 5])
    design = np.stack([(model(start + d) - model(start - d)) / (2 * d.sum()) for d in np.diag(steps)], axis=-1)
    inner = (0, slice(1, 10), slice(1, 10))
    weight = 1 / made.stars.var[inner].astype(float)
    residual = made.stars.pix[inner] - model(start)
    expected = np.einsum("yxa,yx,yxb->ab", design, weight, design)
    scale = np.sqrt(np.diag(expected))
    assert np.abs((normal[0] - expected) / np.outer(scale, scale)).max() < 0.01
    right = np.einsum("yxa,yx,yx->a", design, weight, residual)
    assert np.abs((sums[0, :n] - right) / scale).max() < 0.01 * np.sqrt((weight * residual**2).sum())
    assert sums[0, n] == pytest.approx((weight * residual**2).sum(), rel=1e-3)
    assert sums[0, n + 1] == 81


def _at(table, shape, dx, dy):
    """Pixel-integrated profile at one offset, by the three-point rule, from the table's components' sum."""
    nodes, share = np.array([-1, 0, 1]) * np.sqrt(0.6) / 2, np.array([5, 8, 5]) / 18
    f, e1, e2 = shape
    e = np.hypot(e1, e2)
    x, y = dx + nodes[None, :], dy + nodes[:, None]
    r2 = np.cosh(e) * (x**2 + y**2) - np.sinh(e) / e * (e1 * (x**2 - y**2) + 2 * e2 * x * y)
    s = r2 * np.exp(-2 * f)
    z = s / (1 + s) * len(table)
    density = np.interp(z, np.arange(len(table)), table[:, 0]) * np.exp(-2 * f)
    return share @ density @ share


def test_profile_images_have_unit_flux_and_the_right_width():
    base = elliptical.from_profile(StarProfile(3.0, 3.5))
    out = np.empty((1, 161, 161))
    profile_images(base.shape_at(np.zeros(1), np.zeros(1)), base.table, 0.5, 80, out)
    assert out.sum() / 4 == pytest.approx(1, abs=3e-4)
    assert out[0, 80].argmax() == 80
    assert np.allclose(out[0], out[0].T, rtol=1e-5)


@pytest.fixture(scope="module")
def spline_case():
    rng = np.random.default_rng(5)
    n, side = 7, 2 * HALF + 1
    pix = rng.normal(0, 1, (n, side, side)).astype(np.float32)
    weight = rng.uniform(0.5, 2, (n, side, side)).astype(np.float32)
    weight[2, 3, 3] = 0
    phase = rng.uniform(-0.9, 0.9, (n, 2))
    flux, terms = rng.uniform(1, 3, n), rng.normal(0, 1, (n, 2))
    return Residuals(pix, weight, flux, phase, terms)


def _design(case):
    """Dense matrix (n, side^2, n_nodes^2) of the spline's B-splines at the pixels, from scipy."""
    basis = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    steps, nodes = np.arange(-HALF, HALF + 1), np.arange(N_NODES) - N_NODES // 2
    at = [np.nan_to_num(basis(M * (steps[None, :, None] - case.phase[:, k, None, None]) - nodes)) for k in (0, 1)]
    full = at[1][:, :, None, :, None] * at[0][:, None, :, None, :]
    return full.reshape(len(case.pix), steps.size**2, -1)


def test_normal_matrix_of_the_free_spline(spline_case):
    design, scatter = _design(spline_case), np.ones((N_NODES, N_NODES))
    sums = np.zeros((N_NODES, N_NODES, 2, 10, 16), np.float32)
    weight = spline_case.inverse_var * (spline_case.flux**2).astype(np.float32)[:, None, None]
    spline_normal(weight, spline_case.phase, (spline_case.terms**2).astype(np.float32), M, sums)
    for t in range(2):
        factor = weight.reshape(7, -1) * spline_case.terms[:, t, None] ** 2
        expected = np.einsum("npa,np,npb->ab", design, factor, design, optimize=True)
        bands = _banded(sums[:, :, t], scatter)
        for shift, band in enumerate(bands):
            assert np.allclose(band[: len(band) - shift], np.diag(expected, -shift), atol=1e-5)
        assert np.abs(np.tril(expected, -len(bands))).max() == 0


def test_gradient_and_subtraction_of_the_free_spline(spline_case):
    design = _design(spline_case)
    factor = (spline_case.flux * spline_case.terms[:, 0]).astype(np.float32)
    gradient = np.zeros((N_NODES, N_NODES))
    spline_gradient(spline_case.pix, spline_case.phase, factor, M, gradient)
    expected = np.einsum("npa,np,n->a", design, spline_case.pix.reshape(7, -1), factor)
    assert np.allclose(gradient.ravel(), expected, atol=1e-5)
    spline = np.random.default_rng(1).normal(0, 1, (N_NODES, N_NODES))
    left = spline_case.pix.copy()
    subtract_spline_inplace(spline, spline_case.phase, factor, M, left)
    expected = spline_case.pix.reshape(7, -1) - factor[:, None] * (design @ spline.ravel())
    assert np.allclose(left.reshape(7, -1), expected, atol=1e-5)


def test_windows_beyond_the_nodes_are_refused(spline_case):
    with pytest.raises(ValueError, match="do not cover"):
        spline_gradient(spline_case.pix, spline_case.phase, np.ones(7, np.float32), M, np.zeros((9, 9)))
