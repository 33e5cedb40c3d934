"""Quality figures of a calibrated image, and the survey's INFOBITS and STATUS that follow from them."""

from dataclasses import asdict, dataclass

import numpy as np

from zsds_hpc.core import maskbits
from zsds_hpc.core.params import Params, param


@dataclass(frozen=True)
class ImageMetrics:
    """Figures that decide the INFOBITS; None where a step was not reached or failed.

    Attributes
    ----------
    background_dn, noise_dn : float
        Median level of the sky and its robust pixel noise.
    saturated_percent : float
    seeing_pix, seeing_arcsec : float, optional
        FWHM of stars, pixel included.
    elongation : float, optional
        Of the mean star profile.
    maglim : float, optional
        Limiting magnitude of point sources.
    n_sources : int
        Sources in the aperture catalogue.
    n_calibrators : int
        Catalogue stars inside the image that could calibrate it.
    magzp, magzp_unc, magzp_rms, clrcoeff : float, optional
        Photometric solution.
    n_photometric : int
        Calibrators used.
    n_astrometric : int
        Stars in the astrometric solution.
    astrometric_rms_arcsec : float, optional
        Larger of the two axes.
    scale_change_min_percent, scale_change_max_percent : float, optional
        Extremes of the change of pixel scale against the camera's prior.
    astrometric_max_grid_residual_arcsec : float, optional
        Largest median residual in a cell of the image.
    matched_percent : float, optional
        Detected stars with a counterpart in the astrometric catalogue, percent of those expected.
    """

    background_dn: float
    noise_dn: float
    saturated_percent: float
    n_sources: int
    seeing_pix: float | None = None
    seeing_arcsec: float | None = None
    elongation: float | None = None
    maglim: float | None = None
    n_calibrators: int = 0
    magzp: float | None = None
    magzp_unc: float | None = None
    magzp_rms: float | None = None
    clrcoeff: float | None = None
    n_photometric: int = 0
    n_astrometric: int = 0
    astrometric_rms_arcsec: float | None = None
    scale_change_min_percent: float | None = None
    scale_change_max_percent: float | None = None
    astrometric_max_grid_residual_arcsec: float | None = None
    matched_percent: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain dictionary for the unit's record."""
        return asdict(self)


class QaParams(Params):
    """Thresholds of the INFOBITS."""

    max_background_dn: float = param(4000.0, "Bit 0: level of the sky.", unit="DN", ge=0.0)
    max_noise_dn: float = param(100.0, "Bit 1: robust pixel noise.", unit="DN", ge=0.0)
    max_saturated_percent: float = param(50.0, "Bit 2: saturated pixels.", unit="percent", ge=0.0, le=100.0)
    max_seeing_arcsec: float = param(5.0, "Bit 3: seeing.", unit="arcsec", ge=0.0)
    min_maglim: float = param(17.5, "Bit 4: limiting magnitude.", unit="mag", ge=0.0, le=40.0)
    min_sources: int = param(20, "Bit 7: sources in the aperture catalogue.", ge=0)
    min_calibrators: int = param(30, "Bit 9: photometric calibrators in the image.", ge=0)
    min_photometric: int = param(5, "Bit 10: calibrators used.", ge=0)
    max_magzp_rms: float = param(0.2, "Bit 11: RMS of the photometric residuals.", unit="mag", ge=0.0)
    min_astrometric: int = param(100, "Bit 14: stars in the astrometric solution.", ge=0)
    max_scale_change_percent: float = param(1.0, "Bit 16: change of pixel scale.", unit="percent", ge=0.0)
    max_grid_residual_arcsec: float = param(0.7, "Bit 19: median residual in a cell.", unit="arcsec", ge=0.0)
    min_matched_percent: float = param(50.0, "Bit 21: detected stars matched.", unit="percent", ge=0.0, le=100.0)
    fatal_bits: int = param(
        (1 << 8) | (1 << 12) | (1 << 16), "INFOBITS with any of these bits give STATUS 0.", ge=0, le=(1 << 26) - 1
    )


def saturated_percent(mask: np.ndarray) -> float:
    """Percentage of pixels with the saturation bit of a survey mask."""
    return 100 * float(np.count_nonzero(mask & maskbits.SATURATED)) / mask.size


def _above(value, limit):
    return value is not None and not value <= limit


def _below(value, limit):
    return value is not None and not value >= limit


def _scale_off(metrics, params):
    lowest, highest = metrics.scale_change_min_percent, metrics.scale_change_max_percent
    limit = params.max_scale_change_percent
    return _below(lowest, -limit) or _above(highest, limit)


#: bit -> (text for the header, test). A NaN is never within limits. Bits 5, 6, 13, 15, 17, 18 and 20 of
#: the survey are about steps that this system does otherwise or in another pipeline, and stay 0.
BITS = {
    0: (
        "MEDIAN BACKGROUND LEVEL is > {max_background_dn} DN",
        lambda m, p: _above(m.background_dn, p.max_background_dn),
    ),
    1: ("ROBUST PIXEL NOISE (RMS) is > {max_noise_dn} DN", lambda m, p: _above(m.noise_dn, p.max_noise_dn)),
    2: (
        "PERCENT OF SATURATED PIXELS is > {max_saturated_percent}%",
        lambda m, p: _above(m.saturated_percent, p.max_saturated_percent),
    ),
    3: ('IMAGE SEEING (FWHM) is > {max_seeing_arcsec}"', lambda m, p: _above(m.seeing_arcsec, p.max_seeing_arcsec)),
    4: ("LIMITING MAGNITUDE is < {min_maglim} mag", lambda m, p: _below(m.maglim, p.min_maglim)),
    7: ("NUMBER OF APERTURE CAT SOURCES is < {min_sources}", lambda m, p: m.n_sources < p.min_sources),
    8: ("PHOTOMETRIC CALIBRATION NOT POSSIBLE", lambda m, p: m.magzp is None),
    9: ("NUMBER OF PHOTOMETRIC CALIBRATORS is < {min_calibrators}", lambda m, p: m.n_calibrators < p.min_calibrators),
    10: ("NUMBER OF MATCHES FOR PHOTOMETRIC CAL < {min_photometric}", lambda m, p: m.n_photometric < p.min_photometric),
    11: ("RMS in PHOTCAL RESIDUALS (ZPs) is > {max_magzp_rms} mag", lambda m, p: _above(m.magzp_rms, p.max_magzp_rms)),
    12: ("ASTROMETRIC CALIBRATION NOT POSSIBLE", lambda m, p: m.astrometric_rms_arcsec is None),
    14: ("NUMBER OF MATCHES FOR ASTROM CAL is < {min_astrometric}", lambda m, p: m.n_astrometric < p.min_astrometric),
    16: ("REL-PIXEL SCALE CHANGE is > {max_scale_change_percent}%", _scale_off),
    19: (
        'MAX IN-GRID MEDIAN ASTROM RESID is > {max_grid_residual_arcsec}"',
        lambda m, p: _above(m.astrometric_max_grid_residual_arcsec, p.max_grid_residual_arcsec),
    ),
    21: (
        "PCT OF DETECTED MATCHES FOR ASTROM is < {min_matched_percent}%",
        lambda m, p: _below(m.matched_percent, p.min_matched_percent),
    ),
}


def info_bits(metrics: ImageMetrics, params: QaParams) -> int:
    """INFOBITS of an image: the sum of 2^bit over the tests of `BITS` that it fails."""
    return sum(1 << bit for bit, (_, fails) in BITS.items() if fails(metrics, params))


def status(bits: int, params: QaParams) -> int:
    """STATUS: 1 for a usable image, 0 for a bad one."""
    return int(bits & params.fatal_bits == 0)


def describe(bits: int, params: QaParams) -> list[str]:
    """Texts of the bits that are set, lowest first, with the thresholds filled in."""
    return [text for bit, text in bit_texts(params).items() if bits >> bit & 1]


def bit_texts(params: QaParams) -> dict[int, str]:
    """Bit -> text, as for the BITnn cards of the header."""
    return {bit: text.format(**params.model_dump()) for bit, (text, _) in BITS.items()}
