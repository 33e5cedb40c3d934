"""Astrometry of one channel from catalogues: CPU seconds, error of the fitted map, and peers.

``python -m benchmarks.astrometry --stars 1500 --json``

Detections and Gaia stars are made from the simulator's own optics (distortion of the camera file, a perturbed exposure
with a pointing error) and star counts; centroid errors follow the photon limits of a 30 s exposure (4.6 mas at 15 mag
to 120 mas at S/N 10). A fifth of the detections is false. Errors are one-axis, over a 40 x 40 grid of the image.
"""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import argparse  # isort: skip
import json  # isort: skip
import resource  # isort: skip
import time  # isort: skip
import warnings  # isort: skip
from collections.abc import Callable  # isort: skip
from dataclasses import dataclass  # isort: skip
from pathlib import Path  # isort: skip
from typing import Any  # isort: skip

import numpy as np  # isort: skip

from tools.skysim import optics, sky  # isort: skip
from tools.skysim.camera import load_camera  # isort: skip
from zsds_hpc.astrometry.channel import calibrate_astrometry  # isort: skip
from zsds_hpc.astrometry.geometry import ChannelGeometry, initial_wcs  # isort: skip
from zsds_hpc.astrometry.match import Detections, Reference, match_catalogue  # isort: skip
from zsds_hpc.astrometry.solve import Stars, design_matrix, fit_tpv  # isort: skip
from zsds_hpc.astrometry.tpv import TPV  # isort: skip

POINTING = (55.0608, 33.35)
#: Photon limit of PSF photometry (mmag) at r magnitudes of a 30 s exposure, and mas of position for each mmag.
LIMIT_MAG, LIMIT_MMAG = (13.0, 15.2, 16.6, 17.6, 18.6, 19.7), (1.4, 3.8, 8.6, 18.0, 41.0, 100.0)
MAS_PER_MMAG = 1.21
BRIGHTEST, FAINTEST = 12.8, 19.7  # saturation, S/N 10


@dataclass(frozen=True)
class Exposure:
    """Detections, reference, prior and the truth of one simulated exposure."""

    detections: Detections
    reference: Reference
    prior: TPV
    to_sky: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, int]


def simulate(n_stars: int, rcid: int, seed: int) -> Exposure:
    """Catalogues of an exposure with `n_stars` detected stars of S/N 10 and more."""
    camera, rng = load_camera(Path("config/cameras/ztf.yml")), np.random.default_rng([seed, rcid, n_stars])
    channel = camera.channels[rcid]
    pointing = optics.make_pointing(*POINTING, rng)
    n = int(1.35 * n_stars)  # the catalogue reaches beyond the image
    x, y = rng.uniform(-160, camera.n_x + 160, n), rng.uniform(-160, camera.n_y + 160, n)
    grid = np.linspace(BRIGHTEST, FAINTEST, 500)
    counts = np.cumsum(10.0 ** np.interp(grid, sky.COUNT_R, sky.COUNT_LOG))
    mag = np.interp(rng.random(n) * counts[-1], counts, grid)
    sigma = MAS_PER_MMAG / 1e3 * 10 ** np.interp(mag, LIMIT_MAG, np.log10(LIMIT_MMAG))
    ra, dec = optics.pixel_to_sky(channel, camera, pointing, x, y)
    seen = np.flatnonzero((x > 0) & (x < camera.n_x - 1) & (y > 0) & (y < camera.n_y - 1))[:n_stars]
    n_false = len(seen) // 4
    scale = camera.pixel_scale_arcsec
    noise = rng.normal(0, 1, (2, len(seen))) * sigma[seen] / scale
    detections = Detections(
        np.append(x[seen] + noise[0], rng.uniform(0, camera.n_x - 1, n_false)),
        np.append(y[seen] + noise[1], rng.uniform(0, camera.n_y - 1, n_false)),
        np.append(mag[seen] + rng.normal(0, 0.2, len(seen)), rng.choice(mag, n_false)),
        np.append(sigma[seen], rng.choice(sigma, n_false)) / scale,
    )
    gaia_error = np.interp(mag, [13, 18, 20], [2e-5, 1e-4, 5e-4])
    d_ra, d_dec = rng.normal(0, 1, (2, n)) * gaia_error / 3600
    reference = Reference(ra + d_ra / np.cos(np.radians(dec)), dec + d_dec, mag, gaia_error)
    names = ("xi_deg", "eta_deg", "cd_deg", "distortion_xi_arcsec", "distortion_eta_arcsec")
    geometry = ChannelGeometry(*(getattr(channel, name) for name in names), camera.n_x, camera.n_y)

    def to_sky(px, py):
        return optics.pixel_to_sky(channel, camera, pointing, px, py)

    return Exposure(detections, reference, initial_wcs(geometry, *POINTING), to_sky, (camera.n_y, camera.n_x))


def map_error_mas(exposure: Exposure, to_sky: Callable) -> tuple[float, float]:
    """One-axis rms and largest error of a map over the image."""
    n_y, n_x = exposure.shape
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, n_x - 1, 40), np.linspace(0, n_y - 1, 40)))
    (ra, dec), (true_ra, true_dec) = to_sky(x, y), exposure.to_sky(x, y)
    d_ra = ((np.asarray(ra) - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec))
    error = 3.6e6 * np.stack([d_ra, np.asarray(dec) - true_dec])
    return float(np.sqrt(np.mean(error**2))), float(np.abs(error).max())


def cpu_seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of several runs, and the last result."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = run()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def matched_stars(exposure: Exposure) -> tuple[TPV, Stars]:
    """Linearly corrected WCS and matched pairs."""
    det, ref = exposure.detections, exposure.reference
    match = match_catalogue(det, ref, exposure.prior)
    i, j = match.i_det, match.i_ref
    sigma = np.hypot(
        det.sigma_pix[i] * float(exposure.prior.pixel_scale_arcsec(*exposure.prior.crpix)), ref.sigma_arcsec[j]
    )
    return match.wcs, Stars(det.x[i], det.y[i], ref.ra[j], ref.dec[j], sigma)


def bound_mas(exposure: Exposure, stars: Stars, degree: int) -> float:
    """Error of the best unbiased estimate of a free polynomial with these stars (Gauss-Markov)."""
    n_y, n_x = exposure.shape
    half = max(n_x, n_y) / 2
    design = design_matrix((stars.x - n_x / 2) / half, (stars.y - n_y / 2) / half, degree)
    covariance = np.linalg.inv(design.T @ (design / stars.sigma_arcsec[:, None] ** 2))
    u, v = (g.ravel() for g in np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40)))
    at = design_matrix(u, v, degree)
    return 1e3 * float(np.sqrt(np.einsum("ij,jk,ik->i", at, covariance, at).mean()))


def sip_peer(exposure: Exposure, stars: Stars) -> tuple[float, float]:
    """CPU seconds and map error of astropy's SIP fit of degree 3, given the matched pairs."""
    from astropy import units
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import fit_wcs_from_points

    positions = SkyCoord(stars.ra * units.deg, stars.dec * units.deg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds, wcs = cpu_seconds(lambda: fit_wcs_from_points((stars.x, stars.y), positions, sip_degree=3), 1)
        return seconds, map_error_mas(exposure, lambda x, y: wcs.all_pix2world(x, y, 0))[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=1500, help="detected stars of S/N 10 and more")
    parser.add_argument("--exposures", type=int, default=20, help="exposures over which the map error is averaged")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rcids = [50, 0, 20, 43, 63]  # corners and centre of the mosaic
    exposures = [simulate(options.stars, rcids[k % 5], k) for k in range(options.exposures)]
    print(json.dumps(measure(exposures, options), indent=None if options.json else 1))


def measure(exposures: list[Exposure], options: argparse.Namespace) -> dict[str, Any]:
    """All figures of the benchmark."""
    first = exposures[0]
    match_s, (wcs, stars) = cpu_seconds(lambda: matched_stars(first), options.repeats)
    fit_s, _ = cpu_seconds(lambda: fit_tpv(stars, wcs), options.repeats)
    whole_s, _ = cpu_seconds(
        lambda: calibrate_astrometry(first.detections, first.reference, first.prior, first.shape), options.repeats
    )
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results = [calibrate_astrometry(e.detections, e.reference, e.prior, e.shape) for e in exposures]
    errors = [map_error_mas(e, r.wcs.pixel_to_sky) for e, r in zip(exposures, results, strict=True)]
    pairs = [matched_stars(e)[1] for e in exposures]
    report = {
        "steps": {"match": match_s, "fit": fit_s},
        "total_cpu_s": match_s + fit_s,
        "with_all_checks_cpu_s": whole_s,
        "map_error_mas": float(np.sqrt(np.mean([rms**2 for rms, _ in errors]))),
        "map_error_worst_exposure_mas": max(rms for rms, _ in errors),
        "map_error_largest_mas": max(largest for _, largest in errors),
        "map_error_stated_mas": 1e3 * float(np.mean([r.metrics["astrometric_map_error_arcsec"] for r in results])),
        "free_cubic_bound_mas": float(np.mean([bound_mas(e, s, 3) for e, s in zip(exposures, pairs, strict=True)])),
        "linear_bound_mas": float(np.mean([bound_mas(e, s, 1) for e, s in zip(exposures, pairs, strict=True)])),
        "n_used": int(np.mean([r.solution.n_used for r in results])),
        "peak_mib": peak_mib,
    }
    return report if options.no_peers else report | peers(exposures[:5], pairs)


def peers(exposures: list[Exposure], pairs: list[Stars]) -> dict[str, Any]:
    """CPU seconds and map error of astropy on the same pairs; `benchmarks.channel` has SCAMP on an image."""
    sip = [sip_peer(e, s) for e, s in zip(exposures, pairs, strict=False)]
    return {
        "peers": {"astropy_sip": float(np.median([seconds for seconds, _ in sip]))},
        "peers_map_error_mas": {"astropy_sip": float(np.sqrt(np.mean([error**2 for _, error in sip])))},
    }


if __name__ == "__main__":
    main()
