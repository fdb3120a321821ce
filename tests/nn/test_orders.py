"""``SREConvNd(orders=...)``: half of the channels isotropic, the rest magnitudes of fields; scalars in and out."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import isoconv

CONVS = {2: isoconv.SREConv2d, 3: isoconv.SREConv3d}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("profile", ["hard", "gaussian"])
def test_scalars_come_out(dims: int, size: int, profile: str) -> None:
    layer = CONVS[dims](2, 8, size, padding=size // 2, orders=2, profile=profile, dtype=torch.float64)
    x = torch.randn(2, 2, *[9] * dims, dtype=torch.float64)
    assert max(isoconv.equivariance_error(layer, x, angles=(90,)).values()) <= 1e-13
    assert layer(x).shape == (2, 8, *[10 - size % 2] * dims)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_half_are_isotropic_and_the_rest_lengths_of_fields() -> None:
    layer = isoconv.SREConv2d(2, 7, 5, padding=2, orders=2, dtype=torch.float64)
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    y, dense = layer(x), F.conv2d(x, layer.kernel(), padding=2)
    assert layer.kernel().shape == (4 + 2 * 1 + 2 * 2, 2, 5, 5)
    torch.testing.assert_close(y[:, :4], dense[:, :4] + layer.bias.view(1, -1, 1, 1))
    squares = dense[:, 4:].unflatten(1, (3, 2)).square().sum(2)
    torch.testing.assert_close(y[:, 4:], (squares + 1e-3).sqrt())
    alone = isoconv.SREConv2d(2, 4, 5, padding=2, dtype=torch.float64)
    alone.load_state_dict({name: value for name, value in layer.state_dict().items() if name in ("weight", "bias")})
    torch.testing.assert_close(y[:, :4], alone(x))


def test_no_orders_is_sre_conv_to_the_last_bit() -> None:
    torch.manual_seed(3)
    layer = isoconv.SREConv2d(3, 8, 5, padding=2, orders=0)
    torch.manual_seed(3)
    usual = isoconv.SREConv2d(3, 8, 5, padding=2)
    assert repr(layer) == repr(usual)
    assert layer.state_dict().keys() == usual.state_dict().keys()
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(layer(x), usual(x))


def test_directions_are_seen() -> None:
    """Of a line and a spot with the same sum over every ring."""
    line, spread = torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 7, 7)
    line[..., 3, 1:6] = 1
    spread[..., 3, 3] = spread[..., 3, 4] = spread[..., 2, 3] = spread[..., 3, 5] = spread[..., 5, 3] = 1
    for orders, seen in ((0, False), (2, True)):
        layer = isoconv.SREConv2d(1, 8, 5, orders=orders)
        different = not torch.allclose(layer(line)[..., 1, 1], layer(spread)[..., 1, 1])
        assert different == seen


def test_handedness_is_seen_without_reflections_only() -> None:
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    for reflections in (True, False):
        layer = isoconv.SREConv2d(1, 8, 5, padding=2, orders=1, reflections=reflections, dtype=torch.float64)
        errors = isoconv.equivariance_error(layer, x)
        assert errors["rot90"] <= 1e-13
        assert (errors["flip"] > 1e-2) == (not reflections)


def test_gradients_zeros_copies_and_precision() -> None:
    layer = isoconv.SREConv2d(1, 6, 3, orders=2, dtype=torch.float64)
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(copy.deepcopy(layer), x, fast_mode=True)
    zeros = torch.zeros(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    layer(zeros).sum().backward()
    assert all(t.grad.isfinite().all() for t in (zeros, *layer.parameters()))
    assert layer(zeros[:0]).shape == (0, 6, 3, 3)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert layer.half()(1000 * x.half()).isfinite().all()
    assert "orders=2" in repr(layer)


def test_compile_and_export() -> None:
    layer = isoconv.SREConv2d(2, 8, 3, padding=1, orders=2)
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_fused_it_is_a_plain_convolution_and_lengths(bias: bool) -> None:
    layer = isoconv.SREConv2d(2, 8, 5, stride=2, padding=2, bias=bias, orders=2)
    fused = isoconv.fuse(layer)
    assert not any(type(m).__module__.startswith("isoconv") for m in fused.modules())
    x = torch.randn(2, 2, 9, 9)
    torch.testing.assert_close(fused(x), layer(x))
    assert isoconv.fuse(isoconv.SREConv2d(2, 8, 5, bias=bias)).weight.shape == (8, 2, 5, 5)


def test_the_report_tells_of_handedness() -> None:
    for reflections, status in ((True, "isotropic"), (False, "equivariant")):
        layer = isoconv.SREConv2d(1, 8, 5, orders=1, reflections=reflections)
        assert isoconv.conversion_report(layer).rows[0].status == status


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: isoconv.SREConv1d(2, 8, 3, orders=1), "orders=1 takes an image or volume.*got 1D"),
        (lambda: isoconv.SREConv2d(2, 8, 3, orders=1, groups=2), "groups=2"),
        (lambda: isoconv.SREConv2d(2, 3, 3, orders=2), "at least 4 output channels.* and 3"),
        (lambda: isoconv.SREConv2d(2, 8, 3, orders=-1), "whole number of at least 0, got -1"),
        (lambda: isoconv.SREConv2d(2, 8, 3, reflections=False), "reflections=False takes orders of at least 1"),
        (lambda: isoconv.SREConv3d(2, 8, 3, orders=1, reflections=False), "takes a 2D layer, got 3D"),
        (lambda: isoconv.SREConv2d(2, 8, 1, orders=1), "no kernel of size \\(1, 1\\)"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
