"""Triton kernels of the CUDA engine. Imported when a convolution first runs on it, for triton is not everywhere.

The input comes padded and with its channels last, so the taps of a kernel are plain offsets from the first one and need
neither masks nor axes: stride, dilation and the number of axes have no part in the inner loops, and a load is coalesced
over the channels whatever the shift of its tap. Tensors of any strides, other than it, are tiled (channels, pixels): of
axes that are not known to be contiguous the compiler takes the last for the one to coalesce.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import inspect
from typing import Any

import triton
import triton.language as tl

# arguments of which the compiler need not know more than that they are numbers: fewer kernels to compile
_COUNTS = ["pixels", "chunk", "share", "bucket", "taps", "groups", "bands", "depth", "height", "width"]


@triton.jit
def _place(p, depth, height, width, sn, sz, sy, sx):
    """Offset of pixel number ``p`` of a (N, depth, height, width) grid in memory of these strides."""
    x = p % width
    y = p // width % height
    z = p // (width * height) % depth
    n = p // (width * height * depth)
    return n.to(tl.int64) * sn + z.to(tl.int64) * sz + y * sy + x * sx


@triton.jit(do_not_specialize=_COUNTS)
def pad_kernel(
    input,
    output,
    pixels,
    channels,
    padded_depth,
    padded_height,
    padded_width,
    depth,
    height,
    width,
    before_z,
    before_y,
    before_x,
    step_z,
    step_y,
    step_x,
    sn,
    sc,
    sz,
    sy,
    sx,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """(N, C, D, H, W) of any strides to a padded, contiguous (N, D', H', W', C), ``step - 1`` zeros between pixels."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x = p % padded_width - before_x
    y = p // padded_width % padded_height - before_y
    z = p // (padded_width * padded_height) % padded_depth - before_z
    n = p // (padded_width * padded_height * padded_depth)
    inside = (x >= 0) & (x < width * step_x) & (x % step_x == 0) & (y >= 0) & (y < height * step_y) & (y % step_y == 0)
    inside = inside & (z >= 0) & (z < depth * step_z) & (z % step_z == 0) & (p < pixels)
    place = n.to(tl.int64) * sn + (z // step_z).to(tl.int64) * sz + (y // step_y) * sy + (x // step_x) * sx
    known = c[:, None] < channels
    values = tl.load(input + place[None, :] + c[:, None].to(tl.int64) * sc, mask=inside[None, :] & known, other=0.0)
    target = p[None, :].to(tl.int64) * channels + c[:, None]
    tl.store(output + target, values, mask=(p < pixels)[None, :] & known)


@triton.jit
def _taken(pointers, mask, WHOLE: tl.constexpr):
    return tl.load(pointers) if WHOLE else tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _ring_sums(
    pointers,
    mask,
    offsets,
    coefficients,
    pitch,
    first,
    last,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HARD: tl.constexpr,
    WHOLE: tl.constexpr,
    PAIR: tl.constexpr,
):
    """Sum over the taps ``first`` to ``last`` of what lies at their offsets, in pixels ``pitch`` apart, from
    ``pointers``; in float32, pairs of taps in ``PAIR``."""
    sums = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for tap in tl.range(first, last - 1, 2, loop_unroll_factor=2):
        one = _taken(pointers + tl.load(offsets + tap) * pitch, mask, WHOLE)
        two = _taken(pointers + tl.load(offsets + tap + 1) * pitch, mask, WHOLE)
        if HARD:
            sums += (one.to(PAIR) + two.to(PAIR)).to(tl.float32)
        else:
            sums += one.to(tl.float32) * tl.load(coefficients + tap)
            sums += two.to(tl.float32) * tl.load(coefficients + tap + 1)
    if (last - first) % 2 == 1:
        one = _taken(pointers + tl.load(offsets + last - 1) * pitch, mask, WHOLE).to(tl.float32)
        sums += one if HARD else one * tl.load(coefficients + last - 1)
    return sums


@triton.heuristics({"WHOLE": lambda arguments: arguments["inputs"] % arguments["BC"] == 0})
@triton.jit(do_not_specialize=_COUNTS)
def convolve_kernel(
    input,
    mixing,
    offsets,
    coefficients,
    starts,
    output,
    pixels,
    share,
    part_stride,
    bucket,  # noqa: ARG001 - key of the autotuner
    taps,  # noqa: ARG001 - key of the autotuner
    groups,
    bands,
    inputs,
    outputs,
    depth,
    height,
    width,
    sn,
    sz,
    sy,
    sx,
    on,
    oc,
    oz,
    oy,
    ox,
    HARD: tl.constexpr,
    WHOLE: tl.constexpr,
    PAIR: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    BO: tl.constexpr,
):
    """``output[part, p, o] = sum over bands and the part's channels of ringsums(input)[p, b, c] * mixing[g, b, c, o]``,
    a part being ``share`` blocks of channels."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    group = tl.program_id(1) % groups
    o = tl.program_id(1) // groups * BO + tl.arange(0, BO)
    lanes = tl.arange(0, BC)
    # pixels beyond the last are computed again and not stored: loads need no mask
    place = _place(tl.minimum(p, pixels - 1), depth, height, width, sn, sz, sy, sx)
    pointers = input + place[:, None] + (group * inputs + lanes)[None, :]
    pitch = groups * inputs
    total = tl.full((BP, BO), 0.0, tl.float32)
    part = tl.program_id(2)
    for block in range(part * share, tl.minimum((part + 1) * share, (inputs + BC - 1) // BC)):
        c = block * BC + lanes
        known = c < inputs
        for band in range(0, bands):
            rows = (group * bands + band) * inputs + c
            mix = tl.load(
                mixing + rows[:, None] * outputs + o[None, :], mask=known[:, None] & (o < outputs)[None, :], other=0.0
            )
            first, last = tl.load(starts + band), tl.load(starts + band + 1)
            sums = _ring_sums(
                pointers + block * BC,
                known[None, :],
                offsets,
                coefficients,
                pitch,
                first,
                last,
                BP,
                BC,
                HARD,
                WHOLE,
                PAIR,
            )
            total = tl.dot(sums.to(OPERAND), mix.to(OPERAND), total, input_precision=PRECISION)
    output += part.to(tl.int64) * part_stride
    target = _place(p, depth, height, width, on, oz, oy, ox)[None, :] + (group * outputs + o)[:, None].to(tl.int64) * oc
    mask = (p < pixels)[None, :] & (o < outputs)[:, None]
    tl.store(output + target, tl.trans(total).to(output.dtype.element_ty), mask=mask)


@triton.heuristics({"WHOLE": lambda arguments: arguments["inputs"] % arguments["BC"] == 0})
@triton.jit(do_not_specialize=_COUNTS)
def weight_gradient_kernel(
    input,
    grad,
    offsets,
    coefficients,
    starts,
    output,
    pixels,
    chunk,
    bucket,  # noqa: ARG001 - key of the autotuner
    taps,  # noqa: ARG001 - key of the autotuner
    groups,
    bands,
    inputs,
    outputs,
    depth,
    height,
    width,
    sn,
    sz,
    sy,
    sx,
    gn,
    gc,
    gz,
    gy,
    gx,
    HARD: tl.constexpr,
    WHOLE: tl.constexpr,
    PAIR: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BO: tl.constexpr,
    BC: tl.constexpr,
):
    """``output[part, g, b, o, c] = sum over the part's pixels of grad[p, o] * ringsums(input)[p, b, c]``."""
    blocks = (inputs + BC - 1) // BC
    c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    o = tl.program_id(0) // blocks * BO + tl.arange(0, BO)
    group = tl.program_id(1) % groups
    band = bands - 1 - tl.program_id(1) // groups  # the widest rings, which take longest, start first
    part = tl.program_id(2)
    first, last = tl.load(starts + band), tl.load(starts + band + 1)
    known = c < inputs
    channels = group * inputs + c
    filters = (group * outputs + o).to(tl.int64) * gc
    pitch = groups * inputs
    total = tl.full((BO, BC), 0.0, tl.float32)
    end = tl.minimum((part + 1) * chunk, pixels)
    for p0 in range(part * chunk, end, BP):
        p = p0 + tl.arange(0, BP)
        place = _place(tl.minimum(p, pixels - 1), depth, height, width, sn, sz, sy, sx)
        pointers = input + place[:, None] + channels[None, :]
        sums = _ring_sums(
            pointers, known[None, :], offsets, coefficients, pitch, first, last, BP, BC, HARD, WHOLE, PAIR
        )
        sums = tl.where((p < end)[:, None], sums, 0.0)
        source = _place(p, depth, height, width, gn, gz, gy, gx)
        mask = (p < end)[None, :] & (o < outputs)[:, None]
        slope = tl.load(grad + source[None, :] + filters[:, None], mask=mask, other=0.0)
        total = tl.dot(slope.to(OPERAND), sums.to(OPERAND), total, input_precision=PRECISION)
    row = ((part * groups + group) * bands + band) * outputs + o
    tl.store(
        output + row[:, None].to(tl.int64) * inputs + c[None, :],
        total,
        mask=(o < outputs)[:, None] & known[None, :],
    )


COMPILED = isinstance(pad_kernel, triton.runtime.JITFunction)


def _fitting(configs: list[Any], arguments: dict[str, Any], **_: Any) -> list[Any]:
    """Tiles no wider than the channels need; the order of summation is not tuned, so results do not depend on it."""
    most = {"BO": arguments["outputs"], "BC": arguments["inputs"], "BP": arguments["pixels"]}
    most = {name: max(16, triton.next_power_of_2(size)) for name, size in most.items()}
    return [c for c in configs if all(size <= most[name] for name, size in c.kwargs.items())]


def _briefly(call: Any, quantiles: Any) -> Any:
    return triton.testing.do_bench(call, warmup=5, rep=30, quantiles=quantiles)


def _tuned(kernel: Any, names: tuple[str, str], tiles: list[tuple[int, int, int]]) -> Any:
    configs = [triton.Config(dict(zip(names, sizes, strict=True)), num_warps=warps) for *sizes, warps in tiles]
    # older releases of triton keep the choices of the process only
    on_disk = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    key = ["bucket", "taps", "groups", "inputs", "outputs", "PRECISION"]
    pruned = {"early_config_prune": _fitting}
    return triton.autotune(configs, key, prune_configs_by=pruned, do_bench=_briefly, **on_disk)(kernel)


tuned_convolve_kernel = _tuned(
    convolve_kernel,
    ("BP", "BO"),
    [
        (16, 16, 1),
        (32, 32, 2),
        (32, 64, 4),
        (64, 64, 4),
        (128, 64, 4),
        (128, 64, 8),
        (64, 128, 4),
        (64, 128, 8),
        (128, 128, 8),
        (64, 256, 8),
    ],
)
tuned_weight_gradient_kernel = _tuned(
    weight_gradient_kernel,
    ("BO", "BC"),
    [(16, 16, 1), (32, 16, 2), (32, 32, 4), (64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 64, 8)],
)
