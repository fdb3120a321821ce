"""Users' own files: what is read, what is refused, and with what words."""

import gc
import subprocess
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from isoconv.data import files, read_images
from isoconv.data.decoded import Limits, UnreadableError
from isoconv.data.files import as_uint8, find_images, read_each, split_index

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
        ("a.npy", np.array([{"code": 1}], dtype=object), "cannot read .*a.npy .*pickled objects"),
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
        ("a.npz", {"images": np.array([{"code": 1}], dtype=object)}, "cannot read .*a.npz:images .*pickled objects"),
        ("a.npz", {}, r"cannot read .*a.npz \(it holds no array\); save it anew"),
        ("a.heic", b"ftyp", "a.heic is none of .png, .jpg, .*; convert it to one of them"),
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


def test_names_of_images_tell_their_place_in_a_stack(tmp_path: Path) -> None:
    (tmp_path / "s [T1]").mkdir()
    for name, parts in {
        "a.npy[7]": ("a.npy", 7),
        "s.npz:test_images[7]": ("s.npz:test_images", 7),
        "a.png": ("a.png", None),
        str(tmp_path / "s [T1]"): (str(tmp_path / "s [T1]"), None),
    }.items():
        assert split_index(name) == parts


@pytest.mark.parametrize(("name", "limit"), [("a.png", 783), ("a.jpg", 783), ("a.tif", 783), ("a.npy", 783)])
def test_no_more_pixels_are_decoded_than_allowed(tmp_path: Path, name: str, limit: int) -> None:
    if name == "a.npy":
        np.save(tmp_path / name, GREY)
    else:
        pil.fromarray((GREY % 256).astype(np.uint8)).save(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"cannot read .*{name} \(it has 784 pixels, the limit is 783\); make it smaller"
    ):
        read_images(tmp_path / name, channels=1, size=28, dims=2, limits=Limits(pixels=limit))
    assert len(read_images(tmp_path / name, channels=1, size=28, dims=2, limits=Limits(pixels=784))[1]) == 1


def test_missing_files_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*cell\.png"):
        read(tmp_path / "cell.png")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"holds no image, that is none of \.png"):
        read(tmp_path)
    with pytest.raises(ValueError, match="expected image files or a folder of them, got no path"):
        read_images([], channels=1, size=28, dims=2)


def test_each_file_is_read_or_told_what_is_wrong_with_it(tmp_path: Path) -> None:
    pil.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"none")
    paths = [tmp_path, tmp_path / "c.png", tmp_path / "a.png"]
    found = list(read_each(paths, channels=3, size=28, dims=2))
    assert [path.name for path, _ in found] == ["a.png", "b.png", "c.png", "a.png"]
    assert [type(result) for _, result in found] == [tuple, UnreadableError, FileNotFoundError, tuple]
    names, images = found[0][1]
    assert (names, images.shape) == ([str(tmp_path / "a.png")], (1, 3, 28, 28))
    with pytest.raises(ValueError, match=r"cannot read .*b\.png"):
        read(tmp_path, channels=3)


def test_a_refused_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((20, 20), 7.0))
    decoded: list[weakref.ref[np.ndarray]] = []
    plain = as_uint8

    def noted(name: str, array: np.ndarray) -> np.ndarray:
        decoded.append(weakref.ref(array))
        return plain(name, array)

    gc.disable()  # nor does it wait to be collected
    try:
        with mock.patch.object(files, "as_uint8", noted):
            kept = list(read_each([tmp_path / "a.npy"] * 3, channels=1, size=28, dims=2))
        assert [str(error) for _, error in kept] == [
            f"{tmp_path}/a.npy is constant, all its pixels are equal; leave it out"
        ] * 3
        assert [array() for array in decoded] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("shape", "channels", "dims", "axis"),
    [((3, 28, 28), 3, 2, 0), ((5, 3, 28, 28), 3, 2, 1), ((3, 28, 28), 1, 3, 0), ((5, 3, 28, 28), 1, 3, 1)],
)
def test_an_array_that_may_have_its_colours_first_is_asked_about(
    tmp_path: Path, shape: tuple[int, ...], channels: int, dims: int, axis: int
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(
        ValueError, match=rf"is axis {axis} the colours, or are these grey .*np.moveaxis\(array, {axis}, -1"
    ):
        read(tmp_path / "a.npy", channels, dims)
    np.save(tmp_path / "grey.npy", array[..., None])
    if array.ndim in (dims, dims + 1):
        assert read(tmp_path / "grey.npy", channels, dims)[1].shape[1] == channels


def test_a_volume_without_a_spacing_is_told_to_be_taken_for_a_cube(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((5, 6, 7)))
    files._say_cubes.cache_clear()
    for _ in range(2):
        read(tmp_path / "a.npy", dims=3)
    assert [record.getMessage() for record in caplog.records] == [
        "volumes without a voxel size (npy, npz and TIFF state none) are taken to be cubes"
    ]


@given(shape=st.tuples(*[st.integers(1, 40)] * 3), size=st.integers(1, 40), block=st.integers(1, 300))
def test_a_large_image_resized_in_blocks_is_the_same(shape: tuple[int, int, int], size: int, block: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    whole = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)[0]
    with mock.patch.object(files, "_BLOCK", block):
        assert torch.equal(files._resized(image, size, size), whole)
        values = image.numpy() * 1.7
        assert np.array_equal(
            as_uint8("a", values), np.round(255 * (values - values.min()) / max(np.ptp(values), 1e-300))
        )


def test_folders_deeper_than_the_stack_are_walked_through(tmp_path: Path) -> None:
    pil.fromarray(RGB).save(tmp_path / "a.png")
    deep = tmp_path.joinpath(*["d"] * 1100)
    subprocess.run(["mkdir", "-p", str(deep)], check=True)
    pil.fromarray(RGB).save(deep / "b.png")
    try:
        assert len(find_images(tmp_path)[0]) == 2
    finally:  # what would remove it afterwards works by recursion
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)
