"""Two synthetic sets for segmentation, painted like microscopy: vessels and cells among thin fibres. No download.

A vessel is told from a fibre by its width and brightness, never by its direction. Yet in every split everything points
one way: vessels run down the image and narrow towards its foot, fibres run across, light comes from the top. A network
may learn these directions, and fails where they turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from isoconv.data.dataset import Dataset, Split, Task
from isoconv.data.synthetic import painted

__all__ = ["VESSELS", "generate"]

_LABELS = ("background", "vessel", "cell")
VESSELS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("vessels", "Synthetic vessels", "segmentation", 2, 1, _LABELS, (160, 40, 60), "MIT"),
        Task("vessels3d", "Synthetic vessels 3D", "segmentation", 3, 1, _LABELS, (40, 10, 16), "MIT"),
    )
}

_SIDE = {2: 48.0, 3: 32.0}  # of the field of view, in the unit of the radii below
_VESSELS, _FIBRES, _CELLS = {2: 3, 3: 3}, {2: 5, 3: 8}, {2: 4, 3: 5}  # per image


def generate(name: str, size: int = 64, seed: int = 0) -> Dataset:
    """Paint a synthetic set. The same arguments give the same bytes, another size the same scenes with other noise.

    Args:
        name: ``"vessels"`` (2D) or ``"vessels3d"``; one channel, labels 0 background, 1 vessel, 2 cell.
        size: side in pixels, from 16 up.
        seed: any integer >= 0.

    Raises:
        ValueError: ``size`` is below 16.
    """
    return painted(VESSELS[name], size, seed, _split)


def _split(task: Task, size: int, rng: np.random.Generator, count: int) -> Split:
    images, masks = zip(*(_paint(task.dims, size, each) for each in rng.spawn(count)), strict=True)
    return Split(torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.stack(masks)))


def _paint(dims: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image and its labels, uint8 ``(*spatial)``. The noise is drawn last: it alone takes more draws for a larger
    image."""
    side = _SIDE[dims]
    axis = ((np.arange(size) + 0.5) * (side / size)).astype(np.float32)
    grid = np.meshgrid(*[axis] * dims, indexing="ij")
    vessels = _tubes(grid, 0, _VESSELS[dims], (1.8, 2.8), side, rng)
    fibres = _tubes(grid, 1, _FIBRES[dims], (0.5, 0.9), side, rng)
    cells = _balls(grid, _CELLS[dims], (2.5, 4.0), side, rng)
    light = 1 - rng.uniform(0.2, 0.5) * grid[0] / side
    tubes = 0.12 + 0.3 * _soft(fibres) + rng.uniform(0.35, 0.5) * _soft(vessels)
    image = light * np.maximum(tubes, rng.uniform(0.75, 0.95) * _soft(cells))
    image += rng.uniform(0.03, 0.08) * rng.standard_normal(image.shape, np.float32)
    labels = np.where(cells > 0, 2, np.where(vessels > 0, 1, 0)).astype(np.uint8)
    return (255 * image.clip(0, 1)).round().astype(np.uint8), labels


def _soft(depth: np.ndarray) -> np.ndarray:
    """1 inside, 0 outside, linear over one unit at the edge."""
    return (depth + 0.5).clip(0, 1)


def _tubes(
    grid: Sequence[np.ndarray],
    along: int,
    count: int,
    radii: tuple[float, float],
    side: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Depth below the surface of the nearest of ``count`` winding tubes that run along an axis, narrowing on the way;
    negative outside."""
    t = grid[along] / side
    depth = np.full_like(t, -np.inf)
    for place in rng.permutation(count):
        square = np.zeros_like(t)
        for axis in range(len(grid)):
            if axis != along:
                start = (place + rng.uniform(0.2, 0.8)) / count if axis == 1 - along else rng.uniform(0.15, 0.85)
                slope, bend = rng.normal(0, 0.15), rng.uniform(0.02, 0.06)
                turns, phase = 2 * np.pi * rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi)
                centre = start + slope * (t - 0.5) + bend * np.sin(turns * t + phase)
                lean = slope + bend * turns * np.cos(turns * t + phase)
                square += (grid[axis] - side * centre) ** 2 / (1 + lean**2)
        depth = np.maximum(depth, rng.uniform(*radii) * (1.15 - 0.4 * t) - np.sqrt(square))
    return depth


def _balls(
    grid: Sequence[np.ndarray], count: int, radii: tuple[float, float], side: float, rng: np.random.Generator
) -> np.ndarray:
    """Depth below the surface of the nearest of ``count`` balls; negative outside."""
    depth = np.full_like(grid[0], -np.inf)
    for _ in range(count):
        centre = rng.uniform(0.1, 0.9, len(grid)) * side
        square = sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True))
        depth = np.maximum(depth, rng.uniform(*radii) - np.sqrt(square))
    return depth
