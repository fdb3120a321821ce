"""An image that turns in small steps, and what networks make of it at each: the rows of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoconv._extras import require
from isoconv.evaluation.prediction import Predictor
from isoconv.figures.maps import watching_first_stage
from isoconv.report.images import png
from isoconv.symmetry import circular_mask, rotate

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
        volume the middle slice across the axis; and in ``networks`` for each network its ``label``, the
        ``probabilities`` in the order of the labels, ``maps``, PNG data URIs of the channels of the first stage that
        vary most, turned back to upright, and ``change``, the distance of all channels from the upright ones,
        ``|g^-1 f(g x) - f(x)| / |f(x)|`` within the disc. Both are None for a network without a stage ``layer1``.
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
        self.upright: Tensor | None = None
        self.shown: list[int] = []

    @torch.inference_mode()
    def at(self, angles: Sequence[int]) -> list[dict[str, Any]]:
        frames = self._turned([self.image] * len(angles), angles)
        with watching_first_stage(self.predictor.model) as stage:
            answers = self.predictor.task.answers(self.predictor.outputs(frames))
        rows = [
            {
                "image": png(self._pixels(frame)),
                "label": answer["label"],
                "probabilities": list(answer["probabilities"].values()),
                "maps": None,
                "change": None,
            }
            for frame, answer in zip(frames, answers, strict=True)
        ]
        if stage:
            back = self._turned(stage[0].split(1), [-angle for angle in angles])
            for row, maps in zip(rows, back, strict=True):
                row |= self._compared(maps)
        return rows

    def _turned(self, images: Sequence[Tensor], angles: Sequence[int]) -> Tensor:
        turned = torch.cat([rotate(x, angle, self.plane) for x, angle in zip(images, angles, strict=True)])
        return turned * circular_mask(turned.shape[2:], device=turned.device)

    def _compared(self, maps: Tensor) -> dict[str, Any]:
        """Feature maps (C, *spatial), turned back, against the first ones."""
        if self.upright is None:
            self.upright = maps
            self.shown = maps.flatten(1).var(1).argsort(descending=True)[:_MAPS].tolist()
        change = (maps - self.upright).norm() / self.upright.norm().clamp_min(1e-12)
        inside = self._slice(circular_mask(maps.shape[1:], device=maps.device)).cpu().numpy()
        pictures = []
        for channel in self.shown:
            scaled = self._slice(maps[channel] / self.upright[channel].abs().max().clamp_min(1e-12)).cpu().numpy()
            pixels = require("matplotlib", "study").colormaps["viridis"](scaled, bytes=True)
            pixels[~inside] = 0  # transparent
            pictures.append(png(pixels))
        return {"maps": pictures, "change": change.item()}

    def _slice(self, x: Tensor) -> Tensor:
        """The middle slice, across the axis, of a volume (D, H, W); an image as it is."""
        return x.select(self.axis, x.shape[self.axis] // 2) if x.dim() == 3 else x

    def _pixels(self, frame: Tensor) -> np.ndarray:
        """uint8 (H, W) or (H, W, 3) of a frame (C, *spatial)."""
        channels = torch.stack([self._slice(channel) for channel in frame], dim=-1)
        return channels.clamp(0, 1).mul(255).round().to(torch.uint8).squeeze(-1).cpu().numpy()
