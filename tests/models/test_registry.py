"""What the registry says of its models is what they are."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from isoconv import create_model, list_models
from isoconv.models import model_config, model_info, register_model, registry
from isoconv.symmetry import GridGroup, symmetry_group


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """The registry, as it was again after the test."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    return registry._MODELS


def errors(net: nn.Module, x: Tensor, dims: int) -> dict:
    """Relative error of each symmetry, of outputs with or without pixels."""
    with torch.no_grad():
        base = net(x)
        turned = {g: net(g(x)) for g in symmetry_group(dims)}
    expected = {g: g(base) if base.dim() > 2 else base for g in turned}
    return {g: ((turned[g] - expected[g]).norm() / base.norm()).item() for g in turned}


OPTIONS = [
    *((name, {}) for name in list_models() if "34" not in name and "50" not in name),
    ("sre_resnet18", {"downsample": "strided"}),
    ("sre_resnet18", {"spacing": (2, 1)}),
    ("sre_resnet18", {"spacing": (2, 2), "stem_stride": 2}),
    ("sre_unet_3d", {"spacing": [2.5, 1, 1]}),
    ("sre_resnet18", {"orders": 1, "reflections": False}),
    ("steerable_resnet18", {"reflections": False}),
    ("steerable_resnet18_3d", {"reflections": False}),
    ("steerable_unet", {"spacing": (2, 1)}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_symmetry_of_a_network_is_the_largest_that_it_keeps(name: str, options: dict) -> None:
    info = model_info(name)
    net = create_model(name, 1, 3, width=8 if info.dims == 2 else 2, kernel_sizes=5, **options).double().eval()
    x = torch.randn(1, 1, *[16 if info.dims == 2 else 8] * info.dims, dtype=torch.float64)
    assert net(x).dim() == (2 if info.task == "classification" else info.dims + 2)
    exact = {g for g, error in errors(net, x, info.dims).items() if error < 1e-9}
    kept = [group for group in GridGroup if exact.issuperset(group.elements(info.dims))]
    largest = max(kept, key=lambda group: len(group.elements(info.dims)))
    assert info.symmetry_with(model_config(net)) is largest


def test_what_a_model_is() -> None:
    info = model_info("sre_unet_3d")
    assert (info.name, info.dims, info.task, info.family) == ("sre_unet_3d", 3, "segmentation", "sre_unet")
    assert info.symmetry_with({}) is GridGroup.FULL
    assert {"width": 32, "profile": "hard", "spacing": None, "engine": "auto"}.items() <= info.options.items()


@pytest.mark.parametrize("name", list_models())
def test_twins(name: str) -> None:
    info = model_info(name)
    assert info.twin(info.dims) == name
    other = info.twin(5 - info.dims)
    assert (other is None) == (name[:2] in ("c4", "d4"))
    if other is not None:
        assert model_info(other).twin(info.dims) == name
        assert model_info(other).task == info.task


def test_models_by_what_they_are() -> None:
    assert list_models(task="segmentation", dims=2) == ["sre_unet", "unet", "steerable_unet"]
    assert list_models("sre_*18*", dims=3) == ["sre_resnet18_3d"]
    assert set(list_models(dims=2)) | set(list_models(dims=3)) == set(list_models())


def build(in_channels: int, num_classes: int, *, width: int = 4) -> nn.Module:
    return nn.Conv2d(in_channels, num_classes, width)


def test_a_model_of_someone_else(names: dict) -> None:
    register_model("mine", build, dims=2, task="segmentation", symmetry="none")
    assert model_info("mine").options == {"width": 4}
    assert model_info("mine").symmetry_with({"width": 2}) is GridGroup.NONE
    assert model_info("mine").twin(3) is None
    assert model_config(create_model("mine", 1, 2, width=3)) == {
        "name": "mine", "in_channels": 1, "num_classes": 2, "width": 3
    }  # fmt: skip
    with pytest.raises(TypeError, match="model 'mine' has no option 'widht': its options are width; did you mean"):
        create_model("mine", 1, 2, widht=3)


GOOD: dict = {"dims": 2, "task": "classification", "symmetry": "full"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unet", {}, "a model named 'unet' is registered already"),
        ("mine", {"dims": 4}, "dims of model 'mine' must be 2 or 3, got 4"),
        ("mine", {"task": "segmentaton"}, "must be 'classification' or 'segmentation'.*did you mean 'segmentation'"),
        ("mine", {"symmetry": "ful"}, "one of none, mirrors, rotations, full, got 'ful'; did you mean 'full'"),
        ("mine", {"family": "unet"}, "the family 'unet' of model 'mine' has a model of 2 dims already: 'unet'"),
    ],
)
def test_what_cannot_be_registered(names: dict, name: str, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_model(name, build, **GOOD | change)
    assert list(names) == list_models()
    assert "mine" not in names


@pytest.mark.parametrize("ask", [model_info, create_model])
def test_an_unknown_name(ask: Callable) -> None:
    with pytest.raises(ValueError, match="unknown model 'sre_unt'.*did you mean 'sre_unet'"):
        ask("sre_unt")
