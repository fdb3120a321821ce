"""Users' own data from a folder or a manifest to an exported network: what the shape of the data says is done."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from isoconv.cli.main import main
from isoconv.data import own
from isoconv.runs import RunDir

SHAPES = {
    "class folders": (["sre_resnet18", "resnet18"], "classification (binary, 2D: a, b)"),
    "masks": (["sre_unet", "unet"], "segmentation (2D: background, label 1)"),
    "manifest of masks": (["sre_unet", "unet"], "segmentation (2D: background, label 1)"),
}


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make(shape: str, folder: Path) -> Path:
    """20 images of 20 x 24 pixels, of which 4 become the test split."""
    for i in range(20):
        image = np.random.default_rng(i).integers(0, 256, (20, 24), np.uint8)
        if shape == "class folders":
            picture(folder / "ab"[i % 2] / f"{i}.png", image)
        else:
            picture(folder / "images" / f"{i}.png", image)
            picture(folder / "masks" / f"{i}.png", (image > 100).astype(np.uint8))
    if shape != "manifest of masks":
        return folder
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "mask"), *((f"images/{i}.png", f"masks/{i}.png") for i in range(20))])
    return folder / "list.csv"


@pytest.mark.parametrize("shape", SHAPES)
def test_from_a_users_files_to_an_exported_network(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*line: object) -> Any:
        capsys.readouterr()
        assert main([*map(str, line), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    data, (models, guess) = make(shape, tmp_path / "set").relative_to(tmp_path), SHAPES[shape]
    options = ["--width", 2, "--epochs", 1, "--size", 16, "--device", "cpu", "--batch-size", 4, "--lr", 0.01]
    for model in models:
        assert main([*map(str, ["train", "--data", data, "--model", model, "--out", model, *options])]) == 0
        assert f"{data} looks like {guess}; --task overrides it" in capsys.readouterr().err
        assert run("evaluate", model)["data"]["test_images"] == 4
    task = guess.split()[0]
    assert RunDir(models[0]).config.task == task
    compared = run("compare", *models)
    assert (compared["task"], len(compared["pairs"])) == (task, 1)
    image = next((tmp_path / "set").rglob("3.png"))
    (row,) = run("predict", models[0], image)
    assert row["source"] == str(image)
    exported = run("export", models[0], "--format", "safetensors")
    assert exported["difference"] < 1e-3
    assert Path(exported["card"]).is_file()


@pytest.mark.parametrize("shape", ["class folders", "masks"])
def test_data_that_moved_or_changed_since_the_training(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    def error(*line: str) -> str:
        capsys.readouterr()
        assert main([*line]) == 1
        return capsys.readouterr().err

    data, run = make(shape, tmp_path / "set"), str(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    items = Mock(wraps=own.items)
    monkeypatch.setattr(own, "items", items)
    options = f"--model {SHAPES[shape][0][1]} --width 2 --epochs 1 --size 16 --device cpu --batch-size 4 --out run"
    train = ["train", "--data", "set", *options.split()]
    assert main(train) == 0
    items.assert_called_once()
    monkeypatch.chdir(data)
    assert main(["evaluate", run]) == 0  # from another folder
    monkeypatch.chdir(tmp_path)
    added = [Path(shutil.copy(file, file.with_name("new.png"))) for file in data.rglob("3.png")]
    for line in ([*train, "--resume"], ["evaluate", run]):
        assert "has other images or labels in " in error(*line)
    for path in added:
        path.unlink()
    assert main([*train, "--resume"]) == 0
    moved, config = data.rename(tmp_path / "elsewhere"), tmp_path / "run" / "config.json"
    assert f'as "data" in {config}' in error("evaluate", run)
    config.write_text(config.read_text().replace(str(data), str(moved)))
    assert main(["evaluate", run]) == 0
    if shape == "class folders":
        (moved / "a").rename(moved / "c")
        assert "other classes now than in the training, which were a, b; train anew" in error("evaluate", run)


@pytest.mark.parametrize(
    ("shape", "task", "message"),
    [
        ("class folders", "segmentation", "there is no folder .*images; expected images/ and masks/ beside each other"),
        ("class folders", "segmentaton", "task must be one of .*, got 'segmentaton'; did you mean 'segmentation'"),
        (
            "manifest of masks",
            "classification",
            "list.csv is for segmentation, not for classification; leave out --task",
        ),
    ],
)
def test_data_for_another_task_than_is_asked_for(
    shape: str, task: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(shape, tmp_path / "set")
    line = ["train", "--data", data, "--task", task, "--model", "unet", "--out", tmp_path / "run"]
    assert main([*map(str, line)]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
