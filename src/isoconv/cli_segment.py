"""The commands `isoconv segment ...`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from isoconv._extras import require
from isoconv.cli_options import Json
from isoconv.config import Device, Precision, TrainConfig
from isoconv.display import show, show_best_epoch, show_table, write_json

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="study")

log = logging.getLogger(__name__)

_Run = tyro.conf.Positional[
    Annotated[Path, tyro.conf.arg(metavar="RUN", help="Run directory that `isoconv segment train` wrote.")]
]


@dataclass(frozen=True, kw_only=True)
class SegmentTrain:
    """Train a U-Net; the best epoch is chosen by Dice on the validation images."""

    data: str
    """vessels or vessels3d (synthetic), or a folder with images/ and masks/."""
    model: str
    """Network: sre_unet, unet, sre_unet_3d or unet_3d."""
    out: Path
    """Run directory to write; it must not exist yet (except with --resume)."""
    width: int = 32
    """Channels of the finest level."""
    kernel_sizes: tuple[int, ...] | None = None
    """Kernel size of each of the four levels, finest first; None stands for the network's own."""
    bands: int | None = None
    """Number of rings in a kernel; None lets its size decide."""
    profile: str | None = None
    """Shape of the rings: hard (the paper), linear, gaussian or area; None stands for the network's own."""
    engine: str | None = None
    """How the convolution is computed; None takes the fastest that can run. The result is the same to rounding."""
    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 8
    """Images per step."""
    lr: float | None = None
    """Learning rate at the start; None stands for 2e-2 in 2D, 1e-2 in 3D."""
    size: int = 64
    """Side in pixels at which images are trained."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, and the splits of a folder that has none."""
    precision: Precision = "32-true"
    """Number format of the training; the mixed ones are faster on a GPU."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    threads: int | None = None
    """CPU threads; None leaves it to torch."""
    resume: bool = False
    """Continue the stopped run in --out; repeat the options that it was started with."""
    as_json: Json = False

    def run(self) -> None:
        from isoconv.segmentation import train
        from isoconv.training import is_first_process

        options = {name: value for name, value in vars(self).items() if name not in ("resume", "as_json")}
        run = train(TrainConfig(**options), self.resume)
        if is_first_process():
            show_best_epoch(run, self.as_json)


@dataclass(frozen=True, kw_only=True)
class SegmentEvaluate:
    """Measure a trained network on the test images: Dice upright, rotated and flipped."""

    path: _Run
    batch_size: int | None = None
    """Images per forward pass; None stands for 64 in 2D, 4 in 3D."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    as_json: Json = False

    def run(self) -> None:
        from isoconv.model_card import DICE
        from isoconv.segmentation import evaluate

        result = evaluate(self.path, self.batch_size, self.device)
        if self.as_json:
            write_json(result)
            return
        foreground = dict(list(result["classes"].items())[1:])
        columns: dict[str, dict[str, Any]] = {"mean": result["summary"], **foreground}
        show_table(
            {f"Dice of {self.path}": name, **{label: column[key] for label, column in columns.items()}}
            for name, key in DICE.items()
        )
        log.info(
            "worst at %s; Dice of each angle is drawn in %s",
            result["summary"]["rotated_worst_at"],
            self.path / "figures" / "dice.png",
        )


@dataclass(frozen=True, kw_only=True)
class SegmentPredict:
    """Write the masks that a trained network finds in your own images: PNG for images, npy for volumes.

    Masks hold label numbers, 0 the background, and look black in most viewers.
    """

    path: _Run
    images: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help="Image files, or folders of them.")]
    ]
    out: Path
    """Folder to write the masks to; none of them may exist yet."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    as_json: Json = False

    def run(self) -> None:
        from isoconv.segmentation import predict

        files = predict(self.path, self.images, self.out, self.device)
        show({name: str(path) for name, path in files.items()}, self.as_json, title="mask")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A label for each pixel: train a U-Net, measure it on images that turn, predict masks."""

    command: (
        Annotated[SegmentTrain, tyro.conf.subcommand("train")]
        | Annotated[SegmentEvaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[SegmentPredict, tyro.conf.subcommand("predict")]
    )

    def run(self) -> None:
        self.command.run()
