"""Which files are DICOM, which of them are slices of one volume, and whose images they are.

The readers are in :mod:`isoconv.data.dicom` and :mod:`isoconv.data.nifti`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from isoconv._extras import require
from isoconv._files import open_regular
from isoconv.data.decoded import LIMITS, Limits, UnreadableError, readable

__all__ = ["dataset", "is_dicom", "is_series", "patient_of", "slices_in"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BLOCK = 1 << 20


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its ending .dcm, or by its first bytes where the name has no ending or, being a UID,
    ends in a number. A DICOMDIR, which lists files, is none."""
    ending = path.suffix.lower()
    if ending == ".dcm":
        return True
    if ending.strip(".0123456789") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with suppress(OSError), open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"
    return False


def is_series(files: Sequence[Path]) -> bool:
    """Whether the DICOM files of a folder are slices: two of them are of one series. Otherwise, as X-rays are, each is
    an image or a volume of its own."""
    seen: set[str] = set()
    for file in files if len(files) > 1 else ():
        if uid := _tag(file, "SeriesInstanceUID"):
            if uid in seen:
                return True
            seen.add(uid)
    return False


def patient_of(path: Path) -> str | None:
    """The PatientID of a DICOM file or series; None if there is none, or the file cannot be read."""
    file = next(iter(slices_in(path)) if path.is_dir() else filter(is_dicom, [path]), None)
    return None if file is None else _tag(file, "PatientID")


def slices_in(folder: Path) -> list[Path]:
    """The DICOM files right in a folder, sorted."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_dicom(path)]


def dataset(path: Path, limits: Limits = LIMITS, **options: Any) -> Any:
    """What ``pydicom.dcmread`` reads of a file with these options. Raises ValueError if it cannot be read."""
    pydicom = require("pydicom", "medical")
    with readable(path), open_regular(path) as file:
        if file.read(132)[128:] != b"DICM":
            raise UnreadableError("it is no DICOM file")
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            _check_inflated(file, path.stat().st_size, limits)
        file.seek(0)
        return pydicom.dcmread(file, **options)


def _check_inflated(file: BinaryIO, held: int, limits: Limits) -> None:
    """pydicom inflates all of such a file at once."""
    decoder, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    compressed = file.read()
    while compressed and not decoder.eof:
        total += len(decoder.decompress(compressed, _BLOCK))
        compressed = decoder.unconsumed_tail
        limits.check(total, total, held)  # at most as many pixels as bytes


def _tag(path: Path, name: str) -> str | None:
    try:
        return str(dataset(path, stop_before_pixels=True, specific_tags=[name]).get(name, "")) or None
    except ValueError:
        return None
