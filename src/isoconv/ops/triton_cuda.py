"""The CUDA engine: ring sums and their product with the weights in one Triton kernel.

All taps of a band share their weight, so they are summed first, on the way from memory, and the sums never go back
there: ``C * bands`` multiplications per output instead of ``C * k^n``. The basis is mirror symmetric, so the adjoint is
the same operator over the gradient, spread to the input's grid, with input and output channels swapped; the gradient of
the weight makes the ring sums again rather than keep them. The three are each other's derivatives, hence derivatives of
any order.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv.bands import BandPlan, plan_from_key
from isoconv.ops._folds import asymmetry
from isoconv.ops.spec import ConvSpec, output_size

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_tuning = threading.Lock()  # a tuned kernel keeps its arguments in itself while it is launched
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def _kernels() -> ModuleType:
    from isoconv.ops import _triton_kernels  # the first call imports triton

    return _triton_kernels


def can_run(input: Tensor, weight: Tensor, spec: ConvSpec) -> str | None:
    interpreted = input.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if input.device.type != "cuda" and not interpreted:
        return f"it runs on CUDA devices, the input is on {input.device}"
    if not _HAS_TRITON:
        return "triton is not installed"
    if interpreted and _kernels().COMPILED:
        return "its kernels were loaded before TRITON_INTERPRET was set"
    if not interpreted and torch.cuda.get_device_capability(input.device) < (8, 0):
        return f"it needs compute capability 8.0, {torch.cuda.get_device_name(input.device)} has less"
    if input.dtype not in _DTYPES or weight.dtype not in _DTYPES:
        return f"it computes in float32, float16 and bfloat16, got {input.dtype} and a weight of {weight.dtype}"
    if spec.transposed:
        return "it has no transposed convolution"
    if min(spec.output_size(input.shape[-spec.plan.dims :])) < 1:
        return "the padded input is smaller than the kernel"
    if input.numel() >= 2**31:
        return f"it counts pixels in 32 bits, the input has {input.numel()} elements"
    return asymmetry(spec.plan)


def is_faster(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:  # noqa: ARG001 - the signature of all engines
    """Whether the engine beats the reference on a call that it can run.

    Never, as far as is known: "auto" chooses by committed measurements and there is none on a GPU yet."""
    return False


def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    input, rest = spec.for_operator(input)
    output = _convolve(input, weight, *rest)
    return output if bias is None else output.add_(bias.view(-1, *[1] * spec.plan.dims))


@lru_cache(maxsize=1024)
def _taps(
    plan: BandPlan, dilation: tuple[int, ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Band after band: offsets of its taps in pixels of these strides, their coefficients, where each band starts; and
    whether all coefficients are 1."""
    basis = torch.from_numpy(plan.basis)
    band, *place = basis.nonzero(as_tuple=True)
    offsets = sum(i * d * s for i, d, s in zip(place, dilation, strides[-plan.dims :], strict=True))
    coefficients = basis[basis != 0]
    starts = torch.bincount(band, minlength=plan.bands).cumsum(0)
    return (
        torch.as_tensor(offsets, device=device),
        coefficients.to(device, torch.float32),
        F.pad(starts, (1, 0)).to(device),
        bool((coefficients == 1).all()),
    )


def _volume(x: Tensor) -> Tensor:
    """(N, C, *spatial) as (N, C, D, H, W)."""
    while x.dim() < 5:
        x = x.unsqueeze(2)
    return x


def _pixel_strides(x: Tensor) -> tuple[int, ...]:
    """Distance in pixels between planes, rows and columns of ``x`` (N, D, H, W, C)."""
    return x.shape[2] * x.shape[3], x.shape[3], 1


def _three(values: list[int], fill: int) -> list[int]:
    return [fill] * (3 - len(values)) + values


def _padded(x: Tensor, widths: list[int], steps: list[int]) -> Tensor:
    """``x`` (N, C, *spatial), its pixels ``steps`` apart, padded or cropped, as contiguous (N, D, H, W, C)."""
    x = _volume(x)
    steps, widths = _three(steps, 1), [0] * (6 - len(widths)) + widths
    last = x.permute(0, 2, 3, 4, 1)
    if not any(widths) and max(steps) == 1 and last.is_contiguous():
        return last
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], steps, strict=True)]
    padded = [n + b + a for n, b, a in zip(sizes, widths[::2], widths[1::2], strict=True)]
    output = x.new_empty(x.shape[0], *padded, x.shape[1])
    pixels, channels = output.numel() // x.shape[1], x.shape[1]
    rows, columns = (64, 32) if x.is_cuda else (1024, 64)
    grid = (-(-pixels // rows), -(-channels // columns))
    with torch.cuda.device_of(x):
        _kernels().pad_kernel[grid](
            x, output, pixels, channels, *padded, *x.shape[2:], *widths[::2], *steps, *x.stride(), BP=rows, BC=columns
        )  # fmt: skip
    return output


def _allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    # where the newer setting exists, the older one must not be read: it raises if the newer one has been set
    precision = getattr(matmul, "fp32_precision", None)
    return matmul.allow_tf32 if precision is None else precision == "tf32"


def _arithmetic(dtype: torch.dtype) -> dict[str, object]:
    """In what the kernels compute: pairs of taps, then ring sums times weights.

    bfloat16 pairs are added as such, for conversions take longer than sums, and ring sums are rounded to it anyway.
    Sums may overflow float16, whereas TF32 is as precise and wide enough."""
    tl = _kernels().tl
    if dtype == torch.bfloat16 and _kernels().COMPILED:  # the interpreter has no arithmetic of that type
        return {"PAIR": tl.bfloat16, "OPERAND": tl.bfloat16, "PRECISION": "ieee"}
    allowed = dtype != torch.float32 or _allows_tf32()
    return {"PAIR": tl.float32, "OPERAND": tl.float32, "PRECISION": "tf32" if allowed else "ieee"}


def _power(n: int, most: int) -> int:
    """The power of two from ``n`` upwards, within what a matrix product takes and ``most``."""
    return min(most, max(16, 1 << (n - 1).bit_length()))


def _empty(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An output (N, channels, *size) in the memory format of ``x``."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim(), torch.contiguous_format)
    layout = last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format
    return torch.empty(x.shape[0], channels, *size, dtype=x.dtype, device=x.device, memory_format=layout)


def _grid_arguments(
    x: Tensor, taps: Tensor, groups: int, inputs: int, outputs: int, bands: int, stride: list[int], y: Tensor
) -> list[int]:
    """Integers that both kernels take, from ``bucket`` on: ``x`` is (N, D, H, W, C), ``y`` (N, C', D', H', W')."""
    sn, *steps = x.stride()[:4]
    steps = [a * b for a, b in zip(steps, _three(stride, 1), strict=True)]
    pixels = y.numel() // y.shape[1]
    return [
        pixels.bit_length(), len(taps), groups, bands, inputs, outputs, *y.shape[2:], sn, *steps, *y.stride()
    ]  # fmt: skip


def _convolve_into(
    output: Tensor, x: Tensor, mixing: Tensor, plan: BandPlan, stride: list[int], dilation: list[int]
) -> Tensor:
    """The convolution of a padded ``x`` (N, D, H, W, C) by ``mixing`` (groups, bands, in, out)."""
    groups, bands, inputs, outputs = mixing.shape
    offsets, coefficients, starts, hard = _taps(plan, tuple(dilation), _pixel_strides(x), x.device)
    y = _volume(output)
    pixels = y.numel() // y.shape[1]
    BC = _power(inputs, 32 if x.dtype == torch.float32 else 64)
    blocks = -(-inputs // BC)
    tiles = -(-pixels // 64) * -(-outputs // 64) * groups
    share = -(-blocks // min(blocks, _parts(tiles, 2, x.device)))
    parts = -(-blocks // share)
    total = y.unsqueeze(0)
    if parts > 1:
        total = x.new_empty(parts, y.shape[0], *y.shape[2:], y.shape[1], dtype=torch.float32).movedim(-1, 2)
    integers = _grid_arguments(x, offsets, groups, inputs, outputs, bands, stride, total[0])
    kernels = _kernels()
    meta = {"HARD": hard, "BC": BC, **_arithmetic(x.dtype)}
    kernel = kernels.tuned_convolve_kernel
    if not kernels.COMPILED:
        kernel = kernels.convolve_kernel
        meta |= {"BP": _power(pixels, 512), "BO": _power(outputs, 64)}
    with torch.cuda.device_of(x), _tuning:
        kernel[lambda tile: (-(-pixels // tile["BP"]), -(-outputs // tile["BO"]) * groups, parts)](
            x,
            mixing.contiguous(),
            offsets,
            coefficients,
            starts,
            total,
            pixels,
            share,
            total.stride(0),
            *integers,
            **meta,
        )
    if parts > 1:
        y.copy_(total.sum(0))
    return output


def _parts(tiles: int, waves: int, device: torch.device) -> int:
    """Into how many parts a sum is split, so that every multiprocessor gets so many tiles; a function of shapes, for it
    decides the order of summation."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return max(1, waves * processors // tiles)


def _weight_gradient_of(
    x: Tensor, grad: Tensor, groups: int, plan: BandPlan, stride: list[int], dilation: list[int]
) -> Tensor:
    """Gradient (out, in / groups, bands) for a padded ``x`` (N, D, H, W, C) and ``grad`` (N, out, *spatial)."""
    inputs, outputs, bands = x.shape[4] // groups, grad.shape[1] // groups, plan.bands
    offsets, coefficients, starts, hard = _taps(plan, tuple(dilation), _pixel_strides(x), x.device)
    y = _volume(grad)
    pixels = y.numel() // y.shape[1]
    tiles = -(-inputs // 64) * -(-outputs // 64) * bands * groups
    parts = max(1, min(pixels // 256, _parts(tiles, 8, x.device)))  # many, for wide rings take longer than narrow ones
    chunk = -(-pixels // (parts * 64)) * 64
    parts = -(-pixels // chunk)
    total = x.new_empty(parts, groups, bands, outputs, inputs, dtype=torch.float32)
    integers = _grid_arguments(x, offsets, groups, inputs, outputs, bands, stride, y)
    kernels = _kernels()
    meta = {"HARD": hard, "BP": 64, **_arithmetic(x.dtype)}
    kernel = kernels.tuned_weight_gradient_kernel
    if not kernels.COMPILED:
        kernel = kernels.weight_gradient_kernel
        meta |= {"BC": _power(inputs, 64), "BO": _power(outputs, 64)}
    with torch.cuda.device_of(x), _tuning:
        kernel[lambda tile: (-(-inputs // tile["BC"]) * -(-outputs // tile["BO"]), bands * groups, parts)](
            x, y, offsets, coefficients, starts, total, pixels, chunk, *integers, **meta
        )
    return total.sum(0).permute(0, 2, 3, 1).reshape(groups * outputs, inputs, bands).to(x.dtype)


@torch.library.custom_op("isoconv::triton_conv", mutates_args=())
def _convolve(
    input: Tensor,
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    geometry: str,
) -> Tensor:
    plan = plan_from_key(geometry)
    output = _empty(input, weight.shape[0], output_size(input.shape[2:], padding, stride, dilation, plan.kernel_size))
    if output.numel() == 0:
        return output
    mixing = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
    return _convolve_into(output, _padded(input, padding, [1] * len(stride)), mixing, plan, stride, dilation)


@torch.library.custom_op("isoconv::triton_conv_adjoint", mutates_args=())
def _adjoint(
    grad: Tensor,
    weight: Tensor,
    size: list[int],
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    geometry: str,
) -> Tensor:
    output = _empty(grad, weight.shape[1] * groups, size)
    if output.numel() == 0:
        return output
    plan, widths = plan_from_key(geometry), []
    moves = padding[::2], stride, dilation, plan.kernel_size
    for n, m, before, s, d, k in zip(size, grad.shape[2:], *moves, strict=True):
        mirrored = d * (k - 1) - before
        widths += [mirrored, n + before - (m - 1) * s - 1]
    mixing = weight.unflatten(0, (groups, -1)).permute(0, 3, 1, 2)
    return _convolve_into(output, _padded(grad, widths, stride), mixing, plan, [1] * len(stride), dilation)


@torch.library.custom_op("isoconv::triton_conv_weight_gradient", mutates_args=())
def _weight_gradient(
    input: Tensor,
    grad: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    geometry: str,
) -> Tensor:
    plan = plan_from_key(geometry)
    if input.numel() == 0 or grad.numel() == 0:
        return input.new_zeros(grad.shape[1], input.shape[1] // groups, plan.bands)
    return _weight_gradient_of(_padded(input, padding, [1] * len(stride)), grad, groups, plan, stride, dilation)


@_convolve.register_fake
def _(input, weight, padding, stride, dilation, groups, geometry):  # type: ignore[no-untyped-def]  # noqa: ARG001
    size = output_size(input.shape[2:], padding, stride, dilation, plan_from_key(geometry).kernel_size)
    return _empty(input, weight.shape[0], size)


@_adjoint.register_fake
def _(grad, weight, size, padding, stride, dilation, groups, *_):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return _empty(grad, weight.shape[1] * groups, size)


@_weight_gradient.register_fake
def _(input, grad, padding, stride, dilation, groups, geometry):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return input.new_empty(grad.shape[1], input.shape[1] // groups, plan_from_key(geometry).bands)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    first, second, *ctx.rest = inputs
    ctx.save_for_backward(first, second)


# With T(input, weight, grad) the trilinear form that the three operators are the derivatives of:


def _convolve_backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    input, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _adjoint(v, weight, list(input.shape[2:]), *ctx.rest) if wanted[0] else None,
        _weight_gradient(input, v, *ctx.rest) if wanted[1] else None,
        *[None] * len(ctx.rest),
    )


def _adjoint_backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    grad, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _convolve(v, weight, *ctx.rest[1:]) if wanted[0] else None,
        _weight_gradient(v, grad, *ctx.rest[1:]) if wanted[1] else None,
        *[None] * len(ctx.rest),
    )


def _weight_gradient_backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    input, grad = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _adjoint(grad, v, list(input.shape[2:]), *ctx.rest) if wanted[0] else None,
        _convolve(input, v, *ctx.rest) if wanted[1] else None,
        *[None] * len(ctx.rest),
    )


_convolve.register_autograd(_convolve_backward, setup_context=_save)
_adjoint.register_autograd(_adjoint_backward, setup_context=_save)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_save)
