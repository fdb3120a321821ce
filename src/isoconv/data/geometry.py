"""Where the voxels of a volume are: a regular grid in space, or none.

A stack of slices is a grid where the slices are parallel, evenly spaced along their normal and equal in spacing. Slices
that are displaced within their planes, as under a tilted gantry, are moved onto a straight grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoconv.data.decoded import Spacing

__all__ = ["Grid", "checked_spacing", "grid_of_affine", "grid_of_slices", "straightened"]

_STEP_TOLERANCE = 0.1  # share of the distance between slices; scanners write positions to some digits
_ANGLE_TOLERANCE = 1e-2  # of direction cosines against right angles and unit length, for the same reason
_SHIFT_TOLERANCE = 0.1  # pixels


@dataclass(frozen=True)
class Grid:
    """Where parallel slices lie.

    Attributes:
        order: the slices' numbers, from the first along their normal to the last.
        spacing: millimetres between slices, rows, columns.
        shifts: pixels ``(N, 2)``, by rows and by columns, by which each slice in order starts behind the others.
    """

    order: np.ndarray
    spacing: Spacing
    shifts: np.ndarray


def grid_of_slices(names: Sequence[str], positions: np.ndarray, orientations: np.ndarray, spacing: np.ndarray) -> Grid:
    """The grid of DICOM slices.

    Args:
        names: for the error.
        positions: of the first pixel's centre, mm ``(N, 3)``.
        orientations: direction cosines ``(N, 6)`` of a row, then of a column.
        spacing: mm ``(N, 2)`` between rows and between columns.

    Raises:
        ValueError: they are no regular grid, with the reason.
    """
    if not all(np.isfinite(each).all() for each in (positions, orientations, spacing)):
        raise ValueError("a position, orientation or spacing of its slices is not finite")
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise ValueError("its slices are turned against each other (a localizer among them?); leave those out")
    if np.abs(spacing - spacing[0]).max() > 1e-3 * np.abs(spacing).max():
        raise ValueError("its slices differ in PixelSpacing; put each kind into a folder of its own")
    row, column = _unit(orientations[0, :3]), _unit(orientations[0, 3:])
    if abs(row @ column) > _ANGLE_TOLERANCE:
        raise ValueError("the orientation of its slices has no right angle between rows and columns")
    along = positions @ np.cross(row, column)
    order = np.argsort(along, kind="stable")
    along, sorted_positions = along[order], positions[order]
    steps = np.diff(along)
    if steps.min() <= 1e-3:
        first, second = (names[order[int(steps.argmin()) + k]] for k in (0, 1))
        raise ValueError(f"{first} and {second} lie in the same place; keep one of them")
    step = (along[-1] - along[0]) / (len(along) - 1)
    if np.abs(along - along[0] - step * np.arange(len(along))).max() > _STEP_TOLERANCE * step:
        gaps = f"{steps.min():g} to {steps.max():g} mm"
        raise ValueError(f"its slices are {gaps} apart; a slice is missing, or two series are mixed")
    plane = sorted_positions @ np.stack([column, row], 1)
    return Grid(order, checked_spacing((step, *spacing[0])), _from_the_first(plane / spacing[0]))


def grid_of_affine(affine: np.ndarray, count: int) -> Grid:
    """The grid of ``count`` planes along the third voxel axis, by the matrix ``(4, 4)`` from voxels to mm.

    Raises:
        ValueError: as above.
    """
    columns = affine[:3, :3].T
    lengths = checked_spacing(np.linalg.norm(columns, axis=1)[::-1])
    row, column = _unit(columns[0]), _unit(columns[1])
    if abs(row @ column) > _ANGLE_TOLERANCE:
        raise ValueError("its affine shears the first two axes; resample it to a straight grid")
    step = float(columns[2] @ np.cross(row, column))
    plane = np.arange(count)[:, None] * (np.stack([column, row]) @ columns[2]) / np.array(lengths[1:])
    return Grid(np.arange(count), checked_spacing((step, *lengths[1:])), _from_the_first(plane))


def straightened(volume: np.ndarray, grid: Grid) -> np.ndarray:
    """A volume ``(D, H, W, C)``, its slices in order, on a straight grid of the same spacing.

    Where slices are displaced it is larger, the rest being its smallest value, and interpolated linearly.

    Raises:
        ValueError: the slices are displaced by more than their size.
    """
    if grid.shifts.max() < _SHIFT_TOLERANCE:
        return volume
    depth, height, width, channels = volume.shape
    more = np.ceil(grid.shifts.max(0) - 1e-6).astype(int)
    if more[0] > height or more[1] > width:
        raise ValueError("its slices are displaced by more than their size; they are no volume")
    straight = np.empty((depth, height + more[0], width + more[1], channels), volume.dtype)
    for plane, image, shift in zip(straight, volume, grid.shifts, strict=True):
        whole = np.minimum(shift.astype(int), more)
        padded = np.full(plane.shape, volume.min(), np.float64)
        padded[whole[0] : whole[0] + height, whole[1] : whole[1] + width] = image
        for axis, part in enumerate(shift - whole):
            before = np.roll(padded, 1, axis)
            np.moveaxis(before, axis, 0)[0] = volume.min()
            padded = (1 - part) * padded + part * before
        plane[:] = padded if volume.dtype.kind == "f" else padded.round()
    return straight


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    if length == 0:
        raise ValueError("its orientation is zero")
    return vector / length


def checked_spacing(spacing: Sequence[float] | np.ndarray) -> Spacing:
    """The spacing in mm, or ValueError where it is zero, negative or not finite."""
    values = tuple(float(v) for v in spacing)
    if not all(0 < v < float("inf") for v in values):
        raise ValueError(f"its voxels measure {' x '.join(f'{v:g}' for v in values)} mm; correct its spacing")
    return values


def _from_the_first(plane: np.ndarray) -> np.ndarray:
    return plane - plane.min(0)
