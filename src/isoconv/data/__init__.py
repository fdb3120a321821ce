"""Data sets by name, the 18 of MedMNIST v2 and four synthetic ones that need no download, and users' own by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from isoconv._checks import check_counts, check_memory, count_of, did_you_mean
from isoconv.data import medmnist, own, synthetic, vessels
from isoconv.data.augment import RECIPES, augmentation, input_size
from isoconv.data.batches import DeviceBatches, resize
from isoconv.data.dataset import KINDS, Dataset, Kind, Split, Task
from isoconv.data.files import read_images
from isoconv.data.medmnist import MEDMNIST
from isoconv.data.synthetic import SYNTHETIC
from isoconv.data.vessels import VESSELS

__all__ = [
    "KINDS",
    "MEDMNIST",
    "RECIPES",
    "SYNTHETIC",
    "TASKS",
    "Dataset",
    "DeviceBatches",
    "Kind",
    "Split",
    "Task",
    "augmentation",
    "find",
    "get_task",
    "input_size",
    "load",
    "own_path",
    "read_images",
    "resize",
]

TASKS: Mapping[str, Task] = {**SYNTHETIC, **VESSELS, **MEDMNIST}
"""All data sets by name."""


def own_path(name: str) -> Path | None:
    """Where the data set of users' own lies that ``name`` means, absolute; None for the name of a known set.

    A path is what exists or looks like one; the name of a known set always is that set, ``./cells`` a folder.
    """
    path = Path(name).expanduser()
    if name in TASKS or not (path.exists() or path.name != name or path.suffix.lower() in (".csv", ".npz")):
        return None
    return path.absolute()


def find(
    name: str,
    root: str | os.PathLike[str] | None = None,
    task: str | None = None,
    part: tuple[int, int] | None = None,
    *,
    download: bool = True,
    verify: bool = True,
) -> tuple[Task, Callable[[int], Dataset]]:
    """The facts of a data set, and what loads it at a size in pixels; files of users' own are listed once for both.

    Args:
        name: a key of :data:`TASKS`, or the path of a data set as :mod:`isoconv.data.own` reads them.
        root: folder that holds the MedMNIST files; then ``ISOCONV_DATA`` and ``~/.medmnist`` are searched.
        task: the kind of work that it is for, a key of :data:`KINDS`; None lets the data decide.
        part: fold, from 1 on, and number of folds of a cross-validation; its test split is that fold. For folders and
            manifests without splits.
        download: fetch a file that is nowhere, into the first of these folders. Needs the extra ``study``.
        verify: check the MD5 of the file.

    Raises:
        ValueError: there is none, with near matches; it is for another task; or data of users' own are not as they
            should be.
        FileNotFoundError: there is nothing at the path.
    """
    path = own_path(name)
    if path is None and part is not None:
        raise ValueError(f"{name} has published splits; folds are for images of your own, leave out --folds and --fold")
    info, load = own.find(path, task, part) if path else _known(name, root, task, download, verify)
    return info, partial(_load_bounded, info, load)


def _load_bounded(info: Task, load: Callable[[int], Dataset], size: int) -> Dataset:
    check_counts(size=size)
    values = sum(info.counts) * (info.channels + (info.kind == "segmentation")) * size**info.dims
    images = f"{count_of(sum(info.counts), 'image')} of {info.name} at {size} pixels"
    check_memory(values, images, "use a smaller size, or fewer images")
    return load(size)


def _known(
    name: str, root: str | os.PathLike[str] | None, task: str | None, download: bool, verify: bool
) -> tuple[Task, Callable[[int], Dataset]]:
    if name not in TASKS:
        raise ValueError(
            f"unknown data set {name!r}{did_you_mean(name.lower(), TASKS) or '; `isoconv data list` shows all'}"
        )
    info = TASKS[name]
    if task is not None and info.kind not in KINDS.get(task, ()):
        raise ValueError(f"{name} is for {info.kind}, not for {task}; leave out --task, or give other data")
    return info, partial(_load_known, info, root, download, verify)


def _load_known(info: Task, root: str | os.PathLike[str] | None, download: bool, verify: bool, size: int) -> Dataset:
    if info.name in SYNTHETIC:
        return synthetic.generate(info.name, size)
    if info.name in VESSELS:
        return vessels.generate(info.name, size)
    return medmnist.load(info, size, root, download, verify)


def get_task(name: str, task: str | None = None) -> Task:
    """The facts of a data set; arguments and errors are those of :func:`find`."""
    return find(name, task=task)[0]


def load(
    name: str,
    size: int = 28,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    verify: bool = True,
    task: str | None = None,
    part: tuple[int, int] | None = None,
) -> Dataset:
    """Load a data set at a size in pixels: one of ``TASKS[name].sizes``, for a synthetic set any from 16 up, for users'
    own what they are resized to. The other arguments are those of :func:`find`.

    Raises:
        ValueError: unknown name or size, or a file that is not what it should be.
        FileNotFoundError: nothing at the path; or no file, and ``download`` is False.
        ConnectionError: no file, and no way to fetch it; the message says where to put it by hand.
    """
    return find(name, root, task, part, download=download, verify=verify)[1](size)
