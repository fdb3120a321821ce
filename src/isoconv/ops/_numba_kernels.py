"""What Numba compiles for the CPU engine: ring sums of planes. Imported when first needed: Numba is slow to load."""
# mypy: disallow-untyped-defs=False, check-untyped-defs=False
# ruff: noqa: ARG001 - Numba's intrinsics have a fixed signature

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic

from isoconv.ops._kernel_cache import compiled

_jit = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})


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


# The work of a call is done by PyTorch's own OpenMP team: its threads spin for a while after every parallel region, and
# threads of our own would share the cores with them. Each takes pieces of its own from ring sums to products, for every
# meeting of the team waits for the slowest. C calls a function with one address, that of a `Call`.


def _numbers(*names):
    return ((name, ctypes.c_int64) for name in names)


_AXES = (np.int64, 3)
_ARRAY = (np.int64, 2)  # address and length

PIECE = np.dtype(
    [(name, *_AXES) for name in ("before", "steps", "stride", "padded", "margin", "size")]
    + [(name, np.int64) for name in ("together", "height", "first_pixel")]
    + [(name, *_ARRAY) for name in ("row_starts", "row_offsets", "row_factors")]
    + [(name, *_ARRAY) for name in ("column_starts", "column_offsets", "column_factors")]
)
"""Some lines of every output plane: how :func:`_ring_sums` makes them, and the first of their pixels."""


class Call(ctypes.Structure):
    """A call: ``samples`` images at a time, piece by piece, are summed into ``sums`` (C * bands, samples * pixels),
    which every thread has of its own, as well as ``scratch``. If ``mixing`` (groups, mixed, C * bands / groups) is
    given, ``output`` becomes its product with the sums; if ``other`` (N, groups * others, pixels) is, the thread's
    ``total`` grows by the product of the sums with it, or if ``swapped``, the reverse. With ``by_planes`` the threads
    share the planes of every piece instead, and multiply nothing."""

    _fields_ = (
        *_numbers("threads", "by_planes", "thread_number", "thread_count", "gemm", "x"),
        ("shape", ctypes.c_int64 * 5),
        *_numbers("bands", "samples"),
        ("pieces", ctypes.c_int64 * 2),
        ("sums", ctypes.c_int64 * 2),
        ("scratch", ctypes.c_int64 * 2),
        *_numbers("pixels", "groups", "mixing", "output", "mixed", "other", "total", "others", "swapped"),
    )


_CALL = np.dtype(Call)


@cache
def _library(pattern, *others):
    """A library that PyTorch has loaded."""
    if hasattr(os, "RTLD_NOLOAD"):
        for name in (*Path(torch.__file__).parent.glob(f"lib/{pattern}"), *others):
            with suppress(OSError):
                return ctypes.CDLL(str(name), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    return None


def _address(library, name):
    function = getattr(library, name, None)
    return ctypes.cast(function, ctypes.c_void_p).value if function else 0


@cache
def _openmp():
    """PyTorch's OpenMP, if it can be called: what starts the team, number and count of its threads."""
    for names in (("libgomp*",), ("", "libgomp.so.1"), ("", "libomp.so"), ("", "libiomp5.so")):
        library = _library(*names)
        if _address(library, "GOMP_parallel"):
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            return (
                library.GOMP_parallel,
                _address(library, "omp_get_thread_num"),
                _address(library, "omp_get_num_threads"),
            )
    return None


@cache
def gemm(dtype):
    """Address of the matrix product of the BLAS in PyTorch, 0 if it is not MKL: that one knows that it is called by a
    thread of a team, and then uses no others."""
    name = {"float32": "sgemm_", "float64": "dgemm_"}[np.dtype(dtype).name]
    return _address(_library("libtorch_cpu*"), name) if torch.backends.mkl.is_available() else 0


@intrinsic
def _call(context, address):
    def generate(context, builder, signature, arguments):
        kind = ir.PointerType(ir.FunctionType(ir.IntType(32), ()))
        return builder.call(builder.inttoptr(arguments[0], kind), ())

    return types.int32(types.int64), generate


@intrinsic
def _call_gemm(context, address, arguments):
    def generate(context, builder, signature, values):
        pointers = [builder.inttoptr(a, cgutils.voidptr_t) for a in cgutils.unpack_tuple(builder, values[1])]
        kind = ir.PointerType(ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] * 13))
        builder.call(builder.inttoptr(values[0], kind), pointers)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, 13)), generate


@intrinsic
def _pointer(context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@_jit
def _product(function, add, transposed, a, b, c, m, n, k, lda, ldb, ldc, one):
    """``c`` (n, m) = ``b`` (n, k) times ``a`` (k, m), or times the transpose of ``a`` (m, k); or ``c`` grows by it.

    They are addresses; rows lie ``lda``, ``ldb`` and ``ldc`` apart. BLAS counts columns first, hence the order."""
    flags, numbers = np.array([78 + 6 * transposed, 78]), np.array([m, n, k, lda, ldb, ldc])  # N or T; N
    scales = np.array([one, one if add else one - one])
    f, i, s = flags.ctypes.data, numbers.ctypes.data, scales.ctypes.data
    _call_gemm(function, (f, f + 8, i, i + 8, i + 16, s, a, i + 24, b, i + 32, s + scales.itemsize, c, i + 40))


@_jit
def _three(values):
    return values[0], values[1], values[2]


@_jit
def _integers(array):
    return carray(_pointer(array[0]), (array[1],), np.int64)


@_jit
def _lie_in(images, address, pixels, inwards):
    """Copy rows of some images (rows, images, columns) from, or ``inwards`` to, where rows lie ``pixels`` apart, image
    after image."""
    rows, count, columns = images.shape
    memory = carray(_pointer(address), (count * rows * pixels,), images.dtype)
    for r in range(rows):
        for n in range(count):
            there = memory[(n * rows + r) * pixels :]
            for i in range(columns):
                if inwards:
                    there[i] = images[r, n, i]
                else:
                    images[r, n, i] = there[i]


@cache
def entry(dtype):
    """The share of one thread in a call, as C code, and whether that was on disk."""

    def share(address):
        call = carray(address, (1,), _CALL)[0]
        shape, groups, pixels = call.shape, call.groups, call.pixels
        x = carray(_pointer(call.x), (shape[0], shape[1], shape[2], shape[3], shape[4]), dtype)
        pieces = carray(_pointer(call.pieces[0]), (call.pieces[1],), PIECE)
        thread, threads = 0, 1
        if call.threads > 1:  # the team may be smaller than was asked for
            thread, threads = _call(call.thread_number), _call(call.thread_count)
        units = -(-shape[0] // call.samples) * pieces.size
        first, last, own = units * thread // threads, units * (thread + 1) // threads, thread
        if call.by_planes:
            first, last, own = 0, units, 0
        sums = carray(_pointer(call.sums[0]), (own + 1, call.sums[1]), dtype)[own]
        scratch = carray(_pointer(call.scratch[0]), (own + 1, call.scratch[1]), dtype)[own]
        one = np.ones(1, dtype)[0]
        size, height = sums.itemsize, shape[1] * call.bands // groups
        for unit in range(first, last):
            n, piece = unit // pieces.size * call.samples, pieces[unit % pieces.size]
            count, one_image = min(call.samples, shape[0] - n), piece.size[0] * piece.size[1] * piece.size[2]
            columns = count * one_image
            low, high = 0, count * shape[1]
            if call.by_planes:
                low, high = high * thread // threads, high * (thread + 1) // threads
            strides = one_image, call.bands * columns, columns
            layout = (
                *(_three(piece.before), _three(piece.steps), _three(piece.stride), _three(piece.padded)),
                *(_three(piece.margin), _three(piece.size), strides, piece.together, piece.height),
            )
            factors = carray(_pointer(piece.row_factors[0]), (piece.row_factors[1],), dtype)
            rows = _integers(piece.row_starts), _integers(piece.row_offsets), factors
            factors = carray(_pointer(piece.column_factors[0]), (piece.column_factors[1],), dtype)
            cols = _integers(piece.column_starts), _integers(piece.column_offsets), factors
            _ring_sums(low, high, x[n : n + count], sums, layout, rows, cols)
            if call.mixing:
                mixed = call.mixed
                images = carray(_pointer(scratch.ctypes.data), (groups * mixed, count, one_image), dtype)
                place = call.output + (n * groups * mixed * pixels + piece.first_pixel) * size
                to, apart = (place, pixels) if count == 1 else (images.ctypes.data, columns)
                for g in range(groups):
                    a, b = sums.ctypes.data + g * height * columns * size, call.mixing + g * mixed * height * size
                    c = to + g * mixed * apart * size
                    _product(call.gemm, 0, 0, a, b, c, columns, mixed, height, columns, height, apart, one)
                if count > 1:
                    _lie_in(images, place, pixels, True)
            if call.other:
                others = call.others
                images = carray(_pointer(scratch.ctypes.data), (groups * others, count, one_image), dtype)
                place = call.other + (n * groups * others * pixels + piece.first_pixel) * size
                to, apart = (place, pixels) if count == 1 else (images.ctypes.data, columns)
                if count > 1:
                    _lie_in(images, place, pixels, False)
                for g in range(groups):
                    a, b = sums.ctypes.data + g * height * columns * size, to + g * others * apart * size
                    c = call.total + (thread * groups + g) * height * others * size
                    if call.swapped:
                        _product(call.gemm, 1, 1, a, b, c, height, others, columns, columns, apart, height, one)
                    else:
                        _product(call.gemm, 1, 1, b, a, c, others, height, columns, apart, columns, others, one)

    return compiled(share, types.void(types.voidptr), error_model="numpy")


def team_size():
    """Number of threads that work together: PyTorch's, if its OpenMP can be called."""
    return 1 if _openmp() is None else torch.get_num_threads()


def run(dtype, **fields):
    """Do a `Call`."""
    parallel, number, count = _openmp() or (None, 0, 0)
    code, _ = entry(dtype)
    call = Call(thread_number=number, thread_count=count, **fields)
    if call.threads > 1:
        parallel(code.address, ctypes.byref(call), call.threads, 0)
    else:
        code.ctypes(ctypes.addressof(call))
