"""Isotropic convolutions as modules: the interface of ``torch.nn.ConvNd``, one weight per band instead of one per
tap."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import check_counts, ntuple, spells_out
from isoconv.bands import BandOptions, BandPlan, band_plan
from isoconv.nn.dense import plain_conv
from isoconv.nn.field_layers import FieldMagnitudes
from isoconv.nn.fields import Fields
from isoconv.nn.init import check_init, init_bands_
from isoconv.nn.steerable import SteerableConv2d, SteerableConv3d, kept_symmetry
from isoconv.ops import ConvSpec, check_engine, conv_spec, sre_conv
from isoconv.ops.reference import expand_kernel
from isoconv.symmetry import GridGroup


class SREOptions(BandOptions, total=False):
    """The keyword-only arguments of every isotropic layer, which networks take too and hand on."""

    orders: int
    reflections: bool
    init: str
    engine: str


_STEERABLE = {2: SteerableConv2d, 3: SteerableConv3d}


class _BandedConv(nn.Module):
    """What all six layers share: banded parameters, a :class:`ConvSpec`, and the kernel they make."""

    dims: ClassVar[int]
    orders = 0
    reflections = True
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        plan: BandPlan,
        spec: ConvSpec,
        bias: bool,
        init: str,
        engine: str,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels}
        check_counts(**counts)
        for name, channels in counts.items():
            if channels % spec.groups:
                raise ValueError(f"{name}={channels} must be a multiple of groups={spec.groups}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.plan, self.spec = plan, spec
        self.init, self.engine = check_init(init), check_engine(engine)
        first, second = (in_channels, out_channels) if spec.transposed else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(first, second // spec.groups, plan.bands, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_bands_(self.weight, self.bias, self.plan, self.init)

    def kernel(self) -> Tensor:
        """The dense kernel, shaped as the weight of the ``torch.nn`` layer of the same arguments; differentiable."""
        return expand_kernel(self.weight, self.plan)

    def plain(self) -> nn.Module:
        """The layer of ``torch.nn`` with the dense kernel, which gives the same outputs."""
        return plain_conv(self.kernel(), self.bias, self.spec, self.weight.requires_grad).train(self.training)

    @property
    def symmetry(self) -> GridGroup:
        return kept_symmetry({"spacing": self.plan.spacing, "reflections": self.reflections})

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.plan.kernel_size

    @property
    def bands(self) -> int:
        return self.plan.bands

    def extra_repr(self) -> str:
        plan, spec = self.plan, self.spec
        padding = tuple(before if before == after else (before, after) for before, after in spec.padding)
        optional = {
            "padding": (padding, (0,) * plan.dims),
            "output_padding": (spec.output_padding, (0,) * plan.dims),
            "dilation": (spec.dilation, (1,) * plan.dims),
            "groups": (spec.groups, 1),
            "bias": (self.bias is not None, True),
            "padding_mode": (spec.padding_mode, "zeros"),
            "profile": (plan.profile, "hard"),
            "circular": (plan.circular, True),
            "spacing": (plan.spacing, (1.0,) * plan.dims),
            "norm": (plan.norm, "none"),
            "orders": (self.orders, 0),
            "reflections": (self.reflections, True),
            "init": (self.init, "default"),
            "engine": (self.engine, "auto"),
        }
        channels = f"{self.in_channels}, {self.out_channels}"
        text = f"{channels}, kernel_size={plan.kernel_size}, stride={spec.stride}, bands={plan.bands}"
        return text + "".join(f", {name}={value!r}" for name, (value, usual) in optional.items() if value != usual)


class _SREConv(_BandedConv):
    @spells_out(band_plan)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
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
        orders: int = 0,
        reflections: bool = True,
        init: str = "default",
        engine: str = "auto",
        **bands: Unpack[BandOptions],
    ) -> None:
        plan = band_plan(ntuple(kernel_size, self.dims, "kernel_size"), **bands)
        spec = conv_spec(
            plan, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode
        )
        check_counts(out_channels=out_channels)
        counts = _shares(out_channels, orders, reflections, self.dims, groups)
        super().__init__(in_channels, counts[0], plan, spec, bias, init, engine, device, dtype)
        self.out_channels, self.orders, self.reflections = out_channels, orders, reflections
        if orders:
            self.magnitudes = FieldMagnitudes(Fields.of(counts, self.dims))
            self.directed = _STEERABLE[self.dims](
                in_channels,
                Fields.of({order: count for order, count in counts.items() if order}, self.dims),
                kernel_size,
                stride,
                padding,
                dilation,
                bias=False,
                padding_mode=padding_mode,
                device=device,
                dtype=dtype,
                max_order=orders,
                reflections=reflections,
                bands=plan.bands,
                profile=plan.profile,
                circular=plan.circular,
                spacing=plan.spacing,
            )

    def kernel(self) -> Tensor:
        isotropic = super().kernel()
        return torch.cat([isotropic, self.directed.kernel()]) if self.orders else isotropic

    def forward(self, input: Tensor) -> Tensor:
        isotropic = sre_conv(input, self.weight, self.bias, self.spec, engine=self.engine)
        if not self.orders:
            return isotropic
        fields = torch.cat([isotropic, self.directed(input)], dim=-self.dims - 1)
        return self.magnitudes(fields) if fields.dim() == self.dims + 2 else self.magnitudes(fields[None])[0]

    def plain(self) -> nn.Module:
        """The ``torch.nn.ConvNd`` of the dense kernel, which gives the same outputs; with orders, that of the fields'
        kernels, followed by their magnitudes."""
        if not self.orders:
            return super().plain()
        bias = None if self.bias is None else F.pad(self.bias, (0, self.directed.out_channels))
        conv = plain_conv(self.kernel(), bias, self.spec, self.weight.requires_grad)
        return nn.Sequential(conv, FieldMagnitudes(self.magnitudes.in_fields)).train(self.training)


def check_orders(orders: int, reflections: bool) -> None:
    """Raises ValueError for ``orders`` and ``reflections`` that no layer can have."""
    if isinstance(orders, bool) or not isinstance(orders, Integral) or orders < 0:
        raise ValueError(f"orders must be a whole number of at least 0, got {orders!r}")
    if not reflections and orders == 0:
        raise ValueError("reflections=False takes orders of at least 1: isotropic kernels are blind to mirror images")


def _shares(channels: int, orders: int, reflections: bool, dims: int, groups: int) -> dict[int, int]:
    """Output channels by order: half of them isotropic, the others evenly of the orders above."""
    check_orders(orders, reflections)
    if orders and (dims == 1 or groups > 1 or channels < 2 * orders):
        raise ValueError(
            f"orders={orders} takes an image or volume, groups=1 and at least {2 * orders} output channels, got "
            f"{dims}D, groups={groups} and {channels}"
        )
    if not reflections and dims == 3:
        raise ValueError(
            "reflections=False takes a 2D layer, got 3D: lengths of the fields that one layer makes of scalars are "
            "blind to mirror images there; carry the fields to the next layer (SteerableConv3d)"
        )
    directed = channels // 2 if orders else 0
    counts = {order: (directed + order - 1) // orders for order in range(1, orders + 1)}
    return {0: channels - directed} | counts


class _SREConvTranspose(_BandedConv):
    @spells_out(band_plan)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        init: str = "default",
        engine: str = "auto",
        **bands: Unpack[BandOptions],
    ) -> None:
        plan = band_plan(ntuple(kernel_size, self.dims, "kernel_size"), **bands)
        spec = conv_spec(
            plan,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            transposed=True,
            output_padding=output_padding,
        )
        super().__init__(in_channels, out_channels, plan, spec, bias, init, engine, device, dtype)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        spec = self.spec if output_size is None else self.spec.for_output(input.shape[-self.dims :], output_size)
        return sre_conv(input, self.weight, self.bias, spec, engine=self.engine)


_CONV_DOC = """Isotropic convolution: ``torch.nn.Conv{n}d`` with one weight per band of taps instead of one per tap.

It is SRE-Conv (arXiv 2501.09753): equivariant exactly to flips and 90-degree rotations (stride 1 and symmetric padding
provided), approximately to other rotations. Positional arguments, their order and their meaning are those of
``torch.nn.Conv{n}d``; the state dict holds ``weight`` and ``bias``.

Args:
    bands, profile, circular, spacing, norm: the kernel's bands, see :func:`isoconv.bands.band_plan`.
    orders: above 0, half of the output's channels are isotropic and the others, evenly, magnitudes of the image's
        fields of these orders (:class:`isoconv.nn.SteerableConv2d`), which see directions and are as invariant;
        in 2D and 3D, of one group. ``profile="gaussian"`` suits them: hard rings alias.
    reflections: False, with orders in 2D: an image and its mirror image are told apart.
    init: ``"default"`` keeps the output at the scale of ``torch.nn.Conv{n}d``, ``"official"`` is that of SRE-Conv; see
        :mod:`isoconv.nn.init`.
    engine: how it is computed, see :mod:`isoconv.ops`.

Shape:
    - input: (N, in_channels, {axes}) or (in_channels, {axes})
    - output: as ``torch.nn.Conv{n}d``
    - weight: (out_channels, in_channels / groups, bands)

Example:
    >>> layer = isoconv.nn.SREConv{n}d(3, 8, 5, padding=2)
    >>> layer.weight.shape, layer.kernel().shape
    (torch.Size([8, 3, 3]), torch.Size([8, 3, {kernel}]))
"""
_TRANSPOSE_DOC = """Isotropic transposed convolution: ``torch.nn.ConvTranspose{n}d`` with one weight per band of taps.

Arguments as in ``torch.nn.ConvTranspose{n}d``, the keyword-only ones as in :class:`SREConv{n}d`. Weight:
(in_channels, out_channels / groups, bands).
"""


def _document(n: int) -> dict[str, Any]:
    return {"n": n, "axes": ", ".join("DHW"[3 - n :]), "kernel": ", ".join("5" * n)}


class SREConv1d(_SREConv):
    __doc__ = _CONV_DOC.format(**_document(1))
    dims = 1


class SREConv2d(_SREConv):
    __doc__ = _CONV_DOC.format(**_document(2))
    dims = 2


class SREConv3d(_SREConv):
    __doc__ = _CONV_DOC.format(**_document(3))
    dims = 3


class SREConvTranspose1d(_SREConvTranspose):
    __doc__ = _TRANSPOSE_DOC.format(n=1)
    dims = 1


class SREConvTranspose2d(_SREConvTranspose):
    __doc__ = _TRANSPOSE_DOC.format(n=2)
    dims = 2


class SREConvTranspose3d(_SREConvTranspose):
    __doc__ = _TRANSPOSE_DOC.format(n=3)
    dims = 3
