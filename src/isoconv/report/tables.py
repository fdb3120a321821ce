"""The tables of a report as Markdown and CSV, and how numbers are written in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoconv._checks import count_of
from isoconv._text import csv_table
from isoconv._text import markdown as escaped
from isoconv.report import comparing
from isoconv.report.columns import COSTS, all_scores, disturbed_scores, extras_of, leading_scores
from isoconv.report.scores import Entry, Gathered
from isoconv.tasks import Score

__all__ = ["cost_text", "markdown", "notes_of", "pairs_csv", "runs_csv", "score_text", "who_saw_what"]


def markdown(gathered: Gathered) -> str:
    """The tables of the data sets; the best of a column is bold."""
    what = f"Protocol {gathered.protocol}; mean ± deviation over seeds."
    text = [f"# {escaped(gathered.study.title)}\n\n{what}\n"]
    for data, entries in gathered.entries.items():
        task, images = gathered.tasks[data], gathered.test_images[data]
        resolution = extras_of(task).resolution(images)
        text.append(
            f"\n## {escaped(data)}\n\n{count_of(images, 'test image')}{': ' if resolution else ''}{resolution}.\n"
        )
        text += _markdown_table(entries, leading_scores(task), costs=True)
        text += ["", *(f"- {escaped(note)}" for note in notes)] if (notes := notes_of(entries)) else []
        if "disturbed" in gathered.study.protocols:
            text.append(f"\nProtocol disturbed, {escaped(who_saw_what(entries))}:\n")
            text += _markdown_table(entries, disturbed_scores(task, task.main, task.agreement), absent="not measured")
    return "\n".join(text) + "\n"


def _markdown_table(
    entries: Sequence[Entry], scores: Sequence[Score], costs: bool = False, absent: str = "–"
) -> list[str]:
    heads = ["contestant", "seeds", *(score.heading for score in scores), *(COSTS.values() if costs else ())]
    best = {score: comparing.best_in(entries, score) for score in scores}
    rows = []
    for entry in entries:
        cells = [score_text(entry, score, absent) for score in scores]
        marked = [f"**{t}**" if entry.index in best[score] else t for score, t in zip(scores, cells, strict=True)]
        spent = [cost_text(entry, name) for name in COSTS] if costs else []
        rows.append([escaped(entry.title), str(len(entry.runs)), *marked, *spent])
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]


def runs_csv(gathered: Gathered) -> str:
    """A row per run, shares of 1; a score that the task of a data set does not have is empty there."""
    names = list(dict.fromkeys(score.key for task in gathered.tasks.values() for score in all_scores(task)))
    heads = ["data", "test_images", "contestant", "seed", *names, *COSTS, "command"]
    rows = [
        [
            data,
            gathered.test_images[data],
            entry.contestant,
            run.seed,
            *(run.scores.get(name) for name in names),
            *(run.cost[name] for name in COSTS),
            run.command,
        ]
        for data, entries in gathered.entries.items()
        for entry in entries
        for run in entry.runs
    ]
    return csv_table([heads, *rows])


def pairs_csv(rows: list[dict[str, Any]]) -> str:
    """A row per pair of contestants on a data set, the main score of a minus that of b, shares of 1; p after Holm's
    correction."""
    heads = ["data", "a", "b", *(f"{name}_{f}" for name in comparing.POSITIONS for f in ("mean", "low", "high", "p"))]
    cells = ([row["data"], row["a"].contestant, row["b"].contestant, *row["upright"], *row["rotated"]] for row in rows)
    return csv_table([heads, *cells])


def score_text(entry: Entry, score: Score, absent: str = "–") -> str:
    """Such as ``82.0 ± 1.8``, without the unit."""
    centre, sd = entry.mean(score.key), entry.sd(score.key)
    if centre is None:
        return absent
    return score.number(centre) + ("" if sd is None else f" ± {score.number(sd)}")


def cost_text(entry: Entry, name: str) -> str:
    value = entry.cost(name)
    return f"{value / 1e6:,.1f}" if "adds" in name else f"{value:,.0f}"


def notes_of(entries: Sequence[Entry]) -> list[str]:
    """What is undefined or worthless in the scores of contestants."""
    return list(dict.fromkeys(f"{e.title}: {note}" for e in entries for run in e.runs for note in run.notes))


def who_saw_what(entries: Sequence[Entry]) -> str:
    """What the protocol ``"disturbed"`` showed to whom."""
    through, whole = ([e.title for e in entries if e.masked is masked] for masked in (True, False))
    if not (through and whole):
        return "seen through the inscribed disc" if through else "whole images"
    return f"each as in its training: {', '.join(through)} through the inscribed disc, {', '.join(whole)} whole images"
