"""The command line: a dataclass per command, whose docstrings are its help and whose `run` does the work.

Results go to stdout, as a table or with ``--json`` as nothing but JSON; everything else goes to stderr.
Exit status: 0 done, 1 the job failed (one line says why), 2 wrong usage, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv._text import one_line, printable
from isoconv.cli.data import Data
from isoconv.cli.display import (
    show,
    show_comparison,
    show_lines,
    show_next,
    show_scores,
    show_table,
    write_json,
)
from isoconv.cli.explain import Explain
from isoconv.cli.options import (
    Computes,
    Json,
    ReadsImages,
    RunPath,
    Threads,
    Threshold,
    Wait,
    check_all_done,
    check_plot,
)
from isoconv.cli.parsing import parse
from isoconv.cli.serve import Serve
from isoconv.cli.study import Study
from isoconv.cli.tools import Doctor, Export
from isoconv.cli.train import Train
from isoconv.runs.config import Device, Protocol

if TYPE_CHECKING:
    import tyro

    from isoconv.tasks import Task
else:
    tyro = require("tyro", extra="study")

log = logging.getLogger(__name__)

_SIGPIPE = 13  # Windows has no such signal


@dataclass(frozen=True, kw_only=True)
class Evaluate(ReadsImages, Computes):
    """Measure a trained network on the test images: upright, rotated and flipped."""

    path: RunPath
    protocol: Protocol = "standard"
    """How images are rotated: standard (bilinear, inside a circle), official (as the paper's code), or disturbed (also
    zoomed, shifted, noisy and blurred, inside a circle if the network was trained so)."""
    threshold: Threshold = "half"
    batch_size: int | None = None
    """Images per forward pass; None stands for 256 in 2D, 16 in 3D, in segmentation 64 and 4."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    wait: Wait = False
    as_json: Json = False

    def work(self) -> None:
        from isoconv.evaluation import evaluate
        from isoconv.figures import save_all
        from isoconv.runs import RunDir

        run = RunDir(self.path)
        result = evaluate(run, self.protocol, self.batch_size, self.device, None, self.wait, self.threshold)
        if self.as_json:
            write_json(result)
        else:
            show_scores(run.task, result, title=f"{self.path}, protocol {self.protocol}")
        save_all(run, self.protocol)
        log.info("figures are in %s", run.path / "figures")
        show_next("predict", self.path, "IMAGE, or: isoconv serve", self.path)


@dataclass(frozen=True, kw_only=True)
class Predict(ReadsImages, Computes):
    """Answer on your own images with a trained network, and see whether rotation changes its answer.

    Images are PNG, JPEG, TIFF, npy or npz files, or folders of them; they are resized to the size of the training.
    """

    path: RunPath
    images: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help="Image files, or folders of them.")]
    ]
    out: Path | None = None
    """File to write, FILE.csv or FILE.json, or the folder for the masks of a segmentation; it must not exist yet. Masks
    hold label numbers, 0 the background, and look black in most viewers."""
    upright_only: bool = False
    """Do not rotate the images: some 35 times faster, but the consistency under rotation is not measured."""
    batch_size: int | None = None
    """Images per forward pass; None stands for 256 in 2D, 16 in 3D, in segmentation 64 and 4."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    as_json: Json = False

    def work(self) -> None:
        from isoconv.evaluation.prediction import check_output, predict
        from isoconv.runs import RunDir

        task = RunDir(self.path).task
        if self.out is not None:
            check_output(self.out, folder=task.answers_with_masks)
        unread: list[Exception] = []
        rows = predict(
            self.path,
            self.images,
            batch_size=self.batch_size,
            device=self.device,
            rotations=not self.upright_only,
            onerror=lambda _, error: unread.append(error),
        )
        if rows:
            self._show(task, rows)
        check_all_done(unread, len(rows), "file", "read")
        show_next("serve", self.path)

    def _show(self, task: Task, rows: list[dict[str, Any]]) -> None:
        from isoconv.evaluation.prediction import write_predictions

        if self.out is not None:
            rows = write_predictions(task, rows, self.out)
            log.info("answers on %s written to %s", count_of(len(rows), "image"), self.out)
        elif task.answers_with_masks:
            log.info("give --out FOLDER to keep the masks")
        if self.as_json:
            write_json([{k: v for k, v in row.items() if k != "mask" or isinstance(v, str)} for row in rows])
        elif self.out is None:
            show_table(_answer(task, row) for row in rows)


def _answer(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `isoconv.evaluation.predict` as one of a table."""
    name = row["source"] if row["index"] is None else f"{row['source']}[{row['index']}]"
    table = {"image": name, **task.shown(row)}
    if (agreement := task.agreement).key in row:
        table[agreement.title] = agreement.text(row[agreement.key])
    return table


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Set evaluated runs side by side, with paired tests between runs on the same test images."""

    paths: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN RUN ...", help="Runs that `isoconv evaluate` measured.")]
    ]
    protocol: Protocol | None = None
    """Which results to take; None stands for the first protocol by which all runs were evaluated."""
    plot: Path | None = None
    """PNG file to draw scores against the angle into; runs that differ in nothing but the seed make one line."""
    as_json: Json = False

    def run(self) -> None:
        from isoconv.evaluation.comparison import compare
        from isoconv.runs import RunDir

        check_plot(self.plot)
        runs = [RunDir(path) for path in self.paths]
        comparison = compare(runs, self.protocol)
        if self.as_json:
            write_json(comparison)
        else:
            show_comparison(comparison)
        if self.plot is not None:
            from isoconv.figures import rotation_curve, save

            save(rotation_curve(runs, comparison["protocol"]), self.plot)
        show_next("export RUN, or: isoconv serve RUN --plain RUN")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train an isotropic network and its plain twin on embedded upright images, and test them on rotated ones.

    It takes minutes and needs no download. A second call shows the results again without training.
    """

    out: Path = Path("runs/demo")
    """Folder for the two run directories and the figures."""
    threads: Threads = None
    as_json: Json = False

    def run(self) -> None:
        from isoconv.demo import demo

        comparison, figures = demo(self.out, threads=self.threads)
        if self.as_json:
            write_json({**comparison, "figures": [str(path) for path in figures]})
        else:
            show_comparison(comparison)
            show_lines(f"figure: {path}" for path in figures)
        show_next("serve", self.out / "sre_resnet18", "--plain", self.out / "resnet18")


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the networks and their parameters for RGB images and 10 classes.

    ResNets are for a label per image, U-Nets for a label per pixel.
    """

    pattern: tyro.conf.Positional[str] = "*"
    """Only names that match, such as 'sre_*' or '*_3d'."""
    width: int = 64
    """Channels of the first stage."""
    pretrained: bool = False
    """List the trained networks that come with isoconv instead."""
    as_json: Json = False

    def run(self) -> None:
        import torch

        from isoconv.models import create_model, list_models, list_pretrained

        if self.pretrained:
            trained = {data: ", ".join(networks) for data, networks in list_pretrained().items()}
            show(trained, self.as_json, title="networks trained on")
            if not self.as_json:
                show_next("predict NAME IMAGE")
            return
        with torch.device("meta"):
            networks = {name: create_model(name, width=self.width) for name in list_models(self.pattern)}
        if not networks:
            raise ValueError(f"no network matches {self.pattern!r}; see them all with: isoconv models")
        show(
            {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()},
            self.as_json,
            title="parameters",
        )
        if not self.as_json:
            show_next("train --data DATA --model MODEL --out RUN")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What both benchmarks ask for."""

    rounds: int = 7
    """How often each contestant is timed."""
    threads: Threads = None
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    plot: Path | None = None
    """PNG file to draw the ratios into."""
    as_json: Json = False

    def measure(self, bench: Callable[..., dict[str, Any]]) -> None:
        from isoconv.bench import markdown
        from isoconv.runs import resolve_device, use_threads

        check_plot(self.plot)
        resolve_device(self.device)  # refuses a GPU that is not there
        use_threads(self.threads)
        result = bench(rounds=self.rounds, device=self.device)
        if self.as_json:
            write_json(result)
        else:
            show_lines(markdown(result).splitlines())
        if self.plot is not None:
            from isoconv.figures import save, speed_ratios

            save(speed_ratios(result), self.plot)


@dataclass(frozen=True, kw_only=True)
class BenchOps(BenchOptions):
    """Time layers: every engine against plain convolutions, in turn, once their results agree. This takes minutes."""

    def run(self) -> None:
        from isoconv.bench import bench_ops

        self.measure(bench_ops)


@dataclass(frozen=True, kw_only=True)
class BenchModels(BenchOptions):
    """Time training steps of whole networks: every engine, and the plain twin. This takes minutes."""

    def run(self) -> None:
        from isoconv.bench import bench_models

        self.measure(bench_models)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure on this machine how fast layers and networks are."""

    command: Annotated[BenchOps, tyro.conf.subcommand("ops")] | Annotated[BenchModels, tyro.conf.subcommand("models")]

    def run(self) -> None:
        self.command.run()


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Study, tyro.conf.subcommand("study")]
)

DESCRIPTION = """Train and measure networks whose answer does not change when the image is rotated.

A first try, in minutes and without a download: isoconv demo. Help on a command: isoconv train --help.
Anywhere on the line, --debug shows the whole traceback of an error. isoconv --version prints the version."""


class _Stderr(logging.Handler):
    """Looks sys.stderr up at each line: a progress bar puts itself there, to keep lines and bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(printable(self.format(record)) + "\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    argv = list(sys.argv[1:] if args is None else args)
    if argv[:1] == ["segment"]:
        command = argv[1] if argv[1:2] and not argv[1].startswith("-") else "train"
        sys.stderr.write(f"error: isoconv {command} works for every task now; use it without `segment`\n")
        return 2
    debug = "--debug" in argv
    logging.getLogger("isoconv").setLevel(logging.INFO)
    logging.getLogger("isoconv").handlers = [_Stderr()]
    arguments = [a for a in argv if a != "--debug"]
    try:
        with nullcontext() if debug else _plain_warnings():
            # constructing a command checks its values, so it may fail like running it
            parse(Command, DESCRIPTION, arguments).run()
        _flush_output()
    except BrokenPipeError:  # who reads, such as `head`, has enough
        return 128 + _SIGPIPE
    except Exception as error:  # noqa: BLE001 - whatever it is, users get one line
        if debug:
            raise
        sys.stderr.write(one_line(error, traceback="the same command with --debug shows where") + "\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 128 + signal.SIGINT
    return 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are lines of the log, without the place in the code that gives them. Those of libraries about what will
    change in them are for programmers."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        log.log(logging.WARNING if issubclass(category, UserWarning) else logging.DEBUG, "warning: %s", message)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"isoconv\.")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _flush_output() -> None:
    """What cannot be written now is not tried once more at the end of the process, whose error would be no line."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
