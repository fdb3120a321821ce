"""fuse(): a plain network, the same outputs, no isoconv."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import isoconv
from isoconv import convert, fuse
from isoconv import nn as iso
from isoconv.models import create_model

PAIRS = {
    iso.SREConv1d: nn.Conv1d,
    iso.SREConv2d: nn.Conv2d,
    iso.SREConv3d: nn.Conv3d,
    iso.SREConvTranspose1d: nn.ConvTranspose1d,
    iso.SREConvTranspose2d: nn.ConvTranspose2d,
    iso.SREConvTranspose3d: nn.ConvTranspose3d,
}


def is_plain(net: nn.Module) -> bool:
    return not any(c.__module__.startswith("isoconv") for m in net.modules() for c in type(m).__mro__)


def tiny(name: str, **options: object) -> nn.Module:
    net = create_model(name, 1, 3, width=2, engine="reference", **options)
    x = image(name, 12)
    for _ in range(2):  # running statistics of its own
        net(x)
    return net.eval()


def image(name: str, size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, *[size] * (3 if name.endswith("_3d") else 2))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_single_layer_becomes_the_plain_one(kind: type[nn.Module]) -> None:
    layer = kind(4, 6, 5, stride=2, padding=2, groups=2, engine="reference")
    plain = fuse(layer)
    assert type(plain) is PAIRS[kind]
    assert torch.equal(plain.weight, layer.kernel())
    x = torch.randn(2, 4, *[9] * layer.dims)
    assert torch.equal(plain(x), layer(x))


@st.composite
def arguments(draw: st.DrawFn) -> tuple[type[nn.Module], dict]:
    kind = draw(st.sampled_from([*PAIRS]))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    common = {
        "kernel_size": draw(st.integers(1, 4)),
        "stride": stride,
        "padding": draw(st.integers(0, 2)),
        "dilation": dilation,
        "groups": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "circular": draw(st.booleans()),
    }
    if "Transpose" in kind.__name__:
        common["output_padding"] = draw(st.integers(0, max(stride, dilation) - 1))
    else:
        common["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if stride == 1 and draw(st.booleans()):
            common["padding"] = draw(st.sampled_from(["same", "valid"]))
    return kind, common


@given(arguments(), st.booleans())
@settings(max_examples=80)
def test_outputs_of_the_reference_engine_are_equal_to_the_last_bit(case: tuple, batched: bool) -> None:
    kind, common = case
    layer = kind(2, 4, **common, engine="reference")
    x = torch.randn(*([2] if batched else []), 2, *[9] * layer.dims)
    assert torch.equal(fuse(layer)(x), layer(x))


def test_outputs_of_other_engines_are_close() -> None:
    layer = iso.SREConv2d(4, 4, 9, padding=4, engine="numba")
    x = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(fuse(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sre_resnet18", {}),
        ("sre_resnet18", {"stem_stride": 2, "profile": "gaussian"}),
        ("sre_resnet50", {}),
        ("sre_resnet18_3d", {}),
        ("sre_unet", {}),
        ("sre_unet_3d", {"kernel_sizes": 3}),
    ],
)
def test_whole_networks_at_several_sizes(name: str, options: dict) -> None:
    net = tiny(name, **options)
    plain = fuse(net)
    assert is_plain(plain)
    assert list(plain.state_dict()) == list(net.state_dict())
    for size in (12, 13, 15) if "3d" in name else (17, 28, 29, 32):
        x = image(name, size)
        torch.testing.assert_close(plain(x), net(x))


@given(st.integers(1, 3), st.tuples(*[st.integers(2, 11)] * 3))
@settings(max_examples=20)
def test_symmetric_resampling_at_every_size(dims: int, size: tuple[int, ...]) -> None:
    layers = [getattr(iso, f"Symmetric{kind}{dims}d")() for kind in ("AvgPool", "MaxPool", "Upsample")]
    layers.append(iso.CentreGrid((1,) * dims, (2,) * dims, (0,) * dims, (1,) * dims, "max"))
    x = torch.randn(1, 2, *size[:dims])
    for layer in layers:
        plain = fuse(layer)
        assert is_plain(plain)
        torch.testing.assert_close(plain(x), layer(x))


@pytest.mark.parametrize("size", [15, 16])
def test_a_converted_network(size: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 7, 2, 3),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
        nn.ConvTranspose2d(4, 2, 3, 2, 1, 1),
    )
    converted = convert(net, engine="reference").eval()
    x = torch.randn(2, 1, size, size)
    plain = fuse(converted)
    assert is_plain(plain)
    torch.testing.assert_close(plain(x), converted(x))


class TestCopy:
    def test_the_original_stays(self) -> None:
        net = tiny("sre_resnet18")
        text, before = repr(net), copy.deepcopy(net.state_dict())
        plain = fuse(net)
        with torch.no_grad():
            for p in (*plain.parameters(), *plain.buffers()):
                p.zero_()
        assert repr(net) == text
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_mode_dtype_and_requires_grad_are_kept(self) -> None:
        net = create_model("sre_resnet18", 1, 2, width=2).double()
        net.conv1.weight.requires_grad_(False)
        net.layer3.eval()
        plain = fuse(net)
        modes = {name: m.training for name, m in net.named_modules()}
        assert all(m.training == modes[name] for name, m in plain.named_modules())
        assert {p.dtype for p in plain.parameters()} == {torch.float64}
        assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in net.parameters()]

    def test_shared_modules_and_weights_stay_shared(self) -> None:
        first, second = iso.SREConv2d(2, 2, 3), iso.SREConv2d(2, 2, 3, dilation=2)
        second.weight, second.bias = first.weight, first.bias
        pool = iso.SymmetricMaxPool2d()
        plain = fuse(nn.ModuleList([first, second, nn.Sequential(pool, first), pool]))
        assert plain[0] is plain[2][1]
        assert plain[2][0] is plain[3]
        assert plain[0].weight is plain[1].weight
        assert plain[0].bias is plain[1].bias

    def test_layers_whose_weight_is_computed(self) -> None:
        net = nn.Sequential(iso.SREConv2d(1, 2, 3), prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", 5))
        x = torch.randn(1, 1, 9, 9)
        torch.testing.assert_close(fuse(net)(x), net(x))

    def test_each_layer_gets_its_own_computed_weight(self) -> None:
        net = nn.ModuleList(parametrizations.weight_norm(iso.SREConv2d(1, 2, 3, bias=False)) for _ in range(50))
        for layer, plain in zip(net, fuse(net), strict=True):
            assert torch.equal(plain.weight, layer.kernel())

    def test_computed_biases(self) -> None:
        layer = prune.l1_unstructured(iso.SREConv2d(1, 2, 3), "bias", 1)
        assert torch.equal(fuse(layer).bias, layer.bias)

    @pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
    @pytest.mark.parametrize("hooked", [lambda m: prune.l1_unstructured(m, "weight", 2), nn.utils.weight_norm])
    def test_computed_weights_are_made_anew(self, hooked: Callable[[nn.Module], nn.Module]) -> None:
        layer, x = hooked(iso.SREConv2d(1, 2, 3)), torch.randn(1, 1, 9, 9)
        layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})
        torch.testing.assert_close(fuse(layer)(x), layer(x))

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            net = create_model("sre_resnet18", 1, 2, width=2)
        plain = fuse(net)
        assert plain(torch.empty(1, 1, 28, 28, device="meta")).shape == (1, 2)

    def test_it_can_be_trained(self) -> None:
        plain = fuse(create_model("sre_resnet18", 1, 2, width=2))
        plain(torch.randn(4, 1, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in plain.parameters())

    def test_plain_networks_are_copied(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        plain = fuse(net)
        assert plain[0] is not net[0]
        assert repr(plain) == repr(net)

    def test_hooks_stay_on_what_is_not_replaced_and_see_tensors_only(self) -> None:
        seen: list[object] = []
        net = nn.Sequential(nn.Sequential(tiny("sre_resnet18")), nn.ReLU())
        for part in (net, net[0], net[0][0], net[0][0].layer4, net[0][0].bn1, net[1]):
            part.register_forward_hook(lambda m, _args, y: seen.append((type(m).__name__, type(y))))
        net[0][0].layer1.register_full_backward_hook(lambda *_: None)
        plain = fuse(net)
        assert seen == []
        plain(image("sre_resnet18", 16))
        kinds = ["BatchNorm2d", "Sequential", "ReLU", "Sequential"]
        assert seen == [(kind, Tensor) for kind in kinds]

    def test_deepcopy_and_pickle(self) -> None:
        for net in (tiny("sre_resnet18"), convert(nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.MaxPool2d(2)))):
            plain = fuse(net)
            x = torch.randn(1, 1, 15, 15)
            for twin in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
                assert torch.equal(twin(x), plain(x))


class Doubled(nn.Module):
    """A head whose forward has a branch that no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if x.sum() > 0 else -2)


class Branching(isoconv.models.resnet.ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_other_modules_inside_a_network_of_isoconv_are_called_as_they_are() -> None:
    net = tiny("sre_resnet18")
    net.fc = Doubled()
    plain = fuse(net)
    assert is_plain(plain)
    for sign in (1, -1):
        x = sign * image("sre_resnet18", 16)
        assert torch.equal(plain(x), net(x))


def test_what_cannot_be_traced_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    net = tiny("sre_resnet18")
    net.__class__ = Branching
    fused = fuse(nn.Sequential(net))
    assert "still needs isoconv: torch.fx cannot trace 0 (Branching)" in caplog.text
    x = image("sre_resnet18", 16)
    assert torch.equal(fused(x), net(x))
    assert not any(isinstance(m, iso.SREConv2d) for m in fused.modules())


def test_other_values_of_optional_arguments_are_refused() -> None:
    plain = fuse(iso.SymmetricUpsample2d())
    x = torch.randn(1, 1, 4, 4)
    assert plain(x).shape == (1, 1, 8, 8)
    with pytest.raises(AssertionError, match="size"):
        plain(x, [7, 7])


def test_bad_arguments_are_refused_with_a_reason() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got dict"):
        fuse({})


WITHOUT_ISOCONV = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("isoconv", "numba"):
            raise ImportError("no " + name)

sys.meta_path.insert(0, Refuse())
import torch

for case in torch.load(sys.argv[1], weights_only=False):
    torch.testing.assert_close(case["net"](case["x"]), case["y"])
program = torch.export.load(sys.argv[2])
x, y = torch.load(sys.argv[3])
torch.testing.assert_close(program.module()(x), y)
assert not any(name.startswith("isoconv") for name in sys.modules)
"""


def test_loading_and_running_needs_no_isoconv(tmp_path: Path) -> None:
    """In a process where importing isoconv fails, from files alone."""
    cases = []
    for name in ("sre_resnet18", "sre_resnet18_3d"):
        net, x = fuse(tiny(name)), image(name, 15)
        cases.append({"net": net, "x": x, "y": net(x).detach()})
    converted = fuse(convert(nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))))
    cases.append({"net": converted, "x": torch.randn(1, 1, 13, 13)})
    cases[-1]["y"] = converted(cases[-1]["x"]).detach()
    torch.save(cases, tmp_path / "nets.pt")
    torch.export.save(torch.export.export(cases[0]["net"], (cases[0]["x"],)), tmp_path / "net.pt2")
    torch.save((cases[0]["x"], cases[0]["y"]), tmp_path / "case.pt")
    files = [str(tmp_path / name) for name in ("nets.pt", "net.pt2", "case.pt")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ISOCONV, *files], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_state_dict_loads_into_a_network_written_without_isoconv() -> None:
    net = convert(nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 3)), engine="reference")
    buffer = io.BytesIO()
    torch.save(fuse(net).state_dict(), buffer)
    buffer.seek(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 3))
    plain.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(2, 1, 9, 9)
    assert torch.equal(plain(x), net(x))


MAKERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Sequential(iso.SREConv2d(1, 2, 3, 2), iso.SymmetricAvgPool2d()),
    lambda: tiny("sre_resnet18"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_fusing_again_changes_nothing(make: Callable[[], nn.Module]) -> None:
    once = fuse(make())
    twice = fuse(once)
    assert list(twice.state_dict()) == list(once.state_dict())
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(twice(x), once(x))
