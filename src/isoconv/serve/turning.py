"""An image that turns in small steps, and what networks make of it at each: the rows of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoconv._extras import require
from isoconv.evaluation.prediction import Predictor
from isoconv.evaluation.protocols import Condition
from isoconv.evaluation.saliency import HiResCAM, has_default_layer
from isoconv.figures.maps import Stage, watching_first_stage
from isoconv.report.images import overlay, png
from isoconv.symmetry import circular_mask, rotate
from isoconv.tasks.metrics import number

__all__ = ["ANGLES", "AXES", "turn"]

ANGLES = tuple(range(0, 360, 5))
AXES = ("depth", "height", "width")
_MAPS = 3
_BATCH = {2: 8, 3: 2}


def turn(predictors: Sequence[Predictor], images: Sequence[Tensor], axis: str) -> Iterator[list[dict[str, Any]]]:
    """Turn an image by every angle, in batches, so that others can have their turn in between.

    Outside of the inscribed disc (ball) the image is black at every angle, as in the standard protocol.

    Args:
        predictors: the networks.
        images: for each the image as it reads it, uint8 (1, C, *spatial).
        axis: of :data:`AXES`, about which a volume is turned; an image has its depth axis only.

    Yields:
        A row per angle, plain JSON values: ``angle``; ``image``, what the first network sees, a PNG data URI, of a
        volume the middle slice across the axis; and in ``networks`` for each network

        - ``said``, its answer in a few words, or ``""``, and ``readings``, the numbers of the answer
          (:attr:`isoconv.tasks.Task.readings`);
        - ``mask``, the labels of the pixels in colour, a PNG data URI; None where the answer has no mask;
        - ``curves``, what is drawn against the angle (:meth:`isoconv.tasks.Task.curves`): ``title``, ``unit`` and
          ``value``, None where there is none;
        - ``maps``, PNG data URIs of the channels of the first stage that vary most, turned back to upright, and
          ``change``, the distance of all channels from the upright ones, ``|g^-1 f(g x) - f(x)| / |f(x)|`` within the
          disc. Both are None for a network without a stage ``layer1``;
        - ``saliency``, what the upright answer rests on at this angle (:class:`isoconv.evaluation.saliency.HiResCAM`),
          turned back to upright, a PNG data URI; None for a network that has no layer for it.
    """
    views = [_View(*pair, axis) for pair in zip(predictors, images, strict=True)]
    size = _BATCH[predictors[0].task.info.dims]
    for start in range(0, len(ANGLES), size):
        angles = ANGLES[start : start + size]
        seen = [view.at(angles) for view in views]
        yield [
            {"angle": angle, "image": seen[0][i].pop("image"), "networks": [rows[i] for rows in seen]}
            for i, angle in enumerate(angles)
        ]


class _View:
    """A network that looks at an image."""

    def __init__(self, predictor: Predictor, image: Tensor, axis: str) -> None:
        self.predictor = predictor
        self.image = image.to(predictor.device).float().div(255)
        self.axis = AXES.index(axis)
        plane = [i for i in range(-3, 0) if i != self.axis - 3]
        self.plane = (plane[0], plane[1])
        self.inside = circular_mask(self.image.shape[2:])
        # upright, of the first angle: what the network answers, its outputs and maps, and which of these are shown
        self.answer: dict[str, Any] = {}
        self.outputs = self.maps = torch.empty(0)
        self.shown: list[int] = []
        self.strongest = 0.0

    @torch.inference_mode()
    def at(self, angles: Sequence[int]) -> list[dict[str, Any]]:
        task, positions = self.predictor.task, [self._position(angle) for angle in angles]
        frames = torch.cat([position.apply(self.image) for position in positions])
        with watching_first_stage(self.predictor.model) as stage:
            outputs = self.predictor.outputs(frames)
        answers = task.answers(outputs)
        if not self.answer:
            self.answer, self.outputs = answers[0], outputs[:1]
        agreements = [self._agreement(*pair) for pair in zip(outputs.split(1), positions, strict=True)]
        rows = [
            {
                "image": png(self._pixels(frame)),
                "said": task.said(answer),
                "readings": task.read(answer),
                "mask": self._mask(answer) if task.answers_with_masks else None,
                "curves": [
                    {"title": score.title, "unit": score.unit, "value": number(value)}
                    for score, value in task.curves(answer, self.answer, agreement)
                ],
                "maps": None,
                "change": None,
                "saliency": None,
            }
            for frame, answer, agreement in zip(frames, answers, agreements, strict=True)
        ]
        if has_default_layer(self.predictor.model):
            found = HiResCAM(self.predictor.model, task.explained(self.outputs))(frames)
            for row, saliency, angle in zip(rows, found.split(1), angles, strict=True):
                row["saliency"] = self._saliency(rotate(saliency, -angle, self.plane)[0, 0])
        if stage:
            for row, maps, angle in zip(rows, stage[0].maps.split(1), angles, strict=True):
                row |= self._compared(Stage(maps, stage[0].fields).turned(-angle, self.plane))
        return rows

    def _position(self, angle: int) -> Condition:
        move = partial(rotate, degrees=angle, plane=self.plane)
        turned = partial(self._turned, angle=angle)
        return Condition(f"rot{angle}", "rotation", turned, angle, inside=True, moved=move)

    def _turned(self, x: Tensor, angle: int) -> Tensor:
        return rotate(x, angle, self.plane) * circular_mask(x.shape[2:], device=x.device)

    def _agreement(self, outputs: Tensor, position: Condition) -> float:
        """Of an answer with the upright one, moved."""
        task, nothing = self.predictor.task, self.predictor.task.no_targets(self.image.cpu())
        decided = task.decision(self.outputs)
        upright = task.record(self.outputs, nothing, decided, self.inside)
        turned = task.record(outputs, nothing, task.moved(decided, position), self.inside)
        return task.agreements(torch.stack([upright, turned]))[1, 0].item()

    def _mask(self, answer: Mapping[str, Any]) -> str:
        mask = torch.from_numpy(answer["mask"]) * self.inside
        return png(overlay(self._slice(mask).numpy(), len(self.predictor.task.info.labels)))

    def _compared(self, stage: Stage) -> dict[str, Any]:
        """The stage of one image, turned back, against that of the first one."""
        inside = circular_mask(stage.maps.shape[2:], device=stage.maps.device)
        maps, scalars = stage.maps[0] * inside, stage.scalars[0] * inside
        if not self.shown:
            self.maps = maps
            self.shown = scalars.flatten(1).var(1).argsort(descending=True)[:_MAPS].tolist()
        change = (maps - self.maps).norm() / self.maps.norm().clamp_min(1e-12)
        pictures = []
        for channel in self.shown:
            scaled = self._slice(scalars[channel] / scalars[channel].abs().max().clamp_min(1e-12)).cpu().numpy()
            pixels = require("matplotlib", "study").colormaps["viridis"](scaled, bytes=True)
            pixels[~self._slice(inside).cpu().numpy()] = 0  # transparent
            pictures.append(png(pixels))
        return {"maps": pictures, "change": change.item()}

    def _saliency(self, turned_back: Tensor) -> str:
        """In colour, red for and blue against, scaled by the upright map."""
        self.strongest = self.strongest or turned_back.abs().max().clamp_min(1e-12).item()
        shares = self._slice(0.5 + turned_back / (2 * self.strongest)).clamp(0, 1).cpu().numpy()
        pixels = require("matplotlib", "study").colormaps["RdBu_r"](shares, bytes=True)
        pixels[~self._slice(self.inside).numpy()] = 0  # transparent
        return png(pixels)

    def _slice(self, x: Tensor) -> Tensor:
        """The middle slice, across the axis, of a volume (D, H, W); an image as it is."""
        return x.select(self.axis, x.shape[self.axis] // 2) if x.dim() == 3 else x

    def _pixels(self, frame: Tensor) -> np.ndarray:
        """uint8 (H, W) or (H, W, 3) of a frame (C, *spatial)."""
        channels = torch.stack([self._slice(channel) for channel in frame], dim=-1)
        return channels.clamp(0, 1).mul(255).round().to(torch.uint8).squeeze(-1).cpu().numpy()
