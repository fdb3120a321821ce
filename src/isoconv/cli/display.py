"""What the command line prints on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoconv._extras import require
from isoconv.evaluation.protocols import DISTURBANCES

if TYPE_CHECKING:
    from isoconv.runs import RunDir

__all__ = [
    "percent",
    "points",
    "show",
    "show_best_epoch",
    "show_comparison",
    "show_scores",
    "show_table",
    "write_json",
]

_SCORES = {
    "upright": "upright",
    "rotated, mean": "rotated_mean",
    "rotated, worst": "rotated_worst",
    "right angles": "right_angles",
    "flips": "flips",
    "same answer as upright": "consistency",
}
_COSTS = {
    "parameters": "parameters",
    "multiply-adds, one per tap": "multiply_adds_dense",
    "multiply-adds, one per band": "multiply_adds_banded",
    "training, s": "training_seconds",
}


def write_json(value: Any) -> None:
    """Print strict JSON (no NaN)."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def show(values: Mapping[str, Any], as_json: bool, title: str) -> None:
    """Print named values, with a heading over them."""
    if as_json:
        write_json(values)
    else:
        show_table({"": name, title: value} for name, value in values.items())


def show_best_epoch(run: RunDir, as_json: bool) -> None:
    """Print what `metrics.jsonl` says of the epoch whose network was kept; people count from 1, as the log does."""
    best = run.metrics()[run.model_info["epoch"]]
    show(best if as_json else {**best, "epoch": best["epoch"] + 1}, as_json, title=f"best epoch of {run.path}")


def show_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows, which have the same keys; nothing if there is none."""
    from rich.markup import escape

    if not (rows := list(rows)):
        return
    table = require("rich.table", extra="study").Table()
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    require("rich.console", extra="study").Console().print(table)


def show_scores(result: Mapping[str, Any], title: str) -> None:
    """Print the summary of what :func:`isoconv.evaluation.evaluate` found: accuracies, with 95 % intervals."""
    summary = result["summary"]
    rows = {name: percent(summary[key], interval=summary.get(f"{key}_ci")) for name, key in _SCORES.items()}
    rows |= {f"rotated and {group}": percent(summary[group]) for group in DISTURBANCES if group in summary}
    rows["rotated, worst"] += f" at {summary['rotated_worst_at']}"
    costs = {name: result["cost"][key] for name, key in _COSTS.items()}
    show({**rows, "test images": result["data"]["test_images"], **costs}, as_json=False, title=title)
    for note in result["notes"]:
        sys.stderr.write(f"note: {note}\n")


def _mcnemar(pair: Mapping[str, Any]) -> dict[str, str]:
    return {
        "points upright, a - b": points(pair["upright_difference"]),
        "McNemar's p (Holm)": f"{pair['upright_p_holm']:.2g}",
        "points rotated": points(pair["rotated_mean_difference"], pair["rotated_mean_difference_ci"]),
    }


def show_comparison(
    comparison: Mapping[str, Any],
    title: str = "",
    scores: Mapping[str, str] = _SCORES,
    tests: Callable[[Mapping[str, Any]], dict[str, str]] = _mcnemar,
) -> None:
    """Print what :func:`isoconv.evaluation.compare` found: for each group a column of mean scores ± deviation over
    seeds, for each pair a row of paired tests.

    Args:
        scores: keys of the scores, by the name to show.
        tests: the cells to show of a pair, a minus b.
    """
    groups = comparison["groups"]
    rows = [[name, *(percent(g[key], sd=g[f"{key}_sd"]) for g in groups)] for name, key in scores.items()]
    rows += [[name, *(f"{g[key]:,.0f}" for g in groups)] for name, key in _COSTS.items()]
    heads = [title, *map(_label, groups)]
    show_table(dict(zip(heads, row, strict=True)) for row in rows)
    paths = [row["run"] for row in comparison["runs"]]
    names = {path: Path(path).name for path in paths}
    if len(set(names.values())) < len(names):
        names = {path: path for path in paths}
    show_table({**{name: names[pair[name]] for name in "ab"}, **tests(pair)} for pair in comparison["pairs"])


def _label(group: Mapping[str, Any]) -> str:
    seeds: Sequence[int] = group["seeds"]
    return group["network"] if len(seeds) == 1 else f"{group['network']}, {len(seeds)} seeds"


def percent(share: float | None, interval: Sequence[float] | None = None, sd: float | None = None) -> str:
    """A share of 1 with its interval and deviation, or ``-``."""
    if share is None:
        return "-"
    text = f"{100 * share:.1f} %"
    if interval is not None:
        text += f"  ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return text if sd is None else f"{text} ± {100 * sd:.1f}"


def points(difference: float, interval: Sequence[float] | None = None) -> str:
    """A difference of shares in percentage points, with its interval."""
    text = f"{100 * difference:+.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
