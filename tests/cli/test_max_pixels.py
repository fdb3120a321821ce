"""A file of more pixels than the limit is refused by name, with the flag that lifts it, and read with that."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoconv.cli.serve import Serve
from isoconv.data import decoded
from isoconv.data.decoded import MAX_PIXELS, Limits, UnreadableError
from isoconv.runs import RunDir

Call = Callable[..., Any]
SIDE = 40
COMMANDS = (
    *("train", "evaluate", "predict", "serve"),
    *("data check", "data manifest", "study run", "study report"),
)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes more than a kilobyte is large."""
    monkeypatch.setattr(decoded, "_BYTES", 1000)
    monkeypatch.setattr(decoded, "_BYTES_PER_BYTE", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures in two classes, of which one has 1600 pixels and the others 400."""
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = SIDE if i == 7 else SIDE // 2
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("command", COMMANDS)
def test_all_commands_that_read_images_have_the_flag(call: Call, command: str) -> None:
    assert "--max-pixels" in call(*command.split(), "--help").out


@pytest.mark.usefixtures("small_limit")
def test_predict(call: Call, evaluated: Callable[[str], RunDir], folder: Path) -> None:
    line = ("predict", evaluated("plain").path, folder / "b" / "7.png", "--upright-only")
    error = call(*line).error
    assert f"cannot read {folder}/b/7.png (its 1,600 pixels would take 0.00 GB" in error
    assert "--max-pixels 1600" in error
    assert call(*line, "--max-pixels", 1600).code == 0
    error = call(*line, "--max-pixels", 1599).error
    assert f"{folder}/b/7.png (it has 1,600 pixels, the limit is 1,599); make it smaller, or" in error
    assert "--max-pixels 1600" in error
    assert MAX_PIXELS not in os.environ


@pytest.mark.usefixtures("small_limit")
def test_data_check(call: Call, folder: Path) -> None:
    result = call("data", "check", folder)
    assert result.code == 1
    assert "b/7.png (its 1,600 pixels" in result.out
    assert "--max-pixels 1600" in result.out
    assert call("data", "check", folder, "--max-pixels", 1600).code == 0


@pytest.mark.usefixtures("small_limit")
def test_train_and_evaluate(call: Call, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train", "--data", folder, "--model", "resnet18", "--width", 2, "--epochs", 1, "--out", run)
    assert "--max-pixels 1600" in call(*train).error
    assert not run.exists()
    assert call(*train, "--max-pixels", 1600).code == 0
    assert "max_pixels" not in (run / "config.json").read_text()
    evaluate = ("evaluate", run, "--device", "cpu")
    assert "--max-pixels 1600" in call(*evaluate).error
    assert call(*evaluate, "--max-pixels", 1600).code == 0


def test_it_holds_in_processes_that_the_command_starts(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the cells of a study are."""
    seen: list[bytes] = []
    show = [sys.executable, "-c", f"import os; print(os.environ['{MAX_PIXELS}'])"]
    monkeypatch.setattr(Serve, "work", lambda _: seen.append(subprocess.check_output(show)))
    monkeypatch.setenv(MAX_PIXELS, "5")
    assert call("serve", "x", "--max-pixels", 7).code == 0
    assert seen == [b"7\n"]
    assert os.environ[MAX_PIXELS] == "5"


def test_no_number_of_pixels(call: Call) -> None:
    assert "the limit of pixels must be at least 1, got 0" in call("predict", "x", "y", "--max-pixels", 0).error
    assert call("predict", "x", "y", "--max-pixels", "many").code == 2


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "many"])
def test_a_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(MAX_PIXELS, text)
    with pytest.raises(UnreadableError, match=f"{MAX_PIXELS} is '{text}'"):
        Limits().check(1, 1, 1)
    Limits(pixels=1).check(1, 1, 1)  # what is given in Python counts
