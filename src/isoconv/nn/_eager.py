"""Norms and gates of fields in few passes over the memory.

A compiler fuses what :mod:`isoconv.nn.field_layers` spells out; eager PyTorch goes over all pixels once for every
operator, and again in the backward pass. On a CPU these passes take as long as the convolutions. So here are the same
functions for eager calls; a second derivative, a transform or a trace takes the spelled-out ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv.nn.fields import Fields
from isoconv.ops import is_eager

__all__ = ["SOFT", "channelwise", "gated", "moments", "suits", "update_running"]

SOFT = 1e-3  # under the root of a magnitude, whose gradient at a field of zeros is then zero


def suits(layer: nn.Module, norm: nn.Module, input: Tensor) -> bool:
    """Whether a call of ``layer`` may go round the forward method of its ``norm``: an eager one on the CPU, the norm as
    it was made, over the batch or of no channels, in the mode of the layer and watched by nobody."""
    if not is_eager(input) or input.device.type != "cpu" or not input.is_floating_point():
        return False
    if input.dim() < 3 or input.numel() <= input.shape[1] or norm.training != layer.training:
        return False
    if type(norm) is nn.Identity:
        return True
    if type(norm) not in (nn.BatchNorm2d, nn.BatchNorm3d) or norm.running_mean is None or norm.momentum is None:
        return False
    return not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)


def channelwise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x`` (N, C, ...) times ``scale`` (C,) plus ``shift`` (C,): a norm over the batch in eval mode, hence one pass,
    and two back."""
    return F.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, False, 0.0, 0.0)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of the channels of ``x`` (N, C, *spatial), in float32 at least."""
    return _Moments.apply(x)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        running = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        mean, variance = torch.batch_norm_update_stats(x, running, running.clone(), 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = 2 / count * by_variance
        return channelwise(x, slope, by_mean / count - slope * mean)


@torch.no_grad()
def update_running(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    """As a ``norm`` over the batch does in training, for the moments of ``count`` values."""
    norm.num_batches_tracked.add_(1)
    for running, found in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
        running.copy_(running.to(found).lerp(found, norm.momentum))


def gated(x: Tensor, norm: nn.Module, fields: Fields, spelled_out: Callable[..., Tensor]) -> Tensor:
    """What :class:`isoconv.nn.FieldGate` makes of ``x``, with a ``norm`` that :func:`suits`; ``spelled_out`` is the
    same as a function of ``x`` and of what normalises the magnitudes."""
    if norm.training:
        norm.num_batches_tracked.add_(1)  # type: ignore[operator]
    return _Gated.apply(x, norm.weight, norm.bias, norm, fields, spelled_out)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any, fields: Fields, spelled_out: Callable[..., Tensor]
    ) -> Tensor:
        running = norm.running_mean, norm.running_var
        ctx.norm, ctx.fields, ctx.spelled_out = (*running, norm.training, norm.eps), fields, spelled_out
        scalars, directed = fields.scalars, fields.directed
        size = x.new_empty(len(x), directed, *x.shape[2:], dtype=torch.promote_types(x.dtype, torch.float32))
        for v, square in _runs(fields, x[:, scalars:], size):
            _dot(v.to(size), v.to(size), square)
        size = size.add_(SOFT).sqrt_().to(x)
        gate, *saved = torch.native_batch_norm(size, weight, bias, *running, norm.training, norm.momentum, norm.eps)
        scale = gate.relu_() / size
        output = x.new_empty(len(x), x.shape[1] + directed, *x.shape[2:])
        torch.clamp_min(x[:, :scalars], 0, out=output[:, :scalars])
        output[:, scalars : scalars + directed] = gate
        for v, s, out in _runs(fields, x[:, scalars:], scale, output[:, scalars + directed :]):
            torch.mul(v, s, out=out)
        ctx.save_for_backward(x, weight, bias, size, gate, scale, *saved)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, size, gate, scale, *saved = ctx.saved_tensors
        mean, variance, training, eps = ctx.norm
        if torch.is_grad_enabled():
            return *_spelled_out_gradients(ctx, (x, weight, bias), grad), None, None, None
        fields: Fields = ctx.fields
        scalars, directed = fields.scalars, fields.directed
        by_x, by_scale = torch.empty_like(x), torch.empty_like(scale)
        by_x[:, :scalars] = _threshold_backward(grad[:, :scalars], x[:, :scalars], 0)
        fields_of_x, by_fields, outer = x[:, scalars:], by_x[:, scalars:], grad[:, scalars + directed :]
        for v, s, g, by_v, by_s in _runs(fields, fields_of_x, scale, outer, by_fields, by_scale):
            torch.mul(g, s, out=by_v)
            _dot(g, v, by_s)
        by_scale /= size
        by_gate = _threshold_backward(grad[:, scalars : scalars + directed] + by_scale, gate, 0)
        by_size, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            by_gate, size, weight, mean, variance, *saved, training, eps, [True] * 3
        )
        by_size.addcmul_(by_scale, scale, value=-1).div_(size)
        for v, by_v, by_s in _runs(fields, fields_of_x, by_fields, by_size):
            by_v.addcmul_(v, by_s)
        return by_x, by_weight, by_bias, None, None, None


_threshold_backward = torch.ops.aten.threshold_backward


def _spelled_out_gradients(ctx: Any, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    mean, variance, training, eps = ctx.norm
    before = None if training else mean
    spread = None if training else variance
    x, weight, bias = inputs
    wanted = [tensor for tensor, want in zip(inputs, ctx.needs_input_grad, strict=False) if want]
    output = ctx.spelled_out(x, lambda size: F.batch_norm(size, before, spread, weight, bias, training, 0.0, eps))
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return [next(found) if want else None for want in ctx.needs_input_grad[:3]]


def _runs(fields: Fields, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Run by run of ``fields``, its part of each of the ``tensors``: (N, count, components, *spatial) of components,
    (N, count, 1, *spatial) of one number for each field."""
    runs = fields.runs
    parts = []
    for tensor in tensors:
        sizes = [1 if tensor.shape[1] == fields.directed else size for _, size in runs]
        pieces = tensor.split([count * size for (count, _), size in zip(runs, sizes, strict=True)], dim=1)
        parts.append([p.unflatten(1, (count, -1)) for p, (count, _) in zip(pieces, runs, strict=True)])
    for part in zip(*parts, strict=True):
        yield list(part)


def _dot(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out`` (N, count, 1, *spatial) becomes the sum over the components of ``a`` times ``b``."""
    torch.mul(a[:, :, :1], b[:, :, :1], out=out)
    for i in range(1, a.shape[2]):
        out.addcmul_(a[:, :, i : i + 1], b[:, :, i : i + 1])
