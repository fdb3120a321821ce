"""Programs that show trainings side by side, fed beside `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from isoconv._checks import did_you_mean
from isoconv._extras import require
from isoconv.runs.config import Logger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger as LightningLogger

__all__ = ["check_logger", "logger_of"]


def check_logger(name: str) -> None:
    """Before any work.

    Raises:
        ValueError: there is no logger of this name.
        ModuleNotFoundError: its library is missing; the message names the extra.
    """
    if name not in (known := get_args(Logger)):
        raise ValueError(f"logger must be one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")
    require(name, extra=name)


def logger_of(name: str, out: Path) -> LightningLogger:
    """The logger of lightning for one of :data:`isoconv.runs.config.Logger`, whose files are in the run directory.

    MLflow and Weights & Biases take servers from their own environment variables. Raises as :func:`check_logger`.
    """
    check_logger(name)
    loggers = require("lightning.pytorch.loggers", extra="study")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(out, name="tensorboard", version="")
    if name == "wandb":
        return loggers.WandbLogger(name=out.name, save_dir=out, project="isoconv")
    server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').absolute()}")
    return loggers.MLFlowLogger(experiment_name="isoconv", run_name=out.name, tracking_uri=server)
