"""A small, obvious sky renderer with cosmic-ray hits: independent truth for the tests of detector/artifacts.

It shares no code with the algorithms: stars with an elliptical two-Moffat PSF integrated over pixels, a few
exponential galaxies, Poisson sky, read noise, bad columns, saturation, and hits of several morphologies.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import erf

GAIN_E = 6.2
READ_NOISE_E = 10.0
SKY_DN = 400.0
SATURATE_DN = 58000.0
ZERO_POINT_MAG = 26.3
SATURATED = 1 << 8
DEAD = 1 << 9


class Sky(NamedTuple):
    """A rendered field and its truth; positions are 0-based pixels, one array of pixels per hit."""

    pix: np.ndarray  # (ny, nx) float32, DN
    mask: np.ndarray  # (ny, nx) int16
    stars: np.ndarray  # structured: x y flux_dn
    light_dn: np.ndarray  # (ny, nx) float32, noiseless light with the sky, without hits
    hit_id: np.ndarray  # (n,) of each hit pixel
    hit_y: np.ndarray
    hit_x: np.ndarray
    hit_dn: np.ndarray


def moffat_pair(dx, dy, fwhm, e1, e2):
    """Elliptical two-Moffat profile of unit flux at offsets in pixels; FWHM is about that of the core."""
    q = 1.0 - e1**2 - e2**2
    r2 = ((1 - e1) * dx**2 + (1 + e1) * dy**2 - 2 * e2 * dx * dy) / np.sqrt(q)
    light = 0.0
    for weight, width, beta in ((0.8, 1.0, 3.5), (0.2, 1.7, 2.5)):
        alpha2 = (width * fwhm) ** 2 / (4 * (2 ** (1 / beta) - 1))
        light = light + weight * (beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -beta
    return light


def add_stars(image, stars, fwhm_pix, n_sub=4):
    """Add stars to an image; FWHM varies by +-3% and the ellipticity turns over the field."""
    nodes, weights = np.polynomial.legendre.leggauss(n_sub)
    ny, nx = image.shape
    for half, low, high in ((6, 0, 2e3), (11, 2e3, 3e4), (30, 3e4, np.inf)):
        group = stars[(stars["flux_dn"] >= low) & (stars["flux_dn"] < high)]
        for chunk in np.array_split(group, max(1, len(group) * half**2 // 150000)):
            _add_stamps(image, chunk, half, fwhm_pix, nodes / 2, weights / 2, ny, nx)


def _add_stamps(image, stars, half, fwhm_pix, nodes, weights, ny, nx):
    k = np.arange(-half, half + 1)
    x0, y0 = np.rint(stars["x"]).astype(int), np.rint(stars["y"]).astype(int)
    u, v = stars["x"] / nx - 0.5, stars["y"] / ny - 0.5
    fwhm = (fwhm_pix * (1 + 0.06 * u + 0.04 * v * v))[:, None, None]
    e1, e2 = (0.05 * (1 + u))[:, None, None], (0.06 * v + 0.02)[:, None, None]
    dx = (x0 - stars["x"])[:, None, None] + k[None, None, :]
    dy = (y0 - stars["y"])[:, None, None] + k[None, :, None]
    stamp = 0.0
    for sy, wy in zip(nodes, weights):
        for sx, wx in zip(nodes, weights):
            stamp = stamp + wx * wy * moffat_pair(dx + sx, dy + sy, fwhm, e1, e2)
    stamp = stamp * stars["flux_dn"][:, None, None]
    yy = np.broadcast_to(y0[:, None, None] + k[None, :, None], stamp.shape)
    xx = np.broadcast_to(x0[:, None, None] + k[None, None, :], stamp.shape)
    inside = (yy >= 0) & (yy < ny) & (xx >= 0) & (xx < nx)
    np.add.at(image, (yy[inside], xx[inside]), stamp[inside])


def star_list(rng, n, shape, faint_mag=21.5, bright_mag=13.0, slope=0.3):
    """Stars at uniform positions, with counts that grow as 10^(slope mag)."""
    stars = np.zeros(n, [("x", "f8"), ("y", "f8"), ("flux_dn", "f8")])
    stars["x"] = rng.uniform(-0.5, shape[1] - 0.5, n)
    stars["y"] = rng.uniform(-0.5, shape[0] - 0.5, n)
    ends = 10 ** (slope * np.array([bright_mag, faint_mag]))
    mag = np.log10(rng.uniform(ends[0], ends[1], n)) / slope
    stars["flux_dn"] = 10 ** (-0.4 * (mag - ZERO_POINT_MAG))
    return stars


def add_galaxies(image, rng, n):
    """Add round exponential galaxies (scale 1.5-5 px), sampled at pixel centres after a smooth core."""
    ny, nx = image.shape
    for _ in range(n):
        x, y, scale = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(1.5, 5)
        flux, half = 10 ** rng.uniform(3, 4.8), 45
        ys = np.arange(max(0, int(y) - half), min(ny, int(y) + half))
        xs = np.arange(max(0, int(x) - half), min(nx, int(x) + half))
        r = np.sqrt((ys[:, None] - y) ** 2 + (xs[None, :] - x) ** 2 + 1.5)
        image[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1] += flux / (2 * np.pi * scale**2) * np.exp(-r / scale)


def hit_path(rng):
    """Points of one hit (y, x offsets in pixels) by morphology: spot, straight track or curling worm."""
    kind = rng.uniform()
    if kind < 0.45:
        return np.zeros((1, 2))
    length = rng.uniform(2, 12) if kind < 0.8 else rng.uniform(8, 30)
    n = int(length * 4) + 1
    wiggle = 0.0 if kind < 0.8 else 0.12
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(wiggle * rng.normal(size=n))
    return np.cumsum(np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0) * 0.25


def hit_stamp(rng, shape, diffusion_pix):
    """Pixels (y, x) and charge in electrons of one hit, diffused and integrated over pixels."""
    charge_e = 10 ** rng.uniform(np.log10(500), np.log10(20000))
    points = hit_path(rng) + rng.uniform([0, 0], [shape[0] - 1, shape[1] - 1])
    sigma = rng.uniform(*diffusion_pix) * np.sqrt(2)
    lo, hi = np.floor(points.min(0)).astype(int) - 3, np.ceil(points.max(0)).astype(int) + 4
    fy, fx = (
        0.5 * (erf((k[None] + 0.5 - p[:, None]) / sigma) - erf((k[None] - 0.5 - p[:, None]) / sigma))
        for k, p in ((np.arange(lo[0], hi[0]), points[:, 0]), (np.arange(lo[1], hi[1]), points[:, 1]))
    )
    stamp = charge_e / len(points) * np.einsum("ny,nx->yx", fy, fx)
    yy, xx = np.nonzero(stamp > 5.0)
    value = stamp[yy, xx]
    yy, xx = yy + lo[0], xx + lo[1]
    inside = (yy >= 0) & (yy < shape[0]) & (xx >= 0) & (xx < shape[1])
    return yy[inside], xx[inside], value[inside]


def render(n_stars, n_hits, seed, shape=(3080, 3072), fwhm_pix=2.0, diffusion_pix=(0.3, 0.5), faint_mag=21.5):
    """Render one field as `Sky`; the star counts refer to this shape."""
    rng = np.random.default_rng(seed)
    light = np.full(shape, SKY_DN)
    light += 8.0 * np.linspace(-1, 1, shape[1])[None, :]
    stars = star_list(rng, n_stars, shape, faint_mag)
    add_stars(light, stars, fwhm_pix)
    add_galaxies(light, rng, n_stars // 40)
    hits = [hit_stamp(rng, shape, diffusion_pix) for _ in range(n_hits)]
    ids = np.concatenate([np.full(len(h[0]), i) for i, h in enumerate(hits)] + [np.zeros(0, int)])
    yy, xx, electrons = (np.concatenate([h[k] for h in hits] + [np.zeros(0)]) for k in range(3))
    yy, xx = yy.astype(int), xx.astype(int)
    pix = rng.poisson(light * GAIN_E) + rng.normal(0, READ_NOISE_E, shape)
    np.add.at(pix, (yy, xx), electrons)
    pix = (pix / GAIN_E).astype(np.float32)
    mask = np.zeros(shape, np.int16)
    for column in rng.integers(5, shape[1] - 5, 4):
        pix[rng.integers(0, shape[0] // 2) :, column] += 3000.0
        mask[:, column] |= DEAD
    full = pix > SATURATE_DN
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            mask[np.roll(full, (dy, dx), (0, 1))] |= SATURATED
    np.minimum(pix, SATURATE_DN, out=pix)
    return Sky(pix, mask, stars, light.astype(np.float32), ids, yy, xx, electrons / GAIN_E)


class Score(NamedTuple):
    """How a mask of hits compares with the truth of a `Sky`."""

    n_hits: int  # hits whose brightest pixel stands 5 sigma above the light under it, on usable pixels
    recall: float  # ... of which the brightest pixel is masked
    n_matched: int  # hits whose optimal signal to noise (all pixels) is above 10
    recall_matched: float
    charge_covered: float  # masked part of the charge in pixels above 3 sigma, over the counted hits
    n_stars: int  # stars with S/N above 5 and no hit within 3 px of the core, not saturated
    stars_touched: float  # fraction of them with a masked pixel within 1.5 px of the centre
    n_false_pixels: int  # masked pixels more than 3 px from any hit or bad pixel


def score(sky, found):
    """Compare a boolean mask with the truth."""
    noise = np.sqrt(sky.light_dn / GAIN_E + (READ_NOISE_E / GAIN_E) ** 2)
    bad = sky.mask != 0
    snr = sky.hit_dn / noise[sky.hit_y, sky.hit_x]
    hit_masked = found[sky.hit_y, sky.hit_x]
    order = np.lexsort((-sky.hit_dn, sky.hit_id))
    _, first = np.unique(sky.hit_id[order], return_index=True)
    peak = order[first]
    usable = ~bad[sky.hit_y[peak], sky.hit_x[peak]]
    counted = (snr[peak] > 5) & usable
    matched = np.sqrt(np.bincount(sky.hit_id, snr**2)[sky.hit_id[peak]])
    strong = (matched > 10) & usable
    part = np.isin(sky.hit_id, sky.hit_id[peak[counted]]) & (snr > 3) & ~bad[sky.hit_y, sky.hit_x]
    near_hit = _near(sky.hit_y, sky.hit_x, bad.shape, 3)
    near_bad = _near(*np.nonzero(bad), bad.shape, 3)
    y, x = np.rint(sky.stars["y"]).astype(int), np.rint(sky.stars["x"]).astype(int)
    inside = (y >= 0) & (x >= 0) & (y < bad.shape[0]) & (x < bad.shape[1])
    y, x, flux = y[inside], x[inside], sky.stars["flux_dn"][inside]
    clean = ~near_hit[y, x] & ~near_bad[y, x] & (flux > 5 * 3.5 * noise[y, x])
    touched = _near(*np.nonzero(found & ~bad), bad.shape, 1)[y, x] & clean
    return Score(
        int(counted.sum()),
        float(hit_masked[peak][counted].mean()),
        int(strong.sum()),
        float(hit_masked[peak][strong].mean()),
        float(sky.hit_dn[part & hit_masked].sum() / sky.hit_dn[part].sum()),
        int(clean.sum()),
        float(touched.sum() / max(clean.sum(), 1)),
        int((found & ~near_hit & ~near_bad).sum()),
    )


def _near(y, x, shape, radius):
    """Pixels within a square of the given half size about the positions."""
    near = np.zeros(shape, bool)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            near[np.clip(y + dy, 0, shape[0] - 1), np.clip(x + dx, 0, shape[1] - 1)] = True
    return near
