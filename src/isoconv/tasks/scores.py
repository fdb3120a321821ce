"""Scores: what a number is called, in which unit it is, and which way is better. Results, comparisons, reports, model
cards and tables show them by these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Score", "beside_scores", "main_scores"]


@dataclass(frozen=True)
class Score:
    """A number that says how well a network does.

    Attributes:
        key: its name in files.
        title: its name for people.
        unit: ``"%"`` for a share of 1, which is shown in percent; else empty, and the number is shown as it is.
        higher_is_better: the direction.
    """

    key: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def text(self, value: float | None, interval: Sequence[float] | None = None, sd: float | None = None) -> str:
        """The number with its unit, interval and deviation; ``-`` where there is none."""
        if value is None or math.isnan(value):
            return "-"
        text = f"{self.number(value)} {self.unit}".rstrip()
        if interval is not None:
            text += f"  ({self.number(interval[0])} to {self.number(interval[1])})"
        return text if sd is None else f"{text} ± {self.number(sd)}"

    def number(self, value: float | None) -> str:
        """The number without its unit; ``-`` where there is none."""
        if value is None or math.isnan(value):
            return "-"
        return f"{100 * value:.1f}" if self.unit == "%" else f"{value:.4g}"

    def difference(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A difference of two such numbers, signed, a share in percentage points, with its interval."""
        if value is None:
            return "-"
        text = self._signed(value)
        return text if interval is None else f"{text} ({self._signed(interval[0])} to {self._signed(interval[1])})"

    def _signed(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.unit == "%" else f"{value:+.3g}"


def main_scores(main: Score) -> tuple[Score, ...]:
    """The main score of a task in each group of positions, by its key in the ``summary`` of an evaluation."""
    groups = {
        "upright": "upright",
        "rotated_mean": "rotated, mean",
        "rotated_worst": "rotated, worst",
        "right_angles": "right angles",
        "flips": "flips",
    }
    return tuple(replace(main, key=key, title=f"{main.title} {title}") for key, title in groups.items())


def beside_scores(others: Sequence[Score]) -> tuple[Score, ...]:
    """The scores beside it, upright and as means over rotations."""
    return tuple(
        replace(score, key=f"{position}_{score.key}", title=f"{score.title} {title}")
        for score in others
        for position, title in {"upright": "upright", "rotated": "rotated, mean"}.items()
    )
