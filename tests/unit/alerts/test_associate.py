"""Association of candidates, each against the obvious slow way."""

import numpy as np
import pytest

from zsds_hpc.alerts import associate
from zsds_hpc.alerts.associate import MatchParams
from zsds_hpc.archive.refcats import GAIA_DTYPE, PS1_DTYPE

PARAMS = MatchParams()


def haversine_arcsec(ra1, dec1, ra2, dec2):
    ra1, dec1, ra2, dec2 = map(np.radians, (ra1, dec1, ra2, dec2))
    half = np.sin((dec2 - dec1) / 2) ** 2 + np.cos(dec1) * np.cos(dec2) * np.sin((ra2 - ra1) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600


def field(n, seed, size_arcsec=60.0, centre=(0.0, 70.0)):
    """Positions across right ascension zero."""
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(-size_arcsec / 2, size_arcsec / 2, (2, n)) / 3600.0
    return (centre[0] + east / np.cos(np.radians(centre[1]))) % 360.0, centre[1] + north


@pytest.mark.parametrize("centre", [(0.0, 70.0), (180.0, -5.0), (33.0, 89.999)])
def test_pairs_against_brute_force(centre):
    one, other = field(80, 1, centre=centre), field(300, 2, centre=centre)
    pairs = associate.pairs_within(*one, *other, 4.0)
    wanted = []
    for i in range(80):
        away = haversine_arcsec(one[0][i], one[1][i], *other)
        wanted += [(i, away[j], j) for j in np.flatnonzero(away <= 4.0)]
    wanted.sort()
    assert len(wanted) > 50
    assert [(i, j) for i, _, j in wanted] == list(zip(pairs.first.tolist(), pairs.second.tolist()))
    np.testing.assert_allclose(pairs.arcsec, [away for _, away, _ in wanted], atol=1e-6)


def test_no_pairs_of_nothing():
    one = field(3, 1)
    for first, second in ((one, ([], [])), (([], []), one), (([], []), ([], []))):
        pairs = associate.pairs_within(*map(np.array, first), *map(np.array, second), 2.0)
        assert len(pairs.first) == len(pairs.second) == len(pairs.arcsec) == 0


def slow_objects(ra, dec, known, earlier, radius):
    """Object of each candidate, one after the other: ("known", k), ("earlier", k) or ("new", founder)."""
    founders, found = [], []
    for i in range(len(ra)):
        away = {"known": haversine_arcsec(ra[i], dec[i], *known), "earlier": haversine_arcsec(ra[i], dec[i], *earlier)}
        there = [(kind, int(each.argmin())) for kind, each in away.items() if each.min() <= radius]
        if there:
            found.append(there[0])
            continue
        near = [(haversine_arcsec(ra[i], dec[i], ra[j], dec[j]), j) for j in founders]
        near = [each for each in near if each[0] <= radius]
        found.append(("new", min(near)[1] if near else i))
        if not near:
            founders.append(i)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_objects_against_brute_force(seed):
    ra, dec = field(150, seed, 40.0)
    known, earlier = field(60, seed + 100, 40.0), field(50, seed + 200, 40.0)
    member = associate.find_objects((ra, dec), known, earlier, 1.5)
    found = [
        ("known", k) if k >= 0 else ("earlier", e) if e >= 0 else ("new", f)
        for k, e, f in zip(member.known, member.earlier, member.founder)
    ]
    wanted = slow_objects(ra, dec, known, earlier, 1.5)
    assert found == wanted
    kinds = {"follower" if kind == "new" and index != i else kind for i, (kind, index) in enumerate(wanted)}
    assert kinds == {"known", "earlier", "new", "follower"}


def test_dipole_is_one_object_and_a_chain_is_not():
    ra, dec = np.full(4, 10.0), 20.0 + np.array([0.0, 1.0, 2.0, 3.0]) / 3600.0
    nothing = np.zeros(0), np.zeros(0)
    member = associate.find_objects((ra, dec), nothing, nothing, 1.5)
    assert member.founder.tolist() == [0, 0, 2, 2] and (member.known == -1).all() and (member.earlier == -1).all()


def test_summarise():
    first = np.array([0, 2, 2, 0])
    history = associate.summarise(4, first, [1, 5, 1, 2], [10.0, 3.0, 8.0, 4.0], [10.0, 7.0, 8.0, 6.0])
    assert history.n.tolist() == [3, 0, 6, 0]
    assert (history.jd_first[[0, 2]].tolist(), history.jd_last[[0, 2]].tolist()) == ([4.0, 3.0], [10.0, 8.0])


@pytest.mark.parametrize("turn", [0.0, 33.0])
@pytest.mark.parametrize("centre", [(0.01, 30.0), (120.0, -88.5)])
def test_coverage_against_the_plane(turn, centre):
    """In the tangent plane of an image's middle great circles are straight: there the box is exact."""
    rng = np.random.default_rng(3)
    half, angle = 0.43, np.radians(turn)
    box = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = rng.uniform(-0.8, 0.8, (500, 2))

    def on_sky(plane):
        xi, eta = np.radians(plane @ turned.T).T
        d0 = np.radians(centre[1])
        down = np.cos(d0) - eta * np.sin(d0)
        ra = np.degrees(np.arctan2(xi, down)) + centre[0]
        dec = np.degrees(np.arctan2(np.sin(d0) + eta * np.cos(d0), np.hypot(xi, down)))
        return ra % 360.0, dec

    ra, dec = on_sky(points)
    for order in (slice(None), slice(None, None, -1)):  # whichever way round the corners go
        corners = [each[order][None] for each in on_sky(box)]
        inside = associate.covered(ra, dec, *corners)[:, 0]
        np.testing.assert_array_equal(inside, (abs(points) <= half).all(axis=1))
    behind = associate.covered((ra + 180.0) % 360.0, -dec, *corners)
    assert not behind.any()


def test_no_image_and_no_place():
    assert associate.covered(np.array([1.0]), np.array([2.0]), np.zeros((0, 4)), np.zeros((0, 4))).shape == (1, 0)
    corners = np.array([[1.0, 2.0, 2.0, 1.0]]), np.array([[1.0, 1.0, 2.0, 2.0]])
    assert associate.covered(np.zeros(0), np.zeros(0), *corners).shape == (0, 1)


def stores(n=400, seed=7):
    ra, dec = field(n, seed, 200.0)
    rng = np.random.default_rng(seed)
    ps1, gaia = np.zeros(n, PS1_DTYPE), np.zeros(n, GAIA_DTYPE)
    for rows in (ps1, gaia):
        rows["ra"], rows["dec"] = ra, dec
    ps1["objid"] = np.arange(n) + 10**17
    for band in "gri":
        ps1[f"{band}mag"] = rng.uniform(15, 22, n)
    ps1["imag"][::5] = np.nan
    gaia["mag"] = rng.uniform(10, 20, n)
    gaia["pmra"], gaia["pmra_err"] = np.where(np.arange(n) % 4, 0.0, 3.0), 0.5
    return ps1, gaia


def test_nearest_ps1_against_brute_force():
    ps1, gaia = stores()
    ra, dec = field(40, 9, 150.0)
    found = associate.nearest_ps1(ra, dec, ps1, gaia, PARAMS)
    for i in range(40):
        away = haversine_arcsec(ra[i], dec[i], ps1["ra"], ps1["dec"])
        order = np.argsort(away)
        assert found["nmtchps"][i] == (away <= 30.0).sum() > 3
        for k in range(3):
            star = ps1[order[k]]
            assert found[f"objectidps{k + 1}"][i] == star["objid"]
            assert found[f"distpsnr{k + 1}"][i] == pytest.approx(away[order[k]], abs=1e-6)
            assert found[f"srmag{k + 1}"][i] == star["rmag"]
            assert found[f"simag{k + 1}"][i] == (-999.0 if np.isnan(star["imag"]) else star["imag"])
            assert found[f"szmag{k + 1}"][i] == -999.0
            assert found[f"sgscore{k + 1}"][i] == (1.0 if order[k] % 4 == 0 else 0.5)


def test_nearest_gaia_against_brute_force():
    _, gaia = stores()
    ra, dec = field(40, 11, 400.0)
    found = associate.nearest_gaia(ra, dec, gaia, PARAMS)
    for suffix, wanted in (("", np.ones(len(gaia), bool)), ("bright", gaia["mag"] < 14.0)):
        for i in range(40):
            away = np.where(wanted, haversine_arcsec(ra[i], dec[i], gaia["ra"], gaia["dec"]), np.inf)
            best = away.argmin()
            there = away[best] <= 90.0
            assert found[f"neargaia{suffix}"][i] == pytest.approx(away[best] if there else -999.0, abs=1e-6)
            assert found[f"maggaia{suffix}"][i] == (gaia["mag"][best] if there else -999.0)
    assert (found["neargaia"] == -999.0).any() and (found["neargaiabright"] > 0).any()


def test_nothing_near():
    ps1, gaia = np.zeros(0, PS1_DTYPE), np.zeros(0, GAIA_DTYPE)
    ra, dec = field(3, 1)
    found = associate.nearest_ps1(ra, dec, ps1, gaia, PARAMS) | associate.nearest_gaia(ra, dec, gaia, PARAMS)
    assert found.pop("nmtchps").tolist() == [0, 0, 0]
    assert all((values == -999.0).all() for values in found.values()) and len(found) == 3 * 7 + 4


def test_asteroid_is_moved_to_the_exposure():
    """100 arcsec/h east and -50 north for 36 minutes: 60 and -30 arcsec."""
    dec = 60.0
    ra = 359.99
    now = (ra + 60.0 / 3600.0 / np.cos(np.radians(dec))) % 360.0, dec - 30.0 / 3600.0
    asteroids = {"name": ["far", "433"], "jd": [2459116.8, 2459116.8], "ra": [20.0, ra], "dec": [0.0, dec],
                 "rate_ra": [0.0, 100.0], "rate_dec": [0.0, -50.0], "mag": [15.0, 18.5]}  # fmt: skip
    listed = {name: np.array(values) for name, values in asteroids.items()}
    places = np.array([now[0], now[0], 100.0]), np.array([now[1], now[1] + 20.0 / 3600.0, 0.0])
    found = associate.nearest_asteroid(*places, 2459116.8 + 36.0 / 1440.0, listed, PARAMS)
    assert found["ssnamenr"] == ["433", "433", "null"] and found["ssmagnr"] == [18.5, 18.5, -999.0]
    assert found["ssdistnr"] == pytest.approx([0.0, 20.0, -999.0], abs=0.02)


def test_who_sees_whose_data():
    seen = {programid: associate.visible_programs(programid) for programid in range(4)}
    assert seen == {0: (0, 1), 1: (1,), 2: (1, 2), 3: (1, 2, 3)}
