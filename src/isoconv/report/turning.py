"""Test images that turn, and what two networks think of them at each position: the data of the report's slider."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv.data import resize
from isoconv.evaluation.measuring import dataset_of
from isoconv.evaluation.protocols import Condition
from isoconv.evaluation.results import recorded
from isoconv.figures.maps import watching_first_stage
from isoconv.report.images import label_colours, overlay, photograph, png
from isoconv.report.scores import Entry, Gathered
from isoconv.runs import RunDir
from isoconv.symmetry import circular_mask
from isoconv.tasks import Task
from isoconv.tasks.summary import indices

__all__ = ["share_out", "turning_images", "within"]

log = logging.getLogger(__name__)

_EXAMPLES = 4
_SIDE = 64  # pixels: what is shown is 160 and 96 of the page's
_ROTATIONS = {
    "rotd": " about the depth axis",
    "roth": " about the height axis",
    "rotw": " about the width axis",
    "cube": ", rotation {} of the cube",
    "random": ", random rotation {}",
}


def turning_images(gathered: Gathered, data_root: Path | None = None) -> dict[str, Any]:
    """For each data set whose images are at hand, plain JSON values: ``title``, the ``positions`` in words,
    ``networks`` (the two of the headline), the ``readings`` of an answer (:attr:`isoconv.tasks.Task.readings`), each
    with the ``colour`` of its label in masks, and ``examples``, of each:

    - ``title``: its number in the test split, and what it is of;
    - ``strip``: all positions as a data URI; ``truth``: the mask over it, None where there is none;
    - ``answers``, of each network: ``said`` at each position, whether that is ``right`` (None where nothing is said),
      the main score of this image alone, ``scores``, in words, the ``readings`` (positions, numbers), and strips of the
      mask, ``masks``, and of a feature map, ``maps``, None where there are none.
    """
    result = {}
    for data in gathered.entries:
        pair = gathered.pair(data, trained=True)
        if len(pair) == 2:
            try:
                result[data] = _turning(gathered, data, pair, data_root)
            except (FileNotFoundError, ValueError) as error:
                log.warning("no turning images of %s: %s", data, error)
    return result


def within(turning: Mapping[str, dict[str, Any]], budget: int) -> dict[str, Any]:
    """What :func:`turning_images` gave, with as many examples as fit into ``budget`` bytes."""
    sizes = {data: [len(json.dumps(example)) + 2 for example in it["examples"]] for data, it in turning.items()}
    kept = share_out(sizes, budget)
    return {data: {**it, "examples": it["examples"][: kept[data]]} for data, it in turning.items()}


def share_out(sizes: Mapping[str, Sequence[int]], budget: int) -> dict[str, int]:
    """How many of its first examples, of such ``sizes``, each data set may keep, at least one: which takes the most
    gives up its last, until all together take no more than ``budget``."""
    kept = {data: len(each) for data, each in sizes.items()}
    taken = {data: sum(each) for data, each in sizes.items()}
    while sum(taken.values()) > budget and (several := [data for data in kept if kept[data] > 1]):
        largest = max(several, key=taken.__getitem__)
        kept[largest] -= 1
        taken[largest] -= sizes[largest][kept[largest]]
    return kept


def _turning(gathered: Gathered, data: str, pair: list[Entry], data_root: Path | None) -> dict[str, Any]:
    task, runs = gathered.tasks[data], [RunDir(entry.runs[0].path) for entry in pair]
    side = runs[0].model_info["input_size"]
    test = dataset_of(runs[0], data_root, download=False).test
    kept = [recorded(run, gathered.protocol) for run in runs]
    count = len(kept[0].targets)
    if len(test) < count or not torch.equal(task.identity(test.labels[:count]), kept[0].targets):
        raise ValueError(f"the runs were tested on {count} images, which are not those of the file")
    rows = indices(kept[0].positions, "rotation", "cube")
    positions = [kept[0].positions[i] for i in rows]
    networks = [
        (run.load_model(), task.by_image(one.records[rows], one.targets)) for run, one in zip(runs, kept, strict=True)
    ]
    examples = []
    for number in task.examples(test.labels[:count], _EXAMPLES):
        image, target = resize(test.images[[number]].float().div(255), side), test.labels[[number]]
        frames = torch.cat([position.apply(image) for position in positions])
        told = task.told(target[0])
        examples.append(
            {
                "title": f"no. {number}{', ' if told else ''}{told}",
                "strip": photograph(_strip(frames)),
                "truth": _masks(task, torch.cat([task.moved(target, position) for position in positions]))
                if task.answers_with_masks
                else None,
                "answers": [_answers(task, model, frames, told, scores[:, number]) for model, scores in networks],
            }
        )
    colours = label_colours(len(task.readings)) if task.answers_with_masks else [None] * len(task.readings)
    return {
        "title": task.info.title,
        "readings": [
            {"title": reading.title, "unit": reading.unit, "colour": colour}
            for reading, colour in zip(task.readings, colours, strict=True)
        ],
        "positions": [_words(position) for position in positions],
        "networks": [{"title": entry.title, "index": entry.index} for entry in pair],
        "examples": examples,
    }


def _answers(task: Task, model: nn.Module, frames: Tensor, told: str, scores: Tensor) -> dict[str, Any]:
    with torch.inference_mode(), watching_first_stage(model) as stage:
        answers = task.answers(model(frames).float())
    said = [task.said(answer) for answer in answers]
    masks = [torch.from_numpy(answer["mask"]) for answer in answers] if task.answers_with_masks else None
    return {
        "said": said,
        "right": [each == told if each else None for each in said],
        "scores": [f"{task.main.title} {task.main.text(score)}" for score in scores.tolist()],
        "readings": [[float(f"{value:.4g}") for value in task.read(answer)] for answer in answers],
        "masks": None if masks is None else _masks(task, torch.stack(masks)),
        "maps": photograph(_strip(_strongest(stage[0].scalars))) if stage else None,
    }


def _strongest(maps: Tensor) -> Tensor:
    """Of maps (M, C, *spatial) the channel that varies most in the first frame: (M, 1, *spatial) in [0, 1]."""
    chosen = maps[:, [int(maps[0].flatten(1).var(1).argmax())]]
    return chosen / chosen.amax().clamp_min(1e-12)


def _masks(task: Task, masks: Tensor) -> str:
    """Masks (M, *spatial) side by side in colour, as large as :func:`_strip` makes their images; transparent outside of
    the inscribed disc (ball)."""
    masks = masks * circular_mask(masks.shape[1:])
    flat = (masks[:, masks.shape[1] // 2] if masks.dim() == 4 else masks)[:, None].float()
    if max(flat.shape[2:]) > _SIDE:
        flat = F.interpolate(flat, size=(_SIDE, _SIDE))
    strip = flat[:, 0].to(torch.uint8).permute(1, 0, 2).flatten(1).numpy()
    return png(overlay(strip, len(task.info.labels)))


def _words(position: Condition) -> str:
    """``30°`` of an image; of a volume also which rotation it is."""
    kind = position.name.rstrip("0123456789")
    which = _ROTATIONS.get(kind, "").format(position.name.removeprefix(kind))
    return f"{position.angle:.0f}°{which}"


def _strip(frames: Tensor) -> np.ndarray:
    """Frames (M, C, *spatial) side by side, uint8 (H, M * W) or (H, M * W, 3); of a volume the middle slice."""
    if frames.dim() == 5:
        frames = frames[:, :, frames.shape[2] // 2]
    if max(frames.shape[2:]) > _SIDE:
        frames = F.adaptive_avg_pool2d(frames, _SIDE)
    pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(2, 0, 3, 1).flatten(1, 2).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
