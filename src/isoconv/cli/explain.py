"""`isoconv explain`: what an answer rests on, and whether that turns with the image."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from isoconv._extras import require
from isoconv.cli.display import show_table, write_json
from isoconv.cli.options import Json, ReadsImages, RunPath, check_plot

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="study")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Explain(ReadsImages):
    """Show what the answer of a trained network rests on (HiResCAM), and measure whether that turns with the image."""

    path: RunPath
    images: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help="Image files, or folders of them.")]
    ]
    beside: Path | None = None
    """Run directory of a second network, for comparison."""
    label: str | None = None
    """The class (target) to explain; None stands for the answer to the first image, of masks the largest class."""
    plot: Path | None = None
    """PNG file to draw the first image and its maps into."""
    as_json: Json = False

    def work(self) -> None:
        import torch

        from isoconv.evaluation.prediction import Predictor
        from isoconv.evaluation.saliency import output_number, saliency_errors
        from isoconv.figures import saliency_maps, save

        check_plot(self.plot)
        predictors = [Predictor(path) for path in (self.path, self.beside) if path is not None]
        first = predictors[0]
        names, pixels = first.read(self.images)
        images = pixels.to(first.device).float().div(255)
        output = output_number(first.task, self.label, first.outputs(images[:1]))
        if any(p.size != first.size or p.task.info.labels != first.task.info.labels for p in predictors):
            raise ValueError(f"{self.beside} answers on other images or labels than {self.path}; take runs of one task")
        told = first.task.info.labels[output]
        rows = [
            {"run": str(p.run.path), "label": told, "images": len(names), **saliency_errors(p.model, images, output)}
            for p in predictors
        ]
        if self.as_json:
            write_json(rows)
        else:
            show_table(rows)
        if self.plot is not None:
            models = {p.run.path.name: p.model.to(torch.device("cpu")) for p in predictors}
            save(saliency_maps(models, images[:1].cpu(), output, told), self.plot)
            log.info("the maps are in %s", self.plot)
