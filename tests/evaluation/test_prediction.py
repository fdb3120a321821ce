"""Predictions on a user's own files: as in the evaluation, told apart by their names, never on an unsuitable image."""

import csv
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import isoconv
from isoconv.data import Task, load
from isoconv.evaluation.prediction import Predictor, check_output, predict, write_predictions
from isoconv.runs import RunDir, write_json
from isoconv.runs.network import sha256
from isoconv.tasks import task_of
from isoconv.tasks.dice import count, pooled
from isoconv.training.loop import TrainConfig

Evaluated = Callable[[str], RunDir]


@pytest.fixture
def pictures() -> np.ndarray:
    """Three RGB images (N, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture
def grey(tmp_path: Path) -> RunDir:
    """An untrained network for grey images, and its two labels."""
    run = RunDir.create(TrainConfig("breastmnist", "sre_resnet18", tmp_path / "grey", width=2))
    net = isoconv.create_model("sre_resnet18", 1, 2, width=2, kernel_sizes=(3, 3, 3, 3))
    task = {"name": "x", "title": "X", "kind": "binary", "dims": 2, "channels": 1, "labels": ["ill", "normal, benign"]}
    about = {"task": task, "input_size": 16, "masked": True, "outputs": None, "epoch": 0}
    run.save_model(net, {"model": isoconv.models.model_config(net), **about})
    return run


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


# What is predicted


def test_test_images_are_decided_as_in_the_evaluation(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("sre")
    images = load("cells", size=16).test.images.movedim(1, -1).numpy()
    rows = predict(run, save(tmp_path / "test.npy", images))
    with np.load(run.path / "predictions.npz") as archive:
        names = archive["standard_conditions"].tolist()
        logits = torch.from_numpy(archive["standard_logits"][names.index("upright_unmasked")]).double()
    labels = run.model_info["task"]["labels"]
    assert [row["label"] for row in rows] == [labels[c] for c in logits.argmax(1)]
    assert [list(row["probabilities"]) for row in rows] == [labels] * 40
    probabilities = torch.tensor([list(row["probabilities"].values()) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-5, atol=1e-7)
    consistency = sum(row["consistency"] for row in rows) / len(rows)
    assert consistency == pytest.approx(run.results()["standard"]["summary"]["consistency"])


@pytest.mark.parametrize("name", ["masks/sre", "masks/volumes"])
def test_test_images_get_the_masks_of_the_evaluation(evaluated: Evaluated, tmp_path: Path, name: str) -> None:
    run = evaluated(name)
    test = load(run.config.data, size=16).test
    rows = predict(run, save(tmp_path / "test.npy", test.images[:, 0].numpy()))
    result = run.results()["standard"]
    masks = torch.from_numpy(np.stack([row["mask"] for row in rows]))
    assert masks.dtype == torch.uint8
    dice = pooled(count(masks, test.labels, 3)).tolist()
    (row,) = (row for row in result["conditions"] if row["group"] == "unmasked")
    assert list(row["classes"].values()) == pytest.approx(dice)
    for row, mask in zip(rows, masks, strict=True):
        shares = mask.flatten().bincount(minlength=3) / mask.numel()
        assert list(row["shares"]) == list(run.task.info.labels)
        assert list(row["shares"].values()) == pytest.approx(shares.tolist())
    consistency = sum(row["consistency"] for row in rows) / len(rows)
    assert consistency == pytest.approx(result["summary"]["consistency"])


def test_every_kind_of_file_says_the_same(evaluated: Evaluated, pictures: np.ndarray, tmp_path: Path) -> None:
    run = evaluated("plain")
    paths = [tmp_path / name for name in ("a.png", "b.tif", "c.npy", "d.npz")]
    Image.fromarray(pictures[0]).save(paths[0])
    tifffile.imwrite(paths[1], pictures[0], photometric="rgb")
    np.save(paths[2], pictures)
    np.savez(paths[3], train_images=pictures[:1], train_labels=[0])
    rows = predict(run.path, paths)
    assert [(row["source"], row["index"]) for row in rows] == [
        (str(paths[0]), None),
        (str(paths[1]), None),
        *((str(paths[2]), i) for i in range(3)),
        (f"{paths[3]}:train_images", 0),
    ]
    first, *others = (row["probabilities"] for row in rows)
    assert [other == pytest.approx(first) for other in others] == [True, True, False, False, True]


def test_an_image_of_another_size_and_shape(evaluated: Evaluated, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (row,) = predict(evaluated("plain"), [tmp_path / "photo.jpg"])
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert 0 <= row["consistency"] <= 1


def test_invariant_network_answers_the_same_for_a_turned_file(
    evaluated: Evaluated, pictures: np.ndarray, tmp_path: Path
) -> None:
    turned = np.stack([np.rot90(pictures[0], k) for k in range(4)] + [pictures[0][:, ::-1]])
    path = save(tmp_path / "turned.npy", turned)
    first, *others = (row["probabilities"] for row in predict(evaluated("sre"), path))
    assert all(other == pytest.approx(first, abs=1e-6) for other in others)
    first, *others = (row["probabilities"] for row in predict(evaluated("plain"), path))
    assert not any(other == pytest.approx(first, abs=1e-6) for other in others)


def test_volumes(evaluated: Evaluated, tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 256, (2, 12, 14, 16), np.uint8)
    one, several = save(tmp_path / "one.npy", volumes[0]), save(tmp_path / "several.npy", volumes)
    rows = predict(evaluated("volumes"), [one, several], batch_size=2)
    assert [row["index"] for row in rows] == [None, 0, 1]
    assert rows[0]["probabilities"] == pytest.approx(rows[1]["probabilities"])


def test_several_labels_per_image(evaluated: Evaluated, pictures: np.ndarray, tmp_path: Path) -> None:
    run = evaluated("plain")
    info = run.model_info
    info["task"]["kind"] = "multilabel"
    (run.path / "model.json").write_text(json.dumps(info))
    rows = predict(run, save(tmp_path / "x.npy", pictures))
    assert all(row["label"] == [name for name, p in row["probabilities"].items() if p > 0.5] for row in rows)
    assert any(len(row["label"]) != 1 for row in rows)
    write_predictions(run.task, rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["; ".join(row["label"]) for row in rows]


def test_without_rotations_nothing_is_said_of_consistency(grey: RunDir, tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.arange(256, dtype=np.uint8).reshape(16, 16))
    (with_rotations,), (without,) = predict(grey, path), predict(grey, path, rotations=False)
    assert without == {key: value for key, value in with_rotations.items() if key != "consistency"}


def test_batches_change_nothing(evaluated: Evaluated, pictures: np.ndarray, tmp_path: Path) -> None:
    run, path = evaluated("plain"), save(tmp_path / "x.npy", pictures)
    for one, other in zip(predict(run, path, batch_size=1), predict(run, path), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-4)


def test_grey_image_for_an_rgb_network_is_repeated_and_that_is_said(
    evaluated: Evaluated, pictures: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isoconv")
    paths = [save(tmp_path / "grey.npy", pictures[0, ..., 0]), save(tmp_path / "rgb.npy", pictures[0])]
    run = evaluated("plain")
    grey, _ = predict(run, paths)
    assert caplog.messages == ["1 of 2 images grey: repeated in red, green and blue"]
    (repeated,) = predict(run, save(tmp_path / "repeated.npy", pictures[0, ..., :1].repeat(3, -1)))
    assert grey["probabilities"] == pytest.approx(repeated["probabilities"], rel=1e-4)


def test_folder_with_other_files_names_them(evaluated: Evaluated, pictures: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(pictures[0]).save(folder / "b.png")
    Image.fromarray(pictures[1]).save(folder / "below" / "a.png")
    (folder / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="left out of .*folder, not images: notes.txt"):
        rows = predict(evaluated("plain"), folder)
    assert [row["source"] for row in rows] == [str(folder / "b.png"), str(folder / "below" / "a.png")]


# Bad input


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("nan.npy", np.full((16, 16, 3), np.nan), "nan.npy holds NaN or infinity; replace them"),
        ("flat.npy", np.full((16, 16, 3), 7, np.uint8), "flat.npy is constant, all its pixels are equal; leave it out"),
        ("none.npy", np.zeros((0, 16, 16, 3), np.float32), "none.npy is empty"),
        ("row.npy", np.arange(16.0), r"row.npy has shape \(16,\); the network expects an image \(H, W\)"),
        ("deep.npy", np.zeros((2, 2, 2, 16, 16)), r"deep.npy has shape \(2, 2, 2, 16, 16\); the network expects"),
        ("text.npy", np.array([["a", "b"]]), "text.npy holds <U1; an image is an array of real numbers"),
    ],
)
def test_unsuitable_array(evaluated: Evaluated, tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(evaluated("plain"), save(tmp_path / name, array))


def test_colour_for_a_grey_network_is_refused(grey: RunDir, pictures: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="colour.png is RGB, the network expects 1 channel; convert it to grey"):
        predict(grey, tmp_path / "colour.png")


def test_image_for_a_network_of_volumes(evaluated: Evaluated, tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match=r"flat.png has shape \(16, 16\); the network expects a volume \(D, H, W\)"):
        predict(evaluated("volumes"), tmp_path / "flat.png")


def test_paths_that_hold_no_image(grey: RunDir, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*nowhere.png"):
        predict(grey, tmp_path / "nowhere.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="the folder .*empty holds no image, that is none of .png"):
        predict(grey, tmp_path / "empty")
    with pytest.raises(ValueError, match=r"notes.txt is none of \.png, .*; convert it"):
        predict(grey, tmp_path / "empty" / "notes.txt")
    with pytest.raises(ValueError, match="got no path"):
        predict(grey, [])


def test_damaged_and_dangerous_files(grey: RunDir, pictures: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot read .*cut.png .*; save it anew or leave it out"):
        predict(grey, tmp_path / "cut.png")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot read .*object.npy"):
        predict(grey, tmp_path / "object.npy")


def test_run_that_is_none_or_unfinished(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run at"):
        predict(tmp_path / "nothing", "x.png")
    run = RunDir.create(TrainConfig("cells", "resnet18", tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match="not finished an epoch yet"):
        predict(run, "x.png")


def test_network_that_gives_no_finite_logits(grey: RunDir, tmp_path: Path) -> None:
    path = grey.path / "model.safetensors"
    huge = {name: torch.full_like(value, 1e38) for name, value in load_file(path).items() if value.is_floating_point()}
    save_file({**load_file(path), **huge}, path)
    write_json(grey.path / "model.json", {**grey.model_info, "sha256": sha256(path.read_bytes())})
    with pytest.raises(
        FloatingPointError, match="grey gives outputs that are not finite; train again with a lower --lr"
    ):
        predict(grey, save(tmp_path / "x.npy", np.arange(256, dtype=np.uint8).reshape(16, 16)))


def test_only_predict_shows_a_bar(grey: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    path = save(tmp_path / "x.npy", np.arange(256, dtype=np.uint8).reshape(16, 16))
    predictor = Predictor(grey, "cpu")
    predictor.predict(*predictor.read(path))
    assert terminal.getvalue() == ""
    predict(grey, path)
    assert "test images" in terminal.getvalue()


def test_impossible_batch_size(grey: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predict(grey, save(tmp_path / "x.npy", np.arange(256, dtype=np.uint8).reshape(16, 16)), batch_size=0)


# Files of predictions

TASK = task_of(Task("x", "X", "binary", 2, 1, ("ill", "normal, benign"), (0, 0, 0), "MIT"))
ROWS = [
    {
        "source": "a.png",
        "index": None,
        "label": "normal, benign",
        "probabilities": {"ill": 0.25, "normal, benign": 0.75},
        "consistency": 0.5,
    },
    {
        "source": "b.npy",
        "index": 3,
        "label": "ill",
        "probabilities": {"ill": 1.0, "normal, benign": 0.0},
        "consistency": 1.0,
    },
]


def test_json_is_the_rows(tmp_path: Path) -> None:
    write_predictions(TASK, ROWS, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == ROWS


def test_csv_is_a_flat_table(tmp_path: Path) -> None:
    write_predictions(TASK, ROWS, str(tmp_path / "rows.CSV"))
    assert (tmp_path / "rows.CSV").read_text() == (
        'source,index,label,p(ill),"p(normal, benign)",consistency\n'
        'a.png,,"normal, benign",0.25,0.75,0.5\n'
        "b.npy,3,ill,1.0,0.0,1.0\n"
    )


def test_masks_are_files_of_their_own_beside_a_table(evaluated: Evaluated, tmp_path: Path) -> None:
    run, rng = evaluated("masks/sre"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png", save(tmp_path / "b.npy", rng.random((2, 16, 16))), tmp_path / "c.npz"]
    np.savez(paths[2], train_images=rng.random((2, 16, 16)), test_images=rng.random((1, 16, 16)))
    rows = predict(run, paths, rotations=False)
    written = write_predictions(run.task, rows, tmp_path / "out")
    names = ["a", "b_0", "b_1", "c_train_images_0", "c_train_images_1", "c_test_images_0"]
    assert [row["mask"] for row in written] == [str(tmp_path / "out" / f"{name}.png") for name in names]
    for row, file in zip(rows, written, strict=True):
        assert np.array_equal(np.asarray(Image.open(file["mask"])), row["mask"])
        assert {name: value for name, value in file.items() if name != "mask"}.items() <= row.items()
    with (tmp_path / "out" / "masks.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["mask"] for row in table] == [row["mask"] for row in written]
    assert [float(row["share of vessel"]) for row in table] == [row["shares"]["vessel"] for row in rows]
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_masks_of_volumes_are_arrays(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("masks/volumes")
    rows = predict(run, save(tmp_path / "scan.npy", np.random.default_rng(0).random((16, 16, 16))), rotations=False)
    (row,) = write_predictions(run.task, rows, tmp_path / "out")
    assert row["mask"] == str(tmp_path / "out" / "scan.npy")
    assert np.array_equal(np.load(row["mask"], allow_pickle=False), rows[0]["mask"])


def test_masks_that_would_get_one_name(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("masks/sre")
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.npy", np.random.default_rng(0).random((16, 16)))
    rows = predict(run, [tmp_path / "x", tmp_path / "y"], rotations=False)
    with pytest.raises(ValueError, match="several images have the same name"):
        write_predictions(run.task, rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="out exists and is not overwritten"):
        write_predictions(run.task, rows[:1], tmp_path / "out")


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="rows.csv exists and is not overwritten; choose another name"):
        write_predictions(TASK, ROWS, path)
    assert path.read_text() == "mine"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"written as \.csv or \.json, got .*rows\.xlsx; choose one of these endings"):
        write_predictions(TASK, ROWS, tmp_path / "rows.xlsx")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write rows\.csv into; make it first"):
        write_predictions(TASK, ROWS, tmp_path / "nowhere" / "rows.csv")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="cannot be written; choose another or get permission"):
        check_output(tmp_path / "rows.csv")


def test_a_name_that_is_no_utf8_is_written_as_it_is(tmp_path: Path) -> None:
    write_predictions(TASK, [{**ROWS[0], "source": os.fsdecode(b"caf\xe9.png")}], tmp_path / "rows.csv")
    assert b"\ncaf\xe9.png,," in (tmp_path / "rows.csv").read_bytes()


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*rows\.csv \(No space left on device\)"):
        write_predictions(TASK, ROWS, tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())
