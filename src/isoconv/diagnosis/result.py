"""What :func:`isoconv.doctor` found, as a value, a table, a page and JSON."""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Diagnosis", "Finding", "LayerDiagnosis"]

Size = tuple[int, ...]
NOTE = "Multiply-adds: of convolutions and linear layers; an isotropic layer has one per band, not per tap."
INFINITE = (
    "inf: an output of another shape, no number, not zero where it should be, or fields on which no symmetry acts."
)
_STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .6rem; text-align: left }
tr { border-bottom: 1px solid #ddd } td.n { text-align: right; font-variant-numeric: tabular-nums }
td.bad { background: #f6c9c0 } td.good { background: #d8eedb } code { background: #f2f2f2; padding: 0 .2rem }"""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer that ran.

    Attributes:
        name: its place in the network, as in ``named_modules``.
        type: name of its class.
        shape: of its output for the input given; empty if that is no tensor.
        own: for each symmetry the relative error that the layer itself makes, given what it is given, turned; the worst
            over the sizes. None where no tensor has axes that are known to be those of the image.
        total: the relative error of its output when the network's input is turned: its own and all before it.
        breaks: the symmetries that it breaks itself.
        sizes: spatial sizes of the network's input at which it does so.
        status: as in :class:`isoconv.convert.report.Row`.
        reason, remedy: why it breaks them, and what can be done; empty if it breaks none.
        parameters: numbers in its own parameters.
        multiply_adds: of a convolution or linear layer, for the input given.
    """

    name: str
    type: str
    shape: Size
    own: Mapping[str, float | None]
    total: Mapping[str, float | None]
    breaks: tuple[str, ...]
    sizes: tuple[Size, ...]
    status: str
    reason: str
    remedy: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Finding:
    """What becomes of one symmetry in the whole network.

    Attributes:
        symmetry: ``"rot90"``, ``"flip"``, or that of a free angle, such as ``"rot30"``.
        holds: whether the output has it, at every size measured; None if that cannot be told.
        error: relative error of the output, the worst over the sizes; None if it has no axes known to be the image's.
        converted: the same once converted by :func:`isoconv.convert`; None if that could not be measured.
        layer: name of the layer that loses it first; None if none does, or code between layers.
        where: the place in words, or empty.
        sizes: spatial sizes at which it is lost there.
        reason, remedy: why, and what can be done.
    """

    symmetry: str
    holds: bool | None
    error: float | None
    converted: float | None
    layer: str | None
    where: str
    sizes: tuple[Size, ...]
    reason: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`isoconv.doctor` found; ``str()`` makes a table of it.

    Attributes:
        network: name of its class.
        sizes: spatial sizes of the input at which it was measured.
        tolerance: relative errors up to this are rounding.
        findings: one per symmetry.
        layers: one per layer that ran, in the order in which they end.
        parameters, multiply_adds: of the network as it is, and as :func:`isoconv.convert` makes it; None if it cannot.
        notes: what could not be measured, and why.
    """

    network: str
    sizes: tuple[Size, ...]
    tolerance: float
    findings: tuple[Finding, ...]
    layers: tuple[LayerDiagnosis, ...]
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int | None]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON. An infinite error (an output of another shape, or not finite) is ``"inf"``."""
        return _plain(asdict(self))

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        symmetries = [finding.symmetry for finding in self.findings]
        remarks = _remarks(self)
        head = [("", "", "", *_spread("own error", symmetries), *_spread("so far", symmetries), "")]
        head += [("layer", "type", "output", *map(title, symmetries), *map(title, symmetries), "note")]
        rows = [
            (
                layer.name or "(root)",
                layer.type,
                _size(layer.shape),
                *(_error(layer.own[s]) for s in symmetries),
                *(_error(layer.total[s]) for s in symmetries),
                remarks.get((layer.reason, layer.remedy), ""),
            )
            for layer in self.layers
        ]
        notes = [f"{mark:>2} {_sentence(*remark)}" for remark, mark in remarks.items()]
        found = [_verdict(self, finding) for finding in self.findings]
        wrapped = [textwrap.fill(text, 110, subsequent_indent="   ") for text in (*found, *_footnotes(self))]
        notes = [textwrap.fill(text, 110, subsequent_indent="   ") for text in notes]
        parts = (_columns([*head, *rows]), *([notes] if notes else []), _columns(_totals(self)), wrapped)
        return "\n\n".join("\n".join(part) for part in parts)

    def to_html(self) -> str:
        """A page that needs no file beside it."""
        symmetries = [finding.symmetry for finding in self.findings]
        found = "".join(f"<li>{html.escape(_verdict(self, finding))}</li>" for finding in self.findings)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in _footnotes(self))
        totals = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in _totals(self)
        )
        titles = [f"{title(s)}{what}" for what in ("", ", so far") for s in symmetries]
        heads = ["layer", "type", "output", *titles, "parameters", "multiply-adds", "why", "what to do"]
        rows = "".join(_html_row(layer, symmetries, self.tolerance) for layer in self.layers)
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>Symmetry of {html.escape(self.network)}</title>"
            f"<style>{_STYLE}</style><h1>Symmetry of {html.escape(self.network)}</h1>"
            f"<p>Measured at {', '.join(map(_size, self.sizes))}.</p><ul>{found}</ul><table>{totals}</table>"
            "<p>Each layer: the relative error that it makes itself when what it is given is turned, and that of its "
            f"output so far when the input of the network is. Up to {self.tolerance:g} is rounding.</p>"
            f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>{notes}</html>\n"
        )


def title(symmetry: str) -> str:
    """``"rot30"`` as a heading: 30°."""
    return "flips" if symmetry == "flip" else symmetry.removeprefix("rot") + "°"


def _verdict(diagnosis: Diagnosis, finding: Finding) -> str:
    name = title(finding.symmetry)
    if finding.holds is None:
        return f"{name}: cannot be told"
    if finding.holds:
        approximate = finding.symmetry not in ("rot90", "flip")
        return f"{name}: kept" + f" approximately, error {_error(finding.error)}" * approximate
    at = "" if set(finding.sizes) == set(diagnosis.sizes) else f", at {' and '.join(map(_size, finding.sizes))} only"
    return f"{name}: lost first {finding.where}{at}: {_sentence(finding.reason, finding.remedy)}"


def _footnotes(diagnosis: Diagnosis) -> list[str]:
    errors = [error for layer in diagnosis.layers for error in (*layer.own.values(), *layer.total.values())]
    errors += [error for finding in diagnosis.findings for error in (finding.error, finding.converted)]
    return [*diagnosis.notes, *([INFINITE] if math.inf in errors else []), NOTE]


def _sentence(reason: str, remedy: str) -> str:
    return f"{reason} -> {remedy}" if remedy else reason


def _remarks(diagnosis: Diagnosis) -> dict[tuple[str, str], str]:
    """Each reason with its remedy once, and the mark that stands for it."""
    remarks = dict.fromkeys((layer.reason, layer.remedy) for layer in diagnosis.layers if layer.reason)
    return {remark: str(i) for i, remark in enumerate(remarks, 1)}


def _totals(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    heads = ("network", *(title(f.symmetry) for f in diagnosis.findings), "parameters", "multiply-adds")
    columns = [
        *((f.error, f.converted) for f in diagnosis.findings),
        diagnosis.parameters,
        diagnosis.multiply_adds,
    ]
    names = ("as it is", "converted")
    rows = [(name, *(_number(column[i]) for column in columns)) for i, name in enumerate(names)]
    return [heads, *rows]


def _html_row(layer: LayerDiagnosis, symmetries: Sequence[str], tolerance: float) -> str:
    cells = [f"<td>{html.escape(text)}</td>" for text in (layer.name or "(root)", layer.type, _size(layer.shape))]
    for s in symmetries:
        own = layer.own[s]
        colour = "bad" if s in layer.breaks else "good" if own is not None and own <= tolerance else ""
        cells.append(f'<td class="n {colour}">{_error(own)}</td>')
    cells += [f"<td class=n>{_error(layer.total[s])}</td>" for s in symmetries]
    cells += [f"<td class=n>{number:,}</td>" for number in (layer.parameters, layer.multiply_adds)]
    cells += [f"<td>{html.escape(text)}</td>" for text in (layer.reason, layer.remedy)]
    return f"<tr>{''.join(cells)}</tr>"


def _spread(head: str, columns: Sequence[str]) -> list[str]:
    return [head, *[""] * (len(columns) - 1)] if columns else []


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text aligned; what stands over several columns does not widen the first of them."""
    widths = [max(len(cell) for cell in column[-len(rows) + (len(rows) > 3) :]) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _error(error: float | None) -> str:
    if error is None:
        return "-"
    return "0" if error == 0 else f"{error:.0e}" if error < 1e-3 else f"{error:.3f}"


def _number(value: float | int | None) -> str:
    return f"{value:,}" if isinstance(value, int) else _error(value)


def _size(shape: Size) -> str:
    return "x".join(map(str, shape))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "inf" if value == math.inf else value
