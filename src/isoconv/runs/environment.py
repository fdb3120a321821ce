"""What a training ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoconv._version import __version__
from isoconv.runs.config import TrainConfig
from isoconv.runs.device import resolve_device


def environment(config: TrainConfig) -> dict[str, Any]:
    """What a training ran on."""
    device = resolve_device(config.device)
    return {
        "isoconv": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "seed": config.seed,
    }


def _commit() -> str | None:
    """Commit of the checkout that isoconv is imported from; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
