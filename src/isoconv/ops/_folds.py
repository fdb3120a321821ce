"""Geometry of ring sums: how the taps of a kernel fold onto each other.

The basis of every plan is mirror symmetric, so the taps ``j`` and ``k - 1 - j`` of an axis always enter together: rows (and planes) are folded
first, then columns. Rows of the basis that are equal, such as ``(dz, dy)`` and ``(dy, dz)`` of a cubic kernel, are summed before their columns
are. What remains is one addition per distinct row and column, instead of one multiplication per tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from isoconv.bands import BandPlan


@dataclass(frozen=True)
class FoldPlan:
    """The ring sums of one geometry as tables. Kernels of fewer than three axes are seen as three-dimensional ones of
    size 1.

    Attributes:
        rows: int64 (row folds, 5): planes ``z`` and ``z'``, rows ``y`` and ``y'``, and the row class the fold is summed
            into.
        columns: int64 (column folds, 4): the row class, columns ``x`` and ``x'``, and the band the fold is summed into.
        coefficients: float64 (column folds,): the basis there.
        classes: number of row classes.
    """

    rows: np.ndarray
    columns: np.ndarray
    coefficients: np.ndarray
    classes: int


@lru_cache(maxsize=1024)
def fold_plan(plan: BandPlan) -> FoldPlan:
    basis = plan.basis.reshape(plan.bands, *[1] * (3 - plan.dims), *plan.kernel_size)
    _, depth, height, width = basis.shape
    classes: dict[bytes, int] = {}
    rows, columns, coefficients = [], [], []
    for z in range((depth + 1) // 2):
        for y in range((height + 1) // 2):
            row = basis[:, z, y]
            if not row.any():
                continue
            known = len(classes)
            index = classes.setdefault(row.tobytes(), known)
            rows.append((z, depth - 1 - z, y, height - 1 - y, index))
            if index < known:
                continue
            for x in range((width + 1) // 2):
                for band in np.flatnonzero(row[:, x]):
                    columns.append((index, x, width - 1 - x, band))
                    coefficients.append(row[band, x])
    return FoldPlan(
        np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64), np.array(coefficients), len(classes)
    )
