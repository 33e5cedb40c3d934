"""Forced photometry: fluxes at given positions with the engine of the PSF catalogue."""

import numpy as np
from scipy.spatial import cKDTree

from zsds_hpc.core.errors import BadInput
from zsds_hpc.photometry.psffit import FIT_HELD, Fitter, PsfFitParams, Scene, make_scene
from zsds_hpc.psf.model import PsfModel

_PASS = 1


def forced_photometry(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    gain: float,
    psf: PsfModel,
    positions: np.ndarray,
    params: PsfFitParams,
) -> np.ndarray:
    """Fluxes at given positions, all of them fitted at once, on an image without other stars.

    Fluxes may be negative. Where the image holds other stars, give it to `force_in_scene` with them.

    Parameters
    ----------
    images : tuple of ndarray, shape (ny, nx)
        Background-subtracted image (or difference image), noise of the sky (float32, DN), survey mask (int16).
    gain : float
        e/DN.
    psf : PsfModel
    positions : ndarray, shape (n, 2)
        x, y, 0-based px.
    params : PsfFitParams

    Returns
    -------
    ndarray, shape (n,), `psffit.PSF_FIT_DTYPE`
        In the order of the positions. NaN flux and error where no pixel of the star is usable.

    Raises
    ------
    BadInput
        Shapes differ, or a position is not finite.
    """
    return force_in_scene(make_scene(images, gain, psf, params), np.zeros((0, 3)), positions)


def force_in_scene(scene: Scene, others: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The same among other stars, whose positions are held and whose fluxes are free too.

    Parameters
    ----------
    scene : Scene
        Its model is replaced.
    others : ndarray, shape (m, 3)
        x, y (0-based px) and flux (DN) of stars that are known, e.g. from a PSF catalogue; those within a pixel of a
        position are left out.
    positions : ndarray, shape (n, 2)

    Returns
    -------
    ndarray, shape (n,), `psffit.PSF_FIT_DTYPE`
    """
    positions = np.asarray(positions, np.float64).reshape(-1, 2)
    if not np.isfinite(positions).all():
        raise BadInput(
            f"forced photometry: {int((~np.isfinite(positions)).any(axis=1).sum())} positions are not finite"
        )
    n_y, n_x = scene.data.shape
    inside = ((positions > -0.5) & (positions < np.array([n_x, n_y]) - 0.5)).all(axis=1)
    fitter = Fitter(scene)
    fitter.add(_apart(others, positions[inside]), 0, FIT_HELD)
    fitter.add(np.column_stack([positions[inside], np.zeros(inside.sum())]), _PASS, FIT_HELD)
    fitter.fit_fluxes()
    return _in_order(fitter.table(), positions, inside)


def _apart(others, positions):
    """Stars that are not one of the positions."""
    others = np.asarray(others, np.float64).reshape(-1, 3)
    if not len(others) or not len(positions):
        return others
    near = cKDTree(positions).query(others[:, :2], distance_upper_bound=1.0)[0]
    return others[~np.isfinite(near)]


def _in_order(table, positions, inside):
    """Rows of the forced stars as the positions came; NaN where there was nothing to fit."""
    out = np.zeros(len(positions), table.dtype)
    out["x"], out["y"] = positions.T
    for name in ("flux", "sigflux", "var_x", "var_y", "cov_xy", "chi", "sharp"):
        out[name] = np.nan
    out["flags"] = FIT_HELD
    forced = table[table["pass_"] == _PASS]
    rows = np.flatnonzero(inside)
    there, here = (np.lexsort((a[:, 0], a[:, 1])) for a in (positions[rows], np.stack([forced["x"], forced["y"]], 1)))
    out[rows[there]] = forced[here]
    empty = ~(out["n_pix"] > 0)
    for name in ("flux", "sigflux"):
        out[name][empty] = np.nan
    for name in ("var_x", "var_y", "cov_xy"):
        out[name] = 0.0
    return out
