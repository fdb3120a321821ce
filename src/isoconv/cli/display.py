"""What the command line prints on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv._text import printable

if TYPE_CHECKING:
    from isoconv.runs import RunDir
    from isoconv.tasks import Score, Task

__all__ = [
    "show",
    "show_best_epoch",
    "show_comparison",
    "show_lines",
    "show_next",
    "show_scores",
    "show_table",
    "write_json",
]

log = logging.getLogger(__name__)

_COSTS = {
    "parameters": "parameters",
    "multiply-adds, one per tap": "multiply_adds_dense",
    "multiply-adds, one per band": "multiply_adds_banded",
    "training, s": "training_seconds",
}
_POSITIONS = {"upright": "upright", "rotated": "rotated_mean"}


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


def show_lines(lines: Iterable[str]) -> None:
    """Print lines of text."""
    sys.stdout.writelines(f"{printable(line)}\n" for line in lines)


def show_next(*commands: str | Path) -> None:
    """Tell on stderr how to go on: words of a command, paths among them quoted where a shell needs it."""
    log.info("next: isoconv %s", " ".join(shlex.quote(str(w)) if isinstance(w, Path) else w for w in commands))


def show_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows, which have the same keys; nothing if there is none."""
    if not (rows := list(rows)):
        return
    text = require("rich.text", extra="study").Text  # a plain string could have markup in it
    table = require("rich.table", extra="study").Table()
    for name in rows[0]:
        table.add_column(text(printable(name)), overflow="fold")
    for row in rows:
        table.add_row(*(text(printable(_text(value))) for value in row.values()))
    require("rich.console", extra="study").Console().print(table)


def show_scores(task: Task, result: Mapping[str, Any], title: str) -> None:
    """Print the summary of what :func:`isoconv.evaluation.evaluate` found: the scores of the task, with 95 %
    intervals, those of each class, costs, and what is undefined or worthless."""
    from isoconv.evaluation.protocols import DISTURBANCES

    summary, main = result["summary"], task.main
    rows: dict[str, Any] = {
        score.title: score.text(summary[score.key], summary.get(f"{score.key}_ci")) for score in task.scores
    }
    rows[f"{main.title} rotated, worst"] += f" at {summary['rotated_worst_at']}"
    rows |= {
        f"{main.title} rotated and {group}": main.text(summary[group]) for group in DISTURBANCES if group in summary
    }
    costs = {name: result["cost"][key] for name, key in _COSTS.items()}
    show({**rows, "test images": result["data"]["test_images"], **costs}, as_json=False, title=title)
    if "classes" in result:
        show_table(
            {"label": label, **{score.title: score.text(scores[score.key]) for score in task.of_main}}
            for label, scores in result["classes"].items()
        )
    if "clinical" in result:
        from isoconv.tasks.clinical import shown, told

        show_table(shown(result["clinical"]))
        log.info("%s", told(result["clinical"]))
    for note in result["notes"]:
        log.warning("note: %s", note)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print what :func:`isoconv.evaluation.compare` found: for each group a column of mean scores ± deviation over
    seeds, for each pair a row of paired tests, and of each run what is worthless in its scores."""
    from isoconv.tasks import TASKS

    groups, task = comparison["groups"], TASKS[comparison["task"]]
    rows = [
        [score.title, *(score.text(g[score.key], sd=g[f"{score.key}_sd"]) for g in groups)] for score in task.scores
    ]
    rows += [[name, *(f"{g[key]:,.0f}" for g in groups)] for name, key in _COSTS.items()]
    heads = ["", *map(_label, groups)]
    show_table(dict(zip(heads, row, strict=True)) for row in rows)
    paths = [row["run"] for row in comparison["runs"]]
    names = {path: Path(path).name for path in paths}
    if len(set(names.values())) < len(names):
        names = {path: path for path in paths}
    show_table(
        {**{name: names[pair[name]] for name in "ab"}, **_tests(task.main, pair)} for pair in comparison["pairs"]
    )
    show_table(
        {"a": line["a"], "b": line["b"], "folds": len(line["folds"])}
        | {
            f"{name}, a - b, mean over folds": task.main.difference(
                line[f"{key}_difference"], line[f"{key}_difference_ci"]
            )
            for name, key in _POSITIONS.items()
        }
        for line in comparison["folds"]
    )
    show_table(_clinical(names, comparison["clinical"]))
    for path, notes in comparison["notes"].items():
        for note in notes:
            log.warning("note: %s: %s", names[path], note)


def _clinical(names: Mapping[str, str], found: Mapping[str, Any]) -> list[dict[str, str]]:
    from isoconv.tasks.clinical import shown

    return [{"run": names[path], "rule": entry["rule"], **row} for path, entry in found.items() for row in shown(entry)]


def _tests(main: Score, pair: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, key in _POSITIONS.items():
        cells[f"{name}, a - b"] = main.difference(pair[f"{key}_difference"], pair.get(f"{key}_difference_ci"))
        cells[f"p {name} (Holm)"] = f"{pair[f'{key}_p_holm']:.2g}"
    return cells


def _label(group: Mapping[str, Any]) -> str:
    if group["folds"]:
        return f"{group['network']}, {count_of(len(group['folds']), 'fold')}"
    seeds: Sequence[int] = group["seeds"]
    return group["network"] if len(seeds) == 1 else f"{group['network']}, {len(seeds)} seeds"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
