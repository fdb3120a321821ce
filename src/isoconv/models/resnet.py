"""One residual network for 2D and 3D, isotropic or plain.

The isotropic network is that of SRE-Conv (arXiv 2501.09753): 3x3 convolutions become isotropic ones of larger kernels,
strides become mean pooling. Unlike the official code its logits are invariant to all flips and 90-degree rotations at
every input size, since the pooling is symmetric at odd sizes too. The plain twin differs in nothing but those layers:
same stem, same resolutions, same widths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._checks import ntuple
from isoconv.models.registry import register_model
from isoconv.ops.resampling import is_traced

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_GLOBAL_POOL = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_SRE_CONV = {2: iso.SREConv2d, 3: iso.SREConv3d}
_AVG_POOL = {2: iso.SymmetricAvgPool2d, 3: iso.SymmetricAvgPool3d}

_LAYERS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}


class _PlainLayers:
    """How a plain ResNet convolves: strides in the convolutions."""

    def __init__(self, dims: int) -> None:
        self.conv_type = _CONV[dims]

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        return self.conv_type(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    stem = conv

    def project(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [self.conv(inputs, outputs, 1, stride)]


class _IsotropicLayers:
    """How an SRE-ResNet convolves: symmetric mean pooling for a stride, then an isotropic convolution."""

    def __init__(self, dims: int, **options: Any) -> None:
        self.dims, self.options = dims, options

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        conv = _SRE_CONV[self.dims](inputs, outputs, kernel, padding=kernel // 2, bias=False, **self.options)
        return conv if stride == 1 else nn.Sequential(_AVG_POOL[self.dims](), conv)

    def stem(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        if stride == 1:
            return self.conv(inputs, outputs, kernel)
        n = self.dims
        grid = iso.CentreGrid((kernel,) * n, (stride,) * n, (kernel // 2,) * n, (1,) * n)
        return nn.Sequential(
            grid, _SRE_CONV[n](inputs, outputs, kernel, stride, kernel // 2, bias=False, **self.options)
        )

    def project(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        pool = [] if stride == 1 else [_AVG_POOL[self.dims]()]
        return [*pool, _CONV[self.dims](inputs, outputs, 1, bias=False)]


_Layers = _PlainLayers | _IsotropicLayers


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(
        self, layers: _Layers, norm: type[nn.Module], inputs: int, width: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, width, kernel, stride)
        self.bn1 = norm(width)
        self.conv2 = layers.conv(width, width, kernel)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(layers, norm, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(
        self, layers: _Layers, norm: type[nn.Module], inputs: int, width: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        (self.conv1,) = layers.project(inputs, width, 1)
        self.bn1 = norm(width)
        self.conv2 = layers.conv(width, width, kernel, stride)
        self.bn2 = norm(width)
        (self.conv3,) = layers.project(width, outputs, 1)
        self.bn3 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(layers, norm, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(layers: _Layers, norm: type[nn.Module], inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*layers.project(inputs, outputs, stride), norm(outputs))


_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Residual network over images (N, C, H, W) or volumes (N, C, D, H, W): stem, four stages, global mean, linear
    head.

    Built by :func:`sre_resnet` and :func:`plain_resnet`. No max pooling; stages 2 to 4 halve the resolution, n to
    ceil(n / 2)."""

    def __init__(
        self,
        variant: str,
        dims: int,
        layers: _Layers,
        in_channels: int,
        num_classes: int,
        width: int,
        kernel_sizes: Sequence[int],
        stem_kernel: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        kernels = ntuple(kernel_sizes, 4, "kernel_sizes")
        if any(k < 1 or k % 2 == 0 for k in (*kernels, stem_kernel)):
            raise ValueError(f"kernel_sizes and stem_kernel must be odd, got {kernels} and {stem_kernel}")
        for name, value in {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "width": width,
            "stem_stride": stem_stride,
        }.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        kind, depths = _LAYERS[variant]
        block, norm = _BLOCKS[kind], _NORM[dims]
        self.dims, self.in_channels = dims, in_channels
        self.conv1 = layers.stem(in_channels, width, stem_kernel, stem_stride)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        stages, channels = [], width
        for stage, (depth, kernel) in enumerate(zip(depths, kernels, strict=True)):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(block(layers, norm, channels, width << stage, kernel, stride))
                channels = (width << stage) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = _GLOBAL_POOL[dims](1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (N, channels, *spatial), from which the logits are a mean and a linear map away."""
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


def sre_resnet(
    variant: str,
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 64,
    kernel_sizes: Sequence[int] | None = None,
    stem_kernel: int = 5,
    stem_stride: int = 1,
    bands: int | None = None,
    profile: str = "hard",
    circular: bool = True,
    spacing: float | Sequence[float] | None = None,
    init: str = "default",
    engine: str = "auto",
) -> ResNet:
    """SRE-ResNet: logits invariant to the square's (cube's) whole symmetry group at every input size, nearly so to any
    rotation.

    Args:
        variant: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.
        dims: 2 or 3.
        width: channels of the first stage, doubled by each following one.
        kernel_sizes: odd kernel size of each of the four stages; by default (9, 9, 5, 5) in 2D and (5, 5, 5, 5) in 3D,
            the paper's.
        stem_kernel, stem_stride: of the first convolution.
        bands, profile, circular, spacing, init, engine: of the isotropic layers, see :class:`isoconv.nn.SREConv2d`.
    """
    layers = _IsotropicLayers(
        dims, bands=bands, profile=profile, circular=circular, spacing=spacing, init=init, engine=engine
    )
    kernels = kernel_sizes or ((9, 9, 5, 5) if dims == 2 else (5, 5, 5, 5))
    return ResNet(variant, dims, layers, in_channels, num_classes, width, kernels, stem_kernel, stem_stride)


def plain_resnet(
    variant: str,
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 64,
    kernel_sizes: Sequence[int] | None = None,
    stem_kernel: int = 5,
    stem_stride: int = 1,
) -> ResNet:
    """The plain twin of :func:`sre_resnet`: the same stem, resolutions and widths, ordinary strided convolutions, by
    default 3 wide."""
    return ResNet(
        variant,
        dims,
        _PlainLayers(dims),
        in_channels,
        num_classes,
        width,
        kernel_sizes or (3, 3, 3, 3),
        stem_kernel,
        stem_stride,
    )


for _variant in _LAYERS:
    for _dims, _suffix in ((2, ""), (3, "_3d")):
        register_model(f"sre_{_variant}{_suffix}", partial(sre_resnet, _variant, _dims))
        register_model(f"{_variant}{_suffix}", partial(plain_resnet, _variant, _dims))
