"""PNG, JPEG, BMP, GIF and WebP in every colour, depth and orientation, against Pillow and against formulas."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from isoconv.data import read_images
from isoconv.data.decoded import LIMITS, Decoded, Limits
from isoconv.data.files import palette_indices, probe, read_arrays
from isoconv.data.pictures import SUFFIXES

pil = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra 'study'")
ops = pytest.importorskip("PIL.ImageOps", reason="reading pictures needs the extra 'study'")
tifffile = pytest.importorskip("tifffile", reason="reading TIFF needs the extra 'study'")

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3), np.uint8)
MODES = {
    ".png": ["1", "L", "LA", "P", "RGB", "RGBA"],
    ".bmp": ["1", "L", "P", "RGB", "RGBA"],
    ".gif": ["1", "L", "LA", "P", "RGB", "RGBA"],
    ".webp": ["L", "RGB", "RGBA"],
    ".jpg": ["L", "RGB", "CMYK", "YCbCr"],
}
FORMATS = {".png": {}, ".bmp": {}, ".gif": {}, ".webp": {"lossless": True}, ".jpg": {"quality": 95}}


def read(path: Path) -> Decoded:
    ((_, found),) = read_arrays(path)
    return found


def png(samples: np.ndarray, kind: int, bits: int) -> bytes:
    """A PNG of unfiltered rows, of any colour type and depth; samples ``(H, W, C)``."""
    height, width, _ = samples.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        spread = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        rows = [np.packbits(row.ravel()).tobytes() for row in spread]
    palette = chunk(b"PLTE", RGB[:16].reshape(-1, 3)[: 2**bits].tobytes()) if kind == 3 else b""
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_fills_its_range(tmp_path: Path, bits: int) -> None:
    stored = RNG.integers(0, 2**bits, (13, 17, 1))
    (tmp_path / "a.png").write_bytes(png(stored, 0, bits))
    found = read(tmp_path / "a.png").array
    assert np.array_equal(found, stored if bits == 16 else stored * 255 // (2**bits - 1))


@pytest.mark.parametrize(("kind", "channels", "colours"), [(2, 3, 3), (6, 4, 3), (4, 2, 1)])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_and_alpha_of_png_in_both_depths(
    tmp_path: Path, kind: int, channels: int, colours: int, bits: int
) -> None:
    stored = RNG.integers(0, 2**bits, (13, 17, channels))
    (tmp_path / "a.png").write_bytes(png(stored, kind, bits))
    assert np.array_equal(read(tmp_path / "a.png").array, stored[..., :colours])
    assert probe(tmp_path / "a.png") == (2, colours)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_png_are_their_colours(tmp_path: Path, bits: int) -> None:
    indices = RNG.integers(0, min(2**bits, 200), (13, 17, 1))
    (tmp_path / "a.png").write_bytes(png(indices, 3, bits))
    assert np.array_equal(read(tmp_path / "a.png").array, RGB[:16].reshape(-1, 3)[indices[..., 0]])
    assert np.array_equal(palette_indices(tmp_path / "a.png"), indices[..., 0])


def test_sixteen_bit_colours_are_prepared_like_those_of_a_tiff(tmp_path: Path) -> None:
    deep = RNG.integers(0, 5000, (20, 20, 3), np.uint16)
    (tmp_path / "a.png").write_bytes(png(deep, 2, 16))
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    images = read_images([tmp_path / "a.png", tmp_path / "a.tif"], channels=3, size=20, dims=2)[1]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(np.moveaxis(images[0].numpy(), 0, -1), np.round(255 * ((deep - deep.min()) / np.ptp(deep))))


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_every_mode_of_every_format_is_what_pillow_shows(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"a{suffix}"
    pil.fromarray(RGB).convert(mode).save(path, **FORMATS[suffix])
    found = read(path).array
    with pil.open(path) as image:
        shown = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.broadcast_to(found, shown.shape), shown)
    assert found.shape[-1] == (1 if mode in ("1", "L", "LA") and suffix != ".webp" else 3)
    assert probe(path) == (2, found.shape[-1])


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_obeyed(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = pil.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    pil.fromarray(RGB).save(path, exif=exif, **FORMATS[suffix])
    with pil.open(path) as image:
        assert np.array_equal(read(path).array, np.asarray(ops.exif_transpose(image)))
    assert read(path).array.shape[:2] == ((13, 17) if orientation < 5 else (17, 13))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_frames_are_images_and_no_volume(tmp_path: Path, suffix: str) -> None:
    pages = [pil.fromarray(np.roll(RGB, i, 0)).quantize(16).convert("RGB") for i in range(4)]
    path = tmp_path / f"a{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], **FORMATS[suffix])
    names, images = read_images(path, channels=3, size=13, dims=2)
    assert names == [f"{path}[{i}]" for i in range(4)]
    with pil.open(path) as image:
        image.seek(2)
        shown = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.moveaxis(images[2].numpy(), 0, -1), shown[:, 2:15])
    with pytest.raises(
        ValueError, match=rf"a{suffix} is an animation of 4 frames, no volume; the network expects a vol"
    ):
        read_images(path, channels=3, size=13, dims=3)
    with pytest.raises(ValueError, match="no single image: it is an animation of 4 frames"):
        probe(path)


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    pil.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read(tmp_path / "a.jpg").array, RGB)
    for suffix in SUFFIXES:
        pil.fromarray(RGB).save(tmp_path / "a.eps")  # what Pillow hands to another program
        (tmp_path / "a.eps").rename(tmp_path / f"b{suffix}")
        with pytest.raises(ValueError, match="its content is none of PNG, JPEG, BMP, GIF, WebP"):
            read(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_cut_files_are_refused_in_one_line(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    pil.fromarray(np.kron(RGB, np.ones((5, 5, 1), np.uint8))).save(path, **FORMATS[suffix])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"cannot read .*a\{suffix} \(.*\); save it anew or leave it out") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_small_file_of_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    side = 40000
    row = b"\0" + bytes(side // 8)
    squeeze, data = zlib.compressobj(9), []
    data += [squeeze.compress(row) for _ in range(side)]
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", head), (b"IDAT", b"".join(data) + squeeze.flush()), (b"IEND", b"")):
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    (tmp_path / "a.png").write_bytes(content)
    assert len(content) < 10**6
    with pytest.raises(
        ValueError, match=r"its 1,600,000,000 pixels would take .*; .* limits=Limits\(pixels=1600000000\)"
    ):
        read(tmp_path / "a.png")


def test_a_limit_of_pixels_is_exact_and_counts_frames(tmp_path: Path) -> None:
    pages = [pil.fromarray(np.roll(RGB, i, 0)) for i in range(3)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    count = 3 * 13 * 17
    with pytest.raises(ValueError, match=f"it has {count} pixels, the limit is {count - 1}"):
        read_arrays(tmp_path / "a.gif", Limits(pixels=count - 1))
    assert len(read_arrays(tmp_path / "a.gif", Limits(pixels=count))[0][1].array) == 3


def test_pillows_own_limit_is_neither_used_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 9)
    memory = io.BytesIO()
    pil.fromarray(RGB).save(memory, "PNG")
    (tmp_path / "a.png").write_bytes(memory.getvalue())
    assert read_arrays(tmp_path / "a.png", LIMITS)[0][1].array.shape == RGB.shape
    assert pil.MAX_IMAGE_PIXELS == 9


def test_a_frame_that_sticks_out_of_the_canvas_counts(tmp_path: Path) -> None:
    pil.fromarray(RGB).save(tmp_path / "a.gif")
    raw = (tmp_path / "a.gif").read_bytes()
    frame = struct.pack("<4H", 0, 0, 17, 13)
    (tmp_path / "a.gif").write_bytes(raw.replace(b"," + frame, b"," + struct.pack("<4H", 0, 0, 9000, 9000)))
    with pytest.raises(ValueError, match=r"its 81,000,000 pixels would take 0\.32 GB"):
        read(tmp_path / "a.gif")
