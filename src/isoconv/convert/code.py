"""What the code of a ``forward`` does to the symmetry: functions of torch that it calls between the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from isoconv.convert.measuring import (
    LIMIT,
    CannotRunError,
    attempt,
    commuting_error,
    defaults_of,
    images_of,
    noise,
    ready_copy,
)
from isoconv.convert.rules import children
from isoconv.convert.windows import BREAKS, DEPENDS, Verdict

__all__ = ["Place", "traced", "watched"]

_MODULE = "use the layer of torch.nn instead of the function, and convert"
_CROP = "crop both sides alike; to take every other sample, use SymmetricAvgPool"
_MIX = "use SymmetricUpsample or SymmetricAvgPool and a convolution"
_POOL = "pool globally before it"
_TURN = "leave it out, or average over all turns and mirror images"
_REMEDIES = {
    "pad": "pad both sides alike",
    "interpolate": "mode='bilinear' ('linear', 'trilinear'), or SymmetricUpsample",
    **{f"{kind}_pool{n}d": _MODULE for kind in ("max", "avg", "lp") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _MODULE for n in (1, 2, 3)},
    **{f"conv{kind}{n}d": _MODULE for kind in ("", "_transpose") for n in (1, 2, 3)},
    **dict.fromkeys(("getitem", "narrow"), _CROP),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "unfold", "fold"), _MIX),
    **dict.fromkeys(("flatten", "reshape", "view"), _POOL),
    **dict.fromkeys(("roll", "flip", "rot90"), _TURN),
}
_RESHAPING = ("flatten", "reshape", "view")
_SMOOTH = ("linear", "bilinear", "bicubic", "trilinear", "area")
_CHANNELS, _SIZES = 16, (12, 13)  # of what stands for a map of unknown shape


class Place(NamedTuple):
    """A function called in the ``forward`` of the module of that name."""

    module: str
    function: str
    verdict: Verdict


class _Watch(TorchFunctionMode):
    """Measures each function called outside of the layers, on noise of the shapes that it is given."""

    def __init__(self, dims: int, stack: Sequence[tuple[str, bool]]) -> None:
        super().__init__()
        self.dims, self.stack = dims, stack
        self.errors: dict[tuple[str, str], float] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = dict(kwargs or {})
        output = func(*args, **kwargs)
        name = _name(func)
        if name not in _REMEDIES or not self.stack or self.stack[-1][1]:
            return output
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor) and x.dim() == self.dims + 2 and x.is_floating_point():
            shape = tuple(x.shape)
            known = [_call_error(name, func, shape, args, kwargs, self.dims, last) for last in _layouts(shape)]
            error = min((error for error in known if error is not None), default=0.0)
            if error > LIMIT:
                key = self.stack[-1][0], name
                self.errors[key] = max(error, self.errors.get(key, 0.0))
        return output


def watched(net: nn.Module, shape: Sequence[int]) -> list[Place]:
    """The places that break the symmetry when ``net`` runs on :func:`images_of` that ``shape``."""
    net = ready_copy(net, torch.float32)
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    images = images_of(shape, torch.empty(0) if like is None else like)
    stack: list[tuple[str, bool]] = []
    hooks = []
    for name, module in net.named_modules():
        entry = name, not children(module)
        hooks.append(module.register_forward_pre_hook(partial(_enter, stack, entry)))
        hooks.append(module.register_forward_hook(partial(_leave, stack), always_call=True))
    found: dict[tuple[str, str], dict[str, float]] = {}
    try:
        for image in images:
            stack.clear()
            watch = _Watch(image.dim() - 2, stack)
            try:
                with watch:
                    attempt(net, image.clone())
            except CannotRunError:
                continue
            for key, error in watch.errors.items():
                found.setdefault(key, {})["x".join(map(str, image.shape[2:]))] = error
    finally:
        for hook in hooks:
            hook.remove()
    return [
        Place(module, name, Verdict(BREAKS, _measured(max(at.values()), list(at), len(images)), _REMEDIES[name]))
        for (module, name), at in found.items()
    ]


def _enter(stack: list[tuple[str, bool]], entry: tuple[str, bool], _module: nn.Module, _args: Any) -> None:
    inside = bool(stack) and stack[-1][1]  # what a layer calls is its own affair
    stack.append((entry[0], inside or entry[1]))


def _leave(stack: list[tuple[str, bool]], _module: nn.Module, _args: Any, _output: Any) -> None:
    if stack:
        stack.pop()


def _measured(error: float, sizes: Sequence[str], of: int) -> str:
    where = "" if len(sizes) == of else f" at {', '.join(sizes)}"
    return f"measured: breaks by {error:.2g}{where}"


def _name(func: Any) -> str:
    return getattr(func, "__name__", "").strip("_")


def _layouts(shape: Sequence[int]) -> tuple[bool, ...]:
    """Whether the channels of a map are last: images are square more often than not, and channels first."""
    first, last = (len(set(axes)) == 1 for axes in (shape[2:], shape[1:-1]))
    return (False, True) if first and last and len(shape) > 3 else (last and not first,)


def _call_error(
    name: str,
    func: Callable[..., Any],
    shape: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    dims: int,
    last: bool,
) -> float | None:
    """The error of one call on noise in place of its first argument; None if it is not known."""
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    like = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    try:
        function = partial(_first_last, func, args[1:], rest)
        if name in _RESHAPING and attempt(function, noise(shape, like)).dim() != 2:
            return None
        return commuting_error(function, (noise(shape, like),), dims, last=(last,))
    except CannotRunError:
        return None


def _first_last(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], x: Tensor) -> Any:
    return func(x, *args, **kwargs)


class _Tracer(torch.fx.Tracer):
    """Looks into everything but layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return not children(m) or m.__module__.partition(".")[0] == "isoconv"


def traced(net: nn.Module, dims: int) -> tuple[list[Place], list[str]]:
    """The places seen in a trace of ``net``, which does not run; and the modules whose ``forward`` cannot be traced."""
    places: dict[Place, None] = {}
    unseen: list[str] = []
    _trace(net, "", dims, places, unseen)
    return list(places), unseen


def _trace(module: nn.Module, name: str, dims: int, places: dict[Place, None], unseen: list[str]) -> None:
    if not children(module):
        return
    tracer = _Tracer()
    try:
        graph = attempt(tracer.trace, module, defaults_of(module))
    except CannotRunError:
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            unseen.append(name or "(root)")
        for child, part in children(module).items():
            _trace(part, f"{name}.{child}" if name else child, dims, places, unseen)
        return
    for node in graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}))
        where = ".".join(filter(None, (name, stack[-1] if stack else "")))
        for function, verdict in _judged(node, dims):
            places[Place(where, function, verdict)] = None


def _judged(node: torch.fx.Node, dims: int) -> Iterator[tuple[str, Verdict]]:
    """The verdict on a node, if there is something to say."""
    target = node.target
    name = target if isinstance(target, str) else _name(target)
    if node.op not in ("call_function", "call_method") or name.strip("_") not in _REMEDIES or not node.args:
        return
    name = name.strip("_")
    if name == "getitem" and not _slices(node.args[1]):
        return
    rest = [leaf for leaf in tree_leaves((node.args[1:], node.kwargs)) if isinstance(leaf, torch.fx.Node)]
    if rest:
        if name not in _RESHAPING and node.kwargs.get("mode") not in _SMOOTH:
            yield (
                name,
                Verdict(DEPENDS, "symmetric only for some of the sizes or weights that it computes", _REMEDIES[name]),
            )
        return
    func = getattr(Tensor, target) if isinstance(target, str) else target
    first, last = (_traced_error(name, func, node, dims, is_last) for is_last in (False, True))
    if name in _RESHAPING and first > LIMIT:
        yield name, Verdict(DEPENDS, "symmetric only if one pixel per channel is left here", _REMEDIES[name])
    elif min(first, last) > LIMIT and name != "getitem":
        yield name, Verdict(BREAKS, f"measured: breaks by {min(first, last):.2g}", _REMEDIES[name])
    elif first > LIMIT:
        yield (
            name,
            Verdict(DEPENDS, "symmetric only if the axes that it changes are not those of the images", _REMEDIES[name]),
        )


def _traced_error(name: str, func: Callable[..., Any], node: torch.fx.Node, dims: int, last: bool) -> float:
    """The worst at an even and an odd size; 0 if it is not known."""
    shapes = [(1, _CHANNELS, *[size] * dims) for size in _SIZES]
    errors = [_call_error(name, func, shape, node.args, dict(node.kwargs), dims, last) for shape in shapes]
    return max((error for error in errors if error is not None), default=0.0)


def _slices(index: Any) -> bool:
    """Whether an index is one of tensors, not one of tuples and shapes."""
    parts = index if isinstance(index, tuple) else ()
    return any(isinstance(part, slice) and part != slice(None) for part in parts)
