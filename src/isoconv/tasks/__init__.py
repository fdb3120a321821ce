"""Kinds of work: what differs between classification, segmentation and regression is one object each; all else is
written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isoconv.data import Task as DataInfo
from isoconv.tasks.base import Defaults, Loss, Task
from isoconv.tasks.classification import Classification
from isoconv.tasks.regression import Regression
from isoconv.tasks.scores import Score
from isoconv.tasks.segmentation import Segmentation

__all__ = [
    "TASKS",
    "Classification",
    "Defaults",
    "Loss",
    "Regression",
    "Score",
    "Segmentation",
    "Task",
    "facts",
    "task_of",
]

TASKS: Mapping[str, type[Task]] = {task.name: task for task in (Classification, Segmentation, Regression)}
"""All kinds of work, by name."""

_FACTS = ("name", "title", "kind", "dims", "channels", "labels")


def task_of(info: DataInfo | Mapping[str, Any]) -> Task:
    """The task of a data set, of which ``info`` tells the facts, or what :func:`facts` wrote of them."""
    if not isinstance(info, DataInfo):
        known = {name: info[name] for name in _FACTS}
        info = DataInfo(**{**known, "labels": tuple(known["labels"])}, counts=(0, 0, 0), licence="")
    return next(task for task in TASKS.values() if info.kind in task.kinds)(info)


def facts(task: Task) -> dict[str, Any]:
    """What a run directory keeps of a task, plain JSON values."""
    return {name: getattr(task.info, name) for name in _FACTS}
