"""TIFF, by tifffile, and by Pillow where tifffile lacks a codec, as grey or RGB with the file's depth.

Palettes, CMYK and YCbCr become RGB, zero is made black, depths below 8 bits are scaled to 0..255, an alpha channel is
dropped (and undone where colours were multiplied by it), the orientation is obeyed. Pages are images or the planes of a
volume, as the network wants them; an axis Z is depth, an axis T is time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from lzma import LZMADecompressor
from typing import Any, BinaryIO

import numpy as np

from isoconv._extras import require
from isoconv.data.decoded import Axis, Decoded, Limits, UnreadableError
from isoconv.data.pictures import oriented, pixels_of

__all__ = ["SUFFIXES", "palette_indices", "tiff"]

SUFFIXES = (".tif", ".tiff")
"""Endings of these files."""
_WHITE, _BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_READ = {_WHITE: 1, _BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}  # photometric interpretation, its channels
_ORIENTATION, _COLOR_MAP, _INK_SET, _COEFFICIENTS, _REFERENCE = 274, 320, 332, 529, 532
_BT601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)
_LEADING: dict[str, Axis] = {"": "pages", "Q": "pages", "I": "pages", "Z": "depth", "T": "images", "TZ": "pages"}
_BLOCK = 1 << 20
_INFLATE: dict[int, Callable[[], Any]] = {
    8: zlib.decompressobj,
    32946: zlib.decompressobj,
    34925: partial(LZMADecompressor, memlimit=1 << 28),
}
_JPEG = {6, 7, 33007, 34892}  # of which the decoder makes RGB
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"}


def tiff(file: BinaryIO, size: int, limits: Limits) -> Decoded:
    """The image ``(H, W, 1 or 3)`` or the pages ``(N, H, W, 1 or 3)`` of an open file of ``size`` bytes."""
    with _opened(file) as tif:
        series = _series(tif)
        page = series.keyframe
        axes, channel = _axes(series)
        _check_size(series, size, limits)
        try:
            array = series.asarray()
        except (ValueError, NotImplementedError, ImportError) as error:
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            array = _by_pillow(file, series)
        else:
            array = np.moveaxis(array, channel, -1) if channel >= 0 else array[..., None]
            array = oriented(_as_colours(array, page), _tag(page, _ORIENTATION))
    leading = _LEADING[axes]
    why = f"has {len(array)} moments in time" if leading == "images" else ""
    return Decoded(array, leading, no_depth=why)


def palette_indices(file: BinaryIO, size: int, limits: Limits) -> np.ndarray | None:
    """The number of each pixel's colour ``(*spatial)`` where an open file has a palette, else None."""
    with _opened(file) as tif:
        series = _series(tif)
        if series.keyframe.photometric != _PALETTE:
            return None
        _check_size(series, size, limits)
        return oriented(series.asarray()[..., None], _tag(series.keyframe, _ORIENTATION))[..., 0]


def _opened(file: BinaryIO) -> Any:
    file.seek(0)
    # OME-TIFF can name other files to be opened
    return require("tifffile", "study").TiffFile(file, _multifile=False)


def _series(tif: Any) -> Any:
    """The one series of the file, whose pages have colours of one kind."""
    if len(tif.series) != 1:
        shapes = ", ".join(str(each.shape) for each in tif.series[:10])
        raise UnreadableError(f"it holds {len(tif.series)} series of images, {shapes}; one is expected")
    series = tif.series[0]
    first = _meaning(series.keyframe)
    for page in series.pages:
        if page is not None and not page.is_virtual and _meaning(page.aspage()) != first:
            raise UnreadableError("its pages differ in palette, orientation or colours", "save each as a file")
    return series


def _meaning(page: Any) -> tuple[Any, ...]:
    colours = _tag(page, _COLOR_MAP)
    return page.photometric, _tag(page, _ORIENTATION), None if colours is None else np.asarray(colours).tobytes()


def _tag(page: Any, number: int) -> Any:
    return page.tags.valueof(number)


def _axes(series: Any) -> tuple[str, int]:
    """The letters of the axes before height and width, and where the colours are, -1 if they have no axis.

    Raises:
        UnreadableError: these are no colours, or other axes than pages, depth and time.
    """
    page, axes = series.keyframe, series.axes
    name = getattr(page.photometric, "name", str(page.photometric))
    if page.photometric not in _READ:
        raise UnreadableError(f"its photometric interpretation is {name}", "save it as RGB or grey")
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    if len(channels) > 1:
        raise UnreadableError(f"its axes are {axes}, with colours twice", "save each channel as a file")
    channel = channels[0] if channels else -1
    count = series.shape[channel] if channels else 1
    expected = _READ[page.photometric]
    alpha = count == expected + 1 and len(page.extrasamples) == 1 and (expected == 3 or page.extrasamples[0] in (1, 2))
    colours = count - alpha
    if not (colours == expected or (page.photometric == _BLACK and colours == 3)):
        wanted = "4 are expected" if expected == 4 else "1 (grey), 3 (RGB) or 4 (RGBA) are expected"
        raise UnreadableError(f"it holds {count} channels; {wanted}", "save those that matter as RGB or grey")
    rest = "".join(axis for axis in axes if axis not in "SC")
    if not rest.endswith("YX") or rest[:-2] not in _LEADING:
        raise UnreadableError(f"its axes are {axes}; pages or Z, Y and X are expected", "save one volume or image")
    return rest[:-2], channel


def _check_size(series: Any, held: int, limits: Limits) -> None:
    page = series.keyframe
    samples = 3 if page.photometric == _PALETTE else 1
    pixels = series.size // max(1, page.samplesperpixel)
    limits.check(pixels, series.size * series.dtype.itemsize * samples, held)
    rows, *others = page.chunks
    rows = rows if page.is_tiled else min(rows, page.imagelength)
    block = math.prod((rows, *others))
    limits.check(block, 2 * block * page.dtype.itemsize, held)  # it is decompressed, then copied
    if page.compression in _INFLATE:
        for compressed in _segments(series):
            _check_inflated(compressed, _INFLATE[page.compression](), block * page.dtype.itemsize)


def _segments(series: Any) -> Iterator[bytes]:
    """The compressed blocks of which one could take a megabyte and more."""
    handle = series.parent.filehandle
    for page in series.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False) if page is not None else ():
            if count * 1000 > _BLOCK:
                handle.seek(offset)
                yield handle.read(count)


def _check_inflated(compressed: bytes, decoder: Any, expected: int) -> None:
    """tifffile decompresses a block whole, whatever it becomes."""
    total = 0
    while (compressed or not getattr(decoder, "needs_input", True)) and not decoder.eof:
        total += len(decoder.decompress(compressed, _BLOCK))
        compressed = getattr(decoder, "unconsumed_tail", b"")  # LZMA keeps it itself
        if total > expected + _BLOCK:
            raise UnreadableError(f"a block of its pixels takes {expected:,} bytes, but over {total:,} are compressed")


def _by_pillow(file: BinaryIO, series: Any) -> np.ndarray:
    """The pages, as :func:`_as_colours` gives them, where tifffile would need the package imagecodecs.

    Raises:
        UnreadableError: Pillow does not read them either.
    """
    page = series.keyframe
    file.seek(0)
    image = require("PIL.TiffImagePlugin", "study").TiffImageFile(file)
    remedy = "pip install imagecodecs, or save it uncompressed"
    if (page.bitspersample > 8 and page.photometric == _WHITE) or any(p is None or p.is_virtual for p in series.pages):
        raise UnreadableError("its pixels need the package imagecodecs", remedy)
    frames = []
    for each in series.pages:
        image.seek(each.index)
        try:
            image.load()
        except OSError as error:
            name = getattr(page.compression, "name", page.compression)
            reason = f"its pixels, compressed as {name}, are damaged or need a codec: {error}"
            raise UnreadableError(reason, remedy) from None
        if image.mode not in _MODES:
            raise UnreadableError("its pixels need the package imagecodecs", remedy)
        frames.append(pixels_of(image))
    return np.stack(frames) if len(frames) > 1 else frames[0]


def _as_colours(array: np.ndarray, page: Any) -> np.ndarray:
    """Samples ``(..., C)`` as grey or RGB ``(..., 1 or 3)``, 0 black."""
    kind = page.photometric
    if kind == _PALETTE:
        colours = np.asarray(_tag(page, _COLOR_MAP))
        if (colours == colours[:1]).all():
            colours = colours[:1]
        # as libtiff: some writers gave eight bits where sixteen are meant
        return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8).T[array[..., 0]]
    if page.bitspersample < 8 and array.dtype.kind == "u":
        array = np.round(array * (255 / (2**page.bitspersample - 1))).astype(np.uint8)
    if kind in (_WHITE, _CMYK, _YCBCR) and array.dtype.kind == "f":
        raise UnreadableError("it holds floats in which 0 is not black", "save it as RGB or grey")
    if kind == _WHITE:
        return ~array[..., :1]
    if kind == _CMYK:
        return _from_inks(array, page)
    if kind == _YCBCR and page.compression not in _JPEG:
        return _from_luma(array, page)
    if array.shape[-1] in (2, 4):
        array, alpha = array[..., :-1], array[..., -1:]
        if page.extrasamples[0] == 1 and array.dtype.kind == "u":
            top = np.iinfo(array.dtype).max
            array = np.minimum(top, np.round(array * (top / np.maximum(alpha, 1)))).astype(array.dtype)
    return array


def _from_inks(array: np.ndarray, page: Any) -> np.ndarray:
    if _tag(page, _INK_SET) not in (None, 1) or array.dtype.kind != "u":
        raise UnreadableError("its inks are not cyan, magenta, yellow and black", "save it as RGB")
    top = int(np.iinfo(array.dtype).max)
    light = top - array[..., :4].astype(np.float32)
    return np.round(light[..., :3] * light[..., 3:] / top).astype(array.dtype)


def _from_luma(array: np.ndarray, page: Any) -> np.ndarray:
    """RGB of YCbCr in the full range of 8 bits, as JPEG has it."""
    stated = _fractions(_tag(page, _COEFFICIENTS)), _fractions(_tag(page, _REFERENCE))
    usual = all(s is None or np.allclose(s, u, atol=1e-3) for s, u in zip(stated, (_BT601, _FULL_RANGE), strict=True))
    if array.dtype != np.uint8 or not usual:
        raise UnreadableError("its YCbCr has a range or coefficients of its own", "save it as RGB")
    y, cb, cr = (array[..., i].astype(np.float32) - (128 if i else 0) for i in range(3))
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = y - 0.344136 * cb - 0.714136 * cr
    return np.stack([red, green, blue], -1).round().clip(0, 255).astype(np.uint8)


def _fractions(value: Any) -> np.ndarray | None:
    """Of a tag that holds pairs of numerator and denominator."""
    if value is None:
        return None
    pairs = np.asarray(value, float).reshape(-1, 2)
    return pairs[:, 0] / np.maximum(pairs[:, 1], 1)
