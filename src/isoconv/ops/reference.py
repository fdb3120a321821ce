"""The reference engine: expand the kernel, let PyTorch convolve. Always there; every other engine is held against
it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv.bands import BandPlan
from isoconv.ops.spec import ConvSpec

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def expand_kernel(weight: Tensor, plan: BandPlan) -> Tensor:
    """The dense kernel (..., *kernel_size) of a ``weight`` (..., bands), differentiable."""
    basis = torch.tensor(plan.rows, dtype=weight.dtype, device=weight.device)
    return (weight @ basis).unflatten(-1, plan.kernel_size)


def can_run(input: Tensor, weight: Tensor, spec: ConvSpec) -> str | None:  # noqa: ARG001 - the signature of all engines
    return None


def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    return convolve(input, expand_kernel(weight, spec.plan), bias, spec)


def convolve(input: Tensor, kernel: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Convolution of a batched ``input`` with a dense ``kernel``."""
    n = spec.plan.dims
    if spec.transposed:
        padding = tuple(before for before, _ in spec.padding)
        return _CONV_TRANSPOSE[n](
            input, kernel, bias, spec.stride, padding, spec.output_padding, spec.groups, spec.dilation
        )
    input, padding = spec.pad(input)
    return _CONV[n](input, kernel, bias, spec.stride, padding, spec.dilation, spec.groups)
