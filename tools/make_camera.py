"""Write ``config/cameras/ztf.yml``: the mosaic as designed, with small seeded build errors.

Run as ``python -m tools.make_camera [OUT.yml]``. The optical map of each channel is an expansion of a physical
model: detectors on a plane where distance is proportional to the field angle (a Schmidt camera, so that the
tangent-plane coordinate is tan(r)), a field flattener in front of each CCD (a radial term about the CCD's
centre), and small rotations and tilts of the CCDs.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

N_X, N_Y = 3072, 3080
SCALE_DEG = 1.012 / 3600.0
#: Centre of rcid 50 about the field centre, from a real frame (RA 57.99740, Dec 35.74629; field 55.0608, 33.35).
RCID50_XI_ETA = (2.386550, 2.433453)
FLATTENER_PIX_AT_CORNER = 2.0
SEED = 20170101

HEAD = """\
# The ZTF mosaic as the simulator builds it and the pipelines read it. Written by tools/make_camera.py.
#
# Map of a channel: 0-based pixels (x, y), dx = x - (n_x-1)/2, dy = y - (n_y-1)/2, u = dx/1536, v = dy/1540;
#   xi  = xi_deg  + c11*dx + c12*dy + sum(distortion_xi_arcsec  * t)/3600
#   eta = eta_deg + c21*dx + c22*dy + sum(distortion_eta_arcsec * t)/3600
#   t = [u^2, u*v, v^2, u^3, u^2*v, u*v^2, v^3];   cd_deg = [c11, c12, c21, c22]
# (xi, eta): tangent plane (gnomonic) about the telescope pointing, degrees, xi to the East, eta to the North.
# Linearity: DN_true = x / (a*x^2 + b*x + 1), x the measured DN above bias; the last entry with since <= night holds.
# saturate_dn: a pixel above it (DN above bias) has lost charge.
# Ghost model, for a star of total flux F at (xi, eta), used when F > min_flux_dn; r is in pixels:
#   halo:  surface brightness F*flux_fraction * 3/(pi*R^2) * (1 - r/R) about the star, R = radius_pix
#   ghost: uniform annulus of total flux F*flux_fraction between the two radii, centred on
#          center_scale*(xi, eta) in the tangent plane (two reflections, displaced towards the axis)
name: ztf
telescope: Palomar 48-inch
instrument: ZTF/MOSAIC
site: {longitude_deg: -116.8598, latitude_deg: 33.3573, altitude_m: 1668.0}
n_x: 3072
n_y: 3080
pixel_scale_arcsec: 1.012
overscan_n_columns: 30
overscan_n_skip: 4            # the first columns carry the trail of the image
adc_max_dn: 65535
header:                       # role -> keyword in the raw file
  {image_type: IMGTYPE, exptime_s: EXPTIME, field: FIELDID, ra_deg: TELRAD, dec_deg: TELDECD, filter: FILTER,
   filter_id: FILTERID, jd: OBSJD, mjd: OBSMJD, shutter_open: SHUTOPEN, shutter_close: SHUTCLSD, airmass: AIRMASS,
   program_id: PROGRMID, program_pi: PROGRMPI, gain_e: GAIN, read_noise_e: READNOI, ccdid: CCD_ID}
required: [image_type, exptime_s, field, ra_deg, dec_deg, filter, jd, program_id, ccdid]
telemetry: [CCDTMP, HEADTEMP, DEWPRESS, DETHEAT, FOCUSPOS, INST_, THETA_, TEMPTURE, WIND, DEWPOINT, WETNESS, HUMIDITY,
            PRESSURE, CLOUDS, SUN, MOON, AZIMUTH, ELVATION, DOME]
image_types: {bias: [bias], flat: [flat], dark: [dark], object: [object]}
filters:
  zg: {fid: 1, name: ZTF_g, band: g, color: [g, r], reference_magzp: 26.325}
  zr: {fid: 2, name: ZTF_r, band: r, color: [g, r], reference_magzp: 26.275}
  zi: {fid: 3, name: ZTF_i, band: i, color: [r, i], reference_magzp: 25.660}
ghost:
  halo: {min_flux_dn: 1.0e+6, radius_pix: 110.0, flux_fraction: 0.01}
  ghost: {min_flux_dn: 1.0e+6, center_scale: 0.985, radius_in_pix: 25.0, radius_out_pix: 75.0, flux_fraction: 0.004}
# crosstalk[i][j]: fraction of the signal of channel q(j+1) that appears in q(i+1) of the same CCD, at the same pixel
"""


def pitch_deg() -> tuple[float, float]:
    """Spacing of CCD centres on the detector plane (East, North) that puts rcid 50 where the real one is."""
    xi, eta = np.radians(RCID50_XI_ETA)
    r_tan = np.hypot(xi, eta)
    plane = np.degrees(np.arctan(r_tan) / r_tan * np.array([xi, eta]))
    half = 0.5 * SCALE_DEG * np.array([N_X, N_Y])
    east, north = (plane + half) / 1.5
    return float(east), float(north)


def ccd_center_deg(ccdid: int) -> Array:
    """Centre of a CCD on the detector plane; 13-16 are the northern row, East to West."""
    row, column = divmod(ccdid - 1, 4)
    east, north = pitch_deg()
    return np.array([(1.5 - column) * east, (row - 1.5) * north])


def plane_to_tangent(plane_deg: Array) -> Array:
    """Schmidt camera: field angle r on the plane to tan(r) on the tangent plane, both in degrees."""
    r = np.radians(np.hypot(plane_deg[0], plane_deg[1]))
    stretch = np.where(r > 0, np.tan(r) / np.where(r > 0, r, 1.0), 1.0)
    return stretch * plane_deg


def channel_map(ccdid: int, qid: int, build: dict[str, float], x: Array, y: Array) -> Array:
    """Exact (xi, eta) in degrees of pixel offsets (x, y) from the channel's centre."""
    side = {1: (1, 1), 2: (-1, 1), 3: (-1, -1), 4: (1, -1)}[qid]
    east = SCALE_DEG * (0.5 * N_X * side[0] - x)
    north = SCALE_DEG * (0.5 * N_Y * side[1] - y)
    corner2 = (SCALE_DEG * N_X) ** 2 + (SCALE_DEG * N_Y) ** 2
    bend = FLATTENER_PIX_AT_CORNER * SCALE_DEG / corner2**1.5 * (east**2 + north**2)
    tilt = build["tilt_east"] * east + build["tilt_north"] * north
    offset = np.array([east, north]) * (1.0 + bend + tilt)
    c, s = np.cos(build["rotation_rad"]), np.sin(build["rotation_rad"])
    turned = np.array([c * offset[0] - s * offset[1], s * offset[0] + c * offset[1]])
    return plane_to_tangent(ccd_center_deg(ccdid)[:, None] + turned)


def expand(ccdid: int, qid: int, build: dict[str, float]) -> tuple[Array, float]:
    """Least-squares cubic expansion: (2, 10) coefficients [1, dx, dy, t...] and the residual in pixels."""
    u, v = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41)))
    x, y = 1536.0 * u, 1540.0 * v
    terms = np.array([u**2, u * v, v**2, u**3, u**2 * v, u * v**2, v**3]) / 3600.0
    basis = np.vstack([np.ones_like(u), u, v, terms]).T
    target = channel_map(ccdid, qid, build, x, y).T
    coefficients = np.linalg.lstsq(basis, target, rcond=None)[0]
    residual = float(np.abs(basis @ coefficients - target).max() / SCALE_DEG)
    coefficients[1] /= 1536.0
    coefficients[2] /= 1540.0
    return np.asarray(coefficients.T, np.float64), residual


def flow(values: Array, form: str) -> str:
    """A YAML flow list."""
    return "[" + ", ".join(format(float(v), form) for v in values) + "]"


def channel_entry(ccdid: int, qid: int, build: dict[str, float], rng: np.random.Generator) -> str:
    """One channel as a YAML flow mapping."""
    (xi, eta), _ = expand(ccdid, qid, build)
    gain, noise = rng.uniform(5.8, 6.5), rng.uniform(8.0, 12.0)
    saturate = rng.uniform(56000.0, 59000.0)
    a, b = rng.uniform(0.7, 1.3) * 1e-12, rng.uniform(-3.0, -2.2) * 1e-7
    cd = np.array([xi[1], xi[2], eta[1], eta[2]])
    return (
        f"  - {{rcid: {4 * (ccdid - 1) + qid - 1}, ccdid: {ccdid}, qid: {qid}, image: {{ext: {qid}}}, "
        f"overscan: {{ext: {qid + 4}}}, gain_e: {gain:.3f}, read_noise_e: {noise:.2f}, "
        f"saturate_dn: {saturate:.1f}, linearity: [{{since: '20170101', a: {a:.3e}, b: {b:.3e}}}],\n"
        f"     xi_deg: {xi[0]:.8f}, eta_deg: {eta[0]:.8f}, cd_deg: {flow(cd, '.9e')},\n"
        f"     distortion_xi_arcsec: {flow(xi[3:], '.5f')}, "
        f"distortion_eta_arcsec: {flow(eta[3:], '.5f')}}}\n"
    )


def camera_text() -> str:
    """The whole file."""
    rng = np.random.default_rng(SEED)
    crosstalk = rng.uniform(0.3e-4, 2.0e-4, (4, 4)) * (1.0 - np.eye(4))
    lines = [HEAD, "crosstalk:\n"]
    lines += [f"  - {flow(row, '.2e')}\n" for row in crosstalk]
    lines.append("channels:\n")
    for ccdid in range(1, 17):
        build = {
            "rotation_rad": rng.normal(0.0, 4e-4),
            "tilt_east": rng.normal(0.0, 4e-4),
            "tilt_north": rng.normal(0.0, 4e-4),
        }
        lines += [channel_entry(ccdid, qid, build, rng) for qid in (1, 2, 3, 4)]
    return "".join(lines)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write the camera file of the ZTF mosaic.")
    parser.add_argument("out", nargs="?", type=Path, default=Path("config/cameras/ztf.yml"))
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(camera_text())
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
