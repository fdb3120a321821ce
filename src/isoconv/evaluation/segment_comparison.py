"""Evaluated runs of segmentation side by side: what :mod:`isoconv.evaluation.comparison` is for those that classify."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoconv.evaluation.comparison import check_entry, open_runs, side_by_side
from isoconv.evaluation.protocols import AS_IS, conditions
from isoconv.runs import RunDir
from isoconv.tasks.dice import bootstrap, foreground, permutation_test
from isoconv.tasks.metrics import interval

__all__ = ["DICE", "compare", "dice_results", "load_counts"]

DICE = {
    "upright": "upright",
    "upright, whole image": "upright_unmasked",
    "rotated, mean": "rotated_mean",
    "rotated, worst": "rotated_worst",
    "right angles": "right_angles",
    "flips": "flips",
}
"""What to call the scores in the summary of :func:`isoconv.evaluation.segmentation.evaluate`."""


def compare(runs: Sequence[RunDir | str | os.PathLike[str]]) -> dict[str, Any]:
    """Set evaluated runs of segmentation side by side.

    Args:
        runs: run directories, evaluated on the same test images.

    Returns:
        Plain JSON values, as of :func:`isoconv.evaluation.compare`; scores are pooled Dice, averaged over all classes
        but the background. In ``pairs`` the differences upright and of the means over rotations have the 95 % interval
        of a bootstrap over images and the p of :func:`isoconv.tasks.dice.permutation_test`. These account for the
        chance in the test images, not for the seeds.

    Raises:
        FileNotFoundError: a run was not evaluated, or by a version of isoconv that kept no counts of each image.
        ValueError: fewer than two runs, a run that classifies, other test images, or nothing there to have a Dice.
    """
    opened = open_runs(runs)
    for run in opened:
        run.check_segments("compare")
    entries = [dice_results(run) for run in opened]
    for run, entry in zip(opened, entries, strict=True):
        if nowhere := [name for name in DICE.values() if entry["summary"][name] is None]:
            raise ValueError(f"{run.path} has no Dice {nowhere[0]}: masks and answers show nothing but background")
    scored = [_Scored(run) for run in opened]
    table = side_by_side(opened, entries, tuple(DICE.values()), scored, _paired)
    return {"protocol": "standard", "data": entries[0]["data"], **table}


def dice_results(run: RunDir) -> dict[str, Any]:
    """What the evaluation of a run of segmentation found.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: it was evaluated by another version of isoconv, or before its training went on.
    """
    entry = run.segmentation_results()
    check_entry(run, entry, tuple(DICE.values()), f"isoconv segment evaluate {run.path}")
    return entry


def load_counts(run: RunDir) -> Tensor:
    """Counts of an evaluated run, int64 (positions, N, K, 3), see :mod:`isoconv.tasks.dice`; from ``segmentation.npz``.

    Raises:
        FileNotFoundError: the run was not evaluated, or by a version of isoconv that kept none.
        ValueError: the file is damaged, or has other positions than the protocol has now.
    """
    arrays, task = run.arrays("segmentation.npz"), run.model_info["task"]
    path, remedy = run.path / "segmentation.npz", f"evaluate again: isoconv segment evaluate {run.path}"
    if not arrays:
        raise FileNotFoundError(f"{path}, the counts of each image, does not exist; {remedy}")
    if missing := {"counts", "conditions"} - arrays.keys():
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; {remedy}")
    names = [position.name for position in conditions("standard", task["dims"])]
    if arrays["conditions"].tolist() != names:
        raise ValueError(f"{run.path} was evaluated in other positions than protocol 'standard' has now; {remedy}")
    counts = arrays["counts"]
    shape = (len(names), *counts.shape[1:2], len(task["labels"]), 3)
    if counts.dtype != np.int64 or counts.shape != shape or not _possible(counts):
        raise ValueError(f"{path} holds no counts (positions, images, classes, 3) of this run; {remedy}")
    return torch.from_numpy(counts)


def _possible(counts: np.ndarray) -> bool:
    overlap, found, true = np.moveaxis(counts, -1, 0)
    return bool(((overlap >= 0) & (overlap <= np.minimum(found, true))).all())


class _Scored:
    """What the paired tests need of an evaluated run."""

    def __init__(self, run: RunDir) -> None:
        positions = conditions("standard", run.model_info["task"]["dims"])
        counts = load_counts(run)
        self.labels = counts[positions.index(AS_IS), ..., 2]  # pixels of each class: no two test sets share them all
        turned = [i for i, position in enumerate(positions) if position.group == "rotation"]
        self.counts = counts[[0, *turned]]
        self.resampled = _upright_and_rotated(bootstrap(self.counts))


def _paired(a: _Scored, b: _Scored) -> dict[str, Any]:
    upright, rotated = interval(a.resampled - b.resampled)
    upright_p, rotated_p = permutation_test(a.counts, b.counts, _upright_and_rotated)
    return {
        "upright_difference_ci": upright,
        "upright_p": upright_p,
        "rotated_mean_difference_ci": rotated,
        "rotated_mean_p": rotated_p,
    }


def _upright_and_rotated(dice: Tensor) -> Tensor:
    """Dice (..., 1 + rotations, K), the upright position first, to the two scores (..., 2)."""
    each = foreground(dice)
    return torch.stack([each[..., 0], each[..., 1:].nanmean(-1)], dim=-1)
