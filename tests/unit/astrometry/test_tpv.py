"""TPV against astropy.wcs (wcslib), and its inverse, scale, cards and bad headers."""

import numpy as np
import pytest
from astropy.wcs import WCS

from zsds_hpc.astrometry.sphere import separation_deg
from zsds_hpc.astrometry.tpv import N_TERMS, POWERS, RADIAL, TPV, coefficient_matrix, pv_terms
from zsds_hpc.core.errors import BadInput


def random_tpv(degree=7, radial=False, centre=(57.997, 35.746), seed=3):
    """A distorted TPV with terms of the size of an arcsecond at the edge."""
    rng = np.random.default_rng(seed)
    pv = np.zeros((2, N_TERMS))
    pv[:, 1] = 1.0
    for j, powers in POWERS.items():
        if sum(powers) <= degree:
            pv[:, j] += rng.normal(0, 3e-4 / 0.43 ** sum(powers), 2)
    for j, power in RADIAL.items():
        pv[:, j] = rng.normal(0, 1e-4 / 0.43**power, 2) if radial else 0.0
    cd = np.array([[-2.81e-4, -7.7e-6], [7.7e-6, -2.81e-4]])
    return TPV(np.array(centre), np.array([1535.5, 1539.5]), cd, pv[0], pv[1])


def pixels(n=2000):
    rng = np.random.default_rng(1)
    return rng.uniform(0, 3071, n), rng.uniform(0, 3079, n)


def as_astropy(wcs):
    return WCS({key: value for key, value, _ in wcs.to_cards()})


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("radial", [False, True])
def test_forward_agrees_with_wcslib(degree, radial):
    wcs = random_tpv(degree, radial)
    x, y = pixels()
    ra, dec = wcs.pixel_to_sky(x, y)
    expected = as_astropy(wcs).all_pix2world(x, y, 0)
    assert separation_deg(ra, dec, *expected).max() < 1e-9
    assert wcs.degree == degree


@pytest.mark.parametrize("centre", [(57.997, 35.746), (0.05, 0.0), (359.999, -60.0), (77.0, 89.9), (77.0, -90.0)])
@pytest.mark.parametrize("radial", [False, True])
def test_inverse_is_exact(centre, radial):
    wcs = random_tpv(4, radial, centre)
    x, y = pixels()
    back = wcs.sky_to_pixel(*wcs.pixel_to_sky(x, y))
    assert np.abs(back - np.stack([x, y])).max() < 1e-6


def test_cards_round_trip():
    wcs = random_tpv(4, True)
    again = TPV.from_cards({key: value for key, value, _ in wcs.to_cards()})
    for name in ("crval", "crpix", "cd", "pv1", "pv2"):
        np.testing.assert_array_equal(getattr(again, name), getattr(wcs, name))
    assert {key: value for key, value, _ in wcs.to_cards()}["CRPIX1"] == 1536.5


def test_scale_is_the_root_of_the_solid_angle():
    wcs = random_tpv(3, True)
    x, y = pixels(50)
    h = 0.5
    corners = [wcs.pixel_to_sky(x + dx, y + dy) for dx, dy in ((-h, -h), (h, -h), (h, h), (-h, h))]
    ra, dec = np.array([c[0] for c in corners]), np.array([c[1] for c in corners])
    east, north = (ra - ra[0]) * np.cos(np.radians(dec.mean(axis=0))), dec - dec[0]
    area = 0.5 * np.abs(sum(east[k] * north[(k + 1) % 4] - east[(k + 1) % 4] * north[k] for k in range(4)))
    assert wcs.pixel_scale_arcsec(x, y) == pytest.approx(3600 * np.sqrt(area), rel=1e-5)


def test_scale_of_a_plain_tangent_plane_shrinks_outwards():
    pv = np.eye(N_TERMS)[1]
    wcs = TPV(np.array([10.0, 0.0]), np.zeros(2), np.eye(2) * 0.001, pv, pv)
    far = 20.0  # degrees along the plane
    angle = np.arctan(np.radians(far))
    expected = 3.6 * np.cos(angle) ** 1.5
    assert wcs.pixel_scale_arcsec(far / 0.001, 0.0) == pytest.approx(expected, rel=1e-12)


def test_scalars_arrays_and_shapes():
    wcs = random_tpv(3)
    ra, dec = wcs.pixel_to_sky(10.0, 20)
    assert np.ndim(ra) == 0
    grid = wcs.pixel_to_sky(np.full((3, 4), 10.0), 20.0)
    assert grid[0].shape == (3, 4)
    assert (grid[0] == ra).all() and (grid[1] == dec).all()
    assert wcs.pixel_to_sky([], [])[0].shape == (0,)
    long = wcs.pixel_to_sky(np.full(20001, 10.0), np.full(20001, 20.0))
    assert (long[0] == ra).all()


def test_positions_without_a_pixel_are_nan():
    wcs = random_tpv(3)
    x, y = wcs.sky_to_pixel([wcs.crval[0] + 180.0, wcs.crval[0], np.nan], [-wcs.crval[1], wcs.crval[1], 0.0])
    assert np.isnan([x[0], y[0], x[2]]).all()
    assert abs(x[1] - 1535.5) < 5


def test_folded_polynomial_gives_nan():
    pv = np.zeros(N_TERMS)
    pv[1], pv[4] = 1.0, -1.0  # xi - xi^2 never exceeds 0.25
    wcs = TPV(np.zeros(2), np.zeros(2), np.eye(2) * 1e-3, pv, np.eye(N_TERMS)[1])
    x, _ = wcs.sky_to_pixel([0.9, 0.1], [0.0, 0.0])
    assert np.isnan(x[0]) and np.isfinite(x[1])


def test_matrix_round_trip_swaps_the_axes():
    pv = random_tpv(5).pv2
    np.testing.assert_array_equal(pv_terms(coefficient_matrix(pv, 2), 2), pv)
    assert coefficient_matrix(pv, 2)[0, 1] == pv[1]
    assert coefficient_matrix(pv, 1)[1, 0] == pv[1]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"CTYPE1": "RA---SIN"}, "CTYPE1"),
        ({"CUNIT2": "arcsec"}, "CUNIT2"),
        ({"CRVAL1": None}, "CRVAL1"),
        ({"CRVAL2": float("nan")}, "CRVAL2"),
        ({"CD1_2": "x"}, "CD1_2"),
        ({"PV1_7": True}, "PV1_7"),
        ({"CD1_1": 0.0, "CD1_2": 0.0}, "singular"),
    ],
)
def test_bad_headers_name_the_card(change, named):
    cards = {key: value for key, value, _ in random_tpv(3).to_cards()} | change
    with pytest.raises(BadInput, match=named):
        TPV.from_cards(cards)


def test_arrays_are_copied_and_read_only():
    crval = np.array([10.0, 20.0])
    pv = np.eye(N_TERMS)[1]
    wcs = TPV(crval, np.zeros(2), np.eye(2), pv, pv)
    crval[0] = 99.0
    assert wcs.crval[0] == 10.0
    with pytest.raises(ValueError):
        wcs.cd[0, 0] = 2.0
