"""Programs in Python that fit point sources, for an interpreter that has them: ``python peer_programs.py NAME IN OUT``.

It stands alone: only NumPy, SciPy and the program itself are imported. IN (.npz): ``image`` (DN, background included),
``sigma`` (DN), ``bad`` (bool), ``threshold``, the PSF ``samples step_pix degree zero scale`` in PSFEx's layout with its
``wing`` (height and squared scale radius of a Moffat of exponent 2.5 beyond the samples), ``corner`` (x, y) and
``full_shape`` of a cut-out. OUT (.npz): ``x y flux sigflux sigma_x sigma_y``, and ``cpu_s`` without imports and files.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: What photutils is given: PSFs at GRID x GRID places, OVERSAMPLING samples a pixel, out to HALF_PIX.
GRID, OVERSAMPLING, HALF_PIX = 4, 4, 23
CHUNK = 500

Given = Mapping[str, Any]


class Psf:
    """The PSF that the programs are given, by cubic splines through its samples; positions are 0-based pixels."""

    def __init__(self, given: Given) -> None:
        self.step, self.degree = float(given["step_pix"]), int(given["degree"])
        self.zero, self.scale, self.wing = given["zero"], given["scale"], given["wing"]
        samples = np.asarray(given["samples"], float)
        self.coefficients = ndimage.spline_filter1d(ndimage.spline_filter1d(samples, axis=1), axis=2)
        self.half = int((samples.shape[1] // 2 - 2) * self.step)

    def local(self, x: NDArray, y: NDArray) -> NDArray:
        """Spline coefficients at places, (n, rows, columns)."""
        u, v = (x + 1.0 - self.zero[0]) / self.scale[0], (y + 1.0 - self.zero[1]) / self.scale[1]
        terms = [u**i * v**j for j in range(self.degree + 1) for i in range(self.degree + 1 - j)]
        return np.tensordot(np.stack(terms, axis=-1), self.coefficients, axes=1)

    def images(self, x: NDArray, y: NDArray, size: int) -> NDArray:
        """Stars and their derivatives by x and y on windows of `size` about the nearest pixel, (3, n, size, size)."""
        n, half = self.coefficients.shape[1], min(size // 2, self.half)
        inner = slice(size // 2 - half, size // 2 + half + 1)
        grid = np.arange(-half, half + 1)
        out = self._wings(x, y, size) if half < size // 2 else np.zeros((3, x.size, size, size), np.float32)
        for start in range(0, x.size, CHUNK):
            part = slice(start, start + CHUNK)
            here = self.local(x[part], y[part])
            (wx, dx), (wy, dy) = (
                _splines((grid + (np.rint(p[part]) - p[part])[:, None]) / self.step + n // 2, n) for p in (x, y)
            )
            along = here @ wx.transpose(0, 2, 1)
            out[0, part, inner, inner] = wy @ along
            out[2, part, inner, inner] = dy @ along / -self.step
            out[1, part, inner, inner] = wy @ (here @ dx.transpose(0, 2, 1)) / -self.step
        return out

    def _wings(self, x: NDArray, y: NDArray, size: int) -> NDArray:
        """The same from the wing's profile alone."""
        grid = np.arange(-(size // 2), size // 2 + 1)
        dx = (grid + (np.rint(x) - x)[:, None])[:, None, :].astype(np.float32)
        dy = (grid + (np.rint(y) - y)[:, None])[:, :, None].astype(np.float32)
        height, radius_sq = (np.float32(v) for v in self.wing)
        t = 1.0 / (1.0 + (dx * dx + dy * dy) / radius_sq)
        value = height * t**2.5
        slope = value * t * (5.0 / radius_sq)
        return np.stack([value, slope * dx, slope * dy])


def _splines(at: NDArray, n: int) -> tuple[NDArray, NDArray]:
    """Cubic B-splines at n nodes and their slopes, (stars, pixels, n)."""
    d = at[:, :, None] - np.arange(n)
    a = np.abs(d)
    value = np.where(a < 1.0, 2 / 3 - a * a + a**3 / 2, np.where(a < 2.0, (2.0 - a) ** 3 / 6.0, 0.0))
    slope = np.where(a < 1.0, -2.0 * a + 1.5 * a * a, np.where(a < 2.0, -((2.0 - a) ** 2) / 2.0, 0.0))
    return value, slope * np.sign(d)


class ForCrowdsource:
    """The PSF as crowdsource asks for it: its first axis is the row."""

    def __init__(self, psf: Psf) -> None:
        self.psf = psf

    def __call__(self, row: Any, column: Any, stampsz: int | None = 59, deriv: bool = False) -> Any:
        """Stamps, and with `deriv` their derivatives by row and column."""
        is_one = np.ndim(row) == 0
        rows, columns = (np.atleast_1d(np.asarray(p, float)) for p in (row, column))
        value, by_x, by_y = self.psf.images(columns, rows, 59 if stampsz is None else int(stampsz))
        if is_one:
            value, by_x, by_y = value[0], by_x[0], by_y[0]
        return (value, by_y, by_x) if deriv else value


def crowdsource(given: Given) -> dict[str, Any]:
    """Simultaneous fit in 4 x 4 tiles, up to ten passes; its defaults but for the limit of 40,000 stars."""
    from crowdsource import crowdsource_base

    weight = np.where(given["bad"], 0.0, 1.0 / given["sigma"]).astype("f4")
    psf = ForCrowdsource(Psf(given))
    start = time.process_time()
    stars, *_ = crowdsource_base.fit_im(
        given["image"].astype("f4"), psf, weight=weight, ntilex=4, ntiley=4, maxstars=400_000,
        threshold=float(given["threshold"]),
    )  # fmt: skip
    seconds = time.process_time() - start
    names = {"x": "y", "y": "x", "flux": "flux", "sigflux": "dflux", "sigma_x": "dy", "sigma_y": "dx"}
    return {own: stars[theirs] for own, theirs in names.items()} | {"cpu_s": seconds}


def gridded(psf: Psf, given: Given) -> Any:
    """A GriddedPSFModel of photutils in the coordinates of the cut-out."""
    from astropy.nddata import NDData
    from photutils.psf import GriddedPSFModel

    (x0, y0), (n_y, n_x) = given["corner"], given["full_shape"]
    places = [(x, y) for y in np.linspace(0, n_y - 1, GRID) for x in np.linspace(0, n_x - 1, GRID)]
    n = 2 * HALF_PIX * OVERSAMPLING + 1
    offsets = (np.arange(n) - n // 2) / OVERSAMPLING
    nodes = psf.coefficients.shape[1]
    weights, _ = _splines(offsets[None, :] / psf.step + nodes // 2, nodes)
    cube = [weights[0] @ psf.local(np.array([x]), np.array([y]))[0] @ weights[0].T for x, y in places]
    meta = {"grid_xypos": [(x - x0, y - y0) for x, y in places], "oversampling": OVERSAMPLING}
    return GriddedPSFModel(NDData(np.array(cube), meta=meta))


def photutils(given: Given) -> dict[str, Any]:
    """DAOStarFinder, groups, PSFPhotometry, and again on what is left, in a cut-out; the sky is its median."""
    from photutils.detection import DAOStarFinder
    from photutils.psf import IterativePSFPhotometry, SourceGrouper

    model, bad = gridded(Psf(given), given), given["bad"]
    finder = DAOStarFinder(float(given["threshold"]), 2.1)
    fit = IterativePSFPhotometry(
        model, (7, 7), finder, grouper=SourceGrouper(4.0), aperture_radius=3.0, maxiters=2, mode="all"
    )
    sky = np.median(given["image"][~bad])
    start = time.process_time()
    table = fit((given["image"] - sky).astype(float), error=given["sigma"].astype(float), mask=bad)
    seconds = time.process_time() - start
    names = {"x": "x_fit", "y": "y_fit", "flux": "flux_fit", "sigflux": "flux_err", "sigma_x": "x_err",
             "sigma_y": "y_err"}  # fmt: skip
    out: dict[str, Any] = {
        own: np.ma.filled(np.ma.asarray(table[theirs], float), np.nan) for own, theirs in names.items()
    }
    x0, y0 = given["corner"]
    return out | {"x": out["x"] + x0, "y": out["y"] + y0, "cpu_s": seconds}


if __name__ == "__main__":
    with np.load(sys.argv[2]) as opened:
        inputs = dict(opened)
    np.savez(sys.argv[3], **{"crowdsource": crowdsource, "photutils": photutils}[sys.argv[1]](inputs))
