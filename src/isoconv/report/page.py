"""Writing the report: the page from its template, and the same tables as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv._text import markdown as escaped
from isoconv.evaluation.protocols import DISTURBANCES, check_protocol
from isoconv.report import charts, comparing
from isoconv.report.images import drawing
from isoconv.report.scores import CONDITIONS, SCORES, Entry, Gathered, gather
from isoconv.report.turning import turning_images, within
from isoconv.runs import atomic_write
from isoconv.study.plan import Study
from isoconv.study.status import STATES

__all__ = ["write_report"]

SMALL_TEST_SET = 500
BUDGET = 4_000_000  # bytes of the page, as far as leaving out images that turn can keep it
_MAIN = ("upright", "rotated_mean", "rotated_worst", "beyond_90", "right_angles", "flips", "consistency")
_MORE = tuple(name for name in SCORES if name not in (*_MAIN, *CONDITIONS))
_GROUPS = ("upright", "rotated_mean", "beyond_90", "right_angles", "flips")
_CONDITIONS = tuple(CONDITIONS)[: 2 * (1 + len(DISTURBANCES))]  # accuracy and same answer
_COST_TITLES = {
    "parameters": "parameters",
    "multiply_adds_banded": "M multiply-adds, per band",
    "multiply_adds_dense": "M multiply-adds, per tap",
    "training_seconds": "training, s",
}


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
        out.with_suffix(".md"): markdown(gathered),
        out.with_name(f"{out.stem}-runs.csv"): runs_csv(gathered),
        out.with_name(f"{out.stem}-pairs.csv"): pairs_csv(rows),
    }
    for path, text in contents.items():
        atomic_write(path, lambda f, text=text: f.write(text.encode()))  # type: ignore[misc]
    return list(contents)


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
        "percent": _percent,
        "cost": _cost,
        "points": _points,
        "key": "{:.6g}".format,  # to sort by
        "p": _p,
        "number": "{:,.0f}".format,
    }
    head = comparing.headline(gathered)
    everyone = {e.index: e.title for entries in gathered.entries.values() for e in entries}
    template = environment.get_template("report.html.jinja")
    content = {
        "gathered": gathered,
        "study": gathered.study,
        "everyone": dict(sorted(everyone.items())),
        "strong": {e.index for e in _headline_entries(gathered)},
        "head": head,
        "tallies": {name: comparing.tally(head, name) for name in comparing.POSITIONS} if head else None,
        "auc": {name: comparing.auc_differences(head, name) for name in comparing.POSITIONS},
        "ratios": comparing.cost_ratios(head) if head else {},
        "cost_titles": _COST_TITLES,
        "notes": {row["data"]: _notes([row["a"], row["b"]]) for row in head},
        "best": comparing.best_of_each(gathered),
        "verdict": comparing.verdict,
        "averaged_of": {averaged.name: averaged.of for averaged in gathered.study.averaged},
        "sections": [_section(gathered, data) for data in gathered.entries],
        "rankings": {name: _ranking(gathered, name) for name in comparing.POSITIONS},
        "pairs": rows,
        "scores": SCORES,
        "main": _MAIN,
        "more": _MORE,
        "conditions": _CONDITIONS,
        "small": SMALL_TEST_SET,
        "kernels": _pictures(gathered, next(iter(gathered.entries)), "kernels"),
        "states": {state: [row for row in gathered.status if row["state"] == state] for state in STATES},
        "machines": _machines(gathered),
    }
    turning = turning_images(gathered, data_root)
    bare = {data: {**it, "examples": []} for data, it in turning.items()}
    room = BUDGET - len(template.render(**content, turning=bare).encode())
    return template.render(**content, turning=within(turning, room))


def markdown(gathered: Gathered) -> str:
    """The tables of the data sets."""
    what = f"Protocol {gathered.protocol}; accuracy in %, mean ± deviation over seeds."
    text = [f"# {escaped(gathered.study.title)}\n\n{what}\n"]
    for data, entries in gathered.entries.items():
        images = gathered.test_images[data]
        text.append(f"\n## {escaped(data)}\n\n{count_of(images, 'test image')}: one is {100 / images:.2f} points.\n")
        heads = [*(SCORES[name] for name in _MAIN), *_COST_TITLES.values()]
        main = [[*(_percent(e, name) for name in _MAIN), *(_cost(e, name) for name in _COST_TITLES)] for e in entries]
        text += _markdown_table(entries, heads, main)
        text += ["", *(f"- {escaped(note)}" for note in notes)] if (notes := _notes(entries)) else []
        if "disturbed" in gathered.study.protocols:
            text.append(f"\nProtocol disturbed, {escaped(_seen(entries))}:\n")
            cells = [[_percent(e, name, "not measured") for name in _CONDITIONS] for e in entries]
            text += _markdown_table(entries, [SCORES[name] for name in _CONDITIONS], cells)
    return "\n".join(text) + "\n"


def _markdown_table(entries: Sequence[Entry], heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    heads = ["contestant", "seeds", *heads]
    rows = [[escaped(entry.title), str(len(entry.runs)), *row] for entry, row in zip(entries, cells, strict=True)]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]


def runs_csv(gathered: Gathered) -> str:
    """A row per run, shares of 1."""
    heads = ["data", "test_images", "contestant", "seed", *SCORES, *_COST_TITLES, "command"]
    return _csv(
        heads,
        [
            [
                data,
                gathered.test_images[data],
                entry.contestant,
                run.seed,
                *(run.scores[name] for name in SCORES),
                *(run.cost[name] for name in _COST_TITLES),
                run.command,
            ]
            for data, entries in gathered.entries.items()
            for entry in entries
            for run in entry.runs
        ],
    )


def pairs_csv(rows: list[dict[str, Any]]) -> str:
    """A row per pair of contestants on a data set, a minus b, shares of 1; p after Holm's correction."""
    heads = ["data", "a", "b", *(f"{name}_{f}" for name in comparing.POSITIONS for f in ("mean", "low", "high", "p"))]
    return _csv(
        heads,
        [[row["data"], row["a"].contestant, row["b"].contestant, *row["upright"], *row["rotated"]] for row in rows],
    )


def _csv(heads: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def _headline_entries(gathered: Gathered) -> list[Entry]:
    return [e for entries in gathered.entries.values() for e in entries if e.contestant in gathered.study.headline]


def _section(gathered: Gathered, data: str) -> dict[str, Any]:
    """Charts and matrices of a data set."""
    entries, task, images = gathered.entries[data], gathered.tasks[data], gathered.test_images[data]
    strong = gathered.study.headline
    joined = task["dims"] == 2 or gathered.protocol == "official"
    curves = [
        charts.Series(e.index, e.title, comparing.curve(e), strong=e.contestant in strong, joined=joined)
        for e in entries
    ]
    own = [e for e in entries if e.contestant not in {a.name for a in gathered.study.averaged}]

    def against(cost: str) -> str:
        series = [
            charts.Series(
                e.index, e.title, [(max(e.cost(cost), 1e-9), e.mean("rotated_mean") or 0.0)], e.contestant in strong
            )
            for e in own
        ]
        label = f"{task['title']}: accuracy on rotated test images against {_COST_TITLES[cost]}"
        return charts.scatter(series, label, _COST_TITLES[cost])

    return {
        "data": data,
        "task": task,
        "images": images,
        "entries": entries,
        "by_angle": charts.lines(
            curves,
            f"{task['title']}: test accuracy against the angle of rotation",
            "rotation of the test images" if joined else "angle of a random rotation of the volume",
            360 if joined else 180,
        ),
        "by_group": _by_group(gathered, data),
        "seen": _seen(entries),
        "by_parameters": against("parameters"),
        "by_time": against("training_seconds"),
        "confusion": [_confusion(e, task) for e in entries if e.contestant in strong],
        "feature_maps": _pictures(gathered, data, "feature_maps"),
        "notes": _notes(entries),
    }


def _notes(entries: Sequence[Entry]) -> list[str]:
    """What is undefined or worthless in the scores of contestants."""
    return list(dict.fromkeys(f"{e.title}: {note}" for e in entries for run in e.runs for note in run.notes))


def _by_group(gathered: Gathered, data: str) -> str:
    """Accuracies in each group of positions of the reported protocol and, if the study has it, of ``"disturbed"``."""
    entries, measured = gathered.entries[data], [*_GROUPS]
    if "disturbed" in gathered.study.protocols:
        measured += _CONDITIONS[gathered.protocol == "disturbed" : 1 + len(DISTURBANCES)]
    names = [name for name in measured if any(entry.mean(name) is not None for entry in entries)]
    series = [
        charts.Series(
            entry.index,
            entry.title,
            [
                (row, centre) if (sd := entry.sd(name)) is None else (row, centre, centre - sd, centre + sd)
                for row, name in enumerate(names)
                if (centre := entry.mean(name)) is not None
            ],
            strong=entry.contestant in gathered.study.headline,
        )
        for entry in entries
    ]
    label = f"{gathered.tasks[data]['title']}: test accuracy in each group of positions, as in the tables below"
    return charts.dots(series, [SCORES[name] for name in names], label)


def _seen(entries: Sequence[Entry]) -> str:
    """What the protocol ``"disturbed"`` showed to whom."""
    through, whole = ([e.title for e in entries if e.masked is masked] for masked in (True, False))
    if not (through and whole):
        return "seen through the inscribed disc" if through else "whole images"
    return f"each as in its training: {', '.join(through)} through the inscribed disc, {', '.join(whole)} whole images"


def _confusion(entry: Entry, task: dict[str, Any]) -> dict[str, Any]:
    """Shares of each label's images (rows) that are decided as each label (columns), summed over seeds; of a multilabel
    task the share of images with and of those without each label that are decided so."""
    tables = {}
    for position in comparing.POSITIONS:
        counts = sum(run.confusion[position].double() for run in entry.runs)
        if task["kind"] == "multilabel":
            shares = counts.diagonal(dim1=1, dim2=2) / counts.sum(2).clamp_min(1)  # type: ignore[union-attr]
            tables[position] = shares.flip(1).tolist()
        else:
            tables[position] = (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()  # type: ignore[union-attr]
    columns = ["found where it is", "not found where it is not"] if task["kind"] == "multilabel" else task["labels"]
    return {"title": entry.title, "tables": tables, "columns": columns, "rows": task["labels"]}


def _ranking(gathered: Gathered, position: str) -> dict[str, Any] | None:
    ranking = comparing.ranking(gathered, position)
    if ranking is None:
        return None
    names = [(e.index, e.title) for e in ranking["entries"]]
    drawn = charts.rank_diagram(names, ranking["ranks"], ranking["spans"], ranking["difference"])
    return {**ranking, "svg": drawn}


def _pictures(gathered: Gathered, data: str, name: str) -> list[tuple[str, str]]:
    """Of the figures that evaluation has left in the run directories those of this name, of one run of each of the
    headline: title and data URI."""
    found = []
    for entry in gathered.entries[data]:
        path = entry.runs[0].path / "figures" / f"{name}.png"
        if entry.contestant in gathered.study.headline and path.exists():
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


def _percent(entry: Entry, name: str, absent: str = "–") -> str:
    """Such as ``82.0 ± 1.8``."""
    centre, sd = entry.mean(name), entry.sd(name)
    if centre is None:
        return absent
    return f"{100 * centre:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def _cost(entry: Entry, name: str) -> str:
    value = entry.cost(name)
    return f"{value / 1e6:,.1f}" if "adds" in name else f"{value:,.0f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
