"""The CPU engine: ring sums compiled by Numba, then one matrix product.

All taps of a band share their weight, so they are summed first (:mod:`isoconv.ops._folds`), once per input channel; the product with the
weights then takes ``C * bands`` multiplications per output instead of ``C * k^n``. The basis is mirror symmetric, hence the adjoint of the
convolution is the same operator with input and output channels swapped.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from isoconv.bands import BandPlan, band_plan
from isoconv.ops._folds import fold_plan
from isoconv.ops.spec import ConvSpec

_COLUMNS = 512  # a matrix product of fewer columns wastes time, so small images are taken several at a time
_BUFFER = 1 << 20  # elements of the ring sums that are made before they are used: they stay in cache
_TILE = 2048  # elements of one row class: all classes together stay in the first-level cache


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork


def can_run(input: Tensor, weight: Tensor, spec: ConvSpec) -> str | None:
    if input.device.type != "cpu":
        return f"it runs on the CPU, the input is on {input.device}"
    if input.dtype != torch.float32 or weight.dtype != torch.float32:
        return f"it computes in float32, the input is {input.dtype} and the weight {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "it computes in float32 and autocast asks for another dtype"
    if spec.transposed:
        return "it has no transposed convolution"
    if max(spec.stride) > 1 or max(spec.dilation) > 1 or spec.groups > 1:
        return f"it needs stride 1, dilation 1, groups 1, got {spec.stride}, {spec.dilation}, {spec.groups}"
    if spec.padding_mode != "zeros":
        return f"it pads with zeros, got padding_mode={spec.padding_mode!r}"
    reach = [k - 1 for k in spec.plan.kernel_size]
    if any(max(pair) > r for pair, r in zip(spec.padding, reach, strict=True)):
        return f"padding must be smaller than the kernel, got {spec.padding}"
    n = spec.plan.dims
    if any(s + sum(p) <= r for s, p, r in zip(input.shape[-n:], spec.padding, reach, strict=True)):
        return "the padded input is smaller than the kernel"
    if input.numel() == 0:
        return "the input is empty"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms need the reference engine"
    return None


def is_faster(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether the engine beats the reference on a call that it can run."""
    taps = sum(any(column) for column in zip(*spec.plan.rows, strict=True))
    return taps >= 9 and weight.shape[0] >= 4


def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    plan = spec.plan
    flat = [width for pair in spec.padding for width in pair]
    output = _ring_conv(
        input, weight, flat, list(plan.kernel_size), plan.bands, plan.profile, plan.circular, list(plan.spacing)
    )
    return output if bias is None else output + bias.view(-1, *[1] * plan.dims)


_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_jit
def _add(total, scale, a):  # noqa: ANN001, ANN202
    for i in range(total.size):
        total[i] += scale * a[i]


@_jit
def _add_pair(total, scale, a, b):  # noqa: ANN001, ANN202
    for i in range(total.size):
        total[i] += scale * (a[i] + b[i])


@_jit
def _ring_sums(x, sums, first, last, before, kernel, rows, columns, coefficients, classes):  # noqa: ANN001, ANN202
    """Ring sums of the planes ``first`` to ``last`` of ``x`` (N, C, D, H, W) into ``sums`` (C, bands, N, D', H', W').

    A few rows of the output at a time are one vector of the pitch of the padded input, so that rows, however short,
    cost no loop of their own."""
    N, C, D, H, W = x.shape
    B, Do, Ho, Wo = sums.shape[1], sums.shape[3], sums.shape[4], sums.shape[5]
    Dp, Hp, Wp = Do + kernel[0] - 1, Ho + kernel[1] - 1, Wo + kernel[2] - 1
    one = x.dtype.type(1)
    padded = np.zeros(Dp * Hp * Wp, x.dtype)
    height = max(1, min(Ho, _TILE // Wp))
    folded = np.zeros((classes, height * Wp), x.dtype)
    rings = np.zeros((B, height * Wp), x.dtype)
    for plane in range(first, last):
        n, c = plane // C, plane % C
        for z in range(max(0, -before[0]), min(D, Dp - before[0])):
            for y in range(max(0, -before[1]), min(H, Hp - before[1])):
                start = ((z + before[0]) * Hp + y + before[1]) * Wp + before[2]
                for i in range(max(0, -before[2]), min(W, Wp - before[2])):
                    padded[start + i] = x[n, c, z, y, i]
        for z in range(Do):
            for top in range(0, Ho, height):
                tall = min(height, Ho - top)
                folded[:] = 0
                for r in range(rows.shape[0]):
                    total = folded[rows[r, 4], : tall * Wp]
                    upper = padded[((z + rows[r, 0]) * Hp + top + rows[r, 2]) * Wp :]
                    lower = padded[((z + rows[r, 0]) * Hp + top + rows[r, 3]) * Wp :]
                    if rows[r, 2] == rows[r, 3]:
                        _add(total, one, upper)
                    else:
                        _add_pair(total, one, upper, lower)
                    if rows[r, 0] != rows[r, 1]:
                        upper = padded[((z + rows[r, 1]) * Hp + top + rows[r, 2]) * Wp :]
                        lower = padded[((z + rows[r, 1]) * Hp + top + rows[r, 3]) * Wp :]
                        if rows[r, 2] == rows[r, 3]:
                            _add(total, one, upper)
                        else:
                            _add_pair(total, one, upper, lower)
                rings[:] = 0
                for r in range(columns.shape[0]):
                    total = rings[columns[r, 3], : tall * Wp - kernel[2] + 1]
                    left = folded[columns[r, 0], columns[r, 1] :]
                    right = folded[columns[r, 0], columns[r, 2] :]
                    if columns[r, 1] == columns[r, 2]:
                        _add(total, coefficients[r], left)
                    else:
                        _add_pair(total, coefficients[r], left, right)
                for band in range(B):
                    for y in range(tall):
                        for i in range(Wo):
                            sums[c, band, n, z, top + y, i] = rings[band, y * Wp + i]


def _chunks(x: Tensor, bands: int, pixels: int) -> int:
    """Samples whose ring sums are made, then used, at a time."""
    enough = -(-_COLUMNS // pixels)
    return max(1, min(x.shape[0], max(enough, _BUFFER // (x.shape[1] * bands * pixels))))


def _make_sums(x: Tensor, sums: Tensor, before: list[int], plan: BandPlan) -> None:
    global _pool
    fold = fold_plan(plan)
    kernel = (1,) * (3 - plan.dims) + plan.kernel_size
    before = [0] * (3 - plan.dims) + before
    coefficients = fold.coefficients.astype(np.float32)
    planes, work = x.shape[0] * x.shape[1], sums.numel()
    arguments = (tuple(before), kernel, fold.rows, fold.columns, coefficients, fold.classes)
    source, target = x.numpy(), sums.numpy()
    threads = min(torch.get_num_threads(), planes) if work >= 1 << 15 else 1
    cuts = [planes * i // threads for i in range(threads + 1)]
    if threads > 1:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="isoconv")
        futures = [_pool.submit(_ring_sums, source, target, a, b, *arguments) for a, b in zip(cuts[1:], cuts[2:])]
        _ring_sums(source, target, 0, cuts[1], *arguments)
        for future in futures:
            future.result()
    else:
        _ring_sums(source, target, 0, planes, *arguments)


def _volume(x: Tensor) -> Tensor:
    """(N, C, *spatial) as contiguous (N, C, D, H, W)."""
    return x.detach().contiguous().view(*x.shape[:2], *[1] * (5 - x.dim()), *x.shape[2:])


def _convolve(x: Tensor, mixing: Tensor, before: list[int], after: list[int], plan: BandPlan) -> Tensor:
    """Ring sums of ``x`` (N, C, *spatial), mixed by ``mixing`` (O, C * bands)."""
    size = [s + b + a - k + 1 for s, b, a, k in zip(x.shape[2:], before, after, plan.kernel_size, strict=True)]
    output = x.new_empty(x.shape[0], mixing.shape[0], *size)
    volume, pixels = _volume(x), output[0, 0].numel()
    step = _chunks(x, plan.bands, pixels)
    sums = x.new_empty(x.shape[1], plan.bands, step, *[1] * (3 - plan.dims), *size)
    for n in range(0, x.shape[0], step):
        part = volume[n : n + step]
        if part.shape[0] < step:
            sums = x.new_empty(x.shape[1], plan.bands, part.shape[0], *sums.shape[3:])
        _make_sums(part, sums, before, plan)
        columns = sums.view(x.shape[1] * plan.bands, -1)
        if part.shape[0] == 1:
            torch.mm(mixing, columns, out=output[n].view(mixing.shape[0], -1))
        else:
            mixed = torch.mm(mixing, columns)
            output[n : n + step].view(part.shape[0], mixing.shape[0], -1).copy_(
                mixed.view(mixing.shape[0], part.shape[0], -1).transpose(0, 1)
            )
    return output


def _weight_gradient(x: Tensor, grad: Tensor, before: list[int], plan: BandPlan) -> Tensor:
    """Gradient (O, C, bands) of the mixing: ``grad`` (N, O, *spatial) times the ring sums of ``x``."""
    volume, outputs = _volume(x), grad.shape[1]
    pixels = grad[0, 0].numel()
    step = _chunks(x, plan.bands, pixels)
    total = x.new_zeros(outputs, x.shape[1] * plan.bands)
    for n in range(0, x.shape[0], step):
        part = volume[n : n + step]
        sums = x.new_empty(x.shape[1], plan.bands, part.shape[0], *[1] * (3 - plan.dims), *grad.shape[2:])
        _make_sums(part, sums, before, plan)
        rows = grad[n : n + step].transpose(0, 1).reshape(outputs, -1)
        total.addmm_(rows, sums.view(total.shape[1], -1).t())
    return total.view(outputs, x.shape[1], plan.bands)


def _plan(kernel_size: list[int], bands: int, profile: str, circular: bool, spacing: list[float]) -> BandPlan:
    return band_plan(tuple(kernel_size), bands=bands, profile=profile, circular=circular, spacing=tuple(spacing))


@torch.library.custom_op("isoconv::ring_conv", mutates_args=())
def _ring_conv(
    input: Tensor,
    weight: Tensor,
    padding: list[int],
    kernel_size: list[int],
    bands: int,
    profile: str,
    circular: bool,
    spacing: list[float],
) -> Tensor:
    plan = _plan(kernel_size, bands, profile, circular, spacing)
    return _convolve(input, weight.detach().flatten(1), padding[::2], padding[1::2], plan)


@_ring_conv.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    padding: list[int],
    kernel_size: list[int],
    bands: int,
    profile: str,
    circular: bool,
    spacing: list[float],
) -> Tensor:
    size = [s + b + a - k + 1 for s, b, a, k in zip(input.shape[2:], padding[::2], padding[1::2], kernel_size)]
    return input.new_empty(input.shape[0], weight.shape[0], *size)


@torch.library.custom_op("isoconv::ring_conv_weight_gradient", mutates_args=())
def _ring_conv_weight_gradient(
    input: Tensor,
    grad: Tensor,
    padding: list[int],
    kernel_size: list[int],
    bands: int,
    profile: str,
    circular: bool,
    spacing: list[float],
) -> Tensor:
    return _weight_gradient(input, grad, padding[::2], _plan(kernel_size, bands, profile, circular, spacing))


@_ring_conv_weight_gradient.register_fake
def _(
    input: Tensor,
    grad: Tensor,
    padding: list[int],
    kernel_size: list[int],
    bands: int,
    profile: str,
    circular: bool,
    spacing: list[float],
) -> Tensor:
    return input.new_empty(grad.shape[1], input.shape[1], bands)


def _setup(ctx, inputs, output) -> None:  # noqa: ANN001, ARG001
    input, weight, *ctx.geometry = inputs
    ctx.save_for_backward(input, weight)


def _backward(ctx, grad: Tensor) -> tuple:  # noqa: ANN001
    input, weight = ctx.saved_tensors
    padding, kernel_size, *rest = ctx.geometry
    grad_input = grad_weight = None
    if ctx.needs_input_grad[0]:
        mirrored = [k - 1 - p for k, pair in zip(kernel_size, zip(padding[::2], padding[1::2])) for p in pair]
        grad_input = _ring_conv(grad, weight.transpose(0, 1).contiguous(), mirrored, kernel_size, *rest)
    if ctx.needs_input_grad[1]:
        grad_weight = _ring_conv_weight_gradient(input, grad, padding, kernel_size, *rest)
    return grad_input, grad_weight, *[None] * 6


_ring_conv.register_autograd(_backward, setup_context=_setup)
