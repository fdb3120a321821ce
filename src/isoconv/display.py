"""What the command line prints on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoconv._extras import require
from isoconv.protocols import DISTURBANCES

if TYPE_CHECKING:
    from isoconv.runs import RunDir

__all__ = ["show", "show_best_epoch", "show_comparison", "show_scores", "show_table", "write_json"]

_SCORES = {
    "upright": "upright",
    "rotated, mean": "rotated_mean",
    "rotated, worst": "rotated_worst",
    "right angles": "right_angles",
    "flips": "flips",
    "same answer as upright": "consistency",
}
_COSTS = ("parameters", "multiply_adds_dense", "multiply_adds_banded", "training_seconds")
_COSTS = ("parameters", "multiply_adds_dense", "multiply_adds_banded", "training_seconds")


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
    """Print what `metrics.jsonl` says of the epoch whose network was kept."""
    show(run.metrics()[run.model_info["epoch"]], as_json, title=f"best epoch of {run.path}")


def show_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows, which have the same keys."""
    from rich.markup import escape

    rows = list(rows)
    table = require("rich.table", extra="study").Table()
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    require("rich.console", extra="study").Console().print(table)


def show_scores(result: Mapping[str, Any], title: str) -> None:
    """Print the summary of what :func:`isoconv.evaluation.evaluate` found: accuracies, with 95 % intervals."""
    summary = result["summary"]
    rows = {name: _percent(summary[key], interval=summary.get(f"{key}_ci")) for name, key in _SCORES.items()}
    rows |= {f"rotated and {group}": _percent(summary[group]) for group in DISTURBANCES if group in summary}
    rows["rotated, worst"] += f" at {summary['rotated_worst_at']}"
    show({**rows, "test images": result["data"]["test_images"], **result["cost"]}, as_json=False, title=title)
    for note in result["notes"]:
        sys.stderr.write(f"note: {note}\n")


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the groups of :func:`isoconv.comparison.compare`, a column each: mean accuracies ± deviation over seeds."""
    groups = comparison["groups"]
    scores = [[name, *(_percent(g[key], sd=g[f"{key}_sd"]) for g in groups)] for name, key in _SCORES.items()]
    costs = [[name.replace("_", " "), *(f"{g[name]:,.0f}" for g in groups)] for name in _COSTS]
    heads = ["", *map(_label, groups)]
    show_table(dict(zip(heads, row, strict=True)) for row in scores + costs)
    show_table(map(_pair, comparison["pairs"]))


def _pair(pair: Mapping[str, Any]) -> dict[str, str]:
    """Paired tests of two runs, a minus b."""
    low, high = pair["rotated_mean_difference_ci"]
    return {
        "a": Path(pair["a"]).name,
        "b": Path(pair["b"]).name,
        "points upright, a - b": f"{100 * pair['upright_difference']:+.1f}",
        "McNemar's p": f"{pair['upright_p']:.2g}",
        "points rotated": f"{100 * pair['rotated_mean_difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
    }


def _label(group: Mapping[str, Any]) -> str:
    seeds: Sequence[int] = group["seeds"]
    return group["network"] if len(seeds) == 1 else f"{group['network']}, {len(seeds)} seeds"


def _percent(share: float, interval: Sequence[float] | None = None, sd: float | None = None) -> str:
    text = f"{100 * share:.1f} %"
    if interval is not None:
        text += f"  ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return text if sd is None else f"{text} ± {100 * sd:.1f}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
