"""The commands `isoconv study ...`."""

from __future__ import annotations

import logging
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv.cli.display import show, show_lines, show_next, show_table, write_json
from isoconv.cli.options import Computes, DataRoot, Json, ReadsImages
from isoconv.runs.config import Device, Protocol

if TYPE_CHECKING:
    import tyro

    from isoconv.study.plan import Study as StudyFile
else:
    tyro = require("tyro", extra="study")

log = logging.getLogger(__name__)

_File = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="STUDY.toml", help="What to train and test.")]]
_Runs = Annotated[
    Path | None,
    tyro.conf.arg(
        help="Folder of the run directories.", help_behavior_hint="(default: runs/ and the name of the study)"
    ),
]


@dataclass(frozen=True, kw_only=True)
class StudyRun(ReadsImages):
    """Train and evaluate what is not done yet: data sets x contestants x seeds, a run directory each.

    The same command continues a stopped study. Several such commands, on one machine or on many that share the folder,
    never work on the same cell.
    """

    study: _File
    runs: _Runs = None
    jobs: int = 1
    """Processes at once."""
    threads: int | None = None
    """CPU threads of each job; None stands for an equal share of the cores."""
    shard: str = "1/1"
    """3/8: only every eighth cell from the third on, for one of eight machines."""
    only: tuple[str, ...] = ()
    """Only cells whose name matches one of these patterns, such as 'breastmnist-*'."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786: the workers of its cluster do the cells instead of --jobs.
    They must see the folder of the runs, and the data, at the same paths. --threads then are 1 unless given."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one. Jobs are spread over several GPUs."""
    data_root: DataRoot = None
    as_json: Json = False

    def work(self) -> None:
        from isoconv.study.plan import load_study
        from isoconv.study.running import run_study

        study, shard = load_study(self.study), _shard(self.shard)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the processes, as Ctrl-C does
        try:
            rows = run_study(
                study,
                _folder(study, self.runs),
                jobs=self.jobs,
                shard=shard,
                only=self.only,
                threads=self.threads,
                device=self.device,
                data_root=self.data_root,
                scheduler=self.scheduler,
            )
        except KeyboardInterrupt:
            log.info("stopped; the same command continues from here")
            sys.exit(128 + signal.SIGINT)
        _show(study, rows, self.as_json)
        if failed := [row["cell"] for row in rows if row["state"] == "failed"]:
            cells = count_of(len(rows), "cell")
            raise RuntimeError(f"{len(failed)} of {cells} failed ({', '.join(failed)}); the logs say more")
        show_next("study report", self.study)


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """Show which cells of a study are done, running, stopped, failed or missing."""

    study: _File
    runs: _Runs = None
    as_json: Json = False

    def run(self) -> None:
        from isoconv.study.plan import load_study
        from isoconv.study.status import study_status

        study = load_study(self.study)
        rows = study_status(study, _folder(study, self.runs))
        _show(study, rows, self.as_json)
        show_next("study report" if all(row["state"] == "done" for row in rows) else "study run", self.study)


@dataclass(frozen=True, kw_only=True)
class StudyReport(ReadsImages, Computes):
    """Write a report on the finished runs of a study: one HTML page, with CSV and Markdown tables beside it."""

    study: _File
    runs: _Runs = None
    out: Path = Path("report.html")
    """HTML file to write; an existing file is replaced."""
    protocol: Protocol | None = None
    """Protocol of the results; None stands for the study's first."""
    data_root: DataRoot = None
    as_json: Json = False

    def work(self) -> None:
        from isoconv.report import write_report
        from isoconv.study.plan import load_study

        study = load_study(self.study)
        paths = write_report(study, _folder(study, self.runs), self.out, self.protocol, self.data_root)
        show({path.name: str(path) for path in paths}, self.as_json, title="file")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Many trainings at once: run a study, see how far it is, report on it."""

    command: (
        Annotated[StudyRun, tyro.conf.subcommand("run")]
        | Annotated[StudyStatus, tyro.conf.subcommand("status")]
        | Annotated[StudyReport, tyro.conf.subcommand("report")]
    )

    def run(self) -> None:
        self.command.run()


def _folder(study: StudyFile, runs: Path | None) -> Path:
    return Path("runs") / study.name if runs is None else runs


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"shard must look like 3/8, got {text!r}")
    return int(number), int(count)


def _show(study: StudyFile, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    from isoconv.study.status import STATES

    counts = Counter(row["state"] for row in rows)
    if as_json:
        write_json({"study": study.name, "counts": {state: counts[state] for state in STATES}, "cells": rows})
        return
    table: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        table.setdefault((row["data"], row["contestant"]), Counter()).update([row["state"]])
    show_table(
        {"data": data, "contestant": contestant, **{state: states[state] or None for state in STATES}}
        for (data, contestant), states in table.items()
    )
    show_lines(
        f"{row['cell']}: {row['state']}, {row['detail']}"
        for row in rows
        if row["state"] in ("running", "stopped", "failed")
    )
    show_lines([", ".join(f"{counts[state]} {state}" for state in STATES) + f", of {count_of(len(rows), 'cell')}"])
