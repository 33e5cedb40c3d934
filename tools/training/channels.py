"""Labelled candidates of whole channels: calibrated images of a simulated run through the suite's own differencing.

Every science image is searched as it is, and again with what real nights have more of: sources injected with the
simulator's PSF, radiation hits whose mask is taken away, bad pixels, tracks, ghosts (`tools.training.defects`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tools.scorecard import disctruth, limits, products
from tools.skysim import render
from tools.training import defects
from tools.training.examples import REAL_KINDS, Examples, Truth, examples_of
from zsds_hpc.archive.fitsfiles import FitsFile, card_value
from zsds_hpc.archive.psffile import read_psf
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.coadd.footprint import footprint_of
from zsds_hpc.coadd.template import TemplateParams, make_reference
from zsds_hpc.coadd.warp import Exposure
from zsds_hpc.core.maskbits import SPIKE
from zsds_hpc.pipelines.ingest import geometry_of
from zsds_hpc.psf.model import PsfModel
from zsds_hpc.settings.camera import load_camera
from zsds_hpc.subtraction.candidates import CandidateParams, find_candidates
from zsds_hpc.subtraction.difference import DifferenceParams, subtract
from zsds_hpc.subtraction.images import Science, Template

#: Changes of at least this true S/N are real; weaker ones are part of the constant sky.
LEAST_SNR = 3.0
N_INJECTED = 400
SHARE_UNMASKED = 0.15
#: Small defects in terms of those of a scene.
RATE = 6.0
_KIND = {
    disctruth.PROBE_SKY: "transient", disctruth.PROBE_GALAXY: "hosted", disctruth.PROBE_STAR: "transient",
    disctruth.TRANSIENT: "transient", disctruth.VARIABLE: "variable", disctruth.ASTEROID: "mover",
    disctruth.STREAKER: "mover",
}  # fmt: skip
REAL_DTYPE = np.dtype([("x", "f8"), ("y", "f8"), ("flux", "f8"), ("kind", "i2")])


class Searches(NamedTuple):
    """How the images of a run are searched.

    The first `n_reference` make the reference; each of the others is searched as it is and `n_spoiled` times with
    defects added, with each of the filters of candidates.
    """

    n_reference: int
    n_spoiled: int
    filters: dict[str, CandidateParams]


def reference_of(epochs: list[products.Science]) -> Template:
    """Reference of some epochs, made in memory by the suite's own co-add."""
    camera = load_camera("ztf")
    channel = next(channel for channel in camera.channels if channel.rcid == epochs[0].rcid)
    pointing = epochs[0].truth.exposure(epochs[0].exposure)
    ra, dec = (float(pointing[f"commanded_{name}_deg"]) for name in ("ra", "dec"))
    grid = footprint_of(geometry_of(channel, camera), ra, dec, camera.pixel_scale_arcsec)
    exposures = []
    for epoch in epochs:
        i = read_science(epoch.path("sciimg.fits"))
        exposures.append(Exposure(i.pix, i.mask, i.wcs, i.gain_e, i.saturate_dn, i.magzp, i.clrcoeff, i.seeing_pix))
    magzp = camera.filters[epochs[0].filtercode].reference_magzp
    return make_reference(exposures, grid, magzp, TemplateParams(), {}).template


def read_science(path: Path) -> Science:
    """A calibrated image and what belongs to it, from its ``sciimg.fits``."""
    stem = str(path).removesuffix("sciimg.fits")
    image = FitsFile(Path(path))
    header = image.header(0)
    numbers = [float(card_value(header, k)) for k in ("GAIN", "SATURATE", "MAGZP", "CLRCOEFF", "SEEING", "MAGLIM")]
    mask, catalogue = FitsFile(Path(f"{stem}mskimg.fits")).image(0), FitsFile(Path(f"{stem}psfcat.fits")).table(1)
    psf = read_psf(Path(f"{stem}sciimg.psf"))
    return Science(image.image(0), mask, psf, catalogue, TPV.from_cards(header), *numbers)


def true_changes(science: products.Science, epochs: list[products.Science]) -> NDArray:
    """What is real on an image; along streaks points without flux, near which nothing is judged."""
    changed = disctruth.changes(science, epochs)
    changed = changed[np.abs(changed["snr"]) >= LEAST_SNR]
    real = np.zeros(len(changed), REAL_DTYPE)
    for name in ("x", "y", "flux"):
        real[name] = changed[name]
    real["kind"] = [REAL_KINDS.index(_KIND[int(k)]) for k in changed["kind"]]
    movers = science.table("movers")
    long = movers[np.hypot(movers["x_end"] - movers["x_start"], movers["y_end"] - movers["y_start"]) > 5]
    steps = np.linspace(0, 1, 200)[:, None]
    silent = np.zeros(steps.size * len(long), REAL_DTYPE)
    for name in "xy":
        silent[name] = (long[f"{name}_start"] * (1 - steps) + long[f"{name}_end"] * steps).ravel()
    return np.concatenate([real, silent])


def injected(
    rng: np.random.Generator, image: Science, science: products.Science, taken: NDArray
) -> tuple[Science, NDArray]:
    """The image with new sources, S/N log-uniform from 4 to 500, a third of them on stars and galaxies."""
    n_y, n_x = image.pix.shape
    x, y = rng.uniform(8, n_x - 9, N_INJECTED), rng.uniform(8, n_y - 9, N_INJECTED)
    hosts = image.psfcat[rng.integers(0, len(image.psfcat), N_INJECTED)]
    on_host = rng.random(N_INJECTED) < 1 / 3
    x[on_host], y[on_host] = (hosts[name][on_host] - 1 + rng.normal(0, 1.5, on_host.sum()) for name in ("xpos", "ypos"))
    sky, share = float(np.median(image.pix[::7, ::7])), float((image.psf.center(10) ** 2).sum())
    noise = np.sqrt((sky / image.gain_e + (10 / image.gain_e) ** 2) / share)
    flux = noise * np.exp(rng.uniform(np.log(4), np.log(500), N_INJECTED))
    apart = np.hypot(x[:, None] - np.r_[taken["x"], x], y[:, None] - np.r_[taken["y"], y]) < 12
    apart[:, len(taken) :] &= np.tri(N_INJECTED, k=-1, dtype=bool)
    kept = ~apart.any(axis=1)
    light = np.zeros_like(image.pix)
    render.add_stars(light, x[kept], y[kept], flux[kept], limits.true_psf(science))
    light[light > 0] = rng.poisson(light[light > 0] * image.gain_e) / image.gain_e
    real = np.zeros(int(kept.sum()), REAL_DTYPE)
    real["x"], real["y"], real["flux"] = x[kept], y[kept], flux[kept]
    real["kind"] = np.where(on_host[kept], REAL_KINDS.index("hosted"), REAL_KINDS.index("transient"))
    return replace(image, pix=image.pix + light), real


def _unmasked_hits(rng: np.random.Generator, image: Science) -> tuple[NDArray, NDArray]:
    """The mask without some of its hits, and points on these."""
    labels, n = ndimage.label(image.mask & SPIKE, structure=np.ones((3, 3)))
    chosen = np.flatnonzero(rng.random(n + 1) < SHARE_UNMASKED)
    freed = np.isin(labels, chosen[chosen > 0])
    points = np.zeros(int(freed.sum()), defects.DEFECT_DTYPE)
    points["y"], points["x"] = np.nonzero(freed)
    points["kind"] = defects.KINDS.index("spot")
    return np.where(freed, image.mask & ~SPIKE, image.mask).astype(np.int16), points


def spoiled(rng: np.random.Generator, image: Science, psf: PsfModel) -> tuple[Science, NDArray]:
    """The image with defects that the mask does not tell, and points on them."""
    mask, freed = _unmasked_hits(rng, image)
    pix = image.pix.copy()
    rms = 1.4826 * float(np.median(np.abs(np.diff(pix[::5, ::2], axis=1)))) / np.sqrt(2)
    unused = np.zeros_like(pix)
    points = defects.add_defects(rng, (pix, unused, mask), psf, rms, RATE)
    points = points[points["kind"] != defects.KINDS.index("reference_hit")]
    return replace(image, pix=pix, mask=mask), np.concatenate([points, freed])


def channel_examples(
    science: products.Science, epochs: list[products.Science], template: Template, number: int, searches: Searches
) -> Iterator[tuple[str, Examples]]:
    """Candidates of an image as it is, and with sources and defects added; first what, such as ``asis-loose``."""
    image, real = read_science(science.path("sciimg.fits")), true_changes(science, epochs)
    nothing = np.zeros(0, defects.DEFECT_DTYPE)
    yield from _searched("asis", image, template, Truth(real, nothing), number, searches.filters)
    for k in range(searches.n_spoiled):
        rng = np.random.default_rng([number, k, 5])
        more, added = injected(rng, image, science, real)
        bad, points = spoiled(rng, more, image.psf)
        truth = Truth(np.concatenate([real, added]), points)
        yield from _searched("spoiled", bad, template, truth, number, searches.filters)


def run_examples(place: Path, number: int, searches: Searches) -> Iterator[tuple[str, Examples]]:
    """Candidates of all images of a simulated run but the first, which make the reference.

    Images are numbered ``1000 number + k``.
    """
    images = [image for image in products.Run(place).science() if image.is_processed]
    epochs = images[: searches.n_reference]
    template = reference_of(epochs)
    for k, image in enumerate(images[searches.n_reference :]):
        yield from channel_examples(image, epochs, template, 1000 * number + k, searches)
        image.forget_pixels()


def _searched(
    what: str, image: Science, template: Template, truth: Truth, number: int, filters: dict[str, CandidateParams]
) -> Iterator[tuple[str, Examples]]:
    difference = subtract(image, template, DifferenceParams())
    for name, params in filters.items():
        found = find_candidates(difference, image.wcs, params)
        yield f"{what}-{name}", examples_of(found, difference, truth, number)
