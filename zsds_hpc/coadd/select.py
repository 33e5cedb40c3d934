"""Which epochs make a reference: rules on seeing, quality, depth, clouds and date, then the best."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zsds_hpc.core.params import Params, param


class SelectParams(Params):
    """Rules for the epochs of a reference."""

    n_min: int = param(15, "With fewer epochs there is no reference.", "", 1, 256)
    n_max: int = param(40, "Epochs used at most, the best.", "", 1, 256)
    first_jd: float = param(0.0, "Earliest start of an exposure (JD, UTC); 0 for any.", "d", 0.0, 1e7)
    last_jd: float = param(0.0, "Latest start of an exposure (JD, UTC); 0 for any.", "d", 0.0, 1e7)
    seeing_min_pix: float = param(1.5, "Sharper images are too under-sampled.", "px", 0.0, 50.0)
    seeing_max_pix: float = param(3.2, "Blurred images.", "px", 0.0, 50.0)
    seeing_max_ratio: float = param(1.5, "Seeing at most this many times the median of the good epochs.", "", 1.0, 10.0)
    forbidden_infobits: int = param((1 << 26) - 1, "Any of these INFOBITS excludes an epoch.", "", 0, (1 << 26) - 1)
    astrometric_error_max_arcsec: float = param(0.05, "Error of the map of the image.", "arcsec", 0.0, 10.0)
    magzp_rms_max: float = param(0.08, "Scatter of the photometric calibrators.", "mag", 0.0, 1.0)
    magzp_faint_max: float = param(0.5, "Zero point below the median of all by more: clouds.", "mag", 0.0, 10.0)
    maglim_below_best_max: float = param(1.5, "Limiting magnitude brighter than the best by more.", "mag", 0.0, 10.0)


@dataclass(frozen=True)
class Candidate:
    """What is known of a science image.

    Attributes
    ----------
    unit_id : str
    jd : float
        Start of the exposure, UTC.
    seeing_pix, magzp, maglim : float or None
    infobits, status : int
    astrometric_error_arcsec, magzp_rms : float or None
        Error of the map; scatter of the calibrators. None where not known.
    """

    unit_id: str
    jd: float
    seeing_pix: float | None
    magzp: float | None
    maglim: float | None
    infobits: int = 0
    status: int = 1
    astrometric_error_arcsec: float | None = None
    magzp_rms: float | None = None


@dataclass(frozen=True)
class Selection:
    """The epochs of a reference.

    Attributes
    ----------
    chosen : list of str
        Unit ids by date.
    rejected : dict
        Unit id -> reason.
    """

    chosen: list[str]
    rejected: dict[str, str] = field(default_factory=dict)


def select_epochs(candidates: Sequence[Candidate], params: SelectParams) -> Selection:
    """Apply the rules one by one; of what is left, keep the best.

    The best have the least variance of the flux of a faint star relative to its square, by the limiting magnitude.

    Parameters
    ----------
    candidates : sequence of Candidate
    params : SelectParams
    """
    rejected: dict[str, str] = {}
    left = sorted(candidates, key=lambda c: (c.jd, c.unit_id))
    for rule in (_quality, _in_sky, _relative):
        reasons = rule(left, params)
        rejected |= {c.unit_id: reason for c, reason in zip(left, reasons) if reason}
        left = [c for c, reason in zip(left, reasons) if not reason]
    order = sorted(left, key=lambda c: (-float(c.maglim or 0), c.jd, c.unit_id))
    for rank, c in enumerate(order[params.n_max :], params.n_max + 1):
        rejected[c.unit_id] = f"{rank} of {len(order)} by depth ({c.maglim:.2f} mag), the best {params.n_max} are used"
    best = {c.unit_id for c in order[: params.n_max]}
    return Selection([c.unit_id for c in left if c.unit_id in best], rejected)


def _quality(left: Sequence[Candidate], params: SelectParams) -> list[str]:
    return [_quality_of(c, params) for c in left]


def _quality_of(c: Candidate, p: SelectParams) -> str:
    """Why an epoch is no good by itself."""
    bits = c.infobits & p.forbidden_infobits
    reasons = (
        (c.status != 1, "status 0: not usable"),
        (bits != 0, f"INFOBITS {[k for k in range(26) if bits >> k & 1]}"),
        (c.magzp is None or c.seeing_pix is None or c.maglim is None, "no zero point, seeing or limiting magnitude"),
        (p.first_jd > 0 and c.jd < p.first_jd, f"JD {c.jd:.3f} before {p.first_jd:.3f}"),
        (p.last_jd > 0 and c.jd > p.last_jd, f"JD {c.jd:.3f} after {p.last_jd:.3f}"),
        (_exceeds(c.astrometric_error_arcsec, p.astrometric_error_max_arcsec),
         f"astrometric error {c.astrometric_error_arcsec} arcsec > {p.astrometric_error_max_arcsec}"),
        (_exceeds(c.magzp_rms, p.magzp_rms_max), f"calibrators scatter by {c.magzp_rms} mag > {p.magzp_rms_max}"),
    )  # fmt: skip
    return next((text for failed, text in reasons if failed), "")


def _exceeds(value: float | None, limit: float) -> bool:
    return value is not None and not value <= limit


def _in_sky(left: Sequence[Candidate], p: SelectParams) -> list[str]:
    """Clouds and shallow images, against the others."""
    if not left:
        return []
    zero, depth = np.array([[c.magzp, c.maglim] for c in left], float).T
    median, best = float(np.median(zero)), float(depth.max())
    out = []
    for z, m in zip(zero, depth):
        if z < median - p.magzp_faint_max:
            out.append(f"clouds: zero point {z:.2f} mag, the median is {median:.2f}")
        elif m < best - p.maglim_below_best_max:
            out.append(f"shallow: limiting magnitude {m:.2f}, the best is {best:.2f}")
        else:
            out.append("")
    return out


def _relative(left: Sequence[Candidate], p: SelectParams) -> list[str]:
    """Seeing, absolute and against the median of those in range."""
    seeing = np.array([c.seeing_pix for c in left], float)
    inside = (seeing >= p.seeing_min_pix) & (seeing <= p.seeing_max_pix)
    usual = float(np.median(seeing[inside])) if inside.any() else p.seeing_max_pix
    out = []
    for value, good in zip(seeing, inside):
        if not good:
            out.append(f"seeing {value:.2f} px outside {p.seeing_min_pix} ... {p.seeing_max_pix}")
        elif value > p.seeing_max_ratio * usual:
            out.append(f"seeing {value:.2f} px, the median is {usual:.2f}")
        else:
            out.append("")
    return out
