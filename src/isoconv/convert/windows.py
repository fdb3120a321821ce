"""Layers with a sliding window, by their kinds, and what a layer does to the symmetry, in words."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from torch import nn

from isoconv import nn as iso
from isoconv._checks import ntuple
from isoconv.ops import ConvSpec

ISOTROPIC, EQUIVARIANT, CONVERTIBLE, UNAFFECTED = "isotropic", "equivariant", "convertible", "unaffected"
DEPENDS, LEFT, BREAKS, UNKNOWN = "depends", "left", "breaks symmetry", "unknown"

Module: TypeAlias = Any  # an nn.Module whose attributes are known from its type
Kinds: TypeAlias = dict[type[nn.Module], Any]

CONVS: Kinds = {nn.Conv1d: iso.SREConv1d, nn.Conv2d: iso.SREConv2d, nn.Conv3d: iso.SREConv3d}
TRANSPOSED: Kinds = {
    nn.ConvTranspose1d: iso.SREConvTranspose1d,
    nn.ConvTranspose2d: iso.SREConvTranspose2d,
    nn.ConvTranspose3d: iso.SREConvTranspose3d,
}
MAX_POOLS: Kinds = {
    nn.MaxPool1d: iso.SymmetricMaxPool1d,
    nn.MaxPool2d: iso.SymmetricMaxPool2d,
    nn.MaxPool3d: iso.SymmetricMaxPool3d,
}
AVG_POOLS: Kinds = {
    nn.AvgPool1d: iso.SymmetricAvgPool1d,
    nn.AvgPool2d: iso.SymmetricAvgPool2d,
    nn.AvgPool3d: iso.SymmetricAvgPool3d,
}
SYMMETRIC: Kinds = {**CONVS, **TRANSPOSED, **MAX_POOLS, **AVG_POOLS}  # the counterpart of each layer of torch.nn
BANDED = (*CONVS.values(), *TRANSPOSED.values())
DIMS = {layer: counterpart.dims for layer, counterpart in SYMMETRIC.items()} | {conv: conv.dims for conv in BANDED}


class Verdict(NamedTuple):
    """The status of a layer, the reason for it, and what can be done."""

    status: str
    reason: str = ""
    remedy: str = ""


class Window(NamedTuple):
    """The sliding window of a layer, one entry per axis; padding is a (before, after) pair."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def pointwise(self) -> bool:
        return max(self.kernel_size) == 1

    @property
    def strided(self) -> bool:
        return max(self.stride) > 1

    def spares(self, dims: int) -> bool:
        """Whether the window has one axis more than ``dims``, leaves that alone, and treats all others alike."""
        idle = [k == s == 1 and not any(p) for k, s, p in zip(self.kernel_size, self.stride, self.padding, strict=True)]
        others: list[Any] = [tuple(v for v, i in zip(values, idle, strict=True) if not i) for values in self]
        return len(idle) == dims + 1 and sum(idle) == 1 and Window(*others).flaw() is None

    def grid(self, mode: str) -> iso.CentreGrid:
        """What centres this window at every size."""
        return iso.CentreGrid(
            self.kernel_size, self.stride, [before for before, _ in self.padding], self.dilation, mode
        )

    def flaw(self) -> Verdict | None:
        """Why the window is not symmetric, however it is centred."""
        if any(before != after for before, after in self.padding):
            return Verdict(BREAKS, "padding='same' of an even window pads one side more", "use an odd kernel size")
        return uneven(**self._asdict())


def has_spec(module: nn.Module) -> bool:
    return isinstance(getattr(module, "spec", None), ConvSpec)


def window(module: Module) -> Window:
    """The window of a convolution or pooling layer of torch.nn or isoconv, or of a class derived from these."""
    if has_spec(module):
        return Window(module.kernel_size, module.spec.stride, module.spec.padding, module.spec.dilation)
    n = next(DIMS[base] for base in type(module).__mro__ if base in DIMS)
    size, stride, dilation = (
        ntuple(value, n, "window") for value in (module.kernel_size, module.stride, getattr(module, "dilation", 1))
    )
    if module.padding == "same":
        total = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
        return Window(size, stride, tuple((t // 2, t - t // 2) for t in total), dilation)
    padding = ntuple(0 if module.padding == "valid" else module.padding, n, "padding")
    return Window(size, stride, tuple((p, p) for p in padding), dilation)


def recentred(module: Module) -> tuple[int, ...]:
    """Padding that, without ``output_padding``, makes the output of a transposed convolution as large, or larger by 1
    where that is odd."""
    return tuple(p - (e + 1) // 2 for p, e in zip(module.padding, module.output_padding, strict=True))


def uneven(**values: tuple) -> Verdict | None:
    differing = [f"{name}={v}" for name, v in values.items() if len(set(v)) > 1]
    if not differing:
        return None
    reason = (
        f"{', '.join(differing)} differs between the axes: symmetric to flips, not to rotations that swap those axes"
    )
    return Verdict(BREAKS, reason, "use the same along every axis, if the axes of your images are alike")
