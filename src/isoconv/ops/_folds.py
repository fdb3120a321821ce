"""Geometry of ring sums: how the taps of a kernel fold onto each other.

Rows of the basis that are equal, such as those of ``(dz, dy)``, ``(dz, -dy)`` and ``(dy, dz)`` in a cubic kernel, enter
together: the rows of the image below them are summed first, then the columns of these sums, band by band. What remains
is one addition per row and one per column of each distinct row, instead of one multiplication per tap and output
channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from isoconv.bands import BandPlan


@dataclass(frozen=True)
class FoldPlan:
    """The ring sums of one geometry as tables. Kernels of fewer than three axes are seen as three-dimensional ones of
    size 1.

    Attributes:
        rows: per class of equal rows, the places ``(z, y)`` of its rows.
        columns: per band, the ``(class, x, coefficient)`` whose sum it is.
    """

    rows: tuple[tuple[tuple[int, int], ...], ...]
    columns: tuple[tuple[tuple[int, int, float], ...], ...]

    @property
    def additions(self) -> int:
        """Additions per pixel and channel."""
        return sum(map(len, self.rows)) + sum(map(len, self.columns))


def asymmetry(plan: BandPlan) -> str | None:
    """Why the adjoint of ring sums is not made of the same ring sums: it reflects the kernel through its centre."""
    if all(None not in signs and prod(signs) == 1 for signs in plan.parity):  # type: ignore[arg-type]
        return None
    return "it computes gradients with kernels that are even under reflection through their centre, this one is not"


@lru_cache(maxsize=1024)
def fold_plan(plan: BandPlan) -> FoldPlan:
    basis = plan.basis.reshape(plan.bands, *[1] * (3 - plan.dims), *plan.kernel_size)
    places: dict[bytes, list[tuple[int, int]]] = {}
    distinct = []
    for z, y in np.ndindex(basis.shape[1:3]):
        row = basis[:, z, y]
        if not row.any():
            continue
        if row.tobytes() not in places:
            distinct.append(row)
        places.setdefault(row.tobytes(), []).append((z, y))
    columns = tuple(
        tuple((k, int(x), float(row[band, x])) for k, row in enumerate(distinct) for x in np.flatnonzero(row[band]))
        for band in range(plan.bands)
    )
    return FoldPlan(tuple(map(tuple, places.values())), columns)
