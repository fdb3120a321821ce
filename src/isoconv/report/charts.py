"""Charts as inline SVG, coloured by the page's style sheet: series i has the class ``s{i}``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from isoconv.tasks.scores import Score

__all__ = ["Series", "dots", "lines", "rank_diagram", "scatter"]

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 320, 52, 20, 12, 44
_RADIUS = 8  # of a dot that holds a number


@dataclass(frozen=True)
class Series:
    """One contestant in a chart.

    Attributes:
        index: of its colour.
        points: (x, y), or (x, y, low, high). In :func:`dots` x is the number of a row.
        strong: drawn thick and with its band.
        joined: whether points are joined by a line.
    """

    index: int
    title: str
    points: Sequence[tuple[float, ...]]
    strong: bool = False
    joined: bool = True


def lines(series: Sequence[Series], score: Score, label: str, x_label: str, last: float) -> str:
    """A score over 0..``last`` degrees."""
    values = [value for s in series for point in s.points for value in (point[1:] if s.strong else point[1:2])]
    frame = _Frame((0, last), _range(values, score), score)
    body = [frame.axes(range(0, int(last) + 1, 45 if last > 180 else 30), x_label, degrees=True)]
    for s in sorted(series, key=lambda s: s.strong):
        points = [(frame.x(p[0]), frame.y(p[1])) for p in s.points]
        if s.joined and s.strong and all(len(p) == 4 for p in s.points):
            edge = [(frame.x(p[0]), frame.y(p[3])) for p in s.points]
            edge += [(frame.x(p[0]), frame.y(p[2])) for p in reversed(s.points)]
            body.append(f'<polygon class="band s{s.index}" points="{_path(edge)}"/>')
        line = f'<polyline points="{_path(points)}"/>' if s.joined else ""
        told = [f"<title>{escape(s.title)}, {p[0]:.0f}°: {score.text(p[1])}</title>" for p in s.points]
        marks = [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if s.strong else 2}">{told[i] if s.strong else ""}</circle>'
            for i, (x, y) in enumerate(points)
            if s.strong or not s.joined
        ]
        body.append(_group(s, line + "".join(marks)))
    return _svg(_W, _H, label, body)


def scatter(series: Sequence[Series], score: Score, label: str, x_label: str) -> str:
    """A score over a cost, on a logarithmic axis; each series has one point, marked by its number."""
    xs, ys = [s.points[0][0] for s in series], [s.points[0][1] for s in series]
    decades = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
    low, high = min(ys), max(ys)
    if score.unit == "%":
        pad = max(0.01, 0.12 * (high - low))
        ends = max(0.0, low - pad), min(1.0, high + pad)
    else:
        ends = _padded(low, high)
    frame = _Frame(decades, ends, score)
    ticks = [
        (math.log10(m * 10**e), _short(m * 10**e))
        for e in range(math.floor(decades[0]), math.ceil(decades[1]) + 1)
        for m in ((1, 2, 5) if decades[1] - decades[0] > 1 else (1, 1.5, 2, 3, 4, 5, 7))
        if decades[0] <= math.log10(m * 10**e) <= decades[1]
    ]
    body = [frame.axes([], x_label, labelled=ticks)]
    for s in series:
        (cost, value, *_) = s.points[0]
        x, y = frame.x(math.log10(cost)), frame.y(value)
        told = f"<title>{escape(s.title)}: {score.text(value)} at {_short(cost)}</title>"
        body.append(_group(s, _numbered(s, x, y, told), "dot"))
    return _svg(_W, _H, label, body)


def dots(series: Sequence[Series], score: Score, rows: Sequence[str], label: str) -> str:
    """A score, a row for each of ``rows``, in which every series has a dot with its number, and a bar from low to
    high. A row has as many lanes as it needs for dots that would cover each other."""
    width, edge, head, lane_height = 480, 20, 24, 2 * _RADIUS + 2
    values = [value for s in series for point in s.points for value in point[1:]]
    low, high = _range(values, score)

    def x(value: float) -> float:
        return edge + (min(max(value, low), high) - low) / (high - low) * (width - 2 * edge)

    where: dict[tuple[int, float], float] = {}
    top, heads = 24.0, []
    for row, title in enumerate(rows):
        heads.append(f'<line class="grid" x1="0" y1="{top:.0f}" x2="{width}" y2="{top:.0f}"/>')
        heads.append(f'<text x="0" y="{top + 16:.0f}">{escape(title)}</text>')
        lanes: list[list[float]] = []
        for _, centre, index in sorted(
            (not s.strong, x(p[1]), s.index) for s in series for p in s.points if p[0] == row
        ):
            free = (i for i, lane in enumerate(lanes) if all(abs(centre - other) > 2 * _RADIUS for other in lane))
            if (i := next(free, len(lanes))) == len(lanes):
                lanes.append([])
            lanes[i].append(centre)
            where[index, row] = top + head + lane_height * (i + 0.5)
        top += head + lane_height * len(lanes) + 4
    ticks = "".join(
        f'<line class="grid" x1="{x(v):.0f}" y1="24" x2="{x(v):.0f}" y2="{top:.0f}"/>'
        + "".join(
            f'<text class="mid" x="{x(v):.0f}" y="{y:.0f}">{_tick(v, score)} {score.unit}</text>'
            for y in (16, top + 16)
        )
        for v in _ticks(low, high, score)
    )
    bars = [
        _group(s, f'<path d="{"".join(f"M{x(p[2]):.0f} {y:.0f}H{x(p[3]):.0f}" for p, y in spread)}"/>', "deviation")
        for s in series
        if (spread := [(p, where[s.index, p[0]]) for p in s.points if len(p) == 4])
    ]
    marks = [_group(s, "".join(_numbered(s, x(p[1]), where[s.index, p[0]]) for p in s.points), "dot") for s in series]
    return _svg(width, top + 24, label, [f'<g class="axis">{ticks}{"".join(heads)}</g>', *bars, *marks])


def rank_diagram(
    names: Sequence[tuple[int, str]], ranks: Sequence[float], spans: Sequence[tuple[float, float]], difference: float
) -> str:
    """Average ranks on an axis, the best on the left; a bar joins those that are not told apart.

    Args:
        names: (index of the colour, title) of each contestant.
        spans: the bars, as :func:`isoconv.report.statistics.cliques` gives them.
    """
    k, width, left, right, row = len(ranks), 1040, 340, 700, 24

    def x(rank: float) -> float:
        return left + (rank - 1) / max(k - 1, 1) * (right - left)

    base = 60
    first = base + 14 + 9 * len(spans) + 14
    order = sorted(range(k), key=lambda i: ranks[i])
    half = (k + 1) // 2
    height = first + row * half + 4
    span = min(difference, k - 1)
    open_end = " (more than the axis)" if span < difference else ""
    body = [
        f'<g class="axis"><line x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>'
        + "".join(
            f'<line x1="{x(r):.1f}" y1="{base - 5}" x2="{x(r):.1f}" y2="{base}"/>'
            f'<text class="mid" x="{x(r):.1f}" y="{base - 9}">{r}</text>'
            for r in range(1, k + 1)
        )
        + f'<line class="bar" x1="{left}" y1="20" x2="{x(1 + span):.1f}" y2="20"/>'
        f'<text x="{left}" y="14">critical difference {difference:.2f}{open_end}</text></g>'
    ]
    for i, (low, high) in enumerate(spans):
        y = base + 12 + 9 * i
        body.append(f'<line class="bar" x1="{x(low) - 4:.1f}" y1="{y}" x2="{x(high) + 4:.1f}" y2="{y}"/>')
    for place, i in enumerate(order):
        on_left = place < half
        y = first + row * (place if on_left else k - 1 - place)
        end, anchor, text_x = (left - 8, "end", left - 12) if on_left else (right + 8, "start", right + 12)
        text = f"{names[i][1]} ({ranks[i]:.2f})"
        body.append(
            f'<g class="series s{names[i][0]}"><polyline points="{x(ranks[i]):.1f},{base} {x(ranks[i]):.1f},{y} '
            f'{end},{y}"/><circle cx="{x(ranks[i]):.1f}" cy="{base}" r="4"/>'
            f'<text style="text-anchor:{anchor}" x="{text_x}" y="{y + 4}">{escape(text)}</text></g>'
        )
    told = ", ".join(f"{names[i][1]} {ranks[i]:.2f}" for i in order)
    return _svg(width, height, f"Average ranks over data sets: {told}; critical difference {difference:.2f}", body)


class _Frame:
    """Maps data to pixels; a score is on the y axis."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], score: Score) -> None:
        self.xs, self.ys, self.score = xs, ys, score

    def x(self, value: float) -> float:
        return _LEFT + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (_W - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        value = min(max(value, self.ys[0]), self.ys[1])
        return _H - _BOTTOM - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (_H - _TOP - _BOTTOM)

    def axes(
        self,
        xs: Sequence[float],
        x_label: str,
        degrees: bool = False,
        labelled: Sequence[tuple[float, str]] = (),
    ) -> str:
        parts = [
            f'<line class="grid" x1="{_LEFT}" y1="{self.y(v):.1f}" x2="{_W - _RIGHT}" y2="{self.y(v):.1f}"/>'
            f'<text class="end" x="{_LEFT - 6}" y="{self.y(v) + 4:.1f}">{_tick(v, self.score)}</text>'
            for v in _ticks(*self.ys, self.score)
        ]
        ticks = [*labelled, *((v, f"{v:g}{'°' if degrees else ''}") for v in xs)]
        parts += [f'<text class="mid" x="{self.x(v):.1f}" y="{_H - _BOTTOM + 17}">{text}</text>' for v, text in ticks]
        middle = (_LEFT + _W - _RIGHT) / 2
        parts.append(f'<text class="mid" x="{middle}" y="{_H - 8}">{escape(x_label)}</text>')
        heading = escape(self.score.heading)
        parts.append(f'<text class="mid" transform="translate(12,{(_H - _BOTTOM) / 2}) rotate(-90)">{heading}</text>')
        return f'<g class="axis">{"".join(parts)}</g>'


def _range(values: Sequence[float], score: Score) -> tuple[float, float]:
    """Of an axis that holds them, of shares in steps of 5 %."""
    if score.unit != "%":
        return _padded(min(values), max(values))
    low = min(0.95, max(0.0, math.floor(min(values) * 20) / 20))
    return low, max(low + 0.05, min(1.0, math.ceil(max(values) * 20) / 20))


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float, score: Score) -> list[float]:
    """At most eight, 1, 2 or 5 times a power of ten apart, shares in whole percent."""
    power = -2 if score.unit == "%" else math.floor(math.log10(high - low)) - 1
    steps = (digit * 10.0**e for e in itertools.count(power) for digit in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 7)
    return [step * i for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def _tick(value: float, score: Score) -> str:
    return f"{100 * value:.0f}" if score.unit == "%" else f"{value:.4g}"


def _group(s: Series, content: str, kind: str = "") -> str:
    names = " ".join(filter(None, ("series", kind, f"s{s.index}", "strong" if s.strong else "")))
    return f'<g class="{names}"><title>{escape(s.title)}</title>{content}</g>'


def _numbered(s: Series, x: float, y: float, told: str = "") -> str:
    """A dot with the number of its series."""
    dot = f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{_RADIUS}">{told}</circle>'
    return dot + f'<text x="{x:.0f}" y="{y + 4:.0f}">{s.index + 1}</text>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(width: float, height: float, label: str, body: Sequence[str]) -> str:
    label = escape(label, quote=True)
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _short(value: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
