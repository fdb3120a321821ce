"""How the CPU engine goes through a tensor: piece by piece, ring sums and what is multiplied with them.

Ring sums of a piece stay in the cache until they are used. With many pixels every thread takes pieces of its own; with
few, or where the BLAS in PyTorch cannot be called from here, the threads share each piece and PyTorch multiplies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoconv.bands import BandPlan
from isoconv.ops._folds import fold_plan

_COLUMNS = 512  # a matrix product of fewer columns wastes time, so small images are taken several at a time
_BUFFER = 1 << 18  # elements of ring sums that a thread makes before they are used: they stay in its cache
_TILE = 2048  # elements of one row class: all classes together stay in the first-level cache
_SERIAL = 1 << 15  # ring sums not worth a second thread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """Where a kernel is put, for three axes: pixels lie ``steps`` apart behind ``before`` zeros, and it moves by
    ``stride``."""

    before: tuple[int, ...]
    steps: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def moved(self, axis: int, outputs: int) -> Window:
        """The same, beginning ``outputs`` later along ``axis``."""
        before = list(self.before)
        before[axis] -= outputs * self.stride[axis]
        return Window(tuple(before), self.steps, self.stride, self.dilation)


def three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """Values for three axes, ``fill`` for those that an image of fewer lacks, which come first."""
    return (fill,) * (3 - len(values)) + tuple(values)


@cache
def _kernels() -> ModuleType:
    from isoconv.ops import _numba_kernels

    return _numba_kernels


@cache
def _compiled(dtype: torch.dtype) -> Any:
    """NumPy's ``dtype``, once all that is computed in it has been compiled."""
    start, numpy = time.perf_counter(), {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    _, kept = _kernels().entry(numpy)
    name, seconds = str(dtype).removeprefix("torch."), time.perf_counter() - start
    if kept:
        log.debug("loaded the compiled convolutions in %s in %.1f s", name, seconds)
    else:
        log.info("compiled the convolutions in %s in %.1f s", name, seconds)
    return numpy


class _Cut(NamedTuple):
    """``samples`` at a time, and of them ``pieces``, an array of `_numba_kernels.PIECE`; ``shares`` is whether several
    threads share each piece. The tables are those that the pieces have addresses of."""

    samples: int
    pieces: np.ndarray
    shares: bool
    threads: int
    tables: tuple[np.ndarray, ...]


@lru_cache(maxsize=4096)
def _cut(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    window: Window,
    plan: BandPlan,
    dtype: np.dtype,
    team: int,
    buffer: int,
) -> _Cut:
    """How ring sums of a tensor (N, C, D, H, W) at ``size`` places are made by ``team`` threads."""
    planes, pixels = shape[1] * plan.bands, prod(size)
    threads = team if shape[0] * planes * pixels >= _SERIAL else 1
    samples = max(1, min(shape[0], -(-_COLUMNS // pixels)))
    fair = max(1, min(samples, -(-shape[0] // threads)))
    shares = not _kernels().gemm(dtype) or (threads > 1 and fair * pixels < _COLUMNS // 4)
    samples = samples if shares else fair
    axis = next((i for i, n in enumerate(size) if n > 1), 2)
    row = samples * pixels // size[axis]
    lines = max(1, buffer * (threads if shares else 1) // (planes * row), -(-_COLUMNS // row))
    count, groups = -(-size[axis] // lines), -(-shape[0] // samples)
    while not shares and groups * count % threads and groups * count < 4 * threads and count < size[axis]:
        count += 1  # else some threads wait for others
    lines = -(-size[axis] // count)
    pieces: list[np.ndarray] = []
    tables: list[np.ndarray] = []
    for line in range(0, size[axis], lines):
        part = (*size[:axis], min(lines, size[axis] - line), *size[axis + 1 :])
        together = -(-min(shape[0], samples) * shape[1] // (threads if shares else 1))
        piece, table = _piece(shape, part, window.moved(axis, line), plan, dtype, together)
        piece["first_pixel"] = line * (pixels // size[axis])
        pieces.append(piece)
        tables += table
    units = groups * len(pieces)
    return _Cut(samples, np.stack(pieces), shares, threads if shares else max(1, min(threads, units)), tuple(tables))


def _piece(
    shape: tuple[int, ...], size: tuple[int, ...], window: Window, plan: BandPlan, dtype: np.dtype, planes: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Ring sums at ``size`` places of an image, made of at most ``planes`` at once."""
    kernel = three(plan.kernel_size, 1)
    reach = [d * (k - 1) for d, k in zip(window.dilation, kernel, strict=True)]
    whole = [(n - 1) * s + r + 1 for n, s, r in zip(size, window.stride, reach, strict=True)]
    behind = [w - b - (n - 1) * s - 1 for w, b, n, s in zip(whole, window.before, shape[2:], window.steps, strict=True)]
    # zeros that two neighbours need
    shared = [min(around) for around in zip(window.before, behind, reach, strict=True)]
    margin = tuple(max(0, m) if s == 1 else 0 for m, s in zip(shared, window.stride, strict=True))
    rows, pitch = (-(-(whole[i] - margin[i]) // window.stride[i]) * window.stride[i] for i in (1, 2))
    together = max(1, min(planes, _TILE // (rows * pitch)))
    height = max(1, min((together - 1) * rows + size[1], _TILE // pitch))
    piece = np.zeros((), _kernels().PIECE)
    piece["before"], piece["steps"], piece["stride"] = window.before, window.steps, window.stride
    piece["padded"], piece["margin"], piece["size"] = (whole[0], rows, pitch), margin, size
    piece["together"], piece["height"] = together, height
    tables = _tables(plan, window, rows, pitch, together * rows * pitch, height * pitch + margin[2], dtype)
    for name, table in zip(_kernels().PIECE.names[-len(tables) :], tables, strict=True):
        piece[name] = table.ctypes.data, table.size
    return piece, tables


def _tables(
    plan: BandPlan, window: Window, rows: int, pitch: int, layer: int, length: int, dtype: np.dtype
) -> tuple[np.ndarray, ...]:
    """Where the kernel's rows lie in the padded planes, and its columns in their folded rows: each as starts, offsets
    and factors."""
    (_, sy, sx), (dz, dy, dx) = window.stride, window.dilation

    def place(i: int, stride: int, size: int) -> int:
        return i % stride * (size // stride) + i // stride

    def table(groups: list[list[tuple[int, float]]]) -> tuple[np.ndarray, ...]:
        starts = np.cumsum([0, *map(len, groups)])
        offsets, factors = zip(*(entry for group in groups for entry in group), strict=True)
        return starts, np.array(offsets), np.array(factors, dtype)

    fold = fold_plan(plan)
    return (
        *table([[(z * dz * layer + place(y * dy, sy, rows) * pitch, 1.0) for z, y in group] for group in fold.rows]),
        *table([[(k * length + place(x * dx, sx, pitch), f) for k, x, f in group] for group in fold.columns]),
    )


def multiply_sums(
    x: Tensor,
    size: Sequence[int],
    window: Window,
    plan: BandPlan,
    groups: int,
    *,
    mixing: Tensor | None = None,
    output: Tensor | None = None,
    other: Tensor | None = None,
    swapped: bool = False,
) -> Tensor:
    """Products with the ring sums S (C * bands, pixels) of ``x`` (N, C, *spatial) at ``size`` places, group by group.

    Args:
        mixing, output: ``output`` (N, groups * M, *size), contiguous, becomes ``mixing`` (groups, M, K) times S, where
            K is C * bands / groups.
        other: (N, groups * R, *size).
        swapped: which way round the second product is.

    Returns:
        The sum over samples of S times the transpose of ``other``, (groups, K, R); if ``swapped``, of ``other`` times
        the transpose of S, (groups, R, K). Without ``other`` R is 0.
    """
    kernels, dtype = _kernels(), _compiled(x.dtype)
    volume = x.detach().contiguous().view(*x.shape[:2], *three(x.shape[2:], 1))
    planes = x.shape[1] * plan.bands
    cut = _cut(tuple(volume.shape), three(size, 1), window, plan, np.dtype(dtype), kernels.team_size(), _BUFFER)
    copies, columns = 1 if cut.shares else cut.threads, cut.samples * max(map(prod, cut.pieces["size"]))
    mixed = 0 if mixing is None else mixing.shape[1]
    others = 0 if other is None else other.shape[1] // groups
    sums = x.new_empty(copies, planes * columns)
    total = x.new_zeros(copies, groups, *((others, planes // groups) if swapped else (planes // groups, others)))
    mixing, other = (None if t is None else t.detach().contiguous() for t in (mixing, other))
    call = {"bands": plan.bands, "samples": cut.samples, "threads": cut.threads, "sums": _array(sums[0])}
    if cut.shares:
        for n, i in product(range(0, len(volume), cut.samples), range(cut.pieces.size)):
            part, piece = volume[n : n + cut.samples], cut.pieces[i : i + 1]
            where = {"x": part.data_ptr(), "shape": part.shape, "pieces": (piece.ctypes.data, 1)}
            kernels.run(dtype, by_planes=True, **where, **call)
            first, pixels = int(piece["first_pixel"][0]), int(prod(piece["size"][0]))
            made = sums[0, : planes * len(part) * pixels].view(planes, -1)
            place = slice(n, n + len(part)), slice(first, first + pixels)
            if mixing is not None and output is not None:
                _mix(mixing, made, output, *place)
            if other is not None:
                pair = _columns(other, *place), made
                _add_product(total[0], *(pair if swapped else pair[::-1]))
        return total[0]
    scratch = x.new_empty(copies, groups * max(mixed, others) * columns * (cut.samples > 1))
    call |= {"x": volume.data_ptr(), "shape": volume.shape, "pieces": (cut.pieces.ctypes.data, cut.pieces.size)}
    call |= {"scratch": _array(scratch[0]), "pixels": prod(size), "groups": groups, "gemm": kernels.gemm(dtype)}
    if mixing is not None and output is not None:
        call |= {"mixing": mixing.data_ptr(), "output": output.data_ptr(), "mixed": mixed}
    if other is not None:
        call |= {"other": other.data_ptr(), "others": others, "total": total.data_ptr(), "swapped": swapped}
    kernels.run(dtype, **call)
    return total.sum(0) if copies > 1 else total[0]


def _array(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.numel()


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
