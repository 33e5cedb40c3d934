"""The simulator's own reader of a camera file (``config/cameras/*.yml``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Channel:
    """One readout channel: identity, electronics and nominal optical map (see the head of the camera file)."""

    rcid: int
    ccdid: int
    qid: int
    gain_e: float
    read_noise_e: float
    saturate_dn: float
    linearity_a: float
    linearity_b: float
    xi_deg: float
    eta_deg: float
    cd_deg: tuple[float, ...]
    distortion_xi_arcsec: tuple[float, ...]
    distortion_eta_arcsec: tuple[float, ...]


@dataclass(frozen=True)
class Camera:
    """The camera: sizes, site, filters, ghost model, cross-talk matrix (4, 4) and channels by rcid."""

    n_x: int
    n_y: int
    n_overscan: int
    adc_max_dn: int
    pixel_scale_arcsec: float
    site: dict[str, float]
    filters: dict[str, dict[str, Any]]
    ghost: dict[str, dict[str, float]]
    crosstalk: Array
    channels: dict[int, Channel]

    def of_ccd(self, ccdid: int) -> list[Channel]:
        """The four channels of a CCD, by qid."""
        return sorted((c for c in self.channels.values() if c.ccdid == ccdid), key=lambda c: c.qid)


def _channel(entry: dict[str, Any]) -> Channel:
    """One channel of the YAML file; the latest linearity entry holds."""
    linearity = max(entry["linearity"], key=lambda item: item["since"])
    same = ("rcid", "ccdid", "qid", "gain_e", "read_noise_e", "saturate_dn", "xi_deg", "eta_deg")
    return Channel(
        **{key: entry[key] for key in same},
        linearity_a=linearity["a"],
        linearity_b=linearity["b"],
        cd_deg=tuple(entry["cd_deg"]),
        distortion_xi_arcsec=tuple(entry["distortion_xi_arcsec"]),
        distortion_eta_arcsec=tuple(entry["distortion_eta_arcsec"]),
    )


def load_camera(path: Path | str) -> Camera:
    """Read a camera file."""
    raw = yaml.safe_load(Path(path).read_text())
    channels = [_channel(entry) for entry in raw["channels"]]
    return Camera(
        n_x=raw["n_x"],
        n_y=raw["n_y"],
        n_overscan=raw["overscan_n_columns"],
        adc_max_dn=raw["adc_max_dn"],
        pixel_scale_arcsec=raw["pixel_scale_arcsec"],
        site=raw["site"],
        filters=raw["filters"],
        ghost=raw["ghost"],
        crosstalk=np.array(raw["crosstalk"], dtype=np.float64),
        channels={c.rcid: c for c in channels},
    )
