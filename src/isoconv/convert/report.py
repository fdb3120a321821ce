"""What conversion does, or did, to each layer of a network, and what still breaks its symmetry."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

from torch import nn
from torch.nn.parameter import is_lazy

from isoconv._checks import spells_out
from isoconv.bands import BandOptions, band_plan
from isoconv.convert.conversion import check_module, plan_for, retained_energy
from isoconv.convert.rules import Layer, kind, layers, own_parameters
from isoconv.convert.windows import BANDED

__all__ = ["ConversionReport", "Row", "conversion_report"]

NOTE = "Only modules are listed: what a forward() computes by functions (F.interpolate, x.view, slices) is not seen."


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: its place in the network, as in ``named_modules``; of its first place if it is shared.
        type: name of its class.
        status: ``"isotropic"``, ``"equivariant"`` (by its own ``in_fields`` and ``out_fields``, see
            :class:`isoconv.symmetry.Action`), ``"convertible"`` (by :func:`isoconv.convert`), ``"unaffected"``
            (keeps the symmetry as it is), ``"depends"``, ``"left"`` (convert does not touch it), ``"breaks symmetry"``
            or ``"unknown"``.
        reason, remedy: why, and what can be done; empty if there is nothing to say.
        parameters: numbers in its own parameters.
        dense_weights, banded_weights: weights of the convolution with one per tap and with one per band; 0 if it has no
            bands.
        retained: share of the kernel's energy (sum of squares) that projection on the bands keeps, 0 to 1; None unless
            it is to be projected, or on the device "meta".
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


@dataclass(frozen=True)
class ConversionReport:
    """The layers of a network as :func:`isoconv.conversion_report` judges them; ``str()`` makes a table of it.

    Attributes:
        rows: one per layer.
        parameters, parameters_converted: of the network as it is and as :func:`isoconv.convert` makes it, shared ones
            counted once.
    """

    rows: tuple[Row, ...]
    parameters: int
    parameters_converted: int

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
            "note": NOTE,
        }

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
        return "\n".join([*aligned, "", *wrapped, "", textwrap.fill(totals, 110), NOTE])


@spells_out(band_plan)
def conversion_report(net: nn.Module, **bands: Unpack[BandOptions]) -> ConversionReport:
    """Judge every layer of ``net``, converted or not: what :func:`isoconv.convert` with the same options makes of it,
    and what breaks the symmetry.

    The symmetry meant is that of the square or cube (flips and 90-degree rotations) at every input size. Layers are
    judged one by one by their type and hyperparameters, nothing is run; :func:`isoconv.equivariance_error` measures.
    """
    found = layers(check_module(net))
    rows = tuple(_row(layer, bands) for layer in found)
    parameters = sum(p.numel() for p in net.parameters() if not is_lazy(p))
    saved = {
        id(layer.module.weight): row.dense_weights - row.banded_weights
        for layer, row in zip(found, rows, strict=True)
        if row.dense_weights and kind(layer.module) not in BANDED
    }
    return ConversionReport(rows, parameters, parameters - sum(saved.values()))


def _row(layer: Layer, bands: BandOptions) -> Row:
    module, verdict, base = layer.module, layer.verdict, kind(layer.module)
    own = [p.numel() for p in own_parameters(module) if not is_lazy(p)]
    row = Row(layer.name, type(module).__name__, *verdict, parameters=sum(own))
    if base in BANDED:
        taps, banded = math.prod(module.kernel_size), module.weight.numel()
        return replace(row, dense_weights=banded // module.bands * taps, banded_weights=banded)
    if layer.projected:
        plan, dense = plan_for(layer, bands), module.weight.numel()
        banded = dense // math.prod(module.kernel_size) * plan.bands
        kept = None if module.weight.is_meta else retained_energy(module.weight, plan)
        return replace(row, dense_weights=dense, banded_weights=banded, retained=kept)
    return row
