"""The layers behave as their torch.nn twins, with one weight per band."""

import copy
import inspect
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isoconv
from isoconv import functional
from isoconv.nn.conv import _BandedConv

CONVS = {1: (isoconv.SREConv1d, nn.Conv1d), 2: (isoconv.SREConv2d, nn.Conv2d), 3: (isoconv.SREConv3d, nn.Conv3d)}
TRANSPOSED = {
    1: (isoconv.SREConvTranspose1d, nn.ConvTranspose1d),
    2: (isoconv.SREConvTranspose2d, nn.ConvTranspose2d),
    3: (isoconv.SREConvTranspose3d, nn.ConvTranspose3d),
}
FUNCTIONS = {1: functional.sre_conv1d, 2: functional.sre_conv2d, 3: functional.sre_conv3d}


def twin(layer: _BandedConv, plain: nn.Module) -> nn.Module:
    """``plain`` with the kernel and bias of ``layer``."""
    plain.weight = nn.Parameter(layer.kernel().detach())
    plain.bias = layer.bias
    return plain.to(layer.weight.dtype)


@st.composite
def conv_arguments(draw: st.DrawFn, transposed: bool = False) -> tuple[int, dict, dict, tuple[int, ...]]:
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    kernel = (
        draw(st.integers(1, 5 if dims < 3 else 3))
        if draw(st.booleans())
        else draw(st.tuples(*[st.integers(1, 3)] * dims))
    )
    common = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if not transposed:
        common["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if draw(st.booleans()) and common["stride"] == 1:
            common["padding"] = draw(st.sampled_from(["same", "valid"]))
    else:
        common["output_padding"] = draw(st.integers(0, max(common["stride"], common["dilation"]) - 1))
    extra = {
        "profile": draw(st.sampled_from(["hard", "linear", "area", "gaussian"])),
        "circular": draw(st.booleans()),
        "norm": draw(st.sampled_from(["none", "unit"])),
    }
    return dims, common, extra, tuple(draw(st.integers(9, 12)) for _ in range(dims))


@given(conv_arguments(), st.booleans())
@settings(max_examples=60)
def test_outputs_and_gradients_equal_a_plain_convolution_of_the_expanded_kernel(case, batched: bool) -> None:
    dims, common, extra, size = case
    layer = CONVS[dims][0](**common, **extra, dtype=torch.float64)
    plain = twin(layer, CONVS[dims][1](**common))
    x = torch.randn(*([2] if batched else []), common["in_channels"], *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(x), plain(x)
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn_like(ours)
    weight_grad, *rest = torch.autograd.grad(ours, [layer.weight, x], cotangent)
    kernel_grad, *expected = torch.autograd.grad(theirs, [plain.weight, x], cotangent)
    torch.testing.assert_close(rest, expected)
    basis = torch.from_numpy(layer.plan.basis).flatten(1)
    torch.testing.assert_close(weight_grad, kernel_grad.flatten(2) @ basis.T)


@given(conv_arguments(transposed=True))
@settings(max_examples=40)
def test_transposed_layers_equal_a_plain_transposed_convolution(case) -> None:
    dims, common, extra, size = case
    layer = TRANSPOSED[dims][0](**common, **extra, dtype=torch.float64)
    plain = twin(layer, TRANSPOSED[dims][1](**common))
    x = torch.randn(2, common["in_channels"], *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_size_of_a_transposed_layer(dims: int) -> None:
    layer = TRANSPOSED[dims][0](2, 3, 3, stride=2, padding=1)
    x = torch.randn(1, 2, *[5] * dims)
    assert layer(x, output_size=[10] * dims).shape[2:] == (10,) * dims
    torch.testing.assert_close(layer(x, output_size=[9] * dims), layer(x))
    with pytest.raises(ValueError, match="output_size must lie between"):
        layer(x, output_size=[11] * dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pairs", [CONVS, TRANSPOSED], ids=["conv", "transposed"])
def test_positional_arguments_are_those_of_torch(dims: int, pairs: dict) -> None:
    ours, theirs = (inspect.signature(c.__init__).parameters.values() for c in pairs[dims])
    positional = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [(p.name, p.default) for p in theirs]
    assert pairs[dims][0](4, 4, 3, 1, 1, *([0] if pairs is TRANSPOSED else [1]), 2).spec.groups == 2


def test_official_layers_match(golden) -> None:
    layers = golden("official_sre_layers")
    for i, case in enumerate(json.loads(str(layers["meta"]))):
        arguments = {k: v for k, v in case.items() if k not in ("kind", "sre_k")}
        layer = CONVS[int(case["kind"][0])][0](**arguments, bands=case.get("sre_k"))
        layer.load_state_dict({name: torch.from_numpy(layers[f"{i}_sd_{name}"]) for name in layer.state_dict()})
        torch.testing.assert_close(
            layer(torch.from_numpy(layers[f"{i}_x"])), torch.from_numpy(layers[f"{i}_y"]), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_functional_form(dims: int) -> None:
    layer = CONVS[dims][0](4, 6, 5, stride=2, padding=2, groups=2, profile="linear")
    x = torch.randn(2, 4, *[9] * dims)
    y = FUNCTIONS[dims](x, layer.weight, layer.bias, 2, 2, groups=2, kernel_size=5, profile="linear")
    torch.testing.assert_close(y, layer(x))


def test_gradcheck() -> None:
    layer = isoconv.SREConv2d(2, 4, 5, padding=2, groups=2, dtype=torch.float64)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: F.silu(torch.func.functional_call(layer, {"weight": w, "bias": b}, x)), (x, *layer.parameters())
    )


class TestState:
    """Nothing but the parameters is state, in every mode."""

    def test_state_dict_holds_weight_and_bias_only(self) -> None:
        layer = isoconv.SREConv2d(3, 8, 9)
        assert set(layer.state_dict()) == set(layer.eval().state_dict()) == {"weight", "bias"}
        assert set(isoconv.SREConv2d(3, 8, 9, bias=False).state_dict()) == {"weight"}
        assert not dict(layer.named_buffers())

    def test_weights_loaded_or_changed_in_eval_mode_are_used(self) -> None:
        x = torch.randn(1, 3, 9, 9)
        layer, other = isoconv.SREConv2d(3, 8, 5).eval(), isoconv.SREConv2d(3, 8, 5).eval()
        layer(x)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))
        before = layer(x)
        torch.optim.SGD(layer.parameters(), 0.1).zero_grad()
        layer(x).sum().backward()
        torch.optim.SGD(layer.parameters(), 0.1).step()
        assert not torch.equal(layer(x), before)

    def test_two_backward_passes_in_eval_mode(self) -> None:
        layer = isoconv.SREConv2d(3, 8, 5).eval()
        for _ in range(2):
            layer(torch.randn(1, 3, 9, 9)).sum().backward()

    def test_deepcopy_pickle_and_save_in_eval_mode(self) -> None:
        layer = isoconv.SREConv2d(3, 8, 5, profile="gaussian").eval()
        x = torch.randn(1, 3, 9, 9)
        expected = layer(x)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        again = isoconv.SREConv2d(3, 8, 5, profile="gaussian")
        again.load_state_dict(torch.load(buffer, weights_only=True))
        for twin_layer in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again):
            assert torch.equal(twin_layer(x), expected)

    def test_training_flag_set_by_hand(self) -> None:
        layer = isoconv.SREConv2d(3, 8, 5)
        layer.training = False
        layer(torch.randn(1, 3, 9, 9))

    def test_meta_device_and_materialisation(self) -> None:
        with torch.device("meta"):
            layer = isoconv.SREConv2d(3, 8, 5)
        assert layer(torch.empty(1, 3, 9, 9, device="meta")).shape == (1, 8, 5, 5)
        source = isoconv.SREConv2d(3, 8, 5)
        layer.load_state_dict(source.state_dict(), assign=True)
        x = torch.randn(1, 3, 9, 9)
        assert torch.equal(layer(x), source(x))
        layer.to_empty(device="cpu").reset_parameters()
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    layer = isoconv.SREConv2d(3, 8, 5, padding=2, dtype=dtype)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    y = layer(torch.randn(2, 3, 8, 8, dtype=dtype))
    assert y.dtype == dtype
    converted = isoconv.SREConv2d(3, 8, 5, padding=2).to(dtype)
    converted.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    assert torch.equal(converted(x), layer(x))


def test_autocast() -> None:
    layer = isoconv.SREConv2d(3, 8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(1, 3, 9, 9))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_compile_and_export_without_graph_breaks() -> None:
    layer = isoconv.SREConv2d(3, 8, 5, padding=2)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_vmap_over_weights() -> None:
    layer = isoconv.SREConv2d(3, 4, 3)
    x, weights = torch.randn(1, 3, 6, 6), torch.randn(5, 4, 3, 2)
    y = torch.func.vmap(lambda w: torch.func.functional_call(layer, {"weight": w}, x))(weights)
    torch.testing.assert_close(y[2], torch.func.functional_call(layer, {"weight": weights[2]}, x))


def test_every_parameter_gets_a_gradient() -> None:
    layer = isoconv.SREConv2d(3, 4, 9, padding=4)
    layer(torch.randn(1, 3, 12, 12)).square().sum().backward()
    assert all((p.grad != 0).all() for p in layer.parameters())


def test_repr_rebuilds_the_layer() -> None:
    layer = isoconv.SREConv2d(
        4, 6, (3, 5), 2, padding=1, groups=2, bias=False, padding_mode="reflect", profile="area", circular=False
    )
    again = eval(repr(layer), {"SREConv2d": isoconv.SREConv2d})  # noqa: S307 - the text was made two words ago
    assert repr(again) == repr(layer)
    assert again.plan is layer.plan
    assert again.spec == layer.spec
    assert "bands=" in repr(layer)


@pytest.mark.parametrize("on_meta", ["weight", "bias"])
def test_parameters_on_another_device_are_not_taken_for_memory(on_meta: str) -> None:
    layer = isoconv.SREConv2d(3, 8, 3, engine="numba")
    setattr(layer, on_meta, torch.nn.Parameter(getattr(layer, on_meta).to("meta")))
    with pytest.raises(ValueError, match=f"input is on cpu but {on_meta} on meta"):
        layer(X)


def test_counts_may_be_numbers_of_numpy() -> None:
    two, six = np.int64(2), np.int64(6)
    layer = isoconv.SREConv2d(six, six, np.int64(3), groups=two, bands=two, engine="numba")
    assert layer(torch.randn(1, 6, 5, 5)).shape == (1, 6, 3, 3)


X = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: isoconv.SREConv2d(3, 8, (3, 3, 3)),
            ValueError,
            "kernel_size must be one number or 2 of them, one per axis, got 3",
        ),
        (lambda: isoconv.SREConv2d(3, 8, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: isoconv.SREConv2d(3, 8, 0), ValueError, "kernel_size must be at least 1"),
        (lambda: isoconv.SREConv2d(3, 8, 3.5), TypeError, "kernel_size must be whole numbers, got 3.5"),
        (lambda: isoconv.SREConv2d(3, 8, torch.tensor(3)), TypeError, "kernel_size must be whole numbers, got tensor"),
        (lambda: isoconv.SREConv2d(3, 8, math.inf), TypeError, "kernel_size must be whole numbers, got inf"),
        (lambda: isoconv.SREConv2d(3, 8, 3, padding=-1), ValueError, "padding must not be negative"),
        (
            lambda: isoconv.SREConv2d(3, 8, 3, padding="full"),
            ValueError,
            "padding must be numbers, 'same' or 'valid', got 'full'",
        ),
        (lambda: isoconv.SREConv2d(3, 8, 3, 2, padding="same"), ValueError, "padding='same' needs stride 1"),
        (lambda: isoconv.SREConv2d(3, 8, 3, padding_mode="reflekt"), ValueError, "did you mean 'reflect'"),
        (lambda: isoconv.SREConv2d(3, 8, 3, groups=2), ValueError, "in_channels=3 must be a multiple of groups=2"),
        (lambda: isoconv.SREConv2d(3, 8, 3, groups=0), ValueError, "groups must be a whole number of at least 1"),
        (lambda: isoconv.SREConv2d(0, 8, 3), ValueError, "in_channels must be a whole number of at least 1, got 0"),
        (lambda: isoconv.SREConv2d(3, 8, 3, engine="nmuba"), ValueError, "unknown engine 'nmuba'"),
        (lambda: isoconv.SREConv2d(3, 8, 3, engine=None), ValueError, "unknown engine None"),
        (lambda: isoconv.SREConv2d(3, 8, 3, profile=None), ValueError, "unknown profile None"),
        (lambda: isoconv.SREConv2d(3, 8, 3, init="kaiming"), ValueError, "unknown init 'kaiming'"),
        (lambda: isoconv.SREConv2d(3, 8, 3, transposed=2), TypeError, "transposed"),
        (lambda: isoconv.SREConvTranspose2d(3, 8, 3, padding_mode="reflect"), ValueError, "padding_mode='zeros' only"),
        (lambda: isoconv.SREConvTranspose2d(3, 8, 3, output_padding=1), ValueError, "output_padding must be smaller"),
        (lambda: isoconv.SREConv2d(4, 8, 3)(X), ValueError, "expected an input of 4 channels, got 3"),
        (lambda: isoconv.SREConv2d(3, 8, 3)(X[0, 0]), ValueError, "expected an input of 4 dimensions"),
        (
            lambda: isoconv.SREConv2d(3, 8, 3)(X.double()),
            TypeError,
            "input is torch.float64 but weight is torch.float32",
        ),
        (
            lambda: isoconv.SREConv2d(3, 8, 3)(X.double().to("meta")),
            ValueError,
            "input is on meta but weight on cpu: move one of them",
        ),
        (
            lambda: isoconv.SREConv2d(3, 8, 3, device="meta")(X.double().to("meta")),
            TypeError,
            "input is torch.float64 but weight is torch.float32",
        ),
        (lambda: isoconv.SREConv2d(3, 8, 3)(X.numpy()), TypeError, "input must be a tensor, got ndarray"),
        (
            lambda: isoconv.SREConvTranspose2d(3, 8, 3, 2)(X, output_size=(17,)),
            ValueError,
            r"output_size must have one number per axis, 2, got \(17,\)",
        ),
        (
            lambda: functional.sre_conv2d(X, torch.zeros(8, 3, 2), torch.zeros(8).double(), kernel_size=3),
            TypeError,
            "input is torch.float32 but bias is torch.float64",
        ),
        (
            lambda: functional.sre_conv2d(X, torch.zeros(8, 3, 2), True, kernel_size=3),
            TypeError,
            "bias must be a tensor, got bool",
        ),
        (
            lambda: functional.sre_conv2d(X, torch.zeros(8, 3, 3, 3), kernel_size=3),
            ValueError,
            "expected a banded weight of 3 axes",
        ),
        (
            lambda: functional.sre_conv2d(X, torch.zeros(8, 3, 2), torch.zeros(3), kernel_size=3),
            ValueError,
            "expected a bias of shape",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
