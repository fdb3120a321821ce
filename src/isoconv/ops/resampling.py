"""Down- and up-sampling that commutes with every flip and every permutation of the axes, at every size.

A grid of every s-th sample is symmetric only if it leaves as many samples over before its first point as behind its
last. Where that number is odd the grid cannot be centred on samples; averaging neighbours first moves the samples by
half a step, and then it can."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx
import torch.nn.functional as F
from torch import Tensor

from isoconv._checks import count_of

_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def is_traced(x: object) -> bool:
    """Whether ``x`` stands for a tensor in a torch.fx trace: its shape can be computed with, but not looked at to take
    a branch."""
    return isinstance(x, torch.fx.Proxy)


def is_exported() -> bool:
    """Whether the call goes into a file, which should run without isoconv."""
    exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.7
    return torch.jit.is_tracing() or exporting()


def _for_any_size(x: object) -> bool:
    """Whether what is done to ``x`` is written down, to be done at other sizes too. A window that depends on whether a
    size is odd would be written down as it is at the one size of the example: wrong at others, and ONNX keeps no guard
    against these."""
    return is_traced(x) or is_exported()


def symmetric_avg_pool(input: Tensor, dims: int) -> Tensor:
    """Halve the last ``dims`` axes, n to ceil(n / 2): means of 2 samples where n is even, 1-2-1 means around every
    other sample where it is odd."""
    if _for_any_size(input):
        return _AVG_POOL[dims](_even(input, dims, "avg"), 2)
    odd = [n % 2 for n in input.shape[-dims:]]
    if any(odd):
        widths = [o for o in reversed(odd) for _ in range(2)]
        input = _AVG_POOL[dims](F.pad(input, widths, mode="replicate"), [1 + o for o in odd], 1)
    return _AVG_POOL[dims](input, 2)


def symmetric_max_pool(input: Tensor, dims: int) -> Tensor:
    """Halve the last ``dims`` axes, n to ceil(n / 2): the maximum of 2 samples where n is even, of 3 around every other
    sample where it is odd."""
    if _for_any_size(input):
        return _MAX_POOL[dims](_even(input, dims, "max"), 2)
    odd = [n % 2 for n in input.shape[-dims:]]
    return _MAX_POOL[dims](input, [2 + o for o in odd], 2, odd)


def _even(input: Tensor, dims: int, mode: str) -> Tensor:
    """``input`` with its last ``dims`` axes, where odd, one sample longer: each merged with its neighbour."""
    for axis in range(-dims, 0):
        n = input.shape[axis]
        input = _merged(input, axis, (_arange(n + n % 2, input) - n % 2).clamp(min=0), mode)
    return input


def _merged(input: Tensor, axis: int, at: Tensor, mode: str) -> Tensor:
    """Mean or maximum of the samples ``at`` these places of an axis and of those at the mirrored places."""
    mirrored = input.shape[axis] - 1 - at.flip(0)
    x, y = (input.index_select(axis, i) for i in (at, mirrored))
    return torch.maximum(x, y) if mode == "max" else x / 2 + y / 2


def _arange(n: int, input: Tensor) -> Tensor:
    if isinstance(input, torch.fx.Proxy):  # what takes no tensor escapes the trace
        return input.tracer.create_proxy("call_function", torch.arange, (n,), {"device": input.device})
    return torch.arange(n, device=input.device)


def symmetric_upsample(input: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of (N, C, *spatial) to ``size``, each axis n growing to 2n or to 2n - 1: the shapes that
    halving maps to n."""
    if _for_any_size(input):
        for axis, n in enumerate(size, -len(size)):
            input = _interpolated(input, axis, n)
        return input
    dims, target = len(size), list(size)
    _check_upsample(input, target)
    current = [input.shape[axis] for axis in range(-dims, 0)]
    halfway = [n + (t - n) * (1 - t % 2) for n, t in zip(current, target, strict=True)]  # the axes that become even
    if halfway != current:
        input = F.interpolate(input, halfway, mode=_LINEAR[dims], align_corners=False)
    if halfway != target:
        input = F.interpolate(input, target, mode=_LINEAR[dims], align_corners=True)
    return input


def _interpolated(input: Tensor, axis: int, n: int) -> Tensor:
    """One axis of ``input`` brought to length ``n``."""
    last = input.shape[axis] - 1
    # in quarters of a sample: every other new one lies on an old one if n is odd, else all lie between two
    at = (2 * _arange(n, input) - 1 + n % 2).clamp(min=0)
    low, part = at // 4, (at % 4).to(input.dtype).view([-1] + [1] * (-axis - 1)) / 4
    high = last - (last - 1 - low).clamp(min=0)
    return torch.lerp(input.index_select(axis, low), input.index_select(axis, high), part)


def _check_upsample(input: Tensor, size: list[int]) -> None:
    dims = len(size)
    if input.dim() != dims + 2:
        axes = count_of(dims, "spatial axis", "spatial axes")
        raise ValueError(f"expected an input (N, C, {axes}), got shape {tuple(input.shape)}")
    current = tuple(input.shape[-dims:])
    if any(target not in (2 * n, 2 * n - 1) for n, target in zip(current, size, strict=True)):
        raise ValueError(
            f"each axis n can grow to 2n or 2n - 1: got size={tuple(size)} for an input of spatial shape {current}"
        )


def same_padding(n: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Samples that an axis of length ``n`` lacks for ceil(n / stride) windows, what TensorFlow's "SAME" adds."""
    missing = (-(-n // stride) - 1) * stride + dilation * (kernel_size - 1) + 1 - n
    return torch.sym_max(missing, 0)


def same_pad(
    input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float
) -> Tensor:
    """``input`` with :func:`same_padding`, half of it on each side; one sample more where that is odd. The windows of a
    :func:`centre_grid` without padding then are ceil(n / stride)."""
    sides: list[int] = []
    for axis, window in enumerate(zip(kernel_size, stride, dilation, strict=True), -len(stride)):
        half = (same_padding(input.shape[axis], *window) + 1) // 2
        sides = [half, half, *sides]
    return F.pad(input, sides, value=value)


def centre_grid(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mode: str,
) -> Tensor:
    """``input`` changed as little as possible so that a sliding window of these hyperparameters covers it
    symmetrically.

    Along an axis where the windows leave r samples over, neighbours are averaged (``mode="max"``: maximised) if r is
    odd, which takes one sample away, and the rest is cropped evenly from both ends. The windows are as many as before.

    Raises:
        ValueError: no window fits, or one fits into the padding so that no sample would be left.
    """
    dims = len(stride)
    sizes = [input.shape[axis] for axis in range(-dims, 0)]
    room = [n + 2 * p - d * (k - 1) - 1 for n, k, p, d in zip(sizes, kernel_size, padding, dilation, strict=True)]
    left = [m % s for m, s in zip(room, stride, strict=True)]
    if _for_any_size(input):
        for axis, (n, r) in enumerate(zip(sizes, left, strict=True), -dims):
            input = _merged(input, axis, _arange(n - r, input) + r // 2, mode)
        return input
    if any(m < 0 or r >= n for n, m, r in zip(sizes, room, left, strict=True)):
        window = f"kernel_size={kernel_size}, stride={stride}, padding={padding}, dilation={dilation}"
        raise ValueError(
            f"a window of {window} cannot be centred on an input of spatial shape {tuple(sizes)}; it takes a larger one"
        )
    if any(r % 2 for r in left):
        pool = _MAX_POOL if mode == "max" else _AVG_POOL
        input = pool[dims](input, [1 + r % 2 for r in left], 1)
    if any(r > 1 for r in left):
        input = F.pad(input, [-(r // 2) for r in reversed(left) for _ in range(2)])
    return input
