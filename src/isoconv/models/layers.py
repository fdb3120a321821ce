"""What the networks are made of: one way to convolve, normalise, activate and resample for each kind of network.

Networks ask for layers by numbers of channels. To a steerable network a number of channels stands for fields: after an
activation for as many scalars, and the directed fields beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._checks import did_you_mean
from isoconv.models.group import GroupConv2d, GroupMaxPool2d, GroupNorm2d, order
from isoconv.nn.conv import SREOptions
from isoconv.nn.fields import Fields, joined

__all__ = ["GroupLayers", "IsotropicLayers", "PlainLayers", "SteerableLayers"]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_GLOBAL_POOL = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_SRE_CONV = {2: iso.SREConv2d, 3: iso.SREConv3d}
_STEERABLE_CONV = {2: iso.SteerableConv2d, 3: iso.SteerableConv3d}
_AVG_POOL = {2: iso.SymmetricAvgPool2d, 3: iso.SymmetricAvgPool3d}

_DOWNSAMPLE = ("symmetric", "strided")
_FORMS = ("carried", "dropped")

Channels: TypeAlias = Any  # their number, or Fields
Join: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class PlainLayers:
    """How a plain network computes: strides in the convolutions."""

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def conv(self, inputs: Channels, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        return _CONV[self.dims](inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def stem(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        return self.conv(inputs, outputs, kernel, stride)

    def project(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [self.conv(inputs, outputs, 1, stride)]

    def pointwise(self, inputs: Channels, outputs: Channels) -> nn.Module:
        """A 1x1 convolution with bias, between what activations give."""
        return _CONV[self.dims](inputs, outputs, 1)

    def norm(self, channels: int) -> nn.Module:
        return _NORM[self.dims](channels)

    def activation(self, channels: int) -> nn.Module:  # noqa: ARG002 - gates need it
        return nn.ReLU(inplace=True)

    def image(self, channels: int) -> Channels:
        """What the channels of an image, or of logits, are."""
        return channels

    def joined(self, channels: int) -> Channels:
        """What :meth:`join` makes of two maps of ``channels``."""
        return 2 * channels

    def join(self, channels: int) -> Join:  # noqa: ARG002 - fields need it
        """What makes one map of two of ``channels``."""
        return _concatenated

    def kept(self, inputs: int, outputs: int) -> bool:
        """Whether what an activation gives can be added to what a norm gives."""
        return inputs == outputs

    def head(self, channels: int, num_classes: int) -> tuple[nn.Module, nn.Linear]:
        return _GLOBAL_POOL[self.dims](1), nn.Linear(channels, num_classes)


class IsotropicLayers(PlainLayers):
    """How an SRE-ResNet convolves: symmetric mean pooling for a stride, then an isotropic convolution; or strided
    isotropic convolutions, if ``downsample`` says so."""

    def __init__(self, dims: int, downsample: str, options: SREOptions) -> None:
        super().__init__(dims)
        if downsample not in _DOWNSAMPLE:
            hint = did_you_mean(downsample, _DOWNSAMPLE)
            raise ValueError(f"downsample must be {' or '.join(_DOWNSAMPLE)}, got {downsample!r}{hint}")
        self.strided, self.options = downsample == "strided", options

    def conv(self, inputs: Channels, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        step = stride if self.strided else 1
        conv = _SRE_CONV[self.dims](inputs, outputs, kernel, step, kernel // 2, bias=False, **self.options)
        return conv if stride == step else nn.Sequential(_AVG_POOL[self.dims](), conv)

    def stem(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        if stride == 1:
            return self.conv(inputs, outputs, kernel)
        conv = _SRE_CONV[self.dims](inputs, outputs, kernel, stride, kernel // 2, bias=False, **self.options)
        return conv if self.strided else nn.Sequential(_centre_grid(self.dims, kernel, stride), conv)

    def project(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        if self.strided:
            return [_CONV[self.dims](inputs, outputs, 1, stride, bias=False)]
        pool = [] if stride == 1 else [_AVG_POOL[self.dims]()]
        return [*pool, _CONV[self.dims](inputs, outputs, 1, bias=False)]


class GroupLayers(PlainLayers):
    """How a group-equivariant ResNet convolves: symmetric mean pooling for a stride, then a group convolution."""

    def __init__(self, group: str) -> None:
        super().__init__(2)
        self.group = group

    def conv(self, inputs: Channels, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        conv = GroupConv2d(inputs, outputs, kernel, padding=kernel // 2, group=self.group)
        return conv if stride == 1 else nn.Sequential(iso.SymmetricAvgPool2d(), conv)

    def stem(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        conv = GroupConv2d(inputs, outputs, kernel, stride, kernel // 2, group=self.group, scalar=True)
        return conv if stride == 1 else nn.Sequential(_centre_grid(2, kernel, stride), conv)

    def project(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [self.conv(inputs, outputs, 1, stride)]

    def norm(self, channels: int) -> nn.Module:
        return GroupNorm2d(channels, self.group)

    def head(self, channels: int, num_classes: int) -> tuple[nn.Module, nn.Linear]:
        pool = nn.Sequential(GroupMaxPool2d(self.group), _GLOBAL_POOL[2](1))
        return pool, nn.Linear(channels // order(self.group), num_classes)


class SteerableLayers(PlainLayers):
    """How a steerable network computes: symmetric mean pooling for a stride, steerable convolutions, gates.

    Where a plain network has w channels, convolutions give fields that are w together, ``shares`` saying how many of
    each order; activations add to the scalars one for each other field (:class:`isoconv.nn.FieldGate`), which makes
    them w. In the ``"dropped"`` form the magnitudes take the place of the fields in every convolution.
    """

    def __init__(self, dims: int, shares: Sequence[int], form: str, options: dict[str, Any]) -> None:
        super().__init__(dims)
        if form not in _FORMS:
            raise ValueError(f"form must be {' or '.join(_FORMS)}, got {form!r}{did_you_mean(form, _FORMS)}")
        self.shares, self.dropped, self.options = tuple(shares), form == "dropped", options

    def _made(self, channels: int) -> Fields:
        """What convolutions give, before the magnitudes if these take the place of fields."""
        directed = [max(channels * share // sum(self.shares), min(share, 1)) for share in self.shares[1:]]
        if sum(directed) > channels:
            raise ValueError(f"a width of {channels} is too small for a field of every order up to {len(directed)}")
        return Fields.of(dict(enumerate([channels - sum(directed), *directed])), self.dims)

    def _normed(self, channels: int) -> Fields:
        return self.image(channels) if self.dropped else self._made(channels)

    def _held(self, channels: Channels) -> Fields:
        """What activations give."""
        if isinstance(channels, Fields):
            return channels
        return Fields.of(self._normed(channels).counts | {0: channels}, self.dims)

    def conv(self, inputs: Channels, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        pool = [] if stride == 1 else [_AVG_POOL[self.dims]()]
        return _chain(*pool, *self._convs(self._held(inputs), outputs, kernel))

    def stem(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        grid = [] if stride == 1 else [_centre_grid(self.dims, kernel, stride)]
        return _chain(*grid, *self._convs(self.image(inputs), outputs, kernel, stride))

    def _convs(self, inputs: Fields, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        fields = self._made(outputs)
        conv = _STEERABLE_CONV[self.dims](inputs, fields, kernel, stride, kernel // 2, bias=False, **self.options)
        return [conv, iso.FieldMagnitudes(fields)] if self.dropped else [conv]

    def project(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        pool = [] if stride == 1 else [_AVG_POOL[self.dims]()]
        fields = self._held(inputs), self._normed(outputs)
        return [*pool, _STEERABLE_CONV[self.dims](*fields, 1, bias=False, **self.options)]

    def pointwise(self, inputs: Channels, outputs: Channels) -> nn.Module:
        return _STEERABLE_CONV[self.dims](self._held(inputs), self._held(outputs), 1, **self.options)

    def norm(self, channels: int) -> nn.Module:
        return iso.FieldNorm(self._normed(channels))

    def activation(self, channels: int) -> nn.Module:
        return iso.FieldGate(self._normed(channels))

    def image(self, channels: int) -> Fields:
        return Fields(f"{channels}x0", self.dims)

    def joined(self, channels: int) -> Fields:
        return Fields.of({order: 2 * count for order, count in self._held(channels).counts.items()}, self.dims)

    def join(self, channels: int) -> Join:
        return partial(joined, self._held(channels))

    def kept(self, inputs: int, outputs: int) -> bool:
        return self._held(inputs) == self._normed(outputs)

    def head(self, channels: int, num_classes: int) -> tuple[nn.Module, nn.Linear]:
        pool = iso.InvariantPool(self._held(channels), magnitudes=False)
        return pool, nn.Linear(channels, num_classes)


def _chain(*modules: nn.Module) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _concatenated(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], dim=1)


def _centre_grid(dims: int, kernel: int, stride: int) -> nn.Module:
    return iso.CentreGrid((kernel,) * dims, (stride,) * dims, (kernel // 2,) * dims, (1,) * dims)
