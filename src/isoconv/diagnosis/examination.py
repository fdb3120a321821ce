"""Which layers of a network break its symmetry: measured on the network at work, with the reason and the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv.convert import convert
from isoconv.convert.conversion import check_module
from isoconv.convert.report import Row, layer_report
from isoconv.convert.rules import layers
from isoconv.convert.windows import CONVERTIBLE, EQUIVARIANT, ISOTROPIC, UNAFFECTED, UNKNOWN
from isoconv.diagnosis.result import Diagnosis, Finding, LayerDiagnosis, title
from isoconv.diagnosis.trial import Trial, line, measure, run, total_cost
from isoconv.diagnosis.turns import Turn, images_for, tensors, turns_of, worst
from isoconv.symmetry import Action, Scalars, carries_fields, distance, fields_of

__all__ = ["doctor"]

EXACT = ("rot90", "flip")
FREE_ANGLE_LIMIT = 0.25

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_CODE = "code in a forward(), or a layer that shows no error (-)", "use layers that isoconv.conversion_report can judge"
_SUM = (
    "resampling, down-sampling and non-linear layers, none of them exact at such angles",
    "smooth kernels and images lose less: convert(net, profile='gaussian')",
)

_ENLARGED = (
    "no layer's own error exceeds the tolerance, and layers after it enlarge what there is",
    "if it is rounding, net.double() shows so",
)


def doctor(
    net: nn.Module, input: Tensor | Sequence[int], *, angle: float = 30.0, seed: int = 0, tolerance: float | None = None
) -> Diagnosis:
    """Measure layer by layer how far ``net``, converted or not, is from commuting with rotations and reflections.

    The network runs on an input and on the same turned: by 90 degrees in every plane, flipped along every axis, and
    turned by a free angle in every plane. Of each layer two relative errors are taken, in the 2-norm, the worst over
    the planes or axes: its error so far, of its output against that for the upright input, turned (or as it is where
    the spatial axes are gone); and its own, of the layer alone on its upright input, turned. What a layer that has
    ``in_fields`` and ``out_fields`` is given and puts out turns as these say (:class:`isoconv.symmetry.Action`), what
    lies between such layers as fits best. All of it is done at the
    size of the input and at one pixel more along every axis, since a symmetry can hold at some sizes only, and for the
    whole network once more after :func:`isoconv.convert`.

    An error at a free angle is also that of resampling, and never zero. A layer counts as breaking that symmetry if it
    breaks that to 90 degrees, or if the error exceeds 0.25 and its kernel is not isotropic. It breaks one, too, that
    acts on the fields it is given and not on those that it puts out.

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


class _Place(NamedTuple):
    """Where a symmetry is lost: by a call's ``own`` error, or by that of code between the ``clean`` call and it; or
    ``gradually``, there most of all."""

    call: int
    own: float | None
    clean: int | None
    gradually: bool = False


def _examine(net: nn.Module, x: Tensor, turns: Sequence[Turn], tolerance: float) -> Diagnosis:
    output = run(net, x)
    if not tensors(output):
        raise TypeError(f"{type(net).__name__} returns no tensor, got {type(output).__name__}; wrap it to return one")
    notes = []
    if not all(t.isfinite().all() for t in tensors(output)):
        notes.append("The output holds NaN or infinity: no error of it is finite.")
    elif not any(t.any() for t in tensors(output)):
        notes.append("The output is zero everywhere, which tells nothing: use a trained network, or another input.")
    elif _above(worst(map(distance, tensors(run(net, x)), tensors(output))), tolerance):
        notes.append("The output for the same input changes from run to run: errors of that size mean nothing.")
    found_layers = layers(net)
    modules, report = [layer.module for layer in found_layers], layer_report(net, found_layers, {}, {})
    rows, fields = report.rows, _fields(modules)
    try:
        converted = convert(net)
    except (ValueError, TypeError, RuntimeError) as error:
        converted = None
        notes.append(f"isoconv.convert fails on this network: {line(error)}.")
    larger = [n + 1 for n in x.shape[2:]]
    trials: list[Trial] = []
    after: list[Trial] = []
    for image in (x, F.interpolate(x, larger, mode=_LINEAR[x.dim()])):
        try:
            trials.append(measure(net, modules, image, turns, fields, notes))
            after += [] if converted is None else [measure(converted, [], image, turns, fields, notes)]
        except ValueError as error:  # of the larger size, or of the converted network
            if not trials:
                raise
            notes.append(f"One size is left out: {error}.")
    limits = {turn.symmetry: tolerance if turn.exact else FREE_ANGLE_LIMIT for turn in turns}
    found = [_finding(symmetry, limits, trials, after, rows) for symmetry in limits]
    judged = tuple(_layers(trials, limits, rows))
    notes += _hidden(found, judged)
    if idle := [_label(row) for i, row in enumerate(rows) if i not in trials[0].calls]:
        notes.append(f"Layers that did not run: {', '.join(idle)}.")
    return Diagnosis(
        type(net).__name__,
        tuple(trial.size for trial in trials),
        tolerance,
        tuple(found),
        judged,
        (report.parameters, report.parameters_converted),
        (trials[0].costs.total(), None if converted is None else total_cost(converted, x)),
        tuple(dict.fromkeys(notes)),
    )


def _fields(modules: Sequence[nn.Module]) -> list[Action]:
    """Other fields than scalars that layers speak of, each once."""
    found: list[Action] = []
    for fields in (fields for module in modules if carries_fields(module) for fields in fields_of(module)):
        if fields not in found and not isinstance(fields, Scalars):
            found.append(fields)
    return found


def _place(trial: Trial, symmetry: str, limit: float, rows: Sequence[Row]) -> _Place | None:
    """Where the symmetry is lost first, if the output has lost it or nothing is known about that.

    Each place is judged by the error that it makes itself: what follows may hide that from the output, or enlarge it
    from below the limit."""
    if trial.output[symmetry] is not None and not _above(trial.output[symmetry], limit):
        return None
    places = list(_places(trial, symmetry))
    for place, error in places:
        exact_or_directed = symmetry in EXACT or (place.own is not None and _directed(rows[trial.calls[place.call]]))
        if error > limit and exact_or_directed:
            return place
    if not places or not _above(trial.output[symmetry], limit):
        return None
    most, _ = max(places, key=lambda found: found[1])
    return most._replace(gradually=True)


def _places(trial: Trial, symmetry: str) -> Iterator[tuple[_Place, float]]:
    """Every place whose own error is known, with that, in the order of the calls."""
    clean = None
    for i, errors in enumerate(trial.errors[symmetry]):
        if errors.code is not None:
            yield _Place(i, None, clean), errors.code
        if errors.own is not None:
            yield _Place(i, errors.own, clean), errors.own
            clean = i
    if (end := trial.end[symmetry]) is not None:
        yield _Place(len(trial.calls), None, clean), end


def _finding(
    symmetry: str, limits: Mapping[str, float], trials: Sequence[Trial], after: Sequence[Trial], rows: Sequence[Row]
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
    place, trial = min(places, key=lambda pair: (pair[0].gradually, pair[0].call))
    sizes = tuple(trial.size for _, trial in places)
    ran = [rows[number] for number in trial.calls]
    row = ran[place.call] if place.call < len(ran) else None
    if row is not None and place.own is not None:
        layer, where, why = row.name, f"in {_label(row)} ({row.type})", _why(row, place.own)
    else:
        layer, where, why = None, "at the end" if row is None else f"before {_label(row)}", _CODE
        if place.clean is not None:
            where = f"after {_label(ran[place.clean])}, {where}"
    if place.gradually:
        layer, where = None, f"little by little, most {where}"
        if row is None or not _directed(row):
            why = _ENLARGED if symmetry in EXACT else _SUM
    return Finding(symmetry, False, error, converted, layer, where, sizes, *why)


def _hidden(found: Sequence[Finding], judged: Sequence[LayerDiagnosis]) -> Iterator[str]:
    """Notes on symmetries that layers break and the output keeps."""
    for finding in found:
        first = next((layer for layer in judged if finding.symmetry in layer.breaks), None)
        if finding.holds and finding.symmetry in EXACT and first is not None:
            yield (
                f"{title(finding.symmetry)}: kept by the output, though {first.name or '(root)'} ({first.type}) breaks "
                "it: what follows hides or undoes that, on this input at least."
            )


def _anisotropic(row: Row) -> bool:
    return row.retained is not None and row.retained < 1 - 1e-6


def _directed(row: Row) -> bool:
    """Whether the layer tells directions apart, so that a large error at a free angle is its own."""
    return _anisotropic(row) or row.status == EQUIVARIANT


def _why(row: Row, own: float) -> tuple[str, str]:
    """Reason and remedy for a layer that was measured to break a symmetry, by this error."""
    convert = "convert(net)"
    if row.remedy and not row.remedy.startswith("convert"):
        convert += f", and {row.remedy}"
    if _anisotropic(row):
        return "; ".join(filter(None, ("its kernel is not isotropic", row.reason))), convert
    if row.status == EQUIVARIANT:
        if own == math.inf:
            return "this symmetry does not act on the fields that it puts out", "use other fields, or isotropic layers"
        return "measured; its output does not turn as its fields say", "correct its fields, or its options"
    if row.status == UNKNOWN:
        return f"measured; {row.reason}", "use layers that convert knows, or average it over all turns"
    if row.status in (ISOTROPIC, UNAFFECTED) or not row.reason:
        return "measured; its options, or its input, differ between the axes", "make them alike"
    return row.reason, convert if row.status == CONVERTIBLE else row.remedy


def _layers(trials: Sequence[Trial], limits: Mapping[str, float], rows: Sequence[Row]) -> Iterator[LayerDiagnosis]:
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
            if any(_above(e.own, limits[s]) for e in errors) and (s in EXACT or _directed(row))
        ]
        lost = {s for s, _ in broken}
        inside = [name for name in blamed if row.name and name.startswith(f"{row.name}.")]  # they end before it
        why = "", ""
        if broken:
            why = (f"{inside[0]} in it does", "") if inside else _why(row, max(own[s] or 0 for s in lost))
            blamed.append(row.name)
        yield LayerDiagnosis(
            row.name,
            row.type,
            trials[0].shapes.get(number, ()),
            own,
            total,
            tuple(s for s in limits if s in lost or ("rot90" in lost and s != "flip")),
            tuple(dict.fromkeys(size for _, size in broken)),
            row.status,
            *why,
            row.parameters,
            trials[0].costs[number],
        )


def _above(error: float | None, limit: float) -> bool:
    return error is not None and error > limit


def _label(row: Row) -> str:
    return row.name or "(root)"
