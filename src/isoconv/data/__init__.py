"""Data sets by name, the 18 of MedMNIST v2 and two synthetic ones that need no download, and users' own by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from isoconv._checks import did_you_mean
from isoconv.data import medmnist, own, synthetic
from isoconv.data.augment import RECIPES, augmentation, input_size
from isoconv.data.batches import DeviceBatches, resize
from isoconv.data.dataset import Dataset, Kind, Split, Task
from isoconv.data.files import read_images
from isoconv.data.medmnist import MEDMNIST
from isoconv.data.synthetic import SYNTHETIC
from isoconv.data.vessels import VESSELS

__all__ = [
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

TASKS: Mapping[str, Task] = {**SYNTHETIC, **MEDMNIST}
"""All data sets by name."""


def own_path(name: str) -> Path | None:
    """Where the data set of users' own lies that ``name`` means, absolute; None for the name of a task.

    A path is what exists or looks like one; the name of a task always is the task, ``./cells`` a folder.
    """
    path = Path(name).expanduser()
    if name in (*TASKS, *VESSELS) or not (
        path.exists() or path.name != name or path.suffix.lower() in (".csv", ".npz")
    ):
        return None
    return path.absolute()


def get_task(name: str) -> Task:
    """The task of this name, or of the data set at this path.

    Raises:
        ValueError: there is none, with near matches; or a data set of users' own is not as it should be.
        FileNotFoundError: there is nothing at the path.
    """
    if path := own_path(name):
        return own.find(path)[0]
    if name not in TASKS:
        hint = did_you_mean(name.lower(), TASKS) or "; `isoconv data list` shows all"
        if name in VESSELS:
            hint = " with a label per image: it has one per pixel, see isoconv segment"
        raise ValueError(f"unknown data set {name!r}{hint}")
    return TASKS[name]


def load(
    name: str, size: int = 28, root: str | os.PathLike[str] | None = None, download: bool = True, verify: bool = True
) -> Dataset:
    """Load a data set.

    Args:
        name: a key of :data:`TASKS`, or the path of a data set as :mod:`isoconv.data.own` reads them.
        size: side of the images in pixels: one of ``TASKS[name].sizes``, for a synthetic set any from 16 up, for users'
            own what they are resized to.
        root: folder that holds the MedMNIST files; then ``ISOCONV_DATA`` and ``~/.medmnist`` are searched.
        download: fetch a file that is nowhere, into the first of these folders. Needs the extra ``study``.
        verify: check the MD5 of the file.

    Raises:
        ValueError: unknown name or size, or a file that is not what it should be.
        FileNotFoundError: nothing at the path; or no file, and ``download`` is False.
        ConnectionError: no file, and no way to fetch it; the message says where to put it by hand.
    """
    if path := own_path(name):
        return own.load(path, size)
    task = get_task(name)
    return synthetic.generate(name, size) if name in SYNTHETIC else medmnist.load(task, size, root, download, verify)


def find(name: str, size: int = 28, root: str | os.PathLike[str] | None = None) -> tuple[Task, Callable[[], Dataset]]:
    """The task of a data set, and what loads it; files of users' own are listed once for both. Arguments and errors are
    those of :func:`load`."""
    if path := own_path(name):
        task, read = own.find(path)
        return task, partial(read, size)
    return get_task(name), partial(load, name, size, root)
