"""Steerable convolutions: scalars, vectors and fields of higher order in and out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import check_counts, ntuple, spells_out
from isoconv.bands import band_plan
from isoconv.nn.constants import WithConstants
from isoconv.nn.dense import plain_conv
from isoconv.nn.fields import Fields, as_fields
from isoconv.nn.harmonics import kernel_basis
from isoconv.ops import is_eager
from isoconv.ops.reference import convolve
from isoconv.ops.spec import conv_spec
from isoconv.symmetry import GridGroup

__all__ = ["SteerableConv2d", "SteerableConv3d", "kept_symmetry"]

_ENGINES = ("auto", "reference")


def kept_symmetry(options: Mapping[str, Any]) -> GridGroup:
    """To what layers of these options (``spacing``, ``reflections``) are exactly equivariant, cubic kernels, stride 1
    and symmetric padding provided."""
    if options["spacing"] is None or np.ptp(options["spacing"]) == 0:
        return GridGroup.FULL if options["reflections"] else GridGroup.ROTATIONS
    return GridGroup.MIRRORS if options["reflections"] else GridGroup.NONE


class _SteerableConv(WithConstants):
    dims: ClassVar[int]
    bias: nn.Parameter | None
    _inputs: Tensor
    _outputs: Tensor

    @spells_out(band_plan, without=["norm"])
    def __init__(
        self,
        in_fields: Fields | str | int,
        out_fields: Fields | str | int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        profile: str = "gaussian",
        max_order: int = 3,
        reflections: bool = True,
        engine: str = "auto",
        **bands: Any,
    ) -> None:
        super().__init__()
        check_counts(groups=groups)
        if engine not in _ENGINES:
            raise ValueError(f"a steerable convolution runs on engine {' or '.join(_ENGINES)}, got {engine!r}")
        self.in_fields, self.out_fields = as_fields(in_fields, self.dims), as_fields(out_fields, self.dims)
        for name, fields in (("in_fields", self.in_fields), ("out_fields", self.out_fields)):
            if any(count % groups for count in fields.counts.values()):
                raise ValueError(f"{name} must have a multiple of groups={groups} of every order, got {fields}")
        size = ntuple(kernel_size, self.dims, "kernel_size")
        plan = band_plan(size, profile=profile, norm="unit", **bands)
        self.spec = conv_spec(
            plan, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode
        )
        self.max_order, self.reflections, self.engine = max_order, reflections, engine
        self.bases = {
            (source, target): kernel_basis(plan, source, target, max_order=max_order, reflections=reflections)
            for target in self.out_fields.counts
            for source in self.in_fields.counts
        }
        for order in self.out_fields.counts:
            if not any(self.bases[source, order].paths for source in self.in_fields.counts):
                raise ValueError(
                    f"no kernel of size {size} with max_order={max_order} leads from {self.in_fields} to fields of "
                    f"order {order}: use a larger kernel, or leave this order out"
                )
        for (source, target), basis in self.bases.items():
            if basis.paths:
                shape = self.out_fields.counts[target], self.in_fields.counts[source] // groups, len(basis.paths)
                weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"weight_{source}_{target}", weight)
        scalars = self.out_fields.scalars
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(scalars, device=device, dtype=dtype)) if bias and scalars else None
        )
        self._set_constants(self._like())
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform weights that keep the variance of white noise in every component of every field; no bias."""
        for order in self.out_fields.counts:
            weights = [weight for (_, target), weight in self.weights.items() if target == order]
            bound = math.sqrt(3 / sum(weight[0].numel() for weight in weights))
            for weight in weights:
                weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.zero_()

    @property
    def weights(self) -> dict[tuple[int, int], nn.Parameter]:
        """By source and target order, (out fields, in fields / groups, paths): ``weight_0_1`` is ``weights[0, 1]``."""
        between = [orders for orders, basis in self.bases.items() if basis.paths]
        return {(source, target): getattr(self, f"weight_{source}_{target}") for source, target in between}

    def _set_constants(self, like: Tensor) -> None:
        for source, target in self.weights:
            rows = torch.tensor(self.bases[source, target].rows, device="cpu").flatten(1)
            self.register_buffer(f"_basis_{source}_{target}", rows.to(like), persistent=False)
        if self.groups > 1:
            for name, fields in (("_inputs", self.in_fields), ("_outputs", self.out_fields)):
                self.register_buffer(name, _by_group(fields, self.groups).to(like.device), persistent=False)

    def kernel(self) -> Tensor:
        """The dense kernel (out channels, in channels / groups, *kernel_size), differentiable; of several groups, the
        channels of one after those of another."""
        weights = self.weights
        if is_eager(*weights.values()):
            return _Expanded.apply(self, *weights.values())
        empty = next(iter(weights.values())).new_zeros(())
        targets = []
        for target in self.out_fields.counts:
            blocks = []
            for source in self.in_fields.counts:
                components = self.bases[source, target].rows.shape[1:3]
                if (source, target) in weights:
                    dense = weights[source, target] @ getattr(self, f"_basis_{source}_{target}")
                    dense = dense.unflatten(-1, (*components, *self.kernel_size)).transpose(1, 2)
                    block = dense.flatten(0, 1).flatten(1, 2)
                else:
                    outputs, inputs = self.out_fields.counts[target], self.in_fields.counts[source] // self.groups
                    block = empty.expand(outputs * components[0], inputs * components[1], *self.kernel_size)
                blocks.append(block.unflatten(0, (self.groups, -1)))
            targets.append(torch.cat(blocks, dim=2))
        return torch.cat(targets, dim=1).flatten(0, 1)

    def _blocks(self, kernel: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each of the ``weights``, its basis (paths, values) and its part of a contiguous ``kernel``: (groups, out
        fields / groups, in fields / groups, components of both, taps)."""
        groups, taps = self.groups, prod(self.kernel_size)
        row = self.in_channels // groups * taps
        for source, target in self.weights:
            outer, inner = self.bases[source, target].rows.shape[1:3]
            counts = self.out_fields.counts[target] // groups, self.in_fields.counts[source] // groups
            starts = self.out_fields.slices[target].start // groups, self.in_fields.slices[source].start // groups
            strides = self.out_channels // groups * row, outer * row, inner * taps, row, taps, 1
            at = kernel.storage_offset() + starts[0] * row + starts[1] * taps
            # one view in place of five, for each takes as long as a small product
            block = kernel.as_strided((groups, *counts, outer, inner, taps), strides, at)
            yield getattr(self, f"_basis_{source}_{target}"), block

    def forward(self, input: Tensor) -> Tensor:
        axis = input.dim() - self.dims - 1
        if axis not in (0, 1) or input.shape[axis] != self.in_channels:
            raise ValueError(
                f"expected an input (N, {self.in_channels}, {self.dims} spatial axes) for the fields {self.in_fields}, "
                f"got shape {tuple(input.shape)}"
            )
        bias = self._padded_bias()
        if self.groups == 1:
            kernel = self.kernel()
            if self.engine == "auto" and suits_channels_last(input, kernel):
                layout = torch.channels_last if self.dims == 2 else torch.channels_last_3d
                return convolve(input.contiguous(memory_format=layout), kernel, bias, self.spec).contiguous()
            return convolve(input, kernel, bias, self.spec)
        bias = None if bias is None else bias[self._outputs]
        output = convolve(input.index_select(axis, self._inputs), self.kernel(), bias, self.spec)
        return output.index_select(axis, self._outputs.argsort())

    def _padded_bias(self) -> Tensor | None:
        """Of all channels; scalars are the first."""
        return None if self.bias is None else F.pad(self.bias, (0, self.out_channels - self.out_fields.scalars))

    def plain(self) -> nn.Module:
        """The ``torch.nn.ConvNd`` of the dense kernel, which gives the same outputs; of one group always, since those
        of ``torch.nn`` are of neighbouring channels."""
        kernel, groups = self.kernel(), self.groups
        if groups > 1:
            grouped = kernel.unflatten(0, (groups, -1))
            kernel = kernel.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
            kernel[self._outputs.view(groups, -1, 1), self._inputs.view(groups, 1, -1)] = grouped
        trained = any(weight.requires_grad for weight in self.weights.values())
        return plain_conv(kernel, self._padded_bias(), replace(self.spec, groups=1), trained).train(self.training)

    @property
    def symmetry(self) -> GridGroup:
        return kept_symmetry({"spacing": self.spec.plan.spacing, "reflections": self.reflections})

    @property
    def groups(self) -> int:
        return self.spec.groups

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.spec.plan.kernel_size

    @property
    def in_channels(self) -> int:
        return self.in_fields.channels

    @property
    def out_channels(self) -> int:
        return self.out_fields.channels

    def extra_repr(self) -> str:
        plan, spec = self.spec.plan, self.spec
        padding = tuple(before if before == after else (before, after) for before, after in spec.padding)
        optional = {
            "padding": (padding, (0,) * plan.dims),
            "dilation": (spec.dilation, (1,) * plan.dims),
            "groups": (spec.groups, 1),
            "bias": (self.bias is not None, True),
            "padding_mode": (spec.padding_mode, "zeros"),
            "profile": (plan.profile, "gaussian"),
            "circular": (plan.circular, True),
            "spacing": (plan.spacing, (1.0,) * plan.dims),
            "max_order": (self.max_order, 3),
            "reflections": (self.reflections, True),
        }
        text = f"{self.in_fields!s}, {self.out_fields!s}, kernel_size={plan.kernel_size}, stride={spec.stride}"
        text += f", bands={plan.bands}"
        return text + "".join(f", {name}={value!r}" for name, (value, usual) in optional.items() if value != usual)


def suits_channels_last(input: Tensor, kernel: Tensor) -> bool:
    """Whether PyTorch trains this convolution faster with the channels of a pixel side by side, to which it is brought
    and back: so it is on CPUs if blocks of 16 channels, in which the usual layout is worked on, would be filled badly.
    The figures behind it: benchmarks/results/steerable_cost.md."""
    if (
        not is_eager(input, kernel)
        or input.device.type != "cpu"
        or not (torch.is_grad_enabled() and kernel.requires_grad)
    ):
        return False
    if input.dim() != kernel.dim() or not input.is_contiguous() or input.dtype not in (torch.float32, torch.bfloat16):
        return False
    return prod(-(-n // 16) * 16 for n in kernel.shape[:2]) >= 1.5 * prod(kernel.shape[:2])


class _Expanded(torch.autograd.Function):
    """The dense kernel of a layer's weights: two nodes in the graph in place of a hundred, which take longer than what
    they compute."""

    @staticmethod
    def forward(ctx: Any, layer: _SteerableConv, *weights: Tensor) -> Tensor:
        ctx.layer = layer
        shape = layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
        kernel = weights[0].new_zeros(shape)
        with torch.autocast(kernel.device.type, enabled=False):
            for weight, (basis, block) in zip(weights, layer._blocks(kernel), strict=True):
                block.copy_((weight.flatten(0, 1) @ basis).view(block.shape))
        return kernel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Projected.apply(ctx.layer, grad)


class _Projected(torch.autograd.Function):
    """The adjoint of :class:`_Expanded`."""

    @staticmethod
    def forward(ctx: Any, layer: _SteerableConv, kernel: Tensor) -> tuple[Tensor, ...]:
        ctx.layer = layer
        with torch.autocast(kernel.device.type, enabled=False):
            weights = []
            for basis, block in layer._blocks(kernel.contiguous()):
                fields = block.shape[0] * block.shape[1], block.shape[2]
                weights.append((block.reshape(prod(fields), -1) @ basis.t()).unflatten(0, fields))
        return tuple(weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, _Expanded.apply(ctx.layer, *grads)


def _by_group(fields: Fields, groups: int) -> Tensor:
    """Channels in the order in which a grouped convolution takes them: all orders of one group, then of the next."""
    shares = [
        torch.arange(channels.start, channels.stop, device="cpu").view(groups, -1)
        for channels in fields.slices.values()
    ]
    return torch.cat(shares, dim=1).flatten()


_DOC = """Steerable convolution of the :class:`isoconv.nn.Fields` of an image: what comes out turns with what goes in.

Exactly equivariant to flips and 90-degree rotations (stride 1 and symmetric padding provided), approximately to other
rotations. From scalars to scalars it is :class:`isoconv.nn.SREConv{n}d` of ``norm="unit"``. Positional arguments,
their order and their meaning are those of ``torch.nn.Conv{n}d``, with fields in place of channels.

Args:
    in_fields, out_fields: :class:`Fields`, their text, or a number of scalars.
    groups: divides the fields of every order.
    bias: of the scalars; a direction of its own no layer may have.
    bands, profile, circular, spacing: the kernel's bands, see :func:`isoconv.bands.band_plan`.
    max_order: highest angular order of the kernel.
    reflections: False: equivariant to rotations only, so that the layer can tell left from right{free}.
    engine: ``"reference"``: the kernel is expanded and convolved by PyTorch; ``"auto"``: likewise, in training on a CPU
        in the faster layout.

Attributes:
    weight_j_l: for every order j of the input and l of the output between which the kernel allows a path, (out fields,
        in fields / groups, paths); what the paths are says :func:`isoconv.nn.harmonics.kernel_basis`.

Shape:
    - input: (N, in_fields.channels, {axes}) or without N
    - output: (N, out_fields.channels, {axes}), sizes as of ``torch.nn.Conv{n}d``

Raises:
    ValueError: if no kernel of this size leads to one of the output's orders, or for other arguments that do not fit.
"""


class SteerableConv2d(_SteerableConv):
    __doc__ = _DOC.format(n=2, axes="H, W", free="; twice the weights")
    dims = 2


class SteerableConv3d(_SteerableConv):
    __doc__ = _DOC.format(n=3, axes="D, H, W", free="; odd couplings such as the cross product")
    dims = 3
