"""Arrays that an evaluation left in an npz file, read back: nothing that is not there is allocated, nothing is run."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoconv.runs.reading import check_file

__all__ = ["check_predictions", "read_arrays"]


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of a file that :func:`numpy.savez` wrote.

    Args:
        remedy: the end of the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, compressed, or holds Python objects or numbers that are not finite.
    """
    check_file(path, remedy, missing=remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} must hold finite numbers, got NaN or infinity; {remedy}")
    return arrays


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed, and may be larger than it seems")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{entry.filename} is of an unknown version of npy")
        shape, _, dtype = read_header[version](file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects, which only pickle could read")
        declared, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if min(shape, default=0) < 0 or declared != there:
            raise ValueError(f"{entry.filename} declares {declared} bytes, {there} are there")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)  # compares the checksum at the end of the entry


@dataclass(frozen=True)
class _Layout:
    """What an evaluation keeps of a kind of task.

    Attributes:
        answers: what the network's answers are called.
        dtype, labels_dtype: of the answers and of the labels to them, "i" or "f".
        label: shape of the label of an image, None for any.
        below: what class numbers are below.
    """

    answers: str
    dtype: str
    labels_dtype: str
    label: tuple[int, ...] | None = ()
    below: int | None = None


def _layout(kind: str, outputs: int) -> _Layout:
    match kind:
        case "segmentation":
            return _Layout("counts", "i", "i", label=None)
        case "regression":
            return _Layout("values", "f", "f", label=(outputs,))
        case "multilabel":
            return _Layout("logits", "f", "i", label=(outputs,), below=2)
    return _Layout("logits", "f", "i", below=outputs)


def check_predictions(arrays: Mapping[str, np.ndarray], task: Mapping[str, Any]) -> str | None:
    """Why arrays of ``predictions.npz`` are not what an evaluation of a task writes, or None. By protocol these are

    - ``{protocol}_conditions``: names of the P positions;
    - ``{protocol}_logits``, float (P, N, K); of a segmentation ``_counts``, int (P, N, K, ...); of a regression
      ``_values``, float (P, N, K);
    - ``{protocol}_labels``: numbers of classes, int (N,); of several labels zeros and ones (N, K); of a regression
      float (N, K); of a segmentation integers (N, ...) that tell images apart.

    Args:
        task: as in ``model.json``; K is the number of its labels.
    """
    outputs = len(task["labels"])
    layout = _layout(task["kind"], outputs)
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        protocol, _, part = name.rpartition("_")
        groups.setdefault(protocol, {})[part] = array
    for protocol, parts in groups.items():
        if differing := sorted({"conditions", "labels", layout.answers} ^ parts.keys()):
            return f"{protocol}_{differing[0]} is {'of another task' if differing[0] in parts else 'missing'}"
        if wrong := _first_wrong(parts, layout, outputs):
            part, expected = wrong
            return f"{protocol}_{part} must be {expected}, got {parts[part].dtype} {parts[part].shape}"
    return None


def _first_wrong(parts: Mapping[str, np.ndarray], layout: _Layout, outputs: int) -> tuple[str, str] | None:
    """The first part that is not as it should be, and what is expected."""
    names, answers, labels = parts["conditions"], parts[layout.answers], parts["labels"]
    if names.dtype.kind != "U" or names.ndim != 1:
        return "conditions", "names"
    each = answers.shape[2:3] if layout.answers == "counts" else answers.shape[2:]
    if answers.dtype.kind != layout.dtype or answers.shape[:1] != names.shape or each != (outputs,):
        return layout.answers, f"of {len(names)} positions, any number of images and {outputs} outputs"
    fits = labels.shape[:1] == answers.shape[1:2] and layout.label in (None, labels.shape[1:])
    if labels.dtype.kind != layout.labels_dtype or not fits:
        return "labels", f"those of {answers.shape[1]} images"
    if layout.below and labels.size and not 0 <= labels.min() <= labels.max() < layout.below:
        return "labels", f"numbers from 0 to {layout.below - 1}"
    return None
