"""What a multi-frame DICOM file says of each of its frames: where it lies, and its scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from isoconv.data.geometry import Grid, grid_of_slices

__all__ = ["count_of", "frame_grid", "frame_scales"]

_SLICE_VECTOR = 0x00540080
_TIMES = ("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate")


def count_of(data: Any) -> int:
    """The number of frames."""
    return int(data.get("NumberOfFrames") or 1)


def frame_scales(data: Any, count: int) -> np.ndarray:
    """Slope and intercept ``(count, 2)`` of each frame, (1, 0) where none are given."""
    if not (data.get("PerFrameFunctionalGroupsSequence") or data.get("SharedFunctionalGroupsSequence")):
        return np.tile([_number(data, "RescaleSlope", 1), _number(data, "RescaleIntercept", 0)], (count, 1))
    own = [_group(data, i, "PixelValueTransformationSequence") or data for i in range(count)]
    return np.array([[_number(each, "RescaleSlope", 1), _number(each, "RescaleIntercept", 0)] for each in own])


def frame_grid(data: Any, count: int) -> Grid:
    """The grid that the frames are slices of.

    Raises:
        ValueError: they are not slices, or no regular grid.
    """
    positions, orientations, spacing = (
        _placed(data, count) if data.get("PerFrameFunctionalGroupsSequence") else _stacked(data, count)
    )
    names = [f"frame {i + 1}" for i in range(count)]
    return grid_of_slices(names, positions, orientations, spacing)


def _number(data: Any, tag: str, default: float) -> float:
    value = data.get(tag)
    return default if value is None else float(value)


def _group(data: Any, frame: int, name: str) -> Any:
    """A functional group of a frame, of its own or shared by all; None if there is none."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (own[frame] if frame < len(own) else {}, shared[0] if shared else {}):
        if found := groups.get(name):
            return found[0]
    return None


def _placed(data: Any, count: int) -> list[np.ndarray]:
    """Positions, orientations and spacing of the frames of an enhanced file."""
    tables = []
    for group, tag in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        found = [(_group(data, i, group) or {}).get(tag) for i in range(count)]
        if not all(found):
            raise ValueError(f"they have no {tag}")
        tables.append(np.array(found, float))
    return tables


def _stacked(data: Any, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same where a file of doses or of nuclear medicine states the places of its frames along one normal."""
    pointer = data.get("FrameIncrementPointer")
    pointers = [int(tag) for tag in (pointer if isinstance(pointer, Iterable) else [pointer]) if tag is not None]
    detectors = data.get("DetectorInformationSequence")
    step = data.get("SpacingBetweenSlices")
    if offsets := data.get("GridFrameOffsetVector"):
        along, source = np.array(offsets, float), data
    elif pointers == [_SLICE_VECTOR] and step is not None:
        along, source = float(step) * np.arange(count), detectors[0] if detectors else data
    elif times := [tag for tag in _TIMES if data.get(tag) is not None]:
        raise ValueError(f"they are moments in time, it has {times[0]}")
    else:
        raise ValueError("they have no ImagePositionPatient")
    orientation, spacing = source.get("ImageOrientationPatient"), data.get("PixelSpacing")
    if orientation is None or spacing is None:
        raise ValueError("they have no ImageOrientationPatient or no PixelSpacing")
    if len(along) != count:
        raise ValueError(f"it states {len(along)} places for them")
    turned = np.array(orientation, float)
    normal = np.cross(turned[:3], turned[3:])
    return along[:, None] * normal, np.tile(turned, (count, 1)), np.tile(np.array(spacing, float), (count, 1))
