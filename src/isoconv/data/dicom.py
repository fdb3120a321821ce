"""DICOM images, frames and series, by pydicom. Needs the extra ``medical``.

Grey is in the units of slope and intercept, of each frame and slice its own; where these change nothing the stored
numbers are kept, depths below 8 bits scaled to 0..255. Colours are RGB. Zero is made black, padding the darkest value.
A volume keeps the plane that it was taken in, D along the normal of its slices, so none is mirrored. Windows, overlays
and presentation states are not looked at.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoconv._extras import require
from isoconv.data.decoded import Decoded, Limits, UnreadableError, readable
from isoconv.data.frames import count_of, frame_grid, frame_scales
from isoconv.data.geometry import grid_of_slices, straightened
from isoconv.data.medical import dataset

__all__ = ["dicom", "dicom_series"]

_PHOTOMETRIC = {  # what is read, and its channels
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"), 3),
}
_PADDING = {  # by where the pixels are
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
_NEEDED = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
_SAME = {
    "SeriesInstanceUID": "series",
    "Rows": "heights",
    "Columns": "widths",
    "PhotometricInterpretation": "photometric interpretations",
}
_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it"


def dicom(path: Path, limits: Limits) -> Decoded:
    """An image ``(H, W, 1 or 3)``, or the frames ``(N, H, W, 1 or 3)`` of a multi-frame file: of a volume, where their
    positions are a regular grid, in the order of these, with the spacing; else images.

    Raises:
        ValueError: no DICOM file, no pixels, or pixels that cannot be decoded.
    """
    data = _image(path, limits)
    array = _pixels([path], [data], limits)
    if len(array) == 1:
        return Decoded(array[0])
    try:
        grid = frame_grid(data, len(array))
        return Decoded(straightened(array[grid.order], grid), "depth", grid.spacing)
    except ValueError as error:
        return Decoded(array, "images", no_depth=f"is a file of {len(array)} frames ({error})")


def dicom_series(files: Sequence[Path], limits: Limits) -> Decoded:
    """The volume ``(D, H, W, 1)`` whose slices are these files, sorted by position, and its spacing.

    Raises:
        ValueError: fewer than two slices, several series or sizes, a multi-frame file, no position or spacing, or
            slices that are no regular grid.
    """
    if len(files) < 2:
        reason = f"a series needs at least 2 slices, this folder holds {len(files)}"
        raise UnreadableError(reason, "give the file itself")
    slices = [_image(path, limits) for path in files]
    if any(count_of(s) > 1 for s in slices):
        raise UnreadableError("it holds multi-frame files, each is a volume of its own", "give the files themselves")
    for tag, what in _SAME.items():
        if (n := len({str(s.get(tag)) for s in slices})) > 1:
            reason = f"its slices are of {n} different {what}"
            raise UnreadableError(reason, "put each series into a folder of its own")
    if _channels(slices[0]) > 1:
        raise UnreadableError("its slices are in colour, a volume is grey", "give the files themselves")
    wanted = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    for path, s in zip(files, slices, strict=True):
        if missing := [tag for tag in wanted if not s.get(tag)]:
            reason = f"{path.name} has no {', '.join(missing)}"
            raise UnreadableError(reason, "slices cannot be put in order without it")
    table = [np.array([s[tag].value for s in slices], float) for tag in wanted]
    grid = grid_of_slices([path.name for path in files], table[0], table[1], table[2])
    array = _pixels([files[i] for i in grid.order], [slices[i] for i in grid.order], limits)
    return Decoded(straightened(array, grid), "depth", grid.spacing)


def _image(path: Path, limits: Limits) -> Any:
    data = dataset(path, limits)
    with readable(path):
        if not any(name in data for name in _PADDING):
            raise UnreadableError("it holds no pixels")
        if missing := [tag for tag in _NEEDED if data.get(tag) is None]:
            raise UnreadableError(f"it has no {', '.join(missing)}")
        _check_size([data], path.stat().st_size, limits)
    return data


def _check_size(slices: Sequence[Any], held: int, limits: Limits) -> None:
    counts = [count_of(s) for s in slices]
    for data, count in zip(slices, counts, strict=True):
        there = max(len(data.get(name) or b"") for name in _PADDING)
        if not 0 < count <= 8 * there:
            raise UnreadableError(f"it states {count:,} frames and holds {there:,} bytes of them")
    pixels = sum(n * int(s.Rows) * int(s.Columns) for n, s in zip(counts, slices, strict=True))
    size = max(int(s.BitsAllocated) // 8 or 1 for s in slices) * _channels(slices[0])
    limits.check(pixels, pixels * size, held)


def _channels(data: Any) -> int:
    """1 or 3 of the image; one of a palette has 3, though it stores 1."""
    kind, samples = data.PhotometricInterpretation, int(data.get("SamplesPerPixel", 1))
    if kind not in _PHOTOMETRIC:
        raise UnreadableError(f"its photometric interpretation is {kind}", "convert it to RGB or MONOCHROME2")
    if samples != _PHOTOMETRIC[kind]:
        raise UnreadableError(f"it has {samples} samples per pixel, {kind} has {_PHOTOMETRIC[kind]}")
    return 3 if kind == "PALETTE COLOR" else samples


def _pixels(paths: Sequence[Path], slices: Sequence[Any], limits: Limits) -> np.ndarray:
    """All frames of all files ``(N, H, W, 1 or 3)``, grey ones on one scale."""
    _check_size(slices, sum(path.stat().st_size for path in paths), limits)
    scales = [frame_scales(s, count_of(s)) for s in slices]
    plain = all((scale == (1, 0)).all() for scale in scales) and not any(_has_lut(s) for s in slices)
    values, padding = [], []
    for path, data, scale in zip(paths, slices, scales, strict=True):
        with readable(path):
            stored = _decoded(data)
            values.append(
                _colours(stored, data) if _channels(data) == 3 else _grey(stored, data, None if plain else scale)
            )
            padding.append(_padding(stored, data))
    array, padded = np.concatenate(values), np.concatenate(padding)
    if padded.any() and not padded.all():
        array[padded] = array[~padded].min()
    return array


def _has_lut(data: Any) -> bool:
    return bool(data.get("ModalityLUTSequence"))


def _decoded(data: Any) -> np.ndarray:
    """The stored numbers ``(N, H, W, C)``; of YBR the RGB."""
    syntax = data.file_meta.get("TransferSyntaxUID")
    compressed = syntax is not None and syntax.is_encapsulated
    if compressed:
        _check_compressed(data, syntax)
    try:
        array = data.pixel_array
    except Exception as error:
        if not compressed:
            raise
        reason = f"its pixels, compressed as {syntax.name}, cannot be decoded: {' '.join(str(error).split())}"
        raise UnreadableError(
            reason, f"where they are not damaged, another decoder may read them: {_DECODERS}"
        ) from None
    return np.asarray(array).reshape(-1, int(data.Rows), int(data.Columns), int(data.get("SamplesPerPixel", 1)))


def _check_compressed(data: Any, syntax: Any) -> None:
    pixels = require("pydicom.pixels", "medical")
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableError(f"it is compressed as {syntax.name}, which is not read", "decompress it") from None
    if not decoder.is_available:
        raise UnreadableError(f"it is compressed as {syntax.name} and no decoder is installed", _DECODERS)
    if "PixelData" not in data or importlib.util.find_spec("PIL") is None:
        return
    shape = int(data.Columns), int(data.Rows)
    for frame in require("pydicom.encaps", "medical").generate_frames(data.PixelData, number_of_frames=count_of(data)):
        stated = _size_of(frame)
        if stated not in (None, shape):
            raise UnreadableError(
                f"a frame is {stated[0]} x {stated[1]} pixels, its header says {shape[0]} x {shape[1]}"
            )


def _size_of(frame: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG or JPEG 2000 by its own head: a decoder makes room for that."""
    for magic, name, kind in (
        (b"\xff\xd8\xff", "JpegImagePlugin", "JpegImageFile"),
        (b"\xff\x4f\xff\x51", "Jpeg2KImagePlugin", "Jpeg2KImageFile"),
        (b"\x00\x00\x00\x0cjP", "Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    ):
        if frame.startswith(magic):
            try:
                return getattr(require(f"PIL.{name}", "study"), kind)(io.BytesIO(frame)).size
            except (SyntaxError, OSError):  # such as JPEG-LS, which begins as JPEG does
                return None
    return None


def _colours(array: np.ndarray, data: Any) -> np.ndarray:
    if data.PhotometricInterpretation == "PALETTE COLOR":
        array = require("pydicom.pixels", "medical").apply_color_lut(array[..., 0], data)[..., :3]
        return (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
    return _full_range(array, data)


def _grey(stored: np.ndarray, data: Any, scale: np.ndarray | None) -> np.ndarray:
    """In its units, or without a scale as stored; in both 0 is black."""
    inverse = data.PhotometricInterpretation == "MONOCHROME1"
    if scale is None:
        array = _full_range(stored, data)
        return (-array if array.dtype.kind == "f" else ~array) if inverse else array
    if _has_lut(data):
        array = require("pydicom.pixels", "medical").apply_modality_lut(stored, data)
    else:
        kind = np.float32 if stored.itemsize <= 2 else np.float64
        slope, intercept = scale.T.astype(kind)[..., None, None, None]
        array = stored * slope + intercept
    return -np.asarray(array, np.float64 if array.dtype.kind != "f" else None) if inverse else array


def _full_range(array: np.ndarray, data: Any) -> np.ndarray:
    bits = int(data.get("BitsStored") or 8)
    if array.dtype != np.uint8 or bits >= 8:
        return array
    return np.round(array * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _padding(stored: np.ndarray, data: Any) -> np.ndarray:
    """Which stored numbers stand for no measurement, ``(N, H, W, 1)``."""
    first, last = (data.get(tag) for name, tags in _PADDING.items() if name in data for tag in tags)
    if first is None or stored.shape[-1] > 1:
        return np.zeros((*stored.shape[:-1], 1), bool)
    # a signed number may be written as if it were none: the bits are what counts
    ends = np.array([first, first if last is None else last]).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())
