"""U-Nets: exact symmetry at every size, also after training; the paper's count; refusals."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isoconv import SREConv3d, create_model
from isoconv.models import model_config
from isoconv.nn import precondition_
from isoconv.symmetry import symmetry_group

SHAPES_2D = [(27, 27), (28, 28), (29, 29), (30, 30), (31, 31), (32, 32), (33, 33), (64, 64), (21, 34), (1, 1), (5, 3)]
SHAPES_3D = [(16, 16, 16), (17, 17, 17), (28, 28, 28), (5, 8, 7)]


def worst(net: nn.Module, x: torch.Tensor) -> float:
    """Largest error over the group, relative to the largest logit."""
    net.eval()
    with torch.no_grad():
        expected = net(x)
        errors = [(net(g(x)) - g(expected)).abs().max() for g in symmetry_group(x.dim() - 2)]
    return (max(errors) / expected.abs().max()).item()


def trained(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two steps on upright images whose label depends on the direction."""
    net = create_model(name, 1, 3, width=2, kernel_sizes=(5, 3, 3, 3)).to(dtype).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.rand(2, 1, *shape, dtype=dtype)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(net(x), (x[:, 0].cumsum(1) % 3).long()).backward()
        precondition_(net)
        optimiser.step()
    return net


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_logits_turn_with_the_image_in_2d_after_training(dtype: torch.dtype, bound: float) -> None:
    net = trained("sre_unet", (16, 16), dtype)
    for shape in SHAPES_2D:
        x = torch.rand(1, 1, *shape, dtype=dtype)
        assert net(x).shape == (1, 3, *shape)
        assert worst(net, x) < bound, shape


@pytest.mark.parametrize("shape", SHAPES_3D)
def test_logits_turn_with_the_volume_after_training(shape: tuple[int, ...]) -> None:
    net = trained("sre_unet_3d", (8, 8, 8))
    assert worst(net, torch.rand(1, 1, *shape)) < 1e-4


def test_logits_turn_with_the_volume_to_double_precision() -> None:
    net = trained("sre_unet_3d", (8, 8, 8), torch.float64)
    for shape in SHAPES_3D[1:2] + SHAPES_3D[3:]:
        assert worst(net, torch.rand(1, 1, *shape, dtype=torch.float64)) < 1e-10


@pytest.mark.parametrize(("name", "shape"), [("unet", (9, 12)), ("unet_3d", (5, 6, 4))])
def test_plain_twin_has_the_same_shapes_and_no_symmetry(name: str, shape: tuple[int, ...]) -> None:
    net = create_model(name, 1, 3, width=2, kernel_sizes=3)
    x = torch.rand(1, 1, *shape)
    assert net.eval()(x).shape == (1, 3, *shape)
    assert worst(net, x) > 1e-2
    twin = create_model(f"sre_{name}", 1, 3, width=2, kernel_sizes=3)
    assert [type(m) for m in net.modules() if "Conv" not in type(m).__name__] == [
        type(m) for m in twin.modules() if "Conv" not in type(m).__name__
    ]


def test_parameters_are_the_papers_less_biases_before_a_normalisation() -> None:
    net = create_model("sre_unet", 3, 2)
    normalised = sum(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert sum(p.numel() for p in net.parameters()) + normalised == 274_306  # arXiv 2501.14592


def test_kernel_size_of_each_level_is_that_of_its_encoder_and_decoder() -> None:
    net = create_model("sre_unet", 1, 2, width=1, kernel_sizes=(9, 7, 5, 3))
    assert [stage[0].kernel_size[0] for stage in net.encoder] == [9, 7, 5, 3]
    assert [stage[0].kernel_size[0] for stage in net.decoder] == [5, 7, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": 4}, "kernel_sizes must be odd"),
        ({"kernel_sizes": (3, 3)}, "kernel_sizes must be one number or 4 of them, one per level"),
        ({"kernel_sizes": 0}, "kernel_sizes must be odd"),
        ({"width": 0}, "width must be a whole number"),
        ({"in_channels": 0}, "in_channels must be"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("sre_unet", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 2, 8, 8), (1, 3, 0, 8)])
def test_wrong_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an input \(N, 3, 2 non-empty spatial axes\)"):
        create_model("unet", 3, 2, width=1)(torch.zeros(shape))


@pytest.mark.parametrize("name", ["sre_unet_3d", "sre_resnet18_3d"])
def test_options_of_the_layers_reach_all_of_them(name: str) -> None:
    options = {"spacing": (2.5, 1, 1), "circular": False, "profile": "area", "init": "official", "engine": "reference"}
    net = create_model(name, 1, 2, width=2, kernel_sizes=3, **options)
    for model in (net, create_model(**json.loads(json.dumps(model_config(net))))):
        layers = [m for m in model.modules() if isinstance(m, SREConv3d)]
        assert {(m.plan.spacing, m.plan.circular, m.plan.profile, m.init, m.engine) for m in layers} == {
            ((2.5, 1.0, 1.0), False, "area", "official", "reference")
        }
