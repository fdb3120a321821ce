"""The main job in a few minutes, without a download: an isotropic network and its plain twin, trained on upright images
of the embedded set ``cells`` and tested on turned ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoconv.evaluation.comparison import compare
from isoconv.evaluation.measuring import evaluate
from isoconv.figures import save_all, save_comparison
from isoconv.runs.config import TrainConfig
from isoconv.training.loop import train

__all__ = ["NETWORKS", "demo"]

log = logging.getLogger(__name__)

NETWORKS: Mapping[str, tuple[int, ...] | None] = {"sre_resnet18": (5, 5, 3, 3), "resnet18": None}
"""Kernel sizes by network; None stands for the network's own."""


def demo(
    out: Path, *, epochs: int = 8, width: int = 8, threads: int | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Train both networks, evaluate them by the standard protocol, compare them.

    Args:
        out: folder that gets a run directory per network and the common ``figures``. What an earlier call finished
            there is not trained again.
        epochs, width: of both networks; the defaults take a few minutes on two cores.
        threads: CPU threads; None stands for torch's choice.

    Returns:
        What :func:`isoconv.evaluation.compare` says of the two runs, and the paths of the figures.

    Raises:
        ValueError: ``out`` holds runs with other options.
    """
    runs = []
    for model, kernel_sizes in NETWORKS.items():
        config = TrainConfig(
            data="cells",
            model=model,
            out=out / model,
            width=width,
            kernel_sizes=kernel_sizes,
            epochs=epochs,
            batch_size=32,
            lr=1e-2,
            threads=threads,
        )
        log.info("training %s on upright images", model)
        runs.append(train(config, resume=(out / model / "config.json").exists()))
    for run in runs:
        log.info("showing the test images in all positions to %s", run.config.model)
        evaluate(run)
        save_all(run)
    return compare(runs), save_comparison(runs, out / "figures")
