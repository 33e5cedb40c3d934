"""A small convolutional network on the cutouts of a candidate: what it sees, and its forward pass in NumPy.

The design is that of braai (Duev et al. 2019, MNRAS 489, 3582): science, template and difference side by side through
two pairs of convolutions, each pair followed by pooling, and a dense layer. As in BTSbot (Rehemtulla et al. 2024, ApJ
972, 7) the dense layer is told some numbers besides, such as how wide a star would be, which the pixels do not show.
Its training is in `tools/training`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zsds_hpc.core.errors import BadInput

#: Side of what the network sees, px, about the middle of the cutouts.
CROP_PIX = 25
N_CHANNELS = 3
#: Side of the filters.
KERNEL = 3
_LAYERS = ("conv1", "conv2", "conv3", "conv4", "dense1", "dense2")
#: Candidates at a time: the temporaries stay in the cache.
_BATCH = 8
#: Levels and noise are those of every third pixel along both axes: good to 5%, and a ninth of the work.
_SPARSE = 3
#: Brings an inverse hyperbolic sine of 0-1000 sigma to about unity.
_COMPRESSION = np.float32(1 / 3)


@dataclass(frozen=True)
class CutNet:
    """Weights of the network.

    Attributes
    ----------
    weights : dict
        Layer -> ndarray, shape (n_in, n_out), float32; n_in of a convolution is ordered (row, column, channel).
    biases : dict
        Layer -> ndarray, shape (n_out,), float32.
    center, scale : ndarray, shape (n_numbers,), float32
        Of the numbers that the dense layer is told.
    """

    weights: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]
    center: np.ndarray
    scale: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "CutNet":
        """Network of the arrays of a model file, ``conv1_w``, ``conv1_b``, ...

        Raises
        ------
        BadInput
            Layers are missing, do not fit each other, or are not finite.
        """
        wanted = {f"{layer}_{part}" for layer in _LAYERS for part in "wb"} | {"center", "scale"}
        if set(arrays) != wanted:
            raise BadInput(f"network: arrays {sorted(set(arrays) ^ wanted)} are missing or unknown")
        weights = {layer: np.ascontiguousarray(arrays[f"{layer}_w"], np.float32) for layer in _LAYERS}
        biases = {layer: np.ascontiguousarray(arrays[f"{layer}_b"], np.float32) for layer in _LAYERS}
        center, scale = (np.ascontiguousarray(arrays[name], np.float32) for name in ("center", "scale"))
        if center.ndim != 1 or center.shape != scale.shape or not (np.isfinite(center) & (scale > 0)).all():
            raise BadInput(f"network: center {center.shape} and scale {scale.shape} do not fit or cannot be")
        n_in = N_CHANNELS
        for layer in _LAYERS:
            shape = (inputs_of(layer, n_in, center.size), weights[layer].shape[-1])
            if weights[layer].shape != shape or biases[layer].shape != shape[1:]:
                raise BadInput(f"network: {layer} is {weights[layer].shape}, {biases[layer].shape}; {shape} wanted")
            if not (np.isfinite(weights[layer]).all() and np.isfinite(biases[layer]).all()):
                raise BadInput(f"network: {layer} is not finite")
            n_in = shape[1]
        if n_in != 1:
            raise BadInput(f"network: {n_in} outputs, one is wanted")
        return cls(weights, biases, center, scale)

    def logits(self, seen: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Log odds of being real.

        Parameters
        ----------
        seen : ndarray, shape (n, CROP_PIX, CROP_PIX, N_CHANNELS), float32
            As `network_input` makes it.
        numbers : ndarray, shape (n, n_numbers)
            What the dense layer is told; NaN where it is not known.

        Returns
        -------
        ndarray, shape (n,), float32
        """
        told = standardised(numbers, self.center, self.scale)
        starts = range(0, len(seen), _BATCH)
        parts = [self._forward(seen[start : start + _BATCH], told[start : start + _BATCH]) for start in starts]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _forward(self, x, told):
        for first, second in (("conv1", "conv2"), ("conv3", "conv4")):
            for layer in (first, second):
                x = convolved(x, self.weights[layer])
                x += self.biases[layer]
                np.maximum(x, 0, out=x)
            x = pooled(x)
        x = np.concatenate([x.reshape(len(x), -1), told], axis=1) @ self.weights["dense1"] + self.biases["dense1"]
        return (np.maximum(x, 0) @ self.weights["dense2"] + self.biases["dense2"])[:, 0]


def inputs_of(layer: str, n_before: int, n_numbers: int) -> int:
    """Inputs of a layer whose predecessor has `n_before` outputs."""
    if layer.startswith("conv"):
        return KERNEL**2 * n_before
    return side_after_pooling() ** 2 * n_before + n_numbers if layer == "dense1" else n_before


def standardised(numbers: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Numbers about zero and of order one, outliers compressed, float32; 0 where a number is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.nan_to_num(np.arcsinh((numbers - center) / scale), nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def side_after_pooling() -> int:
    """Side of the last feature maps, px."""
    side = CROP_PIX
    for _ in range(2):
        side = (side - 2 * (KERNEL - 1)) // 2
    return side


def patches(x: np.ndarray) -> np.ndarray:
    """Neighbourhoods of each pixel, shape (n, ny - 2, nx - 2, 9 channels), of maps (n, ny, nx, channels)."""
    n, n_y, n_x, n_c = x.shape
    out = np.empty((n, n_y - KERNEL + 1, n_x - KERNEL + 1, KERNEL, KERNEL * n_c), np.float32)
    rows = x.reshape(n, n_y, n_x * n_c)
    for k in range(KERNEL):  # KERNEL pixels of a row are one stretch of memory
        lines = rows[:, k : k + out.shape[1]]
        stretches = np.lib.stride_tricks.sliding_window_view(lines, KERNEL * n_c, axis=2)[:, :, ::n_c]
        out[:, :, :, k] = stretches
    return out.reshape(*out.shape[:3], -1)


def convolved(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Maps (n, ny, nx, c) through filters (9 c, c'), without borders: (n, ny - 2, nx - 2, c')."""
    columns = patches(x)
    return (columns.reshape(-1, columns.shape[-1]) @ weights).reshape(*columns.shape[:3], -1)


def pooled(x: np.ndarray) -> np.ndarray:
    """Largest of each 2 x 2 pixels; an odd last row or column is left out."""
    n, n_y, n_x, n_c = x.shape
    blocks = x[:, : n_y // 2 * 2, : n_x // 2 * 2].reshape(n, n_y // 2, 2, n_x // 2, 2, n_c)
    return np.maximum(
        np.maximum(blocks[:, :, 0, :, 0], blocks[:, :, 0, :, 1]),
        np.maximum(blocks[:, :, 1, :, 0], blocks[:, :, 1, :, 1]),
    )


def network_input(
    science: np.ndarray, template: np.ndarray, difference: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    """What the network sees of each candidate.

    All three are measured in the noise of the difference about the candidate, their levels taken off, and compressed;
    a negative candidate is shown as a positive one: science and template change places. Pixels without data are level.

    Parameters
    ----------
    science, template, difference : ndarray, shape (n, side, side), float32
        Cutouts on one scale of flux, the difference turned so that the candidate is positive; side is odd and at
        least `CROP_PIX`; NaN where there is no data.
    positive : ndarray, shape (n,), bool
        Brighter than in the reference.

    Returns
    -------
    ndarray, shape (n, CROP_PIX, CROP_PIX, N_CHANNELS), float32
    """
    n, side, _ = difference.shape
    seen = np.empty((n, CROP_PIX, CROP_PIX, N_CHANNELS), np.float32)
    if not n:
        return seen
    inner = slice((side - CROP_PIX) // 2, (side + CROP_PIX) // 2)
    noise = difference_noise(difference)
    for k, image in enumerate((science, template, difference)):
        level = _median(image[:, ::_SPARSE, ::_SPARSE])
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (image[:, inner, inner] - level[:, None, None]) / noise[:, None, None]
        np.arcsinh(np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0), out=seen[..., k])
    seen *= _COMPRESSION
    negative = ~np.asarray(positive, bool)
    seen[negative] = seen[negative][..., [1, 0, 2]]
    return seen


def difference_noise(difference: np.ndarray) -> np.ndarray:
    """Robust width of each difference cutout, shape (n,); 1 where it has none."""
    some = difference[:, ::_SPARSE, ::_SPARSE]
    deviation = np.abs(some - _median(some)[:, None, None])
    noise = 1.4826 * _median(deviation)
    return np.where(noise > 0, noise, 1).astype(np.float32)


def _median(values):
    """Median of what is finite in each row, 0 where nothing is."""
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    ordered = np.sort(np.where(np.isfinite(flat), flat, np.float32(np.inf)), axis=1)
    count = np.isfinite(ordered).sum(axis=1)
    middle = ordered[np.arange(len(flat)), np.maximum(count - 1, 0) // 2]
    return np.where(count > 0, middle, 0).astype(np.float32)
