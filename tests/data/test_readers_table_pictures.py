"""The table of what is read, docs/reference/readers.md: a file for each of its lines on pictures and TIFF."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image", reason="writing pictures needs the extra 'study'")
tifffile = pytest.importorskip("tifffile", reason="writing TIFF needs the extra 'study'")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "readers.md"
LINE = re.compile(r"^\| ([^|]+?) \| ([^|]+?) \| (read|converted|refused) \| ([^|]*?) *\|$", re.MULTILINE)
MEDICAL = ("npy", "npz", "DICOM", "DICOM series", "NIfTI")
ROWS = [row for row in LINE.findall(PAGE.read_text()) if row[0] not in MEDICAL]
Write = Callable[..., Path]
Case = Callable[[Path, Write], tuple[Path, Any]]
CASES: dict[tuple[str, str], Case] = {}

RNG = np.random.default_rng(0)
GREY = (np.add.outer(9 * np.arange(16), 5 * np.arange(24)) % 256).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
REFUSED = object()
ALPHA = np.full((16, 24, 1), 200, np.uint8)
DEEP = GREY.astype(np.uint16) * 257 + 3
PAGES = RNG.integers(0, 256, (4, 16, 24), np.uint8)


def case(file: str, states: str) -> Callable[[Case], Case]:
    def add(made: Case) -> Case:
        assert (file, states) not in CASES
        CASES[file, states] = made
        return made

    return add


def shown(path: Path) -> np.ndarray:
    with pil.open(path) as image:
        return np.asarray(image.convert("RGB"))


def pillow(file: str, states: str, ending: str, image: Any, expected: Any = None, **options: Any) -> None:
    """A picture that Pillow writes; what is expected is what Pillow shows, or given."""

    @case(file, states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        path = folder / f"a.{ending}"
        image.save(path, **options)
        return path, shown(path) if expected is None else None if expected is REFUSED else expected


def upright(file: str, ending: str, **options: Any) -> None:
    @case(file, "orientation")
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        exif = pil.Exif()
        exif[274] = 6  # the first row is to be the right column
        path = folder / f"a.{ending}"
        pil.fromarray(RGB).save(path, exif=exif, **options)
        return path, np.rot90(shown(path) if file == "JPEG" else RGB, -1)


def png(states: str, samples: np.ndarray, kind: int, bits: int, expected: np.ndarray) -> None:
    @case("PNG", states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        def chunk(name: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        if bits == 16:
            rows = [row.astype(">u2").tobytes() for row in samples]
        else:
            spread = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
            rows = [np.packbits(row.ravel()).tobytes() for row in spread]
        head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, kind, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
        content += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
        (folder / "a.png").write_bytes(content)
        return folder / "a.png", expected


for few in (1, 2, 4):
    png(
        f"grey, {few} bit{'s' if few > 1 else ''}",
        GREY >> (8 - few),
        0,
        few,
        (GREY >> (8 - few)) * (255 // (2**few - 1)),
    )
png("grey, 8 bits", GREY, 0, 8, GREY)
png("grey, 16 bits", DEEP, 0, 16, DEEP)
png("grey and alpha, 8 bits", np.dstack([GREY, ALPHA]), 4, 8, GREY)
png("grey and alpha, 16 bits", np.dstack([DEEP, ALPHA]), 4, 16, DEEP)
png("RGB, 8 bits", RGB, 2, 8, RGB)
png("RGB, 16 bits", RGB * np.uint16(255), 2, 16, RGB * np.uint16(255))
png("RGBA, 8 bits", np.dstack([RGB, ALPHA]), 6, 8, RGB)
png("RGBA, 16 bits", np.dstack([RGB * np.uint16(255), ALPHA]), 6, 16, RGB * np.uint16(255))

BITONAL, REDUCED, COLOUR = pil.fromarray(GREY > 99), pil.fromarray(RGB).quantize(8), pil.fromarray(RGB)
OTHERS = [pil.fromarray(np.roll(RGB, i, 0)) for i in range(1, 4)]
pillow("PNG", "palette", "png", REDUCED)
pillow("PNG", "frames (APNG)", "png", COLOUR, [RGB, *OTHERS], save_all=True, append_images=OTHERS)
pillow("JPEG", "grey", "jpg", pil.fromarray(GREY))
pillow("JPEG", "YCbCr", "jpg", COLOUR)
pillow("JPEG", "CMYK", "jpg", COLOUR.convert("CMYK"))
pillow("BMP", "1 bit", "bmp", BITONAL)
pillow("BMP", "palette", "bmp", REDUCED)
pillow("BMP", "RGB, 24 bits a pixel", "bmp", COLOUR, RGB)
pillow("BMP", "RGBA, 32 bits a pixel", "bmp", pil.fromarray(np.dstack([RGB, ALPHA])), RGB)
pillow("GIF", "palette", "gif", REDUCED)
pillow("GIF", "frames", "gif", REDUCED, 4, save_all=True, append_images=OTHERS)
pillow("WebP", "RGB, lossless", "webp", COLOUR, RGB, lossless=True)
pillow("WebP", "RGB, lossy", "webp", COLOUR)
pillow("WebP", "RGBA", "webp", pil.fromarray(np.dstack([RGB, ALPHA])), RGB, lossless=True)
pillow("WebP", "frames", "webp", COLOUR, [RGB, *OTHERS], save_all=True, append_images=OTHERS, lossless=True)
upright("PNG", "png")
upright("JPEG", "jpg")
upright("WebP", "webp", lossless=True)
upright("TIFF", "tif")


@case("JPEG", "12 bits")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    COLOUR.save(folder / "a.jpg")
    raw = bytearray((folder / "a.jpg").read_bytes())
    raw[raw.find(b"\xff\xc0") + 4] = 12
    (folder / "a.jpg").write_bytes(raw)
    return folder / "a.jpg", None


@case("BMP", "RGB, 16 bits a pixel")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    five = (RGB >> 3).astype("<u2")
    rows = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2])[::-1].tobytes()
    head = struct.pack("<2sIHHI", b"BM", 54 + len(rows), 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 24, 16, 1, 16, 0, 0, 0, 0, 0, 0
    )
    (folder / "a.bmp").write_bytes(head + rows)
    return folder / "a.bmp", np.round((RGB >> 3) * (255 / 31))


@case("any of them", "EPS by content")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    COLOUR.save(folder / "a.png", "EPS")
    return folder / "a.png", None


def tiff(states: str, array: np.ndarray, expected: Any, **options: Any) -> None:
    @case("TIFF", states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        tifffile.imwrite(folder / "a.tif", array, **options)
        return folder / "a.tif", expected


def shallow(bits: int) -> None:
    @case("TIFF", f"MINISBLACK, {bits} bits")
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        stored = GREY >> (8 - bits)
        packed = np.packbits(np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].ravel()).tobytes()
        tags = (
            (256, 24),
            (257, 16),
            (258, bits),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (278, 16),
            (279, len(packed)),
        )
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        head = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags))
        (folder / "a.tif").write_bytes(head + directory + bytes(4))
        return folder / "a.tif", stored * (255 // (2**bits - 1))


INKS = (255 - np.dstack([RGB, np.full_like(GREY, 255)])).astype(np.uint8)
MULTIPLIED = np.dstack([np.round(RGB * (200 / 255)).astype(np.uint8), ALPHA])
VIDEO = [(532, 5, 6, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])]
tiff("MINISBLACK, 1 bit", GREY > 99, 255 * (GREY > 99), photometric="minisblack")
shallow(2)
shallow(4)
tiff("MINISBLACK, 8 bits", GREY, GREY)
tiff("MINISBLACK, 16 bits", DEEP, DEEP)
tiff("MINISBLACK, 32 bits", DEEP.astype(np.uint32) << 9, DEEP.astype(np.uint32) << 9)
tiff("MINISBLACK, floats", GREY / np.float32(9), GREY / np.float32(9))
pillow("TIFF", "MINISBLACK and alpha", "tif", COLOUR.convert("LA"), np.asarray(COLOUR.convert("L")))
tiff("MINISWHITE, whole numbers", GREY, 255 - GREY, photometric="miniswhite")
tiff("MINISWHITE, floats", GREY / np.float32(9), None, photometric="miniswhite")
tiff("RGB, 8 bits", RGB, RGB, photometric="rgb")
tiff("RGB, 16 bits", RGB * np.uint16(255), RGB * np.uint16(255), photometric="rgb")
tiff("RGB in planes", np.moveaxis(RGB, -1, 0), RGB, photometric="rgb", planarconfig="separate")
tiff("RGBA", np.dstack([RGB, ALPHA]), RGB, photometric="rgb", extrasamples=["unassalpha"])
tiff("RGBA, colours multiplied by alpha", MULTIPLIED, RGB, photometric="rgb", extrasamples=["assocalpha"])
pillow("TIFF", "PALETTE", "tif", REDUCED)
pillow("TIFF", "SEPARATED, CMYK", "tif", COLOUR.convert("CMYK"), RGB)
tiff("SEPARATED, other inks", INKS, None, photometric="separated", extratags=[(332, 3, 1, 2)])
pillow("TIFF", "YCBCR, full range", "tif", COLOUR.convert("YCbCr"))
tiff("YCBCR, another range", RGB, None, photometric="ycbcr", extratags=VIDEO)
for name in ("CIELAB", "ICCLAB", "ITULAB", "LOGLUV", "LINEAR_RAW"):
    tiff(name, RGB, None, photometric=name.lower())
for name in ("CFA", "LOGL", "MASK", "DEPTH_MAP"):
    tiff(name, GREY, None, photometric=name.lower())
tiff("deflate", RGB, RGB, photometric="rgb", compression="zlib")
pillow("TIFF", "PackBits", "tif", COLOUR, RGB, compression="packbits")
tiff("LZMA", RGB, RGB, photometric="rgb", compression="lzma")
pillow("TIFF", "LZW", "tif", COLOUR, RGB, compression="tiff_lzw")
pillow("TIFF", "CCITT group 3", "tif", BITONAL, compression="group3")
pillow("TIFF", "CCITT group 4", "tif", BITONAL, compression="group4")
pillow("TIFF", "JPEG", "tif", COLOUR, compression="jpeg")
tiff("pages", PAGES, PAGES, photometric="minisblack")
tiff("axis Z", PAGES, PAGES, metadata={"axes": "ZYX"}, imagej=True)
tiff("axis T", PAGES, PAGES, metadata={"axes": "TYX"}, imagej=True)
tiff("axis C of two channels", PAGES[:2], None, metadata={"axes": "CYX"}, imagej=True)
tiff("a voxel size", PAGES, PAGES, resolution=(2, 2), metadata={"axes": "ZYX", "spacing": 3, "unit": "mm"}, imagej=True)
FEW = [pil.fromarray(np.roll(RGB, 1, -1)).quantize(8)]
pillow("TIFF", "pages of different palettes", "tif", REDUCED, REFUSED, save_all=True, append_images=FEW)


pillow("TIFF", "ZSTD", "tif", COLOUR, RGB, compression="zstd")


@case("TIFF", "JPEG 2000")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    with tifffile.TiffWriter(folder / "a.tif") as file:
        file.write(iter([bytes(99)]), shape=(16, 24), dtype=np.uint8, rowsperstrip=16, compression="zlib")
    as_it_is, changed = (struct.pack("<HHIH", 259, 3, 1, compression) for compression in (8, 34712))
    (folder / "a.tif").write_bytes((folder / "a.tif").read_bytes().replace(as_it_is, changed))
    return folder / "a.tif", None


@case("TIFF", "several series")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    with tifffile.TiffWriter(folder / "a.tif") as file:
        file.write(GREY)
        file.write(RGB[:9], photometric="rgb")
    return folder / "a.tif", None


def test_every_line_is_tested_and_every_test_has_a_line() -> None:
    listed = [(file, states) for file, states, _, _ in ROWS]
    assert len(set(listed)) == len(listed) > 50
    assert set(listed) == set(CASES)
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == len(LINE.findall(PAGE.read_text())) + 5  # the heads: none else has fallen through the pattern


@pytest.mark.parametrize(("file", "states", "outcome", "as_what"), ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
def test_the_line_tells_what_happens(
    tmp_path: Path,
    write_dicom: Write,
    check_line: Callable[..., None],
    file: str,
    states: str,
    outcome: str,
    as_what: str,
) -> None:
    path, expected = CASES[file, states](tmp_path, write_dicom)
    check_line(path, outcome, as_what, expected)
