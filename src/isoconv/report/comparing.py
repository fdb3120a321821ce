"""Who wins where, by how much, at what cost: what the report says of the gathered results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from torch import Tensor

from isoconv.figures.curves import Point, curve_of
from isoconv.report.columns import COSTS
from isoconv.report.scores import Entry, Gathered
from isoconv.report.statistics import (
    Difference,
    average_ranks,
    cliques,
    critical_difference,
    friedman,
    paired_difference,
)
from isoconv.tasks import Score
from isoconv.tasks.metrics import holm

__all__ = [
    "LEVEL",
    "POSITIONS",
    "beside_differences",
    "best_in",
    "best_of_each",
    "by_kind",
    "cost_ratios",
    "curve",
    "headlines",
    "pairs",
    "ranking",
    "tally",
    "verdict",
]

LEVEL = 0.05
POSITIONS = {"upright": "upright", "rotated": "rotated_mean"}


def headlines(gathered: Gathered) -> list[list[dict[str, Any]]]:
    """A row per data set on which both contestants of its pair have run: ``data``, its ``task``, the entries ``a`` and
    ``b``, and for upright and rotated images their difference. Rows of the same contestants and the same main score are
    together. p is corrected over all rows and both positions."""
    both = [(data, pair[0], pair[1]) for data in gathered.entries if len(pair := gathered.pair(data)) == 2]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in _compared(gathered, both):
        groups.setdefault((row["a"].contestant, row["b"].contestant, row["task"].main), []).append(row)
    return list(groups.values())


def pairs(gathered: Gathered) -> list[dict[str, Any]]:
    """Rows as those of :func:`headlines` for every two contestants, p corrected over all of them."""
    every = [(data, a, b) for data, entries in gathered.entries.items() for a, b in itertools.combinations(entries, 2)]
    return _compared(gathered, every)


def _compared(gathered: Gathered, pairs: Iterable[tuple[str, Entry, Entry]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "data": data,
            "task": gathered.tasks[data],
            "a": a,
            "b": b,
            **{name: _difference(a.images(name), b.images(name)) for name in POSITIONS},
        }
        for data, a, b in pairs
    ]
    rows = [row for row in rows if None not in (row["upright"], row["rotated"])]
    adjusted = iter(holm([row[name].p for row in rows for name in POSITIONS]))
    return [{**row, **{name: row[name]._replace(p=next(adjusted)) for name in POSITIONS}} for row in rows]


def _difference(a: Tensor, b: Tensor) -> Difference | None:
    """Of scores of images (N,), over those images that have both; None if there are none."""
    both = ~(a.isnan() | b.isnan())
    return paired_difference(a[both], b[both]) if both.any() else None


def tally(rows: Sequence[dict[str, Any]], position: str) -> dict[str, Any]:
    """Of rows of the same main score: data sets ``won``, ``lost`` and ``undecided`` by a, and the ``mean``
    difference."""
    verdicts = [verdict(row[position], row["task"].main) for row in rows]
    return {
        "won": verdicts.count(1),
        "lost": verdicts.count(-1),
        "undecided": verdicts.count(0),
        "mean": mean(row[position].mean for row in rows),
        "lowest": min(rows, key=lambda row: row[position].mean),
        "highest": max(rows, key=lambda row: row[position].mean),
    }


def beside_differences(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A score of a minus that of b on each data set that has one. There is no test of it here."""
    scores = [(row["a"].mean(name), row["b"].mean(name)) for row in rows]
    return [a - b for a, b in scores if a is not None and b is not None]


def verdict(difference: Difference, score: Score) -> int:
    """1: a is better, -1: b is, 0: chance in the test images explains the difference."""
    return 0 if difference.p >= LEVEL else 1 if score.sign * difference.mean > 0 else -1


def best_of_each(gathered: Gathered) -> list[dict[str, Any]]:
    """For each data set and position, who leads and by how much before the second; nothing where nobody has a score."""
    rows = []
    for data, entries in gathered.entries.items():
        for position in POSITIONS:
            sign = gathered.tasks[data].main.sign
            known = [(value, entry) for entry in entries if (value := entry.leading(position)) is not None]
            order = sorted(known, key=lambda pair: -sign * pair[0])
            if not order:
                continue
            (score, best), *others = order
            rows.append(
                {
                    "data": data,
                    "position": position,
                    "best": best,
                    "score": score,
                    "second": others[0][1] if others else None,
                    "lead": sign * (score - others[0][0]) if others else None,
                }
            )
    return rows


def best_in(entries: Sequence[Entry], score: Score) -> list[int]:
    """Indices of the entries whose mean of a score is the best; none of a single entry."""
    values = {entry.index: score.sign * value for entry in entries if (value := entry.mean(score.key)) is not None}
    return [index for index, value in values.items() if value == max(values.values())] if len(entries) > 1 else []


_LEAST = 1e-3  # a training of tiny networks can take no time that was seen


def cost_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Costs of a over those of b: geometric mean, least and largest over data sets."""
    result = {}
    for name in COSTS:
        ratios = [max(row["a"].cost(name), _LEAST) / max(row["b"].cost(name), _LEAST) for row in rows]
        result[name] = math.exp(mean(map(math.log, ratios))), min(ratios), max(ratios)
    return result


def ranking(gathered: Gathered, data: Sequence[str], position: str) -> dict[str, Any] | None:
    """Average ranks over data sets, of the contestants that have a score on all of them; None for fewer than two of
    either."""
    known = [[e for e in gathered.entries[each] if e.leading(position) is not None] for each in data]
    everywhere = set.intersection(*({e.contestant for e in entries} for entries in known))
    columns = [[entry for entry in entries if entry.contestant in everywhere] for entries in known]
    if len(columns) < 2 or len(everywhere) < 2:
        return None
    scores = [[entry.task.main.sign * (entry.leading(position) or 0.0) for entry in row] for row in columns]
    ranks = average_ranks(scores)
    difference = critical_difference(len(ranks), len(columns))
    return {
        "position": position,
        "entries": columns[0],
        "ranks": ranks,
        "datasets": len(columns),
        "difference": difference,
        "spans": cliques(ranks, difference),
        "friedman": friedman(scores),
        "left_out": [
            title
            for name, title in {e.contestant: e.title for each in data for e in gathered.entries[each]}.items()
            if name not in everywhere
        ],
    }


def by_kind(gathered: Gathered) -> dict[str, list[str]]:
    """Data sets by the kind of work that they are for."""
    kinds: dict[str, list[str]] = {}
    for data in gathered.entries:
        kinds.setdefault(gathered.tasks[data].name, []).append(data)
    return kinds


def curve(entry: Entry) -> list[Point]:
    """The main score against the angle, all seeds together."""
    return curve_of([run.positions for run in entry.runs], entry.task.main.key)
