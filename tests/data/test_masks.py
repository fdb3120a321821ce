"""Folders of images and masks: what is read, and what is refused with which remedy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isoconv.data import Dataset, listing, own


def read_pairs(folder: Path, size: int) -> Dataset:
    return own.find(folder, "segmentation")[1](size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight grey images of 12 x 10 pixels whose brighter half has label 1."""
    for i in range(8):
        image = np.random.default_rng(i).integers(0, 256, (12, 10), np.uint8)
        save(tmp_path / "images" / f"{i}.png", image)
        save(tmp_path / "masks" / f"{i}.png", (image > 127).astype(np.uint8))
    return tmp_path


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def test_images_are_split_cropped_and_matched_with_their_masks(folder: Path) -> None:
    data = read_pairs(folder, size=10)
    assert data.task.counts == (5, 1, 2)  # 70, 10 and 20 %
    assert data.task.labels == ("background", "label 1")
    assert data.train.images.shape == (5, 1, 10, 10)
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.labels, (split.images[:, 0] > 127).to(torch.uint8))


def test_the_split_is_always_the_same(folder: Path) -> None:
    first, again = (read_pairs(folder, 10).test.images for _ in range(2))
    assert torch.equal(first, again)


def test_subfolders_are_the_splits(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((6, 6, 6))
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        for i in range(count):
            save(tmp_path / split / "images" / f"{i}.npy", volume)
            save(tmp_path / split / "masks" / f"{i}.npy", (volume > 0.5).astype(np.int64))
    data = read_pairs(tmp_path, size=6)
    assert (data.task.dims, data.task.counts) == (3, (2, 1, 1))
    assert data.train.images.shape == (2, 1, 6, 6, 6)


def test_colour_images(folder: Path) -> None:
    for i in range(8):
        save(folder / "images" / f"{i}.png", np.random.default_rng(i).integers(0, 256, (12, 10, 3), np.uint8))
    assert read_pairs(folder, size=16).train.images.shape == (5, 3, 16, 16)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.eye(12, 9, dtype=np.uint8),
            r"3.png has shape \(12, 9\), its image .* \(12, 10\); they must be equal",
        ),
        (np.zeros((12, 10, 3), np.uint8), r"mask .*3.png is in colour, shape \(12, 10, 3\); save label numbers"),
        (np.full((12, 10), 3, np.uint8), "must hold labels 0..K-1, they hold 0, 1, 3; number the classes"),
    ],
)
def test_a_wrong_mask_is_refused(folder: Path, mask: np.ndarray, message: str) -> None:
    save(folder / "masks" / "3.png", mask)
    with pytest.raises(ValueError, match=message):
        read_pairs(folder, 10)


def test_black_and_white_masks_are_read_as_two_labels(folder: Path) -> None:
    labels = read_pairs(folder, 10).train.labels
    for path in (folder / "masks").iterdir():
        save(path, 255 * np.asarray(Image.open(path)))
    assert torch.equal(read_pairs(folder, 10).train.labels, labels)
    save(folder / "masks" / "3.png", np.eye(12, 10, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"must hold labels 0..K-1, they hold 0, 1, 255; number the classes"):
        read_pairs(folder, 10)


def test_masks_with_a_palette_hold_the_numbers_of_its_colours(folder: Path) -> None:
    labels = read_pairs(folder, 10).train.labels
    for path in (folder / "masks").iterdir():
        mask = Image.open(path)
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(path)
        assert Image.open(path).convert("RGB").getextrema()[0] == (0, 128)
    assert torch.equal(read_pairs(folder, 10).train.labels, labels)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".bmp"])
def test_palettes_of_other_formats_hold_numbers_as_well(folder: Path, suffix: str) -> None:
    labels = read_pairs(folder, 10).train.labels
    for path in list((folder / "masks").iterdir()):
        mask = Image.open(path)
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(path.with_suffix(suffix))
        path.unlink()
    assert torch.equal(read_pairs(folder, 10).train.labels, labels)


def test_fractional_labels_are_refused(folder: Path) -> None:
    (folder / "masks" / "3.png").unlink()
    save(folder / "masks" / "3.npy", np.full((12, 10), 0.5))
    with pytest.raises(ValueError, match="holds values other than whole numbers"):
        read_pairs(folder, 10)


def test_a_class_that_is_nowhere_in_a_split_is_refused(folder: Path) -> None:
    save(folder / "masks" / "3.png", np.full((12, 10), 2, np.uint8))
    with pytest.raises(ValueError, match="label 2 is in no mask of split .*; split it yourself, into train/"):
        read_pairs(folder, 10)


def test_masks_without_any_label_are_refused(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        save(path, np.zeros((12, 10), np.uint8))
    with pytest.raises(ValueError, match="must hold labels 0..K-1, they hold 0;"):
        read_pairs(folder, 10)


@pytest.mark.parametrize(("lost", "message"), [("masks", "mask in masks/"), ("images", "image in images/")])
def test_a_file_without_its_partner_is_named(folder: Path, lost: str, message: str) -> None:
    (folder / lost / "5.png").unlink()
    with pytest.raises(FileNotFoundError, match=f"no {message} for 1 file, the first is .*5.png; the names must match"):
        read_pairs(folder, 10)


def test_a_name_that_is_there_twice_is_refused(folder: Path) -> None:
    save(folder / "masks" / "3.npy", np.zeros((12, 10), np.uint8))
    with pytest.raises(ValueError, match="differ in nothing but the ending"):
        read_pairs(folder, 10)


def test_a_folder_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected images/ and masks/ beside each other"):
        read_pairs(tmp_path, 10)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="holds none of"):
        read_pairs(tmp_path, 10)


def test_volumes_with_a_spacing_are_refused_as_such(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")
    for i in range(3):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
            nibabel.save(
                nibabel.Nifti1Image(np.eye(3, dtype=np.uint8)[None], np.eye(4)), tmp_path / name / f"{i}.nii.gz"
            )
    with pytest.raises(ValueError, match=r"\.nii\.gz has a voxel spacing, which masks do not follow"):
        read_pairs(tmp_path, 10)


def test_too_few_images_are_refused(folder: Path) -> None:
    for i in range(2, 8):
        (folder / "images" / f"{i}.png").unlink()
        (folder / "masks" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="2 images cannot fill the test split"):
        read_pairs(folder, 10)


def test_a_manifest_lists_images_with_masks(folder: Path) -> None:
    """The same pairs as in the folder, here with splits."""
    rows = [f"images/{i}.png,masks/{i}.png,{('train', 'val', 'test')[max(0, i - 5)]}" for i in range(8)]
    (folder / "set.csv").write_text("\n".join(["path,mask,split", *rows]))
    data = own.find(folder / "set.csv")[1](10)
    assert (data.task.kind, data.task.counts) == ("segmentation", (6, 1, 1))
    assert torch.equal(data.test.labels, (data.test.images[:, 0] > 127).to(torch.uint8))
    (folder / "set.csv").write_text("\n".join(["path,mask", "images/0.png,masks/gone.png"]))
    with pytest.raises(FileNotFoundError, match=r"1 of 1 mask missing: row 2: 'masks/gone.png'"):
        own.find(folder / "set.csv")


def test_the_shape_of_a_folder_says_what_it_is_for(folder: Path) -> None:
    assert own.find(folder)[0].kind == "segmentation"
    info, _ = own.find(folder, "classification")  # folders of two classes, if that is wanted
    assert (info.kind, info.labels) == ("binary", ("images", "masks"))
    with pytest.raises(ValueError, match="task must be one of classification, .*did you mean 'segmentation'"):
        own.find(folder, "segmentaton")


def test_a_manifest_of_a_folder_of_masks_reads_the_same(folder: Path) -> None:
    found = listing.assign(listing.items(folder))
    (folder / "kept.csv").write_text("\n".join(map(",".join, listing.table(found, folder))))
    (first, read_first), (second, read_second) = own.find(folder), own.find(folder / "kept.csv")
    assert first.counts == second.counts
    assert torch.equal(read_first(10).test.labels, read_second(10).test.labels)
