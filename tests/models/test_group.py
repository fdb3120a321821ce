"""The group-equivariant rivals, and what symmetric pooling gives the isotropic networks."""

import pytest
import torch

import isoconv
from isoconv.evaluation.measuring import multiply_adds
from isoconv.models import create_model
from isoconv.models.group import GroupConv2d, GroupMaxPool2d, GroupNorm2d

GROUPS = pytest.mark.parametrize(("group", "order"), [("c4", 4), ("d4", 8)])


def some_training(net: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    optimiser = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 4).backward()
        optimiser.step()
    assert net.eval()(x).std(0).min() > 1e-4  # it tells images apart, so its invariance says something
    return net


@GROUPS
def test_layers_commute_with_the_group_once_orientation_is_forgotten(group: str, order: int) -> None:
    layers = torch.nn.Sequential(
        GroupConv2d(3, 2 * order, 5, padding=2, group=group, scalar=True),
        GroupNorm2d(2 * order, group),
        torch.nn.ReLU(),
        GroupConv2d(2 * order, order, 3, padding=1, group=group),
        GroupMaxPool2d(group),
    ).double()
    errors = isoconv.equivariance_error(layers.eval(), torch.randn(2, 3, 9, 9, dtype=torch.float64))
    turns = [error for name, error in errors.items() if "flip" not in name]
    assert max(turns) < 1e-12
    assert (max(errors.values()) < 1e-12) == (group == "d4")


@GROUPS
@pytest.mark.parametrize("size", [15, 16])
def test_logits_are_invariant_under_the_group_alone(group: str, order: int, size: int) -> None:
    net = create_model(f"{group}_resnet18", 1, 4, width=order)
    x = torch.randn(4, 1, size, size)
    errors = isoconv.equivariance_error(some_training(net, x).double(), x.double())
    assert max(error for name, error in errors.items() if "flip" not in name) < 1e-10
    assert (max(errors.values()) < 1e-10) == (group == "d4")


@GROUPS
def test_first_run_may_be_one_without_gradients_or_a_traced_one(group: str, order: int) -> None:
    x = torch.randn(2, order, 6, 6)
    layer = GroupConv2d(order, order, 3, group=group)
    with torch.inference_mode():
        expected = layer(x)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@GROUPS
def test_fused_it_needs_no_isoconv(group: str, order: int) -> None:
    net = isoconv.create_model(f"{group}_resnet18", 1, 3, width=order).eval()
    plain = isoconv.fuse(net)
    assert not any(c.__module__.startswith("isoconv") for m in plain.modules() for c in type(m).__mro__)
    assert list(plain.state_dict()) == list(net.state_dict())
    for size in (16, 17):
        x = torch.randn(1, 1, size, size)
        torch.testing.assert_close(plain(x), net(x))


@GROUPS
def test_cost_beside_the_plain_network(group: str, order: int) -> None:
    image = torch.zeros(1, 3, 16, 16)
    plain, net = (create_model(name, 3, 4, width=16) for name in ("resnet18", f"{group}_resnet18"))
    (dense, other) = (multiply_adds(each, image)["multiply_adds_dense"] for each in (plain, net))
    assert other == pytest.approx(dense, rel=0.01)
    sizes = [sum(p.numel() for n, p in each.named_parameters() if "conv" in n) for each in (plain, net)]
    assert sizes[1] == pytest.approx(sizes[0] / order, rel=0.01)


def test_channels_that_are_no_whole_fields() -> None:
    with pytest.raises(ValueError, match="channels over d4 come in multiples of its order, 8, got 12"):
        create_model("d4_resnet18", 1, 2, width=12)


def test_symmetric_pooling_is_what_makes_an_isotropic_network_invariant_at_even_sizes() -> None:
    x = torch.randn(4, 1, 16, 16)
    errors = {}
    for downsample in ("symmetric", "strided"):
        net = some_training(create_model("sre_resnet18", 1, 4, width=4, downsample=downsample), x)
        errors[downsample] = max(isoconv.equivariance_error(net.double(), x.double()).values())
    assert errors["symmetric"] < 1e-10
    assert errors["strided"] > 1e-3


def test_unknown_way_to_downsample() -> None:
    with pytest.raises(
        ValueError, match="downsample must be symmetric or strided, got 'stride'; did you mean 'strided'"
    ):
        create_model("sre_resnet18", downsample="stride")
