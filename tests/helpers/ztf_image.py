"""The survey's own calibrated channel image in the shared data, for the tests that measure it again."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zsds_hpc.core import maskbits

DATA = Path(__file__).parents[3] / "shared" / "data"
IMAGE = DATA / "ztf_full" / "ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.gz"
ASTEROIDS = DATA / "ztf_full" / "known_asteroids_in_footprint_20200924.csv"
MARKS = [
    pytest.mark.real,
    pytest.mark.skipif(not IMAGE.is_file(), reason="needs ../shared/data/ztf_full"),
    pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning"),
]


def read():
    """Pixels (float32), mask, mask without the source bits (int16), header."""
    mask = fits.getdata(str(IMAGE).replace("sciimg", "mskimg")).astype(np.int16)
    clean = (mask & ~maskbits.SOURCES).astype(np.int16)
    return np.ascontiguousarray(fits.getdata(IMAGE), np.float32), mask, clean, fits.getheader(IMAGE)
