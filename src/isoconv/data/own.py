"""Users' own data sets: a folder per class, a CSV manifest, or an npz archive of MedMNIST's layout.

A data set without splits gets them here, once for all seeds: 70 % of each class for training, 10 % for validation, 20 %
for the test; a missing val or test split is cut from train in these shares. A patient is never in two splits. Who the
patient is says the manifest's column, or the PatientID of DICOM files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from isoconv._files import open_regular
from isoconv.data import archives, medical
from isoconv.data.dataset import Dataset, Kind, Split, Task, fingerprint
from isoconv.data.decoded import LIMITS
from isoconv.data.files import as_uint8, find_images, images_in, probe, read_images, stack_images, with_series

__all__ = ["COLUMNS", "SPLITS", "Item", "assign", "classes", "find", "items", "load"]

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "patient")
_SHARES = {"val": 0.1, "test": 0.2}
_SEED = 0
_ALIASES = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Item:
    """An image and what is known of it. ``path`` is a file or a folder of DICOM slices; ``split`` and ``patient`` are
    empty where unknown; ``labels`` has one entry, or any number in a multilabel set."""

    path: Path
    labels: tuple[str, ...]
    split: str = ""
    patient: str = ""


def find(path: Path) -> tuple[Task, Callable[[int], Dataset]]:
    """The task that a data set at ``path`` stands for, and what reads it at a size in pixels.

    The task's name is the path. Labels are sorted, numbers as numbers. Every image is cropped and resized as
    :mod:`isoconv.data.files` says.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or an image is missing.
        ValueError: the data set is none of the three kinds, or its splits or labels cannot be trained with; in reading,
            for the first image that cannot be read.
    """
    if path.suffix.lower() == ".npz":  # to be read again: held, it would take the memory twice
        return _archive_task(path, _archive(path)), partial(_read_archive, path)
    assigned = assign(items(path))
    found = _listed_task(path, assigned)
    return found, partial(_read_listed, path, found, assigned)


def load(path: Path, size: int) -> Dataset:
    """What :func:`find` does, and then reads."""
    return _read_archive(path, size) if path.suffix.lower() == ".npz" else find(path)[1](size)


def items(path: Path) -> list[Item]:
    """What a folder or a manifest lists, in sorted order, the splits as they are given there."""
    if path.is_dir():
        found = _folder(path)
    elif not path.exists():
        raise FileNotFoundError(f"there is no data set {path}: no such file or folder")
    elif path.suffix.lower() == ".csv":
        found = _manifest(path)
    else:
        raise ValueError(f"{path} is no data set; give a folder with a folder per class, a .csv manifest or an .npz")
    if not found:
        raise ValueError(f"{path} lists no image")
    return sorted(found, key=lambda item: str(item.path))


def classes(found: Iterable[Item]) -> tuple[Kind, tuple[str, ...]]:
    """The kind of task that the labels make, and the labels in order."""
    found = list(found)
    labels = sorted({label for item in found for label in item.labels}, key=_natural)
    if any(len(item.labels) != 1 for item in found):
        return "multilabel", tuple(labels)
    if len(labels) < 2:
        raise ValueError(f"a classification needs at least 2 classes, found only {labels[0]!r}")
    return ("binary" if len(labels) == 2 else "multiclass"), tuple(labels)


def assign(found: Sequence[Item]) -> list[Item]:
    """The items with every split filled in, see the module.

    Raises:
        ValueError: a patient is in two splits, a split remains empty, or a class has no image to train with.
    """
    given = {item.split or "train" for item in found}
    missing = [s for s in _SHARES if s not in given]
    splits = {item.path: item.split or "train" for item in found} | _drawn(found, missing)
    assigned = [replace(item, split=splits[item.path]) for item in found]
    where: dict[str, set[str]] = {}
    for item in assigned:
        if item.patient:
            where.setdefault(item.patient, set()).add(item.split)
    if torn := sorted(patient for patient, among in where.items() if len(among) > 1):
        raise ValueError(f"{len(torn)} patients are in two splits: {_first(torn)}; give each patient one split")
    sizes = Counter(item.split for item in assigned)
    if empty := [s for s in SPLITS if not sizes[s]]:
        patients = " (a patient stays in one split)" if where else ""
        raise ValueError(
            f"{len(found)} images leave the {' and '.join(empty)} split empty{patients}; add images, or name the "
            "splits in a manifest"
        )
    trained = {label for item in assigned if item.split == "train" for label in item.labels}
    if absent := sorted({label for item in assigned for label in item.labels} - trained, key=_natural):
        raise ValueError(f"no image to train with in class {', '.join(absent)}; add some or leave the class out")
    return assigned


def _drawn(found: Sequence[Item], missing: Sequence[str]) -> dict[Path, str]:
    """Which items of the training split go to the missing ones: stratified, whole patients."""
    groups: dict[str, list[Item]] = {}
    for item in found:
        if item.split in ("", "train"):
            groups.setdefault(f"patient {item.patient}" if item.patient else f"image {item.path}", []).append(item)
    frequency = Counter(label for item in found for label in item.labels)
    strata: dict[str, list[list[Item]]] = {}
    for group in groups.values():
        rarest = min((label for item in group for label in item.labels), key=lambda x: (frequency[x], x), default="")
        strata.setdefault(rarest, []).append(group)
    drawn: dict[Path, str] = {}
    random = np.random.default_rng(_SEED)
    for _, members in sorted(strata.items()):
        order = [members[i] for i in random.permutation(len(members))]
        for split in missing:
            # one for each split before a second for any, but never the last one of the training
            count = max(round(_SHARES[split] * len(members)), 1) if len(order) > 1 else 0
            for group in order[:count]:
                drawn |= {item.path: split for item in group}
            order = order[count:]
    return drawn


def _folder(root: Path) -> list[Item]:
    folders = _subfolders(root)
    named = {folder: _ALIASES[folder.name.lower()] for folder in folders if folder.name.lower() in _ALIASES}
    if named and len(named) < len(folders):
        others = ", ".join(folder.name for folder in folders if folder not in named)
        raise ValueError(f"{root} holds {', '.join(f.name for f in named)} beside {others}; have splits or classes")
    if not folders:
        raise ValueError(f"{root} has no folder inside; put the images of each class into a folder of its name")
    if named and "train" not in named.values():
        raise ValueError(f"{root} has {', '.join(named.values())} but no train folder; add it")
    found: list[Item] = []
    loose: list[Path] = []
    strange: list[Path] = []
    for top, split in (named or {root: ""}).items():
        loose += images_in(top)
        for folder in _subfolders(top):
            images, rest = find_images(folder)
            strange += rest
            # the slices of a series in a folder below that of the class are one volume
            paths = [p for p in images if p.parent == folder] + with_series(p for p in images if p.parent != folder)
            found += [Item(path, (folder.name,), split, medical.patient_of(path) or "") for path in paths]
    for left_out, why in ((strange, "of a kind that is not read"), (loose, "in no folder of a class")):
        if left_out:
            names = _first([str(path.relative_to(root)) for path in left_out])
            warnings.warn(f"left out of {root}, {why} ({len(left_out)}): {names}", stacklevel=3)
    return found


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _manifest(path: Path) -> list[Item]:
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = list(islice(csv.DictReader(file, strict=True), LIMITS.rows + 1))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV table in UTF-8 ({error})") from None
    if len(rows) > LIMITS.rows:
        raise ValueError(f"{path} has more than {LIMITS.rows:,} rows; split it")
    columns = list(rows[0]) if rows else []
    if not {"path", "label"} <= set(columns) or set(columns) - set(COLUMNS):
        got = ", ".join(map(str, columns)) or "no row"
        raise ValueError(f"{path} must have the columns path,label and may have split,patient, got {got}")
    several = any(";" in (row["label"] or "") for row in rows)
    table = [{name: (row.get(name) or "").strip() for name in COLUMNS} for row in rows]
    places = [os.path.join(path.parent, values["path"]) for values in table]
    files = [_identity(place) if values["path"] else None for place, values in zip(places, table, strict=True)]
    absent = [f"row {number}: {table[number - 2]['path']!r}" for number, each in enumerate(files, 2) if each is None]
    if absent:
        images = f"{len(absent)} of {len(rows)} images are not there"
        raise FileNotFoundError(f"{path}: {images}: {_first(absent)}; paths start at the manifest's folder")
    found: list[Item] = []
    seen: dict[tuple[int, int] | None, str] = {}
    for number, (row, values, place, identity) in enumerate(zip(rows, table, places, files, strict=True), start=2):
        where = f"{path}, row {number}"
        labels = tuple(label.strip() for label in values["label"].split(";") if label.strip())
        split = _ALIASES.get(values["split"].lower(), "")
        if None in row:
            raise ValueError(f"{where}: more cells than columns; put commas inside of quotes")
        # two names of one file may also be hard links, which are files of their own
        if identity in seen and os.path.realpath(seen[identity]) == os.path.realpath(place):
            raise ValueError(f"{where}: {values['path']} is listed twice; join its labels by semicolons")
        if not labels and not several:
            raise ValueError(f"{where}: the label is empty; an image without a label is for multilabel sets only")
        if values["split"] and not split:
            raise ValueError(f"{where}: split must be train, val or test, got {values['split']!r}")
        seen.setdefault(identity, place)
        found.append(Item(Path(place), labels, split, values["patient"]))
    if len({bool(item.split) for item in found}) > 1:
        raise ValueError(f"{path}: the split is empty in some rows; give it in all of them or in none")
    # last, this opens files
    return [item if item.patient else replace(item, patient=medical.patient_of(item.path) or "") for item in found]


def _identity(place: str) -> tuple[int, int] | None:
    """What tells a file from any other, None if there is none; for 300,000 rows ``Path.resolve`` takes minutes."""
    try:
        found = os.stat(place)
    except (OSError, ValueError):  # also names that no file can have
        return None
    return found.st_dev, found.st_ino


def _first(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _natural(label: str) -> tuple[int, int, str]:
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _listed_task(path: Path, assigned: Sequence[Item]) -> Task:
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
    known = {s: fingerprint(root, {item.path: item.labels for item in each}) for s, each in listed.items()}
    return Dataset(found, size, train, val, test, source=str(path), fingerprints=known)


def _split(listed: Sequence[Item], found: Task, size: int) -> Split:
    images = []
    for item in listed:
        names, image = read_images(item.path, channels=found.channels, size=size, dims=found.dims)
        if len(names) != 1:
            raise ValueError(f"{item.path} holds {len(names)} images for one label; store each in a file of its own")
        images.append(image[0])
    numbers = [[found.labels.index(label) for label in item.labels] for item in listed]
    if found.kind != "multilabel":
        return Split(torch.stack(images), torch.tensor(numbers)[:, 0])
    labels = torch.zeros(len(listed), len(found.labels), dtype=torch.int64)
    for row, ones in zip(labels, numbers, strict=True):
        row[ones] = 1
    return Split(torch.stack(images), labels)


def _read_archive(path: Path, size: int) -> Dataset:
    arrays = _archive(path)
    found = _archive_task(path, arrays)
    train, val, test = (
        Split(
            stack_images(f"{path}:{s}_images", arrays[f"{s}_images"], found.channels, found.dims, size),
            torch.from_numpy(arrays[f"{s}_labels"].astype(np.int64)),
        )
        for s in SPLITS
    )
    known = {s: hashlib.sha256(arrays[f"{s}_labels"].tobytes()).hexdigest() for s in SPLITS}
    return Dataset(found, size, train, val, test, source=str(path), fingerprints=known)


def _archive(path: Path) -> dict[str, np.ndarray]:
    """The six arrays; labels ``(N,)`` whole numbers, or ``(N, L)`` zeros and ones."""
    keys = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    if not path.exists():
        raise FileNotFoundError(f"there is no data set {path}: no such file")
    arrays = archives.members(path, keys)
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        where = f"{path}: {split}"
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = arrays[f"{split}_labels"] = labels[:, 0]
        if len(images) == 0:
            raise ValueError(f"{where} split is empty; put at least one image into each split")
        if labels.dtype.kind not in "biu" or labels.ndim not in (1, 2) or len(labels) != len(images):
            raise ValueError(f"{where} labels must be {len(images)} whole numbers, got {labels.dtype} {labels.shape}")
        if labels.min() < 0 or (labels.ndim == 2 and labels.max() > 1):
            wanted = "0 or 1 in a table of several labels" if labels.ndim == 2 else "0 or more"
            raise ValueError(f"{where} labels must be {wanted}, got {labels.min()} to {labels.max()}")
        if images.dtype != np.uint8 and not (images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"{where} images must be uint8, or floats from 0 to 1, so that all splits share one scale, got "
                f"{images.dtype} from {images.min()} to {images.max()}"
            )
        arrays[f"{split}_images"] = as_uint8(where, images)
    _ask(path, arrays)
    shapes = {arrays[key].shape[1:] for key in keys if key.endswith("labels")}
    if len(shapes) > 1 or len({arrays[f"{s}_images"].ndim for s in SPLITS}) > 1:
        raise ValueError(f"{path}: the splits' arrays have different axes; give them the same")
    return arrays


def _ask(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError for arrays that two people would read in two ways."""
    shape, table = arrays["train_images"].shape, arrays["train_labels"]
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{path}: images of shape {shape} are {shape[0]} images with colours first, or volumes of depth "
            f"{shape[1]}; colours belong at the end, np.moveaxis(images, 1, -1), and volumes end in [..., None]"
        )
    labels = [arrays[f"{split}_labels"] for split in SPLITS]
    if table.ndim == 2 and table.dtype != bool and all(each.ndim == 2 and (each.sum(1) == 1).all() for each in labels):
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
    if labels[0].ndim == 2:
        kind, names = "multilabel", map(str, range(labels[0].shape[1]))
    else:
        count = 1 + max(int(each.max()) for each in labels)
        if len(known := np.unique(labels[0])) < count:
            absent = np.setdiff1d(np.arange(min(count, len(known) + 1)), known)[0]
            raise ValueError(
                f"{path}: no image to train with in class {absent}; labels are 0 to {count - 1}, all of them"
            )
        if count < 2:
            raise ValueError(f"{path}: a classification needs at least 2 classes, all labels are 0")
        kind, names = ("binary" if count == 2 else "multiclass"), map(str, range(count))
    channels = 3 if coloured and images.shape[-1] >= 3 else 1
    return Task(str(path), path.stem, kind, dims, channels, tuple(names), (train, val, test), licence="")  # type: ignore[arg-type]
