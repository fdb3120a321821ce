"""What one isotropic convolution does, checked and in normal form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from isoconv._checks import check_counts, did_you_mean, ntuple
from isoconv.bands import BandPlan

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class ConvSpec:
    """Geometry and hyperparameters of one convolution. Made by :func:`conv_spec`.

    ``padding`` is a (before, after) pair for every spatial axis.
    """

    plan: BandPlan
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def for_output(self, input_size: Sequence[int], output_size: Sequence[int]) -> ConvSpec:
        """The same transposed convolution with the output padding that leads from ``input_size`` to ``output_size``."""
        n = self.plan.dims
        if len(output_size) < n:
            raise ValueError(f"output_size must have one number per axis, {n}, got {tuple(output_size)}")
        target = tuple(output_size)[-n:]
        base = [
            (size - 1) * s - before - after + d * (k - 1) + 1
            for size, s, (before, after), d, k in zip(
                input_size, self.stride, self.padding, self.dilation, self.plan.kernel_size, strict=True
            )
        ]
        extra = tuple(t - b for t, b in zip(target, base, strict=True))
        if any(not 0 <= e < s for e, s in zip(extra, self.stride, strict=True)):
            most = [b + s - 1 for b, s in zip(base, self.stride, strict=True)]
            raise ValueError(
                f"output_size must lie between {tuple(base)} and {tuple(most)} for an input of spatial size "
                f"{tuple(input_size)}, got {target}"
            )
        return replace(self, output_padding=extra)

    def pad(self, input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """``input`` with the padding applied that a convolution cannot do itself, and the rest, per axis, for it to
        do."""
        if self.padding_mode == "zeros" and all(before == after for before, after in self.padding):
            return input, tuple(before for before, _ in self.padding)
        return self._padded(input), (0,) * self.plan.dims

    def for_operator(self, input: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """``input`` with padding other than zeros applied, and the rest in what operators can take, numbers and lists:
        padding before and after every axis, stride, dilation, groups, and the key of the plan."""
        widths = flat(self.padding)
        if self.padding_mode != "zeros":
            input, widths = self._padded(input), [0] * len(widths)
        return input, (widths, list(self.stride), list(self.dilation), self.groups, self.plan.key)

    def output_size(self, size: Sequence[int]) -> list[int]:
        """Spatial size of the output (unless transposed) for an input of spatial ``size``; below 1 if the kernel does
        not fit."""
        return output_size(size, flat(self.padding), self.stride, self.dilation, self.plan.kernel_size)

    def _padded(self, input: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, flat(self.padding[::-1]), mode=mode)


def flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [width for pair in pairs for width in pair]


def output_size(
    size: Sequence[int], padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
) -> list[int]:
    """Spatial size of a convolution's output, with ``padding`` before and after every axis."""
    return [
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, before, after, s, d, k in zip(size, padding[::2], padding[1::2], stride, dilation, kernel, strict=True)
    ]


def conv_spec(
    plan: BandPlan,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    transposed: bool = False,
    output_padding: Any = 0,
) -> ConvSpec:
    """Check the arguments of a convolution as ``torch.nn.ConvNd`` takes them and bring them into normal form.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    n = plan.dims
    strides = ntuple(stride, n, "stride")
    dilations = ntuple(dilation, n, "dilation")
    extra = ntuple(output_padding, n, "output_padding")
    for name, values, least in (("stride", strides, 1), ("dilation", dilations, 1), ("output_padding", extra, 0)):
        if min(values) < least:
            raise ValueError(f"{name} must be at least {least} along every axis, got {values}")
    check_counts(groups=groups)
    if padding_mode not in PADDING_MODES:
        raise ValueError(
            f"unknown padding_mode {padding_mode!r}: expected one of "
            f"{', '.join(PADDING_MODES)}{did_you_mean(padding_mode, PADDING_MODES)}"
        )
    if transposed and padding_mode != "zeros":
        raise ValueError(f"a transposed convolution supports padding_mode='zeros' only, got {padding_mode!r}")
    if not transposed and any(extra):
        raise ValueError(f"output_padding is an argument of transposed convolutions only, got {extra}")
    if transposed and any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"output_padding must be smaller than stride or dilation along every axis, got {extra} with stride "
            f"{strides} and dilation {dilations}"
        )
    return ConvSpec(
        plan,
        strides,
        _pairs(plan, strides, padding, dilations, transposed),
        dilations,
        int(groups),
        padding_mode,
        transposed,
        extra,
    )


def _pairs(
    plan: BandPlan, stride: tuple[int, ...], padding: Any, dilation: tuple[int, ...], transposed: bool
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding not in ("same", "valid") or transposed:
            raise ValueError(
                f"padding must be {'numbers' if transposed else 'numbers, ' + repr('same') + ' or ' + repr('valid')}, "
                f"got {padding!r}"
            )
        if padding == "same" and max(stride) > 1:
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(plan.kernel_size, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    widths = ntuple(padding, plan.dims, "padding")
    if min(widths) < 0:
        raise ValueError(f"padding must not be negative, got {widths}")
    return tuple((p, p) for p in widths)
