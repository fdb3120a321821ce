"""What is wrong with a data set, and what training would make of it, before any hour is spent on it."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from isoconv._progress import track
from isoconv.data import listing, load, masks, own_path
from isoconv.data.dataset import Dataset, Task
from isoconv.data.files import read_arrays

__all__ = ["Report", "check"]

_SHOWN = 10
_IMBALANCE = 10
_FEW = 5


@dataclass
class Report:
    """``errors`` stop a training or spoil its results, ``warnings`` are worth a look, ``facts`` say what was found and
    what training does with it, plain JSON values. ``info`` are the facts of a data set that can be loaded."""

    facts: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    info: Task | None = None


@dataclass(frozen=True)
class _Image:
    name: str
    split: str
    digest: bytes
    constant: bool


@dataclass(frozen=True)
class _Look:
    shape: tuple[int, ...]
    dtype: str
    spacing: Sequence[float] | None
    low: float
    high: float


def check(data: str, size: int = 28, root: str | os.PathLike[str] | None = None, task: str | None = None) -> Report:
    """Read all of a data set and report what is wrong with it.

    Errors are: images that cannot be read, hold NaN, or are constant; the same pixels, or the same patient, in two
    splits; a class or split without images to train with. In a set known by name, which its users cannot change, these
    are warnings. Warnings are: the same pixels twice in a split, a class ten
    times as frequent as another, a class with under five images or missing from val or test, and, of users' own files,
    sizes, spacings, channels or number types that vary. Masks are read too: each has to fit its image.

    Args:
        data: a task's name or a path, as for :func:`isoconv.data.load`.
        size, root, task: as there.

    Raises:
        FileNotFoundError, ValueError: there is nothing that could be listed, or a named task cannot be loaded.
    """
    path, report = own_path(data), Report()
    if path is not None and path.suffix.lower() != ".npz":
        _check_files(path, size, task, report)
        return report
    try:
        dataset = load(data, size, root, task=task)
    except ValueError as error:
        if path is None:
            raise
        report.errors.append(str(error))
        return report
    splits = {name: getattr(dataset, name) for name in listing.SPLITS}
    images = [
        _Image(f"{name}[{i}]", name, hashlib.sha256(image).digest(), bool(image.min() == image.max()))
        for name, split in splits.items()
        for i, image in enumerate(split.images.numpy())
    ]
    _describe(dataset.task, size, report)
    _compare(images, report, published=path is None)
    _balance(dataset, report)
    return report


def _check_files(path: Path, size: int, task: str | None, report: Report) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="pydicom")  # of values in headers
        found = listing.items(path, task)
    report.warnings += list(dict.fromkeys(str(each.message) for each in caught))
    try:
        assigned = listing.assign(found)
        listing.check_targets(assigned)
    except ValueError as error:
        report.errors.append(str(error))
        assigned = found
    images, looks, unread = [], [], 0
    for item in track(assigned, "image files", len(assigned)):
        try:
            arrays = read_arrays(item.path)
        except (ValueError, FileNotFoundError) as error:
            report.errors.append(str(error))
            unread += 1
            continue
        name, array, spacing = arrays[0][0], arrays[0][1].array, arrays[0][1].spacing
        if len(arrays) > 1:
            report.errors.append(f"{item.path} holds {len(arrays)} arrays; store each image in a file of its own")
        if array.size == 0 or array.dtype.kind not in "buif":
            report.errors.append(f"{item.path} holds {array.dtype} of shape {array.shape}, which is not an image")
            continue
        if item.mask is not None:
            report.errors += _wrong_with_mask(item.path, item.mask, array)
        low, high = float(array.min()), float(array.max())
        if not np.isfinite([low, high]).all():
            report.errors.append(f"{item.path} holds NaN or infinity; replace them by numbers")
            continue
        digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes()).digest()
        images.append(_Image(name, item.split, digest, low == high))
        looks.append(_Look(array.shape, str(array.dtype), spacing, low, high))
    report.facts |= {"images": len(assigned), "unreadable": unread}
    if looks:
        _vary(looks, report)
    _compare(images, report)
    if not report.errors:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told already
                dataset = load(str(path), size, task=task)
        except ValueError as error:
            report.errors.append(str(error))
            return
        _describe(dataset.task, size, report)
        _balance(dataset, report)
        report.facts["patients"] = len({item.patient for item in assigned if item.patient}) or "unknown"


def _wrong_with_mask(image: Path, mask: Path, array: np.ndarray) -> list[str]:
    try:
        labels = masks.read_mask(mask)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    if labels.shape != array.shape[: labels.ndim]:
        return [f"{mask} has shape {labels.shape}, its image {image} {array.shape}; they must be equal"]
    return []


def _vary(looks: Sequence[_Look], report: Report) -> None:
    """What of the files' form varies, though training makes it one."""
    coloured = [len(look.shape) > 2 and look.shape[-1] in (1, 3, 4) for look in looks]
    shapes = [look.shape[:-1] if c else look.shape for look, c in zip(looks, coloured, strict=True)]
    sizes = Counter("x".join(map(str, shape)) for shape in shapes)
    spacings = Counter(
        " x ".join(f"{s:.3g}" for s in look.spacing) + " mm" if look.spacing else "not stated"
        for look, shape in zip(looks, shapes, strict=True)
        if len(shape) == 3
    )
    types = Counter(look.dtype for look in looks)
    grey = Counter("RGB" if c and look.shape[-1] >= 3 else "grey" for look, c in zip(looks, coloured, strict=True))
    for what, counts, remedy in (
        ("sizes", sizes, "all become one size"),
        ("voxel spacings", spacings, "volumes are resampled to cubic voxels"),
        ("number types", types, "each file is scaled by itself, unless it is uint8 or floats from 0 to 1"),
        ("channels", grey, "grey images are repeated in red, green and blue"),
    ):
        if counts:
            report.facts[what] = ", ".join(f"{key} ({n})" for key, n in counts.most_common(_SHOWN))
        if len(counts) > 1:
            report.warnings.append(f"{what} vary, {len(counts)} kinds: {remedy}")
    report.facts["values"] = f"{min(look.low for look in looks):g} to {max(look.high for look in looks):g}"
    if 0 < spacings["not stated"] < len(looks):
        report.warnings.append("some volumes have no voxel spacing: they are taken to be cubes")


def _describe(info: Task, size: int, report: Report) -> None:
    fit = "central square, " if info.dims == 2 else "padded to a cube where the spacing is known, "
    report.info = info
    report.facts |= {
        "kind": f"{info.kind}, {info.dims}D, {'RGB' if info.channels == 3 else 'grey'}",
        "classes": ", ".join(info.labels),
        "train/val/test": "/".join(map(str, info.counts)),
        "in training": f"{fit}{' x '.join([str(size)] * info.dims)}",
    }


def _compare(images: Iterable[_Image], report: Report, published: bool = False) -> None:
    """``published``: whether users can change nothing about it."""
    leave, keep = ("", "") if published else ("; leave it out", "; keep one")
    same: dict[bytes, list[_Image]] = defaultdict(list)
    constant = []
    for image in images:
        same[image.digest].append(image)
        if image.constant:
            constant.append(f"{image.name} is constant, all its pixels are equal{leave}")
    twice = [group for group in same.values() if len(group) > 1]
    across = [group for group in twice if len({image.split for image in group}) > 1]
    within = [group for group in twice if len({image.split for image in group}) == 1]
    spoilt = report.warnings if published else report.errors
    spoilt += _some(constant)
    spoilt += _some([f"the same image in two splits: {_names(group)}{keep}" for group in across])
    report.warnings += _some([f"the same image twice in {group[0].split}: {_names(group)}" for group in within])


def _names(group: Sequence[_Image]) -> str:
    return ", ".join(f"{image.name} ({image.split})" for image in group[:4]) + (", ..." if len(group) > 4 else "")


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more of this kind"]


def _balance(dataset: Dataset, report: Report) -> None:
    task = dataset.task
    if dataset.train.labels.is_floating_point():  # numbers have no classes
        return
    counts: dict[str, list[int]] = {}
    for name in listing.SPLITS:
        counts[name] = _images_per_class(task, getattr(dataset, name).labels)
        if absent := [label for label, n in zip(task.labels, counts[name], strict=True) if n == 0]:
            report.warnings.append(f"{name} has no image of {', '.join(absent)}: nothing is learnt or measured of it")
    train = dict(zip(task.labels, counts["train"], strict=True))
    per_class = zip(*counts.values(), strict=True)
    report.facts["images per class"] = {
        label: "/".join(map(str, each)) for label, each in zip(task.labels, per_class, strict=True)
    }
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] >= _IMBALANCE * max(train[least], 1):
        text = f"{most} has {train[most]} training images, {least} {train[least]}"
        report.warnings.append(f"classes are unbalanced: {text}; look at the balanced accuracy, not at the accuracy")
    if few := [label for label, n in train.items() if 0 < n < _FEW]:
        report.warnings.append(f"under {_FEW} images to train with of {', '.join(few)}")


def _images_per_class(task: Task, labels: Tensor) -> list[int]:
    """How many images show each class."""
    classes = len(task.labels)
    if task.kind == "multilabel":
        return labels.sum(0).tolist()
    if task.kind == "segmentation":
        return [int((labels == c).flatten(1).any(1).sum()) for c in range(classes)]
    return labels.bincount(minlength=classes).tolist()
