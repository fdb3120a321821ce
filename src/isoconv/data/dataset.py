"""What a data set is here: the facts of it, and three splits of uint8 images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from isoconv._checks import count_of

__all__ = ["KINDS", "Dataset", "Kind", "Split", "Task", "fingerprint"]

Kind = Literal["multiclass", "binary", "ordinal", "multilabel", "segmentation", "regression"]
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "classification": ("multiclass", "binary", "ordinal", "multilabel"),
    "segmentation": ("segmentation",),
    "regression": ("regression",),
}
"""Kinds of data by the kind of work that they are for, see :mod:`isoconv.tasks`."""

_MEDMNIST_RECORD = "https://zenodo.org/records/10519652/files"


@dataclass(frozen=True)
class Task:
    """A classification task, known before any image is read.

    Attributes:
        name, title: ``"breastmnist"`` and ``"BreastMNIST"``.
        kind: ``"multiclass"``, ``"binary"``, ``"ordinal"``: one label per image; ``"multilabel"``: any number of them;
            ``"segmentation"``: one label per pixel; ``"regression"``: numbers, which ``labels`` names.
        dims: 2 for images, 3 for volumes.
        channels: 1 (grey) or 3 (RGB).
        labels: the classes' names, in the order of the label numbers.
        counts: images in the train, val and test split.
        licence: of the images.
        md5: checksum of the file of each size in pixels; empty for a set that is generated.
    """

    name: str
    title: str
    kind: Kind
    dims: int
    channels: int
    labels: tuple[str, ...]
    counts: tuple[int, int, int]
    licence: str
    md5: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def num_outputs(self) -> int:
        """Logits of a network for this task: one per label, for every kind (two for a binary task)."""
        return len(self.labels)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels in which the set is published; empty for a set that is generated in any size."""
        return tuple(self.md5)

    def filename(self, size: int) -> str:
        """Name of the file of images with ``size`` pixels a side. Raises ValueError if that is not published."""
        if not self.md5:
            raise ValueError(f"{self.name} is generated in any size, there is no file of it")
        if size not in self.md5:
            sizes = ", ".join(map(str, self.sizes))
            raise ValueError(f"{self.name} is published in {sizes} pixels a side, got size={size}")
        return f"{self.name}.npz" if size == 28 else f"{self.name}_{size}.npz"

    def url(self, size: int) -> str:
        """Where the file of this size is published."""
        return f"{_MEDMNIST_RECORD}/{self.filename(size)}?download=1"


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 ``(N, C, *spatial)``.
        labels: int64 ``(N,)``, or ``(N, L)`` of zeros and ones for a multilabel task, or uint8
            ``(N, *spatial)`` for a segmentation, or float32 ``(N, T)`` for a regression.

    Raises:
        ValueError: images of another type, or not as many as labels.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or len(self.images) != len(self.labels):
            raise ValueError(
                f"expected uint8 images, 0 to 255, and as many labels, got {self.images.dtype} "
                f"{tuple(self.images.shape)} and {count_of(len(self.labels), 'label')}; normalisation is part of the "
                "network"
            )

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A task with its images.

    Attributes:
        size: side in pixels.
        source: the file or the seed the images came from.
        fingerprints: of users' own data, a hash of the names and labels in each split, ``"train"``, ``"val"`` and
            ``"test"``: another one means other images. Empty for a set known by name, which does not change.
    """

    task: Task
    size: int
    train: Split
    val: Split
    test: Split
    source: str
    fingerprints: Mapping[str, str] = field(default_factory=dict, repr=False)


def fingerprint(root: Path, labels: Mapping[Path, Iterable[str]]) -> str:
    """A hash of files, by their place under ``root``, and their labels, whatever the order of either."""
    told = sorted([Path(os.path.relpath(path, root)).as_posix(), *sorted(of)] for path, of in labels.items())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
