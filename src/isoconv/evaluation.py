"""How a trained network does on the test images, upright and in every other position of a protocol, and how runs compare.

What is scored is the network chosen on the validation split; test images are used here only. See :mod:`isoconv.protocols` for the
positions and :mod:`isoconv.metrics` for the scores.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._extras import require
from .comparison import compare as compare
from .data import DeviceBatches, Split, Task, load
from .metrics import bootstrap, classification_metrics, correct, decide, interval
from .nn.conv import _BandedConv
from .protocols import Condition, conditions
from .runs import RunDir, atomic_write, resolve_device, write_json

__all__ = ["compare", "evaluate", "measure", "multiply_adds"]

BATCH_SIZE = {2: 256, 3: 16}
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def evaluate(
    run: RunDir | str | os.PathLike[str],
    protocol: str = "standard",
    batch_size: int | None = None,
    device: str = "auto",
    limit: int | None = None,
) -> dict[str, Any]:
    """Measure the network of a run on its test split.

    It adds an entry under the protocol's name to ``results.json``, the logits to ``predictions.npz`` and draws ``figures/``. Other
    protocols' results stay.

    Args:
        run: a run directory.
        protocol: ``"standard"`` or ``"official"``.
        batch_size: images per forward pass; None stands for 256 in 2D, 16 in 3D.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        limit: only the first so many test images, for a quick look.

    Returns:
        The entry: ``summary`` (accuracies, shares of 1, see :func:`measure`), ``conditions``, ``upright``, ``cost``, ``notes`` and what
        was evaluated, all plain JSON values.

    Raises:
        FileNotFoundError: no run there, or it has no network yet.
        ValueError: unknown protocol, unreadable weights or earlier results.
        OSError: the run directory cannot be written; nothing is computed then.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    info, config = run.model_info, run.config
    conditions(protocol, info["task"]["dims"])  # refuses an unknown protocol before the work
    if not os.access(run.path, os.W_OK):
        raise PermissionError(f"{run.path} cannot be written, the results would be lost; get permission or copy the run")
    earlier, predictions = _earlier(run.path / "results.json", run), load_predictions(run.path)
    target = resolve_device(device)
    model = run.load_model().to(target)
    dataset = load(config.data, size=config.size, root=config.data_root)
    test = Split(dataset.test.images[:limit], dataset.test.labels[:limit])
    scores, logits = measure(model, dataset.task, test, protocol, info["size"], batch_size, target)
    result = {
        "protocol": protocol,
        "data": {"name": config.data, "size": config.size, "test_images": len(test), "labels": info["task"]["labels"]},
        "model": info["model"],
        "seed": config.seed,
        "training": {"recipe": config.recipe, "rotate": config.rotate, "best_epoch": info["epoch"], "epochs": config.epochs},
        "cost": {
            **multiply_adds(model, test.images[:1].to(target).float().div(255), info["size"]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_seconds": round(sum(line["seconds"] for line in run.metrics()), 1),
        },
        **scores,
    }
    names = [c["name"] for c in scores["conditions"]]
    predictions |= {
        f"{protocol}_logits": logits.numpy(),
        f"{protocol}_labels": test.labels.numpy(),
        f"{protocol}_conditions": np.array(names),
    }
    atomic_write(run.path / "predictions.npz", lambda f: np.savez(f, allow_pickle=False, **predictions))
    write_json(run.path / "results.json", {**earlier, protocol: result})
    return result
