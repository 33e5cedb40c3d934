"""Programs that subtract images, for an interpreter that has them: ``python peer_subtract.py NAME IN OUT``.

It stands alone: only NumPy, astropy and the program itself are imported. IN (.npz): ``science`` and ``reference``
(registered, sky-subtracted), ``bad`` (bool), ``stars`` (bool, pixels about good stars). OUT (.npz): ``difference`` on
the flux scale and with the PSF of the science image, ``cpu_s`` without imports and files.

Both programs want more memory than a channel should take, so they are given cells of the image, one by one.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

Given = Mapping[str, Any]
Cell = tuple[slice, slice]

#: Cells along each axis, and by how much they overlap, px.
CELLS = {"sfft": 3, "ois": 6}
OVERLAP_PIX = 16


def sfft(given: Given, cell: Cell) -> tuple[NDArray, float]:
    """SFFT (Hu et al. 2022): delta basis of 15 x 15 and degree 2, fitted to windows about good stars."""
    from sfft.CustomizedPacket import Customized_Packet

    good = given["stars"][cell] & ~given["bad"][cell]
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for name in ("science", "reference"):
            clean = np.where(given["bad"][cell], 0.0, given[name][cell]).astype(np.float64)
            for kind, image in (("", clean), ("masked_", np.where(good, clean, 0.0))):
                names[kind + name] = str(Path(folder) / f"{kind}{name}.fits")
                fits.PrimaryHDU(image).writeto(names[kind + name])
        start = time.process_time()
        _, difference = Customized_Packet.CP(
            names["reference"], names["science"], names["masked_reference"], names["masked_science"], "REF", 7,
            KerPolyOrder=2, BGPolyOrder=1, ConstPhotRatio=True, BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1,
            VERBOSE_LEVEL=0,
        )  # fmt: skip
        return np.asarray(difference).T, time.process_time() - start


def ois(given: Given, cell: Cell) -> tuple[NDArray, float]:
    """Bramich (2008): constant delta kernel of 11 x 11 in a cell. Its Alard-Lupton basis fails numerically here."""
    import ois as program

    bad = given["bad"][cell]
    pair = [np.ma.array(np.where(bad, 0.0, given[k][cell]).astype(float), mask=bad) for k in ("science", "reference")]
    start = time.process_time()
    found = program.optimal_system(*pair, kernelshape=(11, 11), bkgdegree=1, method="Bramich")
    return np.ma.filled(found[0], 0.0), time.process_time() - start


def cells(shape: tuple[int, int], n: int) -> Iterator[tuple[Cell, Cell]]:
    """Cells of an image: with their overlap, and without it."""
    edges = [np.linspace(0, size, n + 1).astype(int) for size in shape]
    for y0, y1 in zip(edges[0][:-1], edges[0][1:], strict=True):
        for x0, x1 in zip(edges[1][:-1], edges[1][1:], strict=True):
            wide = slice(max(y0 - OVERLAP_PIX, 0), y1 + OVERLAP_PIX), slice(max(x0 - OVERLAP_PIX, 0), x1 + OVERLAP_PIX)
            yield wide, (slice(y0, y1), slice(x0, x1))


def run(name: str, given: Given) -> tuple[NDArray, float]:
    """Difference of the whole image, and CPU seconds; the first cell is done twice, for what is compiled then."""
    program = {"sfft": sfft, "ois": ois}[name]
    out, total = np.zeros(given["science"].shape, np.float32), 0.0
    for k, (wide, own) in enumerate(cells(out.shape, CELLS[name])):
        if k == 0:
            program(given, wide)
        found, seconds = program(given, wide)
        rows, columns = (slice(o.start - w.start, o.stop - w.start) for o, w in zip(own, wide, strict=True))
        out[own], total = found[rows, columns], total + seconds
    return out, total


if __name__ == "__main__":
    with np.load(sys.argv[2]) as opened:
        inputs = dict(opened)
    image, cpu_s = run(sys.argv[1], inputs)
    np.savez(sys.argv[3], difference=image, cpu_s=cpu_s)
