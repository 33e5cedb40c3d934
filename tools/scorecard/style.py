"""Look of the report's figures."""

import itertools

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

#: Colours that people with colour-vision deficiency tell apart (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F",
)  # fmt: skip
FILTER_COLOR = {"zg": GREEN, "zr": RED, "zi": PURPLE}
#: Mask bit -> (name, colour), the most conspicuous last.
BIT_COLORS = {
    1: ("source", "#DCE6F2"),
    12: ("halo", "#B9D9C3"),
    5: ("ghost", "#8FC9A5"),
    4: ("noisy", GREY),
    2: ("low response", "#5A5A5A"),
    3: ("high response", "#A05A2C"),
    9: ("dead", "#000000"),
    0: ("track", ORANGE),
    8: ("saturated", BLUE),
    7: ("radiation hit", RED),
}


def use_style() -> None:
    """Set the common look."""
    mpl.use("Agg")
    mpl.rcParams.update({
        "font.size": 9.0, "axes.titlesize": 10.0, "axes.titlelocation": "left", "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#E5E5E5", "grid.linewidth": 0.6,
        "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.0, "figure.dpi": 110,
        "savefig.dpi": 110, "image.origin": "lower", "image.interpolation": "nearest",
    })  # fmt: skip


def binned(image: NDArray, n: int) -> NDArray:
    """Mean of n x n blocks, NaN left out."""
    n_y, n_x = (size // n for size in image.shape)
    blocks = image[: n_y * n, : n_x * n].reshape(n_y, n, n_x, n).astype(np.float64)
    good = np.isfinite(blocks)
    count = good.sum(axis=(1, 3))
    return np.where(good, blocks, 0.0).sum(axis=(1, 3)) / np.where(count, count, np.nan)


def picture(axes: Axes, image: NDArray, low: float, high: float, cmap: str = "gray", label: str = "") -> None:
    """An image without ticks, with a colour bar where a label is given."""
    shown = axes.imshow(image, vmin=low, vmax=high, cmap=cmap)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if label:
        bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)


def stretched(image: NDArray) -> NDArray:
    """Sky at dark grey, stars by an inverse hyperbolic sine; 0 to 1."""
    low, sky = np.nanpercentile(image, [2.0, 50.0])
    noise = max(float(sky - low) / 2.0, 1e-3)
    return np.clip(np.arcsinh((image - sky + 2.0 * noise) / noise) / np.arcsinh(1000.0), 0.0, 1.0)


def mask_picture(axes: Axes, mask: NDArray) -> None:
    """A mask with a colour for each bit."""
    canvas = np.ones((*mask.shape, 3))
    present = []
    for bit, (name, color) in BIT_COLORS.items():
        pixels = (mask >> bit) & 1 == 1
        if pixels.any():
            canvas[pixels] = mpl.colors.to_rgb(color)
            present.append((name, color))
    axes.imshow(canvas)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    handles = [mpl.patches.Patch(facecolor=color, edgecolor="#999999", label=name) for name, color in present]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4, borderaxespad=0.0,
                fontsize=7.0, handlelength=1.0, columnspacing=0.8)  # fmt: skip


def running(x: NDArray, y: NDArray, edges: NDArray, least: int = 10) -> tuple[NDArray, NDArray, NDArray]:
    """Centres, medians and half 16-84% widths of y in bins of x that hold at least `least` values."""
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = y[(x >= low) & (x < high)]
        if inside.size >= least:
            p16, p50, p84 = np.percentile(inside, [15.87, 50.0, 84.13])
            rows.append(((low + high) / 2.0, p50, (p84 - p16) / 2.0))
    columns = np.array(rows).reshape(-1, 3).T
    return columns[0], columns[1], columns[2]


def new_figure(width: float, height: float) -> Figure:
    """A figure whose parts do not overlap."""
    return Figure(figsize=(width, height), layout="constrained")
