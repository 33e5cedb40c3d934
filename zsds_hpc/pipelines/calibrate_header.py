"""Header of a calibrated image, with the survey's own keywords."""

import math
from pathlib import Path
from typing import Any

from zsds_hpc.archive.fitsfiles import Card
from zsds_hpc.core import ids
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.pipelines.calibrate_image import Calibrated, CalibrateParams, Setting
from zsds_hpc.qa.metrics import bit_texts

PIPELINE_ID = 15
_WCS_KEYWORDS = ("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD", "PV", "WCSAXES", "RADESYS", "WCSSTAGE", "EQUINOX", "WCSNAME")


def science_cards(raw: Any, used: dict[str, Path | None], result: Calibrated, setting: Setting) -> list[Card]:
    """Cards of sciimg, mskimg, sexcat and psfcat.

    Parameters
    ----------
    raw : RawChannel
    used : dict
        Role of a calibration product or catalogue -> file; None where there was none.
    result : Calibrated
    setting : Setting

    Returns
    -------
    list of (keyword, value, comment)
        The raw header carried on, then WCS, calibration, PSF, identifiers and quality.
    """
    own = [*result.wcs.to_cards(), *_detector_cards(raw, result), *_provenance_cards(used)]
    own += [*_psf_cards(result), *_photometry_cards(result, setting)]
    own += _identity_cards(raw) + _quality_cards(result, setting.params)
    replaced = {card[0] for card in own}
    carried = [c for c in raw.cards if c[0] not in replaced and not _is_wcs(c[0])]
    return [card for card in carried + own if not _is_unknown(card[1])]


def _is_wcs(keyword: str) -> bool:
    return any(keyword == stem or keyword.removeprefix(stem).replace("_", "").isdigit() for stem in _WCS_KEYWORDS)


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _detector_cards(raw: Any, result: Calibrated) -> list[Card]:
    m = result.metrics
    return [
        ("GAIN", raw.channel.gain_e, "Gain [e-/DN]"),
        ("READNOI", raw.channel.read_noise_e, "Read noise [e-]"),
        ("SATURATE", m["saturate_dn"], "Saturation value in final science image [DN]"),
        ("FBIAS", m["floating_bias_dn"], "Median floating bias [DN]"),
        ("FBIASRMS", m["overscan_rms_dn"], "RMS of the floating-bias fit [DN]"),
    ]


def _provenance_cards(used: dict[str, Path | None]) -> list[Card]:
    keywords = {"bias": "CALBIAS", "flat": "CALHIFLT", "lowv_flat": "CALLOFLT", "cmask": "CALCMASK"}
    return [
        (keyword, path.name if (path := used.get(role)) else "NONE", f"Calibration product: {role}")
        for role, keyword in keywords.items()
    ]


def _psf_cards(result: Calibrated) -> list[Card]:
    """Figures of the PSF; NPSFSTAR 0, and no shapes, where the mean star profile stands in."""
    m = result.metrics
    return [
        ("NPSFSTAR", m.get("n_psf_stars", 0), "Stars that the PSF was built from"),
        ("PSFFWHM", m.get("psf_fwhm_pix"), "FWHM of the PSF, median over the image [pixels]"),
        ("PSFFWMIN", m.get("psf_fwhm_min_pix"), "Smallest FWHM of the PSF on the image [pixels]"),
        ("PSFFWMAX", m.get("psf_fwhm_max_pix"), "Largest FWHM of the PSF on the image [pixels]"),
        ("PSFELLIP", m.get("psf_ellipticity"), "1 - b/a of the PSF, median over the image"),
        ("PSFANGLE", m.get("psf_angle_deg"), "Major axis in the middle, from +x to +y [deg]"),
        ("PSFCHI2", m.get("psf_chi2"), "Median chi2 per dof of the stars of the PSF"),
        ("PSFNORM", m.get("psf_normalization_mag"), "Curve of growth - PSF, put into the fits [mag]"),
        ("NPSFCAT", len(result.psfcat), "Sources in the PSF catalogue"),
    ]


def _photometry_cards(result: Calibrated, setting: Setting) -> list[Card]:
    m, measure = result.metrics, setting.params.measure
    diameters = measure.aperture_diameters_pix
    code = m["filtercode"]
    cards: list[Card] = [
        ("NMATCHES", m.get("n_matches", 0), "Number of photometric calibrators used"),
        ("MAGZP", m.get("magzp"), "Magnitude zero point [mag]"),
        ("MAGZPUNC", m.get("magzp_unc"), "Magnitude zero point uncertainty [mag]"),
        ("MAGZPRMS", m.get("rms"), "Magnitude zero point RMS deviation [mag]"),
        ("CLRCOEFF", m.get("clrcoeff"), "Color coefficient from linear fit"),
        ("CLRCOUNC", m.get("clrcoeff_unc"), "Color coefficient uncertainty"),
        ("ZPCLRCOV", m.get("zpclrcov"), "Covariance in MAGZP and CLRCOEFF [mag^2]"),
        ("PCOLOR", setting.camera.filters[code].pcolor if code in setting.camera.filters else None, "Color of the fit"),
        ("ZPMED", m.get("zpmed"), "Mag zero point from median of mag diffs [mag]"),
        ("ZPAVG", m.get("zpavg"), "Mag zero point from average of mag diffs [mag]"),
        ("ZPRMSALL", m.get("zprmsall"), "Mag zero point RMS from all mag diffs [mag]"),
        ("CLRMED", m.get("clrmed"), "Median calibrator color [mag]"),
        ("CLRAVG", m.get("clravg"), "Average calibrator color [mag]"),
        ("CLRRMS", m.get("clrrms"), "RMS in calibrator color [mag]"),
        ("FIXAPERS", ",".join(f"{d:g}" for d in diameters), "Fixed aperture diameters used [pixels]"),
    ]
    for k, diameter in enumerate(diameters, 1):
        cards.append((f"APCOR{k}", m.get(f"apcor{k}"), f"Total_mag - AP_mag for AP.diam={diameter:4.1f} pix."))
        cards.append((f"APCORUN{k}", m.get(f"apcorun{k}"), f"Uncertainty in APCOR{k} [mag]"))
    return cards


def _identity_cards(raw: Any) -> list[Card]:
    channel, exposure = raw.channel, raw.exposure
    cards: list[Card] = [
        ("CCDID", channel.ccdid, "CCD id"),
        ("QID", channel.qid, "Quadrant id"),
        ("RCID", channel.rcid, "Readout-channel id"),
        ("PROGRMID", exposure.programid, "Program id"),
        ("DBPIPEID", PIPELINE_ID, "Pipeline id"),
    ]
    try:
        name = parse_raw_name(raw.name.rsplit("_q", 1)[0] + ".fits.fz")
    except ValueError:
        return cards
    nid = ids.nid_of_night(name.night)
    expid = ids.expid_of(nid, name.fracday)
    rawid = ids.rawid_of(expid, channel.rcid)
    return [
        *cards,
        ("DBNID", nid, "Night id"),
        ("EXPID", expid, "Exposure id"),
        ("DBRID", rawid, "Raw-image id"),
        ("DBPID", ids.procid_of(rawid, PIPELINE_ID), "Processed-image id"),
        ("DBFIELD", name.field, "Field"),
        ("DBRCID", channel.rcid, "Readout-channel id"),
        ("DBFID", ids.FILTER_IDS.get(name.filtercode), "Filter id"),
    ]


def _quality_cards(result: Calibrated, params: CalibrateParams) -> list[Card]:
    m = result.metrics
    cards: list[Card] = [
        ("SEEING", m["seeing_pix"], "Seeing FWHM [pixels]"),
        ("MAGLIM", m.get("maglim"), "5-sigma mag-limit of point sources [mag]"),
        ("BACKGND", m["background_dn"], "Median background level [DN]"),
        ("BACKRMS", m["noise_dn"], "Robust pixel noise [DN]"),
        ("ASTROMN", m.get("n_astrometric", 0), "Stars in the astrometric solution"),
        ("ASTCHI2", m.get("astrometric_chi2"), "Reduced chi-square of the astrometric solution"),
        ("ASTRRMS1", _degrees(m.get("astrometric_rms_xi_arcsec")), "Astrom. dispersion RMS along RA [deg]"),
        ("ASTRRMS2", _degrees(m.get("astrometric_rms_eta_arcsec")), "Astrom. dispersion RMS along Dec [deg]"),
        ("INFOBITS", m["infobits"], "Sum of 2^bit over the BITnn that apply"),
    ]
    cards += [(f"BIT{bit:02d}", bit, text[:60]) for bit, text in bit_texts(params.qa).items()]
    return [*cards, ("STATUS", m["status"], "Overall processing flag: 0 = bad; 1 = usable")]


def _degrees(arcsec: float | None) -> float | None:
    return None if arcsec is None else arcsec / 3600.0
