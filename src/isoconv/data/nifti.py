"""NIfTI, by nibabel. Needs the extra ``medical``.

A volume is turned to the closest RAS axes, D towards the head; so no volume is mirrored. Its geometry is that of its
affine alone, however its voxels are stored.
"""

from __future__ import annotations

import gzip
import io
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from isoconv._extras import require
from isoconv._files import open_regular
from isoconv.data.decoded import Decoded, Limits, UnreadableError
from isoconv.data.geometry import checked_spacing, grid_of_affine, straightened

__all__ = ["SUFFIXES", "nifti"]

SUFFIXES = (".nii", ".nii.gz")
"""Endings of these files."""
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the code of its unit, 0 not stated
_CIFTI = range(3000, 3100)  # codes of intent
_MOST_BEFORE = 2**28  # bytes in front of the voxels, which are read as well


def nifti(path: Path, limits: Limits) -> Decoded:
    """A volume ``(D, H, W, 1 or 3)``, its axes S, A, R, with its spacing; a single plane is an image.

    Raises:
        ValueError: no NIfTI file, one that is cut short, or one that is not one volume on a regular grid.
    """
    nibabel = require("nibabel", "medical")
    with ExitStack() as stack:
        file: Any = stack.enter_context(open_regular(path))
        if path.name.lower().endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        header = _header(nibabel, file)
        _check(header, path.stat().st_size, limits)
        file.seek(0)
        kind = nibabel.Nifti1Image if header["sizeof_hdr"] == 348 else nibabel.Nifti2Image
        image = kind.from_file_map({"image": nibabel.FileHolder(fileobj=file)}, mmap=False)
        shape = (*image.shape, 1, 1)[:3]
        array = _values(image).reshape(*shape, -1)
    affine = image.affine * _MILLIMETRES[int(header["xyzt_units"]) & 7]
    checked_spacing(np.linalg.norm(affine[:3, :3], axis=0))
    turn = nibabel.io_orientation(affine)
    array = nibabel.apply_orientation(array, turn)
    affine = affine @ nibabel.orientations.inv_ornt_aff(turn, shape)
    grid = grid_of_affine(affine, array.shape[2])
    volume = straightened(array.transpose(2, 1, 0, 3), grid)
    return Decoded(volume[0]) if len(volume) == 1 else Decoded(volume, "depth", grid.spacing)


def _header(nibabel: Any, file: Any) -> Any:
    """As it is in the file: nibabel makes a spacing of zero to one."""
    block = file.read(540)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if kind.may_contain_header(block):
            return kind.from_fileobj(io.BytesIO(block[: kind.template_dtype.itemsize]), check=False)
    raise UnreadableError("it is no NIfTI file")


def _check(header: Any, held: int, limits: Limits) -> None:
    if bytes(header["magic"])[:2] != b"n+":
        raise UnreadableError("its voxels are in another file (.img)", "save it as one .nii file")
    if int(header["intent_code"]) in _CIFTI:
        raise UnreadableError("it is a CIFTI-2 file, of points on a surface; a volume is expected", "leave it out")
    shape = [int(n) for n in header["dim"][1 : 1 + max(0, min(7, int(header["dim"][0])))]]
    if not shape or min(shape) < 1 or math.prod(shape[3:]) > 1:
        told = " x ".join(map(str, shape)) or "nothing"
        raise UnreadableError(f"it holds {told}, one volume has three axes", "store each volume as its own file")
    if int(header["xyzt_units"]) & 7 not in _MILLIMETRES:
        raise UnreadableError("the unit of its spacing is unknown", "set xyzt_units in its header")
    spacing = [float(v) for v in header["pixdim"][1:4]][: len(shape)]
    if int(header["sform_code"]) <= 0 and not all(0 < v < float("inf") for v in spacing):
        raise UnreadableError(f"its voxels measure {' x '.join(f'{v:g}' for v in spacing)}", "set pixdim in its header")
    try:
        size = header.get_data_dtype().itemsize
    except KeyError:
        raise UnreadableError(f"its type of numbers, {int(header['datatype'])}, is unknown") from None
    scaled = 4 if 0 != float(header["scl_slope"]) != 1 else size
    voxels = math.prod(shape)
    limits.check(voxels, voxels * max(size, scaled), held)
    if not 0 <= float(header["vox_offset"]) <= _MOST_BEFORE:
        raise UnreadableError(f"its voxels begin at byte {float(header['vox_offset']):g}")


def _values(image: Any) -> np.ndarray:
    """Scaled as the header says; records of R, G, B (and A) as a last axis of colours."""
    if image.get_data_dtype().names:
        records = np.asarray(image.dataobj)
        return np.stack([records[channel] for channel in "RGB"], -1)
    if image.dataobj.slope == 1 and image.dataobj.inter == 0:
        return np.asarray(image.dataobj.get_unscaled())
    return np.asarray(image.dataobj, np.float32)
