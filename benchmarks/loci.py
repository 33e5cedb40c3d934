"""Where stars lie in sharp and chi: our PSF fits of the survey's image beside its own reference catalogue.

``python -m benchmarks.loci`` measures ../shared/data/ztf_full, prints quantiles in bins of S/N and draws
``docs/figures/loci.png``. The reference catalogue is of another field and filter and of a co-added image: errors of its
PSF end its S/N near 120, and its faint end lies 1 mag deeper; only the shapes can be compared.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
IMAGE = DATA / "ztf_full" / "ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.gz"
REFERENCE = DATA / "ztf_catalogs_lightcurves" / "ztf_000202_zg_c10_q1_refpsfcat.fits"
SNR_EDGES = (5.0, 7.0, 10.0, 15.0, 25.0, 40.0, 60.0, 120.0)
PERCENT = (16, 50, 84)


class Sources(NamedTuple):
    """Catalogue columns."""

    snr: np.ndarray
    chi: np.ndarray
    sharp: np.ndarray


class Quantiles(NamedTuple):
    """16, 50 and 84% of a bin of S/N."""

    snr: tuple[float, float]
    n: int
    chi: np.ndarray
    sharp: np.ndarray


def of_fits(table):
    """Of the engine's table; sources with flags are left out."""
    with np.errstate(invalid="ignore"):
        good = (table["flags"] == 0) & (table["flux"] > 0) & np.isfinite(table["chi"] + table["sharp"])
    table = table[good]
    return Sources(table["flux"] / table["sigflux"], table["chi"], table["sharp"])


def of_refpsfcat(path):
    """Of a reference catalogue of the survey."""
    table = fits.getdata(path, 1)
    table = table[table["flags"] == 0]
    return Sources(*(np.asarray(table[name], float) for name in ("snr", "chi", "sharp")))


def quantiles(sources):
    """One row for each bin of S/N."""
    rows = []
    for low, high in pairwise(SNR_EDGES):
        part = (sources.snr >= low) & (sources.snr < high)
        chi, sharp = (np.percentile(a[part], PERCENT) if part.any() else np.full(3, np.nan) for a in sources[1:])
        rows.append(Quantiles((low, high), int(part.sum()), chi, sharp))
    return rows


def lines(ours, theirs):
    """The two side by side."""
    text = [
        "S/N        n  chi 16 50 84%       sharp 16 50 84%        |      n  chi             sharp (survey's refpsfcat)"
    ]
    for a, b in zip(ours, theirs):
        halves = [f"{r.n:6d}  {_three(r.chi, 2)}  {_three(r.sharp, 3)}" for r in (a, b)]
        text.append(f"{a.snr[0]:3.0f}-{a.snr[1]:<4.0f}" + "  |  ".join(halves))
    return text


def _three(values, digits):
    return " ".join(f"{value:6.{digits}f}" for value in values)


def measured():
    """PSF fits of the survey's image."""
    from tests.helpers.psf_chain import measured as measure
    from zsds_hpc.core import maskbits

    header = fits.getheader(IMAGE)
    mask = fits.getdata(str(IMAGE).replace("sciimg", "mskimg")).astype(np.int16) & ~np.int16(maskbits.SOURCES)
    pix = np.ascontiguousarray(fits.getdata(IMAGE), np.float32)
    return measure(pix, mask, header["GAIN"], header["SATURATE"]).fits.table


def draw(ours, theirs, path):
    """sharp and chi against S/N, ours above, the survey's below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharex=True, constrained_layout=True)
    for row, (sources, title) in enumerate(((ours, "ours, science image, r"), (theirs, "survey's refpsfcat, g"))):
        bins = quantiles(sources)
        middle = [np.sqrt(b.snr[0] * b.snr[1]) for b in bins]
        for axis, name, limits in zip(axes[row], ("sharp", "chi"), ((-1, 1), (0, 4))):
            axis.plot(sources.snr, getattr(sources, name), ",", color="0.55", rasterized=True)
            for k, style in zip(range(3), ("--", "-", "--")):
                axis.plot(middle, [getattr(b, name)[k] for b in bins], style, color="C3", lw=1.4)
            axis.set(xscale="log", xlim=(3.5, 1500), ylim=limits, ylabel=name, title=title)
            axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("S/N")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "loci.png")
    args = parser.parse_args()
    ours, theirs = of_fits(measured()), of_refpsfcat(REFERENCE)
    print("\n".join(lines(quantiles(ours), quantiles(theirs))))
    draw(ours, theirs, args.figure)


if __name__ == "__main__":
    main()
