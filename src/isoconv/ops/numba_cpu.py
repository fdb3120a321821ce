"""The CPU engine: ring sums compiled by Numba, then one matrix product.

All taps of a band share their weight, so they are summed first (:mod:`isoconv.ops._folds`), once per input channel; the product with the
weights then takes ``C * bands`` multiplications per output instead of ``C * k^n``. The basis is mirror symmetric, hence the adjoint of the
convolution is the same operator with input and output channels swapped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

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


@numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)
def _ring_sums(x, sums, first, last, before, kernel, rows, columns, coefficients, classes, tile):  # noqa: ANN001, ANN202
    """Ring sums of the planes ``first`` to ``last`` of ``x`` (N, C, D, H, W) into ``sums`` (C, bands, N, D', H', W')."""
    N, C, D, H, W = x.shape
    B, Do, Ho, Wo = sums.shape[1], sums.shape[3], sums.shape[4], sums.shape[5]
    Dp, Hp, Wp = Do + kernel[0] - 1, Ho + kernel[1] - 1, Wo + kernel[2] - 1
    bz, by, bx = before[0], before[1], before[2]
    padded = np.zeros(Dp * Hp * Wp, x.dtype)
    height = max(1, min(Ho, tile // Wp))
    ring = np.empty((B, height * Wp), x.dtype)
    folded = np.zeros((classes, height * Wp), x.dtype)
    seen = np.zeros(classes, np.int64)
    filled = np.zeros(B, np.int64)
    for plane in range(first, last):
        n, c = plane // C, plane % C
        for z in range(max(0, -bz), min(D, Dp - bz)):
            for y in range(max(0, -by), min(H, Hp - by)):
                start = ((z + bz) * Hp + y + by) * Wp + bx
                for i in range(max(0, -bx), min(W, Wp - bx)):
                    padded[start + i] = x[n, c, z, y, i]
        for z in range(Do):
            for top in range(0, Ho, height):
                tall = min(height, Ho - top)
                length = tall * Wp
                seen[:] = 0
                for r in range(rows.shape[0]):
                    z0, z1, y0, y1, k = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3], rows[r, 4]
                    a = padded[((z + z0) * Hp + top + y0) * Wp :][:length]
                    b = padded[((z + z0) * Hp + top + y1) * Wp :][:length]
                    out = folded[k]
                    if z0 == z1:
                        if y0 == y1:
                            if seen[k]:
                                for i in range(length):
                                    out[i] += a[i]
                            else:
                                for i in range(length):
                                    out[i] = a[i]
                        elif seen[k]:
                            for i in range(length):
                                out[i] += a[i] + b[i]
                        else:
                            for i in range(length):
                                out[i] = a[i] + b[i]
                    else:
                        d = padded[((z + z1) * Hp + top + y0) * Wp :][:length]
                        if y0 == y1:
                            if seen[k]:
                                for i in range(length):
                                    out[i] += a[i] + d[i]
                            else:
                                for i in range(length):
                                    out[i] = a[i] + d[i]
                        else:
                            e = padded[((z + z1) * Hp + top + y1) * Wp :][:length]
                            if seen[k]:
                                for i in range(length):
                                    out[i] += (a[i] + b[i]) + (d[i] + e[i])
                            else:
                                for i in range(length):
                                    out[i] = (a[i] + b[i]) + (d[i] + e[i])
                    seen[k] = 1
                filled[:] = 0
                length -= kernel[2] - 1
                for t in range(columns.shape[0]):
                    k, x0, x1, band = columns[t, 0], columns[t, 1], columns[t, 2], columns[t, 3]
                    w = coefficients[t]
                    a, b, out = folded[k, x0:], folded[k, x1:], ring[band]
                    if x0 == x1:
                        if filled[band]:
                            for i in range(length):
                                out[i] += w * a[i]
                        else:
                            for i in range(length):
                                out[i] = w * a[i]
                    elif filled[band]:
                        for i in range(length):
                            out[i] += w * (a[i] + b[i])
                    else:
                        for i in range(length):
                            out[i] = w * (a[i] + b[i])
                    filled[band] = 1
                for band in range(B):
                    for y in range(tall):
                        for i in range(Wo):
                            sums[c, band, n, z, top + y, i] = ring[band, y * Wp + i]
