"""Writing the report: the page from its template, and the same tables as CSV and Markdown."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv.evaluation.protocols import check_protocol
from isoconv.report import charts, comparing, tables
from isoconv.report.columns import COSTS, disturbed_scores, extras_of, leading_scores, more_scores
from isoconv.report.images import drawing
from isoconv.report.scores import Gathered, gather
from isoconv.report.turning import turning_images, within
from isoconv.runs import write_set
from isoconv.study.plan import Study
from isoconv.study.status import STATES
from isoconv.tasks import Score

__all__ = ["write_report"]

SMALL_TEST_SET = 500
BUDGET = 4_000_000  # bytes of the page, as far as leaving out images that turn can keep it


def write_report(
    study: Study, folder: Path, out: Path, protocol: str | None = None, data_root: Path | None = None
) -> list[Path]:
    """Report on the finished runs of a study.

    Args:
        folder: of the run directories.
        out: the HTML file; `.md`, `-runs.csv` and `-pairs.csv` of the same name are written beside it. What was there
            is replaced.
        protocol: whose results; None takes the study's first.
        data_root: folder of the MedMNIST files, for the images that turn; without images that part is left out.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: no run is finished, or there is no folder for ``out``.
        ValueError: a protocol that the study does not have, an ``out`` that is no .html, or damaged runs.
    """
    protocol = protocol or study.protocols[0]
    check_protocol(protocol)
    if protocol not in study.protocols:
        raise ValueError(f"study {study.name} is evaluated by {' and '.join(study.protocols)}, not by {protocol}")
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"the report is an HTML file, name it so: --out {out.with_suffix('.html')}, got {out}")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise FileNotFoundError(f"{out.parent} is not a writable folder; make it, or choose another --out")
    gathered = gather(study, folder, protocol)
    rows = comparing.pairs(gathered)
    contents = {
        out: render(gathered, rows, data_root),
        out.with_suffix(".md"): tables.markdown(gathered),
        out.with_name(f"{out.stem}-runs.csv"): tables.runs_csv(gathered),
        out.with_name(f"{out.stem}-pairs.csv"): tables.pairs_csv(rows),
    }
    write_set({path: partial(_put, text) for path, text in contents.items()})
    return list(contents)


def _put(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def render(gathered: Gathered, rows: list[dict[str, Any]], data_root: Path | None = None) -> str:
    """The page; ``rows``: what `comparing.pairs` gave."""
    jinja2 = require("jinja2", extra="study")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files("isoconv.report").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "zip": zip,
        "score": tables.score_text,
        "cost": tables.cost_text,
        "signed": _signed,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "key": "{:.6g}".format,  # to sort by
        "p": _p,
        "number": "{:,.0f}".format,
    }
    everyone = {e.index: e.title for entries in gathered.entries.values() for e in entries}
    kinds = comparing.by_kind(gathered)
    tasks = [gathered.tasks[data[0]] for data in kinds.values()]
    template = environment.get_template("report.html.jinja")
    content = {
        "gathered": gathered,
        "study": gathered.study,
        "everyone": dict(sorted(everyone.items())),
        "heads": [_head(group) for group in comparing.headlines(gathered)],
        "cost_titles": COSTS,
        "best": comparing.best_of_each(gathered),
        "best_in": comparing.best_in,
        "verdict": comparing.verdict,
        "averaged_of": {averaged.name: averaged.of for averaged in gathered.study.averaged},
        "sections": [_section(gathered, data) for data in gathered.entries],
        "rankings": {kind: _rankings(gathered, data) for kind, data in kinds.items()},
        "pairs": rows,
        "tasks": tasks,
        "methods": [method for task in tasks if (method := extras_of(task).method)],
        "small": SMALL_TEST_SET,
        "kernels": _pictures(gathered, next(iter(gathered.entries)), "kernels"),
        "states": {state: [row for row in gathered.status if row["state"] == state] for state in STATES},
        "machines": _machines(gathered),
    }
    turning = turning_images(gathered, data_root)
    bare = {data: {**it, "examples": []} for data, it in turning.items()}
    room = BUDGET - len(template.render(**content, turning=bare).encode())
    return template.render(**content, turning=within(turning, room))


def _head(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the summary says of two contestants on data sets of one main score."""
    task = rows[0]["task"]
    beside = extras_of(task).beside
    scores = [
        score for score in task.scores if beside and score.key in {f"{p}_{beside[0]}" for p in comparing.POSITIONS}
    ]
    return {
        "rows": rows,
        "notes": {row["data"]: tables.notes_of([row["a"], row["b"]]) for row in rows},
        "task": task,
        "a": rows[0]["a"].title,
        "b": rows[0]["b"].title,
        "tallies": {name: comparing.tally(rows, name) for name in ("rotated", "upright")},
        "beside": scores,
        "why_beside": beside and beside[1],
        "differences": {score: comparing.beside_differences(rows, score.key) for score in scores},
        "ratios": comparing.cost_ratios(rows),
    }


def _section(gathered: Gathered, data: str) -> dict[str, Any]:
    """Charts and matrices of a data set."""
    entries, task, images = gathered.entries[data], gathered.tasks[data], gathered.test_images[data]
    extras, strong = extras_of(task), [e.index for e in gathered.pair(data)]
    joined = task.info.dims == 2 or gathered.protocol == "official"
    curves = [
        charts.Series(e.index, e.title, points, strong=e.index in strong, joined=joined)
        for e in entries
        if (points := comparing.curve(e))
    ]
    own = [e for e in entries if e.contestant not in {a.name for a in gathered.study.averaged}]

    def against(cost: str) -> str:
        series = [
            charts.Series(e.index, e.title, [(max(e.cost(cost), 1e-9), value)], e.index in strong)
            for e in own
            if (value := e.mean("rotated_mean")) is not None
        ]
        label = f"{task.info.title}: {task.main.title} on rotated test images against {COSTS[cost]}"
        return charts.scatter(series, task.main, label, COSTS[cost]) if series else ""

    return {
        "data": data,
        "task": task,
        "extras": extras,
        "images": images,
        "entries": entries,
        "strong": strong,
        "leading": leading_scores(task),
        "more": more_scores(task),
        "disturbed": disturbed_scores(task, task.main, task.agreement),
        "by_angle": charts.lines(
            curves,
            task.main,
            f"{task.info.title}: test {task.main.title} against the angle of rotation",
            "rotation of the test images" if joined else "angle of a random rotation of the volume",
            360 if joined else 180,
        )
        if curves
        else "",
        "by_group": _by_group(gathered, data),
        "seen": tables.who_saw_what(entries),
        "by_parameters": against("parameters"),
        "by_time": against("training_seconds"),
        "matrices": [
            (entry.title, matrix)
            for entry in gathered.pair(data)
            for matrix in extras.matrices(task, [run.details for run in entry.runs])
        ],
        "clinical": _pictures(gathered, data, f"clinical_{gathered.protocol}"),
        "saliency": _pictures(gathered, data, "saliency"),
        "feature_maps": _pictures(gathered, data, "feature_maps"),
        "notes": tables.notes_of(entries),
    }


def _by_group(gathered: Gathered, data: str) -> str:
    """The main score in each group of positions of the reported protocol and, if the study has it, of
    ``"disturbed"``."""
    entries, task = gathered.entries[data], gathered.tasks[data]
    measured = [score for score in leading_scores(task) if score.key not in ("rotated_worst", task.agreement.key)]
    if "disturbed" in gathered.study.protocols:
        measured += disturbed_scores(task, task.main)[gathered.protocol == "disturbed" :]
    scores = [score for score in measured if any(entry.mean(score.key) is not None for entry in entries)]
    strong = gathered.pair(data)
    series = [
        charts.Series(
            entry.index,
            entry.title,
            [
                (row, centre) if (sd := entry.sd(score.key)) is None else (row, centre, centre - sd, centre + sd)
                for row, score in enumerate(scores)
                if (centre := entry.mean(score.key)) is not None
            ],
            strong=entry in strong,
        )
        for entry in entries
    ]
    label = f"{task.info.title}: test {task.main.title} in each group of positions, as in the tables below"
    return charts.dots(series, task.main, [score.title for score in scores], label) if scores else ""


def _rankings(gathered: Gathered, data: Sequence[str]) -> list[dict[str, Any]]:
    rankings = []
    for position in comparing.POSITIONS:
        if ranking := comparing.ranking(gathered, data, position):
            names = [(e.index, e.title) for e in ranking["entries"]]
            drawn = charts.rank_diagram(names, ranking["ranks"], ranking["spans"], ranking["difference"])
            rankings.append({**ranking, "svg": drawn})
    return rankings


def _pictures(gathered: Gathered, data: str, name: str) -> list[tuple[str, str]]:
    """Of the figures that evaluation has left in the run directories those of this name, of one run of each of the
    headline: title and data URI."""
    found = []
    for entry in gathered.pair(data):
        path = entry.runs[0].path / "figures" / f"{name}.png"
        if path.exists():
            found.append((f"{entry.title}, seed {entry.runs[0].seed}", drawing(path)))
    return found


def _machines(gathered: Gathered) -> list[str]:
    """What the runs ran on, the most frequent first."""
    seen = Counter(
        f"isoconv {e['isoconv']}{' at commit ' + e['commit'][:10] if e['commit'] else ''}, torch {e['torch']}, "
        f"{e['device']}, {count_of(e['threads'], 'thread')}"
        for e in gathered.environments
    )
    return [f"{text}: {count_of(count, 'run')}" for text, count in seen.most_common()]


def _signed(value: float, score: Score) -> str:
    return score.difference(value).replace("-", "−")


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
