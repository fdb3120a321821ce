"""Functional forms of the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from isoconv._checks import ntuple, spells_out
from isoconv.bands import BandPlan, band_plan
from isoconv.ops import conv_spec, sre_conv
from isoconv.ops.reference import expand_kernel as expand_kernel
from isoconv.ops.resampling import symmetric_avg_pool as symmetric_avg_pool
from isoconv.ops.resampling import symmetric_max_pool as symmetric_max_pool
from isoconv.ops.resampling import symmetric_upsample as symmetric_upsample

__all__ = [
    "expand_kernel",
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
    "symmetric_avg_pool",
    "symmetric_max_pool",
    "symmetric_upsample",
]


def _conv(dims: int) -> Callable[..., Tensor]:
    @spells_out(band_plan, without=["bands"])
    def sre_conv_nd(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        *,
        kernel_size: int | Sequence[int],
        padding_mode: str = "zeros",
        engine: str = "auto",
        **rings: Any,
    ) -> Tensor:
        spec = conv_spec(
            _plan(weight, dims, kernel_size, rings),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
        )
        return sre_conv(input, weight, bias, spec, engine=engine)

    return _named(sre_conv_nd, f"sre_conv{dims}d", f"torch.nn.functional.conv{dims}d", f"SREConv{dims}d")


def _conv_transpose(dims: int) -> Callable[..., Tensor]:
    @spells_out(band_plan, without=["bands"])
    def sre_conv_transpose_nd(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
        *,
        kernel_size: int | Sequence[int],
        engine: str = "auto",
        **rings: Any,
    ) -> Tensor:
        spec = conv_spec(
            _plan(weight, dims, kernel_size, rings),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            transposed=True,
            output_padding=output_padding,
        )
        return sre_conv(input, weight, bias, spec, engine=engine)

    return _named(
        sre_conv_transpose_nd,
        f"sre_conv_transpose{dims}d",
        f"torch.nn.functional.conv_transpose{dims}d",
        f"SREConvTranspose{dims}d",
    )


def _plan(weight: Tensor, dims: int, kernel_size: int | Sequence[int], rings: Mapping[str, Any]) -> BandPlan:
    if weight.dim() != 3:
        raise ValueError(
            f"expected a banded weight of 3 axes, (out, in / groups, bands), got shape {tuple(weight.shape)}"
        )
    return band_plan(ntuple(kernel_size, dims, "kernel_size"), bands=weight.shape[2], **rings)


def _named(function: Callable[..., Tensor], name: str, twin: str, layer: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"``{twin}`` with a banded ``weight``: the functional form of :class:`isoconv.nn.{layer}`.\n\n"
        "The number of bands is the weight's last axis; ``kernel_size`` and the other keyword-only arguments say "
        "which taps they stand for."
    )
    return function


sre_conv1d: Callable[..., Any] = _conv(1)
sre_conv2d: Callable[..., Any] = _conv(2)
sre_conv3d: Callable[..., Any] = _conv(3)
sre_conv_transpose1d: Callable[..., Any] = _conv_transpose(1)
sre_conv_transpose2d: Callable[..., Any] = _conv_transpose(2)
sre_conv_transpose3d: Callable[..., Any] = _conv_transpose(3)
