"""Evaluated runs side by side: seeds taken together, and paired tests between runs on the same test images."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from statistics import mean, stdev
from typing import Any

import torch

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv.evaluation.protocols import PROTOCOLS
from isoconv.evaluation.results import COSTS, Recorded, recorded, results_by
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.tasks.metrics import holm
from isoconv.tasks.summary import indices

__all__ = ["compare", "labels_of"]


def compare(runs: Sequence[RunDir | str | os.PathLike[str]], protocol: str | None = None) -> dict[str, Any]:
    """Set evaluated runs side by side.

    Args:
        runs: run directories, evaluated by one protocol on the same test images.
        protocol: which results to take; None takes the first protocol by which all were evaluated.

    Returns:
        Plain JSON values, the rows of a table having the same keys:

        - ``task``: the kind of work; ``protocol``, ``data``;
        - ``runs``: a row per run, with the scores of the task (:attr:`isoconv.tasks.base.Task.scores`) and costs;
        - ``groups``: a row per configuration, its runs differing in nothing but the seed: mean and standard deviation
          over seeds (None for one seed);
        - ``pairs``: a row per pair of runs of different groups, a minus b: the differences upright and of the means
          over rotations, with the tests of the task (:meth:`isoconv.tasks.base.Task.paired`). Beside each ``_p`` stands
          a ``_p_holm``, corrected for there being many pairs. These account for the chance in the test images, not for
          the seeds;
        - ``folds``: of a cross-validation a row per pair of groups, a minus b: the mean over the folds that both have
          of the differences upright and of the means over rotations, and its 95 % interval by Student's t. Trainings of
          different folds share images, so the interval is rather too narrow;
        - ``clinical``: of each run what :func:`isoconv.evaluation.evaluate` says of its classes at their thresholds,
          without the curves; empty for other kinds of work, and of a run that an older isoconv evaluated;
        - ``notes``: of each run what is undefined or worthless in its scores.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: fewer than two runs, runs of different kinds of work, no common protocol, other test images, or
            nothing there that has a score.
    """
    opened = _open(runs)
    task = opened[0].task
    for run in opened[1:]:
        if run.task.name != task.name:
            raise ValueError(
                f"{opened[0].path} is for {task.name}, {run.path} for {run.task.name}; compare runs of one kind"
            )
    results = [run.results() for run in opened]
    protocol = protocol or _common_protocol(opened, results)
    entries = [results_by(run, protocol) for run in opened]
    kept = [recorded(run, protocol) for run in opened]
    _check_same_images(opened, entries, kept)
    for run, entry in zip(opened, entries, strict=True):
        if entry["summary"]["upright"] is None or entry["summary"]["rotated_mean"] is None:
            raise ValueError(f"{run.path} has no {task.main.title}: {'; '.join(entry['notes']) or 'nothing to score'}")
    labels, scores = labels_of([run.config for run in opened]), [score.key for score in task.scores]
    rows = [
        {
            "run": str(run.path),
            "network": label,
            "seed": run.config.seed,
            "fold": run.config.fold,
            **{name: entry["summary"][name] for name in scores},
            **{name: entry["cost"][name] for name in COSTS},
        }
        for run, label, entry in zip(opened, labels, entries, strict=True)
    ]
    prepared = [task.prepared(one.records[[0, *indices(one.positions, "rotation")]], one.targets) for one in kept]
    pairs = [
        {
            "a": str(opened[i].path),
            "b": str(opened[j].path),
            **{f"{name}_difference": rows[i][name] - rows[j][name] for name in ("upright", "rotated_mean")},
            **task.paired(prepared[i], prepared[j]),
        }
        for i, j in itertools.combinations(range(len(opened)), 2)
        if labels[i] != labels[j] and opened[i].config.fold == opened[j].config.fold
    ]
    for test in [key for key in pairs[0] if key.endswith("_p")] if pairs else ():
        for pair, adjusted in zip(pairs, holm([pair[test] for pair in pairs]), strict=True):
            pair[f"{test}_holm"] = adjusted
    return {
        "task": task.name,
        "protocol": protocol,
        "data": entries[0]["data"],
        "groups": [_group([row for row in rows if row["network"] == label], scores) for label in dict.fromkeys(labels)],
        "runs": rows,
        "pairs": pairs,
        "folds": _over_folds(rows),
        "clinical": {
            str(run.path): _without_curves(entry["clinical"])
            for run, entry in zip(opened, entries, strict=True)
            if "clinical" in entry
        },
        "notes": {str(run.path): entry["notes"] for run, entry in zip(opened, entries, strict=True) if entry["notes"]},
    }


def _without_curves(clinical: Mapping[str, Any]) -> dict[str, Any]:
    classes = {
        label: {name: value for name, value in found.items() if name != "curves"}
        for label, found in clinical["classes"].items()
    }
    return {**clinical, "classes": classes}


def _open(runs: Sequence[RunDir | str | os.PathLike[str]]) -> list[RunDir]:
    opened = [run if isinstance(run, RunDir) else RunDir(run) for run in runs]
    if len(opened) < 2:
        raise ValueError(f"comparing needs at least two run directories, got {len(opened)}")
    if twice := [str(path) for path, count in Counter(run.path.resolve() for run in opened).items() if count > 1]:
        raise ValueError(f"{', '.join(twice)} is given more than once; give each run once")
    return opened


def _check_same_images(runs: Sequence[RunDir], entries: Sequence[Mapping[str, Any]], kept: Sequence[Recorded]) -> None:
    firsts: dict[tuple[int, int] | None, int] = {}  # of each fold
    for i, (run, entry, one) in enumerate(zip(runs, entries, kept, strict=True)):
        j = firsts.setdefault(run.config.part, i)
        alike = torch.equal(one.targets, kept[j].targets) and _same_files(run, runs[j])
        if _data(entry) != _data(entries[j]) or not alike:
            first = "others" if _data(entry) == _data(entries[j]) else _describe(entries[j])
            raise ValueError(
                f"{run.path} was evaluated on {_describe(entry)}, {runs[j].path} on {first}; "
                "compare runs on the same test images"
            )
    if len({(run.config.folds, run.config.data) for run in runs}) > 1 and len(firsts) > 1:
        raise ValueError("compare folds of one cross-validation: runs with the same --data and --folds")


def labels_of(configs: Sequence[TrainConfig]) -> list[str]:
    """What to call each run among the others: its model, and what differs between them and is not the default, but for
    seed and place."""
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    ignored = {"model", "seed", "out", "data_root", "device", "threads", "fold"}
    values = [{name: getattr(config, name) for name in defaults if name not in ignored} for config in configs]
    differing = [name for name in values[0] if len({v[name] for v in values}) > 1]
    return [
        " ".join([config.model, *(f"{name}={_text(v[name])}" for name in differing if v[name] != defaults[name])])
        for config, v in zip(configs, values, strict=True)
    ]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _over_folds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The differences of groups, paired by fold; seeds of one fold are taken together."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    found = []
    for a, b in itertools.combinations(networks, 2):
        both = [{row["fold"] for row in rows if row["network"] == name} for name in (a, b)]
        if len(folds := sorted((both[0] & both[1]) - {None})) < 2:
            continue
        line: dict[str, Any] = {"a": a, "b": b, "folds": folds}
        quantile = float(require("scipy.stats", extra="study").t.ppf(0.975, len(folds) - 1))
        for score in ("upright", "rotated_mean"):
            means = {
                (name, fold): mean(row[score] for row in rows if (row["network"], row["fold"]) == (name, fold))
                for name in (a, b)
                for fold in folds
            }
            differences = [means[a, fold] - means[b, fold] for fold in folds]
            half = quantile * stdev(differences) / len(folds) ** 0.5
            line[f"{score}_difference"] = middle = mean(differences)
            line[f"{score}_difference_ci"] = [middle - half, middle + half]
        found.append(line)
    return found


def _group(rows: Sequence[dict[str, Any]], scores: Sequence[str]) -> dict[str, Any]:
    group: dict[str, Any] = {"network": rows[0]["network"], "seeds": [row["seed"] for row in rows]}
    group["folds"] = sorted({row["fold"] for row in rows} - {None})
    for name in (*scores, "training_seconds"):
        values = [row[name] for row in rows]
        known = None not in values
        group[name] = mean(values) if known else None
        group[f"{name}_sd"] = stdev(values) if known and len(values) > 1 else None
    return group | {name: rows[0][name] for name in COSTS if name != "training_seconds"}


def _common_protocol(runs: Sequence[RunDir], results: Sequence[dict[str, Any]]) -> str:
    for protocol in PROTOCOLS:
        if all(protocol in result for result in results):
            return protocol
    evaluated = "; ".join(f"{run.path}: {', '.join(result)}" for run, result in zip(runs, results, strict=True))
    raise ValueError(f"the runs were evaluated by no common protocol ({evaluated}); evaluate them by the same one")


def _data(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["data"]["name"], entry["data"]["size"], entry["data"]["test_images"]


def _same_files(a: RunDir, b: RunDir) -> bool:
    """Whether users' own test images are the same, as far as is known: other ones can have the same labels."""
    tests = [run.fingerprints.get("test") for run in (a, b)]
    return None in tests or tests[0] == tests[1]


def _describe(entry: Mapping[str, Any]) -> str:
    name, size, count = _data(entry)
    return f"{count_of(count, 'test image')} of {name} at {size} pixels"
