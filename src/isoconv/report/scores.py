"""What the run directories of a study say, gathered for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoconv._extras import require
from isoconv.evaluation.protocols import DISTURBANCES, conditions
from isoconv.evaluation.results import load_predictions, results_by
from isoconv.runs import RunDir
from isoconv.study.plan import Averaged, Study
from isoconv.study.status import study_status
from isoconv.tasks.metrics import classification_metrics, correct, decide, probabilities

__all__ = ["CONDITIONS", "SCORES", "Entry", "Gathered", "Scored", "gather"]

CONDITIONS = {
    f"{group}{measure}": f"{prefix}{title}"
    for measure, prefix in {
        "": "",
        "_consistency": "same answer, ",
        "_balanced_accuracy": "balanced, ",
        "_auc": "AUC, ",
    }.items()
    for group, title in {"turned": "rotated only", **{group: f"rotated and {group}" for group in DISTURBANCES}}.items()
}
"""Columns that come from the protocol ``"disturbed"``, whatever protocol is reported."""

SCORES = {
    "upright": "upright",
    "rotated_mean": "rotated",
    "rotated_worst": "worst angle",
    "beyond_90": "beyond 90°",
    "right_angles": "right angles",
    "flips": "flips",
    "consistency": "same answer",
    "always_right": "right at every angle",
    "upright_balanced_accuracy": "balanced, upright",
    "rotated_balanced_accuracy": "balanced, rotated",
    "upright_auc": "AUC, upright",
    "rotated_auc": "AUC, rotated",
    "upright_macro_f1": "macro-F1, upright",
    "rotated_macro_f1": "macro-F1, rotated",
    "upright_calibration": "calibration error, upright",
    "rotated_calibration": "calibration error, rotated",
    **CONDITIONS,
}
"""Columns of the tables: shares of 1, larger is better but for the calibration errors."""

_BINS = 15


@dataclass(frozen=True)
class Scored:
    """One run, or one run averaged over turns.

    Attributes:
        scores: by the names of :data:`SCORES`; None where there is none.
        cost: parameters, multiply_adds_dense, multiply_adds_banded, training_seconds.
        positions: of the protocol that are turns, each with name, group, angle, accuracy and its 95 % interval.
        masked: whether the network was trained with the mask, which the protocol ``"disturbed"`` follows.
        upright, rotated: (N,) float64, share of right decisions per image: upright, and over all rotations.
        confusion: counts (K, K) (multilabel: (K, 2, 2)) by "upright" and "rotated".
    """

    seed: int
    path: Path
    command: str
    scores: dict[str, float | None]
    cost: dict[str, float]
    positions: list[dict[str, Any]]
    masked: bool
    upright: Tensor
    rotated: Tensor
    confusion: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A contestant on a data set: its runs, one per seed."""

    contestant: str
    title: str
    index: int
    runs: list[Scored]

    @property
    def masked(self) -> bool:
        return self.runs[0].masked

    def mean(self, name: str) -> float | None:
        return _mean([run.scores[name] for run in self.runs])

    def sd(self, name: str) -> float | None:
        numbers = [value for run in self.runs if (value := run.scores[name]) is not None]
        return stdev(numbers) if len(numbers) > 1 else None

    def cost(self, name: str) -> float:
        return mean(run.cost[name] for run in self.runs)

    def images(self, name: str) -> Tensor:
        """Score of each test image, the mean over seeds; ``name``: "upright" or "rotated"."""
        return torch.stack([getattr(run, name) for run in self.runs]).mean(0)

    def accuracy(self, name: str) -> float:
        """Mean over :meth:`images`, to order contestants by: equal where they are, while those in ``scores`` may or may
        not be rounded, as the official protocol has it."""
        return round(self.images(name).mean().item(), 9)


@dataclass(frozen=True)
class Gathered:
    """All results of one protocol of a study.

    Attributes:
        tasks: as in model.json, by data set.
        entries: by data set, contestants in the order of the study; data sets without a finished run are absent.
        status: rows of `study_status`.
        environments: of the finished runs.
    """

    study: Study
    protocol: str
    tasks: dict[str, dict[str, Any]]
    test_images: dict[str, int]
    entries: dict[str, list[Entry]]
    status: list[dict[str, Any]]
    environments: list[dict[str, Any]]

    def entry(self, data: str, contestant: str) -> Entry | None:
        return next((each for each in self.entries[data] if each.contestant == contestant), None)


def gather(study: Study, folder: Path, protocol: str) -> Gathered:
    """Read the runs of a study that are trained and evaluated by ``protocol``, whether by its other protocols or not.

    Raises:
        FileNotFoundError: no run is finished.
        ValueError: damaged files, or runs of a data set that were evaluated on different test images.
    """
    status = study_status(replace(study, protocols=(protocol,)), folder)
    done = [row for row in status if row["state"] == "done"]
    if not done:
        raise FileNotFoundError(f"no run of study {study.name} in {folder} is finished; give --runs, or run the study")
    everyone = [*((c.name, c.title) for c in study.contestants), *((a.name, a.title) for a in study.averaged)]
    entries: dict[str, list[Entry]] = {}
    tasks: dict[str, dict[str, Any]] = {}
    labels: dict[str, Tensor] = {}
    environments = []
    for data in dict.fromkeys(row["data"] for row in done):
        found: dict[str, list[Scored]] = {}
        for row in (row for row in done if row["data"] == data):
            read = _read(RunDir(folder / row["cell"]), protocol, row)
            if not torch.equal(labels.setdefault(data, read.labels), read.labels):
                raise ValueError(
                    f"{read.run.path} was evaluated on other test images than the other runs of {data}; do it, or "
                    f"them, again: isoconv evaluate {read.run.path} --protocol {protocol}"
                )
            tasks[data] = read.task
            environments.append(read.run.environment)
            found.setdefault(row["contestant"], []).append(_score(read))
            for one in study.averaged:
                if one.of == row["contestant"] and read.task["dims"] == 2 and _angles(read) % one.turns == 0:
                    found.setdefault(one.name, []).append(_score_averaged(read, one))
        entries[data] = [Entry(n, title, i, found[n]) for i, (n, title) in enumerate(everyone) if n in found]
    test_images = {data: len(each) for data, each in labels.items()}
    return Gathered(study, protocol, tasks, test_images, entries, status, environments)


@dataclass(frozen=True)
class _Read:
    """A finished run: its entry in results.json, logits (positions, N, K), labels, which positions are rotations."""

    run: RunDir
    row: dict[str, Any]
    entry: dict[str, Any]
    task: dict[str, Any]
    logits: Tensor
    labels: Tensor
    rotations: list[int]


def _read(run: RunDir, protocol: str, row: dict[str, Any]) -> _Read:
    entry, task, arrays = results_by(run, protocol), run.model_info["task"], load_predictions(run)
    positions = conditions(protocol, task["dims"], run.model_info["masked"])
    names = arrays.get(f"{protocol}_conditions", np.array([])).tolist()
    if names != [p.name for p in positions] or names != [p["name"] for p in entry["conditions"]]:
        raise ValueError(
            f"{run.path} was evaluated in other positions than protocol {protocol!r} has now; evaluate it again"
        )
    logits, labels = (torch.from_numpy(arrays[f"{protocol}_{name}"]) for name in ("logits", "labels"))
    return _Read(run, row, entry, task, logits, labels, [i for i, p in enumerate(positions) if p.group == "rotation"])


def _angles(read: _Read) -> int:
    """By how many different angles, equally spaced, the protocol turns images."""
    return len({read.entry["conditions"][i]["angle"] % 360 for i in read.rotations})


def _score(read: _Read) -> Scored:
    kind, turned, positions = read.task["kind"], read.logits[read.rotations], read.entry["conditions"]
    angles = [(positions[i]["angle"], positions[i]["accuracy"]) for i in read.rotations]
    return Scored(
        seed=read.row["seed"],
        path=read.run.path,
        command=read.row["command"],
        scores={name: read.entry["summary"].get(name) for name in SCORES}
        | {
            "upright_macro_f1": positions[0]["macro_f1"],
            "rotated_macro_f1": _mean([positions[i]["macro_f1"] for i in read.rotations]),
        }
        | _extra(kind, angles, read.logits[:1], turned, read.labels)
        | _conditions(read.run),
        cost=read.entry["cost"],
        positions=[p for p in positions if p["group"] in ("rotation", "cube")],
        masked=read.run.model_info["masked"],
        **_by_image(kind, read.logits[0], turned, read.labels),
        notes=tuple(read.entry["notes"]),
    )


def _score_averaged(read: _Read, averaged: Averaged) -> Scored:
    """As if the network were shown each test image in ``turns`` turns, each resampled once."""
    kind, labels = read.task["kind"], read.labels
    table = [read.entry["conditions"][i] for i in read.rotations]
    at = {table[k]["angle"] % 360: i for k, i in reversed(list(enumerate(read.rotations)))}
    turns = [k * 360 // averaged.turns for k in range(averaged.turns)]
    mixed = torch.stack([read.logits[[at[(p["angle"] + t) % 360] for t in turns]].mean(0) for p in table])
    right = _share_right(kind, mixed, labels)
    accuracy = right.mean(1).tolist()
    same = correct(kind, mixed, decide(kind, mixed[0])).double()
    upright = classification_metrics(kind, mixed[0], labels, read.task["labels"])
    steps = [classification_metrics(kind, each, labels) for each in mixed] if averaged.turns < 36 else [upright]
    angles = [(position["angle"], value) for position, value in zip(table, accuracy, strict=True)]
    always = correct(kind, mixed, labels).all(0).double().mean().item()

    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    scores |= {
        "upright": accuracy[0],
        "rotated_mean": mean(accuracy),
        "rotated_worst": min(accuracy),
        "right_angles": mean(value for angle, value in angles if angle % 360 in (90, 180, 270)),
        "consistency": same.mean().item(),
        "always_right": always,
        "upright_balanced_accuracy": upright["balanced_accuracy"],
        "rotated_balanced_accuracy": _mean([step["balanced_accuracy"] for step in steps]),
        "upright_auc": upright["auc"],
        "rotated_auc": _mean([step["auc"] for step in steps]),
        "upright_macro_f1": upright["macro_f1"],
        "rotated_macro_f1": _mean([step["macro_f1"] for step in steps]),
    }
    return Scored(
        seed=read.row["seed"],
        path=read.run.path,
        command=read.row["command"],
        scores=scores | _extra(kind, angles, mixed[:1], mixed, labels),
        cost={k: v * averaged.turns if "adds" in k else v for k, v in read.entry["cost"].items()},
        positions=[
            {**position, "accuracy": value, "accuracy_ci": None}
            for position, value in zip(table, accuracy, strict=True)
        ],
        masked=read.run.model_info["masked"],
        **_by_image(kind, mixed[0], mixed, labels),
        notes=tuple(upright["notes"]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one of the values is."""
    numbers = [value for value in values if value is not None]
    return mean(numbers) if len(numbers) == len(values) else None


def _conditions(run: RunDir) -> dict[str, float | None]:
    """The scores of :data:`CONDITIONS`; none of a run that was not evaluated by that protocol."""
    try:
        summary = results_by(run, "disturbed")["summary"]
    except ValueError:
        return {}
    alone = {"": "rotated_mean", "_consistency": "consistency"}
    names = {f"turned{m}": alone.get(m, f"rotated{m}") for m in ("", "_consistency", "_balanced_accuracy", "_auc")}
    return {name: summary.get(names.get(name, name)) for name in CONDITIONS}


def _extra(
    kind: str, angles: Sequence[tuple[float, float]], upright: Tensor, turned: Tensor, labels: Tensor
) -> dict[str, float | None]:
    """Scores that evaluation leaves to those who have the logits."""
    beyond = [accuracy for angle, accuracy in angles if 90 < angle % 360 < 270]
    return {
        "beyond_90": mean(beyond) if beyond else None,
        "upright_calibration": _calibration(kind, upright, labels),
        "rotated_calibration": _calibration(kind, turned, labels),
    }


def _calibration(kind: str, logits: Tensor, labels: Tensor) -> float | None:
    """Expected calibration error of logits (M, N, K): the mean distance of confidence and accuracy over 15 bins."""
    if kind == "multilabel":
        return None
    error = require("torchmetrics.functional.classification", extra="study").multiclass_calibration_error
    chances = probabilities(kind, logits).flatten(0, 1)
    return error(chances, labels.repeat(len(logits)), num_classes=chances.shape[1], n_bins=_BINS).item()


def _share_right(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right decisions of each image, (..., N); its mean over images is the accuracy."""
    right = (decide(kind, logits) == labels).double()
    return right.mean(-1) if kind == "multilabel" else right


def _by_image(kind: str, upright: Tensor, turned: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "upright": _share_right(kind, upright, labels),
        "rotated": _share_right(kind, turned, labels).mean(0),
        "confusion": {
            "upright": _confusion(kind, upright[None], labels),
            "rotated": _confusion(kind, turned, labels),
        },
    }


def _confusion(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Counts over all passes of logits (M, N, K); row: label, column: decision; multilabel: a 2 x 2 table per label."""
    decisions, k = decide(kind, logits), logits.shape[-1]
    if kind == "multilabel":
        pairs = (2 * labels + decisions).flatten(0, 1)
        return torch.stack([pairs[:, c].bincount(minlength=4).view(2, 2) for c in range(k)])
    return (k * labels + decisions).flatten().bincount(minlength=k * k).view(k, k)
