"""Training of the network of `zsds_hpc.subtraction.cutnet` in NumPy: backward pass, Adam, averaged weights."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zsds_hpc.subtraction.cutnet import KERNEL, N_CHANNELS, CutNet, inputs_of, patches, standardised

Image = NDArray[np.float32]
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4")


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Rates fall along a cosine; `decay` pulls weights to zero; `memory` is the share of the running average of the
    weights that a step keeps.
    """

    n_epochs: int = 12
    batch: int = 64
    rate: float = 2e-3
    decay: float = 1e-4
    memory: float = 0.999
    dropout: float = 0.25
    widths: tuple[int, int, int, int, int] = (12, 16, 32, 32, 48)


def fresh_arrays(rng: np.random.Generator, widths: tuple[int, ...], n_numbers: int) -> dict[str, Image]:
    """Random weights (He et al. 2015) under the names of the model file."""
    arrays, n_in = {}, N_CHANNELS
    for layer, n_out in zip((*CONVOLUTIONS, "dense1", "dense2"), (*widths, 1)):
        n_in = inputs_of(layer, n_in, n_numbers)
        arrays[f"{layer}_w"] = (rng.normal(size=(n_in, n_out)) * np.sqrt(2 / n_in)).astype(np.float32)
        arrays[f"{layer}_b"] = np.zeros(n_out, np.float32)
        n_in = n_out
    return arrays


def forward(arrays: dict[str, Image], x: Image, told: Image, kept: Image) -> tuple[Image, list]:
    """Log odds of a batch, and what the backward pass needs.

    `told` are the standardised numbers; `kept` multiplies the hidden layer (dropout).
    """
    trail: list = []
    for pair in (CONVOLUTIONS[:2], CONVOLUTIONS[2:]):
        for layer in pair:
            columns = patches(x)
            out = columns.reshape(-1, columns.shape[-1]) @ arrays[f"{layer}_w"] + arrays[f"{layer}_b"]
            np.maximum(out, 0, out=out)
            out = out.reshape(*columns.shape[:3], -1)
            trail.append((layer, x.shape, columns, out))
            x = out
        x, winners = _pool(x)
        trail.append(("pool", out.shape, winners))
    flat = np.concatenate([x.reshape(len(x), -1), told], axis=1)
    hidden = np.maximum(flat @ arrays["dense1_w"] + arrays["dense1_b"], 0) * kept
    trail.append(("dense", x.shape, flat, hidden))
    return (hidden @ arrays["dense2_w"] + arrays["dense2_b"])[:, 0], trail


def _pool(x: Image) -> tuple[Image, NDArray]:
    n, n_y, n_x, n_c = x.shape
    blocks = x[:, : n_y // 2 * 2, : n_x // 2 * 2].reshape(n, n_y // 2, 2, n_x // 2, 2, n_c)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, n_y // 2, n_x // 2, 4, n_c)
    winners = blocks.argmax(axis=3)
    return np.take_along_axis(blocks, winners[:, :, :, None], axis=3)[:, :, :, 0], winners


def _unpool(gradient: Image, shape: tuple[int, ...], winners: NDArray) -> Image:
    n, n_y, n_x, n_c = shape
    blocks = np.zeros((n, n_y // 2, n_x // 2, 4, n_c), np.float32)
    np.put_along_axis(blocks, winners[:, :, :, None], gradient[:, :, :, None], axis=3)
    out = np.zeros(shape, np.float32)
    spread = blocks.reshape(n, n_y // 2, n_x // 2, 2, 2, n_c).transpose(0, 1, 3, 2, 4, 5)
    out[:, : n_y // 2 * 2, : n_x // 2 * 2] = spread.reshape(n, n_y // 2 * 2, n_x // 2 * 2, n_c)
    return out


def backward(arrays: dict[str, Image], trail: list, gradient: Image, kept: Image) -> dict[str, Image]:
    """Gradients of the loss by all arrays, from the gradient by the log odds."""
    _, shape, flat, hidden = trail[-1]
    column = gradient[:, None]
    grads = {"dense2_w": hidden.T @ column, "dense2_b": column.sum(axis=0)}
    back = (column @ arrays["dense2_w"].T) * (hidden > 0) * kept
    grads["dense1_w"], grads["dense1_b"] = flat.T @ back, back.sum(axis=0)
    back = (back @ arrays["dense1_w"].T)[:, : np.prod(shape[1:])].reshape(shape)
    for step in reversed(trail[:-1]):
        if step[0] == "pool":
            back = _unpool(back, step[1], step[2])
            continue
        layer, shape, columns, out = step
        back = (back * (out > 0)).reshape(-1, out.shape[-1])
        grads[f"{layer}_w"] = columns.reshape(-1, columns.shape[-1]).T @ back
        grads[f"{layer}_b"] = back.sum(axis=0)
        if layer != "conv1":
            back = _spread(back @ arrays[f"{layer}_w"].T, shape)
    return grads


def _spread(columns: Image, shape: tuple[int, ...]) -> Image:
    """Gradient by the maps from that by their neighbourhoods: the reverse of `patches`."""
    n, n_y, n_x, n_c = shape
    out_y, out_x = n_y - KERNEL + 1, n_x - KERNEL + 1
    parts = columns.reshape(n, out_y, out_x, KERNEL, KERNEL, n_c)
    out = np.zeros(shape, np.float32)
    for dy in range(KERNEL):
        for dx in range(KERNEL):
            out[:, dy : dy + out_y, dx : dx + out_x] += parts[:, :, :, dy, dx]
    return out


def _turned(rng: np.random.Generator, x: Image) -> Image:
    """The whole batch turned or mirrored in one of eight ways."""
    k, mirrored = int(rng.integers(4)), rng.random() < 0.5
    x = np.rot90(x, k, axes=(1, 2))
    return np.ascontiguousarray(x[:, :, ::-1] if mirrored else x)


class Adam:
    """Adam with decoupled decay (Loshchilov & Hutter 2019) and a running average of the weights."""

    def __init__(self, arrays: dict[str, Image], schedule: Schedule):
        self.arrays, self.schedule, self.n_steps = arrays, schedule, 0
        self.first = {k: np.zeros_like(v) for k, v in arrays.items()}
        self.second = {k: np.zeros_like(v) for k, v in arrays.items()}
        self.average = {k: v.copy() for k, v in arrays.items()}

    def step(self, grads: dict[str, Image], rate: float) -> None:
        """Change the weights in place."""
        self.n_steps += 1
        t, memory = self.n_steps, min(self.schedule.memory, self.n_steps / (self.n_steps + 10))
        for key, grad in grads.items():
            self.first[key] += 0.1 * (grad - self.first[key])
            self.second[key] += 0.001 * (grad**2 - self.second[key])
            mean, power = self.first[key] / (1 - 0.9**t), self.second[key] / (1 - 0.999**t)
            self.arrays[key] -= rate * (mean / (np.sqrt(power) + 1e-8))
            if key.endswith("_w"):
                self.arrays[key] *= 1 - rate * self.schedule.decay
            self.average[key] += (1 - memory) * (self.arrays[key] - self.average[key])


class Lesson(NamedTuple):
    """What to learn from, one row for each candidate.

    Attributes
    ----------
    seen : ndarray, shape (n, CROP_PIX, CROP_PIX, N_CHANNELS)
        As `network_input` makes it; half precision saves memory.
    numbers : ndarray, shape (n, n_numbers)
        What the dense layer is told.
    real : ndarray, shape (n,), bool
    weight : ndarray, shape (n,)
        In the loss.
    """

    seen: NDArray[np.float16]
    numbers: NDArray[np.float64]
    real: NDArray[np.bool_]
    weight: Image


def spread_of(numbers: NDArray[np.float64]) -> tuple[Image, Image]:
    """Median and robust width of each column, for `standardised`."""
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    center = np.nanmedian(finite, axis=0)
    width = 1.4826 * np.nanmedian(np.abs(finite - center), axis=0)
    return center.astype(np.float32), np.where(width > 0, width, 1.0).astype(np.float32)


def train(lesson: Lesson, seed: int, schedule: Schedule, tell=print) -> dict[str, Image]:
    """Train the network; the same lesson gives the same arrays on one machine."""
    seen, numbers, real, weight = lesson
    spread = spread_of(numbers)
    told = standardised(numbers, *spread)
    rng = np.random.default_rng([seed, 11])
    adam = Adam(fresh_arrays(rng, schedule.widths, told.shape[1]), schedule)
    n_batches = len(seen) // schedule.batch
    n_steps = schedule.n_epochs * n_batches
    for epoch in range(schedule.n_epochs):
        order, losses = rng.permutation(len(seen)), []
        for k in range(n_batches):
            chosen = np.sort(order[k * schedule.batch : (k + 1) * schedule.batch])
            progress = adam.n_steps / n_steps
            rate = schedule.rate * min(1.0, adam.n_steps / 200 + 0.05) * (0.5 + 0.5 * np.cos(np.pi * progress))
            x = _turned(rng, seen[chosen].astype(np.float32))
            kept = (rng.random((len(x), schedule.widths[-1])) > schedule.dropout) / np.float32(1 - schedule.dropout)
            kept = kept.astype(np.float32)
            odds, trail = forward(adam.arrays, x, told[chosen], kept)
            share = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
            w = weight[chosen] / weight.mean()
            grads = backward(adam.arrays, trail, (w * (share - real[chosen]) / len(x)).astype(np.float32), kept)
            adam.step(grads, rate)
            likely = np.clip(np.where(real[chosen], share, 1 - share), 1e-7, 1)
            losses.append(float(-(w * np.log(likely)).mean()))
        tell(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}")
    arrays = {**adam.average, "center": spread[0], "scale": spread[1]}
    CutNet.from_arrays(arrays)
    return arrays
