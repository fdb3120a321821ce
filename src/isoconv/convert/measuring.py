"""Small measurements: whether a function, a layer or a whole network commutes with the symmetries of the grid."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from isoconv.symmetry import Symmetry, distance, fields_of, mirrors, quarter_turn

__all__ = [
    "LIMIT",
    "CannotRunError",
    "Measurement",
    "alone",
    "attempt",
    "commuting_error",
    "copied",
    "defaults_of",
    "generators",
    "images_of",
    "ready_copy",
    "noise",
    "verify",
]

LIMIT = 1e-4  # relative errors up to this are rounding, also where a network rounds to float32 on its way
_SINGLE_LIMIT = 1e-2  # the same in units of the spread between images, in deep networks that do not run in float64
_PLAIN = 0.1  # float32 rounds to less than this, if the spread is above its floor
_ROUNDING = {torch.float64: 2e-12}  # relative to the output: that may be rounding; 1e-2 in other precisions
_VANISHED = "its output is the same for every image, up to rounding"
_SIZES = (12, 13)
_TINY = 1e-2
_COUNTS = (
    "num_features",
    "num_channels",
    "channels",
    "in_channels",
    "in_chs",
    "in_features",
    "dim",
    "normalized_shape",
)


class CannotRunError(ValueError):
    """Code of others raised an error."""


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function`` called without gradients, its random numbers its own.

    Raises:
        CannotRunError: for any error in it, in one line.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return function(*args, **kwargs)
    except Exception as error:
        raise CannotRunError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def defaults_of(module: nn.Module) -> dict[str, Any]:
    """The arguments of its ``forward`` that can be left out, with their values."""
    optional = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in optional if p.default is not p.empty}


def generators(dims: int, reflections: bool = True) -> list[Symmetry]:
    """Elements that make up all symmetries of the grid: a mirror and the quarter turns of neighbouring axes; without
    ``reflections`` the latter, if there are any."""
    turns = [quarter_turn(dims, 1, plane) for plane in pairwise(range(-dims, 0))]
    return [mirrors(dims)[-1], *turns] if reflections or not turns else turns


def commuting_error(
    function: Callable[..., Any], args: Any, dims: int, *, last: Sequence[bool] = (False, True)
) -> float | None:
    """How far ``function`` is from commuting with the symmetries of ``dims`` axes: the worst relative error in the
    2-norm, channels seen first or ``last`` as fits best. None where its output tells nothing of the axes.

    Args:
        function: called with ``args``, whose tensors (N, C, *spatial) turn, and all others stay.

    Raises:
        CannotRunError: it cannot run on the inputs, upright or turned.
    """
    output = tree_leaves(attempt(function, *copied(args)))
    errors = [_worst(function, args, output, dims, -1 if is_last else 1) for is_last in last]
    return min((error for error in errors if error is not None), default=None)


def _worst(function: Callable[..., Any], args: Any, upright: Sequence[Any], dims: int, channels: int) -> float | None:
    space = next((leaf.movedim(channels, 1).shape[2:] for leaf in tree_leaves(args) if _is_map(leaf, dims)), ())
    alike = len(set(space)) < 2  # else numbers that a function is given for each axis would have to turn as well
    errors = []
    for g in generators(dims) if alike else mirrors(dims):
        turned = tree_leaves(attempt(function, *tree_map(partial(_act, g, channels), args)))
        errors.append(_error(g, channels, turned, upright))
    return None if None in errors else max(error for error in errors if error is not None)


def _is_map(leaf: Any, dims: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == dims + 2


def copied(value: Any) -> Any:
    """A nested structure with tensors of its own, for code that may write into them."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _act(g: Symmetry, channels: int, leaf: Any) -> Any:
    if not _is_map(leaf, len(g.perm)):
        return copied(leaf)
    return g(leaf.movedim(channels, 1)).movedim(1, channels).clone()


def _error(g: Symmetry, channels: int, turned: Sequence[Any], upright: Sequence[Any]) -> float | None:
    """Of maps and of features (N, C); None if there are others."""
    if len(turned) != len(upright):
        return math.inf
    errors = []
    for got, leaf in zip(turned, upright, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.dim() not in (2, len(g.perm) + 2):
            return None
        errors.append(distance(got, _act(g, channels, leaf)))
    return max(errors, default=None)


def noise(shape: Sequence[int], like: Tensor | None = None, seed: int = 0) -> Tensor:
    made = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made if like is None else made.to(like)


def ready_copy(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of ``net`` in eval mode and ``dtype`` whose parameters all count: those that are zero or tiny everywhere,
    as the gains of new branches are, hide what their branches do, and become random."""
    net = copy.deepcopy(net).to(dtype).eval()
    for i, parameter in enumerate(net.parameters()):
        values = parameter.detach()
        if values.numel() and not values.is_meta and values.is_floating_point() and values.abs().max() < _TINY:
            parameter.data = 0.1 * noise(values.shape, values, seed=i)
    return net


def alone(module: nn.Module, dims: int) -> tuple[float | None, float | None]:
    """The errors of a layer that stands alone, on noise of the channels that it seems to be made for, with channels
    first and with channels last; None where it does not run so, or where that tells nothing."""
    try:
        twin = attempt(ready_copy, module, torch.float64)
    except CannotRunError:
        return None, None
    if any(tensor.is_meta for tensor in (*twin.parameters(), *twin.buffers())):
        return None, None
    for channels in _channels(module):
        first, last = (_alone(twin, channels, dims, is_last) for is_last in (False, True))
        if first is not None or last is not None:
            return first, last
    return None, None


def _alone(module: nn.Module, channels: int, dims: int, last: bool) -> float | None:
    worst = 0.0
    for size in _SIZES:
        space = (size,) * dims
        like = next((p for p in module.parameters() if p.is_floating_point()), None)
        x = noise((2, *space, channels) if last else (2, channels, *space), like)
        try:
            error = commuting_error(module, (x,), dims, last=(last,))
        except CannotRunError:
            return None
        if error is None:
            return None
        worst = max(worst, error)
    return worst


def _channels(module: nn.Module) -> Iterator[int]:
    """Numbers of channels that a layer may take, likely ones first."""
    seen: set[int] = set()
    stated = (getattr(module, name, None) for name in _COUNTS)
    counts = [value[0] if isinstance(value, tuple) and value else value for value in stated]
    counts += [n for tensor in (*module.parameters(), *module.buffers()) for n in tensor.shape[:2]]
    for count in (*counts[:12], 8):
        if isinstance(count, int) and count > 0 and count not in seen and count not in _SIZES:
            seen.add(count)
            yield count


def images_of(shape: Sequence[int], like: Tensor | None = None) -> list[Tensor]:
    """Noise of a batch of one at the spatial sizes of ``shape`` (N, C, *spatial) and, in steps of one pixel along every
    axis, above: all remainders of 4 in 1D and 2D, of 2 in 3D."""
    return [noise((1, shape[1], *(n + more for n in shape[2:])), like) for more in range(2 if len(shape) > 4 else 4)]


class Measurement(NamedTuple):
    """A whole network at one spatial size of its input: the error, in units of the spread of its output between images,
    and the ``limit`` up to which that is rounding; or the ``reason`` why there is none."""

    size: tuple[int, ...]
    error: float | None
    limit: float
    reason: str = ""

    @property
    def label(self) -> str:
        return "x".join(map(str, self.size))

    @property
    def kept(self) -> bool:
        return self.error is not None and self.error <= self.limit

    @property
    def lost(self) -> bool:
        return self.error is not None and self.error > self.limit


def verify(net: nn.Module, shape: Sequence[int], group: Sequence[Symmetry]) -> list[Measurement]:
    """``net`` measured on :func:`images_of` that ``shape``, turned by each of ``group``: in float32, which is fast, and
    in float64 where that does not decide, if it can run so."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    single = ready_copy(net, torch.float32)
    images = images_of(shape, like.float())
    found = [_measured(single, image, group, LIMIT) for image in images]
    plain = all(m.reason != _VANISHED if m.error is None else not LIMIT < m.error <= _PLAIN for m in found)
    if plain and any(m.error is not None for m in found):
        return found
    double = ready_copy(net, torch.float64)
    exact = [_measured(double, image.double(), group, LIMIT) for image in images]
    if any(m.error is not None or m.reason == _VANISHED for m in exact):
        return exact
    return [_measured(single, image, group, _SINGLE_LIMIT) for image in images]


def _measured(net: nn.Module, image: Tensor, group: Sequence[Symmetry], limit: float) -> Measurement:
    try:
        error, reason = _spread_error(net, image, group, limit)
    except ValueError as failure:  # of the network, or of the fields that it puts out
        error, reason = None, str(failure)
    return Measurement(tuple(image.shape[2:]), error, limit, reason)


def _spread_error(net: nn.Module, x: Tensor, group: Sequence[Symmetry], limit: float) -> tuple[float | None, str]:
    inputs, outputs = fields_of(net)
    upright, other = _maps(net, x), _maps(net, noise(x.shape, x, seed=1))
    if not upright:
        return None, "it returns no tensor"
    if any(leaf.dim() not in (2, x.dim()) for leaf in upright):
        shape = next(tuple(leaf.shape) for leaf in upright if leaf.dim() not in (2, x.dim()))
        return None, f"nothing is known of the axes of an output of shape {shape}"
    errors, vanished = [], False
    for g in group:
        turned = _maps(net, inputs.act(g, x))
        if len(turned) != len(upright):
            return math.inf, ""
        for got, leaf, alien in zip(turned, upright, other, strict=True):
            expected = outputs.act(g, leaf)
            if got.shape != expected.shape:
                return math.inf, ""
            differences = got - expected, leaf - alien, leaf
            difference, spread, norm = (values.double().norm().item() for values in differences)
            if not math.isfinite(difference + spread):
                return None, "its output is not finite"
            rounding = _ROUNDING.get(leaf.dtype, 1e-2) * norm
            if difference > rounding or (spread > rounding and difference <= limit * spread):
                errors.append(difference / spread if spread else math.inf)
            elif difference or spread or x.dtype != torch.float64:  # neither tells more than rounding does
                vanished = True
    worst = max(errors, default=None)
    if worst is None or (vanished and worst <= limit):
        return None, _VANISHED
    return worst, ""


def _maps(net: nn.Module, x: Tensor) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(attempt(net, x.clone())) if isinstance(leaf, Tensor)]
