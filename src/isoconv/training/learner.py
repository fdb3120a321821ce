"""What lightning trains: a network that learns a task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoconv._extras import require
from isoconv.nn import precondition_
from isoconv.runs import OnImages
from isoconv.tasks import Task

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

__all__ = ["Learner"]


class Learner(pl.LightningModule):
    """A network behind what it is trained with, which learns a task. ``forward``: images in [0, 1] to outputs.

    Args:
        model: the network.
        task: what it learns.
        optimiser, schedule: of a model, and the share of its learning rate at a step.
        loss: of the task, by name; None for its default.
        weights: of the classes in the loss of the training; see ``Task.class_weights``.
        precondition: equal gradient steps for all bands, see :func:`isoconv.nn.precondition_`.
    """

    def __init__(
        self,
        model: OnImages,
        task: Task,
        optimiser: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int], float],
        loss: str | None = None,
        weights: Tensor | None = None,
        precondition: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.optimiser, self.schedule, self.precondition = optimiser, schedule, precondition
        self.loss = task.losses[task.loss_name(loss)]
        self.training_loss = self.loss if weights is None else partial(self.loss, weight=weights)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        loss = self.task.training_loss(self.model, self.training_loss, images, targets, self.global_step)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(images))
        return loss

    def on_before_optimizer_step(self, _: torch.optim.Optimizer) -> None:
        if self.precondition:
            precondition_(self)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, targets = batch
        outputs = self(images).float()
        loss = self.task.validation_loss(self.model, self.loss, outputs, targets)
        return {"loss": loss, "records": self.task.record(outputs, targets), "targets": targets}

    def configure_optimizers(self) -> Any:
        optimizer = self.optimiser(self.model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
