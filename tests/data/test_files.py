"""Users' own files: what is read, what is refused, and with what words."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from isoconv.data import read_images
from isoconv.data.files import probe, split_index

pil = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra 'study'")
tifffile = pytest.importorskip("tifffile", reason="reading TIFF needs the extra 'study'")

GREY = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28)
RGB = np.stack([GREY % 256, GREY % 199, GREY % 99], -1).astype(np.uint8)


def read(path: Path, channels: int = 1, dims: int = 2, size: int = 28) -> tuple[list[str], torch.Tensor]:
    return read_images(path, channels=channels, size=size, dims=dims)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_lossless_pictures_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cell.{suffix}"
    pil.fromarray(RGB).save(path)
    names, images = read(path, channels=3)
    assert names == [str(path)]
    assert images.dtype == torch.uint8
    assert np.array_equal(images[0].numpy(), np.moveaxis(RGB, -1, 0))


def test_jpeg_is_read(tmp_path: Path) -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    flat[:20] = 160
    pil.fromarray(flat).save(tmp_path / "a.jpeg", quality=95)
    _, images = read(tmp_path / "a.jpeg", channels=3)
    assert images.shape == (1, 3, 28, 28)
    assert (images[0, 0, 2, 2].item(), images[0, 0, -2, 2].item()) == (
        pytest.approx(160, abs=3),
        pytest.approx(90, abs=3),
    )


def test_sixteen_bit_grey_is_stretched_to_its_range(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 1000 + 3 * GREY)
    pil.fromarray(1000 + 3 * GREY).save(tmp_path / "b.png")
    expected = np.round(255 * (GREY / GREY.max())).astype(np.uint8)
    for name in ("a.tif", "b.png"):
        assert np.array_equal(read(tmp_path / name)[1][0, 0].numpy(), expected)


def test_floats_from_0_to_1_keep_their_scale(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0.2, 0.4, 28 * 28).reshape(28, 28))
    image = read(tmp_path / "a.npy")[1]
    assert (image.min(), image.max()) == (51, 102)


def test_stacks_and_volumes(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    np.save(tmp_path / "stack.npy", stack)
    np.savez(tmp_path / "set.npz", test_images=stack, test_labels=np.arange(4))
    names, images = read(tmp_path / "stack.npy")
    assert names == [f"{tmp_path}/stack.npy[{i}]" for i in range(4)]
    assert np.array_equal(images[:, 0].numpy(), stack)
    names, images = read(tmp_path / "set.npz")
    assert names[0] == f"{tmp_path}/set.npz:test_images[0]"
    assert np.array_equal(images[:, 0].numpy(), stack)
    assert read(tmp_path / "stack.npy", dims=3, size=16)[1].shape == (1, 1, 16, 16, 16)


def test_an_oblong_image_is_cropped_to_its_central_square(tmp_path: Path) -> None:
    wide = np.zeros((28, 48), np.uint8)
    wide[:, 10:38] = GREY % 251
    pil.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(read(tmp_path / "wide.png")[1][0, 0].numpy(), GREY % 251)


def test_grey_for_an_rgb_network_is_repeated_and_colour_for_a_grey_one_refused(tmp_path: Path) -> None:
    pil.fromarray((GREY % 256).astype(np.uint8)).save(tmp_path / "grey.png")
    images = read(tmp_path / "grey.png", channels=3)[1]
    assert torch.equal(images[0, 0], images[0, 2])
    pil.fromarray(RGB).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb\.png is RGB, the network expects 1 channel; convert it to grey"):
        read(tmp_path / "rgb.png")


def test_a_folder_is_walked_through_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pil.fromarray(RGB).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").write_text("not an image")
    (tmp_path / "b" / ".thumbnails").mkdir()
    pil.fromarray(RGB).save(tmp_path / "b" / ".thumbnails" / "2.png")
    with pytest.warns(UserWarning, match=r"not images: notes\.txt$"):
        names, images = read(tmp_path, channels=3)
    assert names == [str(tmp_path / "a.png"), str(tmp_path / "b/2.png")]
    assert len(images) == 2


def write(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"\x89PNG cut short", "cannot read .*a.png .*; save it anew or leave it out"),
        ("a.tif", b"II*", "cannot read .*a.tif .*; save it anew"),
        ("a.npz", b"PK cut", "cannot read .*a.npz .*; save it anew"),
        ("a.npy", np.array([{"code": 1}], dtype=object), "cannot read .*a.npy .*allow_pickle"),
        ("a.npy", b"PK\x03\x04 an archive", "cannot read .*a.npy .*; save it anew"),
        ("a.npy", b"\x93NUMPY\x01\x00\x02\x00{\n", "cannot read .*a.npy .*; save it anew"),
        ("a.npy", np.full((28, 28), np.nan), "a.npy holds NaN or infinity; replace them by numbers"),
        ("a.npy", np.full((28, 28), np.inf), "a.npy holds NaN or infinity; replace them by numbers"),
        ("a.npy", np.array([[1e308, -1e308], [0, 1]]), "a.npy holds NaN or infinity; replace them by numbers"),
        ("a.npy", np.full((28, 28), 7, np.uint8), "a.npy is constant, all its pixels are equal; leave it out"),
        ("a.npy", np.zeros((0, 28, 28)), "a.npy is empty, its shape is .*; leave it out"),
        ("a.npy", np.zeros((0, 28, 28), np.uint8), "a.npy is empty, its shape is .*; leave it out"),
        ("a.npy", np.arange(28.0), r"a.npy has shape \(28,\); the network expects an image \(H, W\) or a stack"),
        ("a.npy", np.full((28, 28), "text"), "a.npy holds <U4; an image is an array of real numbers"),
        ("a.npz", {"x": GREY, "y": GREY}, "of its arrays x, y none ends in 'images'"),
        ("a.npz", {"images": np.array([{"code": 1}], dtype=object)}, "cannot read .*a.npz .*allow_pickle"),
        ("a.npz", {}, r"cannot read .*a.npz \(it holds no array\); save it anew"),
        ("a.gif", b"GIF89a", "a.gif is none of .png, .jpg, .*; convert it to one of them"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, name: str, content: object, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_cut_files_are_refused_in_one_line(tmp_path: Path, suffix: str, share: float) -> None:
    path, image = tmp_path / f"a.{suffix}", np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    if suffix in ("npy", "npz"):
        {"npy": np.save, "npz": np.savez}[suffix](path, image)
    else:
        pil.fromarray(image).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"cannot read .*a\.{suffix} \(.*\); save it anew or leave it out") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_pages_of_a_tiff_are_a_stack_or_a_volume(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", pages)
    assert np.array_equal(read(tmp_path / "pages.tif")[1][:, 0].numpy(), pages)
    assert read(tmp_path / "pages.tif", dims=3, size=16)[1].shape == (1, 1, 16, 16, 16)


def test_colour_planes_of_a_tiff_become_channels(tmp_path: Path) -> None:
    planes = np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read(tmp_path / "planes.tif", channels=3)[1][0].numpy(), planes)


def test_names_of_images_tell_their_place_in_a_stack(tmp_path: Path) -> None:
    (tmp_path / "s [T1]").mkdir()
    for name, parts in {
        "a.npy[7]": ("a.npy", 7),
        "s.npz:test_images[7]": ("s.npz:test_images", 7),
        "a.png": ("a.png", None),
        str(tmp_path / "s [T1]"): (str(tmp_path / "s [T1]"), None),
    }.items():
        assert split_index(name) == parts


def test_other_channels_than_colours_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(RGB[..., :2], -1, 0), metadata={"axes": "CYX"})
    with pytest.raises(ValueError, match="2 channels; 1 .* 3 .* or 4 .* are expected"):
        read(tmp_path / "a.tif")


def test_a_tiff_in_which_zero_is_white(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB[..., 0], photometric="miniswhite")
    assert np.array_equal(read(tmp_path / "a.tif")[1][0, 0].numpy(), 255 - RGB[..., 0])


def test_a_picture_too_large_to_be_true_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pil.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 9)
    for look in (read, probe):
        with pytest.raises(ValueError, match=r"cannot read .*a\.png .*exceeds limit"):
            look(tmp_path / "a.png")


def test_missing_files_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*cell\.png"):
        read(tmp_path / "cell.png")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"holds no image, that is none of \.png"):
        read(tmp_path)
    with pytest.raises(ValueError, match="expected image files or a folder of them, got no path"):
        read_images([], channels=1, size=28, dims=2)


def test_a_tiff_of_several_series_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB[..., 0])
        file.write(RGB[:9, :7], photometric="rgb")
    with pytest.raises(ValueError, match="2 series of images"):
        read(tmp_path / "a.tif")


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is installed and decodes")
def test_a_compressed_tiff_without_its_decoder_names_the_package(tmp_path: Path) -> None:
    pil.fromarray(RGB).save(tmp_path / "a.tif", compression="tiff_lzw")
    with pytest.raises(ValueError, match="pip install imagecodecs"):
        read(tmp_path / "a.tif", channels=3)
