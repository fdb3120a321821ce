"""The state of a whole training in one file, through lightning."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isoconv._extras import require
from isoconv.runs import atomic_write, check_state

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

_RECORDER = "Recorder"  # :class:`isoconv.training.loop.Recorder`: lightning files what a callback keeps under its class


class AtomicCheckpointIO(pl.plugins.TorchCheckpointIO):
    """Checkpoints that are either whole or not there, and are read without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        # in memory first: torch's writer answers a full disk with an unrelated error
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        atomic_write(Path(path), lambda f: f.write(buffer.getbuffer()))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU. Raises ValueError if the file is cut short or no checkpoint."""
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
        state["state_dict"], state["callbacks"][_RECORDER]["history"]
        return state
    except (RuntimeError, OSError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        remedy = "restore it from a copy, or train again with another --out"
        raise ValueError(f"{path} is cut short or no checkpoint of isoconv; {remedy}") from None


def history_of(path: Path, expected: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A line per epoch behind a checkpoint. Raises ValueError if it is damaged or its weights are not like these."""
    state = load_checkpoint(path)
    check_state(path, state["state_dict"], expected)
    return state["callbacks"][_RECORDER]["history"]
