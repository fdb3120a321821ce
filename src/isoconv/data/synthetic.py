"""Two synthetic sets, painted like microscopy, that show what rotation invariance is for. No download.

A class is the form and arrangement of the cells, never their direction. Yet in every split everything points one way:
long cells stand upright, cells are denser at their foot, fibres run across, light comes from the top. A network may
learn these directions, and fails where they turn.

``cells`` is a stained section, RGB by the law of Beer and Lambert; ``cells3d`` a fluorescence stack that fades with
depth, one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from isoconv.data.dataset import Dataset, Split, Task

__all__ = ["SYNTHETIC", "generate"]


_FIVE = ("round", "elongated", "hollow", "clustered", "dense")
SYNTHETIC: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("cells", "Synthetic cells", "multiclass", 2, 3, _FIVE, (2000, 400, 600), "MIT"),
        Task("cells3d", "Synthetic cells 3D", "multiclass", 3, 1, _FIVE[:4], (600, 120, 240), "MIT"),
    )
}


@dataclass(frozen=True)
class _Form:
    """Ranges of what makes a class. Lengths are in pixels of a 2D image of 28 pixels a side."""

    cells: tuple[int, int]
    radius: tuple[float, float]  # of the sphere of equal volume
    elongation: tuple[float, float]  # longest axis over the others
    hollow: tuple[float, float]  # share of the stain missing inside
    spread: float  # standard deviation of the cells' centres, 0 for cells all over the image


_FORMS = {
    "round": _Form((4, 7), (2.7, 3.5), (1.0, 1.3), (0.0, 0.2), 0.0),
    "elongated": _Form((4, 7), (2.4, 3.2), (2.3, 3.4), (0.0, 0.2), 0.0),
    "hollow": _Form((4, 7), (3.0, 4.0), (1.0, 1.4), (0.75, 1.0), 0.0),
    "clustered": _Form((6, 10), (1.9, 2.5), (1.0, 1.3), (0.0, 0.2), 4.0),
    "dense": _Form((9, 14), (1.5, 2.1), (1.0, 1.3), (0.0, 0.2), 0.0),
}

_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)  # optical density in R, G, B (Ruifrok and Johnston 2001)
_EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
_SIDE = {2: 28.0, 3: 22.0}  # of the field of view
_CHUNK = {2: 32, 3: 4}  # images painted at once: few enough for the cache


def generate(name: str, size: int = 28, seed: int = 0) -> Dataset:
    """Paint a synthetic set. The same arguments give the same bytes, another size the same scenes with other noise.

    Args:
        name: ``"cells"`` (2D, RGB) or ``"cells3d"`` (3D, one channel).
        size: side in pixels, from 16 up.
        seed: any integer >= 0.

    Raises:
        ValueError: ``size`` is below 16.
    """
    return painted(SYNTHETIC[name], size, seed, _split)


def painted(task: Task, size: int, seed: int, split: Callable[[Task, int, np.random.Generator, int], Split]) -> Dataset:
    """A synthetic set whose splits, of so many images, are painted from random numbers of their own."""
    if size < 16:
        raise ValueError(f"{task.name} needs at least 16 pixels a side to show what it holds, got size={size}")
    splits = enumerate(task.counts)
    train, val, test = (split(task, size, np.random.default_rng([seed, i]), count) for i, count in splits)
    return Dataset(task, size, train, val, test, source=f"synthetic seed={seed}")


def _split(task: Task, size: int, rng: np.random.Generator, count: int) -> Split:
    labels = rng.permutation(np.arange(count) % len(task.labels))
    chunks = np.split(labels, range(_CHUNK[task.dims], count, _CHUNK[task.dims]))
    images = [_paint(task, size, chunk, child) for chunk, child in zip(chunks, rng.spawn(len(chunks)), strict=True)]
    return Split(torch.from_numpy(np.concatenate(images)), torch.from_numpy(labels))


def _paint(task: Task, size: int, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 ``(n, C, *spatial)``. The noise is drawn last: it alone takes more draws for a larger image."""
    n, dims, side = len(labels), task.dims, _SIDE[task.dims]
    axis = ((np.arange(size) + 0.5) * (side / size)).astype(np.float32)
    axes = [axis.reshape([-1 if i == j else 1 for j in range(dims)]) for i in range(dims)]

    def per_image(low: float, high: float) -> np.ndarray:
        return _column(rng.uniform(low, high, (n, 1)), dims)

    cells = _cells(task, labels, rng, axes)[:, None] * per_image(0.8, 1.4)
    fibres = np.exp(per_image(0.1, 0.4) * _fibres(rng, n, axes)[:, None]) * per_image(0.2, 0.5)
    light = 1 - per_image(0.1, 0.4) * (axes[0] / side)
    level = per_image(0.015, 0.05)
    if task.channels == 3:
        haematoxylin, eosin = (stain.reshape(1, 3, *(1,) * dims) for stain in (_HAEMATOXYLIN, _EOSIN))
        images = light * np.exp(-(cells * haematoxylin + fibres * eosin))
    else:
        images = light**2 * (0.8 * cells + 0.3 * fibres)
        level = 1.5 * level * np.sqrt(images)  # photons are counted
    images += level * rng.standard_normal(images.shape, np.float32)
    return (255 * images.clip(0, 1)).round().astype(np.uint8)


def _column(values: np.ndarray, dims: int) -> np.ndarray:
    """``values`` as float32, with ``dims`` axes of length 1 added, to broadcast over pixels."""
    return values.astype(np.float32).reshape(values.shape + (1,) * dims)


def _fibres(rng: np.random.Generator, n: int, axes: list[np.ndarray]) -> np.ndarray:
    """Waves ``(n, *spatial)`` of mean 0 and variance 1 that run along the first axis: their crests lie across."""
    dims, waves = len(axes), 6
    cycles = rng.normal(0, 0.4, (dims, waves, n))
    cycles[0] = rng.uniform(2, 6, (waves, n))
    frequency = _column(cycles * (2 * np.pi / _SIDE[dims]), dims)
    phase = _column(rng.uniform(0, 2 * np.pi, (waves, n)), dims)
    total = sum(np.cos(sum((frequency[i, wave] * axes[i] for i in range(dims)), phase[wave])) for wave in range(waves))
    return total * np.float32((2 / waves) ** 0.5)


def _cells(task: Task, labels: np.ndarray, rng: np.random.Generator, axes: list[np.ndarray]) -> np.ndarray:
    """Density ``(n, *spatial)`` of the stain in the cells, about 1 within a cell."""
    n, dims = len(labels), task.dims
    most = max(_FORMS[label].cells[1] for label in task.labels)

    def ranges(attribute: str) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.array([getattr(_FORMS[task.labels[k]], attribute) for k in labels]).T[..., None]
        return low, high

    def per_cell(attribute: str) -> np.ndarray:
        low, high = ranges(attribute)
        return rng.uniform(low, high, (n, most))

    low, high = ranges("cells")
    alive = np.arange(most) < rng.integers(low, high + 1, (n, 1))
    stain = _column(alive * rng.uniform(0.7, 1.1, (n, most)), dims)
    radius, elongation, hollow = per_cell("radius"), per_cell("elongation"), _column(per_cell("hollow"), dims)
    sharpness = _column(radius / rng.uniform(1.0, 1.8, (n, 1)), dims)
    upright = np.array([dims - 1] + [-1] * (dims - 1)) / dims  # longer along the first axis, of the same volume
    half_axes = radius[..., None] * elongation[..., None] ** upright
    tilt = rng.normal(0, 0.1, (n, most, dims, dims))
    frame = (np.eye(dims) + tilt - tilt.swapaxes(-1, -2)) / half_axes[..., None, :]  # turned by a few degrees
    centre = _centres(rng, np.array([_FORMS[task.labels[k]].spread for k in labels]), most, dims)
    shift = _column(-np.einsum("nci,ncij->ncj", centre, frame), dims)
    frame = _column(frame, dims)

    total = np.zeros((n, *(axes[0].size,) * dims), np.float32)
    for cell in range(most):
        along = [sum((frame[:, cell, i, j] * axes[i] for i in range(dims)), shift[:, cell, j]) for j in range(dims)]
        square = sum(a * a for a in along)
        body = _smooth_step(0.5 + (1 - np.sqrt(square)) * sharpness[:, cell])
        body *= 1 - hollow[:, cell] * _smooth_step(1.3 - 1.6 * square)
        body *= 1 + 0.45 * along[0].clip(-1, 1)  # denser at the foot
        total += body * stain[:, cell]
    return total


def _smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and a cubic between."""
    x = x.clip(0, 1)
    return x * x * (3 - 2 * x)


def _centres(rng: np.random.Generator, spread: np.ndarray, most: int, dims: int) -> np.ndarray:
    """Centres ``(n, most, dims)``: a clump where ``spread`` > 0, else each cell in its own place of a jittered grid."""
    n, side, places = len(spread), _SIDE[dims], {2: 4, 3: 3}[dims]
    chosen = rng.random((n, places**dims)).argsort(1)[:, :most]
    scattered = np.stack(np.unravel_index(chosen, (places,) * dims), -1) + rng.uniform(0.15, 0.85, (n, most, dims))
    clump = rng.uniform(0.36, 0.64, (n, 1, dims)) * side + rng.normal(0, 1, (n, most, dims)) * spread[:, None, None]
    return np.where(spread[:, None, None] > 0, clump, scattered * (side / places))
