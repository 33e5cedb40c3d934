"""Labelled candidates: what was found on an image, and what each is by the truth."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tools.training import defects
from zsds_hpc.subtraction.candidates import Candidates
from zsds_hpc.subtraction.cutnet import network_input
from zsds_hpc.subtraction.images import Difference

#: What a candidate may be; the first four are real.
REAL_KINDS = ("transient", "hosted", "variable", "mover")
KINDS = (*REAL_KINDS, *defects.KINDS, "star", "noise")
REAL, BOGUS, UNCLEAR = 1, 0, -1


class Examples(NamedTuple):
    """Candidates of many images, row by row.

    `seen` is what the network sees (half precision); `label` is REAL, BOGUS or UNCLEAR, `kind` an index into KINDS,
    `image` the number of the image, by which training and held-out sets are told apart.
    """

    table: NDArray
    seen: NDArray[np.float16]
    label: NDArray[np.int8]
    kind: NDArray[np.int16]
    image: NDArray[np.int32]

    def of(self, rows: NDArray) -> "Examples":
        """Some of the rows."""
        return Examples(*(column[rows] for column in self))


class Truth(NamedTuple):
    """What is on an image: `real` with x, y, flux, kind; `defects` with x, y, kind (of `defects.KINDS`)."""

    real: NDArray
    defects: NDArray


def examples_of(candidates: Candidates, difference: Difference, truth: Truth, image: int) -> Examples:
    """Label the candidates of one image."""
    table, cutouts = candidates.table, candidates.cutouts
    label, kind = label_candidates(table, difference, truth)
    seen = network_input(cutouts.science, cutouts.template, cutouts.difference, table["isdiffpos"])
    return Examples(table, seen.astype(np.float16), label, kind, np.full(len(table), image, np.int32))


def label_candidates(table: NDArray, difference: Difference, truth: Truth) -> tuple[NDArray, NDArray]:
    """Label and kind of each candidate.

    Real is what lies within 0.7 FWHM (at least a pixel) of a real source and has its sign and half to twice its flux
    (or is within five sigma of it). What lies near a real source otherwise - a piece or a lobe of it, or a blend with
    a defect - is unclear, and neither trains nor counts.
    """
    fwhm, places = difference.psf.fwhm_pix, np.stack([table["xpos"] - 1, table["ypos"] - 1], axis=1)
    label, kind = np.full(len(table), BOGUS, np.int8), np.full(len(table), KINDS.index("noise"), np.int16)
    bright = difference.sources[difference.sources["snr"] > 10]
    kind[_nearest(places, bright)[0] < 1.2 * fwhm + 1] = KINDS.index("star")
    distance, which = _nearest(places, truth.defects)
    damaged = distance < fwhm + 2
    kind[damaged] = len(REAL_KINDS) + truth.defects["kind"][which[damaged]]
    distance, which = _nearest(places, truth.real)
    near = distance < np.maximum(3 * fwhm, 6)
    label[near] = UNCLEAR
    match = np.flatnonzero(distance < max(0.7 * fwhm, 1.0))
    flux, own = truth.real["flux"][which[match]], table["flux"][match]
    agrees = (np.abs(own - flux) < 5 * table["sigflux"][match]) | ((own / flux > 0.5) & (own / flux < 2))
    rows = match[(own * flux > 0) & agrees]
    label[rows], kind[rows] = REAL, truth.real["kind"][which[rows]]
    return label, kind


def _nearest(places: NDArray, others: NDArray) -> tuple[NDArray, NDArray]:
    """Distance to the nearest of others, and which it is."""
    if not len(others):
        return np.full(len(places), np.inf), np.zeros(len(places), int)
    return cKDTree(np.stack([others["x"], others["y"]], axis=1)).query(places)


def joined(parts: list[Examples]) -> Examples:
    """All examples one after the other."""
    return Examples(*(np.concatenate(columns) for columns in zip(*parts)))


def save(path: Path, examples: Examples) -> None:
    """Keep examples for the next run of the trainer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **examples._asdict())


def load(path: Path) -> Examples:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Examples(**{name: file[name] for name in Examples._fields})
