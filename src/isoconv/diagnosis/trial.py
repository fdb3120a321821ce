"""Runs of a network upright and turned: the errors of each layer and of the output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from isoconv.convert.rules import kind, layers
from isoconv.diagnosis.result import Size
from isoconv.diagnosis.turns import CHANNELS_FIRST, CHANNELS_LAST, Turn, View, tensors, worst
from isoconv.nn.dense import cost
from isoconv.symmetry import Action, Scalars, acts, carries_fields, fields_of

CLEARLY = 0.1


class Call(NamedTuple):
    """One call of a layer: its number among the layers, (args, kwargs), and output."""

    layer: int
    inputs: Any
    output: Any


class Errors(NamedTuple):
    """Errors around one call: of its input, that it makes itself, of its output."""

    before: float | None = None
    own: float | None = None
    total: float | None = None


class Trial(NamedTuple):
    """What was measured at one size.

    Attributes:
        calls: number of the layer, of each call.
        shapes, costs: of each layer its output's shape and its multiply-adds.
        errors, output: by symmetry the errors around each call, and that of the network's output.
    """

    size: Size
    calls: list[int]
    shapes: dict[int, Size]
    costs: Counter[int]
    errors: dict[str, list[Errors]]
    output: dict[str, float | None]


def measure(
    net: nn.Module,
    modules: Sequence[nn.Module],
    x: Tensor,
    turns: Sequence[Turn],
    fields: Sequence[Action],
    notes: list[str],
) -> Trial:
    """Run ``net`` on ``x`` and on ``x`` turned, and compare what goes into and comes out of each of its ``modules``,
    which speak of ``fields`` beside scalars."""
    upright = {exact: _record(net, modules, source) for exact, source in {t.exact: t.source(x) for t in turns}.items()}
    first = upright[True][0]
    shapes = {call.layer: tuple(tensors(call.output)[0].shape) for call in first if tensors(call.output)}
    order = [call.layer for call in first]
    trial = Trial(tuple(x.shape[2:]), order, shapes, _costs(modules, first), {}, {})
    for turn in turns:
        calls, output = upright[turn.exact]
        errors = trial.errors.setdefault(turn.symmetry, [Errors()] * len(order))
        trial.output.setdefault(turn.symmetry, None)
        try:
            turned_calls, turned_output = _record(net, modules, fields_of(net)[0].act(turn.g, turn.source(x)))
        except ValueError as error:
            notes.append(f"Not all of {turn.symmetry} is measured: {error}.")
            continue
        if any(t.any() for t in tensors(output)):  # zeros are symmetric whatever the network is
            so_far = trial.output[turn.symmetry]
            trial.output[turn.symmetry] = worst((so_far, _output_error(net, turn, turned_output, output, fields)))
        if any([call.layer for call in some] != order for some in (calls, turned_calls)):
            notes.append("Other layers run when the input is turned: only the whole network is measured there.")
            continue
        for i, (turned, call) in enumerate(zip(turned_calls, calls, strict=True)):
            measured = _errors(modules[call.layer], turn, turned, call, fields)
            errors[i] = Errors(*map(worst, zip(errors[i], measured, strict=True)))
    return trial


def _output_error(net: nn.Module, turn: Turn, turned: Any, upright: Any, fields: Sequence[Action]) -> float | None:
    if carries_fields(net):
        own = fields_of(net)[1]
        return turn.error(turned, upright, [View(own)]) if acts(own, turn.g) else math.inf
    scalars = [CHANNELS_FIRST, CHANNELS_LAST]
    maps = [*scalars, *map(View, fields)]
    pairs = zip(tensors(turned), tensors(upright), strict=False)
    return worst(turn.error(t, u, maps if u.dim() > 2 else scalars) for t, u in pairs)  # logits stay as they are


def _errors(module: nn.Module, turn: Turn, turned: Call, upright: Call, fields: Sequence[Action]) -> Errors:
    inputs, outputs = _views(module, fields)
    if carries_fields(module) and not acts(inputs[0].fields, turn.g):
        return Errors()
    tries = (_moved(turn, turned.inputs, upright.inputs, view) for view in inputs)
    known = [(error, moved) for error, moved in tries if error is not None]
    least = min((error for error, _ in known), default=math.inf)
    before = least if known else None
    if carries_fields(module) and not acts(outputs[0].fields, turn.g):
        return Errors(before, math.inf)
    total = turn.error(turned.output, upright.output, outputs)
    owns = []
    for error, moved in known:
        if least >= CLEARLY * error or error == least:  # else another view is clearly the right one
            owns += _own(module, turn, moved, upright.output, outputs)
    return Errors(before, min(owns, default=None), total)


def _moved(turn: Turn, turned: Any, upright: Any, view: View) -> tuple[float | None, Any]:
    """The error of the inputs ``turned``, and the inputs ``upright`` turned, in this view; some may be scalars beside
    it, such as masks."""
    leaves, spec = tree_flatten(upright)
    views = [view] if isinstance(view.fields, Scalars) else [view, CHANNELS_FIRST]
    pairs = zip(tree_leaves(turned), leaves, strict=False)
    matches = [turn.match(t, u, views) if isinstance(u, Tensor) else (None, u) for t, u in pairs]
    return worst(error for error, _ in matches), tree_unflatten([moved for _, moved in matches], spec)


def _views(module: nn.Module, fields: Sequence[Action]) -> tuple[Sequence[View], Sequence[View]]:
    """How the input and the output of ``module`` may be seen, in a network whose layers speak of ``fields``."""
    if carries_fields(module):
        inputs, outputs = fields_of(module)
        return [View(inputs)], [View(outputs)]
    views = [CHANNELS_FIRST, *map(View, fields)]
    if not (kind(module) or type(module)).__name__.endswith(("1d", "2d", "3d")):
        views.insert(1, CHANNELS_LAST)
    return views, views


def _own(module: nn.Module, turn: Turn, inputs: Any, output: Any, views: Sequence[View]) -> list[float]:
    """The error of ``module`` on its turned inputs, if these are such as it can take and its output can be judged."""
    args, kwargs = _copied(inputs)  # it may work in place
    try:
        error = turn.error(module(*args, **kwargs), output, views)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return []
    return [] if error is None else [error]


def _record(net: nn.Module, modules: Sequence[nn.Module], x: Tensor) -> tuple[list[Call], Any]:
    """Run ``net`` and keep what goes into and comes out of each of ``modules``, in the order in which they end."""
    calls: list[Call] = []
    waiting: list[Any] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        waiting.append(_copied((args, kwargs)))

    def after(number: int, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        calls.append(Call(number, waiting.pop(), _copied(output)))

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    hooks += [m.register_forward_hook(partial(after, i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        return calls, run(net, x)
    finally:
        for hook in hooks:
            hook.remove()


def run(net: nn.Module, x: Tensor) -> Any:
    """The output of ``net``. Raises ValueError if it cannot run on ``x``."""
    try:
        return net(x.clone())
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot run on an input of shape {tuple(x.shape)} ({line(error)}); give the shape "
            "that it is made for, N x channels x spatial axes"
        ) from error


def total_cost(net: nn.Module, x: Tensor) -> int:
    """Multiply-adds of ``net`` for ``x``."""
    modules = [layer.module for layer in layers(net)]
    return _costs(modules, _record(net, modules, x)[0]).total()


def _costs(modules: Sequence[nn.Module], calls: Sequence[Call]) -> Counter[int]:
    """Multiply-adds of the convolutions and linear layers, by their numbers."""
    counts: Counter[int] = Counter()
    for call in calls:
        inputs, outputs = tensors(call.inputs), tensors(call.output)
        if inputs and outputs and (found := cost(modules[call.layer], inputs[0], outputs[0])) is not None:
            counts[call.layer] += found.banded
    return counts


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def line(error: Exception) -> str:
    """``error`` in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
