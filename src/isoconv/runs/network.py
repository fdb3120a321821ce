"""A network behind what it is trained with, and how one comes back from its description and its file of weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from isoconv._checks import did_you_mean
from isoconv.runs.reading import read_bytes
from isoconv.symmetry import circular_mask

__all__ = ["MAX_WEIGHTS", "OnImages", "build", "check_state", "read_weights", "sha256"]

MAX_WEIGHTS = 2**28
"""Most parameters of a network that is built from a file, and most weights of one dense kernel: 1 GiB as float32."""


class OnImages(nn.Module):
    """``net`` behind what it is trained with: images in [0, 1] become (x - 0.5) / 0.5.

    Args:
        masked: black out what is outside of the inscribed disc (ball) first. A turned image has nothing of its own
            there, and a network that is used to corners can lose accuracy for their absence.
        outputs: ``shift`` and ``scale`` of each output, which bring numbers around 0 to the unit of the targets; None
            for outputs as they are.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, net: nn.Module, masked: bool, outputs: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.net, self.masked = net, masked
        for name in ("shift", "scale"):  # part of the description, not of the weights
            self.register_buffer(name, None if outputs is None else torch.tensor(outputs[name]), persistent=False)

    @property
    def outputs(self) -> dict[str, list[float]] | None:
        """``shift`` and ``scale`` as they were given."""
        if self.shift is None or self.scale is None:
            return None
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    def forward(self, images: Tensor) -> Tensor:
        if self.masked:
            images = images * circular_mask(images.shape[2:], device=images.device)
        outputs = self.net((images - 0.5) / 0.5)
        return outputs if self.shift is None or self.scale is None else outputs * self.scale + self.shift


def build(where: str, model: Mapping[str, Any]) -> nn.Module:
    """The network of these arguments of :func:`isoconv.create_model`, without weights, on the meta device.

    Args:
        where: the file that holds them, the begin of the error.

    Raises:
        ValueError: no such network, or one larger than :data:`MAX_WEIGHTS`.
    """
    from isoconv.models import create_model

    try:
        with torch.device("meta"):
            net = create_model(**model)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where} does not describe a network of this version of isoconv: {error}") from None
    sizes = {"parameters": sum(p.numel() for p in net.parameters())}
    sizes |= {f"weights in the dense kernel of {name}": _dense(module) for name, module in net.named_modules()}
    for what, count in sizes.items():
        if count > MAX_WEIGHTS:
            raise ValueError(f"{where} describes a network of {count:,} {what}, expected at most {MAX_WEIGHTS:,}")
    return net


def _dense(layer: Any) -> int:
    """Weights of a convolution of one group whose taps are written out one by one."""
    if not hasattr(layer, "kernel_size") or not hasattr(layer, "in_channels"):
        return 0
    return layer.in_channels * layer.out_channels * math.prod(layer.kernel_size)


def sha256(content: bytes) -> str:
    """As 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_weights(
    path: Path, expected: Mapping[str, Tensor], checksum: str, noted: str, remedy: str
) -> dict[str, Tensor]:
    """Weights of a network, on the CPU.

    Args:
        path: a safetensors file.
        expected: the state of a network without weights, that :func:`build` made.
        checksum: SHA-256 of the file.
        noted: the file that holds the checksum.
        remedy: the end of the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, damaged, of another network, or holds numbers that no training gives.
    """
    most = 2**20 + sum(8 * value.numel() + 1024 for value in expected.values())  # 64-bit weights, and a header
    content = read_bytes(path, remedy, missing=remedy, limit=most)
    try:
        state = safetensors.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a complete weights file ({error}); {remedy}") from None
    check_state(f"{path} does not fit the network", state, expected, remedy)
    if sha256(content) != checksum:
        raise ValueError(f"{path} has another checksum than {noted} beside it notes; {remedy}")
    for name, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name} must hold finite numbers, got NaN or infinity; {remedy}")
    return state


def check_state(where: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor], remedy: str) -> None:
    """Raises ValueError for weights that do not fit, naming the first that differs.

    Args:
        where, remedy: begin and end of the error.
    """
    for name in [*expected, *got]:
        if name not in got:
            told = f"is missing{did_you_mean(name, got.keys() - expected.keys())}"
        elif name not in expected:
            told = f"is unknown{did_you_mean(name, expected.keys() - got.keys())}"
        elif got[name].shape != expected[name].shape:
            told = f"is {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}"
        elif not _alike(got[name], expected[name]):
            told = f"is {got[name].dtype}, expected {expected[name].dtype}"
        else:
            continue
        raise ValueError(f"{where}: {name} {told}; {remedy}")
    if len(kinds := {value.dtype for value in got.values() if value.is_floating_point()}) > 1:
        raise ValueError(f"{where}: weights must be of one dtype, got {', '.join(sorted(map(str, kinds)))}; {remedy}")


def _alike(got: Tensor, expected: Tensor) -> bool:
    """A network may have been converted to another floating type as a whole."""
    return got.dtype == expected.dtype or (got.is_floating_point() and expected.is_floating_point())
