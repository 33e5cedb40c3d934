"""Settings of the search for streaks, and the columns of its table."""

import numpy as np

from zsds_hpc.core.params import Params, param


class StreakParams(Params):
    """What is looked for, and what is listed as a streak."""

    line_sigma: float = param(5.0, "Significance of a line of the filtered map that is followed up.", ge=4, le=20)
    peak_sigma: float = param(4.5, "Significance of a peak of the filtered map that is followed up.", ge=4, le=20)
    clip_sigma: float = param(4.0, "The filtered map is clipped here, lest one star makes a line.", ge=1, le=20)
    pixel_clip_sigma: float = param(12.0, "Pixels are clipped here before filtering.", ge=3, le=1000)
    seed_snr: float = param(5.5, "Integrated signal to noise of a short trail at a peak.", ge=4, le=20)
    seed_gain: float = param(2.0, "Chi squared that a trail gains on a point source at a peak.", ge=0, le=100)
    min_snr: float = param(7.0, "Integrated signal to noise of a fitted trail.", ge=4, le=50)
    min_gain: float = param(3.0, "Chi squared that a fitted trail gains on a point source.", ge=0, le=1000)
    min_length: float = param(3.5, "Shorter trails are point sources.", "px", ge=1, le=50)
    max_length: float = param(300.0, "Longer ones are satellites or aircraft.", "px", ge=50, le=5000)
    max_misfit: float = param(0.5, "Root of the chi squared that noise does not explain, over the S/N.", ge=0.1, le=10)
    max_masked: float = param(0.3, "Largest unusable share of a trail.", ge=0, le=1)
    max_seeds: int = param(150, "No more places than this are measured, the most significant first.", ge=1, le=10000)
    min_score: float = param(0.5, "Score of a real streak.", ge=0, le=1)


#: Why a place that was looked at is not listed: no longer than the PSF; too faint; no trail fits; too short; far from
#: the fitted trail; most of it unusable; part of another one; beside a masked
#: track; left out when too many places are to be looked at.
REASONS = ("pointlike", "faint", "unfit", "short", "misfit", "masked", "known", "track",
           "unseen")  # fmt: skip

#: name -> (format, unit, meaning)
COLUMNS = {
    "x1": ("f8", "pix", "one end: position along x, first pixel at 0 (at 1 in files)"),
    "y1": ("f8", "pix", "one end: position along y"),
    "x2": ("f8", "pix", "other end, of larger x: position along x"),
    "y2": ("f8", "pix", "other end: position along y"),
    "ra1": ("f8", "deg", "one end: right ascension (ICRS)"),
    "dec1": ("f8", "deg", "one end: declination (ICRS)"),
    "ra2": ("f8", "deg", "other end: right ascension (ICRS)"),
    "dec2": ("f8", "deg", "other end: declination (ICRS)"),
    "sigalong1": ("f4", "pix", "error of the first end along the trail"),
    "sigalong2": ("f4", "pix", "error of the second end along the trail"),
    "sigacross": ("f4", "pix", "error of the middle across the trail"),
    "length": ("f4", "pix", "distance of the ends"),
    "siglength": ("f4", "pix", "error of length"),
    "angle": ("f4", "deg", "direction from the first to the second end, from +x towards +y, -90 to 90"),
    "sigangle": ("f4", "deg", "error of angle"),
    "flux": ("f4", "DN", "total flux"),
    "sigflux": ("f4", "DN", "error of flux, the ends being free"),
    "snr": ("f4", "", "integrated signal to noise: of the flux with the line given"),
    "mag": ("f4", "mag", "-2.5 log10 flux + MAGZP"),
    "sigmag": ("f4", "mag", "error of mag"),
    "brightness": ("f4", "", "signal to noise of a pixel on the line"),
    "chi2dof": ("f4", "", "chi squared per degree of freedom about the trail"),
    "misfit": ("f4", "", "root of the chi squared that noise does not explain, over snr"),
    "gain": ("f4", "", "chi squared that the trail gains on the best point source"),
    "pair": ("f4", "", "signal to noise of the best two point sources over that of the trail"),
    "width": ("f4", "", "second moment across the trail less that of the PSF, over that of the PSF"),
    "curvature": ("f4", "pix", "height of a parabola through the trail over its chord"),
    "sigcurvature": ("f4", "pix", "error of curvature"),
    "evenness": ("f4", "", "chi squared per piece about even brightness"),
    "filled": ("f4", "", "share of the pieces that shine as expected"),
    "unbroken": ("f4", "", "signal to noise without the brightest quarter, over that of an even trail"),
    "sides": ("f4", "", "mean signal to noise of the pixels beside the trail"),
    "beyond": ("f4", "", "brightness of the line just beyond the ends over that of the trail, the brighter one"),
    "sigbeyond": ("f4", "", "error of beyond"),
    "negative": ("f4", "", "share of pixels about it below -3 sigma"),
    "positive": ("f4", "", "share of pixels about it, off the line, above 3 sigma"),
    "spike": ("f4", "", "largest pixel over the model's largest, less its noise"),
    "masked": ("f4", "", "unusable share of its flux"),
    "maskednear": ("f4", "", "unusable share of the pixels about it"),
    "noise": ("f4", "", "sigma of its pixels over the median of the image"),
    "refdist": (
        "f4",
        "pix",
        "distance of the nearest reference source brighter than a tenth of it; 99 for none within",
    ),
    "refratio": ("f4", "", "log10 of the flux of reference sources on the line over its own, -3 to 3"),
    "track": ("f4", "", "share of its line, prolonged on both sides, in a masked track"),
    "n_edges": ("i2", "", "ends at an edge of the image"),
    "n_inline": ("i2", "", "other streaks on the same line"),
    "score": ("f4", "", "1 for a real trail, 0 for a false one; NaN without a model"),
    "kind": ("S9", "", "asteroid or satellite"),
}

STREAK_DTYPE = np.dtype([(name, form) for name, (form, _, _) in COLUMNS.items()])
