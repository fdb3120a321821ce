"""Convolutions seen as dense ones: their kernels and what they cost."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from isoconv.ops import ConvSpec

__all__ = ["Cost", "convolutions", "cost", "dense_kernel", "plain_conv"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_STRAIGHT = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVS = (*_STRAIGHT, *_TRANSPOSED)


class Cost(NamedTuple):
    """Multiply-adds of one call of a layer: with one for each tap of the dense kernel, and once the taps of a band have
    been summed; the same for a layer without bands."""

    dense: int
    banded: int


def dense_kernel(layer: nn.Module) -> Tensor | None:
    """Dense kernel of a convolution, shaped as the weight of the ``torch.nn`` layer; None for other layers. A layer
    without such a weight makes it in a method ``kernel()``."""
    own = getattr(layer, "kernel", None)
    if inspect.ismethod(own):
        return own()
    return layer.weight if isinstance(layer, _CONVS) else None


def convolutions(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of ``net`` that have a dense kernel, by name, without those that such a layer is made of."""
    outer: tuple[str, ...] = ()
    for name, module in net.named_modules():
        if not name.startswith(outer) and dense_kernel(module) is not None:
            yield name, module
            outer = *outer, f"{name}." if name else ""


def plain_conv(kernel: Tensor, bias: Tensor | None, spec: ConvSpec, trained: bool = True) -> nn.Module:
    """The ``torch.nn`` layer of a dense ``kernel`` and ``bias``, whose copies are its parameters; ``trained``: whether
    the kernel requires gradients."""
    first, second = kernel.shape[0], kernel.shape[1] * spec.groups
    padding = tuple(before for before, _ in spec.padding)
    lopsided = padding != tuple(after for _, after in spec.padding)
    kind: Any = (_TRANSPOSED if spec.transposed else _STRAIGHT)[spec.plan.dims - 1]
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    plain = kind(
        *((first, second) if spec.transposed else (second, first)),
        spec.plan.kernel_size,
        spec.stride,
        "same" if lopsided else padding,
        dilation=spec.dilation,
        groups=spec.groups,
        bias=bias is not None,
        padding_mode=spec.padding_mode,
        device="meta",
        **extra,
    )
    plain.weight = nn.Parameter(kernel.detach(), trained)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return plain


def cost(layer: nn.Module, input: Tensor, output: Tensor) -> Cost | None:
    """What a convolution or linear layer took to make ``output`` of ``input``; None for other layers."""
    if isinstance(layer, nn.Linear):
        return Cost(*[output.numel() * layer.in_features] * 2)
    kernel = dense_kernel(layer)
    if kernel is None:
        return None
    transposed = isinstance(layer, _TRANSPOSED) or getattr(getattr(layer, "spec", None), "transposed", False)
    counted = input if transposed else output
    positions = counted.numel() // counted.shape[1 - kernel.dim()]
    banded = kernel.numel()
    if hasattr(layer, "bands"):  # other rows, those of fields, are expanded
        weight = layer.get_parameter("weight")
        banded = weight.numel() + kernel[len(weight) :].numel()
    return Cost(positions * kernel.numel(), positions * banded)
