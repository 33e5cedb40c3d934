"""The search for streaks as a whole: what is found, what is not, and what the table says."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.subtraction.streakscene import (
    MAGZP,
    SIGMA,
    difference_of,
    ends_of,
    flux_at,
    make_psf,
    masked,
    trail_light,
    wcs_of,
)  # fmt: skip
from zsds_hpc.archive.models import load_model
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import SATURATED, TRACK
from zsds_hpc.subtraction import streak_avoid
from zsds_hpc.subtraction.images import SOURCE_DTYPE
from zsds_hpc.subtraction.streak_find import filtered_map, line_noise, line_seeds
from zsds_hpc.subtraction.streak_model import StreakModel, feature_matrix, kinds
from zsds_hpc.subtraction.streak_table import COLUMNS, REASONS, STREAK_DTYPE, StreakParams
from zsds_hpc.subtraction.streaks import Streaks, find_streaks

SHAPE = (560, 600)
WCS = wcs_of()
TRAILS = [
    ends_of(90, 80, 7, 30), ends_of(250, 90, 12, -70), ends_of(420, 90, 30, 5), ends_of(120, 250, 60, 88),
    ends_of(300, 260, 110, -40), ends_of(480, 300, 25, 50), ends_of(250, 450, 250, 12), ends_of(520, 480, 9, 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def psf():
    return make_psf(SHAPE, fwhm=2.1)


@pytest.fixture(scope="module")
def model():
    file = load_model("streaks")
    return StreakModel(file.text, tuple(file.card["features"]))


@pytest.fixture(scope="module")
def scene(psf):
    """Trails of S/N 13."""
    lights = [trail_light(psf, ends) for ends in TRAILS]
    fluxes = [flux_at(light, 13) for light in lights]
    return difference_of(psf, sum(f * light for f, light in zip(fluxes, lights)), 1), fluxes


@pytest.fixture(scope="module")
def found(scene, model):
    return find_streaks(scene[0], WCS, None, model)


def row_of(table, ends):
    """The row whose middle is next to that of a trail."""
    x, y = (table["x1"] + table["x2"]) / 2, (table["y1"] + table["y2"]) / 2
    distance = np.hypot(x - (ends[0] + ends[2]) / 2, y - (ends[1] + ends[3]) / 2)
    k = int(np.argmin(distance))
    return table[k], float(distance[k])


def test_every_trail_is_found_once_and_is_real(scene, found):
    assert len(found.vetted) == len(TRAILS)
    for ends, flux in zip(TRAILS, scene[1]):
        row, distance = row_of(found.vetted, ends)
        length = np.hypot(ends[2] - ends[0], ends[3] - ends[1])
        assert distance < 3 + 0.04 * length
        assert row["length"] == pytest.approx(length, abs=5 * float(row["siglength"]))
        assert row["flux"] == pytest.approx(flux, abs=4 * float(row["sigflux"]))
        assert row["snr"] == pytest.approx(13, abs=4)
        angle = np.degrees(np.arctan2(ends[3] - ends[1], ends[2] - ends[0]))
        assert abs((row["angle"] - angle + 90) % 180 - 90) < 5 * row["sigangle"]
        assert row["kind"] == b"asteroid"


def test_table_is_consistent(found):
    table = found.table
    assert table.dtype == STREAK_DTYPE
    assert tuple(COLUMNS) == STREAK_DTYPE.names
    assert np.all(np.diff(table["snr"]) <= 0)
    assert np.all(table["x1"] <= table["x2"])
    assert table["length"] == pytest.approx(np.hypot(table["x2"] - table["x1"], table["y2"] - table["y1"]), rel=1e-5)
    for end in "12":
        ra, dec = WCS.pixel_to_sky(table[f"x{end}"], table[f"y{end}"])
        assert table[f"ra{end}"] == pytest.approx(ra)
        assert table[f"dec{end}"] == pytest.approx(dec)
    assert table["mag"] == pytest.approx(MAGZP - 2.5 * np.log10(table["flux"]), abs=1e-4)
    assert set(found.n_rejected) == set(REASONS)
    numbers = [table[name] for name in STREAK_DTYPE.names if name != "kind"]
    assert all(np.isfinite(values).all() for values in numbers)


def test_same_bits_again_and_inputs_untouched(scene, found, model):
    before = [a.copy() for a in (scene[0].pix, scene[0].sigma, scene[0].mask)]
    again = find_streaks(scene[0], WCS, None, model)
    assert again.table.tobytes() == found.table.tobytes()
    assert again.n_rejected == found.n_rejected
    for old, new in zip(before, (scene[0].pix, scene[0].sigma, scene[0].mask)):
        assert old.tobytes() == new.tobytes()


def test_without_a_model_there_are_no_scores(scene, found):
    plain = find_streaks(scene[0], WCS)
    assert np.isnan(plain.table["score"]).all()
    assert len(plain.vetted) == len(plain.table) == len(found.table)


def test_noise_and_point_sources_are_no_streaks(psf, model):
    rng = np.random.default_rng(2)
    light = np.zeros(SHAPE)
    for x, y, snr in zip(*rng.uniform(20, 540, (2, 60)), np.exp(rng.uniform(np.log(5), np.log(300), 60))):
        point = trail_light(psf, np.array([x, y, x, y]))
        light += flux_at(point, snr) * point
    found = find_streaks(difference_of(psf, light, 3), WCS, None, model)
    assert len(found.vetted) == 0
    assert found.n_rejected["pointlike"] > 30
    for seed in range(3):
        assert len(find_streaks(difference_of(psf, np.zeros(SHAPE), seed + 50), WCS, None, model).vetted) == 0


def test_hits_dipoles_and_columns_are_not_real(psf, model):
    rng = np.random.default_rng(4)
    light = np.zeros(SHAPE)
    for x, y in rng.integers(30, 530, (25, 2)):
        n = int(rng.integers(5, 25))
        if rng.random() < 0.5:
            light[y, x : x + n] += rng.uniform(60, 400)
        else:
            steps = np.arange(n)
            light[y + steps, x + steps // 2] += rng.uniform(60, 400)
    for x, y in rng.uniform(30, 530, (12, 2)):
        light += 30000 * (trail_light(psf, np.array([x, y, x, y])) - trail_light(psf, np.array([x, y, x, y]) + 0.15))
    light[:, 571] += 20.0
    found = find_streaks(difference_of(psf, light, 5), WCS, None, model)
    assert len(found.vetted) <= 1


def test_satellites_are_told(psf):
    crossing, dashes = ends_of(300, 280, 900, 35), [ends_of(120 + 90 * k, 520 - 8 * k, 40, -5.1) for k in range(4)]
    lights = [trail_light(psf, ends) for ends in (crossing, *dashes)]
    d = difference_of(psf, sum(flux_at(light, snr) * light for light, snr in zip(lights, (80, 25, 25, 25, 25))), 6)
    table = find_streaks(d, WCS).table
    row, distance = row_of(table, crossing)
    assert distance < 10
    assert row["n_edges"] == 2
    assert row["length"] > 500
    assert len(table) >= 5
    assert np.all(table["kind"] == b"satellite")


def test_light_beside_masked_tracks_is_left_out_and_an_asteroid_elsewhere_not(psf):
    track, beside, asteroid = ends_of(300, 280, 900, 60), ends_of(330, 280, 700, 60), ends_of(100, 400, 60, -20)
    lights = [trail_light(psf, ends) for ends in (track, beside, asteroid)]
    d = difference_of(psf, sum(flux_at(light, snr) * light for light, snr in zip(lights, (400, 300, 20))), 7)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    across = (x - 300) * np.sin(np.radians(60)) - (y - 280) * np.cos(np.radians(60))
    found = find_streaks(masked(d, np.abs(across) < 7, TRACK), WCS)
    assert len(found.table) == 1
    assert row_of(found.table, asteroid)[1] < 4
    assert found.n_rejected["track"] > 0


def test_short_track_is_an_asteroid(psf):
    ends = ends_of(300, 280, 270, 25)
    light = trail_light(psf, ends)
    d = difference_of(psf, flux_at(light, 60) * light, 8)
    where = light > 1e-3 * light.max()
    table = find_streaks(masked(d, where, TRACK), WCS).table
    row, distance = row_of(table, ends)
    assert distance < 3
    assert row["snr"] == pytest.approx(60, abs=6)
    assert row["kind"] == b"asteroid"


def test_wings_of_saturated_stars_are_left_out(psf):
    d = difference_of(psf, 3e6 * trail_light(psf, np.array([300.0, 280, 300, 280])), 9)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    d = masked(d, np.hypot(x - 300, y - 280) < 7, SATURATED)
    assert len(find_streaks(d, WCS).table) == 0


def test_unusable_images_give_nothing(psf):
    d = difference_of(psf, np.zeros(SHAPE), 10)
    dark = replace(d, pix=np.zeros(SHAPE, np.float32), sigma=np.full(SHAPE, np.inf, np.float32))
    assert len(find_streaks(dark, WCS).table) == 0
    nans = d.pix.copy()
    nans[100:300, 200:400] = np.nan
    assert len(find_streaks(replace(d, pix=nans), WCS).table) == 0
    with pytest.raises(BadInput, match="differ in shape"):
        find_streaks(replace(d, sigma=d.sigma[:-1]), WCS)


def test_small_image(psf):
    small = make_psf((40, 50), fwhm=2.1)
    light = trail_light(small, ends_of(25, 20, 15, 30))
    table = find_streaks(difference_of(small, flux_at(light, 25) * light, 11), WCS).table
    assert len(table) == 1


def test_number_of_places_is_limited(scene):
    found = find_streaks(scene[0], WCS, StreakParams(max_seeds=2))
    assert len(found.table) <= 4
    assert found.n_rejected["unseen"] > 0


def test_reference_source_on_the_line_is_seen(scene):
    sources = np.zeros(2, SOURCE_DTYPE)
    sources["x"], sources["y"], sources["flux"] = (300, 90), (260, 80), (3 * scene[1][4], 1e5)
    table = find_streaks(replace(scene[0], sources=sources), WCS).table
    row = row_of(table, TRAILS[4])[0]
    assert row["refdist"] < 2
    assert row["refratio"] == pytest.approx(np.log10(3), abs=0.2)
    assert row_of(table, TRAILS[6])[0]["refdist"] == 99


def test_line_noise_is_that_of_the_lines_of_noise():
    pix = np.random.default_rng(12).normal(0, SIGMA, (1200, 1200)).astype(np.float32)
    image = filtered_map(pix, np.full_like(pix, SIGMA), 2.0, StreakParams())
    per_sigma = line_noise(image.lags)
    assert image.bins.std() == pytest.approx(1, abs=0.02)
    for level, height in ((2, 8), (4, 32)):
        strips = image.bins[: 576 // height * height].reshape(-1, height, 600)
        assert strips.sum(axis=1).std() * per_sigma[level, 0] == pytest.approx(1, abs=0.06)
        rising = sum(strips[:, k, k : 600 - height + k] for k in range(height))
        assert rising.std() * per_sigma[level, height - 1] == pytest.approx(1, abs=0.06)
    assert len(line_seeds(image, StreakParams())) < 8


def test_features_do_not_depend_on_place_or_direction(found):
    names = feature_matrix(found.table)
    assert not {"x1", "y1", "angle", "ra1"} & set(names)
    assert all(np.isfinite(column).all() and column.shape == (len(found.table),) for column in names.values())


def test_model_refuses_what_is_none():
    with pytest.raises(BadInput, match="streak model"):
        StreakModel("tree of nothing", ("snr",)).score(np.zeros(2, STREAK_DTYPE))
    with pytest.raises(BadInput, match="unknown features"):
        StreakModel("", ("no_such",)).score(np.zeros(2, STREAK_DTYPE))


def test_model_is_small_and_scores_nothing_quietly(model):
    assert len(model.text) < 200_000
    assert model.score(np.zeros(0, STREAK_DTYPE)).shape == (0,)


def test_kinds_by_rule():
    table = np.zeros(5, STREAK_DTYPE)
    table["length"] = 100, 400, 100, 100, 200
    table["track"] = 0, 0, 0.5, 0, 0
    table["n_inline"] = 0, 0, 0, 2, 0
    table["n_edges"] = 1, 0, 0, 0, 1
    assert kinds(table, StreakParams()).tolist() == [b"asteroid"] + 4 * [b"satellite"]


def test_vetted_keeps_rows_without_a_score():
    table = np.zeros(3, STREAK_DTYPE)
    table["score"] = 0.9, 0.1, np.nan
    assert Streaks(table, {}, 0.5).vetted["score"].tolist()[0] == pytest.approx(0.9)
    assert len(Streaks(table, {}, 0.5).vetted) == 2


def test_tracks_of_a_mask_and_the_band_between_parallel_ones():
    mask = np.zeros((800, 900), np.int16)
    for offset in (0, 50):
        for y in range(800):
            mask[y, 300 + offset + y // 8 : 312 + offset + y // 8] = TRACK
    mask[600:604, 700:860] = TRACK
    tracks = streak_avoid.masked_tracks(mask, 360)
    assert len(tracks.lines) == 3
    assert tracks.lines[:2, 3] == pytest.approx(6, abs=1.5)
    assert np.degrees(tracks.lines[0, 2]) % 180 == pytest.approx(np.degrees(np.arctan2(8, 1)), abs=1)
    assert len(tracks.short) == 1
    rows, columns = tracks.short[0]
    assert rows.start <= 600
    assert columns.stop >= 860
