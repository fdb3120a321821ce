"""Who wins where, by how much, at what cost: what the report says of the gathered results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from isoconv.figures.curves import Point, curve_of
from isoconv.report.scores import Entry, Gathered
from isoconv.report.statistics import (
    Difference,
    average_ranks,
    cliques,
    critical_difference,
    friedman,
    paired_difference,
)
from isoconv.tasks.metrics import holm

__all__ = [
    "COSTS",
    "LEVEL",
    "POSITIONS",
    "auc_differences",
    "best_of_each",
    "cost_ratios",
    "curve",
    "headline",
    "pairs",
    "ranking",
    "tally",
    "verdict",
]

LEVEL = 0.05
POSITIONS = {"upright": "upright", "rotated": "rotated_mean"}
COSTS = ("parameters", "multiply_adds_banded", "multiply_adds_dense", "training_seconds")


def headline(gathered: Gathered) -> list[dict[str, Any]]:
    """A row per data set on which both contestants of the headline have run: ``data``, the entries ``a`` and ``b``, and
    for upright and rotated images their difference; p is corrected over all rows and both positions."""
    rows = [
        {
            "data": data,
            "a": a,
            "b": b,
            **{name: paired_difference(a.images(name), b.images(name)) for name in POSITIONS},
        }
        for data in gathered.entries
        if (a := gathered.entry(data, gathered.study.headline[0]))
        and (b := gathered.entry(data, gathered.study.headline[1]))
        and a is not b
    ]
    return _corrected(rows)


def pairs(gathered: Gathered) -> list[dict[str, Any]]:
    """As :func:`headline` for every two contestants, p corrected over all of them."""
    return _corrected(
        [
            {
                "data": data,
                "a": a,
                "b": b,
                **{name: paired_difference(a.images(name), b.images(name)) for name in POSITIONS},
            }
            for data, entries in gathered.entries.items()
            for a, b in itertools.combinations(entries, 2)
        ]
    )


def tally(rows: Sequence[dict[str, Any]], position: str) -> dict[str, Any]:
    """Of rows as those of :func:`headline`: data sets ``won``, ``lost`` and ``undecided`` by a, and the ``mean``
    difference."""
    verdicts = [verdict(row[position]) for row in rows]
    return {
        "won": verdicts.count(1),
        "lost": verdicts.count(-1),
        "undecided": verdicts.count(0),
        "mean": mean(row[position].mean for row in rows),
        "lowest": min(rows, key=lambda row: row[position].mean),
        "highest": max(rows, key=lambda row: row[position].mean),
    }


def auc_differences(rows: Sequence[dict[str, Any]], position: str) -> list[float]:
    """AUC of a minus that of b on each data set of :func:`headline` that has one. There is no test of it here."""
    scores = [(row["a"].mean(f"{position}_auc"), row["b"].mean(f"{position}_auc")) for row in rows]
    return [a - b for a, b in scores if a is not None and b is not None]


def verdict(difference: Difference) -> int:
    """1: a is better, -1: b is, 0: chance in the test images explains the difference."""
    return 0 if difference.p >= LEVEL else 1 if difference.mean > 0 else -1


def best_of_each(gathered: Gathered) -> list[dict[str, Any]]:
    """For each data set and position, who leads and by how much before the second."""
    rows = []
    for data, entries in gathered.entries.items():
        for position in POSITIONS:
            score = {entry.index: entry.accuracy(position) for entry in entries}
            order = sorted(entries, key=lambda entry: -score[entry.index])
            second = order[1] if len(order) > 1 else None
            rows.append(
                {
                    "data": data,
                    "position": position,
                    "best": order[0],
                    "score": score[order[0].index],
                    "second": second,
                    "lead": None if second is None else score[order[0].index] - score[second.index],
                }
            )
    return rows


_LEAST = 1e-3  # a training of tiny networks can take no time that was seen


def cost_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Costs of a over those of b: geometric mean, least and largest over data sets."""
    result = {}
    for name in COSTS:
        ratios = [max(row["a"].cost(name), _LEAST) / max(row["b"].cost(name), _LEAST) for row in rows]
        result[name] = math.exp(mean(map(math.log, ratios))), min(ratios), max(ratios)
    return result


def ranking(gathered: Gathered, position: str) -> dict[str, Any] | None:
    """Average ranks over the data sets, of the contestants that have run on all of them; None for fewer than two of
    either."""
    everywhere = set.intersection(*({e.contestant for e in entries} for entries in gathered.entries.values()))
    columns = [[entry for entry in entries if entry.contestant in everywhere] for entries in gathered.entries.values()]
    if len(columns) < 2 or len(everywhere) < 2:
        return None
    scores = [[entry.accuracy(position) for entry in row] for row in columns]
    ranks = average_ranks(scores)
    difference = critical_difference(len(ranks), len(columns))
    return {
        "entries": columns[0],
        "ranks": ranks,
        "datasets": len(columns),
        "difference": difference,
        "spans": cliques(ranks, difference),
        "friedman": friedman(scores),
        "left_out": [
            title
            for name, title in {e.contestant: e.title for row in gathered.entries.values() for e in row}.items()
            if name not in everywhere
        ],
    }


def curve(entry: Entry) -> list[Point]:
    """Accuracy against the angle, all seeds together."""
    return curve_of([run.positions for run in entry.runs], "accuracy")


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    adjusted = iter(holm([row[name].p for row in rows for name in POSITIONS]))
    return [{**row, **{name: row[name]._replace(p=next(adjusted)) for name in POSITIONS}} for row in rows]
