"""The simultaneous fit of a handful of stars as a dense least-squares problem: slow, obvious, the judge of the engine.

Every star has flux, x and y; its model is `psf(x, y, half)` on the pixels of a window that does not move. Weights are
one over (variance of the sky + model / gain), with the model of the solution. Derivatives are differences, the normal
matrix is a full one, and errors are the diagonal of its inverse.
"""

from typing import NamedTuple

import numpy as np

from zsds_hpc.psf.model import PsfModel, monomials, node_offsets, spline_coefficients

_STEP_PIX = 0.01


class Oracle(NamedTuple):
    """Solution of a group of n stars."""

    value: np.ndarray  # (n, 3): x, y, flux
    covariance: np.ndarray  # (n, 3, 3), of x, y, flux; the other stars free too
    flux_alone: np.ndarray  # (n,): variance of the flux were the star alone


def fit_group(images, gain, psf, start, half, n_iterations=60):
    """Fit stars to an image.

    `images` are the background-subtracted data and the variance of the sky (infinite where unusable), `psf` is called
    as psf(x, y, half) for a star's window about the pixel nearest to it, `start` is (n, 3) and `half` (n,).
    """
    data, variance = images
    value, middle = np.array(start, float), np.rint(np.asarray(start)[:, :2]).astype(int)
    for _ in range(n_iterations):
        model = canvas(data.shape, psf, value, middle, half)
        weight = 1 / (variance + np.maximum(model, 0) / gain)
        slopes = _slopes(data.shape, psf, value, middle, half)
        normal = (slopes * weight.ravel()) @ slopes.T
        step = np.linalg.solve(normal, (slopes * weight.ravel()) @ (data - model).ravel()).reshape(-1, 3)
        step[:, :2] = np.clip(step[:, :2], -0.3, 0.3)
        value += step
    covariance = np.linalg.inv(normal).reshape(len(value), 3, len(value), 3)
    own = covariance[np.arange(len(value)), :, np.arange(len(value))]
    blocks = normal.reshape(len(value), 3, len(value), 3)[np.arange(len(value)), :, np.arange(len(value))]
    return Oracle(value, own, np.linalg.inv(blocks)[:, 2, 2])


def canvas(shape, psf, value, middle, half):
    """Sum of stars (x, y, flux) within their windows, float64."""
    out = np.zeros(shape)
    for (x, y, flux), (x0, y0), h in zip(value, middle, half):
        rx, ry = int(np.rint(x)), int(np.rint(y))
        wide = h + max(abs(rx - x0), abs(ry - y0))
        stamp = np.asarray(psf(x, y, wide), float)
        for row in range(max(y0 - h, 0), min(y0 + h + 1, shape[0])):
            first, last = max(x0 - h, 0), min(x0 + h + 1, shape[1])
            out[row, first:last] += flux * stamp[row - ry + wide, first - rx + wide : last - rx + wide]
    return out


def _slopes(shape, psf, value, middle, half):
    """Derivatives of the model by x, y, flux of each star, shape (3 n, n_pixels)."""
    out = np.empty((3 * len(value), shape[0] * shape[1]))
    for i in range(len(value)):
        one = slice(i, i + 1)
        for axis in range(2):
            step = _STEP_PIX * (np.arange(3) == axis)
            ahead, behind = (canvas(shape, psf, value[one] + s * step, middle[one], half[one]) for s in (1, -1))
            out[3 * i + axis] = (ahead - behind).ravel() / (2 * _STEP_PIX)
        unit = value[one] * [1, 1, 0] + [0, 0, 1]
        out[3 * i + 2] = canvas(shape, psf, unit, middle[one], half[one]).ravel()
    return out


def true_model(psf, degree=4, oversampling=4, half=16):
    """GalSim's point-spread function as the suite's model: splines through its samples, least squares over the image.

    `psf` has `at(x, y)`, a GalSim profile with the pixel, and `shape`.
    """
    n_y, n_x = psf.shape
    offsets = node_offsets(half, oversampling)
    places = np.cos(np.pi * (np.arange(6) + 0.5) / 6)
    v, u = (a.ravel() for a in np.meshgrid(places, places, indexing="ij"))
    samples = []
    for x, y in zip((u + 1) * (n_x - 1) / 2, (v + 1) * (n_y - 1) / 2):
        drawn = psf.at(x, y).drawImage(
            nx=offsets.size, ny=offsets.size, scale=psf.scale_arcsec / oversampling, method="no_pixel"
        )
        samples.append(drawn.array.astype(float) * oversampling**2)
    terms = monomials(u, v, degree)
    fitted = np.linalg.lstsq(terms, np.array(samples).reshape(len(u), -1), rcond=None)[0]
    coefficients = spline_coefficients(fitted.reshape(-1, offsets.size, offsets.size)).astype(np.float32)
    return PsfModel(coefficients, oversampling, degree, psf.shape, wing_of(psf, half))


def wing_of(psf, half):
    """Power law through GalSim's profile at 1 and 1.5 times the half side, (factor, exponent)."""
    middle = psf.shape[1] / 2, psf.shape[0] / 2
    stamp = psf.direct(*np.rint(middle), int(1.5 * half))
    c = stamp.shape[0] // 2
    near, far = stamp[c, c + half], stamp[c, c + int(1.5 * half)]
    exponent = -np.log(far / near) / np.log(int(1.5 * half) / half)
    return float(near * half**exponent), float(exponent)
