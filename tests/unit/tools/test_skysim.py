"""The simulator against simple truths of its own: it is what everything else is measured with."""

import ast
import dataclasses
import hashlib
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tools.skysim import __main__ as cli
from tools.skysim import (
    camera,
    cosmic,
    detector,
    movers,
    optics,
    rawfile,
    readout,
    render,
    scene,
    sky,
    survey,
    tracks,
    truth,
    variables,
)

ROOT = Path(__file__).parents[3]
CAMERA = camera.load_camera(ROOT / "config/cameras/ztf.yml")
SHAPE = (CAMERA.n_y, CAMERA.n_x)
CCDID, RCID = 6, 21

PLAN = """\
seed: 7
camera: {camera}
ccdids: [6]
rcids: [21]
fields:
  655: {{ra_deg: 55.0608, dec_deg: 33.35, stars_per_channel: 1500}}
physics: {{galaxies_per_channel: 60, n_orbits: 20000, transients_per_channel: 20, streakers_per_ccd: 4.0}}
nights:
  - night: '20200924'
    bias:
      - {{n: 1, start: '00:20:00'}}
    science:
      - {{field: 655, filter: zr, n: 1, start: '10:21:45', n_tracks: 1}}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.yml"
    path.write_text(PLAN.format(camera=ROOT / "config/cameras/ztf.yml"))
    return path


@pytest.fixture(scope="module")
def made(plan):
    """One small night, made once."""
    out = plan.parent / "sky"
    start = time.process_time()
    assert cli.main([str(plan), "--out", str(out)]) == 0
    print(f"a night of one bias and one science exposure, one lit channel: {time.process_time() - start:.1f} CPU s")
    return out


def round_psf(fwhm_pix=2.0):
    return optics.Psf(fwhm_pix, (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), 50.0, 50.0)


def science(simulation):
    return next(e for e in simulation.exposures if e.kind == "object")


def test_nothing_of_the_suite_but_the_communicator_is_imported():
    for path in sorted((ROOT / "tools/skysim").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(not n.startswith("zsds_hpc") or n == "zsds_hpc.parallel.comm" for n in names), path


def test_camera_file_is_what_its_builder_writes():
    from tools.make_camera import camera_text

    assert (ROOT / "config/cameras/ztf.yml").read_text() == camera_text()


def test_channel_50_is_where_the_real_one_is():
    pointing = optics.Pointing(55.0608, 33.35, np.eye(2), np.zeros((2, 4)))
    ra, dec = optics.pixel_to_sky(CAMERA.channels[50], CAMERA, pointing, np.array([1535.5]), np.array([1539.5]))
    assert abs(ra[0] - 57.9974) * 3600 < 10 and abs(dec[0] - 35.7463) * 3600 < 10


def test_distortion_bends_a_channel_by_some_pixels():
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, 3071, 9), np.linspace(0, 3079, 9)))
    plane, worst = np.column_stack([np.ones_like(x), x, y]), 0.0
    for channel in CAMERA.channels.values():
        target = np.column_stack(optics.nominal_tangent(channel, CAMERA, x, y))
        residual = plane @ np.linalg.lstsq(plane, target, rcond=None)[0] - target
        worst = max(worst, np.abs(residual).max() * 3600 / 1.012)
    assert 0.7 < worst < 5.0


def test_projection_agrees_with_astropy():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [55.0, 33.0], [1.0, 1.0]
    wcs.wcs.cdelt = [1.0, 1.0]
    xi, eta = np.array([0.3, -2.1, 3.0]), np.array([1.0, 2.2, -3.0])
    ra, dec = optics.gnomonic_inverse(xi, eta, 55.0, 33.0)
    np.testing.assert_allclose(np.array(wcs.wcs_pix2world(xi, eta, 0)), [ra, dec], atol=1e-11)
    np.testing.assert_allclose(optics.gnomonic(ra, dec, 55.0, 33.0), [xi, eta], atol=1e-11)


@pytest.mark.parametrize("rcid", [0, 21, 50, 63])
def test_pixel_sky_round_trip(rcid):
    rng = np.random.default_rng(rcid)
    pointing = optics.make_pointing(55.0, 33.0, rng)
    x, y = rng.uniform(-50, 3120, 200), rng.uniform(-50, 3120, 200)
    ra, dec = optics.pixel_to_sky(CAMERA.channels[rcid], CAMERA, pointing, x, y)
    back = optics.sky_to_pixel(CAMERA.channels[rcid], CAMERA, pointing, ra, dec)
    np.testing.assert_allclose(back, [x, y], atol=1e-6)


def test_pointing_error_is_20_arcsec_rms():
    errors = []
    for k in range(400):
        p = optics.make_pointing(55.0, 33.0, np.random.default_rng(k))
        errors.append(((p.ra_deg - 55.0) * np.cos(np.radians(33.0)), p.dec_deg - 33.0))
    assert np.sqrt((np.square(errors) * 3600**2).sum(axis=1).mean()) == pytest.approx(20.0, rel=0.1)


@pytest.mark.parametrize("fwhm", [1.6, 2.0, 2.7])
def test_star_is_the_integral_of_its_profile(fwhm):
    psf = optics.Psf(fwhm, (0, 0, 0), (0.04, 0, 0, 0), (-0.03, 0, 0, 0), 50.0, 50.0)
    stamp = render.psf_stamps(np.array([50.3]), np.array([49.6]), np.array([1.0]), psf, 15)[0]
    fine = (np.arange(31 * 41) + 0.5) / 41 - 0.5 - 15
    dx, dy = fine[None, :] + 50 - 50.3, fine[:, None] + 50 - 49.6
    # Shear of a round profile, written out independently: |g| = 0.05 along the angle of (0.04, -0.03).
    g1, g2 = 0.04, -0.03
    norm = 1 / np.sqrt(1 - g1**2 - g2**2)
    r2 = (norm * ((1 - g1) * dx - g2 * dy)) ** 2 + (norm * (-g2 * dx + (1 + g1) * dy)) ** 2
    profile = 0.0
    for weight, beta, width in ((0.85, 3.5, 1.0), (0.15, 2.5, 2.2)):
        alpha = 0.5 * width * fwhm / np.sqrt(2 ** (1 / beta) - 1)
        profile = profile + weight * (beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta
    expected = profile.reshape(31, 41, 31, 41).mean(axis=(1, 3))
    assert np.abs(stamp - expected).max() < 4e-4 * expected.max()
    assert stamp.sum() == pytest.approx(expected.sum(), rel=2e-4)


def test_isolated_star_flux_and_centroid_within_the_noise():
    image = np.full((101, 101), 100.0, np.float32)
    render.add_stars(image, np.array([50.37]), np.array([49.81]), np.array([2.0e5]), round_psf())
    y, x = np.mgrid[:101, :101]
    near = np.hypot(x - 50.37, y - 49.81) < 9.0
    expected = 2.0e5 * optics.encircled_energy(2.0, np.array(9.0))
    pulls = []
    for seed in range(40):
        noisy = image.copy()
        detector.add_noise(noisy, 8.0, np.random.default_rng(seed))
        light = (noisy - 100.0) * near
        flux = light.sum(dtype=np.float64)
        sigma = np.sqrt(expected + near.sum() * (100.0 + 64.0))
        pulls.append([(flux - expected) / sigma, (light * x).sum() / flux - 50.37, (light * y).sum() / flux - 49.81])
    pulls = np.array(pulls)
    assert abs(pulls[:, 0].mean()) < 4 / np.sqrt(40) + 0.002 * expected / np.sqrt(expected)
    assert 0.7 < pulls[:, 0].std() < 1.35
    assert np.all(np.abs(pulls[:, 1:].mean(axis=0)) < 4 * pulls[:, 1:].std(axis=0) / np.sqrt(40) + 5e-4)


def test_star_cut_by_the_border_is_the_same_star():
    whole = np.zeros((120, 120), np.float32)
    render.add_stars(whole, np.array([41.2, 300.0]), np.array([60.4, 10.0]), np.array([5e4, 1e4]), round_psf())
    part = np.zeros((120, 80), np.float32)
    render.add_stars(part, np.array([1.2, -500.0]), np.array([60.4, 10.0]), np.array([5e4, 1e4]), round_psf())
    np.testing.assert_allclose(part, whole[:, 40:], atol=1e-3)


def test_galaxy_keeps_its_flux_and_its_axis():
    entry = np.zeros(1, scene.GALAXY_TRUTH)
    entry["x"], entry["y"], entry["flux_dn"] = 80.0, 80.0, 1e5
    entry["r_half_arcsec"], entry["axis_ratio"], entry["pa_deg"], entry["bulge"] = 4.0, 0.4, 0.0, 0.0
    image = np.zeros((161, 161), np.float32)
    render.add_galaxies(image, entry, round_psf(), 1.012)
    assert image.sum() == pytest.approx(1e5, rel=0.01)
    y, x = np.mgrid[:161, :161] - 80.0
    assert (image * y**2).sum() > 2.0 * (image * x**2).sum()  # position angle 0: along North, that is y


def test_galaxy_without_size_is_a_star():
    psf = optics.Psf(1.7, (0.02, 0, 0), (0.04, 0, 0, 0), (-0.03, 0, 0, 0), 50.0, 50.0)
    entry = np.zeros(1, scene.GALAXY_TRUTH)
    entry["x"], entry["y"], entry["flux_dn"], entry["r_half_arcsec"], entry["axis_ratio"] = 60.3, 59.6, 1e5, 1e-3, 1.0
    galaxy, star = np.zeros((2, 121, 121), np.float32)
    render.add_galaxies(galaxy, entry, psf, 1.012)
    render.add_stars(star, entry["x"], entry["y"], entry["flux_dn"], psf)
    assert np.abs(galaxy - star).max() < 0.004 * star.max()
    assert galaxy.sum() == pytest.approx(star.sum(), rel=2e-3)


def test_probes_shine_from_their_night_on_and_change_nothing_else():
    plain = sky.SkyModel(3, ((55.0, 33.0, 3000.0),), 300.0, 3.0, 0.02, (59000.0, 59100.0))
    tested = dataclasses.replace(plain, probes_per_channel=400.0, probes_from_mjd=59050.0)
    band, cell = sky.tiles_around(55.0, 33.0, 0.1)[0]
    without, tile = sky.make_tile(plain, band, cell), sky.make_tile(tested, band, cell)
    np.testing.assert_array_equal(tile.stars, without.stars)
    np.testing.assert_array_equal(tile.transients[: without.transients.size], without.transients)
    probes = tile.transients[without.transients.size :]
    assert set(np.unique(probes["kind"])) == set(variables.PROBE_KINDS)
    assert 0.4 < (probes["kind"] == variables.ON_GALAXY).mean() < 0.6
    before, after = (variables.transient_magnitude(probes, mjd, "r") for mjd in (59049.9, 59050.4))
    assert (before == 99.0).all()
    np.testing.assert_array_equal(after, probes["peak_r"])
    assert after.min() > 15.5 and after.max() < 21.5
    host = tile.galaxies[np.searchsorted(tile.galaxies["id"], probes["host_id"][probes["kind"] == variables.ON_GALAXY])]
    offset = np.hypot(host["ra"] - probes["ra"][probes["kind"] == variables.ON_GALAXY],
                      host["dec"] - probes["dec"][probes["kind"] == variables.ON_GALAXY]) * 3600  # fmt: skip
    assert np.all(offset < 2.0 * host["r_half_arcsec"])


def test_noise_has_poisson_mean_variance_and_skew():
    for mean, read in ((30.0, 0.0), (800.0, 10.0)):
        image = np.full((1500, 1500), mean, np.float32)
        detector.add_noise(image, read, np.random.default_rng(3))
        values = image.astype(np.float64)
        variance = mean + read**2
        assert values.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance) / 1500)
        assert values.var() == pytest.approx(variance, rel=0.01)
        third = ((values - values.mean()) ** 3).mean()
        assert third == pytest.approx(mean, abs=5 * np.sqrt(15) * variance**1.5 / 1500)


def test_linearity_is_the_inverse_of_the_camera_formula():
    true = np.linspace(0.0, 60000.0, 32 * 50, dtype=np.float32).reshape(32, 50)
    measured = true.copy()
    detector.distort_linearity(measured, 1.0e-12, -2.6e-7)
    x = measured.astype(np.float64)
    np.testing.assert_allclose(x / (1.0e-12 * x * x - 2.6e-7 * x + 1.0), true, atol=0.02)
    assert 0.005 < 1.0 - measured[-1, -1] / 60000.0 < 0.02


def test_bleeding_keeps_the_charge_and_runs_along_columns():
    image = np.full((200, 30), 50.0, np.float32)
    image[90:93, 10:12] = 1.0e5
    total = image.sum(dtype=np.float64)
    full = detector.bleed(image, 2.0e4)
    assert image.max() <= 2.0e4 * 1.0001
    assert image.sum(dtype=np.float64) == pytest.approx(total, rel=1e-6)
    columns, rows = full % 30, full // 30
    assert set(columns) == {10, 11} and rows.max() - rows.min() >= 12
    assert abs(rows.mean() - 91.0) < 1.0


def test_crosstalk_mixes_channels_as_the_camera_says():
    signals = [np.zeros(SHAPE, np.float32) for _ in range(4)]
    signals[2][1000, 2000] = 50000.0
    readout._crosstalk(signals, CAMERA)
    for i in (0, 1, 3):
        assert signals[i][1000, 2000] == pytest.approx(50000.0 * CAMERA.crosstalk[i, 2], rel=1e-5)
    assert signals[2][1000, 2000] == 50000.0


def test_overscan_follows_the_rows_and_carries_a_trail():
    levels = np.linspace(990.0, 1010.0, CAMERA.n_y)
    strip = detector.overscan_strip(
        CAMERA, CAMERA.channels[RCID], np.full(CAMERA.n_y, 20000.0, np.float32), levels, np.random.default_rng(1)
    )
    excess = (strip - levels[:, None]).mean(axis=0)
    assert 9.0 < excess[0] < 13.0 and excess[0] > 2 * excess[1] > 0
    assert np.abs(excess[8:]).max() < 0.15


def test_cosmic_rays_are_recorded_pixel_by_pixel():
    hits = cosmic.draw_hits(np.random.default_rng(5), 60.0, *SHAPE)
    assert 35 < np.unique(hits.clump).size < 90
    assert hits.electrons.min() >= cosmic.LEAST_E and hits.electrons.max() > 3000
    y, x = np.divmod(hits.pixel, CAMERA.n_x)
    for k in np.unique(hits.clump):
        own = hits.clump == k
        assert np.ptp(x[own]) < 160 and np.ptp(y[own]) < 160
    empty = cosmic.draw_hits(np.random.default_rng(5), 0.0, *SHAPE)
    assert empty.pixel.size == 0


def test_counts_rise_towards_the_galactic_plane_and_density_is_a_setting():
    assert sky.default_stars_per_channel(192.86, 27.13) == pytest.approx(4000.0)
    assert sky.default_stars_per_channel(298.3, 33.3) > 50_000
    numbers = []
    for density in (3000.0, 60_000.0):
        model = sky.SkyModel(1, ((55.0, 33.0, density),), 10.0, 1.0, 0.02, (59000.0, 59100.0))
        band, cell = sky.tiles_around(55.0, 33.0, 0.1)[0]
        stars = sky.make_tile(model, band, cell).stars
        numbers.append(stars.size / sky._tile_area(band) * sky.CHANNEL_DEG2)
        assert stars["r"].min() > 7.9 and stars["r"].max() < 23.0
    assert numbers == pytest.approx([3000.0, 60_000.0], rel=0.1)


def test_variables_vary_and_constants_do_not():
    stars = np.zeros(7, sky.STAR_DTYPE)
    stars["kind"], stars["period_d"], stars["amp_mag"], stars["phase"] = np.arange(7), 0.6, 1.0, 0.3
    dates = 59000.0 + np.linspace(0.0, 3.0, 400)
    change = np.array([variables.magnitude_change(stars, t, "r") for t in dates])
    assert np.all(change[:, 0] == 0.0)
    assert np.all(np.ptp(change[:, 1:], axis=0) > 0.3)
    assert change[:, variables.FLARE].min() < -0.5 and change[:, variables.ECLIPSING].max() > 0.8


def test_supernova_rises_and_fades():
    table = np.zeros(1, variables.TRANSIENT_DTYPE)
    table["t_peak_mjd"], table["peak_r"], table["kind"] = 59000.0, 18.0, variables.SN_IA
    mags = [variables.transient_magnitude(table, 59000.0 + d, "r")[0] for d in (-60, -3, 0, 30)]
    assert mags[0] == 99.0 and mags[1] > mags[2] == 18.0 and 19.5 < mags[3] < 21.0


def test_orbits_match_a_closed_form_and_the_real_sun():
    orbit = np.zeros(1, movers.ORBIT_DTYPE)
    orbit["a_au"], orbit["e"], orbit["epoch_mjd_tdb"] = 2.0, 0.3, 59000.0
    np.testing.assert_allclose(movers.heliocentric(orbit, 59000.0)[:, 0], [1.4, 0.0, 0.0], atol=1e-12)
    half = np.pi * 2.0**1.5 / movers.GAUSS_K
    np.testing.assert_allclose(movers.heliocentric(orbit, 59000.0 + half)[:, 0], [-2.6, 0.0, 0.0], atol=1e-9)
    # Equinox of September 2020, 22d 13h 31m: the Sun (so minus the Earth) is at ecliptic longitude 180 of date.
    x, y, _ = -movers.earth(59114.5633)
    longitude = np.degrees(np.arctan2(y, x)) % 360.0
    assert longitude + 20.72 * 0.01397 == pytest.approx(180.0, abs=0.02)


def test_track_follows_its_end_points():
    simulation = survey.load_simulation(ROOT / "config/simulations/tiny.yml", CAMERA)
    exposure = dataclasses.replace(science(simulation), n_tracks=6)
    pointing = optics.make_pointing(exposure.ra_deg, exposure.dec_deg, np.random.default_rng(0))
    image = np.zeros(SHAPE, np.float32)
    table = tracks.add_tracks(image, simulation, exposure, CAMERA.channels[RCID], CAMERA, pointing)
    assert table.size > 0
    for row in table[(table["kind"] == tracks.SATELLITE) & (table["dash_pix"] == 0)]:
        t = np.linspace(0.05, 0.95, 50)
        x = np.rint(row["x0"] + t * (row["x1"] - row["x0"])).astype(int)
        y = np.rint(row["y0"] + t * (row["y1"] - row["y0"])).astype(int)
        assert np.median(image[y, x]) == pytest.approx(row["peak_dn"], rel=0.35)


def test_same_seed_same_bytes_other_seed_other_bytes(plan, made):
    simulation = survey.load_simulation(plan, CAMERA)
    exposure = simulation.exposures[0]

    def content(sim):
        pixels, _ = readout.expose(sim, CAMERA, exposure, CCDID)
        return rawfile.raw_bytes(CAMERA, exposure, CAMERA.of_ccd(CCDID), pixels)

    on_disk = (made / "incoming" / exposure.night / exposure.filename(CCDID)).read_bytes()
    assert content(simulation) == on_disk
    assert content(dataclasses.replace(simulation, seed=8)) != on_disk


def test_exposure_does_not_depend_on_the_rest_of_the_plan(plan, tmp_path):
    longer = tmp_path / "longer.yml"
    longer.write_text(plan.read_text().replace("{n: 1, start: '00:20:00'}", "{n: 3, start: '00:20:00'}"))
    one, two = (survey.load_simulation(p, CAMERA) for p in (plan, longer))
    assert science(one) == science(two)


def test_raw_file_is_what_the_camera_writes(made, plan):
    exposure = science(survey.load_simulation(plan, CAMERA))
    path = made / "incoming/20200924" / exposure.filename(CCDID)
    assert path.name == "ztf_20200924431751_000655_zr_c06_o.fits.fz"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdus:
            assert [h.name for h in hdus] == ["PRIMARY", *"12345678"]
            assert [h.data.shape for h in hdus[1:]] == [SHAPE] * 4 + [(3080, 30)] * 4
            assert all(h.data.dtype == np.uint16 and h.compression_type == "RICE_1" for h in hdus[1:])
            primary = hdus[0].header
            assert (primary["TELRAD"], primary["TELDECD"]) == (55.0608, 33.35)
            assert primary["SHUTOPEN"] == "2020-09-24T10:21:45.000" and primary["FILTERID"] == 2
            assert primary["IMGTYPE"] == "object" and primary["CCD_ID"] == CCDID
            assert 1.0 <= primary["AIRMASS"] < 1.1 and 0.4 < primary["MOONILLF"] < 0.6
            gain = hdus["2"].header["GAIN"]
            assert gain == CAMERA.channels[RCID].gain_e
            lit, dark = np.median(hdus["2"].data), np.median(hdus["1"].data)
    with fits.open(path, disable_image_compression=True) as hdus:
        assert all({"CHECKSUM", "DATASUM"} <= set(h.header) for h in hdus)
    assert lit - dark > 80  # the plan lights channel 21 only


def test_a_flipped_bit_breaks_the_checksum(made, tmp_path):
    path = next((made / "incoming/20200924").glob("*_b.fits.fz"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    broken = tmp_path / path.name
    broken.write_bytes(content)
    with pytest.warns(UserWarning, match="verification failed"), fits.open(broken, checksum=True, lazy_load_hdus=False):
        pass


def test_manifest_lists_sizes_and_hashes(made):
    folder = made / "incoming/20200924"
    lines = (folder / "ztf_20200924_manifest.txt").read_text().splitlines()
    files = sorted(p.name for p in folder.glob("*.fits.fz"))
    assert [line.split()[2] for line in lines] == files and len(files) == 2
    for line in lines:
        digest, size, name = line.split("  ")
        content = (folder / name).read_bytes()
        assert len(content) == int(size) and hashlib.sha256(content).hexdigest() == digest
    assert not list(folder.glob(".*"))


def test_second_run_makes_nothing_and_a_damaged_file_is_made_again(made, plan, capsys):
    path = next((made / "incoming/20200924").glob("*_b.fits.fz"))
    whole = path.read_bytes()
    cli.main([str(plan), "--out", str(made)])
    assert "sky: 0 pieces made" in capsys.readouterr().out
    path.write_bytes(whole[:-2880])
    cli.main([str(plan), "--out", str(made)])
    assert "sky: 1 pieces made" in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_truth_describes_the_image(made, plan):
    exposure = science(survey.load_simulation(plan, CAMERA))
    with truth.Truth(made / "truth/truth_20200924.h5") as night:
        assert night.exposures("object") == [exposure.name] and night.rcids() == [20, 21, 22, 23]
        assert night.exposure(exposure.name)["field"] == 655
        stars, state = night.table(exposure.name, RCID, "stars"), night.channel(exposure.name, RCID)
        levels, hits = (night.table(exposure.name, RCID, k) for k in ("row_level_dn", "cosmic_rays"))
        flat, bias = night.highfreq_flat(RCID, "zr"), night.map(RCID, "bias_dn")
        mask, smooth = night.map(RCID, "mask"), night.smooth_response(RCID, "zr")
        ra, dec = night.pixel_to_sky(exposure.name, RCID, stars["x"], stars["y"])
        assert night.table(exposure.name, RCID, "tracks").dtype == tracks.TRACK_TRUTH
    assert 1100 < stars.size < 1900
    np.testing.assert_allclose([ra, dec], [stars["ra"], stars["dec"]], rtol=0, atol=1e-9)
    with fits.open(made / "incoming/20200924" / exposure.filename(CCDID)) as hdus:
        x = hdus["2"].data - levels[:, None] - bias
    channel = CAMERA.channels[RCID]
    image = x / (channel.linearity_a * x * x + channel.linearity_b * x + 1.0) / flat
    sigma = np.sqrt(state["sky_dn"] / channel.gain_e + (channel.read_noise_e / channel.gain_e) ** 2)
    assert np.median(image / smooth) == pytest.approx(state["sky_dn"], rel=0.015)
    row, column = np.divmod(hits["index"], CAMERA.n_x)
    strong = hits["electrons"] / channel.gain_e > 8 * sigma
    assert np.mean(image[row, column][strong] > state["sky_dn"] + 4 * sigma) > 0.98
    zero_points = []
    for star in stars[(stars["mag"] < 18.0) & (stars["mag"] > 14.5)]:
        cx, cy = int(star["x"] + 0.5), int(star["y"] + 0.5)
        if not (20 <= cx < CAMERA.n_x - 20 and 20 <= cy < CAMERA.n_y - 20):
            continue
        cut, bad = image[cy - 15 : cy + 16, cx - 15 : cx + 16], mask[cy - 15 : cy + 16, cx - 15 : cx + 16] != 0
        r = np.hypot(*(np.mgrid[-15:16, -15:16] + np.array([cy - star["y"], cx - star["x"]])[:, None, None]))
        if bad[r < 7].any():
            continue
        flux = (cut - np.median(cut[r > 9]))[r < 5.0].sum() / star["smooth_response"]
        flux /= np.interp(5.0, state["energy_radii_pix"], state["encircled_energy"])
        if flux > 0:
            zero_points.append(star["mag"] + 2.5 * np.log10(flux) - state["color_coefficient"] * star["color"])
    assert len(zero_points) > 100
    assert np.median(zero_points) == pytest.approx(state["zero_point"], abs=0.006)


def test_catalogues_have_realistic_errors_and_gaps(made, plan):
    simulation = survey.load_simulation(plan, CAMERA)
    table = pq.read_table(made / "refcats/gaia.parquet")
    gaia_columns = {name: table[name].to_numpy() for name in table.column_names}
    entry = simulation.fields[655]
    xi, eta = scene.ccd_center(CAMERA, CCDID)
    ra, dec = optics.gnomonic_inverse(np.asarray(xi), np.asarray(eta), entry["ra_deg"], entry["dec_deg"])
    stars = sky.objects_around(simulation.sky, float(ra), float(dec), scene.ccd_radius_deg(CAMERA)).stars
    order = np.argsort(stars["id"])
    where = order[np.searchsorted(stars["id"][order], gaia_columns["source_id"])]
    assert np.array_equal(stars["id"][where], gaia_columns["source_id"])
    pull = (gaia_columns["dec"] - stars["dec"][where]) * 3.6e6 / gaia_columns["dec_error"]
    assert pull.std() == pytest.approx(1.0, abs=0.05) and gaia_columns["dec_error"].min() >= 0.02
    assert 0.5 < gaia_columns["source_id"].size / stars.size < 0.98
    ps1 = pq.read_table(made / "refcats/ps1.parquet")
    mag, error = ps1["rMeanPSFMag"].to_numpy(), ps1["rMeanPSFMagErr"].to_numpy()
    assert set(ps1.column_names) >= {"objID", "raMean", "decMean", "gMeanPSFMag", "iMeanPSFMagErr"}
    bright = (mag > 14.5) & (mag < 18.0)
    assert 0.004 < np.median(error[bright]) < 0.012 and np.median(error[mag > 21.5]) > 0.02
    assert np.all((mag > 13.9) | (mag == -999.0))
