import time

import numpy as np
import pytest

from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.maskbits import GHOST, HALO
from zsds_hpc.detector.ghosts import GhostOffset, GhostParams, halo_and_ghost_mask, offset_about_axis

HERE = GhostOffset(np.eye(2), np.zeros(2))


def star_list(*rows):
    return np.array(list(rows), [("x", "f8"), ("y", "f8"), ("flux_dn", "f8")])


def radius_map(shape, x, y):
    return np.hypot(*(np.mgrid[: shape[0], : shape[1]] - np.array([y, x])[:, None, None]))


def test_discs_cover_the_light_above_threshold():
    """The model's own light, drawn pixel by pixel from its formula, is masked where it exceeds the threshold."""
    params, shape, flux = GhostParams(), (600, 700), 3e7
    offset = offset_about_axis(2000.0, -500.0, 0.985)
    mask = halo_and_ghost_mask(shape, star_list((300.3, 250.7, flux)), offset, params)
    r = radius_map(shape, 300.3, 250.7)
    halo_dn = flux * 0.01 * 3 / (np.pi * 110**2) * np.maximum(1 - r / 110, 0)
    assert ((mask & HALO) != 0)[halo_dn > params.threshold].all()
    assert not ((mask & HALO) != 0)[r > 110 + params.n_grow + 1].any()
    ghost_r = radius_map(shape, 2000 + 0.985 * (300.3 - 2000), -500 + 0.985 * (250.7 + 500))
    ring = (ghost_r >= 25) & (ghost_r <= 75)
    assert ((mask & GHOST) != 0)[ring].all()
    assert not ((mask & GHOST) != 0)[(ghost_r > 78) | (ghost_r < 22)].any()


def test_radius_grows_with_flux_and_faint_stars_have_none():
    masks = [halo_and_ghost_mask((400, 400), star_list((200, 200, f)), HERE) for f in (5e5, 2e6, 1e7, 1e8)]
    areas = [int((m & HALO != 0).sum()) for m in masks]
    assert areas[0] == 0 and (masks[0] == 0).all()
    assert 0 < areas[1] < areas[2] < areas[3] <= np.pi * 113**2


def test_star_outside_reaches_in():
    mask = halo_and_ghost_mask((300, 300), star_list((-50, 150, 1e8)), HERE)
    assert mask[150, 10] & HALO
    assert not mask[150, 100]


def test_nothing_to_do():
    for stars in (star_list(), star_list((np.nan, 5, 1e8), (5, 5, np.inf)), star_list((9000, 9000, 1e8))):
        mask = halo_and_ghost_mask((50, 60), stars, HERE)
        assert mask.shape == (50, 60) and mask.dtype == np.int16 and not mask.any()


def test_missing_column():
    with pytest.raises(BadInput, match="flux_dn"):
        halo_and_ghost_mask((50, 60), np.zeros(1, [("x", "f8"), ("y", "f8")]), HERE)


def test_full_image_is_quick():
    rng = np.random.default_rng(0)
    stars = star_list(*zip(rng.uniform(0, 3072, 200), rng.uniform(0, 3080, 200), np.full(200, 5e7)))
    start = time.process_time()
    halo_and_ghost_mask((3080, 3072), stars, HERE)
    assert time.process_time() - start < 0.5
