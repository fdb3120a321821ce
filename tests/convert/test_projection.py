"""What convert() does to weights: a kernel is projected on the bands, not thrown away."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import isoconv
from isoconv import convert
from isoconv.bands import PROFILES, band_plan

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def projected(kernel: Tensor, **options: object) -> Tensor:
    """The isotropic kernel closest to ``kernel`` (out, in, *size), by numpy."""
    plan = band_plan(tuple(kernel.shape[2:]), **options)
    basis = plan.basis.reshape(plan.bands, -1)
    weight = np.linalg.lstsq(basis.T, kernel.detach().flatten(2).flatten(0, 1).double().numpy().T, rcond=None)[0].T
    return torch.from_numpy(weight @ basis).reshape(kernel.shape)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("circular", [True, False])
def test_weights_are_the_least_squares_projection(dims: int, profile: str, circular: bool) -> None:
    for layer in (CONVS[dims](3, 4, 5), TRANSPOSED[dims](3, 4, 4)):
        converted = convert(layer, profile=profile, circular=circular)
        expected = projected(layer.weight, profile=profile, circular=circular)
        torch.testing.assert_close(converted.kernel().double(), expected, atol=1e-6, rtol=0)
        assert torch.equal(converted.bias, layer.bias)


def test_spacing_reaches_the_layers() -> None:
    layer = nn.Conv3d(2, 3, (3, 5, 5), padding="same")
    converted = convert(layer, spacing=(2.5, 1, 1))
    assert converted.plan == isoconv.SREConv3d(2, 3, (3, 5, 5), spacing=(2.5, 1, 1)).plan
    assert isoconv.conversion_report(layer, spacing=(2.5, 1, 1)).banded_weights == converted.weight.numel()
    with pytest.raises(ValueError, match="layer '1': spacing must be one number or 2 of them"):
        convert(nn.Sequential(nn.Conv3d(1, 1, 3), nn.Conv2d(1, 1, 3)), spacing=(2.5, 1, 1))


@pytest.mark.parametrize("call", [convert, isoconv.conversion_report])
def test_an_option_that_no_layer_has(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match=r"has no option 'spacin': its options are net.*did you mean 'spacing'"):
        call(nn.ReLU(), spacin=2)


@given(st.sampled_from([*PROFILES]), st.booleans(), st.integers(2, 9), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50)
def test_an_isotropic_kernel_is_kept(profile: str, circular: bool, size: int, dtype: torch.dtype) -> None:
    layer = isoconv.SREConv2d(2, 3, size, profile=profile, circular=circular, dtype=dtype)
    plain = nn.Conv2d(2, 3, size)
    plain.weight = nn.Parameter(layer.kernel().detach())
    kernel = convert(plain, profile=profile, circular=circular).kernel()
    tolerance = 0 if profile == "hard" else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(kernel, plain.weight, atol=tolerance, rtol=0)


def test_hyperparameters_are_kept() -> None:
    """But for the kernel, the converted layer computes what the layer computed."""
    for arguments in (
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": (1, 2), "dilation": 2, "groups": 2},
        {"padding": "valid", "bias": False},
        {"kernel_size": (3, 5), "padding": (1, 2)},
    ):
        layer = nn.Conv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 5, **arguments}).double()
        x = torch.randn(2, 4, 12, 12, dtype=torch.float64)
        converted = convert(layer)
        layer.weight = nn.Parameter(projected(layer.weight))
        torch.testing.assert_close(converted(x), layer(x))


def test_a_strided_layer_differs_by_its_kernel_only_where_it_was_centred() -> None:
    layer = nn.Conv2d(3, 4, 5, 2, 2).double()
    converted = convert(layer)
    layer.weight = nn.Parameter(projected(layer.weight))
    x = torch.randn(1, 3, 13, 13, dtype=torch.float64)
    torch.testing.assert_close(converted(x), layer(x))


def test_options_reach_every_layer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 7), nn.Sequential(nn.ConvTranspose2d(2, 2, 5)))
    converted = convert(net, bands=2, profile="gaussian", circular=False, engine="reference")
    for layer in (converted[0], converted[1][0]):
        plan = layer.plan
        assert (plan.bands, plan.profile, plan.circular, layer.engine) == (2, "gaussian", False, "reference")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(2, 3, 5).to(dtype)
    converted = convert(layer)
    assert converted.weight.dtype == converted.bias.dtype == dtype
    expected = projected(layer.weight)
    torch.testing.assert_close(converted.kernel().double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)
