"""The table of MedMNIST tasks and the reader of their files."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from isoconv.data import MEDMNIST, SYNTHETIC, TASKS, Task, get_task, load
from isoconv.data.medmnist import find, read
from isoconv.data.vessels import VESSELS


def arrays(
    task: Task, size: int = 28, counts: tuple[int, int, int] = (6, 4, 5), seed: int = 0
) -> dict[str, np.ndarray]:
    """A small file of the published layout."""
    rng = np.random.default_rng(seed)
    result = {}
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        shape = (n, *(size,) * task.dims, *((3,) if task.channels == 3 else ()))
        result[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        multilabel = task.kind == "multilabel"
        top, columns = (2, len(task.labels)) if multilabel else (len(task.labels), 1)
        result[f"{split}_labels"] = rng.integers(0, top, (n, columns), np.uint8)
    return result


def write(path: Path, task: Task, size: int = 28, **changes: np.ndarray) -> Path:
    file = path / task.filename(size)
    np.savez_compressed(file, **{**arrays(task, size), **changes})
    return file


def test_table_holds_all_tasks() -> None:
    assert len(MEDMNIST) == 18
    assert sum(task.dims == 2 for task in MEDMNIST.values()) == 12
    assert set(TASKS) == set(MEDMNIST) | set(SYNTHETIC) | set(VESSELS)
    assert [name for name, task in MEDMNIST.items() if task.kind == "multilabel"] == ["chestmnist"]
    assert [name for name, task in MEDMNIST.items() if task.kind == "ordinal"] == ["retinamnist"]
    assert sorted(name for name, task in MEDMNIST.items() if task.licence != "CC BY 4.0") == ["dermamnist"]


@pytest.mark.parametrize("task", MEDMNIST.values(), ids=lambda task: task.name)
def test_table_is_consistent(task: Task) -> None:
    assert task.name == task.title.lower()
    assert task.sizes == ((28, 64, 128, 224) if task.dims == 2 else (28, 64))
    assert task.dims == (3 if task.name.endswith("3d") else 2)
    assert task.channels in (1, 3)
    assert len(set(task.labels)) == len(task.labels) == task.num_outputs >= 2
    assert (task.kind == "binary") == (len(task.labels) == 2)
    assert all(count > 0 for count in task.counts)
    assert all(len(md5) == 32 and int(md5, 16) for md5 in task.md5.values())


def test_every_file_has_its_own_checksum() -> None:
    checksums = [md5 for task in MEDMNIST.values() for md5 in task.md5.values()]
    assert len(set(checksums)) == len(checksums) == 12 * 4 + 6 * 2


@pytest.mark.parametrize(
    ("name", "size", "md5"),
    [
        ("breastmnist", 28, "750601b1f35ba3300ea97c75c52ff8f6"),
        ("retinamnist", 28, "bd4c0672f1bba3e3a89f0e4e876791e4"),
        ("adrenalmnist3d", 28, "bbd3c5a5576322bc4cdfea780653b1ce"),
        ("adrenalmnist3d", 64, "17721accfe9fb005146a47d33bc54b2f"),
    ],
)
def test_known_checksums(name: str, size: int, md5: str) -> None:
    assert MEDMNIST[name].md5[size] == md5


def test_counts_and_label_numbers() -> None:
    assert sum(sum(MEDMNIST[name].counts) for name in MEDMNIST if MEDMNIST[name].dims == 2) == 707962
    assert sum(sum(MEDMNIST[name].counts) for name in MEDMNIST if MEDMNIST[name].dims == 3) == 9996
    classes = {
        "pathmnist": 9,
        "chestmnist": 14,
        "octmnist": 4,
        "bloodmnist": 8,
        "organsmnist": 11,
        "fracturemnist3d": 3,
    }
    assert {name: MEDMNIST[name].num_outputs for name in classes} == classes
    assert MEDMNIST["breastmnist"].labels == ("malignant", "normal, benign")


def test_file_names_and_addresses() -> None:
    task = MEDMNIST["bloodmnist"]
    assert task.filename(28) == "bloodmnist.npz"
    assert task.url(224) == "https://zenodo.org/records/10519652/files/bloodmnist_224.npz?download=1"
    with pytest.raises(ValueError, match=r"^bloodmnist is published in 28, 64, 128, 224 pixels a side, got size=32$"):
        task.filename(32)
    with pytest.raises(ValueError, match="generated in any size"):
        SYNTHETIC["cells"].filename(28)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("brestmnist", "did you mean 'breastmnist'"),
        ("BloodMNIST", "'bloodmnist'"),
        ("cell", "'cells'"),
        ("qq", "data list"),
    ],
)
def test_unknown_names_get_near_matches(wrong: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as error:
        get_task(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pathmnist", "chestmnist", "retinamnist", "breastmnist", "organmnist3d"])
@pytest.mark.parametrize("size", [28, 64])
def test_files_of_every_layout_are_read(tmp_path: Path, name: str, size: int) -> None:
    task = MEDMNIST[name]
    path = write(tmp_path, task, size)
    dataset = load(name, size, root=tmp_path, verify=False)
    expected = arrays(task, size)
    assert (dataset.task, dataset.size, dataset.source) == (task, size, str(path))
    for split, n in (("train", 6), ("val", 4), ("test", 5)):
        got = getattr(dataset, split)
        assert len(got) == n
        assert got.images.dtype == torch.uint8
        assert got.images.shape == (n, task.channels, *(size,) * task.dims)
        assert got.images.is_contiguous()
        assert got.labels.dtype == torch.int64
        assert got.labels.shape == ((n, 14) if task.kind == "multilabel" else (n,))
        assert torch.equal(
            got.images[1, -1],
            torch.tensor(
                expected[f"{split}_images"][1, ..., -1] if task.channels == 3 else expected[f"{split}_images"][1]
            ),
        )
        assert torch.equal(got.labels.flatten(), torch.tensor(expected[f"{split}_labels"]).flatten().long())


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = MEDMNIST["breastmnist"]
    folders = [tmp_path / name for name in ("root", "variable", "home/.medmnist")]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ISOCONV_DATA", str(folders[1]))
    assert find(task, 28, folders[0]) is None
    for folder in reversed(folders):
        path = write(folder, task)
        assert find(task, 28, folders[0]) == path
    monkeypatch.delenv("ISOCONV_DATA")
    assert find(task, 28) == folders[2] / "breastmnist.npz"


def test_missing_file_without_download_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ISOCONV_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as error:
        load("breastmnist", root=tmp_path / "data", download=False)
    for part in (
        str(tmp_path / "data"),
        str(tmp_path / ".medmnist"),
        "https://zenodo.org",
        "750601b1f35ba3300ea97c75c52ff8f6",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_checksum_names_both_and_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, MEDMNIST["breastmnist"])
    got = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(
        ValueError, match=rf"expected MD5 750601b1f35ba3300ea97c75c52ff8f6, got {got}; delete it and fetch"
    ):
        load("breastmnist", root=tmp_path)
    assert path.exists()


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    task = MEDMNIST["breastmnist"]
    path = write(tmp_path, task)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"<html>503</html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cut short or not an npz archive; delete it"):
            read(path, task, 28)
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 64] = bytes(64)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cannot read .*breastmnist\.npz:train_images .*; delete it and fetch"):
        read(path, task, 28, verify=False)


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    task = MEDMNIST["breastmnist"]
    path = write(tmp_path, task, train_images=np.array([{"a": 1}] * 6, dtype=object))
    with pytest.raises(ValueError, match="train_images .*pickled objects.*; delete it"):
        read(path, task, 28, verify=False)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    task = MEDMNIST["breastmnist"]
    path = tmp_path / "breastmnist.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", json.dumps({}))
    with pytest.raises(ValueError, match="has no array train_images"):
        read(path, task, 28, verify=False)


GREY, LABEL = np.zeros((6, 28, 28), np.uint8), np.zeros((6, 1), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": GREY[..., :27]},
            r"train images of breastmnist must have shape \(N, 28, 28\), got \(6, 28, 27\)",
        ),
        ({"train_images": np.zeros((6, 28, 28, 3), np.uint8)}, r"got \(6, 28, 28, 3\)"),
        ({"train_images": np.full((6, 28, 28), np.nan)}, "must be uint8, got float64 with NaN"),
        ({"train_images": GREY.astype(np.uint16)}, "must be uint8, got uint16;"),
        ({"train_images": GREY[:0], "train_labels": LABEL[:0]}, "train split is empty"),
        ({"test_images": GREY[:5]}, "test images are constant, every pixel of all 5 is 0; delete it and fetch"),
        ({"train_labels": LABEL[:5]}, r"must be whole numbers of shape \(6, 1\), got uint8 of shape \(5, 1\)"),
        ({"train_labels": LABEL[:, 0]}, r"got uint8 of shape \(6,\)"),
        ({"train_labels": LABEL.astype(np.float32)}, "must be whole numbers .* got float32"),
        ({"train_labels": LABEL + np.uint8(2)}, r"labels of breastmnist must lie in 0..1, got 2..2"),
        ({"train_labels": LABEL.astype(np.int64) - 1}, r"got -1..-1"),
    ],
)
def test_wrong_contents(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    task = MEDMNIST["breastmnist"]
    path = write(tmp_path, task, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read(path, task, 28, verify=False)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_multilabel_contents(tmp_path: Path) -> None:
    task = MEDMNIST["chestmnist"]
    path = write(tmp_path, task, val_labels=np.full((4, 14), 2, np.uint8))
    with pytest.raises(ValueError, match=r"val labels of chestmnist must lie in 0..1, got 2..2"):
        read(path, task, 28, verify=False)


def test_a_constant_image_and_an_absent_class_are_no_error(tmp_path: Path) -> None:
    task = MEDMNIST["bloodmnist"]
    images = arrays(task)["train_images"]
    images[0] = 7
    write(tmp_path, task, train_images=images, test_labels=np.zeros((5, 1), np.uint8))
    assert load("bloodmnist", root=tmp_path, verify=False).test.labels.sum() == 0


@pytest.mark.parametrize(("name", "size"), [("breastmnist", 28), ("retinamnist", 28), ("adrenalmnist3d", 28)])
def test_real_files(medmnist_dir: Path, name: str, size: int) -> None:
    dataset = load(name, size, root=medmnist_dir, download=False)
    task = dataset.task
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == task.counts
    assert dataset.train.labels.unique().tolist() == list(range(task.num_outputs))
    assert dataset.train.images.shape[1:] == (task.channels, *(size,) * task.dims)
