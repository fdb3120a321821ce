"""Networks as people write them: they convert, train, and are symmetric once what the report names is remedied."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv import conversion_report, convert, fuse
from isoconv.convert.report import Row

EXACT = 1e-10  # relative, in float64


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + identity)


class ImageNetResNet(nn.Module):
    """Stem 7x7 of stride 2, overlapping max-pooling, strided 3x3 and 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(ResidualBlock(4, 4, 1), ResidualBlock(4, 4, 1))
        self.layer2 = nn.Sequential(ResidualBlock(4, 8, 2), ResidualBlock(8, 8, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class DenseLayer(nn.Sequential):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth),
            nn.ReLU(),
            nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


def dense_net() -> nn.Module:
    """Concatenations, and means of 2 between the blocks."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 7, 2, 3),
        DenseLayer(4, 2),
        DenseLayer(6, 2),
        nn.Conv2d(8, 4, 1),
        nn.AvgPool2d(2, 2),
        DenseLayer(4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gamma * self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


def conv_next() -> nn.Module:
    """Patches of 4, depthwise 7x7, linear layers over channels last, a parameter beside children."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 4, 4),
        ChannelNorm(4),
        ConvNeXtBlock(4),
        ChannelNorm(4),
        nn.Conv2d(4, 8, 2, 2),
        ConvNeXtBlock(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


class SqueezeExcitation(nn.Sequential):
    def __init__(self, channels: int) -> None:
        squeeze = nn.Conv2d(channels, channels // 4, 1), nn.SiLU()
        super().__init__(nn.AdaptiveAvgPool2d(1), *squeeze, nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class InvertedBottleneck(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, pad: nn.Module | None = None) -> None:
        wide = 4 * inputs
        padding = kernel // 2 if pad is None else 0
        super().__init__(
            nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()),
            nn.Identity() if pad is None else pad,
            nn.Conv2d(wide, wide, kernel, stride, padding, groups=wide, bias=False),
            nn.Sequential(nn.BatchNorm2d(wide), nn.SiLU(), SqueezeExcitation(wide)),
            nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.residual else y


def efficient_net() -> nn.Module:
    """Inverted bottlenecks: strided depthwise convolutions of 3x3 and 5x5, and squeeze and excitation."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU()),
        InvertedBottleneck(4, 4, 3, 1),
        InvertedBottleneck(4, 6, 3, 2),
        InvertedBottleneck(6, 6, 5, 1),
        InvertedBottleneck(6, 8, 5, 2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3)),
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two levels with transposed convolutions of either usual kind; what an odd size loses is interpolated back."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([double_conv(1, 4), double_conv(4, 8)])
        self.pool = nn.MaxPool2d(2)
        self.bottom = double_conv(8, 8)
        extra = {"padding": 1, "output_padding": 1} if kernel == 3 else {}
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, c // 2, kernel, 2, **extra) for c in (8, 8)])
        self.merge = nn.ModuleList([double_conv(12, 8), double_conv(8, 4)])
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = self.pool(skips[-1])
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = F.interpolate(up(x), skip.shape[2:], mode="bilinear")
            x = merge(torch.cat([x, skip], 1))
        return self.head(x)


class VideoBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, 1),
            nn.BatchNorm3d(outputs),
            nn.ReLU(),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
        )
        self.shortcut = nn.Sequential() if stride == 1 else nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def video_net(kernel: tuple[int, int, int] = (3, 7, 7), stride: tuple[int, int, int] = (1, 2, 2)) -> nn.Module:
    """As networks for clips are: the stem treats time otherwise than space."""
    stem = nn.Conv3d(1, 2, kernel, stride, tuple(k // 2 for k in kernel))
    pooled = (nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(stem, nn.ReLU(), VideoBlock(2, 2, 1), VideoBlock(2, 4, 2), *pooled)


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ImageNetResNet,
    "densenet": dense_net,
    "convnext": conv_next,
    "efficientnet": efficient_net,
    "unet, kernel 2": lambda: UNet(2),
    "unet, kernel 3": lambda: UNet(3),
    "video resnet, remedied": lambda: video_net((7, 7, 7), (2, 2, 2)),
}


def image(net: nn.Module, size: int, batch: int = 2) -> Tensor:
    dims = 3 if any(isinstance(m, nn.Conv3d) for m in net.modules()) else 2
    return torch.randn(batch, 1, *[size] * dims)


def sizes(net: nn.Module) -> tuple[int, ...]:
    return (13, 14) if image(net, 1).dim() == 5 else (31, 32, 33, 34)


Step: TypeAlias = Callable[[nn.Module, Tensor], None]
Error: TypeAlias = Callable[[nn.Module, Tensor], float]


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_converted_networks_train_and_are_symmetric_at_every_size(
    make: Callable[[], nn.Module], engine: str, train_one_step: Step, error: Error
) -> None:
    net = make()
    report, converted = conversion_report(net), convert(net, engine=engine)
    assert not {row.status for row in report.rows} & {"left", "breaks symmetry"}
    assert report.parameters_converted == sum(p.numel() for p in converted.parameters())
    for size in sizes(net):
        assert converted(image(net, size)).shape == net(image(net, size)).shape
    train_one_step(converted, image(net, sizes(net)[0], batch=4))
    for size in sizes(net):
        assert error(converted, image(net, size)) < EXACT
        assert not any(row.status in ("convertible", "breaks symmetry") for row in conversion_report(converted).rows)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_converted_networks_fuse(make: Callable[[], nn.Module]) -> None:
    net = convert(make(), engine="reference").eval()
    plain = fuse(net)
    assert not any(type(m).__module__.startswith("isoconv") for m in plain.modules())
    for size in sizes(net):
        x = image(make(), size)
        torch.testing.assert_close(plain(x), net(x))


def problems(net: nn.Module) -> list[Row]:
    return [row for row in conversion_report(convert(net)).rows if row.status == "breaks symmetry"]


def test_a_stem_that_treats_one_axis_otherwise_is_named_with_its_remedy(error: Error) -> None:
    net = video_net()
    (row,) = problems(net)
    assert row.name == "0.1"
    assert "kernel_size=(3, 7, 7), stride=(1, 2, 2)" in row.reason
    assert row.remedy.startswith("use the same along every axis")
    assert error(convert(net), image(net, 13)) > 1e-3
    assert not problems(video_net((7, 7, 7), (2, 2, 2)))


def test_padding_of_one_side_is_named_with_its_remedy(error: Error) -> None:
    """As TensorFlow pads "same" before a stride."""
    net = InvertedBottleneck(1, 2, 3, 2, nn.ZeroPad2d((0, 1, 0, 1)))
    (row,) = problems(net)
    assert (row.name, row.type, row.remedy) == ("1", "ZeroPad2d", "pad both sides alike")
    assert error(convert(net), image(net, 32)) > 1e-2
    remedied = InvertedBottleneck(1, 2, 3, 2, nn.ZeroPad2d(1))
    assert not problems(remedied)
    assert error(convert(remedied), image(remedied, 32)) < EXACT


def test_flattening_a_map_is_named_with_its_remedy(error: Error) -> None:
    body = [nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)]
    flat = nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 3))
    row = next(row for row in conversion_report(flat).rows if row.type == "Flatten")
    assert (row.status, row.remedy) == ("depends", "pool globally before it (AdaptiveAvgPool)")
    assert error(convert(flat), image(flat, 16)) > 1e-2
    pooled = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert error(convert(pooled.float()), image(pooled, 16)) < EXACT


def test_where_kernels_are_isotropic_and_grids_centred_nothing_changes() -> None:
    net = ImageNetResNet().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            isotropic = fuse(convert(module))
            module.weight = next(isotropic.parameters())
    x = image(net, 33)
    torch.testing.assert_close(convert(net)(x), net(x))
