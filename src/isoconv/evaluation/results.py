"""What the evaluation of a run left behind: read, and checked against the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoconv.evaluation.protocols import Condition, check_protocol, conditions, is_masked
from isoconv.runs import RunDir

__all__ = ["COSTS", "Recorded", "load_predictions", "recorded", "results_by"]

COSTS = ("parameters", "multiply_adds_dense", "multiply_adds_banded", "training_seconds")


class Recorded(NamedTuple):
    """What a task recorded of every test image in the positions of a protocol: records (positions, N, ...), and of the
    targets (N, ...) what :meth:`isoconv.tasks.base.Task.identity` keeps."""

    positions: tuple[Condition, ...]
    records: Tensor
    targets: Tensor


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
    _check_entry(run, entry, [score.key for score in run.task.scores], remedy)
    masked = is_masked(protocol, run.masked)
    if entry["masked"] != masked:
        wanted, shown = ("masked", "whole") if masked else ("whole", "masked")
        raise ValueError(
            f"{run.path} was evaluated by protocol {protocol!r} on {shown} images, its network was trained on {wanted} "
            f"ones; do it again: {remedy}"
        )
    positions = [(position.name, position.group) for position in conditions(protocol, run.task.info.dims, run.masked)]
    if [(row["name"], row["group"]) for row in entry["conditions"]] != positions:
        where = f"{run.path / 'results.json'}, protocol {protocol!r},"
        raise ValueError(f"{where} has other positions than the protocol has now; do it again: {remedy}")
    return entry


def _check_entry(run: RunDir, entry: Mapping[str, Any], scores: Sequence[str], remedy: str) -> None:
    found = {*entry, *entry.get("summary", ()), *entry.get("cost", ())}
    if missing := [name for name in ("masked", "data", "conditions", *scores, *COSTS) if name not in found]:
        raise ValueError(
            f"{run.path} was evaluated by another isoconv version, without {', '.join(missing)}; do it again: {remedy}"
        )
    best = run.model_info["epoch"]
    if (measured := entry.get("training", {}).get("best_epoch", best)) != best:
        raise ValueError(
            f"{run.path} was evaluated when epoch {measured} was its best, which now is {best} by model.json; do it "
            f"again: {remedy}"
        )


def load_predictions(run: RunDir) -> dict[str, np.ndarray]:
    """All arrays of ``predictions.npz``, by protocol: ``{protocol}_logits`` (positions, N, K) or what else the task
    calls its records, ``_labels``, ``_conditions``; empty if the run was not evaluated. Raises ValueError if the file
    is damaged."""
    return run.arrays("predictions.npz")


def recorded(run: RunDir, protocol: str) -> Recorded:
    """What was recorded of the test images of a run by a protocol.

    Raises:
        ValueError: nothing was, or the file is damaged, or holds other positions than the protocol has now, or what
            cannot be.
    """
    arrays, task = load_predictions(run), run.task
    path, again = run.path / "predictions.npz", f"do it again: isoconv evaluate {run.path} --protocol {protocol}"
    names = [f"{protocol}_{name}" for name in (task.record_name, "labels", "conditions")]
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} has no {', '.join(missing)}; {again}")
    records, targets, shown = (arrays[name] for name in names)
    positions = conditions(protocol, task.info.dims, run.masked)
    if shown.tolist() != [position.name for position in positions]:
        raise ValueError(f"{run.path} was evaluated in other positions than protocol {protocol!r} has now; {again}")
    wrong = _misfit(records, targets, len(positions)) or task.check_records(records, targets)
    if wrong:
        raise ValueError(f"{path}: {names[0]} cannot be of this run ({wrong}); {again}")
    return Recorded(positions, torch.from_numpy(records), torch.from_numpy(targets))


def _misfit(records: np.ndarray, targets: np.ndarray, positions: int) -> str | None:
    if records.dtype.kind not in "if" or targets.dtype.kind not in "if" or targets.ndim < 1:
        return f"{records.dtype} {records.shape} for labels {targets.dtype} {targets.shape}"
    if records.ndim < 3 or records.shape[:2] != (positions, len(targets)):
        return f"shape {records.shape} for {positions} positions and {len(targets)} labels"
    return None if np.isfinite(records).all() else "values that are not finite"
