"""Preconditioned gradients are the gradients of weights whose bands are all in the units of a plain convolution's."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import isoconv
from isoconv.nn import precondition_
from isoconv.nn.init import ring_energy


class InUnits(nn.Module):
    """Bands of a weight in units of their usual size, as a parametrisation."""

    def __init__(self, layer: isoconv.SREConv2d) -> None:
        super().__init__()
        plan = layer.plan
        scale = [math.prod(plan.kernel_size) / (plan.bands * energy) for energy in ring_energy(plan)]
        self.scale = torch.tensor(scale, dtype=torch.float64).sqrt()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.scale

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.scale


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [isoconv.SREConv2d(2, 3, 9, padding=4), nn.Tanh(), isoconv.SREConv2d(3, 2, 5, profile="area")]
    return nn.Sequential(*layers, nn.Conv2d(2, 1, 3)).double()


def trained(model: nn.Module, before_step: Callable[[nn.Module], None]) -> torch.Tensor:
    """Outputs after some steps of SGD."""
    x = torch.randn(4, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        before_step(model)
        optimizer.step()
    return model(x).detach()


def test_sgd_takes_the_steps_of_weights_in_the_units_of_each_band() -> None:
    in_units = net()
    for layer in in_units:
        if isinstance(layer, isoconv.SREConv2d):
            parametrize.register_parametrization(layer, "weight", InUnits(layer))
    preconditioned = trained(net(), precondition_)
    torch.testing.assert_close(preconditioned, trained(in_units, lambda _: None))
    assert (preconditioned - trained(net(), lambda _: None)).abs().max() > 1e-3


def test_only_isotropic_weights_are_touched() -> None:
    model = net()
    model(torch.randn(1, 2, 16, 16).double()).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    precondition_(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])}
    assert changed == {"0.weight", "2.weight"}


@pytest.mark.parametrize("make", [isoconv.SREConvTranspose2d, isoconv.SREConv3d])
def test_weights_without_gradient_are_left_alone(make: type[nn.Module]) -> None:
    layer = make(1, 1, 3)
    precondition_(layer)
    assert layer.weight.grad is None


def test_a_shared_weight_is_scaled_once() -> None:
    layer, twin = isoconv.SREConv2d(1, 1, 5), isoconv.SREConv2d(1, 1, 5)
    twin.weight = layer.weight
    layer.weight.grad = torch.ones_like(layer.weight)
    precondition_(layer)
    once = layer.weight.grad.clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    precondition_(nn.Sequential(layer, twin))
    assert torch.equal(layer.weight.grad, once)
