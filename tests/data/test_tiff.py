"""TIFF in every photometric interpretation, depth, compression and orientation, against twins and Pillow."""

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoconv.data import read_images
from isoconv.data.decoded import Decoded, Limits
from isoconv.data.files import palette_indices, probe, read_arrays

pil = pytest.importorskip("PIL.Image", reason="writing pictures needs the extra 'study'")
tifffile = pytest.importorskip("tifffile", reason="reading TIFF needs the extra 'study'")

RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(5 * np.arange(16), 7 * np.arange(24)) % 256
RGB = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]], -1).astype(np.uint8)
PAGES = RNG.integers(0, 256, (5, 16, 24), np.uint8)


def read(path: Path) -> Decoded:
    ((_, found),) = read_arrays(path)
    return found


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate", "packbits", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_is_what_pillow_shows(tmp_path: Path, mode: str, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    image = pil.fromarray(257 * RGB[..., 0].astype(np.uint16)) if mode == "I;16" else pil.fromarray(RGB).convert(mode)
    image.save(path, compression=compression)
    found = read(path).array
    with pil.open(path) as written:
        grey = mode in ("1", "L", "LA")
        shown = np.asarray(written if mode == "I;16" else written.convert("L" if grey else "RGB"))
    expected = shown.reshape(16, 24, -1)
    if found.dtype == bool:
        found = 255 * found.astype(np.uint8)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (1 if mode == "YCbCr" else 0)


def test_a_palette_is_read_as_its_colours(tmp_path: Path) -> None:
    reduced = pil.fromarray(RGB).quantize(8)
    for name in ("p.tif", "p.png"):
        reduced.save(tmp_path / name)
    twin = np.asarray(reduced.convert("RGB"))
    assert np.array_equal(read(tmp_path / "p.tif").array, twin)
    images = read_images([tmp_path / "p.tif", tmp_path / "p.png"], channels=3, size=16, dims=2)[1]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(palette_indices(tmp_path / "p.tif"), np.asarray(reduced))
    assert palette_indices(tmp_path / "p.png") is not None


def test_a_palette_by_tifffile_and_one_of_greys(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (3, 256), np.uint8).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", RGB[..., 0], photometric="palette", colormap=colours)
    assert np.array_equal(read(tmp_path / "a.tif").array, (colours >> 8).T[RGB[..., 0]])
    greys = np.stack([np.arange(255, -1, -1, dtype=np.uint16) * 257] * 3)
    tifffile.imwrite(tmp_path / "g.tif", RGB[..., 0], photometric="palette", colormap=greys)
    assert np.array_equal(read(tmp_path / "g.tif").array, 255 - RGB[..., :1])


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("white", [False, True])
def test_depths_below_eight_bits_fill_the_range(tmp_path: Path, bits: int, white: bool) -> None:
    """Of a file written byte by byte, as neither library writes these depths."""
    stored = RNG.integers(0, 2**bits, (16, 24), np.uint8)
    packed = np.packbits(np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].ravel()).tobytes()
    tags = [
        (256, 24),
        (257, 16),
        (258, bits),
        (259, 1),
        (262, 0 if white else 1),
        (273, 8),
        (277, 1),
        (278, 16),
        (279, len(packed)),
    ]
    directory = len(tags).to_bytes(2, "little")
    for tag, value in tags:
        directory += b"".join(n.to_bytes(size, "little") for n, size in ((tag, 2), (4, 2), (1, 4), (value, 4)))
    head = b"II*\0" + (8 + len(packed)).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(head + packed + directory + bytes(4))
    expected = stored * (255 // (2**bits - 1))
    assert np.array_equal(read(tmp_path / "a.tif").array[..., 0], 255 - expected if white else expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, bool])
def test_zero_as_white_is_the_twin_of_the_negative(tmp_path: Path, dtype: type) -> None:
    stored = (RGB[..., 0] > 99) if dtype is bool else RGB[..., 0].astype(dtype)
    tifffile.imwrite(tmp_path / "w.tif", stored, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", ~stored, photometric="minisblack")
    images = read_images([tmp_path / "w.tif", tmp_path / "b.tif"], channels=1, size=16, dims=2)[1]
    assert np.array_equal(images[0], images[1])


@pytest.mark.parametrize("compression", ["jpeg", "group4", "group3"])
def test_other_compressions_are_read_by_pillow(tmp_path: Path, compression: str) -> None:
    image = pil.fromarray(RGB) if compression == "jpeg" else pil.fromarray(RGB[..., 0] > 99)
    image.save(tmp_path / "a.tif", compression=compression)
    with pil.open(tmp_path / "a.tif") as written:
        shown = np.asarray(written.convert("RGB"))
    assert np.array_equal(np.broadcast_to(read(tmp_path / "a.tif").array, shown.shape), shown)


def test_pages_that_tifffile_does_not_decode(tmp_path: Path) -> None:
    first, *others = (pil.fromarray(page) for page in PAGES)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")
    assert np.array_equal(read(tmp_path / "a.tif").array[..., 0], PAGES)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_orientation_is_obeyed(tmp_path: Path, orientation: int, compression: str | None) -> None:
    exif = pil.Exif()
    exif[274] = orientation
    pil.fromarray(RGB).save(tmp_path / "a.tif", exif=exif, compression=compression)
    with pil.open(tmp_path / "a.tif") as image:
        image.load()  # turned by Pillow
        assert np.array_equal(read(tmp_path / "a.tif").array, np.asarray(image))


def test_colours_multiplied_by_alpha_are_undone(tmp_path: Path) -> None:
    alpha = np.full((16, 24, 1), 128, np.uint8)
    flat = RGB // 2 * 2
    multiplied = np.concatenate([np.round(flat * (128 / 255)).astype(np.uint8), alpha], -1)
    tifffile.imwrite(tmp_path / "a.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(read(tmp_path / "a.tif").array.astype(int) - flat).max() <= 1
    tifffile.imwrite(
        tmp_path / "b.tif", np.concatenate([RGB, alpha], -1), photometric="rgb", extrasamples=["unassalpha"]
    )
    assert np.array_equal(read(tmp_path / "b.tif").array, RGB)


def test_colour_planes_become_channels(tmp_path: Path) -> None:
    planes = np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read(tmp_path / "planes.tif").array, RGB)
    assert probe(tmp_path / "planes.tif") == (2, 3)


@pytest.mark.parametrize(
    ("options", "pixels", "said"),
    [
        ({"photometric": "cielab"}, RGB, r"its photometric interpretation is CIELAB\); save it as RGB or grey"),
        ({"photometric": "icclab"}, RGB, "its photometric interpretation is ICCLAB"),
        ({"photometric": "cfa"}, RGB[..., 0], "its photometric interpretation is CFA"),
        ({"photometric": "logl"}, RGB[..., 0], "its photometric interpretation is LOGL"),
        ({"photometric": "mask"}, RGB[..., 0], "its photometric interpretation is MASK"),
        ({"metadata": {"axes": "CYX"}}, np.moveaxis(RGB[..., :2], -1, 0), "2 channels; 1 .* 3 .* or 4 .* are expected"),
        ({"metadata": {"axes": "CYX"}, "imagej": True}, PAGES[:4], "4 channels; 1 .* are expected"),
        ({"photometric": "separated"}, PAGES.transpose(1, 2, 0), "5 channels; 4 are expected"),
        ({"photometric": "miniswhite"}, RGB[..., 0] / 255, "floats in which 0 is not black"),
        ({"metadata": {"axes": "PYX"}, "ome": True}, PAGES, "its axes are .*; pages or Z, Y and X are expected"),
    ],
)
def test_what_has_no_twin_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], pixels: np.ndarray, said: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ValueError, match=rf"cannot read .*a\.tif \(.*{said}"):
        read(tmp_path / "a.tif")


def test_other_inks_and_other_luma_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "i.tif", PAGES[:4].transpose(1, 2, 0), photometric="separated", extratags=[(332, 3, 1, 2)]
    )
    with pytest.raises(ValueError, match="its inks are not cyan, magenta, yellow and black"):
        read(tmp_path / "i.tif")
    video = [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]
    tifffile.imwrite(tmp_path / "y.tif", RGB, photometric="ycbcr", extratags=[(532, 5, 6, video)])
    with pytest.raises(ValueError, match="its YCbCr has a range or coefficients of its own"):
        read(tmp_path / "y.tif")


def test_pages_of_different_palettes_are_refused(tmp_path: Path) -> None:
    first, second = (pil.fromarray(np.roll(RGB, i, -1)).quantize(8) for i in range(2))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=r"its pages differ in palette, orientation or colours\); save each as a file"):
        read(tmp_path / "a.tif")


def test_pages_are_a_stack_or_a_volume(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", PAGES)
    names, images = read_images(tmp_path / "pages.tif", channels=1, size=16, dims=2)
    assert np.array_equal(images[:, 0].numpy(), PAGES[..., 4:20])
    assert names[4] == f"{tmp_path}/pages.tif[4]"
    assert read_images(tmp_path / "pages.tif", channels=1, size=16, dims=3)[1].shape == (1, 1, 16, 16, 16)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_depth_is_no_time_and_time_no_depth(tmp_path: Path, kind: str) -> None:
    tifffile.imwrite(tmp_path / "z.tif", PAGES, **{kind: True}, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "t.tif", PAGES, **{kind: True}, metadata={"axes": "TYX"})
    assert len(read_images(tmp_path / "z.tif", channels=1, size=16, dims=3)[1]) == 1
    assert len(read_images(tmp_path / "t.tif", channels=1, size=16, dims=2)[1]) == 5
    with pytest.raises(ValueError, match=r"z\.tif is a volume of 5 x 16 x 24 voxels; the network expects an image"):
        read_images(tmp_path / "z.tif", channels=1, size=16, dims=2)
    with pytest.raises(ValueError, match=r"t\.tif has 5 moments in time, no volume; the network expects a volume"):
        read_images(tmp_path / "t.tif", channels=1, size=16, dims=3)


def test_several_series_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB[..., 0])
        file.write(RGB[:9, :7], photometric="rgb")
    with pytest.raises(ValueError, match="2 series of images"):
        read(tmp_path / "a.tif")


def test_the_file_that_an_ome_tiff_names_is_not_opened(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", PAGES, metadata={"axes": "ZYX"}, ome=True)
    whole = (tmp_path / "a.ome.tif").read_bytes()
    assert b"urn:uuid" in whole
    tifffile.imwrite(tmp_path / "b.ome.tif", PAGES[:1])
    assert read(tmp_path / "a.ome.tif").array.shape == (5, 16, 24, 1)


def test_a_limit_of_pixels_is_exact(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PAGES)
    with pytest.raises(ValueError, match="it has 1,920 pixels, the limit is 1,919"):
        read_arrays(tmp_path / "a.tif", Limits(pixels=1919))
    assert read_arrays(tmp_path / "a.tif", Limits(pixels=1920))[0][1].array.size == PAGES.size


@pytest.mark.parametrize(("compression", "encode"), [("zlib", zlib.compress), ("lzma", lzma.compress)])
def test_a_small_file_of_many_pixels_is_not_decoded(
    tmp_path: Path, compression: str, encode: Callable[[bytes], bytes]
) -> None:
    strip = encode(bytes(100 * 20000))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        strips = (strip for _ in range(200))
        file.write(strips, shape=(20000, 20000), dtype=np.uint8, rowsperstrip=100, compression=compression)
    assert (tmp_path / "a.tif").stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"pixels would take 0\.\d\d GB, .*limits=Limits"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize(("compression", "encode"), [("zlib", zlib.compress), ("lzma", lzma.compress)])
def test_a_block_that_becomes_more_than_its_pixels_is_not_decompressed(
    tmp_path: Path, compression: str, encode: Callable[[bytes], bytes]
) -> None:
    bomb = encode(bytes(30 * 10**6))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(iter([bomb]), shape=(16, 24), dtype=np.uint8, rowsperstrip=16, compression=compression)
    with pytest.raises(ValueError, match=r"a block of its pixels takes 384 bytes, but over \d,\d+,\d+ are compressed"):
        read(tmp_path / "a.tif")
