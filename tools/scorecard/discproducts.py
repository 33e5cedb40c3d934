"""Products of the realtime and alerts pipelines of a channel, read with astropy and a reader of Avro of its own."""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from tools.scorecard.discmeasure import Candidates, DiffProducts
from tools.scorecard.products import Science, read_image
from zsds_hpc.archive import paths
from zsds_hpc.archive.provenance import read_record
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
    return Candidates(x - 1.0, y - 1.0, flux, sigma, scores), rows, header


def cutouts(science: Science) -> list[NDArray]:
    """Science, template and difference cutouts of all candidates, each (n, 63, 63)."""
    with fits.open(science.path(CANDIDATES), memmap=False) as hdus:
        rows = hdus["CUTOUTS"].data
        return [np.array(rows[name], float) for name in ("SCIENCE", "TEMPLATE", "DIFFERENCE")]


def read_products(science: Science) -> DiffProducts:
    """Difference, error and candidates of a channel."""
    pix = spread(read_image(science.path(DIFFERENCE))[0])
    sigma, _ = read_image(science.path(UNCERTAINTY))
    mask, _ = read_image(science.path(MASK))
    sigma = np.where((mask & UNUSABLE) != 0, np.inf, sigma)
    return DiffProducts(pix, sigma, read_candidates(science.path(CANDIDATES))[0])


def epochs_of(science: Science) -> list[Science]:
    """Exposures that its reference was made from, by the records; all of earlier nights if these are silent."""
    run, own, used = science.run, (science.name.field, science.filtercode), _reference_inputs(science)
    found = []
    for night, truth in run.truths.items():
        if night >= science.night:
            continue
        for name in truth.exposures("object"):
            if science.rcid in truth.rcids(name):
                epoch = Science(run, truth, night, name, science.rcid)
                if (epoch.name.field, epoch.filtercode) == own:
                    found.append(epoch)
    return [e for e in found if not used or str(e.path("sciimg.fits").relative_to(run.archive)) in used]


def _reference_inputs(science: Science) -> set[str]:
    """Files that the reference of a channel was made from."""
    _, qid = ids.ccdid_qid_of(science.rcid)
    searched = read_record(
        science.run.archive / paths.record("realtime", science.night, science.name.channel_stem(qid))
    )
    if searched is None:
        return set()
    made = (r for r in science.run.records("reference") if set(r.outputs) & set(searched.inputs))
    return {path for record in made for path in record.inputs}


def spread(pix: NDArray) -> NDArray:
    """Values stored in steps, spread evenly over their step, so that quantiles are not those of the steps."""
    values = np.unique(pix[::37])
    gaps = np.diff(values[np.abs(values) < 10.0 * np.median(np.abs(values))])
    if not gaps.size:
        return pix
    return pix + gaps.min() * (np.random.default_rng(1).random(pix.shape, np.float32) - 0.5)


def packet_files(science: Science) -> list[Path]:
    """Containers of the alert packets of a channel, one per program."""
    _, qid = ids.ccdid_qid_of(science.rcid)
    names = (science.run.archive / paths.alerts(science.name, qid, program) for program in (1, 2, 3))
    return [path for path in names if path.is_file()]


def packets(science: Science) -> list[dict[str, Any]]:
    """All alert packets of a channel."""
    from tools.scorecard.avro import read_container

    return [packet for path in packet_files(science) for packet in read_container(path.read_bytes())]
