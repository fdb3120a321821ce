"""Evaluated runs side by side: seeds taken together, and paired tests between runs on the same test images."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from statistics import mean, stdev
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from isoconv.evaluation.protocols import PROTOCOLS, check_protocol, conditions, is_masked
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.tasks.metrics import bootstrap, correct, holm, interval, mcnemar

__all__ = [
    "check_entry",
    "compare",
    "labels_of",
    "load_predictions",
    "open_runs",
    "results_by",
    "side_by_side",
]

_SCORES = (
    "upright",
    "rotated_mean",
    "rotated_std",
    "rotated_worst",
    "right_angles",
    "flips",
    "consistency",
    "always_right",
)
_COSTS = ("parameters", "multiply_adds_dense", "multiply_adds_banded", "training_seconds")


class _OnImages(Protocol):
    """What paired tests need of a run, and whatever tells its test images from others."""

    labels: Tensor


_T = TypeVar("_T", bound=_OnImages)


def compare(runs: Sequence[RunDir | str | os.PathLike[str]], protocol: str | None = None) -> dict[str, Any]:
    """Set evaluated runs side by side.

    Args:
        runs: run directories, evaluated by one protocol on the same test images.
        protocol: which results to take; None takes the first protocol by which all were evaluated.

    Returns:
        Plain JSON values, the rows of a table having the same keys:

        - ``runs``: a row per run, with its scores (shares of 1) and costs;
        - ``groups``: a row per configuration, its runs differing in nothing but the seed: mean and standard deviation
          over seeds (None for one seed);
        - ``pairs``: a row per pair of runs of different groups, a minus b: the difference upright with the exact
          McNemar test; the difference of the means over rotations with the 95 % interval of a bootstrap over images;
          the test of ``always_right``, whether an image is decided rightly in every rotation. Beside each ``_p`` stands
          a ``_p_holm``, corrected for there being many pairs. These account for the chance in the test images, not for
          the seeds.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: fewer than two runs, a run of segmentation, no common protocol, or other test images.
    """
    opened = open_runs(runs)
    for run in opened:
        run.check_classifies("compare")
    results = [run.results() for run in opened]
    protocol = protocol or _common_protocol(opened, results)
    entries = [results_by(run, protocol) for run in opened]
    scored = [_Scored(run, protocol) for run in opened]
    table = side_by_side(opened, entries, _SCORES, scored, _paired)
    return {"protocol": protocol, "data": entries[0]["data"], **table}


def open_runs(runs: Sequence[RunDir | str | os.PathLike[str]]) -> list[RunDir]:
    """Runs to compare. Raises ValueError for fewer than two, or one that is given twice."""
    opened = [run if isinstance(run, RunDir) else RunDir(run) for run in runs]
    if len(opened) < 2:
        raise ValueError(f"comparing needs at least two run directories, got {len(opened)}")
    if twice := [str(path) for path, count in Counter(run.path.resolve() for run in opened).items() if count > 1]:
        raise ValueError(f"{', '.join(twice)} is given more than once; a run is no second seed of itself")
    return opened


def side_by_side(
    runs: Sequence[RunDir],
    entries: Sequence[Mapping[str, Any]],
    scores: Sequence[str],
    scored: Sequence[_T],
    paired: Callable[[_T, _T], dict[str, Any]],
) -> dict[str, Any]:
    """The tables of :func:`compare`: ``groups``, ``runs`` and ``pairs``.

    Args:
        entries: what the evaluation of each run found, with ``data``, ``cost`` and the ``summary`` of the ``scores``.
        scored: of each run what ``paired`` tests, with ``labels``, the same in all runs.
        paired: what to say of a pair besides its differences.

    Raises:
        ValueError: the runs were evaluated on different test images.
    """
    for run, entry, one in zip(runs[1:], entries[1:], scored[1:], strict=True):
        alike = torch.equal(one.labels, scored[0].labels) and _same_files(run, runs[0])
        if _data(entry) != _data(entries[0]) or not alike:
            first = "others" if _data(entry) == _data(entries[0]) else _describe(entries[0])
            raise ValueError(
                f"{run.path} was evaluated on {_describe(entry)}, {runs[0].path} on {first}; "
                "compare runs on the same test images"
            )
    labels = labels_of([run.config for run in runs])
    rows = [
        {
            "run": str(run.path),
            "network": label,
            "seed": run.config.seed,
            **{name: entry["summary"][name] for name in scores},
            **{name: entry["cost"][name] for name in _COSTS},
        }
        for run, label, entry in zip(runs, labels, entries, strict=True)
    ]
    pairs = [
        {
            "a": str(runs[i].path),
            "b": str(runs[j].path),
            **{f"{name}_difference": rows[i][name] - rows[j][name] for name in ("upright", "rotated_mean")},
            **paired(scored[i], scored[j]),
        }
        for i, j in itertools.combinations(range(len(runs)), 2)
        if labels[i] != labels[j]
    ]
    for test in [key for key in pairs[0] if key.endswith("_p")] if pairs else ():
        for pair, adjusted in zip(pairs, holm([pair[test] for pair in pairs]), strict=True):
            pair[f"{test}_holm"] = adjusted
    groups = [_group([row for row in rows if row["network"] == label], scores) for label in dict.fromkeys(labels)]
    return {"groups": groups, "runs": rows, "pairs": pairs}


def results_by(run: RunDir, protocol: str) -> dict[str, Any]:
    """What the evaluation of a run by a protocol found.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: unknown protocol, or the run was not evaluated by it, by another version of isoconv, or with another
            mask than the protocol has for this network, or before its training went on.
    """
    check_protocol(protocol)
    results, remedy = run.results(), f"isoconv evaluate {run.path} --protocol {protocol}"
    if protocol not in results:
        raise ValueError(f"{run.path} was not evaluated by protocol {protocol!r}; do that first: {remedy}")
    entry = results[protocol]
    check_entry(run, entry, _SCORES, remedy)
    masked = is_masked(protocol, run.model_info["masked"])
    if entry.get("masked", is_masked(protocol, True)) != masked:
        wanted, shown = ("masked", "whole") if masked else ("whole", "masked")
        raise ValueError(
            f"{run.path} was evaluated by protocol {protocol!r} on {shown} images, its network was trained on {wanted} "
            f"ones; do it again: {remedy}"
        )
    return entry


def check_entry(run: RunDir, entry: Mapping[str, Any], scores: Sequence[str], remedy: str) -> None:
    """Raises ValueError, with the command to do it again, for an evaluation that lacks scores or costs, or is of the
    network that the run had before its training went on."""
    found = {*entry.get("summary", ()), *entry.get("cost", ())}
    if missing := [name for name in (*scores, *_COSTS) if name not in found]:
        raise ValueError(
            f"{run.path} was evaluated by another isoconv version, without {', '.join(missing)}; do it again: {remedy}"
        )
    best = run.model_info["epoch"]
    if (measured := entry.get("training", {}).get("best_epoch", best)) != best:
        raise ValueError(
            f"{run.path} was evaluated when epoch {measured} was its best, which now is {best}; do it again: {remedy}"
        )


def labels_of(configs: Sequence[TrainConfig]) -> list[str]:
    """What to call each run among the others: its model, and what differs between them and is not the default, but for
    seed and place."""
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    ignored = {"model", "seed", "out", "data_root", "device", "threads"}
    values = [{name: getattr(config, name) for name in defaults if name not in ignored} for config in configs]
    differing = [name for name in values[0] if len({v[name] for v in values}) > 1]
    return [
        " ".join([config.model, *(f"{name}={_text(v[name])}" for name in differing if v[name] != defaults[name])])
        for config, v in zip(configs, values, strict=True)
    ]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load_predictions(run: RunDir) -> dict[str, np.ndarray]:
    """All arrays of ``predictions.npz``, by protocol: ``{protocol}_logits`` (positions, N, K), ``_labels``,
    ``_conditions``; empty if the run was not evaluated. Raises ValueError if the file is damaged."""
    return run.arrays("predictions.npz")


class _Scored:
    """What the paired tests need of an evaluated run."""

    def __init__(self, run: RunDir, protocol: str) -> None:
        arrays = load_predictions(run)
        if f"{protocol}_logits" not in arrays:
            raise ValueError(f"{run.path}/predictions.npz has no protocol {protocol!r}; evaluate the run again")
        task = run.model_info["task"]
        positions = conditions(protocol, task["dims"], run.model_info["masked"])
        if arrays[f"{protocol}_conditions"].tolist() != [position.name for position in positions]:
            raise ValueError(
                f"{run.path} was evaluated in other positions than protocol {protocol!r} has now; evaluate it again"
            )
        rotated = [i for i, position in enumerate(positions) if position.group == "rotation"]
        logits = torch.from_numpy(arrays[f"{protocol}_logits"])
        self.labels = torch.from_numpy(arrays[f"{protocol}_labels"])
        self.upright = correct(task["kind"], logits[0], self.labels)
        self.always = correct(task["kind"], logits[rotated], self.labels).all(0)
        self.rotated_mean = bootstrap(task["kind"], logits[rotated], self.labels)[0].mean(1)  # (resamples,)


def _paired(a: _Scored, b: _Scored) -> dict[str, Any]:
    return {
        **{f"upright_{name}": value for name, value in mcnemar(a.upright, b.upright).items()},
        "rotated_mean_difference_ci": interval((a.rotated_mean - b.rotated_mean)[:, None])[0],
        **{f"always_right_{name}": value for name, value in mcnemar(a.always, b.always).items()},
    }


def _group(rows: Sequence[dict[str, Any]], scores: Sequence[str]) -> dict[str, Any]:
    group: dict[str, Any] = {"network": rows[0]["network"], "seeds": [row["seed"] for row in rows]}
    for name in (*scores, "training_seconds"):
        values = [row[name] for row in rows]
        group[name] = mean(values)
        group[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
    return group | {name: rows[0][name] for name in _COSTS if name != "training_seconds"}


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
    return f"{count} test images of {name} at {size} pixels"
