"""One residual network for 2D and 3D, isotropic, plain, or in 2D group-equivariant.

The isotropic network is that of SRE-Conv (arXiv 2501.09753): 3x3 convolutions become isotropic ones of larger kernels,
strides become mean pooling. Unlike the official code its logits are invariant to all flips and 90-degree rotations at
every input size, since the pooling is symmetric at odd sizes too. The plain twin differs in nothing but those layers:
same stem, same resolutions, same widths. The group-equivariant ones have these too; their channels are the positions of
a quarter or an eighth as many fields, and they pool as the isotropic ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._checks import check_counts, ntuple, spells_out
from isoconv.models.group import GROUPS, GroupConv2d
from isoconv.models.layers import GroupLayers, IsotropicLayers, PlainLayers
from isoconv.models.registry import register_family, register_model
from isoconv.nn.conv import SREOptions
from isoconv.nn.steerable import kept_symmetry
from isoconv.ops.resampling import is_traced
from isoconv.symmetry import GridGroup

VARIANTS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, layers: PlainLayers, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, width, kernel, stride)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, kernel)
        self.bn2 = layers.norm(width)
        self.relu, self.relu2 = layers.activation(width), layers.activation(width)
        self.downsample = _shortcut(layers, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, layers: PlainLayers, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        (self.conv1,) = layers.project(inputs, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, kernel, stride)
        self.bn2 = layers.norm(width)
        (self.conv3,) = layers.project(width, outputs, 1)
        self.bn3 = layers.norm(outputs)
        self.relu, self.relu2 = layers.activation(width), layers.activation(width)
        self.relu3 = layers.activation(outputs)
        self.downsample = _shortcut(layers, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(layers: PlainLayers, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and layers.kept(inputs, outputs):
        return nn.Identity()
    return nn.Sequential(*layers.project(inputs, outputs, stride), layers.norm(outputs))


_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Residual network over images (N, C, H, W) or volumes (N, C, D, H, W): stem, four stages, global mean, linear
    head.

    Built by :func:`sre_resnet`, :func:`plain_resnet` and :func:`group_resnet`. No max pooling; stages 2 to 4 halve the
    resolution, n to ceil(n / 2)."""

    def __init__(
        self,
        variant: str,
        layers: PlainLayers,
        in_channels: int,
        num_classes: int,
        width: int,
        kernel_sizes: int | Sequence[int],
        stem_kernel: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        counts = {"width": width, "stem_kernel": stem_kernel, "stem_stride": stem_stride}
        check_counts(in_channels=in_channels, num_classes=num_classes, **counts)
        kernels = ntuple(kernel_sizes, 4, "kernel_sizes", per="stage")
        if any(k < 1 or k % 2 == 0 for k in (*kernels, stem_kernel)):
            raise ValueError(f"kernel_sizes and stem_kernel must be odd, got {kernels} and {stem_kernel}")
        kind, depths = VARIANTS[variant]
        block = _BLOCKS[kind]
        self.dims, self.in_channels = layers.dims, in_channels
        self.conv1 = layers.stem(in_channels, width, stem_kernel, stem_stride)
        self.bn1 = layers.norm(width)
        self.relu = layers.activation(width)
        stages, channels = [], width
        for stage, (depth, kernel) in enumerate(zip(depths, kernels, strict=True)):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(block(layers, channels, width << stage, kernel, stride))
                channels = (width << stage) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool, self.fc = layers.head(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d) and not isinstance(module, GroupConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (N, channels, *spatial), of whose scalars the logits are a mean and a linear map away;
        of a steerable network, the scalars are the first channels."""
        if not is_traced(x) and (x.dim() != self.dims + 2 or x.shape[1] != self.in_channels):
            raise ValueError(
                f"expected an input (N, {self.in_channels}, {self.dims} spatial axes), got shape {tuple(x.shape)}"
            )
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


@spells_out(iso.SREConv2d)
def sre_resnet(
    variant: str,
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 64,
    kernel_sizes: int | Sequence[int] | None = None,
    stem_kernel: int = 5,
    stem_stride: int = 1,
    downsample: str = "symmetric",
    **layer: Unpack[SREOptions],
) -> ResNet:
    """SRE-ResNet: logits invariant to the square's (cube's) whole symmetry group at every input size, nearly so to any
    rotation.

    Args:
        variant: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.
        dims: 2 or 3.
        width: channels of the first stage, doubled by each following one.
        kernel_sizes: odd kernel size of each of the four stages, or one for all; by default (9, 9, 5, 5) in 2D and 5 in
            3D, the paper's.
        stem_kernel, stem_stride: of the first convolution.
        downsample: ``"symmetric"``: mean pooling that commutes with the group; or ``"strided"``: strides in the
            convolutions as in the plain twin, which costs the exact invariance and shows what the pooling gives.
        **layer: keyword-only arguments of the isotropic layers, see :class:`isoconv.nn.SREConv2d`.
    """
    layers = IsotropicLayers(dims, downsample, layer)
    kernels = kernel_sizes if kernel_sizes is not None else (9, 9, 5, 5) if dims == 2 else 5
    return ResNet(variant, layers, in_channels, num_classes, width, kernels, stem_kernel, stem_stride)


def plain_resnet(
    variant: str,
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 64,
    kernel_sizes: int | Sequence[int] | None = None,
    stem_kernel: int = 5,
    stem_stride: int = 1,
) -> ResNet:
    """The plain twin of :func:`sre_resnet`: the same stem, resolutions and widths, ordinary strided convolutions, by
    default 3 wide."""
    kernels = 3 if kernel_sizes is None else kernel_sizes
    return ResNet(variant, PlainLayers(dims), in_channels, num_classes, width, kernels, stem_kernel, stem_stride)


def group_resnet(
    variant: str,
    group: str,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 64,
    kernel_sizes: int | Sequence[int] | None = None,
    stem_kernel: int = 5,
    stem_stride: int = 1,
) -> ResNet:
    """The rival that is equivariant to a group, ``"c4"`` (quarter turns) or ``"d4"`` (flips too): stem, resolutions and
    channels of :func:`plain_resnet`, so the same multiply-adds; parameters a quarter or an eighth, for the channels are
    positions of so many fewer fields. ``width`` is a multiple of 4 or 8."""
    kernels = 3 if kernel_sizes is None else kernel_sizes
    return ResNet(variant, GroupLayers(group), in_channels, num_classes, width, kernels, stem_kernel, stem_stride)


def _sre_symmetry(options: Mapping[str, Any]) -> GridGroup:
    return GridGroup.NONE if options["downsample"] == "strided" else kept_symmetry(options)


for _variant in VARIANTS:
    _sre, _plain = partial(sre_resnet, _variant), partial(plain_resnet, _variant)
    register_family(f"sre_{_variant}", _sre, task="classification", symmetry=_sre_symmetry, lr=1e-3)
    register_family(_variant, _plain, task="classification", symmetry=GridGroup.NONE, lr=1e-2)
    for _group in ("c4", "d4"):
        register_model(
            f"{_group}_{_variant}",
            partial(group_resnet, _variant, _group),
            dims=2,
            task="classification",
            symmetry=GROUPS[_group],
        )
