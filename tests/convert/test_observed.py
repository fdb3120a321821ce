"""Layers of other libraries: what they compute is seen, converted where an exact counterpart exists, or measured."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoconv
from isoconv import conversion_report, convert
from isoconv import nn as iso

EXACT = 1e-11  # relative, in float64
SIZES = (11, 12, 13, 14)


def same_padded(x: Tensor, size: tuple, stride: tuple, dilation: tuple, value: float = 0.0) -> Tensor:
    """As TensorFlow pads "SAME"."""
    sides: list[int] = []
    for n, k, s, d in zip(x.shape[2:], size, stride, dilation, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        sides = [total // 2, total - total // 2, *sides]
    return F.pad(x, sides, value=value)


class ConvSame(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Conv1dSame(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, self.kernel_size, self.stride, self.dilation)
        return F.conv1d(x, weight=self.weight, bias=self.bias, stride=self.stride)


class Conv3dSame(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, self.kernel_size, self.stride, self.dilation)
        return F.conv3d(x, self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """Mean 0 and variance 1 of the weights of each output."""

    def standard(self) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
        return (self.weight - mean) / (var + 1e-6).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standard(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Gained(Standardised):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1))

    def standard(self) -> Tensor:
        return self.gain * super().standard()


class StandardisedSame(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, self.standard(), self.bias, self.stride)


class MaxPoolSame(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, *((v, v) for v in (self.kernel_size, self.stride, 1)), value=-math.inf)
        return F.max_pool2d(x, self.kernel_size, self.stride)


class AvgPoolSame(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(
            same_padded(x, *((v, v) for v in (self.kernel_size, self.stride, 1))), self.kernel_size, self.stride
        )


class Blur(nn.Module):
    """A fixed filter, then every other sample."""

    def __init__(self, taps: tuple[float, ...], stride: int = 2, mode: str = "reflect", lopsided: int = 0) -> None:
        super().__init__()
        line = torch.tensor(taps)
        self.register_buffer("filt", (line[:, None] * line / line.sum() ** 2).repeat(4, 1, 1, 1))
        self.stride, self.mode = stride, mode
        self.padding = [len(taps) // 2, len(taps) // 2 + lopsided] * 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.padding, self.mode), self.filt, stride=self.stride, groups=x.shape[1])


def error(net: nn.Module, size: int, dims: int = 2) -> float:
    return max(isoconv.equivariance_error(net, torch.randn(1, 4, *[size] * dims, dtype=torch.float64)).values())


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "same": (lambda: ConvSame(4, 6, 3, 2), 2, "pads one side more"),
    "same, even kernel": (lambda: ConvSame(4, 4, 4, 3), 2, "pads one side more"),
    "same, groups, no bias": (lambda: ConvSame(4, 4, 5, 2, groups=4, bias=False), 2, "pads one side more"),
    "same, dilated, no stride": (lambda: ConvSame(4, 4, 3, dilation=2), 2, ""),
    "same, pointwise": (lambda: ConvSame(4, 6, 1, 2), 2, "strided"),
    "same, 1D": (lambda: Conv1dSame(4, 4, 3, 2), 1, "pads one side more"),
    "same, 3D": (lambda: Conv3dSame(4, 4, 3, 2), 3, "pads one side more"),
    "standardised": (lambda: Standardised(4, 6, 3, padding=1), 2, "its weight is computed in forward()"),
    "standardised, strided": (lambda: Standardised(4, 6, 3, 2, 1), 2, "its weight is computed in forward()"),
    "standardised, pointwise": (lambda: Standardised(4, 6, 1, 2), 2, "strided"),
    "standardised with a gain": (lambda: Gained(4, 6, 5), 2, "its weight is computed in forward()"),
    "standardised and same": (lambda: StandardisedSame(4, 6, 7, 2), 2, "pads one side more"),
    "max pooling, same": (lambda: MaxPoolSame(3, 2), 2, "pads one side more"),
    "mean pooling, same": (lambda: AvgPoolSame(2, 2), 2, "pads one side more"),
    "blur 1-2-1": (lambda: Blur((1.0, 2.0, 1.0)), 2, "strided"),
    "blur, zeros": (lambda: Blur((1.0, 2.0, 1.0), mode="constant"), 2, "strided"),
    "blur 1-4-6-4-1 by 3": (lambda: Blur((1.0, 4.0, 6.0, 4.0, 1.0), 3), 2, "strided"),
    "blur, even": (lambda: Blur((1.0, 3.0, 3.0, 1.0)), 2, "strided"),
}


@pytest.mark.parametrize(("make", "dims", "reason"), LAYERS.values(), ids=LAYERS)
def test_what_has_an_exact_counterpart_is_converted(make: Callable[[], nn.Module], dims: int, reason: str) -> None:
    net = nn.Sequential(make().double())
    report, converted = conversion_report(net), convert(net)
    assert report.rows[0].status == "convertible"
    assert report.rows[0].reason.startswith(reason)
    assert report.parameters_converted == sum(p.numel() for p in converted.parameters())
    for size in SIZES:
        x = torch.randn(1, 4, *[size] * dims, dtype=torch.float64)
        assert converted(x).shape == net(x).shape
        assert error(converted, size, dims) < EXACT
    assert max(error(net, size, dims) for size in SIZES) > 1e-2
    assert {row.status for row in conversion_report(converted).rows} <= {"isotropic", "unaffected"}
    assert repr(convert(converted)) == repr(converted)
    torch.testing.assert_close(isoconv.fuse(converted)(x), converted(x))


@pytest.mark.parametrize("name", ["standardised", "standardised with a gain", "same, dilated, no stride", "blur 1-2-1"])
def test_a_kernel_that_is_isotropic_already_stays_what_it_is(name: str) -> None:
    net = LAYERS[name][0]().double()
    if isinstance(net, nn.Conv2d):
        like = isoconv.SREConv2d(net.in_channels, net.out_channels, net.kernel_size, circular=False)
        net.weight.data = like.double().kernel().detach()
    x = torch.randn(1, 4, 13, 13, dtype=torch.float64)
    torch.testing.assert_close(convert(net, circular=False)(x), net(x))


def test_samples_of_a_stride_that_lie_symmetrically_are_left_there() -> None:
    """At sizes where TensorFlow pads both sides alike, nothing changes but the kernel."""
    net = ConvSame(4, 4, 3, 2).double()
    net.weight.data = torch.ones_like(net.weight) * torch.randn(4, 4, 1, 1)
    for size in (11, 13):
        x = torch.randn(1, 4, size, size, dtype=torch.float64)
        torch.testing.assert_close(convert(net, circular=False)(x), net(x))


class TestWhatComputesSomethingElse:
    """It is left, measured, and called by what was measured."""

    def test_a_convolution_with_more_around_it(self) -> None:
        class Clipped(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).clamp(-1, 1)

        class Twice(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(super().forward(x))

        class OfItsInput(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return F.conv2d(x, self.weight * x.mean(), self.bias)

        for layer in (Clipped(4, 4, 3), Twice(4, 4, 3), OfItsInput(4, 4, 3)):
            assert conversion_report(layer).rows[0].status == "left"
            assert type(convert(layer)) is type(layer)

    def test_filters_that_centring_does_not_help(self) -> None:
        for layer in (Blur((1.0, 2.0, 3.0)), Blur((1.0, 2.0, 1.0), lopsided=1)):
            row = conversion_report(nn.Sequential(layer)).rows[0]
            assert row.status != "unaffected"
            assert row.reason.startswith("measured: ")
            assert " breaks by " in row.reason
            assert isinstance(convert(layer), Blur)

    def test_what_runs_alone_is_not_changed_and_draws_no_numbers(self) -> None:
        layers = nn.Sequential(ConvSame(4, 4, 3, 2), Standardised(4, 4, 3), Blur((1.0, 2.0, 1.0)))
        state, random = {k: v.clone() for k, v in layers.state_dict().items()}, torch.get_rng_state()
        seen: list[str] = []
        for layer in layers:
            layer.register_forward_hook(lambda *_: seen.append("ran"))
        conversion_report(layers)
        convert(layers)
        assert all(torch.equal(v, state[k]) for k, v in layers.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert seen == []

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            layers = nn.Sequential(ConvSame(4, 4, 3, 2), Blur((1.0, 2.0, 1.0)))
        assert [row.status for row in conversion_report(layers).rows] == ["left", "unknown"]


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Scale(nn.Module):
    """A gain that starts at zero, so that it hides what it multiplies."""

    def __init__(self, channels: int, branch: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gamma, self.branch = nn.Parameter(torch.zeros(channels, 1, 1)), branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.branch(x)


class LastMean(nn.Module):
    """Of a map with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


class TestLayersWithoutARule:
    @pytest.mark.parametrize("layer", [Swish(), NormAct(5), ChannelNorm(6), Scale(3, torch.sin)], ids=repr)
    def test_what_keeps_the_symmetry(self, layer: nn.Module) -> None:
        row = conversion_report(nn.Sequential(layer)).rows[0]
        assert (row.status, row.reason, row.remedy) == ("unaffected", "measured: keeps", "")

    @pytest.mark.parametrize(
        "branch",
        [lambda x: x.roll(1, 2), lambda x: x.cumsum(3), lambda x: F.pad(x, (0, 1))[..., 1:], lambda x: x.flip(2)],
    )
    def test_what_breaks_it_even_where_a_gain_hides_that(self, branch: Callable[[Tensor], Tensor]) -> None:
        row = conversion_report(nn.Sequential(Scale(3, branch))).rows[0]
        assert row.status == "breaks symmetry"
        assert float(row.reason.removeprefix("measured: breaks by ")) > 0.01
        assert row.remedy

    def test_channels_last_are_told_from_channels_first(self) -> None:
        row = conversion_report(nn.Sequential(LastMean())).rows[0]
        assert row.status == "depends"
        assert row.reason.startswith("measured: keeps with channels last, breaks by ")


class Beside(nn.Module):
    """Works on (N, 1, rows, columns, channels), as layers of attention do."""

    def __init__(self, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv3d(1, 2, kernel, padding=tuple(k // 2 for k in kernel))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.stem(x).movedim(1, -1)[:, None]).sum(-1)


class TestAnAxisBesideThoseOfTheImages:
    def test_is_no_reason_for_an_alarm(self) -> None:
        net = Beside((3, 3, 1))
        row = conversion_report(net, (1, 1, 8, 8)).rows[1]
        assert (row.status, row.remedy) == ("convertible", "")
        assert "if that is no axis of the images" in row.reason
        converted = convert(net.double())
        assert conversion_report(converted, (1, 1, 8, 8)).verdict == "symmetric"
        assert conversion_report(converted).rows[1].status == "depends"
        for size in (8, 9):
            errors = isoconv.equivariance_error(converted, torch.randn(1, 1, size, size, dtype=torch.float64))
            assert max(errors.values()) < EXACT

    @pytest.mark.parametrize("net", [Beside((3, 5, 1)), Beside((1, 3, 1)), nn.Conv3d(1, 1, (3, 3, 1))])
    def test_a_true_difference_stays_one(self, net: nn.Module) -> None:
        row = conversion_report(convert(net)).rows[-1]
        assert row.status == "breaks symmetry"
        assert "differs between the axes" in row.reason

    def test_which_axis_it_is_comes_out_when_it_is_measured(self) -> None:
        report = conversion_report(Beside((1, 3, 3)), (1, 1, 8, 8))
        assert report.verdict == "broken"


def test_same_pad_makes_shapes_as_tensorflow_does() -> None:
    for k in range(1, 6):
        for s in range(1, 5):
            for n in range(3, 14):
                pad, grid = iso.SamePad((k,), (s,), (1,)), iso.CentreGrid((k,), (s,), (0,), (1,))
                if s == 1 and k % 2 == 0:
                    continue  # no stride, no place for a centred grid
                x = torch.randn(1, 1, n, dtype=torch.float64)
                y = F.avg_pool1d(grid(pad(x)), k, s)
                assert y.shape[2] == math.ceil(n / s)
                mirrored = F.avg_pool1d(grid(pad(x.flip(2))), k, s)
                torch.testing.assert_close(mirrored, y.flip(2))
