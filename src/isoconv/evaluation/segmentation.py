"""Segmentation: a label for each pixel. Training as in :mod:`isoconv.training`, with another loss; evaluation on images
that turn, by Dice.

The loss is cross-entropy plus soft Dice (Isensee et al., nnU-Net, 2021). Networks see images in one orientation only,
whole ones and ones cut to the inscribed disc by turns.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoconv._checks import did_you_mean
from isoconv._extras import require
from isoconv.data import TASKS, Dataset, DeviceBatches, Task, own_path
from isoconv.data import vessels as synthetic
from isoconv.data.files import read_images, split_index
from isoconv.data.masks import read_pairs
from isoconv.data.vessels import VESSELS
from isoconv.evaluation.measuring import multiply_adds, with_progress
from isoconv.evaluation.protocols import Condition, conditions
from isoconv.evaluation.segment_comparison import compare as compare
from isoconv.runs import RunDir, atomic_write, resolve_device, write_json
from isoconv.runs.config import TrainConfig
from isoconv.symmetry import circular_mask
from isoconv.tasks.dice import bootstrap, count, foreground, pooled
from isoconv.tasks.metrics import interval, number
from isoconv.training.loop import Classifier, fit

__all__ = ["Segmenter", "compare", "evaluate", "load", "predict", "segmentation_loss", "train"]

_BATCH_SIZE = {2: 64, 3: 4}


def load(data: str, size: int) -> Dataset:
    """A synthetic set by name, or a folder of images and masks (see :mod:`isoconv.data.masks`)."""
    if data in VESSELS:
        return synthetic.generate(data, size)
    if (path := own_path(data)) and path.is_dir():
        return read_pairs(path, size)
    if data in TASKS:
        raise ValueError(f"{data} has a label per image, not per pixel; use isoconv train")
    known = f"{', '.join(VESSELS)} or a folder with images/ and masks/"
    raise ValueError(f"unknown segmentation data {data!r}: expected {known}{did_you_mean(data, VESSELS)}")


def train(config: TrainConfig, resume: bool = False) -> RunDir:
    """Train a U-Net and return its run directory; arguments and errors as of :func:`isoconv.training.train`.

    Defaults of the config are those for classification; `isoconv segment train` has ``width=32``, ``size=64`` and
    ``batch_size=8``.

    Raises:
        ValueError: also for data that :func:`load` refuses, and for augmentation, which would move images without their
            masks.
    """
    if config.rotate or config.recipe != "standard":
        raise ValueError("segmentation trains by recipe standard without rotation; leave out --recipe and --rotate")
    data = load(config.data, config.size)
    return fit(config, data.task, lambda: data, Segmenter, augment=None, masked=False, resume=resume)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice loss, ``1 - mean over classes of 2 |P T| / (|P| + |T|)``, sums over the batch.

    Args:
        logits: (N, K, *spatial).
        labels: (N, *spatial), whole numbers 0..K-1.
    """
    labels = labels.long()
    pixels = [0, *range(2, logits.dim())]
    target = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    share = logits.float().softmax(1)
    overlap, sizes = (share * target).sum(pixels), (share + target).sum(pixels)
    return F.cross_entropy(logits, labels) + 1 - ((2 * overlap + 1) / (sizes + 1)).mean()  # 1: for absent classes


class Segmenter(Classifier):
    """A network that learns a label per pixel; the best epoch is that of the largest mean Dice of the classes but the
    background."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loss = segmentation_loss

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Every second batch is cut to the inscribed disc, as turned images are: a network has to know both."""
        images, labels = batch
        if self.global_step % 2 == 0:
            return super().training_step(batch)
        disc = circular_mask(images.shape[2:], device=images.device)
        return self.loss(self(images * disc)[..., disc], labels[..., disc])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        logits = self(images).float()
        counts = count(logits.argmax(1), labels, logits.shape[1])
        return {"loss": self.loss(logits, labels), "counts": counts}

    def validation_loss(self, outputs: Sequence[Mapping[str, Tensor]]) -> float:
        loss = torch.stack([batch["loss"] for batch in outputs])
        images = torch.tensor([len(batch["counts"]) for batch in outputs], device=loss.device)
        return ((loss * images).sum() / images.sum()).item()

    def scores(self, outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, float | None]:
        return {"val_dice": foreground(pooled(torch.cat([batch["counts"] for batch in outputs]))).item()}

    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        return line["val_dice"], -line["val_loss"]

    def summary(self, line: Mapping[str, Any]) -> str:
        return f"dice {line['val_dice']:.4f}"


def evaluate(
    run: RunDir | str | os.PathLike[str], batch_size: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Measure the network of a run on its test split, upright and in every other position of protocol standard.

    Image and mask are turned alike, and Dice, pooled over all images, is taken within the inscribed disc (ball), which
    stays in view. A turned mask is the class of the largest share where the masks of the classes are interpolated
    linearly. The run directory gets ``segmentation.npz`` (``counts``, see :mod:`isoconv.tasks.dice`, in the positions
    that ``conditions`` names), ``segmentation.json`` and ``figures/dice.png``.

    Returns:
        Plain JSON values: ``summary``, Dice 0..1 averaged over all classes but the background (``upright``,
        ``upright_unmasked``: of the whole image, ``rotated_mean``, ``rotated_worst``, ``rotated_worst_at``,
        ``right_angles``, ``flips``); ``classes``, the same of each class; ``conditions``, Dice in each position, None
        for a class that is nowhere; ``data``, ``training`` and ``cost``. Names that end with ``_ci`` are 95 % intervals
        of a bootstrap over test images.

    Raises:
        FileNotFoundError: no run there, or it has no network yet; or its data set is gone.
        ValueError: the run is not one of segmentation, or its data changed since.
        PermissionError: the run directory cannot be written; nothing is computed then.
    """
    from isoconv.figures.drawing import save_dice

    run = run if isinstance(run, RunDir) else RunDir(run)
    run.check_segments("evaluate")
    run.check_writable()
    run.check_has_data()
    run.warn_unfinished()
    task, config = run.model_info["task"], run.config
    data = load(config.data, run.model_info["input_size"])
    if (data.task.dims, data.task.labels) != (task["dims"], tuple(task["labels"])):
        raise ValueError(f"{config.data} holds other classes than {run.path} was trained on; restore the data")
    run.check_data(data.fingerprints, ["test"])
    target = resolve_device(device)
    model = run.load_model().to(target)
    positions = conditions("standard", data.task.dims)
    size = _BATCH_SIZE[data.task.dims] if batch_size is None else batch_size
    counts = _counts(model, DeviceBatches(data.test, size, device=target, seed=0, shuffle=False), positions, data.task)
    result = {
        "protocol": "standard",
        "data": {"name": task["name"], "source": data.source, "size": data.size, "test_images": len(data.test)},
        "training": {"seed": config.seed, "epochs": config.epochs, "best_epoch": run.model_info["epoch"]},
        **_scores(counts, positions, data.task.labels),
        "cost": {
            "parameters": sum(p.numel() for p in model.parameters()),
            **multiply_adds(model, data.test.images[:1].to(target).float() / 255),
            "training_seconds": round(sum(line["seconds"] for line in run.metrics()), 3),
        },
    }
    names = np.array([position.name for position in positions])
    atomic_write(run.path / "segmentation.npz", lambda f: np.savez(f, counts=counts.numpy(), conditions=names))
    write_json(run.path / "segmentation.json", result)
    save_dice(run)
    return result


@torch.inference_mode()
def _counts(model: nn.Module, batches: DeviceBatches, positions: Sequence[Condition], task: Task) -> Tensor:
    """Counts (positions, N, K, 3), see :mod:`isoconv.tasks.dice`."""
    counts, classes = [], len(task.labels)
    for images, labels in with_progress(batches):
        disc = circular_mask(images.shape[2:], device=images.device)
        shares = F.one_hot(labels.long(), classes).movedim(-1, 1).float()
        rows = []
        for position in positions:
            found, true = model(position.apply(images)).argmax(1), position.apply(shares).argmax(1)
            whole = position.group == "unmasked"
            rows.append(count(*((found, true) if whole else (found[:, disc], true[:, disc])), classes))
        counts.append(torch.stack(rows).cpu())
    return torch.cat(counts, dim=1)


def _scores(counts: Tensor, positions: Sequence[Condition], labels: Sequence[str]) -> dict[str, Any]:
    """``summary``, ``classes`` and ``conditions`` of :func:`evaluate`."""
    # the mean of the foreground, then each class: Dice (positions,), and what the bootstrap makes of it
    dice, samples = ([foreground(each), *each.unbind(-1)] for each in (pooled(counts), bootstrap(counts)))
    mean, *values = ([number(value) for value in each.tolist()] for each in dice)
    mean_ci, *intervals = map(_intervals, samples)
    table = [
        {
            "name": position.name,
            "group": position.group,
            "angle": position.angle,
            "right_angle": position.right_angle,
            "dice": mean[i],
            "dice_ci": mean_ci[i],
            "classes": {label: each[i] for label, each in zip(labels, values, strict=True)},
            "classes_ci": {label: each[i] for label, each in zip(labels, intervals, strict=True)},
        }
        for i, position in enumerate(positions)
    ]
    summary, *classes = (_summary(positions, *column) for column in zip(dice, samples, strict=True))
    return {"summary": summary, "classes": dict(zip(labels, classes, strict=True)), "conditions": table}


def _summary(positions: Sequence[Condition], dice: Tensor, samples: Tensor) -> dict[str, Any]:
    """Of Dice (positions,) and what the bootstrap made of it (resamples, positions)."""
    turned = [i for i, p in enumerate(positions) if p.group in ("rotation", "cube") and not dice[i].isnan()]
    worst = min(turned, key=lambda i: dice[i].item(), default=None)
    summary: dict[str, Any] = {
        "rotated_worst": None if worst is None else dice[worst].item(),
        "rotated_worst_at": None if worst is None else positions[worst].name,
    }
    for name, chosen in {
        "upright": [True] + [False] * (len(positions) - 1),
        "upright_unmasked": [p.group == "unmasked" for p in positions],
        "rotated_mean": [p.group == "rotation" for p in positions],
        "right_angles": [p.right_angle for p in positions],
        "flips": [p.group == "flip" for p in positions],
    }.items():
        summary[name] = number(dice[chosen].nanmean().item())
        (summary[f"{name}_ci"],) = _intervals(samples[:, chosen].nanmean(1, keepdim=True))
    return summary


def _intervals(samples: Tensor) -> list[list[float] | None]:
    return [None if math.isnan(low) else [low, high] for low, high in interval(samples)]


def predict(
    run: RunDir | str | os.PathLike[str], paths: Sequence[Path], out: Path, device: str = "auto"
) -> dict[str, Path]:
    """Write the mask of each image, label numbers 0..K-1, to the folder ``out``: PNG for images, npy for volumes.

    Images are cropped and resized as :func:`isoconv.data.read_images` does; a mask has the size of the training.

    Returns:
        The mask's file for each image.

    Raises:
        FileExistsError: a mask is there already; nothing is written then.
        ValueError: two images have the same name, or :func:`isoconv.data.read_images` refuses one.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    run.check_segments("predict")
    task, target = run.model_info["task"], resolve_device(device)
    names, images = read_images(paths, channels=task["channels"], size=run.model_info["input_size"], dims=task["dims"])
    suffix = ".png" if task["dims"] == 2 else ".npy"
    files = {name: out / (_file_name(name) + suffix) for name in names}
    if len(set(files.values())) < len(files):
        raise ValueError("several images have the same name, their masks would be one file; predict them apart")
    if taken := [path for path in files.values() if path.exists()]:
        raise FileExistsError(f"{taken[0]} exists already; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    model = run.load_model().to(target)
    with torch.inference_mode():
        for name, image in zip(names, images, strict=True):
            mask = model(image[None].to(target).float() / 255).argmax(1)[0].to(torch.uint8).cpu().numpy()
            atomic_write(files[name], partial(_write_mask, mask))
    return files


def _file_name(name: str) -> str:
    """``"cell"`` of ``"scans/cell.png"``, ``"stack_7"`` of ``"stack.npy[7]"``, ``"set_images_7"`` of
    ``"set.npz:images[7]"``."""
    source, index = split_index(name)
    path, *array = re.split(r"(?<=\.npz):", source, flags=re.IGNORECASE)
    return "_".join([Path(path).stem, *array, *([] if index is None else [str(index)])])


def _write_mask(mask: np.ndarray, file: IO[bytes]) -> None:
    if mask.ndim == 2:
        require("PIL.Image", "study").fromarray(mask).save(file, format="PNG")
    else:
        np.save(file, mask, allow_pickle=False)
