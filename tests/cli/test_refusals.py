"""Wrong usage ends with exit status 2, a job that fails with 1 and one line; nothing is left behind or overwritten."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoconv import __main__ as program
from isoconv.runs import RunDir

Evaluated = Callable[[str], RunDir]
Call = Callable[..., Any]  # of a command line, to its Result


# Wrong usage: exit status 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Expected one of {train, evaluate"),
        ("evalute x", "error: isoconv has no command evalute, see isoconv --help; did you mean 'evaluate'?"),
        ("data fech", "error: isoconv data has no command fech, see isoconv data --help; did you mean 'fetch'?"),
        ("train --data cells --out x", "--model"),
        ("evaluate", "RUN"),
        ("evaluate x --devic cpu", "isoconv evaluate has no option --devic, see isoconv evaluate --help; did you mean"),
        ("train --epoch 3", "error: isoconv train has no option --epoch, see isoconv train --help; did you mean '--ep"),
        ("train --data=cells --modl=x", "isoconv train has no option --modl,"),
        ("train --from pbc --modl x", "isoconv train has no option --modl,"),  # --from is another name of --pretrained
        ("models --jason", "isoconv models has no option --jason, see isoconv models --help; did you mean '--json'?"),
        ("evaluate x y", "Unrecognized options: y"),
        ("evaluate x --protocol oficial", "'standard', 'official', 'disturbed'"),
        ("predict x y --batch-size two", "--batch-size"),
        ("segment", "isoconv train works for every task now; use it without `segment`"),
        ("segment train --data vessels --model unet --out x", "isoconv train works for every task now; use it without"),
        ("segment evaluate x", "isoconv evaluate works for every task now; use it without `segment`"),
        ("segment --help", "isoconv train works for every task now"),
        ("train --data cells --model resnet18 --out x --lr -1", "lr must be finite and at least 1e-06"),
        ("train --data cells --model resnet18 --out x --epochs 0", "epochs must be a whole number from 1"),
    ],
)
def test_wrong_usage(call: Call, line: str, message: str) -> None:
    result = call(*line.split())
    assert result.code == 2
    assert result.out == ""
    assert message in " ".join(result.err.split())


# Failed jobs: exit status 1 and one line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --data breastmnst --model resnet18 --out x", "unknown data set 'breastmnst'; did you mean 'breastmni"),
        ("train --data cells --model resnet81 --out x", "unknown model 'resnet81'.*did you mean 'resnet18'"),
        ("train --data cells --model sre_resnet18 --profile linaer --out x", "did you mean 'linear'"),
        ("train --data cells --model resnet18_3d --out x", "has 2D images, network 'resnet18_3d' does not"),
        ("train --data cells --model sre_resnet18 --from pcb --out x", "no run at pcb .*did you mean 'pbc'"),
        ("train --data cells --model resnet18 --from pbc --out x", "pbc is a steerable_resnet18, not a resnet18; use"),
        ("evaluate x", "no run at x .*isoconv train --out x"),
        ("predict x y.png", "no run at x "),
        ("compare x y", "no run at x "),
        ("compare", "at least two run directories, got 0"),
        ("compare x y --plot angles.pdf", "--plot must be a .png file"),
        (
            "train --data vessels --model resnet18 --out x",
            "network 'resnet18' is not for segmentation; use --model with",
        ),
        ("train --data cells --model unet --out x", "network 'unet' is not for classification; use --model with one"),
        (
            "train --data cells --task segmentation --model unet --out x",
            "cells is for multiclass, not for segmentation",
        ),
        ("train --data cells --model resnet18 --loss dice --out x", "must be one of cross_entropy, focal, got 'dice'"),
        ("data fetch cels", "unknown data set 'cels'; did you mean 'cells'"),
        ("data fetch", "name the tasks to download; `isoconv data list` shows all"),
        ("data check cels", "unknown data set 'cels'; did you mean 'cells'"),
        ("data fetch breastmnist --size 30", "published in 28, 64, 128, 224 pixels a side, got size=30"),
        pytest.param(
            "bench ops --device cuda",
            "device cuda was asked for, but torch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ("models vgg*", r"no network matches 'vgg\*'; see them all with: isoconv models"),
    ],
)
def test_failed_job(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, call(*line.split()).error)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(call: Call, evaluated: Evaluated, picture: Path, tmp_path: Path) -> None:
    run = evaluated("plain")
    train = ["train", "--data", "cells", "--model", "resnet18", "--size", "16", "--out"]
    assert "choose another --out, or continue a stopped run with --resume" in call(*train, run.path).error
    (tmp_path / "rows.csv").write_text("mine")
    error = call("predict", run.path, picture, "--out", tmp_path / "rows.csv").error
    assert "rows.csv exists and is not overwritten" in error
    assert (tmp_path / "rows.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("plain", "nowhere/rows.csv", "make it first"),
        ("plain", "rows.xlsx", "a table is written as .csv or .json, got"),
        ("masks/plain", "nowhere/folder", "make it first"),
        ("masks/plain", "masks", "exists and is not overwritten"),  # the folder of the run
    ],
)
def test_output_is_checked_before_the_images_are_read(
    call: Call, evaluated: Evaluated, tmp_path: Path, name: str, out: str, message: str
) -> None:
    assert message in call("predict", evaluated(name).path, "nowhere.png", "--out", tmp_path / out).error


def test_unsuitable_images(call: Call, evaluated: Evaluated, tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.full((16, 16, 3), np.nan))
    run = evaluated("plain").path
    assert "nan.npy holds NaN or infinity; replace them" in call("predict", run, tmp_path / "nan.npy").error
    assert "there is no file or folder nowhere.png" in call("predict", run, "nowhere.png").error
    (tmp_path / "empty").mkdir()
    assert "holds no image" in call("predict", run, tmp_path / "empty").error
    assert "got no path" in call("predict", run).error


def test_damaged_run(call: Call, evaluated: Evaluated, picture: Path) -> None:
    run = evaluated("plain")
    (run.path / "results.json").unlink()
    assert "evaluate it first: isoconv evaluate" in call("compare", run.path, evaluated("sre").path).error
    (run.path / "model.safetensors").write_bytes(b"cut")
    for command in (["evaluate", run.path], ["predict", run.path, picture]):
        assert "model.safetensors is not a complete weights file" in call(*command).error


def test_a_missing_package_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("isoconv.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tyro", None)  # as after a plain `pip install isoconv`
    monkeypatch.setattr(sys, "argv", ["isoconv", "models"])
    assert program.main() == 1
    told = "error: this needs the package 'tyro'; install it with: pip install 'isoconv[study]'\n"
    assert capsys.readouterr().err == told


def test_stopped_by_hand(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isoconv.models.list_models", stop)
    assert call("models") == (130, "", "stopped\n")


def test_debug_shows_the_traceback(call: Call) -> None:
    with pytest.raises(FileNotFoundError, match="no run at x"):
        call("evaluate", "--debug", "x")
