"""Charts: what is drawn is what was given."""

import itertools
import random
import re
import xml.etree.ElementTree as ET

import pytest

from isoconv.report.charts import Series, dots, lines, rank_diagram, scatter
from isoconv.tasks import Score

SVG = "{http://www.w3.org/2000/svg}"
ACCURACY = Score("accuracy", "accuracy")
ROWS = ["upright", "turned <far>", "flipped"]


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))


def marks(svg: str, kind: str) -> dict[str, list[dict[str, str]]]:
    """By the class of the series, the attributes of the circles or paths of the groups of a kind."""
    groups = [g for g in drawn(svg) if kind in g.get("class", "").split()]
    name = "circle" if kind == "dot" else "path"
    return {g.get("class", "").split()[2]: [each.attrib for each in g.iter(SVG + name)] for g in groups}


@pytest.fixture
def many() -> list[Series]:
    """Seventeen contestants close together; the last has no value in the last row."""
    rng = random.Random(0)
    shares = [[0.7 + 0.02 * rng.random() for _ in ROWS] for _ in range(17)]
    return [
        Series(
            i, f"network & {i}", [(row, v, v - 0.01, v + 0.01) for row, v in enumerate(own)][: 3 - (i == 16)], i == 3
        )
        for i, own in enumerate(shares)
    ]


def test_every_contestant_has_a_dot_and_a_bar_in_every_row(many: list[Series]) -> None:
    svg = dots(many, ACCURACY, ROWS, 'what "it" shows')
    root = drawn(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'what "it" shows')
    assert {name: len(each) for name, each in marks(svg, "dot").items()} == {f"s{i}": 3 - (i == 16) for i in range(17)}
    for i, (path,) in enumerate(marks(svg, "deviation").values()):
        assert len(re.findall(r"M\d+ \d+H\d+", path["d"])) == 3 - (i == 16)
    assert [each.text for each in root[0].iter(SVG + "text")][-3:] == ROWS
    titles = [each.text for each in root.iter(SVG + "title")]
    assert titles == [f"network & {i}" for i in range(17)] * 2


def test_dots_cover_neither_each_other_nor_another_row(many: list[Series]) -> None:
    svg = dots(many, ACCURACY, ROWS, "label")
    circles = [[(int(c["cx"]), int(c["cy"])) for c in each] for each in marks(svg, "dot").values()]
    for (x, y), (u, v) in itertools.combinations(itertools.chain(*circles), 2):
        assert (x - u) ** 2 + (y - v) ** 2 >= 15**2  # coordinates are rounded to whole pixels
    rows = [[each[row][1] for each in circles if len(each) > row] for row in range(3)]
    assert max(rows[0]) < min(rows[1]) <= max(rows[1]) < min(rows[2])
    assert circles[3] == [(circles[3][row][0], min(rows[row])) for row in range(3)]  # the strong one leads


def test_dots_are_where_their_values_are() -> None:
    values = [0.61, 0.64, 0.69]
    svg = dots([Series(0, "one", [(row, v) for row, v in enumerate(values)])], ACCURACY, ROWS, "label")
    assert marks(svg, "deviation") == {}
    at = [int(c["cx"]) for c in marks(svg, "dot")["s0"]]
    assert (at[1] - at[0]) / (at[2] - at[0]) == pytest.approx(3 / 8, abs=0.01)


def test_a_single_value_has_an_axis() -> None:
    assert marks(dots([Series(0, "one", [(0, 1.0)])], ACCURACY, ["upright"], "label"), "dot")["s0"][0]["cx"] == "460"


def test_points_of_a_thin_line_are_not_drawn_but_those_without_a_line_are() -> None:
    points = [(angle, 0.7, 0.6, 0.8) for angle in range(0, 361, 10)]
    for joined, strong, circles, titles in ((True, False, 0, 1), (False, False, 37, 1), (True, True, 37, 38)):
        root = drawn(lines([Series(0, "one", points, strong, joined)], ACCURACY, "label", "angle", 360))
        assert len(list(root.iter(SVG + "circle"))) == circles
        assert len(list(root.iter(SVG + "title"))) == titles


def axis(svg: str) -> list[str]:
    """Texts at the y axis."""
    return [each.text or "" for each in drawn(svg).iter(SVG + "text") if each.get("class") == "end"]


def test_axes_are_in_the_unit_of_the_score() -> None:
    error = Score("mae", "MAE", unit="mm", higher_is_better=False)
    series = [Series(0, "one", [(angle, 3.0 + angle / 100) for angle in range(0, 361, 90)])]
    svg = lines(series, error, "label", "angle", 360)
    assert axis(svg) == ["3", "4", "5", "6"]
    assert "MAE, mm" in [each.text for each in drawn(svg).iter(SVG + "text")]
    point = drawn(scatter([Series(0, "one", [(2000, 3.25)])], error, "label", "cost"))
    assert "one: 3.25 mm at 2 k" in [each.text for each in point.iter(SVG + "title")]
    rows = drawn(dots([Series(0, "one", [(0, 3.0), (1, 6.0)])], error, ["upright", "rotated"], "label"))
    assert "4 mm" in [each.text for each in rows.iter(SVG + "text")]
    shares = [Series(0, "one", [(0, 0.6), (90, 0.8)])]
    assert axis(lines(shares, ACCURACY, "label", "angle", 360)) == ["60", "65", "70", "75", "80"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-3), (-2.0, 3.0), (41.0, 43.0), (0.0, 5e4)])
def test_any_range_has_a_few_ticks_within_it(low: float, high: float) -> None:
    series = [Series(0, "one", [(0, low), (90, high)])]
    ticks = [float(text) for text in axis(lines(series, Score("mae", "MAE", ""), "label", "angle", 360))]
    room = 0.11 * (high - low)
    assert 2 <= len(ticks) <= 8
    assert all(low - room <= tick <= high + room for tick in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_ranks_are_told_to_those_who_do_not_see_them() -> None:
    svg = rank_diagram([(0, "a"), (1, "b & c")], [1.75, 1.25], [], 0.98)
    assert 'aria-label="Average ranks over data sets: b &amp; c 1.25, a 1.75; critical difference 0.98"' in svg
    assert "more than the axis" not in svg
    assert "more than the axis" in rank_diagram([(0, "a"), (1, "b")], [1, 2], [(1, 2)], 1.13)
