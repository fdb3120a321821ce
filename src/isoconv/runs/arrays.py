"""Arrays that an evaluation left in an npz file, read back: nothing that is not there is allocated, nothing is run."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from isoconv.runs.reading import open_file

__all__ = ["read_arrays"]


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of a file that :func:`numpy.savez` wrote.

    Args:
        remedy: the end of the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, compressed, or holds Python objects or numbers that are not finite.
    """
    with open_file(path, remedy, missing=remedy) as file:
        try:
            archive = zipfile.ZipFile(file)
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
