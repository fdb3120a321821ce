"""How all figures look."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from isoconv._extras import require
from isoconv.runs import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito: for all kinds of colour vision
_LINES = (("-", "o"), ("--", "s"), (":", "^"))
_STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # labels may have dollar signs
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_DPI = 150


def colours(count: int) -> list[str]:
    """The first colours, again and again if there are not enough."""
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


class Line(NamedTuple):
    """How a curve is drawn: as a line, or as points."""

    colour: str
    dash: str
    marker: str


def lines(count: int) -> list[Line]:
    """The first lines, told apart by dash and marker where the colours start again: 18 differ."""
    kinds = [_LINES[i // len(_COLOURS) % len(_LINES)] for i in range(count)]
    return [Line(colour, *kind) for colour, kind in zip(colours(count), kinds, strict=True)]


def style() -> Any:
    """The context in which figures are drawn."""
    return require("matplotlib", "study").rc_context(_STYLE)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a file that is there is replaced. Raises OSError if it cannot be written."""
    atomic_write(path, partial(figure.savefig, format="png"))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return require("matplotlib.figure", "study").Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
