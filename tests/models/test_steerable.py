"""Steerable networks: exactly as invariant as isotropic ones, and not blind to directions."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isoconv
from isoconv.models import create_model, list_models, model_config, model_info
from isoconv.nn import FieldGate, FieldNorm, Fields, InvariantPool, SteerableConv2d, SymmetricAvgPool2d
from isoconv.symmetry import GridGroup, Scalars, distance, symmetry_group

ALL = list_models("steerable_*")
OPTIONS = [{}, {"orders": 1}, {"form": "dropped"}, {"fields": (1, 2, 1)}, {"spacing": 2.0}, {"stem_stride": 2}]


def trained(net: nn.Module, size: int, steps: int = 3) -> nn.Module:
    """So that running statistics and weights are no longer those of the initialisation."""
    x = torch.randn(3, net.in_channels, *[size] * net.dims)
    optimiser = torch.optim.SGD(net.train().parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()
    return net.eval()


def worst(net: nn.Module, size: int, dtype: torch.dtype = torch.float64, **options: object) -> float:
    x = torch.randn(2, net.in_channels, *[size] * net.dims, dtype=dtype)
    return max(isoconv.equivariance_error(net.to(dtype), x, **options).values())


@pytest.mark.parametrize("size", [27, 28, 29, 30, 32, 33, 64])
@pytest.mark.parametrize("name", ["steerable_resnet18", "steerable_unet"])
def test_symmetry_is_exact_at_every_size_2d(name: str, size: int) -> None:
    net = trained(create_model(name, 3, 5, width=8), size, steps=2)
    assert worst(net, size, torch.float32) <= 1e-4
    assert worst(net, size) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("size", [13, 16, 17])
@pytest.mark.parametrize("name", ["steerable_resnet18_3d", "steerable_unet_3d"])
def test_symmetry_is_exact_at_every_size_3d(name: str, size: int) -> None:
    net = trained(create_model(name, 1, 5, width=4), size)
    assert worst(net, size, torch.float32) <= 1e-4
    assert worst(net, size) <= 1e-10


FORMS = [
    {},
    {"orders": 1},
    {"form": "dropped"},
    {"reflections": False},
    {"form": "dropped", "orders": 1, "reflections": False},
]
SIZES = {2: (27, 28, 29, 30, 32, 33, 64), 3: (13, 16, 17)}


def element_errors(net: nn.Module, size: int, dtype: torch.dtype) -> dict[bool, float]:
    """Relative, the largest over the elements of the grid's group: of rotations, and of the others."""
    x = torch.randn(1, net.in_channels, *[size] * net.dims, dtype=dtype)
    with torch.no_grad():
        y = net.to(dtype)(x)
        found = [(g.proper, distance(net(g(x)), Scalars().act(g, y))) for g in symmetry_group(net.dims)]
    assert len(found) == {2: 8, 3: 48}[net.dims]
    return {proper: max(error for kind, error in found if kind == proper) for proper in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("name", ["steerable_resnet18", "steerable_unet", "steerable_resnet18_3d", "steerable_unet_3d"])
def test_every_element_of_the_group_at_every_size(name: str, options: dict) -> None:
    dims = 3 if name.endswith("_3d") else 2
    blind = dims == 3 and options.get("form") == "dropped"  # lengths of what one layer makes of scalars
    handed = not options.get("reflections", True) and not blind
    net = trained(create_model(name, 1, 3, width=8 // (dims - 1), **options), 12)
    for size in SIZES[dims]:
        for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
            errors = element_errors(net, size, dtype)
            assert errors[True] <= limit
            if handed:
                assert errors[False] > 1e-3
            else:
                assert errors[False] <= limit


@pytest.mark.parametrize("name", ALL)
def test_every_network_and_what_rebuilds_it(name: str) -> None:
    net = trained(create_model(name, 2, 4, width=4), 6, steps=1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    again = create_model(**json.loads(json.dumps(model_config(net))))
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 2, *[7] * net.dims)
    assert torch.equal(again.eval()(x), net(x))
    assert worst(net, 7, angles=(90,), flips=False) <= 1e-10
    assert model_info(name).symmetry_with(model_config(net)) is GridGroup.FULL


@pytest.mark.parametrize("options", OPTIONS)
def test_options_keep_the_symmetry(options: dict) -> None:
    net = trained(create_model("steerable_resnet18", 1, 4, width=8, **options), 17)
    assert worst(net, 17) <= 1e-10
    unet = {key: value for key, value in options.items() if key != "stem_stride"}
    assert worst(trained(create_model("steerable_unet", 1, 2, width=8, **unet), 13), 13) <= 1e-10


@pytest.mark.parametrize("name", ["steerable_resnet18", "steerable_unet"])
def test_without_reflections_mirror_images_differ(name: str) -> None:
    net = trained(create_model(name, 1, 4, width=8, reflections=False), 14)
    errors = isoconv.equivariance_error(net.double(), torch.randn(2, 1, 15, 15, dtype=torch.float64))
    assert max(errors[turn] for turn in ("rot90", "rot180", "rot270")) <= 1e-10
    assert errors["flip"] > 1e-3
    assert model_info(name).symmetry_with(model_config(net)) is GridGroup.ROTATIONS


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("steerable_resnet18", {}),
        ("steerable_resnet18", {"form": "dropped", "stem_stride": 2}),
        ("steerable_unet", {"reflections": False}),
        ("steerable_unet_3d", {}),
        ("sre_resnet18", {"orders": 2, "kernel_sizes": 5}),
    ],
)
def test_fused_it_needs_no_isoconv(name: str, options: dict) -> None:
    net = trained(create_model(name, 1, 3, width=8, **options), 10, steps=1)
    fused = isoconv.fuse(net)
    assert not any(type(m).__module__.startswith("isoconv") for m in fused.modules())
    for size in (9, 10):
        x = torch.randn(2, 1, *[size] * net.dims)
        torch.testing.assert_close(fused(x), net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("steerable_resnet18", {}),
        ("steerable_resnet18", {"form": "dropped"}),
        pytest.param("steerable_resnet18_3d", {"orders": 1}, marks=pytest.mark.slow),
        ("steerable_unet", {}),
    ],
)
def test_the_doctor_finds_every_layer_exact_by_its_own_action(name: str, options: dict) -> None:
    net = trained(create_model(name, 1, 3, width=8, **options), 12, steps=1)
    result = isoconv.doctor(net, torch.randn(1, 1, *[9] * net.dims))
    assert [finding.holds for finding in result.findings[:2]] == [True, True]
    assert not any({"rot90", "flip"} & set(layer.breaks) for layer in result.layers)
    assert result.parameters[0] == result.parameters[1]  # convert leaves its layers


def test_the_doctor_finds_that_a_network_without_reflections_loses_mirror_images_alone() -> None:
    net = trained(create_model("steerable_resnet18", 1, 3, width=8, reflections=False), 12, steps=1)
    turns, flips, _ = isoconv.doctor(net, torch.randn(1, 1, 9, 9)).findings
    assert (turns.holds, flips.holds) == (True, False)
    assert isoconv.conversion_report(net, (1, 1, 9, 9), orders=1, reflections=False).verdict == "symmetric"
    assert isoconv.conversion_report(net, (1, 1, 9, 9)).verdict == "broken"


def test_the_doctor_finds_a_layer_whose_kernels_do_not_turn() -> None:
    net = create_model("steerable_resnet18", 1, 3, width=8).eval()
    layer = net.layer1[0].conv1
    layer._basis_1_1 += torch.randn_like(layer._basis_1_1)
    result = isoconv.doctor(net, torch.randn(1, 1, 9, 9))
    assert [row.name for row in result.layers if "rot90" in row.breaks] == ["layer1.0.conv1"]


def test_no_orders_is_an_isotropic_network() -> None:
    net = create_model("steerable_resnet18", 3, 5, width=4, orders=0, kernel_sizes=3, profile="hard")
    sre = create_model("sre_resnet18", 3, 5, width=4, kernel_sizes=3)
    count = [sum(p.numel() for p in n.parameters()) for n in (net, sre)]
    assert count[0] == count[1]
    values = iter(net.state_dict().values())
    state = sre.state_dict()
    for name, tensor in state.items():
        value = next(values)
        layer = sre.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, isoconv.SREConv2d):
            value = value / torch.from_numpy(layer.plan.basis).flatten(1).norm(dim=1).float()
        state[name] = value.view(tensor.shape)
    sre.load_state_dict(state)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(net.eval()(x), sre.eval()(x))


def test_twins_have_the_same_resolutions() -> None:
    x = torch.randn(1, 3, 29, 29)
    for stride in (1, 2):
        nets = [create_model(n, 3, 5, width=8, stem_stride=stride) for n in ("steerable_resnet18", "resnet18")]
        sizes: list[list] = []
        for net in nets:
            sizes.append(seen := [])
            for stage in ("bn1", "layer1", "layer2", "layer3", "layer4"):
                net.get_submodule(stage).register_forward_hook(lambda _m, _i, y, seen=seen: seen.append(y.shape[2:]))
            net(x)
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("options", "classes", "parameters"),
    [({"width": 12}, 8, 127e3), ({"width": 16, "form": "dropped"}, 8, 148e3), ({"width": 16, "orders": 0}, 8, 186e3)],
)
def test_as_many_parameters_as_the_trials_had(options: dict, classes: int, parameters: float) -> None:
    net = create_model("steerable_resnet18", 3, classes, **options)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "caried"}, "form must be carried or dropped, got 'caried'; did you mean 'carried'"),
        ({"fields": (1, 1)}, "a share for each order from 0 to orders=2.*got \\(1, 1\\)"),
        ({"fields": (0, 1, 1)}, "of which the first is not 0"),
        ({"width": 1}, "a width of 1 is too small for a field of every order up to 2"),
    ],
)
def test_bad_options_are_refused_with_a_reason(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("steerable_resnet18", **options)


def tasks() -> dict[str, Callable[[int], tuple[Tensor, Tensor]]]:
    """Those of the page on what isotropic networks lose."""
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "symmetry.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(next(block for block in blocks if "def handedness" in block).partition("\ndef accuracy")[0], names)
    return names


def small_net(reflections: bool) -> nn.Module:
    parts: list[nn.Module] = []
    inputs: Fields | int = 1
    for fields in ("4x0 + 4x1", "6x0 + 6x1", "6x0 + 6x1"):
        conv = SteerableConv2d(inputs, fields, 5, padding=2, bias=False, reflections=reflections)
        gate = FieldGate(conv.out_fields)
        parts += [SymmetricAvgPool2d()] if parts else []
        parts += [conv, FieldNorm(conv.out_fields), gate]
        inputs = gate.out_fields
    return nn.Sequential(*parts, InvariantPool(inputs, magnitudes=False), nn.Linear(12, 2))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["handedness", "directions"])
@pytest.mark.parametrize("reflections", [True, False])
def test_what_isotropic_networks_cannot_see_is_seen_with_fewer_weights(task: str, reflections: bool) -> None:
    draw, net = tasks()[task], small_net(reflections)
    assert sum(p.numel() for p in net.parameters()) < 2858  # of the isotropic network on that page
    images, classes = draw(1000)
    batches = [rows for _ in range(8) for rows in torch.randperm(1000).split(50)]
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, len(batches))
    for rows in batches:
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), classes[rows]).backward()
        optimiser.step()
        schedule.step()
    images, classes = draw(500)
    with torch.no_grad():
        accuracy = (net.eval()(images).argmax(1) == classes).float().mean().item()
    if task == "handedness" and reflections:  # a mirror image has the logits of the image
        assert accuracy == pytest.approx(0.5, abs=0.1)
    else:
        assert accuracy >= 0.95
