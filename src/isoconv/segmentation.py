"""Segmentation: a label for each pixel. Training as in :mod:`isoconv.training`, with another loss; evaluation on images
that turn, by Dice.

The loss is cross-entropy plus soft Dice (Isensee et al., nnU-Net, 2021). Networks see images in one orientation only,
whole ones and ones cut to the inscribed disc by turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoconv._checks import did_you_mean
from isoconv._extras import require
from isoconv.config import TrainConfig
from isoconv.data import Dataset, DeviceBatches
from isoconv.data import vessels as synthetic
from isoconv.data.files import read_images
from isoconv.data.masks import read_pairs
from isoconv.data.vessels import VESSELS
from isoconv.evaluation import multiply_adds
from isoconv.protocols import conditions
from isoconv.runs import RunDir, atomic_write, resolve_device, write_json
from isoconv.symmetry import circular_mask
from isoconv.training import Classifier, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Segmenter", "dice_figure", "evaluate", "load", "predict", "segmentation_loss", "train"]

_BATCH_SIZE = {2: 64, 3: 4}


def load(data: str, size: int, seed: int = 0) -> Dataset:
    """A synthetic set by name, or a folder of images and masks (see :mod:`isoconv.data.masks`), whose splits ``seed``
    draws."""
    if data in VESSELS:
        return synthetic.generate(data, size)
    if Path(data).is_dir():
        return read_pairs(Path(data), size, seed)
    known = f"{', '.join(VESSELS)} or a folder with images/ and masks/"
    raise ValueError(f"unknown segmentation data {data!r}: expected {known}{did_you_mean(data, VESSELS)}")


def train(config: TrainConfig, resume: bool = False) -> RunDir:
    """Train a U-Net and return its run directory; arguments and errors as of :func:`isoconv.training.train`.

    Raises:
        ValueError: also for data that :func:`load` refuses, and for augmentation, which would move images without their
            masks.
    """
    if config.rotate or config.recipe != "standard":
        raise ValueError("segmentation trains by recipe standard without rotation; leave out --recipe and --rotate")
    data = load(config.data, config.size, config.seed)
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
        self.dice = _dice(len(self.task.labels))

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
        self.dice.update(logits.argmax(1), labels.long())
        return {"loss": self.loss(logits, labels), "images": torch.tensor(len(images), device=self.device)}

    def validation_loss(self, outputs: Sequence[Mapping[str, Tensor]]) -> float:
        loss, images = (torch.stack([batch[name] for batch in outputs]) for name in ("loss", "images"))
        return ((loss * images).sum() / images.sum()).item()

    def scores(self, _: Sequence[Mapping[str, Tensor]]) -> dict[str, float | None]:
        dice = self.dice.compute()
        self.dice.reset()
        return {"val_dice": dice[1:].nanmean().item()}

    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        return line["val_dice"], -line["val_loss"]

    def summary(self, line: Mapping[str, Any]) -> str:
        return f"dice {line['val_dice']:.4f}"


def _dice(classes: int) -> Any:
    """Dice of each class, its pixels pooled over all images; NaN for one that is neither there nor predicted."""
    metric = require("torchmetrics.segmentation", "study").DiceScore
    return metric(classes, average="none", aggregation_level="global", input_format="index")


def evaluate(
    run: RunDir | str | os.PathLike[str], batch_size: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Measure the network of a run on its test split, upright and in every other position of protocol standard.

    Image and mask are turned alike, and Dice is taken within the inscribed disc (ball), which stays in view. A turned
    mask is the class of the largest share where the masks of the classes are interpolated linearly. The run directory
    gets ``segmentation.json`` and ``figures/dice.png``.

    Returns:
        Plain JSON values: ``summary``, Dice 0..1 averaged over all classes but the background (``upright``,
        ``upright_unmasked``: of the whole image, ``rotated_mean``, ``rotated_worst``, ``rotated_worst_at``,
        ``right_angles``, ``flips``); ``classes``, the same of each class; ``conditions``, Dice in each position, None
        for a class that is nowhere; ``data`` and ``cost``.

    Raises:
        FileNotFoundError: no run there, or it has no network yet.
        ValueError: the run is not one of segmentation, or its data changed since.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    task, config = _task(run), run.config
    data = load(config.data, run.model_info["input_size"], config.seed)
    if (data.task.dims, data.task.labels) != (task["dims"], tuple(task["labels"])):
        raise ValueError(f"{config.data} holds other classes than {run.path} was trained on; restore the data")
    run.check_data(data.fingerprints, ["test"])
    target = resolve_device(device)
    model = run.load_model().to(target)
    positions = conditions("standard", data.task.dims)
    metrics = [_dice(len(task["labels"])).to(target) for _ in positions]
    size = _BATCH_SIZE[data.task.dims] if batch_size is None else batch_size
    batches = DeviceBatches(data.test, size, device=target, seed=0, shuffle=False)
    disc = circular_mask(data.test.images.shape[2:], device=target)
    with torch.inference_mode():
        for images, labels in batches:
            shares = F.one_hot(labels.long(), len(task["labels"])).movedim(-1, 1).float()
            for position, metric in zip(positions, metrics, strict=True):
                found, true = model(position.apply(images)).argmax(1), position.apply(shares).argmax(1)
                whole = position.group == "unmasked"
                metric.update(*((found, true) if whole else (found[:, disc], true[:, disc])))
    table: list[dict[str, Any]] = []
    for position, metric in zip(positions, metrics, strict=True):
        per_class = [None if value != value else value for value in metric.compute().tolist()]
        row: dict[str, Any] = {"name": position.name, "group": position.group, "angle": position.angle}
        row |= {"right_angle": position.right_angle, "dice": _mean(per_class[1:])}
        table.append({**row, "classes": dict(zip(task["labels"], per_class, strict=True))})
    result = {
        "protocol": "standard",
        "data": {"name": task["name"], "source": data.source, "test_images": len(data.test)},
        "summary": _summary(table, [row["dice"] for row in table]),
        "classes": {label: _summary(table, [row["classes"][label] for row in table]) for label in task["labels"]},
        "conditions": table,
        "cost": {
            "parameters": sum(p.numel() for p in model.parameters()),
            **multiply_adds(model, data.test.images[:1].to(target).float() / 255),
        },
    }
    write_json(run.path / "segmentation.json", result)
    figure = run.path / "figures" / "dice.png"
    figure.parent.mkdir(exist_ok=True)
    atomic_write(figure, lambda f: dice_figure(result).savefig(f, dpi=150))
    return result


def _task(run: RunDir) -> dict[str, Any]:
    if not run.segments:
        raise ValueError(f"{run.path} was trained to classify; use isoconv evaluate or predict")
    return run.model_info["task"]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of the values that there are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _summary(table: Sequence[Mapping[str, Any]], dice: Sequence[float | None]) -> dict[str, Any]:
    def of(*groups: str, right: bool = False) -> list[int]:
        return [i for i, row in enumerate(table) if row["group"] in groups and (row["right_angle"] or not right)]

    turned = [i for i in of("rotation", "cube") if dice[i] is not None]
    worst = min(turned, key=lambda i: dice[i] or 0.0, default=None)
    (as_is,) = of("unmasked")
    return {
        "upright": dice[0],
        "upright_unmasked": dice[as_is],
        "rotated_mean": _mean(dice[i] for i in of("rotation")),
        "rotated_worst": None if worst is None else dice[worst],
        "rotated_worst_at": None if worst is None else table[worst]["name"],
        "right_angles": _mean(dice[i] for i in of("rotation", "cube", right=True)),
        "flips": _mean(dice[i] for i in of("flip")),
    }


def dice_figure(result: Mapping[str, Any]) -> Figure:
    """Dice of each class but the background against the angle of rotation; in 3D a point for each rotation."""
    figure = require("matplotlib.figure", "study").Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    rows = sorted((row for row in result["conditions"] if row["angle"] is not None), key=lambda row: row["angle"])
    style = "." if any(row["group"] == "cube" for row in rows) else "-"
    for label in list(result["classes"])[1:]:
        axes.plot([row["angle"] for row in rows], [row["classes"][label] for row in rows], style, label=label)
    data = result["data"]
    axes.set(xlabel="rotation of the test images (degrees)", ylabel="Dice", ylim=(0, 1))
    axes.set_title(f"{data['name']}: {data['test_images']} test images, inside the inscribed disc")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    return figure


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
    task, target = _task(run), resolve_device(device)
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
    """``"cell"`` of ``"scans/cell.png"``, ``"stack_7"`` of ``"stack.npy[7]"``."""
    path, bracket, index = name.rpartition("[") if name.endswith("]") else (name, "", "")
    return Path(path).stem + (f"_{index[:-1]}" if bracket else "")


def _write_mask(mask: np.ndarray, file: IO[bytes]) -> None:
    if mask.ndim == 2:
        require("PIL.Image", "study").fromarray(mask).save(file, format="PNG")
    else:
        np.save(file, mask, allow_pickle=False)
