"""What differences between contestants mean: paired tests, their correction, and ranks over data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from isoconv._extras import require

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = require("scipy.stats", extra="study")

__all__ = ["Difference", "average_ranks", "cliques", "critical_difference", "friedman", "paired_difference"]


class Difference(NamedTuple):
    """Mean of a - b with its 95 % interval and two-sided p."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(a: Tensor, b: Tensor) -> Difference:
    """Compare two contestants image by image.

    Args:
        a, b: (N,) score of each image, such as the share of seeds and rotations in which it is decided rightly.

    Returns:
        The mean difference with the paired t-test. It accounts for the chance in the choice of test images, not for
        that in the training. Of a single image nothing can be said: the interval is -1 to 1.
    """
    difference = a.double() - b.double()
    mean = difference.mean().item()
    if len(difference) == 1:
        return Difference(mean, -1.0, 1.0, 1.0)
    if (difference == difference[0]).all():
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    test = stats.ttest_1samp(difference.numpy(), 0)
    low, high = test.confidence_interval()
    return Difference(mean, float(low), float(high), float(test.pvalue))


def average_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """Mean rank of each contestant over data sets, 1 the best, ties sharing their ranks.

    Args:
        scores: a row per data set, a column per contestant, larger is better.
    """
    return stats.rankdata(-np.asarray(scores), axis=1).mean(0).tolist()


def friedman(scores: Sequence[Sequence[float]]) -> float | None:
    """p of Friedman's test that all contestants are alike (chi-squared approximation, corrected for ties); None for two
    contestants, for whom Nemenyi's test says it all.

    Args:
        scores: as for :func:`average_ranks`.
    """
    table = np.asarray(scores)
    if table.shape[1] < 3:
        return None
    if (table == table[:, :1]).all():
        return 1.0
    return float(stats.friedmanchisquare(*table.T).pvalue)


def critical_difference(contestants: int, datasets: int, level: float = 0.05) -> float:
    """Average ranks that differ by more are told apart by Nemenyi's test (Demsar, JMLR 7, 2006)."""
    quantile = float(stats.studentized_range.ppf(1 - level, contestants, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(contestants * (contestants + 1) / (6 * datasets))


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[float, float]]:
    """The widest intervals of ranks (best, worst) within which no two contestants are told apart."""
    ordered = sorted(ranks)
    reach = [(low, max(high for high in ordered if high - low <= difference)) for low in ordered]
    spans = [(low, high) for low, high in dict.fromkeys(reach) if high > low]
    return [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
