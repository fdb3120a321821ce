"""Runs of a network upright and turned: the errors of each layer and of the output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from isoconv.convert.measuring import copied
from isoconv.convert.rules import kind, layers
from isoconv.diagnosis.result import Size
from isoconv.diagnosis.turns import CHANNELS_FIRST, CHANNELS_LAST, Turn, View, tensors, worst
from isoconv.nn.dense import cost
from isoconv.symmetry import Action, Scalars, acts, carries_fields, fields_of

CLEARLY, ROUNDING = 0.1, 1e-4  # what one view of a tensor must fit better than another, as a ratio and a difference


class Call(NamedTuple):
    """One call of a layer: its number among the layers, (args, kwargs), and output."""

    layer: int
    inputs: Any
    output: Any


class Errors(NamedTuple):
    """Errors around one call: that the code before it makes, that it makes itself, and that of its output so far."""

    code: float | None = None
    own: float | None = None
    total: float | None = None


class Trial(NamedTuple):
    """What was measured at one size.

    Attributes:
        calls: number of the layer, of each call.
        shapes, costs: of each layer its output's shape and its multiply-adds.
        errors, output, end: by symmetry the errors around each call, that of the network's output, and that which the
            code after all layers makes.
    """

    size: Size
    calls: list[int]
    shapes: dict[int, Size]
    costs: Counter[int]
    errors: dict[str, list[Errors]]
    output: dict[str, float | None]
    end: dict[str, float | None]


def measure(
    net: nn.Module,
    modules: Sequence[nn.Module],
    x: Tensor,
    turns: Sequence[Turn],
    fields: Sequence[Action],
    notes: list[str],
) -> Trial:
    """Run ``net`` on ``x`` and on ``x`` turned, and compare what goes into and comes out of each of its ``modules``,
    which speak of ``fields`` beside scalars.

    What code between the layers does is seen in one more run, in which each layer puts out what it should: an error of
    its own is neither hidden nor enlarged by layers before it."""
    upright = {exact: _record(net, modules, source) for exact, source in {t.exact: t.source(x) for t in turns}.items()}
    first = upright[True][0]
    shapes = {call.layer: tuple(tensors(call.output)[0].shape) for call in first if tensors(call.output)}
    order = [call.layer for call in first]
    trial = Trial(tuple(x.shape[2:]), order, shapes, _costs(modules, first), {}, {}, {})
    for turn in turns:
        calls, output = upright[turn.exact]
        errors = trial.errors.setdefault(turn.symmetry, [Errors()] * len(order))
        for ends in (trial.output, trial.end):
            ends.setdefault(turn.symmetry, None)
        source = fields_of(net)[0].act(turn.g, turn.source(x))
        try:
            turned_calls, turned_output = _record(net, modules, source)
        except ValueError as error:
            notes.append(f"Not all of {turn.symmetry} is measured: {error}.")
            continue
        telling = any(t.any() for t in tensors(output))  # zeros are symmetric whatever the network is
        if telling:
            so_far = trial.output[turn.symmetry]
            trial.output[turn.symmetry] = worst((so_far, _output_error(net, turn, turned_output, output, fields)))
        if any([call.layer for call in some] != order for some in (calls, turned_calls)):
            notes.append("Other layers run when the input is turned: only the whole network is measured there.")
            continue
        wanted = []
        for i, (turned, call) in enumerate(zip(turned_calls, calls, strict=True)):
            own, total, right = _errors(modules[call.layer], turn, turned, call, fields)
            errors[i] = Errors(errors[i].code, worst((errors[i].own, own)), worst((errors[i].total, total)))
            wanted.append(right)
        if turn.exact and modules:
            try:
                right_calls, right_output = _record(net, modules, source, wanted)
            except ValueError:  # other layers run, or code that the outputs wanted do not suit
                continue
            for i, (turned, call) in enumerate(zip(right_calls, calls, strict=True)):
                code = _code_error(modules[call.layer], turn, turned, call, fields)
                errors[i] = errors[i]._replace(code=worst((errors[i].code, code)))
            if telling:
                end = _output_error(net, turn, right_output, output, fields)
                trial.end[turn.symmetry] = worst((trial.end[turn.symmetry], end))
    return trial


def _output_error(net: nn.Module, turn: Turn, turned: Any, upright: Any, fields: Sequence[Action]) -> float | None:
    if carries_fields(net):
        own = fields_of(net)[1]
        return turn.error(turned, upright, [View(own)]) if acts(own, turn.g) else math.inf
    scalars = [CHANNELS_FIRST, CHANNELS_LAST]
    maps = [*scalars, *map(View, fields)]
    pairs = zip(tensors(turned), tensors(upright), strict=False)
    return worst(turn.error(t, u, maps if u.dim() > 2 else scalars) for t, u in pairs)  # logits stay as they are


def _errors(
    module: nn.Module, turn: Turn, turned: Call, upright: Call, fields: Sequence[Action]
) -> tuple[float | None, float | None, Any]:
    """The error that a layer makes itself, that of its output so far, and what it should have put out; None where that
    is not known."""
    inputs, outputs = _views(module, fields)
    if carries_fields(module) and not acts(inputs[0].fields, turn.g):
        return None, None, None
    tries = (_moved(turn, turned.inputs, upright.inputs, view) for view in inputs)
    known = [(error, moved) for error, moved in tries if error is not None]
    least = min((error for error, _ in known), default=math.inf)
    if carries_fields(module) and not acts(outputs[0].fields, turn.g):
        return math.inf, None, None
    total = turn.error(turned.output, upright.output, outputs)
    likely = [moved for error, moved in known if least >= CLEARLY * error or error == least]  # no view clearly better
    results = [_own(module, turn, moved, upright.output, outputs) for moved in likely]
    own = min((error for error, _ in results if error is not None), default=None)
    if own is None:
        return None, total, None
    return own, total, next(right for error, right in results if error is not None and error <= own + ROUNDING)


def _code_error(module: nn.Module, turn: Turn, turned: Call, upright: Call, fields: Sequence[Action]) -> float | None:
    """The error of what a layer is given."""
    inputs, _ = _views(module, fields)
    if carries_fields(module) and not acts(inputs[0].fields, turn.g):
        return None
    errors = (_moved(turn, turned.inputs, upright.inputs, view)[0] for view in inputs)
    return min((error for error in errors if error is not None), default=None)


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


def _own(module: nn.Module, turn: Turn, inputs: Any, output: Any, views: Sequence[View]) -> tuple[float | None, Any]:
    """The error of ``module`` on its turned inputs, if these are such as it can take and its output can be judged; and
    ``output`` turned."""
    args, kwargs = copied(inputs)  # it may work in place
    try:
        got = module(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None, None
    leaves, spec = tree_flatten(output)
    found = tree_leaves(got)
    if len(found) != len(leaves):
        return math.inf, None
    errors, right = [], []
    for leaf, upright in zip(found, leaves, strict=True):
        both = isinstance(leaf, Tensor) and isinstance(upright, Tensor)
        error, moved = turn.match(leaf, upright, views) if both else (None, leaf)
        errors.append(error)
        right.append(leaf if error is None or moved.dim() != leaf.dim() else moved)
    return worst(errors), tree_unflatten(right, spec)


def _record(
    net: nn.Module, modules: Sequence[nn.Module], x: Tensor, wanted: Sequence[Any] = ()
) -> tuple[list[Call], Any]:
    """Run ``net`` and keep what goes into and comes out of each of ``modules``, in the order in which they end. What is
    ``wanted`` takes the place of what comes out of each call, except None.

    Raises:
        ValueError: ``net`` cannot run on ``x``, or makes other calls than are wanted.
    """
    calls: list[Call] = []
    waiting: list[Any] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        waiting.append(copied((args, kwargs)))

    def after(number: int, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        calls.append(Call(number, waiting.pop(), copied(output)))
        return copied(wanted[len(calls) - 1]) if wanted else None

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    hooks += [m.register_forward_hook(partial(after, i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        output = run(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    if wanted and len(calls) != len(wanted):
        raise ValueError(f"expected {len(wanted)} calls of layers, got {len(calls)}")
    return calls, output


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


def line(error: Exception) -> str:
    """``error`` in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
