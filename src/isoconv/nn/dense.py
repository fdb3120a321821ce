"""Convolutions seen as dense ones: their kernels and what they cost."""

from __future__ import annotations

import inspect
import math
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Cost", "cost", "dense_kernel"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


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


def cost(layer: nn.Module, input: Tensor, output: Tensor) -> Cost | None:
    """What a convolution or linear layer took to make ``output`` of ``input``; None for other layers."""
    if isinstance(layer, nn.Linear):
        return Cost(*[output.numel() * layer.in_features] * 2)
    kernel = dense_kernel(layer)
    if kernel is None:
        return None
    transposed = isinstance(layer, _TRANSPOSED) or getattr(getattr(layer, "spec", None), "transposed", False)
    dense = (input if transposed else output).numel() * kernel[0].numel()
    taps = math.prod(kernel.shape[2:])
    return Cost(dense, dense // taps * getattr(layer, "bands", taps))
