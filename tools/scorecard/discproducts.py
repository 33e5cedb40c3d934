"""Products of the realtime and alerts pipelines of a channel, read with astropy and a reader of Avro of its own."""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from tools.scorecard.discmeasure import Candidates, DiffProducts
from tools.scorecard.products import Science, read_image
from zsds_hpc.archive import paths
from zsds_hpc.core import ids

DIFFERENCE, UNCERTAINTY, MASK = "scimrefdiffimg.fits.fz", "scimrefdiffunc.fits.fz", "diffmsk.fits.fz"
CANDIDATES, STREAKS = "diffcand.fits", "diffstreaks.fits"
UNUSABLE = 6141


def is_searched(science: Science) -> bool:
    """There is a difference and a list of candidates."""
    return science.path(DIFFERENCE).is_file() and science.path(CANDIDATES).is_file()


def read_candidates(path: Path) -> tuple[Candidates, NDArray, fits.Header]:
    """Candidates, the whole table, and the header of a file of candidates."""
    with fits.open(path, memmap=False) as hdus:
        rows = np.array(hdus["CANDIDATES"].data)
        header = hdus[0].header
    names = rows.dtype.names or ()
    scores = next((rows[name].astype(float) for name in ("drb", "rb") if name in names), np.full(len(rows), np.nan))
    x, y, flux, sigma = (rows[name].astype(float) for name in ("xpos", "ypos", "flux", "sigflux"))
    flux = np.where(rows["isdiffpos"], np.abs(flux), -np.abs(flux))
    return Candidates(x - 1.0, y - 1.0, flux, sigma, scores), rows, header


def cutouts(science: Science) -> list[NDArray]:
    """Science, template and difference cutouts of all candidates, each (n, 63, 63)."""
    with fits.open(science.path(CANDIDATES), memmap=False) as hdus:
        rows = hdus["CUTOUTS"].data
        return [np.array(rows[name], float) for name in ("SCIENCE", "TEMPLATE", "DIFFERENCE")]


def read_products(science: Science) -> DiffProducts:
    """Difference, error and candidates of a channel."""
    pix, _ = read_image(science.path(DIFFERENCE))
    sigma, _ = read_image(science.path(UNCERTAINTY))
    mask, _ = read_image(science.path(MASK))
    sigma = np.where((mask & UNUSABLE) != 0, np.inf, sigma)
    return DiffProducts(pix, sigma, read_candidates(science.path(CANDIDATES))[0])


def epochs_of(science: Science) -> list[Science]:
    """Exposures of the same field, filter and channel on earlier nights: what a reference can have been made from."""
    run, own = science.run, (science.name.field, science.filtercode)
    found = []
    for night, truth in run.truths.items():
        if night >= science.night:
            continue
        for name in truth.exposures("object"):
            if science.rcid in truth.rcids(name):
                epoch = Science(run, truth, night, name, science.rcid)
                if (epoch.name.field, epoch.filtercode) == own:
                    found.append(epoch)
    return found


def packet_files(science: Science) -> list[Path]:
    """Containers of the alert packets of a channel, one per program."""
    _, qid = ids.ccdid_qid_of(science.rcid)
    names = (science.run.archive / paths.alerts(science.name, qid, program) for program in (1, 2, 3))
    return [path for path in names if path.is_file()]


def packets(science: Science) -> list[dict[str, Any]]:
    """All alert packets of a channel."""
    from tools.scorecard.avro import read_container

    return [packet for path in packet_files(science) for packet in read_container(path.read_bytes())]
