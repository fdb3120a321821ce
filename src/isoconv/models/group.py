"""Group-equivariant rivals: convolutions over the four rotations of the square, or all its eight symmetries.

Cohen and Welling, Group Equivariant Convolutional Networks (arXiv 1602.07576): feature maps have a channel per field
and group element, a filter is learned once and applied in every position of the group. In the words of e2cnn: regular
fields of C4 and D4. Such networks tell orientations apart inside, where isotropic kernels do not, and forget them only
before the head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv.symmetry import Action, GridGroup, Scalars, Symmetry

__all__ = ["GROUPS", "GroupConv2d", "GroupMaxPool2d", "GroupNorm2d", "RegularFields", "order"]

GROUPS = {"c4": GridGroup.ROTATIONS, "d4": GridGroup.FULL}
"""Groups of the square by name."""


def order(group: str) -> int:
    """Number of elements of ``"c4"`` or ``"d4"``."""
    return len(GROUPS[group].elements(2))


def _act(x: Tensor, g: int) -> Tensor:
    """Element ``g`` on the last two axes of ``x``: a flip if ``g >= 4``, then ``g % 4`` quarter turns."""
    return torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1))


def _seen(g: int, h: int) -> int:
    """The number of the element that h is, seen from g: ``g^-1 h``. A flip turns quarter turns the other way round."""
    return 4 * (g // 4 ^ h // 4) + (h - g if g < 4 else g - h) % 4


@lru_cache
def _number(symmetry: Symmetry) -> int:
    probe = torch.arange(4).view(2, 2)
    return next(g for g in range(8) if torch.equal(_act(probe, g), symmetry(probe)))


@dataclass(frozen=True)
class RegularFields:
    """The :class:`isoconv.symmetry.Action` on any number of fields over ``group``, elements counted fastest: each
    element's channel goes where the symmetry takes the element. What is not in the group does not act."""

    group: str

    def has(self, g: Symmetry | Tensor) -> bool:
        return isinstance(g, Symmetry) and GROUPS[self.group].has(g)

    def act(self, g: Symmetry | Tensor, x: Tensor) -> Tensor:
        size = order(self.group)
        if not isinstance(g, Symmetry) or not self.has(g):
            raise ValueError(f"fields over {self.group} have no action of {g}")
        if x.shape[1] % size:
            raise ValueError(f"expected a multiple of {size} channels for fields over {self.group}, got {x.shape[1]}")
        moved = Scalars().act(g, x).unflatten(1, (-1, size))
        return moved[:, :, [_seen(_number(g), h) for h in range(size)]].flatten(1, 2)


class GroupConv2d(nn.Conv2d):
    """Convolution of fields: from ``in_channels`` scalar channels, or fields over the group, to fields over the group.

    Args:
        in_channels, out_channels: counted with the group's elements: fields x elements, elements counted fastest.
        group: ``"c4"`` or ``"d4"``.
        scalar: whether the input's channels are images, as of the first layer.

    Attributes:
        weight: (out fields, in fields, elements, k, k); for scalar input (out fields, in_channels, 1, k, k).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        group: str,
        scalar: bool = False,
    ) -> None:
        size = order(group)
        for channels in (out_channels, size if scalar else in_channels):
            if channels % size:
                raise ValueError(f"channels over {group} come in multiples of its order, {size}, got {channels}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False, device="meta")
        self.order, self.scalar, elements = size, scalar, 1 if scalar else size
        self.out_fields = RegularFields(group)
        self.in_fields: Action = Scalars() if scalar else self.out_fields
        shape = (out_channels // size, in_channels // elements, elements, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(self.weight.flatten(1, 2), mode="fan_in", nonlinearity="relu")

    def kernel(self) -> Tensor:
        """The dense kernel (out_channels, in_channels, k, k): the filters in every position."""
        elements = range(self.order)
        filters = [
            _act(self.weight if self.scalar else self.weight[:, :, [_seen(g, h) for h in elements]], g)
            for g in elements
        ]
        return torch.stack(filters, dim=1).flatten(2, 3).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), None, self.stride, self.padding)

    def plain(self) -> nn.Conv2d:
        """The convolution of the dense kernel, which gives the same outputs."""
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        plain = nn.Conv2d(self.in_channels, self.out_channels, size, stride, padding, bias=False, device="meta")
        plain.weight = nn.Parameter(self.kernel().detach(), self.weight.requires_grad)
        return plain.train(self.training)


class GroupNorm2d(nn.Module):
    """Batch normalisation that treats the elements of a field alike."""

    def __init__(self, channels: int, group: str) -> None:
        super().__init__()
        self.order = order(group)
        self.in_fields = self.out_fields = RegularFields(group)
        self.norm = nn.BatchNorm3d(channels // self.order)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(1, (-1, self.order))).flatten(1, 2)


class GroupMaxPool2d(nn.Module):
    """The largest of a field's elements, (N, fields, H, W): what they say of the orientation is forgotten."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.order = order(group)
        self.in_fields = RegularFields(group)

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.order)).amax(2)
