"""Norms and gates in few passes are those that the layers spell out."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from isoconv.nn import FieldGate, FieldNorm, Fields, field_layers
from isoconv.nn._eager import suits

LAYERS = {"norm": FieldNorm, "gate": FieldGate}
TEXTS = ["2x0 + 1x1 + 3x2", "2x1 + 1x3", "3x0 + 2x1", "1x0 + 1x2"]


def inner(layer: nn.Module) -> nn.Module:
    return layer.scalars if isinstance(layer, FieldNorm) else layer.norm


def pair(name: str, text: str, dims: int, training: bool, dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    layer = LAYERS[name](Fields(text, dims)).to(dtype)
    with torch.no_grad():
        for values in (*layer.parameters(), *layer.buffers()):
            if values.is_floating_point():
                values += 0.3 * torch.rand_like(values)
    layer.train(training)
    return [layer, copy.deepcopy(layer)]


@given(
    st.sampled_from(list(LAYERS)),
    st.sampled_from(TEXTS),
    st.sampled_from([2, 3]),
    st.booleans(),
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.booleans(),
)
def test_outputs_gradients_and_running_means(
    name: str, text: str, dims: int, training: bool, batch: int, size: list[int], strided: bool
) -> None:
    layer, other = pair(name, text, dims, training)
    x = 3 + 2 * torch.randn(batch, *size[:dims], layer.in_fields.channels, dtype=torch.float64)
    x = x.movedim(-1, 1)
    x = (x if strided else x.contiguous()).requires_grad_()
    if not suits(layer, inner(layer), x):
        assert x[:, 0].numel() == 1
        return
    y = layer(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field_layers, "suits", lambda *_: False)
        expected = other(x)
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    for retain in (True, False):  # by the formulas, then by those that can be differentiated again
        found, wanted = (
            torch.autograd.grad(out, [x, *net.parameters()], cotangent, retain_graph=True, create_graph=retain)
            for out, net in ((y, layer), (expected, other))
        )
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(other.named_buffers()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(name: str, training: bool) -> None:
    layer, _ = pair(name, TEXTS[0], 2, training)
    values = dict(layer.named_parameters())
    x = torch.randn(2, layer.in_fields.channels, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, dict(zip(values, parameters, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(function, (x, *values.values()), atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_single_gradient_leaves_the_others_out(name: str) -> None:
    layer, _ = pair(name, TEXTS[0], 2, True)
    x = torch.randn(2, layer.in_fields.channels, 3, 3, dtype=torch.float64)
    for parameter in layer.parameters():
        full = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), parameter)
        for other in layer.parameters():
            other.requires_grad_(other is parameter)
        torch.testing.assert_close(torch.autograd.grad(layer(x.detach()).square().sum(), parameter), full)
        layer.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_with_parameters_of_single(name: str, dtype: torch.dtype) -> None:
    layer, other = pair(name, TEXTS[0], 2, True, torch.float32)
    x = torch.randn(4, layer.in_fields.channels, 6, 6).to(dtype)
    y = layer(x.requires_grad_())
    assert y.dtype == dtype
    expected = other(x.float())
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)
    y.float().square().sum().backward()
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(x.grad.float(), wanted.float(), atol=0.4, rtol=0.1)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_watched_traced_or_transformed_is_spelled_out(name: str) -> None:
    layer, _ = pair(name, TEXTS[0], 2, False)
    norm, x = inner(layer), torch.randn(2, layer.in_fields.channels, 3, 3, dtype=torch.float64)
    assert suits(layer, norm, x)
    assert not suits(layer, nn.SyncBatchNorm(norm.num_features), x)
    assert not suits(layer, copy.deepcopy(norm).train(), x)
    seen = []
    handle = norm.register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    handle.remove()
    assert seen
    one_by_one = vmap(lambda image: layer(image[None])[0])(x)
    torch.testing.assert_close(one_by_one, layer(x))
    torch.testing.assert_close(
        grad(lambda x: layer(x).square().sum())(x),
        torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x)[0],
    )
