"""The commands `isoconv segment ...`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from isoconv._extras import require
from isoconv.cli.display import percent, points, show, show_best_epoch, show_comparison, show_table, write_json
from isoconv.cli.options import Json, check_plot
from isoconv.runs.config import Device, Precision, TrainConfig

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
    """Seed of the initial weights and the order of the images."""
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
        from isoconv.evaluation.segmentation import train
        from isoconv.training.loop import is_first_process

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
        from isoconv.evaluation.segment_comparison import DICE
        from isoconv.evaluation.segmentation import evaluate

        result = evaluate(self.path, self.batch_size, self.device)
        if self.as_json:
            write_json(result)
            return
        summary, (_, *classes) = result["summary"], result["classes"].items()
        show_table(
            {
                f"Dice of {self.path}": name,
                "mean (95 %)": percent(summary[key], summary.get(f"{key}_ci")),
                **{label: percent(scores[key]) for label, scores in classes},
            }
            for name, key in DICE.items()
        )
        log.info(
            "worst at %s; Dice of each angle is drawn in %s",
            summary["rotated_worst_at"],
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
        from isoconv.evaluation.segmentation import predict

        files = predict(self.path, self.images, self.out, self.device)
        show({name: str(path) for name, path in files.items()}, self.as_json, title="mask")


@dataclass(frozen=True, kw_only=True)
class SegmentCompare:
    """Set evaluated runs side by side, with paired tests between runs on the same test images."""

    paths: tyro.conf.Positional[
        Annotated[
            tuple[Path, ...],
            tyro.conf.arg(metavar="RUN RUN ...", help="Runs that `isoconv segment evaluate` measured."),
        ]
    ]
    plot: Path | None = None
    """PNG file to draw Dice against the angle into; runs that differ in nothing but the seed make one line."""
    as_json: Json = False

    def run(self) -> None:
        from isoconv.evaluation.segment_comparison import DICE, compare
        from isoconv.runs import RunDir

        check_plot(self.plot)
        runs = [RunDir(path) for path in self.paths]
        comparison = compare(runs)
        if self.as_json:
            write_json(comparison)
        else:
            show_comparison(comparison, "Dice", DICE, _differences)
        if self.plot is not None:
            from isoconv.figures.drawing import rotation_dice

            rotation_dice(runs).savefig(self.plot)


def _differences(pair: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, key in {"upright": "upright", "rotated": "rotated_mean"}.items():
        cells[f"points {name}, a - b"] = points(pair[f"{key}_difference"], pair[f"{key}_difference_ci"])
        cells[f"p {name} (Holm)"] = f"{pair[f'{key}_p_holm']:.2g}"
    return cells


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A label for each pixel: train a U-Net, measure it on images that turn, compare networks, predict masks."""

    command: (
        Annotated[SegmentTrain, tyro.conf.subcommand("train")]
        | Annotated[SegmentEvaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[SegmentCompare, tyro.conf.subcommand("compare")]
        | Annotated[SegmentPredict, tyro.conf.subcommand("predict")]
    )

    def run(self) -> None:
        self.command.run()
