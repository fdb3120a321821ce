"""The state of a whole training in one file, through lightning.

torch writes a zip archive and reads it without comparing its checksums. So the comment that ends the archive holds the
SHA-256 of all that is before it: file and checksum are one, replaced at once, and any program for torch or zip files
still reads it.
"""

from __future__ import annotations

import hashlib
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
from isoconv.runs.reading import read_bytes

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

_REMEDY = "restore it from a copy, or train again with another --out"
_SEAL = b"sha256:"
_DIGEST = 64  # characters
_RECORDER = "Recorder"  # :class:`isoconv.training.loop.Recorder`: lightning files what a callback keeps under its class


class AtomicCheckpointIO(pl.plugins.TorchCheckpointIO):
    """Checkpoints that are either whole or not there, and are read without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        # in memory first: torch's writer answers a full disk with an unrelated error
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        seal(buffer)
        atomic_write(Path(path), lambda f: f.write(buffer.getbuffer()))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def seal(archive: io.BytesIO) -> None:
    """Add the checksum to what torch has saved."""
    archive.seek(-2, os.SEEK_END)  # the length of the comment ends a zip archive without one
    archive.write((len(_SEAL) + _DIGEST).to_bytes(2, "little") + _SEAL)
    archive.write(hashlib.sha256(archive.getbuffer()).hexdigest().encode())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU. Raises ValueError if the file is cut short, damaged or no checkpoint."""
    content = read_bytes(path, _REMEDY, missing=_REMEDY)
    body, digest = memoryview(content)[:-_DIGEST], content[-_DIGEST:]
    sealed = bytes(body[-len(_SEAL) :]) == _SEAL
    if sealed and hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged, it has another checksum than when it was written; {_REMEDY}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if sealed else {}
        state["state_dict"], state["callbacks"][_RECORDER]["history"]
        return state
    except (RuntimeError, OSError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        raise ValueError(f"{path} is cut short or no checkpoint of isoconv; {_REMEDY}") from None


def history_of(path: Path, expected: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A line per epoch behind a checkpoint. Raises ValueError if it is damaged or its weights are not like these."""
    state = load_checkpoint(path)
    remedy = "it was written by another architecture; use the run directory that it came from"
    check_state(f"{path} does not fit the network", state["state_dict"], expected, remedy)
    return state["callbacks"][_RECORDER]["history"]
