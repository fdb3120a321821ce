"""Down- and up-sampling that commutes with every flip and every permutation of the axes, at every size.

A grid of every s-th sample is symmetric only if it leaves as many samples over before its first point as behind its
last. Where that number is odd the grid cannot be centred on samples; averaging neighbours first moves the samples by
half a step, and then it can."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx
import torch.nn.functional as F
from torch import Tensor

_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def is_traced(x: object) -> bool:
    """Whether ``x`` stands for a tensor in a torch.fx trace: its shape can be computed with, but not looked at to take
    a branch."""
    return isinstance(x, torch.fx.Proxy)


def symmetric_avg_pool(input: Tensor, dims: int) -> Tensor:
    """Halve the last ``dims`` axes, n to ceil(n / 2): means of 2 samples where n is even, 1-2-1 means around every
    other sample where it is odd."""
    if not is_traced(input) and all(n % 2 == 0 for n in input.shape[-dims:]):
        return _AVG_POOL[dims](input, 2)
    return halve_any_size(input, dims)


def halve_any_size(input: Tensor, dims: int) -> Tensor:
    """:func:`symmetric_avg_pool` without branches on the size, so that it can be traced for every size at once."""
    odd = [input.shape[axis] % 2 for axis in range(-dims, 0)]
    widths = [o for o in reversed(odd) for _ in range(2)]
    even = _AVG_POOL[dims](F.pad(input, widths, mode="replicate"), [1 + o for o in odd], 1)
    return _AVG_POOL[dims](even, 2)


def symmetric_max_pool(input: Tensor, dims: int) -> Tensor:
    """Halve the last ``dims`` axes, n to ceil(n / 2): the maximum of 2 samples where n is even, of 3 around every other
    sample where it is odd."""
    odd = [input.shape[axis] % 2 for axis in range(-dims, 0)]
    return _MAX_POOL[dims](input, [2 + o for o in odd], 2, odd)


def symmetric_upsample(input: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of (N, C, *spatial) to ``size``, each axis n growing to 2n or to 2n - 1: the shapes that
    halving maps to n."""
    dims, target = len(size), list(size)
    if not is_traced(input):
        _check_upsample(input, target)
    current = [input.shape[axis] for axis in range(-dims, 0)]
    halfway = [n + (t - n) * (1 - t % 2) for n, t in zip(current, target, strict=True)]  # the axes that become even
    if is_traced(input) or halfway != current:
        input = F.interpolate(input, halfway, mode=_LINEAR[dims], align_corners=False)
    if is_traced(input) or halfway != target:
        input = F.interpolate(input, target, mode=_LINEAR[dims], align_corners=True)
    return input


def _check_upsample(input: Tensor, size: list[int]) -> None:
    dims = len(size)
    if input.dim() != dims + 2:
        raise ValueError(f"expected an input (N, C, {dims} spatial axes), got shape {tuple(input.shape)}")
    current = tuple(input.shape[-dims:])
    if any(target not in (2 * n, 2 * n - 1) for n, target in zip(current, size, strict=True)):
        raise ValueError(
            f"each axis n can grow to 2n or 2n - 1: got size={tuple(size)} for an input of spatial shape {current}"
        )


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
    if not is_traced(input) and any(m < 0 or r >= n for n, m, r in zip(sizes, room, left, strict=True)):
        window = f"kernel_size={kernel_size}, stride={stride}, padding={padding}, dilation={dilation}"
        raise ValueError(
            f"a window of {window} cannot be centred on an input of spatial shape {tuple(sizes)}; it takes a larger one"
        )
    if is_traced(input) or any(r % 2 for r in left):
        pool = _MAX_POOL if mode == "max" else _AVG_POOL
        input = pool[dims](input, [1 + r % 2 for r in left], 1)
    if is_traced(input) or any(r > 1 for r in left):
        input = F.pad(input, [-(r // 2) for r in reversed(left) for _ in range(2)])
    return input
