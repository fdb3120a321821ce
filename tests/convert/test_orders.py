"""``convert(net, orders=...)``: convolutions that see directions, in any network."""

import copy

import pytest
import torch
from torch import nn

import isoconv


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 3, 3, padding=1),
        nn.Conv2d(3, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()


def test_half_of_the_channels_are_as_without_orders_and_the_rest_are_lengths() -> None:
    net = network().eval()
    before = copy.deepcopy(net.state_dict())
    seeing, isotropic = isoconv.convert(net, orders=2), isoconv.convert(net)
    first, plain = seeing[0][1], isotropic[0][1]
    assert (first.orders, first.in_channels, first.out_channels) == (2, 3, 8)
    assert torch.equal(first.weight, plain.weight[:4])
    assert torch.equal(first.bias, plain.bias[:4])
    assert seeing[3].orders == 2
    assert seeing[3].bias is None
    # in groups, of too few channels, pointwise
    assert [seeing[4].orders, seeing[5].orders] == [0, 0]
    assert isinstance(seeing[6], nn.Conv2d)
    x = torch.randn(2, 3, 13, 13, dtype=torch.float64)
    assert seeing(x).shape == net(x).shape
    assert max(isoconv.equivariance_error(seeing, x).values()) <= 1e-12
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_mirror_images_can_be_told_apart() -> None:
    x = torch.randn(2, 3, 13, 13, dtype=torch.float64)
    errors = isoconv.equivariance_error(isoconv.convert(network().eval(), orders=1, reflections=False), x)
    assert errors["rot90"] <= 1e-12
    assert errors["flip"] > 1e-3


def test_it_trains_and_can_be_fused() -> None:
    net = isoconv.convert(network(), orders=1, profile="gaussian")
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    net(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    fused = isoconv.fuse(net.eval())
    torch.testing.assert_close(fused(x), net(x))
    assert not any(type(m).__module__.startswith("isoconv") for m in fused.modules())


def test_frozen_layers_stay_frozen_and_shared_ones_shared() -> None:
    shared = nn.Conv2d(8, 8, 3).requires_grad_(False)
    seeing = isoconv.convert(nn.Sequential(shared, shared), orders=2)
    assert seeing[0] is seeing[1]
    assert not any(p.requires_grad for p in seeing.parameters())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="orders must be a whole number of at least 0, got 'two'"):
        isoconv.convert(network(), orders="two")
    with pytest.raises(ValueError, match="reflections=False takes orders of at least 1"):
        isoconv.convert(network(), reflections=False)
