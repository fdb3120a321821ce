"""A network without isoconv: plain layers of torch.nn, the same outputs."""

from __future__ import annotations

import copy
import logging
from itertools import chain
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from isoconv.convert.conversion import check_module, detached, drop_hooks
from isoconv.convert.measuring import defaults_of
from isoconv.convert.windows import Module

log = logging.getLogger(__name__)

_COMPUTING = (BasePruningMethod, SpectralNorm, WeightNorm)


def fuse(net: nn.Module) -> nn.Module:
    """A copy of ``net`` that gives the same outputs and needs no isoconv to be loaded and run; ``net`` stays as it is.

    Every ``SREConvNd`` becomes the ``nn.ConvNd`` of its dense kernel, with which the reference engine's outputs are
    equal to the last bit; every other layer of isoconv that has a method ``plain()`` becomes what that returns, unless
    that is None. Every
    other module whose class is isoconv's (symmetric pooling, a whole ResNet) becomes a :class:`torch.fx.GraphModule` of
    the same parameter names, good for every input size, its resampling equal to rounding. Mode, device, dtype,
    ``requires_grad`` and what is shared are kept; hooks on the modules replaced are not, nor are methods beside
    ``forward`` and optional arguments of its (``size`` of ``SymmetricUpsample``).

    A module of a class derived from isoconv's that torch.fx cannot trace stays, which is logged as a warning.

    Raises:
        TypeError: if ``net`` is not a module.
    """
    memo = detached(check_module(net))
    for module in net.modules():
        if _has_plain(module) and (plain := _plain(module, memo)) is not None:
            memo[id(module)] = plain
    fused = copy.deepcopy(net, memo)
    ours = [m for m in fused.modules() if _is_ours(m)]
    for m in chain.from_iterable(m.modules() for m in ours):
        if _holds_ours(m):  # hooks are for tensors, not for what a trace passes through the network
            drop_hooks(m)
    closed = (m for m in fused.modules() if not _holds_ours(m))
    kept = {id(part): part for part in chain(closed, fused.parameters(), fused.buffers())}
    result = copy.deepcopy(fused, kept | {id(m): graph for m in ours if (graph := _traced(m)) is not None})
    if rest := [f"{name or '(root)'} ({type(m).__name__})" for name, m in result.named_modules() if _is_ours(m)]:
        log.warning("the fused network still needs isoconv: torch.fx cannot trace %s", ", ".join(rest))
    return result


def _has_plain(module: nn.Module) -> bool:
    """Whether ``module`` says which plain layer computes the same, and computes what isoconv's class does."""
    owner = next((c for c in type(module).__mro__ if "forward" in vars(c)), nn.Module)
    ours = owner.__module__.split(".")[0] == "isoconv" and "forward" not in vars(module)
    return ours and hasattr(module, "plain")


def _plain(module: Module, memo: dict[Any, Any]) -> nn.Module | None:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _COMPUTING):  # what it made for the last call may be out of date
            hook(module, None)
    plain = module.plain()
    if not isinstance(plain, _ConvNd):
        return plain
    # a weight that is computed (parametrised, pruned) is another tensor each time, and nobody else's
    if (weight := module._parameters.get("weight")) is not None:
        tied = memo.setdefault((id(weight), "kernels"), [])
        plain.weight = next((kernel for kernel in tied if _equal(kernel, plain.weight)), plain.weight)
        tied.append(plain.weight)
    bias = module._parameters.get("bias")
    if bias is not None and plain.bias is not None and bias.shape == plain.bias.shape:
        plain.bias = copy.deepcopy(bias, memo)
    return plain


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or torch.equal(a, b))


def _is_ours(module: nn.Module) -> bool:
    return any(c.__module__.split(".")[0] == "isoconv" for c in type(module).__mro__)


def _holds_ours(module: nn.Module) -> bool:
    return any(map(_is_ours, module.modules()))


def _traced(module: nn.Module) -> nn.Module | None:
    tracer = torch.fx.Tracer()  # a subclass of its own would be needed to unpickle what it traced
    tracer.is_leaf_module = lambda m, _name: not _holds_ours(m)  # type: ignore[method-assign, assignment]
    try:
        graph = tracer.trace(module, defaults_of(module))
    except (torch.fx.proxy.TraceError, RuntimeError, TypeError) as error:
        log.debug("torch.fx cannot trace %s: %s", type(module).__name__, error)
        return None
    for node in graph.nodes:
        node.type = None  # an annotation that is a string cannot be pickled
    traced = torch.fx.GraphModule(module, graph, type(module).__name__)
    for name, part in traced.named_modules():
        part.training = module.get_submodule(name).training
    return traced
