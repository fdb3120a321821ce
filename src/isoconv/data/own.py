"""Users' own data sets: a folder per class, images/ beside masks/, a CSV manifest, or an npz archive of MedMNIST's
layout. What a folder or a manifest lists, and how it is split, see :mod:`isoconv.data.listing`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from isoconv._checks import count_of, did_you_mean
from isoconv._progress import track
from isoconv.data import archives, masks
from isoconv.data.dataset import KINDS, Dataset, Kind, Split, Task, fingerprint
from isoconv.data.files import as_uint8, probe, read_images, stack_images
from isoconv.data.listing import SPLITS, Item, assign, check_targets, classes, folded, items

__all__ = ["find"]

_NAMES = "classes"  # the array of an archive that names its labels


def find(
    path: Path, task: str | None = None, part: tuple[int, int] | None = None
) -> tuple[Task, Callable[[int], Dataset]]:
    """The facts of a data set at ``path``, and what reads it at a size in pixels.

    Its name is the path. Labels are sorted, numbers as numbers. Every image is cropped and resized as
    :mod:`isoconv.data.files` says.

    Args:
        task: a key of :data:`isoconv.data.KINDS`; None lets the shape of the data decide.
        part: fold, from 1 on, and number of folds; see :func:`isoconv.data.listing.folded`.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or an image is missing.
        ValueError: the data set is of none of these kinds, or not for this task, or its splits or labels cannot be
            trained with; in reading, for the first image that cannot be read.
    """
    if task is not None and task not in KINDS:
        raise ValueError(f"task must be one of {', '.join(KINDS)}, got {task!r}{did_you_mean(task, KINDS)}")
    found, read = _find(path, task, part)
    if task is not None and found.kind not in KINDS[task]:
        raise ValueError(f"{path} is for {_work(found.kind)}, not for {task}; leave out --task, or give other data")
    return found, read


def _find(path: Path, task: str | None, part: tuple[int, int] | None) -> tuple[Task, Callable[[int], Dataset]]:
    if part is not None and path.suffix.lower() == ".npz":
        raise ValueError(f"{path} has its own splits; folds need a folder or a manifest without splits")
    if path.suffix.lower() == ".npz":  # to be read again: held, it would take the memory twice
        return _archive_task(path, _archive(path, task)), partial(_read_archive, path, task)
    listed = items(path, task)
    assigned = assign(listed if part is None else folded(listed, *part))
    if assigned[0].mask is not None:
        return masks.of_pairs(
            path, {s: [(i.path, i.mask) for i in assigned if i.split == s and i.mask] for s in SPLITS}
        )
    found = _listed_task(path, assigned)
    return found, partial(_read_listed, path, found, assigned)


def _work(kind: Kind) -> str:
    return next(task for task, kinds in KINDS.items() if kind in kinds)


def _listed_task(path: Path, assigned: Sequence[Item]) -> Task:
    check_targets(assigned)
    kind, labels = classes(assigned)
    looks = [probe(item.path) for item in assigned]
    dims = looks[0][0]
    for item, look in zip(assigned, looks, strict=True):
        if look[0] != dims:
            first = assigned[0].path
            raise ValueError(f"{item.path} is {look[0]}D, {first} is {dims}D; a data set is one or the other")
    counts = Counter(item.split for item in assigned)
    train, val, test = (counts[s] for s in SPLITS)
    channels = max(channels for _, channels in looks)
    return Task(str(path), path.stem, kind, dims, channels, labels, (train, val, test), licence="")


def _read_listed(path: Path, found: Task, assigned: Sequence[Item], size: int) -> Dataset:
    listed = {s: [item for item in assigned if item.split == s] for s in SPLITS}
    train, val, test = (_split(each, found, size) for each in listed.values())
    root = path if path.is_dir() else path.parent
    known = {s: fingerprint(root, {item.path: _told(item) for item in each}) for s, each in listed.items()}
    return Dataset(found, size, train, val, test, source=str(path), fingerprints=known)


def _told(item: Item) -> tuple[str, ...]:
    """The labels of an item, or its numbers with their names."""
    return item.labels or tuple(f"{name}={value!r}" for name, value in item.values.items())


def _split(listed: Sequence[Item], found: Task, size: int) -> Split:
    images = []
    for item in track(listed, "image files", len(listed)):
        names, image = read_images(item.path, channels=found.channels, size=size, dims=found.dims)
        if len(names) != 1:
            raise ValueError(f"{item.path} holds {len(names)} images for one label; store each in a file of its own")
        images.append(image[0])
    if found.kind == "regression":
        return Split(torch.stack(images), torch.tensor([list(item.values.values()) for item in listed]))
    numbers = [[found.labels.index(label) for label in item.labels] for item in listed]
    if found.kind != "multilabel":
        return Split(torch.stack(images), torch.tensor(numbers)[:, 0])
    labels = torch.zeros(len(listed), len(found.labels), dtype=torch.int64)
    for row, ones in zip(labels, numbers, strict=True):
        row[ones] = 1
    return Split(torch.stack(images), labels)


def _read_archive(path: Path, task: str | None, size: int) -> Dataset:
    arrays = _archive(path, task)
    found = _archive_task(path, arrays)
    dtype = np.float32 if found.kind == "regression" else np.int64
    train, val, test = (
        Split(
            stack_images(f"{path}:{s}_images", arrays[f"{s}_images"], found.channels, found.dims, size),
            torch.from_numpy(arrays[f"{s}_labels"].astype(dtype)),
        )
        for s in SPLITS
    )
    known = {s: hashlib.sha256(arrays[f"{s}_labels"].tobytes()).hexdigest() for s in SPLITS}
    return Dataset(found, size, train, val, test, source=str(path), fingerprints=known)


def _archive(path: Path, task: str | None) -> dict[str, np.ndarray]:
    """The six arrays, labels ``(N,)`` whole numbers, or ``(N, L)`` zeros and ones, or ``(N, T)`` floats; and the names
    of the labels, if they are there."""
    keys = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    if not path.exists():
        raise FileNotFoundError(f"there is no data set {path}: no such file")
    arrays = archives.members(path, keys, optional=[_NAMES])
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        where = f"{path}: {split}"
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = arrays[f"{split}_labels"] = labels[:, 0]
        if len(images) == 0:
            raise ValueError(f"{where} split is empty; put at least one image into each split")
        if labels.dtype.kind == "f" and task != "classification" or task == "regression":
            arrays[f"{split}_labels"] = _numbers(where, labels, len(images))
        elif labels.dtype.kind not in "biu" or labels.ndim not in (1, 2) or len(labels) != len(images):
            wanted = count_of(len(images), "whole number")
            raise ValueError(f"{where} labels must be {wanted}, got {labels.dtype} {labels.shape}")
        elif labels.min() < 0 or (labels.ndim == 2 and labels.max() > 1):
            wanted = "0 or 1 in a table of several labels" if labels.ndim == 2 else "0 or more"
            raise ValueError(f"{where} labels must be {wanted}, got {labels.min()} to {labels.max()}")
        if images.dtype != np.uint8 and not (images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"{where} images must be uint8, or floats from 0 to 1, so that all splits share one scale, got "
                f"{images.dtype} from {images.min()} to {images.max()}"
            )
        arrays[f"{split}_images"] = as_uint8(where, images)
    _ask(path, arrays)
    types = {s: str(arrays[f"{s}_labels"].dtype) for s in SPLITS}
    if len({"float" in name for name in types.values()}) > 1:
        raise ValueError(f"{path}: labels must be whole numbers in all splits, or floats in all, got {types}")
    shapes = {arrays[key].shape[1:] for key in keys if key.endswith("labels")}
    if len(shapes) > 1 or len({arrays[f"{s}_images"].ndim for s in SPLITS}) > 1:
        raise ValueError(f"{path}: the splits' arrays have different axes; give them the same")
    return arrays


def _numbers(where: str, labels: np.ndarray, images: int) -> np.ndarray:
    """Labels ``(N,)`` or ``(N, T)`` as floats ``(N, T)``."""
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2) or len(labels) != images:
        raise ValueError(f"{where} labels must be {images} numbers or rows of them, got {labels.dtype} {labels.shape}")
    if not np.isfinite(labels).all():
        raise ValueError(f"{where} labels hold NaN or infinity; leave these images out")
    return labels.reshape(images, -1).astype(np.float32)


def _ask(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError for arrays that two people would read in two ways."""
    shape, table = arrays["train_images"].shape, arrays["train_labels"]
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{path}: images of shape {shape} are {shape[0]} images with colours first, or volumes of depth "
            f"{shape[1]}; colours belong at the end, np.moveaxis(images, 1, -1), and volumes end in [..., None]"
        )
    labels = [arrays[f"{split}_labels"] for split in SPLITS]
    if (
        table.ndim == 2
        and table.dtype.kind in "iu"
        and all(each.ndim == 2 and (each.sum(1) == 1).all() for each in labels)
    ):
        raise ValueError(
            f"{path}: each row of the labels {table.shape} has a single 1, so they are classes (one-hot) or several "
            "labels of which an image has one; give classes as labels.argmax(1), several labels as labels.astype(bool)"
        )


def _archive_task(path: Path, arrays: dict[str, np.ndarray]) -> Task:
    train, val, test = (len(arrays[f"{s}_labels"]) for s in SPLITS)
    images, labels = arrays["train_images"], [arrays[f"{s}_labels"] for s in SPLITS]
    coloured = images.ndim > 3 and images.shape[-1] in (1, 3, 4)
    dims = images.ndim - 1 - coloured
    if dims not in (2, 3):
        raise ValueError(f"{path}: images must be (N, H, W) or (N, D, H, W), colours last, got {images.shape}")
    kind, names = _archive_kind(path, labels)
    if _NAMES in arrays:
        names = _names(path, arrays[_NAMES], len(names))
    channels = 3 if coloured and images.shape[-1] >= 3 else 1
    return Task(str(path), path.stem, kind, dims, channels, names, (train, val, test), licence="")


def _names(path: Path, given: np.ndarray, count: int) -> tuple[str, ...]:
    names = tuple(str(name).strip() for name in given.flat)
    if given.dtype.kind != "U" or given.shape != (count,) or len(set(names)) < count or "" in names:
        raise ValueError(
            f"{path}: {_NAMES} must be {count} different names in the order of the labels, "
            f"np.array([...], dtype=str), got {given.dtype} {given.shape}: {', '.join(names)!r:.60}"
        )
    return names


def _archive_kind(path: Path, labels: Sequence[np.ndarray]) -> tuple[Kind, tuple[str, ...]]:
    """The kind that the labels of all splits make, and their names."""
    first = labels[0]
    if first.dtype.kind == "f":
        return "regression", tuple(f"target {i + 1}" for i in range(first.shape[1]))
    if first.ndim == 2:
        return "multilabel", tuple(map(str, range(first.shape[1])))
    count = 1 + max(int(each.max()) for each in labels)
    if len(known := np.unique(first)) < count:
        absent = np.setdiff1d(np.arange(min(count, len(known) + 1)), known)[0]
        raise ValueError(f"{path}: no image to train with in class {absent}; labels are 0 to {count - 1}, all of them")
    if count < 2:
        raise ValueError(f"{path}: a classification needs at least 2 classes, all labels are 0")
    return ("binary" if count == 2 else "multiclass"), tuple(map(str, range(count)))
