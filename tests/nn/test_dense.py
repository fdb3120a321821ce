"""What layers are as dense convolutions: their kernels, their cost, the plain layer in their place."""

import pytest
import torch
from torch import nn

import isoconv
from isoconv import nn as iso
from isoconv.evaluation import measuring
from isoconv.models.group import GroupConv2d
from isoconv.nn.dense import Cost, convolutions, cost, dense_kernel

CONVS = [
    iso.SREConv1d(4, 6, 5, 2, 1, groups=2, engine="reference"),
    iso.SREConv2d(4, 6, (3, 5), dilation=2, padding="same", engine="reference"),
    iso.SREConv2d(4, 6, 4, padding="same", bias=False, padding_mode="reflect", engine="reference"),
    iso.SREConv3d(4, 2, 3, engine="reference"),
    iso.SREConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, engine="reference"),
    GroupConv2d(4, 8, 3, 1, 1, group="c4"),
    GroupConv2d(4, 8, 3, 2, 1, group="d4", scalar=True),
]


@pytest.mark.parametrize("layer", CONVS, ids=lambda layer: type(layer).__name__)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_the_plain_layer_has_the_dense_kernel_and_the_same_outputs(layer: nn.Module) -> None:
    x = torch.randn(2, 4, *[9, 8, 7][: getattr(layer, "dims", 2)])
    plain = layer.eval().plain()
    assert type(plain).__module__ == "torch.nn.modules.conv"
    assert torch.equal(plain(x), layer(x))
    assert torch.equal(dense_kernel(layer), plain.weight)
    assert torch.equal(dense_kernel(plain), plain.weight)
    assert not plain.training
    assert plain.weight.requires_grad


def multiply_adds(layer: nn.Module, x: torch.Tensor) -> Cost | None:
    return cost(layer, x, layer(x))


def test_cost_counts_every_tap_or_every_band() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert multiply_adds(nn.Conv2d(3, 6, 5, groups=3), x) == (2 * 6 * 4 * 4 * 25,) * 2
    assert multiply_adds(iso.SREConv2d(3, 6, 5, groups=3), x) == (2 * 6 * 4 * 4 * 25, 2 * 6 * 4 * 4 * 3)
    assert multiply_adds(GroupConv2d(3, 8, 3, group="c4", scalar=True), x) == (2 * 8 * 6 * 6 * 3 * 9,) * 2
    assert multiply_adds(nn.Linear(8, 5), x) == (2 * 3 * 8 * 5 * 8,) * 2


def test_a_layer_with_orders_costs_what_the_fields_cost() -> None:
    x, positions = torch.randn(2, 3, 8, 8), 2 * 4 * 4
    layer = iso.SREConv2d(3, 8, 5, orders=2)
    dense, banded = multiply_adds(layer, x)
    assert dense == multiply_adds(nn.Conv2d(3, 4 + 2 * 2 + 2 * 2, 5), x).dense
    assert banded == positions * 3 * (4 * 3 + 8 * 25)
    counted = measuring.multiply_adds(nn.Sequential(layer), x)
    assert counted == {"multiply_adds_dense": dense, "multiply_adds_banded": banded}
    assert [name for name, _ in convolutions(nn.Sequential(nn.ReLU(), layer))] == ["1"]
    assert [name for name, _ in convolutions(layer)] == [""]


def test_cost_of_a_transposed_layer_is_by_its_input() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert multiply_adds(nn.ConvTranspose2d(3, 6, 3, 2), x) == (2 * 3 * 16 * 6 * 9,) * 2
    assert multiply_adds(iso.SREConvTranspose2d(3, 6, 3, 2), x) == (2 * 3 * 16 * 6 * 9, 2 * 3 * 16 * 6 * 2)


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.BatchNorm2d(3), iso.SymmetricAvgPool2d()])
def test_others_have_neither(layer: nn.Module) -> None:
    assert dense_kernel(layer) is None
    assert multiply_adds(layer, torch.randn(2, 3, 4, 4)) is None


def test_a_module_named_kernel_is_no_dense_kernel() -> None:
    layer = nn.Sequential()
    layer.kernel = nn.Linear(2, 2)
    assert dense_kernel(layer) is None


def test_fuse_puts_plain_layers_in_place_and_keeps_what_is_tied() -> None:
    first, second = (GroupConv2d(8, 8, 3, padding=1, group="d4") for _ in range(2))
    second.weight = first.weight
    fused = isoconv.fuse(nn.Sequential(first, second))
    assert [type(layer) for layer in fused] == [nn.Conv2d, nn.Conv2d]
    assert fused[0].weight is fused[1].weight


def test_fuse_leaves_a_forward_of_its_own() -> None:
    class Doubled(GroupConv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    x = torch.randn(1, 4, 5, 5)
    layer = Doubled(4, 4, 3, group="c4")
    torch.testing.assert_close(isoconv.fuse(nn.Sequential(layer))(x), layer(x))
