"""What a report tells of one kind of task only: a hook, of which every part has a default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from isoconv._checks import count_of
from isoconv.tasks import Score, Task

__all__ = ["Extras", "Matrix"]


@dataclass(frozen=True)
class Matrix:
    """A table of shares of 1.

    Attributes:
        values: by row and column; None where there is none.
    """

    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


class Extras:
    """Arguments are of one network on the test images: what the task records of them ``upright`` (N, ...) and
    ``rotated`` (rotations, N, ...), and the ``targets`` (N, ...).

    Attributes:
        scores: columns beside those of the task; :meth:`measured` gives those that its summary does not have.
        beside: a score of the task that stands beside the main one in the summary, by its key without a position, and
            why it does; None for none.
        heading: of the matrices.
        method: how :attr:`scores` are computed, in a sentence.
    """

    scores: ClassVar[tuple[Score, ...]] = ()
    beside: ClassVar[tuple[str, str] | None] = None
    heading: ClassVar[str] = ""
    method: ClassVar[str] = ""

    def contents(self, task: Task) -> str:
        """What there is to tell in an image: "4 classes"."""
        return count_of(len(task.info.labels), "target")

    def resolution(self, images: int) -> str:
        """How much one of so many test images changes the main score; empty if that depends on the image."""
        return ""

    def measured(self, task: Task, upright: Tensor, rotated: Tensor, targets: Tensor) -> dict[str, float | None]:
        """Of :attr:`scores` those that only the report computes, by their keys."""
        return {}

    def details(self, task: Task, upright: Tensor, rotated: Tensor, targets: Tensor) -> Any:
        """What :meth:`matrices` needs of a network."""
        return None

    def matrices(self, task: Task, details: Sequence[Any]) -> list[Matrix]:
        """Tables that take more than a number for each network, from the details of its seeds."""
        return []
