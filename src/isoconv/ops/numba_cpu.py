"""The CPU engine: ring sums compiled by Numba, then one matrix product.

All taps of a band share their weight, so they are summed first (:mod:`isoconv.ops._folds`), once per input channel; the
product with the weights then takes ``C * bands`` multiplications per output instead of ``C * k^n``. The basis is mirror
symmetric, hence the adjoint of the convolution is the same operator with input and output channels swapped, and the
ring sums of the output's gradient serve both gradients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv.bands import BandPlan, band_plan
from isoconv.ops._folds import fold_plan
from isoconv.ops.spec import ConvSpec

_COLUMNS = 512  # a matrix product of fewer columns wastes time, so small images are taken several at a time
_BUFFER = 1 << 19  # elements of the ring sums that are made before they are used: they stay in cache
_TILE = 2048  # elements of one row class: all classes together stay in the first-level cache
_SERIAL = 1 << 15  # ring sums not worth a second thread

log = logging.getLogger(__name__)


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
    if min(_output_size(size, _flat(spec.padding), spec.stride, spec.dilation, spec.plan.kernel_size)) < 1:
        return "the padded input is smaller than the kernel"
    if min(input.shape[-spec.plan.dims - 1 :]) < 1 or min(weight.shape) < 1:
        return f"it needs pixels and channels, got an input of shape {tuple(input.shape)}"
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms need the reference engine"
    return None


# What decides, in multiply-adds: those that a training step saves must outweigh the additions that make the ring sums
# and what a call costs. The figures behind it: benchmarks/results/choice-cpu.md. There too: PyTorch's gradients are as
# slow for few channels as for eight, and very slow for depthwise convolutions of many taps.
_ADDITION = 4
_CALL = 24_000_000  # per thread: all of them wait
_FEW = 8


def is_faster(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether the engine beats the reference on a call that it can run."""
    plan, stride, groups = spec.plan, max(spec.stride), spec.groups
    outputs, inputs, taps = weight.shape[0] // groups, weight.shape[1], prod(plan.kernel_size)
    training = torch.is_grad_enabled() and weight.requires_grad
    if outputs == inputs == 1 and groups > 1:
        return training and taps >= 25
    if torch.compiler.is_compiling():  # a choice by the size of the image would tie the program to that size
        return stride == 1 and outputs * (taps - plan.bands) > 2 * _ADDITION * taps
    adding = _ADDITION * fold_plan(plan).additions * prod(spec.stride)
    samples = input.shape[0] if input.dim() == plan.dims + 2 else 1
    size = input.shape[-plan.dims :]
    before = samples * prod(size)
    after = samples * prod(_output_size(size, _flat(spec.padding), spec.stride, spec.dilation, plan.kernel_size))
    least = _FEW if training else 1
    plain = 3 * after * groups * max(outputs, least) * max(inputs, least) * taps
    banded = (2 * after + before) * groups * outputs * inputs * plan.bands
    sums = adding * groups * (after * inputs * (1 if stride == 1 else 2) + before * outputs)
    return plain - banded - sums > _CALL * torch.get_num_threads()


def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    plan, widths = spec.plan, _flat(spec.padding)
    if spec.padding_mode != "zeros":
        input = F.pad(input, _flat(spec.padding[::-1]), mode=spec.padding_mode)
        widths = [0] * len(widths)
    geometry = (list(plan.kernel_size), plan.bands, plan.profile, plan.circular, list(plan.spacing))
    output = _convolve(input, weight, widths, list(spec.stride), list(spec.dilation), spec.groups, *geometry)
    return output if bias is None else output + bias.view(-1, *[1] * plan.dims)


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [width for pair in pairs for width in pair]


def _output_size(
    size: Sequence[int], padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
) -> list[int]:
    return [
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, before, after, s, d, k in zip(size, padding[::2], padding[1::2], stride, dilation, kernel, strict=True)
    ]


@cache
def _kernels() -> ModuleType:
    from isoconv.ops import _numba_kernels

    return _numba_kernels


@cache
def _compile(dtype: torch.dtype) -> None:
    start = time.perf_counter()
    x = torch.zeros(1, 1, 1, 1, 1, dtype=dtype)
    _run_kernel(x, x.flatten(), (1, 1, 1), _Window((0,) * 3, (1,) * 3, (1,) * 3, (1,) * 3), band_plan((1,)), (1, 1, 1))
    log.info("ring sums in %s are ready after %.1f s", dtype, time.perf_counter() - start)


@dataclass(frozen=True)
class _Window:
    """Where a kernel is put, for three axes: pixels lie ``steps`` apart behind ``before`` zeros, and it moves by
    ``stride``."""

    before: tuple[int, ...]
    steps: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def moved(self, axis: int, outputs: int) -> _Window:
        """The same, beginning ``outputs`` later along ``axis``."""
        before = list(self.before)
        before[axis] -= outputs * self.stride[axis]
        return _Window(tuple(before), self.steps, self.stride, self.dilation)


def _three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    return (fill,) * (3 - len(values)) + tuple(values)


def _volume(x: Tensor) -> Tensor:
    """(N, C, *spatial) as contiguous (N, C, D, H, W)."""
    return x.detach().contiguous().view(*x.shape[:2], *_three(x.shape[2:], 1))


@lru_cache(maxsize=4096)
def _tables(
    plan: BandPlan, window: _Window, rows: int, pitch: int, layer: int, length: int, dtype: np.dtype
) -> tuple[tuple[np.ndarray, ...], ...]:
    """Where the kernel's rows and columns lie in the padded planes and in their folded rows."""
    (_, sy, sx), (dz, dy, dx) = window.stride, window.dilation

    def place(i: int, stride: int, size: int) -> int:
        return i % stride * (size // stride) + i // stride

    def table(groups: list[list[tuple[int, float]]]) -> tuple[np.ndarray, ...]:
        starts = np.cumsum([0, *map(len, groups)])
        offsets, factors = zip(*(entry for group in groups for entry in group), strict=True)
        return starts, np.array(offsets), np.array(factors, dtype)

    fold = fold_plan(plan)
    return (
        table([[(z * dz * layer + place(y * dy, sy, rows) * pitch, 1.0) for z, y in group] for group in fold.rows]),
        table([[(k * length + place(x * dx, sx, pitch), f) for k, x, f in group] for group in fold.columns]),
    )


def _run_kernel(
    x: Tensor, sums: Tensor, size: tuple[int, ...], window: _Window, plan: BandPlan, strides: tuple[int, int, int]
) -> None:
    """Ring sums of ``x`` (N, C, D, H, W) at ``size`` places into ``sums``, whose samples, channels and bands lie
    ``strides`` apart."""
    kernel = _three(plan.kernel_size, 1)
    reach = [d * (k - 1) for d, k in zip(window.dilation, kernel, strict=True)]
    whole = [(n - 1) * s + r + 1 for n, s, r in zip(size, window.stride, reach, strict=True)]
    behind = [
        w - b - (n - 1) * s - 1 for w, b, n, s in zip(whole, window.before, x.shape[2:], window.steps, strict=True)
    ]
    shared = [
        min(around) for around in zip(window.before, behind, reach, strict=True)
    ]  # zeros that two neighbours need
    margin = tuple(max(0, m) if s == 1 else 0 for m, s in zip(shared, window.stride, strict=True))
    rows, pitch = (-(-(whole[i] - margin[i]) // window.stride[i]) * window.stride[i] for i in (1, 2))
    planes = x.shape[0] * x.shape[1]
    threads = min(torch.get_num_threads(), planes) if planes * plan.bands * prod(size) >= _SERIAL else 1
    together = max(1, min(-(-planes // threads), _TILE // (rows * pitch)))
    height = max(1, min((together - 1) * rows + size[1], _TILE // pitch))
    source, target = x.numpy(), sums.numpy()
    layer, length = together * rows * pitch, height * pitch + margin[2]
    tables = _tables(plan, window, rows, pitch, layer, length, source.dtype)
    padded = (whole[0], rows, pitch)
    layout = (window.before, window.steps, window.stride, padded, margin, size, strides, together, height)
    _kernels().ring_sums(source, target, layout, *tables, threads)


def _tiles(x: Tensor, size: Sequence[int], window: _Window, plan: BandPlan) -> Iterator[tuple[slice, slice, Tensor]]:
    """Ring sums of ``x`` (N, C, *spatial), one piece at a time: samples, pixels (of a sample) and sums (C * bands,
    samples * pixels). Either all pixels of some samples or some pixels of one."""
    _compile(x.dtype)
    volume, size = _volume(x), _three(size, 1)
    samples, channels = x.shape[:2]
    planes, pixels = channels * plan.bands, prod(size)
    axis = next((i for i, n in enumerate(size) if n > 1), 2)
    row = pixels // size[axis]
    lines = min(size[axis], max(1, _BUFFER // (planes * row), -(-_COLUMNS // row)))
    lines = -(-size[axis] // -(-size[axis] // lines))
    joined = min(samples, -(-_COLUMNS // pixels)) > 1  # the samples are columns of one matrix
    step = max(1, min(samples, max(joined * -(-_COLUMNS // pixels), _BUFFER // (planes * pixels))))
    buffer = x.new_empty(planes * step * row * lines)
    for n in range(0, samples, step):
        part = volume[n : n + step]
        count = part.shape[0]
        for line in range(0, size[axis], lines):
            shape = (*size[:axis], min(lines, size[axis] - line), *size[axis + 1 :])
            columns = prod(shape)
            strides = (columns, count * plan.bands * columns, count * columns)
            if not joined:
                strides = (planes * columns, plan.bands * columns, columns)
            _run_kernel(part, buffer, shape, window.moved(axis, line), plan, strides)
            cut = slice(line * row, line * row + columns)
            filled = buffer[: planes * count * columns]
            if joined:
                yield slice(n, n + count), cut, filled.view(planes, -1)
            else:
                for i in range(count):
                    yield slice(n + i, n + i + 1), cut, filled.view(count, planes, -1)[i]


def _multiply(a: Tensor, b: Tensor, groups: int, out: Tensor) -> None:
    """``out`` (G * M, columns) = ``a`` (G, M, K) times ``b`` (G * K, columns), group by group."""
    if groups == 1:
        torch.mm(a[0], b, out=out)
    else:
        out.copy_(torch.bmm(a, b.unflatten(0, (groups, -1))).flatten(0, 1))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total`` (G, M, K) += ``a`` (G * M, columns) times the transpose of ``b`` (G * K, columns), group by group."""
    groups = total.shape[0]
    if groups == 1:
        total[0].addmm_(a, b.t())
    else:
        total.baddbmm_(a.unflatten(0, (groups, -1)), b.unflatten(0, (groups, -1)).transpose(1, 2))


def _columns(x: Tensor, samples: slice, pixels: slice) -> Tensor:
    """These samples and pixels of ``x`` (N, C, *spatial) as (C, samples * pixels)."""
    part = x[samples].flatten(2)
    return part[0, :, pixels] if part.shape[0] == 1 else part.transpose(0, 1).flatten(1)


def _mix(mixing: Tensor, sums: Tensor, output: Tensor, samples: slice, pixels: slice) -> None:
    """These samples and pixels of ``output`` (N, G * M, *spatial) = ``mixing`` (G, M, K) times ``sums``."""
    part = output[samples].flatten(2)
    if part.shape[0] == 1:
        _multiply(mixing, sums, mixing.shape[0], part[0, :, pixels])
    else:
        mixed = sums.new_empty(part.shape[1], sums.shape[1])
        _multiply(mixing, sums, mixing.shape[0], mixed)
        part.copy_(mixed.view(part.shape[1], part.shape[0], -1).transpose(0, 1))


def _plan(kernel_size: list[int], bands: int, profile: str, circular: bool, spacing: list[float]) -> BandPlan:
    return band_plan(tuple(kernel_size), bands=bands, profile=profile, circular=circular, spacing=tuple(spacing))


@torch.library.custom_op("isoconv::ring_conv", mutates_args=())
def _convolve(
    input: Tensor,
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    kernel_size: list[int],
    bands: int,
    profile: str,
    circular: bool,
    spacing: list[float],
) -> Tensor:
    """The convolution of ``input`` (N, C, *spatial), with ``padding`` before and after every axis."""
    plan = _plan(kernel_size, bands, profile, circular, spacing)
    size = _output_size(input.shape[2:], padding, stride, dilation, kernel_size)
    output = input.new_empty(input.shape[0], weight.shape[0], *size)
    mixing = weight.detach().reshape(groups, weight.shape[0] // groups, -1)
    window = _Window(_three(padding[::2], 0), (1, 1, 1), _three(stride, 1), _three(dilation, 1))
    for samples, pixels, sums in _tiles(input, size, window, plan):
        _mix(mixing, sums, output, samples, pixels)
    return output


@torch.library.custom_op("isoconv::ring_conv_gradients", mutates_args=())
def _gradients(
    input: Tensor,
    weight: Tensor,
    grad: Tensor,
    wanted: list[bool],
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    kernel_size: list[int],
    bands: int,
    profile: str,
    circular: bool,
    spacing: list[float],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``input`` and ``weight``, empty where not ``wanted``, for the gradient ``grad`` of the output."""
    plan = _plan(kernel_size, bands, profile, circular, spacing)
    input, weight, grad = input.detach(), weight.detach().contiguous(), grad.detach().contiguous()
    grad_input = torch.empty_like(input, memory_format=torch.contiguous_format) if wanted[0] else input.new_empty(0)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    moves, reach = _three(stride, 1), _three(dilation, 1)
    # sums of the output's gradient give both; but where strides thin them out or pixels are few, sums of the input are
    # less work than to rearrange the weight's gradient
    shared = all(wanted) and max(stride) == 1 and grad.numel() > grad.shape[1] ** 2 * bands
    by_output = weight.new_zeros(groups, outputs * bands, inputs) if shared else None
    if wanted[0]:
        mixing = weight.unflatten(0, (groups, outputs)).permute(0, 2, 1, 3).reshape(groups, inputs, -1)
        before = [d * (k - 1) - b for d, k, b in zip(dilation, kernel_size, padding[::2], strict=True)]
        window = _Window(_three(before, 0), moves, (1, 1, 1), reach)
        for samples, pixels, sums in _tiles(grad, input.shape[2:], window, plan):
            _mix(mixing, sums, grad_input, samples, pixels)
            if by_output is not None:
                _add_product(by_output, sums, _columns(input, samples, pixels))
    if by_output is not None:
        return grad_input, by_output.view(groups, outputs, bands, inputs).transpose(2, 3).reshape(
            weight.shape
        ).contiguous()
    if not wanted[1]:
        return grad_input, weight.new_empty(0)
    by_input = weight.new_zeros(groups, outputs, inputs * bands)
    window = _Window(_three(padding[::2], 0), (1, 1, 1), moves, reach)
    for samples, pixels, sums in _tiles(input, grad.shape[2:], window, plan):
        _add_product(by_input, _columns(grad, samples, pixels), sums)
    return grad_input, by_input.view(weight.shape)


@_convolve.register_fake
def _(input, weight, padding, stride, dilation, groups, kernel_size, *_):  # type: ignore[no-untyped-def]  # noqa: ARG001
    size = _output_size(input.shape[2:], padding, stride, dilation, kernel_size)
    return input.new_empty(input.shape[0], weight.shape[0], *size)


@_gradients.register_fake
def _(input, weight, grad, wanted, *_):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return tuple(x.new_empty(x.shape if want else 0) for x, want in zip((input, weight), wanted, strict=True))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    input, weight, *ctx.rest = inputs
    ctx.save_for_backward(input, weight)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    wanted = list(ctx.needs_input_grad[:2])
    gradients = _gradients(*ctx.saved_tensors, grad, wanted, *ctx.rest)
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
