"""Data sets by name: the 18 tasks of MedMNIST v2, and two synthetic sets that need no download."""

from __future__ import annotations

import os
from collections.abc import Mapping

from isoconv._checks import did_you_mean
from isoconv.data import medmnist, synthetic
from isoconv.data.augment import RECIPES, augmentation, input_size
from isoconv.data.batches import DeviceBatches, resize
from isoconv.data.dataset import Dataset, Kind, Split, Task
from isoconv.data.files import read_images
from isoconv.data.medmnist import MEDMNIST
from isoconv.data.synthetic import SYNTHETIC

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
    "get_task",
    "input_size",
    "load",
    "read_images",
    "resize",
]

TASKS: Mapping[str, Task] = {**SYNTHETIC, **MEDMNIST}


def get_task(name: str) -> Task:
    """The task of this name. Raises ValueError, with near matches, if there is none."""
    if name not in TASKS:
        hint = did_you_mean(name.lower(), TASKS) or "; `isoconv data list` shows all"
        raise ValueError(f"unknown data set {name!r}{hint}")
    return TASKS[name]


def load(
    name: str, size: int = 28, root: str | os.PathLike[str] | None = None, download: bool = True, verify: bool = True
) -> Dataset:
    """Load a data set.

    Args:
        name: a key of :data:`TASKS`.
        size: side of the images in pixels: one of ``TASKS[name].sizes``, for a synthetic set any from 16 up.
        root: folder that holds the MedMNIST files; then ``ISOCONV_DATA`` and ``~/.medmnist`` are searched.
        download: fetch a file that is nowhere, into the first of these folders. Needs the extra ``study``.
        verify: check the MD5 of the file.

    Raises:
        ValueError: unknown name or size, or a file that is not what it should be.
        FileNotFoundError: no file, and ``download`` is False.
        ConnectionError: no file, and no way to fetch it; the message says where to put it by hand.
    """
    task = get_task(name)
    return synthetic.generate(name, size) if name in SYNTHETIC else medmnist.load(task, size, root, download, verify)
