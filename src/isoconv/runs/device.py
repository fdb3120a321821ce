"""Where to compute."""

from __future__ import annotations

import os
from typing import get_args

import torch

from isoconv._checks import check_threads
from isoconv.runs.config import Device


def resolve_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"`` or ``"cuda"`` as a device; auto is a GPU where torch can use one."""
    if name not in (known := get_args(Device)):
        raise ValueError(f"device must be one of {', '.join(known)}, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "device cuda was asked for, but torch finds no GPU; use --device cpu, or install a CUDA build of torch"
        )
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many CPU threads; None leaves it as it is. Raises ValueError for more than make
    sense."""
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
