"""Users' own data: their shape says what is learned, and they have to stay what they were in the training."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from isoconv.cli.main import main
from isoconv.data import own

SHAPES = {
    "class folders": ("resnet18", "classification (binary, 2D: a, b)"),
    "masks": ("unet", "segmentation (2D: background, label 1)"),
    "manifest of masks": ("unet", "segmentation (2D: background, label 1)"),
    "numbers": ("resnet18", "regression (2D: size, weight)"),
}


TABLES = {"manifest of masks": "path,mask", "numbers": "path,size,weight"}


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make(shape: str, folder: Path) -> Path:
    """20 images of 20 x 24 pixels."""
    rows = [TABLES.get(shape, "")]
    for i in range(20):
        image = np.random.default_rng(i).integers(0, 256, (20, 24), np.uint8)
        if shape == "class folders":
            picture(folder / "ab"[i % 2] / f"{i}.png", image)
            continue
        picture(folder / "images" / f"{i}.png", image)
        rows.append(f"images/{i}.png,{i / 2},{3 - i}" if shape == "numbers" else f"images/{i}.png,masks/{i}.png")
        if shape != "numbers":
            picture(folder / "masks" / f"{i}.png", (image > 100).astype(np.uint8))
    if shape not in TABLES:
        return folder
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def change(data: Path) -> Callable[[], object]:
    """Add an image to a folder, or leave the last one out of a manifest; returns what undoes it."""
    if data.is_file():
        text = data.read_text()
        data.write_text(text[: text.rindex("\n")])
        return lambda: data.write_text(text)
    added = [Path(shutil.copy(file, file.with_name("new.png"))) for file in data.rglob("3.png")]
    return lambda: [path.unlink() for path in added]


@pytest.mark.parametrize("shape", SHAPES)
def test_data_that_moved_or_changed_since_the_training(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    def error(*line: str) -> str:
        capsys.readouterr()
        assert main([*line]) == 1
        return capsys.readouterr().err

    data, run, (model, guess) = make(shape, tmp_path / "set"), str(tmp_path / "run"), SHAPES[shape]
    monkeypatch.chdir(tmp_path)
    items = Mock(wraps=own.items)
    monkeypatch.setattr(own, "items", items)
    options = f"--model {model} --width 2 --epochs 1 --size 16 --device cpu --batch-size 4 --out run"
    train = ["train", "--data", str(data.relative_to(tmp_path)), *options.split()]
    assert main(train) == 0
    assert f"{data.relative_to(tmp_path)} looks like {guess}; --task overrides it" in capsys.readouterr().err
    items.assert_called_once()
    monkeypatch.chdir(tmp_path / "set")
    assert main(["evaluate", run]) == 0  # from another folder
    monkeypatch.chdir(tmp_path)
    undo = change(data)
    for line in ([*train, "--resume"], ["evaluate", run]):
        assert "has other images or labels in " in error(*line)
    undo()
    assert main([*train, "--resume"]) == 0
    moved, config = (tmp_path / "set").rename(tmp_path / "elsewhere"), tmp_path / "run" / "config.json"
    assert f'as "data" in {config}' in error("evaluate", run)
    config.write_text(config.read_text().replace(str(tmp_path / "set"), str(moved)))
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
