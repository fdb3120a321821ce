"""The command that trains a network: `isoconv train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from isoconv._extras import require
from isoconv.cli.display import show_best_epoch, show_next
from isoconv.cli.options import Json, ReadsImages, Wait
from isoconv.runs.config import DataOptions, Logger, MachineOptions, NetworkOptions, TrainConfig, TrainingOptions

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="study")


@dataclass(frozen=True, kw_only=True)
class _NetworkOptions(NetworkOptions):
    __doc__ = NetworkOptions.__doc__

    pretrained: Annotated[str | None, tyro.conf.arg(aliases=["--from"])] = None


@dataclass(frozen=True, kw_only=True)
class Train(ReadsImages):
    """Train a network to classify, to measure, or to segment; the best epoch is chosen on the validation images.

    The shape of the data decides what it learns. It writes a run directory, for `isoconv evaluate`, `predict` and
    `compare`. Several processes share the work with
    torchrun --nproc-per-node 2 -m isoconv train ...
    """

    out: Path
    """Run directory to write; it must not exist yet (except with --resume)."""
    resume: bool = False
    """Continue the stopped run in --out; repeat the options that it was started with."""
    wait: Wait = False
    logger: Logger | None = None
    """Program that shows trainings side by side, told what metrics.jsonl is told; None stands for none."""
    as_json: Json = False
    data: DataOptions
    network: _NetworkOptions
    training: TrainingOptions
    machine: MachineOptions

    def __post_init__(self) -> None:
        _ = self.config  # checks the values

    @property
    def config(self) -> TrainConfig:
        groups = (self.data, self.network, self.training, self.machine)
        return TrainConfig(out=self.out, **{name: value for group in groups for name, value in vars(group).items()})

    def work(self) -> None:
        from isoconv.training.loop import is_first_process, train

        run = train(self.config, self.resume, self.wait, self.logger)
        if is_first_process():
            show_best_epoch(run, self.as_json)
            show_next("evaluate", run.path)
