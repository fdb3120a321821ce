"""The scores that a report shows of a kind of task: all come from the task itself and from what is told of it only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from isoconv.evaluation.protocols import DISTURBANCES
from isoconv.report.classification import ClassificationExtras
from isoconv.report.extras import Extras
from isoconv.report.segmentation import SegmentationExtras
from isoconv.tasks import Score, Task

__all__ = ["COSTS", "DISTURBED", "all_scores", "disturbed_scores", "extras_of", "leading_scores", "more_scores"]

COSTS = {
    "parameters": "parameters",
    "multiply_adds_banded": "M multiply-adds, per band",
    "multiply_adds_dense": "M multiply-adds, per tap",
    "training_seconds": "training, s",
}
DISTURBED = {"turned": "rotated only", **{group: f"rotated and {group}" for group in DISTURBANCES}}
"""Groups of positions of the protocol ``"disturbed"``, in words."""

_EXTRAS: Mapping[str, Extras] = {"classification": ClassificationExtras(), "segmentation": SegmentationExtras()}


def extras_of(task: Task) -> Extras:
    """What is told of this kind of task only."""
    return _EXTRAS.get(task.name, Extras())


def leading_scores(task: Task) -> tuple[Score, ...]:
    """Of the first table: the main score in each group of positions, and the agreement with the upright answer."""
    beyond = replace(task.main, key="beyond_90", title=f"{task.main.title} beyond 90°")
    turned, others = task.of_main[:3], task.of_main[3:]
    return (*turned, beyond, *others, task.agreement)


def more_scores(task: Task) -> tuple[Score, ...]:
    """Of the second table: all others that are not of the protocol ``"disturbed"``."""
    leading = {score.key for score in leading_scores(task)}
    return tuple(score for score in (*task.scores, *extras_of(task).scores) if score.key not in leading)


def disturbed_scores(task: Task, *scores: Score) -> tuple[Score, ...]:
    """Of the protocol ``"disturbed"``, whatever protocol is reported: ``scores``, each in every group of positions."""
    return tuple(
        replace(score, key=group if score is task.main else f"{group}_{score.key}", title=f"{score.title}, {words}")
        for score in scores
        for group, words in DISTURBED.items()
    )


def all_scores(task: Task) -> tuple[Score, ...]:
    disturbed = disturbed_scores(task, task.main, task.agreement, *task.others)
    return (*leading_scores(task), *more_scores(task), *disturbed)
