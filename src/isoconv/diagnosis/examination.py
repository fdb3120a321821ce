"""Which layers of a network break its symmetry: measured on the network at work, with the reason and the remedy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from isoconv.convert import conversion_report, convert
from isoconv.convert.conversion import check_module
from isoconv.convert.report import Row
from isoconv.convert.rules import BANDED, CONVERTIBLE, CONVS, ISOTROPIC, TRANSPOSED, UNAFFECTED, UNKNOWN, kind, layers
from isoconv.diagnosis.result import Diagnosis, Finding, LayerDiagnosis, Size
from isoconv.diagnosis.turns import Turn, images_for, tensors, turns_of, worst
from isoconv.symmetry import distance

__all__ = ["doctor"]

EXACT = ("rot90", "flip")
FREE_ANGLE_LIMIT = 0.25
CLEARLY = 0.1

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_BACKWARDS = (*TRANSPOSED, *TRANSPOSED.values())
_WEIGHTED = (*CONVS, *TRANSPOSED, *BANDED, nn.Linear)
_CODE = "code in a forward(), or a layer that shows no error (-)", "use layers that isoconv.conversion_report can judge"
_SUM = (
    "resampling, down-sampling and non-linear layers, none of them exact at such angles",
    "smooth kernels and images lose less: convert(net, profile='gaussian')",
)


def doctor(
    net: nn.Module, input: Tensor | Sequence[int], *, angle: float = 30.0, seed: int = 0, tolerance: float | None = None
) -> Diagnosis:
    """Measure layer by layer how far ``net``, converted or not, is from commuting with rotations and reflections.

    The network runs on an input and on the same turned: by 90 degrees in every plane, flipped along every axis, and
    turned by a free angle in every plane. Of each layer two relative errors are taken, in the 2-norm, the worst over
    the planes or axes: its error so far, of its output against that for the upright input, turned (or as it is where
    the spatial axes are gone); and its own, of the layer alone on its upright input, turned. All of it is done at the
    size of the input and at one pixel more along every axis, since a symmetry can hold at some sizes only, and for the
    whole network once more after :func:`isoconv.convert`.

    An error at a free angle is also that of resampling, and never zero. A layer counts as breaking that symmetry if it
    breaks that to 90 degrees, or if the error exceeds 0.25 and its kernel is not isotropic.

    Args:
        net: any module that maps one tensor to tensors; it runs in eval mode without gradients, its mode is restored.
        input: images (N, C, 1 to 3 spatial axes), best smooth ones; or such a shape, for smooth noise of mean 0 and
            variance 1. Keep it small: the inputs and outputs of all layers are held at once.
        angle: the free angle, degrees.
        seed: of the noise.
        tolerance: relative errors up to this are rounding; None stands for 1e-4, or 1e-2 in half precision and on a
            GPU, which may round to TF32.

    Raises:
        TypeError: ``net`` is no module, or returns no tensor.
        ValueError: an impossible input or option, or the network cannot run on the input or has no weights yet.
    """
    check_module(net)
    if any(parameter.is_meta for parameter in net.parameters()):
        raise ValueError("the network is on the meta device, without values to compute with; load its weights first")
    if not math.isfinite(angle) or angle % 90 == 0:
        raise ValueError(f"angle must be other than the multiples of 90 degrees, measured anyway; got {angle:g}")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a relative error from 0 up, got {tolerance:g}")
    x = images_for(net, input, seed)
    if tolerance is None:
        tolerance = 1e-2 if x.is_cuda or x.dtype in (torch.float16, torch.bfloat16) else 1e-4
    training = [m for m in net.modules() if m.training]
    net.eval()
    try:
        with torch.no_grad():
            return _examine(net, x, turns_of(x.dim() - 2, angle), tolerance)
    finally:
        for m in training:
            m.training = True


class _Call(NamedTuple):
    """One call of a layer: its number among the layers, (args, kwargs), and output."""

    layer: int
    inputs: Any
    output: Any


class _Errors(NamedTuple):
    """Errors around one call: of its input, that it makes itself, of its output."""

    before: float | None = None
    own: float | None = None
    total: float | None = None


class _Trial(NamedTuple):
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
    errors: dict[str, list[_Errors]]
    output: dict[str, float | None]


class _Place(NamedTuple):
    """Where a symmetry is lost: in the call of that number, or in code between the ``clean`` one and it; ``exact`` if
    that is no matter of amount."""

    call: int
    in_layer: bool
    clean: int | None
    exact: bool


def _examine(net: nn.Module, x: Tensor, turns: Sequence[Turn], tolerance: float) -> Diagnosis:
    output = _run(net, x)
    if not tensors(output):
        raise TypeError(f"{type(net).__name__} returns no tensor, got {type(output).__name__}; wrap it to return one")
    notes = []
    if not all(t.isfinite().all() for t in tensors(output)):
        notes.append("The output holds NaN or infinity: no error of it is finite.")
    elif not any(t.any() for t in tensors(output)):
        notes.append("The output is zero everywhere, which tells nothing: use a trained network, or another input.")
    elif _above(worst(map(distance, tensors(_run(net, x)), tensors(output))), tolerance):
        notes.append("The output for the same input changes from run to run: errors of that size mean nothing.")
    modules, report = [layer.module for layer in layers(net)], conversion_report(net)
    rows = report.rows
    try:
        converted = convert(net)
    except (ValueError, TypeError, RuntimeError) as error:
        converted = None
        notes.append(f"isoconv.convert fails on this network: {_line(error)}.")
    larger = [n + 1 for n in x.shape[2:]]
    trials: list[_Trial] = []
    after: list[_Trial] = []
    for image in (x, F.interpolate(x, larger, mode=_LINEAR[x.dim()])):
        try:
            trials.append(_trial(net, modules, image, turns, notes))
            after += [] if converted is None else [_trial(converted, [], image, turns, notes)]
        except ValueError as error:  # of the larger size, or of the converted network
            if not trials:
                raise
            notes.append(f"One size is left out: {error}.")
    limits = {turn.symmetry: tolerance if turn.exact else FREE_ANGLE_LIMIT for turn in turns}
    found = (_finding(symmetry, limits, trials, after, rows) for symmetry in limits)
    if idle := [_label(row) for i, row in enumerate(rows) if i not in trials[0].calls]:
        notes.append(f"Layers that did not run: {', '.join(idle)}.")
    return Diagnosis(
        type(net).__name__,
        tuple(trial.size for trial in trials),
        tolerance,
        tuple(found),
        tuple(_layers(trials, limits, rows)),
        (report.parameters, report.parameters_converted),
        (trials[0].costs.total(), None if converted is None else _cost(converted, x)),
        tuple(dict.fromkeys(notes)),
    )


def _cost(net: nn.Module, x: Tensor) -> int:
    modules = [layer.module for layer in layers(net)]
    return _costs(modules, _record(net, modules, x)[0]).total()


def _trial(net: nn.Module, modules: Sequence[nn.Module], x: Tensor, turns: Sequence[Turn], notes: list[str]) -> _Trial:
    upright = {exact: _record(net, modules, source) for exact, source in {t.exact: t.source(x) for t in turns}.items()}
    first = upright[True][0]
    shapes = {call.layer: tuple(tensors(call.output)[0].shape) for call in first if tensors(call.output)}
    order = [call.layer for call in first]
    trial = _Trial(tuple(x.shape[2:]), order, shapes, _costs(modules, first), {}, {})
    for turn in turns:
        calls, output = upright[turn.exact]
        errors = trial.errors.setdefault(turn.symmetry, [_Errors()] * len(order))
        trial.output.setdefault(turn.symmetry, None)
        try:
            turned_calls, turned_output = _record(net, modules, turn.act(turn.source(x)))
        except ValueError as error:
            notes.append(f"Not all of {turn.symmetry} is measured: {error}.")
            continue
        if any(t.any() for t in tensors(output)):  # zeros are symmetric whatever the network is
            trial.output[turn.symmetry] = worst((trial.output[turn.symmetry], turn.error(turned_output, output)))
        if any([call.layer for call in some] != order for some in (calls, turned_calls)):
            notes.append("Other layers run when the input is turned: only the whole network is measured there.")
            continue
        for i, (turned, call) in enumerate(zip(turned_calls, calls, strict=True)):
            measured = _errors(modules[call.layer], turn, turned, call)
            errors[i] = _Errors(*map(worst, zip(errors[i], measured, strict=True)))
    return trial


def _errors(module: nn.Module, turn: Turn, turned: _Call, upright: _Call) -> _Errors:
    layouts = (1,) if (kind(module) or type(module)).__name__.endswith(("1d", "2d", "3d")) else (1, -1)
    leaves, spec = tree_flatten(upright.inputs)
    others = tree_leaves(turned.inputs)
    tries = []
    for layout in layouts:
        pairs = zip(others, leaves, strict=False)
        matches = [turn.match(t, u, (layout,)) if isinstance(u, Tensor) else (None, u) for t, u in pairs]
        errors, inputs = zip(*matches, strict=True) if matches else ((), ())
        tries.append((worst(errors), tree_unflatten(inputs, spec)))
    total = turn.error(turned.output, upright.output, layouts)
    known = [(error, inputs) for error, inputs in tries if error is not None]
    if not known:
        return _Errors(total=total)
    before = min(error for error, _ in known)
    owns = []
    for error, inputs in known:
        if before >= CLEARLY * error or error == before:  # else the other layout is clearly the right one
            owns += _own(module, turn, inputs, upright.output, layouts)
    return _Errors(before, min(owns, default=None), total)


def _own(module: nn.Module, turn: Turn, inputs: Any, output: Any, layouts: Sequence[int]) -> list[float]:
    """The error of ``module`` on its turned inputs, if these are such as it can take and its output can be judged."""
    args, kwargs = _copied(inputs)  # it may work in place
    try:
        error = turn.error(module(*args, **kwargs), output, layouts)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return []
    return [] if error is None else [error]


def _record(net: nn.Module, modules: Sequence[nn.Module], x: Tensor) -> tuple[list[_Call], Any]:
    """Run ``net`` and keep what goes into and comes out of each of ``modules``, in the order in which they end."""
    calls: list[_Call] = []
    waiting: list[Any] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        waiting.append(_copied((args, kwargs)))

    def after(number: int, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        calls.append(_Call(number, waiting.pop(), _copied(output)))

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    hooks += [m.register_forward_hook(partial(after, i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        return calls, _run(net, x)
    finally:
        for hook in hooks:
            hook.remove()


def _run(net: nn.Module, x: Tensor) -> Any:
    try:
        return net(x.clone())
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot run on an input of shape {tuple(x.shape)} ({_line(error)}); give the shape "
            "that it is made for, N x channels x spatial axes"
        ) from error


def _place(trial: _Trial, symmetry: str, limit: float, rows: Sequence[Row]) -> _Place | None:
    """Where the symmetry is lost first, if the output has lost it or nothing is known about that."""
    if trial.output[symmetry] is not None and not _above(trial.output[symmetry], limit):
        return None
    clean, exact = None, symmetry in EXACT
    for i, errors in enumerate(trial.errors[symmetry]):
        if exact and _above(errors.before, limit):  # at other angles small errors may have added up
            return _Place(i, False, clean, exact)
        if _above(errors.own, limit) and (exact or _anisotropic(rows[trial.calls[i]])):
            return _Place(i, True, clean, exact)
        if errors.total is not None and not _above(errors.total, limit):
            clean = i
    return _Place(len(trial.calls), False, clean, exact) if _above(trial.output[symmetry], limit) else None


def _finding(
    symmetry: str, limits: Mapping[str, float], trials: Sequence[_Trial], after: Sequence[_Trial], rows: Sequence[Row]
) -> Finding:
    error, converted = (worst(trial.output[symmetry] for trial in some) for some in (trials, after))
    exact = symmetry if symmetry in EXACT else "rot90"  # which other rotations need
    places = []
    for trial in trials:
        place = _place(trial, exact, limits[exact], rows)
        if place is None and symmetry != exact:
            place = _place(trial, symmetry, limits[symmetry], rows)
        places += [] if place is None else [(place, trial)]
    if not places:
        return Finding(symmetry, None if error is None else True, error, converted, None, "", (), "", "")
    place, trial = min(places, key=lambda pair: pair[0].call)
    sizes = tuple(trial.size for _, trial in places)
    ran = [rows[number] for number in trial.calls]
    if place.in_layer:
        row = ran[place.call]
        where = f"in {_label(row)} ({row.type})"
        return Finding(symmetry, False, error, converted, row.name, where, sizes, *_why(row))
    where = f"before {_label(ran[place.call])}" if place.call < len(ran) else "at the end"
    if place.clean is not None:
        where = f"after {_label(ran[place.clean])}, {where}"
    return Finding(symmetry, False, error, converted, None, where, sizes, *(_CODE if place.exact else _SUM))


def _anisotropic(row: Row) -> bool:
    return row.retained is not None and row.retained < 1 - 1e-6


def _why(row: Row) -> tuple[str, str]:
    """Reason and remedy for a layer that was measured to break a symmetry."""
    convert = "convert(net)"
    if row.remedy and not row.remedy.startswith("convert"):
        convert += f", and {row.remedy}"
    if _anisotropic(row):
        return "; ".join(filter(None, ("its kernel is not isotropic", row.reason))), convert
    if row.status == UNKNOWN:
        return f"measured; {row.reason}", "use layers that convert knows, or average it over all turns"
    if row.status in (ISOTROPIC, UNAFFECTED) or not row.reason:
        return "measured; its options, or its input, differ between the axes", "make them alike"
    return row.reason, convert if row.status == CONVERTIBLE else row.remedy


def _layers(trials: Sequence[_Trial], limits: Mapping[str, float], rows: Sequence[Row]) -> Iterator[LayerDiagnosis]:
    blamed: list[str] = []
    for number in dict.fromkeys(trials[0].calls):
        row = rows[number]
        seen = {
            (s, trial.size): [e for e, called in zip(trial.errors[s], trial.calls, strict=True) if called == number]
            for s in limits
            for trial in trials
        }
        own, total = (
            {s: worst(getattr(e, name) for (t, _), errors in seen.items() if t == s for e in errors) for s in limits}
            for name in ("own", "total")
        )
        broken = [
            (s, size)
            for (s, size), errors in seen.items()
            if any(_above(e.own, limits[s]) for e in errors) and (s in EXACT or _anisotropic(row))
        ]
        lost = {s for s, _ in broken}
        inside = [name for name in blamed if row.name and name.startswith(f"{row.name}.")]  # they end before it
        why = (f"{inside[0]} in it does", "") if inside else _why(row)
        blamed += [row.name] if broken else []
        yield LayerDiagnosis(
            row.name,
            row.type,
            trials[0].shapes.get(number, ()),
            own,
            total,
            tuple(s for s in limits if s in lost or ("rot90" in lost and s != "flip")),
            tuple(dict.fromkeys(size for _, size in broken)),
            row.status,
            *(why if broken else ("", "")),
            row.parameters,
            trials[0].costs[number],
        )


def _costs(modules: Sequence[nn.Module], calls: Sequence[_Call]) -> Counter[int]:
    """Multiply-adds of the convolutions and linear layers, by their numbers."""
    counts: Counter[int] = Counter()
    for call in calls:
        module: Any = modules[call.layer]
        if isinstance(module, _WEIGHTED):
            ends = call.inputs if isinstance(module, _BACKWARDS) else call.output
            counts[call.layer] += tensors(ends)[0].numel() * module.weight[0].numel()
    return counts


def _above(error: float | None, limit: float) -> bool:
    return error is not None and error > limit


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _label(row: Row) -> str:
    return row.name or "(root)"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
