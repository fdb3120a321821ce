"""Users' own data sets: how they are found, split and refused, and what `check` says of them."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoconv.cli.main import main
from isoconv.data import get_task, listing, load
from isoconv.data.check import check
from isoconv.data.decoded import Limits

pil = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra 'study'")

RNG = np.random.default_rng(0)
SIZES = dict(zip(listing.SPLITS, (6, 2, 2), strict=True))


def picture(path: Path, rgb: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pil.fromarray(RNG.integers(0, 256, (20, 24, 3) if rgb else (20, 24), np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        for i in range(10):
            picture(tmp_path / "set" / name / f"p{i // 2}_{i}.png")
    return tmp_path / "set"


def manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_folder_per_class_is_split_in_each_class(folder: Path) -> None:
    data = load(str(folder), size=16)
    assert (data.task.kind, data.task.labels, data.task.counts) == ("binary", ("a", "b"), (14, 2, 4))
    assert data.train.images.shape == (14, 1, 16, 16)
    assert [split.labels.bincount().tolist() for split in (data.train, data.val, data.test)] == [[7, 7], [1, 1], [2, 2]]
    again = load(str(folder), size=16)
    assert (again.test.images == data.test.images).all()


def test_given_splits_are_kept_and_a_missing_one_is_cut_from_train(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("test", 3)):
        for name in ("10", "9"):
            for i in range(n):
                picture(tmp_path / split / name / f"{i}.png", rgb=True)
    task = get_task(str(tmp_path))
    assert (task.labels, task.channels, task.counts) == (("9", "10"), 3, (36, 4, 6))


def test_a_manifest_of_several_labels(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "label": ("x; y", "y", "")[i % 3], "split": listing.SPLITS[i // 3]} for i in range(9)]
    for row in rows:
        picture(tmp_path / row["path"])
    data = load(str(manifest(tmp_path / "m.csv", rows)), size=16)
    assert (data.task.kind, data.task.labels) == ("multilabel", ("x", "y"))
    assert data.test.labels.tolist() == [[1, 1], [0, 1], [0, 0]]


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=30, max_size=60))
def test_no_patient_is_in_two_splits(drawn: list[tuple[int, str]]) -> None:
    found = [listing.Item(Path(str(i)), (label,), "", f"p{patient}") for i, (patient, label) in enumerate(drawn)]
    try:
        assigned = listing.assign(found)
    except ValueError as error:
        assert "cannot fill the" in str(error) or "no image to train with" in str(error)  # noqa: PT017
        return
    patients = [{item.patient for item in assigned if item.split == s} for s in listing.SPLITS]
    assert len(set.union(*patients)) == sum(map(len, patients))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "none.png"}, "1 of 12 images missing: row 2: 'none.png'; paths start at the manifest's"),
        ({"label": ""}, "row 2: the label is empty"),
        ({"split": "tset"}, "split must be train, val or test, got 'tset'"),
        ({"split": ""}, "the split is empty in some rows"),
        ({"path": "1.png"}, "listed twice"),
        ({"patient": "p1"}, "1 patient in two splits: p1"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, str], said: str) -> None:
    rows = [
        {"path": f"{i}.png", "label": "ab"[i % 2], "split": listing.SPLITS[i // 2 % 3], "patient": f"p{i}"}
        for i in range(12)
    ]
    for each in rows:
        picture(tmp_path / each["path"])
    rows[1]["split"] = "test"
    manifest(tmp_path / "m.csv", [{**rows[0], **row}, *rows[1:]])
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        get_task(str(tmp_path / "m.csv"))


def test_a_manifest_of_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LIMITS", Limits(rows=5))
    path = manifest(tmp_path / "m.csv", [{"path": f"{i}.png", "label": "a"} for i in range(6)])
    with pytest.raises(ValueError, match=r"m\.csv has more than 5 rows; split it"):
        listing.items(path)


def test_the_same_file_by_two_paths_is_one_and_a_hard_link_is_another(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "2.png").hardlink_to(tmp_path / "a" / "1.png")
    rows = [{"path": name, "label": "a"} for name in ("a/1.png", "2.png")]
    assert len(listing.items(manifest(tmp_path / "m.csv", rows))) == 2
    with pytest.raises(ValueError, match=r"row 3: b/1\.png is listed twice"):
        listing.items(manifest(tmp_path / "m.csv", [rows[0], {"path": "b/1.png", "label": "a"}]))


def test_a_name_that_no_file_can_have_is_an_image_that_is_not_there(tmp_path: Path) -> None:
    rows = [{"path": name, "label": "a"} for name in ("x" * 300 + ".png", "y/" * 3000 + "y.png")]
    with pytest.raises(FileNotFoundError, match="2 of 2 images missing"):
        listing.items(manifest(tmp_path / "m.csv", rows))


def test_all_missing_images_are_told_at_once(tmp_path: Path) -> None:
    picture(tmp_path / "5.png")
    names = ["", *(f"{i}.png" for i in range(13))]
    path = manifest(tmp_path / "m.csv", [{"path": name, "label": "a"} for name in names])
    with pytest.raises(FileNotFoundError) as caught:
        check(str(path))
    assert "13 of 14 images missing: row 2: '', row 3: '0.png', " in str(caught.value)
    assert str(caught.value).count("row") == 10


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.mkdir(), "no folder inside"),
        (lambda p: (p / "a").mkdir(parents=True), "lists no image"),
        (lambda p: picture(p / "a" / "1.png"), "at least 2 classes|cannot fill the"),
        (lambda p: [picture(p / x / "1.png") for x in ("train", "cats")], "have splits or classes"),
        (lambda p: [picture(p / "test" / x / "1.png") for x in "ab"], "no train folder"),
        (lambda p: [picture(p / x / "1.png") for x in "ab"], "2 images cannot fill the val and test split"),
        (lambda p: None, "there is no data set"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, make: Callable[[Path], Any], said: str) -> None:
    make(tmp_path / "set")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        get_task(str(tmp_path / "set"))


def arrays(**other: np.ndarray) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for split, n in SIZES.items():
        made[f"{split}_images"] = RNG.integers(0, 256, (n, 20, 20, 3), np.uint8)
        made[f"{split}_labels"] = np.arange(n)[:, None] % 2
    return {**made, **other}


def test_fingerprints_tell_names_and_labels_of_each_split(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / f"{i}.png")
    rows = [{"path": f"{i}.png", "label": "ab"[i % 2], "split": listing.SPLITS[i // 2 % 3]} for i in range(8)]

    def known(rows: list[dict[str, str]]) -> Mapping[str, str]:
        return load(str(manifest(tmp_path / "m.csv", rows)), size=16).fingerprints

    first = known(rows)
    assert len(set(first.values())) == 3
    assert known(rows[::-1]) == first
    picture(tmp_path / "8.png")
    changed = known([*rows, {"path": "8.png", "label": "a", "split": "test"}])
    assert {s for s in listing.SPLITS if changed[s] != first[s]} == {"test"}
    changed = known([{**row, "label": "b"} if row["path"] == "0.png" else row for row in rows])
    assert {s for s in listing.SPLITS if changed[s] != first[s]} == {"train"}


def test_an_archive_of_medmnists_layout(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", **arrays())
    data = load(str(tmp_path / "s.npz"), size=16)
    assert (data.task.kind, data.task.channels, data.task.dims, data.task.labels) == ("binary", 3, 2, ("0", "1"))
    assert data.val.images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"val_labels": np.array([0])}, "val labels must be 2 whole numbers"),
        ({"val_labels": np.array([0.0, 1.0])}, "whole numbers in all splits, or floats in all, got .*'val': 'float32'"),
        ({"val_labels": np.array([0, 3])}, "no image to train with in class 2; labels are 0 to 3"),
        ({"test_images": np.full((2, 20, 20, 3), 9999, np.uint16)}, "must be uint8, or floats from 0 to 1"),
        ({"test_images": np.zeros((0, 20, 20, 3), np.uint8)}, "test split is empty"),
        ({"test_images": np.zeros((2, 20, 20), np.uint8)}, "different axes"),
        (
            {f"{s}_images": np.zeros((n, 3, 20, 20), np.uint8) for s, n in SIZES.items()},
            r"6 images with colours first, or volumes of depth 3; .*np.moveaxis\(images, 1, -1\), and volumes end in ",
        ),
        (
            {f"{s}_labels": np.eye(2, dtype=int)[np.arange(n) % 2] for s, n in SIZES.items()},
            r"classes \(one-hot\) or several labels .*labels.argmax\(1\), .*labels.astype\(bool\)",
        ),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path: Path, other: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays(**other))
    with pytest.raises(ValueError, match=said):
        load(str(tmp_path / "s.npz"), size=16)


def test_an_archive_names_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, **arrays(), classes=np.array(["ring", "band"]))
    assert get_task(str(path)).labels == load(str(path), size=16).task.labels == ("ring", "band")


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "a"], ["a", ""], [1, 2], [["a", "b"]]])
def test_names_that_do_not_fit_the_labels(tmp_path: Path, names: list) -> None:
    np.savez(tmp_path / "s.npz", **arrays(), classes=np.array(names))
    with pytest.raises(ValueError, match=r"s.npz: classes must be 2 different names in the order of the labels"):
        get_task(str(tmp_path / "s.npz"))


def test_what_was_asked_about_an_archive_can_be_answered(tmp_path: Path) -> None:
    table = {f"{s}_labels": np.eye(2, dtype=bool)[np.arange(n) % 2] for s, n in SIZES.items()}
    np.savez(tmp_path / "several.npz", **arrays(**table))
    assert get_task(str(tmp_path / "several.npz")).kind == "multilabel"
    flat = {f"{s}_images": np.zeros((n, 3, 9, 9, 1), np.uint8) for s, n in SIZES.items()}
    np.savez(tmp_path / "flat.npz", **arrays(**flat))
    task = get_task(str(tmp_path / "flat.npz"))
    assert (task.dims, task.channels) == (3, 1)


def test_what_is_left_out_of_a_folder_is_told(folder: Path) -> None:
    picture(folder / "a" / ".@__thumb" / "p0_0.png")  # as network drives make them
    for name in ("a/photo.heic", "b/deep/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"none")
    picture(folder / "loose.png")
    with pytest.warns(UserWarning, match="left out") as caught:
        assert len(listing.items(folder)) == 20
    told = [str(each.message) for each in caught]
    assert told[0].endswith("set, of a kind that is not read (2): a/photo.heic, b/deep/notes.txt")
    assert told[1].endswith("set, in no folder of a class (1): loose.png")
    assert check(str(folder), size=16).warnings == told


def test_a_link_to_nothing_is_not_one_image_less(folder: Path) -> None:
    (folder / "a" / "p9.png").symlink_to(folder / "not_fetched.png")
    with pytest.raises(ValueError, match=r"cannot read .*p9\.png"):
        get_task(str(folder))


def test_check_finds_nothing_in_a_good_set(folder: Path) -> None:
    report = check(str(folder), size=16)
    assert (report.errors, report.warnings) == ([], [])
    assert report.facts["train/val/test"] == "14/2/4"


def test_check_says_where_no_voxel_size_is_stated(tmp_path: Path) -> None:
    for i in range(20):
        path = tmp_path / "ab"[i % 2] / f"{i}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, RNG.integers(0, 256, (7, 8, 9), np.uint8))
    assert check(str(tmp_path), size=8).facts["voxel spacings"] == "not stated (20)"


def test_check_names_every_defect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a" / "p0_0.png").write_bytes(b"no picture")
    pil.fromarray(np.zeros((20, 24), np.uint8)).save(folder / "a" / "p0_1.png")
    for item in listing.assign(listing.items(folder)):
        if item.split == "test":
            item.path.write_bytes((folder / "b" / "p1_3.png").read_bytes())
    picture(folder / "b" / "p9.png", rgb=True)
    errors = "; ".join(check(str(folder), size=16).errors)
    for said in ("p0_0.png", "is constant", "the same image in two splits"):
        assert said in errors
    assert main(["data", "check", str(folder), "--json"]) == 1
    assert "correct them before training" in capsys.readouterr().err


def test_check_of_a_damaged_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.npz").write_bytes(b"no archive")
    assert main(["data", "check", str(tmp_path / "s.npz")]) == 1
    assert capsys.readouterr().out.startswith("error: cannot read")


def test_check_of_a_named_task(few_cells: None) -> None:
    report = check("cells", size=16)
    assert report.errors == []
    assert report.facts["kind"] == "multiclass, 2D, RGB"


def test_a_manifest_is_written_with_patients_and_splits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.csv"
    assert main(["data", "manifest", str(folder), "--out", str(out), "--patient", r"[ab]/p\d", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"images": 20, "patients": 10, "train": 12, "val": 4, "test": 4}
    assert {item.patient for item in listing.items(out)} == {f"{c}/p{i}" for c in "ab" for i in range(5)}
    assert get_task(str(out)).counts == (12, 4, 4)
    assert main(["data", "manifest", str(folder), "--out", str(out)]) == 1
    assert main(["data", "manifest", str(folder), "--out", str(tmp_path / "m.json")]) == 1
    assert main(["data", "manifest", str(folder), "--out", str(tmp_path / "n.csv"), "--patient", "zz"]) == 1


def test_a_manifest_of_a_manifest_with_patients(folder: Path, tmp_path: Path) -> None:
    listed = [{"path": str(item.path), "label": item.labels[0]} for item in listing.items(folder)]
    source, out = manifest(tmp_path / "m.csv", listed), tmp_path / "n.csv"
    assert main(["data", "manifest", str(source), "--out", str(out), "--patient", r"[ab]/p\d"]) == 0
    assert {item.patient for item in listing.items(out)} == {f"{c}/p{i}" for c in "ab" for i in range(5)}


def test_a_label_that_a_manifest_would_split_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").rename(folder / "a;b")
    assert main(["data", "manifest", str(folder), "--out", str(tmp_path / "m.csv")]) == 1
    assert "the semicolon in its label would make two" in capsys.readouterr().err
