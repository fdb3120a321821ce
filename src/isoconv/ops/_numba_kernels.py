"""What Numba compiles for the CPU engine: ring sums of planes. Imported when first needed: Numba is slow to load."""
# mypy: disallow-untyped-defs=False, check-untyped-defs=False
# ruff: noqa: ARG001 - Numba's intrinsics have a fixed signature

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic


def _cached(decorator):
    """``decorator`` with compiled code kept on disk, unless no folder can be written to."""

    def decorate(function):
        try:
            return decorator(cache=True)(function)
        except RuntimeError:
            return decorator(cache=False)(function)

    return decorate


_jit = _cached(partial(numba.njit, nogil=True, error_model="numpy", fastmath={"contract"}))


@_jit
def _add_1(total, fresh, source, offsets, factors, j):
    a, fa = source[offsets[j] :], factors[j]
    if fresh:
        for i in range(total.size):
            total[i] = fa * a[i]
    else:
        for i in range(total.size):
            total[i] += fa * a[i]


@_jit
def _add_2(total, fresh, source, offsets, factors, j):
    a, b = source[offsets[j] :], source[offsets[j + 1] :]
    fa, fb = factors[j], factors[j + 1]
    if fresh:
        for i in range(total.size):
            total[i] = fa * a[i] + fb * b[i]
    else:
        for i in range(total.size):
            total[i] += fa * a[i] + fb * b[i]


@_jit
def _add_4(total, fresh, source, offsets, factors, j):
    a, b = source[offsets[j] :], source[offsets[j + 1] :]
    c, d = source[offsets[j + 2] :], source[offsets[j + 3] :]
    fa, fb, fc, fd = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
    if fresh:
        for i in range(total.size):
            total[i] = (fa * a[i] + fb * b[i]) + (fc * c[i] + fd * d[i])
    else:
        for i in range(total.size):
            total[i] += (fa * a[i] + fb * b[i]) + (fc * c[i] + fd * d[i])


@_jit
def _add_8(total, fresh, source, offsets, factors, j):
    a, b = source[offsets[j] :], source[offsets[j + 1] :]
    c, d = source[offsets[j + 2] :], source[offsets[j + 3] :]
    e, f = source[offsets[j + 4] :], source[offsets[j + 5] :]
    g, h = source[offsets[j + 6] :], source[offsets[j + 7] :]
    fa, fb, fc, fd = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
    fe, ff, fg, fh = factors[j + 4], factors[j + 5], factors[j + 6], factors[j + 7]
    if fresh:
        for i in range(total.size):
            low = (fa * a[i] + fb * b[i]) + (fc * c[i] + fd * d[i])
            total[i] = low + ((fe * e[i] + ff * f[i]) + (fg * g[i] + fh * h[i]))
    else:
        for i in range(total.size):
            low = (fa * a[i] + fb * b[i]) + (fc * c[i] + fd * d[i])
            total[i] += low + ((fe * e[i] + ff * f[i]) + (fg * g[i] + fh * h[i]))


@_jit
def _combine(total, source, offsets, factors, first, last):
    """``total`` = sum over j of ``factors[j]`` * ``source`` from ``offsets[j]`` on; eight at a time, for the total then
    stays in registers."""
    j = first
    while last - j >= 8:
        _add_8(total, j == first, source, offsets, factors, j)
        j += 8
    if last - j >= 4:
        _add_4(total, j == first, source, offsets, factors, j)
        j += 4
    if last - j >= 2:
        _add_2(total, j == first, source, offsets, factors, j)
        j += 2
    if last > j:
        _add_1(total, j == first, source, offsets, factors, j)


@_jit
def _ring_sums(first, last, x, sums, layout, rows, columns):
    """Ring sums of the planes ``first`` to ``last`` of ``x`` (N, C, D, H, W) into ``sums`` (flat).

    A few planes at a time are padded, one beside the other. Several rows of the output are then one vector of the pitch
    of the padded planes, so that rows, however short, cost no loop of their own. The zeros behind a row, as far as they
    are within ``margin``, are those before the next one. With a stride, padded rows and columns
    are sorted by their remainder, so that neighbours in the output are neighbours there."""
    C, D, H, W = x.shape[1:]
    before, steps, stride, padded_size, margin, size, strides, together, height = layout
    row_starts, row_offsets, row_factors = rows
    column_starts, column_offsets, column_factors = columns
    Dp, tall, pitch = padded_size
    Do, Ho, Wo = size
    Hq, Wq = tall // stride[1], pitch // stride[2]
    layer = together * tall * pitch
    classes, bands = row_starts.size - 1, column_starts.size - 1
    length = height * pitch + margin[2]
    padded = np.zeros(Dp * layer + margin[1] * pitch + margin[2], x.dtype)
    folded = np.empty(classes * length, x.dtype)
    ring = np.empty(length, x.dtype)
    x_first = max(0, (steps[2] - 1 - before[2]) // steps[2])
    x_last = min(W, (pitch - 1 - before[2]) // steps[2] + 1)
    simple = steps[2] == 1 and stride[1] == stride[2] == 1
    for start in range(first, last, together):
        count = min(together, last - start)
        for p in range(count):
            plane = x[(start + p) // C, (start + p) % C]
            for z in range(D):
                zp = z * steps[0] + before[0]
                if zp < 0 or zp >= Dp:
                    continue
                for y in range(H):
                    yp = y * steps[1] + before[1]
                    if yp < 0 or yp >= tall:
                        continue
                    row = p * tall + (yp if simple else (yp % stride[1]) * Hq + yp // stride[1])
                    target = padded[zp * layer + row * pitch :]
                    source = plane[z, y]
                    if simple:
                        shifted, cut = target[x_first + before[2] :], source[x_first:]
                        for i in range(x_last - x_first):
                            shifted[i] = cut[i]
                    else:
                        for i in range(x_first, x_last):
                            xp = i * steps[2] + before[2]
                            target[(xp % stride[2]) * Wq + xp // stride[2]] = source[i]
        bottom = (count - 1) * tall + Ho
        for z in range(Do):
            for top in range(0, bottom, height):
                lines = min(height, bottom - top)
                part = padded[z * stride[0] * layer + top * pitch :]
                for k in range(classes):
                    total = folded[k * length : k * length + lines * pitch + margin[2]]
                    _combine(total, part, row_offsets, row_factors, row_starts[k], row_starts[k + 1])
                for b in range(bands):
                    total = ring[: (lines - 1) * pitch + Wo]
                    _combine(total, folded, column_offsets, column_factors, column_starts[b], column_starts[b + 1])
                    p, y, line = top // tall, top % tall, 0
                    while line < lines:  # plane by plane, for divisions are slow
                        n, c = (start + p) // C, (start + p) % C
                        place = n * strides[0] + c * strides[1] + b * strides[2] + (z * Ho + y) * Wo
                        inside = min(tall - y, lines - line)
                        for r in range(min(inside, Ho - y)):
                            target, source = sums[place + r * Wo :], ring[(line + r) * pitch :]
                            for i in range(Wo):
                                target[i] = source[i]
                        p, y, line = p + 1, 0, line + inside


# With several threads it is those of PyTorch's own OpenMP team that do the work: they spin for a while after every
# matrix product, and threads of our own would share the cores with them. C calls a function with one address, that of a
# job: an array of integers, with addresses in place of arrays.


@cache
def _openmp():
    """The OpenMP library that PyTorch has loaded, if it can be called."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    for name in (*Path(torch.__file__).parent.glob("lib/libgomp*"), "libgomp.so.1", "libomp.so", "libiomp5.so"):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(name), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            number, count = library.omp_get_thread_num, library.omp_get_num_threads
            return library.GOMP_parallel, *(ctypes.cast(f, ctypes.c_void_p).value for f in (number, count))
    return None


@intrinsic
def _call(context, address):
    def generate(context, builder, signature, arguments):
        kind = ir.PointerType(ir.FunctionType(ir.IntType(32), ()))
        return builder.call(builder.inttoptr(arguments[0], kind), ())

    return types.int32(types.int64), generate


@intrinsic
def _pointer(context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@_jit
def _integers(job, i):
    return carray(_pointer(job[i + 7]), (job[i + 14],), np.int64)


@_jit
def _three(job, i):
    return job[i + 21], job[i + 22], job[i + 23]


@cache
def _entry(dtype):
    """The share of one thread in a job, as C code."""

    @_cached(partial(numba.cfunc, types.void(types.CPointer(types.int64)), error_model="numpy"))
    def entry(address):
        job = carray(address, (46,))
        x = carray(_pointer(job[1]), (job[2], job[3], job[4], job[5], job[6]), dtype)
        sums = carray(_pointer(job[7]), (job[14],), dtype)
        rows = _integers(job, 1), _integers(job, 2), carray(_pointer(job[10]), (job[17],), dtype)
        columns = _integers(job, 4), _integers(job, 5), carray(_pointer(job[13]), (job[20],), dtype)
        before, steps, stride = _three(job, 0), _three(job, 3), _three(job, 6)
        padded, margin, size, strides = _three(job, 9), _three(job, 12), _three(job, 15), _three(job, 18)
        layout = before, steps, stride, padded, margin, size, strides, job[42], job[43]
        planes, thread, threads = job[2] * job[3], 0, 1
        if job[0] > 1:  # the team may be smaller than was asked for
            thread, threads = _call(job[44]), _call(job[45])
        _ring_sums(planes * thread // threads, planes * (thread + 1) // threads, x, sums, layout, rows, columns)

    return entry


def ring_sums(x, sums, layout, rows, columns, threads):
    """See :func:`_ring_sums`. On one thread where PyTorch's OpenMP cannot be called."""
    parallel, *functions = _openmp() or (None, 0, 0)
    arrays = (sums, *rows, *columns)
    addresses, sizes = [array.ctypes.data for array in arrays], [array.size for array in arrays]
    integers = [n for entry in layout for n in (entry if isinstance(entry, tuple) else (entry,))]
    threads = 1 if parallel is None else threads
    job = np.array([threads, x.ctypes.data, *x.shape, *addresses, *sizes, *integers, *functions])
    entry = _entry(x.dtype.type)
    if threads > 1:
        parallel(entry.address, job.ctypes.data, threads, 0)
    else:
        entry.ctypes(job.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
