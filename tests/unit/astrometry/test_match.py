"""Pattern match: pointing errors, contamination, few and many stars, wrong fields, bad columns."""

import numpy as np
import pytest

from tests.unit.astrometry.skyfield import Truth, make_field, map_error_mas
from zsds_hpc.astrometry.geometry import initial_wcs
from zsds_hpc.astrometry.match import (
    Detections,
    MatchParams,
    Reference,
    apply_affine,
    match_catalogue,
    mutual_nearest,
    rematch,
)
from zsds_hpc.astrometry.sphere import separation_deg
from zsds_hpc.core.errors import AlgorithmFailure, BadInput

POINTING = (55.0, 33.0)


def prior_of(truth):
    return initial_wcs(truth.geometry(), *truth.pointing)


def figures_of(field, match):
    """Share of right pairs, and of the stars that could be matched."""
    right = field.det_id[match.i_det] == field.ref_id[match.i_ref]
    possible = np.isin(field.det_id, field.ref_id).sum()
    return right.mean(), right.sum() / possible


@pytest.mark.parametrize("n_stars, contamination", [(20, 0.5), (100, 0.5), (100, 0.8), (1500, 0.5), (6000, 0.3)])
@pytest.mark.parametrize("error", [(17.0, -12.0), (-62.0, 61.0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_stars_are_matched(n_stars, contamination, error, seed):
    truth = Truth(POINTING, error_arcsec=error, rotation_deg=0.08, scale=1.0008, bend_arcsec=0.02)
    field = make_field(truth, n_stars, contamination, seed)
    prior = prior_of(truth)
    match = match_catalogue(field.detections, field.reference, prior)
    purity, completeness = figures_of(field, match)
    assert purity >= 0.99
    assert completeness >= 0.9
    assert len(set(match.i_ref)) == len(match.i_det) == match.n_matches
    moved = 3600 * separation_deg(*prior.crval, *truth.to_sky(*prior.crpix))
    assert np.hypot(*match.offset_arcsec) == pytest.approx(moved, abs=0.2)
    assert match.scale == pytest.approx(1.0008, abs=2e-4)
    assert match.peak_significance > 15


def test_a_hundred_thousand_stars():
    truth = Truth(POINTING)
    field = make_field(truth, 100_000, 0.1, seed=5, depth=1.0)
    match = match_catalogue(field.detections, field.reference, prior_of(truth))
    purity, _ = figures_of(field, match)
    assert purity > 0.99
    assert 5000 < match.n_matches <= 10_000
    assert map_error_mas(match.wcs, truth)[0] < 25.0  # the linear map comes within a fortieth of a pixel


@pytest.mark.parametrize("pointing", [(0.002, 5.0), (200.0, 84.0), (10.0, -88.5)])
def test_everywhere_on_the_sky(pointing):
    truth = Truth(pointing, rotation_deg=0.02)
    field = make_field(truth, 400, 0.3, seed=2)
    match = match_catalogue(field.detections, field.reference, prior_of(truth), MatchParams(rotation_error_deg=1.0))
    assert figures_of(field, match)[1] > 0.95


def test_reference_of_far_more_sky_than_the_image():
    """Stars of the whole sky, as a plain file may hold them, do no harm."""
    truth = Truth(POINTING)
    field = make_field(truth, 300, 0.2)
    rng = np.random.default_rng(0)
    n = 20_000
    far = (rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(8, 12, n), np.ones(n))
    reference = Reference(*(np.append(a, b) for a, b in zip(field.reference, far, strict=True)))
    match = match_catalogue(field.detections, reference, prior_of(truth))
    assert figures_of(field, match)[1] > 0.9


@pytest.mark.parametrize("n_stars", [20, 300, 5000])
@pytest.mark.parametrize("seed", range(5))
def test_wrong_field_fails_with_figures(n_stars, seed):
    truth, other = Truth(POINTING), Truth((POINTING[0] + 2.0, POINTING[1]))
    detections = make_field(other, n_stars, seed=seed).detections
    reference = make_field(truth, n_stars, seed=seed + 100).reference
    with pytest.raises(AlgorithmFailure) as failure:
        match_catalogue(detections, reference, prior_of(truth))
    figures = failure.value.figures
    assert figures["n_detections"] == len(detections.x)
    assert figures["n_matches"] == 0 or figures["n_matches"] < 0.1 * n_stars + 8
    assert {"peak_significance", "n_reference"} <= figures.keys()


def test_pointing_error_beyond_the_search_fails():
    truth = Truth(POINTING, error_arcsec=(300.0, 0.0))
    field = make_field(truth, 500)
    with pytest.raises(AlgorithmFailure, match="significant"):
        match_catalogue(field.detections, field.reference, prior_of(truth))
    wide = MatchParams(pointing_error_arcsec=400.0)
    assert match_catalogue(field.detections, field.reference, prior_of(truth), wide).n_matches > 400


def test_trails_and_doubles_do_not_match_by_themselves():
    """False detections in columns, as bleeding makes them, against an unrelated field."""
    rng = np.random.default_rng(4)
    columns = np.repeat(rng.uniform(0, 3071, 15), 20)
    y = np.concatenate([rng.uniform(0, 2900) + 3.0 * np.arange(20) for _ in range(15)])
    trails = Detections(columns, y, rng.uniform(-12, -9, 300), np.full(300, 0.1))
    truth = Truth(POINTING)
    with pytest.raises(AlgorithmFailure):
        match_catalogue(trails, make_field(truth, 300).reference, prior_of(truth))


def test_order_of_rows_does_not_matter():
    truth = Truth(POINTING)
    field = make_field(truth, 500, 0.3)
    first = match_catalogue(field.detections, field.reference, prior_of(truth))
    shuffled = np.random.default_rng(1).permutation(len(field.detections.x))
    again = match_catalogue(Detections(*(c[shuffled] for c in field.detections)), field.reference, prior_of(truth))
    pairs = set(zip(first.i_det.tolist(), first.i_ref.tolist(), strict=True))
    assert pairs == set(zip(shuffled[again.i_det].tolist(), again.i_ref.tolist(), strict=True))


def test_rows_that_are_not_finite_are_left_out():
    truth = Truth(POINTING)
    field = make_field(truth, 300)
    x, mag = field.detections.x.copy(), field.detections.mag.copy()
    x[:50], mag[50:100] = np.nan, np.nan
    ra = field.reference.ra.copy()
    ra[:20] = np.inf
    match = match_catalogue(field.detections._replace(x=x, mag=mag), field.reference._replace(ra=ra), prior_of(truth))
    assert match.i_det.min() >= 50
    assert match.i_ref.min() >= 20
    assert match.n_matches > 200


@pytest.mark.parametrize("what", ["detections", "reference"])
def test_nothing_to_match(what):
    truth = Truth(POINTING)
    field = make_field(truth, 50)
    given = {"detections": field.detections, "reference": field.reference}
    empty = type(given[what])(*(column[:0] for column in given[what]))
    short = given[what]._replace(mag=given[what].mag[:-1])
    unusable = type(given[what])(*(np.full_like(column, np.nan) for column in given[what]))
    for bad in (empty, short, unusable):
        with pytest.raises(BadInput, match=what):
            match_catalogue(*(given | {what: bad}).values(), prior_of(truth))


def test_rematch_pairs_within_the_errors():
    truth = Truth(POINTING, error_arcsec=(0.0, 0.0), rotation_deg=0.0, scale=1.0)
    field = make_field(truth, 2000, 0.3)
    i, j = rematch(field.detections, field.reference, prior_of(truth), 0.001)
    right = field.det_id[i] == field.ref_id[j]
    assert right.mean() > 0.999
    assert right.sum() > 0.99 * np.isin(field.det_id, field.ref_id).sum()


def test_affine_keeps_the_reference_pixel():
    truth = Truth(POINTING)
    prior = prior_of(truth)
    turn = np.radians(0.05)
    matrix = 1.001 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shift = np.array([30.0, -20.0])
    moved = apply_affine(prior, matrix, shift)
    assert moved.crpix.tolist() == prior.crpix.tolist()
    x, y = np.array([1535.5, 1000.0]), np.array([1539.5, 2000.0])
    expected = prior.pixel_to_sky(*(matrix @ np.stack([x, y]) + shift[:, None]))
    difference = 3.6e6 * (np.stack(moved.pixel_to_sky(x, y)) - np.stack(expected))
    assert np.abs(difference[:, 0]).max() < 0.01  # mas
    assert np.abs(difference[:, 1]).max() < 50.0  # the distortion moved along with the image


def test_mutual_nearest_against_brute_force():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 100, (300, 2)), rng.uniform(0, 100, (400, 2))
    distance = np.hypot(*(first[:, None] - second[None]).transpose(2, 0, 1))
    expected = {
        (i, int(distance[i].argmin()))
        for i in range(300)
        if distance[:, distance[i].argmin()].argmin() == i and distance[i].min() < 3.0
    }
    i, j, found = mutual_nearest(first, second, 3.0)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected
    np.testing.assert_allclose(found, distance[i, j])
    assert len(mutual_nearest(first[:0], second, 3.0)[0]) == 0
