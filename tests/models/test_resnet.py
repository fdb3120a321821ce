"""Every registered network: shape, gradients, symmetry, and the official network's numbers."""

import json

import pytest
import torch
from torch import nn

import isoconv
from isoconv.models import create_model, list_models, model_config

ALL = list_models("*resnet*")


def tiny(name: str, **options: object) -> torch.nn.Module:
    return create_model(name, in_channels=1, num_classes=4, width=8 if name[1] == "4" else 2, **options)


def image(name: str, size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 1, *[size] * (3 if name.endswith("_3d") else 2), dtype=dtype)


def train_a_little(net: torch.nn.Module, x: torch.Tensor, steps: int = 3) -> None:
    """So that running statistics and weights are no longer those of the initialisation."""
    optimiser = torch.optim.SGD(net.train().parameters(), 0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 4).backward()
        optimiser.step()
    net.eval()


def test_registry_names() -> None:
    both = {f"{p}resnet{n}{s}" for p in ("", "sre_", "steerable_") for n in (18, 34, 50) for s in ("", "_3d")}
    assert set(ALL) == both | {f"{group}_resnet{n}" for group in ("c4", "d4") for n in (18, 34, 50)}
    assert list_models("sre_resnet*_3d") == ["sre_resnet18_3d", "sre_resnet34_3d", "sre_resnet50_3d"]


@pytest.mark.parametrize("name", ALL)
def test_forward_backward_and_rebuilding(name: str) -> None:
    net = tiny(name)
    logits = net(image(name, 12))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    again = create_model(**model_config(net))
    again.load_state_dict(net.state_dict())
    x = image(name, 9)
    assert torch.equal(again.eval()(x), net.eval()(x))


@pytest.mark.parametrize("size", [27, 28, 29, 30, 32, 33, 64])
def test_logits_are_invariant_at_every_size_2d(size: int) -> None:
    net = create_model("sre_resnet18", 3, 5, width=4)
    train_a_little(net, torch.randn(4, 3, size, size))
    x = torch.randn(2, 3, size, size)
    assert max(isoconv.equivariance_error(net, x).values()) <= 1e-4
    assert max(isoconv.equivariance_error(net.double(), x.double()).values()) <= 1e-10


@pytest.mark.parametrize("size", [16, 17, 28])
def test_logits_are_invariant_at_every_size_3d(size: int) -> None:
    net = create_model("sre_resnet18_3d", 1, 5, width=2)
    train_a_little(net, torch.randn(3, 1, size, size, size), steps=2)
    x = torch.randn(1, 1, size, size, size)
    assert max(isoconv.equivariance_error(net, x).values()) <= 1e-4
    assert max(isoconv.equivariance_error(net.double(), x.double(), angles=(90,)).values()) <= 1e-10


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("sre_") and "18" not in n])
def test_the_deeper_networks_are_invariant_too(name: str) -> None:
    net = tiny(name)
    x = image(name, 13, dtype=torch.float64)
    train_a_little(net, x.float())
    assert max(isoconv.equivariance_error(net.double(), x, angles=(90,)).values()) <= 1e-10


@pytest.mark.parametrize(
    "options",
    [{"stem_stride": 2}, {"profile": "gaussian"}, {"circular": False}, {"bands": 2, "kernel_sizes": (5, 5, 3, 3)}],
)
def test_options_keep_the_symmetry(options: dict) -> None:
    net = create_model("sre_resnet18", 1, 4, width=4, **options)
    for size in (28, 29, 30):
        train_a_little(net.float(), torch.randn(4, 1, size, size))
        x = torch.randn(2, 1, size, size, dtype=torch.float64)
        assert max(isoconv.equivariance_error(net.double(), x).values()) <= 1e-10


def test_the_plain_twin_is_not_invariant() -> None:
    net = create_model("resnet18", 3, 5, width=4)
    train_a_little(net, torch.randn(4, 3, 28, 28))
    assert isoconv.equivariance_error(net, torch.randn(2, 3, 28, 28))["rot90"] > 1e-2


def shape_after(net: nn.Module, stage: str, x: torch.Tensor) -> torch.Size:
    shapes: list[torch.Size] = []
    handle = net.get_submodule(stage).register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    with torch.no_grad():
        net(x)
    handle.remove()
    return shapes[0]


@pytest.mark.parametrize("size", [27, 28, 32])
def test_twins_have_the_same_resolutions_and_widths(size: int) -> None:
    for stride in (1, 2):
        x = torch.randn(1, 3, size, size)
        sre, plain = (create_model(n, 3, 5, width=4, stem_stride=stride) for n in ("sre_resnet18", "resnet18"))
        for stage in ("bn1", "layer1", "layer2", "layer3", "layer4"):
            assert shape_after(sre, stage, x) == shape_after(plain, stage, x)


@pytest.mark.parametrize(
    ("name", "channels", "classes", "options", "parameters"),
    [
        ("sre_resnet18", 3, 9, {"kernel_sizes": (3, 3, 3, 3)}, 2_628_041),
        ("sre_resnet18", 3, 9, {}, 3_996_105),
        ("sre_resnet18", 3, 9, {"kernel_sizes": (9, 9, 9, 9)}, 6_289_865),
        ("sre_resnet50", 3, 9, {}, 16_128_457),
    ],
)
def test_parameter_counts_of_the_official_networks(
    name: str, channels: int, classes: int, options: dict, parameters: int
) -> None:
    with torch.device("meta"):
        net = create_model(name, channels, classes, **options)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_official_logits(golden) -> None:
    numbers = golden("official_sre_resnet18_narrow")
    meta = json.loads(str(numbers["meta"]))
    net = create_model(
        "sre_resnet18", 3, meta["num_classes"], width=meta["inplanes"], kernel_sizes=tuple(meta["sre_conv_size"])
    ).eval()
    net.load_state_dict(
        {k[3:]: torch.from_numpy(numbers[k]) for k in numbers if k.startswith("sd_") and not k.endswith("index_mat")}
    )
    expected = torch.from_numpy(numbers["logits"])
    torch.testing.assert_close(
        net(torch.from_numpy(numbers["x"])), expected, atol=1e-4 * expected.abs().max().item(), rtol=0
    )


def test_activations_keep_their_scale_at_initialisation() -> None:
    logits = create_model("sre_resnet18", 3, 5, width=8).eval()(torch.rand(2, 3, 32, 32))
    assert 1e-3 < logits.abs().max() < 100


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: create_model("sre_resnet81"), ValueError, "unknown model 'sre_resnet81'.*did you mean 'sre_resnet18"),
        (
            lambda: create_model("sre_resnet18", sre_conv_sizes=[9]),
            TypeError,
            "has no option 'sre_conv_sizes'.*kernel_sizes",
        ),
        (lambda: create_model("sre_resnet18", profil="gaussian"), TypeError, "did you mean 'profile'"),
        (lambda: create_model("resnet18", profile="gaussian"), TypeError, "model 'resnet18' has no option 'profile'"),
        (
            lambda: create_model("sre_resnet18", kernel_sizes=(9, 9, 5)),
            ValueError,
            "kernel_sizes must be one number or 4",
        ),
        (lambda: create_model("sre_resnet18", kernel_sizes=4), ValueError, "must be odd"),
        (lambda: create_model("sre_resnet18", kernel_sizes=0), ValueError, "must be odd"),
        (lambda: create_model("resnet18", kernel_sizes=()), ValueError, "one per stage, got 0"),
        (lambda: create_model("resnet18", stem_kernel="5"), ValueError, "stem_kernel must be a whole number"),
        (lambda: create_model(None), ValueError, "unknown model None"),
        (
            lambda: create_model("sre_resnet18", in_channels=0),
            ValueError,
            "in_channels must be a whole number of at least 1",
        ),
        (
            lambda: create_model("sre_resnet18", width=2)(torch.zeros(1, 1, 8, 8)),
            ValueError,
            r"expected an input \(N, 3, 2 spatial axes\)",
        ),
        (lambda: model_config(torch.nn.Linear(1, 1)), ValueError, "was not built by isoconv.create_model"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
