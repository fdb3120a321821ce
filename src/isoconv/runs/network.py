"""A network behind what it is trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from isoconv.symmetry import circular_mask


class OnImages(nn.Module):
    """``net`` behind what it is trained with: images in [0, 1] become (x - 0.5) / 0.5.

    Args:
        masked: black out what is outside of the inscribed disc (ball) first. A turned image has nothing of its own
            there, and a network that is used to corners can lose accuracy for their absence.
        outputs: shift and scale of each output, which bring numbers around 0 to the unit of the targets; None for
            outputs as they are.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self, net: nn.Module, masked: bool, outputs: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        self.net, self.masked = net, masked
        shift, scale = (None, None) if outputs is None else map(torch.tensor, outputs)
        self.register_buffer("shift", shift, persistent=False)  # part of the config, not of the weights
        self.register_buffer("scale", scale, persistent=False)

    @property
    def outputs(self) -> tuple[list[float], list[float]] | None:
        """Shift and scale as they were given."""
        return None if self.shift is None or self.scale is None else (self.shift.tolist(), self.scale.tolist())

    def forward(self, images: Tensor) -> Tensor:
        if self.masked:
            images = images * circular_mask(images.shape[2:], device=images.device)
        outputs = self.net((images - 0.5) / 0.5)
        return outputs if self.shift is None or self.scale is None else outputs * self.scale + self.shift


def check_state(path: Path, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit, naming the first that differs."""
    remedy = "it was written by another architecture; use the run directory that it came from"
    for name in [*expected, *got]:
        have, want = (tuple(s[name].shape) if name in s else "absent" for s in (got, expected))
        if have != want:
            raise ValueError(
                f"{path} does not fit the network: {name} is {have} in the file, {want} in the network; {remedy}"
            )
