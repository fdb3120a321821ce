"""A network without isoconv: plain layers of torch.nn, the same outputs."""

from __future__ import annotations

import copy
import inspect
import logging
from itertools import chain
from typing import Any

import torch.fx
from torch import nn

from isoconv.convert.conversion import check_module
from isoconv.convert.rules import CONVS, TRANSPOSED, Module, kind

log = logging.getLogger(__name__)

_PLAIN = {banded: plain for plain, banded in (CONVS | TRANSPOSED).items()}


def fuse(net: nn.Module) -> nn.Module:
    """A copy of ``net`` that gives the same outputs and needs no isoconv to be loaded and run; ``net`` stays as it is.

    Every ``SREConvNd`` becomes the ``nn.ConvNd`` of its dense kernel, with which the reference engine's outputs are
    equal to the last bit. Every other module whose class is isoconv's (symmetric pooling, a whole ResNet) becomes a
    :class:`torch.fx.GraphModule` of the same parameter names, good for every input size. Mode, device, dtype,
    ``requires_grad`` and sharing of modules are kept; hooks on the modules replaced are not, nor are methods beside
    ``forward`` and optional arguments of its (``size`` of ``SymmetricUpsample``).

    A module of a class derived from isoconv's that torch.fx cannot trace stays, which is logged as a warning.
    """
    memo: dict[Any, Any] = {id(m): _plain(m) for m in check_module(net).modules() if kind(m) in _PLAIN}
    fused = copy.deepcopy(net, memo)
    ours = [m for m in fused.modules() if _needs_isoconv(m)]
    if not ours:
        return fused
    for m in ours:  # hooks are for tensors, not for what a trace passes through the network
        m._forward_hooks.clear()
        m._forward_pre_hooks.clear()
    leaves = (m for m in fused.modules() if not m._modules)
    kept = {id(part): part for part in chain(leaves, fused.parameters(), fused.buffers())}
    result = copy.deepcopy(fused, kept | {id(m): _traced(m) for m in ours})
    if rest := [f"{name or '(root)'} ({type(m).__name__})" for name, m in result.named_modules() if _needs_isoconv(m)]:
        log.warning("the fused network still needs isoconv: torch.fx cannot trace %s", ", ".join(rest))
    return result


def _plain(module: Module) -> nn.Module:
    spec, padding = module.spec, tuple(before for before, _ in module.spec.padding)
    lopsided = padding != tuple(after for _, after in spec.padding)
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    plain = _PLAIN[kind(module)](
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        spec.stride,
        "same" if lopsided else padding,
        dilation=spec.dilation,
        groups=spec.groups,
        bias=module.bias is not None,
        padding_mode=spec.padding_mode,
        device="meta",
        dtype=module.weight.dtype,
        **extra,
    )
    plain.weight = nn.Parameter(module.kernel().detach(), module.weight.requires_grad)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().clone(), module.bias.requires_grad)
    return plain.train(module.training)


def _needs_isoconv(module: nn.Module) -> bool:
    return any(c.__module__.split(".")[0] == "isoconv" for c in type(module).__mro__)


def _traced(module: nn.Module) -> nn.Module:
    optional = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in optional if p.default is not p.empty}
    try:
        traced = torch.fx.symbolic_trace(module, concrete_args=defaults)
    except (torch.fx.proxy.TraceError, RuntimeError, TypeError) as error:
        log.debug("torch.fx cannot trace %s: %s", type(module).__name__, error)
        return module
    for node in traced.graph.nodes:
        node.type = None  # an annotation that is a string cannot be pickled
    traced.recompile()
    for name, part in traced.named_modules():
        part.training = module.get_submodule(name).training
    return traced
