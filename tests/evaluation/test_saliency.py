"""Maps of what an output rests on: what they add up to, and whether they turn with the image."""

import pytest
import torch
from torch import nn

import isoconv
from isoconv.evaluation.saliency import HiResCAM, saliency_errors
from isoconv.symmetry import quarter_turn, rotate

SYMMETRIC = ["sre_resnet18", "steerable_resnet18", "sre_unet", "steerable_unet"]
PLAIN = ["resnet18", "unet"]


def network(name: str, **options: object) -> nn.Module:
    """With running statistics that are not those of a new network."""
    net = isoconv.create_model(name, in_channels=3, num_classes=4, width=8, **options).double()
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(8, 3, 16, 16).double())
    return net.eval()


@pytest.mark.parametrize("size", [16, 17, 28, 30, 33])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_maps_turn_with_the_image_exactly(name: str, size: int) -> None:
    maps, x = HiResCAM(network(name), 1), torch.rand(2, 3, size, size).double()
    for g in (quarter_turn(2), quarter_turn(2, 2), quarter_turn(2, 3)):
        torch.testing.assert_close(maps(g(x)), g(maps(x)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PLAIN)
def test_those_of_plain_networks_do_not(name: str) -> None:
    errors = saliency_errors(network(name), torch.rand(2, 3, 16, 16).double(), 1)
    assert errors["quarter_turns"] > 0.1
    assert errors["free_angles"] > 0.1


def test_volumes() -> None:
    net = isoconv.create_model("sre_resnet18_3d", in_channels=1, num_classes=2, width=4).double().eval()
    errors = saliency_errors(net, torch.rand(1, 1, 9, 9, 9).double(), 0)
    assert errors["quarter_turns"] < 1e-10


def test_a_map_adds_up_to_the_logit_without_its_bias() -> None:
    """Before mean and linear map, HiResCAM is the class activation map (Zhou et al., arXiv 1512.04150)."""
    net, x = network("sre_resnet18"), torch.rand(2, 3, 32, 32).double()
    maps = HiResCAM(net, 2)(x)
    with torch.no_grad():
        features = net.features(x)
        by_hand = torch.einsum("nchw,c->nhw", features, net.fc.weight[2]) / features[0, 0].numel()
        shown = nn.functional.interpolate(by_hand[:, None], (32, 32), mode="bilinear")
        torch.testing.assert_close(maps, shown)
        torch.testing.assert_close(by_hand.sum((1, 2)), net(x)[:, 2] - net.fc.bias[2])


def test_a_map_of_a_segmentation_is_of_the_mean_logit() -> None:
    """By differences: moving the layer's activations along the gradient changes the mean logit by their product."""
    net, x = network("sre_unet"), torch.rand(1, 3, 16, 16).double()
    layer, step = net.encoder[-1], 1e-5
    maps = HiResCAM(net, 3)(x)

    def mean_logit(scale: float) -> float:
        hook = layer.register_forward_hook(lambda _, __, y: scale * y)
        with torch.no_grad():
            value = net(x)[0, 3].mean().item()
        hook.remove()
        return value

    slope = (mean_logit(1 + step) - mean_logit(1 - step)) / (2 * step)
    assert maps.sum().item() / (16 * 16 / (2 * 2)) == pytest.approx(slope, rel=1e-5)  # that level has 2 x 2 places


def test_it_knows_where_the_evidence_is() -> None:
    """A network whose output is the mean brightness, and an image with one bright corner."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.ones_(net[0].weight)
    x = torch.zeros(1, 1, 8, 8)
    x[..., :2, :2] = 1
    torch.testing.assert_close(HiResCAM(net, 0, layer="0")(x), x / 64)


def test_what_runs_around_it_stays_as_it_was() -> None:
    net, x = network("sre_resnet18").train(), torch.rand(1, 3, 16, 16).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode():
        HiResCAM(net, 0)(x)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_a_constant_output_has_no_map() -> None:
    net = network("sre_resnet18")
    nn.init.zeros_(net.fc.weight)
    errors = saliency_errors(net, torch.rand(1, 3, 16, 16).double(), 0)
    assert errors == {"quarter_turns": None, "free_angles": None}


def test_free_angles_are_approximate_for_a_symmetric_network() -> None:
    """The error at 45 degrees is that of the resampling and the network together, never 0."""
    maps, x = HiResCAM(network("sre_resnet18"), 0), torch.rand(1, 3, 28, 28).double()
    assert not torch.allclose(maps(rotate(x, 45)), rotate(maps(x), 45), rtol=1e-2)


def test_layers_are_checked() -> None:
    with pytest.raises(ValueError, match="Sequential is neither a ResNet nor a U-Net of isoconv; name the layer"):
        HiResCAM(nn.Sequential(nn.Flatten()), 0)
    with pytest.raises(ValueError, match="has no layer 'layer5'"):
        HiResCAM(network("sre_resnet18"), 0, layer="layer5")
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    net[1].unused = nn.Identity()
    with pytest.raises(ValueError, match="must run once and lead to the outputs, it ran 0 times"):
        HiResCAM(net, 0, layer="1.unused")(torch.rand(1, 1, 2, 2))
