"""PNG, JPEG, BMP, GIF and WebP, by Pillow, as 8- or 16-bit grey or RGB.

Palettes, CMYK and YCbCr become RGB, black and white and depths below 8 bits are scaled to 0..255, an alpha channel is
dropped, the orientation in EXIF is obeyed. Several frames (GIF, WebP, APNG) are images one after another, no volume.
Gamma, colour profiles and the number of significant bits are not looked at.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from isoconv._extras import require
from isoconv.data.decoded import Decoded, Limits, UnreadableError

__all__ = ["SUFFIXES", "look", "oriented", "palette_indices", "picture", "pixels_of"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
"""Endings of these files."""
# by content, names prove nothing; and never all that Pillow opens: EPS runs a program
_PLUGINS = {b"\x89PNG": "Png", b"\xff\xd8\xff": "Jpeg", b"BM": "Bmp", b"GIF8": "Gif", b"RIFF": "WebP"}
_DEEP = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}
_ORIENTATION = 0x0112
_BLOCK = 1 << 22  # pixels
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # of arrays (..., H, W, C)
    2: lambda a: a[..., ::-1, :],
    3: lambda a: a[..., ::-1, ::-1, :],
    4: lambda a: a[..., ::-1, :, :],
    5: lambda a: a.swapaxes(-3, -2),
    6: lambda a: a[..., ::-1, :, :].swapaxes(-3, -2),
    7: lambda a: a[..., ::-1, ::-1, :].swapaxes(-3, -2),
    8: lambda a: a.swapaxes(-3, -2)[..., ::-1, :, :],
}


def picture(file: BinaryIO, size: int, limits: Limits) -> Decoded:
    """The image ``(H, W, 1 or 3)`` in an open file of ``size`` bytes, or its frames ``(N, H, W, 1 or 3)``."""
    image = _open(file)
    frames = getattr(image, "n_frames", 1)
    width, height = _canvas_of_gif(file) if image.format == "GIF" else image.size
    pixels = frames * width * height
    limits.check(pixels, pixels * (1 if _is_grey(image) else 4), size)
    if frames > 1:
        return Decoded(_frames(image, frames), "images", no_depth=f"is an animation of {frames} frames")
    array = _deep(file, image) if _raw_mode(image) in _DEEP else pixels_of(image)
    return Decoded(oriented(array, image.getexif().get(_ORIENTATION)))


def look(file: BinaryIO) -> tuple[int, int]:
    """Frames, and channels, 1 or 3, as the head of an open file tells them."""
    image = _open(file)
    return getattr(image, "n_frames", 1), 1 if _is_grey(image) else 3


def palette_indices(file: BinaryIO, size: int, limits: Limits) -> np.ndarray | None:
    """The number of each pixel's colour ``(H, W)`` where an open file has one image with a palette, else None."""
    image = _open(file)
    if image.mode != "P" or getattr(image, "n_frames", 1) > 1:
        return None
    limits.check(image.width * image.height, image.width * image.height, size)
    return oriented(np.asarray(image)[..., None], image.getexif().get(_ORIENTATION))[..., 0]


def oriented(array: np.ndarray, orientation: Any) -> np.ndarray:
    """An array ``(..., H, W, C)`` as it is to be seen, by the numbers 1 to 8 of EXIF and TIFF; others mean nothing."""
    turn = _TURNS.get(orientation)
    return array if turn is None else np.ascontiguousarray(turn(array))


def pixels_of(image: Any) -> np.ndarray:
    """``(H, W, 1 or 3)`` of an image of Pillow, uint8, or uint16 where it is 16-bit grey."""
    deep, mode = image.mode.startswith("I"), "L" if _is_grey(image) else "RGB"
    array = np.empty((image.height, image.width, len(mode) if mode == "RGB" else 1), np.uint16 if deep else np.uint8)
    step = max(1, _BLOCK // image.width)
    for top in range(0, image.height, step):  # in parts: Pillow copies what it converts, and NumPy what it is given
        part = image.crop((0, top, image.width, min(top + step, image.height)))
        array[top : top + step] = np.asarray(part if deep else part.convert(mode)).reshape(-1, *array.shape[1:])
    return array


def _open(file: BinaryIO) -> Any:
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    name = next((name for magic, name in _PLUGINS.items() if head.startswith(magic)), None)
    if name is None or (name == "WebP" and head[8:] != b"WEBP"):
        raise UnreadableError("its content is none of PNG, JPEG, BMP, GIF, WebP")
    # not Image.open: it refuses by a limit of the whole process, where ours is an argument
    return getattr(require(f"PIL.{name}ImagePlugin", "study"), f"{name}ImageFile")(file)


def _canvas_of_gif(file: BinaryIO) -> tuple[int, int]:
    """Width and height that hold all frames: Pillow makes its canvas larger when it comes to one that sticks out."""

    def skip_table(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)

    place = file.tell()
    file.seek(6)
    width, height, flags = struct.unpack("<HHB2x", file.read(7))
    skip_table(flags)
    while (mark := file.read(1)) not in (b"", b";"):
        if mark not in (b"!", b","):  # Pillow goes on as well
            continue
        if mark == b",":
            x, y, w, h, flags = struct.unpack("<4HB", file.read(9))
            width, height = max(width, x + w), max(height, y + h)
            skip_table(flags)
        file.seek(1, io.SEEK_CUR)
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], io.SEEK_CUR)
    file.seek(place)
    return width, height


def _is_grey(image: Any) -> bool:
    if image.mode == "P":  # a grey GIF has a palette of greys
        order, raw = image.palette.getdata()  # getpalette would decode the image
        colours = np.frombuffer(raw, np.uint8)[: len(raw) // len(order) * len(order)].reshape(-1, len(order))[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode.startswith("I") or image.mode in ("1", "L", "LA") or _raw_mode(image) == "LA;16B"


def _raw_mode(image: Any) -> Any:
    return image.tile[0][3] if image.format == "PNG" and image.tile else None


def _deep(file: BinaryIO, image: Any) -> np.ndarray:
    """16-bit colours of a PNG, of which Pillow keeps the upper bytes; read in the other byte order, the lower ones."""
    raw = _raw_mode(image)
    other = _open(file)
    codec, extents, offset, _ = other.tile[0]
    other.tile = [(codec, extents, offset, _DEEP[raw])]
    if raw == "LA;16B":  # four bytes to a pixel, as RGBA has
        both = np.asarray(other).astype(np.uint16)
        return both[..., :1] << 8 | both[..., 1:2]
    low = np.asarray(other)[..., :3]
    image = _open(file)
    return np.asarray(image)[..., :3].astype(np.uint16) << 8 | low


def _frames(image: Any, count: int) -> np.ndarray:
    orientation = image.getexif().get(_ORIENTATION)
    frames = []
    for i in range(count):
        image.seek(i)
        frames.append(np.asarray(image.convert("RGB")))
    return oriented(np.stack(frames), orientation)
