"""What the run directories of a study say, gathered for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from isoconv.evaluation.measuring import summed_up
from isoconv.evaluation.results import Recorded, recorded, results_by
from isoconv.report.columns import all_scores, disturbed_scores, extras_of
from isoconv.runs import RunDir
from isoconv.study.plan import Averaged, Study
from isoconv.study.status import study_status
from isoconv.tasks import Task

__all__ = ["Entry", "Gathered", "Scored", "gather"]


@dataclass(frozen=True)
class Scored:
    """One run, or one run averaged over turns.

    Attributes:
        scores: by the keys of :func:`isoconv.report.columns.all_scores`; None where there is none.
        cost: parameters, multiply_adds_dense, multiply_adds_banded, training_seconds.
        positions: of the protocol that are turns, the upright one first, each with name, group, angle, and the main
            score and its 95 % interval.
        masked: whether the network was trained with the mask, which the protocol ``"disturbed"`` follows.
        upright, rotated: (N,) float64, the main score of each image alone: upright, and the mean over all rotations;
            NaN where there is none.
        details: what :meth:`isoconv.report.extras.Extras.matrices` needs.
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
    details: Any
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A contestant on a data set: its runs, one per seed."""

    contestant: str
    title: str
    index: int
    task: Task
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
        """Main score of each test image alone, the mean over seeds; ``name``: "upright" or "rotated"."""
        return torch.stack([getattr(run, name) for run in self.runs]).nanmean(0)

    def leading(self, name: str) -> float | None:
        """The main score "upright" or "rotated", to order contestants by: equal where they are, while those in
        ``scores`` may or may not be rounded, as the official protocol has it."""
        each = []
        for run in self.runs:
            turns = run.positions[:1] if name == "upright" else [p for p in run.positions if p["group"] == "rotation"]
            each.append(_mean([position[self.task.main.key] for position in turns]))
        value = _mean(each)
        return None if value is None else round(value, 9)


@dataclass(frozen=True)
class Gathered:
    """All results of one protocol of a study.

    Attributes:
        tasks: by data set.
        entries: by data set, contestants in the order of the study; data sets without a finished run are absent.
        status: rows of `study_status`.
        environments: of the finished runs.
    """

    study: Study
    protocol: str
    tasks: dict[str, Task]
    test_images: dict[str, int]
    entries: dict[str, list[Entry]]
    status: list[dict[str, Any]]
    environments: list[dict[str, Any]]

    def entry(self, data: str, contestant: str) -> Entry | None:
        return next((each for each in self.entries[data] if each.contestant == contestant), None)

    def pair(self, data: str, trained: bool = False) -> list[Entry]:
        """Of the two contestants that :meth:`isoconv.study.plan.Study.pair` names, those that have finished."""
        return [entry for name in self.study.pair(data, trained) if (entry := self.entry(data, name))]


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
    tasks: dict[str, Task] = {}
    targets: dict[str, Tensor] = {}
    environments = []
    for data in dict.fromkeys(row["data"] for row in done):
        found: dict[str, list[Scored]] = {}
        for row in (row for row in done if row["data"] == data):
            read = _read(RunDir(folder / row["cell"]), protocol, row)
            tasks[data] = read.task
            if not torch.equal(targets.setdefault(data, read.targets), read.targets):
                raise ValueError(
                    f"{read.run.path} was evaluated on other test images than the other runs of {data}; do it, or "
                    f"them, again: isoconv evaluate {read.run.path} --protocol {protocol}"
                )
            environments.append(read.run.environment)
            found.setdefault(row["contestant"], []).append(_score(read))
            for one in study.averaged:
                if one.of == row["contestant"] and one.fits(data) and len(_angles(read)) % one.turns == 0:
                    found.setdefault(one.name, []).append(_score_averaged(read, one))
        named = enumerate(everyone)
        entries[data] = [Entry(n, title, i, tasks[data], found[n]) for i, (n, title) in named if n in found]
    test_images = {data: len(each) for data, each in targets.items()}
    return Gathered(study, protocol, tasks, test_images, entries, status, environments)


@dataclass(frozen=True)
class _Read:
    """A finished run: its row of the status, its entry in results.json and what was recorded of the test images."""

    run: RunDir
    task: Task
    row: dict[str, Any]
    entry: dict[str, Any]
    recorded: Recorded

    @property
    def targets(self) -> Tensor:
        return self.recorded.targets


def _read(run: RunDir, protocol: str, row: dict[str, Any]) -> _Read:
    return _Read(run, run.task, row, results_by(run, protocol), recorded(run, protocol))


def _angles(read: _Read) -> dict[float, int]:
    """The angles by which the protocol turns images, equally spaced, with their place among the positions."""
    found: dict[float, int] = {}
    for place, position in enumerate(read.recorded.positions):
        if position.group == "rotation" and position.angle is not None:
            found.setdefault(position.angle % 360, place)
    return found


def _score(read: _Read) -> Scored:
    entry = read.entry
    scored = _scored(read, read.recorded.records, entry["summary"], entry["conditions"], entry["cost"], entry["notes"])
    return replace(scored, scores=scored.scores | _disturbed(read))


def _score_averaged(read: _Read, averaged: Averaged) -> Scored:
    """As if the network were shown each test image in ``turns`` turns, each resampled once."""
    task, at = read.task, _angles(read)
    positions = [position for position in read.recorded.positions if position.group == "rotation"]
    turns = [k * 360 // averaged.turns for k in range(averaged.turns)]
    together = [tuple(sorted(at[((p.angle or 0) + turn) % 360] for turn in turns)) for p in positions]
    different = list(dict.fromkeys(together))
    records = torch.stack([read.recorded.records[list(places)].mean(0) for places in different])
    rows, resampled = task.table(records, read.targets)
    where = [different.index(places) for places in together]
    records = records[where]
    summary, table = summed_up(task, positions, records, read.targets, [rows[i] for i in where], resampled[:, where])
    cost = {k: v * averaged.turns if "adds" in k else v for k, v in read.entry["cost"].items()}
    return _scored(read, records, summary, table, cost, task.notes(records[0], read.targets))


def _scored(
    read: _Read,
    records: Tensor,
    summary: Mapping[str, Any],
    conditions: Sequence[dict[str, Any]],
    cost: dict[str, float],
    notes: Sequence[str],
) -> Scored:
    """From records (positions, N, ...) in the positions of ``conditions``."""
    task, main = read.task, read.task.main.key
    turned = [i for i, row in enumerate(conditions) if row["group"] == "rotation"]
    beyond = [conditions[i][main] for i in turned if 90 < conditions[i]["angle"] % 360 < 270]
    extras, parts = extras_of(task), (task, records[0], records[turned], read.targets)
    images = task.by_image(records, read.targets)
    return Scored(
        seed=read.row["seed"],
        path=read.run.path,
        command=read.row["command"],
        scores={score.key: summary.get(score.key) for score in all_scores(task)}
        | {"beyond_90": _mean(beyond) if beyond else None}
        | extras.measured(*parts),
        cost=cost,
        positions=[row for row in conditions if row["group"] in ("rotation", "cube")],
        masked=read.run.masked,
        upright=images[0],
        rotated=images[turned].nanmean(0),
        details=extras.details(*parts),
        notes=tuple(notes),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one of the values is."""
    numbers = [value for value in values if value is not None]
    return mean(numbers) if numbers and len(numbers) == len(values) else None


def _disturbed(read: _Read) -> dict[str, float | None]:
    """The scores of the protocol ``"disturbed"``; none of a run that was not evaluated by it."""
    try:
        summary = results_by(read.run, "disturbed")["summary"]
    except ValueError:
        return {}
    task = read.task
    alone = {"turned": "rotated_mean", f"turned_{task.agreement.key}": task.agreement.key}
    alone |= {f"turned_{score.key}": f"rotated_{score.key}" for score in task.others}
    keys = [score.key for score in disturbed_scores(task, task.main, task.agreement, *task.others)]
    return {key: summary.get(alone.get(key, key)) for key in keys}
