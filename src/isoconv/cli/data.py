"""The commands about data sets: `isoconv data list`, `fetch`, `check` and `manifest`."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv._text import csv_table
from isoconv.cli.display import show, show_lines, show_next, show_table, write_json
from isoconv.cli.options import DataRoot, Json, ReadsImages, check_all_done

if TYPE_CHECKING:
    import tyro

    from isoconv.data import listing
else:
    tyro = require("tyro", extra="study")


@dataclass(frozen=True, kw_only=True)
class DataList:
    """List the data sets: 18 of MedMNIST and the embedded synthetic ones."""

    as_json: Json = False

    def run(self) -> None:
        from isoconv.data import TASKS

        if self.as_json:
            names = ("name", "title", "kind", "dims", "channels", "labels", "counts", "sizes", "licence")
            write_json([{name: getattr(task, name) for name in names} for task in TASKS.values()])
        else:
            show_table(
                {
                    "name": task.name,
                    "images": f"{task.dims}D {'RGB' if task.channels == 3 else 'grey'}",
                    "task": task.kind,
                    "labels": len(task.labels),
                    "train/val/test": "/".join(map(str, task.counts)),
                }
                for task in TASKS.values()
            )
            show_next("train --data DATA --model MODEL --out RUN")


@dataclass(frozen=True, kw_only=True)
class DataFetch:
    """Download MedMNIST files and check them; existing files are only checked."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Tasks, as `isoconv data list` names them."""
    size: int = 28
    """Image size: 28, 64, 128 or 224 (3D: 28 or 64)."""
    data_root: DataRoot = None
    as_json: Json = False

    def run(self) -> None:
        from isoconv.data import get_task, load

        if not self.names:
            raise ValueError("name the tasks to download; `isoconv data list` shows all")
        tasks = [get_task(name) for name in self.names]
        sources: dict[str, str] = {}
        failed: list[Exception] = []
        for task in tasks:
            try:
                sources[task.name] = load(task.name, size=self.size, root=self.data_root).source
            except (ValueError, OSError) as error:
                failed.append(error)
        if sources:
            show(sources, self.as_json, title="file")
        check_all_done(failed, len(sources), "data set", "fetched")
        show_next("train --data", tasks[0].name, "--model MODEL --out RUN")


@dataclass(frozen=True, kw_only=True)
class DataCheck(ReadsImages):
    """Read a whole data set, and report what is wrong with it and what training will do. Exit status 1 on errors.

    isoconv data check my_images
    """

    data: tyro.conf.Positional[str]
    """A set that `isoconv data list` names, or the path of your own: a folder with a folder per class or with images/
    and masks/, a .csv manifest (columns path,label or path,mask and optionally split,patient) or an .npz of MedMNIST's
    layout."""
    task: str | None = None
    """Kind of work, such as classification or segmentation; None stands for what the data decide."""
    size: int = 28
    """Side in pixels that images are resized to."""
    data_root: DataRoot = None
    as_json: Json = False

    def work(self) -> None:
        from isoconv.data.check import check
        from isoconv.tasks import task_of

        report = check(self.data, self.size, self.data_root, self.task)
        if report.info is not None:
            task = task_of(report.info)
            report.facts |= {"task": task.name, "loss": task.loss_name(None)}
        if self.as_json:
            write_json({name: value for name, value in vars(report).items() if name != "info"})
        else:
            counts = report.facts.pop("images per class", {})
            flat = {**report.facts, **{f"{label}, train/val/test": text for label, text in counts.items()}}
            show(flat, as_json=False, title=self.data)
            for kind, lines in (("error", report.errors), ("warning", report.warnings)):
                show_lines(f"{kind}: {line}" for line in lines)
        if report.errors:
            raise ValueError(f"{self.data} has {count_of(len(report.errors), 'error')}; correct them before training")
        name = Path(self.data)
        show_next("train --data", name, "--model MODEL --out", Path("runs") / name.stem)


@dataclass(frozen=True, kw_only=True)
class DataManifest(ReadsImages):
    """Write the CSV manifest of a folder: its images, labels or masks, patients and splits, to keep.

    isoconv data manifest my_images --out my_images.csv --patient 'p[0-9]+'
    """

    data: tyro.conf.Positional[Path]
    """Folder, or a manifest without splits."""
    out: Path
    """File to write; an existing file is not overwritten. Paths in it start at its folder."""
    patient: str | None = None
    """Regular expression whose first match in an image's path names the patient."""
    as_json: Json = False

    def work(self) -> None:
        from isoconv.data import listing
        from isoconv.evaluation.prediction import check_output
        from isoconv.runs import atomic_write

        if self.out.suffix.lower() != ".csv":
            raise ValueError(f"a manifest is a .csv file, got --out {self.out}; end its name so")
        check_output(self.out)
        items = listing.items(self.data.absolute())
        found = listing.assign([replace(item, patient=self._patient(item)) for item in items])
        text = csv_table(listing.table(found, self.out.absolute().parent))
        atomic_write(self.out, lambda f: f.write(text.encode()))
        sizes = Counter(item.split for item in found)
        written = {
            "images": len(found),
            "patients": len({item.patient for item in found} - {""}) or None,
            **{split: sizes[split] for split in listing.SPLITS},
        }
        show(written, self.as_json, title=str(self.out))
        show_next("data check", self.out)

    def _patient(self, item: listing.Item) -> str:
        if self.patient is None:
            return item.patient
        try:
            root = self.data if self.data.is_dir() else self.data.parent
            match = re.search(self.patient, os.path.relpath(item.path, root))
        except re.error as error:
            raise ValueError(f"--patient {self.patient!r} is not a regular expression: {error}") from None
        if match is None:
            raise ValueError(f"--patient {self.patient!r} matches nothing in {item.path}")
        return match.group()


@dataclass(frozen=True, kw_only=True)
class Data:
    """List data sets, download them, check them, or list your own in a manifest."""

    command: (
        Annotated[DataList, tyro.conf.subcommand("list")]
        | Annotated[DataFetch, tyro.conf.subcommand("fetch")]
        | Annotated[DataCheck, tyro.conf.subcommand("check")]
        | Annotated[DataManifest, tyro.conf.subcommand("manifest")]
    )

    def run(self) -> None:
        self.command.run()
