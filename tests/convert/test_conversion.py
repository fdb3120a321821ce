"""convert(): a copy with isotropic layers, symmetric at every size, that keeps what can be kept."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import isoconv
from isoconv import conversion_report, convert
from isoconv import nn as iso
from isoconv.models import create_model, model_config

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
SRE = {1: isoconv.SREConv1d, 2: isoconv.SREConv2d, 3: isoconv.SREConv3d}
EXACT = 1e-11  # relative, in float64


def error(net: nn.Module, x: Tensor) -> float:
    """The largest change under all flips and quarter turns."""
    return max(isoconv.equivariance_error(net, x).values())


class Block(nn.Module):
    """Layers in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(nn.Conv2d(2, 2, 5, 2, 2))])
        self.named = nn.ModuleDict({"down": nn.MaxPool2d(3, 2, 1), "mix": nn.Conv2d(2, 2, 1, 2)})
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.many:
            x = torch.relu(layer(x))
        return self.norm(self.named["mix"](x) + self.named["down"](x))


class TestSymmetry:
    """What comes out is symmetric at every size, and as large as before."""

    @staticmethod
    @st.composite
    def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
        dims = draw(st.integers(1, 3))
        kind = draw(st.sampled_from(["conv", "transposed", "max", "avg"]))
        kernel, stride = draw(st.integers(1, 5 if dims < 3 else 4)), draw(st.integers(1, 4))
        half = (kernel - 1) // 2
        layer: nn.Module
        if kind == "conv":
            dilation = draw(st.integers(1, 2))
            mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
            padding = draw(st.integers(0, dilation * half))
            layer = CONVS[dims](2, 2, kernel, stride, padding, dilation, draw(st.integers(1, 2)), padding_mode=mode)
        elif kind == "transposed":
            padding = draw(st.integers(0, half))
            extra = draw(st.integers(0, min(stride - 1, 2 * padding)))
            layer = TRANSPOSED[dims](2, 2, kernel, stride, padding, extra if kernel > 1 else 0)
        else:
            ceil = kernel == stride == 2 and draw(st.booleans())
            padding = 0 if ceil else draw(st.integers(0, half))
            pool = MAX_POOLS if kind == "max" else AVG_POOLS
            layer = pool[dims](kernel, stride, padding, ceil_mode=ceil)
        return layer.double(), (draw(st.integers(9, 14 if dims < 3 else 12)),) * dims

    @given(layers())
    @settings(max_examples=150)
    def test_every_layer_becomes_symmetric_and_keeps_its_output_shape(self, case: tuple) -> None:
        layer, size = case
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        converted = convert(layer)
        assert converted(x).shape == layer(x).shape
        assert error(converted, x) < EXACT
        statuses = {row.status for row in conversion_report(converted).rows}
        assert statuses <= {"isotropic", "unaffected"}

    @pytest.mark.parametrize("size", [15, 16, 17, 18])
    def test_a_nested_network_becomes_symmetric(self, size: int) -> None:
        net = nn.Sequential(Block(), nn.Sequential(Block(), nn.Identity())).double()
        x = torch.randn(2, 2, size, size, dtype=torch.float64)
        assert error(net, x) > 1e-2
        assert convert(net)(x).shape == net(x).shape
        assert error(convert(net), x) < EXACT

    def test_an_even_kernel_with_same_padding_stays_lopsided_and_the_report_says_so(self) -> None:
        converted = convert(nn.Conv2d(2, 2, 4, padding="same").double())
        assert error(converted, torch.randn(1, 2, 9, 9, dtype=torch.float64)) > 1e-2
        (row,) = conversion_report(converted).rows
        assert (row.status, row.remedy) == ("breaks symmetry", "use an odd kernel size")

    def test_unbatched_input(self) -> None:
        converted = convert(nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.MaxPool2d(2)))
        x = torch.randn(2, 12, 12)
        torch.testing.assert_close(converted(x), converted(x[None])[0])

    def test_the_symmetry_outlives_training(self) -> None:
        net = convert(nn.Sequential(Block(), nn.ReLU(), Block())).double()
        x = torch.randn(4, 2, 14, 14, dtype=torch.float64)
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        before = copy.deepcopy(net.state_dict())
        for _ in range(3):
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()
        assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())
        assert error(net, x) < EXACT


class TestCopy:
    """The network that comes out is a copy, with everything that conversion has no reason to change."""

    def test_a_converted_copy_is_returned_and_the_original_stays(self) -> None:
        net = nn.Sequential(Block(), nn.Linear(4, 4))
        before, text = copy.deepcopy(net.state_dict()), repr(net)
        x = torch.randn(2, 2, 16, 16)
        converted = convert(net)
        assert isinstance(converted, nn.Sequential)
        assert isinstance(converted[0], Block)
        converted(x).sum().backward()
        torch.optim.SGD(converted.parameters(), 1.0).step()
        assert repr(net) == text
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())

    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_the_root_can_be_a_convolution(self, dims: int) -> None:
        assert type(convert(CONVS[dims](1, 2, 3))) is SRE[dims]

    def test_subclasses_are_converted_unless_they_compute_something_else(self) -> None:
        class Named(nn.Conv2d):
            """A convolution with defaults of its own."""

            def __init__(self, channels: int) -> None:
                super().__init__(channels, channels, 3, padding=1, bias=False)

        assert isinstance(convert(Named(2)), isoconv.SREConv2d)

    def test_shared_modules_stay_shared(self) -> None:
        conv, down, pool = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, 2, 1), nn.MaxPool2d(3, 2, 1)
        net = nn.Sequential(nn.Sequential(conv, down), conv, nn.ModuleDict({"a": pool, "b": down}), pool)
        converted = convert(net)
        assert converted[0][0] is converted[1]
        assert converted[0][1] is converted[2]["b"]
        assert converted[2]["a"] is converted[3]
        assert len(list(converted.parameters())) == 4

    def test_shared_weights_stay_shared(self) -> None:
        first, second = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, 2, dilation=2)
        back = nn.ConvTranspose2d(2, 2, 3)
        second.weight = back.weight = first.weight
        second.bias = first.bias
        converted = convert(nn.ModuleList([first, second, back]))
        assert converted[0].weight is converted[1][1].weight is converted[2].weight
        assert converted[0].bias is converted[1][1].bias
        assert sum(p.numel() for p in converted.parameters()) == 2 * 2 * 2 + 2 + 2

    def test_a_weight_that_another_layer_needs_as_it_is_stays_shared(self) -> None:
        first, second, down, mix = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, 2), nn.Conv2d(2, 2, 1, 2)
        second.weight = first.weight
        net = nn.ModuleDict({"first": first, "second": second, "down": down, "mix": mix})
        net["rest"] = nn.ParameterList([first.weight, mix.weight])
        net.weight = down.weight
        converted = convert(net)
        assert converted["first"].weight is converted["second"].weight is converted["rest"][0]
        assert converted["mix"][1].weight is converted["rest"][1]
        assert converted["down"].weight is converted.weight
        report = conversion_report(net)
        told = {row.name: (row.status, row.reason) for row in report.rows}
        assert told["first"] == told["second"] == ("left", "rest shares its weight and is not converted")
        assert told["down"] == ("left", "(root) shares its weight and is not converted")
        assert report.parameters_converted == report.parameters

    def test_references_from_elsewhere_follow(self) -> None:
        net = nn.Sequential(nn.Conv2d(2, 2, 3, 2), nn.ReLU())
        net.skips = ({"stem": net[0]},)
        converted = convert(net)
        assert converted.skips[0]["stem"] is converted[0]

    def test_mode_is_kept_module_by_module(self) -> None:
        net = nn.Sequential(Block(), Block())
        net[0].eval()
        net.training = False
        converted = convert(net)
        assert not converted.training
        assert not any(m.training for m in converted[0].modules())
        assert all(m.training for m in converted[1].modules())

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            net = nn.Sequential(Block(), nn.Flatten(), nn.Linear(32, 2))
        converted = convert(net)
        assert {p.device.type for p in converted.parameters()} == {"meta"}
        assert converted(torch.empty(1, 2, 16, 16, device="meta")).shape == (1, 2)

    def test_no_random_number_is_drawn(self) -> None:
        net, state = Block(), torch.get_rng_state()
        convert(net)
        assert torch.equal(torch.get_rng_state(), state)

    def test_requires_grad_is_kept(self) -> None:
        net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.Conv2d(2, 2, 1, 2))
        net[0].weight.requires_grad_(False)
        net[1].bias.requires_grad_(False)
        net[2].weight.requires_grad_(False)
        converted = convert(net)
        assert [p.requires_grad for p in converted.parameters()] == [p.requires_grad for p in net.parameters()]

    @pytest.mark.parametrize(
        "layer", [nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, 2), nn.Conv2d(2, 2, 1, 2), nn.MaxPool2d(2)], ids=repr
    )
    def test_hooks_are_kept(self, layer: nn.Module) -> None:
        seen: list[str] = []
        layer = copy.deepcopy(layer)
        layer.register_forward_pre_hook(lambda _m, args: seen.append(f"pre {tuple(args[0].shape)}"))
        layer.register_forward_hook(lambda _m, _args, kwargs, y: y + 1, with_kwargs=True)
        layer.register_full_backward_hook(lambda _m, _gi, _go: seen.append("backward"))
        x = torch.randn(1, 2, 9, 9, requires_grad=True)
        converted = convert(nn.Sequential(layer))
        converted(x).sum().backward()
        assert [text.split()[0] for text in seen] == ["pre", "backward"]
        bare = convert(nn.Sequential(copy.deepcopy(layer)))
        for module in bare.modules():
            module._forward_hooks.clear()
        torch.testing.assert_close(converted(x), bare(x) + 1)

    def test_a_hook_that_is_a_method_belongs_to_the_copy(self) -> None:
        class Recorder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 1, 3)
                self.outputs: list[Tensor] = []
                self.conv.register_forward_hook(self.record)

            def record(self, module: nn.Module, args: tuple, output: Tensor) -> None:
                self.outputs.append(output)

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x)

        net = Recorder()
        converted = convert(net)
        converted(torch.zeros(1, 1, 5, 5))
        assert (len(net.outputs), len(converted.outputs)) == (0, 1)

    def test_converting_again_changes_nothing(self) -> None:
        once = convert(nn.Sequential(Block(), nn.ConvTranspose2d(2, 2, 3, 2, 1, 1), nn.MaxPool2d(2, ceil_mode=True)))
        twice = convert(once)
        assert repr(twice) == repr(once)
        assert all(
            torch.equal(a, b) for a, b in zip(twice.state_dict().values(), once.state_dict().values(), strict=True)
        )

    def test_deepcopy_and_pickle(self) -> None:
        converted = convert(nn.Sequential(nn.Conv2d(2, 3, 5, 2, 2), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()))
        x = torch.randn(1, 2, 11, 11)
        for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert torch.equal(twin(x), converted(x))
        again = convert(nn.Sequential(nn.Conv2d(2, 3, 5, 2, 2), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()))
        again.load_state_dict(converted.state_dict())
        assert torch.equal(again(x), converted(x))

    def test_networks_of_other_makers(self) -> None:
        x = torch.randn(2, 2, 12, 12)
        for net, kind in (
            (torch.fx.symbolic_trace(nn.Sequential(Block())), torch.fx.GraphModule),
            (nn.DataParallel(Block()), nn.DataParallel),
        ):
            converted = convert(net)
            assert isinstance(converted, kind)
            assert converted(x).shape == net(x).shape
            assert sum(isinstance(m, isoconv.SREConv2d) for m in converted.modules()) == 2

    def test_a_network_without_convolutions_is_copied(self) -> None:
        net = nn.Sequential(nn.Linear(3, 3), nn.Sequential())
        converted = convert(net)
        assert converted[0] is not net[0]
        assert repr(converted) == repr(net)

    def test_a_converted_model_does_not_claim_the_configuration_it_was_built_by(self) -> None:
        plain, sre = (create_model(n, 1, 2, width=2) for n in ("resnet18", "sre_resnet18"))
        with pytest.raises(ValueError, match="was not built by isoconv.create_model"):
            model_config(convert(plain))
        assert model_config(plain)["name"] == "resnet18"
        assert model_config(convert(sre)) == model_config(sre)


def own_forward() -> nn.Module:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self._conv_forward(x, self.weight - self.weight.mean(), self.bias))

    return Standardised(2, 2, 3)


def patched() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    conv.forward = lambda x: x.mean(1, keepdim=True)  # type: ignore[method-assign, assignment]
    return conv


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", 3)


LEFT: list[tuple[Callable[[], nn.Module], str]] = [
    (own_forward, "has a forward of its own"),
    (patched, "has a forward of its own"),
    (pruned, "its weight is computed"),
    (lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), "its weight is computed"),
    (lambda: parametrizations.spectral_norm(nn.Conv2d(2, 2, 3, 2)), "its weight is computed"),
    (lambda: nn.LazyConv2d(2, 3), "lazy, without weights yet"),
    (lambda: nn.Conv2d(2, 2, 3, dtype=torch.complex64), "its weight is torch.complex64"),
    (lambda: nn.MaxPool2d(2, return_indices=True), "its indices refer to its input"),
]


@pytest.mark.parametrize(("make", "reason"), LEFT, ids=[reason for _, reason in LEFT])
def test_what_cannot_be_converted_is_left_and_named(
    make: Callable[[], nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = nn.Sequential(nn.Identity(), make())
    converted = convert(net)
    assert type(converted[1]) is type(net[1])
    assert "layers left as they are: 1;" in caplog.text
    row = conversion_report(net).rows[1]
    assert row.status == "left"
    assert row.reason.startswith(reason)
    assert row.remedy


def test_a_strided_pointwise_layer_is_centred_whatever_computes_its_weight() -> None:
    net = parametrizations.weight_norm(nn.Conv2d(2, 3, 1, 2)).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    converted = convert(net)
    assert error(converted, x) < EXACT
    assert isinstance(converted[0], iso.CentreGrid)


@pytest.mark.parametrize(
    ("engine", "transposed"), [("reference", "reference"), ("auto", "auto"), ("numba", "auto"), ("triton", "auto")]
)
def test_transposed_layers_get_no_engine_that_lacks_them(engine: str, transposed: str) -> None:
    for extra in (0, 1):
        up = nn.ConvTranspose2d(1, 1, 3, 2, padding=extra, output_padding=extra)
        converted = convert(nn.Sequential(nn.Conv2d(1, 1, 3), up), engine=engine)
        assert [m.engine for m in converted.modules() if hasattr(m, "engine")] == [engine, transposed]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: convert("resnet18"), TypeError, "expected a torch.nn.Module, got str"),
        (lambda: convert(torch.jit.ScriptModule()), TypeError, "got TorchScript, whose layers are fixed"),
        (lambda: convert(Block(), profile="gausian"), ValueError, "unknown profile 'gausian'.*did you mean 'gaussian'"),
        (lambda: convert(Block(), engine="cuda"), ValueError, "unknown engine 'cuda': expected one of auto, reference"),
        (lambda: convert(Block(), bands=3), ValueError, r"layer 'many.0': bands=3 is too many for kernel_size=\(3, 3"),
        (lambda: convert(nn.Conv2d(1, 1, 3), bands=9), ValueError, r"layer '\(root\)': bands=9 is too many"),
        (lambda: convert(Block(), bands=0), ValueError, "bands must be a whole number of at least 1, got 0"),
        (lambda: convert(Block(), spacing=0), ValueError, r"layer .many.0.: spacing must be positive"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(
    make: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_a_refused_conversion_leaves_the_network_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 3))
    text = repr(net)
    with pytest.raises(ValueError, match="layer '1'"):
        convert(net, bands=3)
    assert repr(net) == text
