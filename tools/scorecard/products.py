"""Where the products of a simulated run are, and the truth that belongs to them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from tools.skysim.truth import Truth
from zsds_hpc.archive import paths
from zsds_hpc.archive.provenance import Record, read_record
from zsds_hpc.core import ids
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.names import RawName, parse_raw_name

#: Pipelines of a night, in order.
PIPELINES = ("ingest", "superbias", "highv_flat", "calibrate")


class NightTruth(Truth):
    """Truth of a night, with the electronics of its channels; the maps of the last channel are kept."""

    _maps: tuple[int, dict[str, NDArray]] = (-1, {})

    def map(self, rcid: int, name: str) -> NDArray:
        """A detector map, (ny, nx); not to be changed."""
        if self._maps[0] != rcid:
            self._maps = (rcid, {})
        kept = self._maps[1]
        if name not in kept:
            kept[name] = super().map(rcid, name)
        return kept[name]

    def electronics(self, rcid: int) -> tuple[float, float]:
        """Gain (e/DN) and read noise (e)."""
        attributes = self._file[f"detector/{rcid}"].attrs
        return float(attributes["gain_e"]), float(attributes["read_noise_e"])


class Run:
    """A run directory: ``sky/`` from the simulator and ``archive/`` from the suite.

    Parameters
    ----------
    path : Path

    Raises
    ------
    UsageError
        It is not a run of the simulator, or nothing has been processed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive, self.sky = path / "archive", path / "sky"
        self.nights = sorted(item.stem.removeprefix("truth_") for item in self.sky.glob("truth/truth_*.h5"))
        if not self.nights:
            raise UsageError(f"{self.sky / 'truth'}: no truth of a simulated night; `make night RUN={path}` makes one")
        if not self.archive.is_dir():
            raise UsageError(f"{self.archive}: nothing has been processed; `make night RUN={path}` does it")

    @cached_property
    def truths(self) -> dict[str, NightTruth]:
        """Truth of each night."""
        return {night: NightTruth(self.sky / "truth" / f"truth_{night}.h5") for night in self.nights}

    def records(self, pipeline: str) -> list[Record]:
        """Sealed records of a pipeline, all nights, by name."""
        files = sorted(self.archive.glob(f"records/{pipeline}/*/*.json"))
        return [record for record in map(read_record, files) if record]

    def calibration(self, kind: str, night: str, filtercode: str, rcid: int) -> Path:
        """Path of a calibration product."""
        return self.archive / paths.calibration(kind, night, filtercode, *ids.ccdid_qid_of(rcid))

    def science(self) -> Iterator["Science"]:
        """Every lit channel of every science exposure of the simulation, processed or not."""
        for night, truth in self.truths.items():
            for name in truth.exposures("object"):
                for rcid in truth.rcids(name):
                    if "sky_dn" not in truth.channel(name, rcid):
                        continue
                    yield Science(self, truth, night, name, rcid)


def read_image(path: Path) -> tuple[NDArray, fits.Header]:
    """Image (ny, nx) in native byte order and header of a product."""
    with fits.open(path, memmap=False) as hdus:
        hdu = hdus[0] if hdus[0].data is not None else hdus[1]
        return hdu.data.astype(hdu.data.dtype.newbyteorder("=")), hdu.header


@dataclass
class Science:
    """One channel of one science exposure: its products and its truth; files are read when asked for."""

    run: Run
    truth: NightTruth
    night: str
    exposure: str
    rcid: int
    _tables: dict[str, NDArray] = field(default_factory=dict)

    @property
    def name(self) -> RawName:
        """Name of the raw file."""
        ccdid, _ = ids.ccdid_qid_of(self.rcid)
        return parse_raw_name(f"{self.exposure}_c{ccdid:02d}_o.fits.fz")

    @property
    def filtercode(self) -> str:
        """zg, zr or zi."""
        return self.name.filtercode

    def path(self, suffix: str) -> Path:
        """A product, such as ``sciimg.fits``."""
        return self.run.archive / paths.science(self.name, ids.ccdid_qid_of(self.rcid)[1], suffix)

    @property
    def is_processed(self) -> bool:
        """All three products are there."""
        return all(self.path(suffix).is_file() for suffix in ("sciimg.fits", "mskimg.fits", "sexcat.fits"))

    @cached_property
    def header(self) -> fits.Header:
        """Header of the calibrated image."""
        return fits.getheader(self.path("sciimg.fits"))

    @cached_property
    def pix(self) -> NDArray:
        """Calibrated image, DN."""
        return read_image(self.path("sciimg.fits"))[0]

    @cached_property
    def mask(self) -> NDArray:
        """Mask image, survey bits."""
        return read_image(self.path("mskimg.fits"))[0]

    @cached_property
    def catalogue(self) -> NDArray:
        """Aperture catalogue with 0-based positions in the extra sense of `positions`."""
        with fits.open(self.path("sexcat.fits"), memmap=False) as hdus:
            rows = next(hdu.data for hdu in hdus if getattr(hdu, "columns", None) is not None)
            plain = np.asarray(rows)
            return plain.astype(plain.dtype.newbyteorder("="))

    @cached_property
    def positions(self) -> NDArray:
        """Catalogue positions, 0-based pixels, (n, 2)."""
        return np.stack([self.catalogue["XWIN_IMAGE"] - 1.0, self.catalogue["YWIN_IMAGE"] - 1.0], axis=1)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Attributes of the truth: zero_point_channel, sky_dn, psf_fwhm_pix, ..."""
        return self.truth.channel(self.exposure, self.rcid)

    @cached_property
    def gain_and_noise_e(self) -> tuple[float, float]:
        """Gain (e/DN) and read noise (e) of the channel."""
        return self.truth.electronics(self.rcid)

    def table(self, name: str) -> NDArray:
        """A table of the truth."""
        if name not in self._tables:
            self._tables[name] = self.truth.table(self.exposure, self.rcid, name)
        return self._tables[name]

    def forget_pixels(self) -> None:
        """Let go of the images."""
        for name in ("pix", "mask"):
            self.__dict__.pop(name, None)
