"""Conversion of a network's convolutions to isotropic ones."""

from __future__ import annotations

import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._checks import spells_out
from isoconv.bands import BandOptions, BandPlan, band_plan
from isoconv.convert.rules import Layer, kind, layers
from isoconv.convert.windows import (
    AVG_POOLS,
    CONVERTIBLE,
    CONVS,
    LEFT,
    MAX_POOLS,
    SYMMETRIC,
    TRANSPOSED,
    Module,
    recentred,
)
from isoconv.nn.conv import check_orders
from isoconv.nn.harmonics import kernel_basis
from isoconv.ops import check_engine
from isoconv.ops.reference import expand_kernel

log = logging.getLogger(__name__)


@spells_out(band_plan)
def convert(
    net: nn.Module,
    *,
    orders: int = 0,
    reflections: bool = True,
    engine: str = "auto",
    **bands: Unpack[BandOptions],
) -> nn.Module:
    """A copy of ``net`` whose convolutions are isotropic; ``net`` stays as it is.

    - ``nn.ConvNd`` and ``nn.ConvTransposeNd`` wider than 1 become ``SREConvNd``, their weights projected on the bands:
      the isotropic kernel closest to the trained one in the least squares sense. A kernel that is isotropic already is
      kept: exactly with ``profile="hard"``, otherwise to rounding.
    - A stride samples off centre at some input sizes. Before a strided convolution (1x1 too) or pooling layer goes a
      ``CentreGrid``, which leaves its output shape as it is; ``output_padding`` becomes less padding and a mean of
      neighbours; ``ceil_mode`` becomes symmetric pooling.
    - A convolution or pooling layer with a ``forward`` of its own counts as what it is seen to compute when it runs
      alone. Padding as TensorFlow's "SAME" becomes equal on both sides (``SamePad``), a weight computed from parameters
      (weight standardisation) becomes permanent. Fixed filters (blur pooling) are centred.
    - Everything else is copied: other layers, mode, device, dtype, ``requires_grad``, hooks. A module or weight that is
      used twice stays shared; a convolution that shares its weight with a layer that is not converted is left, too.

    The copy has parameters of its own: build the optimiser from them. Where a layer became a ``Sequential``, its
    parameters' names have gained an index. What is done to each layer, what cannot be converted and what still breaks
    the symmetry tells :func:`isoconv.conversion_report`.

    With ``orders`` above 0 the convolutions see directions: half of the channels are isotropic, projected as above, and
    the others magnitudes of fields, whose weights are new: what was trained in their place is lost. Convolutions that
    are transposed, in groups, over one axis, or of too few channels or too small a kernel are isotropic nevertheless.

    Args:
        net: any module; a single convolution too.
        orders, reflections: of every converted layer, see :class:`isoconv.nn.SREConv2d`.
        bands, profile, circular, spacing, norm: of every converted layer, see :func:`isoconv.bands.band_plan`.
        engine: of every converted layer, see :mod:`isoconv.ops`; transposed ones, which the fast engines lack, get
            ``"auto"`` in place of one of those.

    Raises:
        ValueError: for options that do not fit a layer, naming it.
    """
    check_engine(engine)
    directed = directed_options(orders, reflections)
    found = layers(check_module(net))
    converted = converted_copy(net, found, bands, directed, engine)
    if left := [layer.label for layer in found if layer.verdict.status == LEFT]:
        log.warning("layers left as they are: %s; isoconv.conversion_report tells why", ", ".join(left))
    return converted


def converted_copy(
    net: nn.Module, found: Sequence[Layer], bands: BandOptions, directed: dict[str, Any], engine: str
) -> nn.Module:
    """What :func:`convert` returns, of the layers ``found`` in ``net``."""
    memo = detached(net)
    heirs = []
    for layer in found:
        if layer.verdict.status == CONVERTIBLE:
            heir, whole = _replace(layer, bands, directed, engine, memo)
            heirs.append((layer.module, heir))
            memo[id(layer.module)] = whole.train(layer.module.training)
    for module, heir in heirs:  # once all places are known, since a hook can refer to any of them
        vars(heir).update(copy.deepcopy({k: v for k, v in vars(module).items() if "_hook" in k}, memo))
    converted = copy.deepcopy(net, memo)
    for module in converted.modules() if heirs else ():
        vars(module).pop("_isoconv_config", None)  # create_model would not build this network from it
    return converted


def directed_options(orders: int, reflections: bool) -> dict[str, Any]:
    """The options of layers that see directions; none for isotropic ones."""
    check_orders(orders, reflections)
    return {"orders": orders, "reflections": reflections} if orders else {}


def why_isotropic(layer: Layer, bands: BandOptions, orders: int) -> str:
    """Why the heir of ``layer`` sees no directions; "" if it sees these ``orders``."""
    module = layer.plain
    if kind(module) in TRANSPOSED:
        return "it is transposed"
    if len(module.kernel_size) == 1:
        return "it works along one axis"
    if module.groups > 1:
        return "it works in groups"
    if module.out_channels < 2 * orders:
        return f"it has less than {2 * orders} output channels"
    with _named(layer):
        plan = band_plan(module.kernel_size, **bands)
    carried = all(kernel_basis(plan, 0, order, max_order=orders).paths for order in range(1, orders + 1))
    return "" if carried else f"its kernel is too small for orders up to {orders}"


def heir_of(layer: Layer, bands: BandOptions, device: Any = "meta", **other: Any) -> Module:
    """The isotropic layer that takes the place of ``layer``, with ``other`` options than that, and weights that are not
    yet those of it."""
    module = layer.plain
    names = "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
    alike = {name: getattr(module, name) for name in names}
    alike |= {"bias": module.bias is not None, "device": device, "dtype": module.weight.dtype}
    with _named(layer):
        return SYMMETRIC[kind(module) or type(module)](**alike | bands | other)


@contextmanager
def _named(layer: Layer) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {layer.label!r}: {error}") from None


def detached(net: nn.Module) -> dict[Any, Any]:
    """A memo for deepcopy (by the identity of an old object, what takes its place everywhere) with the tensors that
    deepcopy refuses: those a module has computed, such as a pruned weight."""
    attributes = (value for module in net.modules() for value in vars(module).values())
    return {id(v): v.detach().clone() for v in attributes if isinstance(v, Tensor) and not v.is_leaf}


def check_module(net: object) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, torch.jit.ScriptModule):
        raise TypeError("expected a torch.nn.Module, got TorchScript, whose layers are fixed; give what it is made of")
    return net


def project(kernel: Tensor, plan: BandPlan) -> Tensor:
    """Banded weight (..., bands) whose kernel is closest to ``kernel`` (..., *plan.kernel_size) in the least squares
    sense."""
    exact = kernel.detach().to("meta" if kernel.is_meta else "cpu", torch.float64).flatten(-plan.dims)
    flat = plan.basis.reshape(plan.bands, -1)
    basis, inverse = (torch.from_numpy(matrix).to(exact) for matrix in (flat, np.linalg.pinv(flat)))
    weight = exact @ inverse
    weight += (exact - weight @ basis) @ inverse  # to the last bit, if the kernel is isotropic
    return weight.to(kernel)


def retained_energy(kernel: Tensor, plan: BandPlan, channels: int | None = None) -> float:
    """Share of the sum of squares of ``kernel`` that its projection on the bands keeps, 0 to 1, where the first
    ``channels`` alone are projected."""
    exact = kernel.detach().double()
    total = exact.square().sum().item()
    return expand_kernel(project(exact[:channels], plan), plan).square().sum().item() / total if total else 1.0


def _replace(
    layer: Layer, bands: BandOptions, directed: dict[str, Any], engine: str, memo: dict[Any, Any]
) -> tuple[nn.Module, nn.Module]:
    """The layer that does the work of ``layer`` in the converted network, yet without hooks; and the same with what
    centres it."""
    module, base, view = layer.plain, kind(layer.plain), layer.window
    same = layer.twin is not None and layer.twin.same
    if base in TRANSPOSED:
        return _replace_transposed(layer, bands, engine, memo)
    if base in SYMMETRIC and base not in CONVS and module.ceil_mode:
        pool = SYMMETRIC[base]()
        return pool, pool
    if base in CONVS and not view.pointwise:
        blind = not directed or why_isotropic(layer, bands, directed["orders"])
        heir = _banded(layer, bands, memo, {} if blind else directed, engine=engine)
    else:
        heir = _unhooked(module if same else layer.module, memo)
    maximal = base in MAX_POOLS
    parts: list[nn.Module] = []
    if same:
        parts.append(iso.SamePad(view.kernel_size, view.stride, view.dilation, -math.inf if maximal else 0.0))
    if view.strided:
        parts.append(view.grid("max" if maximal else "avg"))
    return heir, nn.Sequential(*parts, heir) if parts else heir


def _replace_transposed(
    layer: Layer, bands: BandOptions, engine: str, memo: dict[Any, Any]
) -> tuple[nn.Module, nn.Module]:
    module, padding = layer.module, recentred(layer.module)
    engine = engine if engine == "reference" else "auto"
    if min(padding) < 0:
        heir = _banded(layer, bands, memo, {}, engine=engine, output_padding=module.output_padding)
        return heir, heir
    heir = _banded(layer, bands, memo, {}, engine=engine, padding=padding)
    odd = [1 + e % 2 for e in module.output_padding]
    mean = list(AVG_POOLS)[len(odd) - 1]
    return heir, nn.Sequential(heir, mean(odd, 1)) if max(odd) > 1 else heir


def _banded(
    layer: Layer, bands: BandOptions, memo: dict[Any, Any], directed: dict[str, Any], **other: Any
) -> nn.Module:
    module = layer.plain
    # neither time nor random numbers go into weights that are replaced at once
    device = module.weight.device if directed else "meta"
    banded = heir_of(layer, bands, device, **directed, **other)
    isotropic = len(banded.weight)
    tied = id(module.weight), banded.plan, isotropic
    if tied not in memo:
        memo[tied] = nn.Parameter(project(module.weight[:isotropic], banded.plan), module.weight.requires_grad)
    banded.weight = memo[tied]
    if banded.bias is not None and len(banded.bias) < len(module.bias):
        banded.bias = nn.Parameter(module.bias.detach()[:isotropic].clone(), module.bias.requires_grad)
    else:
        banded.bias = copy.deepcopy(module.bias, memo)
    for parameter in banded.directed.parameters() if directed else ():
        parameter.requires_grad_(module.weight.requires_grad)
    return banded


def _unhooked(module: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    bare = object.__new__(type(module))  # copy.copy refuses a parametrised module
    vars(bare).update(vars(module))
    drop_hooks(bare)
    return copy.deepcopy(bare, memo)


def drop_hooks(module: nn.Module) -> None:
    vars(module).update({name: OrderedDict() for name in vars(module) if name.endswith("_hooks")})
