"""What a data set of users' own lists: the images in a folder or a CSV manifest, with their labels, masks or numbers.

A data set without splits gets them here, once for all seeds: 70 % of each class for training, 10 % for validation, 20 %
for the test; a missing val or test split is cut from train in these shares. A patient is never in two splits. Who the
patient is says the manifest's column, or the PatientID of DICOM files.
"""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from isoconv._checks import count_of
from isoconv._files import open_regular
from isoconv.data import masks, medical
from isoconv.data.dataset import Kind
from isoconv.data.decoded import LIMITS
from isoconv.data.files import find_images, images_in, with_series

__all__ = ["COLUMNS", "SPLITS", "Item", "assign", "check_targets", "classes", "folded", "items", "table"]

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "patient")
"""Of a manifest; in the place of ``label`` it may have ``mask``, the path of a mask, or columns of numbers."""
_SHARES = {"val": 0.1, "test": 0.2}
_SEED = 0
_ALIASES = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Item:
    """An image and what is known of it. ``path`` is a file or a folder of DICOM slices; ``split`` and ``patient`` are
    empty where unknown; ``labels`` has one entry, or any number in a multilabel set, or none for an image with a
    ``mask`` or with ``values``, numbers by their names."""

    path: Path
    labels: tuple[str, ...]
    split: str = ""
    patient: str = ""
    mask: Path | None = None
    values: Mapping[str, float] = field(default_factory=dict)


def items(path: Path, task: str | None = None) -> list[Item]:
    """What a folder or a manifest lists, in sorted order, the splits as they are given there. Arguments and errors are
    those of :func:`isoconv.data.own.find`."""
    if path.is_dir() and (task == "segmentation" or (task is None and masks.is_folder(path))):
        found = [Item(i, (), _split_name(s, path), medical.patient_of(i) or "", m) for i, m, s in masks.pairs_in(path)]
    elif path.is_dir():
        found = _folder(path)
    elif not path.exists():
        raise FileNotFoundError(f"there is no data set {path}: no such file or folder")
    elif path.suffix.lower() == ".csv":
        found = _manifest(path, task)
    else:
        raise ValueError(
            f"{path} is not a data set; give a folder with a folder per class or with images/ and masks/, a .csv "
            "manifest or an .npz"
        )
    if not found:
        raise ValueError(f"{path} lists no image")
    return sorted(found, key=lambda item: str(item.path))


def check_targets(found: Sequence[Item]) -> None:
    """Raises ValueError for items whose targets cannot be trained with."""
    if found[0].values:
        for name in found[0].values:
            if len({item.values[name] for item in found if item.split == "train"}) < 2:
                raise ValueError(f"all images to train with have the same {name}; there is nothing to learn")
    elif found[0].mask is None:
        classes(found)


def table(found: Sequence[Item], folder: Path) -> list[list[str]]:
    """The rows of a manifest that lists these items, its head first, the paths in it starting at ``folder``.

    Raises:
        ValueError: a label holds a semicolon, which would make two.
    """
    targets = list(found[0].values) or ["label" if found[0].mask is None else "mask"]
    rows = [["path", *targets, "split", "patient"]]
    for item in found:
        if any(";" in label for label in item.labels):
            raise ValueError(f"{item.path}: the semicolon in its label would make two in a manifest; rename the folder")
        cells = [repr(value) for value in item.values.values()]
        if not cells:
            cells = [";".join(item.labels) if item.mask is None else os.path.relpath(item.mask, folder)]
        rows.append([os.path.relpath(item.path, folder), *cells, item.split, item.patient])
    return rows


def classes(found: Iterable[Item]) -> tuple[Kind, tuple[str, ...]]:
    """The kind of task that the labels or numbers make, and their names in order."""
    found = list(found)
    if found[0].values:
        return "regression", tuple(found[0].values)
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
        raise ValueError(f"{count_of(len(torn), 'patient')} in two splits: {_first(torn)}; give each patient one split")
    sizes = Counter(item.split for item in assigned)
    if empty := [s for s in SPLITS if not sizes[s]]:
        patients = " (a patient stays in one split)" if where else ""
        raise ValueError(
            f"{count_of(len(found), 'image')} cannot fill the {' and '.join(empty)} split{patients}; add images, or "
            "name the splits in a manifest"
        )
    trained = {label for item in assigned if item.split == "train" for label in item.labels}
    if absent := sorted({label for item in assigned for label in item.labels} - trained, key=_natural):
        raise ValueError(f"no image to train with in class {', '.join(absent)}; add some or leave the class out")
    return assigned


def folded(found: Sequence[Item], fold: int, folds: int) -> list[Item]:
    """The items with the test split of a cross-validation, the same for every seed: stratified by class, a patient in
    one fold. :func:`assign` draws the validation split from the others.

    Args:
        fold: which part is the test split, from 1 on.
        folds: parts.

    Raises:
        ValueError: the items have splits already, or there are fewer patients than folds.
    """
    if split := next((item.split for item in found if item.split), ""):
        raise ValueError(f"the data name a {split} split; for folds, leave the splits out")
    strata = _strata(found, found)
    if (groups := sum(map(len, strata))) < folds:
        raise ValueError(f"{count_of(groups, 'patient or image', 'patients or images')} cannot fill {folds} folds")
    sizes, place = [0] * folds, dict[Path, int]()
    for groups_of_class in strata:
        own = [0] * folds
        for group in sorted(groups_of_class, key=len, reverse=True):  # the largest first, where it is still missing
            least = min(range(folds), key=lambda i: (own[i], sizes[i]))
            own[least] += len(group)
            sizes[least] += len(group)
            place |= {item.path: least for item in group}
    return [replace(item, split="test" if place[item.path] == fold - 1 else "train") for item in found]


def _drawn(found: Sequence[Item], missing: Sequence[str]) -> dict[Path, str]:
    """Which items of the training split go to the missing ones: stratified, whole patients."""
    drawn: dict[Path, str] = {}
    for order in _strata([item for item in found if item.split in ("", "train")], found):
        members = len(order)
        for split in missing:
            # one for each split before a second for any, but never the last one of the training
            count = max(round(_SHARES[split] * members), 1) if len(order) > 1 else 0
            for group in order[:count]:
                drawn |= {item.path: split for item in group}
            order = order[count:]
    return drawn


def _strata(chosen: Iterable[Item], found: Sequence[Item]) -> list[list[list[Item]]]:
    """The chosen items in groups, one for a patient or an image without one, in random order: a list of groups for each
    class, which is a group's rarest among all that were found."""
    groups: dict[str, list[Item]] = {}
    for item in chosen:
        groups.setdefault(f"patient {item.patient}" if item.patient else f"image {item.path}", []).append(item)
    frequency = Counter(label for item in found for label in item.labels)
    strata: dict[str, list[list[Item]]] = {}
    for group in groups.values():
        rarest = min((label for item in group for label in item.labels), key=lambda x: (frequency[x], x), default="")
        strata.setdefault(rarest, []).append(group)
    random = np.random.default_rng(_SEED)
    return [[members[i] for i in random.permutation(len(members))] for _, members in sorted(strata.items())]


def _split_name(name: str, folder: Path) -> str:
    if name and name.lower() not in _ALIASES:
        raise ValueError(f"{folder / name} is beside train, val and test; move it elsewhere")
    return _ALIASES.get(name.lower(), "")


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


def _manifest(path: Path, task: str | None) -> list[Item]:
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = list(islice(csv.DictReader(file, strict=True), LIMITS.rows + 1))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV table in UTF-8 ({error})") from None
    if len(rows) > LIMITS.rows:
        raise ValueError(f"{path} has more than {LIMITS.rows:,} rows; split it")
    columns = list(rows[0]) if rows else []
    target, numbers = _targets(rows, columns, task)
    if "path" not in columns or not (target or numbers):
        got = ", ".join(map(str, columns)) or "no row"
        raise ValueError(
            f"{path} must have the column path, and label, mask or columns of numbers; it may have split,patient; got "
            f"{got}"
        )
    several = target == "label" and any(";" in (row["label"] or "") for row in rows)
    cells_of = {*COLUMNS, "mask", *numbers}
    values = [{name: (row.get(name) or "").strip() for name in cells_of} for row in rows]
    files = _files(path, values, "path")
    if target == "mask":
        _files(path, values, "mask")
    found: list[Item] = []
    seen: dict[tuple[int, int], Path] = {}
    for number, (row, cells, identity) in enumerate(zip(rows, values, files, strict=True), start=2):
        where, image = f"{path}, row {number}", path.parent / cells["path"]
        labels = tuple(label.strip() for label in cells["label"].split(";") if label.strip())
        split = _ALIASES.get(cells["split"].lower(), "")
        if None in row:
            raise ValueError(f"{where}: more cells than columns; put commas inside of quotes")
        # two names of one file may also be hard links, which are files of their own
        if identity in seen and seen[identity].resolve() == image.resolve():
            raise ValueError(f"{where}: {cells['path']} is listed twice; join its labels by semicolons")
        if not labels and not several and target == "label":
            raise ValueError(f"{where}: the label is empty; an image without a label is for multilabel sets only")
        if cells["split"] and not split:
            raise ValueError(f"{where}: split must be train, val or test, got {cells['split']!r}")
        seen.setdefault(identity, image)
        mask = path.parent / cells["mask"] if target == "mask" else None
        told = {name: _number(f"{where}, column {name}", cells[name]) for name in numbers}
        found.append(Item(image, labels if target == "label" else (), split, cells["patient"], mask, told))
    if len({bool(item.split) for item in found}) > 1:
        raise ValueError(f"{path}: the split is empty in some rows; give it in all of them or in none")
    # last, this opens files
    return [item if item.patient else replace(item, patient=medical.patient_of(item.path) or "") for item in found]


def _targets(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], task: str | None
) -> tuple[str | None, list[str]]:
    """``"label"`` or ``"mask"`` if a manifest has that column, and no other but those of :data:`COLUMNS`; else the
    columns of numbers. Labels with a decimal point are numbers, as are all if ``task`` says so."""
    others = [name for name in columns if name not in ("path", "split", "patient")]
    if None in others or len(rows) == 0:
        return None, []
    numeric = {name: [(row[name] or "").strip() for row in rows] for name in others}
    if others == ["mask"] or (others == ["label"] and task != "regression" and not _has_fractions(numeric["label"])):
        return others[0], []
    return None, others if task in (None, "regression") and not {"mask"} & set(others) else []


def _has_fractions(cells: Sequence[str]) -> bool:
    """Whether all are numbers, and some no whole ones."""
    try:
        return any(not float(cell).is_integer() for cell in cells)
    except (ValueError, OverflowError):
        return False


def _number(where: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} must hold a finite number, got {cell!r}; name the columns of classes label")
    return value


def _files(path: Path, values: Sequence[Mapping[str, str]], column: str) -> list[tuple[int, int]]:
    """What tells the file in each row of a column from any other. Raises FileNotFoundError for those that are not
    there."""
    found = [_identity(os.path.join(path.parent, cells[column])) if cells[column] else None for cells in values]
    absent = [f"row {i}: {values[i - 2][column]!r}" for i, each in enumerate(found, start=2) if each is None]
    if absent:
        what = count_of(len(values), "image" if column == "path" else "mask")
        raise FileNotFoundError(
            f"{path}: {len(absent)} of {what} missing: {_first(absent)}; paths start at the manifest's folder"
        )
    return [each for each in found if each is not None]


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
