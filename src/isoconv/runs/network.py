"""A network behind what it is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from isoconv.symmetry import circular_mask


class OnImages(nn.Module):
    """``net`` behind what it is trained with: images in [0, 1] become (x - 0.5) / 0.5.

    Args:
        masked: black out what is outside of the inscribed disc (ball) first. A turned image has nothing of its own
            there, and a network that is used to corners can lose accuracy for their absence.
    """

    def __init__(self, net: nn.Module, masked: bool) -> None:
        super().__init__()
        self.net, self.masked = net, masked

    def forward(self, images: Tensor) -> Tensor:
        if self.masked:
            images = images * circular_mask(images.shape[2:], device=images.device)
        return self.net((images - 0.5) / 0.5)


def check_state(path: Path, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit, naming the first that differs."""
    remedy = "it was written by another architecture; use the run directory that it came from"
    for name in [*expected, *got]:
        have, want = (tuple(s[name].shape) if name in s else "absent" for s in (got, expected))
        if have != want:
            raise ValueError(
                f"{path} does not fit the network: {name} is {have} in the file, {want} in the network; {remedy}"
            )
