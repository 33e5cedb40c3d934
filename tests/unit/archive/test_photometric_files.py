"""Photometric standards of any bands from plain files, beside PS1."""

import numpy as np
import pytest

from zsds_hpc.archive.refcats import PS1_DTYPE, RefCat
from zsds_hpc.core.errors import BadInput

LINES = "ra,dec,Vmag,Verr,Bmag\n201.0,-8.8,13.481,0.002,13.341\n201.1,-8.9,12.0,-999,12.5\n201.2,-8.8,nan,0.01,14.0\n"


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "standards.csv"
    found.write_text(LINES)
    return found


def test_bands_of_a_camera(path):
    rows = RefCat.open_photometric(path, ("V", "B", "V")).cone(201.1, -8.85, 1.0)
    assert rows.dtype.names == ("objid", "ra", "dec", "Vmag", "Verr", "Bmag", "Berr")
    np.testing.assert_allclose(rows["Vmag"], [12.0, 13.481, np.nan], rtol=1e-6)
    np.testing.assert_allclose(rows["Bmag"], [12.5, 13.341, 14.0], rtol=1e-6)
    assert np.isnan(rows["Verr"][0]) and (rows["Berr"] == 0).all()


def test_only_what_is_near(path):
    assert len(RefCat.open_photometric(path, ("V",)).cone(201.0, -8.8, 0.01)) == 1


def test_bands_of_ps1_are_read_as_ps1(tmp_path):
    path = tmp_path / "ps1.csv"
    names = [f"{band}Mean{what}" for band in "gri" for what in ("PSFMag", "PSFMagErr")]
    path.write_text(f"objID,raMean,decMean,{','.join(names)}\n7,10.0,20.0,15,0.01,14.5,0.01,14.3,0.01\n")
    rows = RefCat.open_photometric(path, ("r", "g", "r")).cone(10.0, 20.0, 0.1)
    assert rows.dtype == PS1_DTYPE and rows["objid"][0] == 7


def test_a_missing_band_is_named(path, tmp_path):
    with pytest.raises(BadInput, match="no column 'Rmag'"):
        RefCat.open_photometric(path, ("V", "R"))
    with pytest.raises(BadInput, match="no band V, B"):
        RefCat.open_photometric(tmp_path, ("V", "B"))
