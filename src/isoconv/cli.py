"""The command line: a dataclass per command, whose docstrings are its help and whose `run` does the work.

Results go to stdout, as a table or with ``--json`` as nothing but JSON; everything else goes to stderr.
Exit status: 0 done, 1 the job failed (one line says why), 2 wrong usage.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ._extras import require
from .config import Device, TrainConfig

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="study")

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print the result as JSON.")]
DataRoot = Annotated[
    Path | None, tyro.conf.arg(help="Folder of the MedMNIST files; None stands for $ISOCONV_DATA, else ~/.medmnist.")
]
RunPath = tyro.conf.Positional[
    Annotated[Path, tyro.conf.arg(metavar="RUN", help="Run directory that `isoconv train` wrote.")]
]


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a network; the best epoch is chosen on the validation images.

    It writes a run directory, for `isoconv evaluate`, `predict` and `compare`. Several processes share the work with
    torchrun --nproc-per-node 2 -m isoconv train ...
    """

    resume: bool = False
    """Continue the stopped run in --out; repeat the options that it was started with."""
    as_json: Json = False

    def run(self) -> None:
        from .training import is_first_process, train

        run = train(TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)}), self.resume)
        if is_first_process():
            best = run.metrics()[run.model_info["epoch"]]
            show(best, self.as_json, title=f"best epoch of {run.path}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a trained network on the test images: upright, rotated and flipped."""

    path: RunPath
    protocol: Literal["standard", "official"] = "standard"
    """How images are rotated: standard (bilinear, inside a circle) or official (as the paper's code)."""
    batch_size: int = 256
    """Images per forward pass."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    as_json: Json = False

    def run(self) -> None:
        from .evaluation import evaluate
        from .runs import RunDir

        show(
            evaluate(RunDir(self.path), self.protocol, self.batch_size, self.device), self.as_json, title=str(self.path)
        )


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Set evaluated runs side by side, with paired tests between runs on the same test images."""

    paths: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN", help="Runs that `isoconv evaluate` measured.")]
    ]
    as_json: Json = False

    def run(self) -> None:
        from .evaluation import compare
        from .runs import RunDir

        show(compare([RunDir(path) for path in self.paths]), self.as_json, title="comparison")


@dataclass(frozen=True, kw_only=True)
class DataList:
    """List the data sets: 18 MedMNIST tasks and the embedded synthetic ones."""

    as_json: Json = False

    def run(self) -> None:
        from .data import TASKS

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


@dataclass(frozen=True, kw_only=True)
class DataFetch:
    """Download MedMNIST files and check them; files that are there already are only checked."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Tasks, as `isoconv data list` names them."""
    size: int = 28
    """Image size: 28, 64, 128 or 224 (3D: 28 or 64)."""
    data_root: DataRoot = None
    as_json: Json = False

    def run(self) -> None:
        from .data import get_task, load

        tasks = [get_task(name) for name in self.names]
        sources = {task.name: load(task.name, size=self.size, root=self.data_root).source for task in tasks}
        show(sources, self.as_json, title="file")


@dataclass(frozen=True, kw_only=True)
class Data:
    """List data sets, or download them."""

    command: Annotated[DataList, tyro.conf.subcommand("list")] | Annotated[DataFetch, tyro.conf.subcommand("fetch")]

    def run(self) -> None:
        self.command.run()


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the networks that `isoconv train --model` knows, with their parameters for RGB images and 10 classes."""

    pattern: tyro.conf.Positional[str] = "*"
    """Only names that match, such as 'sre_*' or '*_3d'."""
    width: int = 64
    """Channels of the first stage."""
    as_json: Json = False

    def run(self) -> None:
        import torch

        from .models import create_model, list_models

        with torch.device("meta"):
            networks = {name: create_model(name, width=self.width) for name in list_models(self.pattern)}
        if not networks:
            raise ValueError(f"no network matches {self.pattern!r}; see them all with: isoconv models")
        show(
            {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()},
            self.as_json,
            title="parameters",
        )


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Models, tyro.conf.subcommand("models")]
)

DESCRIPTION = """Train and measure networks whose answer does not change when the image is turned.

A first try, in minutes and without a download: isoconv demo. Help on a command: isoconv train --help.
Anywhere on the line, --debug shows the whole traceback of an error. isoconv --version prints the version."""


def show(values: Mapping[str, Any], as_json: bool, title: str) -> None:
    """Print named values on stdout, with a heading over them."""
    if as_json:
        write_json(values)
    else:
        show_table({"": name, title: value} for name, value in values.items())


def show_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows, which have the same keys, on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = list(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    Console().print(table)


def write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


class _Stderr(logging.Handler):
    """Looks sys.stderr up at each line: a progress bar puts itself there, to keep lines and bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    argv = list(sys.argv[1:] if args is None else args)
    if argv == ["--version"]:
        from . import __version__

        sys.stdout.write(f"isoconv {__version__}\n")
        return 0
    debug = "--debug" in argv
    config = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    logging.getLogger("isoconv").setLevel(logging.INFO)
    logging.getLogger("isoconv").handlers = [_Stderr()]
    try:
        # constructing a command checks its values, so it may fail like running it
        tyro.cli(
            Command, prog="isoconv", description=DESCRIPTION, args=[a for a in argv if a != "--debug"], config=config
        ).run()
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        if debug:
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0
