"""NumPy's npy and npz. What a header declares is compared with what is there before any of it is taken in."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from isoconv._files import open_regular
from isoconv.data.decoded import LIMITS, Decoded, Limits, UnreadableError, readable

__all__ = ["members", "npy", "npz"]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npy(file: BinaryIO, size: int, limits: Limits) -> Decoded:
    """The array in an open npy file of ``size`` bytes."""
    _check_header(file, size, size, limits)
    file.seek(0)
    return Decoded(np.lib.format.read_array(file, allow_pickle=False), "unknown")


def npz(path: Path, limits: Limits) -> dict[str, Decoded]:
    """By name the arrays of an archive that end in "images", or if none does its only array."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        infos = _infos(archive)
        keys = [key for key in infos if key.endswith("images")] or list(infos)
        if not keys:
            raise UnreadableError("it holds no array")
        if len(keys) != 1 and not keys[0].endswith("images"):
            names = ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "")
            raise UnreadableError(f"of its arrays {names} none ends in 'images'", "name one so")
        return {key: Decoded(_member(path, archive, infos[key], key, limits), "unknown") for key in keys}


def members(
    path: Path, keys: Iterable[str], optional: Iterable[str] = (), limits: Limits = LIMITS
) -> dict[str, np.ndarray]:
    """These arrays of an npz archive, the ``optional`` ones if they are there.

    Raises:
        ValueError: one is missing or cannot be read, or ``path`` is no archive.
    """
    keys = list(keys)
    with readable(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        infos = _infos(archive)
        if missing := [key for key in keys if key not in infos]:
            raise UnreadableError(f"it has no array {', '.join(missing)}", f"it must hold {', '.join(keys)}")
        wanted = [*keys, *(key for key in optional if key in infos)]
        return {key: _member(path, archive, infos[key], key, limits) for key in wanted}


def _infos(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str, limits: Limits) -> np.ndarray:
    with readable(f"{path}:{key}"):
        if info.flag_bits & 1:
            raise UnreadableError("it is encrypted", "save it without a password")
        with archive.open(info) as member:
            _check_header(member, info.file_size, path.stat().st_size, limits)
        with archive.open(info) as member:  # anew: to seek back would decode it twice
            return np.lib.format.read_array(member, allow_pickle=False)


def _check_header(file: IO[bytes], size: int, held: int, limits: Limits) -> None:
    """``size`` bytes are in the npy file itself, ``held`` on the disk."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:  # names of a record's fields beyond Latin-1
        raise UnreadableError("it holds records, an image is an array of numbers")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise UnreadableError("it holds pickled objects, which could run code", "save an array of numbers")
    count = math.prod(shape)
    declared, there = count * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or declared > there:
        raise UnreadableError(f"its header declares {dtype} {shape}, {declared:,} bytes, of which {there:,} are there")
    coloured = len(shape) > 2 and shape[-1] in (1, 3, 4)
    limits.check(count // shape[-1] if coloured else count, declared, held)
