"""PSF-fit photometry on a sky that GalSim drew, against the Cramer-Rao bound of each star.

Two images of isolated stars, 14 to 21 mag, and one of 60,000 stars per channel; 1024 x 1024 and 768 x 768 px, FWHM
1.92 to 2.04 px over the image (defocus, astigmatism, coma), 5-sigma limit 20.56 mag. The chain is `helpers.psf_chain`.

What is left to convention is taken out first: a constant factor between fluxes (the curve of growth sets it in
`calibrate`), and a polynomial of degree 4 in the positions, which any astrometric fit absorbs: coma moves a star's
centre of light, and where the centre of the point-spread function is, is the model's choice.

Margins: the scatter of n normal numbers is known to 1 / sqrt(2 n); three times that is allowed on top of a target.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import ndtr

galsim_sky = pytest.importorskip("tests.helpers.galsim_sky", reason="needs galsim")

from tests.helpers import oracle_fit, psf_chain  # noqa: E402
from tests.helpers.psf_chain import nearest  # noqa: E402
from zsds_hpc.photometry.background import BackgroundParams, estimate_background  # noqa: E402
from zsds_hpc.photometry.forced import forced_photometry  # noqa: E402
from zsds_hpc.photometry.psfcat import PointSourceParams, is_point_source  # noqa: E402
from zsds_hpc.photometry.psffit import PsfFitParams  # noqa: E402
from zsds_hpc.photometry.psfphot import PsfPhotParams, photometry_with_psf  # noqa: E402

SHAPE, DENSE_SHAPE = (1024, 1024), (768, 768)
SATURATE_DN = 58_000.0
MMAG = 2500 / np.log(10)
BINS = ((14, 15), (15, 16), (16, 17), (17, 18), (18, 19), (19, 19.8))
NAMES = ("flux", "x", "y")


def chain(sky):
    return psf_chain.measured(sky.pix, sky.mask, galsim_sky.GAIN_E, SATURATE_DN)


def spread(z):
    """Standard deviation without what is beyond 5 sigma, about the median."""
    z = z - np.median(z)
    return z[np.abs(z) < 5 * 1.4826 * np.median(np.abs(z))].std()


def target(value, n):
    """A target with the three-sigma error of a standard deviation of n numbers."""
    return value * (1 + 3 / np.sqrt(2 * n))


def unit_place(stars, shape):
    return 2 * stars["x"] / (shape[1] - 1) - 1, 2 * stars["y"] / (shape[0] - 1) - 1


def without_map(offset, error, stars, shape):
    """Offsets less the polynomial of degree 4 over the image that fits those of the bright stars."""
    u, v = unit_place(stars, shape)
    terms = np.stack([u**i * v**j for i in range(5) for j in range(5 - i)], axis=1)
    bright = stars["mag"] < 17
    weight = 1 / error[bright]
    fitted = np.linalg.lstsq(terms[bright] * weight[:, None], offset[bright] * weight, rcond=None)[0]
    return offset - terms @ fitted


@pytest.fixture(scope="module")
def psf():
    return galsim_sky.GalsimPsf(SHAPE)


@pytest.fixture(scope="module")
def isolated(psf):
    """Stars of two images that were found: truth, fit, error (n, 3) and bound (n, 3) of flux, x, y; offsets (n, 3)."""
    parts = []
    for seed in (1, 2):
        stars = galsim_sky.isolated_field(psf, 26, (14, 21), seed)
        sky = galsim_sky.render(psf, stars, seed, SATURATE_DN)
        result = chain(sky)
        table = result.fits.table
        row, _ = nearest(stars["x"], stars["y"], table["x"], table["y"], 1.0)
        found = row >= 0
        parts.append((stars[found], table[row[found]], galsim_sky.cramer_rao(psf, stars[found]), len(table)))
    stars, fits, bound = (np.concatenate([part[k] for part in parts]) for k in range(3))
    offset = np.stack([fits[name] - stars[name] for name in NAMES], axis=1)
    bright = stars["mag"] < 16.5
    factor = float(np.median(offset[bright, 0] / stars["flux"][bright]))
    offset[:, 0] -= factor * stars["flux"]
    for k in (1, 2):
        offset[:, k] = without_map(offset[:, k], bound[:, k], stars, SHAPE)
    error = np.sqrt(np.stack([fits["sigflux"] ** 2, fits["var_x"], fits["var_y"]], axis=1))
    print(f"flux factor {1 + factor:.4f}, {len(stars)} of {2 * 39**2} stars found, {sum(p[3] for p in parts)} listed")
    return SimpleNamespace(
        stars=stars, fits=fits, bound=bound, offset=offset, error=error, last=result, factor=1 + factor
    )


def test_the_sky_is_galsims(psf):
    """Between the nodes and the samples of the bank: 1e-4 of the peak."""
    rng = np.random.default_rng(7)
    worst = 0.0
    for x, y in rng.uniform(0, SHAPE[0] - 1, (6, 2)):
        direct = psf.direct(x, y, 20)
        worst = max(worst, np.abs(direct - psf.stamps(x, y, 20)[0]).max() / direct.max())
    assert worst < 1e-4
    fwhm = [psf.at(x, y).calculateFWHM() / galsim_sky.SCALE_ARCSEC for x in (0, 511, 1023) for y in (0, 511, 1023)]
    assert 0.055 < max(fwhm) / min(fwhm) - 1 < 0.08


def test_the_bound_of_a_faint_star(psf):
    """Sky noise times the root of the noise-equivalent area, and a little for the free position."""
    star = np.zeros(1, galsim_sky.STAR_DTYPE)
    star["x"], star["y"], star["flux"] = 500.2, 511.7, 20.0
    stamp = psf.stamps(star["x"], star["y"], 12)[0]
    alone = galsim_sky.sky_sigma_dn() / np.sqrt((stamp**2).sum())
    assert 1 < galsim_sky.cramer_rao(psf, star)[0, 0] / alone < 1.02


def test_scatter_is_at_the_bound(isolated):
    """<= 1.1 times the bound, of flux and of both coordinates, at every magnitude."""
    for low, high in BINS:
        part = (isolated.stars["mag"] >= low) & (isolated.stars["mag"] < high)
        ratio = [spread(isolated.offset[part, k] / isolated.bound[part, k]) for k in range(3)]
        print(f"{low}-{high} mag, {part.sum()} stars: scatter over bound " + " ".join(f"{r:.3f}" for r in ratio))
        assert max(ratio) < target(1.1, part.sum())
    part = isolated.stars["mag"] < 19.8
    ratio = [spread(isolated.offset[part, k] / isolated.bound[part, k]) for k in range(3)]
    print(f"all, {part.sum()} stars: " + " ".join(f"{r:.3f}" for r in ratio))
    assert max(ratio) < 1.1


def test_errors_are_honest(isolated):
    """Pull of 0.95 to 1.1, and the stated error is the bound."""
    part = isolated.stars["mag"] < 19.8
    n, margin = part.sum(), 3 / np.sqrt(2 * part.sum())
    for k, name in enumerate(NAMES):
        pull = spread(isolated.offset[part, k] / isolated.error[part, k])
        stated = np.median(isolated.error[part, k] / isolated.bound[part, k])
        print(f"{name}: pull {pull:.3f} of {n} stars, stated error over bound {stated:.3f}")
        assert 0.95 * (1 - margin) < pull < 1.1 * (1 + margin)
        assert stated == pytest.approx(1, abs=0.05)


def test_bias(isolated):
    """< 2 mmag at S/N > 100; < 0.1 sigma at S/N 5-20 after selection is accounted for.

    The catalogue lists what has S/N > 4.5 or so: the expectation of a normal variable that is cut there is taken off.
    """
    mag, snr = isolated.stars["mag"], isolated.stars["flux"] / isolated.bound[:, 0]
    pull = isolated.offset[:, 0] / isolated.bound[:, 0]
    bright = snr > 100
    bias = MMAG * np.median(isolated.offset[bright, 0] / isolated.stars["flux"][bright])
    slope = np.polyfit(mag[bright], isolated.offset[bright, 0] / isolated.stars["flux"][bright], 1)[0]
    print(f"S/N > 100: bias {bias:.2f} mmag, {MMAG * slope:.2f} mmag per mag, {bright.sum()} stars")
    assert abs(bias) < 2 and abs(MMAG * slope) < 2
    faint = (snr > 5) & (snr < 20)
    cut = 4.5 - snr[faint]
    selected = pull[faint] - np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi) / _upper_tail(cut)
    error = 1 / np.sqrt(faint.sum())
    print(
        f"S/N 5-20, {faint.sum()} stars: bias {pull[faint].mean():.3f} sigma, {selected.mean():.3f} after selection, "
        f"+-{error:.3f}"
    )
    assert abs(selected.mean()) < 0.1 + 2 * error


def _upper_tail(z):
    return ndtr(-z)


def test_bright_floor(isolated):
    """<= 4 mmag at 14-16 mag, without a surface; what varies smoothly over the image is within 0.1%."""
    part = isolated.stars["mag"] < 16
    residual = MMAG * isolated.offset[part, 0] / isolated.stars["flux"][part]
    limit = MMAG * np.sqrt(np.mean((isolated.bound[part, 0] / isolated.stars["flux"][part]) ** 2))
    raw = np.sqrt(np.mean(residual**2))
    u, v = unit_place(isolated.stars[part], SHAPE)
    terms = np.stack([u**i * v**j for i in range(3) for j in range(3 - i)], axis=1)
    surface = terms @ np.linalg.lstsq(terms, residual, rcond=None)[0]
    print(f"14-16 mag: rms {raw:.2f} mmag, photon limit {limit:.2f}, surface of degree 2 {surface.std():.2f}")
    assert raw < 4.0
    assert surface.std() < 1.1


def test_chi_and_sharp_of_stars(isolated):
    part = isolated.stars["mag"] < 19
    assert np.median(isolated.fits["chi"][part]) == pytest.approx(1, abs=0.05)
    assert abs(np.median(isolated.fits["sharp"][part])) < 0.01


def test_psf_model(isolated, psf):
    """<= 0.4% of the peak per pixel, after flux and centre are those of the model; at 25 places off the very rim."""
    worst, rms, _ = psf_errors(isolated.last.fits.psf, psf)
    assert np.median(worst) < 0.004 and rms < 0.004
    assert max(worst) < 0.008


@pytest.mark.xfail(reason="1.2 to 1.6 mmag from 600 stars")
def test_psf_keeps_its_flux_over_the_image(isolated, psf):
    """To 0.1%, rms."""
    assert MMAG * np.std(psf_errors(isolated.last.fits.psf, psf)[2]) < 1.1


def psf_errors(model, psf):
    """Worst pixel over the peak at each place, rms of all pixels, and flux factor at each place."""
    rng = np.random.default_rng(3)
    grid = np.linspace(40, SHAPE[0] - 41, 5)
    worst, squares, factors = [], [], []
    for x, y in (np.array(np.meshgrid(grid, grid)).reshape(2, -1) + rng.uniform(-0.5, 0.5, (2, 25))).T:
        true, step = psf.stamps(x, y, 8)[0], 0.02
        slopes = [(psf.stamps(x, y, 8, s)[0] - psf.stamps(x, y, 8, -s)[0]) / (2 * step) for s in step * np.eye(2)]
        ours = model.images(np.array([x]), np.array([y]), 8)[0].astype(float)
        terms = np.stack([true.ravel(), *(slope.ravel() for slope in slopes)], axis=1)
        solution = np.linalg.lstsq(terms, ours.ravel(), rcond=None)[0]
        difference = (ours.ravel() - terms @ solution) / ours.max()
        factors.append(solution[0])
        worst.append(np.abs(difference).max())
        squares.append(np.mean(difference**2))
    print(
        f"PSF from {model.n_stars} stars: worst pixel {100 * max(worst):.2f}% of the peak, median of the worst "
        f"{100 * np.median(worst):.2f}%, rms {100 * np.sqrt(np.mean(squares)):.3f}%; flux factor "
        f"{np.mean(factors):.4f}, {MMAG * np.std(factors):.2f} mmag rms over the image"
    )
    return worst, np.sqrt(np.mean(squares)), factors


def test_forced_photometry_below_the_limit(isolated, psf):
    """Stars of 20.5 to 23 mag and empty places: no selection, no bias, pull 1."""
    stars = galsim_sky.isolated_field(psf, 26, (20.5, 23), 21)
    stars["flux"][::3] = 0
    sky = galsim_sky.render(psf, stars, 21)
    level = estimate_background(sky.pix, sky.mask, BackgroundParams())
    places = np.stack([stars["x"], stars["y"]], axis=1)
    images = (sky.pix - level.level, level.rms, sky.mask)
    found = forced_photometry(images, galsim_sky.GAIN_E, isolated.last.fits.psf, places, PsfFitParams())
    pull = (found["flux"] - isolated.factor * stars["flux"]) / found["sigflux"]
    n = len(stars)
    bound = galsim_sky.sky_sigma_dn() / np.sqrt((psf.stamps(512, 512, 8) ** 2).sum()) * isolated.factor
    print(
        f"{n} forced fluxes: pull {pull.std():.3f}, mean {pull.mean():.3f} sigma ({pull[::3].mean():.3f} in empty "
        f"places), error over the bound of a known place {np.median(found['sigflux']) / bound:.3f}"
    )
    assert 0.95 - 3 / np.sqrt(2 * n) < pull.std() < 1.1 + 3 / np.sqrt(2 * n)
    assert abs(pull.mean()) < 0.1 + 2 / np.sqrt(n)
    assert np.median(found["sigflux"]) / bound == pytest.approx(1, abs=0.04)


@pytest.fixture(scope="module")
def dense():
    """60,000 stars per channel."""
    psf = galsim_sky.GalsimPsf(DENSE_SHAPE)
    stars = galsim_sky.star_field(psf, 60_000, 6)
    result = chain(galsim_sky.render(psf, stars, 6, SATURATE_DN))
    return SimpleNamespace(psf=psf, stars=stars, result=result, table=result.fits.table)


def partners(stars, table, radius_pix=1.0, mag=1.0):
    """Row of the table for each star, each row once, brightest star first; -1 without one within radius and 1 mag."""
    tree = cKDTree(np.stack([table["x"], table["y"]], axis=1))
    out, taken = np.full(len(stars), -1), np.zeros(len(table), bool)
    for i in np.argsort(-stars["flux"]):
        rows = tree.query_ball_point((stars["x"][i], stars["y"][i]), radius_pix)
        ratio = np.abs(np.log10(np.maximum(table["flux"][rows], 1e-3) / stars["flux"][i])) * 2.5
        rows = [row for row, r in zip(rows, ratio) if r < mag and not taken[row]]
        if rows:
            distance = np.hypot(table["x"][rows] - stars["x"][i], table["y"][rows] - stars["y"][i])
            out[i] = rows[int(np.argmin(distance))]
            taken[out[i]] = True
    return out


def test_completeness_of_the_dense_field(dense):
    """>= 0.95 at 19-20, >= 0.75 at 20-20.5; matched within 1 px and 1 mag, each source once, all stars counted."""
    row = partners(dense.stars, dense.table)
    found = {}
    for low, high in ((16, 18), (18, 19), (19, 20), (20, 20.5)):
        part = (dense.stars["mag"] >= low) & (dense.stars["mag"] < high)
        found[low] = (row[part] >= 0).mean()
        print(f"{low}-{high} mag: completeness {found[low]:.3f} of {part.sum()} stars")
    assert found[16] > 0.97 and found[18] > 0.97
    assert found[19] >= 0.95
    assert found[20] >= 0.75


def test_spurious_sources_of_the_dense_field(dense):
    """<= 1% have less light of true stars about them than half of their flux; flux at 20-20.5 is right to 50 mmag."""
    near = cKDTree(np.stack([dense.stars["x"], dense.stars["y"]], axis=1)).query_ball_point(
        np.stack([dense.table["x"], dense.table["y"]], axis=1), 1.5
    )
    light = np.array([dense.stars["flux"][rows].sum() for rows in near])
    spurious = (light < 0.5 * dense.table["flux"]).mean()
    print(f"{len(dense.table)} sources, {100 * spurious:.2f}% spurious")
    assert spurious <= 0.01


def test_flux_in_the_dense_field(dense):
    """At 20-20.5 mag the bias is <= 50 mmag; unblended stars have their stated errors."""
    row = partners(dense.stars, dense.table)
    bright = (dense.stars["mag"] < 17) & (row >= 0)
    ratio = np.where(row >= 0, dense.table["flux"][row] / dense.stars["flux"], np.nan)
    ratio /= np.median(ratio[bright])
    part = (dense.stars["mag"] >= 20) & (dense.stars["mag"] < 20.5) & (row >= 0)
    bias = -1000 * 2.5 * np.log10(np.median(ratio[part]))
    brighter = (dense.stars["mag"] < 19) & (row >= 0)
    pull = (ratio - 1)[brighter] * dense.stars["flux"][brighter] / dense.table["sigflux"][row[brighter]]
    width = 1.4826 * np.median(np.abs(pull - np.median(pull)))
    print(f"bias at 20-20.5 mag {bias:.0f} mmag of {part.sum()} stars; pull of stars brighter than 19 mag {width:.2f}")
    assert abs(bias) <= 50
    assert width < 1.6


@pytest.fixture(scope="module")
def mixed(psf):
    """One source in seven is a galaxy: rows are truth, whether its nearest fit passes for a star."""
    stars = galsim_sky.isolated_field(psf, 40, (15, 20), 11)
    stars["galaxy"] = np.random.default_rng(12).random(len(stars)) < 0.15
    sky = galsim_sky.render(psf, stars, 11)
    table = chain(sky).fits.table
    row, _ = nearest(stars["x"], stars["y"], table["x"], table["y"], 1.5)
    print(f"{len(table)} sources for {(~stars['galaxy']).sum()} stars and {stars['galaxy'].sum()} galaxies")
    return stars[row >= 0], is_point_source(table, PointSourceParams())[row[row >= 0]]


def test_stars_among_galaxies_stay_stars(mixed):
    stars, point = mixed
    lost = (~point[~stars["galaxy"]]).mean()
    print(f"{100 * lost:.1f}% of {(~stars['galaxy']).sum()} stars taken for galaxies")
    assert lost < 0.02


def test_galaxies_are_recognised(mixed):
    stars, point = mixed
    for low, high, least in ((15, 18, 0.95), (18, 19, 0.5)):
        part = (stars["mag"] >= low) & (stars["mag"] < high) & stars["galaxy"]
        caught = (~point[part]).mean()
        print(f"{low}-{high} mag: {caught:.2f} of {part.sum()} galaxies recognised")
        assert caught >= least


def test_sparse_fit_is_the_dense_one():
    """Groups of up to six stars within 6 px: the engine's solution and errors against a full matrix."""
    psf = galsim_sky.GalsimPsf((200, 200))
    model = oracle_fit.true_model(psf)
    rng = np.random.default_rng(5)
    centre = np.array(np.meshgrid((40.0, 100.0, 160.0), (40.0, 100.0, 160.0))).reshape(2, -1).T
    stars = np.zeros(6 * len(centre), galsim_sky.STAR_DTYPE)
    stars["x"], stars["y"] = (np.repeat(centre, 6, axis=0) + rng.uniform(-6, 6, (len(stars), 2))).T
    stars["mag"] = rng.uniform(15, 20.2, len(stars))
    stars = galsim_sky.with_flux(stars, psf)
    sky = galsim_sky.render(psf, stars, 5)
    images = (sky.pix - np.float32(400), np.full(sky.pix.shape, galsim_sky.sky_sigma_dn(), np.float32), sky.mask)
    params = PsfPhotParams()
    wide = params.fit.model_copy(update={"window_fwhm": 5.0, "window_edge_sigma": 1e6})  # one size of window
    strict = wide.model_copy(update={"rest_sigma": 1e-3, "tolerance": 1e-6})
    usual, result = (
        photometry_with_psf(
            images, galsim_sky.GAIN_E, model, params.model_copy(update={"fit": fit, "n_last_iterations": n})
        )
        for fit, n in ((wide, params.n_last_iterations), (strict, 40))
    )
    table, half = result.table, int(np.ceil(5 * model.fwhm_pix))
    data, variance = result.scene.data.astype(float), result.scene.variance.astype(float)
    group = cKDTree(centre).query(np.stack([table["x"], table["y"]], axis=1))[1]
    off, errors = [], []
    for k, (x, y) in enumerate(centre):
        x0, y0 = max(int(x) - 30, 0), max(int(y) - 30, 0)
        cut, rows = (slice(y0, y0 + 61), slice(x0, x0 + 61)), np.flatnonzero(group == k)
        ours = np.stack([table["x"] - x0, table["y"] - y0, table["flux"]], axis=1)[rows]
        oracle = oracle_fit.fit_group(
            (data[cut], variance[cut]), galsim_sky.GAIN_E, _moved(model, x0, y0), ours, np.full(len(rows), half), 8
        )
        sigma = np.sqrt(np.diagonal(oracle.covariance, axis1=1, axis2=2))
        stated = np.sqrt(np.stack([table["var_x"], table["var_y"], table["sigflux"] ** 2], axis=1)[rows])
        crowding = 1 - oracle.flux_alone / oracle.covariance[:, 2, 2]
        assert table["crowding"][rows] == pytest.approx(crowding, abs=0.1)
        # The engine takes off what a free position adds to the flux on average, sigma^2 / flux.
        oracle.value[:, 2] -= oracle.flux_alone / oracle.value[:, 2]
        off.append(np.abs(ours - oracle.value) / sigma)
        errors.append(np.abs(stated / sigma - 1))
    off, errors = np.concatenate(off), np.concatenate(errors)
    rest = np.abs(usual.table["flux"] - table["flux"]) / table["sigflux"]
    print(
        f"{len(off)} stars: off by {np.median(off):.1e} sigma (median), {off.max():.1e} (worst); errors by "
        f"{errors.max():.1e}; as the engine leaves off by default, fluxes are {rest.max():.1e} sigma away (worst)"
    )
    assert np.median(off) < 1e-3 and off.max() < 0.01
    assert rest.max() < 0.05
    assert errors.max() < 0.02


def _moved(model, x0, y0):
    return lambda x, y, half: model.images(np.array([x + x0]), np.array([y + y0]), half)[0]


def test_undersampled_stars():
    """FWHM 1.3 px, as the survey's best images have: scatter at 14-15 mag <= 1.1 times the bound."""
    sharp = galsim_sky.GalsimPsf(SHAPE, fwhm_pix=0.7)
    stars = galsim_sky.isolated_field(sharp, 26, (14, 18), 1)
    table = chain(galsim_sky.render(sharp, stars, 1)).fits.table
    row, _ = nearest(stars["x"], stars["y"], table["x"], table["y"], 1.0)
    part = (stars["mag"] < 15) & (row >= 0)
    ratio = table["flux"][row[part]] / stars["flux"][part]
    bound = galsim_sky.cramer_rao(sharp, stars[part])[:, 0] / stars["flux"][part]
    z = (ratio / np.median(ratio) - 1) / bound
    print(f"FWHM 1.3 px, {part.sum()} stars of 14-15 mag: scatter over bound {spread(z):.3f}")
    assert spread(z) < target(1.1, part.sum())
