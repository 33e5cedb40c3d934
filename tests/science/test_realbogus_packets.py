"""Our vetting, which learned from simulations alone, on real alert packets: does it side with the survey's own scores?

The survey's scores are no truth; two independent classifiers of the same thing should mostly agree.
"""

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.stats import spearmanr

from zsds_hpc.archive.models import load_model
from zsds_hpc.subtraction.candcat import CANDIDATE_DTYPE
from zsds_hpc.subtraction.cutouts import Cutouts
from zsds_hpc.subtraction.realbogus import build_models, score

fastavro = pytest.importorskip("fastavro")
ALERTS = Path(__file__).parents[2].parent / "shared" / "data" / "ztf_alerts"
pytestmark = pytest.mark.skipif(not ALERTS.is_dir(), reason=f"{ALERTS} is not there")
#: Features that the packets have under the same name; the others count as unknown.
SHARED = ("scorr", "chipsf", "magdiff", "classtar", "aimagerat", "elong", "seeratio", "nneg", "nbad", "sumrat",
          "dsnrms", "ssnrms", "dsdiff", "distnr", "chinr", "sharpnr")  # fmt: skip
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def pixels(cutout):
    with warnings.catch_warnings(action="ignore"), fits.open(io.BytesIO(gzip.decompress(cutout["stampData"]))) as hdus:
        return hdus[0].data.astype(np.float32)


def row_of(candidate):
    row = np.zeros(1, CANDIDATE_DTYPE)
    for name in CANDIDATE_DTYPE.names:
        if row.dtype[name].kind == "f":
            row[name] = np.nan
    for name in SHARED:
        if candidate.get(name) not in (None, -999.0):
            row[name] = candidate[name]
    row["snr"] = 1.0857 / candidate["sigmapsf"]
    row["isdiffpos"] = candidate["isdiffpos"] in ("t", "1", True)
    return row


@pytest.fixture(scope="module")
def judged():
    """Our scores, and the survey's rb and drb (NaN before it had one)."""
    found = {}
    for path in sorted(ALERTS.rglob("*.avro")):
        with open(path, "rb") as file:
            for packet in fastavro.reader(file):
                if all(packet[name] for name in CUTOUTS):
                    stamps = [pixels(packet[name]) for name in CUTOUTS]
                    if all(stamp.shape == (63, 63) for stamp in stamps):
                        found[packet["candidate"]["candid"]] = packet["candidate"], stamps
    table = np.concatenate([row_of(candidate) for candidate, _ in found.values()])
    cutouts = Cutouts(*(np.array([stamps[k] for _, stamps in found.values()]) for k in range(3)))
    trees, net = load_model("realbogus_features"), load_model("realbogus_cutouts")
    ours = score(table, cutouts, build_models(trees.text, trees.card, net.arrays(), net.card))
    theirs = [(c.get("rb"), c.get("drb")) for c, _ in found.values()]
    return ours, np.array(theirs, float).T


def test_network_sides_with_the_surveys_scores(judged):
    ours, (rb, drb) = judged
    assert len(rb) > 80
    assert (ours.drb[rb > 0.65] > 0.5).mean() > 0.9
    assert (ours.drb[drb > 0.9] > 0.5).mean() > 0.9
    assert (ours.drb[rb < 0.35] > 0.5).mean() < 0.5
    assert spearmanr(ours.drb, rb).statistic > 0.5


def test_trees_rank_as_the_surveys_scores(judged):
    """The definitions of features differ, and a third of ours are not in packets: only the order is compared."""
    ours, (rb, drb) = judged
    assert spearmanr(ours.rb, rb).statistic > 0.4
    assert np.median(ours.rb[drb > 0.9]) > np.median(ours.rb[rb < 0.35])
