"""What all positions of a protocol together say of one score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from isoconv.tasks.metrics import interval, number
from isoconv.tasks.scores import Score

__all__ = ["Position", "indices", "mean_of", "summarise"]

_TURNED = ("rotation", "cube")
_PLAIN = (*_TURNED, "flip", "unmasked")


class Position(Protocol):
    """What a score has to know of a position, see :class:`isoconv.evaluation.protocols.Condition`."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def angle(self) -> float | None: ...
    @property
    def right_angle(self) -> bool: ...


def indices(positions: Sequence[Position], *groups: str) -> list[int]:
    """The places of the positions of some groups."""
    return [i for i, position in enumerate(positions) if position.group in groups]


def summarise(
    positions: Sequence[Position],
    rows: Sequence[Mapping[str, Any]],
    resampled: Tensor,
    score: Score,
    beside: Sequence[Score] = (),
    decimals: int | None = None,
) -> dict[str, Any]:
    """One score over groups of positions, the upright one first.

    Args:
        rows: of each position the value of ``score`` under its key, None where there is none, and of the scores
            ``beside`` it.
        resampled: (resamples, positions), what a bootstrap over images makes of ``score``.
        decimals: round each value before averaging, as the official code does (in percent for a share).

    Returns:
        Plain JSON values: ``upright``, ``upright_unmasked`` (where the protocol has that position), ``rotated_mean``,
        ``right_angles`` (without the identity), ``flips`` and any further group of positions by its name, each with a
        95 % interval under ``_ci``; ``rotated_std``, ``rotated_worst``, ``rotated_worst_at``; ``drop``, by how much the
        mean over rotations is worse than upright; and of each score beside it its value upright and the means over
        rotations and further groups, such as ``upright_auc``, ``rotated_auc``, ``noisy_auc``.
    """
    found = [math.nan if row[score.key] is None else row[score.key] for row in rows]
    values = torch.tensor(found, dtype=torch.float64)
    if decimals is not None:
        scale = 100 if score.unit == "%" else 1
        values = (scale * values).round(decimals=decimals) / scale
    rotated, turned = indices(positions, "rotation"), indices(positions, *_TURNED)
    further = [group for group in dict.fromkeys(p.group for p in positions) if group not in _PLAIN]
    groups = {
        "upright": [0],
        **{positions[i].name: [i] for i in indices(positions, "unmasked")},
        "rotated_mean": rotated,
        "right_angles": [i for i, position in enumerate(positions) if position.right_angle],
        "flips": indices(positions, "flip"),
        **{group: indices(positions, group) for group in further},
    }
    summary: dict[str, Any] = {}
    samples = {name: resampled[:, chosen].nanmean(1) for name, chosen in groups.items()}
    for name, chosen in groups.items():
        summary[name] = number(values[chosen].nanmean().item())
        summary[f"{name}_ci"] = _interval(samples[name])
    known = [i for i in turned if not values[i].isnan()]
    worst = min(known, key=lambda i: score.sign * values[i], default=None)
    summary |= {
        "rotated_std": number(values[rotated].std(correction=0).item()),
        "rotated_worst": None if worst is None else values[worst].item(),
        "rotated_worst_at": None if worst is None else positions[worst].name,
        "drop": number(score.sign * (values[0] - values[rotated].nanmean()).item()),
        "drop_ci": _interval(score.sign * (samples["upright"] - samples["rotated_mean"])),
    }
    for other in beside:
        summary[f"upright_{other.key}"] = rows[0][other.key]
        for name, chosen in {"rotated": rotated, **{group: groups[group] for group in further}}.items():
            summary[f"{name}_{other.key}"] = mean_of([rows[i][other.key] for i in chosen])
    return summary


def mean_of(values: Sequence[float | None]) -> float | None:
    """None if one of the values is."""
    return None if None in values else sum(values) / len(values)  # type: ignore[arg-type]


def _interval(samples: Tensor) -> list[float] | None:
    if samples.isnan().all():
        return None
    ((low, high),) = interval(samples[:, None])
    return [low, high]
