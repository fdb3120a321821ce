"""What a training writes after each epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isoconv._extras import require
from isoconv._progress import time_left
from isoconv.data import DeviceBatches
from isoconv.models import model_config
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.tasks import facts

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

__all__ = ["Recorder"]

log = logging.getLogger(__name__)


class Recorder(pl.Callback):
    """Writes the run directory after each epoch.

    The history is part of the checkpoint: the checkpoint alone says what is done, `metrics.jsonl` shows it to people.
    """

    def __init__(self, config: TrainConfig, batches: DeviceBatches, input_size: int) -> None:
        self.config, self.batches, self.input_size = config, batches, input_size
        self.history: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.began, self.done_before = time.perf_counter(), len(self.history)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.to_json())

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches.set_epoch(trainer.current_epoch)
        self.losses: list[Tensor] = []
        self.images = 0
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, batch: Any, *__: Any) -> None:
        self.losses.append(outputs["loss"])
        self.images += len(batch[0]) * trainer.world_size

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # one transfer an epoch: one a step would stall a GPU
        losses = trainer.strategy.reduce(torch.stack(self.losses).float(), reduce_op="mean").tolist()
        self.seconds = time.perf_counter() - self.start
        for step, loss in enumerate(losses):
            self._check_finite(loss, f"training loss at epoch {trainer.current_epoch}, step {step} of {len(losses)}")
        self.train_loss = sum(losses) / len(losses)
        self.outputs: list[dict[str, Tensor]] = []
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_batch_end(self, _: Any, __: Any, outputs: Any, *___: Any) -> None:
        self.outputs.append(outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        loss, records, targets = _joined(self.outputs)
        self._check_finite(loss, f"validation loss at epoch {trainer.current_epoch}")
        task = pl_module.task
        line = {
            "epoch": trainer.current_epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "val_loss": loss,
            **task.validation(records, targets),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 1),
        }
        is_best = not self.history or task.goodness(line) > max(map(task.goodness, self.history))
        self.history = [*self.history, line]
        run = RunDir(self.config.out)
        if trainer.is_global_zero:
            self._log(line, task.summary(line), is_best)
            if is_best:
                run.save_model(pl_module.model.net, self._info(pl_module))
        trainer.save_checkpoint(run.last_checkpoint)
        if trainer.is_global_zero:
            run.write_metrics(self.history)
            for logger in trainer.loggers:
                logger.log_metrics({name: value for name, value in line.items() if name != "epoch"}, line["epoch"])

    def _info(self, learner: Any) -> dict[str, Any]:
        model = learner.model
        return {
            "model": model_config(model.net),
            "task": facts(learner.task),
            "input_size": self.input_size,
            "masked": model.masked,
            "outputs": model.outputs,
            "epoch": len(self.history) - 1,
        }

    def _log(self, line: Mapping[str, Any], summary: str, is_best: bool) -> None:
        total, done = self.config.epochs - self.done_before, line["epoch"] + 1 - self.done_before
        log.info(
            f"epoch {line['epoch'] + 1}/{self.config.epochs}: train loss {line['train_loss']:.4f}, "
            f"val loss {line['val_loss']:.4f} {summary}, "
            f"{line['images_per_second']:.0f} images/s{', best so far' if is_best else ''}"
            f"{time_left(time.perf_counter() - self.began, done, total)}"
        )

    def _check_finite(self, loss: float, where: str) -> None:
        if not math.isfinite(loss):
            precise = ", or with --precision 32-true" if self.config.precision != "32-true" else ""
            kept = (
                f"; the state after epoch {len(self.history) - 1} is kept in {self.config.out}" if self.history else ""
            )
            raise FloatingPointError(
                f"{where} is {loss}; train again with an --lr below {self.config.lr:g}{precise}{kept}"
            )


def _joined(outputs: Sequence[Mapping[str, Tensor]]) -> tuple[float, Tensor, Tensor]:
    """Loss, records and targets of a whole split, from those of its batches."""
    records, targets = (torch.cat([batch[name] for batch in outputs]) for name in ("records", "targets"))
    losses = torch.stack([batch["loss"].double() * len(batch["targets"]) for batch in outputs])
    return (losses.sum() / len(targets)).item(), records, targets
