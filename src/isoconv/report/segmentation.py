"""What the report tells of segmentations only: the Dice of each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isoconv.report.extras import Extras, Matrix
from isoconv.tasks import Task
from isoconv.tasks.dice import pooled
from isoconv.tasks.metrics import number

__all__ = ["SegmentationExtras"]


class SegmentationExtras(Extras):
    """Details are the Dice of each class (K, 2), upright and rotated; NaN for a class that is neither there nor
    found."""

    heading = "Each class"

    def contents(self, task: Task) -> str:
        return f"{len(task.info.labels)} labels, one for each pixel"

    def details(self, task: Task, upright: Tensor, rotated: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([pooled(upright[..., :3]), pooled(rotated[..., :3]).nanmean(0)], dim=-1)

    def matrices(self, task: Task, details: Sequence[Tensor]) -> list[Matrix]:
        """Means over seeds."""
        means = torch.stack(list(details)).nanmean(0).tolist()
        values = [[number(value) for value in row] for row in means]
        return [Matrix("Dice of each class, %", task.info.labels, ("upright", "rotated, mean"), values)]
