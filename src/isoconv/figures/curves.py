"""Scores against the angle of rotation: the curves, and how they are drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from textwrap import fill
from typing import TYPE_CHECKING, Any

from isoconv._extras import require
from isoconv.figures.look import Line, lines, new_figure, style
from isoconv.tasks.scores import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, ...]
"""Angle, score, and the ends of its band if it has one."""
_LINE = {2: 96, 3: 60}  # letters across a figure


def curves_of(
    labels: Sequence[str], tables: Sequence[Sequence[Mapping[str, Any]]], score: str
) -> dict[str, list[Point]]:
    """A curve for each label, of all tables of positions that have it."""
    groups: dict[str, list[Sequence[Mapping[str, Any]]]] = defaultdict(list)
    for label, table in zip(labels, tables, strict=True):
        groups[label].append(table)
    return {_legend(label, group): curve for label, group in groups.items() if (curve := curve_of(group, score))}


def curve_of(tables: Sequence[Sequence[Mapping[str, Any]]], score: str) -> list[Point]:
    """A curve of the positions of each run, sorted by angle: equal angles of a run are averaged, the band is one
    deviation over runs, of a single one its interval, and absent where there is none; a full circle is closed."""
    at: dict[float, list[tuple[float, ...]]] = defaultdict(list)
    for table in tables:
        own: dict[float, list[tuple[float, ...]]] = defaultdict(list)
        for row in table:
            if row["group"] in ("rotation", "cube") and row[score] is not None:
                own[round(row["angle"], 6)].append((row[score], *(row[f"{score}_ci"] or ())))
        for angle, values in own.items():
            at[angle].append(tuple(map(mean, zip(*values, strict=True))))
    curve: list[Point] = []
    for angle in sorted(at):
        centre, *band = at[angle][0]
        if len(at[angle]) > 1:
            seeds = [value for value, *_ in at[angle]]
            centre, spread = mean(seeds), stdev(seeds)
            band = [centre - spread, centre + spread]
        curve.append((angle, centre, *band))
    return [*curve, (360.0, *curve[0][1:])] if curve and 180 < curve[-1][0] < 360 else curve


def against_angle(
    curves: Mapping[str, Sequence[Point]], score: Score, title: str, dims: int, protocol: str = "standard"
) -> Figure:
    """Curves of a score, by the name to show; the protocol tells what the angles are."""
    low = min((min(point[1:]) for curve in curves.values() for point in curve), default=0.0)
    high = max((max(point[1:]) for curve in curves.values() for point in curve), default=1.0)
    is_share = score.unit == "%"
    if is_share:
        limits = max(0.0, math.floor(10 * low - 0.2) / 10), min(1.0, math.ceil(10 * high + 0.2) / 10)
    else:
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
        limits = low - margin, high + margin
    random = dims == 3 and protocol != "official"
    with style():
        figure = new_figure(9.6 if dims == 2 else 6.4, 4.4)
        flat = figure.add_subplot(1, 2, 2) if dims == 2 else figure.add_subplot()
        for line, (label, curve) in zip(lines(len(curves)), curves.items(), strict=True):
            _draw(flat, curve, line, label, points=random)
            if dims == 2:
                polar = _polar(figure) if len(figure.axes) == 1 else figure.axes[1]
                _draw(polar, [(math.radians(angle), *rest) for angle, *rest in curve], line)
        ticks = require("matplotlib.ticker", "study")
        for ax in figure.axes:
            ax.set_ylim(*limits)
            ax.yaxis.set_major_locator(ticks.MaxNLocator(7, steps=[1, 2, 5, 10]))
            if is_share:
                ax.yaxis.set_major_formatter(ticks.PercentFormatter(1, decimals=0, symbol=" %"))
        last = 180 if random else 360
        flat.set(xlabel="rotation of the test images (degrees)", ylabel=f"test {score.title}")
        flat.set_xlim(-last / 60, last * 61 / 60)
        flat.set_xticks(range(0, last + 1, last // 8 if last == 360 else 30))
        figure.suptitle(title)
        handles, labels = flat.get_legend_handles_labels()
        columns = 2 if dims == 2 and max(map(len, labels), default=0) <= _LINE[2] // 2 else 1
        figure.legend(
            handles, [fill(label, _LINE[dims]) for label in labels], loc="outside lower center", ncols=columns
        )
        return figure


def _legend(label: str, group: Sequence[Any]) -> str:
    return f"{label} (mean of {len(group)} seeds ± sd)" if len(group) > 1 else f"{label} (95 % interval)"


def _polar(figure: Figure) -> Any:
    """The left half: 0 degrees up, counter-clockwise as the images turn, radii labelled between two spokes."""
    ax: Any = figure.add_subplot(1, 2, 1, projection="polar")
    ax.set_theta_zero_location("N")
    ax.set_xticks([math.radians(angle) for angle in range(0, 360, 45)])
    ax.set_rlabel_position(22.5)
    ax.tick_params(axis="y", labelsize=8, labelcolor="#555555")
    ax.spines["polar"].set_color("#bbbbbb")
    return ax


def _draw(ax: Any, curve: Sequence[Any], line: Line, label: str | None = None, points: bool = False) -> None:
    x, centre, low, high = map(list, zip(*curve, strict=True))
    if points:
        below = [c - a for c, a in zip(centre, low, strict=True)]
        above = [b - c for c, b in zip(centre, high, strict=True)]
        ax.errorbar(
            x, centre, [below, above], fmt=line.marker, ms=4, color=line.colour, ecolor=line.colour + "55", label=label
        )
    else:
        ax.plot(x, centre, color=line.colour, ls=line.dash, lw=1.8, label=label)
        ax.fill_between(x, low, high, color=line.colour, alpha=0.18, lw=0)
