"""The camera as data: geometry, channels, header dictionary, gain, prior distortion. One YAML file per camera."""

from pathlib import Path

from pydantic import Field, model_validator

from zsds_hpc.core.params import Params, param
from zsds_hpc.settings.load import CONFIG_DIR, load_params

ROLES = [
    "image_type",
    "exptime_s",
    "field",
    "ra_deg",
    "dec_deg",
    "filter",
    "filter_id",
    "jd",
    "mjd",
    "shutter_open",
    "shutter_close",
    "airmass",
    "object",
    "program_id",
    "program_pi",
    "gain_e",
    "read_noise_e",
    "ccdid",
]


class Place(Params):
    """Where an image lies in a raw file."""

    ext: int = param(..., "Extension of the raw file; 0 is the primary.", ge=0, le=1000)
    section: tuple[int, int, int, int] | None = param(
        None, "Columns and rows [x0, x1, y0, y1), 0-based; the whole image when absent.", unit="px"
    )


class Linearity(Params):
    """Dated coefficients of DN_true = x / (a x^2 + b x + 1)."""

    since: str = param(..., "First night YYYYMMDD for which the coefficients hold.")
    a: float = param(0.0, "Quadratic coefficient.", unit="1/DN^2")
    b: float = param(0.0, "Linear coefficient.", unit="1/DN")


class Channel(Params):
    """One readout channel."""

    rcid: int = param(..., "Readout-channel id.", ge=0)
    ccdid: int = param(..., "CCD id.", ge=1)
    qid: int = param(..., "Quadrant id.", ge=1)
    image: Place = param(..., "Place of the image in the raw file.")
    overscan: Place = param(..., "Place of the over-scan strip in the raw file.")
    gain_e: float = param(..., "Gain; a header value goes before it.", unit="e-/DN", ge=0.01, le=1000)
    read_noise_e: float = param(..., "Read noise; a header value goes before it.", unit="e-", ge=0, le=1000)
    saturate_dn: float = param(..., "Level above the bias at which pixels saturate.", unit="DN", ge=1)
    linearity: tuple[Linearity, ...] = param((), "Dated non-linearity coefficients, oldest first.")
    xi_deg: float = param(0.0, "Tangent-plane position of the centre to the East of the pointing.", unit="deg")
    eta_deg: float = param(0.0, "Tangent-plane position of the centre to the North of the pointing.", unit="deg")
    cd_deg: tuple[float, float, float, float] = param(..., "Linear part of the pixel-to-plane map.", unit="deg/px")
    distortion_xi_arcsec: tuple[float, ...] = param((0.0,) * 7, "Terms u2 uv v2 u3 u2v uv2 v3 of xi.", unit="arcsec")
    distortion_eta_arcsec: tuple[float, ...] = param((0.0,) * 7, "Terms u2 uv v2 u3 u2v uv2 v3 of eta.", unit="arcsec")

    def linearity_on(self, night: str) -> tuple[float, float]:
        """Coefficients (a, b) that hold on a night YYYYMMDD; zeros where none do."""
        valid = [item for item in self.linearity if item.since <= night]
        return (valid[-1].a, valid[-1].b) if valid else (0.0, 0.0)


class Halo(Params):
    """Light scattered about a bright star."""

    min_flux_dn: float = param(..., "Fainter stars have no halo to speak of.", "DN", ge=0)
    radius_pix: float = param(..., "Outermost radius.", "px", ge=1)
    flux_fraction: float = param(..., "Part of the star's light in the halo.", ge=0, le=1)


class GhostImage(Params):
    """Out-of-focus image of a bright star, reflected twice."""

    min_flux_dn: float = param(..., "Fainter stars have no ghost to speak of.", "DN", ge=0)
    center_scale: float = param(..., "Distance from the optical axis over that of the star.", ge=-10, le=10)
    radius_in_pix: float = param(0.0, "Inner radius, 0 for a disc.", "px", ge=0)
    radius_out_pix: float = param(..., "Outer radius.", "px", ge=1)
    flux_fraction: float = param(..., "Part of the star's light in the ghost.", ge=0, le=1)


class StrayLight(Params):
    """Halos and ghosts of bright stars."""

    halo: Halo = param(..., "Halo about the star.")
    ghost: GhostImage = param(..., "Displaced ghost.")


class Filter(Params):
    """One filter."""

    fid: int = param(..., "Filter id.", ge=1)
    name: str = param(..., "Name in the FILTER card.")
    band: str = param(..., "Band of the photometric reference catalogue that calibrates it.")
    color: tuple[str, str] = param(..., "Bands whose difference is the colour of the colour term.")
    reference_magzp: float = param(26.0, "Fixed zero point of reference images.", "mag", ge=0, le=40)

    @property
    def pcolor(self) -> str:
        """Text of the PCOLOR card."""
        return f"{self.color[0]} - {self.color[1]}"


class Site(Params):
    """Place of the telescope on Earth."""

    longitude_deg: float = param(..., "East longitude.", unit="deg", ge=-360, le=360)
    latitude_deg: float = param(..., "Latitude.", unit="deg", ge=-90, le=90)
    altitude_m: float = param(0.0, "Altitude.", unit="m")


class Camera(Params):
    """A camera and how its raw files are written."""

    name: str = param(..., "Short name.")
    telescope: str = param("", "Telescope, for headers.")
    instrument: str = param("", "Instrument, for headers.")
    site: Site | None = param(None, "Observatory.")
    n_x: int = param(..., "Columns of a channel image.", unit="px", ge=1, le=100_000)
    n_y: int = param(..., "Rows of a channel image.", unit="px", ge=1, le=100_000)
    pixel_scale_arcsec: float = param(..., "Nominal pixel scale.", unit="arcsec/px", ge=0.001, le=1000)
    overscan_n_columns: int = param(..., "Columns of the over-scan strip.", unit="px", ge=1)
    overscan_n_skip: int = param(0, "First over-scan columns left out: they carry the image's trail.", unit="px", ge=0)
    adc_max_dn: float = param(65535.0, "Largest value that the converter gives.", unit="DN")
    has_checksums: bool = param(True, "Raw files must carry CHECKSUM and DATASUM in every unit.")
    header: dict[str, str] = param(..., "Role -> keyword in the raw header.")
    required: tuple[str, ...] = param((), "Roles without which a science file is refused.")
    telemetry: tuple[str, ...] = param((), "Beginnings of the keywords whose cards the database keeps for each file.")
    image_types: dict[str, tuple[str, ...]] = param(
        ..., "Kind (bias flat dark object) -> values of the image-type card."
    )
    filters: dict[str, Filter] = param(..., "Filter code -> filter.")
    filter_aliases: dict[str, str] = param({}, "Value of the filter card -> filter code.")
    ghost: StrayLight | None = param(None, "Halos and ghosts of bright stars; none are masked without it.")
    crosstalk: tuple[tuple[float, ...], ...] = param((), "Row i: fraction of channel j that appears in channel i.")
    channels: tuple[Channel, ...] = Field(..., min_length=1, description="Readout channels.")

    @model_validator(mode="after")
    def _consistent(self) -> "Camera":
        unknown = {*self.header, *self.required} - set(ROLES)
        if unknown:
            raise ValueError(f"header roles {sorted(unknown)} are unknown; valid are {' '.join(ROLES)}")
        unnamed = set(self.required) - set(self.header)
        if unnamed:
            raise ValueError(f"required roles {sorted(unnamed)} have no keyword in header")
        rcids = [channel.rcid for channel in self.channels]
        if len(set(rcids)) != len(rcids):
            raise ValueError("two channels have the same rcid")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of a channel image."""
        return self.n_y, self.n_x

    def channel(self, rcid: int) -> Channel:
        """Channel of a readout-channel id; ValueError where there is none."""
        for channel in self.channels:
            if channel.rcid == rcid:
                return channel
        raise ValueError(f"camera {self.name} has no readout channel {rcid}")

    def ccd(self, ccdid: int) -> list[Channel]:
        """Channels of a CCD, by quadrant."""
        return sorted((c for c in self.channels if c.ccdid == ccdid), key=lambda c: c.qid)


def load_camera(name_or_path: str | Path = "ztf") -> Camera:
    """Camera from a YAML file, or by the name of one in `config/cameras`."""
    path = Path(name_or_path)
    return load_params(Camera, path if path.suffix else CONFIG_DIR / "cameras" / f"{name_or_path}.yml")
