"""The CPU engine: ring sums compiled by Numba, then one matrix product.

All taps of a band share their weight, so they are summed first (:mod:`isoconv.ops._folds`), once per input channel; the
product with the weights then takes ``C * bands`` multiplications per output instead of ``C * k^n``. The basis is mirror
symmetric, hence the adjoint of the convolution is the same operator with input and output channels swapped, and the
ring sums of the output's gradient serve both gradients.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as _is_batched
from torch.nn import Parameter

from isoconv.bands import plan_from_key
from isoconv.ops._folds import asymmetry, fold_plan
from isoconv.ops._pieces import Window, multiply_sums, three
from isoconv.ops.spec import ConvSpec, output_size


def can_run(input: Tensor, weight: Tensor, spec: ConvSpec) -> str | None:
    if input.device.type != "cpu":
        return f"it runs on the CPU, the input is on {input.device}"
    if input.dtype not in (torch.float32, torch.float64) or weight.dtype != input.dtype:
        return f"it computes in float32 or float64, the input is {input.dtype} and the weight {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return f"it computes in the input's {input.dtype} and autocast asks for {torch.get_autocast_dtype('cpu')}"
    if spec.transposed:
        return "it has no transposed convolution"
    size = input.shape[-spec.plan.dims :]
    if min(spec.output_size(size)) < 1:
        return "the padded input is smaller than the kernel"
    if min(input.shape[-spec.plan.dims - 1 :]) < 1 or min(weight.shape) < 1:
        return f"it needs pixels and channels, got an input of shape {tuple(input.shape)}"
    return asymmetry(spec.plan)


# What decides, in multiply-adds: those that a training step saves must outweigh the additions that make the ring sums
# and what a call costs. The figures behind it: benchmarks/results/choice-cpu.md. There too: PyTorch's gradients are as
# slow for few channels as for eight, and very slow for depthwise convolutions of many taps.
_ADDITION = 4
_CALL = 3_000_000  # per thread: all of them wait
_FEW = 8


def is_faster(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether the engine beats the reference on a call that it can run."""
    plan, stride, groups = spec.plan, max(spec.stride), spec.groups
    outputs, inputs, taps = weight.shape[0] // groups, weight.shape[1], prod(plan.kernel_size)
    training = torch.is_grad_enabled() and weight.requires_grad
    if outputs == inputs == 1 and groups > 1:
        return taps >= (25 if training else 125)
    if torch.compiler.is_compiling():  # a choice by the size of the image would tie the program to that size
        return stride == 1 and outputs * (taps - plan.bands) > 2 * _ADDITION * taps
    adding = _ADDITION * fold_plan(plan).additions * prod(spec.stride)
    samples = input.shape[0] if input.dim() == plan.dims + 2 else 1
    size = input.shape[-plan.dims :]
    before = samples * prod(size)
    after = samples * prod(spec.output_size(size))
    least = _FEW if training else 1
    plain = 3 * after * groups * max(outputs, least) * max(inputs, least) * taps
    banded = (2 * after + before) * groups * outputs * inputs * plan.bands
    sums = adding * groups * (after * inputs * (1 if stride == 1 else 2) + before * outputs)
    calls = 1 if training else 2  # an output alone saves less, and its call costs nearly half of all
    return plain - banded - sums > calls * _CALL * torch.get_num_threads()


def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    input, rest = spec.for_operator(input)
    output = (_Convolve.apply if is_direct(input, weight) else _convolve)(input, weight, *rest)
    return output if bias is None else output.add_(bias.view(-1, *[1] * spec.plan.dims))


def _convolve_now(
    input: Tensor,
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    geometry: str,
) -> Tensor:
    """The convolution of ``input`` (N, C, *spatial), with ``padding`` before and after every axis."""
    plan = plan_from_key(geometry)
    size = output_size(input.shape[2:], padding, stride, dilation, plan.kernel_size)
    output = input.new_empty(input.shape[0], weight.shape[0], *size)
    mixing = weight.detach().reshape(groups, weight.shape[0] // groups, -1)
    window = Window(three(padding[::2], 0), (1, 1, 1), three(stride, 1), three(dilation, 1))
    multiply_sums(input, size, window, plan, groups, mixing=mixing, output=output)
    return output


def _gradients_now(
    input: Tensor,
    weight: Tensor,
    grad: Tensor,
    wanted: list[bool],
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    geometry: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``input`` and ``weight``, empty where not ``wanted``, for the gradient ``grad`` of the output."""
    plan = plan_from_key(geometry)
    input, weight, grad = input.detach(), weight.detach().contiguous(), grad.detach().contiguous()
    grad_input = torch.empty_like(input, memory_format=torch.contiguous_format) if wanted[0] else input.new_empty(0)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    moves, reach = three(stride, 1), three(dilation, 1)
    # sums of the output's gradient give both; but where strides thin them out or pixels are few, sums of the input are
    # less work than to rearrange the weight's gradient
    shared = all(wanted) and max(stride) == 1 and grad.numel() > grad.shape[1] ** 2 * plan.bands
    if wanted[0]:
        mixing = weight.unflatten(0, (groups, outputs)).permute(0, 2, 1, 3).reshape(groups, inputs, -1)
        before = [d * (k - 1) - b for d, k, b in zip(dilation, plan.kernel_size, padding[::2], strict=True)]
        window = Window(three(before, 0), moves, (1, 1, 1), reach)
        other = input if shared else None
        total = multiply_sums(
            grad, input.shape[2:], window, plan, groups, mixing=mixing, output=grad_input, other=other
        )
        if shared:
            by_output = total.view(groups, outputs, plan.bands, inputs).transpose(2, 3)
            return grad_input, by_output.reshape(weight.shape).contiguous()
    if not wanted[1]:
        return grad_input, weight.new_empty(0)
    window = Window(three(padding[::2], 0), (1, 1, 1), moves, reach)
    by_input = multiply_sums(input, grad.shape[2:], window, plan, groups, other=grad, swapped=True)
    return grad_input, by_input.view(weight.shape)


_convolve = torch.library.custom_op("isoconv::ring_conv", _convolve_now, mutates_args=())
_gradients = torch.library.custom_op("isoconv::ring_conv_gradients", _gradients_now, mutates_args=())


@_convolve.register_fake
def _(input, weight, padding, stride, dilation, groups, geometry):  # type: ignore[no-untyped-def]  # noqa: ARG001
    size = output_size(input.shape[2:], padding, stride, dilation, plan_from_key(geometry).kernel_size)
    return input.new_empty(input.shape[0], weight.shape[0], *size)


@_gradients.register_fake
def _(input, weight, grad, wanted, *_):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return tuple(x.new_empty(x.shape if want else 0) for x, want in zip((input, weight), wanted, strict=True))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    input, weight, *ctx.rest = inputs
    ctx.save_for_backward(input, weight)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    input, weight = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:2])
    direct = not torch.is_grad_enabled() and is_direct(input, weight, grad)
    gradients = (_gradients_now if direct else _gradients)(input, weight, grad, wanted, *ctx.rest)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * len(ctx.rest)


def _save_all(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    input, weight, grad, ctx.wanted, *ctx.rest = inputs
    ctx.save_for_backward(input, weight, grad)


def _gradients_backward(ctx, v_input: Tensor, v_weight: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    # the gradients are the derivatives of a form that is linear in each of input, weight and grad
    input, weight, grad = ctx.saved_tensors
    first = [ctx.needs_input_grad[0] and ctx.wanted[1], ctx.needs_input_grad[1] and ctx.wanted[0]]
    v_input, v_weight = (
        v_input if ctx.wanted[0] else torch.zeros_like(input),
        v_weight if ctx.wanted[1] else torch.zeros_like(weight),
    )
    by_input, by_weight = _gradients(v_input, v_weight, grad, first, *ctx.rest)
    by_grad = None
    if ctx.needs_input_grad[2]:
        terms = [(v_input, weight)] * ctx.wanted[0] + [(input, v_weight)] * ctx.wanted[1]
        by_grad = torch.stack([_convolve(*term, *ctx.rest) for term in terms]).sum(0)
    return by_input if first[0] else None, by_weight if first[1] else None, by_grad, *[None] * (len(ctx.rest) + 1)


_convolve.register_autograd(_backward, setup_context=_save)
_gradients.register_autograd(_gradients_backward, setup_context=_save_all)


def is_direct(*tensors: Tensor) -> bool:
    """Whether nobody watches operators on their way: no compiler, tracer, counter, subclass or batch of gradients. Then
    PyTorch's dispatch is left out, which takes as long as a small layer if an operator is written in Python."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    return not watched and all(type(t) in (Tensor, Parameter) and not _is_batched(t) for t in tensors)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]  # with setup_context it is slower
        output = _convolve_now(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)
