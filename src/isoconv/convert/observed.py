"""What a layer of another library computes, seen by running it alone: the one convolution or pooling in its
``forward``, and how that is padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from isoconv._checks import ntuple
from isoconv.convert.measuring import LIMIT, CannotRunError, attempt, commuting_error, noise
from isoconv.convert.windows import AVG_POOLS, CONVS, DIMS, MAX_POOLS, Module, Window, window
from isoconv.ops.resampling import same_padding
from isoconv.symmetry import distance

__all__ = ["Calls", "Twin", "twin_of"]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVG = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_WINDOWS = {
    f"{name}{n}d": (n, arguments)
    for name, arguments in (("conv", _CONV), ("max_pool", _MAX), ("avg_pool", _AVG))
    for n in (1, 2, 3)
}


class Twin(NamedTuple):
    """A layer that computes the same as another.

    Attributes:
        layer: of torch.nn; None if the other one is a fixed filter, which only has to be centred.
        window: of the layer.
        same: whether the input is padded first, at each size just enough for ceil(n / stride) windows, and one sample
            more behind than before where that is odd, as TensorFlow does; ``window`` has no padding then.
        computed: whether the weight is computed in ``forward``.
    """

    layer: Module | None
    window: Window
    same: bool = False
    computed: bool = False


class Calls(TorchFunctionMode):
    """Keeps the functions of torch that run: each with its arguments and output."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Any, tuple, dict[str, Any], Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        output = func(*args, **(kwargs or {}))
        self.kept.append((func, args, kwargs or {}, output))
        return output


def twin_of(module: Module) -> Twin | None:
    """The twin of a layer that is derived from a convolution or pooling layer of torch.nn and has a ``forward`` of its
    own, or that is a strided filter made of buffers; None for other layers, and for those that compute something
    else."""
    tensors = [*module.parameters(), *module.buffers()]
    if is_parametrized(module) or module._modules or any(is_lazy(t) or t.is_meta for t in tensors):
        return None
    filters = (
        [b for b in module.buffers() if b.dim() > 2] if not module._parameters and hasattr(module, "stride") else []
    )
    windowed = isinstance(module, tuple(DIMS))
    try:
        if windowed:
            channels, n = (
                getattr(module, "in_channels", 2),
                next(DIMS[base] for base in type(module).__mro__ if base in DIMS),
            )
            return _plain_twin(module, channels, n, _extent(module.kernel_size, getattr(module, "dilation", 1), n))
        if filters:
            return _filter_twin(module, filters[0])
    except (CannotRunError, TypeError, ValueError):  # the latter two: its arguments are not those of a window
        return None
    return None


def _extent(kernel_size: Any, dilation: Any, n: int) -> int:
    pairs = zip(ntuple(kernel_size, n, "kernel_size"), ntuple(dilation, n, "dilation"), strict=True)
    return max(d * (k - 1) + 1 for k, d in pairs)


def _plain_twin(module: Module, channels: int, n: int, extent: int) -> Twin | None:
    images = [_image(module, channels, n, 2 * extent + more) for more in (1, 2, 3, 4)]
    name, given, _ = _only_window(module, images[0])
    view = _window(name, given)
    layer = _layer(module, name, given, view)
    for same in (False, True):
        if same and any(max(pair) for pair in view.padding):
            break
        twin = Twin(layer, view, same, name.startswith("conv") and not isinstance(given["weight"], nn.Parameter))
        if all(_agrees(module, twin, image) for image in images):
            return _unstrided(twin) if same and not view.strided else twin
    return None


def _unstrided(twin: Twin) -> Twin | None:
    """Without a stride the padding is the same at all sizes, and torch.nn has it: for convolutions."""
    layer: Module = twin.layer
    if type(layer) not in CONVS:
        return None
    layer.padding = "same"
    return Twin(layer, window(layer), computed=twin.computed)


def _filter_twin(module: Module, kernel: Tensor) -> Twin | None:
    """If centring alone makes the filter symmetric."""
    n, channels = kernel.dim() - 2, getattr(module, "channels", None) or len(kernel)
    images = [_image(module, channels, n, 2 * max(kernel.shape[2:]) + more) for more in (1, 2, 3, 4)]
    name, given, whole = _only_window(module, images[0])
    extra = [a - b for a, b in zip(given["input"].shape[2:], images[0].shape[2:], strict=True)]
    plain = _window(name, given)
    padding = tuple(
        (before + e // 2, after + e - e // 2) for (before, after), e in zip(plain.padding, extra, strict=True)
    )
    view = plain._replace(padding=padding)
    if not (whole and view.strided) or view.flaw():
        return None
    grid = view.grid("max" if name.startswith("max") else "avg")
    errors = [commuting_error(lambda x: module.forward(grid(x)), (image,), n, last=(False,)) for image in images]
    return Twin(None, view) if all(error is not None and error < LIMIT for error in errors) else None


def _image(module: nn.Module, channels: int, n: int, size: int) -> Tensor:
    like = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    made = noise((1, channels, *[size] * n), seed=size)
    return made.float() if like is None else made.to(like)


def _only_window(module: nn.Module, x: Tensor) -> tuple[str, Mapping[str, Any], bool]:
    """Name and arguments of the only window function in the ``forward`` of a layer, and whether its output is that of
    the layer.

    Raises:
        CannotRunError: there is none, or more than one.
    """
    with Calls() as calls:
        output = attempt(module.forward, x)
    found = [call for call in calls.kept if getattr(call[0], "__name__", "") in _WINDOWS]
    if len(found) != 1:
        raise CannotRunError(f"{len(found)} window functions")
    func, args, kwargs, result = found[0]
    names = _WINDOWS[func.__name__][1]
    return func.__name__, dict(zip(names, args, strict=False)) | kwargs, result is output


def _window(name: str, given: Mapping[str, Any]) -> Window:
    n, _ = _WINDOWS[name]
    size = given["weight"].shape[2:] if name.startswith("conv") else ntuple(given["kernel_size"], n, "kernel_size")
    stride = given.get("stride", 1 if name.startswith("conv") else None)
    padding = ntuple(given.get("padding", 0), n, "padding")
    return Window(
        tuple(size),
        tuple(size) if stride is None else ntuple(stride, n, "stride"),
        tuple((p, p) for p in padding),
        ntuple(given.get("dilation", 1), n, "dilation"),
    )


def _layer(module: Module, name: str, given: Mapping[str, Any], view: Window) -> Module:
    n, padding = _WINDOWS[name][0], [before for before, _ in view.padding]
    if name.startswith("max"):
        return list(MAX_POOLS)[n - 1](
            view.kernel_size, view.stride, padding, view.dilation, ceil_mode=given.get("ceil_mode", False)
        )
    if name.startswith("avg"):
        known = ("ceil_mode", "count_include_pad", "divisor_override")
        return list(AVG_POOLS)[n - 1](
            view.kernel_size, view.stride, padding, **{k: given[k] for k in known if k in given}
        )
    weight, bias, groups = given["weight"], given.get("bias"), given.get("groups", 1)
    conv: Module = list(CONVS)[n - 1](
        *(weight.shape[1] * groups, len(weight), view.kernel_size, view.stride, padding, view.dilation, groups),
        bias=bias is not None,
        device="meta",
    )
    conv.weight, conv.bias = _parameter(weight, module), _parameter(bias, module)
    return conv.train(module.training)


def _parameter(tensor: Tensor | None, module: Module) -> nn.Parameter | None:
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach().clone(), module.weight.requires_grad)


def _agrees(module: nn.Module, twin: Twin, x: Tensor) -> bool:
    """Whether a layer and its twin give the same output."""
    padded, layer = x, twin.layer
    if layer is None:
        return False
    if twin.same:
        pairs = [
            same_padding(n, *axis) for n, *axis in zip(x.shape[2:], *twin.window[:2], twin.window.dilation, strict=True)
        ]
        fill = -torch.inf if type(layer) in MAX_POOLS else 0.0
        padded = F.pad(x, [side for total in reversed(pairs) for side in (total // 2, total - total // 2)], value=fill)
    return distance(attempt(layer, padded), attempt(module.forward, x)) < 1e-5
