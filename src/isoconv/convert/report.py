"""What conversion does, or did, to each layer of a network, and what still breaks its symmetry."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isoconv._checks import ntuple, spells_out
from isoconv.bands import BandOptions, band_plan
from isoconv.convert.code import Place, traced, watched
from isoconv.convert.conversion import (
    check_module,
    converted_copy,
    directed_options,
    heir_of,
    retained_energy,
    why_isotropic,
)
from isoconv.convert.measuring import (
    LIMIT,
    CannotRunError,
    Measurement,
    alone,
    attempt,
    generators,
    verify,
)
from isoconv.convert.rules import Layer, kind, layers, own_parameters
from isoconv.convert.windows import BANDED, BREAKS, DEPENDS, UNAFFECTED, UNKNOWN
from isoconv.symmetry import carries_fields

__all__ = ["ConversionReport", "Row", "conversion_report"]

SYMMETRIC, BROKEN, NOT_VERIFIED = "symmetric", "broken", "not verified"
_REMEDY = "use layers that convert knows, or average it over all turns"


@dataclass(frozen=True)
class Row:
    """One layer, or one function that the code of a module calls.

    Attributes:
        name: its place in the network, as in ``named_modules``; of its first place if it is shared; of the module for a
            function.
        type: name of its class; of a function with brackets, as in ``"pad()"``.
        status: ``"isotropic"``, ``"equivariant"`` (by its own ``in_fields`` and ``out_fields``, see
            :class:`isoconv.symmetry.Action`), ``"convertible"`` (by :func:`isoconv.convert`), ``"unaffected"``
            (keeps the symmetry as it is), ``"depends"``, ``"left"`` (convert does not touch it), ``"breaks symmetry"``
            or ``"unknown"``.
        reason, remedy: why, and what can be done; empty if there is nothing to say.
        parameters: numbers in its own parameters.
        dense_weights, banded_weights: weights of the convolution with one per tap, and with one per band (and, with
            orders, harmonic); 0 if it has no bands.
        retained: share of the kernel's energy (sum of squares) that projection on the bands keeps, 0 to 1; None unless
            it is to be projected, or on the device "meta".
        orders: highest order of the fields that the converted layer sees; 0 if it sees no directions.
    """

    name: str
    type: str
    status: str
    reason: str = ""
    remedy: str = ""
    parameters: int = 0
    dense_weights: int = 0
    banded_weights: int = 0
    retained: float | None = None
    orders: int = 0


@dataclass(frozen=True)
class ConversionReport:
    """The layers of a network as :func:`isoconv.conversion_report` judges them; ``str()`` makes a table of it.

    Attributes:
        rows: one per layer, then one for each function in the code that breaks the symmetry, or may do so.
        parameters, parameters_converted: of the network as it is and as :func:`isoconv.convert` makes it, shared ones
            counted once.
        measured: the converted network as a whole, at several sizes; empty without an input.
        unseen: modules whose code could not be looked into, without an input.
        obstacle: why nothing was measured.
        reflections: whether mirror images were measured beside rotations.
    """

    rows: tuple[Row, ...]
    parameters: int
    parameters_converted: int
    measured: tuple[Measurement, ...] = ()
    unseen: tuple[str, ...] = ()
    obstacle: str = ""
    reflections: bool = True

    @property
    def verdict(self) -> str:
        """Of the network as :func:`isoconv.convert` makes it: ``"symmetric"`` if it was measured to keep flips and
        quarter turns (quarter turns alone, if without ``reflections``) at every size that it takes, ``"broken"`` if it
        breaks them at one, otherwise ``"not verified"``.
        """
        if any(m.lost for m in self.measured):
            return BROKEN
        return SYMMETRIC if any(m.kept for m in self.measured) else NOT_VERIFIED

    @property
    def dense_weights(self) -> int:
        """Weights of all isotropic and convertible layers with one weight per tap."""
        return sum(row.dense_weights for row in self.rows)

    @property
    def banded_weights(self) -> int:
        """Weights of all isotropic and convertible layers with one weight per band."""
        return sum(row.banded_weights for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything in the report, ready for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "status": dict(Counter(row.status for row in self.rows)),
            "parameters": self.parameters,
            "parameters_converted": self.parameters_converted,
            "dense_weights": self.dense_weights,
            "banded_weights": self.banded_weights,
            "verdict": self.verdict,
            "measured": [m._asdict() | {"error": "inf" if m.error == math.inf else m.error} for m in self.measured],
            "note": self._note(),
        }

    def _note(self) -> str:
        """The verdict in words."""
        kept, lost = ([m for m in self.measured if getattr(m, state)] for state in ("kept", "lost"))
        untold = [m for m in self.measured if m.error is None]
        if lost:
            worst = max(lost, key=lambda m: m.error or 0)
            what = "flips or quarter turns" if self.reflections else "quarter turns"
            text = f"Broken: once converted, it loses {what} at {_sizes(lost)}, by {worst.error:.2g}"
            text += (
                f" (kept at {_sizes(kept)})" * bool(kept) + ". isoconv.doctor tells where, in the converted network."
            )
        elif kept:
            what = "flips and quarter turns" if self.reflections else "quarter turns"
            text = f"Symmetric: once converted, it keeps {what}, as measured at {_sizes(kept)}."
        else:
            why = untold[0].reason if untold else self.obstacle
            text = f"Not verified: {why}."
        if untold and (lost or kept):
            text += f" Not measured at {_sizes(untold)}: {untold[0].reason}."
        if self.unseen:
            text += f" Code that torch.fx cannot trace, and that is not seen: {', '.join(self.unseen)}."
        return text

    def __str__(self) -> str:
        remarks = {(row.reason, row.remedy): "" for row in self.rows if row.reason}
        marks = {remark: str(i) for i, remark in enumerate(remarks, 1)}
        table = [("layer", "type", "status", "weights", "kept", "note")]
        for row in self.rows:
            weights = f"{row.dense_weights:,} -> {row.banded_weights:,}" if row.dense_weights else ""
            kept = "" if row.retained is None else f"{row.retained:.0%}"
            mark = marks.get((row.reason, row.remedy), "")
            table.append((row.name or "(root)", row.type, row.status, weights, kept, mark))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        notes = [f"{mark:>2} {reason}" + f"; {remedy}" * bool(remedy) for (reason, remedy), mark in marks.items()]
        count = ", ".join(f"{n} {status}" for status, n in Counter(row.status for row in self.rows).most_common())
        totals = (
            f"{count}. Parameters: {self.parameters:,} as it is, {self.parameters_converted:,} converted; "
            f"weights of isotropic and convertible layers: {self.dense_weights:,} -> {self.banded_weights:,}."
        )
        wrapped = [textwrap.fill(text, 110, subsequent_indent="   ") for text in notes]
        return "\n".join([*aligned, "", *wrapped, "", textwrap.fill(totals, 110), textwrap.fill(self._note(), 110)])


@spells_out(band_plan)
def conversion_report(
    net: nn.Module,
    input: Tensor | Sequence[int] | None = None,
    *,
    orders: int = 0,
    reflections: bool = True,
    **bands: Unpack[BandOptions],
) -> ConversionReport:
    """Judge every layer of ``net``, converted or not: what :func:`isoconv.convert` with the same options makes of it,
    and what breaks the symmetry.

    The symmetry meant is that of the square or cube (flips and 90-degree rotations) at every input size. Layers are
    judged by their type and hyperparameters; layers of unknown types, which run alone on noise, by what is measured.
    Functions called between the layers are seen too:

    - With an ``input``, the converted network runs, and all it calls is measured. So is the network itself, at the
      size of the input and at one (in 1D and 2D up to three) pixels more along every axis. The ``verdict``
      ``"symmetric"`` says that it holds there. A copy runs, in float64 if possible. Its parameters that are zero
      or tiny everywhere, such as the gains of new branches, are random: they would hide what they multiply.
    - Without one, functions are seen as far as torch.fx can trace the code, and the verdict is ``"not verified"``.

    Args:
        net: any module.
        input: images (N, C, 1 to 3 spatial axes), of which shape and device count; or such a shape.
        orders, bands, profile, circular, spacing, norm: as of :func:`isoconv.convert`.
        reflections: as of :func:`isoconv.convert`; if False, quarter turns alone are measured on the network.

    Raises:
        TypeError: ``net`` is no module, or ``input`` neither a tensor nor a shape.
        ValueError: for options that do not fit a layer, or an ``input`` that is none.
    """
    directed = directed_options(orders, reflections)
    found = layers(check_module(net))
    shape = None if input is None else _shape(input)
    plain = replace(layer_report(net, found, bands, directed), reflections=reflections)
    try:
        converted = attempt(converted_copy, net, found, bands, directed, "reference")
    except CannotRunError as error:
        return replace(plain, obstacle=f"isoconv.convert fails on this network ({error})")
    dims = next((len(layer.window.stride) for layer in found if layer.slides), 2) if shape is None else len(shape) - 2
    scalar = not any(carries_fields(layer.module) for layer in found)
    rows = tuple(_tried(row, converted, dims, scalar) for row in plain.rows)
    if shape is None:
        places, unseen = traced(converted, dims)
        channels = next((m.in_channels for m in net.modules() if hasattr(m, "in_channels")), 3)
        example = ", ".join(map(str, (1, channels, *[64] * dims)))
        obstacle = f"give an input to have it measured, such as conversion_report(net, ({example}))"
        return replace(plain, rows=(*rows, *map(_of_code, places)), unseen=tuple(unseen), obstacle=obstacle)
    if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        return replace(plain, obstacle="the network has no values (device meta)")
    report = replace(plain, rows=rows, measured=tuple(verify(converted, shape, generators(dims, reflections))))
    if report.verdict == SYMMETRIC:  # what the code may break between two layers, it mends
        return report
    return replace(report, rows=(*rows, *map(_of_code, watched(converted, shape))))


def layer_report(
    net: nn.Module, found: Sequence[Layer], bands: BandOptions, directed: dict[str, Any]
) -> ConversionReport:
    """The report on the layers ``found`` in ``net``, of which nothing runs; ``directed`` are the other options."""
    rows, saved = [], {}
    for layer in found:
        row = _row(layer)
        if layer.projected:
            row, bias = _projected(layer, row, bands, directed)
            saved[id(layer.module.bias)] = _numel(layer.plain.bias) - bias
            saved[id(layer.module.weight)] = row.parameters - row.banded_weights - _numel(layer.plain.bias)
        rows.append(row)
    parameters = sum(p.numel() for p in net.parameters() if not is_lazy(p))
    return ConversionReport(tuple(rows), parameters, parameters - sum(saved.values()))


def _shape(input: Tensor | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(input, Tensor | Sequence):
        raise TypeError(f"input must be a tensor of images or a shape such as (1, 3, 64, 64), got {input!r}")
    shape = tuple(input.shape) if isinstance(input, Tensor) else ntuple(input, len(input), "input")
    if not 3 <= len(shape) <= 5 or min(shape) < 1:
        raise ValueError(f"expected an input N x channels x 1 to 3 spatial axes, such as 1x3x64x64, got {shape}")
    return shape


def _sizes(measured: Sequence[Measurement]) -> str:
    return ", ".join(m.label for m in measured)


def _numel(parameter: Tensor | None) -> int:
    return 0 if parameter is None else parameter.numel()


def _of_code(place: Place) -> Row:
    return Row(place.module, f"{place.function}()", *place.verdict)


def _tried(row: Row, converted: nn.Module, dims: int, scalar: bool) -> Row:
    """The row of a layer of an unknown type with what running it alone tells. The network itself is measured with an
    input only. If not all channels are ``scalar``, those of this layer may belong together, so that an error tells
    nothing."""
    if row.status != UNKNOWN or not row.name:
        return row
    errors = dict(zip(("first", "last"), alone(converted.get_submodule(row.name), dims), strict=True))
    kept = [where for where, error in errors.items() if error is not None and error <= LIMIT]
    lost = {where: error for where, error in errors.items() if error is not None and error > LIMIT}
    if not lost:
        return replace(row, status=UNAFFECTED, reason="measured: keeps", remedy="") if kept else row
    if not scalar:
        return row
    (where, error), *_ = lost.items()
    if kept:
        reason = f"measured: keeps with channels {kept[0]}, breaks by {error:.2g} with channels {where}"
        return replace(row, status=DEPENDS, reason=reason, remedy="")
    return replace(row, status=BREAKS, reason=f"measured: breaks by {error:.2g}", remedy=_REMEDY)


def _row(layer: Layer) -> Row:
    """Of a layer as it is."""
    module, verdict = layer.module, layer.verdict
    own = sum(p.numel() for p in own_parameters(module) if not is_lazy(p))
    row = Row(layer.name, type(module).__name__, *verdict, parameters=own)
    if kind(module) not in BANDED:
        return row
    dense = module.in_channels * module.out_channels // module.spec.groups * math.prod(module.kernel_size)
    return replace(row, dense_weights=dense, banded_weights=own - _numel(module.bias), orders=module.orders)


def _projected(layer: Layer, row: Row, bands: BandOptions, directed: dict[str, Any]) -> tuple[Row, int]:
    """The row of a layer whose weight is projected, and the size of the bias that is left."""
    weight, reason = layer.plain.weight, [row.reason]
    if directed and (why := why_isotropic(layer, bands, directed["orders"])):
        directed = {}
        reason.append(f"sees no directions, for {why}")
    elif directed:
        reason.append("half of its channels become magnitudes of fields, whose weights are new")
    heir = heir_of(layer, bands, **directed)
    bias = _numel(heir.bias)
    row = replace(
        row,
        reason="; ".join(filter(None, reason)),
        dense_weights=weight.numel(),
        banded_weights=sum(p.numel() for p in heir.parameters()) - bias,
        retained=None if weight.is_meta else retained_energy(weight, heir.plan, len(heir.weight)),
        orders=heir.orders,
    )
    return row, bias
