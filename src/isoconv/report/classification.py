"""What the report tells of classifications only: calibration and confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isoconv._extras import require
from isoconv.report.extras import Extras, Matrix
from isoconv.tasks import Score, Task
from isoconv.tasks.metrics import decide, probabilities

__all__ = ["ClassificationExtras"]

_BINS = 15


class ClassificationExtras(Extras):
    """Details are counts (K, K), of a multilabel task (K, 2, 2), by ``"upright"`` and ``"rotated"``."""

    scores = (
        Score("always_right", "right at every angle"),
        Score("upright_calibration", "calibration error upright", higher_is_better=False),
        Score("rotated_calibration", "calibration error rotated", higher_is_better=False),
    )
    beside = "auc", "which does not depend on where the decision is drawn"
    heading = "Confusion, upright and rotated"
    method = f"Calibration error: mean distance of confidence and accuracy over {_BINS} bins."

    def contents(self, task: Task) -> str:
        count = len(task.info.labels)
        return f"{count} labels, any number of them on an image" if _several(task) else f"{count} classes"

    def resolution(self, images: int) -> str:
        return f"one image is {100 / images:.2f} points"

    def measured(self, task: Task, upright: Tensor, rotated: Tensor, targets: Tensor) -> dict[str, float | None]:
        return {
            "upright_calibration": _calibration(task, upright[None], targets),
            "rotated_calibration": _calibration(task, rotated, targets),
        }

    def details(self, task: Task, upright: Tensor, rotated: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {
            "upright": _confusion(task, upright[None], targets),
            "rotated": _confusion(task, rotated, targets),
        }

    def matrices(self, task: Task, details: Sequence[Mapping[str, Tensor]]) -> list[Matrix]:
        """Shares of each label's images (rows) that are decided as each label (columns), summed over seeds; with
        several labels, the share of images with and of those without each label that are decided so."""
        labels = task.info.labels
        several = _several(task)
        columns = ("found where it is", "not found where it is not") if several else labels
        matrices = []
        for position in ("upright", "rotated"):
            counts = torch.stack([each[position] for each in details]).sum(0).double()
            if several:
                shares = (counts.diagonal(dim1=1, dim2=2) / counts.sum(2).clamp_min(1)).flip(1)
            else:
                shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
            caption = f"{position}: % of each label's images{'' if several else ', by decision'}"
            matrices.append(Matrix(caption, labels, columns, shares.tolist()))
        return matrices


def _several(task: Task) -> bool:
    return task.info.kind == "multilabel"


def _calibration(task: Task, logits: Tensor, labels: Tensor) -> float | None:
    """Expected calibration error of logits (M, N, K): the mean distance of confidence and accuracy over 15 bins."""
    if _several(task):
        return None
    error = require("torchmetrics.functional.classification", extra="study").multiclass_calibration_error
    chances = probabilities(task.info.kind, logits).flatten(0, 1)
    return error(chances, labels.repeat(len(logits)), num_classes=chances.shape[1], n_bins=_BINS).item()


def _confusion(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Counts over all passes of logits (M, N, K); row: label, column: decision; multilabel: a 2 x 2 table per label."""
    decisions, k = decide(task.info.kind, logits), logits.shape[-1]
    if _several(task):
        pairs = (2 * labels + decisions).flatten(0, 1)
        return torch.stack([pairs[:, c].bincount(minlength=4).view(2, 2) for c in range(k)])
    return (k * labels + decisions).flatten().bincount(minlength=k * k).view(k, k)
