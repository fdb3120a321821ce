"""How a trained network does on the test images, upright and in every other position of a protocol.

What is scored is the network chosen on the validation split; test images are used here only. See
:mod:`isoconv.evaluation.protocols` for the positions and :mod:`isoconv.tasks.metrics` for the scores.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._extras import require
from isoconv.data import DeviceBatches, Split, Task, load, resize
from isoconv.evaluation.comparison import compare as compare
from isoconv.evaluation.comparison import load_predictions
from isoconv.evaluation.protocols import DISTURBANCES, Condition, conditions, is_masked
from isoconv.runs import RunDir, atomic_write, resolve_device, write_json
from isoconv.tasks.metrics import bootstrap, classification_metrics, correct, decide, interval

__all__ = ["compare", "evaluate", "measure", "multiply_adds", "position_logits", "with_progress"]

BATCH_SIZE = {2: 256, 3: 16}
_SRE = (iso.SREConv1d, iso.SREConv2d, iso.SREConv3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def evaluate(
    run: RunDir | str | os.PathLike[str],
    protocol: str = "standard",
    batch_size: int | None = None,
    device: str = "auto",
    limit: int | None = None,
) -> dict[str, Any]:
    """Measure the network of a run on its test split.

    The run directory gets an entry under the protocol's name in ``results.json``, the logits in ``predictions.npz``,
    and pictures in ``figures/``; what another protocol found stays.

    Args:
        run: a run directory.
        protocol: one of :data:`isoconv.evaluation.protocols.PROTOCOLS`.
        batch_size: images per forward pass; None stands for 256 in 2D, 16 in 3D.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        limit: only the first so many test images, for a quick look.

    Returns:
        The entry, plain JSON values: ``summary``, ``conditions``, ``upright`` and ``notes`` as :func:`measure` gives
        them, ``cost`` (``parameters``, ``training_seconds``, and what :func:`multiply_adds` counts), and what was
        evaluated; ``masked``: whether the images were black outside of the inscribed disc (ball).

    Raises:
        FileNotFoundError: no run there, or it has no network yet; or its data set is gone.
        ValueError: unknown protocol; weights, earlier results or test images that are not as they should be.
        PermissionError: the run directory cannot be written; nothing is computed then.
    """
    from isoconv.figures.drawing import save_all

    run = run if isinstance(run, RunDir) else RunDir(run)
    run.check_classifies("evaluate")
    info, config = run.model_info, run.config
    conditions(protocol, info["task"]["dims"])  # refuses an unknown protocol before the work
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    run.check_writable()
    run.check_has_data()
    run.warn_unfinished()
    earlier = run.results() if (run.path / "results.json").exists() else {}
    predictions: dict[str, Any] = load_predictions(run)
    target = resolve_device(device)
    model = run.load_model().to(target)
    dataset = load(config.data, size=config.size, root=config.data_root)
    if list(dataset.task.labels) != info["task"]["labels"]:
        trained = ", ".join(info["task"]["labels"])
        raise ValueError(f"{config.data} has other classes now than in the training, which were {trained}; train anew")
    run.check_data(dataset.fingerprints, ["test"])
    test = Split(dataset.test.images[:limit], dataset.test.labels[:limit])
    scores, logits = measure(
        model,
        dataset.task,
        test,
        protocol,
        masked=info["masked"],
        size=info["input_size"],
        batch_size=batch_size,
        device=target,
    )
    image = resize(test.images[:1].to(target).float().div(255), info["input_size"])
    result = {
        "protocol": protocol,
        "masked": is_masked(protocol, info["masked"]),
        "data": {"name": config.data, "size": config.size, "test_images": len(test), "labels": info["task"]["labels"]},
        "model": info["model"],
        "training": {
            "recipe": config.recipe,
            "rotate": config.rotate,
            "seed": config.seed,
            "epochs": config.epochs,
            "best_epoch": info["epoch"],
        },
        "cost": {
            "parameters": sum(p.numel() for p in model.parameters()),
            **multiply_adds(model, image),
            "training_seconds": round(sum(line["seconds"] for line in run.metrics()), 3),
        },
        **scores,
    }
    predictions |= {
        f"{protocol}_logits": logits.numpy(),
        f"{protocol}_labels": test.labels.numpy(),
        f"{protocol}_conditions": np.array([c["name"] for c in scores["conditions"]]),
    }
    atomic_write(run.path / "predictions.npz", lambda f: np.savez(f, **predictions))
    write_json(run.path / "results.json", {**earlier, protocol: result})
    save_all(run, protocol, image)
    return result


def measure(
    model: nn.Module,
    task: Task,
    split: Split,
    protocol: str = "standard",
    *,
    masked: bool = True,
    size: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], Tensor]:
    """Show a network the images of a split in every position of a protocol.

    Args:
        model: images (N, C, *spatial) in [0, 1] to logits (N, K); used in eval mode, its mode restored.
        task: what the labels mean.
        split: the images.
        masked: whether the network was trained with the mask; see :func:`isoconv.evaluation.protocols.conditions`.
        size: side in pixels to which images are resized before they are turned; None leaves them as they are.
        batch_size: as in :func:`evaluate`.
        device: where the model is.

    Returns:
        Logits, float32 (positions, N, K) on the CPU, and with them plain JSON values:

        - ``conditions``: for each position its name, group, angle, scores, the recall of each class, 95 % bootstrap
          intervals (over images) of accuracy and balanced accuracy, and ``consistency``: the share of images that are
          decided as when upright;
        - ``upright``: all of :func:`isoconv.tasks.metrics.classification_metrics` of the upright position;
        - ``summary``: ``upright``, and over all rotations with equal weights ``rotated_mean``, ``rotated_std``,
          ``rotated_worst`` are accuracies; ``right_angles`` (without the identity) and ``flips`` mean accuracies;
          ``drop`` is upright minus rotated mean; ``consistency`` its mean over rotations; ``constant`` the share of
          images decided alike, ``always_right`` of those decided rightly, in every rotation; AUC and balanced accuracy
          upright and rotated. In the protocol ``"disturbed"`` also, for each of
          :data:`isoconv.evaluation.protocols.DISTURBANCES`, such as ``noisy``, the mean accuracy, and
          ``noisy_balanced_accuracy``, ``noisy_auc``, ``noisy_consistency``. In the official protocol each accuracy
          is rounded to 0.01 % before averaging, as its code does.
        - ``notes``: what is undefined and why.

    Raises:
        ValueError: the split is empty, or logits are not finite or not (N, K).
    """
    positions = conditions(protocol, task.dims, masked)
    if not len(split):
        raise ValueError(f"the test split of {task.name} is empty; there is nothing to evaluate")
    batch_size = BATCH_SIZE[task.dims] if batch_size is None else batch_size
    batches = DeviceBatches(split, batch_size, device=device, seed=0, shuffle=False, resize=size)
    logits, labels = position_logits(model, with_progress(batches), positions), split.labels.cpu()
    passes = [classification_metrics(task.kind, each, labels, task.labels) for each in logits]
    same = correct(task.kind, logits, decide(task.kind, logits[0]))
    accuracy, balanced = bootstrap(task.kind, logits, labels)
    table = [
        {
            "name": position.name,
            "group": position.group,
            "angle": position.angle,
            "accuracy": scores["accuracy"],
            "accuracy_ci": accuracy_ci,
            "balanced_accuracy": scores["balanced_accuracy"],
            "balanced_accuracy_ci": balanced_ci,
            "auc": scores["auc"],
            "macro_f1": scores["macro_f1"],
            "consistency": alike.double().mean().item(),
            "recall": scores["per_class"]["recall"],
        }
        for position, scores, accuracy_ci, balanced_ci, alike in zip(
            positions, passes, interval(accuracy), interval(balanced), same, strict=True
        )
    ]
    summary = _summary(protocol, positions, table, accuracy)
    turned = [i for i, position in enumerate(positions) if position.group == "rotation"]
    summary["constant"] = same[turned].all(0).double().mean().item()
    summary["always_right"] = correct(task.kind, logits[turned], labels).all(0).double().mean().item()
    upright = {name: value for name, value in passes[0].items() if name != "notes"}
    return {"summary": summary, "conditions": table, "upright": upright, "notes": passes[0]["notes"]}, logits


def multiply_adds(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Multiply-adds of the convolutions and linear layers for ``images``.

    ``multiply_adds_dense`` counts every tap of a kernel, as for the fused plain network; ``multiply_adds_banded``
    counts an isotropic layer as channels x bands per output, what is left once the taps of a band are summed first."""
    counts = {"multiply_adds_dense": 0, "multiply_adds_banded": 0}

    def count(layer: Any, _: Any, output: Tensor) -> None:
        weights = layer.weight[0].numel()
        taps = weights // layer.bands * math.prod(layer.kernel_size) if isinstance(layer, _SRE) else weights
        counts["multiply_adds_banded"] += output.numel() * weights
        counts["multiply_adds_dense"] += output.numel() * taps

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (*_SRE, *_CONV, nn.Linear))]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@torch.inference_mode()
def position_logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], positions: Sequence[Condition]
) -> Tensor:
    """Logits, float32 (positions, N, K) on the CPU, of images in each of the positions; the model in eval mode."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        rows = [
            torch.stack([model(position.apply(images)).float().cpu() for position in positions])
            for images, _ in batches
        ]
    finally:
        for m in training:
            m.training = True
    return torch.cat(rows, dim=1)


def with_progress(batches: DeviceBatches) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches, and in a terminal a bar that tells how many are done."""
    console = require("rich.console", extra="study").Console(stderr=True)
    track = require("rich.progress", extra="study").track
    return track(
        batches, "test images", total=len(batches), console=console, disable=not sys.stderr.isatty(), transient=True
    )


def _summary(
    protocol: str, positions: Sequence[Condition], table: Sequence[dict[str, Any]], resampled: Tensor
) -> dict[str, Any]:
    """``resampled``: bootstrapped accuracies (resamples, positions)."""
    accuracy = torch.tensor([row["accuracy"] for row in table], dtype=torch.float64)
    if protocol == "official":
        accuracy = (100 * accuracy).round(decimals=2) / 100
    rotated, right, flips, unmasked = (
        [i for i, position in enumerate(positions) if chosen(position)]
        for chosen in (
            lambda p: p.group == "rotation",
            lambda p: p.right_angle,
            lambda p: p.group == "flip",
            lambda p: p.group == "unmasked",
        )
    )
    turned = [i for i, position in enumerate(positions) if position.group in ("rotation", "cube")]
    worst = min(turned, key=lambda i: accuracy[i])
    mean = resampled[:, rotated].mean(1)
    (mean_ci, drop_ci) = interval(torch.stack([mean, resampled[:, 0] - mean], dim=1))

    def average(name: str, chosen: Sequence[int] = rotated) -> float | None:
        values = [table[i][name] for i in chosen]
        return None if None in values else sum(values) / len(values)

    disturbed: dict[str, float | None] = {}
    for group in DISTURBANCES if protocol == "disturbed" else ():
        members = [i for i, position in enumerate(positions) if position.group == group]
        disturbed[group] = average("accuracy", members)
        disturbed |= {f"{group}_{name}": average(name, members) for name in ("balanced_accuracy", "auc", "consistency")}

    return {
        "upright": accuracy[0].item(),
        "upright_ci": table[0]["accuracy_ci"],
        **{table[i]["name"]: accuracy[i].item() for i in unmasked},
        "rotated_mean": accuracy[rotated].mean().item(),
        "rotated_mean_ci": mean_ci,
        "rotated_std": accuracy[rotated].std(correction=0).item(),
        "rotated_worst": accuracy[worst].item(),
        "rotated_worst_at": table[worst]["name"],
        "right_angles": accuracy[right].mean().item(),
        "flips": accuracy[flips].mean().item(),
        "drop": (accuracy[0] - accuracy[rotated].mean()).item(),
        "drop_ci": drop_ci,
        "upright_auc": table[0]["auc"],
        "rotated_auc": average("auc"),
        "upright_balanced_accuracy": table[0]["balanced_accuracy"],
        "rotated_balanced_accuracy": average("balanced_accuracy"),
        "consistency": average("consistency"),
        **disturbed,
    }
