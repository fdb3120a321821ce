"""The 18 tasks of MedMNIST v2: a table of facts, and a reader that trusts no file.

Yang et al., "MedMNIST v2", Scientific Data 2023, doi 10.1038/s41597-022-01721-8. The facts are those of the official
package ``medmnist`` 3.0.2.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from isoconv._files import open_regular
from isoconv.data.archives import members
from isoconv.data.dataset import Dataset, Split, Task
from isoconv.data.decoded import UnreadableError
from isoconv.data.download import fetch

__all__ = ["MEDMNIST", "find", "load", "read"]

_SPLITS = ("train", "val", "test")


def _table() -> dict[str, Task]:
    def task(name: str, facts: dict) -> Task:
        md5 = {int(size): digest for size, digest in facts.pop("md5").items()}
        return Task(name, labels=tuple(facts.pop("labels")), counts=tuple(facts.pop("counts")), md5=md5, **facts)

    text = files("isoconv.data").joinpath("medmnist.json").read_text("utf-8")
    return {name: task(name, facts) for name, facts in json.loads(text).items()}


MEDMNIST: Mapping[str, Task] = _table()


def _folders(root: str | os.PathLike[str] | None) -> list[Path]:
    named = [root, os.environ.get("ISOCONV_DATA"), Path.home() / ".medmnist"]
    return [Path(folder).expanduser() for folder in named if folder]


def find(task: Task, size: int, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The task's file in ``root``, else in the folder named by ``ISOCONV_DATA``, else in ``~/.medmnist``, else None."""
    paths = [folder / task.filename(size) for folder in _folders(root)]
    return next((path for path in paths if path.is_file()), None)


def load(
    task: Task, size: int = 28, root: str | os.PathLike[str] | None = None, download: bool = True, verify: bool = True
) -> Dataset:
    """Find the task's file, or download it into the first folder that :func:`find` looks in, and :func:`read` it.

    Raises:
        FileNotFoundError: it is nowhere and ``download`` is False.
        ConnectionError: it is nowhere and cannot be downloaded.
        ValueError: the size is not published, or the file is not what it should be.
    """
    path = find(task, size, root)
    if path is None:
        target, address, md5 = _folders(root)[0] / task.filename(size), task.url(size), task.md5[size]
        if not download:
            looked = ", ".join(map(str, _folders(root)))
            by_hand = f"put {address} (MD5 {md5}) into one of them"
            raise FileNotFoundError(f"no {target.name} in {looked}; allow the download, or {by_hand}")
        path = fetch(address, target, md5)
    return read(path, task, size, verify)


def read(path: Path, task: Task, size: int, verify: bool = True) -> Dataset:
    """Read a file of the MedMNIST layout.

    That is an npz archive of ``{train,val,test}_images``, uint8 ``(N, *spatial)`` or ``(N, *spatial, 3)``, and
    ``{train,val,test}_labels``, whole numbers ``(N, 1)``, or ``(N, L)`` of zeros and ones for a multilabel task.
    ``verify=False`` leaves out the MD5, for files that others made; everything else is checked all the same.

    Raises:
        ValueError: the archive is cut short, is not the published one, holds pickled objects, lacks an array, or has
            an array of another shape or type, a label that the task does not have, an empty split, or a split whose
            pixels are all equal.
    """
    again = f"delete it and fetch {task.url(size)} again"
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} ({path.stat().st_size} bytes) is cut short or not an npz archive; {again}")
    if verify and (got := _md5(path)) != task.md5[size]:
        raise ValueError(f"{path} is not the published file: expected MD5 {task.md5[size]}, got {got}; {again}")
    try:
        arrays = members(path, [f"{split}_{part}" for split in _SPLITS for part in ("images", "labels")])
    except UnreadableError as error:
        raise ValueError(f"cannot read {error.where} ({error.reason}); {again}") from None
    train, val, test = (
        _split(f"{path}: {s}", arrays[f"{s}_images"], arrays[f"{s}_labels"], task, size, again) for s in _SPLITS
    )
    return Dataset(task, size, train, val, test, source=str(path))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _split(where: str, images: np.ndarray, labels: np.ndarray, task: Task, size: int, again: str) -> Split:
    shape = (size,) * task.dims + ((3,) if task.channels == 3 else ())
    columns = len(task.labels) if task.kind == "multilabel" else 1
    if images.dtype != np.uint8:
        nan = " with NaN" if images.dtype.kind == "f" and np.isnan(images).any() else ""
        raise ValueError(f"{where} images must be uint8, got {images.dtype}{nan}; store them as uint8 from 0 to 255")
    if images.shape[1:] != shape:
        expected = f"(N, {', '.join(map(str, shape))})"
        raise ValueError(f"{where} images of {task.name} must have shape {expected}, got {images.shape}")
    if len(images) == 0:
        raise ValueError(f"{where} split is empty; {task.name} needs at least one image in each split")
    if labels.shape != (len(images), columns) or labels.dtype.kind not in "iu":
        wanted = f"whole numbers of shape ({len(images)}, {columns})"
        raise ValueError(f"{where} labels must be {wanted}, got {labels.dtype} of shape {labels.shape}")
    top = 1 if task.kind == "multilabel" else len(task.labels) - 1
    if labels.min() < 0 or labels.max() > top:
        raise ValueError(f"{where} labels of {task.name} must lie in 0..{top}, got {labels.min()}..{labels.max()}")
    if images.min() == images.max():
        raise ValueError(f"{where} images are constant, every pixel of all {len(images)} is {images.min()}; {again}")
    channels_first = np.ascontiguousarray(np.moveaxis(images, -1, 1) if task.channels == 3 else images[:, None])
    numbers = labels.astype(np.int64) if task.kind == "multilabel" else labels[:, 0].astype(np.int64)
    return Split(torch.from_numpy(channels_first), torch.from_numpy(numbers))
