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

from isoconv._checks import count_of
from isoconv.data import get_task, load, resize
from isoconv.evaluation.protocols import Condition, conditions
from isoconv.evaluation.results import load_predictions
from isoconv.figures import first_stage
from isoconv.report.images import photograph
from isoconv.report.scores import Entry, Gathered
from isoconv.runs import RunDir
from isoconv.tasks.metrics import decide, probabilities

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
    """For each data set whose images are at hand, plain JSON values: ``title``, ``kind``, the class ``labels``, the
    ``positions`` in words, ``networks`` (the two of the headline), and ``examples``: the first test image of each of
    the first classes (``label``, its number in the test split ``number``, a ``strip`` of all positions as a data URI)
    with, for each network, the ``probabilities`` (positions, classes), the ``decisions`` (positions, or of a multilabel
    task as the probabilities) and a strip of a feature map, ``maps``."""
    result = {}
    for data in gathered.entries:
        pair = [entry for name in gathered.study.headline if (entry := _own(gathered, data, name)) is not None]
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


def _own(gathered: Gathered, data: str, name: str) -> Entry | None:
    """The entry of a contestant that was run, not averaged afterwards."""
    of = {averaged.name: averaged.of for averaged in gathered.study.averaged}
    return gathered.entry(data, of.get(name, name))


def _turning(gathered: Gathered, data: str, pair: list[Entry], data_root: Path | None) -> dict[str, Any]:
    runs = [RunDir(entry.runs[0].path) for entry in pair]
    config, info, task = runs[0].config, runs[0].model_info, get_task(data)
    images = load(data, size=config.size or 28, root=data_root or config.data_root, download=False).test.images
    shown = [
        (i, position)
        for i, position in enumerate(conditions(gathered.protocol, task.dims, info["masked"]))
        if position.group in ("rotation", "cube")
    ]
    arrays = [load_predictions(run) for run in runs]
    labels = arrays[0][f"{gathered.protocol}_labels"]
    if len(images) < len(labels):
        raise ValueError(f"the runs were tested on {count_of(len(labels), 'image')}, the file has {len(images)}")
    rows = [i for i, _ in shown]
    logits = [torch.from_numpy(a[f"{gathered.protocol}_logits"][rows]) for a in arrays]
    chances, decisions = ([what(task.kind, each).numpy() for each in logits] for what in (probabilities, decide))
    models = [run.load_model() for run in runs]
    examples = []
    for number in _first_of_each(labels):
        image = resize(images[number : number + 1].float().div(255), info["input_size"])
        frames = torch.cat([position.apply(image) for _, position in shown])
        truth = labels[number]
        examples.append(
            {
                "number": int(number),
                "label": [task.labels[c] for c in (truth.nonzero()[0] if truth.ndim else [truth])],
                "strip": photograph(_strip(frames)),
                "probabilities": [chance[:, number].round(3).tolist() for chance in chances],
                "decisions": [decision[:, number].tolist() for decision in decisions],  # the rounded can be ties
                "maps": [photograph(_strip(_features(model, frames))) for model in models],
            }
        )
    return {
        "title": task.title,
        "labels": list(task.labels),
        "kind": task.kind,
        "positions": [_words(position) for _, position in shown],
        "networks": [{"title": entry.title, "index": entry.index} for entry in pair],
        "examples": examples,
    }


def _features(model: nn.Module, frames: Tensor) -> Tensor:
    """(M, 1, *spatial) in [0, 1]: of the first stage the channel that varies most in the first frame."""
    maps = first_stage(model, frames)
    chosen = maps[:, [int(maps[0].flatten(1).var(1).argmax())]]
    return chosen / chosen.amax().clamp_min(1e-12)


def _first_of_each(labels: np.ndarray) -> list[int]:
    """The first image of each label, of a multilabel task the first with exactly that label, at most four."""
    classes = range(labels.shape[1]) if labels.ndim == 2 else np.unique(labels)
    is_it = [labels[:, c] * (labels.sum(1) == 1) if labels.ndim == 2 else labels == c for c in classes]
    return [int(each.argmax()) for each in is_it if each.any()][:_EXAMPLES] or [0]


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
