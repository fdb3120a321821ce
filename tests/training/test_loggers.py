"""What trackers are told: the lines of metrics.jsonl and the options, nothing that changes the training."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import isoconv.training.loop as training
from isoconv.cli.main import main
from isoconv.runs.config import TrainConfig
from isoconv.training.loggers import logger_of


def config_of(data: str, model: str, out: Path) -> TrainConfig:
    return TrainConfig(data, model, out, width=2, size=16, epochs=2, batch_size=32, device="cpu", lr=0.01)


@pytest.mark.parametrize(("data", "model"), [("cells", "resnet18"), ("vessels", "unet")])
def test_a_logger_is_told_what_metrics_say(
    data: str, model: str, few_cells: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    monkeypatch.setattr(training, "check_logger", lambda name: None)
    monkeypatch.setattr(training, "logger_of", lambda name, out: CSVLogger(out, name=name, version=""))
    run = training.train(config_of(data, model, tmp_path / "run"), logger="tensorboard")
    with (run.path / "tensorboard" / "metrics.csv").open() as file:
        told = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row.pop("step") for row in told] == [line.pop("epoch") for line in lines] == [0, 1]
    assert told == [pytest.approx(line) for line in lines]
    alone = training.train(config_of(data, model, tmp_path / "alone"))
    kept = [(r.path / "model.safetensors").read_bytes() for r in (run, alone)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert (
        main(["train", "--data", "cells", "--model", "resnet18", "--out", str(tmp_path / "x"), "--logger", name]) == 1
    )
    error = f"error: this needs the package {name!r}; install it with: pip install 'isoconv[{name}]'\n"
    assert capsys.readouterr().err == error
    assert not (tmp_path / "x").exists()


def test_an_unknown_logger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logger must be one of tensorboard.*did you mean 'tensorboard'"):
        logger_of("tensorbord", tmp_path)


def test_tensorboard(few_cells: None, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = training.train(config_of("cells", "resnet18", tmp_path / "run"), logger="tensorboard")
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_loss", "val_acc"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(line["epoch"], pytest.approx(line[name])) for line in run.metrics()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of mlflow and sqlalchemy
def test_mlflow(few_cells: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = training.train(config_of("cells", "resnet18", tmp_path / "run"), logger="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run.path / 'mlflow.db'}")
    (known,) = client.search_runs([client.get_experiment_by_name("isoconv").experiment_id])
    assert known.data.params["width"] == "2"
    told = [(point.step, point.value) for point in client.get_metric_history(known.info.run_id, "val_loss")]
    assert told == [(line["epoch"], pytest.approx(line["val_loss"])) for line in run.metrics()]


def test_wandb(tmp_path: Path) -> None:
    """In a process of its own: its file is whole when the process ends."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    command = (
        "-m isoconv train --data cells --model resnet18 --width 2 --size 16 --epochs 1 --device cpu --logger wandb"
    )
    command = [sys.executable, *command.split(), "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "WANDB_MODE": "offline"})
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"val_loss" in kept.read_bytes()
